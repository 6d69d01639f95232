//! The state that a node loses in a crash: links, where feeds are followed, what is in flight, what
//! peers have announced.
//!
//! In scope: the tables and their bounds ([`Live::overfull`]). Out of scope: the decisions made
//! with them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use barid_core::backfill::{BackfillRanges, BackfillState};
use barid_core::bulletin::TopicFilter;
use barid_core::feed::checkpoint::SignedCheckpoint;
use barid_core::follow::FollowState;
use barid_core::ids::FeedId;
use barid_core::priority::PriorityInFlight;
use barid_core::upstream::{OwnerLag, UpstreamSelector};

use crate::disk_space::Quota;
use crate::node::Work;

/// Work items that may wait for the next commit.
pub(crate) const QUEUE_MAX: usize = 24;
/// Urgent entries of others that may wait beside these.
pub(crate) const PRIORITY_QUEUE_MAX: usize = 64;
/// Batches of a feed in flight to one peer.
pub(crate) const IN_FLIGHT_MAX: usize = 3;

/// Whether the node may publish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PublishState {
    /// No peer has sent its tree heads yet, and the wait for peers is not over.
    #[default]
    Starting,
    Open,
    NeedsRecovery,
}

/// A feed that is followed at a peer.
pub(crate) struct Following {
    pub(crate) state: FollowState,
    pub(crate) at: usize,
    /// When it was requested, or last delivered something.
    pub(crate) since: u64,
    /// After a rejection: when to request it again.
    pub(crate) paused_until: Option<u64>,
    pub(crate) rejections: u32,
    /// Number of the request; results of earlier requests are recognised by it.
    pub(crate) request: u64,
    /// Batches that wait for their commit.
    pub(crate) committing: u32,
}

/// A feed that a peer follows here.
pub(crate) struct Serving {
    /// Next index to send.
    pub(crate) next: u64,
    pub(crate) filters: Vec<TopicFilter>,
    /// Number of entries that the peer holds.
    pub(crate) stored: u64,
    /// Ends of the batches that are not stored there yet.
    pub(crate) in_flight: VecDeque<u64>,
}

impl Serving {
    pub(crate) fn has_room(&self) -> bool {
        self.in_flight.len() < IN_FLIGHT_MAX
    }
}

/// A backfill request to a peer without a response yet.
pub(crate) struct Request {
    pub(crate) feed: FeedId,
    pub(crate) found: BackfillRanges,
    pub(crate) since: u64,
    /// How far the peer has scanned, once it has responded.
    pub(crate) scanned_to: u64,
    pub(crate) number: u64,
}

/// Where a part of an own feed is fetched from.
#[derive(Default)]
pub(crate) struct Fetch {
    pub(crate) at: Option<usize>,
    pub(crate) since: u64,
    pub(crate) put_off: BTreeMap<usize, u64>,
}

#[derive(Default)]
pub(crate) struct Live {
    pub(crate) publish_state: PublishState,
    pub(crate) waiting: Vec<Work>,
    pub(crate) linked: BTreeSet<usize>,
    /// Members without a link, and since when.
    pub(crate) away: BTreeMap<usize, u64>,
    pub(crate) following: BTreeMap<FeedId, Following>,
    /// Feeds that are served, by peer.
    pub(crate) serving: BTreeMap<(usize, FeedId), Serving>,
    /// Priority entries sent to each peer.
    pub(crate) unmatched: BTreeMap<usize, PriorityInFlight>,
    /// Where feeds of members without a link are followed.
    pub(crate) relays: BTreeMap<FeedId, UpstreamSelector>,
    /// Whether linked owners announce less than others.
    pub(crate) behind: BTreeMap<FeedId, OwnerLag>,
    /// Entries that each peer announces to hold.
    pub(crate) advertised: BTreeMap<(FeedId, usize), u64>,
    /// Peers that have sent their tree heads since the start.
    pub(crate) heads_of: BTreeSet<usize>,
    /// What each peer was sent: size of the checkpoint, and entries held.
    pub(crate) announced: BTreeMap<(usize, FeedId), (u64, u64)>,
    pub(crate) announced_roster: BTreeMap<usize, u64>,
    /// Newest roster that each peer is known to hold.
    pub(crate) peer_rosters: BTreeMap<usize, u64>,
    pub(crate) backfill_schedule: BTreeMap<(usize, FeedId), BackfillState>,
    /// How far the owner of a feed was asked, and under which roster: version, then index.
    pub(crate) settled: BTreeMap<FeedId, (u64, u64)>,
    pub(crate) requests: BTreeMap<usize, Request>,
    pub(crate) requested: u64,
    /// The feed last requested from each peer.
    pub(crate) last_requested: BTreeMap<usize, FeedId>,
    /// Checkpoints of peers that are larger than what is held, and since when.
    pub(crate) ahead: BTreeMap<(FeedId, usize), (SignedCheckpoint, u64)>,
    pub(crate) stopped: BTreeSet<FeedId>,
    /// Own feeds of which peers hold more.
    pub(crate) fetching: BTreeMap<FeedId, Fetch>,
    pub(crate) read_to: u64,
    pub(crate) quota: Quota,
}

impl Live {
    pub(crate) fn is_open(&self) -> bool {
        self.publish_state == PublishState::Open
    }

    pub(crate) fn has_room(&self) -> bool {
        self.ordinary() < QUEUE_MAX
    }

    /// Work that waits for the next commit, without urgent entries and evidence, which have their
    /// own bounds.
    fn ordinary(&self) -> usize {
        self.waiting.iter().filter(|work| !matches!(work, Work::PriorityEntry(..) | Work::Fork(..))).count()
    }

    /// Urgent entries of others that wait for the next commit.
    pub(crate) fn queued_priority(&self) -> usize {
        self.waiting.iter().filter(|work| matches!(work, Work::PriorityEntry(..))).count()
    }

    /// Returns the table that exceeds its bound, for this number of members and feeds.
    pub(crate) fn overfull(&self, members: usize, feeds: usize) -> Option<String> {
        let most = self.serving.values().map(|serving| serving.in_flight.len()).max().unwrap_or(0);
        let both = members * feeds;
        let tables = [
            ("work items waiting", self.ordinary(), QUEUE_MAX),
            ("urgent entries waiting", self.queued_priority(), PRIORITY_QUEUE_MAX),
            ("batches in flight", most, IN_FLIGHT_MAX),
            ("feeds followed", self.following.len(), feeds),
            ("feeds served", self.serving.len(), both),
            ("sizes received", self.advertised.len(), both),
            ("sizes announced", self.announced.len(), both),
            ("rounds", self.backfill_schedule.len(), both),
            ("requests", self.requests.len(), members),
            ("checkpoints ahead", self.ahead.len(), both),
        ];
        let exceeded = tables.iter().find(|(_, found, max)| found > max);
        exceeded.map(|(what, found, max)| format!("{found} {what}, at most {max} are allowed"))
    }
}
