//! Writing the view: a batch of commits becomes one batch of keys, with the cursor in it.
//!
//! In scope: which keys a commit writes. Out of scope: when (`applier`).

use std::collections::BTreeMap;

use barid_core::names::Member;
use uuid::Uuid;

use super::references::{self, REFERENCES_MAX, Referrer};
use super::{View, columns, ids};
use crate::store::keys::{self, Cursor, FeedNumber, Key, NoteRef, STRETCHES_MAX, Stretch, Value};
use crate::store::log::Resume;
use crate::store::recent_ids::Place;
use crate::store::state::{Pending, Referred};
use crate::store::{Content, ReadError, admit};

/// What is collected over a batch.
#[derive(Default)]
struct Batch<'a> {
    keys: BTreeMap<Vec<u8>, Vec<u8>>,
    positions: BTreeMap<FeedNumber, Vec<Stretch>>,
    arrivals: Vec<Stretch>,
    columns: columns::Builder<'a>,
    ids: BTreeMap<FeedNumber, Ids<'a>>,
    references: BTreeMap<&'a Referred, Vec<Referrer>>,
}

/// Ids of one feed.
struct Ids<'a> {
    member: &'a Member,
    places: Vec<(Uuid, Place)>,
}

/// Takes in commits that follow what the view holds, all or nothing.
pub(in crate::store) fn apply(view: &View, commits: &[Pending]) -> Result<(), ReadError> {
    let Some(last) = commits.last() else { return Ok(()) };
    let mut batch = Batch::default();
    for pending in commits {
        entries(&mut batch, pending);
        notes(view, &mut batch, pending)?;
    }
    let cursor = Cursor {
        resume: Resume { position: last.position, seq: last.committed.seq, hash: last.hash },
        end_arrival: last.committed.end_arrival,
    };
    batch.keys.insert(keys::CURSOR.to_vec(), cursor.encode());
    let mut writes = sled::Batch::default();
    for (key, value) in batch.finish() {
        writes.insert(key, value);
    }
    view.db.apply_batch(writes).map_err(|error| view.failed(&error))
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
    if let Some(count) = u32::try_from(arrival - committed.first_arrival).ok().filter(|count| *count > 0) {
        batch.arrivals.push(Stretch { first: committed.first_arrival, count, at: at(0) });
    }
    for (referred, referrer) in &pending.references {
        batch.references.entry(referred).or_default().push(*referrer);
    }
    for (feed, row) in &pending.rows {
        batch.keys.insert(Key::new(keys::FEED).u32(*feed).bytes(), row.encode());
    }
    for (feed, (start, end, reason)) in &pending.runs {
        batch.keys.insert(
            Key::new(keys::NOT_HELD).u32(*feed).u64(*start).bytes(),
            Value::new().u64(*end).u8(reason.number()).bytes(),
        );
    }
    for (feed, id, tile) in &pending.tiles {
        batch
            .keys
            .insert(Key::new(keys::TILE).u32(*feed).tile(*id).bytes(), Value::new().raw(&tile.to_bytes()).bytes());
    }
}

fn notes(view: &View, batch: &mut Batch<'_>, pending: &Pending) -> Result<(), ReadError> {
    let commit = &pending.committed.commit;
    let at = |place: u32| NoteRef { position: pending.position, place };
    for ((cosigned, feed), place) in commit.cosigned.iter().zip(&pending.cosigned_feeds).zip(0..) {
        let key = Key::new(keys::COSIGNED).u32(*feed).member(&cosigned.cosigner).u64(cosigned.size).bytes();
        // Of several for one size the first is kept.
        if view.get(&key)?.is_none() {
            batch.keys.entry(key).or_insert_with(|| Value::new().u64(cosigned.time).note(at(place)).bytes());
        }
    }
    for ((custody, feed), place) in commit.custody.iter().zip(&pending.custody_feeds).zip(0..) {
        let key = Key::new(keys::CUSTODY).u32(*feed).member(&custody.holder).u64(custody.range.end).note(at(place));
        batch.keys.insert(key.bytes(), Value::new().u64(custody.range.start).bytes());
        let key = Key::new(keys::CUSTODY_NEWEST).u32(*feed).member(&custody.holder);
        batch.keys.insert(key.bytes(), Value::new().note(at(place)).bytes());
    }
    for (roster, place) in commit.rosters.iter().zip(0..) {
        batch.keys.insert(Key::new(keys::ROSTER).u64(roster.version).bytes(), Value::new().note(at(place)).bytes());
    }
    for (crl, place) in commit.crls.iter().zip(0..) {
        batch.keys.insert(Key::new(keys::CRL).name(&crl.authority).bytes(), Value::new().note(at(place)).bytes());
    }
    for cursor in &commit.cursors {
        batch.keys.insert(
            Key::new(keys::SUBSCRIPTION).name(&cursor.subscription).bytes(),
            Value::new().u64(cursor.arrival).bytes(),
        );
    }
    Ok(())
}

impl Batch<'_> {
    fn finish(self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut all = self.keys;
        for (feed, stretches) in &self.positions {
            for block in stretches.chunks(STRETCHES_MAX) {
                all.insert(Key::new(keys::POSITION).u32(*feed).u64(block[0].first).bytes(), Stretch::encode(block));
            }
        }
        for block in self.arrivals.chunks(STRETCHES_MAX) {
            all.insert(Key::new(keys::ARRIVAL).u64(block[0].first).bytes(), Stretch::encode(block));
        }
        all.extend(
            self.columns.finish().into_iter().map(|(first, block)| (Key::new(keys::COLUMNS).u64(first).bytes(), block)),
        );
        for ((member, id, how), referrers) in &self.references {
            for block in referrers.chunks(REFERENCES_MAX) {
                let key = Key::new(keys::REFERENCE).member(member).id(*id).how(*how).u64(block[0].arrival);
                all.insert(key.bytes(), references::encode(block));
            }
        }
        for found in self.ids.into_values() {
            all.extend(ids::blocks(found.member, found.places));
        }
        all
    }
}
