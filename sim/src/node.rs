//! One node: what it has committed, which survives a crash, and what it has not, which does not.
//!
//! In scope: the commit, all of it or nothing, and what is read of it. Out of scope: what is decided about it (`talk`, `later`, `forks`,
//! `epochs`), which is core's.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use barid_core::bulletin::TopicFilter;
use barid_core::envelope;
use barid_core::express::{Admission, admit, contradicted, proven_by_batch};
use barid_core::feed::checkpoint::{Checkpoint, SignedCheckpoint, sign};
use barid_core::feed::note::SigningKey;
use barid_core::feed::tree::MemoryTree;
use barid_core::follow::{
    Delivery, ProvenEntry, VerifiedBatch, VerifiedContent, VerifiedEntry, VerifiedExpress, VerifiedFills, delivery,
};
use barid_core::gaps::is_missing;
use barid_core::names::{Digest, FeedId, Hash, Member, Undisclosed};
use barid_core::proto;
use barid_core::provide::Held;
use barid_core::roster::RosterChain;
use bytes::Bytes;

use crate::Mutation;
use crate::exchange::Nature;
use crate::express::{ROOM, ROOM_FOR_ALL, urgent_of};
use crate::live::Live;
use crate::model::Place;
use crate::room::Bound;

/// One place of a feed, as it is held.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) digest: Digest,
    pub(crate) content: Content,
    /// Kept before its audience could be told.
    pub(crate) held_back: bool,
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

/// A feed, as far as it is committed.
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

/// An entry ahead of its feed's order, and what proves it.
#[derive(Clone)]
pub(crate) struct Ahead {
    pub(crate) entry: Entry,
    pub(crate) checkpoint: SignedCheckpoint,
    pub(crate) proof: Vec<Hash>,
}

/// What a store holds: all that comes back with a backup.
#[derive(Clone)]
pub(crate) struct Disk {
    pub(crate) chain: RosterChain,
    pub(crate) logs: BTreeMap<FeedId, Log>,
    /// By feed and index: what lies beyond what is held in order.
    pub(crate) ahead: BTreeMap<Place, Ahead>,
    pub(crate) arrivals: Vec<Place>,
    pub(crate) cursor: u64,
    /// Of this member's own feeds.
    pub(crate) ids: BTreeMap<String, Place>,
    /// Unix seconds of what it signed last as a witness.
    pub(crate) last_time: u64,
    /// Feeds with two histories, and what proves it.
    pub(crate) forks: BTreeMap<FeedId, Bytes>,
}

impl Disk {
    pub(crate) fn new(chain: RosterChain) -> Self {
        Self {
            chain,
            logs: BTreeMap::new(),
            ahead: BTreeMap::new(),
            arrivals: Vec::new(),
            cursor: 0,
            ids: BTreeMap::new(),
            last_time: 0,
            forks: BTreeMap::new(),
        }
    }

    pub(crate) fn size(&self, feed: &FeedId) -> u64 {
        self.logs.get(feed).map_or(0, |log| log.tree.size())
    }

    /// What is held of a feed ahead of its order, by ascending index.
    pub(crate) fn ahead_of(&self, feed: &FeedId) -> impl Iterator<Item = (u64, &Ahead)> {
        self.ahead.range((feed.clone(), 0)..=(feed.clone(), u64::MAX)).map(|((_, index), ahead)| (*index, ahead))
    }

    /// An entry, in order or ahead of it.
    pub(crate) fn entry(&self, feed: &FeedId, index: u64) -> Option<&Entry> {
        let ahead = || self.ahead.get(&(feed.clone(), index)).map(|ahead| &ahead.entry);
        self.logs.get(feed).and_then(|log| log.entry(index)).or_else(ahead)
    }
}

/// Beside the keys, outside of the store: what was signed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) epoch: u32,
    pub(crate) size: u64,
    pub(crate) root: Hash,
}

/// What waits for the next commit.
#[derive(Clone)]
pub(crate) enum Work {
    /// Envelope, header, and the publisher's id.
    Publish(Bytes, Option<Arc<proto::Header>>, u64),
    /// A bulletin of the node itself.
    Name(Bytes, Arc<proto::Header>),
    /// From a peer, by its number among the requests for that feed.
    Batch(Box<VerifiedBatch>, usize, u64),
    Fill(Box<VerifiedFills>, usize, u64),
    /// Ahead of the order.
    Express(Box<VerifiedExpress>),
    Roster(Bytes),
    Acknowledge(u64),
    Fork(FeedId, Bytes),
}

