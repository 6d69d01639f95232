//! One node: its committed state, which survives a crash, and its live state, which does not.
//!
//! In scope: the commit, which is atomic, and reading the committed state. Out of scope: the
//! decisions, which core makes (`replication`, `backfill`, `forks`, `epochs`).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use barid_core::backfill::is_missing;
use barid_core::bulletin::TopicFilter;
use barid_core::envelope;
use barid_core::feed::checkpoint::{Checkpoint, SignedCheckpoint, sign};
use barid_core::feed::note::SigningKey;
use barid_core::feed::tree::MemoryTree;
use barid_core::follow::{
    Delivery, ProvenEntry, VerifiedBackfills, VerifiedBatch, VerifiedContent, VerifiedEntry, VerifiedPriority, delivery,
};
use barid_core::ids::{Digest, FeedId, Hash, Member, Undisclosed};
use barid_core::priority::{Admission, admit, first_conflict, proven_by_batch};
use barid_core::proto;
use barid_core::roster::RosterChain;
use barid_core::serve::Held;
use bytes::Bytes;

use crate::Mutation;
use crate::disk_space::Bound;
use crate::exchange::Nature;
use crate::live::Live;
use crate::model::Place;
use crate::priority::{ROOM, ROOM_FOR_ALL, entry_priority};

/// One entry of a feed, as held.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) digest: Digest,
    pub(crate) content: Content,
    /// Stored before its audience could be determined.
    pub(crate) pending_roster: bool,
}

#[derive(Clone)]
pub(crate) enum Content {
    Disclosed { envelope: Bytes, header: Option<Arc<proto::Header>> },
    Undisclosed(Undisclosed),
}

impl Entry {
    pub(crate) fn held(&self) -> Held<'_> {
        match &self.content {
            Content::Disclosed { envelope, header } => Held::Disclosed { envelope, header: header.as_deref() },
            Content::Undisclosed(reason) => Held::Undisclosed(*reason),
        }
    }

    pub(crate) fn is_disclosed(&self) -> bool {
        matches!(self.content, Content::Disclosed { .. })
    }
}

/// The committed part of a feed.
#[derive(Clone, Default)]
pub(crate) struct Log {
    pub(crate) tree: MemoryTree,
    pub(crate) entries: Vec<Entry>,
    pub(crate) checkpoint: Bytes,
    pub(crate) checkpoint_size: u64,
    pub(crate) consistency_proof: Vec<Hash>,
}

impl Log {
    pub(crate) fn append(&mut self, entry: Entry) -> u64 {
        self.tree.append(&entry.digest);
        self.entries.push(entry);
        self.tree.size() - 1
    }

    pub(crate) fn entry(&self, index: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(index).ok()?)
    }

    pub(crate) fn sign(&mut self, feed: &FeedId, key: &SigningKey) {
        let checkpoint = Checkpoint { feed: feed.clone(), size: self.tree.size(), root: self.tree.root() };
        let signed = sign(&checkpoint, std::slice::from_ref(key)).expect("the key is the feed's");
        (self.checkpoint, self.checkpoint_size, self.consistency_proof) = (signed.note, checkpoint.size, Vec::new());
    }
}

/// An entry held ahead of its feed's order, with its proof.
#[derive(Clone)]
pub(crate) struct Ahead {
    pub(crate) entry: Entry,
    pub(crate) checkpoint: SignedCheckpoint,
    pub(crate) proof: Vec<Hash>,
}

/// The content of a store: everything that a backup restores.
#[derive(Clone)]
pub(crate) struct Disk {
    pub(crate) chain: RosterChain,
    pub(crate) logs: BTreeMap<FeedId, Log>,
    /// Entries held out of order, by feed and index.
    pub(crate) ahead: BTreeMap<Place, Ahead>,
    pub(crate) by_offset: Vec<Place>,
    pub(crate) cursor: u64,
    /// Ids in this member's own feeds.
    pub(crate) ids: BTreeMap<String, Place>,
    /// Unix seconds of its last cosignature.
    pub(crate) last_time: u64,
    /// Forked feeds, with the evidence.
    pub(crate) forks: BTreeMap<FeedId, Bytes>,
}

