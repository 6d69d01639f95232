//! What a node has made durable, and what can be asked of it.
//!
//! In scope: the verbs that every store offers ([`Store`]) and the values they speak of. Out of scope: signing and deciding what to
//! commit (the committer), and where bytes lie (log positions never cross this trait). Implementations: `disk` (commit log and
//! sled view) and `memory` (for tests); one conformance suite serves all.

mod applier;
pub mod bench;
mod chain;
#[cfg(test)]
pub(crate) mod conformance;
pub mod disk;
mod disk_options;
mod disk_read;
#[cfg(test)]
mod disk_tests;
mod errors;
mod feed_index;
mod feed_tree;
mod fsync_histogram;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
#[cfg(test)]
mod golden_tests;
mod index_db;
mod keys;
mod load;
mod log;
#[cfg(any(test, fuzzing))]
pub mod memory;
mod open;
mod priority;
mod rebuild;
mod recent_ids;
mod references;
pub mod repair;
mod subscriptions;
mod tail_cache;
mod tree_cache;
mod validate;

pub use chain::{ChainLink, StoreId};
pub use errors::{CommitError, DamagedEntry, OpenError, ReadError};
pub use feed_tree::FeedTree;
pub use fsync_histogram::{FSYNC_BOUNDS_MICROS, FsyncHistogram};
pub use priority::OUT_OF_ORDER_MAX;
pub use references::{Acks, IssuerAcks};
pub use subscriptions::{CursorRecord, HeldBack, Subscription, SubscriptionRecord};

use std::ops::Range;
use std::sync::Arc;

use barid_core::bulletin::Priority;
use barid_core::feed::tree::{CompactRange, NodeId};
use barid_core::ids::{Digest, FeedId, Hash, Member, Undisclosed};
use barid_core::proto;
use barid_core::quota::Tier;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::telemetry::alarms::Alarm;

/// Everything that becomes true together. Empty parts are left out of the record.
///
/// Bounds, by `core::limits`: `COMMIT_ENTRIES_MAX` entries, `COMMIT_BYTES_MAX` of envelopes and one envelope more,
/// `COMMIT_NOTES_MAX` of each sort of note, `NOTE_BYTES_MAX` a note, `ROSTER_BYTES_MAX` a roster. No note may be empty.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// Entries appended to feeds; each feed at most once.
    pub appends: Vec<Append>,
    /// Content of entries held as digests; each feed at most once.
    pub backfills: Vec<Backfill>,
    /// Entries that came ahead of their feeds' order.
    pub priority: Vec<PriorityEntry>,
    /// Entries held ahead of the order, by feed and index, whose place `appends` gives to another one: an operator has decided about both.
    /// Any other append of another entry there is refused. Such an entry keeps its arrival, and its feed has the other one.
    pub displaced: Vec<(FeedId, u64)>,
    /// Cosigned checkpoint notes received or made: log signature and one cosignature each.
    pub cosigned: Vec<Cosigned>,
    /// Custody notes received or made.
    pub custody: Vec<CustodyRecord>,
    /// Acknowledged cursors of named subscriptions.
    pub cursors: Vec<CursorRecord>,
    /// Named subscriptions that are given, given anew or removed. `cursors` are applied after them.
    pub subscriptions: Vec<SubscriptionRecord>,
    /// Roster notes adopted, ascending versions.
    pub rosters: Vec<RosterRecord>,
    /// Revocation lists that are newer than those held; the last one of an authority is the one held.
    pub crls: Vec<CrlRecord>,
    /// Feeds of which two histories were seen, and decisions about them; the last one of a feed and evidence is the one that counts.
    pub forks: Vec<ForkRecord>,
    /// Unix time in ms, for the record only.
    pub time_unix_ms: u64,
}

/// Consecutive entries of one feed, and the checkpoint that vouches for them.
#[derive(Clone, Debug)]
pub struct Append {
    /// The feed.
    pub feed: FeedId,
    /// Index of the first entry; must be the feed's size.
    pub first: u64,
    /// The entries. May be empty when only a newer checkpoint is recorded (a feed's first checkpoint has size 0).
    pub entries: Vec<NewEntry>,
    /// Newest checkpoint note known of the feed: of size `first + entries.len()` or larger.
    pub checkpoint: Bytes,
    /// Size that `checkpoint` speaks of.
    pub checkpoint_size: u64,
    /// Consistency proof from `first + entries.len()` to `checkpoint_size`; empty when equal.
    pub consistency_proof: Vec<Hash>,
}

