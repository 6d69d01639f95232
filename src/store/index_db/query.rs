//! Reads of the index database. Notes are returned as references into the log.
//!
//! In scope: single look-ups and bounded ranges over the keyspace. Out of scope: commits not yet
//! applied, and the log itself.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use barid_core::bulletin::Priority;
use barid_core::ids::{Digest, FeedId, Member, Undisclosed};
use uuid::Uuid;

use super::references::{self, Referrer};
use super::{IndexDb, acks, backfills, columns, ids, priorities, unreadable};
use crate::store::feed_index::OutOfOrderEntry;
use crate::store::keys::{self, BackfillRef, EntryRun, FeedNumber, FeedRow, Fields, Key, NoteRef};
use crate::store::log::Position;
use crate::store::recent_ids::{EntryRef, IDS_LOADED_MAX};
use crate::store::references::IssuerHash;
use crate::store::tree_cache::{Tile, TileId};
use crate::store::validate::UndisclosedRun;
use crate::store::{Columns, ReadError, ReferenceKind, Subscription};

/// Custody notes examined for one holder and entry: those that end nearest above it. Between the
/// entry and the end of the note that covers it lie at most the later notes for backfilled entries.
/// The bound keeps reads fast if a holder repeats its notes.
const CUSTODY_KEYS_MAX: usize = 4_096;
/// Of these, notes collected that cover the entry: normally one or two.
const CUSTODY_NOTES_MAX: usize = 64;

type Pair = (sled::IVec, sled::IVec);
/// The Ack summary of one issuer in one feed.
type IssuerAckSummary = (FeedNumber, IssuerHash, acks::AckSummary);

impl IndexDb {
    /// Returns pairs with `prefix` from `from` on, ascending.
    fn ascending(&self, prefix: &Key, from: &Key) -> impl Iterator<Item = Result<Pair, ReadError>> {
        let pairs = self.db.range(from.as_ref()..).map(|pair| pair.map_err(|error| self.failed(&error)));
        pairs.take_while(|pair| pair.as_ref().map_or(true, |(key, _)| key.starts_with(prefix.as_ref())))
    }

    /// Returns pairs with `prefix` up to and including `to`, descending.
    fn descending(&self, prefix: &Key, to: &Key) -> impl Iterator<Item = Result<Pair, ReadError>> {
        let pairs = self.db.range(..=to.as_ref()).rev().map(|pair| pair.map_err(|error| self.failed(&error)));
        pairs.take_while(|pair| pair.as_ref().map_or(true, |(key, _)| key.starts_with(prefix.as_ref())))
    }

    fn entry_run(&self, prefix: &Key, number: u64) -> Result<Option<EntryRun>, ReadError> {
        let Some(pair) = self.descending(prefix, &prefix.clone().u64(number)).next() else { return Ok(None) };
        Ok(EntryRun::find(&pair?.1, number))
    }

    /// Returns the entry run that contains an index.
    pub(in crate::store) fn position(&self, feed: FeedNumber, index: u64) -> Result<Option<EntryRun>, ReadError> {
        self.entry_run(&Key::new(keys::POSITION).u32(feed), index)
    }

    /// Returns the entry run that contains an offset.
    pub(in crate::store) fn at_offset(&self, offset: u64) -> Result<Option<EntryRun>, ReadError> {
        self.entry_run(&Key::new(keys::OFFSET), offset)
    }

    /// Returns the columns block that contains an offset.
    pub(in crate::store) fn columns(&self, offset: u64) -> Result<Option<(u64, Vec<Columns>)>, ReadError> {
        let prefix = Key::new(keys::COLUMNS);
        let Some(pair) = self.descending(&prefix, &prefix.clone().u64(offset)).next() else { return Ok(None) };
        columns::decode(&pair?.1).map(Some).ok_or_else(|| unreadable("columns block"))
    }

