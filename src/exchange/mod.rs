//! Links between members: replicates feeds, attestations, rosters and revocation lists.
//!
//! In scope: the frames of `Exchange.Link`, who dials and when, following and serving feeds,
//! attestations, tree heads and heartbeats, and the status of each peer ([`Peers`]). Out of scope:
//! TLS and the caller's identity (`transport`), verifying a batch and choosing what a peer may read
//! (`core`), signing and durability (`committer`).
//!
//! The feeds of a member that cannot be reached are followed at another member (`upstream`).
//! Content that a relay could not serve is requested later (`backfill_schedule`, `backfill`).
//! Urgent entries overtake ordinary ones (`priority`).
//!
//! A link has two main tasks. The receiver verifies incoming frames and passes them to the
//! committer. The sender sends replies first, then one batch of each followed feed in turn. No
//! entries are queued for a peer: a feed sender is a cursor over the store, woken by its commits,
//! and the bytes in flight are bounded by the peer's `ReplicationProgress`. A fault in one feed
//! does not affect the others.

mod announcements;
mod backfill;
mod backfill_schedule;
mod cancellation;
mod congestion_window;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod conversation;
mod custody;
mod dial;
mod equivocation;
mod feed_receiver;
mod feed_sender;
mod fetch;
mod findings;
mod frame_budget;
mod link;
mod note_verifier;
mod peers;
mod priority;
mod receiver;
mod relayed_custody;
mod roster_sync;
mod self_recovery;
mod send_queue;
mod sender;
mod service;
mod stopped_feeds;
#[cfg(test)]
mod tests;
mod tree_heads;
mod upstream;
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)]
#[path = "tests/world.rs"]
mod world;

use std::sync::Arc;
use std::time::Duration;

use barid_core::bulletin::TopicFilter;
use barid_core::ids::{FeedId, Member};
use barid_core::roster::{Role, Roster};
use bytes::Bytes;
use tokio::sync::watch;

use crate::budgets::Budgets;
use crate::committer::Committer;
use crate::roster_store::RosterStore;
use crate::store::Store;
use crate::telemetry::alarms::Alarms;
use crate::telemetry::{AuditEvent, AuditLimiter, INDIVIDUAL_RECORDS_MAX};

pub use dial::{Dial, spawn_dialers};
pub use fetch::fetch;
pub use link::LinkError;
pub use peers::{PeerStatus, Peers};
pub use roster_sync::Adoption;
pub use self_recovery::OwnFeedReplicas;
pub use service::{Identify, LinkService, calls};
pub use stopped_feeds::StoppedFeeds;

/// Protocol version of this node.
pub const PROTOCOL: u32 = 1;
/// Time within which the peer must send its first frame; allows for a satellite link and a busy
/// node.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(15);
/// Time without a sent frame after which a side sends a heartbeat.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(60);
/// Time without a received frame after which a link is closed: three heartbeats and a margin.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(185);
/// Minimum interval between `TreeHeads` frames.
pub const TREE_HEADS_INTERVAL: Duration = Duration::from_secs(1);
/// Time that the member with the higher code waits for the other one to dial.
pub const DIAL_GRACE: Duration = Duration::from_secs(3);
/// The same wait for a node that has just started. It is shorter because the peer may have backed
/// off from dialling for the next half minute.
pub const STARTUP_GRACE: Duration = Duration::from_millis(200);
/// Shortest and longest delay between dial attempts, before jitter.
pub const DIAL_BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// Shortest and longest delay before a feed is requested again after its batch was rejected.
pub const FOLLOW_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Shortest and longest delay before a peer is asked again for content that it did not serve.
pub const BACKFILL_BACKOFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));
/// Timeout of a backfill request: a full frame on a slow line.
pub const BACKFILL_TIMEOUT: Duration = Duration::from_secs(120);
/// Batches of one feed that may be in flight without a `ReplicationProgress`: enough to keep a long
/// line full while each batch is committed.
pub const IN_FLIGHT_BATCHES_MAX: usize = 8;
/// Bytes of one feed, and of all feeds that one peer follows, that may be in flight without a
/// `ReplicationProgress`. The limit is lower where they would only fill queues
/// (`congestion_window`).
pub const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;
/// Verified batches of one link that may wait for the committer. Beyond it the receiver stops
/// reading.
pub const PENDING_COMMITS_MAX: usize = 16;
/// Feeds that one peer may follow over one link: every member's, with a few epochs.
pub const FOLLOWS_MAX: usize = 1_024;
/// Replies and control frames that may wait for the sender. A peer that sends requests without
/// reading the replies loses its link.
pub const SEND_QUEUE_FRAMES_MAX: usize = 8_192;
/// Bytes of these frames: a few roster chains, which are the largest.
pub const SEND_QUEUE_BYTES_MAX: usize = 16 << 20;
/// Bytes of custody notes that are resent at once to an owner that missed them. The rest follows on
/// the next link.
pub const RESENT_BYTES_MAX: usize = 4 << 20;
/// Notes that may wait to be verified and persisted. Beyond it the receiver stops reading.
pub const NOTE_QUEUE_MAX: usize = 1_024;
/// Frames between a link's sender and the transport, each of at most one batch.
pub const FRAME_QUEUE_MAX: usize = 4;
/// Notes in one `TreeHeads`. The rest follows a second later.
pub const TREE_HEADS_NOTES_MAX: usize = 512;
/// Bytes of notes in one `TreeHeads`.
pub const TREE_HEADS_BYTES_MAX: usize = 1 << 20;
/// Revocation lists in one `TreeHeads`, sent or accepted. The rest follows a second later.
pub const TREE_HEADS_CRLS_MAX: usize = 256;
/// Bytes of revocation lists in one `TreeHeads`, beside the notes. The largest list fits, and both
/// together stay below [`barid_core::limits::MESSAGE_BYTES_MAX`].
pub const TREE_HEADS_CRL_BYTES_MAX: usize = barid_core::limits::CRL_BYTES_MAX;

