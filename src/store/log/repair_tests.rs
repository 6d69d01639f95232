//! Tests that damage is found, and that repair restores the original bytes.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::fs;

use super::tests::{commit, log_with_commits, open, options};
use super::*;
use crate::store::Content;

/// Repairs all damage that can be repaired; returns the damage found.
fn repair_all(dir: &Path, envelope: Option<&[u8]>) -> Vec<LogDamage> {
    let damages = inspect(dir, &options()).unwrap().damages;
    for damage in &damages {
        if !matches!(damage.kind, LogDamageKind::Unrecoverable(_)) {
            write_repair(dir, damage, envelope).unwrap();
        }
    }
    damages
}

fn envelope_of(number: u64) -> bytes::Bytes {
    let entry = commit(number).appends.remove(0).entries.remove(0);
    let Content::Disclosed { envelope, .. } = entry.content else { panic!("disclosed") };
    envelope
}

#[test]
fn single_bit_flip_is_repaired_if_provable() {
    let (dir, places) = log_with_commits(4);
    let path = segment::path(dir.path(), 1);
    let whole = fs::read(&path).unwrap();
    assert_eq!(inspect(dir.path(), &options()).unwrap().damages, []);
    let (last, last_len) = *places.last().unwrap();
    let end = last.byte_offset as usize + last_len as usize;
    // No record follows the last head, so only its envelopes are proven, by their digests.
    let body = (last.byte_offset as usize..end).find(|at| whole[*at..].starts_with(&envelope_of(4))).unwrap();
    for byte in (0..4_096).step_by(61).chain((4_096..end).step_by(3)) {
        let mut damaged = whole.clone();
        damaged[byte] ^= 1 << (byte % 8);
        fs::write(&path, &damaged).unwrap();
        let damages = repair_all(dir.path(), None);
        let is_padding = damages.is_empty() && whole[byte] == 0;
        if (last.byte_offset as usize..body).contains(&byte) {
            assert!(
                matches!(&damages[..], [LogDamage { kind: LogDamageKind::Unrecoverable(_), .. }]),
                "byte {byte}: {damages:?}"
            );
            continue;
        }
        if !is_padding {
            assert_eq!(damages.len(), 1, "byte {byte}: {damages:?}");
            assert!(matches!(damages[0].kind, LogDamageKind::BitFlip(_)), "byte {byte}: {damages:?}");
            assert_eq!((damages[0].segment, damages[0].bytes.start), (1, byte as u64));
            assert!(fs::read(&path).unwrap() == whole, "byte {byte}");
        }
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(open(dir.path()).unwrap().1, [1, 2, 3, 4]);
}

#[test]
fn tail_hint_proves_last_head_and_exposes_missing_records() {
    let (dir, places) = log_with_commits(4);
    let path = segment::path(dir.path(), 1);
    let whole = fs::read(&path).unwrap();
    let (log, _) = open(dir.path()).unwrap();
    let (salt, tail) = (log.salt, log.tail());
    drop(log);
    TailHintFile::open(dir.path(), salt).write(&TailHint { seq: tail.seq, hash: tail.hash });
    let (last, last_len) = *places.last().unwrap();
    let head =
        last.byte_offset as usize..(last.byte_offset as usize + last_len as usize).min(last.byte_offset as usize + 120);
    for byte in head.step_by(3) {
        let mut damaged = whole.clone();
        damaged[byte] ^= 1 << (byte % 8);
        fs::write(&path, &damaged).unwrap();
        assert!(matches!(open(dir.path()), Err(OpenError::Damaged(_))), "byte {byte}");
        assert!(fs::read(&path).unwrap() == damaged, "byte {byte}: nothing is cut");
        let damages = repair_all(dir.path(), None);
        assert!(
            matches!(&damages[..], [LogDamage { kind: LogDamageKind::BitFlip(_), .. }]),
            "byte {byte}: {damages:?}"
        );
        assert!(fs::read(&path).unwrap() == whole, "byte {byte}");
    }
    // The last record is missing entirely.
    let mut cut = whole.clone();
    cut[last.byte_offset as usize..].fill(0);
    fs::write(&path, &cut).unwrap();
    let Err(OpenError::Damaged(what)) = open(dir.path()) else { panic!("it is damaged") };
    assert!(what.contains("commit 4 was confirmed, and commit 3 is the last"), "{what}");
    assert!(fs::read(&path).unwrap() == cut);
    let inspection = inspect(dir.path(), &options()).unwrap();
    assert_eq!((inspection.newest, inspection.confirmed), (3, 4));
}

#[test]
fn envelope_is_restored_only_if_digest_matches() {
    let (dir, places) = log_with_commits(5);
    let path = segment::path(dir.path(), 1);
    let whole = fs::read(&path).unwrap();
    let (position, len) = places[2];
    let envelope = envelope_of(3);
    let end = position.byte_offset as usize + len as usize;
    let start = (position.byte_offset as usize..end).find(|at| whole[*at..].starts_with(&envelope)).unwrap();
    let mut damaged = whole.clone();
    damaged[start..start + envelope.len() / 2].fill(0x5a);
    fs::write(&path, &damaged).unwrap();
    let inspection = inspect(dir.path(), &options()).unwrap();
    let [damage] = &inspection.damages[..] else { panic!("{:?}", inspection.damages) };
    assert!(matches!(&damage.kind, LogDamageKind::Envelope { index: 2, .. }), "{damage:?}");
    assert_eq!(damage.bytes, start as u64..(start + envelope.len()) as u64);
    assert_eq!(inspection.newest, 5);
    assert!(write_repair(dir.path(), damage, Some(&envelope_of(2))).is_err());
    assert!(write_repair(dir.path(), damage, None).is_err());
    assert!(fs::read(&path).unwrap() == damaged);
    write_repair(dir.path(), damage, Some(&envelope)).unwrap();
    assert!(fs::read(&path).unwrap() == whole);
    assert_eq!(open(dir.path()).unwrap().1, [1, 2, 3, 4, 5]);
}

#[test]
fn unprovable_damage_is_reported_and_scan_continues() {
    let (dir, places) = log_with_commits(5);
    let path = segment::path(dir.path(), 1);
    let whole = fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    damaged[places[1].0.byte_offset as usize..][..64].fill(0);
    damaged[places[3].0.byte_offset as usize + 40] ^= 4;
    fs::write(&path, &damaged).unwrap();
    let damages = repair_all(dir.path(), None);
    assert_eq!(damages.len(), 2, "{damages:?}");
    assert_eq!(damages[0].kind, LogDamageKind::Unrecoverable("commit 2 cannot be read".into()));
    assert!(matches!(damages[1].kind, LogDamageKind::BitFlip(_)));
    damaged[places[3].0.byte_offset as usize + 40] ^= 4;
    assert!(fs::read(&path).unwrap() == damaged);

    // Two bits in one head: nothing is guessed.
    let mut damaged = whole.clone();
    damaged[places[2].0.byte_offset as usize + 30] ^= 1;
    damaged[places[2].0.byte_offset as usize + 50] ^= 2;
    fs::write(&path, &damaged).unwrap();
    assert!(matches!(&repair_all(dir.path(), None)[..], [LogDamage { kind: LogDamageKind::Unrecoverable(_), .. }]));
    assert!(fs::read(&path).unwrap() == damaged);

    // A record torn by a power loss is not damage.
    let mut torn = whole;
    torn[places[4].0.byte_offset as usize + 100..].fill(0);
    fs::write(&path, torn).unwrap();
    assert_eq!(inspect(dir.path(), &options()).unwrap().damages, []);
}

#[test]
fn missing_or_foreign_segments_are_reported() {
    let (dir, places) = log_with_commits(400);
    assert!(places.last().unwrap().0.segment > 3);
    let (second, third) = (segment::path(dir.path(), 2), segment::path(dir.path(), 3));
    let mut bytes = fs::read(&third).unwrap();
    bytes[20] ^= 1;
    fs::write(&third, &bytes).unwrap();
    let found = inspect(dir.path(), &options()).unwrap();
    assert!(
        matches!(&found.damages[..], [LogDamage { segment: 3, kind: LogDamageKind::BitFlip(_), .. }]),
        "{:?}",
        found.damages
    );
    fs::remove_file(&second).unwrap();
    let found = inspect(dir.path(), &options()).unwrap();
    assert!(matches!(&found.damages[0], LogDamage { segment: 2, kind: LogDamageKind::Unrecoverable(_), .. }));
    assert_eq!(found.newest, 400);
}
