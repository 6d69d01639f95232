//! Who waits: owners in turn, and what one owner has waiting in the order in which it came.
//!
//! In scope: who is next. Pure. Out of scope: what they wait for ([`super::Budget`]).
//!
//! Turns go round the owners, so that somebody with one request waits for at most one of each other owner, however many these have waiting.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;

/// What waits, by owner.
pub(super) struct FairQueue<K, T> {
    waiting: HashMap<K, BTreeMap<u64, T>>,
    /// Owners with something waiting, the next one first.
    owners: VecDeque<K>,
    next_id: u64,
}

/// What becomes of one that waits.
pub(super) enum GrantDecision {
    /// It goes on, and its owner is last now.
    Granted,
    /// It goes on waiting, and its owner keeps its turn.
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

    /// Whether this owner has something waiting.
    pub(super) fn has(&self, owner: &K) -> bool {
        self.waiting.contains_key(owner)
    }

    /// Adds one behind those of its owner; returns its number.
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

    /// Removes one that has given up; `None` if it was granted before.
    pub(super) fn remove(&mut self, owner: &K, id: u64) -> Option<T> {
        let of_owner = self.waiting.get_mut(owner)?;
        let removed = of_owner.remove(&id);
        if of_owner.is_empty() {
            self.waiting.remove(owner);
            self.owners.retain(|other| other != owner);
        }
        removed
    }

    /// Looks at the first of each owner in turn, and again at owners of which one was granted. Returns those that were.
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
