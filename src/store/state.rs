//! What the disk store knows without asking the view: the feeds, the newest notes, the newest commits.
//!
//! In scope: how a commit changes it, and what the applier then has to write. Out of scope: durability.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use barid_core::bulletin::Urgent;
use barid_core::limits::NOT_HELD_RANGES_MAX;
use barid_core::names::{Digest, FeedId, Hash, Member};
use bytes::Bytes;
use uuid::Uuid;

use super::admit::{self, CustodyStanding, Run};
use super::express::{self, Ahead};
use super::keys::{FeedNumber, FeedRow, FillAt, NoteRef};
use super::log::Position;
use super::recent_ids::{Place, RecentIds};
use super::references::Role;
use super::subscriptions::Subscriptions;
use super::tree_cache::{Edge, Tile, TileId};
use super::view::references::Referrer;
use super::window::Window;
use super::{Committed, Content, Cosigned, CustodyRecord, FeedState, Refers, Subscription};

/// Everything that reads need at once.
pub(super) struct State {
    pub(super) seq: u64,
    pub(super) end_arrival: u64,
    pub(super) feeds: Vec<FeedBook>,
    pub(super) numbers: BTreeMap<FeedId, FeedNumber>,
    pub(super) window: Window,
    pub(super) ids: RecentIds,
    pub(super) subscriptions: Subscriptions,
    pub(super) rosters: BTreeMap<u64, NoteRef>,
    pub(super) crls: BTreeMap<String, NoteRef>,
    pub(super) forks: BTreeMap<String, NoteRef>,
    /// Notes that the view has not taken in yet, with the number of their commit.
    pub(super) pending_cosigned: VecDeque<(u64, FeedNumber, Cosigned)>,
    pub(super) pending_custody: VecDeque<(u64, FeedNumber, CustodyRecord, CustodyStanding)>,
    /// References, likewise.
    pub(super) pending_references: VecDeque<(u64, Referred, Referrer)>,
    /// Of each member the largest id that an Update or Cancel of its own refers to, or a larger one: above it nothing is looked for.
    pub(super) succeeded: BTreeMap<Member, Uuid>,
    /// Where content is that the view has not taken in yet, with the number of its commit.
    pub(super) pending_fills: HashMap<(FeedNumber, u64), (u64, FillAt)>,
    /// Urgent entries, likewise; their urgency is in their feeds' books.
    pending_urgent: VecDeque<(u64, FeedNumber, u64)>,
}

/// An entry that is held ahead of its feed's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeldAhead {
    pub(super) digest: Digest,
    pub(super) at: FillAt,
    /// When it was committed.
    pub(super) since_ms: u64,
}

/// A bulletin that others refer to, and how.
pub(super) type Referred = (Member, Uuid, Role);

/// One feed.
pub(super) struct FeedBook {
    pub(super) feed: FeedId,
    pub(super) edge: Edge,
    pub(super) disclosed: u64,
    pub(super) checkpoint: Bytes,
    pub(super) checkpoint_size: u64,
    pub(super) consistency_proof: Vec<Hash>,
    pub(super) checkpoint_at: Option<NoteRef>,
    /// The newest runs held as digests only, at most [`NOT_HELD_RANGES_MAX`].
    pub(super) runs: VecDeque<Run>,
    /// Whether the view may have older runs than these.
    pub(super) older_runs: bool,
    /// Whether any entry was filled in, or came ahead of the order.
    pub(super) filled: bool,
    /// What is held ahead of the order.
    pub(super) ahead: BTreeMap<u64, HeldAhead>,
    /// Urgent entries that the view has not taken in yet.
    pub(super) urgent: BTreeMap<u64, Urgent>,
    /// Of each cosigner the note of the largest size.
    pub(super) cosigned: BTreeMap<Member, Cosigned>,
    /// Of each holder the note that ends last of those that join the ones before.
    pub(super) custody: BTreeMap<Member, CustodyRecord>,
    /// Whoever has given a custody note.
    pub(super) holders: BTreeSet<Member>,
}

