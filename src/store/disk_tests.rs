//! Tests of the disk store: crashes, damage, a lost index database, a full disk, a foreign owner.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use barid_core::ids::Undisclosed;
use barid_core::quota::Tier;
use uuid::Uuid;

use super::conformance::{
    self, Random, append, assert_same, commit_entries, cosign, custody_of, disclosed, feed, one, with_id, withheld,
};
use super::disk::{DiskOptions, DiskStore};
use super::memory::MemoryStore;
use super::{
    Commit, CommitError, Content, CrlRecord, CursorRecord, NewEntry, OpenError, ReadError, RosterRecord, Store,
};

fn options() -> DiskOptions {
    let feed = feed("ma", 1);
    DiskOptions {
        segment_bytes_max: 256 << 10,
        reserve_bytes: 0,
        index_cache_bytes: 4 << 20,
        ..DiskOptions::new(feed.member, feed.exchange)
    }
}

fn open(dir: &Path) -> DiskStore {
    DiskStore::open(dir, &options()).unwrap()
}

/// Fills a store and its model with the same `rounds` commits; returns the model.
fn populate(dir: &Path, rounds: usize) -> MemoryStore {
    let (store, model, mut random) = (open(dir), MemoryStore::new(), Random(9));
    for _ in 0..rounds {
        let commit = random.commit(&model);
        let seq = model.seq();
        store.commit(commit.clone(), seq).unwrap();
        model.commit(commit, seq).unwrap();
    }
    model
}

#[test]
fn disk_store_passes_conformance() {
    let dir = tempfile::tempdir().unwrap();
    conformance::run(&mut |number| Box::new(open(&dir.path().join(number.to_string()))), true);
}

#[test]
fn disk_store_without_tail_cache_passes_conformance() {
    let dir = tempfile::tempdir().unwrap();
    let options = DiskOptions { tail_cache_bytes: 0, index_lag_bytes_max: 64 << 10, ..options() };
    let mut open = |number: u32| {
        Box::new(DiskStore::open(&dir.path().join(number.to_string()), &options).unwrap()) as Box<dyn Store>
    };
    conformance::run(&mut open, true);
}

#[test]
fn deleted_index_db_is_rebuilt_from_log() {
    let dir = tempfile::tempdir().unwrap();
    let model = populate(dir.path(), 30);
    fs::remove_dir_all(dir.path().join("db")).unwrap();
    assert_same(&open(dir.path()), &model, &mut Random(2));
    // Open when the machine stopped: any part of sled's writes may be lost.
    fs::write(dir.path().join("db.open"), "another run of the machine").unwrap();
    assert_same(&open(dir.path()), &model, &mut Random(3));
    for file in fs::read_dir(dir.path().join("db")).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            fs::write(path, "not a database").unwrap();
        }
    }
    assert_same(&open(dir.path()), &model, &mut Random(4));
}

#[test]
fn stale_index_db_catches_up_and_newer_one_exposes_truncated_log() {
    let dir = tempfile::tempdir().unwrap();
    let (old, full) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    commit_entries(&open(dir.path()), 5);
    copy(&dir.path().join("db"), &old.path().join("db"));
    copy(&dir.path().join("log"), &old.path().join("log"));
    commit_entries(&open(dir.path()), 5);
    copy(&dir.path().join("db"), &full.path().join("db"));
    fs::remove_dir_all(dir.path().join("db")).unwrap();
    copy(&old.path().join("db"), &dir.path().join("db"));
    assert_eq!(open(dir.path()).seq(), 10);
    fs::remove_dir_all(old.path().join("db")).unwrap();
    copy(&full.path().join("db"), &old.path().join("db"));
    assert!(matches!(DiskStore::open(old.path(), &options()), Err(OpenError::Damaged(_))));
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    assert!(matches!(DiskStore::open(dir.path(), &options()), Err(OpenError::Damaged(_))));
}

