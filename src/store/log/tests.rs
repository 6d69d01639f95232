//! Tests of crashes and damage: which bytes are accepted, and which are reported as damage.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::fs;

use super::record::{encode_head, head_hash};
use super::*;
use crate::store::conformance::{append, disclosed, feed, one};
use crate::store::{Commit, Content};

pub(super) fn options() -> LogOptions {
    let feed = feed("ma", 1);
    LogOptions { member: feed.member, exchange: feed.exchange, segment_bytes_max: 64 << 10, reserve_bytes: 0 }
}

pub(super) fn open(dir: &Path) -> Result<(Log, Vec<u64>), OpenError> {
    let reader = LogReader::open(dir, &options())?;
    let mut seqs = Vec::new();
    let log = Log::open(dir, options(), &reader, None, &mut |_, record, body| {
        record.commit(&body).map_err(OpenError::Damaged)?;
        seqs.push(record.seq);
        Ok(())
    })?;
    Ok((log, seqs))
}

fn write(log: &mut Log, commit: &Commit) -> (Position, u64) {
    try_write(log, commit).unwrap()
}

fn try_write(log: &mut Log, commit: &Commit) -> Result<(Position, u64), AppendError> {
    let tail = log.tail();
    let head = encode_head(commit, tail.seq + 1, &tail.hash, tail.end_offset);
    let entries = commit.appends.iter().flat_map(|append| &append.entries);
    let bodies: Vec<&[u8]> = entries
        .filter_map(|entry| match &entry.content {
            Content::Disclosed { envelope, .. } => Some(envelope.as_ref()),
            Content::Undisclosed(_) => None,
        })
        .collect();
    let next = Tail { seq: tail.seq + 1, hash: head_hash(&head), end_offset: tail.end_offset + bodies.len() as u64 };
    log.append(&head, &bodies, next, 0)
}

pub(super) fn commit(number: u64) -> Commit {
    let feed = feed("ma", 1);
    one(append(&feed, number - 1, vec![disclosed(&feed, number)]))
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.path().join(file.file_name())).unwrap();
    }
    to
}

/// Creates a log of `count` commits; returns it and the position and length of each record.
pub(super) fn log_with_commits(count: u64) -> (tempfile::TempDir, Vec<(Position, u64)>) {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    let places = (1..=count).map(|number| write(&mut log, &commit(number))).collect();
    (dir, places)
}

#[test]
fn torn_record_is_truncated_and_log_continues() {
    let (dir, places) = log_with_commits(4);
    let (position, len) = *places.last().unwrap();
    let path = segment::path(dir.path(), position.segment);
    let whole = fs::read(&path).unwrap();
    let (start, end) = (position.byte_offset as usize, position.byte_offset as usize + len as usize);
    let written = start + whole[start..end].iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for cut in start..written {
        let mut torn = whole.clone();
        torn[cut..end].fill(0);
        if cut % 16 == 0 {
            torn.truncate(cut);
        }
        let copied = copy(dir.path());
        fs::write(segment::path(copied.path(), position.segment), &torn).unwrap();
        let (mut log, seqs) = open(copied.path()).unwrap();
        // A record that lacks one bit of an envelope is corrected by its digest.
        let lost_bits: u32 = whole[cut..end].iter().map(|byte| byte.count_ones()).sum();
        let expected: &[u64] = if lost_bits == 1 { &[1, 2, 3, 4] } else { &[1, 2, 3] };
        assert_eq!(seqs, expected, "cut at {cut}");
        if cut % 64 == 0 {
            write(&mut log, &commit(4));
            drop(log);
            assert_eq!(open(copied.path()).unwrap().1, [1, 2, 3, 4]);
        }
    }
    assert_eq!(open(dir.path()).unwrap().1, [1, 2, 3, 4]);
}

#[test]
fn record_persisted_out_of_order_is_truncated() {
    let (dir, places) = log_with_commits(3);
    let (position, len) = *places.last().unwrap();
    let path = segment::path(dir.path(), position.segment);
    let whole = fs::read(&path).unwrap();
    // The end reached the disk, the beginning did not.
    let mut torn = whole.clone();
    torn[position.byte_offset as usize..][..len as usize / 2].fill(0);
    fs::write(&path, torn).unwrap();
    assert_eq!(open(dir.path()).unwrap().1, [1, 2]);
    assert_eq!(open(dir.path()).unwrap().1, [1, 2], "nothing of it is left");
}

#[test]
fn damage_before_tail_is_reported_and_nothing_changes() {
    let (dir, places) = log_with_commits(5);
    let (position, len) = places[2];
    let path = segment::path(dir.path(), position.segment);
    let whole = fs::read(&path).unwrap();
    for byte in (position.byte_offset..position.byte_offset + u32::try_from(len).unwrap() - 8).step_by(7) {
        let mut damaged = whole.clone();
        damaged[byte as usize] ^= 0x10;
        fs::write(&path, &damaged).unwrap();
        let Err(OpenError::Damaged(what)) = open(dir.path()) else { panic!("byte {byte} was believed") };
        assert!(what.starts_with("commit 3: "), "{what}");
        assert_eq!(fs::read(&path).unwrap(), damaged);
    }
    let mut zeroed = whole.clone();
    zeroed[position.byte_offset as usize..][..len as usize].fill(0);
    fs::write(&path, zeroed).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::Damaged(_))));
    fs::write(&path, whole).unwrap();
    assert_eq!(open(dir.path()).unwrap().1, [1, 2, 3, 4, 5]);
}

