//! Adds entries of other members' feeds to a commit.
//!
//! In scope: entries that continue a feed, and content that arrives later (backfill) with its
//! custody notes. Out of scope: verifying (`core`), attestations (`attestations`), and what else is
//! in a commit (`writer`).

use std::ops::Range;
use std::time::Instant;

use barid_core::feed::tree::CompactRange;
use barid_core::follow::{VerifiedBatch, VerifiedContent};
use barid_core::ids::Undisclosed;
use barid_core::limits::BATCH_ENTRIES_MAX;
use tokio::sync::oneshot;

use super::attestations::{custody_of, progress_of};
use super::completions::Completion;
use super::writer::{CommitBatch, Writer, unreadable};
use super::{
    Appended, BackfillWork, Backfilled, CommitFailure, Permit, PublishState, checkpoint_of, is_behind, later, owns,
};
use crate::store::{Append, Backfill, Content, NewEntry};

/// Ranges held as digests after which a custody note is signed although the feed has not reached
/// its checkpoint. It bounds the unattested ranges in memory, and one note can list them. While the
/// clock is behind no note is signed, and a feed with this many ranges waits.
const NOT_HELD_MAX: usize = 512;
/// Most ranges held as digests that no note covers yet: the limit and those of one more batch.
pub(super) const UNATTESTED_RANGES_MAX: usize = NOT_HELD_MAX + BATCH_ENTRIES_MAX;

impl Writer {
    pub(super) fn add_append(
        &self,
        commit_batch: &mut CommitBatch,
        mut batch: VerifiedBatch,
        reply: oneshot::Sender<Result<Appended, CommitFailure>>,
        permit: Permit,
    ) {
        let held = commit_batch
            .compact_ranges
            .get(&batch.feed)
            .or_else(|| self.compact_ranges.get(&batch.feed))
            .map_or(0, CompactRange::size);
        let displaced = if held == batch.first { self.check_ahead(commit_batch, &batch) } else { Ok(Vec::new()) };
        let displaced = match displaced {
            Ok(displaced) => displaced,
            Err(another) => {
                let _ = reply.send(Err(another));
                return;
            }
        };
        let (feed, first) = (batch.feed.clone(), batch.first);
        let own = owns(&self.shared.feed.member, &feed);
        // A node accepts entries of its own feed from others only while it does not continue the
        // feed itself.
        let continued = feed == self.shared.feed
            && (commit_batch.own_compact_range.is_some()
                || !matches!(*self.shared.publish_state.borrow(), PublishState::NeedsRecovery(_)));
        if held != first || continued {
            let _ = reply.send(Err(CommitFailure::Stale { held, first }));
            return;
        }
        let ahead: Vec<u64> = {
            let end = first.saturating_add(batch.entries.len() as u64);
            self.shared
                .store
                .out_of_order(&feed, first..end)
                .into_iter()
                .map(|(index, _)| index)
                .filter(|index| !displaced.contains(index))
                .collect()
        };
        let progress = progress_of(&mut commit_batch.custodies, &self.custodies, &feed);
        let (seconds, _) = self.shared.now();
        if is_behind(later(seconds, commit_batch.last_time), seconds) && progress.not_held.len() >= NOT_HELD_MAX {
            let _ = reply.send(Err(CommitFailure::ClockBehind));
            return;
        }
        commit_batch.commit.displaced.extend(displaced.into_iter().map(|index| (feed.clone(), index)));
        // Charged only now that the content is committed, and without entries charged when they
        // came ahead of the order.
        let feed_sender = batch.feed_sender.clone();
        let admits = |bytes, priority| self.shared.admits_content(&feed.member, &feed_sender, bytes, priority);
        let reduced = batch.reduce(|index| ahead.binary_search(&index).is_ok(), admits).len() as u64;
        let VerifiedBatch { entries, compact_range, checkpoint, consistency_proof, .. } = batch;
        let mut new = Vec::with_capacity(entries.len());
        for (index, entry) in (first..).zip(entries) {
            let content = match entry.content {
                // An entry that came ahead of the order is held in full, whatever the batch
                // contains.
                _ if ahead.binary_search(&index).is_ok() => Content::Undisclosed(Undisclosed::NotHeld),
                VerifiedContent::Disclosed { envelope, header } => {
                    commit_batch.bytes += envelope.len();
                    Content::Disclosed { envelope, header }
                }
                VerifiedContent::Undisclosed(reason) => {
                    if !own {
                        push_undisclosed(&mut progress.not_held, index, reason);
                    }
                    Content::Undisclosed(reason)
                }
            };
            commit_batch.entries += 1;
            new.push(NewEntry { digest: entry.digest, content });
        }
        let size = compact_range.size();
        // A node does not attest its own feed.
        let complete = !own && checkpoint.checkpoint.size == size && checkpoint.checkpoint.root == compact_range.root();
        let many = progress.not_held.len() >= NOT_HELD_MAX;
        if complete || many {
            commit_batch.pending_attestations.add(feed.clone(), complete.then(|| checkpoint.clone()), Instant::now());
            commit_batch.attest_now |= many;
        }
        let checkpoint_size = checkpoint.checkpoint.size;
        match commit_batch.commit.appends.iter_mut().find(|append| append.feed == feed) {
            Some(append) => {
                append.entries.append(&mut new);
                append.checkpoint = checkpoint.note;
                append.checkpoint_size = checkpoint_size;
                append.consistency_proof = consistency_proof;
            }
            None => commit_batch.commit.appends.push(Append {
                feed: feed.clone(),
                first,
                entries: new,
                checkpoint: checkpoint.note,
                checkpoint_size,
                consistency_proof,
            }),
        }
        if reduced > 0 {
            self.shared.reduced(&feed.member, &feed_sender, reduced);
        }
        commit_batch.compact_ranges.insert(feed, compact_range);
        commit_batch.completions.push(Completion::Append {
            reply,
            appended: Appended { size, reduced },
            _permit: permit,
        });
    }