/// After an upgrade the index database has the format of the previous version.
#[test]
fn index_db_of_other_version_is_rebuilt_from_log() {
    let dir = tempfile::tempdir().unwrap();
    let model = populate(dir.path(), 30);
    for changed in ["m", "f", ""] {
        let config = sled::Config::new().path(dir.path().join("db")).segment_size(super::index_db::SEGMENT_BYTES);
        let db = config.open().unwrap();
        for pair in db.scan_prefix(changed) {
            let (key, value) = pair.unwrap();
            let mut older = value.to_vec();
            older[0] = super::keys::VALUE_VERSION - 1;
            db.insert(key, older).unwrap();
        }
        drop(db);
        assert_same(&open(dir.path()), &model, &mut Random(5));
    }
}

/// An import where all ids have the same millisecond. Each is found as quickly as any other, also
/// after the store was reopened, and none is stored twice.
#[test]
fn ids_of_one_timestamp_are_found_in_few_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let (feed, model, mut random) = (feed("ma", 1), MemoryStore::new(), Random(12));
    let mut store = open(dir.path());
    for round in 0..4 {
        for number in 0..30 {
            let id = |random: &mut Random| Uuid::from_u128(0x0190 << 112 | u128::from(random.below(400)));
            let first = model.feed(&feed).map_or(0, |state| state.compact_range.size());
            let entries = (0..1 + number % 3).map(|_| with_id(&feed, id(&mut random))).collect();
            let (commit, seq) = (one(append(&feed, first, entries)), model.seq());
            store.commit(commit.clone(), seq).unwrap();
            model.commit(commit, seq).unwrap();
            // Each commit is applied to the index database on its own.
            store.apply_index();
        }
        assert_same(&store, &model, &mut Random(round));
        drop(store);
        store = open(dir.path());
        assert_same(&store, &model, &mut Random(round));
    }
    drop(store);
    let config = sled::Config::new().path(dir.path().join("db")).segment_size(super::index_db::SEGMENT_BYTES);
    let db = config.open().unwrap();
    let (blocks, overflow) = (db.scan_prefix("i").count(), db.scan_prefix("j").count());
    // A reopened store does not know the block counts of its buckets, and fills the bucket once
    // more.
    assert_eq!(blocks, 4 * super::index_db::ids::BLOCKS_MAX);
    assert!(overflow > 50, "{overflow}");
}

#[test]
fn store_opens_once_and_only_for_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!DiskStore::is_initialized(&dir.path().join("data")));
    let store = open(&dir.path().join("data"));
    commit_entries(&store, 1);
    assert!(DiskStore::is_initialized(&dir.path().join("data")));
    let mode = fs::metadata(dir.path().join("data")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "what it holds is for the node alone");
    drop(store);
    let store = open(dir.path());
    commit_entries(&store, 1);
    assert!(matches!(DiskStore::open(dir.path(), &options()), Err(OpenError::Locked(_))));
    drop(store);
    let other = DiskOptions { member: "tn".parse().unwrap(), ..options() };
    assert!(matches!(DiskStore::open(dir.path(), &other), Err(OpenError::Foreign { .. })));
    let elsewhere = DiskOptions { exchange: "another.example".parse().unwrap(), ..options() };
    assert!(matches!(DiskStore::open(dir.path(), &elsewhere), Err(OpenError::Foreign { .. })));
    let path = dir.path().join("log/0000000001.log");
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 9;
    fs::write(&path, bytes).unwrap();
    assert!(matches!(DiskStore::open(dir.path(), &options()), Err(OpenError::Newer { found: 9, known: 1 })));
}

