//! Writes the index database: a batch of commits becomes one sled batch, including the cursor.
//!
//! In scope: which keys a commit writes. Out of scope: when they are written (`applier`).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use barid_core::ids::Member;
use uuid::Uuid;

use super::references::{self, REFERENCES_MAX, Referrer};
use super::{IndexDb, acks, backfills, columns, ids, priorities};
use crate::store::feed_index::{PendingCommit, Referred};
use crate::store::keys::{self, BackfillRef, ENTRY_RUNS_MAX, EntryRun, FeedNumber, IndexCursor, Key, NoteRef, Value};
use crate::store::log::Resume;
use crate::store::recent_ids::EntryRef;
use crate::store::references::Role;
use crate::store::validate::UndisclosedRun;
use crate::store::{Content, ReadError, ReferenceKind, validate};

/// The writes collected over a batch of commits.
#[derive(Default)]
struct Batch<'a> {
    /// `None`: the key is removed.
    keys: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    positions: BTreeMap<FeedNumber, Vec<EntryRun>>,
    by_offset: Vec<EntryRun>,
    columns: columns::Builder<'a>,
    ids: BTreeMap<FeedNumber, Ids<'a>>,
    references: BTreeMap<(&'a Member, ReferenceKind, Uuid), Vec<Referrer>>,
    acks: BTreeMap<&'a Referred, Vec<Referrer>>,
    priorities: BTreeMap<(FeedNumber, u64), priorities::Bucket>,
    /// Changes of the ranges that a holder's custody notes state as held in full: end by start;
    /// `None`: the range is removed.
    held_by: BTreeMap<(FeedNumber, Member), BTreeMap<u64, Option<u64>>>,
}

/// Ids of one feed.
struct Ids<'a> {
    member: &'a Member,
    places: Vec<(Uuid, EntryRef)>,
}

/// Applies commits that follow the cursor of the index database. After an error some of them are
/// applied; the cursor names the last one.
pub(in crate::store) fn apply(index_db: &IndexDb, commits: &[PendingCommit]) -> Result<(), ReadError> {
    // A commit with backfills or priority entries is applied alone, because it reads what it
    // changes from the index database.
    let backfills = |pending: &PendingCommit| !pending.backfill_feeds.is_empty() || !pending.priority_feeds.is_empty();
    commits.chunk_by(|a, b| !backfills(a) && !backfills(b)).try_for_each(|part| apply_part(index_db, part))
}

fn apply_part(index_db: &IndexDb, commits: &[PendingCommit]) -> Result<(), ReadError> {
    let Some(last) = commits.last() else { return Ok(()) };
    let mut batch = Batch::default();
    for pending in commits {
        shorten_runs(index_db, &mut batch, pending)?;
        backfill_buckets(index_db, &mut batch, pending)?;
        entries(&mut batch, pending);
        notes(index_db, &mut batch, pending)?;
        out_of_order(&mut batch, pending);
        priorities(index_db, &mut batch, pending)?;
    }
    let cursor = IndexCursor {
        resume: Resume { position: last.position, seq: last.committed.seq, hash: last.committed.hash },
        end_offset: last.committed.end_offset,
    };
    batch.keys.insert(keys::CURSOR.to_vec(), Some(cursor.encode()));
    ids(index_db, &mut batch)?;
    acks(index_db, &mut batch)?;
    let mut writes = sled::Batch::default();
    for (key, value) in batch.finish() {
        match value {
            Some(value) => writes.insert(key, value),
            None => writes.remove(key),
        }
    }
    index_db.db.apply_batch(writes).map_err(|error| index_db.failed(&error))
}

fn ids(index_db: &IndexDb, batch: &mut Batch<'_>) -> Result<(), ReadError> {
    let mut counts = index_db.id_blocks.lock();
    for Ids { member, places } in std::mem::take(&mut batch.ids).into_values() {
        let ids::Writes { blocks, overflow } = ids::writes(member, places, &mut counts);
        batch.keys.extend(blocks.into_iter().map(|(key, block)| (key, Some(block))));
        for (id, place) in overflow {
            let key = ids::overflow_key(member, id);
            let held = match batch.keys.get(&key) {
                Some(written) => written.as_deref().and_then(ids::decode_overflow),
                None => index_db.overflow(member, id)?,
            };
            let lowest = held.map_or(place, |held| held.min(place));
            batch.keys.insert(key, Some(ids::encode_overflow(&lowest)));
        }
    }
    Ok(())
}