    /// Returns the lowest entry with an id.
    pub(in crate::store) fn find(&self, member: &Member, id: Uuid) -> Result<Option<EntryRef>, ReadError> {
        let prefix = Key::new(keys::ID).member(member).bucket(keys::bucket_of(id));
        let (mut lowest, mut blocks): (Option<EntryRef>, usize) = (None, 0);
        for pair in self.ascending(&prefix, &prefix) {
            let found = ids::find(&pair?.1, id).ok_or_else(|| unreadable("ids block"))?;
            lowest = lowest.into_iter().chain(found).min();
            blocks += 1;
        }
        if blocks >= ids::BLOCKS_MAX {
            lowest = lowest.into_iter().chain(self.overflow(member, id)?).min();
        }
        Ok(lowest)
    }

    /// Returns the lowest entry with an overflow id.
    pub(super) fn overflow(&self, member: &Member, id: Uuid) -> Result<Option<EntryRef>, ReadError> {
        let place = |value: sled::IVec| ids::decode_overflow(&value).ok_or_else(|| unreadable("place of an id"));
        self.get(ids::overflow_key(member, id))?.map(place).transpose()
    }

    /// Returns entries that refer to a bulletin in this way, with offsets above `after`, ascending,
    /// at most `max`.
    pub(in crate::store) fn references_to(
        &self,
        member: &Member,
        id: Uuid,
        kind: ReferenceKind,
        after: u64,
        max: usize,
    ) -> Result<Vec<Referrer>, ReadError> {
        let prefix = Key::new(keys::REFERENCE).member(member).kind(kind).id(id);
        // Blocks are in order of offset: the last block that begins at or below `after` may contain
        // offsets above it.
        let start = self.descending(&prefix, &prefix.clone().u64(after)).next().transpose()?;
        let start = start.map_or_else(|| prefix.clone(), |(key, _)| Key::read(&key));
        let mut found = Vec::new();
        for pair in self.ascending(&prefix, &start) {
            let block = references::decode(&pair?.1).ok_or_else(|| unreadable("references block"))?;
            found.extend(block.into_iter().filter(|referrer| referrer.offset > after).take(max - found.len()));
            if found.len() >= max {
                break;
            }
        }
        Ok(found)
    }

    /// Returns those of these ascending ids of a member that are superseded. Makes one look-up for
    /// each superseded id between the smallest and the largest of them, plus one, and at most one
    /// for each id.
    pub(in crate::store) fn superseded(&self, member: &Member, ids: &[Uuid]) -> Result<Vec<Uuid>, ReadError> {
        let prefix = Key::new(keys::REFERENCE).member(member).kind(ReferenceKind::Supersedes);
        let (mut left, mut found) = (ids, Vec::new());
        while let Some(id) = left.first() {
            let Some(pair) = self.ascending(&prefix, &prefix.clone().id(*id)).next() else { break };
            let held = superseded_id(&pair?.0)?;
            left = left.get(left.partition_point(|id| *id < held)..).unwrap_or_default();
            if left.first() == Some(&held) {
                found.push(held);
                left = left.get(left.partition_point(|id| *id <= held)..).unwrap_or_default();
            }
        }
        Ok(found)
    }

    /// Returns the largest superseded id of a member.
    pub(in crate::store) fn largest_superseded(&self, member: &Member) -> Result<Option<Uuid>, ReadError> {
        let prefix = Key::new(keys::REFERENCE).member(member).kind(ReferenceKind::Supersedes);
        let end = prefix.clone().id(Uuid::max()).u64(u64::MAX);
        self.descending(&prefix, &end).next().map(|pair| superseded_id(&pair?.0)).transpose()
    }

