//! The mark: epoch, size and root of the node's own feed, kept beside the keys and outside the data folder.
//!
//! It is overwritten after each commit has been synced and before its receipts are released. A store that is behind its mark was
//! restored from an old copy: its feed must not be continued. Which epoch the node is in, the mark decides; it moves to the next one by a
//! rename, so that a power cut leaves one of the two.
//!
//! Doubt outlives what raised it: once peers have given back what was lost, the store is not behind its mark any more. So a file beside
//! the mark says which epoch is in doubt, and nothing takes it back but the next epoch, whose opening removes it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use barid_core::names::Hash;

/// Epoch, size and root as last released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Epoch of the feed.
    pub epoch: u32,
    /// Entries.
    pub size: u64,
    /// Root hash at that size.
    pub root: Hash,
}

/// Why a mark cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// The file failed.
    #[error("the mark {path} cannot be {doing}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The text is not a mark.
    #[error(
        "the mark {0} is damaged: expected `barid mark v1`, epoch, size and root. Keep it under another name: without one the feed is in doubt, and \
         `barid recover` opens its next epoch"
    )]
    Damaged(PathBuf),
}

/// The open file of a mark. A mark is 128 bytes, so that one write is one sector.
pub(crate) struct MarkFile {
    path: PathBuf,
    file: File,
}

const LENGTH: usize = 128;

impl MarkFile {
    /// Opens the file and reads the mark; `None` if there is none.
    pub(crate) fn read(path: &Path) -> Result<Option<(Self, Mark)>, MarkError> {
        let io = |doing| move |source| MarkError::Io { path: path.to_owned(), doing, source };
        let mut file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("opened")(error)),
        };
        let mut text = String::new();
        Read::by_ref(&mut file).take(1_024).read_to_string(&mut text).map_err(io("read"))?;
        let mark = parse(&text).ok_or_else(|| MarkError::Damaged(path.to_owned()))?;
        Ok(Some((Self { path: path.to_owned(), file }, mark)))
    }

    /// Makes the first mark; there is none.
    pub(crate) fn create(path: &Path, mark: &Mark) -> Result<Self, MarkError> {
        if path.exists() {
            let source = std::io::ErrorKind::AlreadyExists.into();
            return Err(MarkError::Io { path: path.to_owned(), doing: "created", source });
        }
        Self::replace(path, mark)
    }

    /// Puts a mark in place of whatever is there, as a whole: after a power cut there is what was there before, or this one, never half of it.
    pub(crate) fn replace(path: &Path, mark: &Mark) -> Result<Self, MarkError> {
        let new = path.with_extension("new");
        let io = |doing| move |source| MarkError::Io { path: path.to_owned(), doing, source };
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(io("created"))?;
        let mut made = Self { path: path.to_owned(), file };
        made.write(mark)?;
        made.file.sync_all().map_err(io("synced"))?;
        std::fs::rename(&new, path).map_err(io("replaced"))?;
        if let Some(folder) = path.parent() {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("synced"))?;
        }
        Ok(made)
    }

    /// Overwrites the mark.
    pub(crate) fn write(&mut self, mark: &Mark) -> Result<(), MarkError> {
        let mut text = format!("barid mark v1\n{}\n{}\n{}\n", mark.epoch, mark.size, mark.root);
        while text.len() < LENGTH {
            text.push(if text.len() + 1 == LENGTH { '\n' } else { ' ' });
        }
        self.file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.write_all(text.as_bytes()))
            .map_err(|source| MarkError::Io { path: self.path.clone(), doing: "written", source })
    }
}

fn parse(text: &str) -> Option<Mark> {
    let mut lines = text.lines();
    if lines.next()? != "barid mark v1" {
        return None;
    }
    let epoch = lines.next()?.parse().ok()?;
    let size = lines.next()?.parse().ok()?;
    let root = hex::decode(lines.next()?).ok()?.try_into().ok()?;
    Some(Mark { epoch, size, root: Hash(root) })
}

/// Why an epoch is in doubt, if it is; `mark` is the path of the mark.
pub(crate) fn read_doubt(mark: &Path, epoch: u32) -> Result<Option<String>, MarkError> {
    let path = doubt_path(mark);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(MarkError::Io { path, doing: "read", source }),
    };
    let mut lines = text.lines().skip_while(|line| *line != "barid doubt v1").skip(1);
    // One that cannot be read is no reason to be less careful.
    let doubted = lines.next().and_then(|line| line.parse().ok()).unwrap_or(epoch);
    Ok((doubted == epoch).then(|| lines.next().unwrap_or("it was in doubt before").to_owned()))
}

/// Remembers that an epoch is in doubt, before anybody is told.
pub(crate) fn write_doubt(mark: &Path, epoch: u32, reason: &str) -> Result<(), MarkError> {
    let path = doubt_path(mark);
    let reason = reason.replace(['\n', '\r'], " ");
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(format!("barid doubt v1\n{epoch}\n{reason}\n").as_bytes())?;
        file.sync_all()?;
        path.parent().map_or(Ok(()), |folder| File::open(folder).and_then(|folder| folder.sync_all()))
    };
    write().map_err(|source| MarkError::Io { path: path.clone(), doing: "written", source })
}

