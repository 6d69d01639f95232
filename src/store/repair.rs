//! Repairs the store of a stopped node: finds the damage in its commit log, and restores the
//! original bytes.
//!
//! In scope: the folder's lock, the list of damage, and repairs from the log itself or with an
//! envelope fetched from elsewhere. Out of scope: fetching envelopes. Of the index database only
//! the newest commit is read; it is rebuilt from the log.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use barid_core::ids::{Digest, FeedId};

use super::disk::DiskOptions;
use super::log::{LogDamage, LogDamageKind, LogInspection, inspect, segment, write_repair};
use super::open::lock;
use super::{OpenError, RosterRecord, index_db};

/// Opens a store. If it is damaged and the commit log has only flipped bits, these are corrected
/// and the store is opened again. Also returns the number of corrected bits.
pub(super) fn open<S>(
    dir: &Path,
    options: &DiskOptions,
    open: impl Fn() -> Result<S, OpenError>,
) -> Result<(S, usize), OpenError> {
    match open() {
        Err(OpenError::Damaged(what)) => {
            tracing::warn!(what, "the store is damaged: scanning the whole commit log");
            let corrected = Repair::open(dir, options)?.correct_if_only_bits()?;
            if corrected == 0 { Err(OpenError::Damaged(what)) } else { Ok((open()?, corrected)) }
        }
        opened => Ok((opened?, 0)),
    }
}

/// One damaged place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Byte range in the file.
    pub bytes: Range<u64>,
    /// The kind of damage.
    pub kind: DamageKind,
    /// Whether it is repaired.
    pub repaired: bool,
}

/// The kind of damage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// One flipped bit; a SHA-256 proves its original value.
    BitFlip,
    /// The content of an entry. Any content with this digest is the original.
    Envelope {
        /// The entry's feed.
        feed: FeedId,
        /// Its index.
        index: u64,
        /// Its digest, which the log's chain proves.
        digest: Digest,
    },
    /// Data about commits that cannot be repaired.
    Unrecoverable(String),
}

/// The locked folder of a store, and the damage found in it.
pub struct Repair {
    log_dir: PathBuf,
    inspection: LogInspection,
    repaired: Vec<bool>,
    _lock: File,
}

impl Repair {
    /// Locks the store in `dir` and reads its whole commit log; changes nothing.
    ///
    /// # Errors
    /// If another process has it open, or it is another node's or a newer version's.
    pub fn open(dir: &Path, options: &DiskOptions) -> Result<Self, OpenError> {
        let lock = lock(dir)?;
        let log_dir = dir.join("log");
        let mut inspection = inspect(&log_dir, &options.log())?;
        // A log does not record its own end; the tail hint and the index database may know it.
        let newest = index_db::newest_commit(dir, options.index_cache_bytes).unwrap_or(0).max(inspection.confirmed);
        if newest > inspection.newest && !inspection.truncated {
            let kind = LogDamageKind::Unrecoverable(format!(
                "commits {} to {newest} are missing at the end",
                inspection.newest + 1
            ));
            let segment = segment::list(&log_dir)?.last().copied().unwrap_or(1);
            let len = std::fs::metadata(segment::path(&log_dir, segment)).map_or(0, |file| file.len());
            inspection.damages.push(LogDamage { segment, bytes: len..len, kind });
        }
        let repaired = vec![false; inspection.damages.len()];
        Ok(Self { log_dir, inspection, repaired, _lock: lock })
    }

    /// Returns all damage, in the order of the log.
    pub fn damage(&self) -> impl Iterator<Item = Damage> {
        self.inspection.damages.iter().zip(&self.repaired).map(|(damage, repaired)| Damage {
            file: segment::path(&self.log_dir, damage.segment),
            bytes: damage.bytes.clone(),
            kind: match &damage.kind {
                LogDamageKind::BitFlip(_) => DamageKind::BitFlip,
                LogDamageKind::Envelope { feed, index, digest } => {
                    DamageKind::Envelope { feed: feed.clone(), index: *index, digest: *digest }
                }
                LogDamageKind::Unrecoverable(what) => DamageKind::Unrecoverable(what.clone()),
            },
            repaired: *repaired,
        })
    }

    /// Returns whether there is more damage than is listed.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.inspection.truncated
    }

    /// Returns the number of the newest commit that could be read.
    #[must_use]
    pub fn newest_commit(&self) -> u64 {
        self.inspection.newest
    }

    /// Returns the number of entries of a feed in the log.
    #[must_use]
    pub fn size(&self, feed: &FeedId) -> u64 {
        self.inspection.sizes.get(feed).copied().unwrap_or(0)
    }

    /// Returns the rosters in the log, in ascending versions.
    #[must_use]
    pub fn rosters(&self) -> Vec<RosterRecord> {
        self.inspection.rosters.values().cloned().collect()
    }

    /// Corrects every flipped bit.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn correct_bits(&mut self) -> Result<(), OpenError> {
        for (damage, repaired) in self.inspection.damages.iter().zip(&mut self.repaired) {
            if matches!(damage.kind, LogDamageKind::BitFlip(_)) {
                write_repair(&self.log_dir, damage, None)?;
                *repaired = true;
            }
        }
        Ok(())
    }

    /// Corrects every flipped bit if there is no other damage; returns their number. Returns 0 and
    /// changes nothing if there is other damage, or none at all.
    fn correct_if_only_bits(&mut self) -> Result<usize, OpenError> {
        let damages = &self.inspection.damages;
        if self.inspection.truncated
            || damages.is_empty()
            || damages.iter().any(|damage| !matches!(damage.kind, LogDamageKind::BitFlip(_)))
        {
            return Ok(0);
        }
        self.correct_bits()?;
        for damage in self.damage() {
            tracing::warn!(file = %damage.file.display(), byte = damage.bytes.start, "a flipped bit of the commit log was corrected");
        }
        Ok(self.repaired.len())
    }

    /// Returns the entries whose content must be fetched, by feed, ascending.
    #[must_use]
    pub fn damaged_entries(&self) -> BTreeMap<FeedId, Vec<u64>> {
        let mut wanted = BTreeMap::<FeedId, Vec<u64>>::new();
        for (damage, _) in self.inspection.damages.iter().zip(&self.repaired).filter(|(_, repaired)| !**repaired) {
            if let LogDamageKind::Envelope { feed, index, .. } = &damage.kind {
                wanted.entry(feed.clone()).or_default().push(*index);
            }
        }
        for indexes in wanted.values_mut() {
            indexes.sort_unstable();
            indexes.dedup();
        }
        wanted
    }

    /// Restores content if it is the original; returns false if it is not, or if it is not among
    /// the damage.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn restore_envelope(&mut self, feed: &FeedId, index: u64, envelope: &[u8]) -> Result<bool, OpenError> {
        let digest = barid_core::envelope::digest(envelope);
        let is_it = |damage: &LogDamage| {
            matches!(&damage.kind, LogDamageKind::Envelope { feed: of, index: at, digest: wanted }
            if of == feed && *at == index && *wanted == digest)
        };
        let Some(place) = self.inspection.damages.iter().position(is_it) else { return Ok(false) };
        write_repair(&self.log_dir, &self.inspection.damages[place], Some(envelope))?;
        self.repaired[place] = true;
        Ok(true)
    }
}