    /// Returns the Ack summaries of a bulletin, reading at most `max` keys of each feed, and
    /// whether those were all.
    pub(in crate::store) fn acks(
        &self,
        member: &Member,
        id: Uuid,
        max: usize,
    ) -> Result<(Vec<IssuerAckSummary>, bool), ReadError> {
        let prefix = Key::new(keys::ACK).member(member).id(id);
        let (mut from, mut found, mut whole) = (prefix.clone(), Vec::new(), true);
        loop {
            let (mut feed, mut count) = (None, 0);
            for pair in self.ascending(&prefix, &from) {
                let (key, value) = pair?;
                let (number, issuer_hash) = acks::read_key(&key).ok_or_else(|| unreadable("key"))?;
                if feed.is_some_and(|feed| feed != number) {
                    break;
                }
                (feed, count) = (Some(number), count + 1);
                if count > max {
                    whole = false;
                    break;
                }
                found.push((number, issuer_hash, acks::decode(&value).ok_or_else(|| unreadable("answer"))?));
            }
            let Some(feed) = feed else { return Ok((found, whole)) };
            from = prefix.clone().u32(feed).u64(u64::MAX).u8(0);
        }
    }

    /// Returns one Ack summary.
    pub(super) fn ack_summary(&self, key: &Key) -> Result<Option<acks::AckSummary>, ReadError> {
        self.get(key)?.map(|value| acks::decode(&value).ok_or_else(|| unreadable("answer"))).transpose()
    }

    /// Returns the largest ids of a member, and the largest id that is left out (nil: none).
    pub(in crate::store) fn largest_ids(&self, member: &Member) -> Result<(Vec<(Uuid, EntryRef)>, Uuid), ReadError> {
        let prefix = Key::new(keys::ID).member(member);
        let mut loaded = Vec::new();
        let (mut lowest_bucket, mut blocks) = (u64::MAX, 0);
        for pair in self.descending(&prefix, &prefix.clone().u64(u64::MAX).u64(u64::MAX)) {
            let (key, block) = pair?;
            let found = ids::decode(&block).ok_or_else(|| unreadable("ids block"))?;
            let mut fields = Fields::of_key(&key).ok_or_else(|| unreadable("key"))?;
            let bucket = fields.member().and_then(|_| fields.key_u64()).ok_or_else(|| unreadable("key"))?;
            // Buckets are loaded whole. Loading stops at a full bucket, because its further ids
            // have keys of their own.
            blocks = if bucket < lowest_bucket { 1 } else { blocks + 1 };
            if blocks >= ids::BLOCKS_MAX || (bucket < lowest_bucket && loaded.len() >= IDS_LOADED_MAX) {
                return Ok((loaded, keys::bucket_end(bucket)));
            }
            lowest_bucket = bucket;
            loaded.extend(found);
        }
        Ok((loaded, Uuid::nil()))
    }

    /// Returns a full tile.
    pub(in crate::store) fn tile(&self, feed: FeedNumber, id: TileId) -> Result<Option<Arc<Tile>>, ReadError> {
        let value = self.get(Key::new(keys::TILE).u32(feed).tile(id))?;
        let tile = |value: sled::IVec| Tile::from_bytes(Fields::of_value(&value)?.rest()).map(Arc::new);
        value.map(|value| tile(value).ok_or_else(|| unreadable("tile"))).transpose()
    }

    /// Returns all feeds, by number.
    pub(in crate::store) fn feeds(&self) -> Result<Vec<(FeedId, FeedRow)>, ReadError> {
        let prefix = Key::new(keys::FEED);
        let mut feeds = Vec::new();
        for pair in self.ascending(&prefix, &prefix) {
            let (key, value) = pair?;
            let number = Fields::of_key(&key).and_then(|mut fields| fields.key_u32());
            let row = FeedRow::decode(&value).filter(|_| number == u32::try_from(feeds.len()).ok());
            let feed = row.and_then(|row| Some((row.origin.parse().ok()?, row)));
            feeds.push(feed.ok_or_else(|| unreadable("feed"))?);
        }
        Ok(feeds)
    }

