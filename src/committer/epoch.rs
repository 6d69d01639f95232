//! Opens the next epoch of the node's own feed after the current one needs recovery.
//!
//! The order of writes: first the new epoch's key, beside the old one; then its first checkpoint
//! and the `feed-closed` entry in the store, synced; last the high-water mark, by a rename. Until
//! the rename the node is in the old epoch, which needs recovery. Running it again finds the entry
//! and continues from there. So a power cut at any point leaves the node in the old epoch, needing
//! recovery, or publishing in the new one, never both.
//!
//! In scope: the order of writes. Out of scope: fetching what peers hold (`exchange`), and when to
//! open the epoch (`app::recover`).

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use barid_core::bulletin::Invalid;
use barid_core::feed::checkpoint::{Checkpoint, sign};
use barid_core::feed::note::SigningKey;
use barid_core::feed::tree::CompactRange;
use barid_core::ids::FeedId;
use barid_core::roster::{Role, Roster};

use super::high_water_mark::{
    HighWaterMark, HighWaterMarkError, HighWaterMarkFile, clear_needs_recovery, read_needs_recovery,
};
use super::{checkpoint_of, feed_closed_bulletin, now};
use crate::store::{Append, Commit, CommitError, Content, NewEntry, Store};

/// The epoch to open.
pub struct NextEpoch {
    /// Its feed.
    pub feed: FeedId,
    /// All keys that the roster lists for the feed.
    pub keys: Vec<SigningKey>,
}

/// The result of opening an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedEpoch {
    /// The longest known tree of the previous epoch.
    pub closed: Checkpoint,
    /// The tree of the new feed, with its first entry.
    pub opened: Checkpoint,
}