/// Updates the Ack summaries.
fn acks(index_db: &IndexDb, batch: &mut Batch<'_>) -> Result<(), ReadError> {
    for ((member, id, role), mut referrers) in std::mem::take(&mut batch.acks) {
        let Role::Ack(issuer_hash) = role else { continue };
        referrers.sort_unstable_by_key(|referrer| (referrer.feed, referrer.offset));
        for of_feed in referrers.chunk_by(|a, b| a.feed == b.feed) {
            let key = acks::key(member, *id, of_feed[0].feed, *issuer_hash);
            let held = index_db.ack_summary(&key)?;
            let ack_summary = of_feed.iter().fold(held, |held, referrer| Some(acks::add(held, referrer)));
            batch.keys.insert(key.bytes(), ack_summary.map(acks::encode));
        }
    }
    Ok(())
}

fn entries<'a>(batch: &mut Batch<'a>, pending: &'a PendingCommit) {
    let committed = &pending.committed;
    let at = |place: u32| NoteRef { position: pending.position, place };
    let mut offset = committed.first_offset;
    for ((append, feed), place) in committed.commit.appends.iter().zip(&pending.append_feeds).zip(0..) {
        if append.entries.is_empty() {
            continue;
        }
        let count = u32::try_from(append.entries.len()).unwrap_or(u32::MAX);
        batch.positions.entry(*feed).or_default().push(EntryRun { first: append.first, count, at: at(place) });
        let ids = batch.ids.entry(*feed).or_insert_with(|| Ids { member: &append.feed.member, places: Vec::new() });
        for (index, entry) in (append.first..).zip(&append.entries) {
            let Content::Disclosed { header, .. } = &entry.content else { continue };
            if let Some(id) = validate::id_of(&append.feed, header.as_deref()) {
                ids.places.push((id, EntryRef { epoch: append.feed.epoch, index, feed: *feed, offset }));
            }
            batch.columns.push(offset, header.as_deref());
            offset += 1;
        }
    }
    for (backfill, feed) in committed.commit.backfills.iter().zip(&pending.backfill_feeds) {
        let ids = batch.ids.entry(*feed).or_insert_with(|| Ids { member: &backfill.feed.member, places: Vec::new() });
        for (index, entry) in &backfill.entries {
            let Content::Disclosed { header, .. } = &entry.content else { continue };
            if let Some(id) = validate::id_of(&backfill.feed, header.as_deref()) {
                ids.places.push((id, EntryRef { epoch: backfill.feed.epoch, index: *index, feed: *feed, offset }));
            }
            batch.columns.push(offset, header.as_deref());
            offset += 1;
        }
    }
    for (priority, feed) in committed.commit.priority.iter().zip(&pending.priority_feeds) {
        let Content::Disclosed { header, .. } = &priority.entry.content else { continue };
        let ids = batch.ids.entry(*feed).or_insert_with(|| Ids { member: &priority.feed.member, places: Vec::new() });
        if let Some(id) = validate::id_of(&priority.feed, header.as_deref()) {
            ids.places.push((id, EntryRef { epoch: priority.feed.epoch, index: priority.index, feed: *feed, offset }));
        }
        batch.columns.push(offset, header.as_deref());
        offset += 1;
    }
    if let Some(count) = u32::try_from(offset - committed.first_offset).ok().filter(|count| *count > 0) {
        batch.by_offset.push(EntryRun { first: committed.first_offset, count, at: at(0) });
    }
    for (referred, referrer) in &pending.references {
        match referred {
            (member, id, Role::Other(kind)) => {
                batch.references.entry((member, *kind, *id)).or_default().push(*referrer);
            }
            (.., Role::Ack(_)) => batch.acks.entry(referred).or_default().push(*referrer),
        }
    }
    for (feed, row) in &pending.rows {
        batch.put(Key::new(keys::FEED).u32(*feed), row.encode());
    }
    for (feed, run) in &pending.runs {
        batch.run(*feed, *run);
    }
    for (feed, id, tile) in &pending.tiles {
        batch.put(Key::new(keys::TILE).u32(*feed).tile(*id), Value::new().raw(&tile.to_bytes()).bytes());
    }
}

/// Removes backfilled entries from the runs held as digests only.
fn shorten_runs(index_db: &IndexDb, batch: &mut Batch<'_>, pending: &PendingCommit) -> Result<(), ReadError> {
    for (backfill, feed) in pending.committed.commit.backfills.iter().zip(&pending.backfill_feeds) {
        // Changed runs by start; `None`: the run is removed.
        let mut changed: BTreeMap<u64, Option<UndisclosedRun>> = BTreeMap::new();
        for (index, _) in &backfill.entries {
            let made = changed.range(..=*index).rev().find_map(|(_, run)| *run);
            let held = index_db.run_before(*feed, *index, |start| changed.contains_key(&start))?;
            let run = made.into_iter().chain(held).max_by_key(|(start, ..)| *start);
            let Some(run) = run.filter(|(_, end, _)| index < end) else { continue };
            changed.insert(run.0, None);
            changed.extend(validate::split_run(run, *index).map(|left| (left.0, Some(left))));
        }
        for (start, run) in changed {
            match run {
                Some(run) => batch.run(*feed, run),
                None => _ = batch.keys.insert(Key::new(keys::NOT_HELD).u32(*feed).u64(start).bytes(), None),
            }
        }
    }
    Ok(())
}

