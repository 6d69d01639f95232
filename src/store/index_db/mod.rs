//! The index database: an index of the log in sled, rebuilt from the log whenever it may be
//! damaged.
//!
//! In scope: opening and dropping it, and deciding whether it is intact. Out of scope: the keyspace
//! (`keys`), writing (`apply`) and reading (`query`).
//!
//! sled 0.34 is not trusted with durability: after a power loss, any part of its unsynced writes
//! may be missing. So an index database that was open when the machine stopped is dropped. One that
//! was open when only the process stopped is used, because the kernel had its pages.

pub(super) mod acks;
mod apply;
pub(super) mod backfills;
pub(super) mod columns;
pub(super) mod ids;
pub(super) mod priorities;
mod query;
pub(super) mod references;

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

pub(super) use self::apply::apply;
use super::ReadError;
use super::keys::{self, IndexCursor};

/// sled's unit of disk space. A page of 16 values of [`keys::VALUE_BYTES_MAX`] is well below a
/// quarter of it; from there on sled puts pages into files of their own.
pub(super) const SEGMENT_BYTES: usize = 2 << 20;
/// Marker content of a damaged index database.
const DAMAGED_MARKER: &str = "damaged";

/// The index database.
pub(super) struct IndexDb {
    db: sled::Db,
    dir: PathBuf,
    marker_path: PathBuf,
    damaged: AtomicBool,
    id_blocks: Mutex<ids::BlockCounts>,
}

impl IndexDb {
    /// Opens the index database in `dir/db`; creates an empty one if there is none or it may be
    /// damaged.
    pub(super) fn open(dir: &Path, cache_bytes: u64) -> io::Result<Self> {
        let (db_dir, marker_path) = (dir.join("db"), dir.join("db.open"));
        let boot = boot_id();
        match fs::read_to_string(&marker_path) {
            Ok(found) if found == boot => {}
            Ok(found) => {
                if found == DAMAGED_MARKER {
                    tracing::warn!("the index database is marked as damaged: it is rebuilt from the log");
                } else {
                    tracing::warn!("the index database was open when the machine stopped: it is rebuilt from the log");
                }
                remove(&db_dir)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        fs::write(&marker_path, boot)?;
        fs::File::open(&marker_path)?.sync_all()?;
        super::log::sync_dir(dir)?;
        let db = match open_db(&db_dir, cache_bytes) {
            Ok(db) => db,
            Err(error) => {
                tracing::warn!(%error, "the index database cannot be opened: it is rebuilt from the log");
                remove(&db_dir)?;
                open_db(&db_dir, cache_bytes)?
            }
        };
        Ok(Self {
            db,
            dir: db_dir,
            marker_path,
            damaged: AtomicBool::new(false),
            id_blocks: Mutex::new(ids::BlockCounts::new()),
        })
    }

    /// Drops the contents and opens an empty one.
    pub(super) fn reset(self, dir: &Path, cache_bytes: u64) -> io::Result<Self> {
        self.set_damaged();
        drop(self);
        Self::open(dir, cache_bytes)
    }

    /// Returns whether the contents must not be used.
    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Replaces a damaged index database, which may still be open, by an empty one.
    pub(super) fn replace(dir: &Path, cache_bytes: u64) -> io::Result<Self> {
        remove(&dir.join("db"))?;
        Self::open(dir, cache_bytes)
    }

    /// Makes the next opening rebuild the index database.
    pub(super) fn set_damaged(&self) {
        if self.damaged.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Err(error) = fs::write(&self.marker_path, DAMAGED_MARKER) {
            tracing::error!(%error, "the index database cannot be marked as damaged: remove the folder db before the next start");
        }
    }

    /// Flushes everything and removes the marker, unless the index database is damaged.
    pub(super) fn close(self) -> io::Result<()> {
        let Self { db, dir, marker_path, damaged, id_blocks: _ } = self;
        if damaged.into_inner() {
            return Ok(());
        }
        db.flush().map_err(|error| io::Error::other(error.to_string()))?;
        drop(db);
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.is_file() {
                fs::File::open(path)?.sync_all()?;
            }
        }
        // Sync the names too, or files of a dropped index database could reappear in their place.
        super::log::sync_dir(&dir)?;
        marker_path.parent().map_or(Ok(()), super::log::sync_dir)?;
        fs::remove_file(marker_path)
    }

    /// Flushes buffers to the kernel, so that a stop of the process costs little.
    pub(super) fn flush(&self) -> Result<(), ReadError> {
        self.db.flush().map(|_| ()).map_err(|error| self.failed(&error))
    }

    /// Returns the last commit applied; `None` if nothing is.
    pub(super) fn cursor(&self) -> Result<Option<IndexCursor>, ReadError> {
        self.get(keys::CURSOR)?.map(|value| IndexCursor::decode(&value).ok_or_else(|| unreadable("cursor"))).transpose()
    }

    /// Returns its bytes on disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.db.size_on_disk().unwrap_or(0)
    }

    fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<sled::IVec>, ReadError> {
        self.db.get(key).map_err(|error| self.failed(&error))
    }

    /// Marks the index database as damaged after an error of sled, so that it is rebuilt.
    fn failed(&self, error: &sled::Error) -> ReadError {
        self.set_damaged();
        ReadError::Behind(error.to_string())
    }
}

/// Returns the newest commit applied to the index database in `dir`, if it can be read without a
/// rebuild.
pub(super) fn newest_commit(dir: &Path, cache_bytes: u64) -> Option<u64> {
    let (db_dir, marker_path) = (dir.join("db"), dir.join("db.open"));
    let valid = match fs::read_to_string(marker_path) {
        Ok(found) => found == boot_id(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if !valid || !db_dir.is_dir() {
        return None;
    }
    let db = open_db(&db_dir, cache_bytes).ok()?;
    let cursor = db.get(keys::CURSOR).ok()??;
    IndexCursor::decode(&cursor).map(|cursor| cursor.resume.seq)
}

/// Opens sled. It reports some damage by a panic.
fn open_db(dir: &Path, cache_bytes: u64) -> io::Result<sled::Db> {
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(cache_bytes)
        .segment_size(SEGMENT_BYTES)
        .flush_every_ms(None)
        .print_profile_on_drop(false);
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(opened) => opened.map_err(|error| io::Error::other(error.to_string())),
        Err(_) => Err(io::Error::other("sled found its files damaged")),
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns Linux's id of this boot; empty on other systems, where every boot is taken for the same
/// one.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_string()).unwrap_or_default()
}

fn unreadable(what: &str) -> ReadError {
    ReadError::Damaged(format!("the index database: a {what} is malformed"))
}
