//! What comes of other members' feeds, in the commit that takes it in, with what this node says of it.
//!
//! In scope: entries that continue a feed, content that comes later, cosignatures and custody notes. Out of scope: verifying (`core`),
//! and what else is in a commit (`run`).

use std::ops::Range;

use barid_core::feed::checkpoint::Checkpoint;
use barid_core::feed::cosignature::cosign;
use barid_core::feed::custody::CustodyNote;
use barid_core::feed::tree::Frontier;
use barid_core::follow::{VerifiedBatch, VerifiedContent};
use barid_core::limits::BATCH_ENTRIES_MAX;
use barid_core::names::{Member, Undisclosed};
use tokio::sync::oneshot;

use super::run::{Group, Release, Writer};
use super::{Appended, CommitFailure, Filled, Filling, Gate, Keys, Permit, checkpoint_of, is_behind, later, owns};
use crate::store::{Append, Content, Cosigned, CustodyRecord, Fill, NewEntry};

/// Ranges held as digests after which a custody note is made although the feed has not reached its checkpoint: what has not been spoken of
/// stays small in memory, and one note can list it. While the clock is behind no note is made, and a feed with as many waits.
const NOT_HELD_MAX: usize = 512;
/// Ranges held as digests that no note has spoken of yet, at most: these and those of one more batch.
pub(super) const UNSPOKEN_RANGES_MAX: usize = NOT_HELD_MAX + BATCH_ENTRIES_MAX;

impl Writer {
    pub(super) fn take_append(
        &self,
        group: &mut Group,
        batch: VerifiedBatch,
        reply: oneshot::Sender<Result<Appended, CommitFailure>>,
        permit: Permit,
    ) {
        let VerifiedBatch { feed, first, entries, frontier, checkpoint, consistency_proof, .. } = batch;
        let held = group.edges.get(&feed).or_else(|| self.edges.get(&feed)).map_or(0, Frontier::size);
        let own = owns(&self.shared.feed.member, &feed);
        // Its own feed a node takes from others only where it does not continue it itself.
        let continued = feed == self.shared.feed
            && (group.own_edge.is_some() || !matches!(*self.shared.gate.borrow(), Gate::InDoubt(_)));
        if held != first || continued {
            let _ = reply.send(Err(CommitFailure::Stale { held, first }));
            return;
        }
        let me = &self.shared.feed.member;
        let progress = group
            .custodies
            .entry(feed.clone())
            .or_insert_with(|| self.custodies.get(&feed).cloned().unwrap_or_default());
        let (seconds, _) = self.shared.now();
        let time = later(seconds, group.last_time);
        let behind = is_behind(time, seconds);
        if behind && progress.not_held.len() >= NOT_HELD_MAX {
            let _ = reply.send(Err(CommitFailure::ClockBehind));
            return;
        }
        let mut new = Vec::with_capacity(entries.len());
        for (index, entry) in (first..).zip(entries) {
            let content = match entry.content {
                VerifiedContent::Disclosed { envelope, header } => {
                    group.bytes += envelope.len();
                    Content::Disclosed { envelope, header }
                }
                VerifiedContent::Undisclosed(reason) => {
                    if !own {
                        note_not_held(&mut progress.not_held, index, reason);
                    }
                    Content::Undisclosed(reason)
                }
            };
            group.entries += 1;
            new.push(NewEntry { digest: entry.digest, content });
        }
        let size = frontier.size();
        let mut appended = Appended { size, cosigned: None, custody: Vec::new() };
        // What a node says of its own feed witnesses nothing.
        let complete = !own && checkpoint.checkpoint.size == size && checkpoint.checkpoint.root == frontier.root();
        if complete && !behind {
            group.last_time = time;
            // The key's name and kind were checked on start.
            appended.cosigned = cosign(&checkpoint, &self.keys.mirror, time).ok();
            group.commit.cosigned.extend(appended.cosigned.clone().map(|note| Cosigned {
                feed: feed.clone(),
                cosigner: me.clone(),
                size,
                time,
                note,
            }));
        }
        // What is not spoken of while the clock is behind is spoken of by the first note after it.
        if !behind && (complete || progress.not_held.len() >= NOT_HELD_MAX) {
            group.last_time = time;
            let tree = checkpoint_of(&feed, &frontier);
            let records = custody_of(&tree, me, progress.size..size, &progress.not_held, time, &self.keys);
            appended.custody = records.iter().map(|record| record.note.clone()).collect();
            group.commit.custody.extend(records);
            progress.size = size;
            progress.not_held.clear();
        }
        let checkpoint_size = checkpoint.checkpoint.size;
        match group.commit.appends.iter_mut().find(|append| append.feed == feed) {
            Some(append) => {
                append.entries.append(&mut new);
                append.checkpoint = checkpoint.note;
                append.checkpoint_size = checkpoint_size;
                append.consistency_proof = consistency_proof;
            }
            None => group.commit.appends.push(Append {
                feed: feed.clone(),
                first,
                entries: new,
                checkpoint: checkpoint.note,
                checkpoint_size,
                consistency_proof,
            }),
        }
        group.edges.insert(feed, frontier);
        group.releases.push(Release::Append { reply, appended, _permit: permit });
    }

