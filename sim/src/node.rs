//! One node: what it has committed, which survives a crash, and what it has not, which does not.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use barid_core::bulletin::TopicFilter;
use barid_core::envelope;
use barid_core::feed::checkpoint::{Checkpoint, sign};
use barid_core::feed::note::SigningKey;
use barid_core::feed::tree::MemoryTree;
use barid_core::follow::{Delivery, FollowState, VerifiedBatch, VerifiedContent, VerifiedFills, delivery};
use barid_core::names::{Digest, FeedId, Hash, Member, Undisclosed};
use barid_core::proto;
use barid_core::provide::{self, Head, Held};
use barid_core::relay::Relay;
use barid_core::roster::RosterChain;
use bytes::Bytes;

use crate::Mutation;
use crate::exchange::feed_key;

/// One place of a feed, as it is held.
pub(crate) struct Entry {
    pub(crate) digest: Digest,
    pub(crate) content: Content,
    /// Kept before its audience could be told.
    pub(crate) held_back: bool,
}

pub(crate) enum Content {
    Disclosed { envelope: Bytes, header: Option<Arc<proto::Header>> },
    Undisclosed(Undisclosed),
}

impl Entry {
    fn held(&self) -> Held<'_> {
        match &self.content {
            Content::Disclosed { envelope, header } => Held::Disclosed { envelope, header: header.as_deref() },
            Content::Undisclosed(reason) => Held::Undisclosed(*reason),
        }
    }
}

/// A feed, as far as it is committed.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) tree: MemoryTree,
    pub(crate) entries: Vec<Entry>,
    pub(crate) checkpoint: Bytes,
    pub(crate) checkpoint_size: u64,
    consistency_proof: Vec<Hash>,
}

/// What waits for the next commit.
pub(crate) enum Work {
    Publish(Bytes, Option<Arc<proto::Header>>),
    Batch(Box<VerifiedBatch>),
    Fill(Box<VerifiedFills>),
    Roster(Bytes),
    Acknowledge(u64),
}

/// What a commit made true.
#[derive(Default)]
pub(crate) struct Committed {
    /// Own entries, by index.
    pub(crate) released: Vec<u64>,
    /// Feeds of others that grew.
    pub(crate) followed: Vec<FeedId>,
    /// Arrival up to which the subscriber need not be asked again.
    pub(crate) acknowledged: Option<u64>,
    /// What must never happen.
    pub(crate) faults: Vec<String>,
}

/// A peer that follows a feed here.
pub(crate) struct Follower {
    /// Next index to send.
    pub(crate) next: u64,
    pub(crate) filters: Vec<TopicFilter>,
}

/// What was asked for of a peer.
#[derive(Clone, Default)]
pub(crate) struct Asked {
    pub(crate) ranges: Vec<Range<u64>>,
    /// From where to ask next.
    pub(crate) next: u64,
}

pub(crate) struct Node {
    pub(crate) me: Member,
    pub(crate) feed: FeedId,
    key: SigningKey,
    /// Sends every entry in full to everybody.
    pub(crate) leaky: bool,
    /// Speaks and publishes as a later version might.
    pub(crate) newer: bool,
    /// Topics whose content it wants; none: all.
    pub(crate) topics: Vec<TopicFilter>,
    // Committed.
    pub(crate) chain: RosterChain,
    pub(crate) logs: BTreeMap<FeedId, Log>,
    pub(crate) arrivals: Vec<(FeedId, u64)>,
    cursor: u64,
    // Lost in a crash.
    pub(crate) up: bool,
    pub(crate) waiting: Vec<Work>,
    following: BTreeMap<FeedId, FollowState>,
    /// By peer and feed.
    pub(crate) followers: BTreeMap<(usize, FeedId), Follower>,
    /// Where feeds of members without a link are followed, and since when they are away.
    pub(crate) relays: BTreeMap<FeedId, Relay>,
    pub(crate) away: BTreeMap<usize, u64>,
    /// Entries that each peer shows to hold.
    pub(crate) heads: BTreeMap<(usize, FeedId), u64>,
    /// What was asked for, by peer and feed.
    pub(crate) asked: BTreeMap<(usize, FeedId), Asked>,
    read_to: u64,
}