#[test]
fn failed_fsync_stops_commits_until_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let (store, feed) = (open(dir.path()), feed("ma", 1));
    commit_entries(&store, 3);
    store.fail_next_sync();
    let next = one(append(&feed, 3, vec![disclosed(&feed, 4)]));
    assert!(matches!(store.commit(next.clone(), 3), Err(CommitError::Io(_))));
    assert_eq!((store.seq(), store.feed(&feed).unwrap().compact_range.size(), store.end_offset()), (3, 3, 4));
    assert!(matches!(store.commit(next, 3), Err(CommitError::Stopped(_))));
    assert_eq!(store.entries(&feed, 0, 10, 10_000).unwrap().len(), 3);
    drop(store);
    // A record written without a sync may count or not, but opening decides it for good.
    let seq = open(dir.path()).seq();
    assert!(seq == 3 || seq == 4);
    assert_eq!(open(dir.path()).seq(), seq);
}

#[test]
fn full_disk_rejects_commits_and_serves_reads() {
    let dir = tempfile::tempdir().unwrap();
    commit_entries(&open(dir.path()), 3);
    let store = DiskStore::open(dir.path(), &DiskOptions { reserve_bytes: u64::MAX / 2, ..options() }).unwrap();
    let feed = feed("ma", 1);
    let next = one(append(&feed, 3, vec![disclosed(&feed, 4)]));
    assert!(matches!(store.commit(next.clone(), 3), Err(CommitError::DiskFull { .. })));
    assert!(
        matches!(store.commit(next, 3), Err(CommitError::DiskFull { .. })),
        "it may succeed later: the store has not stopped"
    );
    assert_eq!(store.entries_from(0, 10, 10_000).unwrap().len(), 3);
}

#[test]
fn attestations_and_priority_entries_may_use_the_reserve() {
    let dir = tempfile::tempdir().unwrap();
    commit_entries(&open(dir.path()), 3);
    let space = rustix::fs::statvfs(dir.path()).unwrap();
    // Between the reserve and half of it, whatever else is written to the disk meanwhile.
    let reserve_bytes = space.f_bavail * space.f_frsize / 2 * 3;
    let store = DiskStore::open(dir.path(), &DiskOptions { reserve_bytes, ..options() }).unwrap();
    let feed = feed("ma", 1);
    let entries = one(append(&feed, 3, vec![disclosed(&feed, 4)]));
    assert!(matches!(store.commit(entries, 3), Err(CommitError::DiskFull { .. })));
    assert_eq!(store.check_capacity().unwrap().tier, Tier::Priority);
    let prioritized = |mut entry: NewEntry| {
        if let Content::Disclosed { header: Some(header), .. } = &mut entry.content {
            let header = Arc::make_mut(header);
            (header.urgency, header.status) = ("Immediate".into(), "Actual".into());
        }
        entry
    };
    store.commit(one(append(&feed, 3, vec![prioritized(disclosed(&feed, 4))])), 3).unwrap();
    let attestation = Commit { cosigned: vec![cosign(&feed, "tn", 3, 7)], ..Commit::default() };
    store.commit(attestation, 4).unwrap();
    assert_eq!(store.cosigned_newest(&feed).unwrap(), [cosign(&feed, "tn", 3, 7)]);
}

#[test]
fn failed_index_db_is_rebuilt_online() {
    let dir = tempfile::tempdir().unwrap();
    let options = DiskOptions { tail_cache_bytes: 0, ..options() };
    let (store, model, mut random) = (DiskStore::open(dir.path(), &options).unwrap(), MemoryStore::new(), Random(9));
    for round in 0..40 {
        let commit = random.commit(&model);
        let seq = model.seq();
        store.commit(commit.clone(), seq).unwrap();
        model.commit(commit, seq).unwrap();
        if round % 13 == 5 {
            store.fail_index_db();
        }
    }
    // Even an idle store without commits notices the damage.
    store.apply_index();
    store.fail_index_db();
    let started = std::time::Instant::now();
    while store.index_db_has_failed() {
        assert!(started.elapsed() < std::time::Duration::from_secs(30), "it is not rebuilt");
        std::thread::yield_now();
    }
    assert_same(&store, &model, &mut Random(2));
    drop(store);
    assert_same(&DiskStore::open(dir.path(), &options).unwrap(), &model, &mut Random(3));
}

