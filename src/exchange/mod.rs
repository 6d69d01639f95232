//! Node to node: the link between two members, over which each follows the other's feeds.
//!
//! In scope: the frames of `Exchange.Link`, who dials and when, following, providing, the signed answers, heads and heartbeats, and
//! what is known of each peer ([`Peers`]). Out of scope: TLS and who a caller is (`transport`), verifying a batch and choosing what
//! a peer may read (`core`), signing and durability (`committer`).
//!
//! A member that cannot be reached is followed at another one (`upstreams`), and content that this other one could not give is asked for
//! later (`backfill_schedule`, `backfill`). What is urgent overtakes (`priority`).
//!
//! A link is two tasks. The reader verifies what comes and hands it to the committer; the writer sends answers first, then one batch
//! of each followed feed in turn. Nothing is queued for a peer: a provider is a cursor over the store, woken by its commits, and what
//! is on its way is bounded by the peer's `ReplicationProgress`. A fault in one feed never touches another.

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

/// Version of the protocol that this node speaks.
pub const PROTOCOL: u32 = 1;
/// How long the other side may take for its first frame: a satellite link and a busy node.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(15);
/// Quiet for so long, a side says that it is alive.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(60);
/// A peer that said nothing for so long is gone: three heartbeats.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(185);
/// Heads are sent at most so often.
pub const TREE_HEADS_INTERVAL: Duration = Duration::from_secs(1);
/// How long the member of the higher code waits for the other one to dial.
pub const DIAL_GRACE: Duration = Duration::from_secs(3);
/// The same for a node that has just started: the other side may have given it up for the next half minute.
pub const STARTUP_GRACE: Duration = Duration::from_millis(200);
/// Shortest and longest pause between attempts to dial, before jitter.
pub const DIAL_BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// Shortest and longest pause before a feed is asked for again after its batch was refused.
pub const FOLLOW_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Shortest and longest pause before a peer is asked again for content that it did not give.
pub const BACKFILL_BACKOFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));
/// How long an answer to a request for missing content may take: a full frame on a thin line.
pub const BACKFILL_TIMEOUT: Duration = Duration::from_secs(120);
/// Batches of one feed that may be on their way without a `ReplicationProgress`: enough to keep a long line full while each is committed.
pub const IN_FLIGHT_BATCHES_MAX: usize = 8;
/// Bytes of one feed, and of all that one peer follows, that may be on their way without a `ReplicationProgress`; fewer where they would lie in queues
/// (`congestion_window`).
pub const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;
/// Verified batches of one link that may wait for the committer; beyond it the reader stops reading.
pub const PENDING_COMMITS_MAX: usize = 16;
/// Feeds that one peer may follow over one link: every member's, with a few epochs.
pub const FOLLOWS_MAX: usize = 1_024;
/// Answers and control frames that may wait for the writer. They are owed for what the peer sent: one that sends without reading
/// loses its link.
pub const SEND_QUEUE_FRAMES_MAX: usize = 8_192;
/// Bytes of them: a few chains of rosters, which are the largest.
pub const SEND_QUEUE_BYTES_MAX: usize = 16 << 20;
/// Bytes of custody notes repeated at once to an owner that missed them; what is left follows on the next link.
pub const RESENT_BYTES_MAX: usize = 4 << 20;
/// Notes that may wait to be verified and kept; beyond it the reader stops reading.
pub const NOTE_QUEUE_MAX: usize = 1_024;
/// Frames between a link's writer and the transport, each of at most one batch.
pub const FRAME_QUEUE_MAX: usize = 4;
/// Notes put into one `TreeHeads`; what is left follows a second later.
pub const TREE_HEADS_NOTES_MAX: usize = 512;
/// Bytes of notes put into one `TreeHeads`.
pub const TREE_HEADS_BYTES_MAX: usize = 1 << 20;
/// Revocation lists put into one `TreeHeads`, and taken from one; what is left follows a second later.
pub const TREE_HEADS_CRLS_MAX: usize = 256;
/// Bytes of revocation lists put into one `TreeHeads` beside the notes: the largest list fits, and both stay below
/// [`barid_core::limits::MESSAGE_BYTES_MAX`].
pub const TREE_HEADS_CRL_BYTES_MAX: usize = barid_core::limits::CRL_BYTES_MAX;

