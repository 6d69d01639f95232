//! Makes commits: takes queued work, appends, signs, persists, writes the high-water mark, then
//! replies.
//!
//! In scope: opening the node's own feed, building one commit, and its effects. Out of scope: the
//! order of work (`queue`), threads (`scheduler`), and parts of a commit with a module of their own
//! (`replicated_appends`, `priority`, `attestations`, `disk_space`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use barid_core::bulletin::ValidBulletin;
use barid_core::feed::checkpoint::{Checkpoint, SignedCheckpoint, sign};
use barid_core::feed::tree::{CompactRange, root_at};
use barid_core::ids::FeedId;
use barid_core::limits::{COMMIT_BYTES_MAX, COMMIT_ENTRIES_MAX};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::high_water_mark::{
    HighWaterMark, HighWaterMarkFile, clear_needs_recovery, read_needs_recovery, write_needs_recovery,
};
use super::{
    CommitFailure, CommitterShared, Custodies, DISK_SPACE_CHECK_INTERVAL, Keys, Options, Permit, PublishOutcome,
    PublishState, PublishedGroup, RECORDS_BYTES_MAX, Records, StartError, Work, checkpoint_of, later, now, owns, trace,
};
use crate::store::{
    Append, Commit, CommitError, Committed, Content, CursorRecord, CustodyRecord, FeedTree, NewEntry, ReadError,
};

use super::attestations::{LastCosigned, PendingAttestations};
use super::completions::{Completion, PendingPublish, complete, fail_completions, reject};
use super::disk_space::DiskSpace;
use super::queue::Queue;
use super::replicated_appends::UNATTESTED_RANGES_MAX;

/// State of all feeds, and the only code that commits to the store. Access is exclusive
/// (`scheduler`).
pub(super) struct Writer {
    pub(super) shared: Arc<CommitterShared>,
    pub(super) keys: Keys,
    pub(super) high_water_mark: Option<HighWaterMarkFile>,
    pub(super) compact_ranges: HashMap<FeedId, CompactRange>,
    pub(super) custodies: Custodies,
    pub(super) pending_attestations: PendingAttestations,
    /// By feed, how far this node has cosigned it.
    pub(super) last_cosigned: HashMap<FeedId, LastCosigned>,
    pub(super) last_time: u64,
    pub(super) seq: u64,
    pub(super) checkpoint: Option<SignedCheckpoint>,
    /// When the disk space was last checked.
    pub(super) space_checked_at: Instant,
    pub(super) disk_space: DiskSpace,
}

/// A commit that is being built.
#[derive(Default)]
pub(super) struct CommitBatch {
    pub(super) commit: Commit,
    pub(super) compact_ranges: HashMap<FeedId, CompactRange>,
    pub(super) custodies: Custodies,
    pub(super) pending_attestations: PendingAttestations,
    /// Pending attestations go into this commit.
    pub(super) attest_now: bool,
    pub(super) ids: HashMap<Uuid, ()>,
    pub(super) backfilled: HashSet<(FeedId, u64)>,
    pub(super) cursors: BTreeMap<String, CursorRecord>,
    pub(super) own: Vec<NewEntry>,
    pub(super) own_compact_range: Option<CompactRange>,
    pub(super) bytes: usize,
    pub(super) records_bytes: usize,
    pub(super) entries: usize,
    /// How far feeds are cosigned with this commit.
    pub(super) last_cosigned: HashMap<FeedId, LastCosigned>,
    /// Some feed cannot be attested yet, but soon.
    pub(super) retry_attest: bool,
    pub(super) last_time: u64,
    pub(super) completions: Vec<Completion>,
}

/// Result of a commit in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum CommitOutcome {
    /// There was nothing to commit.
    #[default]
    Nothing,
    /// The commit is durable, with this many entries.
    Durable(usize),
    /// The store rejected it, or failed.
    Failed,
}

/// Result of one step of the writer.
#[derive(Default)]
pub(super) struct WriterStep {
    /// Result in the store.
    pub(super) outcome: CommitOutcome,
    /// Reply channel of a stop, which comes next.
    pub(super) stop: Option<oneshot::Sender<()>>,
}

