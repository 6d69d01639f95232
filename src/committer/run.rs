//! The committer's thread: drain, append, sign, commit, mark, release.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use barid_core::bulletin::ValidBulletin;
use barid_core::feed::checkpoint::{Checkpoint, SignedCheckpoint, sign};
use barid_core::feed::cosignature::cosign;
use barid_core::feed::custody::CustodyNote;
use barid_core::feed::tree::{Frontier, root_at};
use barid_core::follow::VerifiedBatch;
use barid_core::limits::{COMMIT_BYTES_MAX, COMMIT_ENTRIES_MAX, NOT_HELD_RANGES_MAX};
use barid_core::names::{FeedId, Member, Undisclosed};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::mark::{Mark, MarkFile};
use super::{
    Appended, COMPANY_WAIT, CommitFailure, Custodies, Filled, Filling, Gate, KEPT_BYTES_MAX, Kept, Keys, Options,
    Permit, Published, PublishedGroup, Shared, StartError, Work, checkpoint_of, later, now, owns, trace,
};
use crate::store::{
    Append, Commit, CommitError, Committed, Content, Cosigned, CustodyRecord, FeedTree, Fill, NewEntry,
};

/// Ranges held as digests after which a custody note is made although the feed has not reached its checkpoint: what has not been spoken of
/// stays small in memory, and one note can list it.
const NOT_HELD_MAX: usize = 512;

/// The state of the thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    keys: Keys,
    mark: Option<MarkFile>,
    edges: HashMap<FeedId, Frontier>,
    custodies: Custodies,
    last_time: u64,
    seq: u64,
    checkpoint: Option<SignedCheckpoint>,
}

/// Answers that wait for the commit.
enum Release {
    Publish { reply: oneshot::Sender<Result<PublishedGroup, CommitFailure>>, outcomes: Vec<Pending>, _permit: Permit },
    Append { reply: oneshot::Sender<Result<Appended, CommitFailure>>, appended: Appended, _permit: Permit },
    Fill { reply: oneshot::Sender<Result<Filled, CommitFailure>>, filled: Filled, _permit: Permit },
    Keep { reply: oneshot::Sender<Result<(), CommitFailure>>, _permit: Permit },
}

/// As [`Published`], before the store has numbered arrivals.
enum Pending {
    New { index: u64, nth: u64 },
    Done(Published),
}

/// One commit in the making.
#[derive(Default)]
struct Group {
    commit: Commit,
    edges: HashMap<FeedId, Frontier>,
    custodies: Custodies,
    ids: HashMap<Uuid, ()>,
    filled: HashSet<(FeedId, u64)>,
    own: Vec<NewEntry>,
    own_edge: Option<Frontier>,
    bytes: usize,
    kept_bytes: usize,
    entries: usize,
    last_time: u64,
    releases: Vec<Release>,
}

impl Writer {
    /// Reads where every feed stands, compares the mark, and begins the feed on a declared first start.
    pub(super) fn open(shared: Arc<Shared>, options: Options) -> Result<Self, StartError> {
        let store = Arc::clone(&shared.store);
        let me = options.feed.member.clone();
        let mut edges = HashMap::new();
        let mut custodies = Custodies::new();
        let mut last_time = 0;
        for state in store.feeds() {
            for cosigned in store.cosigned_newest(&state.feed)?.iter().filter(|cosigned| cosigned.cosigner == me) {
                last_time = later(cosigned.time, last_time);
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
                    .not_held(&state.feed, NOT_HELD_RANGES_MAX)?
                    .into_iter()
                    .filter(|(range, _)| range.end > since)
                    .map(|(range, reason)| (range.start.max(since)..range.end, reason))
                    .collect();
            }
            edges.insert(state.feed, state.frontier);
        }
        let mut writer = Self {
            seq: store.seq(),
            shared,
            keys: options.keys,
            mark: None,
            edges,
            custodies,
            last_time,
            checkpoint: None,
        };
        writer.open_feed(&options.feed, &options.mark, options.first)?;
        Ok(writer)
    }

