//! The high-water mark: epoch, size and root of the node's own feed, stored beside the keys and
//! outside the data folder.
//!
//! The mark is overwritten after each commit has been synced and before its receipts are returned.
//! A store that is behind its mark was restored from an old copy, so its feed must not be
//! continued. The mark decides which epoch the node is in. It moves to the next epoch by a rename,
//! so that a power cut leaves either the old or the new mark.
//!
//! The need for recovery outlasts its cause: once peers have returned the lost entries, the store
//! is no longer behind its mark. So the file `needs-recovery` beside the mark records the epoch.
//! Only opening the next epoch removes it.
//!
//! In scope: reading and writing both files. Out of scope: comparing the mark with the store
//! (`writer`), and opening epochs (`epoch`).

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use barid_core::ids::Hash;

/// Epoch, size and root of the newest commit whose receipts may have been returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HighWaterMark {
    /// Epoch of the feed.
    pub epoch: u32,
    /// Number of entries.
    pub size: u64,
    /// Root hash at that size.
    pub root: Hash,
}

/// Why the mark cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum HighWaterMarkError {
    /// The file operation failed.
    #[error("the high-water mark {path} cannot be {operation}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operation that failed.
        operation: &'static str,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The text is not a high-water mark.
    #[error(
        "the high-water mark {0} is damaged: expected `barid mark v1`, epoch, size and root. Move it aside: without a \
         high-water mark the feed needs recovery, and `barid recover` opens its next epoch"
    )]
    Damaged(PathBuf),
    /// The record of a needed recovery has its former name.
    #[error("the file {0} is now named `needs-recovery`: rename it")]
    Renamed(PathBuf),
}

/// The open file of the mark. The mark is 128 bytes long, so that one write is one sector.
pub(crate) struct HighWaterMarkFile {
    path: PathBuf,
    file: File,
}

const LENGTH: usize = 128;

impl HighWaterMarkFile {
    /// Opens the file and reads the mark; `None` if there is no file.
    pub(crate) fn read(path: &Path) -> Result<Option<(Self, HighWaterMark)>, HighWaterMarkError> {
        let io = |operation| move |source| HighWaterMarkError::Io { path: path.to_owned(), operation, source };
        let mut file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("opened")(error)),
        };
        let mut text = String::new();
        Read::by_ref(&mut file).take(1_024).read_to_string(&mut text).map_err(io("read"))?;
        let high_water_mark = parse(&text).ok_or_else(|| HighWaterMarkError::Damaged(path.to_owned()))?;
        Ok(Some((Self { path: path.to_owned(), file }, high_water_mark)))
    }

    /// Creates the first mark.
    pub(crate) fn create(path: &Path, high_water_mark: &HighWaterMark) -> Result<Self, HighWaterMarkError> {
        if path.exists() {
            let source = std::io::ErrorKind::AlreadyExists.into();
            return Err(HighWaterMarkError::Io { path: path.to_owned(), operation: "created", source });
        }
        Self::replace(path, high_water_mark)
    }

    /// Replaces the mark, or creates it, atomically: a power cut leaves the old or the new mark.
    pub(crate) fn replace(path: &Path, high_water_mark: &HighWaterMark) -> Result<Self, HighWaterMarkError> {
        let new = path.with_extension("new");
        let io = |operation| move |source| HighWaterMarkError::Io { path: path.to_owned(), operation, source };
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(io("created"))?;
        let mut made = Self { path: path.to_owned(), file };
        made.write(high_water_mark)?;
        made.file.sync_all().map_err(io("synced"))?;
        std::fs::rename(&new, path).map_err(io("replaced"))?;
        if let Some(folder) = path.parent() {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("synced"))?;
        }
        Ok(made)
    }

    /// Overwrites the mark in place.
    pub(crate) fn write(&mut self, high_water_mark: &HighWaterMark) -> Result<(), HighWaterMarkError> {
        let mut text =
            format!("barid mark v1\n{}\n{}\n{}\n", high_water_mark.epoch, high_water_mark.size, high_water_mark.root);
        while text.len() < LENGTH {
            text.push(if text.len() + 1 == LENGTH { '\n' } else { ' ' });
        }
        self.file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.write_all(text.as_bytes()))
            .map_err(|source| HighWaterMarkError::Io { path: self.path.clone(), operation: "written", source })
    }
}