/// A batch by which a feed grew.
pub(crate) struct Followed {
    pub(crate) feed: FeedId,
    pub(crate) from: usize,
    /// Number of what was asked for.
    pub(crate) request: u64,
    /// Entries that it told of.
    pub(crate) served: Range<u64>,
    /// Of these, whose content the sender lacked, or was not taken.
    pub(crate) lacks: u64,
    /// Whether content was not taken.
    pub(crate) reduced: bool,
}

/// What a commit made true.
#[derive(Default)]
pub(crate) struct Committed {
    /// Own entries that came first, and those that had come before: publisher's id, place.
    pub(crate) released: Vec<(u64, Place, bool)>,
    pub(crate) followed: Vec<Followed>,
    /// Batches that did not fit any more.
    pub(crate) stale: Vec<(FeedId, usize)>,
    /// Content that came later: how many entries, from whom, under which request.
    pub(crate) filled: Vec<(FeedId, usize, u64, u64)>,
    /// What came ahead of the order, and what became of it.
    pub(crate) expressed: Vec<(Place, Digest, Admission)>,
    /// What came ahead of the order and was reached by it.
    pub(crate) matched: u64,
    /// Where another entry was shown than is held: by a batch or not, and what proves it.
    pub(crate) another: Vec<(Place, bool, Option<ProvenEntry>)>,
    pub(crate) arrived: Vec<Place>,
    pub(crate) acknowledged: Option<u64>,
    pub(crate) rosters: u64,
    pub(crate) bad_rosters: u64,
    pub(crate) signed: bool,
    /// What is to be cosigned.
    pub(crate) complete: Vec<SignedCheckpoint>,
    /// Content that came later and is not taken now: from whom, under which request.
    pub(crate) over_share: Vec<(usize, u64)>,
    /// What of interest was reached.
    pub(crate) reached: Vec<&'static str>,
    /// What must never happen.
    pub(crate) faults: Vec<String>,
}

pub(crate) struct Node {
    pub(crate) me: Member,
    pub(crate) nature: Nature,
    /// Topics whose content it wants; none: all.
    pub(crate) topics: Vec<TopicFilter>,
    /// Its clock, in seconds from the right one.
    pub(crate) clock: i64,
    pub(crate) disk: Disk,
    /// What the disk has room for; nothing: for everything.
    pub(crate) bound: Option<Bound>,
    pub(crate) backup: Option<Disk>,
    pub(crate) mark: Option<Mark>,
    /// The epoch that it has been said to be in doubt about.
    pub(crate) doubt: Option<u32>,
    /// The epoch whose key it signs with.
    pub(crate) feed: FeedId,
    /// Epochs that its operators have ever opened.
    pub(crate) opened: u32,
    pub(crate) up: bool,
    /// Counts starts.
    pub(crate) start: u64,
    /// A second history of its own feed, and who is shown it.
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
            mark: None,
            doubt: None,
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

    /// What a peer is shown of a feed.
    pub(crate) fn log_for(&self, feed: &FeedId, peer: usize) -> Option<&Log> {
        match &self.other {
            Some((other, to)) if *feed == self.feed && to.contains(&peer) => Some(other),
            _ => self.disk.logs.get(feed),
        }
    }

    /// What a peer is shown of a feed ahead of its order: `crossed`, of the history that it is not shown in order.
    pub(crate) fn log_to_express(&self, feed: &FeedId, peer: usize, crossed: bool) -> Option<&Log> {
        match &self.other {
            Some((other, to)) if crossed && *feed == self.feed && !to.contains(&peer) => Some(other),
            Some(_) if crossed => self.disk.logs.get(feed),
            _ => self.log_for(feed, peer),
        }
    }

    /// Of these entries, what is held as digests.
    pub(crate) fn lacking(&self, feed: &FeedId, fills: &proto::Fills) -> BTreeMap<u64, (Digest, Undisclosed)> {
        let log = self.disk.logs.get(feed);
        let lacking = |fill: &proto::Fill| match log?.entry(fill.index)? {
            Entry { digest, content: Content::Undisclosed(reason), .. } => Some((fill.index, (*digest, *reason))),
            Entry { .. } => None,
        };
        fills.items.iter().filter_map(lacking).collect()
    }