    /// Returns the newest runs held as digests only, at most `max`, ascending.
    pub(in crate::store) fn runs(&self, feed: FeedNumber, max: usize) -> Result<Vec<UndisclosedRun>, ReadError> {
        let prefix = Key::new(keys::NOT_HELD).u32(feed);
        let mut runs = Vec::new();
        for pair in self.descending(&prefix, &prefix.clone().u64(u64::MAX)).take(max) {
            runs.push(run(&pair?)?);
        }
        runs.reverse();
        Ok(runs)
    }

    /// Returns the last run that begins at or before `index`, skipping runs whose start
    /// `skip` accepts.
    pub(in crate::store) fn run_before(
        &self,
        feed: FeedNumber,
        index: u64,
        skip: impl Fn(u64) -> bool,
    ) -> Result<Option<UndisclosedRun>, ReadError> {
        let prefix = Key::new(keys::NOT_HELD).u32(feed);
        for pair in self.descending(&prefix, &prefix.clone().u64(index)) {
            let run = run(&pair?)?;
            if !skip(run.0) {
                return Ok(Some(run));
            }
        }
        Ok(None)
    }

    /// Returns runs that end after `from`, ascending, at most `max`.
    pub(in crate::store) fn runs_from(
        &self,
        feed: FeedNumber,
        from: u64,
        max: usize,
    ) -> Result<Vec<UndisclosedRun>, ReadError> {
        let prefix = Key::new(keys::NOT_HELD).u32(feed);
        let first = self.run_before(feed, from, |_| false)?.filter(|(_, end, _)| *end > from);
        let start = prefix.clone().u64(from.saturating_add(1));
        let later = self.ascending(&prefix, &start).map(|pair| run(&pair?));
        first.map(Ok).into_iter().chain(later).take(max).collect()
    }

    /// Returns a bucket of backfilled entries.
    pub(in crate::store) fn backfilled(
        &self,
        feed: FeedNumber,
        bucket: u64,
    ) -> Result<BTreeMap<u64, BackfillRef>, ReadError> {
        let value = self.get(Key::new(keys::BACKFILL).u32(feed).u64(bucket))?;
        let decoded =
            value.map(|value| backfills::decode(bucket, &value).ok_or_else(|| unreadable("bucket of backfills")));
        Ok(decoded.transpose()?.unwrap_or_default())
    }

    /// Returns the entries of a feed that are held out of order.
    pub(in crate::store) fn out_of_order(&self, feed: FeedNumber) -> Result<BTreeMap<u64, OutOfOrderEntry>, ReadError> {
        let prefix = Key::new(keys::OUT_OF_ORDER).u32(feed);
        let held = |pair: Result<Pair, ReadError>| {
            let (key, value) = pair?;
            let read = || {
                let mut key = Fields::of_key(&key)?;
                key.key_u32()?;
                let mut value = Fields::of_value(&value)?;
                let digest = Digest(value.array()?);
                let at = BackfillRef { at: value.note()?, slot: value.u32()? };
                Some((key.key_u64()?, OutOfOrderEntry { digest, at, since_ms: value.u64()? }))
            };
            read().ok_or_else(|| unreadable("out-of-order entry"))
        };
        self.ascending(&prefix, &prefix).map(held).collect()
    }

    /// Returns a bucket of urgent entries.
    pub(in crate::store) fn priority_bucket(
        &self,
        feed: FeedNumber,
        bucket: u64,
    ) -> Result<priorities::Bucket, ReadError> {
        let value = self.get(Key::new(keys::PRIORITY).u32(feed).u64(bucket))?;
        let read =
            value.map(|value| priorities::Bucket::decode(&value).ok_or_else(|| unreadable("bucket of urgent entries")));
        Ok(read.transpose()?.unwrap_or_default())
    }

