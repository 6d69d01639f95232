//! Golden test: the data folder `tests/golden/data-1` of the first version, which every later
//! version must open.
//!
//! The folder belongs to Morocco's node in the fictional exchange of the other golden files. It
//! contains its own feed with a bulletin of every kind, a part of Libya's feed with entries in full
//! and as digests, attestations in both directions, rosters, a revocation list and a cursor.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use barid_core::bulletin::{BulletinId, DraftDefaults, ValidBulletin, kinds, prepare};
use barid_core::envelope;
use barid_core::feed::checkpoint::{Checkpoint, SignedCheckpoint, sign};
use barid_core::feed::cosignature::{cosign, verify_cosigned};
use barid_core::feed::custody::CustodyNote;
use barid_core::feed::note::{Algorithm, Note, SigningKey};
use barid_core::feed::tree::{MemoryTree, consistency_proof, root_at, verify_consistency};
use barid_core::ids::{Digest, FeedId, Undisclosed};
use barid_core::roster::RosterChain;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::disk::{DiskOptions, DiskStore};
use super::{
    Append, Commit, Content, Cosigned, CrlRecord, CursorRecord, CustodyRecord, FeedTree, NewEntry, OpenError,
    RosterRecord, Store,
};

const EXCHANGE: &str = "rabat.example";
/// 2025-11-23T19:44:04.250Z.
const NOW_MS: u64 = 1_763_927_044_250;
const TIME: u64 = 1_763_927_050;
const CURSOR: &str = "focal-point/situation-room/exercise";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn options() -> DiskOptions {
    let feed = feed("ma");
    DiskOptions { reserve_bytes: 0, index_cache_bytes: 4 << 20, ..DiskOptions::new(feed.member, feed.exchange) }
}

fn feed(code: &str) -> FeedId {
    FeedId::new(code.parse().unwrap(), EXCHANGE.parse().unwrap(), 1)
}

/// Returns a key as the golden rosters list it, such as `ma/mirror`.
fn key(place: &str, algorithm: Algorithm) -> SigningKey {
    let (member, role) = place.split_once('/').unwrap();
    let name = format!("{member}.{EXCHANGE}/{role}");
    let seed = Sha256::new().chain_update(&name).chain_update([algorithm.number(), 0]).finalize();
    SigningKey::from_seed(&name, algorithm, seed.into()).unwrap()
}

fn rosters() -> Vec<RosterRecord> {
    let read = |version| {
        let note = fs::read(folder().join(format!("roster-{version}.note"))).unwrap();
        RosterRecord { version, note: note.into() }
    };
    vec![read(1), read(2)]
}

fn crl() -> CrlRecord {
    CrlRecord { authority: "ma.rabat.example".into(), der: "exercise list".into() }
}

/// Returns the `nth` sample bulletin of a kind, by member `code`.
fn bulletin(code: &str, kind: &str, nth: u64) -> ValidBulletin {
    let mut draft = kinds::find(kind).unwrap().sample().unwrap();
    for reference in &mut draft.header.as_mut().unwrap().references {
        code.clone_into(&mut reference.member);
    }
    let defaults = DraftDefaults {
        member: code.parse().unwrap(),
        issuer: "exercise".to_owned(),
        id: BulletinId::new(NOW_MS + nth, &[7; 10]),
        sent_at_unix_ms: NOW_MS + nth,
        roster_version: 1,
    };
    prepare(&draft, &defaults, [9; 16]).unwrap()
}

const OWN: [&str; 6] =
    ["situation-report", "travel-document-alert", "seizure-report", "person-notice", "acknowledgement", "cancellation"];

fn disclosed(bulletin: &ValidBulletin) -> NewEntry {
    let content = Content::Disclosed {
        envelope: bulletin.envelope.clone(),
        header: Some(Arc::new(bulletin.proto_header.clone())),
    };
    NewEntry { digest: bulletin.digest, content }
}

