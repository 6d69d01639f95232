//! Cursors: an offset, with a proof of the store and history that it belongs to.
//!
//! In scope: encoding cursors, building them for delivered events, and finding where a stream
//! resumes from one. Out of scope: who may read (`visibility`), and names (`subscriptions`).
//!
//! A cursor contains a hash prefix of the commit that holds its offset, which proves all entries up
//! to it ([`ChainLink`]), and shorter hash prefixes of the commits at some round offsets before it
//! (milestones). If the store's history has changed, the newest milestone that still matches gives
//! a place up to which both histories are the same.

use barid_core::ids::Hash;
use barid_core::limits::CURSOR_BYTES_MAX;
use barid_core::proto;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;

use crate::store::{ChainLink, HeldBack, ReadError, Store, StoreId};

const VERSION: u8 = 1;
/// Milestones are the last multiples of these powers of two up to the offset. After a store went
/// back by a day, few entries are sent again; after it went back by a year, not all of them.
const MILESTONE_BITS: [u32; 5] = [10, 13, 16, 20, 24];
/// Largest valid offset. The rest of the range leaves room for sums.
const OFFSET_MAX: u64 = 1 << 62;
/// Version, store, offset, hash, milestones, held-back range.
const BYTES: usize = 1 + 16 + 8 + HEAD_BYTES + MILESTONE_BITS.len() * MILESTONE_BYTES + 16;
/// Two histories of a node do not share that many bytes of a hash by chance. A client that forges a
/// cursor misleads only itself.
const HEAD_BYTES: usize = 16;
/// See [`HEAD_BYTES`]. Milestones are compared only after the hash has proven another history, and
/// a chance match must hit one of five.
const MILESTONE_BYTES: usize = 8;

const _: () = assert!(BYTES <= CURSOR_BYTES_MAX);

type Head = [u8; HEAD_BYTES];
type Milestone = [u8; MILESTONE_BYTES];

/// The position of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    store: StoreId,
    /// All entries up to this offset were scanned.
    offset: u64,
    /// Hash prefix of the commit that holds the offset. Zeros if the commit could not be read.
    head: Head,
    /// Hash prefixes in the order of [`MILESTONE_BITS`]. Zeros for commits that could not be read.
    milestones: [Milestone; MILESTONE_BITS.len()],
    held: Option<HeldBack>,
}

/// Where a stream starts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct StreamStart {
    /// All entries up to this offset were scanned.
    pub(super) offset: u64,
    /// Entries up to `offset` that are held back.
    pub(super) held: Option<HeldBack>,
    /// The event to send first if the cursor is of another history.
    pub(super) reset: Option<proto::Reset>,
}

/// Why a cursor does not match the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mismatch {
    /// It is of another store.
    StoreLost,
    /// This store, or the one that it was copied from, continued differently after some commit.
    StoreRestored,
    /// The commit that would prove it is damaged.
    Unknown,
}

impl Mismatch {
    /// Returns the name used in messages.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::StoreLost => "store-lost",
            Self::StoreRestored => "store-restored",
            Self::Unknown => "unknown",
        }
    }
}

impl Cursor {
    /// Encodes the cursor for clients.
    pub(super) fn encode(&self) -> Bytes {
        let held = self.held.unwrap_or(HeldBack { from: 0, roster_version: 0 });
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.push(VERSION);
        bytes.extend(self.store.0);
        bytes.extend(self.offset.to_be_bytes());
        bytes.extend(self.head);
        bytes.extend(self.milestones.as_flattened());
        bytes.extend(held.from.to_be_bytes());
        bytes.extend(held.roster_version.to_be_bytes());
        bytes.into()
    }

