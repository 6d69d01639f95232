//! The durable state of a node and the queries on it.
//!
//! In scope: the operations that every store offers ([`Store`]) and their values. Out of scope:
//! signing, and deciding what to commit (`committer`); where bytes lie (log positions never cross
//! this trait). Implementations: `disk` (a commit log and an index database in sled) and `memory`
//! (for tests). One conformance suite runs on both.

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

/// One commit: everything in it becomes durable and visible together. Empty parts are left out of
/// the record.
///
/// Bounds, by `core::limits`: `COMMIT_ENTRIES_MAX` entries; `COMMIT_BYTES_MAX` of envelopes plus
/// one more envelope; `COMMIT_NOTES_MAX` notes of each sort; `NOTE_BYTES_MAX` per note;
/// `ROSTER_BYTES_MAX` per roster. No note may be empty.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// Entries appended to feeds; each feed at most once.
    pub appends: Vec<Append>,
    /// Content of entries held as digests; each feed at most once.
    pub backfills: Vec<Backfill>,
    /// Entries received ahead of their feeds' order.
    pub priority: Vec<PriorityEntry>,
    /// Entries held out of order, by feed and index, that `appends` replaces with another entry
    /// because an operator has decided the conflict. Without this, an append of a different entry
    /// at such an index is rejected. The displaced entry keeps its offset; the feed has the
    /// appended entry.
    pub displaced: Vec<(FeedId, u64)>,
    /// Cosigned checkpoint notes, received or made here: the log signature and one cosignature
    /// each.
    pub cosigned: Vec<Cosigned>,
    /// Custody notes, received or made here.
    pub custody: Vec<CustodyRecord>,
    /// Acknowledged cursors of named subscriptions.
    pub cursors: Vec<CursorRecord>,
    /// Named subscriptions that are created, replaced or removed. `cursors` are applied after them.
    pub subscriptions: Vec<SubscriptionRecord>,
    /// Roster notes adopted, in ascending versions.
    pub rosters: Vec<RosterRecord>,
    /// Revocation lists newer than those held. The last one of an authority is the one held.
    pub crls: Vec<CrlRecord>,
    /// Forked feeds and operators' decisions about them. The last record of a feed and evidence
    /// counts.
    pub forks: Vec<ForkRecord>,
    /// Unix time in ms; recorded only.
    pub time_unix_ms: u64,
}

/// Consecutive entries of one feed, and the checkpoint that covers them.
#[derive(Clone, Debug)]
pub struct Append {
    /// The feed.
    pub feed: FeedId,
    /// Index of the first entry; must be the feed's size.
    pub first: u64,
    /// The entries. Empty if only a newer checkpoint is recorded (a feed's first checkpoint has
    /// size 0).
    pub entries: Vec<NewEntry>,
    /// Newest known checkpoint note of the feed, of size `first + entries.len()` or larger.
    pub checkpoint: Bytes,
    /// Size of `checkpoint`.
    pub checkpoint_size: u64,
    /// Consistency proof from `first + entries.len()` to `checkpoint_size`; empty if they are
    /// equal.
    pub consistency_proof: Vec<Hash>,
}

/// An entry to append.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// SHA-256 of the envelope.
    pub digest: Digest,
    /// The envelope, or the reason why only the digest is held.
    pub content: Content,
}

impl NewEntry {
    /// Returns the length of the envelope in bytes; 0 for a digest.
    fn envelope_bytes(&self) -> usize {
        match &self.content {
            Content::Disclosed { envelope, .. } => envelope.len(),
            Content::Undisclosed(_) => 0,
        }
    }
}

/// Content received later for entries of one feed that earlier commits appended as digests.
#[derive(Clone, Debug)]
pub struct Backfill {
    /// The feed.
    pub feed: FeedId,
    /// Index and entry, by ascending index. Each entry is disclosed and has the digest held there.
    pub entries: Vec<(u64, NewEntry)>,
}