    /// Returns the indexes of a feed's urgent entries of this kind from `from` on, ascending, at
    /// most `max`.
    pub(in crate::store) fn priority_indexes(
        &self,
        feed: FeedNumber,
        kind: Priority,
        from: u64,
        max: usize,
    ) -> Result<Vec<u64>, ReadError> {
        let prefix = Key::new(keys::PRIORITY).u32(feed);
        let mut found = Vec::new();
        for pair in self.ascending(&prefix, &prefix.clone().u64(priorities::bucket_of(from))) {
            let (key, value) = pair?;
            let mut key = Fields::of_key(&key).ok_or_else(|| unreadable("key"))?;
            let number = key.key_u32().and_then(|_| key.key_u64()).ok_or_else(|| unreadable("key"))?;
            let bucket = priorities::Bucket::decode(&value).ok_or_else(|| unreadable("bucket of urgent entries"))?;
            let entries = bucket.entries(number).filter(|(index, held)| *index >= from && *held == kind);
            found.extend(entries.map(|(index, _)| index).take(max - found.len()));
            if found.len() >= max {
                break;
            }
        }
        Ok(found)
    }

    /// Returns the members that have given a custody note on a feed.
    pub(in crate::store) fn custody_holders(&self, feed: FeedNumber) -> Result<Vec<Member>, ReadError> {
        let prefix = Key::new(keys::CUSTODY).u32(feed);
        let (mut from, mut holders) = (prefix.clone(), Vec::new());
        loop {
            let Some(pair) = self.ascending(&prefix, &from).next() else { return Ok(holders) };
            let (key, _) = pair?;
            let mut fields = Fields::of_key(&key).ok_or_else(|| unreadable("key"))?;
            let holder = fields.key_u32().and_then(|_| fields.member()).ok_or_else(|| unreadable("key"))?;
            from = prefix.clone().member(&holder).u64(u64::MAX).u64(u64::MAX).u64(u64::MAX);
            holders.push(holder);
        }
    }

    /// Returns whether any entry of a feed was backfilled or came ahead of the order.
    pub(in crate::store) fn has_backfills(&self, feed: FeedNumber) -> Result<bool, ReadError> {
        let prefix = Key::new(keys::BACKFILL).u32(feed);
        Ok(self.ascending(&prefix, &prefix).next().transpose()?.is_some())
    }

    /// Returns the cosigned note of the smallest size above `index` of one cosigner.
    pub(in crate::store) fn cosigned_above(
        &self,
        feed: FeedNumber,
        cosigner: &Member,
        index: u64,
    ) -> Result<Option<NoteRef>, ReadError> {
        let prefix = Key::new(keys::COSIGNED).u32(feed).member(cosigner);
        let from = prefix.clone().u64(index.saturating_add(1));
        self.ascending(&prefix, &from).next().map(|pair| cosigned_ref(&pair?)).transpose()
    }

    /// Returns the cosigned note of the largest size of each cosigner of a feed.
    pub(in crate::store) fn cosigned_newest(&self, feed: FeedNumber) -> Result<Vec<NoteRef>, ReadError> {
        let prefix = Key::new(keys::COSIGNED).u32(feed);
        let (mut from, mut notes) = (prefix.clone(), Vec::new());
        loop {
            let Some(pair) = self.ascending(&prefix, &from).next() else { return Ok(notes) };
            let (key, _) = pair?;
            let mut fields = Fields::of_key(&key).ok_or_else(|| unreadable("key"))?;
            let cosigner = fields.key_u32().and_then(|_| fields.member()).ok_or_else(|| unreadable("key"))?;
            let end = prefix.clone().member(&cosigner).u64(u64::MAX);
            if let Some(pair) = self.descending(&prefix, &end).next() {
                notes.push(cosigned_ref(&pair?)?);
            }
            from = end.u8(0);
        }
    }

    /// Returns custody notes of one holder that end after `index`, by their end, at most `max`.
    pub(in crate::store) fn custody_after(
        &self,
        feed: FeedNumber,
        holder: &Member,
        index: u64,
        max: usize,
    ) -> Result<Vec<NoteRef>, ReadError> {
        let prefix = Key::new(keys::CUSTODY).u32(feed).member(holder);
        let from = prefix.clone().u64(index.saturating_add(1));
        self.ascending(&prefix, &from).take(max).map(|pair| key_end_ref(&pair?)).collect()
    }

