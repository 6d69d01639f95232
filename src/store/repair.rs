//! Repairing the store of a stopped node: what is damaged in its commit log, and putting it back.
//!
//! In scope: the folder's lock, the list of damage, and what of it can be undone here or with an envelope from elsewhere. Out of scope: whom
//! to ask for envelopes. Of the view only its newest commit is looked at: it repairs itself, from the log.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use barid_core::ids::{Digest, FeedId};

use super::disk::DiskOptions;
use super::log::{LogDamage, LogDamageKind, LogInspection, inspect, segment, write_repair};
use super::open::lock;
use super::{OpenError, RosterRecord, index_db};

/// Opens a store; if it is damaged, and nothing in its commit log is but single bits, these are put right and it is opened again. Also returns
/// how many there were.
pub(super) fn open<S>(
    dir: &Path,
    options: &DiskOptions,
    open: impl Fn() -> Result<S, OpenError>,
) -> Result<(S, usize), OpenError> {
    match open() {
        Err(OpenError::Damaged(what)) => {
            tracing::warn!(what, "the store is damaged: its whole commit log is looked at");
            let corrected = Repair::open(dir, options)?.correct_if_only_bits()?;
            if corrected == 0 { Err(OpenError::Damaged(what)) } else { Ok((open()?, corrected)) }
        }
        opened => Ok((opened?, 0)),
    }
}

/// One place that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Bytes of it.
    pub bytes: Range<u64>,
    /// What it is.
    pub kind: DamageKind,
    /// Whether it is put back.
    pub repaired: bool,
}

/// What is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// One bit is not what it was; what it was is proven by a SHA-256.
    BitFlip,
    /// The content of an entry. Whoever has content with this digest has what stood here.
    Envelope {
        /// The entry's feed.
        feed: FeedId,
        /// Its place in it.
        index: u64,
        /// Its digest, which the log's chain vouches for.
        digest: Digest,
    },
    /// What the log says of its commits. It cannot be put back.
    Unrecoverable(String),
}

/// The folder of a store, locked, with what was found in it.
pub struct Repair {
    log_dir: PathBuf,
    inspection: LogInspection,
    repaired: Vec<bool>,
    _lock: File,
}

impl Repair {
    /// Locks the store in `dir` and reads its whole commit log; changes nothing of it.
    ///
    /// # Errors
    /// If another process has it open, or it is another node's or a newer version's.
    pub fn open(dir: &Path, options: &DiskOptions) -> Result<Self, OpenError> {
        let lock = lock(dir)?;
        let log_dir = dir.join("log");
        let mut inspection = inspect(&log_dir, &options.log())?;
        // The log does not know by itself where it ended; the note beside it and the view may.
        let newest = index_db::newest_commit(dir, options.index_cache_bytes).unwrap_or(0).max(inspection.confirmed);
        if newest > inspection.newest && !inspection.truncated {
            let kind = LogDamageKind::Unrecoverable(format!(
                "commits {} to {newest} are missing at its end",
                inspection.newest + 1
            ));
            let segment = segment::list(&log_dir)?.last().copied().unwrap_or(1);
            let len = std::fs::metadata(segment::path(&log_dir, segment)).map_or(0, |file| file.len());
            inspection.damages.push(LogDamage { segment, bytes: len..len, kind });
        }
        let repaired = vec![false; inspection.damages.len()];
        Ok(Self { log_dir, inspection, repaired, _lock: lock })
    }

    /// All that is damaged, in the order of the log.
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

    /// Whether there is more damage than is listed.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.inspection.truncated
    }

    /// Number of the newest commit that could be read.
    #[must_use]
    pub fn newest_commit(&self) -> u64 {
        self.inspection.newest
    }

    /// Entries that the log holds of a feed.
    #[must_use]
    pub fn size(&self, feed: &FeedId) -> u64 {
        self.inspection.sizes.get(feed).copied().unwrap_or(0)
    }

    /// Rosters that the log holds, ascending versions.
    #[must_use]
    pub fn rosters(&self) -> Vec<RosterRecord> {
        self.inspection.rosters.values().cloned().collect()
    }

    /// Puts every flipped bit back.
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

    /// Puts every flipped bit back if there is nothing else to be put back, and says how many. 0: there is, or there are none, and nothing was
    /// changed.
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

    /// Entries whose content is wanted, by feed, ascending.
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

    /// Puts content back, if it is what stood there. False: it is not, or was not wanted.
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