impl Node {
    pub(crate) fn new(feed: FeedId, first_roster: &Bytes, leaky: bool, newer: bool) -> Self {
        Self {
            me: feed.member.clone(),
            key: feed_key(&feed),
            logs: BTreeMap::from([(feed.clone(), Log::default())]),
            feed,
            leaky,
            newer,
            topics: Vec::new(),
            chain: RosterChain::start(first_roster).expect("the first roster makes sense"),
            arrivals: Vec::new(),
            cursor: 0,
            up: true,
            waiting: Vec::new(),
            following: BTreeMap::new(),
            followers: BTreeMap::new(),
            relays: BTreeMap::new(),
            away: BTreeMap::new(),
            heads: BTreeMap::new(),
            asked: BTreeMap::new(),
            read_to: 0,
        }
    }

    pub(crate) fn is_member(&self) -> bool {
        self.knows(&self.me)
    }

    pub(crate) fn knows(&self, member: &Member) -> bool {
        self.chain.newest().member(member).is_some()
    }

    pub(crate) fn size(&self, feed: &FeedId) -> u64 {
        self.logs.get(feed).map_or(0, |log| log.tree.size())
    }

    pub(crate) fn crash(&mut self, mutation: Option<Mutation>) {
        self.up = false;
        self.waiting.clear();
        self.following.clear();
        self.followers.clear();
        self.relays.clear();
        self.away.clear();
        self.heads.clear();
        self.asked.clear();
        if mutation == Some(Mutation::ForgetCursor) {
            self.cursor = 0;
        }
        self.read_to = self.cursor;
    }

    /// Where following a feed goes on: anew from what is committed, unless something of it waits for its commit.
    pub(crate) fn follow_from(&mut self, feed: &FeedId, provider: &Member) -> u64 {
        let waits = |work: &Work| matches!(work, Work::Batch(batch) if batch.feed == *feed);
        let other = self.following.get(feed).is_none_or(|state| state.provider != *provider);
        if other || !self.waiting.iter().any(waits) {
            let frontier = self.logs.get(feed).map(|log| log.tree.frontier().clone()).unwrap_or_default();
            // The newest checkpoint seen stays known: it must not be contradicted.
            let newest = self.following.get(feed).and_then(|state| state.newest.clone());
            let state = FollowState::new(feed.clone(), frontier).at(provider.clone());
            self.following.insert(feed.clone(), FollowState { newest, ..state });
        }
        self.following.get(feed).map_or(0, |state| state.frontier.size())
    }

    /// Where a feed stands that is followed at `provider`.
    pub(crate) fn following(&mut self, feed: &FeedId, provider: &Member) -> Option<&mut FollowState> {
        self.following.get_mut(feed).filter(|state| state.provider == *provider)
    }

    /// The next batch of a feed for a peer, with at most `entries_max` entries.
    pub(crate) fn batch(
        &mut self,
        peer: usize,
        feed: &FeedId,
        reader: &Member,
        entries_max: usize,
        open: bool,
    ) -> Option<proto::Entries> {
        let follower = self.followers.get(&(peer, feed.clone()))?;
        let first = follower.next;
        let log = self.logs.get(feed)?;
        let rest = log.entries.get(usize::try_from(first).ok()?..)?;
        let bytes = |entry: &Entry| match &entry.content {
            Content::Disclosed { envelope, .. } => envelope.len(),
            Content::Undisclosed(_) => 0,
        };
        let held = &rest[..provide::batch_len(rest.iter().map(bytes)).min(entries_max)];
        if held.is_empty() {
            return None;
        }
        let end = first + held.len() as u64;
        let items =
            if open { held.iter().map(everything).collect() } else { self.shown(held, reader, &follower.filters) };
        let head = Head {
            size: log.tree.size(),
            checkpoint_size: log.checkpoint_size,
            consistency_proof: &log.consistency_proof,
        };
        let proof = provide::plan_batch(&head, end, &log.tree).ok()??;
        let message = provide::message(feed, first, items, log.checkpoint.clone(), &proof);
        self.followers.get_mut(&(peer, feed.clone()))?.next = end;
        Some(message)
    }

