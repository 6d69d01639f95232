//! The reference model: what each member must end up with, derived from what was published and what
//! was observed of the nodes.
//!
//! In scope: its own, simple rules for audiences and order of arrival; no code of core decides
//! here. Out of scope: how a state is reached. The model observes what a node sent or made durable;
//! the final checks are in `check`.

use std::collections::{BTreeMap, BTreeSet};

use barid_core::ids::{Digest, FeedId};
use bytes::Bytes;

use crate::exchange::{Exchange, Listed};

/// The facts about one bulletin.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// The member named in its header.
    pub(crate) named: usize,
    pub(crate) group: usize,
    /// 0 CLEAR, 1 GREEN, 2 AMBER, 3 AMBER+STRICT, 4 RED.
    pub(crate) label: u8,
    /// The only members that may read it; empty: all that its label allows.
    pub(crate) to: Vec<usize>,
    /// Roster version that decides its audience.
    pub(crate) version: u64,
    /// Whether it is urgent, and if so whether it is Actual.
    pub(crate) priority: Option<bool>,
    /// Whether this version of the protocol can determine its audience.
    pub(crate) understood: bool,
}

impl Facts {
    /// Whether `reader` is in the audience, given this listing of members.
    pub(crate) fn admit(&self, reader: usize, listed: &BTreeMap<usize, Listed>) -> bool {
        if !self.understood {
            return false;
        }
        if reader == self.named {
            return true;
        }
        if !self.to.is_empty() && !self.to.contains(&reader) {
            return false;
        }
        let Some(listing) = listed.get(&reader) else { return false };
        match self.label {
            0 | 1 => listing.full || listing.ceilings[self.group].is_some_and(|ceiling| self.label <= ceiling),
            2 | 3 => listing.full && listing.groups[self.group],
            _ => true,
        }
    }

    /// Whether the reader is in the audience by every roster since: withholding it is never right.
    pub(crate) fn always_admit(&self, reader: usize, exchange: &Exchange) -> bool {
        let mut versions = self.version..=exchange.last_version();
        versions.all(|version| exchange.at(version).is_some_and(|listed| self.admit(reader, listed)))
    }

    /// Whether the reader is in the audience by some roster since: it may have received it rightly.
    pub(crate) fn ever_admit(&self, reader: usize, exchange: &Exchange) -> bool {
        let mut versions = self.version..=exchange.last_version();
        versions.any(|version| exchange.at(version).is_some_and(|listed| self.admit(reader, listed)))
    }
}

/// A position in a feed.
pub(crate) type Place = (FeedId, u64);

/// What one node has sent and made durable, since it began or up to the restored backup.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Entries of each feed, in full or as digests.
    pub(crate) sizes: BTreeMap<FeedId, u64>,
    /// Entries by offset: the first has offset 1.
    pub(crate) by_offset: Vec<Place>,
    pub(crate) arrived: BTreeSet<Place>,
    /// Newest cosignature of each feed: size and time; and the newest time.
    pub(crate) cosigned: BTreeMap<FeedId, (u64, u64)>,
    pub(crate) cosigned_at: u64,
    /// Feeds that it knows to be forked.
    pub(crate) forks: BTreeSet<FeedId>,
}

/// What a subscriber was delivered; it outlives its node's crashes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subscriber {
    pub(crate) given: BTreeMap<u64, Place>,
    pub(crate) places: BTreeSet<Place>,
    pub(crate) confirmed: u64,
}

/// A receipt as its publisher has it.
#[derive(Clone, Debug)]
pub(crate) struct Receipt {
    pub(crate) node: usize,
    pub(crate) id: u64,
    pub(crate) place: Place,
    pub(crate) digest: Digest,
    /// How often its node's store had been restored at that time.
    pub(crate) restores: u32,
}

#[derive(Default)]
pub(crate) struct Model {
    pub(crate) facts: BTreeMap<Digest, Facts>,
    pub(crate) envelopes: BTreeMap<Digest, Bytes>,
    pub(crate) receipts: Vec<Receipt>,
    pub(crate) seen: Vec<Seen>,
    pub(crate) backups: Vec<Option<(Seen, Subscriber)>>,
    pub(crate) subscribers: Vec<Subscriber>,
    /// How often each node's store was restored.
    pub(crate) restores: Vec<u32>,
    /// Priority entries: node, place, digest, and how often the node's store had been restored at
    /// that time.
    pub(crate) ahead: Vec<(usize, Place, Digest, u32)>,
    /// Entries that a node took for wrongly withheld.
    pub(crate) blamed: Vec<(usize, Place)>,
}

