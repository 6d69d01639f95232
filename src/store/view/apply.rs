//! Writing the view: a batch of commits becomes one batch of keys, with the cursor in it.
//!
//! In scope: which keys a commit writes. Out of scope: when (`applier`).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use barid_core::names::Member;
use uuid::Uuid;

use super::references::{self, REFERENCES_MAX, Referrer};
use super::{View, answers, columns, fills, ids, urgent};
use crate::store::admit::Run;
use crate::store::keys::{self, Cursor, FeedNumber, FillAt, Key, NoteRef, STRETCHES_MAX, Stretch, Value};
use crate::store::log::Resume;
use crate::store::recent_ids::Place;
use crate::store::references::Role;
use crate::store::state::{Pending, Referred};
use crate::store::{Content, ReadError, Refers, admit};

/// What is collected over a batch.
#[derive(Default)]
struct Batch<'a> {
    /// `None`: removed.
    keys: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    positions: BTreeMap<FeedNumber, Vec<Stretch>>,
    arrivals: Vec<Stretch>,
    columns: columns::Builder<'a>,
    ids: BTreeMap<FeedNumber, Ids<'a>>,
    references: BTreeMap<(&'a Member, Refers, Uuid), Vec<Referrer>>,
    answers: BTreeMap<&'a Referred, Vec<Referrer>>,
    urgent: BTreeMap<(FeedNumber, u64), urgent::Bucket>,
    /// Ranges held in full by a holder of custody notes, as they become: end by start, `None` for one that is no more.
    held_by: BTreeMap<(FeedNumber, Member), BTreeMap<u64, Option<u64>>>,
}

/// Ids of one feed.
struct Ids<'a> {
    member: &'a Member,
    places: Vec<(Uuid, Place)>,
}

/// Takes in commits that follow what the view holds. After an error the view holds some of them, and says up to which.
pub(in crate::store) fn apply(view: &View, commits: &[Pending]) -> Result<(), ReadError> {
    // What a fill changes must be in the view before: such a commit is taken in alone.
    let fills = |pending: &Pending| !pending.fill_feeds.is_empty() || !pending.express_feeds.is_empty();
    commits.chunk_by(|a, b| !fills(a) && !fills(b)).try_for_each(|part| apply_part(view, part))
}

fn apply_part(view: &View, commits: &[Pending]) -> Result<(), ReadError> {
    let Some(last) = commits.last() else { return Ok(()) };
    let mut batch = Batch::default();
    for pending in commits {
        shorten_runs(view, &mut batch, pending)?;
        fill_buckets(view, &mut batch, pending)?;
        entries(&mut batch, pending);
        notes(view, &mut batch, pending)?;
        ahead(&mut batch, pending);
        urgent(view, &mut batch, pending)?;
    }
    let cursor = Cursor {
        resume: Resume { position: last.position, seq: last.committed.seq, hash: last.committed.hash },
        end_arrival: last.committed.end_arrival,
    };
    batch.keys.insert(keys::CURSOR.to_vec(), Some(cursor.encode()));
    ids(view, &mut batch)?;
    answers(view, &mut batch)?;
    let mut writes = sled::Batch::default();
    for (key, value) in batch.finish() {
        match value {
            Some(value) => writes.insert(key, value),
            None => writes.remove(key),
        }
    }
    view.db.apply_batch(writes).map_err(|error| view.failed(&error))
}

fn ids(view: &View, batch: &mut Batch<'_>) -> Result<(), ReadError> {
    let mut counts = view.id_blocks.lock();
    for Ids { member, places } in std::mem::take(&mut batch.ids).into_values() {
        let ids::Writes { blocks, alone } = ids::writes(member, places, &mut counts);
        batch.keys.extend(blocks.into_iter().map(|(key, block)| (key, Some(block))));
        for (id, place) in alone {
            let key = ids::key_alone(member, id);
            let held = match batch.keys.get(&key) {
                Some(written) => written.as_deref().and_then(ids::decode_alone),
                None => view.alone(member, id)?,
            };
            let lowest = held.map_or(place, |held| held.min(place));
            batch.keys.insert(key, Some(ids::encode_alone(&lowest)));
        }
    }
    Ok(())
}

