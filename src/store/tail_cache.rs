//! Cache of the newest commits: live subscribers and receivers read them without disk access.
//!
//! In scope: keeping every commit not yet applied to the index database, and as many older ones as
//! fit; reading entries from them by index and by offset. Out of scope: all older entries.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use barid_core::ids::{FeedId, Hash};

use super::keys::FeedNumber;
use super::{ChainLink, Committed, Content, Entry, NewEntry, ReadError};

/// Memory cost of an entry beside its envelope: digest, decoded header, lists.
const ENTRY_OVERHEAD_BYTES: usize = 1_024;

/// The newest commits.
pub(super) struct TailCache {
    commits: VecDeque<Arc<Committed>>,
    feeds: HashMap<FeedNumber, VecDeque<CachedAppend>>,
    applied_seq: u64,
    bytes: usize,
    bytes_max: usize,
}

/// An append in the cache.
#[derive(Clone, Copy)]
struct CachedAppend {
    first: u64,
    seq: u64,
    place: usize,
}

/// Collects entries until a bound is reached, but at least one.
pub(super) struct EntryPage {
    pub(super) entries: Vec<Entry>,
    /// Commits that hold the entries, if they were recorded.
    pub(super) links: Vec<ChainLink>,
    entries_max: usize,
    bytes_max: usize,
    bytes: usize,
}

impl EntryPage {
    pub(super) fn new(entries_max: usize, bytes_max: usize) -> Self {
        Self { entries: Vec::new(), links: Vec::new(), entries_max, bytes_max, bytes: 0 }
    }

    /// Records the commit that holds the next entries.
    pub(super) fn add_link(&mut self, offsets: Range<u64>, hash: Hash) {
        self.links.push(ChainLink { offsets, hash });
    }

    /// Ends the page at unreadable data: returns an error only if the page is empty. A caller that
    /// continues from there gets it.
    pub(super) fn end_page_with(&self, error: impl FnOnce() -> ReadError) -> Result<bool, ReadError> {
        if self.entries.is_empty() { Err(error()) } else { Ok(false) }
    }

    /// Returns whether an entry with an envelope of `len` bytes fits.
    fn fits(&self, len: usize) -> bool {
        self.entries.is_empty()
            || (self.entries.len() < self.entries_max && self.bytes.saturating_add(len) <= self.bytes_max)
    }

    /// Returns how many of the following entries fit, given the lengths of their envelopes.
    pub(super) fn count_fitting(&self, lens: impl Iterator<Item = usize>) -> usize {
        let (mut count, mut bytes) = (0, self.bytes);
        for len in lens {
            let held = self.entries.len() + count;
            bytes = bytes.saturating_add(len);
            if held > 0 && (held >= self.entries_max || bytes > self.bytes_max) {
                break;
            }
            count += 1;
        }
        count
    }

    /// Adds an entry; returns false if it does not fit.
    pub(super) fn push(&mut self, feed: &FeedId, index: u64, entry: &NewEntry, offset: u64) -> bool {
        let (len, offset) = match &entry.content {
            Content::Disclosed { envelope, .. } => (envelope.len(), Some(offset)),
            Content::Undisclosed(_) => (0, None),
        };
        if !self.fits(len) {
            return false;
        }
        self.bytes += len;
        self.entries.push(Entry {
            feed: feed.clone(),
            index,
            digest: entry.digest,
            content: entry.content.clone(),
            offset,
        });
        true
    }
}