impl Model {
    pub(crate) fn new(members: usize) -> Self {
        Self {
            seen: vec![Seen::default(); members],
            backups: vec![None; members],
            subscribers: vec![Subscriber::default(); members],
            restores: vec![0; members],
            ..Self::default()
        }
    }

    pub(crate) fn published(&mut self, digest: Digest, envelope: Bytes, facts: Facts) {
        self.envelopes.insert(digest, envelope);
        self.facts.insert(digest, facts);
    }

    /// A commit made `size` entries of a feed durable.
    pub(crate) fn grew(&mut self, node: usize, feed: &FeedId, size: u64) {
        self.seen[node].sizes.insert(feed.clone(), size);
    }

    /// An entry became durable ahead of its feed's order.
    pub(crate) fn priority_applied(&mut self, node: usize, place: Place, digest: Digest) {
        self.ahead.push((node, place, digest, self.restores[node]));
    }

    /// Records the next offset. Returns the violation if the entry had one already.
    pub(crate) fn arrived(&mut self, node: usize, place: Place) -> Option<String> {
        let seen = &mut self.seen[node];
        seen.by_offset.push(place.clone());
        let again = format!("{} {} has two offsets", place.0, place.1);
        (!seen.arrived.insert(place)).then_some(again)
    }

    /// Records a delivery. Returns whether it is a repetition; an error if it was confirmed before,
    /// or if its offset or its place was delivered otherwise before.
    pub(crate) fn delivered(&mut self, node: usize, offset: u64, place: &Place) -> Result<bool, String> {
        let subscriber = &mut self.subscribers[node];
        let again = match subscriber.given.get(&offset) {
            Some(same) if same != place => {
                return Err(format!("offset {offset} changed from {} {} to {} {}", same.0, same.1, place.0, place.1));
            }
            Some(_) => true,
            None if subscriber.places.contains(place) => {
                return Err(format!("{} {} was delivered twice, also as {offset}", place.0, place.1));
            }
            None => false,
        };
        if offset <= subscriber.confirmed {
            return Err(format!("offset {offset} was delivered after it was confirmed"));
        }
        subscriber.given.insert(offset, place.clone());
        subscriber.places.insert(place.clone());
        Ok(again)
    }

    /// Records a cosignature of a node. Returns the violation if a witness may not make it.
    pub(crate) fn cosigned(&mut self, node: usize, feed: &FeedId, size: u64, time: u64) -> Option<String> {
        let seen = &mut self.seen[node];
        let held = seen.sizes.get(feed).copied().unwrap_or(0);
        let last = seen.cosigned.get(feed).map_or(0, |(size, _)| *size);
        let fault = if size > held {
            Some(format!("{feed} {size} was cosigned, {held} is durable"))
        } else if size < last {
            Some(format!("{feed} {size} was cosigned after {last}"))
        } else if time < seen.cosigned_at {
            Some(format!("{feed} was cosigned at {time}, after {}", seen.cosigned_at))
        } else {
            None
        };
        seen.cosigned.insert(feed.clone(), (size, time));
        seen.cosigned_at = time;
        fault
    }

    pub(crate) fn backed_up(&mut self, node: usize) {
        self.backups[node] = Some((self.seen[node].clone(), self.subscribers[node].clone()));
    }

    /// Records that the store was replaced by its backup or by an empty one, with a subscription
    /// confirmed up to `cursor`. The subscriber learns of it, and forgets later deliveries.
    pub(crate) fn restored(&mut self, node: usize, from_backup: bool, cursor: u64) {
        let (seen, before) = self.backups[node].clone().filter(|_| from_backup).unwrap_or_default();
        self.seen[node] = seen;
        let given: BTreeMap<u64, Place> = before.given.into_iter().filter(|(offset, _)| *offset <= cursor).collect();
        let places = given.values().cloned().collect();
        self.subscribers[node] = Subscriber { given, places, confirmed: cursor };
        self.restores[node] += 1;
    }
}
