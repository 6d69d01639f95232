//! The identity of a store, and the commit that holds an offset.
//!
//! Every head contains the hash of the head before it, so the hash of one head proves everything up
//! to it: two stores with the same hash have the same entries at the same offsets. A copy of a data
//! folder has the identity of its original; their heads differ from the first commit on that is not
//! in both.
//!
//! In scope: store identity and chain links. Out of scope: the cursors of readers that are made
//! from them (`api`).

use std::ops::Range;

use barid_core::ids::Hash;
use sha2::{Digest as _, Sha256};

#[cfg(any(test, fuzzing))]
use super::{Commit, Entry, log::record};

/// The identity of a store; copies of a store share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreId(pub [u8; 16]);

impl StoreId {
    /// Returns the identity of the store with this salt. The salt itself is secret: with it, a
    /// publisher could forge bytes that look like a record.
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
    /// One link for each commit with disclosed entries.
    links: Vec<ChainLink>,
    /// Hash of the newest head.
    newest: Option<Hash>,
}

#[cfg(any(test, fuzzing))]
impl Chain {
    /// Adds a commit with these offsets and returns the hash of its head.
    pub(super) fn add(&mut self, commit: &Commit, seq: u64, offsets: Range<u64>) -> Hash {
        let previous = self.newest.unwrap_or(Hash([0; 32]));
        let hash = record::head_hash(&record::encode_head(commit, seq, &previous, offsets.start));
        self.newest = Some(hash);
        if !offsets.is_empty() {
            self.links.push(ChainLink { offsets, hash });
        }
        hash
    }

    /// Returns the commit that holds an offset.
    pub(super) fn link(&self, offset: u64) -> Option<&ChainLink> {
        let place = self.links.partition_point(|link| link.offsets.end <= offset);
        self.links.get(place).filter(|link| link.offsets.contains(&offset))
    }

    /// Returns the commits that hold these entries, which are in ascending order of offset.
    pub(super) fn links_of(&self, entries: &[Entry]) -> Vec<ChainLink> {
        let mut links: Vec<ChainLink> = entries.iter().filter_map(|entry| self.link(entry.offset?).cloned()).collect();
        links.dedup();
        links
    }
}

/// A commit, and the offsets that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainLink {
    /// The offsets of its disclosed entries; never empty.
    pub offsets: Range<u64>,
    /// Hash of its head.
    pub hash: Hash,
}
