//! From the view to memory, when the store is opened.
//!
//! In scope: reading what [`State`] holds, in time that does not grow with the length of history. Out of scope: the log after the view's
//! cursor, which is replayed.

use barid_core::feed::tree::leaf_hash;
use barid_core::limits::NOT_HELD_RANGES_MAX;
use barid_core::names::{FeedId, Hash};

use super::ReadError;
use super::keys::{FeedNumber, FeedRow, NoteRef};
use super::log::{LogReader, Resume};
use super::state::{FeedBook, State, detached};
use super::tree_cache::{Edge, TILE_HASHES, TileId};
use super::view::View;
use super::{Cosigned, CustodyRecord};

/// Fills `state`; returns where the log goes on.
pub(super) fn load(view: &View, log: &LogReader, state: &mut State) -> Result<Option<Resume>, ReadError> {
    let Some(cursor) = view.cursor()? else { return Ok(None) };
    state.seq = cursor.resume.seq;
    state.end_arrival = cursor.end_arrival;
    state.window.applied(state.seq);
    for ((feed, row), number) in view.feeds()?.into_iter().zip(0..) {
        if state.numbers.contains_key(&feed) {
            return Err(ReadError::Damaged(format!("the view: {feed} has two numbers")));
        }
        let new_member = !state.numbers.keys().any(|held| held.member == feed.member);
        if new_member {
            let (ids, floor) = view.largest_ids(&feed.member)?;
            state.ids.extend(&feed.member, ids.into_iter());
            state.ids.set_floor(&feed.member, floor);
            state.succeeded.extend(view.largest_succeeded(&feed.member)?.map(|id| (feed.member.clone(), id)));
        }
        state.numbers.insert(feed.clone(), number);
        state.feeds.push(book(view, log, number, feed, &row)?);
    }
    state.rosters.extend(view.rosters()?);
    state.crls.extend(view.crls()?);
    state.forks.extend(view.forks()?);
    state.subscriptions.load(view.subscriptions()?);
    Ok(Some(cursor.resume))
}

fn book(view: &View, log: &LogReader, number: FeedNumber, feed: FeedId, row: &FeedRow) -> Result<FeedBook, ReadError> {
    let mut book = FeedBook::new(feed);
    book.disclosed = row.disclosed;
    book.edge = edge(view, log, number, row.size)?;
    if let Some(at) = row.checkpoint {
        let record = log.record(at.position)?;
        let append = record.appends.get(at.place as usize).map(|recorded| &recorded.append);
        let append = append.filter(|append| append.feed == book.feed).ok_or_else(|| dangling("checkpoint"))?;
        book.checkpoint = detached(&append.checkpoint);
        book.checkpoint_size = append.checkpoint_size;
        book.consistency_proof.clone_from(&append.consistency_proof);
        book.checkpoint_at = Some(at);
    }
    book.runs = view.runs(number, NOT_HELD_RANGES_MAX)?.into();
    book.older_runs = book.runs.len() >= NOT_HELD_RANGES_MAX;
    book.filled = view.has_fills(number)?;
    for at in view.cosigned_newest(number)? {
        let note = cosigned(log, at)?;
        book.cosigned.insert(note.cosigner.clone(), note);
    }
    book.ahead = view.ahead(number)?;
    book.holders.extend(view.custody_holders(number)?);
    for at in view.custody_newest(number)? {
        let note = custody(log, at)?;
        book.custody.insert(note.holder.clone(), note);
    }
    Ok(book)
}

/// The cosigned note that a reference means.
pub(super) fn cosigned(log: &LogReader, at: NoteRef) -> Result<Cosigned, ReadError> {
    let record = log.record(at.position)?;
    let note = record.rest.cosigned.get(at.place as usize).ok_or_else(|| dangling("cosigned note"))?;
    Ok(Cosigned { note: detached(&note.note), ..note.clone() })
}

/// The custody note that a reference means.
pub(super) fn custody(log: &LogReader, at: NoteRef) -> Result<CustodyRecord, ReadError> {
    let record = log.record(at.position)?;
    let note = record.rest.custody.get(at.place as usize).ok_or_else(|| dangling("custody note"))?;
    Ok(CustodyRecord { note: detached(&note.note), ..note.clone() })
}

/// A reference of the view to something that its record does not have.
pub(super) fn dangling(what: &str) -> ReadError {
    ReadError::Damaged(format!("the view: a {what} is not where the view says"))
}

/// The right edge of a feed's tree: the newest digests from the log, the roots of the newest tiles from the view.
fn edge(view: &View, log: &LogReader, number: FeedNumber, size: u64) -> Result<Edge, ReadError> {
    let mut rows = Vec::new();
    let mut count = size;
    for level in 0..8u8 {
        if count == 0 {
            break;
        }
        let start = count / TILE_HASHES as u64 * TILE_HASHES as u64;
        rows.push(match level.checked_sub(1) {
            None => leaves(view, log, number, start, count)?,
            Some(below) => (start..count)
                .map(|index| root(view, number, TileId { level: below, index }))
                .collect::<Result<_, _>>()?,
        });
        count /= TILE_HASHES as u64;
    }
    Edge::rebuild(size, rows).ok_or_else(|| ReadError::Damaged("the view: tiles do not fit the feed's size".into()))
}

fn root(view: &View, number: FeedNumber, id: TileId) -> Result<Hash, ReadError> {
    let tile = view.tile(number, id)?;
    tile.and_then(|tile| tile.root()).ok_or_else(|| ReadError::Damaged("the view: a tile is missing".into()))
}

fn leaves(view: &View, log: &LogReader, number: FeedNumber, mut next: u64, end: u64) -> Result<Vec<Hash>, ReadError> {
    let mut hashes = Vec::new();
    while next < end {
        let stretch = view.position(number, next)?.ok_or_else(|| dangling("entry"))?;
        let record = log.record(stretch.at.position)?;
        let append = record.appends.get(stretch.at.place as usize).ok_or_else(|| dangling("entry"))?;
        let skipped = usize::try_from(next - stretch.first).map_err(|_| dangling("entry"))?;
        let slots = append.slots.get(skipped..).filter(|slots| !slots.is_empty()).ok_or_else(|| dangling("entry"))?;
        hashes.extend(slots.iter().map(|slot| leaf_hash(&slot.digest)));
        next += slots.len() as u64;
    }
    Ok(hashes)
}
