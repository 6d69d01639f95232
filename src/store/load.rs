//! Loads the in-memory state from the index database when the store is opened.
//!
//! In scope: reading what [`State`] holds, in time independent of the length of history. Out of
//! scope: the log after the index cursor, which is replayed (`open`).

use barid_core::feed::tree::leaf_hash;
use barid_core::ids::{FeedId, Hash};
use barid_core::limits::NOT_HELD_RANGES_MAX;

use super::ReadError;
use super::feed_index::{FeedIndex, State, detached};
use super::index_db::IndexDb;
use super::keys::{FeedNumber, FeedRow, NoteRef};
use super::log::{LogReader, Resume};
use super::tree_cache::{TILE_HASHES, TileId, TiledTree};
use super::{Cosigned, CustodyRecord};

/// Loads `state`; returns the point where replay of the log continues.
pub(super) fn load(index_db: &IndexDb, log: &LogReader, state: &mut State) -> Result<Option<Resume>, ReadError> {
    let Some(cursor) = index_db.cursor()? else { return Ok(None) };
    state.seq = cursor.resume.seq;
    state.end_offset = cursor.end_offset;
    state.tail_cache.applied(state.seq);
    for ((feed, row), number) in index_db.feeds()?.into_iter().zip(0..) {
        if state.numbers.contains_key(&feed) {
            return Err(ReadError::Damaged(format!("the index database: {feed} has two feed numbers")));
        }
        let new_member = !state.numbers.keys().any(|held| held.member == feed.member);
        if new_member {
            let (ids, floor) = index_db.largest_ids(&feed.member)?;
            state.ids.extend(&feed.member, ids.into_iter());
            state.ids.set_floor(&feed.member, floor);
            state.superseded.extend(index_db.largest_superseded(&feed.member)?.map(|id| (feed.member.clone(), id)));
        }
        state.numbers.insert(feed.clone(), number);
        state.feeds.push(feed_index(index_db, log, number, feed, &row)?);
    }
    state.rosters.extend(index_db.rosters()?);
    state.crls.extend(index_db.crls()?);
    state.forks.extend(index_db.forks()?);
    state.subscriptions.load(index_db.subscriptions()?);
    Ok(Some(cursor.resume))
}

fn feed_index(
    index_db: &IndexDb,
    log: &LogReader,
    number: FeedNumber,
    feed: FeedId,
    row: &FeedRow,
) -> Result<FeedIndex, ReadError> {
    let mut feed_index = FeedIndex::new(feed);
    feed_index.disclosed = row.disclosed;
    feed_index.tiled_tree = tiled_tree(index_db, log, number, row.size)?;
    if let Some(at) = row.checkpoint {
        let record = log.record(at.position)?;
        let append = record.rest.appends.get(at.place as usize).filter(|append| append.feed == feed_index.feed);
        let append = append.ok_or_else(|| dangling("checkpoint"))?;
        feed_index.checkpoint = detached(&append.checkpoint);
        feed_index.checkpoint_size = append.checkpoint_size;
        feed_index.consistency_proof.clone_from(&append.consistency_proof);
        feed_index.checkpoint_at = Some(at);
    }
    feed_index.runs = index_db.runs(number, NOT_HELD_RANGES_MAX)?.into();
    feed_index.older_runs = feed_index.runs.len() >= NOT_HELD_RANGES_MAX;
    feed_index.backfilled = index_db.has_backfills(number)?;
    for at in index_db.cosigned_newest(number)? {
        let note = cosigned(log, at)?;
        feed_index.cosigned.insert(note.cosigner.clone(), note);
    }
    feed_index.out_of_order = index_db.out_of_order(number)?;
    feed_index.holders.extend(index_db.custody_holders(number)?);
    for at in index_db.custody_newest(number)? {
        let note = custody(log, at)?;
        feed_index.custody.insert(note.holder.clone(), note);
    }
    Ok(feed_index)
}

/// Reads the cosigned note at a reference.
pub(super) fn cosigned(log: &LogReader, at: NoteRef) -> Result<Cosigned, ReadError> {
    let record = log.record(at.position)?;
    let note = record.rest.cosigned.get(at.place as usize).ok_or_else(|| dangling("cosigned note"))?;
    Ok(Cosigned { note: detached(&note.note), ..note.clone() })
}

/// Reads the custody note at a reference.
pub(super) fn custody(log: &LogReader, at: NoteRef) -> Result<CustodyRecord, ReadError> {
    let record = log.record(at.position)?;
    let note = record.rest.custody.get(at.place as usize).ok_or_else(|| dangling("custody note"))?;
    Ok(CustodyRecord { note: detached(&note.note), ..note.clone() })
}

/// Returns the error for a reference of the index database to an item that its record does not
/// have.
pub(super) fn dangling(what: &str) -> ReadError {
    ReadError::Damaged(format!("the index database refers to a {what} that is not in its record"))
}

/// Loads the right edge of a feed's Merkle tree: the newest digests from the log, and the roots of
/// the newest tiles (complete subtrees) from the index database.
fn tiled_tree(index_db: &IndexDb, log: &LogReader, number: FeedNumber, size: u64) -> Result<TiledTree, ReadError> {
    let mut rows = Vec::new();
    let mut count = size;
    for level in 0..8u8 {
        if count == 0 {
            break;
        }
        let start = count / TILE_HASHES as u64 * TILE_HASHES as u64;
        rows.push(match level.checked_sub(1) {
            None => leaves(index_db, log, number, start, count)?,
            Some(below) => (start..count)
                .map(|index| root(index_db, number, TileId { level: below, index }))
                .collect::<Result<_, _>>()?,
        });
        count /= TILE_HASHES as u64;
    }
    TiledTree::rebuild(size, rows)
        .ok_or_else(|| ReadError::Damaged("the index database: tiles do not fit the feed's size".into()))
}

fn root(index_db: &IndexDb, number: FeedNumber, id: TileId) -> Result<Hash, ReadError> {
    let tile = index_db.tile(number, id)?;
    tile.and_then(|tile| tile.root()).ok_or_else(|| ReadError::Damaged("the index database: a tile is missing".into()))
}

fn leaves(
    index_db: &IndexDb,
    log: &LogReader,
    number: FeedNumber,
    mut next: u64,
    end: u64,
) -> Result<Vec<Hash>, ReadError> {
    let mut hashes = Vec::new();
    while next < end {
        let entry_run = index_db.position(number, next)?.ok_or_else(|| dangling("entry"))?;
        let record = log.record(entry_run.at.position)?;
        let append = record.appends.get(entry_run.at.place as usize).ok_or_else(|| dangling("entry"))?;
        let skipped = usize::try_from(next - entry_run.first).map_err(|_| dangling("entry"))?;
        let slots = append.slots.get(skipped..).filter(|slots| !slots.is_empty()).ok_or_else(|| dangling("entry"))?;
        hashes.extend(slots.iter().map(|(_, slot)| leaf_hash(&slot.digest)));
        next += slots.len() as u64;
    }
    Ok(hashes)
}
