//! Which roster follows which: the TUF root rule.
//!
//! Version n + 1 is accepted only with the threshold of version n's governors and of its own, one version at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{Roster, RosterError};

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
        /// Whose governors: "its own" or "the version before's".
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
    #[error("version {0} does not name the roster held as the one before")]
    Previous(u64),
    /// Two different rosters of one version, both signed: the held one stays until an operator decides.
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
        own_threshold(&roster, &parsed)?;
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
            own_threshold(&roster, &parsed)?;
            return Err(ChainError::Fork { version, held: held_note.clone(), other: Bytes::copy_from_slice(note) });
        }
        let before = &self.newest;
        if version != before.version() + 1 {
            return Err(ChainError::Gap { held: before.version(), found: version });
        }
        if roster.previous() != Some(before.text_hash()) || roster.exchange() != before.exchange() {
            return Err(ChainError::Previous(version));
        }
        let approvals = before.approvals(&parsed);
        if approvals < before.threshold() {
            return Err(ChainError::Threshold {
                version,
                whose: "the version before's",
                found: approvals,
                needed: before.threshold(),
            });
        }
        own_threshold(&roster, &parsed)?;
        self.newest = Arc::new(roster);
        self.versions.insert(version, (Arc::clone(&self.newest), Bytes::copy_from_slice(note)));
        Ok(true)
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

fn own_threshold(roster: &Roster, note: &crate::feed::note::Note) -> Result<(), ChainError> {
    let found = roster.approvals(note);
    if found < roster.threshold() {
        let (version, needed) = (roster.version(), roster.threshold());
        return Err(ChainError::Threshold { version, whose: "its own", found, needed });
    }
    Ok(())
}
