//! One node: what it has committed, which survives a crash, and what it has not, which does not.

use std::collections::BTreeMap;
use std::sync::Arc;

use barid_core::envelope;
use barid_core::feed::checkpoint::{Checkpoint, sign};
use barid_core::feed::note::SigningKey;
use barid_core::feed::tree::MemoryTree;
use barid_core::follow::{Delivery, FollowState, VerifiedBatch, VerifiedContent, delivery};
use barid_core::names::{Digest, FeedId, Hash, Member, Undisclosed};
use barid_core::proto;
use barid_core::provide::{self, Head, Held};
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

/// A feed, as far as it is committed.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) tree: MemoryTree,
    pub(crate) entries: Vec<Entry>,
    checkpoint: Bytes,
    checkpoint_size: u64,
    consistency_proof: Vec<Hash>,
}

/// What waits for the next commit.
pub(crate) enum Work {
    Publish(Bytes, Option<Arc<proto::Header>>),
    Batch(Box<VerifiedBatch>),
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

pub(crate) struct Node {
    pub(crate) me: Member,
    pub(crate) feed: FeedId,
    key: SigningKey,
    /// Sends every entry in full to everybody.
    pub(crate) leaky: bool,
    /// Speaks and publishes as a later version might.
    pub(crate) newer: bool,
    // Committed.
    pub(crate) chain: RosterChain,
    pub(crate) logs: BTreeMap<FeedId, Log>,
    pub(crate) arrivals: Vec<(FeedId, u64)>,
    cursor: u64,
    // Lost in a crash.
    pub(crate) up: bool,
    pub(crate) waiting: Vec<Work>,
    following: BTreeMap<FeedId, FollowState>,
    /// Next index to send, by peer.
    pub(crate) followers: BTreeMap<usize, u64>,
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
            chain: RosterChain::start(first_roster).expect("the first roster makes sense"),
            arrivals: Vec::new(),
            cursor: 0,
            up: true,
            waiting: Vec::new(),
            following: BTreeMap::new(),
            followers: BTreeMap::new(),
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
        if mutation == Some(Mutation::ForgetCursor) {
            self.cursor = 0;
        }
        self.read_to = self.cursor;
    }

    /// Where following a feed goes on: anew from what is committed, unless something of it waits for its commit.
    pub(crate) fn follow_from(&mut self, feed: &FeedId) -> u64 {
        let waits = |work: &Work| matches!(work, Work::Batch(batch) if batch.feed == *feed);
        if !self.waiting.iter().any(waits) {
            let frontier = self.logs.get(feed).map(|log| log.tree.frontier().clone()).unwrap_or_default();
            // The newest checkpoint seen stays known: it must not be contradicted.
            let newest = self.following.get(feed).and_then(|state| state.newest.clone());
            self.following.insert(feed.clone(), FollowState { newest, ..FollowState::new(feed.clone(), frontier) });
        }
        self.following.get(feed).map_or(0, |state| state.frontier.size())
    }

    pub(crate) fn following(&mut self, feed: &FeedId) -> &mut FollowState {
        let state = || FollowState::new(feed.clone(), barid_core::feed::tree::Frontier::new());
        self.following.entry(feed.clone()).or_insert_with(state)
    }

    /// The next batch of the own feed for a peer, with at most `entries_max` entries.
    pub(crate) fn batch(
        &mut self,
        peer: usize,
        reader: &Member,
        entries_max: usize,
        open: bool,
    ) -> Option<proto::Entries> {
        let first = *self.followers.get(&peer)?;
        let log = self.logs.get(&self.feed)?;
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
        let items = if open { held.iter().map(everything).collect() } else { self.shown(held, reader) };
        let head = Head {
            size: log.tree.size(),
            checkpoint_size: log.checkpoint_size,
            consistency_proof: &log.consistency_proof,
        };
        let proof = provide::plan_batch(&head, end, &log.tree).ok()??;
        let message = provide::message(&self.feed, first, items, log.checkpoint.clone(), &proof);
        self.followers.insert(peer, end);
        Some(message)
    }

    fn shown(&self, held: &[Entry], reader: &Member) -> Vec<proto::Item> {
        let held = held.iter().map(|entry| {
            let held = match &entry.content {
                Content::Disclosed { envelope, header } => Held::Disclosed { envelope, header: header.as_deref() },
                Content::Undisclosed(reason) => Held::Undisclosed(*reason),
            };
            (entry.digest, held)
        });
        provide::items(held, reader, &[], &self.chain)
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
    pub(crate) fn commit(&mut self) -> Committed {
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
        Content::Undisclosed(reason) => Item::Digests(proto::DigestRun {
            digests: Bytes::copy_from_slice(&entry.digest.0),
            reason: reason.word().to_owned(),
        }),
    };
    proto::Item { item: Some(item) }
}