fn parse(text: &str) -> Option<HighWaterMark> {
    let mut lines = text.lines();
    if lines.next()? != "barid mark v1" {
        return None;
    }
    let epoch = lines.next()?.parse().ok()?;
    let size = lines.next()?.parse().ok()?;
    let root = hex::decode(lines.next()?).ok()?.try_into().ok()?;
    Some(HighWaterMark { epoch, size, root: Hash(root) })
}

/// Returns why an epoch needs recovery, or `None`. `high_water_mark` is the path of the mark.
///
/// # Errors
/// The file cannot be read, or it has its former name: a feed must not be continued because its
/// record was renamed.
pub(crate) fn read_needs_recovery(high_water_mark: &Path, epoch: u32) -> Result<Option<String>, HighWaterMarkError> {
    let path = needs_recovery_path(high_water_mark);
    let former = path.with_file_name("doubt");
    if former.exists() {
        return Err(HighWaterMarkError::Renamed(former));
    }
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(HighWaterMarkError::Io { path, operation: "read", source }),
    };
    let mut lines = text.lines().skip_while(|line| *line != "barid doubt v1").skip(1);
    // A file that cannot be parsed counts for the current epoch, to be on the safe side.
    let recorded_epoch = lines.next().and_then(|line| line.parse().ok()).unwrap_or(epoch);
    Ok((recorded_epoch == epoch).then(|| lines.next().unwrap_or("recorded before the last restart").to_owned()))
}

/// Records that an epoch needs recovery.
pub(crate) fn write_needs_recovery(high_water_mark: &Path, epoch: u32, reason: &str) -> Result<(), HighWaterMarkError> {
    let path = needs_recovery_path(high_water_mark);
    let reason = reason.replace(['\n', '\r'], " ");
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(format!("barid doubt v1\n{epoch}\n{reason}\n").as_bytes())?;
        file.sync_all()?;
        path.parent().map_or(Ok(()), |folder| File::open(folder).and_then(|folder| folder.sync_all()))
    };
    write().map_err(|source| HighWaterMarkError::Io { path: path.clone(), operation: "written", source })
}

/// Removes the record of an epoch before `epoch`. If that fails, the file stays, which is harmless:
/// it names its epoch.
pub(crate) fn clear_needs_recovery(high_water_mark: &Path, epoch: u32) {
    let path = needs_recovery_path(high_water_mark);
    let about = std::fs::read_to_string(&path).ok().and_then(|text| {
        let mut lines = text.lines();
        lines.next().filter(|line| *line == "barid doubt v1")?;
        lines.next()?.parse::<u32>().ok()
    });
    if about.is_some_and(|about| about < epoch)
        && let Err(error) = std::fs::remove_file(&path)
    {
        tracing::warn!(file = %path.display(), %error, "the recovery record of an ended epoch cannot be removed");
    }
}

