//! What damage is found, and that what is put back is what was there.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::fs;

use super::tests::{commit, filled, open, options};
use super::*;
use crate::store::Content;

/// What is found is put back, as far as it can be; then what there was to be found.
fn mended(dir: &Path, envelope: Option<&[u8]>) -> Vec<Wound> {
    let wounds = examine(dir, &options()).unwrap().wounds;
    for wound in &wounds {
        if !matches!(wound.kind, Kind::Lost(_)) {
            put_back(dir, wound, envelope).unwrap();
        }
    }
    wounds
}

fn envelope_of(number: u64) -> bytes::Bytes {
    let entry = commit(number).appends.remove(0).entries.remove(0);
    let Content::Disclosed { envelope, .. } = entry.content else { panic!("disclosed") };
    envelope
}

#[test]
fn any_one_bit_is_put_back_where_something_proves_what_it_was() {
    let (dir, places) = filled(4);
    let path = segment::path(dir.path(), 1);
    let whole = fs::read(&path).unwrap();
    assert_eq!(examine(dir.path(), &options()).unwrap().wounds, []);
    let (last, last_len) = *places.last().unwrap();
    let end = last.offset as usize + last_len as usize;
    // The last head has no record after it: its own envelopes are proven by their digests only.
    let body = (last.offset as usize..end).find(|at| whole[*at..].starts_with(&envelope_of(4))).unwrap();
    for byte in (0..4_096).step_by(61).chain((4_096..end).step_by(3)) {
        let mut damaged = whole.clone();
        damaged[byte] ^= 1 << (byte % 8);
        fs::write(&path, &damaged).unwrap();
        let wounds = mended(dir.path(), None);
        let is_padding = wounds.is_empty() && whole[byte] == 0;
        if (last.offset as usize..body).contains(&byte) {
            assert!(matches!(&wounds[..], [Wound { kind: Kind::Lost(_), .. }]), "byte {byte}: {wounds:?}");
            continue;
        }
        if !is_padding {
            assert_eq!(wounds.len(), 1, "byte {byte}: {wounds:?}");
            assert!(matches!(wounds[0].kind, Kind::Bit(_)), "byte {byte}: {wounds:?}");
            assert_eq!((wounds[0].segment, wounds[0].bytes.start), (1, byte as u64));
            assert!(fs::read(&path).unwrap() == whole, "byte {byte}");
        }
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(open(dir.path()).unwrap().1, [1, 2, 3, 4]);
}

#[test]
fn the_last_head_is_proven_by_the_noted_end_and_what_is_missing_is_named() {
    let (dir, places) = filled(4);
    let path = segment::path(dir.path(), 1);
    let whole = fs::read(&path).unwrap();
    let (log, _) = open(dir.path()).unwrap();
    let (salt, tail) = (log.salt, log.tail());
    drop(log);
    EndFile::open(dir.path(), salt).note(&Noted { seq: tail.seq, hash: tail.hash });
    let (last, last_len) = *places.last().unwrap();
    let head = last.offset as usize..(last.offset as usize + last_len as usize).min(last.offset as usize + 120);
    for byte in head.step_by(3) {
        let mut damaged = whole.clone();
        damaged[byte] ^= 1 << (byte % 8);
        fs::write(&path, &damaged).unwrap();
        assert!(matches!(open(dir.path()), Err(OpenError::Damaged(_))), "byte {byte}");
        assert!(fs::read(&path).unwrap() == damaged, "byte {byte}: nothing is cut");
        let wounds = mended(dir.path(), None);
        assert!(matches!(&wounds[..], [Wound { kind: Kind::Bit(_), .. }]), "byte {byte}: {wounds:?}");
        assert!(fs::read(&path).unwrap() == whole, "byte {byte}");
    }
    // The last record is not there at all.
    let mut cut = whole.clone();
    cut[last.offset as usize..].fill(0);
    fs::write(&path, &cut).unwrap();
    let Err(OpenError::Damaged(what)) = open(dir.path()) else { panic!("it is damaged") };
    assert!(what.contains("commit 4 was confirmed, and commit 3 is the last"), "{what}");
    assert!(fs::read(&path).unwrap() == cut);
    let examined = examine(dir.path(), &options()).unwrap();
    assert_eq!((examined.newest, examined.confirmed), (3, 4));
}

#[test]
fn an_envelope_is_put_back_by_its_digest_and_by_nothing_else() {
    let (dir, places) = filled(5);
    let path = segment::path(dir.path(), 1);
    let whole = fs::read(&path).unwrap();
    let (position, len) = places[2];
    let envelope = envelope_of(3);
    let end = position.offset as usize + len as usize;
    let start = (position.offset as usize..end).find(|at| whole[*at..].starts_with(&envelope)).unwrap();
    let mut damaged = whole.clone();
    damaged[start..start + envelope.len() / 2].fill(0x5a);
    fs::write(&path, &damaged).unwrap();
    let examined = examine(dir.path(), &options()).unwrap();
    let [wound] = &examined.wounds[..] else { panic!("{:?}", examined.wounds) };
    assert!(matches!(&wound.kind, Kind::Envelope { index: 2, .. }), "{wound:?}");
    assert_eq!(wound.bytes, start as u64..(start + envelope.len()) as u64);
    assert_eq!(examined.newest, 5);
    assert!(put_back(dir.path(), wound, Some(&envelope_of(2))).is_err());
    assert!(put_back(dir.path(), wound, None).is_err());
    assert!(fs::read(&path).unwrap() == damaged);
    put_back(dir.path(), wound, Some(&envelope)).unwrap();
    assert!(fs::read(&path).unwrap() == whole);
    assert_eq!(open(dir.path()).unwrap().1, [1, 2, 3, 4, 5]);
}

#[test]
fn what_nothing_proves_is_named_and_what_follows_it_is_looked_at() {
    let (dir, places) = filled(5);
    let path = segment::path(dir.path(), 1);
    let whole = fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    damaged[places[1].0.offset as usize..][..64].fill(0);
    damaged[places[3].0.offset as usize + 40] ^= 4;
    fs::write(&path, &damaged).unwrap();
    let wounds = mended(dir.path(), None);
    assert_eq!(wounds.len(), 2, "{wounds:?}");
    assert_eq!(wounds[0].kind, Kind::Lost("commit 2 cannot be read".into()));
    assert!(matches!(wounds[1].kind, Kind::Bit(_)));
    damaged[places[3].0.offset as usize + 40] ^= 4;
    assert!(fs::read(&path).unwrap() == damaged);

    // Two bits in one head: nothing is guessed.
    let mut damaged = whole.clone();
    damaged[places[2].0.offset as usize + 30] ^= 1;
    damaged[places[2].0.offset as usize + 50] ^= 2;
    fs::write(&path, &damaged).unwrap();
    assert!(matches!(&mended(dir.path(), None)[..], [Wound { kind: Kind::Lost(_), .. }]));
    assert!(fs::read(&path).unwrap() == damaged);

    // A record torn by a loss of power is no damage.
    let mut torn = whole;
    torn[places[4].0.offset as usize + 100..].fill(0);
    fs::write(&path, torn).unwrap();
    assert_eq!(examine(dir.path(), &options()).unwrap().wounds, []);
}

#[test]
fn segments_that_are_missing_or_strange_are_named() {
    let (dir, places) = filled(400);
    assert!(places.last().unwrap().0.segment > 3);
    let (second, third) = (segment::path(dir.path(), 2), segment::path(dir.path(), 3));
    let mut bytes = fs::read(&third).unwrap();
    bytes[20] ^= 1;
    fs::write(&third, &bytes).unwrap();
    let found = examine(dir.path(), &options()).unwrap();
    assert!(matches!(&found.wounds[..], [Wound { segment: 3, kind: Kind::Bit(_), .. }]), "{:?}", found.wounds);
    fs::remove_file(&second).unwrap();
    let found = examine(dir.path(), &options()).unwrap();
    assert!(matches!(&found.wounds[0], Wound { segment: 2, kind: Kind::Lost(_), .. }));
    assert_eq!(found.newest, 400);
}