/// The revocation lists that this node holds and learns of. Implemented where certificates are known.
pub trait Revocations: Send + Sync + 'static {
    /// Changes whenever [`Self::held`] does.
    fn watch(&self) -> watch::Receiver<u64>;

    /// The newest list of each authority: a name of the authority, and DER.
    fn held(&self) -> Vec<(String, Bytes)>;

    /// Lists that a peer passed on, DER, not yet verified.
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
    /// The one writer, and through it the store.
    pub committer: Committer,
    /// The rosters in force.
    pub rosters: RosterStore,
    /// Topics whose content this member wants; empty: all.
    pub topics: Vec<TopicFilter>,
    /// Whether members that joined the exchange or a working group later are handed this member's earlier bulletins.
    pub backfill_new_members: bool,
    /// Whether peers can dial this node. One that cannot be dialled dials at once.
    pub listens: bool,
    /// What peers may use of the node.
    pub budgets: Budgets,
    /// Revocation lists.
    pub revocations: Arc<dyn Revocations>,
    /// Becomes true when the node stops.
    pub shutdown: watch::Receiver<bool>,
}

/// The exchange side of a node. Cheap to clone.
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
    /// Changes when entries came without content that others may have.
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
    /// Links of the node whose committer this is. Nothing is dialled or served yet.
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

    /// What is known of each peer.
    #[must_use]
    pub fn peers(&self) -> &Peers {
        &self.shared.peers
    }

    /// What needs an operator.
    #[must_use]
    pub fn alarms(&self) -> &Alarms {
        &self.shared.alarms
    }

    /// Feeds that are not followed until an operator decides.
    #[must_use]
    pub fn stopped_feeds(&self) -> &StoppedFeeds {
        &self.shared.stopped_feeds
    }

    /// What peers did wrong and was only counted, to be recorded in time.
    #[must_use]
    pub fn audit_limiter(&self) -> &AuditLimiter {
        &self.shared.audit_limiter
    }

    /// Where a feed is followed instead of at its owner, which cannot be reached.
    #[must_use]
    pub fn upstream_of(&self, feed: &FeedId) -> Option<Member> {
        self.shared.upstreams.at(feed)
    }

    /// Up to where the owner of a feed was asked for what is missing here under the newest roster: what it did not give is not for this member.
    #[must_use]
    pub fn owner_scanned_to(&self, feed: &FeedId) -> u64 {
        let roster = self.shared.options.rosters.load().newest().version();
        self.shared.backfill_schedule.owner_scanned_to(feed, roster)
    }

    /// What each peer has shown of this member's own feeds since the node started.
    #[must_use]
    pub fn own_feed_replicas(&self) -> std::collections::BTreeMap<Member, OwnFeedReplicas> {
        self.shared.self_recovery.replicas()
    }

    /// Follows a feed again of which two histories were seen, from what is held here: what was shown of the other one so far stops it no
    /// more. False if there is no such feed.
    ///
    /// # Errors
    /// If the decision cannot be kept.
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

    /// Looks at the newest bulletins held here that tell of two histories of a feed: the node may have ended between taking one in and
    /// keeping what it proves.
    pub async fn verify_held_announcements(&self) {
        let shared = Arc::clone(&self.shared);
        // A panic has been reported, and what cannot be read is told elsewhere.
        if let Ok(Ok(held)) = tokio::task::spawn_blocking(move || announcements::held(&shared)).await {
            announcements::verify_held_announcements(&self.shared, &held);
        }
    }

    /// Asks by way of others who holds this member's entries, as long as there are members without a link. Never ends.
    pub async fn request_relayed_custody(self) {
        relayed_custody::request_custody(self.shared).await;
    }

    /// Speaks with `peer` over a stream of frames until it ends: what [`service`] and [`spawn_dialers`] do, for transports of other
    /// kinds.
    ///
    /// # Errors
    /// Why the link ended; [`LinkError::Closed`] when the peer closed it in order.
    pub async fn link(&self, peer: &Member, dialled: bool, wire: Wire) -> Result<(), LinkError> {
        link::run(&self.shared, peer, dialled, wire).await
    }
}

pub use link::Wire;

impl ExchangeState {
    fn store(&self) -> &Arc<dyn Store> {
        self.options.committer.store()
    }

    /// Records what `peer` did wrong; it can do so as often as it likes.
    fn record(&self, peer: &Member, event: &AuditEvent<'_>) {
        self.audit_limiter.record(peer.as_str(), INDIVIDUAL_RECORDS_MAX, event, tokio::time::Instant::now());
    }

    fn own_feed(&self) -> &FeedId {
        self.options.committer.feed()
    }

    /// Feeds of `peer` that are asked of itself: every epoch whose key the roster has put in force.
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

/// A pause for the `attempt`th time in a row (from 0): doubled each time up to the longest, of which a random half is left out, so
/// that peers cut off together do not come back together.
fn backoff((shortest, longest): (Duration, Duration), attempt: u32) -> Duration {
    let full = shortest.saturating_mul(1 << attempt.min(16)).min(longest);
    let mut random = [0; 2];
    // Without randomness the pause is merely not spread.
    let _ = getrandom::fill(&mut random);
    full / 2 + (full / 2).mul_f64(f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX))
}