fn own_entries() -> Vec<NewEntry> {
    OWN.iter().zip(0..).map(|(kind, nth)| disclosed(&bulletin("ma", kind, nth))).collect()
}

/// Returns eight entries of Libya's feed, of which the folder has the first six.
fn libyan_entries() -> Vec<NewEntry> {
    let undisclosed =
        |n: u8, reason| NewEntry { digest: Digest(Sha256::digest([n]).into()), content: Content::Undisclosed(reason) };
    vec![
        disclosed(&bulletin("ly", "situation-report", 0)),
        undisclosed(1, Undisclosed::Withheld),
        undisclosed(2, Undisclosed::Withheld),
        undisclosed(3, Undisclosed::Unfollowed),
        disclosed(&bulletin("ly", "seizure-report", 1)),
        undisclosed(5, Undisclosed::Excluded),
        undisclosed(6, Undisclosed::Withheld),
        undisclosed(7, Undisclosed::Withheld),
    ]
}

fn tree(entries: &[NewEntry]) -> MemoryTree {
    let mut tree = MemoryTree::new();
    entries.iter().for_each(|entry| tree.append(&entry.digest));
    tree
}

fn checkpoint(code: &str, tree: &MemoryTree, size: u64) -> SignedCheckpoint {
    let checkpoint = Checkpoint { feed: feed(code), size, root: root_at(tree, size).unwrap() };
    sign(&checkpoint, &[key(&format!("{code}/feed/1"), Algorithm::Ed25519)]).unwrap()
}

fn append(first: usize, entries: &[NewEntry], signed: &SignedCheckpoint, tree: &MemoryTree) -> Append {
    let end = (first + entries.len()) as u64;
    Append {
        feed: signed.checkpoint.feed.clone(),
        first: first as u64,
        entries: entries.to_vec(),
        checkpoint: signed.note.clone(),
        checkpoint_size: signed.checkpoint.size,
        consistency_proof: consistency_proof(tree, end, signed.checkpoint.size).unwrap(),
    }
}

fn cosigned(signed: &SignedCheckpoint, by: &str, time: u64) -> Cosigned {
    let note = cosign(signed, &key(&format!("{by}/mirror"), Algorithm::CosignatureEd25519), time).unwrap();
    Cosigned {
        feed: signed.checkpoint.feed.clone(),
        cosigner: by.parse().unwrap(),
        size: signed.checkpoint.size,
        time,
        note,
    }
}

fn custody(signed: &SignedCheckpoint, by: &str, not_held: &[(std::ops::Range<u64>, Undisclosed)]) -> CustodyRecord {
    let range = 0..signed.checkpoint.size;
    let note = CustodyNote::new(&signed.checkpoint, TIME, range.clone(), not_held.iter().cloned()).unwrap();
    let note = note.sign(&key(&format!("{by}/custody"), Algorithm::Ed25519)).unwrap();
    let not_held = not_held.iter().map(|(range, _)| range.clone()).collect();
    CustodyRecord {
        feed: signed.checkpoint.feed.clone(),
        holder: by.parse().unwrap(),
        range,
        not_held,
        time: TIME,
        note,
    }
}

