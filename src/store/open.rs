//! Opens the store on disk: lock, index database, replay.
//!
//! In scope: what happens once at opening, and whether the index database is used or rebuilt. Out
//! of scope: everything later (`disk`).

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::sync::Arc;

use barid_core::ids::FeedId;
use barid_core::limits::COMMIT_ENTRIES_MAX;
use bytes::Bytes;

use super::disk::DiskOptions;
use super::feed_index::{PendingCommit, State};
use super::index_db::{self, IndexDb};
use super::keys::FeedNumber;
use super::log::{self, LogReader, Position, Record};
use super::tree_cache::TileCache;
use super::{Committed, OpenError, applier, load, priority, validate};

/// Creates the store's folder if there is none, and makes its name durable in any case: a process
/// that ended before it did so may have created the folder, and everything synced inside is lost
/// with the name.
pub(super) fn make_folder(folder: &Path) -> Result<(), OpenError> {
    let parent_of = |dir: &Path| match dir.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => Path::new(".").to_owned(),
    };
    let missing: Vec<&Path> =
        folder.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    for dir in missing.into_iter().rev() {
        // Only the node may read the folder itself; folders above it get the default mode.
        let mut builder = std::fs::DirBuilder::new();
        if dir == folder {
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        }
        builder.create(dir)?;
        log::sync_dir(&parent_of(dir))?;
    }
    match log::sync_dir(&parent_of(folder)) {
        // The parent belongs to another user, who created this folder for the node.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        synced => Ok(synced?),
    }
}

/// Locks the folder for this process.
pub(super) fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(path.display().to_string())),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// The index database, the state loaded from it, and the point where replay of the log continues.
pub(super) type OpenedIndexDb = (IndexDb, State, Option<log::Resume>);

/// Opens the index database and loads its state; an unreadable one is replaced by an empty one.
pub(super) fn open_index_db(
    dir: &Path,
    log_dir: &Path,
    options: &DiskOptions,
    reader: &LogReader,
) -> Result<OpenedIndexDb, OpenError> {
    let index_db = IndexDb::open(dir, options.index_cache_bytes).map_err(OpenError::IndexDb)?;
    let mut state = State::new(options.tail_cache_bytes);
    let error = match load::load(&index_db, reader, &mut state) {
        Ok(resume) => return Ok((index_db, state, resume)),
        Err(error) => error,
    };
    // Verify the log first: the index database may be blamed only if the log is intact.
    let newest = log::verify(log_dir, &options.log())?;
    if let Ok(Some(cursor)) = index_db.cursor()
        && cursor.resume.seq > newest
    {
        return Err(OpenError::Damaged(format!(
            "the index database contains commit {}, the log ends at {newest}",
            cursor.resume.seq
        )));
    }
    tracing::warn!(%error, "the index database cannot be read: it is rebuilt from the log");
    let index_db = index_db.reset(dir, options.index_cache_bytes).map_err(OpenError::IndexDb)?;
    Ok((index_db, State::new(options.tail_cache_bytes), None))
}

/// Makes a record of the log visible. The error names the damage.
pub(super) fn replay(
    state: &mut State,
    position: Position,
    record: &Record,
    body: &Bytes,
) -> Result<PendingCommit, String> {
    let damaged = |what: String| format!("commit log, {position}: {what}");
    let mut commit = record.commit(body).map_err(damaged)?;
    let size_of =
        |feed: &FeedId| state.feed_index_of(feed).map(|(_, feed_index)| feed_index.tiled_tree.compact_range().size());
    validate::check(&commit, size_of).map_err(damaged)?;
    priority::check(&commit, size_of, state).map_err(damaged)?;
    priority::match_appends(&mut commit, state).map_err(damaged)?;
    let committed = Arc::new(Committed {
        seq: record.seq,
        hash: record.hash,
        first_offset: record.first_offset,
        end_offset: record.end_offset,
        commit,
    });
    Ok(state.apply_commit(&committed, position, record.len()))
}

/// Replays the log into an index database and the in-memory state, record by record.
pub(super) struct Replay {
    index_db: IndexDb,
    state: State,
    tiles: TileCache<FeedNumber>,
    batch: Vec<PendingCommit>,
    entries: usize,
    /// Whether any record was replayed.
    any: bool,
}

impl Replay {
    /// Continues after the commits of `index_db`, from which `state` was loaded.
    pub(super) fn new(index_db: IndexDb, state: State) -> Self {
        Self { index_db, state, tiles: TileCache::new(), batch: Vec::new(), entries: 0, any: false }
    }

    /// Applies the next record.
    ///
    /// # Errors
    /// [`OpenError::Damaged`] if it does not fit the records before it.
    pub(super) fn apply(&mut self, position: Position, record: &Record, body: &Bytes) -> Result<(), OpenError> {
        let pending = replay(&mut self.state, position, record, body).map_err(OpenError::Damaged)?;
        cache_full_tiles(&mut self.tiles, &pending);
        let appends = &pending.committed.commit.appends;
        self.entries += appends.iter().map(|append| append.entries.len()).sum::<usize>() + 1;
        self.batch.push(pending);
        self.any = true;
        if self.entries > COMMIT_ENTRIES_MAX {
            self.entries = 0;
            self.write()?;
        }
        Ok(())
    }

    /// Writes the rest and returns the results.
    ///
    /// # Errors
    /// If the index database cannot be written.
    pub(super) fn finish(mut self) -> Result<(IndexDb, State, TileCache<FeedNumber>), OpenError> {
        self.write()?;
        // Flush, so that a node that is killed does not replay the same records again. If the flush
        // fails, the index database is marked as damaged and is rebuilt.
        if self.any
            && let Err(error) = self.index_db.flush()
        {
            tracing::warn!(%error, "the replayed records could not be flushed");
        }
        Ok((self.index_db, self.state, self.tiles))
    }

    fn write(&mut self) -> Result<(), OpenError> {
        index_db::apply(&self.index_db, &self.batch)
            .map_err(|error| OpenError::IndexDb(std::io::Error::other(error.to_string())))?;
        applier::release_applied(&mut self.state, &mut self.tiles, &self.batch);
        self.batch.clear();
        Ok(())
    }
}

/// Caches the tiles that a commit filled until the index database has them.
pub(super) fn cache_full_tiles(tiles: &mut TileCache<FeedNumber>, pending: &PendingCommit) {
    for (feed, id, tile) in &pending.tiles {
        tiles.insert(*feed, *id, Arc::clone(tile));
    }
}