/// A commit that the view still has to take in, with all that it needs to know of it.
pub(super) struct Pending {
    pub(super) committed: Arc<Committed>,
    pub(super) position: Position,
    /// Bytes in the log.
    pub(super) len: u64,
    /// Numbers of the feeds of the appends, the cosigned notes and the custody notes.
    pub(super) append_feeds: Vec<FeedNumber>,
    pub(super) cosigned_feeds: Vec<FeedNumber>,
    pub(super) custody_feeds: Vec<(FeedNumber, CustodyStanding)>,
    pub(super) fill_feeds: Vec<FeedNumber>,
    pub(super) express_feeds: Vec<FeedNumber>,
    /// Entries held ahead of the order that an append has reached, or displaced.
    pub(super) matched: Vec<(FeedNumber, u64)>,
    /// What came that is urgent.
    pub(super) urgent: Vec<(FeedNumber, u64, Urgent)>,
    /// New rows of all feeds that it changes.
    pub(super) rows: Vec<(FeedNumber, FeedRow)>,
    pub(super) runs: Vec<(FeedNumber, Run)>,
    pub(super) tiles: Vec<(FeedNumber, TileId, Arc<Tile>)>,
    pub(super) references: Vec<(Referred, Referrer)>,
    /// What stands under the names of subscriptions that it changes.
    pub(super) subscriptions: Vec<(String, Option<Subscription>)>,
    pub(super) since: Instant,
}

impl Pending {
    /// Feeds of which it has entries.
    pub(super) fn feeds_of_entries(&self) -> impl Iterator<Item = FeedNumber> {
        self.append_feeds.iter().chain(&self.fill_feeds).chain(&self.express_feeds).copied()
    }
}

impl Ahead for State {
    fn digest(&self, feed: &FeedId, index: u64) -> Option<Digest> {
        Some(self.book_of(feed)?.1.ahead.get(&index)?.digest)
    }

    fn places(&self, feed: &FeedId, now_ms: u64) -> Vec<u64> {
        let Some((_, book)) = self.book_of(feed) else { return Vec::new() };
        let placed = book.ahead.iter().filter(|(_, held)| express::takes_place(held.since_ms, now_ms));
        placed.map(|(index, _)| *index).collect()
    }

    fn first_in(&self, feed: &FeedId, range: Range<u64>) -> Option<u64> {
        if range.is_empty() {
            return None;
        }
        self.book_of(feed)?.1.ahead.range(range).next().map(|(index, _)| *index)
    }
}

impl FeedBook {
    pub(super) fn new(feed: FeedId) -> Self {
        Self {
            feed,
            edge: Edge::default(),
            disclosed: 0,
            checkpoint: Bytes::new(),
            checkpoint_size: 0,
            consistency_proof: Vec::new(),
            checkpoint_at: None,
            runs: VecDeque::new(),
            older_runs: false,
            filled: false,
            ahead: BTreeMap::new(),
            urgent: BTreeMap::new(),
            cosigned: BTreeMap::new(),
            custody: BTreeMap::new(),
            holders: BTreeSet::new(),
        }
    }

    /// What callers are told; `None` if only notes of others speak of the feed.
    pub(super) fn state(&self) -> Option<FeedState> {
        self.checkpoint_at.map(|_| FeedState {
            feed: self.feed.clone(),
            frontier: self.edge.frontier().clone(),
            checkpoint: self.checkpoint.clone(),
            checkpoint_size: self.checkpoint_size,
            consistency_proof: self.consistency_proof.clone(),
            disclosed: self.disclosed,
        })
    }

    /// Entry `index` is held in full now.
    fn shorten_run(&mut self, index: u64) {
        let Some(place) = self.runs.partition_point(|(start, ..)| *start <= index).checked_sub(1) else { return };
        let Some(run) = self.runs.get(place).copied().filter(|(_, end, _)| index < *end) else { return };
        self.runs.remove(place);
        for (left, at) in admit::split_run(run, index).zip(place..) {
            self.runs.insert(at, left);
        }
        self.trim_runs();
    }

    fn trim_runs(&mut self) {
        while self.runs.len() > NOT_HELD_RANGES_MAX {
            self.runs.pop_front();
            self.older_runs = true;
        }
    }

