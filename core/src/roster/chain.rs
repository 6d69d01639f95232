//! Which roster follows which: the TUF root rule.
//!
//! Version n + 1 is accepted only with the threshold of version n's governors and of its own, one version at a time, and only if it
//! leaves alone what version n had settled.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{Roster, RosterError, invariants};
use crate::feed::note::Note;

/// Consecutive verified versions, from one that was trusted from the start. Never empty.
#[derive(Clone, Debug)]
pub struct RosterChain {
    versions: BTreeMap<u64, (Arc<Roster>, Bytes)>,
    newest: Arc<Roster>,
}

/// Why a roster does not extend a chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Not a roster.
    #[error(transparent)]
    Roster(#[from] RosterError),
    /// Too few governors signed it.
    #[error("version {version} has {found} of the {needed} signatures of {whose} governors that it needs")]
    Threshold {
        /// Of the roster.
        version: u64,
        /// Whose governors: "its own", "the version before's" or "the held version's".
        whose: &'static str,
        /// Valid ones.
        found: usize,
        /// Needed.
        needed: usize,
    },
    /// Another version than the next.
    #[error("version {found} does not follow version {held}")]
    Gap {
        /// Newest held.
        held: u64,
        /// Offered.
        found: u64,
    },
    /// It names another predecessor, or another exchange.
    #[error("version {0} does not name the current roster as its predecessor")]
    Previous(u64),
    /// It changes what the version before had settled: an epoch's final size, its keys, or the end of a key.
    #[error("version {version} changes a final value: {field} was `{was}` and is `{is}`")]
    InvariantChanged {
        /// The version.
        version: u64,
        /// Path.
        field: String,
        /// As the version before says.
        was: String,
        /// As this one says.
        is: String,
    },
    /// Two different rosters of one version, both signed by those who may sign it: the held one stays until an operator decides.
    #[error("there are two rosters of version {version}")]
    Fork {
        /// The version.
        version: u64,
        /// The note held.
        held: Bytes,
        /// The other note.
        other: Bytes,
    },
}

impl RosterChain {
    /// Begins with a roster that is trusted by itself; its own threshold must have signed it.
    ///
    /// # Errors
    /// [`ChainError::Roster`] or [`ChainError::Threshold`].
    pub fn start(note: &[u8]) -> Result<Self, ChainError> {
        let (roster, parsed) = Roster::read(note)?;
        threshold(&roster, "its own", &roster, &parsed)?;
        let newest = Arc::new(roster);
        let versions = BTreeMap::from([(newest.version(), (Arc::clone(&newest), Bytes::copy_from_slice(note)))]);
        Ok(Self { versions, newest })
    }

    /// Takes the next version in. A roster that is held already changes nothing and gives `false`.
    ///
    /// # Errors
    /// See [`ChainError`]; the chain is unchanged then.
    pub fn extend(&mut self, note: &[u8]) -> Result<bool, ChainError> {
        let (roster, parsed) = Roster::read(note)?;
        let version = roster.version();
        if let Some((held, held_note)) = self.versions.get(&version) {
            if held.text_hash() == roster.text_hash() {
                return Ok(false);
            }
            self.is_rival(held, &roster, &parsed)?;
            return Err(ChainError::Fork { version, held: held_note.clone(), other: Bytes::copy_from_slice(note) });
        }
        follows(&self.newest, &roster, &parsed)?;
        self.newest = Arc::new(roster);
        self.versions.insert(version, (Arc::clone(&self.newest), Bytes::copy_from_slice(note)));
        Ok(true)
    }

    /// Whether `other` could have been accepted in place of `held`. Anybody can write a roster and sign it with governors of his own:
    /// it is worth an alarm only if those signed it who decide about this version, the governors of the one before. Where that one is not
    /// held they are the held version's own, who are trusted as they stand.
    fn is_rival(&self, held: &Roster, other: &Roster, note: &Note) -> Result<(), ChainError> {
        if other.exchange() != held.exchange() {
            return Err(ChainError::Previous(other.version()));
        }
        match self.at(held.version() - 1) {
            Some(before) => threshold(before, "the version before's", other, note)?,
            None => threshold(held, "the held version's", other, note)?,
        }
        threshold(other, "its own", other, note)
    }

    /// The newest version.
    #[must_use]
    pub fn newest(&self) -> &Roster {
        &self.newest
    }

    /// The newest version, shared.
    #[must_use]
    pub fn newest_shared(&self) -> Arc<Roster> {
        Arc::clone(&self.newest)
    }

    /// One version.
    #[must_use]
    pub fn at(&self, version: u64) -> Option<&Roster> {
        self.versions.get(&version).map(|(roster, _)| roster.as_ref())
    }

    /// Versions and notes, ascending.
    pub fn notes(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        self.versions.iter().map(|(version, (_, note))| (*version, note))
    }
}

/// Whether `next`, signed as `note` says, follows `before`: the whole rule of succession.
///
/// # Errors
/// [`ChainError::Gap`], [`ChainError::Previous`], [`ChainError::Threshold`] or [`ChainError::InvariantChanged`].
pub fn follows(before: &Roster, next: &Roster, note: &Note) -> Result<(), ChainError> {
    is_successor(before, next)?;
    threshold(before, "the version before's", next, note)?;
    threshold(next, "its own", next, note)?;
    preserves_invariants(before, next)
}

/// Whether `next` could follow `before` once enough governors have signed it.
///
/// # Errors
/// [`ChainError::Gap`], [`ChainError::Previous`] or [`ChainError::InvariantChanged`].
pub fn could_follow(before: &Roster, next: &Roster) -> Result<(), ChainError> {
    is_successor(before, next)?;
    preserves_invariants(before, next)
}

fn is_successor(before: &Roster, next: &Roster) -> Result<(), ChainError> {
    let version = next.version();
    if Some(version) != before.version().checked_add(1) {
        return Err(ChainError::Gap { held: before.version(), found: version });
    }
    if next.previous() != Some(before.text_hash()) || next.exchange() != before.exchange() {
        return Err(ChainError::Previous(version));
    }
    Ok(())
}

fn preserves_invariants(before: &Roster, next: &Roster) -> Result<(), ChainError> {
    invariants::check(before, next).map_err(|invariants::InvariantViolation { field, was, is }| {
        ChainError::InvariantChanged { version: next.version(), field, was, is }
    })
}

/// Whether enough of `by`'s governors signed `roster`.
fn threshold(by: &Roster, whose: &'static str, roster: &Roster, note: &Note) -> Result<(), ChainError> {
    let (found, needed) = (by.approvals(note), by.threshold());
    if found < needed {
        return Err(ChainError::Threshold { version: roster.version(), whose, found, needed });
    }
    Ok(())
}
