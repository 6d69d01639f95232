//! Two histories of one feed, whichever of two forms proves them: two trees ([`Equivocation`]) or two entries at one place ([`EntryEquivocation`]).
//!
//! In scope: reading either form, and what a decision about a feed was about. Out of scope: stopping a feed, and deciding.

use std::collections::BTreeSet;
use std::fmt;

use super::equivocation::{CheckpointClaims, Equivocation, EquivocationError};
use super::two_entries::{ClaimedEntry, EntryClaims, EntryEquivocation, HEADING as ENTRIES_HEADING};
use crate::feed::checkpoint::Checkpoint;
use crate::ids::{Digest, FeedId, Hash};
use crate::roster::Roster;

/// Verified evidence of two histories of one feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EquivocationEvidence {
    /// Two trees of which neither extends the other (docs/protocol.md §9.1).
    Trees(Equivocation),
    /// Two entries at one index (docs/protocol.md §9.2).
    Entries(EntryEquivocation),
}

impl EquivocationEvidence {
    /// Reads and verifies a file of either form with the feed's keys in `roster`.
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

    /// Which feed.
    #[must_use]
    pub fn feed(&self) -> &FeedId {
        match self {
            Self::Trees(trees) => trees.feed(),
            Self::Entries(entries) => entries.feed(),
        }
    }

    /// The file that proves it to anybody who holds the roster.
    #[must_use]
    pub fn format(&self) -> String {
        match self {
            Self::Trees(trees) => trees.format(),
            Self::Entries(entries) => entries.format(),
        }
    }

    /// What it says.
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

/// What a file of either form says of one feed. Nothing of it is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EquivocationClaims {
    /// Two trees.
    Trees(CheckpointClaims),
    /// Two entries at one index.
    Entries(EntryClaims),
}

impl EquivocationClaims {
    /// Reads a file.
    ///
    /// # Errors
    /// If it is of neither form, or speaks of two feeds; see [`EquivocationError`].
    pub fn read(file: &[u8]) -> Result<Self, EquivocationError> {
        if is_of_entries(file) {
            EntryClaims::read(file).map(Self::Entries)
        } else {
            CheckpointClaims::read(file).map(Self::Trees)
        }
    }

    /// Of two checkpoints of the feed the one that is not larger, then the other one.
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

/// Trees and entries of one feed of which an operator knew when deciding that it is followed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedForks {
    trees: BTreeSet<(u64, Hash)>,
    entries: BTreeSet<(u64, Digest)>,
}

impl ResolvedForks {
    /// The decision was also about what this evidence shows, which was verified when it was kept.
    pub fn add_evidence(&mut self, evidence: &EquivocationClaims) {
        self.trees.extend(evidence.checkpoints().map(|tree| (tree.size, tree.root)));
        match evidence {
            EquivocationClaims::Trees(CheckpointClaims { smaller, other_root, .. }) => {
                _ = self.trees.insert((smaller.size, *other_root))
            }
            EquivocationClaims::Entries(EntryClaims { index, one, other }) => {
                self.entries.extend([(*index, one.digest), (*index, other.digest)]);
            }
        }
    }

    /// Whether it was about this tree.
    #[must_use]
    pub fn covers_tree(&self, size: u64, root: &Hash) -> bool {
        self.trees.contains(&(size, *root))
    }

    /// Whether it was about this entry at this index.
    #[must_use]
    pub fn covers_entry(&self, index: u64, digest: &Digest) -> bool {
        self.entries.contains(&(index, *digest))
    }
}