#[test]
fn damaged_envelope_is_reported_on_read() {
    let dir = tempfile::tempdir().unwrap();
    let feed = feed("ma", 1);
    commit_entries(&open(dir.path()), 20);
    let path = dir.path().join("log/0000000001.log");
    let whole = fs::read(&path).unwrap();
    let mut bytes = whole.clone();
    let payload = bytes.windows(10).position(|window| window == [10; 10]).unwrap();
    bytes[payload] ^= 1;
    bytes[payload + 1] ^= 1;
    fs::write(&path, bytes).unwrap();
    let store = open(dir.path());
    assert!(
        store
            .entries(&feed, 9, 1, 1_000)
            .is_err_and(|error| error.to_string().contains("ma.exercise.example/feed/1 9"))
    );
    assert!(store.entries(&feed, 10, 1, 1_000).is_ok());
    assert!(
        store.damage().is_some_and(|damage| damage.to_string().contains("feed/1 9") && damage.code() == "log-damaged")
    );
    drop(store);
    assert!(
        matches!(DiskStore::verify(dir.path(), &options()), Err(OpenError::Damaged(what)) if what.starts_with("commit 10: "))
    );
    fs::write(&path, whole).unwrap();
    assert_eq!(DiskStore::verify(dir.path(), &options()).unwrap(), 20);
}

#[test]
fn bit_flip_is_corrected_on_read_and_on_open() {
    let dir = tempfile::tempdir().unwrap();
    let feed = feed("ma", 1);
    commit_entries(&open(dir.path()), 20);
    let path = dir.path().join("log/0000000001.log");
    let whole = fs::read(&path).unwrap();
    let flip = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        fs::write(&path, bytes).unwrap();
    };
    let payload = |number: u8| whole.windows(10).position(|window| window == [number; 10]).unwrap();
    flip(payload(10));
    let store = open(dir.path());
    assert_eq!(store.entries(&feed, 9, 1, 1_000).unwrap().len(), 1);
    assert_eq!((store.damage(), store.corrected_bits()), (None, 1));
    assert!(fs::read(&path).unwrap() == whole);
    drop(store);
    // In the first head; then in the content of the last entry, which could be torn if not for its
    // digest.
    for at in [4_096 + 40, payload(20)] {
        flip(at);
        fs::remove_dir_all(dir.path().join("db")).unwrap();
        let store = open(dir.path());
        assert_eq!((store.seq(), store.corrected_bits()), (20, 1));
        assert!(fs::read(&path).unwrap() == whole);
    }
}