    fn open_feed(&mut self, feed: &FeedId, mark: &std::path::Path, first: bool) -> Result<(), StartError> {
        let held = self.shared.store.feed(feed);
        let found = MarkFile::read(mark)?;
        let doubt = match (&held, &found) {
            (None, None) if first => {
                self.begin(feed)?;
                let edge = self.edges.get(feed).cloned().unwrap_or_default();
                self.mark = Some(MarkFile::create(mark, &Mark { epoch: feed.epoch, size: 0, root: edge.root() })?);
                return Ok(());
            }
            (None, None) => {
                Some("there is neither a feed nor a mark; a first start ever is declared with --first".into())
            }
            (Some(_), None) => Some(format!("the mark {} is missing", mark.display())),
            (_, Some((_, mark))) if mark.epoch != feed.epoch => {
                Some(format!("the mark is of epoch {}, the key of epoch {}", mark.epoch, feed.epoch))
            }
            (None, Some((_, mark))) => Some(format!("the mark says {} entries, the store holds no feed", mark.size)),
            (Some(state), Some((_, mark))) if mark.size > state.frontier.size() => {
                Some(format!("the mark says {} entries, the store holds {}", mark.size, state.frontier.size()))
            }
            (Some(_), Some((_, mark))) => {
                let tree = FeedTree { store: self.shared.store.as_ref(), feed };
                (root_at(&tree, mark.size)? != mark.root)
                    .then(|| format!("the store's tree of {} entries is another one than the mark's", mark.size))
            }
        };
        if let Some(state) = held {
            // Verified when it was committed: by this node's own key.
            self.checkpoint = SignedCheckpoint::verify(
                &state.checkpoint,
                &self.keys.feed.iter().map(|key| key.verifier().clone()).collect::<Vec<_>>(),
            )
            .ok();
            *self.shared.newest.lock() = self.checkpoint.clone();
        }
        match doubt {
            Some(reason) => {
                tracing::error!(reason, "feed in doubt: this node serves and follows, and does not publish");
                self.shared.gate.send_replace(Gate::InDoubt(reason));
            }
            None => self.mark = found.map(|(file, _)| file),
        }
        Ok(())
    }

    /// A new feed signs size 0.
    fn begin(&mut self, feed: &FeedId) -> Result<(), StartError> {
        let edge = Frontier::new();
        let signed =
            sign(&checkpoint_of(feed, &edge), &self.keys.feed).map_err(|error| StartError::Keys(error.to_string()))?;
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
        self.edges.insert(feed.clone(), edge);
        *self.shared.newest.lock() = Some(signed.clone());
        self.checkpoint = Some(signed);
        Ok(())
    }

    /// Commits what comes, until told to stop or nobody is left.
    pub(super) fn run(mut self, queue: &Receiver<Work>) {
        let mut carried = None;
        loop {
            let Some(first) = carried.take().or_else(|| queue.recv().ok()) else { return };
            let mut group = Group { last_time: self.last_time, ..Group::default() };
            let mut stop = None;
            let mut next = Some(first);
            while let Some(work) = next.take() {
                match work {
                    Work::Stop(reply) => {
                        stop = Some(reply);
                        break;
                    }
                    work if group.fits(&work) => self.take(&mut group, work),
                    work => {
                        carried = Some(work);
                        break;
                    }
                }
                next = if group.only_answers() { queue.recv_timeout(COMPANY_WAIT).ok() } else { queue.try_recv().ok() };
            }
            if !group.releases.is_empty() {
                self.commit(group);
            }
            if let Some(reply) = stop {
                let _ = reply.send(());
                return;
            }
        }
    }

    fn take(&self, group: &mut Group, work: Work) {
        match work {
            Work::Publish(bulletins, reply, permit) => self.take_publish(group, bulletins, reply, permit),
            Work::Append(batch, reply, permit) => self.take_append(group, *batch, reply, permit),
            Work::Fill(filling, reply, permit) => self.take_fill(group, *filling, reply, permit),
            Work::Keep(kept, reply, permit) => {
                group.kept_bytes += kept.bytes();
                let Kept { cosigned, custody, cursors, rosters, crls } = kept;
                group.commit.cosigned.extend(cosigned);
                group.commit.custody.extend(custody);
                group.commit.cursors.extend(cursors);
                group.commit.rosters.extend(rosters);
                group.commit.crls.extend(crls);
                group.releases.push(Release::Keep { reply, _permit: permit });
            }
            Work::Stop(_) => {}
        }
    }