impl Disk {
    pub(crate) fn new(chain: RosterChain) -> Self {
        Self {
            chain,
            logs: BTreeMap::new(),
            ahead: BTreeMap::new(),
            by_offset: Vec::new(),
            cursor: 0,
            ids: BTreeMap::new(),
            last_time: 0,
            forks: BTreeMap::new(),
        }
    }

    pub(crate) fn size(&self, feed: &FeedId) -> u64 {
        self.logs.get(feed).map_or(0, |log| log.tree.size())
    }

    /// Returns the entries of a feed held out of order, by ascending index.
    pub(crate) fn ahead_of(&self, feed: &FeedId) -> impl Iterator<Item = (u64, &Ahead)> {
        self.ahead.range((feed.clone(), 0)..=(feed.clone(), u64::MAX)).map(|((_, index), ahead)| (*index, ahead))
    }

    /// Returns an entry, in order or ahead of it.
    pub(crate) fn entry(&self, feed: &FeedId, index: u64) -> Option<&Entry> {
        let ahead = || self.ahead.get(&(feed.clone(), index)).map(|ahead| &ahead.entry);
        self.logs.get(feed).and_then(|log| log.entry(index)).or_else(ahead)
    }
}

/// The last signed state, stored beside the keys and outside the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HighWaterMark {
    pub(crate) epoch: u32,
    pub(crate) size: u64,
    pub(crate) root: Hash,
}

/// Work that waits for the next commit.
#[derive(Clone)]
pub(crate) enum Work {
    /// Envelope, header, and the publisher's id.
    Publish(Bytes, Option<Arc<proto::Header>>, u64),
    /// A bulletin of the node itself.
    Name(Bytes, Arc<proto::Header>),
    /// A batch from a peer, with the number of the request for that feed.
    Batch(Box<VerifiedBatch>, usize, u64),
    Backfill(Box<VerifiedBackfills>, usize, u64),
    /// An entry ahead of the order.
    PriorityEntry(Box<VerifiedPriority>),
    Roster(Bytes),
    Acknowledge(u64),
    Fork(FeedId, Bytes),
}

/// A batch that extended a feed.
pub(crate) struct Followed {
    pub(crate) feed: FeedId,
    pub(crate) from: usize,
    /// Number of the request.
    pub(crate) request: u64,
    /// Range of its entries.
    pub(crate) served: Range<u64>,
    /// How many of these had no content at the sender, or lost it to reduction.
    pub(crate) missing: u64,
    /// Whether content was dropped.
    pub(crate) reduced: bool,
}

/// The effects of a commit.
#[derive(Default)]
pub(crate) struct Committed {
    /// Own entries: publisher's id, place, and whether the id had been published before.
    pub(crate) released: Vec<(u64, Place, bool)>,
    pub(crate) followed: Vec<Followed>,
    /// Batches that no longer fitted.
    pub(crate) stale: Vec<(FeedId, usize)>,
    /// Backfilled content: feed, peer, request, number of entries.
    pub(crate) backfilled: Vec<(FeedId, usize, u64, u64)>,
    /// Priority entries, and their admission.
    pub(crate) priority_applied: Vec<(Place, Digest, Admission)>,
    /// Priority entries that their feed reached.
    pub(crate) matched: u64,
    /// Conflicts with a held entry: place, whether a batch had it, and its proof.
    pub(crate) conflicting: Vec<(Place, bool, Option<ProvenEntry>)>,
    pub(crate) arrived: Vec<Place>,
    pub(crate) acknowledged: Option<u64>,
    pub(crate) rosters: u64,
    pub(crate) bad_rosters: u64,
    pub(crate) signed: bool,
    /// Checkpoints to cosign.
    pub(crate) complete: Vec<SignedCheckpoint>,
    /// Backfilled content that was not admitted: peer and request.
    pub(crate) over_share: Vec<(usize, u64)>,
    /// Coverage names that were reached.
    pub(crate) reached: Vec<&'static str>,
    /// Violations.
    pub(crate) faults: Vec<String>,
}