impl Writer {
    /// Reads the state of every feed, compares the high-water mark, and creates the feed on a
    /// declared first start.
    pub(super) fn open(shared: Arc<CommitterShared>, options: Options) -> Result<Self, StartError> {
        let store = Arc::clone(&shared.store);
        let me = options.feed.member.clone();
        let mut compact_ranges = HashMap::new();
        let mut custodies = Custodies::new();
        let mut last_time = 0;
        let (mut pending_attestations, mut last_cosigned) = (PendingAttestations::default(), HashMap::new());
        for state in store.feeds() {
            let mut cosigned_size = 0;
            for cosigned in store.cosigned_newest(&state.feed)?.iter().filter(|cosigned| cosigned.cosigner == me) {
                cosigned_size = cosigned.size;
                last_time = later(cosigned.time, last_time);
                last_cosigned.insert(state.feed.clone(), LastCosigned::of(cosigned));
            }
            if !owns(&me, &state.feed) {
                let progress = custodies.entry(state.feed.clone()).or_default();
                for note in store.custody_newest(&state.feed)?.iter().filter(|note| note.holder == me) {
                    progress.size = progress.size.max(note.range.end);
                    last_time = later(note.time, last_time);
                }
                for note in store.custody_late(&state.feed, &me, 0, 1)? {
                    last_time = later(note.time, last_time);
                }
                let since = progress.size;
                progress.not_held = store
                    .undisclosed_ranges_from(&state.feed, since, UNATTESTED_RANGES_MAX)?
                    .into_iter()
                    .map(|(range, reason)| (range.start.max(since)..range.end, reason))
                    .collect();
                pending_attestations.add_missing_since(&state, cosigned_size, since);
            }
            compact_ranges.insert(state.feed, state.compact_range);
        }
        let mut writer = Self {
            seq: store.seq(),
            shared,
            keys: options.keys,
            high_water_mark: None,
            compact_ranges,
            custodies,
            pending_attestations,
            last_cosigned,
            last_time,
            checkpoint: None,
            space_checked_at: Instant::now(),
            disk_space: DiskSpace::default(),
        };
        writer.check_disk_space();
        writer.shared.last_time.store(last_time, Ordering::Relaxed);
        writer.open_feed(&options.feed, &options.high_water_mark, options.bootstrap)?;
        Ok(writer)
    }