impl TailCache {
    /// Creates an empty cache.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { commits: VecDeque::new(), feeds: HashMap::new(), applied_seq: 0, bytes: 0, bytes_max }
    }

    /// Returns one entry as it was appended; `None` if it is older than the cache.
    pub(super) fn appended(&self, feed: FeedNumber, index: u64) -> Option<&NewEntry> {
        let parts = self.feeds.get(&feed)?;
        let part = parts.get(parts.partition_point(|part| part.first <= index).checked_sub(1)?)?;
        let append = self.get(part.seq)?.commit.appends.get(part.place)?;
        append.entries.get(usize::try_from(index.checked_sub(append.first)?).ok()?)
    }

    /// Adds the newest commit; `feeds` are the numbers of its appends' feeds.
    pub(super) fn push(&mut self, committed: &Arc<Committed>, feeds: &[FeedNumber]) {
        self.bytes += cost(committed);
        for (place, (append, feed)) in committed.commit.appends.iter().zip(feeds).enumerate() {
            let part = CachedAppend { first: append.first, seq: committed.seq, place };
            if !append.entries.is_empty() {
                self.feeds.entry(*feed).or_default().push_back(part);
            }
        }
        self.commits.push_back(Arc::clone(committed));
        self.shrink();
    }

    /// Records that everything up to commit `seq` is applied to the index database.
    pub(super) fn applied(&mut self, seq: u64) {
        self.applied_seq = self.applied_seq.max(seq);
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.bytes > self.bytes_max
            && let Some(oldest) = self.commits.pop_front_if(|oldest| oldest.seq <= self.applied_seq)
        {
            self.bytes -= cost(&oldest);
            let seq = oldest.seq;
            for parts in self.feeds.values_mut() {
                while parts.pop_front_if(|part| part.seq <= seq).is_some() {}
            }
        }
    }

    fn get(&self, seq: u64) -> Option<&Arc<Committed>> {
        let first = self.commits.front()?.seq;
        self.commits.get(usize::try_from(seq.checked_sub(first)?).ok()?)
    }

    /// Returns entries of a feed from index `from` on, as they were appended; `None` if the cache
    /// does not go back that far.
    pub(super) fn entries(
        &self,
        feed: FeedNumber,
        from: u64,
        entries_max: usize,
        bytes_max: usize,
    ) -> Option<Vec<Entry>> {
        let parts = self.feeds.get(&feed)?;
        let start = parts.partition_point(|part| part.first <= from).checked_sub(1)?;
        let mut page = EntryPage::new(entries_max, bytes_max);
        for part in parts.range(start..) {
            let committed = self.get(part.seq)?;
            let mut offset = committed.first_offset + disclosed_before(committed, part.place);
            let append = committed.commit.appends.get(part.place)?;
            for (index, entry) in (append.first..).zip(&append.entries) {
                if index >= from && !page.push(&append.feed, index, entry, offset) {
                    return Some(page.entries);
                }
                offset += u64::from(matches!(entry.content, Content::Disclosed { .. }));
            }
        }
        Some(page.entries)
    }

    /// Returns the first offset that is certainly in the cache; `None` if it is empty.
    pub(super) fn first_offset(&self) -> Option<u64> {
        self.commits.front().map(|oldest| oldest.first_offset)
    }

    /// Returns the commit that holds an offset; `None` if the cache does not go back that far, or
    /// the offset is beyond the newest.
    pub(super) fn link(&self, offset: u64) -> Option<ChainLink> {
        let place = self.commits.partition_point(|committed| committed.end_offset <= offset);
        let held = self.commits.get(place).filter(|committed| committed.first_offset <= offset)?;
        Some(ChainLink { offsets: held.first_offset..held.end_offset, hash: held.hash })
    }

    /// Returns entries from offset `from` on, with the commits that hold them; `None` if the cache
    /// does not go back that far.
    pub(super) fn entries_from(
        &self,
        from: u64,
        entries_max: usize,
        bytes_max: usize,
    ) -> Option<(Vec<Entry>, Vec<ChainLink>)> {
        self.first_offset().filter(|first| *first <= from)?;
        let start = self.commits.partition_point(|committed| committed.end_offset <= from);
        let mut page = EntryPage::new(entries_max, bytes_max);
        for committed in self.commits.range(start..) {
            let mut offset = committed.first_offset;
            if committed.end_offset > committed.first_offset {
                page.add_link(committed.first_offset..committed.end_offset, committed.hash);
            }
            for append in &committed.commit.appends {
                for (index, entry) in (append.first..).zip(&append.entries) {
                    if !matches!(entry.content, Content::Disclosed { .. }) {
                        continue;
                    }
                    if offset >= from && !page.push(&append.feed, index, entry, offset) {
                        return Some((page.entries, page.links));
                    }
                    offset += 1;
                }
            }
            for backfill in &committed.commit.backfills {
                for (index, entry) in &backfill.entries {
                    if offset >= from && !page.push(&backfill.feed, *index, entry, offset) {
                        return Some((page.entries, page.links));
                    }
                    offset += 1;
                }
            }
            for priority in &committed.commit.priority {
                if offset >= from && !page.push(&priority.feed, priority.index, &priority.entry, offset) {
                    return Some((page.entries, page.links));
                }
                offset += 1;
            }
        }
        Some((page.entries, page.links))
    }
}

fn cost(committed: &Committed) -> usize {
    let entry_cost = |entry: &NewEntry| match &entry.content {
        Content::Disclosed { envelope, .. } => envelope.len() + ENTRY_OVERHEAD_BYTES,
        Content::Undisclosed(_) => 64,
    };
    let commit = &committed.commit;
    let notes =
        commit.cosigned.iter().map(|note| note.note.len()).chain(commit.custody.iter().map(|note| note.note.len()));
    let rosters =
        commit.rosters.iter().map(|roster| roster.note.len()).chain(commit.crls.iter().map(|crl| crl.der.len()));
    let backfilled = commit.backfills.iter().flat_map(|backfill| &backfill.entries).map(|(_, entry)| entry);
    let backfilled = backfilled.chain(commit.priority.iter().map(|priority| &priority.entry));
    let entries = commit.appends.iter().flat_map(|append| &append.entries).chain(backfilled).map(entry_cost);
    let forks = commit.forks.iter().map(|fork| fork.evidence.len());
    entries.chain(notes).chain(rosters).chain(forks).sum::<usize>() + ENTRY_OVERHEAD_BYTES
}

fn disclosed_before(committed: &Committed, place: usize) -> u64 {
    let appends = committed.commit.appends.iter().take(place);
    appends
        .flat_map(|append| &append.entries)
        .filter(|entry| matches!(entry.content, Content::Disclosed { .. }))
        .count() as u64
}
