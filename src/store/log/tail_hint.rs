//! The tail hint: the newest commit known to be confirmed, in a file beside the segments.
//!
//! In scope: writing and reading it. Out of scope: when it is written (behind the commits, by the
//! applier), and the checks made with it.
//!
//! A log does not record its own end: a cut at a record boundary, or damage in the last record,
//! looks like the result of a power loss. The hint distinguishes them, and its hash proves the last
//! head. It is written after the record is durable and is never synced, so after a power loss it
//! may name an older commit than the last confirmed one, but never a newer one.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use barid_core::ids::Hash;

use super::record::Salt;

const NAME: &str = "end";
const MAGIC: [u8; 8] = *b"BRDEND\x00\x01";
/// Magic, salt of the log, number of the commit, hash of its head, checksum; within one sector.
const LENGTH: usize = 8 + 16 + 8 + 32 + 4;

/// A confirmed commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct TailHint {
    /// Its number.
    pub(in crate::store) seq: u64,
    /// SHA-256 of its head.
    pub(in crate::store) hash: Hash,
}

/// The file, open for writing; without it no hint is written.
pub(in crate::store) struct TailHintFile {
    file: Option<File>,
    salt: Salt,
}

impl TailHintFile {
    /// Opens the hint file of the log in `dir`.
    pub(in crate::store) fn open(dir: &Path, salt: Salt) -> Self {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(dir.join(NAME));
        if let Err(error) = &file {
            tracing::warn!(%error, "the tail hint of the commit log cannot be written");
        }
        Self { file: file.ok(), salt }
    }

    /// Records a durable commit.
    pub(in crate::store) fn write(&self, hint: &TailHint) {
        let Some(file) = &self.file else { return };
        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.extend(MAGIC);
        bytes.extend(self.salt);
        bytes.extend(hint.seq.to_le_bytes());
        bytes.extend(hint.hash.0);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        if let Err(error) = file.write_all_at(&bytes, 0) {
            tracing::debug!(%error, "the tail hint of the commit log cannot be written");
        }
    }
}

/// Reads the hint of the log in `dir`; `None` if there is none, if it is another log's, or if it
/// cannot be read.
pub(in crate::store) fn read(dir: &Path, salt: &Salt) -> Option<TailHint> {
    let mut bytes = [0; LENGTH];
    File::open(dir.join(NAME)).ok()?.read_exact_at(&mut bytes, 0).ok()?;
    let (payload, checksum) = bytes.split_last_chunk::<4>()?;
    let rest = payload.strip_prefix(&MAGIC)?.strip_prefix(salt)?;
    let (seq, hash) = rest.split_first_chunk::<8>()?;
    let whole = crc32c::crc32c(payload).to_le_bytes() == *checksum;
    whole.then_some(TailHint { seq: u64::from_le_bytes(*seq), hash: Hash(hash.try_into().ok()?) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tail_hint_round_trips_and_damaged_one_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let salt = [7; 16];
        assert_eq!(read(dir.path(), &salt), None);
        let file = TailHintFile::open(dir.path(), salt);
        for seq in [1, u64::MAX, 9] {
            let hint = TailHint { seq, hash: Hash([3; 32]) };
            file.write(&hint);
            assert_eq!(read(dir.path(), &salt), Some(hint));
        }
        assert_eq!(read(dir.path(), &[8; 16]), None, "another log's");
        let path = dir.path().join(NAME);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(read(dir.path(), &salt), None, "byte {at}");
        }
    }
}