/// An entry received ahead of its feed's order, with its proof. Once committed it has an offset and
/// is found by its id, but is not among the feed's [`Store::entries`]. The append that reaches its
/// index only matches it: it must have the same digest, and its content is not stored again.
#[derive(Clone, Debug)]
pub struct PriorityEntry {
    /// The feed.
    pub feed: FeedId,
    /// Its index, at or beyond the feed's size.
    pub index: u64,
    /// The entry, disclosed.
    pub entry: NewEntry,
    /// Inclusion proof to the checkpoint's root.
    pub proof: Vec<Hash>,
    /// The checkpoint note that the proof leads to.
    pub checkpoint: Bytes,
    /// Size of `checkpoint`; above `index`.
    pub checkpoint_size: u64,
}

/// The content of an entry, or the reason why it is not held.
#[derive(Clone, Debug)]
pub enum Content {
    /// The exact envelope bytes and the decoded header; `None` if the header cannot be decoded.
    Disclosed {
        /// Exact bytes.
        envelope: Bytes,
        /// Decoded header, shared by all readers.
        header: Option<Arc<proto::Header>>,
    },
    /// The digest only.
    Undisclosed(Undisclosed),
}

/// A cosigned checkpoint note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cosigned {
    /// The feed.
    pub feed: FeedId,
    /// The member that cosigned.
    pub cosigner: Member,
    /// Size of the checkpoint.
    pub size: u64,
    /// Time in the cosignature, unix seconds.
    pub time: u64,
    /// The full note.
    pub note: Bytes,
}

/// A custody note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustodyRecord {
    /// The feed.
    pub feed: FeedId,
    /// The member that holds the entries.
    pub holder: Member,
    /// The range that the note covers.
    pub range: Range<u64>,
    /// Sub-ranges of `range` that are held only as digests.
    pub not_held: Vec<Range<u64>>,
    /// Time in the note, unix seconds.
    pub time: u64,
    /// The full note.
    pub note: Bytes,
}

impl CustodyRecord {
    /// Returns whether the note states that entry `index` is held in full.
    #[must_use]
    pub fn holds(&self, index: u64) -> bool {
        self.range.contains(&index) && !self.not_held.iter().any(|range| range.contains(&index))
    }

    /// Returns the ranges that the note states as held in full, ascending.
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
    /// The issuing authority: a name that is the same for all its lists, such as the trust domain
    /// with the issuer's key identifier.
    pub authority: String,
    /// The list, DER.
    pub der: Bytes,
}

/// A fork of one feed, and the decision about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkRecord {
    /// The feed.
    pub feed: FeedId,
    /// The evidence file that proves the fork.
    pub evidence: Bytes,
    /// Whether an operator has decided to follow the feed again.
    pub resumed: bool,
}

impl ForkRecord {
    /// Returns the key of this record. A decision has the same key as the fork, so it replaces that
    /// record.
    fn key(&self) -> String {
        format!("{} {}", self.feed, hex::encode(Sha256::digest(&self.evidence)))
    }
}

/// A commit and its place in the log. Shared by all readers of the newest entries.
#[derive(Debug)]
pub struct Committed {
    /// Number of the commit.
    pub seq: u64,
    /// Hash of its head. It proves everything up to this commit ([`ChainLink`]).
    pub hash: Hash,
    /// Offset of its first disclosed entry. The others follow in the order of `commit.appends`,
    /// then `commit.backfills`, then `commit.priority`.
    pub first_offset: u64,
    /// One past the offset of its last disclosed entry.
    pub end_offset: u64,
    /// The commit itself.
    pub commit: Commit,
}

/// The state of one held feed.
#[derive(Clone, Debug)]
pub struct FeedState {
    /// The feed.
    pub feed: FeedId,
    /// The right edge of its tree: size and root.
    pub compact_range: CompactRange,
    /// Newest known checkpoint note, of this size or larger.
    pub checkpoint: Bytes,
    /// Size of `checkpoint`.
    pub checkpoint_size: u64,
    /// Consistency proof from the held size to `checkpoint_size`.
    pub consistency_proof: Vec<Hash>,
    /// Number of entries held in full.
    pub disclosed: u64,
}

