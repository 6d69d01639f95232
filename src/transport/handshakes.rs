//! Handshakes in progress, bounded in number at each stage. When a stage is full, a random
//! handshake of the busiest source is evicted.
//!
//! The other ends are still unauthenticated, so slots are counted by progress. A flood at one stage
//! does not evict handshakes at another: silent connections cannot evict those that have sent data,
//! and ClientHellos cannot evict those that have continued after the server's reply.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZero;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

/// Factor by which more connections may be silent, or waiting after the server's reply, than at any
/// other stage. The former cost little more than a socket. The latter wait for a round trip.
const WAITING_FACTOR: usize = 4;
/// Divisor of the processors that compute replies to ClientHellos at once.
const HELLO_CPU_PART: usize = 4;

/// The source of a connection, for bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Source(IpAddr);

impl Source {
    /// An IPv6 host chooses its lower 64 bits freely (RFC 8981), so the source is its /64 network.
    pub(super) fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
            v4 => v4,
        })
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            IpAddr::V4(address) => write!(f, "{address}"),
            IpAddr::V6(network) => write!(f, "{network}/64"),
        }
    }
}

/// Progress of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// No data received.
    Silent,
    /// Data received, but not a whole ClientHello.
    Begun,
    /// ClientHello received. The reply is computed when its turn comes.
    Hello,
    /// Reply computed.
    Replied,
    /// Data received after the reply.
    Proceeds,
}

/// All handshakes in progress on one listener.
pub(super) struct Handshakes {
    max: usize,
    open: Mutex<Slots>,
    hello_permits: Semaphore,
}

#[derive(Default)]
struct Slots {
    next: u64,
    /// Indexed by [`Stage`].
    stages: [Vec<Slot>; 5],
}

struct Slot {
    number: u64,
    source: Source,
    evict_signal: Arc<Notify>,
}

/// One handshake in progress, until it is dropped.
pub(super) struct Handshake {
    of: Arc<Handshakes>,
    source: Source,
    number: u64,
    evict_signal: Arc<Notify>,
}

impl Handshakes {
    /// Creates slots for `max` handshakes at each stage.
    pub(super) fn new(max: usize) -> Arc<Self> {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let hello_permits = Semaphore::new((processors / HELLO_CPU_PART).max(1));
        Arc::new(Self { max: max.max(1), open: Mutex::default(), hello_permits })
    }

    /// Adds a silent handshake. Evicts another one if there are too many.
    pub(super) fn begin(self: &Arc<Self>, source: Source) -> Handshake {
        let evict_signal = Arc::new(Notify::new());
        let mut open = self.open.lock();
        let number = open.next;
        open.next += 1;
        let slot = Slot { number, source, evict_signal: Arc::clone(&evict_signal) };
        open.put(Stage::Silent, slot, self.max);
        drop(open);
        Handshake { of: Arc::clone(self), source, number, evict_signal }
    }
}

impl Slots {
    fn take(&mut self, number: u64) -> Option<Slot> {
        self.stages.iter_mut().find_map(|slots| {
            let at = slots.iter().position(|slot| slot.number == number)?;
            Some(slots.swap_remove(at))
        })
    }

    fn put(&mut self, stage: Stage, slot: Slot, max: usize) {
        let waits = matches!(stage, Stage::Silent | Stage::Replied);
        let max = if waits { max.saturating_mul(WAITING_FACTOR) } else { max };
        let slots = &mut self.stages[stage as usize];
        if slots.len() >= max
            && let Some(victim) = victim(slots)
        {
            slots.swap_remove(victim).evict_signal.notify_one();
        }
        slots.push(slot);
    }
}

/// Chooses any handshake of the source that has most. Evicting the oldest would keep distant
/// clients out.
fn victim(slots: &[Slot]) -> Option<usize> {
    let mut counts: HashMap<Source, usize> = HashMap::new();
    for slot in slots {
        *counts.entry(slot.source).or_default() += 1;
    }
    let most = counts.values().copied().max()?;
    let of_busiest = |(at, slot): (usize, &Slot)| (counts.get(&slot.source) == Some(&most)).then_some(at);
    let busiest: Vec<usize> = slots.iter().enumerate().filter_map(of_busiest).collect();
    let chance = getrandom::u64().unwrap_or_default() % busiest.len() as u64;
    busiest.get(usize::try_from(chance).unwrap_or_default()).copied()
}

impl Handshake {
    /// Moves the handshake to a stage. Evicts another one there if there are too many. Returns
    /// `false` if this one was itself evicted.
    pub(super) fn advance(&self, stage: Stage) -> bool {
        let mut open = self.of.open.lock();
        let Some(slot) = open.take(self.number) else { return false };
        open.put(stage, slot, self.of.max);
        true
    }

