//! The table of peers: each peer's link, how far behind we are on its feed, and its attestations of
//! ours.
//!
//! In scope: one table, written by links and read by the operator's API; which of two links to one
//! peer stays. Out of scope: decisions based on it, and which feeds are stopped (`stopped_feeds`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use barid_core::ids::{FeedId, Member};
use barid_core::proto::frame::Frame;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::send_queue::SendQueue;
use crate::clock;
use crate::store::{Cosigned, CustodyRecord, Store};
use crate::telemetry::alarms::{Alarm, Alarms};

/// Maximum number of entries by which a feed is reported behind: more than any member publishes in
/// years, and exact in every JSON parser.
pub(crate) const BEHIND_ENTRIES_MAX: u64 = 1_000_000_000;

/// If a member opens this many links while another link that it dialled is open, two nodes use its
/// identity. One or two occur when a line broke and only one end has noticed.
const DUPLICATE_LINKS_MAX: usize = 4;
/// The window in which these links are counted.
const DUPLICATE_LINKS_WINDOW: Duration = Duration::from_secs(60);
/// For this long after the last of them the open link stays. Otherwise two nodes would replace each
/// other's link without end.
const DUPLICATE_LINKS_CLEAR_AFTER: Duration = Duration::from_secs(300);

/// The table of peers. Cheap to clone.
#[derive(Clone, Default)]
pub struct Peers {
    inner: Arc<PeersInner>,
}

struct PeersInner {
    table: Mutex<PeerTable>,
    alarms: Alarms,
    changed: watch::Sender<u64>,
}

impl Default for PeersInner {
    fn default() -> Self {
        Self { table: Mutex::default(), alarms: Alarms::default(), changed: watch::Sender::new(0) }
    }
}

#[derive(Default)]
struct PeerTable {
    peers: BTreeMap<Member, Peer>,
    links: u64,
}

#[derive(Default)]
struct Peer {
    link: Option<OpenLink>,
    /// When the last link ended.
    ended: Option<Instant>,
    /// Entries of each feed that it has announced to hold, over the open link.
    replica_sizes: BTreeMap<FeedId, u64>,
    /// Its clock in its Hello, in unix ms, and when the Hello arrived.
    hello_received: Option<(u64, Instant)>,
    duplicate_links: DuplicateLinks,
    status: PeerStatus,
}

/// Links registered while another one of the same dialler was open.
#[derive(Default)]
struct DuplicateLinks {
    /// When; at most [`DUPLICATE_LINKS_MAX`].
    seen_at: VecDeque<Instant>,
    /// When the last one was registered, once there have been too many.
    conflict: Option<Instant>,
}

impl DuplicateLinks {
    /// Records one more. Returns whether two nodes use one identity.
    fn record(&mut self, now: Instant) -> bool {
        self.seen_at.retain(|at| now.duration_since(*at) < DUPLICATE_LINKS_WINDOW);
        self.seen_at.push_back(now);
        let before = self.conflict.is_some_and(|last| now.duration_since(last) < DUPLICATE_LINKS_CLEAR_AFTER);
        let conflict = before || self.seen_at.len() >= DUPLICATE_LINKS_MAX;
        if self.seen_at.len() >= DUPLICATE_LINKS_MAX {
            self.seen_at.pop_front();
        }
        self.conflict = conflict.then_some(now);
        conflict
    }
}

struct OpenLink {
    number: u64,
    by_lower: bool,
    send_queue: Arc<SendQueue>,
    stop: watch::Sender<bool>,
}