    fn shown(&self, held: &[Entry], reader: &Member, filters: &[TopicFilter]) -> Vec<proto::Item> {
        let held = held.iter().map(|entry| (entry.digest, entry.held()));
        provide::items(held, reader, filters, &self.chain)
    }

    /// What a reader is handed of entries that it lacks, at most `entries_max`.
    pub(crate) fn fills(
        &self,
        feed: &FeedId,
        ranges: &[proto::IndexRange],
        reader: &Member,
        filters: &[TopicFilter],
        entries_max: usize,
    ) -> proto::Fills {
        let mut fills = proto::Fills { feed: feed.to_string(), ..proto::Fills::default() };
        let entries = self.logs.get(feed).map_or(&[][..], |log| &log.entries);
        for range in ranges {
            for index in range.start..range.end.min(entries.len() as u64) {
                if fills.items.len() >= entries_max {
                    fills.through = index;
                    return fills;
                }
                let Some(entry) = usize::try_from(index).ok().and_then(|place| entries.get(place)) else { break };
                let history = self.leaky && *feed == self.feed;
                fills.items.extend(provide::fills([(index, entry.held())], reader, filters, &self.chain, history));
            }
        }
        fills.through = ranges.last().map_or(0, |range| range.end);
        fills
    }

    /// As [`Self::fills`], whoever asks.
    pub(crate) fn anything(&self, feed: &FeedId, ranges: &[proto::IndexRange]) -> proto::Fills {
        let entries = self.logs.get(feed).map_or(&[][..], |log| &log.entries);
        let envelope = |index: u64| match entries.get(usize::try_from(index).ok()?)? {
            Entry { content: Content::Disclosed { envelope, .. }, .. } => {
                Some(proto::Fill { index, envelope: envelope.clone() })
            }
            Entry { .. } => None,
        };
        let items = ranges.iter().flat_map(|range| range.start..range.end).filter_map(envelope).collect();
        proto::Fills { feed: feed.to_string(), items, through: ranges.last().map_or(0, |range| range.end) }
    }

    /// The first entries from `from` on that others may have content of, one range each, at most `max`.
    pub(crate) fn gaps(&self, feed: &FeedId, from: u64, max: usize) -> Vec<Range<u64>> {
        let entries = self.logs.get(feed).map_or(&[][..], |log| &log.entries).iter().zip(0..);
        let lacking = entries.filter(|(entry, index)| {
            let asked = !matches!(entry.content, Content::Undisclosed(Undisclosed::Purged | Undisclosed::Excluded));
            *index >= from && asked && matches!(entry.content, Content::Undisclosed(_))
        });
        lacking.take(max).map(|(_, index)| index..index + 1).collect()
    }

    /// Of these entries, what is held as digests.
    pub(crate) fn lacking(&self, feed: &FeedId, fills: &proto::Fills) -> BTreeMap<u64, (Digest, Undisclosed)> {
        let entries = self.logs.get(feed).map_or(&[][..], |log| &log.entries);
        let lacking = |fill: &proto::Fill| match entries.get(usize::try_from(fill.index).ok()?)? {
            Entry { digest, content: Content::Undisclosed(reason), .. } => Some((fill.index, (*digest, *reason))),
            Entry { .. } => None,
        };
        fills.items.iter().filter_map(lacking).collect()
    }

    /// The next arrival that a focal point may be given.
    pub(crate) fn next_delivery(&mut self) -> Option<(u64, FeedId, u64)> {
        loop {
            let at = usize::try_from(self.read_to).ok()?;
            let (feed, index) = self.arrivals.get(at)?.clone();
            let entry = self.logs.get(&feed)?.entries.get(usize::try_from(index).ok()?)?;
            let Content::Disclosed { header, .. } = &entry.content else { return None };
            let to = delivery(&feed.member, header.as_deref(), &self.me, &self.chain);
            if let Delivery::NotYet { .. } = to {
                return None;
            }
            self.read_to += 1;
            if to.to_focal_points() {
                return Some((self.read_to, feed, index));
            }
        }
    }