    fn open_feed(
        &mut self,
        feed: &FeedId,
        high_water_mark: &std::path::Path,
        bootstrap: bool,
    ) -> Result<(), StartError> {
        let held = self.shared.store.feed(feed);
        let found = HighWaterMarkFile::read(high_water_mark)?;
        clear_needs_recovery(high_water_mark, feed.epoch);
        let recorded_reason = read_needs_recovery(high_water_mark, feed.epoch)?;
        let recovery_reason = match (&held, &found) {
            (None, None) if bootstrap && recorded_reason.is_none() => {
                self.create_feed(feed)?;
                let compact_range = self.compact_ranges.get(feed).cloned().unwrap_or_default();
                self.high_water_mark = Some(HighWaterMarkFile::create(
                    high_water_mark,
                    &HighWaterMark { epoch: feed.epoch, size: 0, root: compact_range.root() },
                )?);
                return Ok(());
            }
            (None, None) => Some(recorded_reason.unwrap_or_else(|| {
                "there is neither a feed nor a high-water mark (if this member has never published, start with \
                 --bootstrap)"
                    .into()
            })),
            (Some(_), None) => Some(format!("the high-water mark {} is missing", high_water_mark.display())),
            (Some(_), Some(_)) if recorded_reason.is_some() => recorded_reason,
            (_, Some((_, high_water_mark))) if high_water_mark.epoch != feed.epoch => Some(format!(
                "the high-water mark is of epoch {}, the key is of epoch {}",
                high_water_mark.epoch, feed.epoch
            )),
            (None, Some((_, high_water_mark))) => {
                Some(format!("the high-water mark has {} entries, the store has no feed", high_water_mark.size))
            }
            (Some(state), Some((_, high_water_mark))) if high_water_mark.size > state.compact_range.size() => {
                Some(format!(
                    "the high-water mark has {} entries, the store has {}",
                    high_water_mark.size,
                    state.compact_range.size()
                ))
            }
            (Some(_), Some((_, high_water_mark))) => {
                let tree = FeedTree { store: self.shared.store.as_ref(), feed };
                (root_at(&tree, high_water_mark.size)? != high_water_mark.root).then(|| {
                    format!("the store's root at {} entries differs from the high-water mark", high_water_mark.size)
                })
            }
        };
        let lasting = found.as_ref().is_some_and(|(_, high_water_mark)| high_water_mark.epoch == feed.epoch);
        if let Some(state) = held {
            // This node's own checkpoint, verified when it was committed.
            self.checkpoint = SignedCheckpoint::verify(
                &state.checkpoint,
                &self.keys.feed.iter().map(|key| key.verifier().clone()).collect::<Vec<_>>(),
            )
            .ok();
            *self.shared.newest.lock() = self.checkpoint.clone();
        }
        match recovery_reason {
            Some(reason) => {
                tracing::error!(reason, "feed needs recovery: this node serves and follows, but does not publish");
                // A feed that was never begun may still be declared with --bootstrap.
                if lasting {
                    write_needs_recovery(high_water_mark, feed.epoch, &reason)?;
                }
                self.shared.publish_state.send_replace(PublishState::NeedsRecovery(reason));
            }
            None => {
                self.high_water_mark = found.map(|(file, _)| file);
                // The power may have failed between a record and its mark. Peers receive the record
                // from now on, so the mark must cover it to detect an older copy of the store.
                if let (Some(file), Some(compact_range)) =
                    (self.high_water_mark.as_mut(), self.compact_ranges.get(feed))
                {
                    file.write(&HighWaterMark {
                        epoch: feed.epoch,
                        size: compact_range.size(),
                        root: compact_range.root(),
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Creates the feed with a checkpoint of size 0.
    fn create_feed(&mut self, feed: &FeedId) -> Result<(), StartError> {
        let compact_range = CompactRange::new();
        let signed = sign(&checkpoint_of(feed, &compact_range), &self.keys.feed)
            .map_err(|error| StartError::Keys(error.to_string()))?;
        let append = Append {
            feed: feed.clone(),
            first: 0,
            entries: Vec::new(),
            checkpoint: signed.note.clone(),
            checkpoint_size: 0,
            consistency_proof: Vec::new(),
        };
        let commit = Commit { appends: vec![append], time_unix_ms: now().1, ..Commit::default() };
        self.seq = self.shared.store.commit(commit, self.seq)?.seq;
        self.compact_ranges.insert(feed.clone(), compact_range);
        *self.shared.newest.lock() = Some(signed.clone());
        self.checkpoint = Some(signed);
        Ok(())
    }

    /// Returns when an attestation must be signed.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.pending_attestations.deadline()
    }

    /// Makes one commit of the waiting work that fits together.
    pub(super) fn step(&mut self, queue: &Queue) -> WriterStep {
        let mut next = queue.first(Instant::now());
        if next.is_none() && self.pending_attestations.deadline().is_none_or(|deadline| deadline > Instant::now()) {
            return WriterStep::default();
        }
        self.check_disk_space_near_limit();
        let separate = self.commits_own_separately();
        let mut commit_batch = CommitBatch { last_time: self.last_time, ..CommitBatch::default() };
        let mut step = WriterStep::default();
        while let Some(work) = next.take() {
            match work {
                Work::Stop(reply) => {
                    commit_batch.attest_now = true;
                    step.stop = Some(reply);
                    break;
                }
                work if commit_batch.fits(&work)
                    && !(separate && commit_batch.mixes_own_and_replicated(&self.shared.feed.member, &work)) =>
                {
                    self.add(&mut commit_batch, work);
                }
                work => {
                    queue.requeue(work);
                    break;
                }
            }
            next = queue.more();
        }
        step.outcome = self.commit(commit_batch);
        queue.set_writer_deadline(self.pending_attestations.deadline());
        step
    }

    /// Checks the disk space if it is time to. Returns when it was last checked.
    pub(super) fn check_disk_space_at_interval(&mut self) -> Instant {
        if self.space_checked_at.elapsed() >= DISK_SPACE_CHECK_INTERVAL {
            self.check_disk_space();
            self.space_checked_at = Instant::now();
        }
        self.space_checked_at
    }

    fn add(&self, commit_batch: &mut CommitBatch, work: Work) {
        // After a failed commit the content of the disk is unknown: commit nothing on top of it.
        if let PublishState::Stopped(reason) = &*self.shared.publish_state.borrow() {
            return reject(work, &CommitFailure::Stopped(reason.clone()));
        }
        if let Some(full) = self.check_space_for(&work) {
            return reject(work, &full);
        }
        match work {
            Work::Publish(bulletins, reply, permit) => self.add_publish(commit_batch, bulletins, reply, permit),
            Work::Append(batch, reply, permit) => self.add_append(commit_batch, *batch, reply, permit),
            Work::Backfill(backfill_work, reply, permit) => {
                self.add_backfill(commit_batch, *backfill_work, reply, permit);
            }
            Work::Priority(priority, reply, permit) => self.add_priority(commit_batch, *priority, reply, permit),
            Work::Records(records, reply, permit) => {
                commit_batch.records_bytes += records.bytes();
                let Records { cosigned, custody, cursors, subscriptions, rosters, crls, forks } = records;
                self.restore_last_cosigned(commit_batch, &cosigned);
                commit_batch.commit.cosigned.extend(cosigned);
                commit_batch.commit.custody.extend(custody);
                for cursor in cursors {
                    match commit_batch.cursors.get_mut(&cursor.subscription) {
                        Some(held) if held.offset > cursor.offset => {}
                        Some(held) => *held = cursor,
                        None => _ = commit_batch.cursors.insert(cursor.subscription.clone(), cursor),
                    }
                }
                commit_batch.commit.subscriptions.extend(subscriptions);
                commit_batch.commit.rosters.extend(rosters);
                commit_batch.commit.crls.extend(crls);
                commit_batch.commit.forks.extend(forks);
                commit_batch.completions.push(Completion::Records { reply, _permit: permit });
            }
            Work::Stop(_) => {}
        }
    }

    fn add_publish(
        &self,
        commit_batch: &mut CommitBatch,
        bulletins: Vec<ValidBulletin>,
        reply: oneshot::Sender<Result<PublishedGroup, CommitFailure>>,
        permit: Permit,
    ) {
        let rejection = match &*self.shared.publish_state.borrow() {
            PublishState::Open => None,
            PublishState::Starting => Some(CommitFailure::Starting),
            PublishState::NeedsRecovery(reason) => Some(CommitFailure::NeedsRecovery(reason.clone())),
            PublishState::Stopped(reason) => Some(CommitFailure::Stopped(reason.clone())),
        };
        if let Some(failure) = rejection {
            let _ = reply.send(Err(failure));
            return;
        }
        let feed = &self.shared.feed;
        let mut outcomes = Vec::with_capacity(bulletins.len());
        // Looked up before anything is appended, so that a failed read changes nothing.
        let mut locations = Vec::with_capacity(bulletins.len());
        for bulletin in &bulletins {
            match self.shared.store.find(&feed.member, bulletin.header.id.uuid()) {
                Ok(location) => locations.push(location),
                Err(error) => {
                    let _ = reply.send(Err(unreadable(&error)));
                    return;
                }
            }
        }
        let compact_range = commit_batch
            .own_compact_range
            .get_or_insert_with(|| self.compact_ranges.get(feed).cloned().unwrap_or_default());
        for (bulletin, location) in bulletins.into_iter().zip(locations) {
            if let Some(location) = location {
                outcomes.push(PendingPublish::Done(PublishOutcome::Duplicate(location)));
                continue;
            }
            if commit_batch.ids.insert(bulletin.header.id.uuid(), ()).is_some() {
                outcomes.push(PendingPublish::Done(PublishOutcome::DuplicateInCommit));
                continue;
            }
            outcomes.push(PendingPublish::New { index: compact_range.size(), nth: commit_batch.own.len() as u64 });
            compact_range.append(&bulletin.digest);
            commit_batch.bytes += bulletin.envelope.len();
            commit_batch.entries += 1;
            commit_batch.own.push(NewEntry {
                digest: bulletin.digest,
                content: Content::Disclosed {
                    envelope: bulletin.envelope,
                    header: Some(Arc::new(bulletin.proto_header)),
                },
            });
        }
        commit_batch.completions.push(Completion::Publish { reply, outcomes, _permit: permit });
    }

    fn commit(&mut self, mut commit_batch: CommitBatch) -> CommitOutcome {
        let feed = self.shared.feed.clone();
        let own_entries = std::mem::take(&mut commit_batch.own);
        let mut signed = self.checkpoint.clone();
        let mut own_at = 0;
        if let (Some(compact_range), false) = (&commit_batch.own_compact_range, own_entries.is_empty()) {
            let checkpoint = match sign(&checkpoint_of(&feed, compact_range), &self.keys.feed) {
                Ok(checkpoint) => checkpoint,
                Err(error) => {
                    self.fail(commit_batch.completions, &CommitFailure::Stopped(error.to_string()));
                    return CommitOutcome::Nothing;
                }
            };
            // After the appends of other feeds, so that own entries get the last offsets.
            own_at = commit_batch.commit.appends.iter().map(disclosed).sum();
            commit_batch.commit.appends.push(Append {
                feed: feed.clone(),
                first: compact_range.size() - own_entries.len() as u64,
                entries: own_entries,
                checkpoint: checkpoint.note.clone(),
                checkpoint_size: compact_range.size(),
                consistency_proof: Vec::new(),
            });
            signed = Some(checkpoint);
        }
        let attested = self.attest(&mut commit_batch);
        commit_batch.commit.time_unix_ms = now().1;
        commit_batch.commit.cursors =
            self.advancing_cursors(std::mem::take(&mut commit_batch.cursors), &commit_batch.commit);
        let empty = is_empty(&commit_batch.commit);
        self.record_space_used(commit_batch.bytes + commit_batch.records_bytes);
        let result = if empty { Ok(None) } else { self.shared.store.commit(commit_batch.commit, self.seq).map(Some) };
        match result {
            Ok(committed) => {
                let first_offset = committed.as_ref().map_or(0, |committed| committed.first_offset + own_at);
                self.compact_ranges.extend(commit_batch.compact_ranges);
                self.custodies.extend(commit_batch.custodies);
                self.last_cosigned.extend(commit_batch.last_cosigned);
                self.last_time = commit_batch.last_time;
                self.shared.last_time.store(self.last_time, Ordering::Relaxed);
                if let Some(compact_range) = commit_batch.own_compact_range {
                    self.compact_ranges.insert(feed, compact_range);
                }
                let outcome =
                    committed.as_ref().map_or(CommitOutcome::Nothing, |_| CommitOutcome::Durable(commit_batch.entries));
                if let Some(committed) = committed {
                    self.seq = committed.seq;
                    if self.checkpoint != signed {
                        if let Err(failure) = self.write_high_water_mark(signed.as_ref()) {
                            self.fail(commit_batch.completions, &failure);
                            return CommitOutcome::Failed;
                        }
                        *self.shared.newest.lock() = signed.clone();
                        self.checkpoint = signed;
                    }
                    self.notify_watchers(&committed);
                }
                complete(commit_batch.completions, first_offset, self.checkpoint.as_ref());
                // Callers that wait for the entries get their reply first.
                self.finish_attesting(commit_batch.pending_attestations, attested, commit_batch.retry_attest);
                outcome
            }
            Err(full @ (CommitError::DiskFull { .. } | CommitError::IndexBehind(_))) => {
                self.pending_attestations.postpone();
                self.space_checked_at = Instant::now();
                self.check_disk_space();
                fail_completions(commit_batch.completions, &CommitFailure::DiskFull(full.to_string()));
                CommitOutcome::Failed
            }
            Err(error) => {
                self.fail(commit_batch.completions, &CommitFailure::Stopped(crate::error_chain::one_line(&error)));
                CommitOutcome::Failed
            }
        }
    }

    /// Keeps only cursors that advance their subscription; a concurrent call with a lower cursor is
    /// a no-op. So is a cursor of an unknown subscription, or of one that this commit removes or
    /// creates anew.
    fn advancing_cursors(&self, cursors: BTreeMap<String, CursorRecord>, commit: &Commit) -> Vec<CursorRecord> {
        let advances = |cursor: &CursorRecord| {
            let changed = commit.subscriptions.iter().any(|record| record.subscription == cursor.subscription);
            let held = self.shared.store.subscription(&cursor.subscription).filter(|_| !changed);
            held.is_some_and(|held| held.is_advanced_by(cursor, commit.time_unix_ms))
        };
        cursors.into_values().filter(advances).collect()
    }

    fn write_high_water_mark(&mut self, signed: Option<&SignedCheckpoint>) -> Result<(), CommitFailure> {
        let (Some(file), Some(signed)) = (self.high_water_mark.as_mut(), signed) else { return Ok(()) };
        let Checkpoint { feed, size, root } = &signed.checkpoint;
        file.write(&HighWaterMark { epoch: feed.epoch, size: *size, root: *root })
            .map_err(|error| CommitFailure::Stopped(error.to_string()))
    }

    fn notify_watchers(&self, committed: &Committed) {
        trace(committed);
        self.shared.count_bytes(committed);
        self.shared.end_offset.send_if_modified(|end| {
            let before = std::mem::replace(end, committed.end_offset.max(*end));
            *end > before
        });
        self.shared.seq.send_replace(committed.seq);
        let mine: Vec<CustodyRecord> = committed
            .commit
            .custody
            .iter()
            .filter(|note| owns(&self.shared.feed.member, &note.feed))
            .cloned()
            .collect();
        if !mine.is_empty() {
            let _ = self.shared.custody.send(Arc::new(mine));
        }
    }

    /// Stops the committer for good after a failure of the store. Waiting callers get the failure.
    fn fail(&mut self, completions: Vec<Completion>, failure: &CommitFailure) {
        self.pending_attestations = PendingAttestations::default();
        self.set_stopped(&failure.to_string());
        fail_completions(completions, failure);
    }

    /// Stops all further commits, for the reason `why`.
    pub(super) fn set_stopped(&self, why: &str) {
        tracing::error!(why, "the store has failed: nothing more is committed");
        self.shared.publish_state.send_replace(PublishState::Stopped(why.to_owned()));
    }
}

impl CommitBatch {
    fn fits(&self, work: &Work) -> bool {
        let (entries, bytes) = work.size();
        let records = if let Work::Records(records, ..) = work { records.bytes() } else { 0 };
        // Entries ahead of a feed's order and entries in order must not share a commit: the second
        // must know the first.
        let separate = match work {
            Work::Priority(..) => !self.compact_ranges.is_empty(),
            Work::Append(..) => !self.commit.priority.is_empty(),
            _ => false,
        };
        self.completions.is_empty()
            || (!separate
                && self.records_bytes + records <= RECORDS_BYTES_MAX
                && self.entries + entries <= COMMIT_ENTRIES_MAX
                && self.bytes + bytes <= COMMIT_BYTES_MAX
                && self.completions.len() < COMMIT_ENTRIES_MAX)
    }
}

fn is_empty(commit: &Commit) -> bool {
    commit.appends.is_empty()
        && commit.backfills.is_empty()
        && commit.priority.is_empty()
        && commit.cosigned.is_empty()
        && commit.custody.is_empty()
        && commit.cursors.is_empty()
        && commit.subscriptions.is_empty()
        && commit.rosters.is_empty()
        && commit.crls.is_empty()
        && commit.forks.is_empty()
}

fn disclosed(append: &Append) -> u64 {
    append.entries.iter().filter(|entry| matches!(entry.content, Content::Disclosed { .. })).count() as u64
}

/// Returns the failure for work that cannot be committed because the store cannot be read.
pub(super) fn unreadable(error: &ReadError) -> CommitFailure {
    match error {
        ReadError::Behind(_) => CommitFailure::Overloaded,
        error => CommitFailure::Stopped(error.to_string()),
    }
}