/// Why an epoch was not opened. The node stays in the old epoch.
#[derive(Debug, thiserror::Error)]
pub enum OpenEpochError {
    /// The key belongs to another feed, or to an earlier epoch.
    #[error(
        "the key is of {found}; a key of {member} for an epoch after {after} is required",
        member = .old.member,
        after = .old.epoch
    )]
    Epoch {
        /// The current epoch.
        old: FeedId,
        /// Name of the key.
        found: String,
    },
    /// The roster does not list the key, or lists more keys than were given.
    #[error("{0}")]
    Keys(String),
    /// The epoch was opened before, on another machine.
    #[error("{0} has been opened before: a key of a later epoch is required")]
    Used(FeedId),
    /// The feed does not need recovery.
    #[error("{0} does not need recovery; there is nothing to recover")]
    RecoveryNotNeeded(FeedId),
    /// A file could not be written.
    #[error("{path} cannot be written")]
    File {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The closing bulletin cannot be built.
    #[error("the closing entry of the old epoch cannot be built")]
    Closing(#[from] Invalid),
    /// Nothing was committed.
    #[error("the new epoch cannot be committed")]
    Commit(#[from] CommitError),
    /// The store could not be read.
    #[error("the store cannot be read")]
    Read(#[from] crate::store::ReadError),
    /// The high-water mark could not be read or replaced.
    #[error(transparent)]
    HighWaterMark(#[from] HighWaterMarkError),
}

/// Returns the epoch of the high-water mark; `None` if there is no mark.
///
/// # Errors
/// If the mark cannot be read.
pub fn read_high_water_epoch(high_water_mark: &Path) -> Result<Option<u32>, HighWaterMarkError> {
    Ok(HighWaterMarkFile::read(high_water_mark)?.map(|(_, high_water_mark)| high_water_mark.epoch))
}

/// Returns the size of the current epoch's feed by the high-water mark; `None` if there is no mark.
///
/// # Errors
/// If the mark cannot be read.
pub fn read_high_water_size(high_water_mark: &Path) -> Result<Option<u64>, HighWaterMarkError> {
    Ok(HighWaterMarkFile::read(high_water_mark)?.map(|(_, high_water_mark)| high_water_mark.size))
}

/// Returns the path of a feed key in the key folder: `feed-<epoch>.key` if it exists, else
/// `feed.key`. The second key is `feed-<epoch>-ml-dsa-44.key` or `feed-ml-dsa-44.key`.
#[must_use]
pub fn key_path(keys: &Path, epoch: u32, post_quantum: bool) -> PathBuf {
    let suffix = if post_quantum { "-ml-dsa-44" } else { "" };
    let of_epoch = keys.join(format!("feed-{epoch}{suffix}.key"));
    if of_epoch.exists() { of_epoch } else { keys.join(format!("feed{suffix}.key")) }
}

impl NextEpoch {
    /// Returns the epoch that these keys belong to. All keys that `roster` lists for it must be
    /// given.
    ///
    /// # Errors
    /// [`OpenEpochError::Epoch`], [`OpenEpochError::Keys`].
    pub fn of(keys: Vec<SigningKey>, old: &FeedId, roster: &Roster) -> Result<Self, OpenEpochError> {
        let wrong = |found: &str| OpenEpochError::Epoch { old: old.clone(), found: found.to_owned() };
        let Some(name) = keys.first().map(|key| key.name().to_owned()) else {
            return Err(OpenEpochError::Keys("no key was given".into()));
        };
        let feed: FeedId = name.parse().map_err(|_| wrong(&name))?;
        if feed.member != old.member || feed.exchange != old.exchange || feed.epoch <= old.epoch {
            return Err(wrong(&name));
        }
        let listed = roster.feed_keys(&feed);
        if listed.is_empty() {
            let text = format!("roster version {} lists no key of {feed}", roster.version());
            return Err(OpenEpochError::Keys(text));
        }
        for key in &keys {
            if !listed.contains(key.verifier()) {
                let text = format!("roster version {} does not list {}", roster.version(), key.verifier());
                return Err(OpenEpochError::Keys(text));
            }
        }
        for key in &listed {
            if !keys.iter().any(|given| given.verifier() == key) {
                return Err(OpenEpochError::Keys(format!("the roster also lists {key}: all keys of an epoch sign")));
            }
        }
        let now = i64::try_from(now().0).unwrap_or(i64::MAX);
        let ended = |key: &&barid_core::roster::MemberKey| key.until.is_some_and(|until| until < now);
        if let Some(key) = roster.keys(&feed.member, Role::Feed(feed.epoch)).find(ended) {
            return Err(OpenEpochError::Keys(format!("{} was retired or stolen", key.key)));
        }
        Ok(Self { feed, keys })
    }
}

/// Opens the next epoch after `old`, which must need recovery. `high_water_mark` is in the key
/// folder. Nothing else may commit to the store meanwhile. It can be run again after a power cut
/// and continues.
///
/// # Errors
/// See [`OpenEpochError`].
pub fn open_epoch(
    store: &Arc<dyn Store>,
    roster: &Roster,
    old: &FeedId,
    next: &NextEpoch,
    high_water_mark: &Path,
) -> Result<OpenedEpoch, OpenEpochError> {
    if !needs_recovery(high_water_mark, old.epoch)? {
        return Err(OpenEpochError::RecoveryNotNeeded(old.clone()));
    }
    let later = |feed: &FeedId| feed.member == old.member && feed.epoch >= next.feed.epoch;
    if let Some(other) = store.feeds().into_iter().find(|state| later(&state.feed) && state.feed != next.feed) {
        return Err(OpenEpochError::Used(other.feed));
    }
    let compact_range = store.feed(old).map(|state| state.compact_range).unwrap_or_default();
    let closed = checkpoint_of(old, &compact_range);

    let folder = high_water_mark.parent().unwrap_or(Path::new("."));
    let held = store.feed(&next.feed).map(|state| state.compact_range);
    for key in &next.keys {
        let suffix = if key.algorithm() == barid_core::feed::note::Algorithm::Ed25519 { "" } else { "-ml-dsa-44" };
        let path = folder.join(format!("feed-{}{suffix}.key", next.feed.epoch));
        // The key is written before anything is signed with it: a feed held without its key was
        // opened on another machine.
        if held.is_some() && !path.exists() {
            return Err(OpenEpochError::Used(next.feed.clone()));
        }
        write_key(&path, key)?;
    }

    let begun = match &held {
        None => {
            commit(store, next, &CompactRange::new(), Vec::new())?;
            CompactRange::new()
        }
        Some(held) => held.clone(),
    };
    // The entry may be present from before a power cut. Then it is the only one, and this store
    // made it.
    let opened = if begun.size() == 0 {
        let bulletin = feed_closed_bulletin(&closed, roster)?;
        let mut compact_range = begun;
        compact_range.append(&bulletin.digest);
        let content = Content::Disclosed { envelope: bulletin.envelope, header: Some(Arc::new(bulletin.proto_header)) };
        commit(store, next, &compact_range, vec![NewEntry { digest: bulletin.digest, content }])?;
        compact_range
    } else {
        begun
    };
    if opened.size() != 1 {
        return Err(OpenEpochError::Used(next.feed.clone()));
    }
    HighWaterMarkFile::replace(
        high_water_mark,
        &HighWaterMark { epoch: next.feed.epoch, size: opened.size(), root: opened.root() },
    )?;
    clear_needs_recovery(high_water_mark, next.feed.epoch);
    Ok(OpenedEpoch { closed, opened: checkpoint_of(&next.feed, &opened) })
}

/// Whether an epoch needs recovery, by the files beside the keys. `high_water_mark` is the path of
/// the mark.
///
/// # Errors
/// If they cannot be read.
pub fn needs_recovery(high_water_mark: &Path, epoch: u32) -> Result<bool, HighWaterMarkError> {
    Ok(read_needs_recovery(high_water_mark, epoch)?.is_some()
        || HighWaterMarkFile::read(high_water_mark)?.is_none_or(|(_, high_water_mark)| high_water_mark.epoch != epoch))
}

fn commit(
    store: &Arc<dyn Store>,
    next: &NextEpoch,
    compact_range: &CompactRange,
    entries: Vec<NewEntry>,
) -> Result<(), OpenEpochError> {
    let signed = sign(&checkpoint_of(&next.feed, compact_range), &next.keys)
        .map_err(|error| OpenEpochError::Keys(error.to_string()))?;
    let append = Append {
        feed: next.feed.clone(),
        first: compact_range.size() - entries.len() as u64,
        entries,
        checkpoint: signed.note,
        checkpoint_size: compact_range.size(),
        consistency_proof: Vec::new(),
    };
    let commit = Commit { appends: vec![append], time_unix_ms: now().1, ..Commit::default() };
    store.commit(commit, store.seq())?;
    Ok(())
}

/// Writes a key into the key folder, readable by its owner only, and syncs it.
fn write_key(path: &Path, key: &SigningKey) -> Result<(), OpenEpochError> {
    let text = key.to_text();
    if std::fs::read_to_string(path).is_ok_and(|held| held.trim_end() == text.trim_end()) {
        return Ok(());
    }
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        path.parent().map_or(Ok(()), |folder| File::open(folder).and_then(|folder| folder.sync_all()))
    };
    write().map_err(|source| OpenEpochError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use barid_core::feed::note::{Algorithm, Note};
    use barid_core::roster::RosterChain;

    use super::*;
    use crate::committer::high_water_mark::write_needs_recovery;
    use crate::store::memory::MemoryStore;

    fn key(epoch: u32) -> SigningKey {
        let seed = [u8::try_from(epoch).unwrap(); 32];
        SigningKey::from_seed(&format!("ma.rabat.example/feed/{epoch}"), Algorithm::Ed25519, seed).unwrap()
    }

    fn roster() -> Roster {
        let governor = SigningKey::from_seed("governors.example/one", Algorithm::Ed25519, [99; 32]).unwrap();
        let keys: String = (1..4)
            .map(|epoch| format!("{{ role = \"feed\", epoch = {epoch}, key = \"{}\" }},", key(epoch).verifier()))
            .collect();
        let other = |role: &str, algorithm| {
            let key = SigningKey::from_seed(&format!("ma.rabat.example/{role}"), algorithm, [88; 32]).unwrap();
            format!("{{ role = \"{role}\", key = \"{}\" }},", key.verifier())
        };
        let keys = keys + &other("mirror", Algorithm::CosignatureEd25519);
        let custody = SigningKey::from_seed("ma.rabat.example/custody", Algorithm::Ed25519, [87; 32]).unwrap();
        let keys = keys + &format!("{{ role = \"custody\", key = \"{}\" }}", custody.verifier());
        let text = format!(
            "format = 1\nexchange = \"rabat.example\"\nversion = 1\nissued = 2025-01-01T00:00:00Z\n\
             review_by = 2030-01-01T00:00:00Z\nquorum = 1\nworking_groups = [\"customs\"]\n\
             [governors]\nthreshold = 1\nkeys = [\"{}\"]\n\
             [[members]]\ncode = \"ma\"\nkind = \"full\"\nnames = {{ ar = \"x\", fr = \"x\", en = \"x\" }}\n\
             endpoints = [\"ma.example:4443\"]\ntrust_domain = \"ma.rabat.example\"\nca_certificates = [\"x\"]\n\
             working_groups = [\"customs\"]\nkeys = [{keys}]\n",
            governor.verifier()
        );
        RosterChain::start(&Note::sign(&text, &governor).unwrap().to_bytes()).unwrap().newest().clone()
    }

    struct World {
        store: Arc<dyn Store>,
        folder: tempfile::TempDir,
        old: FeedId,
        roster: Roster,
    }

    impl World {
        fn needing_recovery() -> Self {
            let world = Self {
                store: Arc::new(MemoryStore::new()),
                folder: tempfile::tempdir().unwrap(),
                old: "ma.rabat.example/feed/1".parse().unwrap(),
                roster: roster(),
            };
            HighWaterMarkFile::create(
                &world.high_water_mark(),
                &HighWaterMark { epoch: 1, size: 9, root: CompactRange::new().root() },
            )
            .unwrap();
            write_needs_recovery(&world.high_water_mark(), 1, "the high-water mark has 9 entries").unwrap();
            world
        }

        fn high_water_mark(&self) -> PathBuf {
            self.folder.path().join("mark")
        }

        fn next(&self, epoch: u32) -> NextEpoch {
            NextEpoch::of(vec![key(epoch)], &self.old, &self.roster).unwrap()
        }

        fn open(&self, epoch: u32) -> Result<OpenedEpoch, OpenEpochError> {
            open_epoch(&self.store, &self.roster, &self.old, &self.next(epoch), &self.high_water_mark())
        }

        fn epoch(&self) -> Option<u32> {
            read_high_water_epoch(&self.high_water_mark()).unwrap()
        }
    }

    #[test]
    fn next_epoch_starts_with_the_feed_closed_entry() {
        let world = World::needing_recovery();
        let opened = world.open(2).unwrap();
        assert_eq!((world.epoch(), opened.opened.size, opened.closed.size), (Some(2), 1, 0));
        let entry = world.store.entries(&opened.opened.feed, 0, 1, usize::MAX).unwrap().remove(0);
        let Content::Disclosed { header: Some(header), .. } = entry.content else { panic!("held in full") };
        assert_eq!((header.kind.as_str(), header.topic.as_str()), ("feed-closed", "customs.feeds"));
        assert_eq!(key_path(world.folder.path(), 2, false), world.folder.path().join("feed-2.key"));
        assert_eq!(read_needs_recovery(&world.high_water_mark(), 2).unwrap(), None);
    }

    #[test]
    fn open_epoch_resumes_with_the_same_entry_after_a_power_cut() {
        // What was written before the cut: the key; the first checkpoint; the entry.
        for written in 0..3 {
            let world = World::needing_recovery();
            let next = world.next(2);
            write_key(&world.folder.path().join("feed-2.key"), &next.keys[0]).unwrap();
            let mut first = None;
            if written > 0 {
                commit(&world.store, &next, &CompactRange::new(), Vec::new()).unwrap();
            }
            if written > 1 {
                let bulletin =
                    feed_closed_bulletin(&checkpoint_of(&world.old, &CompactRange::new()), &world.roster).unwrap();
                let mut compact_range = CompactRange::new();
                compact_range.append(&bulletin.digest);
                let content =
                    Content::Disclosed { envelope: bulletin.envelope, header: Some(Arc::new(bulletin.proto_header)) };
                commit(&world.store, &next, &compact_range, vec![NewEntry { digest: bulletin.digest, content }])
                    .unwrap();
                first = Some(compact_range.root());
            }
            assert_eq!(world.epoch(), Some(1), "it still needs recovery");
            let opened = world.open(2).unwrap();
            assert_eq!((world.epoch(), opened.opened.size), (Some(2), 1));
            assert!(first.is_none_or(|root| root == opened.opened.root), "one fork");
        }
    }

    #[test]
    fn epoch_opened_elsewhere_is_rejected() {
        let world = World::needing_recovery();
        // Another machine opened it and this one received it from a peer: its key is not here.
        commit(&world.store, &world.next(2), &CompactRange::new(), Vec::new()).unwrap();
        assert!(matches!(world.open(2), Err(OpenEpochError::Used(_))));
        let opened = world.open(3).unwrap();
        assert_eq!((world.epoch(), opened.opened.feed.epoch), (Some(3), 3));
        let old = key(1);
        assert!(matches!(NextEpoch::of(vec![old], &world.old, &world.roster), Err(OpenEpochError::Epoch { .. })));
        let stranger = SigningKey::from_seed("ma.rabat.example/feed/2", Algorithm::Ed25519, [77; 32]).unwrap();
        let result = NextEpoch::of(vec![stranger], &world.old, &world.roster);
        assert!(matches!(result, Err(OpenEpochError::Keys(_))));
    }

    #[test]
    fn epoch_that_needs_no_recovery_is_not_closed() {
        let world = World::needing_recovery();
        std::fs::remove_file(world.folder.path().join("needs-recovery")).unwrap();
        assert!(matches!(world.open(2), Err(OpenEpochError::RecoveryNotNeeded(_))));
        assert_eq!(world.epoch(), Some(1));
    }
}