fn needs_recovery_path(high_water_mark: &Path) -> PathBuf {
    high_water_mark.with_file_name("needs-recovery")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use barid_core::feed::checkpoint::{Checkpoint, sign};
    use barid_core::feed::note::{Algorithm, SigningKey};
    use barid_core::feed::tree::CompactRange;
    use barid_core::ids::{Digest, FeedId, Undisclosed};

    use super::*;
    use crate::committer::{Committer, Keys, Options, PublishState};
    use crate::store::memory::MemoryStore;
    use crate::store::{Append, Commit, Content, NewEntry, Store};

    #[test]
    fn high_water_mark_is_overwritten_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mark");
        assert!(HighWaterMarkFile::read(&path).unwrap().is_none());
        let mut file =
            HighWaterMarkFile::create(&path, &HighWaterMark { epoch: 1, size: 0, root: Hash([7; 32]) }).unwrap();
        let high_water_mark = HighWaterMark { epoch: 1, size: u64::MAX, root: Hash([8; 32]) };
        file.write(&high_water_mark).unwrap();
        file.write(&HighWaterMark { size: 3, ..high_water_mark }).unwrap();
        assert_eq!(HighWaterMarkFile::read(&path).unwrap().unwrap().1, HighWaterMark { size: 3, ..high_water_mark });
        assert_eq!(std::fs::metadata(&path).unwrap().len(), LENGTH as u64);
    }

    #[test]
    fn high_water_mark_replacement_is_atomic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mark");
        HighWaterMarkFile::create(&path, &HighWaterMark { epoch: 1, size: 9, root: Hash([7; 32]) }).unwrap();
        std::fs::write(folder.path().join("mark.new"), "half").unwrap();
        let next = HighWaterMark { epoch: 2, size: 1, root: Hash([8; 32]) };
        HighWaterMarkFile::replace(&path, &next).unwrap();
        assert_eq!(HighWaterMarkFile::read(&path).unwrap().unwrap().1, next);
        assert!(!folder.path().join("mark.new").exists());
    }

    #[test]
    fn needs_recovery_applies_to_one_epoch_unless_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let high_water_mark = folder.path().join("mark");
        assert_eq!(read_needs_recovery(&high_water_mark, 1).unwrap(), None);
        write_needs_recovery(&high_water_mark, 1, "a peer\nholds more").unwrap();
        assert_eq!(read_needs_recovery(&high_water_mark, 1).unwrap().as_deref(), Some("a peer holds more"));
        assert_eq!(read_needs_recovery(&high_water_mark, 2).unwrap(), None);
        clear_needs_recovery(&high_water_mark, 1);
        assert!(read_needs_recovery(&high_water_mark, 1).unwrap().is_some(), "its epoch has not ended");
        clear_needs_recovery(&high_water_mark, 2);
        assert!(!folder.path().join("needs-recovery").exists());
        let former = folder.path().join("doubt");
        std::fs::write(&former, "barid doubt v1\n2\na peer holds more\n").unwrap();
        let error = read_needs_recovery(&high_water_mark, 2).unwrap_err().to_string();
        assert!(error.contains("`needs-recovery`: rename it"), "{error}");
        std::fs::remove_file(former).unwrap();
        std::fs::write(folder.path().join("needs-recovery"), "").unwrap();
        assert!(read_needs_recovery(&high_water_mark, 2).unwrap().is_some());
        clear_needs_recovery(&high_water_mark, 2);
        assert!(read_needs_recovery(&high_water_mark, 2).unwrap().is_some(), "a malformed file is not removed");
    }

    #[test]
    fn damaged_high_water_mark_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mark");
        std::fs::write(&path, "barid mark v1\n1\nx\n").unwrap();
        assert!(matches!(HighWaterMarkFile::read(&path), Err(HighWaterMarkError::Damaged(_))));
    }

    #[test]
    fn stale_high_water_mark_is_advanced_on_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mark");
        let key = |name: &str, algorithm| SigningKey::from_seed(name, algorithm, [7; 32]).unwrap();
        let feed: FeedId = "ma.rabat.example/feed/1".parse().unwrap();
        let start = |store: &Arc<dyn Store>, bootstrap| {
            let keys = Keys {
                feed: vec![key("ma.rabat.example/feed/1", Algorithm::Ed25519)],
                mirror: key("ma.rabat.example/mirror", Algorithm::CosignatureEd25519),
                custody: key("ma.rabat.example/custody", Algorithm::Ed25519),
            };
            let options = Options {
                feed: feed.clone(),
                keys,
                high_water_mark: path.clone(),
                bootstrap,
                peer_wait: std::time::Duration::ZERO,
                share_percent: barid_core::quota::SHARE_PERCENT,
            };
            Committer::start(Arc::clone(store), options).unwrap()
        };
        let begun = || -> Arc<dyn Store> { Arc::new(MemoryStore::new()) };
        let store = begun();
        drop(start(&store, true));
        // A record is durable; the power fails before the mark is written.
        let mut compact_range = CompactRange::new();
        compact_range.append(&Digest([1; 32]));
        let checkpoint = Checkpoint { feed: feed.clone(), size: 1, root: compact_range.root() };
        let signed = sign(&checkpoint, &[key("ma.rabat.example/feed/1", Algorithm::Ed25519)]).unwrap();
        let append = Append {
            feed: feed.clone(),
            first: 0,
            entries: vec![NewEntry { digest: Digest([1; 32]), content: Content::Undisclosed(Undisclosed::Purged) }],
            checkpoint: signed.note,
            checkpoint_size: 1,
            consistency_proof: Vec::new(),
        };
        store.commit(Commit { appends: vec![append], ..Commit::default() }, store.seq()).unwrap();
        drop(start(&store, false));
        assert_eq!(
            HighWaterMarkFile::read(&path).unwrap().unwrap().1,
            HighWaterMark { epoch: 1, size: 1, root: compact_range.root() }
        );

        // Peers may hold that entry now: a copy of the store from before it is not continued.
        std::fs::rename(&path, folder.path().join("kept")).unwrap();
        let old = begun();
        drop(start(&old, true));
        std::fs::rename(folder.path().join("kept"), &path).unwrap();
        let publish_state = start(&old, false).publish_state().borrow().clone();
        assert!(matches!(publish_state, PublishState::NeedsRecovery(_)), "{publish_state:?}");
    }
}
