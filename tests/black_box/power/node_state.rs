//! The contents of a node's folder, as the program reads them, and the properties that must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use barid::store::disk::{DiskOptions, DiskStore};
use barid::store::{Content, Cosigned, CustodyRecord, Store};
use barid_core::envelope;
use barid_core::feed::checkpoint::SignedCheckpoint;
use barid_core::feed::tree::{MemoryTree, root_at, verify_consistency};
use barid_core::ids::{Digest, FeedId, Hash};
use barid_core::roster::Roster;

use crate::publishers::SavedReceipt;

/// Entries and bytes per read.
const READ_MAX: (usize, usize) = (1_024, 4 << 20);

/// Entries of one feed.
#[derive(Default)]
pub(crate) struct Held {
    tree: MemoryTree,
    digests: Vec<Digest>,
    in_full: Vec<bool>,
}

impl Held {
    fn size(&self) -> u64 {
        self.tree.size()
    }

    /// Returns whether these entries have `root` at `size`.
    fn agrees(&self, size: u64, root: &Hash) -> bool {
        size <= self.size() && root_at(&self.tree, size).is_ok_and(|held| held == *root)
    }
}

/// What one node holds.
pub(crate) struct NodeState {
    own: FeedId,
    feeds: BTreeMap<FeedId, Held>,
    /// Entries held in full, ahead of their feeds' order.
    ahead: BTreeMap<FeedId, BTreeSet<u64>>,
    by_offset: BTreeMap<u64, (String, u64)>,
    /// Cosignatures, each with its root.
    cosigned: Vec<(Cosigned, Hash)>,
    custody: Vec<CustodyRecord>,
    high_water_mark: Option<(u64, Hash)>,
}

/// Simulates a reboot: replaces the boot id that the store has recorded.
pub(crate) fn rebooted(folder: &Path) {
    let path = folder.join("data/db.open");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    if fs::read_to_string(&path).is_ok_and(|held| held == boot.trim()) {
        fs::write(path, "00000000-0000-4000-8000-000000000000").unwrap();
    }
}

impl NodeState {
    /// Reads the folder of `own`'s node after a power failure. The error names a property that does
    /// not hold.
    pub(crate) fn read(folder: &Path, own: &FeedId, roster: &Roster) -> Result<Self, String> {
        rebooted(folder);
        Self::of(folder, own, roster)
    }

    /// As [`Self::read`], without a reboot.
    pub(crate) fn of(folder: &Path, own: &FeedId, roster: &Roster) -> Result<Self, String> {
        let options = DiskOptions { reserve_bytes: 0, ..DiskOptions::new(own.member.clone(), own.exchange.clone()) };
        let data = folder.join("data");
        let store = DiskStore::open(&data, &options).map_err(|error| format!("it does not open: {error}"))?;
        let mut node_state = Self {
            own: own.clone(),
            feeds: BTreeMap::new(),
            ahead: BTreeMap::new(),
            by_offset: BTreeMap::new(),
            cosigned: Vec::new(),
            custody: Vec::new(),
            high_water_mark: high_water_mark(&folder.join("keys/mark"))?,
        };
        node_state.load(&store, roster).map_err(|error| format!("what it holds: {error}"))?;
        drop(store);
        DiskStore::verify(&data, &options).map_err(|error| format!("its log: {error}"))?;
        node_state.is_one()?;
        Ok(node_state)
    }

    fn load(&mut self, store: &DiskStore, roster: &Roster) -> Result<(), String> {
        // This includes feeds without any entry in order.
        for member in roster.entries() {
            let feed = FeedId::new(member.code.clone(), roster.exchange().clone(), self.own.epoch);
            let ahead = store.out_of_order(&feed, 0..u64::MAX).into_iter().map(|(index, _)| index);
            self.ahead.insert(feed, ahead.collect());
        }
        for state in store.feeds() {
            let (feed, size) = (state.feed, state.compact_range.size());
            let mut held = Held::default();
            while held.size() < size {
                let read =
                    store.entries(&feed, held.size(), READ_MAX.0, READ_MAX.1).map_err(|error| error.to_string())?;
                for entry in read {
                    if let Content::Disclosed { envelope, .. } = &entry.content
                        && envelope::digest(envelope) != entry.digest
                    {
                        return Err(format!("{feed} {}: the content does not match its digest", entry.index));
                    }
                    held.tree.append(&entry.digest);
                    held.in_full.push(matches!(entry.content, Content::Disclosed { .. }));
                    held.digests.push(entry.digest);
                }
            }
            let signed = SignedCheckpoint::verify(&state.checkpoint, &roster.feed_keys(&feed))
                .map_err(|error| format!("{feed}: its checkpoint: {error}"))?;
            let head = signed.checkpoint;
            let proven = match head.size == size {
                true => head.root == held.tree.root(),
                false => {
                    verify_consistency(size, &held.tree.root(), head.size, &head.root, &state.consistency_proof).is_ok()
                }
            };
            if held.tree.root() != state.compact_range.root() || !proven {
                return Err(format!("{feed}: the checkpoint does not match the {size} entries"));
            }
            for cosigned in store.cosigned_newest(&feed).map_err(|error| error.to_string())? {
                let signed = SignedCheckpoint::verify(&cosigned.note, &roster.feed_keys(&feed))
                    .map_err(|error| format!("{feed}: a cosigned note: {error}"))?;
                self.cosigned.push((cosigned, signed.checkpoint.root));
            }
            self.custody.extend(store.custody_newest(&feed).map_err(|error| error.to_string())?);
            self.feeds.insert(feed, held);
        }
        let mut next = 1;
        while next < store.end_offset() {
            for entry in store.entries_from(next, READ_MAX.0, READ_MAX.1).map_err(|error| error.to_string())? {
                next = entry.offset.ok_or("an entry without its offset")? + 1;
                self.by_offset.insert(next - 1, (entry.feed.to_string(), entry.index));
            }
        }
        Ok(())
    }