/// The status of one peer at one time. Times are 0 where nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerStatus {
    /// Whether a link is open.
    pub linked: bool,
    /// When the link opened or ended, in unix ms.
    pub since_unix_ms: u64,
    /// Why the last link or attempt ended; empty while linked.
    pub last_error: String,
    /// The software named in its Hello.
    pub software: String,
    /// Newest roster version that it holds.
    pub roster_version: u64,
    /// Its clock minus ours in ms, 0 without a link. Its clock is extrapolated from its Hello; ours
    /// is read now.
    pub clock_ahead_ms: i64,
    /// The newest known epoch of its feed.
    pub feed: Option<FeedId>,
    /// Size of the newest verified checkpoint of that feed.
    pub known_size: u64,
    /// Entries of that feed held here.
    pub held_size: u64,
    /// Since when fewer entries are held than are known to exist, in unix ms; 0 if nothing is
    /// missing.
    pub behind_since_unix_ms: u64,
    /// Size of our feed that it last cosigned.
    pub cosigned_size: u64,
    /// Time in that cosignature, unix seconds.
    pub cosigned_time: u64,
    /// Time in its last heartbeat, unix seconds.
    pub heartbeat_time: u64,
    /// End of the range that its custody notes on our feed cover without a gap.
    pub custody_size: u64,
}

/// The registration of a link as the only one to its peer. Dropping it ends the registration.
pub(crate) struct LinkRegistration {
    peers: Peers,
    peer: Member,
    number: u64,
    stop: watch::Receiver<bool>,
}

impl Peers {
    /// Creates an empty table; alarms are raised in `alarms`.
    #[must_use]
    pub fn new(alarms: Alarms) -> Self {
        Self { inner: Arc::new(PeersInner { alarms, ..PeersInner::default() }) }
    }