#[test]
fn damaged_entries_are_reported_and_neighbours_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let feed = feed("ma", 1);
    let store = open(dir.path());
    let entries = |first: u64| (first..first + 4).map(|n| disclosed(&feed, n + 101)).collect();
    store.commit(one(append(&feed, 0, entries(0))), 0).unwrap();
    store.commit(one(append(&feed, 4, entries(4))), 1).unwrap();
    drop(store);
    let path = dir.path().join("log/0000000001.log");
    let mut log = fs::read(&path).unwrap();
    for number in [102_u8, 106, 107] {
        let at = log.windows(10).position(|window| window == [number; 10]).unwrap();
        log[at..at + 2].fill(0xee);
    }
    fs::write(&path, log).unwrap();
    let store = open(dir.path());
    let indexes = |read: Vec<super::Entry>| read.iter().map(|entry| entry.index).collect::<Vec<_>>();
    let named = |error| match error {
        ReadError::DamagedEntry(damaged) => (damaged.offset, damaged.entry.unwrap()),
        error => panic!("{error:?}"),
    };
    for (from, read) in [(0, vec![0]), (2, vec![2, 3, 4]), (7, vec![7])] {
        assert_eq!(indexes(store.entries(&feed, from, 9, 10_000).unwrap()), read);
        assert_eq!(indexes(store.entries_from(from + 1, 9, 10_000).unwrap()), read);
    }
    for index in [1, 5, 6] {
        let damaged = (index + 1, (feed.clone(), index, disclosed(&feed, index + 101).digest));
        assert_eq!(named(store.entries(&feed, index, 9, 10_000).unwrap_err()), damaged);
        assert_eq!(named(store.entries_from(index + 1, 9, 10_000).unwrap_err()), damaged);
    }
    // From the newest back: the page ends at the damaged entry.
    let (read, next) = store.history(u64::MAX, 9, 99, &|_| true).unwrap();
    assert_eq!((indexes(read), next), (vec![7], Some(8)));
    assert_eq!(named(store.history(8, 9, 99, &|_| true).unwrap_err()).0, 7);
    assert_eq!(named(store.history(7, 9, 99, &|_| true).unwrap_err()).0, 6);
    assert_eq!(indexes(store.history(6, 9, 99, &|_| true).unwrap().0), [4, 3, 2]);
    assert!(store.history(8, 9, 99, &|_| false).unwrap().0.is_empty(), "unrequested content is not read");
    assert!(store.damage().unwrap().to_string().contains("the envelope of ma.exercise.example/feed/1 1"));
}

#[test]
fn readers_see_commits_immediately_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = DiskStore::open(dir.path(), &DiskOptions { tail_cache_bytes: 40 << 10, ..options() }).unwrap();
    let (feed, commits) = (feed("ma", 1), 300);
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (store, feed) = (&store, &feed);
            scope.spawn(move || {
                let mut next = 1_u64;
                while next <= commits * 3 {
                    let end = store.end_offset();
                    // One thread reads by offset, one by index, and one by offsets further back.
                    let from = [next, next, next.saturating_sub(30).max(1)][reader];
                    let found = if reader == 1 {
                        store.entries(feed, from - 1, 50, 100_000).unwrap()
                    } else {
                        store.entries_from(from, 50, 100_000).unwrap()
                    };
                    assert!(from >= end || !found.is_empty(), "offset {from} of {end} is seen");
                    for (entry, expected) in found.iter().zip(from..) {
                        assert_eq!((entry.index + 1, entry.offset), (expected, Some(expected)));
                    }
                    next = found.last().map_or(next, |last| last.index + 2).max(next);
                    assert_eq!(
                        store.feed(feed).map_or(0, |state| state.compact_range.size()) % 3,
                        0,
                        "commits are visible as a whole"
                    );
                }
            });
        }
        for _ in 0..commits {
            let first = store.feed(&feed).map_or(0, |state| state.compact_range.size());
            let entries = (first..first + 3).map(|number| disclosed(&feed, number + 1)).collect();
            store.commit(one(append(&feed, first, entries)), store.seq()).unwrap();
        }
    });
}

const KILLED_DIR: &str = "BARID_TEST_KILLED_DIR";

/// The child process to kill: makes commits from the seed, and prints each commit once it is
/// confirmed.
#[test]
#[ignore = "runs as a child of the next test"]
fn commits_until_killed() {
    let Ok(dir) = std::env::var(KILLED_DIR) else { return };
    let (store, mut random) = (open(Path::new(&dir)), Random(11));
    let model = MemoryStore::new();
    for seq in 0..100_000 {
        let commit = random.commit(&model);
        model.commit(commit.clone(), seq).unwrap();
        if seq < store.seq() {
            continue;
        }
        store.commit(commit, seq).unwrap();
        writeln!(std::io::stderr(), "confirmed {}", seq + 1).unwrap();
    }
}