pub(crate) struct Node {
    pub(crate) me: Member,
    pub(crate) nature: Nature,
    /// Topics that it follows; empty: all.
    pub(crate) topics: Vec<TopicFilter>,
    /// Its clock, in seconds from the correct time.
    pub(crate) clock: i64,
    pub(crate) disk: Disk,
    /// The size of its disk; `None`: unbounded.
    pub(crate) bound: Option<Bound>,
    pub(crate) backup: Option<Disk>,
    pub(crate) high_water_mark: Option<HighWaterMark>,
    /// The epoch that is known to need recovery.
    pub(crate) needs_recovery: Option<u32>,
    /// The feed in force, whose key it signs with.
    pub(crate) feed: FeedId,
    /// The newest epoch that its operators have opened.
    pub(crate) opened: u32,
    pub(crate) up: bool,
    /// Counts starts.
    pub(crate) start: u64,
    /// A second tree of its own feed, and the members that receive it.
    pub(crate) other: Option<(Log, BTreeSet<usize>)>,
    /// Lost in a crash.
    pub(crate) live: Live,
}

impl Node {
    pub(crate) fn new(feed: FeedId, first_roster: &RosterChain, nature: Nature) -> Self {
        Self {
            me: feed.member.clone(),
            nature,
            topics: Vec::new(),
            clock: 0,
            disk: Disk::new(first_roster.clone()),
            bound: None,
            backup: None,
            high_water_mark: None,
            needs_recovery: None,
            feed,
            opened: 1,
            up: false,
            start: 0,
            other: None,
            live: Live::default(),
        }
    }

    pub(crate) fn is_member(&self) -> bool {
        self.knows(&self.me)
    }

    pub(crate) fn knows(&self, member: &Member) -> bool {
        self.disk.chain.newest().member(member).is_some()
    }

    pub(crate) fn size(&self, feed: &FeedId) -> u64 {
        self.disk.size(feed)
    }

    /// Returns the log of a feed that a peer is served from.
    pub(crate) fn log_for(&self, feed: &FeedId, peer: usize) -> Option<&Log> {
        match &self.other {
            Some((other, to)) if *feed == self.feed && to.contains(&peer) => Some(other),
            _ => self.disk.logs.get(feed),
        }
    }

    /// Returns the log from which a peer is sent priority entries; with `crossed`, the tree that it
    /// is not served in order.
    pub(crate) fn priority_log_for(&self, feed: &FeedId, peer: usize, crossed: bool) -> Option<&Log> {
        match &self.other {
            Some((other, to)) if crossed && *feed == self.feed && !to.contains(&peer) => Some(other),
            Some(_) if crossed => self.disk.logs.get(feed),
            _ => self.log_for(feed, peer),
        }
    }

    /// Returns those entries of the message that are held as digests.
    pub(crate) fn undisclosed(
        &self,
        feed: &FeedId,
        backfills: &proto::BackfillResponse,
    ) -> BTreeMap<u64, (Digest, Undisclosed)> {
        let log = self.disk.logs.get(feed);
        let undisclosed = |backfill: &proto::Backfill| match log?.entry(backfill.index)? {
            Entry { digest, content: Content::Undisclosed(reason), .. } => Some((backfill.index, (*digest, *reason))),
            Entry { .. } => None,
        };
        backfills.items.iter().filter_map(undisclosed).collect()
    }