/// Removes what was remembered of epochs before `epoch`, which has begun. Where that fails it is left there: it says which one it is about.
pub(crate) fn forget_doubt(mark: &Path, epoch: u32) {
    let path = doubt_path(mark);
    let about = std::fs::read_to_string(&path).ok().and_then(|text| {
        let mut lines = text.lines();
        lines.next().filter(|line| *line == "barid doubt v1")?;
        lines.next()?.parse::<u32>().ok()
    });
    if about.is_some_and(|about| about < epoch)
        && let Err(error) = std::fs::remove_file(&path)
    {
        tracing::warn!(file = %path.display(), %error, "the note about an epoch that is over is left there");
    }
}

fn doubt_path(mark: &Path) -> PathBuf {
    mark.with_file_name("doubt")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use barid_core::feed::checkpoint::{Checkpoint, sign};
    use barid_core::feed::note::{Algorithm, SigningKey};
    use barid_core::feed::tree::Frontier;
    use barid_core::names::{Digest, FeedId, Undisclosed};

    use super::*;
    use crate::committer::{Committer, Gate, Keys, Options};
    use crate::store::memory::MemoryStore;
    use crate::store::{Append, Commit, Content, NewEntry, Store};

    #[test]
    fn a_mark_is_read_as_written_and_overwritten_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mark");
        assert!(MarkFile::read(&path).unwrap().is_none());
        let mut file = MarkFile::create(&path, &Mark { epoch: 1, size: 0, root: Hash([7; 32]) }).unwrap();
        let mark = Mark { epoch: 1, size: u64::MAX, root: Hash([8; 32]) };
        file.write(&mark).unwrap();
        file.write(&Mark { size: 3, ..mark }).unwrap();
        assert_eq!(MarkFile::read(&path).unwrap().unwrap().1, Mark { size: 3, ..mark });
        assert_eq!(std::fs::metadata(&path).unwrap().len(), LENGTH as u64);
    }

    #[test]
    fn a_mark_moves_to_the_next_epoch_as_a_whole_also_after_a_power_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mark");
        MarkFile::create(&path, &Mark { epoch: 1, size: 9, root: Hash([7; 32]) }).unwrap();
        std::fs::write(folder.path().join("mark.new"), "half").unwrap();
        let next = Mark { epoch: 2, size: 1, root: Hash([8; 32]) };
        MarkFile::replace(&path, &next).unwrap();
        assert_eq!(MarkFile::read(&path).unwrap().unwrap().1, next);
        assert!(!folder.path().join("mark.new").exists());
    }

    #[test]
    fn doubt_is_of_one_epoch_and_what_is_damaged_of_any() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        assert_eq!(read_doubt(&mark, 1).unwrap(), None);
        write_doubt(&mark, 1, "a peer\nholds more").unwrap();
        assert_eq!(read_doubt(&mark, 1).unwrap().as_deref(), Some("a peer holds more"));
        assert_eq!(read_doubt(&mark, 2).unwrap(), None);
        forget_doubt(&mark, 1);
        assert!(read_doubt(&mark, 1).unwrap().is_some(), "it is not over");
        forget_doubt(&mark, 2);
        assert!(!folder.path().join("doubt").exists());
        std::fs::write(folder.path().join("doubt"), "").unwrap();
        assert!(read_doubt(&mark, 2).unwrap().is_some());
        forget_doubt(&mark, 2);
        assert!(read_doubt(&mark, 2).unwrap().is_some(), "what cannot be read stays");
    }

    #[test]
    fn a_damaged_mark_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mark");
        std::fs::write(&path, "barid mark v1\n1\nx\n").unwrap();
        assert!(matches!(MarkFile::read(&path), Err(MarkError::Damaged(_))));
    }

    #[test]
    fn a_mark_that_a_power_cut_left_behind_is_brought_up_before_anybody_sees_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mark");
        let key = |name: &str, algorithm| SigningKey::from_seed(name, algorithm, [7; 32]).unwrap();
        let feed: FeedId = "ma.rabat.example/feed/1".parse().unwrap();
        let start = |store: &Arc<dyn Store>, first| {
            let keys = Keys {
                feed: vec![key("ma.rabat.example/feed/1", Algorithm::Ed25519)],
                mirror: key("ma.rabat.example/mirror", Algorithm::CosignatureEd25519),
                custody: key("ma.rabat.example/custody", Algorithm::Ed25519),
            };
            let options = Options {
                feed: feed.clone(),
                keys,
                mark: path.clone(),
                first,
                lone_start: std::time::Duration::ZERO,
                share_percent: barid_core::quota::SHARE_PERCENT,
            };
            Committer::start(Arc::clone(store), options).unwrap()
        };
        let begun = || -> Arc<dyn Store> { Arc::new(MemoryStore::new()) };
        let store = begun();
        drop(start(&store, true));
        // A record is durable; the power goes before the mark is written.
        let mut edge = Frontier::new();
        edge.append(&Digest([1; 32]));
        let checkpoint = Checkpoint { feed: feed.clone(), size: 1, root: edge.root() };
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
        assert_eq!(MarkFile::read(&path).unwrap().unwrap().1, Mark { epoch: 1, size: 1, root: edge.root() });

        // Peers may hold that entry now: a copy of the store from before it is not continued.
        std::fs::rename(&path, folder.path().join("kept")).unwrap();
        let old = begun();
        drop(start(&old, true));
        std::fs::rename(folder.path().join("kept"), &path).unwrap();
        let gate = start(&old, false).gate().borrow().clone();
        assert!(matches!(gate, Gate::InDoubt(_)), "{gate:?}");
    }
}