    fn take_publish(
        &self,
        group: &mut Group,
        bulletins: Vec<ValidBulletin>,
        reply: oneshot::Sender<Result<PublishedGroup, CommitFailure>>,
        permit: Permit,
    ) {
        let refusal = match &*self.shared.gate.borrow() {
            Gate::Open => None,
            Gate::Starting => Some(CommitFailure::Busy),
            Gate::InDoubt(reason) => Some(CommitFailure::InDoubt(reason.clone())),
            Gate::Stopped(reason) => Some(CommitFailure::Stopped(reason.clone())),
        };
        if let Some(failure) = refusal {
            let _ = reply.send(Err(failure));
            return;
        }
        let feed = &self.shared.feed;
        let mut outcomes = Vec::with_capacity(bulletins.len());
        // Looked up before anything is appended, so that a failing read leaves the group as it was.
        let mut taken = Vec::with_capacity(bulletins.len());
        for bulletin in &bulletins {
            match self.shared.store.find(&feed.member, bulletin.header.id.uuid()) {
                Ok(location) => taken.push(location),
                Err(error) => {
                    let _ = reply.send(Err(CommitFailure::Stopped(error.to_string())));
                    return;
                }
            }
        }
        let edge = group.own_edge.get_or_insert_with(|| self.edges.get(feed).cloned().unwrap_or_default());
        for (bulletin, location) in bulletins.into_iter().zip(taken) {
            if let Some(location) = location {
                outcomes.push(Pending::Done(Published::Taken(location)));
                continue;
            }
            if group.ids.insert(bulletin.header.id.uuid(), ()).is_some() {
                outcomes.push(Pending::Done(Published::TakenInGroup));
                continue;
            }
            outcomes.push(Pending::New { index: edge.size(), nth: group.own.len() as u64 });
            edge.append(&bulletin.digest);
            group.bytes += bulletin.envelope.len();
            group.entries += 1;
            group.own.push(NewEntry {
                digest: bulletin.digest,
                content: Content::Disclosed {
                    envelope: bulletin.envelope,
                    header: Some(Arc::new(bulletin.proto_header)),
                },
            });
        }
        group.releases.push(Release::Publish { reply, outcomes, _permit: permit });
    }