/// Returns the commits in the folder.
fn commits() -> Vec<Commit> {
    let (own, libyan) = (own_entries(), libyan_entries());
    let (own_tree, libyan_tree) = (tree(&own), tree(&libyan));
    let (empty, all) = (checkpoint("ma", &own_tree, 0), checkpoint("ma", &own_tree, 6));
    let (four, eight) = (checkpoint("ly", &libyan_tree, 4), checkpoint("ly", &libyan_tree, 8));
    let not_held = [(1..3, Undisclosed::Withheld), (3..4, Undisclosed::Unfollowed)];
    let mut commits = vec![
        Commit { appends: vec![append(0, &[], &empty, &own_tree)], ..Commit::default() },
        Commit { rosters: rosters(), crls: vec![crl()], ..Commit::default() },
        Commit { appends: vec![append(0, &own, &all, &own_tree)], ..Commit::default() },
        Commit {
            appends: vec![append(0, &libyan[..4], &four, &libyan_tree)],
            cosigned: vec![cosigned(&four, "ma", TIME)],
            custody: vec![custody(&four, "ma", &not_held)],
            ..Commit::default()
        },
        Commit {
            cosigned: vec![cosigned(&all, "tn", TIME)],
            custody: vec![custody(&all, "ly", &[(3..4, Undisclosed::Withheld)])],
            cursors: vec![CursorRecord { subscription: CURSOR.to_owned(), offset: 7, ..CursorRecord::default() }],
            ..Commit::default()
        },
        Commit { appends: vec![append(4, &libyan[4..6], &eight, &libyan_tree)], ..Commit::default() },
    ];
    commits.iter_mut().for_each(|commit| commit.time_unix_ms = NOW_MS);
    commits
}