/// Writes the places of backfilled and out-of-order content.
fn backfill_buckets(index_db: &IndexDb, batch: &mut Batch<'_>, pending: &PendingCommit) -> Result<(), ReadError> {
    for ((backfill, feed), place) in pending.committed.commit.backfills.iter().zip(&pending.backfill_feeds).zip(0..) {
        let at = NoteRef { position: pending.position, place };
        let slots: Vec<(u64, BackfillRef)> =
            backfill.entries.iter().zip(0..).map(|((index, _), slot)| (*index, BackfillRef { at, slot })).collect();
        for group in slots.chunk_by(|(a, _), (b, _)| backfills::bucket_of(*a) == backfills::bucket_of(*b)) {
            let number = backfills::bucket_of(group[0].0);
            let mut bucket = index_db.backfilled(*feed, number)?;
            bucket.extend(group.iter().copied());
            batch.put(Key::new(keys::BACKFILL).u32(*feed).u64(number), backfills::encode(&bucket));
        }
    }
    let places = u32::try_from(pending.committed.commit.backfills.len()).unwrap_or(u32::MAX)..;
    let priority = pending.committed.commit.priority.iter().zip(&pending.priority_feeds).zip(places);
    let mut buckets: BTreeMap<(FeedNumber, u64), BTreeMap<u64, BackfillRef>> = BTreeMap::new();
    for ((priority, feed), place) in priority {
        let number = backfills::bucket_of(priority.index);
        let bucket = match buckets.entry((*feed, number)) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(place) => {
                // A backfill of the same commit may be in the same bucket.
                let key = Key::new(keys::BACKFILL).u32(*feed).u64(number).bytes();
                let made = batch.keys.get(&key).and_then(|value| backfills::decode(number, value.as_ref()?));
                place.insert(made.map_or_else(|| index_db.backfilled(*feed, number), Ok)?)
            }
        };
        bucket.insert(priority.index, BackfillRef { at: NoteRef { position: pending.position, place }, slot: 0 });
    }
    for ((feed, number), bucket) in buckets {
        batch.put(Key::new(keys::BACKFILL).u32(feed).u64(number), backfills::encode(&bucket));
    }
    Ok(())
}

/// Writes the entries held out of order, and removes those that were reached or displaced.
fn out_of_order(batch: &mut Batch<'_>, pending: &PendingCommit) {
    for (feed, index) in &pending.matched {
        batch.keys.insert(Key::new(keys::OUT_OF_ORDER).u32(*feed).u64(*index).bytes(), None);
    }
    let places = u32::try_from(pending.committed.commit.backfills.len()).unwrap_or(u32::MAX)..;
    for ((priority, feed), place) in pending.committed.commit.priority.iter().zip(&pending.priority_feeds).zip(places) {
        let at = NoteRef { position: pending.position, place };
        let since_ms = pending.committed.commit.time_unix_ms;
        let value = Value::new().raw(&priority.entry.digest.0).note(at).u32(0).u64(since_ms);
        batch.put(Key::new(keys::OUT_OF_ORDER).u32(*feed).u64(priority.index), value.bytes());
    }
}

fn priorities(index_db: &IndexDb, batch: &mut Batch<'_>, pending: &PendingCommit) -> Result<(), ReadError> {
    for (feed, index, kind) in &pending.priorities {
        let number = priorities::bucket_of(*index);
        let bucket = match batch.priorities.entry((*feed, number)) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(place) => place.insert(index_db.priority_bucket(*feed, number)?),
        };
        bucket.insert(*index, *kind);
    }
    Ok(())
}