    /// Returns the next entry to deliver to a focal point.
    pub(crate) fn next_delivery(&mut self) -> Option<(u64, FeedId, u64)> {
        loop {
            let at = usize::try_from(self.live.read_to).ok()?;
            let (feed, index) = self.disk.by_offset.get(at)?.clone();
            let entry = self.disk.entry(&feed, index)?;
            let Content::Disclosed { header, .. } = &entry.content else { return None };
            let to = delivery(&feed.member, header.as_deref(), &self.me, &self.disk.chain);
            if let Delivery::PendingRoster { .. } = to {
                return None;
            }
            self.live.read_to += 1;
            if to.to_focal_points() {
                return Some((self.live.read_to, feed, index));
            }
        }
    }

    /// Commits work.
    pub(crate) fn apply(&mut self, work: Vec<Work>, key: &SigningKey, mutation: Option<Mutation>) -> Committed {
        let mut done = Committed::default();
        for work in work {
            match work {
                Work::Publish(envelope, header, id) => self.apply_own(envelope, header, id, &mut done),
                Work::Name(envelope, header) => {
                    if !self.disk.ids.contains_key(&header.id) {
                        self.append_own(envelope, Some(header), &mut done);
                    }
                }
                Work::Batch(batch, from, request) => self.apply_batch(*batch, from, request, mutation, &mut done),
                Work::Backfill(backfills, from, request) => {
                    self.apply_backfill(*backfills, from, request, mutation, &mut done);
                }
                Work::PriorityEntry(priority) => self.apply_priority(*priority, mutation, &mut done),
                Work::Roster(note) => match self.disk.chain.extend(&note) {
                    Ok(new) => done.rosters += u64::from(new),
                    // A roster that does not follow is requested again.
                    Err(_) => done.bad_rosters += 1,
                },
                Work::Acknowledge(offset) => {
                    self.disk.cursor = self.disk.cursor.max(offset);
                    done.acknowledged = Some(self.disk.cursor);
                }
                Work::Fork(feed, evidence) => drop(self.disk.forks.entry(feed).or_insert(evidence)),
            }
        }
        if done.signed {
            let feed = self.feed.clone();
            self.disk.logs.entry(feed.clone()).or_default().sign(&feed, key);
            if let Some((other, _)) = &mut self.other {
                other.sign(&feed, key);
            }
        }
        done
    }

    /// Publishes an entry. An id that was published before gets the first receipt.
    fn apply_own(&mut self, envelope: Bytes, header: Option<Arc<proto::Header>>, id: u64, done: &mut Committed) {
        let known = header.as_ref().and_then(|header| self.disk.ids.get(&header.id)).cloned();
        match known {
            Some(place) => done.released.push((id, place, true)),
            None => {
                let place = self.append_own(envelope, header, done);
                done.released.push((id, place, false));
            }
        }
    }

    fn append_own(&mut self, envelope: Bytes, header: Option<Arc<proto::Header>>, done: &mut Committed) -> Place {
        let feed = self.feed.clone();
        let digest = envelope::digest(&envelope);
        if let Some((other, _)) = &mut self.other {
            let lie = lie(&envelope);
            let digest = envelope::digest(&lie);
            let content = Content::Disclosed { envelope: lie, header: header.clone() };
            other.append(Entry { digest, content, pending_roster: false });
        }
        let content = Content::Disclosed { envelope, header };
        let index = self.append(&feed, Entry { digest, content, pending_roster: false }, true, done);
        done.signed = true;
        (feed, index)
    }