    /// Returns the status of every known peer.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<Member, PeerStatus> {
        let now = (clock::unix_ms(), Instant::now());
        let table = self.inner.table.lock();
        table.peers.iter().map(|(member, peer)| (member.clone(), peer.snapshot(now))).collect()
    }

    /// Whether a link to `member` is open.
    #[must_use]
    pub fn linked(&self, member: &Member) -> bool {
        self.inner.table.lock().peers.get(member).is_some_and(|peer| peer.link.is_some())
    }

    /// Returns a receiver that changes when a link opens or ends, and when a peer announces more of
    /// the feed of a member without a link.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// Registers a link to `peer`; `None` if the open link stays. Of two links the one dialled by
    /// the lower code stays. Of two links of one dialler the newer one stays, since its dialler has
    /// seen the older one fail, unless that happens so often that there must be two diallers.
    pub(crate) fn register(
        &self,
        peer: &Member,
        by_lower: bool,
        send_queue: &Arc<SendQueue>,
    ) -> Option<LinkRegistration> {
        let mut table = self.inner.table.lock();
        table.links += 1;
        let number = table.links;
        let entry = table.peers.entry(peer.clone()).or_default();
        if let Some(current) = &entry.link {
            let duplicate = current.by_lower == by_lower && entry.duplicate_links.record(Instant::now());
            if duplicate {
                // Only a copied machine or a stolen key explains it.
                self.inner
                    .alarms
                    .raise_for(Alarm::DuplicateIdentity { peer: peer.clone() }, DUPLICATE_LINKS_CLEAR_AFTER);
            }
            if duplicate || current.by_lower && !by_lower {
                return None;
            }
            current.stop.send_replace(true);
        }
        let (stop, stopped) = watch::channel(false);
        entry.link = Some(OpenLink { number, by_lower, send_queue: Arc::clone(send_queue), stop });
        entry.replica_sizes.clear();
        entry.status.linked = true;
        entry.status.since_unix_ms = clock::unix_ms();
        entry.status.last_error.clear();
        drop(table);
        self.inner.changed.send_modify(|count| *count += 1);
        Some(LinkRegistration { peers: self.clone(), peer: peer.clone(), number, stop: stopped })
    }

    /// Queues a frame to `member`, if a link is open.
    pub(crate) fn send(&self, member: &Member, frame: Frame) {
        let send_queue = {
            let table = self.inner.table.lock();
            let link = table.peers.get(member).and_then(|peer| peer.link.as_ref());
            link.map(|current| Arc::clone(&current.send_queue))
        };
        if let Some(send_queue) = send_queue {
            send_queue.push(frame);
        }
    }

    /// Records that `peer` has announced to hold `size` entries of a feed.
    pub(crate) fn record_replica_size(&self, peer: &Member, feed: &FeedId, size: u64) {
        let mut table = self.inner.table.lock();
        let Some(entry) = table.peers.get_mut(peer).filter(|entry| entry.link.is_some()) else { return };
        let grew = entry.replica_sizes.insert(feed.clone(), size).is_none_or(|before| before < size);
        let relayed = feed.member != *peer && table.peers.get(&feed.member).is_none_or(|owner| owner.link.is_none());
        drop(table);
        if grew && relayed {
            self.inner.changed.send_modify(|count| *count += 1);
        }
    }

    /// Returns the entries of a feed that each linked peer, except its owner, has announced to
    /// hold.
    pub(crate) fn replica_sizes(&self, feed: &FeedId) -> Vec<(Member, u64)> {
        let table = self.inner.table.lock();
        let linked = table.peers.iter().filter(|(peer, entry)| entry.link.is_some() && **peer != feed.member);
        linked.map(|(peer, entry)| (peer.clone(), entry.replica_sizes.get(feed).copied().unwrap_or(0))).collect()
    }

    /// Returns the entries of a feed that `member` itself has announced to hold, if it is linked.
    pub(crate) fn replica_size(&self, member: &Member, feed: &FeedId) -> Option<u64> {
        let table = self.inner.table.lock();
        let entry = table.peers.get(member).filter(|entry| entry.link.is_some())?;
        Some(entry.replica_sizes.get(feed).copied().unwrap_or(0))
    }

    /// Since when there is no link to `member`: `began` if there never was one, `None` while there
    /// is one.
    pub(crate) fn unlinked_since(&self, member: &Member, began: Instant) -> Option<Instant> {
        match self.inner.table.lock().peers.get(member) {
            Some(Peer { link: Some(_), .. }) => None,
            Some(Peer { ended: Some(ended), .. }) => Some(*ended),
            _ => Some(began),
        }
    }

    /// Records why a dial attempt to `peer` failed or its link ended.
    pub(crate) fn link_failed(&self, peer: &Member, why: String) {
        self.update(peer, |status| {
            if !status.linked {
                status.last_error = why;
            }
        });
    }

    pub(crate) fn hello_received(&self, peer: &Member, software: &str, roster_version: u64, their_unix_ms: u64) {
        let mut table = self.inner.table.lock();
        let entry = table.peers.entry(peer.clone()).or_default();
        // A peer that sends no time is not checked.
        entry.hello_received = (their_unix_ms > 0).then(|| (their_unix_ms, Instant::now()));
        entry.status.software = software.chars().take(80).collect();
        entry.status.roster_version = roster_version;
    }

    /// Records that the peer holds this roster version. Returns whether it is newer than the known
    /// one.
    pub(crate) fn advance_roster_version(&self, peer: &Member, version: u64) -> bool {
        let mut newer = false;
        self.update(peer, |status| {
            newer = version > status.roster_version;
            status.roster_version = status.roster_version.max(version);
        });
        newer
    }

    /// Newest roster version that the peer is known to hold.
    pub(crate) fn roster_version(&self, peer: &Member) -> u64 {
        self.inner.table.lock().peers.get(peer).map_or(0, |peer| peer.status.roster_version)
    }

    /// Records that a verified checkpoint of `feed` has size `known`, and that `held` entries of it
    /// are held here.
    pub(crate) fn progress(&self, feed: &FeedId, known: u64, held: Option<u64>) {
        self.update(&feed.member, |status| {
            match &status.feed {
                Some(newest) if newest.epoch > feed.epoch => return,
                Some(newest) if newest.epoch == feed.epoch => {}
                _ => {
                    status.feed = Some(feed.clone());
                    (status.known_size, status.held_size, status.behind_since_unix_ms) = (0, 0, 0);
                }
            }
            status.held_size = status.held_size.max(held.unwrap_or(0));
            // The owner has signed this size, but nobody has verified that the entries exist.
            let known = known.min(status.held_size.saturating_add(BEHIND_ENTRIES_MAX));
            status.known_size = status.known_size.max(known);
            if status.held_size >= status.known_size {
                status.behind_since_unix_ms = 0;
            } else if status.behind_since_unix_ms == 0 {
                status.behind_since_unix_ms = clock::unix_ms();
            }
        });
    }

    pub(crate) fn cosigned(&self, note: &Cosigned) {
        self.update(&note.cosigner, |status| {
            if note.size >= status.cosigned_size {
                (status.cosigned_size, status.cosigned_time) = (note.size, note.time);
            }
        });
    }

    pub(crate) fn custody(&self, note: &CustodyRecord) {
        self.update(&note.holder, |status| {
            // A note after a gap is about entries received ahead of the order.
            if note.range.start <= status.custody_size {
                status.custody_size = status.custody_size.max(note.range.end);
            }
        });
    }

    pub(crate) fn heartbeat(&self, peer: &Member, time: u64) {
        self.update(peer, |status| status.heartbeat_time = status.heartbeat_time.max(time));
    }

    /// Wakes watchers, so that they check again which feeds to follow.
    pub(crate) fn notify_changed(&self) {
        self.inner.changed.send_modify(|count| *count += 1);
    }

    /// Restores the attestations of our feed, and our progress on other feeds, from the store.
    pub(crate) fn restore(&self, store: &dyn Store, own: &FeedId) {
        for state in store.feeds() {
            if state.feed.member != own.member {
                self.progress(&state.feed, state.checkpoint_size, Some(state.compact_range.size()));
            }
        }
        // Read errors are ignored: this is only status, and other code reports them.
        for note in store.cosigned_newest(own).unwrap_or_default() {
            if note.cosigner != own.member {
                self.cosigned(&note);
            }
        }
        for note in store.custody_newest(own).unwrap_or_default() {
            // The newest of the notes that follow each other without a gap.
            self.update(&note.holder, |status| status.custody_size = note.range.end);
        }
    }

    fn update(&self, peer: &Member, change: impl FnOnce(&mut PeerStatus)) {
        change(&mut self.inner.table.lock().peers.entry(peer.clone()).or_default().status);
    }
}