    /// Returns late custody notes of one holder of time `from_time` or later, the latest first, at
    /// most `max`.
    pub(in crate::store) fn custody_late(
        &self,
        feed: FeedNumber,
        holder: &Member,
        from_time: u64,
        max: usize,
    ) -> Result<Vec<NoteRef>, ReadError> {
        let prefix = Key::new(keys::CUSTODY_LATE).u32(feed).member(holder);
        let last = NoteRef { position: Position { segment: u32::MAX, byte_offset: u32::MAX }, place: u32::MAX };
        let from = prefix.clone().u64(from_time);
        let end = prefix.clone().u64(u64::MAX).note(last);
        let late = self.descending(&prefix, &end);
        let late = late.take_while(|pair| pair.as_ref().map_or(true, |(key, _)| key.as_ref() >= from.as_ref()));
        late.take(max).map(|pair| key_end_ref(&pair?)).collect()
    }

    /// Returns, of the ranges that a holder's custody notes state as held in full, the last one
    /// that begins at or before `index`, skipping those whose start `skip` accepts. The
    /// ranges neither overlap nor touch.
    pub(in crate::store) fn held_by_before(
        &self,
        feed: FeedNumber,
        holder: &Member,
        index: u64,
        skip: impl Fn(u64) -> bool,
    ) -> Result<Option<Range<u64>>, ReadError> {
        let prefix = Key::new(keys::HELD_BY).u32(feed).member(holder);
        for pair in self.descending(&prefix, &prefix.clone().u64(index)) {
            let range = held_range(&pair?)?;
            if !skip(range.start) {
                return Ok(Some(range));
            }
        }
        Ok(None)
    }

    /// Returns the start of the first range of [`Self::held_by_before`] that begins after `index`.
    pub(in crate::store) fn held_by_after(
        &self,
        feed: FeedNumber,
        holder: &Member,
        index: u64,
    ) -> Result<Option<u64>, ReadError> {
        let prefix = Key::new(keys::HELD_BY).u32(feed).member(holder);
        let from = prefix.clone().u64(index.saturating_add(1));
        self.ascending(&prefix, &from).next().map(|pair| Ok(held_range(&pair?)?.start)).transpose()
    }

    /// Returns custody notes of one holder whose ranges contain `index`, in the order of their
    /// commits.
    pub(in crate::store) fn custody_about(
        &self,
        feed: FeedNumber,
        holder: &Member,
        index: u64,
    ) -> Result<Vec<NoteRef>, ReadError> {
        let prefix = Key::new(keys::CUSTODY).u32(feed).member(holder);
        let mut notes = Vec::new();
        for pair in self.ascending(&prefix, &prefix.clone().u64(index.saturating_add(1))).take(CUSTODY_KEYS_MAX) {
            let (key, value) = pair?;
            let found = || {
                let mut key = Fields::of_key(&key)?;
                key.key_u32()?;
                key.member()?;
                key.key_u64()?;
                Some((Fields::of_value(&value)?.u64()?, key.key_note()?))
            };
            let (start, note) = found().ok_or_else(|| unreadable("custody note"))?;
            if start <= index && notes.len() < CUSTODY_NOTES_MAX {
                notes.push(note);
            }
        }
        notes.sort_unstable();
        Ok(notes)
    }

    /// Returns the newest custody note of each holder of a feed.
    pub(in crate::store) fn custody_newest(&self, feed: FeedNumber) -> Result<Vec<NoteRef>, ReadError> {
        let prefix = Key::new(keys::CUSTODY_NEWEST).u32(feed);
        self.ascending(&prefix, &prefix).map(|pair| note_ref(&pair?.1)).collect()
    }

