//! What a node knows only while it runs: links, whom it follows where, what is on its way, what peers have shown.
//!
//! In scope: the tables and their bounds ([`Live::overfull`]). Out of scope: what is decided with them.

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

/// Works that may wait for the next commit.
pub(crate) const QUEUE_MAX: usize = 24;
/// Urgent entries of others that may wait for it beside these.
pub(crate) const PRIORITY_QUEUE_MAX: usize = 64;
/// Batches of a feed on their way to one peer.
pub(crate) const IN_FLIGHT_MAX: usize = 3;

/// Whether the node may publish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PublishState {
    /// No peer has shown its heads yet, and it has not been alone for long.
    #[default]
    Starting,
    Open,
    NeedsRecovery,
}

/// A feed that is followed at a peer.
pub(crate) struct Following {
    pub(crate) state: FollowState,
    pub(crate) at: usize,
    /// When it was asked for, or last brought something.
    pub(crate) since: u64,
    /// Refused: asked for again then.
    pub(crate) paused_until: Option<u64>,
    pub(crate) rejections: u32,
    /// Counts requests, so that what an earlier one left behind is known as such.
    pub(crate) request: u64,
    /// Batches that wait for their commit.
    pub(crate) committing: u32,
}

/// A peer that follows a feed here.
pub(crate) struct Serving {
    /// Next index to send.
    pub(crate) next: u64,
    pub(crate) filters: Vec<TopicFilter>,
    /// How much the peer holds of it.
    pub(crate) stored: u64,
    /// Ends of batches that are not stored there yet.
    pub(crate) in_flight: VecDeque<u64>,
}

impl Serving {
    pub(crate) fn has_room(&self) -> bool {
        self.in_flight.len() < IN_FLIGHT_MAX
    }
}

/// What was asked of a peer and is not answered yet; and since when.
pub(crate) struct Request {
    pub(crate) feed: FeedId,
    pub(crate) found: BackfillRanges,
    pub(crate) since: u64,
    /// Up to where the peer has looked, once it has answered.
    pub(crate) scanned_to: u64,
    pub(crate) number: u64,
}

/// What of an own feed is elsewhere, and at whom it is fetched.
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
    /// Members without a link, since when.
    pub(crate) away: BTreeMap<usize, u64>,
    pub(crate) following: BTreeMap<FeedId, Following>,
    /// By peer.
    pub(crate) serving: BTreeMap<(usize, FeedId), Serving>,
    /// What each peer was sent ahead of the order.
    pub(crate) unmatched: BTreeMap<usize, PriorityInFlight>,
    /// Where feeds of members without a link are followed.
    pub(crate) relays: BTreeMap<FeedId, UpstreamSelector>,
    /// Whether linked owners show less than others.
    pub(crate) behind: BTreeMap<FeedId, OwnerLag>,
    /// Entries that each peer shows to hold.
    pub(crate) advertised: BTreeMap<(FeedId, usize), u64>,
    /// Peers that have shown their heads since the start.
    pub(crate) heads_of: BTreeSet<usize>,
    /// What each peer was told: size of the checkpoint, and entries held.
    pub(crate) announced: BTreeMap<(usize, FeedId), (u64, u64)>,
    pub(crate) announced_roster: BTreeMap<usize, u64>,
    /// Newest roster that each peer is known to hold.
    pub(crate) peer_rosters: BTreeMap<usize, u64>,
    pub(crate) backfill_schedule: BTreeMap<(usize, FeedId), BackfillState>,
    /// Up to where the owner of a feed was asked, under which roster.
    pub(crate) settled: BTreeMap<FeedId, (u64, u64)>,
    pub(crate) requests: BTreeMap<usize, Request>,
    pub(crate) requested: u64,
    /// The feed that each peer was asked about last.
    pub(crate) last_requested: BTreeMap<usize, FeedId>,
    /// Checkpoints that peers show and that are larger than what is held, since when.
    pub(crate) ahead: BTreeMap<(FeedId, usize), (SignedCheckpoint, u64)>,
    pub(crate) stopped: BTreeSet<FeedId>,
    /// Own feeds that peers hold more of.
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

    /// Works that wait for the next commit, but for what has its own bound: urgent entries, and evidence, one for each feed.
    fn ordinary(&self) -> usize {
        self.waiting.iter().filter(|work| !matches!(work, Work::PriorityEntry(..) | Work::Fork(..))).count()
    }

    /// Urgent entries of others that wait for the next commit.
    pub(crate) fn queued_priority(&self) -> usize {
        self.waiting.iter().filter(|work| matches!(work, Work::PriorityEntry(..))).count()
    }

    /// What has grown beyond its bound, where there are so many members and feeds.
    pub(crate) fn overfull(&self, members: usize, feeds: usize) -> Option<String> {
        let most = self.serving.values().map(|serving| serving.in_flight.len()).max().unwrap_or(0);
        let both = members * feeds;
        let tables = [
            ("works waiting", self.ordinary(), QUEUE_MAX),
            ("urgent entries waiting", self.queued_priority(), PRIORITY_QUEUE_MAX),
            ("batches on their way", most, IN_FLIGHT_MAX),
            ("feeds followed", self.following.len(), feeds),
            ("feeds served", self.serving.len(), both),
            ("sizes shown", self.advertised.len(), both),
            ("sizes told", self.announced.len(), both),
            ("rounds", self.backfill_schedule.len(), both),
            ("requests", self.requests.len(), members),
            ("checkpoints ahead", self.ahead.len(), both),
        ];
        let over = tables.iter().find(|(_, found, max)| found > max);
        over.map(|(what, found, max)| format!("{found} {what}, at most {max} are allowed"))
    }
}