/// Opens a store. A process started concurrently by another test inherits this process's open
/// files, including the lock, until it executes another program; so this waits for the lock.
fn open(dir: &Path) -> DiskStore {
    let begun = Instant::now();
    loop {
        match DiskStore::open(dir, &options()) {
            Err(OpenError::Locked(_)) if begun.elapsed() < Duration::from_secs(10) => std::thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

fn assert_complete(store: &DiskStore) {
    assert_eq!((store.seq(), store.end_offset()), (6, 9));
    let held = store.rosters().unwrap();
    assert_eq!(held, rosters());
    let mut rosters = RosterChain::start(&held[0].note).unwrap();
    assert!(rosters.extend(&held[1].note).unwrap());
    let roster = rosters.newest();

    // Both feeds: the right edge, the checkpoint that covers it, every entry, every inner node.
    for (code, entries, size, disclosed) in [("ma", own_entries(), 6, 6), ("ly", libyan_entries(), 6, 2)] {
        let (feed, tree) = (feed(code), tree(&entries));
        let state = store.feed(&feed).unwrap();
        let root = root_at(&tree, size).unwrap();
        assert_eq!((state.compact_range.size(), state.compact_range.root(), state.disclosed), (size, root, disclosed));
        let signed = SignedCheckpoint::verify(&state.checkpoint, &roster.feed_keys(&feed)).unwrap().checkpoint;
        assert_eq!(signed.size, state.checkpoint_size);
        verify_consistency(size, &root, signed.size, &signed.root, &state.consistency_proof).unwrap();
        assert_eq!(root_at(&FeedTree { store, feed: &feed }, 5).unwrap(), root_at(&tree, 5).unwrap());
        let found = store.entries(&feed, 0, 100, usize::MAX).unwrap();
        assert_eq!(found.len() as u64, size);
        for (found, expected) in found.iter().zip(&entries) {
            assert_eq!(found.digest, expected.digest);
            match (&found.content, &expected.content) {
                (Content::Disclosed { envelope, header }, Content::Disclosed { envelope: written, .. }) => {
                    assert_eq!((envelope, envelope::digest(envelope)), (written, found.digest));
                    let header = header.as_ref().unwrap();
                    let location = store.find(&feed.member, header.id.parse().unwrap()).unwrap().unwrap();
                    assert_eq!((location.feed, location.index), (feed.clone(), found.index));
                }
                (Content::Undisclosed(reason), Content::Undisclosed(written)) => assert_eq!(reason, written),
                _ => panic!("{feed} {}", found.index),
            }
        }
    }
    let not_held = [(1..3, Undisclosed::Withheld), (3..4, Undisclosed::Unfollowed), (5..6, Undisclosed::Excluded)];
    assert_eq!(store.undisclosed_ranges(&feed("ly"), 10).unwrap(), not_held);

    // Attestations of others about the own feed, and of this node about theirs.
    let (own, ly) = (feed("ma"), feed("ly"));
    for (feed, by) in [(&own, "tn"), (&ly, "ma")] {
        let notes = store.cosigned_newest(feed).unwrap();
        let lines = Note::parse(&notes[0].note).unwrap().signatures;
        let mirrors = roster.mirror_keys(&by.parse().unwrap(), &lines);
        let (_, time) = verify_cosigned(&notes[0].note, &roster.feed_keys(feed), &mirrors).unwrap();
        assert_eq!((notes.len(), notes[0].cosigner.as_str(), time), (1, by, TIME));
    }
    let holders = |index| store.custody_covering(&own, index).unwrap();
    assert_eq!((holders(2).len(), holders(3).len()), (1, 0));
    let note = CustodyNote::verify(&holders(2)[0].note, &roster.custody_keys(&ly.member, TIME)).unwrap();
    assert!(note.holds(2) && !note.holds(3));

    let held = store.subscription(CURSOR).unwrap();
    assert_eq!((held.offset, held.filter, held.epoch, held.used_unix_ms), (7, None, 0, NOW_MS));
    assert_eq!(store.crls().unwrap(), [crl()]);
    let entries = store.entries_from(7, 10, usize::MAX).unwrap();
    let seen: Vec<_> = entries.iter().map(|entry| (entry.feed.member.as_str(), entry.index, entry.offset)).collect();
    assert_eq!(seen, [("ly", 0, Some(7)), ("ly", 4, Some(8))]);
    let (newest, _) = store.history(u64::MAX, 10, 100, &|columns| columns.kind == "person-notice").unwrap();
    assert_eq!(newest.iter().map(|entry| entry.index).collect::<Vec<_>>(), [3]);
}

#[test]
fn version_1_data_folder_opens() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("log")).unwrap();
    let name = "log/0000000001.log";
    fs::copy(folder().join("data-1").join(name), dir.path().join(name)).unwrap();
    assert_complete(&open(dir.path()));
    // With the index database just created, and once more without it.
    assert_complete(&open(dir.path()));
    fs::remove_dir_all(dir.path().join("db")).unwrap();
    let store = open(dir.path());
    assert_complete(&store);
    // The store accepts further commits.
    let libyan = libyan_entries();
    let tree = tree(&libyan);
    let rest = append(6, &libyan[6..], &checkpoint("ly", &tree, 8), &tree);
    store.commit(Commit { appends: vec![rest], ..Commit::default() }, 6).unwrap();
    drop(store);
    assert_eq!(DiskStore::verify(dir.path(), &options()).unwrap(), 7);
}

#[test]
fn current_version_writes_identical_records() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for (commit, seq) in commits().into_iter().zip(0..) {
        store.commit(commit, seq).unwrap();
    }
    assert_complete(&store);
    drop(store);
    let mut written = fs::read(dir.path().join("log/0000000001.log")).unwrap();
    written.truncate(written.iter().rposition(|byte| *byte != 0).unwrap() + 1);
    written.resize(written.len().next_multiple_of(8), 0);
    let path = folder().join("data-1/log/0000000001.log");
    if std::env::var_os("BARID_WRITE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &written).unwrap();
    }
    // Every log has its own salt, which the checksums of header block and frames cover; heads and
    // envelopes must be the same.
    let golden = Bytes::from(fs::read(&path).unwrap());
    let records = |log: &[u8]| {
        let mut records = Vec::new();
        let mut at = 4_096;
        while let Some(frame) = log.get(at..at + 24) {
            let head = u32::from_le_bytes(frame[4..8].try_into().unwrap()) as usize;
            let body = usize::try_from(u64::from_le_bytes(frame[8..16].try_into().unwrap())).unwrap();
            records.push(log[at + 24..at + 24 + head + body].to_vec());
            at = (at + 24 + head + body).next_multiple_of(8);
        }
        records
    };
    assert_eq!(records(&written).len(), 6);
    assert!(records(&written) == records(&golden), "commit records are written otherwise than they were");
}
