//! The writer: drain, append, sign, commit, mark, release.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use barid_core::bulletin::ValidBulletin;
use barid_core::feed::checkpoint::{Checkpoint, SignedCheckpoint, sign};
use barid_core::feed::tree::{Frontier, root_at};
use barid_core::limits::{COMMIT_BYTES_MAX, COMMIT_ENTRIES_MAX};
use barid_core::names::FeedId;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::mark::{Mark, MarkFile, forget_doubt, read_doubt, write_doubt};
use super::{
    CommitFailure, Custodies, Gate, KEPT_BYTES_MAX, Kept, Keys, Options, Permit, Published, PublishedGroup,
    ROOM_CHECK_EVERY, Shared, StartError, Work, checkpoint_of, later, now, owns, trace,
};
use crate::store::{
    Append, Commit, CommitError, Committed, Content, CursorRecord, CustodyRecord, FeedTree, NewEntry, ReadError,
};

use super::queue::Queue;
use super::received::UNSPOKEN_RANGES_MAX;
use super::release::{Pending, Release, fail_all, refuse, release};
use super::room::Known;
use super::spoken::{Debts, Word};

/// What is known of the feeds, and what commits to the store: one at a time has it in hand (`desk`).
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) keys: Keys,
    pub(super) mark: Option<MarkFile>,
    pub(super) edges: HashMap<FeedId, Frontier>,
    pub(super) custodies: Custodies,
    pub(super) debts: Debts,
    /// By feed, how far this node has cosigned it.
    pub(super) words: HashMap<FeedId, Word>,
    pub(super) last_time: u64,
    pub(super) seq: u64,
    pub(super) checkpoint: Option<SignedCheckpoint>,
    /// When it was last looked whether there is room.
    pub(super) looked: Instant,
    pub(super) known: Known,
}

/// One commit in the making.
#[derive(Default)]
pub(super) struct Group {
    pub(super) commit: Commit,
    pub(super) edges: HashMap<FeedId, Frontier>,
    pub(super) custodies: Custodies,
    pub(super) debts: Debts,
    /// What is owed is said in this commit.
    pub(super) speak_now: bool,
    pub(super) ids: HashMap<Uuid, ()>,
    pub(super) filled: HashSet<(FeedId, u64)>,
    pub(super) cursors: BTreeMap<String, CursorRecord>,
    pub(super) own: Vec<NewEntry>,
    pub(super) own_edge: Option<Frontier>,
    pub(super) bytes: usize,
    pub(super) kept_bytes: usize,
    pub(super) entries: usize,
    /// How far feeds are cosigned with this group.
    pub(super) words: HashMap<FeedId, Word>,
    /// Something could not be said yet, and can be soon.
    pub(super) speak_again: bool,
    pub(super) last_time: u64,
    pub(super) releases: Vec<Release>,
}

/// What the store did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was not asked.
    #[default]
    Nothing,
    /// So many entries are durable, with what else was committed.
    Durable(usize),
    /// It refused, or failed.
    Failed,
}

/// What came of a turn at the queue.
#[derive(Default)]
pub(super) struct Turn {
    /// What the store did of it.
    pub(super) outcome: Outcome,
    /// Who waits for the end, which is next.
    pub(super) stop: Option<oneshot::Sender<()>>,
}