    fn take_append(
        &self,
        group: &mut Group,
        batch: VerifiedBatch,
        reply: oneshot::Sender<Result<Appended, CommitFailure>>,
        permit: Permit,
    ) {
        let VerifiedBatch { feed, first, entries, frontier, checkpoint, consistency_proof, .. } = batch;
        let held = group.edges.get(&feed).or_else(|| self.edges.get(&feed)).map_or(0, Frontier::size);
        if held != first {
            let _ = reply.send(Err(CommitFailure::Stale { held, first }));
            return;
        }
        let me = &self.shared.feed.member;
        let progress = group
            .custodies
            .entry(feed.clone())
            .or_insert_with(|| self.custodies.get(&feed).cloned().unwrap_or_default());
        let mut new = Vec::with_capacity(entries.len());
        for (index, entry) in (first..).zip(entries) {
            let content = match entry.content {
                barid_core::follow::VerifiedContent::Disclosed { envelope, header } => {
                    group.bytes += envelope.len();
                    Content::Disclosed { envelope, header }
                }
                barid_core::follow::VerifiedContent::Undisclosed(reason) => {
                    note_not_held(&mut progress.not_held, index, reason);
                    Content::Undisclosed(reason)
                }
            };
            group.entries += 1;
            new.push(NewEntry { digest: entry.digest, content });
        }
        let size = frontier.size();
        let mut appended = Appended { size, cosigned: None, custody: Vec::new() };
        let (seconds, _) = now();
        let time = later(seconds, group.last_time);
        let complete = checkpoint.checkpoint.size == size && checkpoint.checkpoint.root == frontier.root();
        if complete {
            if time <= seconds + u64::try_from(barid_core::limits::CLOCK_AHEAD_SECONDS_MAX).unwrap_or(300) {
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
            } else {
                tracing::error!(
                    behind_seconds = time - seconds,
                    "the clock is behind our last cosignature: not cosigning"
                );
            }
        }
        if complete || progress.not_held.len() >= NOT_HELD_MAX {
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

    fn take_fill(
        &self,
        group: &mut Group,
        Filling { fills, mut not_held }: Filling,
        reply: oneshot::Sender<Result<Filled, CommitFailure>>,
        permit: Permit,
    ) {
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
            let time = later(now().0, group.last_time);
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

    fn commit(&mut self, mut group: Group) {
        let feed = self.shared.feed.clone();
        let own_entries = std::mem::take(&mut group.own);
        let mut signed = self.checkpoint.clone();
        let mut own_at = 0;
        if let (Some(edge), false) = (&group.own_edge, own_entries.is_empty()) {
            let checkpoint = match sign(&checkpoint_of(&feed, edge), &self.keys.feed) {
                Ok(checkpoint) => checkpoint,
                Err(error) => return self.fail(group.releases, &CommitFailure::Stopped(error.to_string())),
            };
            // Behind the appends of other feeds: its arrivals come last.
            own_at = group.commit.appends.iter().map(disclosed).sum();
            group.commit.appends.push(Append {
                feed: feed.clone(),
                first: edge.size() - own_entries.len() as u64,
                entries: own_entries,
                checkpoint: checkpoint.note.clone(),
                checkpoint_size: edge.size(),
                consistency_proof: Vec::new(),
            });
            signed = Some(checkpoint);
        }
        group.commit.time_unix_ms = now().1;
        let empty = is_empty(&group.commit);
        let result = if empty { Ok(None) } else { self.shared.store.commit(group.commit, self.seq).map(Some) };
        match result {
            Ok(committed) => {
                let first_arrival = committed.as_ref().map_or(0, |committed| committed.first_arrival + own_at);
                self.edges.extend(group.edges);
                self.custodies.extend(group.custodies);
                self.last_time = group.last_time;
                if let Some(edge) = group.own_edge {
                    self.edges.insert(feed, edge);
                }
                if let Some(committed) = committed {
                    self.seq = committed.seq;
                    if self.checkpoint != signed {
                        if let Err(failure) = self.write_mark(signed.as_ref()) {
                            self.fail(group.releases, &failure);
                            return;
                        }
                        *self.shared.newest.lock() = signed.clone();
                        self.checkpoint = signed;
                    }
                    self.announce(&committed);
                }
                self.release(group.releases, first_arrival);
            }
            Err(CommitError::DiskFull { available_bytes, reserve_bytes }) => {
                let failure = CommitFailure::DiskFull(format!(
                    "free space of {available_bytes} bytes is below the reserve of {reserve_bytes} bytes"
                ));
                fail_all(group.releases, &failure);
            }
            Err(error) => {
                let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
                self.fail(group.releases, &CommitFailure::Stopped(format!("{error}{source}")));
            }
        }
    }

    fn write_mark(&mut self, signed: Option<&SignedCheckpoint>) -> Result<(), CommitFailure> {
        let (Some(file), Some(signed)) = (self.mark.as_mut(), signed) else { return Ok(()) };
        let Checkpoint { feed, size, root } = &signed.checkpoint;
        file.write(&Mark { epoch: feed.epoch, size: *size, root: *root })
            .map_err(|error| CommitFailure::Stopped(error.to_string()))
    }

    fn announce(&self, committed: &Committed) {
        trace(committed);
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

    fn release(&self, releases: Vec<Release>, first_arrival: u64) {
        for release in releases {
            match release {
                Release::Publish { reply, outcomes, .. } => {
                    let outcomes = outcomes
                        .into_iter()
                        .map(|pending| match pending {
                            Pending::New { index, nth } => Published::New { index, arrival: first_arrival + nth },
                            Pending::Done(done) => done,
                        })
                        .collect();
                    let Some(checkpoint) = self.checkpoint.clone() else { continue };
                    let _ = reply.send(Ok(PublishedGroup { outcomes, checkpoint }));
                }
                Release::Append { reply, appended, .. } => {
                    let _ = reply.send(Ok(appended));
                }
                Release::Fill { reply, filled, .. } => {
                    let _ = reply.send(Ok(filled));
                }
                Release::Keep { reply, .. } => {
                    let _ = reply.send(Ok(()));
                }
            }
        }
    }

    /// The store has failed for ever: say so, and refuse all that comes.
    fn fail(&self, releases: Vec<Release>, failure: &CommitFailure) {
        tracing::error!(%failure, "the store has failed: nothing more is committed");
        self.shared.gate.send_replace(Gate::Stopped(failure.to_string()));
        fail_all(releases, failure);
    }
}

impl Group {
    fn fits(&self, work: &Work) -> bool {
        let (entries, bytes): (usize, usize) = match work {
            Work::Publish(group, ..) => (group.len(), group.iter().map(|bulletin| bulletin.envelope.len()).sum()),
            Work::Append(batch, ..) => (batch.entries.len(), batch.envelope_bytes()),
            Work::Fill(filling, ..) => (filling.fills.entries.len(), filling.fills.envelope_bytes()),
            Work::Keep(..) | Work::Stop(_) => (0, 0),
        };
        let kept = if let Work::Keep(kept, ..) = work { kept.bytes() } else { 0 };
        self.releases.is_empty()
            || (self.kept_bytes + kept <= KEPT_BYTES_MAX
                && self.entries + entries <= COMMIT_ENTRIES_MAX
                && self.bytes + bytes <= COMMIT_BYTES_MAX
                && self.releases.len() < COMMIT_ENTRIES_MAX)
    }

    fn only_answers(&self) -> bool {
        self.entries == 0
            && self.releases.len() < COMMIT_ENTRIES_MAX
            && self.releases.iter().all(|release| matches!(release, Release::Keep { .. }))
    }
}

fn is_empty(commit: &Commit) -> bool {
    commit.appends.is_empty()
        && commit.fills.is_empty()
        && commit.cosigned.is_empty()
        && commit.custody.is_empty()
        && commit.cursors.is_empty()
        && commit.rosters.is_empty()
        && commit.crls.is_empty()
}

fn disclosed(append: &Append) -> u64 {
    append.entries.iter().filter(|entry| matches!(entry.content, Content::Disclosed { .. })).count() as u64
}

/// Adds entry `index`, held as digest only for `reason`, to ascending ranges.
fn note_not_held(ranges: &mut Vec<(std::ops::Range<u64>, Undisclosed)>, index: u64, reason: Undisclosed) {
    match ranges.last_mut() {
        Some((range, last)) if range.end == index && *last == reason => range.end = index + 1,
        _ => ranges.push((index..index + 1, reason)),
    }
}

/// Entry `index` is held in full: what is left of the ranges.
fn take_out(ranges: &mut Vec<(std::ops::Range<u64>, Undisclosed)>, index: u64) {
    let place = ranges.partition_point(|(range, _)| range.end <= index);
    let Some((range, reason)) = ranges.get(place).filter(|(range, _)| range.contains(&index)).cloned() else { return };
    let left = [range.start..index, index + 1..range.end].into_iter().filter(|range| !range.is_empty());
    ranges.splice(place..=place, left.map(|range| (range, reason)));
}

fn fail_all(releases: Vec<Release>, failure: &CommitFailure) {
    for release in releases {
        match release {
            Release::Publish { reply, .. } => drop(reply.send(Err(failure.clone()))),
            Release::Append { reply, .. } => drop(reply.send(Err(failure.clone()))),
            Release::Fill { reply, .. } => drop(reply.send(Err(failure.clone()))),
            Release::Keep { reply, .. } => drop(reply.send(Err(failure.clone()))),
        }
    }
}

/// Custody notes on `range`: one, or several where one cannot list all that is not held. None if the range is empty.
fn custody_of(
    checkpoint: &Checkpoint,
    holder: &Member,
    mut range: std::ops::Range<u64>,
    not_held: &[(std::ops::Range<u64>, Undisclosed)],
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