    fn apply_batch(
        &mut self,
        mut batch: VerifiedBatch,
        from: usize,
        request: u64,
        mutation: Option<Mutation>,
        done: &mut Committed,
    ) {
        let feed = batch.feed.clone();
        let continued = feed == self.feed && self.live.is_open();
        if self.size(&feed) != batch.first || continued {
            done.stale.push((feed, from));
            return;
        }
        let end = batch.first + batch.entries.len() as u64;
        let ahead = self.disk.ahead_of(&feed).take_while(|(index, _)| *index < end);
        let conflicting = first_conflict(&batch, ahead.map(|(index, ahead)| (index, ahead.entry.digest)));
        if let Some(index) = conflicting.filter(|_| mutation != Some(Mutation::IgnoreEntryEquivocation)) {
            let tree = self.disk.logs.get(&feed).map(|log| log.tree.clone()).unwrap_or_default();
            let offered = proven_by_batch(&batch, index, &tree, batch.first, &[]);
            done.conflicting.push(((feed, index), true, offered));
            return;
        }
        let reduced = self.reduce(&mut batch, mutation, done);
        let own = feed.member == self.me;
        let undisclosed = |entry: &&VerifiedEntry| matches!(entry.content, VerifiedContent::Undisclosed(reason) if is_missing(reason, own));
        let missing = batch.entries.iter().filter(undisclosed).count() as u64;
        for (place, entry) in batch.entries.into_iter().enumerate() {
            if mutation == Some(Mutation::SkipEntry) && place == 3 {
                continue;
            }
            let content = match entry.content {
                VerifiedContent::Disclosed { .. } if mutation == Some(Mutation::LoseContent) && place == 2 => {
                    Content::Undisclosed(Undisclosed::Purged)
                }
                VerifiedContent::Disclosed { envelope, header } => Content::Disclosed { envelope, header },
                VerifiedContent::Undisclosed(reason) => Content::Undisclosed(reason),
            };
            let mut entry = Entry { digest: entry.digest, content, pending_roster: entry.pending_roster.is_some() };
            // A priority entry is held in full, whatever the batch contains, and has an offset
            // already.
            let held = self.disk.ahead.remove(&(feed.clone(), batch.first + place as u64));
            let arrives = held.is_none() || mutation == Some(Mutation::PriorityTwice);
            done.matched += u64::from(held.is_some());
            match held.map(|held| held.entry) {
                Some(held) if mutation == Some(Mutation::DropPriority) => {
                    entry = Entry { content: Content::Undisclosed(Undisclosed::NotHeld), ..held };
                }
                Some(held) if mutation != Some(Mutation::IgnoreEntryEquivocation) => entry = held,
                _ => {}
            }
            self.append(&feed, entry, arrives, done);
        }
        let log = self.disk.logs.entry(feed.clone()).or_default();
        if *log.tree.compact_range() != batch.compact_range {
            done.faults.push(format!("the tree of {feed} differs from the verified compact range"));
        }
        log.checkpoint_size = batch.checkpoint.checkpoint.size;
        log.checkpoint.clone_from(&batch.checkpoint.note);
        log.consistency_proof = batch.consistency_proof;
        if log.checkpoint_size == log.tree.size() && feed.member != self.me {
            done.complete.push(batch.checkpoint);
        }
        let served = batch.first..batch.compact_range.size();
        done.followed.push(Followed { feed, from, request, served, missing, reduced });
    }

    /// Commits a priority entry. An entry that is held already, or that is not admitted, is not
    /// stored.
    fn apply_priority(&mut self, priority: VerifiedPriority, mutation: Option<Mutation>, done: &mut Committed) {
        let place = (priority.feed.clone(), priority.index);
        let held = self.disk.ahead.get(&place).map(|ahead| ahead.entry.digest);
        let of_this_sort = |(_, ahead): &(u64, &Ahead)| entry_priority(&ahead.entry) == priority.class;
        let (size, count) =
            (self.size(&priority.feed), self.disk.ahead_of(&priority.feed).filter(of_this_sort).count());
        let room = if mutation == Some(Mutation::UnboundedPriority) { ROOM_FOR_ALL } else { ROOM };
        let mut admission = admit(&priority, size, held, count, &room);
        let (bytes, members) = (priority.envelope().map_or(0, Bytes::len), (&place.0.member, &priority.feed_sender));
        if admission == Admission::Accept && !self.admits(members, bytes, priority.class, mutation, done) {
            self.live.quota.left_out.insert(place.clone());
            admission = Admission::Full;
        }
        let VerifiedPriority { entry, checkpoint, proof, .. } = priority;
        let digest = entry.digest;
        done.priority_applied.push((place.clone(), digest, admission));
        let differs = match admission {
            Admission::Stale => self.disk.entry(&place.0, place.1).is_some_and(|held| held.digest != digest),
            Admission::Conflict => true,
            Admission::Accept | Admission::Duplicate | Admission::Full => false,
        };
        if differs && mutation != Some(Mutation::IgnoreEntryEquivocation) {
            done.conflicting.push((place.clone(), false, Some(ProvenEntry { digest, checkpoint, proof })));
            return;
        }
        if let (Admission::Accept, VerifiedContent::Disclosed { envelope, header }) = (admission, entry.content) {
            let content = Content::Disclosed { envelope, header };
            let entry = Entry { digest, content, pending_roster: entry.pending_roster.is_some() };
            self.disk.ahead.insert(place.clone(), Ahead { entry, checkpoint, proof });
            self.disk.by_offset.push(place.clone());
            done.arrived.push(place);
        }
    }