impl Writer {
    /// Reads where every feed stands, compares the mark, and begins the feed on a declared first start.
    pub(super) fn open(shared: Arc<Shared>, options: Options) -> Result<Self, StartError> {
        let store = Arc::clone(&shared.store);
        let me = options.feed.member.clone();
        let mut edges = HashMap::new();
        let mut custodies = Custodies::new();
        let mut last_time = 0;
        let (mut debts, mut words) = (Debts::default(), HashMap::new());
        for state in store.feeds() {
            let mut cosigned_size = 0;
            for cosigned in store.cosigned_newest(&state.feed)?.iter().filter(|cosigned| cosigned.cosigner == me) {
                cosigned_size = cosigned.size;
                last_time = later(cosigned.time, last_time);
                words.insert(state.feed.clone(), Word::of(cosigned));
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
                    .not_held_from(&state.feed, since, UNSPOKEN_RANGES_MAX)?
                    .into_iter()
                    .map(|(range, reason)| (range.start.max(since)..range.end, reason))
                    .collect();
                debts.owe_since(&state, cosigned_size, since);
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
            debts,
            words,
            last_time,
            checkpoint: None,
            looked: Instant::now(),
            known: Known::default(),
        };
        writer.look_for_room();
        writer.shared.last_time.store(last_time, Ordering::Relaxed);
        writer.open_feed(&options.feed, &options.mark, options.first)?;
        Ok(writer)
    }

    fn open_feed(&mut self, feed: &FeedId, mark: &std::path::Path, first: bool) -> Result<(), StartError> {
        let held = self.shared.store.feed(feed);
        let found = MarkFile::read(mark)?;
        forget_doubt(mark, feed.epoch);
        let remembered = read_doubt(mark, feed.epoch)?;
        let doubt = match (&held, &found) {
            (None, None) if first && remembered.is_none() => {
                self.begin(feed)?;
                let edge = self.edges.get(feed).cloned().unwrap_or_default();
                self.mark = Some(MarkFile::create(mark, &Mark { epoch: feed.epoch, size: 0, root: edge.root() })?);
                return Ok(());
            }
            (None, None) => Some(remembered.unwrap_or_else(|| {
                "there is neither a feed nor a mark (a member that has never published anywhere is started with --first instead)"
                    .into()
            })),
            (Some(_), None) => Some(format!("the mark {} is missing", mark.display())),
            (Some(_), Some(_)) if remembered.is_some() => remembered,
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
        let lasting = found.as_ref().is_some_and(|(_, mark)| mark.epoch == feed.epoch);
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
                // What was never begun may still be declared with --first.
                if lasting {
                    write_doubt(mark, feed.epoch, &reason)?;
                }
                self.shared.gate.send_replace(Gate::InDoubt(reason));
            }
            None => {
                self.mark = found.map(|(file, _)| file);
                // The power may have gone between a record and its mark. Peers are shown the record from now on: an older copy of the store
                // must be known as such.
                if let (Some(file), Some(edge)) = (self.mark.as_mut(), self.edges.get(feed)) {
                    file.write(&Mark { epoch: feed.epoch, size: edge.size(), root: edge.root() })?;
                }
            }
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

    /// When there is something to say.
    pub(super) fn due(&self) -> Option<Instant> {
        self.debts.due()
    }

    /// One commit of what waits and fits together.
    pub(super) fn turn(&mut self, queue: &Queue) -> Turn {
        let mut next = queue.first(Instant::now());
        if next.is_none() && self.debts.due().is_none_or(|due| due > Instant::now()) {
            return Turn::default();
        }
        self.look_where_it_is_near();
        let apart = self.commits_apart();
        let mut group = Group { last_time: self.last_time, ..Group::default() };
        let mut turn = Turn::default();
        while let Some(work) = next.take() {
            match work {
                Work::Stop(reply) => {
                    group.speak_now = true;
                    turn.stop = Some(reply);
                    break;
                }
                work if group.fits(&work) && !(apart && group.mixes(&self.shared.feed.member, &work)) => {
                    self.take(&mut group, work);
                }
                work => {
                    queue.give_back(work);
                    break;
                }
            }
            next = queue.more();
        }
        turn.outcome = self.commit(group);
        queue.owe(self.debts.due());
        turn
    }

    /// Looks whether there is room on the disk, if it is time to; returns when that was done last.
    pub(super) fn look_for_room_in_time(&mut self) -> Instant {
        if self.looked.elapsed() >= ROOM_CHECK_EVERY {
            self.look_for_room();
            self.looked = Instant::now();
        }
        self.looked
    }

    fn take(&self, group: &mut Group, work: Work) {
        // After a failed commit nobody knows what the disk holds: nothing is tried on top of it.
        if let Gate::Stopped(reason) = &*self.shared.gate.borrow() {
            return refuse(work, &CommitFailure::Stopped(reason.clone()));
        }
        if let Some(full) = self.has_no_room(&work) {
            return refuse(work, &full);
        }
        match work {
            Work::Publish(bulletins, reply, permit) => self.take_publish(group, bulletins, reply, permit),
            Work::Append(batch, reply, permit) => self.take_append(group, *batch, reply, permit),
            Work::Fill(filling, reply, permit) => self.take_fill(group, *filling, reply, permit),
            Work::Express(express, reply, permit) => self.take_express(group, *express, reply, permit),
            Work::Keep(kept, reply, permit) => {
                group.kept_bytes += kept.bytes();
                let Kept { cosigned, custody, cursors, subscriptions, rosters, crls, forks } = kept;
                self.remember(group, &cosigned);
                group.commit.cosigned.extend(cosigned);
                group.commit.custody.extend(custody);
                for cursor in cursors {
                    match group.cursors.get_mut(&cursor.subscription) {
                        Some(held) if held.arrival > cursor.arrival => {}
                        Some(held) => *held = cursor,
                        None => _ = group.cursors.insert(cursor.subscription.clone(), cursor),
                    }
                }
                group.commit.subscriptions.extend(subscriptions);
                group.commit.rosters.extend(rosters);
                group.commit.crls.extend(crls);
                group.commit.forks.extend(forks);
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
                    let _ = reply.send(Err(unreadable(&error)));
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

    fn commit(&mut self, mut group: Group) -> Outcome {
        let feed = self.shared.feed.clone();
        let own_entries = std::mem::take(&mut group.own);
        let mut signed = self.checkpoint.clone();
        let mut own_at = 0;
        if let (Some(edge), false) = (&group.own_edge, own_entries.is_empty()) {
            let checkpoint = match sign(&checkpoint_of(&feed, edge), &self.keys.feed) {
                Ok(checkpoint) => checkpoint,
                Err(error) => {
                    self.fail(group.releases, &CommitFailure::Stopped(error.to_string()));
                    return Outcome::Nothing;
                }
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
        let spoken = self.speak(&mut group);
        group.commit.time_unix_ms = now().1;
        group.commit.cursors = self.advancing(std::mem::take(&mut group.cursors), &group.commit);
        let empty = is_empty(&group.commit);
        self.took_room(group.bytes + group.kept_bytes);
        let result = if empty { Ok(None) } else { self.shared.store.commit(group.commit, self.seq).map(Some) };
        match result {
            Ok(committed) => {
                let first_arrival = committed.as_ref().map_or(0, |committed| committed.first_arrival + own_at);
                self.edges.extend(group.edges);
                self.custodies.extend(group.custodies);
                self.words.extend(group.words);
                self.last_time = group.last_time;
                self.shared.last_time.store(self.last_time, Ordering::Relaxed);
                if let Some(edge) = group.own_edge {
                    self.edges.insert(feed, edge);
                }
                let outcome = committed.as_ref().map_or(Outcome::Nothing, |_| Outcome::Durable(group.entries));
                if let Some(committed) = committed {
                    self.seq = committed.seq;
                    if self.checkpoint != signed {
                        if let Err(failure) = self.write_mark(signed.as_ref()) {
                            self.fail(group.releases, &failure);
                            return Outcome::Failed;
                        }
                        *self.shared.newest.lock() = signed.clone();
                        self.checkpoint = signed;
                    }
                    self.announce(&committed);
                }
                release(group.releases, first_arrival, self.checkpoint.as_ref());
                // After those who wait for the entries themselves.
                self.said(group.debts, spoken, group.speak_again);
                outcome
            }
            Err(full @ (CommitError::DiskFull { .. } | CommitError::ViewBehind(_))) => {
                self.debts.postpone();
                self.looked = Instant::now();
                self.look_for_room();
                fail_all(group.releases, &CommitFailure::DiskFull(full.to_string()));
                Outcome::Failed
            }
            Err(error) => {
                self.fail(group.releases, &CommitFailure::Stopped(crate::causes::in_one_line(&error)));
                Outcome::Failed
            }
        }
    }

    /// Keeps only cursors that advance their subscription; a concurrent call with a lower cursor is a no-op. So is one under a name that is
    /// not known, or that this commit removes or gives anew.
    fn advancing(&self, cursors: BTreeMap<String, CursorRecord>, commit: &Commit) -> Vec<CursorRecord> {
        let advances = |cursor: &CursorRecord| {
            let changed = commit.subscriptions.iter().any(|record| record.subscription == cursor.subscription);
            let held = self.shared.store.subscription(&cursor.subscription).filter(|_| !changed);
            held.is_some_and(|held| held.is_advanced_by(cursor, commit.time_unix_ms))
        };
        cursors.into_values().filter(advances).collect()
    }

    fn write_mark(&mut self, signed: Option<&SignedCheckpoint>) -> Result<(), CommitFailure> {
        let (Some(file), Some(signed)) = (self.mark.as_mut(), signed) else { return Ok(()) };
        let Checkpoint { feed, size, root } = &signed.checkpoint;
        file.write(&Mark { epoch: feed.epoch, size: *size, root: *root })
            .map_err(|error| CommitFailure::Stopped(error.to_string()))
    }

    fn announce(&self, committed: &Committed) {
        trace(committed);
        self.shared.count_bytes(committed);
        self.shared.end_arrival.send_if_modified(|end| {
            let before = std::mem::replace(end, committed.end_arrival.max(*end));
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

    /// The store has failed for ever: say so, and refuse all that comes.
    fn fail(&mut self, releases: Vec<Release>, failure: &CommitFailure) {
        self.debts = Debts::default();
        self.has_failed(&failure.to_string());
        fail_all(releases, failure);
    }

    /// Nothing more is committed: why.
    pub(super) fn has_failed(&self, why: &str) {
        tracing::error!(why, "the store has failed: nothing more is committed");
        self.shared.gate.send_replace(Gate::Stopped(why.to_owned()));
    }
}

impl Group {
    fn fits(&self, work: &Work) -> bool {
        let (entries, bytes) = work.size();
        let kept = if let Work::Keep(kept, ..) = work { kept.bytes() } else { 0 };
        // A feed's entries ahead of its order, and those in order, are not of one commit: the second must know the first.
        let apart = match work {
            Work::Express(..) => !self.edges.is_empty(),
            Work::Append(..) => !self.commit.express.is_empty(),
            _ => false,
        };
        self.releases.is_empty()
            || (!apart
                && self.kept_bytes + kept <= KEPT_BYTES_MAX
                && self.entries + entries <= COMMIT_ENTRIES_MAX
                && self.bytes + bytes <= COMMIT_BYTES_MAX
                && self.releases.len() < COMMIT_ENTRIES_MAX)
    }
}

fn is_empty(commit: &Commit) -> bool {
    commit.appends.is_empty()
        && commit.fills.is_empty()
        && commit.express.is_empty()
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

/// Why something is not committed of which the store cannot say what is there already.
pub(super) fn unreadable(error: &ReadError) -> CommitFailure {
    match error {
        ReadError::Behind(_) => CommitFailure::Busy,
        error => CommitFailure::Stopped(error.to_string()),
    }
}