/// An entry to append.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// SHA-256 of the envelope.
    pub digest: Digest,
    /// The envelope, or why it is not held.
    pub content: Content,
}

impl NewEntry {
    /// Bytes of its envelope; 0 of a digest.
    fn envelope_bytes(&self) -> usize {
        match &self.content {
            Content::Disclosed { envelope, .. } => envelope.len(),
            Content::Undisclosed(_) => 0,
        }
    }
}

/// Content that has come for entries of one feed which earlier commits appended as digests.
#[derive(Clone, Debug)]
pub struct Backfill {
    /// The feed.
    pub feed: FeedId,
    /// Index and entry, by ascending index; each disclosed, with the digest held there.
    pub entries: Vec<(u64, NewEntry)>,
}

/// An entry ahead of its feed's order, with what proves it. Once committed it has its arrival and is found by its id, but is not among the
/// feed's [`Store::entries`]. The append that reaches it only matches it: it must have its digest, and its content is not taken again.
#[derive(Clone, Debug)]
pub struct PriorityEntry {
    /// The feed.
    pub feed: FeedId,
    /// Its index: not below the feed's size.
    pub index: u64,
    /// The entry, disclosed.
    pub entry: NewEntry,
    /// Inclusion proof to the checkpoint's root.
    pub proof: Vec<Hash>,
    /// Checkpoint note that proves it.
    pub checkpoint: Bytes,
    /// Size that `checkpoint` speaks of: above `index`.
    pub checkpoint_size: u64,
}

/// What is held of an entry.
#[derive(Clone, Debug)]
pub enum Content {
    /// The exact envelope bytes and its header; `None` if the header cannot be decoded.
    Disclosed {
        /// Exact bytes.
        envelope: Bytes,
        /// Decoded header, shared with every reader.
        header: Option<Arc<proto::Header>>,
    },
    /// The digest only.
    Undisclosed(Undisclosed),
}

/// A cosigned checkpoint note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cosigned {
    /// Whose log.
    pub feed: FeedId,
    /// Who cosigned.
    pub cosigner: Member,
    /// At which size.
    pub size: u64,
    /// Time in the cosignature, unix seconds.
    pub time: u64,
    /// The full note.
    pub note: Bytes,
}

/// A custody note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustodyRecord {
    /// Whose feed.
    pub feed: FeedId,
    /// Who holds.
    pub holder: Member,
    /// The range it speaks of.
    pub range: Range<u64>,
    /// The sub-ranges in it that are held only as digests.
    pub not_held: Vec<Range<u64>>,
    /// Time in the note, unix seconds.
    pub time: u64,
    /// The full note.
    pub note: Bytes,
}

impl CustodyRecord {
    /// Whether it says that entry `index` is held in full.
    #[must_use]
    pub fn holds(&self, index: u64) -> bool {
        self.range.contains(&index) && !self.not_held.iter().any(|range| range.contains(&index))
    }

    /// The ranges that it states as held in full, ascending.
    pub(crate) fn held(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let ends = self.not_held.iter().map(|range| range.start).chain([self.range.end]);
        let starts = [self.range.start].into_iter().chain(self.not_held.iter().map(|range| range.end));
        starts.zip(ends).map(|(start, end)| start..end).filter(|range| !range.is_empty())
    }
}

/// A roster note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RosterRecord {
    /// Its version.
    pub version: u64,
    /// The full note.
    pub note: Bytes,
}

/// A certificate revocation list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrlRecord {
    /// Whose: a name that stays the same from list to list, such as the trust domain with the issuer's key identifier.
    pub authority: String,
    /// The list, DER.
    pub der: Bytes,
}

/// Two histories of one feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkRecord {
    /// Which feed.
    pub feed: FeedId,
    /// The file that proves it.
    pub evidence: Bytes,
    /// Whether an operator has decided to follow the feed again.
    pub resumed: bool,
}

impl ForkRecord {
    /// What tells it from others: a decision takes the place of what it decides.
    fn key(&self) -> String {
        format!("{} {}", self.feed, hex::encode(Sha256::digest(&self.evidence)))
    }
}