#[test]
fn confirmed_commits_survive_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let mut confirmed: u64 = 0;
    for round in 1..=4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::disk_tests::commits_until_killed", "--ignored", "--nocapture"])
            .env(KILLED_DIR, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let numbers = lines.by_ref().filter_map(|line| line.strip_prefix("confirmed ")?.parse().ok());
        confirmed = numbers.take_while(|number| *number <= 40 * round).last().unwrap_or(confirmed);
        child.kill().unwrap();
        child.wait().unwrap();
        let (store, model, mut random) = (open(dir.path()), MemoryStore::new(), Random(11));
        assert!(store.seq() >= confirmed && confirmed >= 40 * round, "{} of {confirmed}", store.seq());
        for seq in 0..store.seq() {
            let commit = random.commit(&model);
            model.commit(commit, seq).unwrap();
        }
        assert_same(&store, &model, &mut Random(round));
    }
}

/// The log as version 1 wrote it must stay readable.
#[test]
fn version_1_log_is_readable() {
    let dir = tempfile::tempdir().unwrap();
    copy(&golden(), &dir.path().join("log"));
    let (store, feed) = (open(dir.path()), feed("ma", 1));
    assert_eq!((store.seq(), store.end_offset()), (4, 5));
    let state = store.feed(&feed).unwrap();
    assert_eq!((state.compact_range.size(), state.disclosed, state.checkpoint_size), (5, 4, 5));
    assert_eq!(state.compact_range.root().to_string(), GOLDEN_ROOT);
    let entries = store.entries(&feed, 0, 10, 10_000).unwrap();
    assert_eq!(
        entries.iter().map(|entry| entry.offset).collect::<Vec<_>>(),
        [Some(1), Some(2), Some(3), None, Some(4)]
    );
    assert_eq!(store.undisclosed_ranges(&feed, 10).unwrap(), [(3..4, Undisclosed::Withheld)]);
    assert_eq!(store.cosigned_newest(&feed).unwrap(), [cosign(&feed, "tn", 3, 7)]);
    assert_eq!(store.custody_newest(&feed).unwrap(), [custody_of(&feed, "tn", 0..3, Some(1..2), 8)]);
    assert_eq!(store.subscription("focal-point/exercise/all").unwrap().offset, 2);
    assert_eq!(store.rosters().unwrap(), [RosterRecord { version: 1, note: "exercise roster".into() }]);
    assert_eq!(
        store.crls().unwrap(),
        [CrlRecord { authority: "ma.exercise.example".into(), der: "exercise list".into() }]
    );
}

const GOLDEN_ROOT: &str = "fcb1decb010a1297241b4d48c2713975b8c01684ce737f0e69b3ccba21571866";

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/store/log-1")
}

#[test]
#[ignore = "writes the golden log and prints its root; only for a new version of the format"]
fn write_golden() {
    let dir = tempfile::tempdir().unwrap();
    let (store, feed) = (open(dir.path()), feed("ma", 1));
    commit_entries(&store, 3);
    let commit = Commit {
        cosigned: vec![cosign(&feed, "tn", 3, 7)],
        custody: vec![custody_of(&feed, "tn", 0..3, Some(1..2), 8)],
        cursors: vec![CursorRecord {
            subscription: "focal-point/exercise/all".into(),
            offset: 2,
            ..CursorRecord::default()
        }],
        rosters: vec![RosterRecord { version: 1, note: "exercise roster".into() }],
        crls: vec![CrlRecord { authority: "ma.exercise.example".into(), der: "exercise list".into() }],
        time_unix_ms: 1_700_000_000_000,
        ..one(append(&feed, 3, vec![withheld(4), disclosed(&feed, 5)]))
    };
    store.commit(commit, 3).unwrap();
    println!("{}", store.feed(&feed).unwrap().compact_range.root());
    drop(store);
    let mut bytes = fs::read(dir.path().join("log/0000000001.log")).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    bytes.truncate(end.next_multiple_of(8));
    fs::create_dir_all(golden()).unwrap();
    fs::write(golden().join("0000000001.log"), bytes).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}