#[test]
fn segments_are_chained_and_missing_one_is_reported() {
    let (dir, places) = log_with_commits(400);
    let last = places.last().unwrap().0.segment;
    assert!(last > 3, "{last} segments");
    assert_eq!(open(dir.path()).unwrap().1, (1..=400).collect::<Vec<_>>());
    for (position, _) in &places[190..200] {
        let reader = LogReader::open(dir.path(), &options()).unwrap();
        let record = reader.record(*position).unwrap();
        let body = reader.body(*position, &record, 0..record.body_len).unwrap();
        assert_eq!(record.commit(&body).unwrap().appends.len(), 1);
    }
    let copied = copy(dir.path());
    fs::remove_file(segment::path(copied.path(), 2)).unwrap();
    assert!(matches!(open(copied.path()), Err(OpenError::Damaged(what)) if what.contains("segment 2")));
    // A torn record is accepted as torn only at the very end of the log.
    let copied = copy(dir.path());
    let (position, len) = *places.iter().rfind(|(position, _)| position.segment == 2).unwrap();
    let path = segment::path(copied.path(), 2);
    let mut bytes = fs::read(&path).unwrap();
    bytes[position.byte_offset as usize..][..len as usize].fill(0);
    fs::write(&path, bytes).unwrap();
    assert!(matches!(open(copied.path()), Err(OpenError::Damaged(_))));
}

#[test]
fn partial_write_on_full_disk_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    write(&mut log, &commit(1));
    let mut large = commit(2);
    large.appends[0].entries[0].content = Content::Disclosed { envelope: vec![7; 20 << 10].into(), header: None };
    for written in [10, 300, 18 << 10] {
        log.full_after = Some(written);
        assert!(matches!(try_write(&mut log, &large), Err(AppendError::Full { .. })));
        assert!(log.check_capacity(0).is_ok(), "it may succeed the next time");
    }
    // The next record is shorter, and the next segment begins while some of the cut-off bytes are
    // still there.
    write(&mut log, &commit(2));
    drop(log);
    assert_eq!(open(copy(dir.path()).path()).unwrap().1, [1, 2]);
    let (mut log, _) = open(dir.path()).unwrap();
    log.full_after = Some(18 << 10);
    assert!(matches!(try_write(&mut log, &large), Err(AppendError::Full { .. })));
    write(&mut log, &commit(3));
    let mut larger = commit(4);
    larger.appends[0].entries[0].content = Content::Disclosed { envelope: vec![7; 200 << 10].into(), header: None };
    let (position, _) = write(&mut log, &larger);
    assert_eq!(position.segment, 2);
    drop(log);
    assert_eq!(open(dir.path()).unwrap().1, [1, 2, 3, 4]);
}

#[test]
fn unavailable_segment_is_retried() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    // There is space for the record, but not for a whole segment beside the reserve.
    assert!(matches!(log.ensure_capacity(1_000, u64::MAX / 2), Err(AppendError::Full { .. })));
    assert!(log.current.is_none() && log.needed_len.is_some());
    log.check_capacity(0).unwrap();
    assert!(log.current.is_some() && log.needed_len.is_none());
    write(&mut log, &commit(1));
    drop(log);
    assert_eq!(open(dir.path()).unwrap().1, [1]);
}

#[test]
fn oversized_record_gets_own_segment() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    write(&mut log, &commit(1));
    let mut large = commit(2);
    large.appends[0].entries[0].content = Content::Disclosed { envelope: vec![7; 200 << 10].into(), header: None };
    write(&mut log, &large);
    write(&mut log, &commit(3));
    drop(log);
    assert_eq!(open(dir.path()).unwrap().1, [1, 2, 3]);
}

#[test]
fn envelope_bytes_are_not_mistaken_for_a_record() {
    let (dir, places) = log_with_commits(3);
    let (position, len) = places[1];
    let bytes = fs::read(segment::path(dir.path(), position.segment)).unwrap();
    let record = bytes[position.byte_offset as usize..][..len as usize].to_vec();
    // A publisher that knows a record of another log publishes it; then the power fails.
    let (other, _) = log_with_commits(1);
    let (mut log, _) = open(other.path()).unwrap();
    let mut bait = commit(2);
    let envelope = [vec![1; 64], record].concat();
    bait.appends[0].entries = (0..8usize)
        .map(|shift| {
            let mut entry = disclosed(&feed("ma", 1), 2);
            entry.content = Content::Disclosed { envelope: envelope[shift..].to_vec().into(), header: None };
            entry
        })
        .collect();
    bait.appends[0].checkpoint_size = 9;
    let (position, _) = write(&mut log, &bait);
    drop(log);
    let path = segment::path(other.path(), position.segment);
    let mut bytes = fs::read(&path).unwrap();
    bytes[position.byte_offset as usize + 30] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(open(other.path()).unwrap().1, [1], "torn, not damaged");
}