    /// Decodes a client's cursor. `None` if it is not a cursor of this version.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
            let (taken, rest) = bytes.split_first_chunk::<N>()?;
            *bytes = rest;
            Some(*taken)
        }
        let bytes = &mut bytes;
        let [version] = take(bytes)?;
        let (store, offset, head) = (StoreId(take(bytes)?), u64::from_be_bytes(take(bytes)?), take(bytes)?);
        let mut milestones = [[0; MILESTONE_BYTES]; MILESTONE_BITS.len()];
        for milestone in &mut milestones {
            *milestone = take(bytes)?;
        }
        let (from, roster_version) = (u64::from_be_bytes(take(bytes)?), u64::from_be_bytes(take(bytes)?));
        let held = (from > 0).then_some(HeldBack { from, roster_version });
        (version == VERSION && bytes.is_empty() && offset <= OFFSET_MAX && from <= offset).then_some(Self {
            store,
            offset,
            head,
            milestones,
            held,
        })
    }

    /// Encodes the cursor as text, for page tokens.
    pub(super) fn to_text(self) -> String {
        URL_SAFE_NO_PAD.encode(self.encode())
    }

    /// Decodes the text form.
    pub(super) fn parse(text: &str) -> Option<Self> {
        // A longer text is not decoded.
        let bytes = (text.len() <= 2 * CURSOR_BYTES_MAX).then(|| URL_SAFE_NO_PAD.decode(text).ok())?;
        Self::decode(&bytes?)
    }

    /// Returns the offset up to which all entries were scanned.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the entries held back up to the offset.
    pub(super) fn held(&self) -> Option<HeldBack> {
        self.held
    }

    /// Returns where a stream resumes: after this cursor, else after the newest milestone that
    /// matches, else at the beginning. Blocks.
    ///
    /// # Errors
    /// The store cannot be read now. A damaged commit is not an error; it does not match.
    pub(super) fn locate(&self, store: &dyn Store) -> Result<StreamStart, ReadError> {
        let Some(mismatch) = self.mismatch(store)? else {
            return Ok(StreamStart { offset: self.offset, held: self.held, reset: None });
        };
        let offset = match mismatch {
            Mismatch::StoreLost => 0,
            Mismatch::StoreRestored | Mismatch::Unknown => self.newest_milestone(store)?,
        };
        let reset = proto::Reset { reason: mismatch.as_str().to_owned(), offset, cursor_offset: self.offset };
        Ok(StreamStart { offset, held: self.held.filter(|held| held.from <= offset), reset: Some(reset) })
    }

    /// Returns why the cursor is not of this store's history; `None` if it is. Blocks.
    ///
    /// # Errors
    /// The store cannot be read now.
    pub(super) fn mismatch(&self, store: &dyn Store) -> Result<Option<Mismatch>, ReadError> {
        if self.store != store.id() {
            return Ok(Some(Mismatch::StoreLost));
        }
        if self.offset == 0 {
            return Ok(None);
        }
        match readable(store.link(self.offset))? {
            Err(Unreadable) => Ok(Some(Mismatch::Unknown)),
            Ok(link) if link.as_ref().is_some_and(|link| self.head == beginning(&link.hash)) => Ok(None),
            Ok(_) => Ok(Some(Mismatch::StoreRestored)),
        }
    }

    fn newest_milestone(&self, store: &dyn Store) -> Result<u64, ReadError> {
        for (bits, milestone) in MILESTONE_BITS.into_iter().zip(&self.milestones) {
            let at = round(self.offset, bits);
            if at == 0 {
                break;
            }
            if let Ok(Some(link)) = readable(store.link(at))?
                && *milestone == beginning(&link.hash)
            {
                return Ok(at);
            }
        }
        Ok(0)
    }
}

/// Returns the last multiple of a power of two up to an offset.
fn round(offset: u64, bits: u32) -> u64 {
    offset >> bits << bits
}

fn beginning<const N: usize>(hash: &Hash) -> [u8; N] {
    hash.0.first_chunk().copied().unwrap_or([0; N])
}

/// The commit is damaged on the disk.
struct Unreadable;

/// Separates damage from errors after which a later read may succeed.
fn readable(link: Result<Option<ChainLink>, ReadError>) -> Result<Result<Option<ChainLink>, Unreadable>, ReadError> {
    match link {
        Ok(link) => Ok(Ok(link)),
        Err(ReadError::Damaged(_) | ReadError::DamagedEntry(_)) => Ok(Err(Unreadable)),
        Err(error) => Err(error),
    }
}

/// Builds the cursors of one stream or page. Nearly everything comes from the last read; only a
/// milestone needs a read of the store, once in a thousand offsets.
#[derive(Clone, Debug)]
pub(super) struct CursorBuilder {
    store: StoreId,
    /// Commits of the last read, ascending.
    links: Vec<ChainLink>,
    /// Milestones with their offsets.
    milestones: [(u64, Milestone); MILESTONE_BITS.len()],
}

impl CursorBuilder {
    /// Creates a builder that has read no commits.
    pub(super) fn new(store: &dyn Store) -> Self {
        Self { store: store.id(), links: Vec::new(), milestones: Default::default() }
    }

    /// Adds the commits of a read.
    pub(super) fn note(&mut self, links: Vec<ChainLink>) {
        if !links.is_empty() {
            self.links = links;
        }
    }

    /// Returns the cursor of an offset; `None` if the commit that holds it is damaged. May block.
    ///
    /// # Errors
    /// The store cannot be read now.
    pub(super) fn at(
        &mut self,
        store: &dyn Store,
        offset: u64,
        held: Option<HeldBack>,
    ) -> Result<Option<Cursor>, ReadError> {
        let head = match offset {
            0 => Head::default(),
            _ => match readable(self.link(store, offset))? {
                Ok(Some(link)) => beginning(&link.hash),
                Ok(None) | Err(Unreadable) => return Ok(None),
            },
        };
        for (place, bits) in MILESTONE_BITS.into_iter().enumerate() {
            let at = round(offset, bits);
            if self.milestones[place].0 != at {
                // A milestone that cannot be read now will not match later.
                let link = self.find(at).cloned().map_or_else(|| store.link(at), |link| Ok(Some(link)));
                let milestone = link.ok().flatten().map(|link| beginning(&link.hash)).unwrap_or_default();
                self.milestones[place] = (at, milestone);
            }
        }
        let held = held.filter(|held| held.from <= offset);
        let milestones = self.milestones.map(|(_, milestone)| milestone);
        Ok(Some(Cursor { store: self.store, offset, head, milestones, held }))
    }