/// Adds to what each person has answered.
fn answers(view: &View, batch: &mut Batch<'_>) -> Result<(), ReadError> {
    for ((member, id, role), mut referrers) in std::mem::take(&mut batch.answers) {
        let Role::Answer(person) = role else { continue };
        referrers.sort_unstable_by_key(|referrer| (referrer.feed, referrer.arrival));
        for of_feed in referrers.chunk_by(|a, b| a.feed == b.feed) {
            let key = answers::key(member, *id, of_feed[0].feed, *person);
            let held = view.answered(&key)?;
            let answered = of_feed.iter().fold(held, |held, referrer| Some(answers::add(held, referrer)));
            batch.keys.insert(key.bytes(), answered.map(answers::encode));
        }
    }
    Ok(())
}

fn entries<'a>(batch: &mut Batch<'a>, pending: &'a Pending) {
    let committed = &pending.committed;
    let at = |place: u32| NoteRef { position: pending.position, place };
    let mut arrival = committed.first_arrival;
    for ((append, feed), place) in committed.commit.appends.iter().zip(&pending.append_feeds).zip(0..) {
        if append.entries.is_empty() {
            continue;
        }
        let count = u32::try_from(append.entries.len()).unwrap_or(u32::MAX);
        batch.positions.entry(*feed).or_default().push(Stretch { first: append.first, count, at: at(place) });
        let ids = batch.ids.entry(*feed).or_insert_with(|| Ids { member: &append.feed.member, places: Vec::new() });
        for (index, entry) in (append.first..).zip(&append.entries) {
            let Content::Disclosed { header, .. } = &entry.content else { continue };
            if let Some(id) = admit::id_of(&append.feed, header.as_deref()) {
                ids.places.push((id, Place { epoch: append.feed.epoch, index, feed: *feed, arrival }));
            }
            batch.columns.push(arrival, header.as_deref());
            arrival += 1;
        }
    }
    for (fill, feed) in committed.commit.fills.iter().zip(&pending.fill_feeds) {
        let ids = batch.ids.entry(*feed).or_insert_with(|| Ids { member: &fill.feed.member, places: Vec::new() });
        for (index, entry) in &fill.entries {
            let Content::Disclosed { header, .. } = &entry.content else { continue };
            if let Some(id) = admit::id_of(&fill.feed, header.as_deref()) {
                ids.places.push((id, Place { epoch: fill.feed.epoch, index: *index, feed: *feed, arrival }));
            }
            batch.columns.push(arrival, header.as_deref());
            arrival += 1;
        }
    }
    for (express, feed) in committed.commit.express.iter().zip(&pending.express_feeds) {
        let Content::Disclosed { header, .. } = &express.entry.content else { continue };
        let ids = batch.ids.entry(*feed).or_insert_with(|| Ids { member: &express.feed.member, places: Vec::new() });
        if let Some(id) = admit::id_of(&express.feed, header.as_deref()) {
            ids.places.push((id, Place { epoch: express.feed.epoch, index: express.index, feed: *feed, arrival }));
        }
        batch.columns.push(arrival, header.as_deref());
        arrival += 1;
    }
    if let Some(count) = u32::try_from(arrival - committed.first_arrival).ok().filter(|count| *count > 0) {
        batch.arrivals.push(Stretch { first: committed.first_arrival, count, at: at(0) });
    }
    for (referred, referrer) in &pending.references {
        match referred {
            (member, id, Role::Other(how)) => {
                batch.references.entry((member, *how, *id)).or_default().push(*referrer);
            }
            (.., Role::Answer(_)) => batch.answers.entry(referred).or_default().push(*referrer),
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

/// Takes what is filled in out of the ranges held as digests only.
fn shorten_runs(view: &View, batch: &mut Batch<'_>, pending: &Pending) -> Result<(), ReadError> {
    for (fill, feed) in pending.committed.commit.fills.iter().zip(&pending.fill_feeds) {
        // Runs as they become: by start, `None` for one that is no more.
        let mut changed: BTreeMap<u64, Option<Run>> = BTreeMap::new();
        for (index, _) in &fill.entries {
            let made = changed.range(..=*index).rev().find_map(|(_, run)| *run);
            let held = view.run_before(*feed, *index, |start| changed.contains_key(&start))?;
            let run = made.into_iter().chain(held).max_by_key(|(start, ..)| *start);
            let Some(run) = run.filter(|(_, end, _)| index < end) else { continue };
            changed.insert(run.0, None);
            changed.extend(admit::split_run(run, *index).map(|left| (left.0, Some(left))));
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

/// Notes where the content of what is filled in is.
fn fill_buckets(view: &View, batch: &mut Batch<'_>, pending: &Pending) -> Result<(), ReadError> {
    for ((fill, feed), place) in pending.committed.commit.fills.iter().zip(&pending.fill_feeds).zip(0..) {
        let at = NoteRef { position: pending.position, place };
        let slots: Vec<(u64, FillAt)> =
            fill.entries.iter().zip(0..).map(|((index, _), slot)| (*index, FillAt { at, slot })).collect();
        for group in slots.chunk_by(|(a, _), (b, _)| fills::bucket_of(*a) == fills::bucket_of(*b)) {
            let number = fills::bucket_of(group[0].0);
            let mut bucket = view.filled(*feed, number)?;
            bucket.extend(group.iter().copied());
            batch.put(Key::new(keys::FILLED).u32(*feed).u64(number), fills::encode(&bucket));
        }
    }
    let places = u32::try_from(pending.committed.commit.fills.len()).unwrap_or(u32::MAX)..;
    let express = pending.committed.commit.express.iter().zip(&pending.express_feeds).zip(places);
    let mut buckets: BTreeMap<(FeedNumber, u64), BTreeMap<u64, FillAt>> = BTreeMap::new();
    for ((express, feed), place) in express {
        let number = fills::bucket_of(express.index);
        let bucket = match buckets.entry((*feed, number)) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(place) => {
                // A fill of the same commit may be in the same bucket.
                let key = Key::new(keys::FILLED).u32(*feed).u64(number).bytes();
                let made = batch.keys.get(&key).and_then(|value| fills::decode(number, value.as_ref()?));
                place.insert(made.map_or_else(|| view.filled(*feed, number), Ok)?)
            }
        };
        bucket.insert(express.index, FillAt { at: NoteRef { position: pending.position, place }, slot: 0 });
    }
    for ((feed, number), bucket) in buckets {
        batch.put(Key::new(keys::FILLED).u32(feed).u64(number), fills::encode(&bucket));
    }
    Ok(())
}

/// What is held ahead of the order, and what is no longer.
fn ahead(batch: &mut Batch<'_>, pending: &Pending) {
    for (feed, index) in &pending.matched {
        batch.keys.insert(Key::new(keys::AHEAD).u32(*feed).u64(*index).bytes(), None);
    }
    let places = u32::try_from(pending.committed.commit.fills.len()).unwrap_or(u32::MAX)..;
    for ((express, feed), place) in pending.committed.commit.express.iter().zip(&pending.express_feeds).zip(places) {
        let at = NoteRef { position: pending.position, place };
        let since_ms = pending.committed.commit.time_unix_ms;
        let value = Value::new().raw(&express.entry.digest.0).note(at).u32(0).u64(since_ms);
        batch.put(Key::new(keys::AHEAD).u32(*feed).u64(express.index), value.bytes());
    }
}

fn urgent(view: &View, batch: &mut Batch<'_>, pending: &Pending) -> Result<(), ReadError> {
    for (feed, index, how) in &pending.urgent {
        let number = urgent::bucket_of(*index);
        let bucket = match batch.urgent.entry((*feed, number)) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(place) => place.insert(view.urgent_bucket(*feed, number)?),
        };
        bucket.insert(*index, *how);
    }
    Ok(())
}

fn notes(view: &View, batch: &mut Batch<'_>, pending: &Pending) -> Result<(), ReadError> {
    let commit = &pending.committed.commit;
    let at = |place: u32| NoteRef { position: pending.position, place };
    for ((cosigned, feed), place) in commit.cosigned.iter().zip(&pending.cosigned_feeds).zip(0..) {
        let key = Key::new(keys::COSIGNED).u32(*feed).member(&cosigned.cosigner).u64(cosigned.size).bytes();
        // Of several for one size the first is kept.
        if view.get(&key)?.is_none() {
            let value = || Some(Value::new().u64(cosigned.time).note(at(place)).bytes());
            batch.keys.entry(key).or_insert_with(value);
        }
    }
    for ((custody, (feed, standing)), place) in commit.custody.iter().zip(&pending.custody_feeds).zip(0..) {
        let holder = |prefix| Key::new(prefix).u32(*feed).member(&custody.holder);
        let start = Value::new().u64(custody.range.start).bytes();
        batch.put(holder(keys::CUSTODY).u64(custody.range.end).note(at(place)), start);
        if standing.newest {
            batch.put(holder(keys::CUSTODY_NEWEST), Value::new().note(at(place)).bytes());
        }
        if standing.late {
            batch.put(holder(keys::CUSTODY_LATE).u64(custody.time).note(at(place)), Value::new().bytes());
        }
        let changed = batch.held_by.entry((*feed, custody.holder.clone())).or_default();
        for range in custody.held() {
            merge_held(view, changed, *feed, &custody.holder, range)?;
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

/// Adds a range to those that a holder holds in full: what it overlaps or touches becomes one with it.
fn merge_held(
    view: &View,
    changed: &mut BTreeMap<u64, Option<u64>>,
    feed: FeedNumber,
    holder: &Member,
    mut range: Range<u64>,
) -> Result<(), ReadError> {
    loop {
        let made = changed.range(..=range.end).rev().find_map(|(start, end)| end.map(|end| *start..end));
        let held = view.held_by_before(feed, holder, range.end, |start| changed.contains_key(&start))?;
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

    fn run(&mut self, feed: FeedNumber, (start, end, reason): Run) {
        let value = Value::new().u64(end).u8(reason.number()).bytes();
        self.put(Key::new(keys::NOT_HELD).u32(feed).u64(start), value);
    }

    fn finish(mut self) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
        for (feed, stretches) in std::mem::take(&mut self.positions) {
            for block in stretches.chunks(STRETCHES_MAX) {
                self.put(Key::new(keys::POSITION).u32(feed).u64(block[0].first), Stretch::encode(block));
            }
        }
        for block in std::mem::take(&mut self.arrivals).chunks(STRETCHES_MAX) {
            self.put(Key::new(keys::ARRIVAL).u64(block[0].first), Stretch::encode(block));
        }
        for (first, block) in std::mem::take(&mut self.columns).finish() {
            self.put(Key::new(keys::COLUMNS).u64(first), block);
        }
        for ((member, how, id), referrers) in std::mem::take(&mut self.references) {
            for block in referrers.chunks(REFERENCES_MAX) {
                let key = Key::new(keys::REFERENCE).member(member).how(how).id(id).u64(block[0].arrival);
                self.put(key, references::encode(block));
            }
        }
        for ((feed, holder), changed) in std::mem::take(&mut self.held_by) {
            for (start, end) in changed {
                let key = Key::new(keys::HELD_BY).u32(feed).member(&holder).u64(start).bytes();
                self.keys.insert(key, end.map(|end| Value::new().u64(end).bytes()));
            }
        }
        for ((feed, number), bucket) in std::mem::take(&mut self.urgent) {
            self.put(Key::new(keys::URGENT).u32(feed).u64(number), bucket.encode());
        }
        self.keys
    }
}
