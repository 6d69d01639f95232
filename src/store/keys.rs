//! The keyspace of the index database: the one table of everything stored in sled, and the encoding
//! of keys and values.
//!
//! | prefix | key after it | value | use |
//! |---|---|---|---|
//! | `m` | | [`IndexCursor`] | last commit applied to the index database; in every batch |
//! | `f` | feed | [`FeedRow`] | number, name, size and newest checkpoint of each feed |
//! | `p` | feed, first index | [`EntryRun`]s | from (feed, index) to the record of the entry |
//! | `a` | first offset | [`EntryRun`]s | from an offset to the record of the entry |
//! | `c` | first offset | columns block (`index_db::columns`) | filtering history without reading envelopes |
//! | `i` | member, id bucket, first offset | ids block (`index_db::ids`) | from (member, id) to the entry |
//! | `j` | member, id | entry (`index_db::ids`) | the same, once the id's bucket is full |
//! | `x` | member, kind, id, first offset | references block (`index_db::references`) | from (member, id) to referring entries other than Acks |
//! | `y` | member, id, feed, issuer | first, newest, count (`index_db::acks`) | from (member, id) to the Acks of each issuer |
//! | `t` | feed, level, index | 256 hashes | full tiles of the feed's tree |
//! | `n` | feed, start | end, reason | runs held as digests only |
//! | `g` | feed, bucket of indexes | [`BackfillRef`]s (`index_db::backfills`) | from a backfilled or out-of-order entry to its record |
//! | `e` | feed, index | digest, [`BackfillRef`], time | entries held out of order, and since when |
//! | `q` | feed, bucket of indexes | bits (`index_db::urgent`) | urgent entries, without reading envelopes |
//! | `o` | feed, cosigner, size | time, [`NoteRef`] | cosigned checkpoints |
//! | `u` | feed, holder, end, [`NoteRef`] | start | custody notes by the range they cover |
//! | `v` | feed, holder | [`NoteRef`] | custody note of each holder that ends last of those that join |
//! | `w` | feed, holder, time, [`NoteRef`] | | late custody notes, for backfilled entries |
//! | `h` | feed, holder, start | end | merged ranges that a holder's notes state as held in full |
//! | `r` | version | [`NoteRef`] | rosters |
//! | `l` | authority | [`NoteRef`] | newest revocation list of each authority |
//! | `k` | feed's origin, SHA-256 of the evidence | [`NoteRef`] | newest record of each forked feed and evidence |
//! | `s` | subscription | [`Subscription`] | named subscriptions |
//!
//! Numbers are big-endian in keys, so that keys sort in numeric order, and little-endian in values.
//! A name inside a key is preceded by its length. A feed is identified by its number; numbers are
//! assigned in the order in which feeds were first seen. Every value begins with [`VALUE_VERSION`];
//! an index database of another version is rebuilt from the log. Notes and envelopes are never in
//! the index database, only their places in the log. A block holds the entries of one batch of the
//! applier, so that many entries share the cost of a key.

use barid_core::ids::{Hash, Member};
use bytes::Bytes;
use uuid::Uuid;

use super::log::{Position, Resume};
use super::tree_cache::TileId;
use super::{HeldBack, ReferenceKind, Subscription};

/// Version of all values.
pub(super) const VALUE_VERSION: u8 = 7;
/// Longest value in bytes: sled stores up to 16 values on a page, and no page may become large
/// enough for sled's blob files.
pub(super) const VALUE_BYTES_MAX: usize = 16 << 10;

/// Number of a feed in this store.
pub(super) type FeedNumber = u32;

pub(super) const CURSOR: &[u8] = b"m";
pub(super) const FEED: u8 = b'f';
pub(super) const POSITION: u8 = b'p';
pub(super) const OFFSET: u8 = b'a';
pub(super) const COLUMNS: u8 = b'c';
pub(super) const ID: u8 = b'i';
pub(super) const ID_OVERFLOW: u8 = b'j';
pub(super) const REFERENCE: u8 = b'x';
pub(super) const ACK: u8 = b'y';
pub(super) const TILE: u8 = b't';
pub(super) const NOT_HELD: u8 = b'n';
pub(super) const BACKFILL: u8 = b'g';
pub(super) const OUT_OF_ORDER: u8 = b'e';
pub(super) const PRIORITY: u8 = b'q';
pub(super) const COSIGNED: u8 = b'o';
pub(super) const CUSTODY: u8 = b'u';
pub(super) const CUSTODY_NEWEST: u8 = b'v';
pub(super) const CUSTODY_LATE: u8 = b'w';
pub(super) const HELD_BY: u8 = b'h';
pub(super) const ROSTER: u8 = b'r';
pub(super) const CRL: u8 = b'l';
pub(super) const FORK: u8 = b'k';
pub(super) const SUBSCRIPTION: u8 = b's';