    pub(super) fn add_backfill(
        &self,
        commit_batch: &mut CommitBatch,
        BackfillWork { backfills: backfill, mut not_held }: BackfillWork,
        reply: oneshot::Sender<Result<Backfilled, CommitFailure>>,
        permit: Permit,
    ) {
        let (seconds, _) = self.shared.now();
        let time = later(seconds, commit_batch.last_time);
        if is_behind(time, seconds) {
            // A backfill gets a custody note with its commit or never, so it is requested again
            // later.
            let _ = reply.send(Err(CommitFailure::ClockBehind));
            return;
        }
        let (owner, feed_sender) = (&backfill.feed.member, &backfill.feed_sender);
        if !self.shared.admits_content(owner, feed_sender, backfill.envelope_bytes(), None) {
            self.shared.reduced(owner, feed_sender, 0);
            let _ = reply.send(Err(CommitFailure::OverShare));
            return;
        }
        let feed = backfill.feed;
        let indexes: Vec<u64> = backfill.entries.iter().map(|entry| entry.index).collect();
        let undisclosed = match self.shared.store.missing(&feed, &indexes) {
            Ok(undisclosed) => undisclosed,
            Err(error) => {
                let _ = reply.send(Err(unreadable(&error)));
                return;
            }
        };
        let mut entries = Vec::with_capacity(indexes.len());
        for (entry, undisclosed) in backfill.entries.into_iter().zip(undisclosed) {
            // Another link may have delivered it first.
            let lacks = undisclosed.is_some_and(|(digest, _)| digest == entry.digest);
            if !lacks || !commit_batch.backfilled.insert((feed.clone(), entry.index)) {
                continue;
            }
            commit_batch.bytes += entry.envelope.len();
            commit_batch.entries += 1;
            let content = Content::Disclosed { envelope: entry.envelope, header: entry.header };
            entries.push((entry.index, NewEntry { digest: entry.digest, content }));
        }
        let mut backfilled = Backfilled { entries: entries.len() as u64, custody: Vec::new() };
        if let (Some((first, _)), Some((last, _)), Some(compact_range)) =
            (entries.first(), entries.last(), self.compact_ranges.get(&feed))
        {
            let progress = progress_of(&mut commit_batch.custodies, &self.custodies, &feed);
            for (index, _) in &entries {
                remove_index(&mut not_held, *index);
                remove_index(&mut progress.not_held, *index);
            }
            // The next note in order covers the entries that no note covers yet.
            let range = *first..(last + 1).min(progress.size);
            let tree = checkpoint_of(&feed, compact_range);
            let records = custody_of(&tree, &self.shared.feed.member, range, &not_held, time, &self.keys);
            if !records.is_empty() {
                commit_batch.last_time = time;
            }
            backfilled.custody = records.iter().map(|record| record.note.clone()).collect();
            commit_batch.commit.custody.extend(records);
            match commit_batch.commit.backfills.iter_mut().find(|backfill| backfill.feed == feed) {
                Some(backfill) => {
                    backfill.entries.append(&mut entries);
                    backfill.entries.sort_by_key(|(index, _)| *index);
                }
                None => commit_batch.commit.backfills.push(Backfill { feed, entries }),
            }
        }
        commit_batch.completions.push(Completion::Backfill { reply, backfilled, _permit: permit });
    }
}

/// Adds entry `index`, held only as a digest for `reason`, to ascending ranges.
fn push_undisclosed(ranges: &mut Vec<(Range<u64>, Undisclosed)>, index: u64, reason: Undisclosed) {
    match ranges.last_mut() {
        Some((range, last)) if range.end == index && *last == reason => range.end = index + 1,
        _ => ranges.push((index..index + 1, reason)),
    }
}

/// Removes entry `index`, which is now held in full, from the ranges.
fn remove_index(ranges: &mut Vec<(Range<u64>, Undisclosed)>, index: u64) {
    let position = ranges.partition_point(|(range, _)| range.end <= index);
    let Some((range, reason)) = ranges.get(position).filter(|(range, _)| range.contains(&index)).cloned() else {
        return;
    };
    let left = [range.start..index, index + 1..range.end].into_iter().filter(|range| !range.is_empty());
    ranges.splice(position..=position, left.map(|range| (range, reason)));
}