    /// Checks that the node is consistent with itself: it holds what its high-water mark covers,
    /// and what it has cosigned or attested.
    fn is_one(&self) -> Result<(), String> {
        let own = self.feeds.get(&self.own);
        match (&self.high_water_mark, own) {
            (Some((0, _)), _) | (None, None) => {}
            (None, Some(own)) if own.size() == 0 => {}
            (None, Some(own)) => return Err(format!("{} entries of its own and no high-water mark", own.size())),
            (Some((size, root)), own) if own.is_none_or(|own| !own.agrees(*size, root)) => {
                return Err(format!("its high-water mark has {size}, it holds {}", own.map_or(0, Held::size)));
            }
            _ => {}
        }
        self.honors_attestations(self)
    }

    /// Checks that `self` holds what its attestations claim, as far as `other` has persisted them.
    pub(crate) fn honors_attestations(&self, other: &Self) -> Result<(), String> {
        let me = &self.own.member;
        for (attestation, root) in other.cosigned.iter().filter(|(note, _)| note.cosigner == *me) {
            let held = self.feeds.get(&attestation.feed);
            if !held.is_some_and(|held| held.agrees(attestation.size, root)) {
                let holds = held.map_or(0, Held::size);
                return Err(format!("{me} cosigned {} at {}, and holds {holds}", attestation.feed, attestation.size));
            }
        }
        for attestation in other.custody.iter().filter(|note| note.holder == *me) {
            let held = self.feeds.get(&attestation.feed);
            let in_full = |index: u64| {
                let place = usize::try_from(index).unwrap();
                self.ahead.get(&attestation.feed).is_some_and(|ahead| ahead.contains(&index))
                    || held.is_some_and(|held| held.in_full.get(place) == Some(&true))
            };
            if let Some(index) = attestation.range.clone().find(|index| attestation.holds(*index) && !in_full(*index)) {
                let (size, ahead) = (held.map_or(0, Held::size), self.ahead.get(&attestation.feed));
                let note = format!("{me} attested custody of {} {index} of {:?}", attestation.feed, attestation.range);
                return Err(format!("{note} and does not hold it; it holds {size}, and {ahead:?} ahead"));
            }
        }
        // No other node holds more of a feed, or different entries, than its owner had made durable
        // when it sent them.
        let own = self.feeds.get(&self.own);
        match (other.feeds.get(&self.own), own) {
            (Some(theirs), own) if theirs.size() > 0 => {
                if own.is_none_or(|own| !own.agrees(theirs.size(), &theirs.tree.root())) {
                    let (theirs, own) = (theirs.size(), own.map_or(0, Held::size));
                    return Err(format!("{} holds {theirs} of {}, its owner {own}", other.own.member, self.own));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Returns the digests of a feed's entries up to the first one that is not held in full.
    pub(crate) fn in_full(&self, feed: &FeedId) -> impl Iterator<Item = Digest> {
        let held = self.feeds.get(feed).into_iter();
        let entries = held.flat_map(|held| held.digests.iter().copied().zip(held.in_full.iter().copied()));
        entries.take_while(|(_, in_full)| *in_full).map(|(digest, _)| digest)
    }

    /// Checks that a receipt is still valid.
    pub(crate) fn honors_receipt(&self, saved: &SavedReceipt) -> Result<(), String> {
        let head = &saved.checkpoint.checkpoint;
        let held = self.feeds.get(&saved.feed);
        let there = held.is_some_and(|held| {
            let place = usize::try_from(saved.index).unwrap();
            held.digests.get(place) == Some(&saved.digest) && held.in_full[place] && held.agrees(head.size, &head.root)
        });
        there.then_some(()).ok_or_else(|| {
            let size = held.map_or(0, Held::size);
            format!("a receipt for {} {} of size {} was released, it holds {size}", saved.feed, saved.index, head.size)
        })
    }

    /// Checks that an offset delivered to a subscriber still has the same entry.
    pub(crate) fn check_offset(&self, offset: u64, feed: &str, index: u64) -> Result<(), String> {
        match self.by_offset.get(&offset) {
            Some((held, at)) if held == feed && *at == index => Ok(()),
            other => Err(format!("offset {offset} was {feed} {index}, it is {other:?}")),
        }
    }
}

/// Reads size and root from the high-water mark beside the keys.
fn high_water_mark(path: &Path) -> Result<Option<(u64, Hash)>, String> {
    let Ok(text) = fs::read_to_string(path) else { return Ok(None) };
    let mut lines = text.lines().skip(2);
    let size = lines.next().and_then(|size| size.parse().ok());
    let root = lines.next().and_then(|root| hex::decode(root).ok()?.try_into().ok());
    match (size, root) {
        (Some(size), Some(root)) => Ok(Some((size, Hash(root)))),
        _ => Err(format!("its high-water mark is torn: {text:?}")),
    }
}
