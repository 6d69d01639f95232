//! The progress of a reader, in memory and in a file.
//!
//! In scope: the newest cursor and the bulletins shown, across lost connections, resets and runs.
//! Out of scope: the named subscription at the node.
//!
//! The file is replaced atomically, after the bulletins that it covers were written to the output.
//! A reader that is killed shows some bulletins again, and skips none.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use barid_core::limits::CURSOR_BYTES_MAX;
use barid_core::proto;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::seen::Seen;
use crate::cli::Failure;

/// Largest file that is read: enough for all ranges.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Number of damaged entries that are remembered; older ones may be reported again.
const DAMAGED_MAX: usize = 1_024;
const FORMAT: u32 = 1;

/// The progress of a reader.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Cursor after the last event.
    pub(super) cursor: Option<Bytes>,
    seen: Seen,
    /// Offsets that were reported as damaged since the last reset.
    damaged: BTreeSet<u64>,
    /// Bulletins shown in this run.
    pub(super) printed: u64,
    /// Bulletins shown since the progress was last saved.
    pub(super) uncommitted: u32,
    file: Option<ProgressFile>,
    /// The cursor that was saved last.
    saved: Option<Bytes>,
}

#[derive(Debug)]
struct ProgressFile {
    path: PathBuf,
    filter: proto::Filter,
}

/// Contents of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedProgress {
    format: u32,
    cursor: String,
    /// The encoded filter.
    filter: String,
    seen: Seen,
}

impl Progress {
    /// Resumes from a file, or starts a new one.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, is not a cursor file, or has another filter:
    /// bulletins outside of that filter would be skipped.
    pub(super) fn open(path: &Path, filter: &proto::Filter) -> Result<Self, Failure> {
        let unusable = |cause: &str| Failure::usage("cursor-file").path(path).cause(cause);
        let file = Some(ProgressFile { path: path.to_owned(), filter: filter.clone() });
        let mut text = String::new();
        match std::fs::File::open(path) {
            Ok(file) => file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self { file, ..Self::default() }),
            Err(error) => Err(error),
        }
        .map_err(|error| Failure::usage("cursor-file").path(path).because(&error))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(unusable("it is larger than any file that this program writes"));
        }
        let read: SavedProgress = serde_json::from_str(&text).map_err(|error| unusable(&error.to_string()))?;
        let cursor = parse_cursor(&read.cursor);
        let (Some(cursor), FORMAT, true) = (cursor, read.format, read.seen.is_well_formed()) else {
            return Err(unusable("it is not a progress file of this version"));
        };
        if read.filter != cursor_text(&filter.encode_to_vec()) {
            return Err(Failure::usage("cursor-file-filter").path(path));
        }
        Ok(Self { saved: Some(cursor.clone()), cursor: Some(cursor), seen: read.seen, file, ..Self::default() })
    }

    /// Returns whether a bulletin is new, and counts it if so.
    pub(super) fn is_new(&mut self, delivery: &proto::Delivery) -> bool {
        let new = self.seen.insert(&delivery.feed, delivery.index, &delivery.digest);
        self.printed += u64::from(new);
        self.uncommitted += u32::from(new);
        new
    }

    /// Returns whether a damaged entry was not reported yet.
    pub(super) fn is_new_damage(&mut self, damaged: &proto::DamagedEntry) -> bool {
        while self.damaged.len() >= DAMAGED_MAX {
            self.damaged.pop_first();
        }
        self.damaged.insert(damaged.offset)
    }

    /// Handles a reset of the node's store: offsets become invalid, feeds and indexes remain valid.
    pub(super) fn reset(&mut self) {
        self.damaged.clear();
    }

    /// Returns whether the cursor has not moved since it was saved.
    pub(super) fn is_saved(&self) -> bool {
        self.cursor == self.saved
    }

    /// Replaces the file, if there is one.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub(super) fn save(&mut self) -> Result<(), Failure> {
        self.saved.clone_from(&self.cursor);
        let (Some(ProgressFile { path, filter }), Some(cursor)) = (&self.file, &self.cursor) else { return Ok(()) };
        let text = SavedProgress {
            format: FORMAT,
            cursor: cursor_text(cursor),
            filter: cursor_text(&filter.encode_to_vec()),
            seen: self.seen.clone(),
        };
        let text = serde_json::to_string(&text).map_err(|error| Failure::new("internal").because(&error))?;
        write_atomically(path, &text).map_err(|error| Failure::new("cursor-file-unwritten").path(path).because(&error))
    }
}

/// Encodes a cursor as in JSON and on the command line.
pub(super) fn cursor_text(cursor: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(cursor)
}

/// Parses [`cursor_text`]. The bytes are opaque; only the node interprets them.
pub(super) fn parse_cursor(text: &str) -> Option<Bytes> {
    let bytes = (text.len() <= 2 * CURSOR_BYTES_MAX).then(|| URL_SAFE_NO_PAD.decode(text).ok())??;
    (!bytes.is_empty() && bytes.len() <= CURSOR_BYTES_MAX).then(|| bytes.into())
}

fn write_atomically(path: &Path, text: &str) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = path.file_name().ok_or(std::io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = folder.join(name);
    let written = || {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        std::fs::File::open(folder)?.sync_all()
    };
    written().inspect_err(|_| _ = std::fs::remove_file(&temporary))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn delivery(index: u64) -> proto::Delivery {
        proto::Delivery { feed: "tn.rabat.example/feed/1".into(), index, ..proto::Delivery::default() }
    }

    #[test]
    fn cursor_file_is_resumed_and_other_filter_or_format_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cursor.json");
        let filter = proto::Filter { topics: vec!["customs.>".into()], ..proto::Filter::default() };
        let mut progress = Progress::open(&path, &filter).unwrap();
        progress.save().unwrap();
        assert!(!path.exists(), "nothing was received");
        progress.cursor = Some(Bytes::from_static(&[1; 97]));
        assert!(progress.is_new(&delivery(3)));
        progress.save().unwrap();
        let mut again = Progress::open(&path, &filter).unwrap();
        assert_eq!(again.cursor, progress.cursor);
        assert!(!again.is_new(&delivery(3)) && again.is_new(&delivery(4)));
        assert_eq!((again.printed, again.uncommitted), (1, 1));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");

        assert_eq!(Progress::open(&path, &proto::Filter::default()).unwrap_err().id(), "cursor-file-filter");
        let text = std::fs::read_to_string(&path).unwrap();
        let broken = [
            String::new(),
            text.replace("\"format\":1", "\"format\":2"),
            text.replacen("\"cursor\":\"", "\"cursor\":\"!", 1),
            text.replace("{\"3\":4}", "{\"3\":3}"),
            text.replacen('{', "{\"more\":1,", 1),
            " ".repeat(9 << 20),
        ];
        for broken in broken {
            std::fs::write(&path, &broken).unwrap();
            let failure = Progress::open(&path, &filter).unwrap_err();
            assert_eq!((failure.id(), failure.exit_code()), ("cursor-file", crate::cli::Exit::Usage), "{broken:.80}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(Progress::open(&path, &filter).unwrap_err().id(), "cursor-file");
        assert_eq!(progress.save().unwrap_err().id(), "cursor-file-unwritten");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }
}