/// Bits of the id's time in ms that one bucket spans: 64 ms. Usually few enough ids to scan, and
/// enough to share a key.
const ID_BUCKET_BITS: u32 = 6;

/// Encodes a key.
#[derive(Clone)]
pub(super) struct Key(Vec<u8>);

impl Key {
    pub(super) fn new(prefix: u8) -> Self {
        let mut bytes = Vec::with_capacity(40);
        bytes.push(prefix);
        Self(bytes)
    }

    /// Copies a key that was read.
    pub(super) fn read(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    pub(super) fn u8(mut self, number: u8) -> Self {
        self.0.push(number);
        self
    }

    pub(super) fn u32(mut self, number: u32) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    pub(super) fn u64(mut self, number: u64) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    pub(super) fn member(mut self, member: &Member) -> Self {
        let name = member.as_str().as_bytes();
        self.0.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        self.0.extend(name);
        self
    }

    /// Appends a name at the end of a key.
    pub(super) fn name(mut self, name: &str) -> Self {
        self.0.extend(name.as_bytes());
        self
    }

    pub(super) fn bucket(self, bucket: u64) -> Self {
        self.u64(bucket)
    }

    pub(super) fn id(mut self, id: Uuid) -> Self {
        self.0.extend(id.as_bytes());
        self
    }

    pub(super) fn kind(self, kind: ReferenceKind) -> Self {
        self.u8(match kind {
            ReferenceKind::Supersedes => 0,
            ReferenceKind::Mentions => 1,
        })
    }

    pub(super) fn tile(self, tile: TileId) -> Self {
        self.u8(tile.level).u64(tile.index)
    }

    pub(super) fn note(self, note: NoteRef) -> Self {
        self.u32(note.position.segment).u32(note.position.byte_offset).u32(note.place)
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        self.0
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Returns the bucket of an id.
pub(super) fn bucket_of(id: Uuid) -> u64 {
    u64::try_from(id.as_u128() >> (80 + ID_BUCKET_BITS)).unwrap_or(u64::MAX)
}

/// Returns the largest id of a bucket.
pub(super) fn bucket_end(bucket: u64) -> Uuid {
    Uuid::from_u128((u128::from(bucket) << (80 + ID_BUCKET_BITS)) | ((1 << (80 + ID_BUCKET_BITS)) - 1))
}

/// Encodes a value.
pub(super) struct Value(Vec<u8>);

impl Value {
    pub(super) fn new() -> Self {
        Self(vec![VALUE_VERSION])
    }

    pub(super) fn u8(mut self, number: u8) -> Self {
        self.0.push(number);
        self
    }

    pub(super) fn u32(mut self, number: u32) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    pub(super) fn u64(mut self, number: u64) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub(super) fn position(self, position: Position) -> Self {
        self.u32(position.segment).u32(position.byte_offset)
    }

    pub(super) fn note(self, note: NoteRef) -> Self {
        self.position(note.position).u32(note.place)
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Decodes a value or a key; every step returns `None` when the bytes end.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Starts at a value's fields, after its version.
    pub(super) fn of_value(bytes: &'a [u8]) -> Option<Self> {
        match bytes.split_first() {
            Some((&VALUE_VERSION, rest)) => Some(Self(rest)),
            _ => None,
        }
    }

    /// Starts at a key's fields, after its prefix.
    pub(super) fn of_key(bytes: &'a [u8]) -> Option<Self> {
        bytes.split_first().map(|(_, rest)| Self(rest))
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn key_u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn key_u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn member(&mut self) -> Option<Member> {
        let len = usize::from(self.u8()?);
        let (name, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        std::str::from_utf8(name).ok()?.parse().ok()
    }

    pub(super) fn text(&mut self, len: usize) -> Option<&'a str> {
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }

    pub(super) fn position(&mut self) -> Option<Position> {
        Some(Position { segment: self.u32()?, byte_offset: self.u32()? })
    }

    pub(super) fn note(&mut self) -> Option<NoteRef> {
        Some(NoteRef { position: self.position()?, place: self.u32()? })
    }

    pub(super) fn key_note(&mut self) -> Option<NoteRef> {
        let position = Position { segment: self.key_u32()?, byte_offset: self.key_u32()? };
        Some(NoteRef { position, place: self.key_u32()? })
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.0
    }
}

/// The place of a note: its record, and its position among the notes of its kind there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NoteRef {
    pub(super) position: Position,
    pub(super) place: u32,
}

/// The place of backfilled content: a backfill in a record, and an entry in that backfill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BackfillRef {
    pub(super) at: NoteRef,
    pub(super) slot: u32,
}

/// The last commit applied to the index database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IndexCursor {
    pub(super) resume: Resume,
    pub(super) end_offset: u64,
}

impl IndexCursor {
    pub(super) fn encode(&self) -> Vec<u8> {
        let Resume { position, seq, hash } = self.resume;
        Value::new().u64(seq).raw(&hash.0).position(position).u64(self.end_offset).bytes()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields::of_value(bytes)?;
        let (seq, hash) = (fields.u64()?, Hash(fields.array()?));
        Some(Self { resume: Resume { position: fields.position()?, seq, hash }, end_offset: fields.u64()? })
    }
}

/// A feed as of the last commit applied to the index database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FeedRow {
    pub(super) origin: String,
    pub(super) size: u64,
    pub(super) disclosed: u64,
    /// Record and append that hold the newest checkpoint; `None` before the first append, for
    /// example if only attestations about the feed are held.
    pub(super) checkpoint: Option<NoteRef>,
}

impl FeedRow {
    pub(super) fn encode(&self) -> Vec<u8> {
        let value = Value::new().u64(self.size).u64(self.disclosed).u8(u8::from(self.checkpoint.is_some()));
        value.note(self.checkpoint.unwrap_or_default()).raw(self.origin.as_bytes()).bytes()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields::of_value(bytes)?;
        let (size, disclosed, held) = (fields.u64()?, fields.u64()?, fields.u8()? == 1);
        let checkpoint = fields.note().filter(|_| held);
        Some(Self { origin: std::str::from_utf8(fields.rest()).ok()?.to_string(), size, disclosed, checkpoint })
    }
}

pub(super) fn encode_subscription(subscription: &Subscription) -> Vec<u8> {
    let Subscription { offset, held, filter, created_unix_ms, used_unix_ms, epoch } = subscription;
    // Offsets start at 1, so 0 means that nothing is held back.
    let held = held.unwrap_or(HeldBack { from: 0, roster_version: 0 });
    let value = Value::new().u64(*offset).u64(held.from).u64(held.roster_version);
    let value = value.u64(*created_unix_ms).u64(*used_unix_ms).u32(*epoch);
    value.u8(u8::from(filter.is_some())).raw(filter.as_deref().unwrap_or_default()).bytes()
}

pub(super) fn decode_subscription(bytes: &[u8]) -> Option<Subscription> {
    let mut fields = Fields::of_value(bytes)?;
    let (offset, from, roster_version) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let (created_unix_ms, used_unix_ms, epoch) = (fields.u64()?, fields.u64()?, fields.u32()?);
    let held = (from > 0).then_some(HeldBack { from, roster_version });
    let filter = match fields.u8()? {
        0 => None,
        _ => Some(Bytes::copy_from_slice(fields.rest())),
    };
    Some(Subscription { offset, held, filter, created_unix_ms, used_unix_ms, epoch })
}

/// Consecutive numbers (indexes or offsets) whose entries are in one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntryRun {
    pub(super) first: u64,
    pub(super) count: u32,
    /// The record; for indexes also the append in it.
    pub(super) at: NoteRef,
}

