//! Evidence of an equivocation in one of two forms: two trees ([`Equivocation`]) or two entries at
//! one index ([`EntryEquivocation`]).
//!
//! In scope: parsing either form, and the trees and entries that an operator's decision covers. Out
//! of scope: stopping a feed, and the decision.

use std::collections::BTreeSet;
use std::fmt;

use super::equivocation::{CheckpointClaims, Equivocation, EquivocationError};
use super::two_entries::{ClaimedEntry, EntryClaims, EntryEquivocation, HEADING as ENTRIES_HEADING};
use crate::feed::checkpoint::Checkpoint;
use crate::ids::{Digest, FeedId, Hash};
use crate::roster::Roster;

/// Verified evidence of an equivocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EquivocationEvidence {
    /// Two trees, neither of which extends the other (docs/protocol.md §9.1).
    Trees(Equivocation),
    /// Two entries at one index (docs/protocol.md §9.2).
    Entries(EntryEquivocation),
}

impl EquivocationEvidence {
    /// Parses and verifies a file of either form with the feed's keys in `roster`.
    ///
    /// # Errors
    /// See [`EquivocationError`].
    pub fn verify(file: &[u8], roster: &Roster) -> Result<Self, EquivocationError> {
        if is_of_entries(file) {
            EntryEquivocation::verify(file, roster).map(Self::Entries)
        } else {
            Equivocation::verify(file, roster).map(Self::Trees)
        }
    }

    /// Returns the feed.
    #[must_use]
    pub fn feed(&self) -> &FeedId {
        match self {
            Self::Trees(trees) => trees.feed(),
            Self::Entries(entries) => entries.feed(),
        }
    }

    /// Returns the file that proves it to every holder of the roster.
    #[must_use]
    pub fn format(&self) -> String {
        match self {
            Self::Trees(trees) => trees.format(),
            Self::Entries(entries) => entries.format(),
        }
    }

    /// Returns the claims that it proves.
    #[must_use]
    pub fn claims(&self) -> EquivocationClaims {
        match self {
            Self::Trees(trees) => EquivocationClaims::Trees(trees.claims()),
            Self::Entries(EntryEquivocation { index, one, other }) => {
                let [one, other] = [one, other].map(|entry| ClaimedEntry {
                    digest: entry.digest,
                    checkpoint: entry.checkpoint.checkpoint.clone(),
                });
                EquivocationClaims::Entries(EntryClaims { index: *index, one, other })
            }
        }
    }
}

impl fmt::Display for EquivocationEvidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.claims().fmt(f)
    }
}

impl fmt::Display for EquivocationClaims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trees(trees) => trees.fmt(f),
            Self::Entries(entries) => entries.fmt(f),
        }
    }
}

impl From<Equivocation> for EquivocationEvidence {
    fn from(trees: Equivocation) -> Self {
        Self::Trees(trees)
    }
}

impl From<EntryEquivocation> for EquivocationEvidence {
    fn from(entries: EntryEquivocation) -> Self {
        Self::Entries(entries)
    }
}

/// The claims of a file of either form about one feed. They are unverified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EquivocationClaims {
    /// Two trees.
    Trees(CheckpointClaims),
    /// Two entries at one index.
    Entries(EntryClaims),
}

impl EquivocationClaims {
    /// Parses a file.
    ///
    /// # Errors
    /// If it has neither form, or covers two feeds; see [`EquivocationError`].
    pub fn read(file: &[u8]) -> Result<Self, EquivocationError> {
        if is_of_entries(file) {
            EntryClaims::read(file).map(Self::Entries)
        } else {
            CheckpointClaims::read(file).map(Self::Trees)
        }
    }

    /// Returns the two checkpoints, in the order of the evidence: the one that is not larger first.
    #[must_use]
    pub fn checkpoints(&self) -> [&Checkpoint; 2] {
        match self {
            Self::Trees(CheckpointClaims { smaller, larger, .. }) => [smaller, larger],
            Self::Entries(EntryClaims { one, other, .. }) => [&one.checkpoint, &other.checkpoint],
        }
    }
}

fn is_of_entries(file: &[u8]) -> bool {
    file.starts_with(ENTRIES_HEADING.as_bytes())
}

/// Trees and entries of one feed that an operator knew when deciding to continue following it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedForks {
    trees: BTreeSet<(u64, Hash)>,
    entries: BTreeSet<(u64, Digest)>,
}

impl ResolvedForks {
    /// Adds the trees and entries of this evidence to the decision. The evidence was verified
    /// before it was stored.
    pub fn add_evidence(&mut self, evidence: &EquivocationClaims) {
        self.trees.extend(evidence.checkpoints().map(|tree| (tree.size, tree.root)));
        match evidence {
            EquivocationClaims::Trees(CheckpointClaims { smaller, other_root, .. }) => {
                _ = self.trees.insert((smaller.size, *other_root));
            }
            EquivocationClaims::Entries(EntryClaims { index, one, other }) => {
                self.entries.extend([(*index, one.digest), (*index, other.digest)]);
            }
        }
    }

    /// Returns whether the decision covers this tree.
    #[must_use]
    pub fn covers_tree(&self, size: u64, root: &Hash) -> bool {
        self.trees.contains(&(size, *root))
    }

    /// Returns whether the decision covers this entry at this index.
    #[must_use]
    pub fn covers_entry(&self, index: u64, digest: &Digest) -> bool {
        self.entries.contains(&(index, *digest))
    }
}