    /// The next arrival that a focal point may be given.
    pub(crate) fn next_delivery(&mut self) -> Option<(u64, FeedId, u64)> {
        loop {
            let at = usize::try_from(self.live.read_to).ok()?;
            let (feed, index) = self.disk.arrivals.get(at)?.clone();
            let entry = self.disk.entry(&feed, index)?;
            let Content::Disclosed { header, .. } = &entry.content else { return None };
            let to = delivery(&feed.member, header.as_deref(), &self.me, &self.disk.chain);
            if let Delivery::NotYet { .. } = to {
                return None;
            }
            self.live.read_to += 1;
            if to.to_focal_points() {
                return Some((self.live.read_to, feed, index));
            }
        }
    }

    /// Makes work true together.
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
                Work::Fill(fills, from, request) => self.apply_fills(*fills, from, request, mutation, &mut done),
                Work::Express(express) => self.apply_express(*express, mutation, &mut done),
                Work::Roster(note) => match self.disk.chain.extend(&note) {
                    Ok(new) => done.rosters += u64::from(new),
                    // One that does not follow is asked for again.
                    Err(_) => done.bad_rosters += 1,
                },
                Work::Acknowledge(arrival) => {
                    self.disk.cursor = self.disk.cursor.max(arrival);
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

    /// An id that is there already gets the first receipt.
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
            other.append(Entry { digest, content, held_back: false });
        }
        let content = Content::Disclosed { envelope, header };
        let index = self.append(&feed, Entry { digest, content, held_back: false }, true, done);
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
        let another = contradicted(&batch, ahead.map(|(index, ahead)| (index, ahead.entry.digest)));
        if let Some(index) = another.filter(|_| mutation != Some(Mutation::IgnoreTwoEntries)) {
            let tree = self.disk.logs.get(&feed).map(|log| log.tree.clone()).unwrap_or_default();
            let shown = proven_by_batch(&batch, index, &tree, batch.first, &[]);
            done.another.push(((feed, index), true, shown));
            return;
        }
        let reduced = self.reduce(&mut batch, mutation, done);
        let own = feed.member == self.me;
        let lacking = |entry: &&VerifiedEntry| matches!(entry.content, VerifiedContent::Undisclosed(reason) if is_missing(reason, own));
        let lacks = batch.entries.iter().filter(lacking).count() as u64;
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
            let mut entry = Entry { digest: entry.digest, content, held_back: entry.held_back.is_some() };
            // What came ahead of the order is held in full, whatever comes now, and has arrived.
            let held = self.disk.ahead.remove(&(feed.clone(), batch.first + place as u64));
            let arrives = held.is_none() || mutation == Some(Mutation::ExpressTwice);
            done.matched += u64::from(held.is_some());
            match held.map(|held| held.entry) {
                Some(held) if mutation == Some(Mutation::DropExpress) => {
                    entry = Entry { content: Content::Undisclosed(Undisclosed::NotHeld), ..held };
                }
                Some(held) if mutation != Some(Mutation::IgnoreTwoEntries) => entry = held,
                _ => {}
            }
            self.append(&feed, entry, arrives, done);
        }
        let log = self.disk.logs.entry(feed.clone()).or_default();
        if *log.tree.frontier() != batch.frontier {
            done.faults.push(format!("{feed} was not left at the verified frontier"));
        }
        log.checkpoint_size = batch.checkpoint.checkpoint.size;
        log.checkpoint.clone_from(&batch.checkpoint.note);
        log.consistency_proof = batch.consistency_proof;
        if log.checkpoint_size == log.tree.size() && feed.member != self.me {
            done.complete.push(batch.checkpoint);
        }
        let served = batch.first..batch.frontier.size();
        done.followed.push(Followed { feed, from, request, served, lacks, reduced });
    }

    /// Nothing is said of what is held already, or waits for its turn.
    fn apply_express(&mut self, express: VerifiedExpress, mutation: Option<Mutation>, done: &mut Committed) {
        let place = (express.feed.clone(), express.index);
        let held = self.disk.ahead.get(&place).map(|ahead| ahead.entry.digest);
        let of_this_sort = |(_, ahead): &(u64, &Ahead)| urgent_of(&ahead.entry) == express.urgent;
        let (size, count) = (self.size(&express.feed), self.disk.ahead_of(&express.feed).filter(of_this_sort).count());
        let room = if mutation == Some(Mutation::UnboundedExpress) { ROOM_FOR_ALL } else { ROOM };
        let mut admission = admit(&express, size, held, count, &room);
        let (bytes, members) = (express.envelope().map_or(0, Bytes::len), (&place.0.member, &express.provider));
        if admission == Admission::Hold && !self.takes(members, bytes, express.urgent, mutation, done) {
            self.live.quota.left_out.insert(place.clone());
            admission = Admission::Full;
        }
        let VerifiedExpress { entry, checkpoint, proof, .. } = express;
        let digest = entry.digest;
        done.expressed.push((place.clone(), digest, admission));
        let differs = match admission {
            Admission::Behind => self.disk.entry(&place.0, place.1).is_some_and(|held| held.digest != digest),
            Admission::Another => true,
            Admission::Hold | Admission::Again | Admission::Full => false,
        };
        if differs && mutation != Some(Mutation::IgnoreTwoEntries) {
            done.another.push((place.clone(), false, Some(ProvenEntry { digest, checkpoint, proof })));
            return;
        }
        if let (Admission::Hold, VerifiedContent::Disclosed { envelope, header }) = (admission, entry.content) {
            let content = Content::Disclosed { envelope, header };
            let entry = Entry { digest, content, held_back: entry.held_back.is_some() };
            self.disk.ahead.insert(place.clone(), Ahead { entry, checkpoint, proof });
            self.disk.arrivals.push(place.clone());
            done.arrived.push(place);
        }
    }

    /// What another peer gave first is passed over.
    fn apply_fills(
        &mut self,
        fills: VerifiedFills,
        from: usize,
        request: u64,
        mutation: Option<Mutation>,
        done: &mut Committed,
    ) {
        let twice = mutation == Some(Mutation::FillTwice);
        let lacks = |index| self.disk.entry(&fills.feed, index).is_some_and(|entry| !entry.is_disclosed());
        let bytes = fills.entries.iter().filter(|fill| lacks(fill.index)).map(|fill| fill.envelope.len()).sum();
        let members = (&fills.feed.member, &fills.provider);
        if !self.takes(members, bytes, None, mutation, done) {
            self.reduced(members, 0, mutation);
            return done.over_share.push((from, request));
        }
        let Some(log) = self.disk.logs.get_mut(&fills.feed) else { return };
        let mut filled = 0;
        for fill in fills.entries {
            let entry = usize::try_from(fill.index).ok().and_then(|place| log.entries.get_mut(place));
            if let Some(entry) = entry.filter(|entry| twice || matches!(entry.content, Content::Undisclosed(_))) {
                entry.content = Content::Disclosed { envelope: fill.envelope, header: fill.header };
                entry.held_back = fill.held_back.is_some();
                filled += 1;
                if let Content::Disclosed { header: Some(header), .. } = &entry.content
                    && fills.feed.member == self.me
                {
                    self.disk.ids.entry(header.id.clone()).or_insert_with(|| (fills.feed.clone(), fill.index));
                }
                if mutation != Some(Mutation::DropFill) {
                    self.disk.arrivals.push((fills.feed.clone(), fill.index));
                    done.arrived.push((fills.feed.clone(), fill.index));
                }
            }
        }
        done.filled.push((fills.feed, from, request, filled));
    }

    fn append(&mut self, feed: &FeedId, entry: Entry, arrives: bool, done: &mut Committed) -> u64 {
        let index = self.size(feed);
        if let Content::Disclosed { header, .. } = &entry.content
            && arrives
        {
            self.disk.arrivals.push((feed.clone(), index));
            done.arrived.push((feed.clone(), index));
            if let Some(header) = header.as_ref().filter(|_| feed.member == self.me) {
                self.disk.ids.entry(header.id.clone()).or_insert_with(|| (feed.clone(), index));
            }
        }
        self.disk.logs.entry(feed.clone()).or_default().append(entry)
    }
}

/// What a forking member publishes in its second history: the same but for its last byte, which is salt.
pub(crate) fn lie(envelope: &Bytes) -> Bytes {
    let mut lie = envelope.to_vec();
    if let Some(last) = lie.last_mut() {
        *last ^= 1;
    }
    lie.into()
}