/// What a commit became. Shared by everyone who reads the newest entries.
#[derive(Debug)]
pub struct Committed {
    /// Its number.
    pub seq: u64,
    /// Hash of its head: it proves everything up to it ([`ChainLink`]).
    pub hash: Hash,
    /// Offset of its first disclosed entry; the others follow in the order of `commit.appends`, then of `commit.backfills`, then of
    /// `commit.priority`.
    pub first_offset: u64,
    /// One past the offset of its last disclosed entry.
    pub end_offset: u64,
    /// What was committed.
    pub commit: Commit,
}

/// A feed as held.
#[derive(Clone, Debug)]
pub struct FeedState {
    /// Which.
    pub feed: FeedId,
    /// The right edge of its tree: size and root.
    pub compact_range: CompactRange,
    /// Newest checkpoint note known, with the size it speaks of (this size or larger).
    pub checkpoint: Bytes,
    /// Size that `checkpoint` speaks of.
    pub checkpoint_size: u64,
    /// Consistency proof from the held size to `checkpoint_size`.
    pub consistency_proof: Vec<Hash>,
    /// Entries held in full.
    pub disclosed: u64,
}

/// One entry as held.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its feed.
    pub feed: FeedId,
    /// Its place.
    pub index: u64,
    /// Its digest.
    pub digest: Digest,
    /// What is held of it.
    pub content: Content,
    /// Its offset; `None` for what is not held in full.
    pub offset: Option<u64>,
}

/// Where a bulletin is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Its feed.
    pub feed: FeedId,
    /// Its place.
    pub index: u64,
    /// Its offset.
    pub offset: u64,
}

/// How an entry refers to another bulletin. Only the bulletin's own publisher can make what succeeds it; so what others make never stands
/// in the way of finding these. Answers are found by who gave them ([`Store::acks`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReferenceKind {
    /// An Update or Cancel by the member that published what it refers to.
    Supersedes,
    /// Anything else but an Ack.
    Mentions,
}

/// Header columns by which arrivals are filtered without reading envelopes. All empty where the header cannot be decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Columns {
    /// `header.member`.
    pub member: String,
    /// `header.topic`.
    pub topic: String,
    /// `header.kind`.
    pub kind: String,
    /// `header.severity`.
    pub severity: String,
    /// `header.sent_at` in unix ms.
    pub sent_at_unix_ms: i64,
}