    /// Returns rosters by version.
    pub(in crate::store) fn rosters(&self) -> Result<Vec<(u64, NoteRef)>, ReadError> {
        let prefix = Key::new(keys::ROSTER);
        let roster = |pair: Result<Pair, ReadError>| {
            let (key, value) = pair?;
            let version =
                Fields::of_key(&key).and_then(|mut fields| fields.key_u64()).ok_or_else(|| unreadable("key"))?;
            Ok((version, note_ref(&value)?))
        };
        self.ascending(&prefix, &prefix).map(roster).collect()
    }

    /// Returns revocation lists by authority.
    pub(in crate::store) fn crls(&self) -> Result<Vec<(String, NoteRef)>, ReadError> {
        self.named(keys::CRL, note_ref)
    }

    /// Returns the fork records, by feed origin and evidence.
    pub(in crate::store) fn forks(&self) -> Result<Vec<(String, NoteRef)>, ReadError> {
        self.named(keys::FORK, note_ref)
    }

    /// Returns the named subscriptions.
    pub(in crate::store) fn subscriptions(&self) -> Result<Vec<(String, Subscription)>, ReadError> {
        self.named(keys::SUBSCRIPTION, |value| {
            keys::decode_subscription(value).ok_or_else(|| unreadable("subscription"))
        })
    }

    fn named<T>(
        &self,
        prefix: u8,
        value_of: impl Fn(&[u8]) -> Result<T, ReadError>,
    ) -> Result<Vec<(String, T)>, ReadError> {
        let prefix = Key::new(prefix);
        let named = |pair: Result<Pair, ReadError>| {
            let (key, value) = pair?;
            let name = Fields::of_key(&key)
                .and_then(|fields| std::str::from_utf8(fields.rest()).ok())
                .ok_or_else(|| unreadable("key"))?;
            Ok((name.to_string(), value_of(&value)?))
        };
        self.ascending(&prefix, &prefix).map(named).collect()
    }
}

/// Decodes the id in the key of a references block.
fn superseded_id(key: &[u8]) -> Result<Uuid, ReadError> {
    let read = || {
        let mut key = Fields::of_key(key)?;
        key.member()?;
        key.u8()?;
        key.array().map(Uuid::from_bytes)
    };
    read().ok_or_else(|| unreadable("key"))
}

fn run((key, value): &Pair) -> Result<UndisclosedRun, ReadError> {
    let run = || {
        let mut key = Fields::of_key(key)?;
        key.key_u32()?;
        let mut value = Fields::of_value(value)?;
        Some((key.key_u64()?, value.u64()?, Undisclosed::from_number(value.u8()?)?))
    };
    run().ok_or_else(|| unreadable("range"))
}

fn held_range((key, value): &Pair) -> Result<Range<u64>, ReadError> {
    let range = || {
        let mut key = Fields::of_key(key)?;
        key.key_u32()?;
        key.member()?;
        Some(key.key_u64()?..Fields::of_value(value)?.u64()?)
    };
    range().ok_or_else(|| unreadable("range held by a member"))
}

/// Decodes the reference at the end of a custody note's key.
fn key_end_ref((key, _): &Pair) -> Result<NoteRef, ReadError> {
    let found = || {
        let mut key = Fields::of_key(key)?;
        key.key_u32()?;
        key.member()?;
        key.key_u64()?;
        key.key_note()
    };
    found().ok_or_else(|| unreadable("custody note"))
}

fn note_ref(value: &[u8]) -> Result<NoteRef, ReadError> {
    Fields::of_value(value).and_then(|mut fields| fields.note()).ok_or_else(|| unreadable("reference"))
}

fn cosigned_ref((_, value): &Pair) -> Result<NoteRef, ReadError> {
    let mut fields = Fields::of_value(value).ok_or_else(|| unreadable("cosigned note"))?;
    fields.u64().and_then(|_| fields.note()).ok_or_else(|| unreadable("cosigned note"))
}
