//! What comes of other members' feeds, in the commit that takes it in, with what this node says of it.
//!
//! In scope: entries that continue a feed, and content that comes later. Out of scope: verifying (`core`), what this node says of a feed
//! (`spoken`), and what else is in a commit (`run`).

use std::ops::Range;
use std::time::Instant;

use barid_core::feed::tree::Frontier;
use barid_core::follow::{VerifiedBatch, VerifiedContent};
use barid_core::limits::BATCH_ENTRIES_MAX;
use barid_core::names::Undisclosed;
use tokio::sync::oneshot;

use super::release::Release;
use super::run::{Group, Writer, unreadable};
use super::spoken::{custody_of, progress_of};
use super::{Appended, CommitFailure, Filled, Filling, Gate, Permit, checkpoint_of, is_behind, later, owns};
use crate::store::{Append, Content, Fill, NewEntry};

/// Ranges held as digests after which a custody note is made although the feed has not reached its checkpoint: what has not been spoken of
/// stays small in memory, and one note can list it. While the clock is behind no note is made, and a feed with as many waits.
const NOT_HELD_MAX: usize = 512;
/// Ranges held as digests that no note has spoken of yet, at most: these and those of one more batch.
pub(super) const UNSPOKEN_RANGES_MAX: usize = NOT_HELD_MAX + BATCH_ENTRIES_MAX;

impl Writer {
    pub(super) fn take_append(
        &self,
        group: &mut Group,
        mut batch: VerifiedBatch,
        reply: oneshot::Sender<Result<Appended, CommitFailure>>,
        permit: Permit,
    ) {
        let held = group.edges.get(&batch.feed).or_else(|| self.edges.get(&batch.feed)).map_or(0, Frontier::size);
        let displaced = if held == batch.first { self.check_ahead(group, &batch) } else { Ok(Vec::new()) };
        let displaced = match displaced {
            Ok(displaced) => displaced,
            Err(another) => {
                let _ = reply.send(Err(another));
                return;
            }
        };
        let (feed, first) = (batch.feed.clone(), batch.first);
        let own = owns(&self.shared.feed.member, &feed);
        // Its own feed a node takes from others only where it does not continue it itself.
        let continued = feed == self.shared.feed
            && (group.own_edge.is_some() || !matches!(*self.shared.gate.borrow(), Gate::InDoubt(_)));
        if held != first || continued {
            let _ = reply.send(Err(CommitFailure::Stale { held, first }));
            return;
        }
        let ahead: Vec<u64> = {
            let end = first.saturating_add(batch.entries.len() as u64);
            self.shared
                .store
                .ahead(&feed, first..end)
                .into_iter()
                .map(|(index, _)| index)
                .filter(|index| !displaced.contains(index))
                .collect()
        };
        let progress = progress_of(&mut group.custodies, &self.custodies, &feed);
        let (seconds, _) = self.shared.now();
        if is_behind(later(seconds, group.last_time), seconds) && progress.not_held.len() >= NOT_HELD_MAX {
            let _ = reply.send(Err(CommitFailure::ClockBehind));
            return;
        }
        group.commit.displaced.extend(displaced.into_iter().map(|index| (feed.clone(), index)));
        // Counted only now that it is committed, and without what was counted when it came ahead of the order.
        let provider = batch.provider.clone();
        let takes = |bytes, urgent| self.shared.takes_content(&feed.member, &provider, bytes, urgent);
        let reduced = batch.reduce(|index| ahead.binary_search(&index).is_ok(), takes).len() as u64;
        let VerifiedBatch { entries, frontier, checkpoint, consistency_proof, .. } = batch;
        let mut new = Vec::with_capacity(entries.len());
        for (index, entry) in (first..).zip(entries) {
            let content = match entry.content {
                // What came ahead of the order is held in full, whatever comes now.
                _ if ahead.binary_search(&index).is_ok() => Content::Undisclosed(Undisclosed::NotHeld),
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
        // What a node says of its own feed witnesses nothing.
        let complete = !own && checkpoint.checkpoint.size == size && checkpoint.checkpoint.root == frontier.root();
        let many = progress.not_held.len() >= NOT_HELD_MAX;
        if complete || many {
            group.debts.add(feed.clone(), complete.then(|| checkpoint.clone()), Instant::now());
            group.speak_now |= many;
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
        if reduced > 0 {
            self.shared.reduced(&feed.member, &provider, reduced);
        }
        group.edges.insert(feed, frontier);
        group.releases.push(Release::Append { reply, appended: Appended { size, reduced }, _permit: permit });
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
        let (owner, provider) = (&fills.feed.member, &fills.provider);
        if !self.shared.takes_content(owner, provider, fills.envelope_bytes(), None) {
            self.shared.reduced(owner, provider, 0);
            let _ = reply.send(Err(CommitFailure::OverShare));
            return;
        }
        let feed = fills.feed;
        let indexes: Vec<u64> = fills.entries.iter().map(|entry| entry.index).collect();
        let lacking = match self.shared.store.lacks(&feed, &indexes) {
            Ok(lacking) => lacking,
            Err(error) => {
                let _ = reply.send(Err(unreadable(&error)));
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
            let progress = progress_of(&mut group.custodies, &self.custodies, &feed);
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