/// The revocation lists that this node holds and receives. Implemented by the code that handles
/// certificates.
pub trait Revocations: Send + Sync + 'static {
    /// Returns a receiver that changes whenever [`Self::held`] does.
    fn watch(&self) -> watch::Receiver<u64>;

    /// Returns the newest list of each authority: the authority's name, and DER.
    fn held(&self) -> Vec<(String, Bytes)>;

    /// Passes on lists received from a peer: DER, not yet verified.
    fn offer(&self, from: &Member, crls: Vec<Bytes>);
}

/// No revocation lists: for tests without certificates.
#[cfg(any(test, fuzzing))]
pub struct NoRevocations;

#[cfg(any(test, fuzzing))]
impl Revocations for NoRevocations {
    fn watch(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }

    fn held(&self) -> Vec<(String, Bytes)> {
        Vec::new()
    }

    fn offer(&self, _from: &Member, _crls: Vec<Bytes>) {}
}

/// What links need of the node.
pub struct Options {
    /// The only writer; gives access to the store.
    pub committer: Committer,
    /// The rosters in force.
    pub rosters: RosterStore,
    /// Topics whose content this member follows; empty: all.
    pub topics: Vec<TopicFilter>,
    /// Whether members that join the exchange or a working group later are served this member's
    /// earlier bulletins.
    pub backfill_new_members: bool,
    /// Whether peers can dial this node. If they cannot, it dials without waiting.
    pub listens: bool,
    /// Resource budgets of peers.
    pub budgets: Budgets,
    /// Revocation lists.
    pub revocations: Arc<dyn Revocations>,
    /// Becomes true when the node stops.
    pub shutdown: watch::Receiver<bool>,
}

/// The links of a node. Cheap to clone.
#[derive(Clone)]
pub struct Exchange {
    shared: Arc<ExchangeState>,
}

pub(crate) struct ExchangeState {
    me: Member,
    options: Options,
    peers: Peers,
    alarms: Alarms,
    stopped_feeds: StoppedFeeds,
    upstreams: upstream::Upstreams,
    backfill_schedule: backfill_schedule::BackfillSchedule,
    /// Changes when entries arrived without content that other peers may have.
    backfill_needed: watch::Sender<u64>,
    self_recovery: self_recovery::SelfRecovery,
    relay_progress: relayed_custody::RelayProgress,
    larger_checkpoints: equivocation::LargerCheckpoints,
    adoption_lock: tokio::sync::Mutex<()>,
    audit_limiter: AuditLimiter,
    custody: custody::CustodyBudgets,
    frame_budgets: frame_budget::FrameBudgets,
}