fn notes(index_db: &IndexDb, batch: &mut Batch<'_>, pending: &PendingCommit) -> Result<(), ReadError> {
    let commit = &pending.committed.commit;
    let at = |place: u32| NoteRef { position: pending.position, place };
    for ((cosigned, feed), place) in commit.cosigned.iter().zip(&pending.cosigned_feeds).zip(0..) {
        let key = Key::new(keys::COSIGNED).u32(*feed).member(&cosigned.cosigner).u64(cosigned.size).bytes();
        // If a cosigner has several for one size, the first is stored.
        if index_db.get(&key)?.is_none() {
            let value = || Some(Value::new().u64(cosigned.time).note(at(place)).bytes());
            batch.keys.entry(key).or_insert_with(value);
        }
    }
    for ((custody, (feed, order)), place) in commit.custody.iter().zip(&pending.custody_feeds).zip(0..) {
        let holder = |prefix| Key::new(prefix).u32(*feed).member(&custody.holder);
        let start = Value::new().u64(custody.range.start).bytes();
        batch.put(holder(keys::CUSTODY).u64(custody.range.end).note(at(place)), start);
        if order.newest {
            batch.put(holder(keys::CUSTODY_NEWEST), Value::new().note(at(place)).bytes());
        }
        if order.late {
            batch.put(holder(keys::CUSTODY_LATE).u64(custody.time).note(at(place)), Value::new().bytes());
        }
        let changed = batch.held_by.entry((*feed, custody.holder.clone())).or_default();
        for range in custody.held() {
            merge_held(index_db, changed, *feed, &custody.holder, range)?;
        }
    }
    for (roster, place) in commit.rosters.iter().zip(0..) {
        batch.put(Key::new(keys::ROSTER).u64(roster.version), Value::new().note(at(place)).bytes());
    }
    for (crl, place) in commit.crls.iter().zip(0..) {
        batch.put(Key::new(keys::CRL).name(&crl.authority), Value::new().note(at(place)).bytes());
    }
    for (fork, place) in commit.forks.iter().zip(0..) {
        batch.put(Key::new(keys::FORK).name(&fork.key()), Value::new().note(at(place)).bytes());
    }
    for (name, subscription) in &pending.subscriptions {
        let value = subscription.as_ref().map(keys::encode_subscription);
        batch.keys.insert(Key::new(keys::SUBSCRIPTION).name(name).bytes(), value);
    }
    Ok(())
}

/// Adds a range to those that a holder holds in full, and merges it with ranges that it overlaps or
/// touches.
fn merge_held(
    index_db: &IndexDb,
    changed: &mut BTreeMap<u64, Option<u64>>,
    feed: FeedNumber,
    holder: &Member,
    mut range: Range<u64>,
) -> Result<(), ReadError> {
    loop {
        let made = changed.range(..=range.end).rev().find_map(|(start, end)| end.map(|end| *start..end));
        let held = index_db.held_by_before(feed, holder, range.end, |start| changed.contains_key(&start))?;
        let last = made.into_iter().chain(held).max_by_key(|held| held.start);
        let Some(joined) = last.filter(|held| held.end >= range.start) else { break };
        changed.insert(joined.start, None);
        range = range.start.min(joined.start)..range.end.max(joined.end);
    }
    changed.insert(range.start, Some(range.end));
    Ok(())
}

impl Batch<'_> {
    fn put(&mut self, key: Key, value: Vec<u8>) {
        self.keys.insert(key.bytes(), Some(value));
    }

    fn run(&mut self, feed: FeedNumber, (start, end, reason): UndisclosedRun) {
        let value = Value::new().u64(end).u8(reason.number()).bytes();
        self.put(Key::new(keys::NOT_HELD).u32(feed).u64(start), value);
    }

    fn finish(mut self) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
        for (feed, entry_runs) in std::mem::take(&mut self.positions) {
            for block in entry_runs.chunks(ENTRY_RUNS_MAX) {
                self.put(Key::new(keys::POSITION).u32(feed).u64(block[0].first), EntryRun::encode(block));
            }
        }
        for block in std::mem::take(&mut self.by_offset).chunks(ENTRY_RUNS_MAX) {
            self.put(Key::new(keys::OFFSET).u64(block[0].first), EntryRun::encode(block));
        }
        for (first, block) in std::mem::take(&mut self.columns).finish() {
            self.put(Key::new(keys::COLUMNS).u64(first), block);
        }
        for ((member, kind, id), referrers) in std::mem::take(&mut self.references) {
            for block in referrers.chunks(REFERENCES_MAX) {
                let key = Key::new(keys::REFERENCE).member(member).kind(kind).id(id).u64(block[0].offset);
                self.put(key, references::encode(block));
            }
        }
        for ((feed, holder), changed) in std::mem::take(&mut self.held_by) {
            for (start, end) in changed {
                let key = Key::new(keys::HELD_BY).u32(feed).member(&holder).u64(start).bytes();
                self.keys.insert(key, end.map(|end| Value::new().u64(end).bytes()));
            }
        }
        for ((feed, number), bucket) in std::mem::take(&mut self.priorities) {
            self.put(Key::new(keys::PRIORITY).u32(feed).u64(number), bucket.encode());
        }
        self.keys
    }
}