    fn row(&self) -> FeedRow {
        FeedRow {
            origin: self.feed.to_string(),
            size: self.edge.frontier().size(),
            disclosed: self.disclosed,
            checkpoint: self.checkpoint_at,
        }
    }
}

/// A copy that does not keep the message alive in which the bytes came.
pub(super) fn detached(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

impl State {
    pub(super) fn new(window_bytes: usize) -> Self {
        Self {
            seq: 0,
            end_arrival: 1,
            feeds: Vec::new(),
            numbers: BTreeMap::new(),
            window: Window::new(window_bytes),
            ids: RecentIds::default(),
            subscriptions: Subscriptions::default(),
            rosters: BTreeMap::new(),
            crls: BTreeMap::new(),
            forks: BTreeMap::new(),
            pending_cosigned: VecDeque::new(),
            pending_custody: VecDeque::new(),
            pending_references: VecDeque::new(),
            succeeded: BTreeMap::new(),
            pending_fills: HashMap::new(),
            pending_urgent: VecDeque::new(),
        }
    }

    pub(super) fn book(&self, number: FeedNumber) -> Option<&FeedBook> {
        self.feeds.get(number as usize)
    }

    pub(super) fn book_of(&self, feed: &FeedId) -> Option<(FeedNumber, &FeedBook)> {
        let number = *self.numbers.get(feed)?;
        Some((number, self.book(number)?))
    }

    /// Number and book of a feed, new if need be.
    fn book_mut(&mut self, feed: &FeedId) -> (FeedNumber, &mut FeedBook, bool) {
        let (number, new) = match self.numbers.get(feed) {
            Some(number) => (*number, false),
            None => (u32::try_from(self.feeds.len()).unwrap_or(u32::MAX), true),
        };
        if new {
            self.numbers.insert(feed.clone(), number);
            self.feeds.push(FeedBook::new(feed.clone()));
        }
        let book = self.feeds.get_mut(number as usize).expect("every number was given when a book was added");
        (number, book, new)
    }

    /// Makes a durable commit visible.
    pub(super) fn take_in(&mut self, committed: &Arc<Committed>, position: Position, len: u64) -> Pending {
        let commit = &committed.commit;
        let mut pending = Pending {
            committed: Arc::clone(committed),
            position,
            len,
            append_feeds: Vec::with_capacity(commit.appends.len()),
            cosigned_feeds: Vec::with_capacity(commit.cosigned.len()),
            custody_feeds: Vec::with_capacity(commit.custody.len()),
            fill_feeds: Vec::with_capacity(commit.fills.len()),
            express_feeds: Vec::with_capacity(commit.express.len()),
            matched: Vec::new(),
            urgent: Vec::new(),
            rows: Vec::new(),
            runs: Vec::new(),
            tiles: Vec::new(),
            references: Vec::new(),
            subscriptions: Vec::new(),
            since: Instant::now(),
        };
        self.seq = committed.seq;
        self.end_arrival = committed.end_arrival;
        // What is filled was there before: a run that an append makes longer has been made shorter by then.
        self.take_in_fills(committed, position, &mut pending);
        self.take_in_appends(committed, position, &mut pending);
        self.take_in_express(committed, position, &mut pending);
        for (number, index, urgent) in &pending.urgent {
            if let Some(book) = self.feeds.get_mut(*number as usize) {
                book.urgent.insert(*index, *urgent);
            }
            self.pending_urgent.push_back((committed.seq, *number, *index));
        }
        pending.references.sort_by_key(|(_, at)| at.arrival);
        for ((member, id, role), _) in &pending.references {
            if *role == Role::Other(Refers::Succeeds) && self.succeeded.get(member).is_none_or(|held| held < id) {
                self.succeeded.insert(member.clone(), *id);
            }
        }
        let references = pending.references.iter();
        self.pending_references.extend(references.map(|(referred, at)| (committed.seq, referred.clone(), *at)));
        for cosigned in &commit.cosigned {
            let (number, book, new) = self.book_mut(&cosigned.feed);
            let cosigned = Cosigned { note: detached(&cosigned.note), ..cosigned.clone() };
            if book.cosigned.get(&cosigned.cosigner).is_none_or(|held| held.size < cosigned.size) {
                book.cosigned.insert(cosigned.cosigner.clone(), cosigned.clone());
            }
            if new {
                pending.rows.push((number, book.row()));
            }
            pending.cosigned_feeds.push(number);
            self.pending_cosigned.push_back((committed.seq, number, cosigned));
        }
        for custody in &commit.custody {
            let (number, book, new) = self.book_mut(&custody.feed);
            let custody = CustodyRecord { note: detached(&custody.note), ..custody.clone() };
            let ends = book.custody.get(&custody.holder).map(|held| held.range.end);
            let standing = admit::custody_standing(ends, &custody.range);
            if !book.holders.contains(&custody.holder) {
                book.holders.insert(custody.holder.clone());
            }
            if standing.newest {
                book.custody.insert(custody.holder.clone(), custody.clone());
            }
            if new {
                pending.rows.push((number, book.row()));
            }
            pending.custody_feeds.push((number, standing));
            self.pending_custody.push_back((committed.seq, number, custody, standing));
        }
        pending.subscriptions = self.subscriptions.apply(commit);
        for (roster, place) in commit.rosters.iter().zip(0..) {
            self.rosters.insert(roster.version, NoteRef { position, place });
        }
        for (crl, place) in commit.crls.iter().zip(0..) {
            self.crls.insert(crl.authority.clone(), NoteRef { position, place });
        }
        for (fork, place) in commit.forks.iter().zip(0..) {
            self.forks.insert(fork.key(), NoteRef { position, place });
        }
        self.window.push(committed, &pending.append_feeds);
        pending
    }

    fn take_in_fills(&mut self, committed: &Arc<Committed>, position: Position, pending: &mut Pending) {
        let appends = committed.commit.appends.iter().flat_map(|append| &append.entries);
        let appended = appends.filter(|entry| matches!(entry.content, Content::Disclosed { .. })).count();
        let mut arrival = committed.first_arrival + appended as u64;
        for (fill, place) in committed.commit.fills.iter().zip(0..) {
            let (number, book, _) = self.book_mut(&fill.feed);
            let (mut ids, mut filled) = (Vec::new(), Vec::with_capacity(fill.entries.len()));
            book.filled = true;
            for ((index, entry), slot) in fill.entries.iter().zip(0..) {
                book.shorten_run(*index);
                book.disclosed += 1;
                if let Content::Disclosed { header, .. } = &entry.content {
                    if let Some(id) = admit::id_of(&fill.feed, header.as_deref()) {
                        ids.push((id, Place { epoch: fill.feed.epoch, index: *index, feed: number, arrival }));
                    }
                    for referred in admit::references(&fill.feed, header.as_deref()) {
                        pending.references.push((referred, Referrer { arrival, index: *index, feed: number }));
                    }
                    let urgent = express::urgent_of(header.as_deref());
                    pending.urgent.extend(urgent.map(|urgent| (number, *index, urgent)));
                }
                let at = FillAt { at: NoteRef { position, place }, slot };
                filled.push(((number, *index), (committed.seq, at)));
                arrival += 1;
            }
            pending.rows.push((number, book.row()));
            self.pending_fills.extend(filled);
            pending.fill_feeds.push(number);
            self.ids.extend(&fill.feed.member, ids.into_iter());
        }
    }

    /// What came ahead of the order lies in its record behind the fills, and is found as they are.
    fn take_in_express(&mut self, committed: &Arc<Committed>, position: Position, pending: &mut Pending) {
        let arrivals = committed.end_arrival.saturating_sub(committed.commit.express.len() as u64)..;
        let places = u32::try_from(committed.commit.fills.len()).unwrap_or(u32::MAX)..;
        for ((express, place), arrival) in committed.commit.express.iter().zip(places).zip(arrivals) {
            let (number, book, new) = self.book_mut(&express.feed);
            let (index, feed) = (express.index, &express.feed);
            let at = FillAt { at: NoteRef { position, place }, slot: 0 };
            book.filled = true;
            book.ahead
                .insert(index, HeldAhead { digest: express.entry.digest, at, since_ms: committed.commit.time_unix_ms });
            if new {
                pending.rows.push((number, book.row()));
            }
            pending.express_feeds.push(number);
            self.pending_fills.insert((number, index), (committed.seq, at));
            if let Content::Disclosed { header, .. } = &express.entry.content {
                for referred in admit::references(feed, header.as_deref()) {
                    pending.references.push((referred, Referrer { arrival, index, feed: number }));
                }
                let urgent = express::urgent_of(header.as_deref());
                pending.urgent.extend(urgent.map(|urgent| (number, index, urgent)));
                let id = admit::id_of(feed, header.as_deref());
                let id = id.map(|id| (id, Place { epoch: feed.epoch, index, feed: number, arrival }));
                self.ids.extend(&feed.member, id.into_iter());
            }
        }
    }

    fn take_in_appends(&mut self, committed: &Arc<Committed>, position: Position, pending: &mut Pending) {
        let mut arrival = committed.first_arrival;
        for (append, place) in committed.commit.appends.iter().zip(0..) {
            let (number, book, _) = self.book_mut(&append.feed);
            let mut ids = Vec::new();
            let mut runs = book.runs.pop_back().into_iter().collect::<Vec<_>>();
            let before = runs.first().copied();
            let displaced =
                |index: u64| committed.commit.displaced.iter().any(|(feed, at)| *feed == append.feed && *at == index);
            for (index, entry) in (append.first..).zip(&append.entries) {
                book.edge.append(&entry.digest, |id, tile| pending.tiles.push((number, id, Arc::new(tile))));
                if displaced(index) && book.ahead.remove(&index).is_some() {
                    pending.matched.push((number, index));
                }
                match &entry.content {
                    Content::Disclosed { header, .. } => {
                        if let Some(id) = admit::id_of(&append.feed, header.as_deref()) {
                            ids.push((id, Place { epoch: append.feed.epoch, index, feed: number, arrival }));
                        }
                        for referred in admit::references(&append.feed, header.as_deref()) {
                            pending.references.push((referred, Referrer { arrival, index, feed: number }));
                        }
                        let urgent = express::urgent_of(header.as_deref());
                        pending.urgent.extend(urgent.map(|urgent| (number, index, urgent)));
                        book.disclosed += 1;
                        arrival += 1;
                    }
                    Content::Undisclosed(_) if book.ahead.remove(&index).is_some() => {
                        book.disclosed += 1;
                        pending.matched.push((number, index));
                    }
                    Content::Undisclosed(reason) => admit::extend_runs(&mut runs, index, *reason),
                }
            }
            pending.runs.extend(runs.iter().filter(|run| Some(**run) != before).map(|run| (number, *run)));
            book.runs.extend(runs);
            book.trim_runs();
            book.checkpoint = detached(&append.checkpoint);
            book.checkpoint_size = append.checkpoint_size;
            book.consistency_proof.clone_from(&append.consistency_proof);
            book.checkpoint_at = Some(NoteRef { position, place });
            pending.rows.push((number, book.row()));
            pending.append_feeds.push(number);
            self.ids.extend(&append.feed.member, ids.into_iter());
        }
    }

    /// The view has taken in everything up to commit `seq`, and with it all arrivals before `end_arrival` of these feeds.
    pub(super) fn applied(&mut self, seq: u64, end_arrival: u64, feeds: &[FeedNumber]) {
        self.window.applied(seq);
        while self.pending_cosigned.pop_front_if(|(number, ..)| *number <= seq).is_some() {}
        while self.pending_custody.pop_front_if(|(number, ..)| *number <= seq).is_some() {}
        while self.pending_references.pop_front_if(|(number, ..)| *number <= seq).is_some() {}
        self.pending_fills.retain(|_, (number, _)| *number > seq);
        while let Some((_, number, index)) = self.pending_urgent.pop_front_if(|(number, ..)| *number <= seq) {
            if let Some(book) = self.feeds.get_mut(number as usize) {
                book.urgent.remove(&index);
            }
        }
        for number in feeds {
            if let Some(book) = self.feeds.get(*number as usize) {
                self.ids.applied(&book.feed.member, end_arrival);
            }
        }
    }
}
