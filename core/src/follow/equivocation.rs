//! Two histories signed by one feed's key.
//!
//! In scope: telling from verified checkpoints, and keeping what proves it. A proof that merely fails is its sender's fault and no
//! evidence. Out of scope: what to do about it.

use std::fmt;

use crate::feed::checkpoint::SignedCheckpoint;
use crate::feed::tree::verify_consistency;
use crate::names::Hash;

/// Two checkpoints, validly signed by one feed's keys, of which neither extends the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Equivocation {
    /// The one that is not larger.
    pub smaller: SignedCheckpoint,
    /// The other one.
    pub larger: SignedCheckpoint,
    /// The root to which `larger` commits at the size of `smaller`: its own root where the sizes are equal.
    pub other_root: Hash,
    /// Consistency proof from `other_root` to `larger`; empty where the sizes are equal.
    pub proof: Vec<Hash>,
}

impl Equivocation {
    /// Evidence, if two verified checkpoints of one feed and size have different roots.
    #[must_use]
    pub fn between(one: &SignedCheckpoint, other: &SignedCheckpoint) -> Option<Self> {
        let (first, second) = (&one.checkpoint, &other.checkpoint);
        if first.size != second.size || first.feed != second.feed || first.root == second.root {
            return None;
        }
        Some(Self { smaller: one.clone(), larger: other.clone(), other_root: second.root, proof: Vec::new() })
    }

    /// Evidence, if `proof` shows that the larger of two verified checkpoints of one feed commits to `other_root`, another root than
    /// the smaller one's, at the smaller one's size.
    #[must_use]
    pub fn by_proof(
        smaller: &SignedCheckpoint,
        larger: &SignedCheckpoint,
        other_root: &Hash,
        proof: &[Hash],
    ) -> Option<Self> {
        let (old, new) = (&smaller.checkpoint, &larger.checkpoint);
        let shown = old.feed == new.feed
            && old.size > 0
            && old.root != *other_root
            && verify_consistency(old.size, other_root, new.size, &new.root, proof).is_ok();
        shown.then(|| Self {
            smaller: smaller.clone(),
            larger: larger.clone(),
            other_root: *other_root,
            proof: proof.to_vec(),
        })
    }
}

impl fmt::Display for Equivocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (old, new) = (&self.smaller.checkpoint, &self.larger.checkpoint);
        write!(f, "{} has two histories: root {} at size {}, and {} ", old.feed, old.root, old.size, self.other_root)?;
        if old.size == new.size { f.write_str("too") } else { write!(f, "by the checkpoint of size {}", new.size) }
    }
}