    /// Commits backfilled content. Entries that another peer served first are skipped.
    fn apply_backfill(
        &mut self,
        backfills: VerifiedBackfills,
        from: usize,
        request: u64,
        mutation: Option<Mutation>,
        done: &mut Committed,
    ) {
        let twice = mutation == Some(Mutation::BackfillTwice);
        let missing = |index| self.disk.entry(&backfills.feed, index).is_some_and(|entry| !entry.is_disclosed());
        let bytes = backfills
            .entries
            .iter()
            .filter(|backfill| missing(backfill.index))
            .map(|backfill| backfill.envelope.len())
            .sum();
        let members = (&backfills.feed.member, &backfills.feed_sender);
        if !self.admits(members, bytes, None, mutation, done) {
            self.reduced(members, 0, mutation);
            return done.over_share.push((from, request));
        }
        let Some(log) = self.disk.logs.get_mut(&backfills.feed) else { return };
        let mut backfilled = 0;
        for backfill in backfills.entries {
            let entry = usize::try_from(backfill.index).ok().and_then(|place| log.entries.get_mut(place));
            if let Some(entry) = entry.filter(|entry| twice || matches!(entry.content, Content::Undisclosed(_))) {
                entry.content = Content::Disclosed { envelope: backfill.envelope, header: backfill.header };
                entry.pending_roster = backfill.pending_roster.is_some();
                backfilled += 1;
                if let Content::Disclosed { header: Some(header), .. } = &entry.content
                    && backfills.feed.member == self.me
                {
                    self.disk.ids.entry(header.id.clone()).or_insert_with(|| (backfills.feed.clone(), backfill.index));
                }
                if mutation != Some(Mutation::DropBackfill) {
                    self.disk.by_offset.push((backfills.feed.clone(), backfill.index));
                    done.arrived.push((backfills.feed.clone(), backfill.index));
                }
            }
        }
        done.backfilled.push((backfills.feed, from, request, backfilled));
    }

    fn append(&mut self, feed: &FeedId, entry: Entry, arrives: bool, done: &mut Committed) -> u64 {
        let index = self.size(feed);
        if let Content::Disclosed { header, .. } = &entry.content
            && arrives
        {
            self.disk.by_offset.push((feed.clone(), index));
            done.arrived.push((feed.clone(), index));
            if let Some(header) = header.as_ref().filter(|_| feed.member == self.me) {
                self.disk.ids.entry(header.id.clone()).or_insert_with(|| (feed.clone(), index));
            }
        }
        self.disk.logs.entry(feed.clone()).or_default().append(entry)
    }
}

/// Returns the entry that a forking member publishes in its second tree: the same but for its last
/// byte, which is salt.
pub(crate) fn lie(envelope: &Bytes) -> Bytes {
    let mut lie = envelope.to_vec();
    if let Some(last) = lie.last_mut() {
        *last ^= 1;
    }
    lie.into()
}
