//! Succession of roster versions: the TUF root rule.
//!
//! Version n + 1 is accepted only with the threshold of version n's governors and of its own, one
//! version at a time, and only if it preserves the invariants of version n.
//!
//! In scope: the chain of verified versions, and forks of a version. Out of scope: which fields are
//! invariant (`invariants`), and reading a roster (`read`).

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{Roster, RosterError, invariants};
use crate::feed::note::Note;

/// Consecutive verified versions, beginning with one that is trusted initially. Never empty.
///
/// # Examples
/// ```
/// use barid_core::roster::RosterChain;
///
/// let first = include_bytes!("../../../tests/golden/roster-1.note");
/// let second = include_bytes!("../../../tests/golden/roster-2.note");
/// let mut chain = RosterChain::start(first)?;
/// assert!(chain.extend(second)?);
/// assert!(!chain.extend(second)?, "it is held");
/// assert_eq!(chain.newest().version(), 2);
/// # Ok::<(), barid_core::roster::ChainError>(())
/// ```
#[derive(Clone, Debug)]
pub struct RosterChain {
    versions: BTreeMap<u64, (Arc<Roster>, Bytes)>,
    newest: Arc<Roster>,
}

/// Why a roster does not extend a chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Not a valid roster.
    #[error(transparent)]
    Roster(#[from] RosterError),
    /// Too few governors signed it.
    #[error("version {version} has {found} of the {needed} signatures of {whose} governors that it needs")]
    Threshold {
        /// Version of the roster.
        version: u64,
        /// The governors that count: "its own", "the version before's" or "the held version's".
        whose: &'static str,
        /// Number of valid signatures.
        found: usize,
        /// Number of signatures needed.
        needed: usize,
    },
    /// A version other than the next.
    #[error("version {found} does not follow version {held}")]
    Gap {
        /// Newest version held.
        held: u64,
        /// Version received.
        found: u64,
    },
    /// It names another predecessor, or another exchange.
    #[error("version {0} does not name the current roster as its predecessor")]
    Previous(u64),
    /// It changes an invariant of the version before: an epoch's final size, its keys, or the end
    /// of a key.
    #[error("version {version} changes a final value: {field} was `{was}` and is `{is}`")]
    InvariantChanged {
        /// The version.
        version: u64,
        /// Path of the field.
        field: String,
        /// Value in the version before.
        was: String,
        /// Value in this version.
        is: String,
    },
    /// Two different rosters of one version, both signed by the governors entitled to sign it. The
    /// held one stays in force until an operator decides.
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
    /// Creates a chain from an initially trusted roster, which must be signed by its own threshold.
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

    /// Adds the next version. Returns `false`, without a change, if the roster is already held.
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

    /// Checks whether `other` could have been accepted in place of `held`. Anybody can write a
    /// roster and sign it with governors of their own. It is a fork only if it is signed by the
    /// governors that decide about this version: those of the version before. If that version is
    /// not held, those of the held version count, which is trusted initially.
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

    /// Returns the newest version.
    #[must_use]
    pub fn newest(&self) -> &Roster {
        &self.newest
    }

    /// Returns the newest version, shared.
    #[must_use]
    pub fn newest_shared(&self) -> Arc<Roster> {
        Arc::clone(&self.newest)
    }

    /// Returns one version.
    #[must_use]
    pub fn at(&self, version: u64) -> Option<&Roster> {
        self.versions.get(&version).map(|(roster, _)| roster.as_ref())
    }

    /// Returns versions and notes, ascending.
    pub fn notes(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        self.versions.iter().map(|(version, (_, note))| (*version, note))
    }
}

/// Checks whether `next`, with the signatures on `note`, follows `before`: the whole rule of
/// succession.
///
/// # Errors
/// [`ChainError::Gap`], [`ChainError::Previous`], [`ChainError::Threshold`] or
/// [`ChainError::InvariantChanged`].
pub fn follows(before: &Roster, next: &Roster, note: &Note) -> Result<(), ChainError> {
    is_successor(before, next)?;
    threshold(before, "the version before's", next, note)?;
    threshold(next, "its own", next, note)?;
    preserves_invariants(before, next)
}

/// Checks whether `next` could follow `before` once enough governors have signed it.
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

/// Checks that enough of `by`'s governors signed `roster`.
fn threshold(by: &Roster, whose: &'static str, roster: &Roster, note: &Note) -> Result<(), ChainError> {
    let (found, needed) = (by.approvals(note), by.threshold());
    if found < needed {
        return Err(ChainError::Threshold { version: roster.version(), whose, found, needed });
    }
    Ok(())
}