impl Peer {
    /// Returns the status at a time, given as our unix ms and as a monotonic time.
    fn snapshot(&self, (unix_ms, at): (u64, Instant)) -> PeerStatus {
        let clock_ahead_ms =
            self.hello_received.filter(|_| self.status.linked).map_or(0, |(theirs, hello_received)| {
                let theirs =
                    i128::from(theirs) + i128::try_from((at - hello_received).as_millis()).unwrap_or(i128::MAX / 2);
                i64::try_from(theirs - i128::from(unix_ms)).unwrap_or(i64::MAX)
            });
        PeerStatus { clock_ahead_ms, ..self.status.clone() }
    }
}

impl LinkRegistration {
    /// Returns when another link has replaced this one.
    pub(crate) async fn replaced(&mut self) {
        // If its sender was dropped, the link was replaced too.
        let _ = self.stop.wait_for(|stop| *stop).await;
    }
}

impl Drop for LinkRegistration {
    fn drop(&mut self) {
        let mut table = self.peers.inner.table.lock();
        if let Some(entry) = table.peers.get_mut(&self.peer)
            && entry.link.as_ref().is_some_and(|current| current.number == self.number)
        {
            entry.link = None;
            entry.ended = Some(Instant::now());
            entry.status.linked = false;
            entry.status.since_unix_ms = clock::unix_ms();
        }
        drop(table);
        self.peers.inner.changed.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::*;
    use crate::store::Commit;
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn link_dialled_by_lower_code_replaces_the_other() {
        let (peers, ly) = (Peers::default(), "ly".parse::<Member>().unwrap());
        let mut higher = peers.register(&ly, false, &Arc::default()).unwrap();
        let lower = peers.register(&ly, true, &Arc::default()).unwrap();
        higher.replaced().await;
        drop(higher);
        assert!(peers.linked(&ly), "the replaced link removes nothing");
        assert!(peers.register(&ly, false, &Arc::default()).is_none());
        drop(lower);
        assert!(!peers.linked(&ly));
        assert!(peers.register(&ly, false, &Arc::default()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn duplicate_identity_raises_alarm_and_leaves_the_open_link() {
        let (alarms, ly) = (Alarms::default(), "ly".parse::<Member>().unwrap());
        let peers = Peers::new(alarms.clone());
        let register = || peers.register(&ly, true, &Arc::default());
        // A line that breaks repeatedly, noticed at one end only: the newer link is the good one.
        let mut open = register().unwrap();
        for _ in 0..10 {
            tokio::time::advance(DUPLICATE_LINKS_WINDOW / 3 + Duration::from_secs(1)).await;
            open = register().unwrap();
        }
        assert_eq!(alarms.snapshot(), []);
        // Two nodes that replace each other's link.
        let replaced: Vec<bool> =
            (0..DUPLICATE_LINKS_MAX).map(|_| register().map(|newer| open = newer).is_some()).collect();
        assert!(replaced.contains(&false), "{replaced:?}");
        assert!(peers.linked(&ly) && register().is_none());
        assert_eq!(alarms.snapshot()[0].alarm, Alarm::DuplicateIdentity { peer: ly.clone() });
        // The alarm stays active while they continue.
        for _ in 0..3 {
            tokio::time::advance(DUPLICATE_LINKS_CLEAR_AFTER - Duration::from_secs(1)).await;
            assert!(register().is_none() && alarms.snapshot().len() == 1);
        }
        // Once the other node has stopped for long enough, links are accepted as before.
        tokio::time::advance(DUPLICATE_LINKS_CLEAR_AFTER).await;
        assert_eq!(alarms.snapshot(), []);
        assert!(register().is_some());
        drop(open);
    }

    #[test]
    fn peer_clock_is_compared_with_current_local_clock() {
        let (peers, ly) = (Peers::default(), "ly".parse::<Member>().unwrap());
        let registration = peers.register(&ly, true, &Arc::default()).unwrap();
        peers.hello_received(&ly, "barid", 1, clock::unix_ms() + 600_000);
        let ahead = |unix_ms| {
            let table = peers.inner.table.lock();
            let (_, hello_received) = table.peers[&ly].hello_received.unwrap();
            table.peers[&ly].snapshot((unix_ms, hello_received + Duration::from_secs(60))).clock_ahead_ms
        };
        let now = clock::unix_ms();
        assert!((659_000..=660_000).contains(&ahead(now)), "{}", ahead(now));
        assert!((-1_000..=0).contains(&ahead(now + 660_000)), "our clock was changed");
        drop(registration);
        assert_eq!(peers.snapshot()[&ly].clock_ahead_ms, 0, "no peer is linked whose clock could be wrong");
        let _again = peers.register(&ly, true, &Arc::default()).unwrap();
        peers.hello_received(&ly, "barid", 1, 0);
        assert_eq!(peers.snapshot()[&ly].clock_ahead_ms, 0, "the peer sent no time");
    }

    #[test]
    fn attestations_on_own_feed_are_restored_after_restart() {
        let (store, own) = (MemoryStore::new(), "ma.rabat.example/feed/1".parse::<FeedId>().unwrap());
        let holder: Member = "ly".parse().unwrap();
        let custody = |range: std::ops::Range<u64>| CustodyRecord {
            feed: own.clone(),
            holder: holder.clone(),
            range,
            not_held: Vec::new(),
            time: 1,
            note: Bytes::from_static(b"signed"),
        };
        // A note after a gap proves nothing about the entries before it.
        let custody = vec![custody(0..4), custody(4..9), custody(20..30)];
        store.commit(Commit { custody, ..Commit::default() }, 0).unwrap();
        let peers = Peers::default();
        peers.restore(&store, &own);
        assert_eq!(peers.snapshot()[&holder].custody_size, 9);
    }

    #[test]
    fn peer_is_behind_while_less_is_held_than_known() {
        let peers = Peers::default();
        let feed: FeedId = "ma.rabat.example/feed/1".parse().unwrap();
        let status = || peers.snapshot()[&feed.member].clone();
        peers.progress(&feed, 5, Some(5));
        assert_eq!(status().behind_since_unix_ms, 0);
        peers.progress(&feed, 9, None);
        assert_ne!(status().behind_since_unix_ms, 0);
        peers.progress(&feed, 0, Some(9));
        assert_eq!((status().behind_since_unix_ms, status().known_size), (0, 9));
        peers.progress(&feed, u64::MAX >> 1, None);
        assert_eq!(status().known_size, 9 + BEHIND_ENTRIES_MAX, "a size that no peer has announced");
    }
}