/// Length of an encoded entry run in bytes.
const ENTRY_RUN_BYTES: usize = 24;
/// Entry runs in one block.
pub(super) const ENTRY_RUNS_MAX: usize = VALUE_BYTES_MAX / ENTRY_RUN_BYTES - 1;

impl EntryRun {
    pub(super) fn encode(block: &[Self]) -> Vec<u8> {
        let mut value = Value(Vec::with_capacity(1 + block.len() * ENTRY_RUN_BYTES));
        value = value.u8(VALUE_VERSION);
        for entry_run in block {
            value = value.u64(entry_run.first).u32(entry_run.count).note(entry_run.at);
        }
        value.bytes()
    }

    /// Returns the entry run of a block that contains `number`.
    pub(super) fn find(block: &[u8], number: u64) -> Option<Self> {
        let (entry_runs, _) = Fields::of_value(block)?.rest().as_chunks::<ENTRY_RUN_BYTES>();
        let place = entry_runs.partition_point(|entry_run| {
            entry_run.first_chunk().is_some_and(|first| u64::from_le_bytes(*first) <= number)
        });
        let mut fields = Fields(entry_runs.get(place.checked_sub(1)?)?);
        let entry_run = Self { first: fields.u64()?, count: fields.u32()?, at: fields.note()? };
        (number - entry_run.first < u64::from(entry_run.count)).then_some(entry_run)
    }
}