    /// Readmits a handshake that was evicted as silent although data had arrived that was not read
    /// yet.
    pub(super) fn readmit(&self) {
        let slot = Slot { number: self.number, source: self.source, evict_signal: Arc::clone(&self.evict_signal) };
        self.of.open.lock().put(Stage::Begun, slot, self.of.max);
    }

    /// Returns when this handshake is evicted.
    pub(super) async fn evicted(&self) {
        self.evict_signal.notified().await;
    }

    /// Waits for permission to compute the reply to its ClientHello, in order of arrival. Dropping
    /// the result ends the permission.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.of.hello_permits.acquire().await.ok()
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let _ = self.of.open.lock().take(self.number);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::FutureExt;

    use super::*;

    fn source(text: &str) -> Source {
        Source::of(text.parse().unwrap())
    }

    fn has_slot(handshake: &Handshake) -> bool {
        handshake.of.open.lock().stages.iter().flatten().any(|slot| slot.number == handshake.number)
    }

    fn slots(handshakes: &[Handshake]) -> usize {
        handshakes.iter().filter(|handshake| has_slot(handshake)).count()
    }

    /// A handshake at a stage.
    fn at(stage: Stage, all: &Arc<Handshakes>, from: &str) -> Handshake {
        let handshake = all.begin(source(from));
        handshake.advance(stage);
        handshake
    }

    #[test]
    fn handshake_of_the_busiest_source_is_evicted() {
        let all = Handshakes::new(4);
        let quiet = at(Stage::Begun, &all, "10.0.0.1");
        let flood: Vec<_> = (0..3).map(|_| at(Stage::Begun, &all, "10.0.0.2")).collect();
        let another = at(Stage::Begun, &all, "10.0.0.3");
        assert!(has_slot(&quiet) && has_slot(&another) && slots(&flood) == 2);
        let more = at(Stage::Begun, &all, "10.0.0.2");
        assert!(has_slot(&quiet) && has_slot(&another) && has_slot(&more) && slots(&flood) == 1);
        for handshake in &flood {
            assert_eq!(handshake.evicted().now_or_never().is_none(), has_slot(handshake), "it is notified");
            handshake.advance(Stage::Hello);
        }
        assert_eq!(slots(&flood), 1, "an evicted handshake is not readmitted");
        let next = at(Stage::Begun, &all, "10.0.0.4");
        assert!(has_slot(&more) && has_slot(&next), "an advanced handshake frees its slot");
        drop(next);
        let last = at(Stage::Begun, &all, "10.0.0.5");
        assert!(has_slot(&more) && has_slot(&last), "an ended handshake frees its slot too");
    }

    #[test]
    fn silent_connections_never_evict_begun_handshakes() {
        let all = Handshakes::new(8);
        let begun = at(Stage::Begun, &all, "10.0.0.1");
        let hello = at(Stage::Hello, &all, "10.0.0.1");
        let own: Vec<_> = (0..80 * WAITING_FACTOR).map(|_| all.begin(source("10.0.0.1"))).collect();
        let many: Vec<_> =
            (0..80 * WAITING_FACTOR).map(|n| all.begin(source(&format!("10.1.{}.{}", n / 100, n % 100)))).collect();
        assert!(has_slot(&begun) && has_slot(&hello));
        assert_eq!(slots(&own) + slots(&many), 8 * WAITING_FACTOR);
    }

    #[test]
    fn client_hellos_never_evict_handshakes_in_progress() {
        let all = Handshakes::new(8);
        let honest = at(Stage::Proceeds, &all, "10.0.0.1");
        let own: Vec<_> = (0..80).map(|_| at(Stage::Hello, &all, "10.0.0.1")).collect();
        let many: Vec<_> = (0..80).map(|n| at(Stage::Hello, &all, &format!("10.0.1.{n}"))).collect();
        assert!(has_slot(&honest));
        assert_eq!(slots(&own) + slots(&many), 8);
    }

    #[test]
    fn slow_handshakes_are_evicted_at_random_only() {
        let all = Handshakes::new(128);
        let slow: Vec<_> = (0..128).map(|n| at(Stage::Hello, &all, &format!("10.0.0.{n}"))).collect();
        let _many: Vec<_> = (0..128).map(|n| at(Stage::Hello, &all, &format!("10.0.1.{n}"))).collect();
        // About 47 remain on average. The odds of fewer than 20 are below one in a million.
        assert!(slots(&slow) >= 20, "{}", slots(&slow));
    }

    #[test]
    fn concurrent_server_hellos_are_bounded() {
        let all = Handshakes::new(8);
        let handshake = at(Stage::Hello, &all, "10.0.0.1");
        let turns: Vec<_> = std::iter::from_fn(|| handshake.turn().now_or_never()).take(1_024).collect();
        assert!(!turns.is_empty() && turns.len() < 1_024);
        drop(turns);
        assert!(handshake.turn().now_or_never().is_some());
    }

    #[test]
    fn ipv6_64_network_counts_as_one_source() {
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8:0:1::1"), source("2001:db8:0:2::1"));
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
    }
}
