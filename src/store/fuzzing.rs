//! Invariants that hold for any bytes of a commit log: the fuzz target `record`, and a test with
//! mutations of golden files.
//!
//! In scope: reading records and segments, finding the end of a log, and applying its records to
//! memory. Out of scope: the index database, which is rebuilt whenever it may be damaged. Not used
//! by the node.

#[cfg(test)]
#[allow(dead_code, missing_docs, unreachable_pub)]
#[path = "../../fuzz/src/mutate.rs"]
pub(crate) mod mutate;

use std::cell::OnceCell;
use std::fs;
use std::path::Path;

use barid_core::ids::Hash;
use barid_core::proto;
use bytes::Bytes;
use prost::Message as _;

use super::feed_index::State;
use super::log::record::{ALIGNMENT_LEN, FRAME_BYTES, Frame, Record, encode_head, head_hash};
use super::log::{self, Log, LogOptions, LogReader, Position};
use super::{OpenError, open};

/// Short segments, so that an input can fill one.
const SEGMENT_BYTES_MAX: u64 = 64 << 10;
/// Records made of one input.
const RECORDS_MAX: usize = 16;
/// Bytes of envelopes made for one record.
const BODY_BYTES_MAX: usize = 8 << 10;

const SALT: [u8; 16] = [5; 16];
const INVARIANT: &str = "files in a temporary folder can be written";

/// Panics if an invariant does not hold. The first byte selects how the rest is interpreted.
pub fn check(data: &[u8]) {
    let Some((chosen, rest)) = data.split_first() else { return };
    // Opening a log syncs it, which is slow, so it is not done for every input.
    let and_open = chosen / 3 % 4 == 0;
    match chosen % 3 {
        0 => segment(rest, and_open),
        1 => head(rest),
        _ => records(rest, and_open),
    }
}

fn options() -> LogOptions {
    LogOptions {
        member: "ma".parse().expect("a member code"),
        exchange: "exercise.example".parse().expect("an exchange name"),
        segment_bytes_max: SEGMENT_BYTES_MAX,
        reserve_bytes: 0,
    }
}

/// Calls `then` with a folder whose only segment is `bytes`. Each thread has a folder of its own,
/// emptied for each input.
fn with_segment(bytes: &[u8], then: impl FnOnce(&Path)) {
    thread_local!(static FOLDER: OnceCell<tempfile::TempDir> = const { OnceCell::new() });
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| tempfile::tempdir().expect(INVARIANT)).path();
        for number in log::segment::list(folder).expect(INVARIANT) {
            fs::remove_file(log::segment::path(folder, number)).expect(INVARIANT);
        }
        fs::write(log::segment::path(folder, 1), bytes).expect(INVARIANT);
        then(folder);
    });
}

/// Interprets the bytes as the only segment of a log.
fn segment(bytes: &[u8], and_open: bool) {
    with_segment(bytes, |dir| {
        let (state, read) = replayed(dir);
        match read {
            Ok(_) if !and_open => {}
            Ok(seq) => {
                drop(state);
                // Opening it cuts a torn tail; the records read before are then the whole log.
                for _ in 0..2 {
                    assert_eq!(opened(dir), seq, "where the log ends changes");
                }
                assert_eq!(log::verify(dir, &options()).ok(), Some(seq));
            }
            Err(OpenError::Io(error)) => panic!("{INVARIANT}: {error}"),
            Err(_) => {
                let left = fs::read(log::segment::path(dir, 1)).expect(INVARIANT);
                assert!(left == bytes, "damage is unchanged");
            }
        }
    });
}

fn opened(dir: &Path) -> u64 {
    let reader = LogReader::open(dir, &options()).expect("it was read before");
    let mut positions = Vec::new();
    let mut replay = |position: Position, record: Record, _: Bytes| {
        positions.push((position, record.hash));
        Ok(())
    };
    let log = Log::open(dir, options(), &reader, None, &mut replay).expect("it was read before");
    for (position, hash) in positions {
        let record = reader.record(position).expect("a record that was read");
        let body = reader.body(position, &record, 0..record.body_len).expect("its body");
        assert!(record.hash == hash && record.commit(&body).is_ok());
    }
    log.tail().seq
}

/// Reads a log and applies its records to memory. A record that cannot be applied is damage too.
fn replayed(dir: &Path) -> (State, Result<u64, OpenError>) {
    let mut state = State::new(1 << 20);
    let mut seq = 0;
    let mut replay = |position: Position, record: Record, body: Bytes| {
        seq = record.seq;
        let _ = open::replay(&mut state, position, &record, &body);
        Ok(())
    };
    let read = log::read(dir, &options(), &mut replay);
    let read = read.inspect(|end| assert_eq!(*end, seq));
    (state, read)
}

/// Interprets the bytes as a head with a valid checksum, and the envelopes after it.
fn head(bytes: &[u8]) {
    let Some((len, rest)) = bytes.split_first_chunk() else { return };
    let Some((head, body)) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len))) else { return };
    let encoded = Frame::encode(&SALT, head, body.len() as u64);
    let frame = Frame::decode(&encoded).expect("a frame that was encoded");
    assert!(frame.matches(&SALT, &encoded, head));
    let altered: Vec<u8> = head.iter().copied().chain([1]).collect();
    assert!(!frame.matches(&SALT, &encoded, &altered));
    if let Some(any) = bytes.first_chunk::<FRAME_BYTES>() {
        let _ = Frame::decode(any).map(|frame| frame.matches(&SALT, any, head));
    }
    let Ok(record) = Record::decode(Bytes::copy_from_slice(head), &frame) else { return };
    assert_eq!(record.len() % ALIGNMENT_LEN as u64, 0);
    let Ok(commit) = record.commit(&Bytes::copy_from_slice(body)) else { return };
    let again = encode_head(&commit, record.seq, &record.previous, record.first_offset);
    let read = Record::decode(again.clone().into(), &frame).expect("a head that was encoded");
    assert_eq!((read.seq, read.previous, read.end_offset), (record.seq, record.previous, record.end_offset));
    let commit = read.commit(&Bytes::copy_from_slice(body)).expect("the same envelopes");
    assert_eq!(encode_head(&commit, read.seq, &read.previous, read.first_offset), again);
}