    pub(super) fn take_fill(
        &self,
        group: &mut Group,
        Filling { fills, mut not_held }: Filling,
        reply: oneshot::Sender<Result<Filled, CommitFailure>>,
        permit: Permit,
    ) {
        let (seconds, _) = self.shared.now();
        let time = later(seconds, group.last_time);
        if is_behind(time, seconds) {
            // Its owner is told by a note of its own, or never: it is asked for again.
            let _ = reply.send(Err(CommitFailure::ClockBehind));
            return;
        }
        let feed = fills.feed;
        let indexes: Vec<u64> = fills.entries.iter().map(|entry| entry.index).collect();
        let lacking = match self.shared.store.lacks(&feed, &indexes) {
            Ok(lacking) => lacking,
            Err(error) => {
                let _ = reply.send(Err(CommitFailure::Stopped(error.to_string())));
                return;
            }
        };
        let mut entries = Vec::with_capacity(indexes.len());
        for (entry, lacking) in fills.entries.into_iter().zip(lacking) {
            // Another link may have been faster.
            let lacks = lacking.is_some_and(|(digest, _)| digest == entry.digest);
            if !lacks || !group.filled.insert((feed.clone(), entry.index)) {
                continue;
            }
            group.bytes += entry.envelope.len();
            group.entries += 1;
            let content = Content::Disclosed { envelope: entry.envelope, header: entry.header };
            entries.push((entry.index, NewEntry { digest: entry.digest, content }));
        }
        let mut filled = Filled { entries: entries.len() as u64, custody: Vec::new() };
        if let (Some((first, _)), Some((last, _)), Some(edge)) =
            (entries.first(), entries.last(), self.edges.get(&feed))
        {
            let progress = group
                .custodies
                .entry(feed.clone())
                .or_insert_with(|| self.custodies.get(&feed).cloned().unwrap_or_default());
            for (index, _) in &entries {
                take_out(&mut not_held, *index);
                take_out(&mut progress.not_held, *index);
            }
            // What no note has spoken of yet, the next one in order will.
            let range = *first..(last + 1).min(progress.size);
            let tree = checkpoint_of(&feed, edge);
            let records = custody_of(&tree, &self.shared.feed.member, range, &not_held, time, &self.keys);
            if !records.is_empty() {
                group.last_time = time;
            }
            filled.custody = records.iter().map(|record| record.note.clone()).collect();
            group.commit.custody.extend(records);
            match group.commit.fills.iter_mut().find(|fill| fill.feed == feed) {
                Some(fill) => {
                    fill.entries.append(&mut entries);
                    fill.entries.sort_by_key(|(index, _)| *index);
                }
                None => group.commit.fills.push(Fill { feed, entries }),
            }
        }
        group.releases.push(Release::Fill { reply, filled, _permit: permit });
    }
}

/// Adds entry `index`, held as digest only for `reason`, to ascending ranges.
fn note_not_held(ranges: &mut Vec<(Range<u64>, Undisclosed)>, index: u64, reason: Undisclosed) {
    match ranges.last_mut() {
        Some((range, last)) if range.end == index && *last == reason => range.end = index + 1,
        _ => ranges.push((index..index + 1, reason)),
    }
}

/// Entry `index` is held in full: what is left of the ranges.
fn take_out(ranges: &mut Vec<(Range<u64>, Undisclosed)>, index: u64) {
    let place = ranges.partition_point(|(range, _)| range.end <= index);
    let Some((range, reason)) = ranges.get(place).filter(|(range, _)| range.contains(&index)).cloned() else { return };
    let left = [range.start..index, index + 1..range.end].into_iter().filter(|range| !range.is_empty());
    ranges.splice(place..=place, left.map(|range| (range, reason)));
}

/// Custody notes on `range`: one, or several where one cannot list all that is not held. None if the range is empty.
fn custody_of(
    checkpoint: &Checkpoint,
    holder: &Member,
    mut range: Range<u64>,
    not_held: &[(Range<u64>, Undisclosed)],
    time: u64,
    keys: &Keys,
) -> Vec<CustodyRecord> {
    let mut records = Vec::new();
    while !range.is_empty() {
        let listed = not_held.partition_point(|(part, _)| part.end <= range.start);
        let note = CustodyNote::new(checkpoint, time, range.clone(), not_held[listed..].iter().cloned());
        // The key's name and kind were checked on start, the ranges ascend: a note that cannot be made is a defect that costs the note.
        let Ok((note, signed)) = note.and_then(|note| note.sign(&keys.custody).map(|signed| (note, signed))) else {
            break;
        };
        range.start = note.range.end;
        records.push(CustodyRecord {
            feed: note.feed,
            holder: holder.clone(),
            range: note.range,
            not_held: note.not_held.into_iter().map(|(range, _)| range).collect(),
            time,
            note: signed,
        });
    }
    records
}
