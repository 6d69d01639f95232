//! What only a store on disk can promise: crashes, damage, a lost view, a full disk, the wrong owner.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use super::conformance::{self, Random, append, disclosed, feed, fill, one, same};
use super::disk::{DiskOptions, DiskStore};
use super::memory::MemoryStore;
use super::{CommitError, OpenError, Store};

fn options() -> DiskOptions {
    let feed = feed("ma", 1);
    DiskOptions {
        segment_bytes_max: 256 << 10,
        reserve_bytes: 0,
        view_cache_bytes: 4 << 20,
        ..DiskOptions::new(feed.member, feed.exchange)
    }
}

fn open(dir: &Path) -> DiskStore {
    DiskStore::open(dir, &options()).unwrap()
}

/// A store and its model after the same `rounds` commits.
fn filled(dir: &Path, rounds: usize) -> MemoryStore {
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
fn keeps_the_promises_of_every_store() {
    let dir = tempfile::tempdir().unwrap();
    conformance::run(&mut |number| Box::new(open(&dir.path().join(number.to_string()))), true);
}

#[test]
fn keeps_them_without_a_window_too() {
    let dir = tempfile::tempdir().unwrap();
    let options = DiskOptions { window_bytes: 0, lag_bytes_max: 64 << 10, ..options() };
    let mut open = |number: u32| {
        Box::new(DiskStore::open(&dir.path().join(number.to_string()), &options).unwrap()) as Box<dyn Store>
    };
    conformance::run(&mut open, true);
}

#[test]
fn a_deleted_view_is_rebuilt_from_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let model = filled(dir.path(), 30);
    fs::remove_dir_all(dir.path().join("db")).unwrap();
    same(&open(dir.path()), &model, &mut Random(2));
    // Open when the machine stopped: what sled wrote may be lost in any order.
    fs::write(dir.path().join("db.open"), "another run of the machine").unwrap();
    same(&open(dir.path()), &model, &mut Random(3));
    for file in fs::read_dir(dir.path().join("db")).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            fs::write(path, "not a database").unwrap();
        }
    }
    same(&open(dir.path()), &model, &mut Random(4));
}

#[test]
fn an_old_view_catches_up_and_a_newer_one_is_no_excuse_for_a_shorter_log() {
    let dir = tempfile::tempdir().unwrap();
    let (old, full) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fill(&open(dir.path()), 5);
    copy(&dir.path().join("db"), &old.path().join("db"));
    copy(&dir.path().join("log"), &old.path().join("log"));
    fill(&open(dir.path()), 5);
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

#[test]
fn a_store_is_opened_by_its_owner_only_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    fill(&store, 1);
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
fn after_a_failed_sync_nothing_more_is_committed_until_the_store_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let (store, feed) = (open(dir.path()), feed("ma", 1));
    fill(&store, 3);
    store.fail_next_sync();
    let next = one(append(&feed, 3, vec![disclosed(&feed, 4)]));
    assert!(matches!(store.commit(next.clone(), 3), Err(CommitError::Io(_))));
    assert_eq!((store.seq(), store.feed(&feed).unwrap().frontier.size(), store.end_arrival()), (3, 3, 4));
    assert!(matches!(store.commit(next, 3), Err(CommitError::Stopped(_))));
    assert_eq!(store.entries(&feed, 0, 10, 10_000).unwrap().len(), 3);
    drop(store);
    // What was written without a sync may count or not; but now it is one of them for good.
    let seq = open(dir.path()).seq();
    assert!(seq == 3 || seq == 4);
    assert_eq!(open(dir.path()).seq(), seq);
}

#[test]
fn a_full_disk_refuses_commits_and_reading_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    fill(&open(dir.path()), 3);
    let store = DiskStore::open(dir.path(), &DiskOptions { reserve_bytes: u64::MAX / 2, ..options() }).unwrap();
    let feed = feed("ma", 1);
    let next = one(append(&feed, 3, vec![disclosed(&feed, 4)]));
    assert!(matches!(store.commit(next.clone(), 3), Err(CommitError::DiskFull { .. })));
    assert!(
        matches!(store.commit(next, 3), Err(CommitError::DiskFull { .. })),
        "it may succeed later: the store has not stopped"
    );
    assert_eq!(store.arrivals(0, 10, 10_000).unwrap().len(), 3);
}

#[test]
fn a_damaged_envelope_is_named_when_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let feed = feed("ma", 1);
    fill(&open(dir.path()), 20);
    let path = dir.path().join("log/0000000001.log");
    let whole = fs::read(&path).unwrap();
    let mut bytes = whole.clone();
    let payload = bytes.windows(10).position(|window| window == [10; 10]).unwrap();
    bytes[payload] ^= 1;
    fs::write(&path, bytes).unwrap();
    let store = open(dir.path());
    assert!(
        store
            .entries(&feed, 9, 1, 1_000)
            .is_err_and(|error| error.to_string().contains("ma.exercise.example/feed/1 9"))
    );
    assert!(store.entries(&feed, 10, 1, 1_000).is_ok());
    drop(store);
    assert!(
        matches!(DiskStore::verify(dir.path(), &options()), Err(OpenError::Damaged(what)) if what.starts_with("commit 10: "))
    );
    fs::write(&path, whole).unwrap();
    assert_eq!(DiskStore::verify(dir.path(), &options()).unwrap(), 20);
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
