//! A queue of waiting items that serves owners in turn, and the items of one owner in order.
//!
//! In scope: the order. Pure. Out of scope: what the items wait for ([`super::Budget`]).
//!
//! Owners are served round-robin: an owner with one item waits for at most one item of each other
//! owner, however many they have.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;

/// Waiting items by owner.
pub(super) struct FairQueue<K, T> {
    waiting: HashMap<K, BTreeMap<u64, T>>,
    /// Owners with waiting items, the next one first.
    owners: VecDeque<K>,
    next_id: u64,
}

/// Decision on a waiting item.
pub(super) enum GrantDecision {
    /// The item is removed, and its owner goes to the end.
    Granted,
    /// The item stays, and its owner keeps its turn.
    Waits,
}

impl<K, T> Default for FairQueue<K, T> {
    fn default() -> Self {
        Self { waiting: HashMap::new(), owners: VecDeque::new(), next_id: 0 }
    }
}

impl<K: Clone + Eq + Hash, T> FairQueue<K, T> {
    pub(super) fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// Returns whether an owner has waiting items.
    pub(super) fn has(&self, owner: &K) -> bool {
        self.waiting.contains_key(owner)
    }

    /// Adds an item after those of its owner. Returns its id.
    pub(super) fn push(&mut self, owner: &K, waiting: T) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let of_owner = self.waiting.entry(owner.clone()).or_default();
        if of_owner.is_empty() {
            self.owners.push_back(owner.clone());
        }
        of_owner.insert(id, waiting);
        id
    }

    /// Removes an item; `None` if it was already granted.
    pub(super) fn remove(&mut self, owner: &K, id: u64) -> Option<T> {
        let of_owner = self.waiting.get_mut(owner)?;
        let removed = of_owner.remove(&id);
        if of_owner.is_empty() {
            self.waiting.remove(owner);
            self.owners.retain(|other| other != owner);
        }
        removed
    }

    /// Decides on the first item of each owner in turn, and again on owners that had an item
    /// granted. Returns the granted items.
    pub(super) fn grant(&mut self, mut decide: impl FnMut(&K, &T) -> GrantDecision) -> Vec<(K, T)> {
        let (mut granted, mut place) = (Vec::new(), 0);
        while let Some(owner) = self.owners.get(place).cloned() {
            let Some(mut of_owner) = self.waiting.remove(&owner) else { break };
            match of_owner.pop_first() {
                Some((id, first)) => match decide(&owner, &first) {
                    GrantDecision::Granted => {
                        granted.push((owner.clone(), first));
                        self.owners.remove(place);
                        if !of_owner.is_empty() {
                            self.owners.push_back(owner.clone());
                        }
                    }
                    GrantDecision::Waits => {
                        of_owner.insert(id, first);
                        place += 1;
                    }
                },
                None => drop(self.owners.remove(place)),
            }
            if !of_owner.is_empty() {
                self.waiting.insert(owner, of_owner);
            }
        }
        granted
    }
}