/// One held entry.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its feed.
    pub feed: FeedId,
    /// Its index.
    pub index: u64,
    /// Its digest.
    pub digest: Digest,
    /// Its content, or the reason why it is not held.
    pub content: Content,
    /// Its offset; `None` if the entry is not held in full.
    pub offset: Option<u64>,
}

/// The location of a bulletin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Its feed.
    pub feed: FeedId,
    /// Its index.
    pub index: u64,
    /// Its offset.
    pub offset: u64,
}

/// How an entry refers to another bulletin. Only the publisher of a bulletin can supersede it, so
/// entries of other members never crowd out superseding ones. Acks are found by issuer instead
/// ([`Store::acks`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReferenceKind {
    /// An Update or Cancel by the member that published the bulletin it refers to.
    Supersedes,
    /// Any other reference except an Ack.
    Mentions,
}

/// Header columns for filtering entries without reading envelopes. All are empty if the header
/// cannot be decoded.
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

/// A node's store. Calls block; async code calls them on a blocking thread. Readers see every
/// commit as soon as [`Store::commit`] has returned, however far the index database lags.
pub trait Store: Send + Sync + 'static {
    /// Returns the number of the newest commit; 0 if there is none.
    fn seq(&self) -> u64;

    /// Makes a commit durable and then visible. `expected_seq` is the number of the commit it was
    /// built on.
    ///
    /// # Errors
    /// See [`CommitError`].
    fn commit(&self, commit: Commit, expected_seq: u64) -> Result<Arc<Committed>, CommitError>;

    /// Returns what the free disk space allows to be committed.
    ///
    /// # Errors
    /// [`CommitError::IndexBehind`] if nothing can be committed for now; otherwise as for
    /// [`Store::commit`].
    fn check_capacity(&self) -> Result<Capacity, CommitError>;

    /// Returns all held feeds.
    fn feeds(&self) -> Vec<FeedState>;

    /// Returns one feed.
    fn feed(&self, feed: &FeedId) -> Option<FeedState>;

    /// Returns entries from index `from` on: at most `entries_max`, and about `bytes_max` of
    /// envelopes (at least one entry if there is one).
    ///
    /// # Errors
    /// [`ReadError::DamagedEntry`] only if the first entry is damaged. The page otherwise ends
    /// before a damaged entry; a caller that continues after it gets the entries behind it.
    fn entries(&self, feed: &FeedId, from: u64, entries_max: usize, bytes_max: usize) -> Result<Vec<Entry>, ReadError>;

    /// Returns one past the newest offset; 1 if there is none. Offsets start at 1, so a cursor of 0
    /// is before the first entry.
    fn end_offset(&self) -> u64;

    /// Returns disclosed entries with offsets from `from` on, ascending. Bounds and errors are
    /// those of [`Store::entries`].
    fn entries_from(&self, from: u64, entries_max: usize, bytes_max: usize) -> Result<Vec<Entry>, ReadError> {
        self.linked_entries_from(from, entries_max, bytes_max).map(|(entries, _)| entries)
    }

    /// As [`Store::entries_from`], and also returns the commits that hold the entries, ascending.
    ///
    /// # Errors
    /// As for [`Store::entries_from`].
    fn linked_entries_from(
        &self,
        from: u64,
        entries_max: usize,
        bytes_max: usize,
    ) -> Result<(Vec<Entry>, Vec<ChainLink>), ReadError>;

    /// Returns the identity of this store.
    fn id(&self) -> StoreId;

    /// Returns the commit that holds an offset; `None` for 0 and for offsets beyond the newest.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] if the commit's head cannot be read.
    fn link(&self, offset: u64) -> Result<Option<ChainLink>, ReadError>;

    /// Returns entries with offsets below `before`, descending, whose columns `wanted` accepts: at
    /// most `entries_max`, after scanning at most `scan_max` offsets. Also returns the `before` of
    /// the next call (`None` at the beginning of history).
    ///
    /// # Errors
    /// [`ReadError::DamagedEntry`] only if the first accepted entry is damaged. A caller that
    /// continues below its offset gets the others.
    fn history(
        &self,
        before: u64,
        entries_max: usize,
        scan_max: u64,
        wanted: &dyn Fn(&Columns) -> bool,
    ) -> Result<(Vec<Entry>, Option<u64>), ReadError>;

    /// Returns the location of a bulletin. If several entries in `member`'s feeds have the same id,
    /// the lowest (epoch, index) is the bulletin. An entry whose header names another member than
    /// the feed's owner is not found by its id.
    fn find(&self, member: &Member, id: Uuid) -> Result<Option<Location>, ReadError>;

    /// Returns entries whose headers refer to bulletin `id` of `member` in this way, with offsets
    /// above `after`, ascending, at most `max`. Only member and id are compared; the caller checks
    /// whether digest and content fit. An entry whose header names another member than its feed's
    /// owner is ignored.
    fn references_to(
        &self,
        member: &Member,
        id: Uuid,
        kind: ReferenceKind,
        after: u64,
        max: usize,
    ) -> Result<Vec<Location>, ReadError>;

    /// Returns for each of these bulletins of `member`, in their order, whether any entry refers to
    /// it as [`ReferenceKind::Supersedes`]. Nearly free for ids above every superseded id.
    fn superseded(&self, member: &Member, ids: &[Uuid]) -> Result<Vec<bool>, ReadError>;

    /// Returns the Acks that refer to bulletin `id` of `member`: for each issuer the first and the
    /// newest, and for each feed at most `issuers_max` issuers. As for [`Store::references_to`],
    /// only member and id are compared.
    fn acks(&self, member: &Member, id: Uuid, issuers_max: usize) -> Result<Acks, ReadError>;

    /// Returns hashes of complete subtrees of a feed's tree, in the order of `nodes`.
    fn tree_hashes(&self, feed: &FeedId, nodes: &[NodeId]) -> Result<Vec<Hash>, ReadError>;

    /// Returns for each of these entries its digest and why its content is not held; `None` for
    /// entries held in full and for indexes beyond the feed's end.
    fn missing(&self, feed: &FeedId, indexes: &[u64]) -> Result<Vec<Option<(Digest, Undisclosed)>>, ReadError>;

    /// Returns the entries of a feed in `range` that are held out of order, by index, with their
    /// digests. All are at or beyond the feed's size.
    fn out_of_order(&self, feed: &FeedId, range: Range<u64>) -> Vec<(u64, Digest)>;

    /// Returns the indexes of entries that occupy an out-of-order slot at `now_ms`, ascending, at
    /// most [`OUT_OF_ORDER_MAX`]. An entry that its feed does not reach within
    /// [`PRIORITY_EXPIRES_MS`](barid_core::limits::PRIORITY_EXPIRES_MS) stays held but no longer
    /// occupies a slot.
    fn out_of_order_unexpired(&self, feed: &FeedId, now_ms: u64) -> Vec<u64>;

    /// Returns an entry that was received ahead of the order, with its proof, whether or not the
    /// feed has reached it.
    fn priority_entry(&self, feed: &FeedId, index: u64) -> Result<Option<PriorityEntry>, ReadError>;

    /// Returns the indexes of a feed's urgent entries of this kind whose content is held, from
    /// index `from` on, ascending, at most `max`. Includes entries held out of order; excludes
    /// urgent entries of the other kind.
    fn priority_indexes(&self, feed: &FeedId, kind: Priority, from: u64, max: usize) -> Result<Vec<u64>, ReadError>;

    /// Returns the ranges held as digests only that end after index `from`, ascending: the first
    /// ones, at most `max`. May wait for the index database.
    fn undisclosed_ranges_from(
        &self,
        feed: &FeedId,
        from: u64,
        max: usize,
    ) -> Result<Vec<(Range<u64>, Undisclosed)>, ReadError>;

    /// Returns the newest ranges held as digests only, ascending, at most `max` and at most
    /// [`NOT_HELD_RANGES_MAX`](barid_core::limits::NOT_HELD_RANGES_MAX). Neighbours with the same
    /// reason form one range.
    fn undisclosed_ranges(&self, feed: &FeedId, max: usize) -> Result<Vec<(Range<u64>, Undisclosed)>, ReadError>;

    /// Returns for each cosigner the cosigned note of the largest size, by cosigner. If a cosigner
    /// has several for one size, the first committed one counts.
    fn cosigned_newest(&self, feed: &FeedId) -> Result<Vec<Cosigned>, ReadError>;

    /// Returns for each cosigner the held cosigned note of the smallest size above `index`, by
    /// cosigner.
    fn cosigned_covering(&self, feed: &FeedId, index: u64) -> Result<Vec<Cosigned>, ReadError>;

    /// Returns for each holder the first committed custody note that covers `index` and does not
    /// list it as not held, by holder.
    fn custody_covering(&self, feed: &FeedId, index: u64) -> Result<Vec<CustodyRecord>, ReadError>;

    /// Returns for each holder, by holder, the custody note whose range ends last among those that
    /// join the earlier ones; of several, the one committed last. A note that begins beyond the
    /// earlier ones is about entries received ahead of the order and does not count.
    fn custody_newest(&self, feed: &FeedId) -> Result<Vec<CustodyRecord>, ReadError>;

    /// Returns a holder's custody notes whose ranges end after `index`, by the end of the range, at
    /// most `max`.
    fn custody_after(
        &self,
        feed: &FeedId,
        holder: &Member,
        index: u64,
        max: usize,
    ) -> Result<Vec<CustodyRecord>, ReadError>;

    /// Returns a holder's late custody notes of time `from_time` or later, the latest first, at
    /// most `max`. A note is late if, when it was committed, it did not end after all earlier ones;
    /// such notes cover backfilled entries.
    fn custody_late(
        &self,
        feed: &FeedId,
        holder: &Member,
        from_time: u64,
        max: usize,
    ) -> Result<Vec<CustodyRecord>, ReadError>;

    /// Returns how many entries of these ascending ranges no committed custody note of `holder`
    /// states as held in full. Counts up to `max`, and within a bounded number of look-ups.
    fn custody_gain(&self, feed: &FeedId, holder: &Member, ranges: &[Range<u64>], max: u64) -> Result<u64, ReadError>;

    /// Returns the held roster notes, in ascending versions.
    fn rosters(&self) -> Result<Vec<RosterRecord>, ReadError>;

    /// Returns the newest held revocation list of each authority.
    fn crls(&self) -> Result<Vec<CrlRecord>, ReadError>;

    /// Returns the newest record of each forked feed and evidence, by feed.
    fn forks(&self) -> Result<Vec<ForkRecord>, ReadError>;

    /// Returns the subscription of this name.
    fn subscription(&self, name: &str) -> Option<Subscription>;

    /// Returns the subscriptions with names after `after`, ascending, at most `max`.
    fn subscriptions(&self, after: &str, max: usize) -> Vec<(String, Subscription)>;

    /// Returns the number of commits not yet applied to the index database; 0 for a store without
    /// one.
    fn index_lag(&self) -> u64;

    /// Returns the durations of syncs since the store was opened; empty for a store that does not
    /// sync.
    fn fsync_histogram(&self) -> FsyncHistogram;

    /// Returns the bytes of the log and the index database on disk.
    fn disk_bytes(&self) -> DiskBytes;

    /// Waits until everything committed before the call is applied to the index database.
    fn apply_index(&self);

    /// Returns the alarm about damage found while reading.
    fn damage(&self) -> Option<Alarm> {
        None
    }

    /// Returns the number of bit flips on disk that were corrected since the store was opened,
    /// including during opening.
    fn corrected_bits(&self) -> u64 {
        0
    }
}

/// Disk capacity for commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// What may be committed.
    pub tier: Tier,
    /// Bytes free.
    pub free_bytes: u64,
    /// The configured reserve in bytes ([`disk::DiskOptions`]).
    pub reserve_bytes: u64,
}

impl Capacity {
    /// The capacity of a store without bounds.
    pub const UNBOUNDED: Self = Self { tier: Tier::All, free_bytes: u64::MAX, reserve_bytes: 0 };
}

/// Disk usage in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskBytes {
    /// Commit log, as written (not as preallocated).
    pub log: u64,
    /// The index database.
    pub index_db: u64,
    /// Free bytes on the disk of the log.
    pub free: u64,
}