/// Interprets the bytes as heads of records, each after a length of two bytes, that are numbered,
/// chained and checksummed correctly.
fn records(mut bytes: &[u8], and_open: bool) {
    let header = log::segment::Header {
        number: 1,
        first_seq: 1,
        previous: Hash([0; 32]),
        salt: SALT,
        member: options().member,
        exchange: options().exchange,
    };
    let mut file = header.encode();
    let (mut seq, mut previous, mut offset) = (0, Hash([0; 32]), 1);
    while let Some((len, rest)) = bytes.split_first_chunk()
        && let Some((head, rest)) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))
        && seq < RECORDS_MAX as u64
    {
        bytes = rest;
        let Ok(mut head) = proto::RecordHead::decode(head) else { continue };
        seq += 1;
        (head.seq, head.previous, head.first_offset) = (seq, Bytes::copy_from_slice(&previous.0), offset);
        let body = complete(&mut head);
        let disclosed = head.appends.iter().flat_map(|append| &append.states).filter(|state| **state == 0).count();
        offset += disclosed as u64;
        let head = head.encode_to_vec();
        previous = head_hash(&head);
        file.extend(Frame::encode(&SALT, &head, body.len() as u64));
        file.extend(head);
        file.extend(body);
        file.resize(file.len().next_multiple_of(ALIGNMENT_LEN), 0);
    }
    segment(&file, and_open);
}

/// Makes envelopes of the lengths in a head, and sets their checksums in it.
fn complete(head: &mut proto::RecordHead) -> Vec<u8> {
    let mut body = Vec::new();
    for append in &mut head.appends {
        append.envelope_checksums.clear();
        for len in &append.envelope_sizes {
            let len = (*len as usize).min(BODY_BYTES_MAX.saturating_sub(body.len()));
            let start = body.len();
            body.resize(start + len, 7);
            let checksum = if len == 0 { 0 } else { crc32c::crc32c(&body[start..]) };
            append.envelope_checksums.push(checksum);
        }
    }
    body
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::mutate::Mutator;
    use super::*;

    /// Limited to a few seconds: opening a log syncs it.
    const MUTATIONS: u64 = 300;

    /// The golden log itself, and its heads in the two other input forms.
    fn seeds() -> Vec<Vec<u8>> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/store/log-1/0000000001.log");
        let file = fs::read(path).unwrap();
        let mut seeds = vec![[&[0], file.as_slice()].concat()];
        let mut all = vec![2];
        with_segment(&file, |dir| {
            let mut replay = |position: Position, record: Record, body: Bytes| {
                let start = position.byte_offset as usize + FRAME_BYTES;
                let head = &file[start..start + record.head_len];
                let len = u16::try_from(head.len()).unwrap().to_le_bytes();
                seeds.push([&[1], len.as_slice(), head, body.as_ref()].concat());
                all.extend([len.as_slice(), head].concat());
                Ok(())
            };
            assert_eq!(log::read(dir, &options(), &mut replay).unwrap(), 4);
        });
        seeds.push(all);
        seeds
    }

    #[test]
    fn mutated_log_never_panics_the_reader() {
        let seeds = seeds();
        assert_eq!(seeds.len(), 6);
        let mutations = std::env::var("FUZZ_MUTATIONS").map_or(MUTATIONS, |text| text.parse().unwrap());
        seeds.iter().for_each(|seed| check(seed));
        for number in 0..mutations {
            let pick = |number: u64| &seeds[usize::try_from(number).unwrap() % seeds.len()];
            let bytes = Mutator::new(number).mutate(pick(number), pick(number / 7 + 3));
            let outcome = std::panic::catch_unwind(|| check(&bytes));
            assert!(outcome.is_ok(), "mutation {number} of the seeds");
        }
    }

    #[test]
    fn overflowing_numbers_are_damage() {
        for (first_offset, first) in [(u64::MAX, 0), (1, u64::MAX), (1, 1 << 63), (u64::MAX, u64::MAX)] {
            let append = proto::RecordAppend {
                feed: "ma.exercise.example/feed/1".into(),
                first,
                digests: vec![1; 32].into(),
                envelope_sizes: vec![1],
                envelope_checksums: vec![crc32c::crc32c(&[9])],
                states: vec![0].into(),
                ..proto::RecordAppend::default()
            };
            let previous = vec![0; 32].into();
            let head =
                proto::RecordHead { seq: 1, previous, first_offset, appends: vec![append], ..Default::default() };
            let head = head.encode_to_vec();
            let frame = Frame::decode(&Frame::encode(&SALT, &head, 1)).unwrap();
            let decoded = Record::decode(head.clone().into(), &frame);
            assert!(decoded.is_err_and(|what| what.contains("overflow")), "{first_offset} {first}");
            check(&[&[1], u16::try_from(head.len()).unwrap().to_le_bytes().as_slice(), &head, &[9]].concat());
        }
    }
}