    /// Makes everything that waits true together.
    pub(crate) fn commit(&mut self, mutation: Option<Mutation>) -> Committed {
        let mut done = Committed::default();
        let mut own = false;
        for work in std::mem::take(&mut self.waiting) {
            match work {
                Work::Publish(envelope, header) => {
                    own = true;
                    let digest = envelope::digest(&envelope);
                    let content = Content::Disclosed { envelope, header };
                    done.released.push(self.append(&self.feed.clone(), Entry { digest, content, held_back: false }));
                }
                Work::Batch(batch) => self.commit_batch(*batch, &mut done),
                Work::Fill(fills) => self.commit_fills(*fills, mutation == Some(Mutation::FillTwice)),
                Work::Roster(note) => {
                    // One that came twice changes nothing; one that does not follow is asked for again.
                    let _ = self.chain.extend(&note);
                }
                Work::Acknowledge(arrival) => {
                    self.cursor = self.cursor.max(arrival);
                    done.acknowledged = Some(self.cursor);
                }
            }
        }
        if own {
            let log = self.logs.entry(self.feed.clone()).or_default();
            let checkpoint = Checkpoint { feed: self.feed.clone(), size: log.tree.size(), root: log.tree.root() };
            let signed = sign(&checkpoint, std::slice::from_ref(&self.key)).expect("the key is the feed's");
            (log.checkpoint, log.checkpoint_size) = (signed.note, checkpoint.size);
        }
        done
    }

    fn commit_batch(&mut self, batch: VerifiedBatch, done: &mut Committed) {
        if self.size(&batch.feed) != batch.first {
            return;
        }
        for entry in batch.entries {
            let content = match entry.content {
                VerifiedContent::Disclosed { envelope, header } => Content::Disclosed { envelope, header },
                VerifiedContent::Undisclosed(reason) => Content::Undisclosed(reason),
            };
            self.append(&batch.feed, Entry { digest: entry.digest, content, held_back: entry.held_back.is_some() });
        }
        let log = self.logs.entry(batch.feed.clone()).or_default();
        if *log.tree.frontier() != batch.frontier {
            done.faults.push(format!("{}: {} was not left at the verified frontier", self.me, batch.feed));
        }
        log.checkpoint_size = batch.checkpoint.checkpoint.size;
        log.checkpoint = batch.checkpoint.note;
        log.consistency_proof = batch.consistency_proof;
        done.followed.push(batch.feed);
    }

    /// What another peer gave first is passed over, unless `twice`.
    fn commit_fills(&mut self, fills: VerifiedFills, twice: bool) {
        let Some(log) = self.logs.get_mut(&fills.feed) else { return };
        for fill in fills.entries {
            let entry = usize::try_from(fill.index).ok().and_then(|place| log.entries.get_mut(place));
            if let Some(entry) = entry.filter(|entry| twice || matches!(entry.content, Content::Undisclosed(_))) {
                entry.content = Content::Disclosed { envelope: fill.envelope, header: fill.header };
                entry.held_back = fill.held_back.is_some();
                self.arrivals.push((fills.feed.clone(), fill.index));
            }
        }
    }

    fn append(&mut self, feed: &FeedId, entry: Entry) -> u64 {
        let log = self.logs.entry(feed.clone()).or_default();
        let index = log.tree.size();
        log.tree.append(&entry.digest);
        if let Content::Disclosed { .. } = entry.content {
            self.arrivals.push((feed.clone(), index));
        }
        log.entries.push(entry);
        index
    }
}

/// An entry in full, whoever reads.
fn everything(entry: &Entry) -> proto::Item {
    use barid_core::proto::item::Item;
    let item = match &entry.content {
        Content::Disclosed { envelope, .. } => Item::Envelope(envelope.clone()),
        Content::Undisclosed(_) => Item::Digests(proto::DigestRun {
            digests: Bytes::copy_from_slice(&entry.digest.0),
            reason: Undisclosed::NotHeld.word().to_owned(),
        }),
    };
    proto::Item { item: Some(item) }
}