impl Exchange {
    /// Creates the links of the committer's node. Nothing is dialled or served yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let me = options.committer.feed().member.clone();
        let (alarms, store) = (Alarms::default(), options.committer.store());
        let stopped_feeds = StoppedFeeds::restore(store.as_ref(), alarms.clone());
        let peers = Peers::new(alarms.clone());
        peers.restore(options.committer.store().as_ref(), options.committer.feed());
        Self {
            shared: Arc::new(ExchangeState {
                me,
                options,
                peers,
                alarms,
                stopped_feeds,
                upstreams: upstream::Upstreams::default(),
                backfill_schedule: backfill_schedule::BackfillSchedule::default(),
                self_recovery: self_recovery::SelfRecovery::default(),
                relay_progress: relayed_custody::RelayProgress::default(),
                larger_checkpoints: equivocation::LargerCheckpoints::default(),
                backfill_needed: watch::Sender::new(0),
                adoption_lock: tokio::sync::Mutex::default(),
                audit_limiter: AuditLimiter::default(),
                custody: custody::CustodyBudgets::default(),
                frame_budgets: frame_budget::FrameBudgets::default(),
            }),
        }
    }

    /// Returns the status of the peers.
    #[must_use]
    pub fn peers(&self) -> &Peers {
        &self.shared.peers
    }

    /// Returns the alarms of this node.
    #[must_use]
    pub fn alarms(&self) -> &Alarms {
        &self.shared.alarms
    }

    /// Returns the feeds that are not followed until an operator decides.
    #[must_use]
    pub fn stopped_feeds(&self) -> &StoppedFeeds {
        &self.shared.stopped_feeds
    }

    /// Returns the limiter of audit records about peers. Events that it only counted must be
    /// recorded regularly.
    #[must_use]
    pub fn audit_limiter(&self) -> &AuditLimiter {
        &self.shared.audit_limiter
    }

    /// Returns the index up to which the owner of a feed has been asked for missing content under
    /// the newest roster. Content before it that the owner did not serve is not for this member.
    #[must_use]
    pub fn owner_scanned_to(&self, feed: &FeedId) -> u64 {
        let roster = self.shared.options.rosters.load().newest().version();
        self.shared.backfill_schedule.owner_scanned_to(feed, roster)
    }

    /// Returns the sizes of this member's own feeds that each peer has proven to hold since the
    /// node started.
    #[must_use]
    pub fn own_feed_replicas(&self) -> std::collections::BTreeMap<Member, OwnFeedReplicas> {
        self.shared.self_recovery.replicas()
    }

    /// Resumes a forked feed from the copy held here. The evidence known so far no longer stops it.
    /// Returns false if no fork of the feed is known.
    ///
    /// # Errors
    /// If the decision cannot be persisted.
    pub async fn resume_feed(&self, feed: &FeedId) -> Result<bool, String> {
        let (shared, of) = (Arc::clone(&self.shared), feed.clone());
        let known = tokio::task::spawn_blocking(move || equivocation::known(&shared, &of)).await;
        let known = known.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        if known.is_empty() {
            return Ok(false);
        }
        let decided: Vec<_> =
            known.into_iter().map(|fork| crate::store::ForkRecord { resumed: true, ..fork }).collect();
        let new_records = crate::committer::Records { forks: decided.clone(), ..crate::committer::Records::default() };
        self.shared.options.committer.persist(new_records).await.map_err(|error| error.to_string())?;
        self.shared.stopped_feeds.resume(feed, &decided);
        self.shared.peers.notify_changed();
        Ok(true)
    }

    /// Verifies the newest fork announcements held here again. The node may have stopped between
    /// committing such a bulletin and persisting the evidence in it.
    pub async fn verify_held_announcements(&self) {
        let shared = Arc::clone(&self.shared);
        // A panic has been reported, and read errors are reported elsewhere.
        if let Ok(Ok(held)) = tokio::task::spawn_blocking(move || announcements::held(&shared)).await {
            announcements::verify_held_announcements(&self.shared, &held);
        }
    }

    /// Requests custody notes through relays, as long as there are members without a link. Never
    /// ends.
    pub async fn request_relayed_custody(self) {
        relayed_custody::request_custody(self.shared).await;
    }

    /// Runs a link to `peer` over a stream of frames until it ends. [`LinkService`] and
    /// [`spawn_dialers`] use it; it is public for other transports.
    ///
    /// # Errors
    /// Why the link ended; `Ok` if the peer closed it in order after the handshake.
    pub async fn link(&self, peer: &Member, dialled: bool, wire: Wire) -> Result<(), LinkError> {
        link::run(&self.shared, peer, dialled, wire).await
    }
}

pub use link::Wire;

impl ExchangeState {
    fn store(&self) -> &Arc<dyn Store> {
        self.options.committer.store()
    }

    /// Records misbehaviour of `peer`. The number of records is limited, since the peer decides how
    /// often it happens.
    fn record(&self, peer: &Member, event: &AuditEvent<'_>) {
        self.audit_limiter.record(peer.as_str(), INDIVIDUAL_RECORDS_MAX, event, tokio::time::Instant::now());
    }

    fn own_feed(&self) -> &FeedId {
        self.options.committer.feed()
    }

    /// Returns the feeds of `peer` to follow: every epoch whose key the roster has put in force.
    fn feeds_in_force(&self, peer: &Member, roster: &Roster) -> Vec<FeedId> {
        let Some(entry) = roster.member(peer) else { return Vec::new() };
        let mut epochs: Vec<u32> = entry
            .keys
            .iter()
            .filter(|key| key.from_version <= roster.version())
            .filter_map(|key| if let Role::Feed(epoch) = key.role { Some(epoch) } else { None })
            .collect();
        epochs.sort_unstable();
        epochs.dedup();
        epochs.into_iter().map(|epoch| FeedId::new(peer.clone(), roster.exchange().clone(), epoch)).collect()
    }
}

/// Returns the delay before the `attempt`th retry in a row (from 0). It doubles up to the longest
/// one, and up to half of it is left out at random, so that peers that were cut off together do not
/// reconnect together.
fn backoff((shortest, longest): (Duration, Duration), attempt: u32) -> Duration {
    let full = shortest.saturating_mul(1 << attempt.min(16)).min(longest);
    let mut random = [0; 2];
    // Without randomness the delay is merely not spread.
    let _ = getrandom::fill(&mut random);
    full / 2 + (full / 2).mul_f64(f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX))
}