/// A node's store. Calls block; from async code use a blocking thread. Readers see every commit as soon as [`Store::commit`] has
/// returned, whatever the view's lag.
pub trait Store: Send + Sync + 'static {
    /// Number of the newest commit; 0 when there is none.
    fn seq(&self) -> u64;

    /// Makes a commit durable and then visible. `expected_seq` is the number of the commit it was built on.
    ///
    /// # Errors
    /// See [`CommitError`].
    fn commit(&self, commit: Commit, expected_seq: u64) -> Result<Arc<Committed>, CommitError>;

    /// For which entries there is room on the disk.
    ///
    /// # Errors
    /// [`CommitError::IndexBehind`] where nothing can be committed for now; others as of [`Store::commit`].
    fn check_capacity(&self) -> Result<Capacity, CommitError>;

    /// The feeds held.
    fn feeds(&self) -> Vec<FeedState>;

    /// One feed.
    fn feed(&self, feed: &FeedId) -> Option<FeedState>;

    /// Entries from index `from` on, at most `entries_max` and about `bytes_max` of envelopes (always one if there is one).
    ///
    /// # Errors
    /// [`ReadError::DamagedEntry`] for the first one only: those before a damaged one are given, and those after it to who asks for them.
    fn entries(&self, feed: &FeedId, from: u64, entries_max: usize, bytes_max: usize) -> Result<Vec<Entry>, ReadError>;

    /// One past the newest offset; 1 when there is none: arrivals are numbered from 1, so that a cursor of 0 has taken nothing.
    fn end_offset(&self) -> u64;

    /// Disclosed entries with offsets from `from` on, ascending, bounded as in [`Store::entries`], and with its errors.
    fn entries_from(&self, from: u64, entries_max: usize, bytes_max: usize) -> Result<Vec<Entry>, ReadError> {
        self.linked_entries_from(from, entries_max, bytes_max).map(|(entries, _)| entries)
    }

    /// As [`Store::entries_from`], with the commits that hold them, ascending.
    ///
    /// # Errors
    /// As of [`Store::entries_from`].
    fn linked_entries_from(
        &self,
        from: u64,
        entries_max: usize,
        bytes_max: usize,
    ) -> Result<(Vec<Entry>, Vec<ChainLink>), ReadError>;

    /// Which store this is.
    fn id(&self) -> StoreId;

    /// The commit that holds an offset; `None` for 0 and beyond the newest.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] where its head cannot be read.
    fn link(&self, offset: u64) -> Result<Option<ChainLink>, ReadError>;

    /// Arrivals below `before`, descending, whose columns `wanted` accepts, at most `entries_max`; looks at no more than `scan_max`
    /// arrivals. Also returns the `before` with which to go on (`None` at the beginning of history).
    ///
    /// # Errors
    /// [`ReadError::DamagedEntry`] for the first one that is accepted only: the others are given by who goes on before its arrival.
    fn history(
        &self,
        before: u64,
        entries_max: usize,
        scan_max: u64,
        wanted: &dyn Fn(&Columns) -> bool,
    ) -> Result<(Vec<Entry>, Option<u64>), ReadError>;

    /// Where a bulletin is: of several entries in `member`'s feeds with one id the lowest (epoch, index). An entry whose header names
    /// another member than the feed's owner is not found by its id.
    fn find(&self, member: &Member, id: Uuid) -> Result<Option<Location>, ReadError>;

    /// Entries whose headers refer to bulletin `id` of `member` in this way, with arrivals above `after`, ascending, at most `max`. Only
    /// the names are compared: whether digest and content fit is for the caller. An entry whose header names another member than its
    /// feed's owner refers to nothing.
    fn references_to(
        &self,
        member: &Member,
        id: Uuid,
        kind: ReferenceKind,
        after: u64,
        max: usize,
    ) -> Result<Vec<Location>, ReadError>;

    /// Of these bulletins of `member`, whether anything refers to them as [`ReferenceKind::Supersedes`], in their order. Nearly free for those with
    /// ids above all that were referred to so.
    fn superseded(&self, member: &Member, ids: &[Uuid]) -> Result<Vec<bool>, ReadError>;

    /// The Acks that refer to bulletin `id` of `member`, of each person the first and the newest, of each feed at most `issuers_max` persons.
    /// As for [`Store::references_to`] only the names are compared.
    fn acks(&self, member: &Member, id: Uuid, issuers_max: usize) -> Result<Acks, ReadError>;

    /// Hashes of complete subtrees of a feed's tree, in the order asked for.
    fn tree_hashes(&self, feed: &FeedId, nodes: &[NodeId]) -> Result<Vec<Hash>, ReadError>;

    /// Of these entries, each one's digest and why no more is held; `None` for what is held in full, and beyond the feed's end.
    fn missing(&self, feed: &FeedId, indexes: &[u64]) -> Result<Vec<Option<(Digest, Undisclosed)>>, ReadError>;

    /// The entries of a feed in `range` that are held ahead of its order, by index, with their digests; all lie at or beyond its size.
    fn out_of_order(&self, feed: &FeedId, range: Range<u64>) -> Vec<(u64, Digest)>;

    /// Indexes of those that take a place at this time, ascending, at most [`OUT_OF_ORDER_MAX`]: an entry that its feed does not come to within
    /// [`PRIORITY_EXPIRES_MS`](barid_core::limits::PRIORITY_EXPIRES_MS) stays held, and takes none.
    fn out_of_order_unexpired(&self, feed: &FeedId, now_ms: u64) -> Vec<u64>;

    /// An entry that came ahead of the order, with what proves it, whether the feed has reached it or not.
    fn priority_entry(&self, feed: &FeedId, index: u64) -> Result<Option<PriorityEntry>, ReadError>;

    /// Entries of a feed that are urgent in this way and whose content is held, from index `from` on, also those ahead of its order: their
    /// indexes, ascending, at most `max`. Those that are urgent in the other way do not count.
    fn urgent_indexes(&self, feed: &FeedId, kind: Priority, from: u64, max: usize) -> Result<Vec<u64>, ReadError>;

    /// Ranges held as digests only that end after index `from`, ascending: the first ones, at most `max`. May wait for the view.
    fn undisclosed_ranges_from(
        &self,
        feed: &FeedId,
        from: u64,
        max: usize,
    ) -> Result<Vec<(Range<u64>, Undisclosed)>, ReadError>;

    /// Ranges held as digests only, ascending: the newest ones, at most `max` and at most
    /// [`NOT_HELD_RANGES_MAX`](barid_core::limits::NOT_HELD_RANGES_MAX). Neighbours with one reason are one range.
    fn undisclosed_ranges(&self, feed: &FeedId, max: usize) -> Result<Vec<(Range<u64>, Undisclosed)>, ReadError>;

    /// The cosigned note of the largest size of each cosigner; of several for one size the first that was committed. By cosigner.
    fn cosigned_newest(&self, feed: &FeedId) -> Result<Vec<Cosigned>, ReadError>;

    /// For each cosigner the held cosigned note of the smallest size above `index`. By cosigner.
    fn cosigned_covering(&self, feed: &FeedId, index: u64) -> Result<Vec<Cosigned>, ReadError>;

    /// For each holder the custody note committed first that covers `index` and does not list it as not held. By holder.
    fn custody_covering(&self, feed: &FeedId, index: u64) -> Result<Vec<CustodyRecord>, ReadError>;

    /// Of each holder the custody note whose range ends last, of those that join the ones before: one that begins beyond them speaks of what
    /// came ahead of the order. Of several the one that was committed last. By holder.
    fn custody_newest(&self, feed: &FeedId) -> Result<Vec<CustodyRecord>, ReadError>;

    /// A holder's custody notes whose ranges end after `index`, by where they end, at most `max`.
    fn custody_after(
        &self,
        feed: &FeedId,
        holder: &Member,
        index: u64,
        max: usize,
    ) -> Result<Vec<CustodyRecord>, ReadError>;

    /// A holder's late custody notes, which when they were committed did not end after all earlier ones: they speak of entries filled in.
    /// Those of time `from_time` or later, the latest first, at most `max`.
    fn custody_late(
        &self,
        feed: &FeedId,
        holder: &Member,
        from_time: u64,
        max: usize,
    ) -> Result<Vec<CustodyRecord>, ReadError>;

    /// Of these ascending ranges of a feed, how many entries no committed custody note of `holder` states as held in full: counted up to
    /// `max`, and as far as a bounded number of look-ups leads.
    fn custody_gain(&self, feed: &FeedId, holder: &Member, ranges: &[Range<u64>], max: u64) -> Result<u64, ReadError>;

    /// Roster notes held, ascending versions.
    fn rosters(&self) -> Result<Vec<RosterRecord>, ReadError>;

    /// Revocation lists held: the newest of each authority.
    fn crls(&self) -> Result<Vec<CrlRecord>, ReadError>;

    /// Feeds of which two histories were seen: the newest record of each feed and evidence, by feed.
    fn forks(&self) -> Result<Vec<ForkRecord>, ReadError>;

    /// What stands under the name of a subscription.
    fn subscription(&self, name: &str) -> Option<Subscription>;

    /// Names of subscriptions after `after` and what stands under them, ascending, at most `max`.
    fn subscriptions(&self, after: &str, max: usize) -> Vec<(String, Subscription)>;

    /// Commits that the view still has to take in; 0 for a store without a view.
    fn index_lag(&self) -> u64;

    /// How long syncs took since the store was opened; none for a store that does not sync.
    fn fsync_histogram(&self) -> FsyncHistogram;

    /// Bytes of log and view on disk.
    fn disk_bytes(&self) -> DiskBytes;

    /// Waits until the view has taken in everything committed before the call.
    fn apply_index(&self);

    /// The alarm about damage that was met while reading.
    fn damage(&self) -> Option<Alarm> {
        None
    }

    /// Bits that had flipped on the disk and were put right since the store was opened, that opening included.
    fn corrected_bits(&self) -> u64 {
        0
    }
}

/// Room on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// What may be committed.
    pub tier: Tier,
    /// Bytes free.
    pub free_bytes: u64,
    /// Of these the ones that the content of other members leaves free.
    pub reserve_bytes: u64,
}

impl Capacity {
    /// Of a store that has no bounds.
    pub const UNBOUNDED: Self = Self { tier: Tier::All, free_bytes: u64::MAX, reserve_bytes: 0 };
}

/// Bytes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskBytes {
    /// Commit log, as written (not as preallocated).
    pub log: u64,
    /// View.
    pub index_db: u64,
    /// Free, on the disk of the log.
    pub free: u64,
}
