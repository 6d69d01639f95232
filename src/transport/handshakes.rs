//! Handshakes under way: bounded in number, and the oldest of the busiest address gives way.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Where a connection comes from, as far as bounds are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Source(IpAddr);

impl Source {
    /// An IPv6 host chooses the lower 64 bits as it likes (RFC 8981), so the network counts.
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

/// All handshakes under way on one listener.
pub(super) struct Handshakes {
    max: usize,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    /// By number, which is by age.
    unfinished: BTreeMap<u64, (Source, oneshot::Sender<()>)>,
}

/// One handshake under way, until it is dropped.
pub(super) struct Handshake {
    of: Arc<Handshakes>,
    number: u64,
    crowded_out: oneshot::Receiver<()>,
}

impl Handshakes {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max: max.max(1), open: Mutex::default() })
    }

    /// One more; another one gives way if there are too many.
    pub(super) fn begin(self: &Arc<Self>, source: Source) -> Handshake {
        let (give_way, crowded_out) = oneshot::channel();
        let mut open = self.open.lock();
        if open.unfinished.len() >= self.max
            && let Some(victim) = open.victim()
            && let Some((_, give_way)) = open.unfinished.remove(&victim)
        {
            // One that ended just now has given way already.
            let _ = give_way.send(());
        }
        let number = open.next;
        open.next += 1;
        open.unfinished.insert(number, (source, give_way));
        drop(open);
        Handshake { of: Arc::clone(self), number, crowded_out }
    }
}

impl Open {
    /// The oldest of the source that has most.
    fn victim(&self) -> Option<u64> {
        let mut counts: HashMap<Source, usize> = HashMap::new();
        for (source, _) in self.unfinished.values() {
            *counts.entry(*source).or_default() += 1;
        }
        let most = counts.values().copied().max()?;
        self.unfinished.iter().find(|(_, (source, _))| counts.get(source) == Some(&most)).map(|(number, _)| *number)
    }
}

impl Handshake {
    /// Returns when this one has to give way.
    pub(super) async fn crowded_out(&mut self) {
        if (&mut self.crowded_out).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.of.open.lock().unfinished.remove(&self.number);
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

    fn is_out(handshake: &mut Handshake) -> bool {
        handshake.crowded_out().now_or_never().is_some()
    }

    #[test]
    fn the_oldest_of_the_busiest_address_gives_way() {
        let all = Handshakes::new(4);
        let mut quiet = all.begin(source("10.0.0.1"));
        let mut flood: Vec<_> = (0..3).map(|_| all.begin(source("10.0.0.2"))).collect();
        let mut another = all.begin(source("10.0.0.3"));
        assert!(is_out(&mut flood[0]) && !is_out(&mut flood[1]) && !is_out(&mut quiet) && !is_out(&mut another));
        flood.push(all.begin(source("10.0.0.2")));
        assert!(is_out(&mut flood[1]) && !is_out(&mut quiet) && !is_out(&mut another));
        drop(another);
        let mut next = all.begin(source("10.0.0.4"));
        assert!(!is_out(&mut flood[2]) && !is_out(&mut next), "what has ended leaves room");
    }

    #[test]
    fn a_network_of_64_bits_is_one_address() {
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8:0:1::1"), source("2001:db8:0:2::1"));
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
    }
}