    /// Like [`Self::at`], but returns a cursor without proof if the commit is damaged.
    ///
    /// # Errors
    /// The store cannot be read now.
    pub(super) fn at_or_unproven(
        &mut self,
        store: &dyn Store,
        offset: u64,
        held: Option<HeldBack>,
    ) -> Result<Cursor, ReadError> {
        let (head, milestones) = (Head::default(), Default::default());
        let unproven = Cursor { store: self.store, offset, head, milestones, held };
        Ok(self.at(store, offset, held)?.unwrap_or(unproven))
    }

    fn find(&self, offset: u64) -> Option<&ChainLink> {
        let place = self.links.partition_point(|link| link.offsets.end <= offset);
        self.links.get(place).filter(|link| link.offsets.contains(&offset))
    }

    fn link(&mut self, store: &dyn Store, offset: u64) -> Result<Option<ChainLink>, ReadError> {
        if let Some(link) = self.find(offset) {
            return Ok(Some(link.clone()));
        }
        let link = store.link(offset)?;
        self.note(link.iter().cloned().collect());
        Ok(link)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::conformance::commit_entries;
    use crate::store::memory::MemoryStore;

    fn cursor(store: &dyn Store, offset: u64) -> Cursor {
        CursorBuilder::new(store).at(store, offset, None).unwrap().unwrap()
    }

    #[test]
    fn cursor_round_trips_and_malformed_bytes_are_rejected() {
        let store = MemoryStore::new();
        commit_entries(&store, 3);
        for held in [None, Some(HeldBack { from: 2, roster_version: 7 })] {
            let cursor = Cursor { held, ..cursor(&store, 3) };
            let bytes = cursor.encode();
            assert!(bytes.len() <= CURSOR_BYTES_MAX);
            assert_eq!(Cursor::decode(&bytes), Some(cursor));
            assert_eq!(Cursor::parse(&cursor.to_text()), Some(cursor));
            for len in 0..bytes.len() {
                assert_eq!(Cursor::decode(&bytes[..len]), None, "{len} bytes");
            }
            assert_eq!(Cursor::decode(&[&bytes[..], &[0]].concat()), None, "one byte more");
        }
        let bytes = cursor(&store, 3).encode();
        let changed = |place: usize, with: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes[place..place + with.len()].copy_from_slice(with);
            Cursor::decode(&bytes)
        };
        assert_eq!(changed(0, &[2]), None, "a later version");
        assert_eq!(changed(17, &u64::MAX.to_be_bytes()), None, "no offset");
        assert_eq!(changed(BYTES - 16, &9_u64.to_be_bytes()), None, "a pending offset above the offset");
        assert_eq!(Cursor::parse(&"A".repeat(100_000)), None);
        assert_eq!(Cursor::parse("not base64!"), None);
    }

    #[test]
    fn cursor_matches_its_own_store_only() {
        let store = MemoryStore::new();
        let other = MemoryStore::new();
        commit_entries(&store, 5);
        commit_entries(&other, 5);
        for offset in 0..=5 {
            let cursor = cursor(&store, offset);
            assert_eq!(cursor.mismatch(&store).unwrap(), None);
            assert_eq!(cursor.locate(&store).unwrap(), StreamStart { offset, ..StreamStart::default() });
            // The same entries in the same commits, but another store.
            assert_eq!(cursor.mismatch(&other).unwrap(), Some(Mismatch::StoreLost));
            assert_eq!(cursor.locate(&other).unwrap().offset, 0);
        }
        commit_entries(&store, 1);
        assert_eq!(cursor(&store, 5).mismatch(&store).unwrap(), None, "the store has newer commits");
        let beyond = Cursor { offset: 7, ..cursor(&store, 6) };
        assert_eq!(beyond.mismatch(&store).unwrap(), Some(Mismatch::StoreRestored));
        let forged = Cursor { head: [7; HEAD_BYTES], ..cursor(&store, 4) };
        let reset = forged.locate(&store).unwrap().reset.unwrap();
        assert_eq!((reset.reason.as_str(), reset.offset, reset.cursor_offset), ("store-restored", 0, 4));
    }

    #[test]
    fn restored_store_resumes_at_the_newest_matching_milestone() {
        let store = MemoryStore::new();
        commit_entries(&store, 10_000);
        let mut builder = CursorBuilder::new(&store);
        // As a stream builds them: the builder reuses milestones from one offset to the next.
        let mut cursors = (0..=10_000).map(|offset| builder.at(&store, offset, None).unwrap().unwrap());
        let last = cursors.by_ref().inspect(|made| assert_eq!(*made, cursor(&store, made.offset))).last().unwrap();
        let wrong = |count: usize| {
            let mut cursor = Cursor::decode(&last.encode()).unwrap();
            cursor.head = [7; HEAD_BYTES];
            cursor.milestones[..count].fill([7; MILESTONE_BYTES]);
            cursor.locate(&store).unwrap().offset
        };
        assert_eq!([wrong(0), wrong(1), wrong(2), wrong(5)], [9_216, 8_192, 0, 0]);
    }
}
