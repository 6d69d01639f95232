//! Which store and which history an offset belongs to.
//!
//! In scope: the identity of a store, and the commit that holds an offset. Every commit's head names the hash of the head before it, so the
//! hash of one head proves everything up to it: two stores with one hash have the same entries under the same offsets. A copy of a data
//! folder has its original's identity; their heads differ from the first commit on that is not in both. Out of scope: what is made of it
//! for readers (`api`).

use std::ops::Range;

use barid_core::ids::Hash;
use sha2::{Digest as _, Sha256};

#[cfg(any(test, fuzzing))]
use super::{Commit, Entry, log::record};

/// Tells one store from every other, but not from its copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreId(pub [u8; 16]);

impl StoreId {
    /// The identity of the store with this salt. The salt itself is never shown: who knew it could publish what looks like a record.
    pub(super) fn of_salt(salt: &[u8; 16]) -> Self {
        let digest = Sha256::new().chain_update(b"barid store id v1\0").chain_update(salt).finalize();
        let mut id = [0; 16];
        id.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        Self(id)
    }
}

/// The chain of a store in memory.
#[cfg(any(test, fuzzing))]
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// Of each commit with entries.
    links: Vec<ChainLink>,
    /// Hash of the newest head.
    newest: Option<Hash>,
}

#[cfg(any(test, fuzzing))]
impl Chain {
    /// Adds a commit with these offsets; returns the hash of its head.
    pub(super) fn add(&mut self, commit: &Commit, seq: u64, offsets: Range<u64>) -> Hash {
        let previous = self.newest.unwrap_or(Hash([0; 32]));
        let hash = record::head_hash(&record::encode_head(commit, seq, &previous, offsets.start));
        self.newest = Some(hash);
        if !offsets.is_empty() {
            self.links.push(ChainLink { offsets, hash });
        }
        hash
    }

    /// The commit that holds an offset.
    pub(super) fn link(&self, offset: u64) -> Option<&ChainLink> {
        let place = self.links.partition_point(|link| link.offsets.end <= offset);
        self.links.get(place).filter(|link| link.offsets.contains(&offset))
    }

    /// The commits that hold these entries, which ascend by their offsets.
    pub(super) fn links_of(&self, entries: &[Entry]) -> Vec<ChainLink> {
        let mut links: Vec<ChainLink> = entries.iter().filter_map(|entry| self.link(entry.offset?).cloned()).collect();
        links.dedup();
        links
    }
}

/// The commit that holds some offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainLink {
    /// The offsets of its disclosed entries. There is at least one.
    pub offsets: Range<u64>,
    /// Hash of its head.
    pub hash: Hash,
}
