//! Scans the log when it is opened: finds its end, and distinguishes a torn tail from damage.
//!
//! In scope: which bytes are accepted. Out of scope: repairing damage; it is reported, and nothing
//! is skipped.
//!
//! A power loss during a write leaves any part of a record. So an unreadable record that no later
//! record follows is a torn tail: it was never confirmed, and is overwritten with zeros. One that a
//! later record follows was confirmed, so it is damage.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use barid_core::ids::Hash;
use bytes::Bytes;

use super::record::{ALIGNMENT, ALIGNMENT_LEN, FRAME_BYTES, MAGIC, Position, Record, Salt};
use super::segment::{self, HEADER_BYTES, Header, HeaderError};
use super::{LogOptions, Tail, read_record};
use crate::store::{OpenError, ReadError};

/// Bytes searched at a time.
const SEARCH_BYTES: usize = 1 << 20;

/// The record up to which the caller has applied the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Resume {
    /// Its position.
    pub(in crate::store) position: Position,
    /// Its number.
    pub(in crate::store) seq: u64,
    /// Hash of its head.
    pub(in crate::store) hash: Hash,
}

/// The end of the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    /// Last segment.
    pub(super) segment: u32,
    /// Byte offset of the next record in it.
    pub(super) byte_offset: u64,
    /// The last record, if there is one, and its length.
    pub(super) last: Option<(Position, u64)>,
}

/// The result of a scan.
#[derive(Default)]
pub(super) struct Found {
    salt: Option<Salt>,
    pub(super) end: Option<End>,
    pub(super) tail: Tail,
    pub(super) written_bytes: u64,
    /// Position of an incomplete record after the last one.
    pub(super) torn: Option<Position>,
}

type Replay<'a> = &'a mut dyn FnMut(Position, Record, Bytes) -> Result<(), OpenError>;

/// Scans the log after `resume`, or from its beginning.
pub(super) fn scan(
    dir: &Path,
    options: &LogOptions,
    resume: Option<&Resume>,
    replay: Replay<'_>,
) -> Result<Found, OpenError> {
    let numbers = segment::list(dir)?;
    let mut found = Found::default();
    if let Some(missing) = numbers.iter().zip(1..).find(|(number, expected)| *number != expected) {
        return Err(OpenError::Damaged(format!("segment {} of the commit log is missing", missing.1)));
    }
    if let (Some(resume), true) = (resume, resume.is_some_and(|resume| !numbers.contains(&resume.position.segment))) {
        return Err(missing_resume_point(resume));
    }
    let start = resume.map_or(1, |resume| resume.position.segment);
    for number in numbers.iter().copied() {
        let file = segment::open(dir, number)?;
        let header = read_header(&file, number, options)?;
        if *found.salt.get_or_insert(header.salt) != header.salt || header.number != number {
            return Err(OpenError::Damaged(format!("segment {number} belongs to another commit log")));
        }
        if number < start {
            found.written_bytes += file.metadata()?.len();
            continue;
        }
        let mut byte_offset = HEADER_BYTES;
        match resume.filter(|resume| resume.position.segment == number) {
            Some(resume) => {
                let record = read_record(&file, &header.salt, resume.position).map_err(|error| match error {
                    ReadError::Io(error) => OpenError::Io(error),
                    other => OpenError::Damaged(format!("commit {} is in the index database, but {other}", resume.seq)),
                })?;
                if (record.seq, record.hash) != (resume.seq, resume.hash) {
                    return Err(missing_resume_point(resume));
                }
                found.tail = Tail { seq: record.seq, hash: record.hash, end_offset: record.end_offset };
                byte_offset = u64::from(resume.position.byte_offset) + record.len();
                found.end = Some(End { segment: number, byte_offset, last: Some((resume.position, record.len())) });
            }
            None => {
                if (header.first_seq, header.previous) != (found.tail.seq + 1, found.tail.hash) {
                    return Err(OpenError::Damaged(format!(
                        "commits {} to {} are missing before segment {number} of the commit log",
                        found.tail.seq + 1,
                        header.first_seq.saturating_sub(1)
                    )));
                }
                let last = found.end.and_then(|end| end.last);
                found.end = Some(End { segment: number, byte_offset, last });
            }
        }
        let is_last = numbers.last() == Some(&number);
        byte_offset = scan_segment(&file, number, byte_offset, is_last, &header.salt, &mut found, replay)?;
        found.written_bytes += byte_offset;
    }
    match resume {
        Some(resume) if found.tail.seq < resume.seq => Err(missing_resume_point(resume)),
        _ => Ok(found),
    }
}

/// Returns the salt of the log in `dir`; `None` if there is no log yet.
pub(super) fn salt(dir: &Path, options: &LogOptions) -> Result<Option<Salt>, OpenError> {
    match segment::list(dir)?.first() {
        Some(number) => Ok(Some(read_header(&segment::open(dir, *number)?, *number, options)?.salt)),
        None => Ok(None),
    }
}

fn missing_resume_point(resume: &Resume) -> OpenError {
    OpenError::Damaged(format!(
        "the index database contains commit {}, which is not in the commit log at {}",
        resume.seq, resume.position
    ))
}

fn read_header(file: &File, number: u32, options: &LogOptions) -> Result<Header, OpenError> {
    let mut block = vec![0; segment::HEADER_LEN];
    file.read_exact_at(&mut block, 0)
        .map_err(|_| OpenError::Damaged(format!("segment {number} of the commit log has no header")))?;
    header_of(&block, number, options)
}

/// Decodes the header block of segment `number`, and checks that the log is this node's.
pub(super) fn header_of(block: &[u8], number: u32, options: &LogOptions) -> Result<Header, OpenError> {
    let header = Header::decode(block).map_err(|error| match error {
        HeaderError::Newer(found) => OpenError::Newer { found, known: segment::VERSION },
        HeaderError::Damaged(what) => OpenError::Damaged(format!("segment {number} of the commit log: {what}")),
    })?;
    if header.member != options.member || header.exchange != options.exchange {
        return Err(OpenError::Foreign {
            found: format!("{}.{}", header.member, header.exchange),
            expected: format!("{}.{}", options.member, options.exchange),
        });
    }
    Ok(header)
}

/// Scans one segment from `byte_offset` on; returns where its records end.
fn scan_segment(
    file: &File,
    number: u32,
    mut byte_offset: u64,
    is_last: bool,
    salt: &Salt,
    found: &mut Found,
    replay: Replay<'_>,
) -> Result<u64, OpenError> {
    let len = file.metadata()?.len();
    loop {
        let position = Position { segment: number, byte_offset: u32::try_from(byte_offset).unwrap_or(u32::MAX) };
        let problem = match read_whole(file, salt, position, found.tail) {
            Ok((record, body)) => {
                found.tail = Tail { seq: record.seq, hash: record.hash, end_offset: record.end_offset };
                let record_len = record.len();
                byte_offset += record_len;
                found.end = Some(End { segment: number, byte_offset, last: Some((position, record_len)) });
                replay(position, record, body)?;
                continue;
            }
            Err(ReadError::Io(error)) => return Err(OpenError::Io(error)),
            Err(problem) => problem,
        };
        match rest_of(file, byte_offset, len, salt, found.tail.seq)? {
            Rest::Zeros => return Ok(byte_offset),
            Rest::Torn if is_last => {
                found.torn = Some(position);
                return Ok(byte_offset);
            }
            Rest::Torn | Rest::Records(_) => {
                return Err(OpenError::Damaged(format!("commit {}: {problem}", found.tail.seq + 1)));
            }
        }
    }
}

/// Reads a record with its envelopes, and checks that it follows `tail`.
fn read_whole(file: &File, salt: &Salt, position: Position, tail: Tail) -> Result<(Record, Bytes), ReadError> {
    let damaged = |what: String| ReadError::Damaged(format!("commit log, {position}: {what}"));
    let record = read_record(file, salt, position)?;
    if (record.seq, record.previous, record.first_offset) != (tail.seq + 1, tail.hash, tail.end_offset) {
        return Err(damaged(format!("commit {} does not follow commit {}", record.seq, tail.seq)));
    }
    let mut body = vec![0; record.body_len];
    file.read_exact_at(&mut body, u64::from(position.byte_offset) + record.body_start as u64)
        .map_err(|error| super::short(error, position))?;
    let body = Bytes::from(body);
    for entries in record.appends.iter().chain(&record.backfills) {
        entries.check(&body).map_err(damaged)?;
    }
    Ok((record, body))
}

pub(super) enum Rest {
    Zeros,
    Torn,
    /// A record newer than commit `seq` begins here.
    Records(u64),
}

/// Classifies the bytes of a segment from `byte_offset` on. A record newer than commit `seq` that
/// begins anywhere after it is found.
pub(super) fn rest_of(file: &File, byte_offset: u64, len: u64, salt: &Salt, seq: u64) -> Result<Rest, OpenError> {
    let mut rest = Rest::Zeros;
    let mut buffer = vec![0; SEARCH_BYTES];
    let mut at = byte_offset;
    while at < len {
        let want = usize::try_from(len - at).unwrap_or(SEARCH_BYTES).min(SEARCH_BYTES);
        file.read_exact_at(&mut buffer[..want], at)?;
        for (place, chunk) in buffer[..want].chunks(ALIGNMENT_LEN).enumerate() {
            if chunk.iter().all(|byte| *byte == 0) {
                continue;
            }
            rest = Rest::Torn;
            let begins = at + place as u64 * ALIGNMENT;
            if chunk.starts_with(&MAGIC) && begins > byte_offset && is_record(file, begins, salt, seq)? {
                return Ok(Rest::Records(begins));
            }
        }
        at += want as u64;
    }
    Ok(rest)
}

fn is_record(file: &File, byte_offset: u64, salt: &Salt, seq: u64) -> Result<bool, OpenError> {
    let position = Position { segment: 0, byte_offset: u32::try_from(byte_offset).unwrap_or(u32::MAX) };
    match read_record(file, salt, position) {
        Ok(record) => Ok(record.seq > seq),
        Err(ReadError::Io(error)) => Err(error.into()),
        Err(_) => Ok(false),
    }
}

/// Makes the end of the log as the scan found it: the file at its full length, zeros after the last
/// record, and the last record written again and synced, because after a failed sync it may be in
/// memory only. Returns the file's length.
pub(super) fn finalize_tail(dir: &Path, file: &File, end: &End, options: &LogOptions) -> Result<u64, OpenError> {
    let len = file.metadata()?.len();
    let capacity = len.max(segment::nominal_bytes(end.segment, options.segment_bytes_max)).max(HEADER_BYTES);
    let dirty_end = last_nonzero(file, end.byte_offset, len)?;
    segment::zero(file, end.byte_offset, dirty_end)?;
    segment::zero(file, len, capacity)?;
    if let Some((position, record_len)) = end.last {
        let other;
        let file = if position.segment == end.segment {
            file
        } else {
            other = segment::open(dir, position.segment)?;
            &other
        };
        rewrite(file, u64::from(position.byte_offset), record_len)?;
    }
    rewrite(file, 0, HEADER_BYTES)?;
    segment::sync_dir(dir)?;
    Ok(capacity)
}

fn rewrite(file: &File, byte_offset: u64, len: u64) -> Result<(), OpenError> {
    let len = len.min(file.metadata()?.len().saturating_sub(byte_offset));
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    file.read_exact_at(&mut bytes, byte_offset)?;
    file.write_all_at(&bytes, byte_offset)?;
    Ok(file.sync_all()?)
}

/// Returns one past the last nonzero byte from `from` on; `from` if all are zero.
fn last_nonzero(file: &File, from: u64, len: u64) -> Result<u64, OpenError> {
    let (mut at, mut end) = (from, from);
    let mut buffer = vec![0; SEARCH_BYTES];
    while at < len {
        let want = usize::try_from(len - at).unwrap_or(SEARCH_BYTES).min(SEARCH_BYTES);
        file.read_exact_at(&mut buffer[..want], at)?;
        if let Some(place) = buffer[..want].iter().rposition(|byte| *byte != 0) {
            end = at + place as u64 + 1;
        }
        at += want as u64;
    }
    Ok(end)
}

/// Verifies a whole log: every checksum and every link of the chain. Changes nothing. Returns the
/// number of the newest commit.
///
/// # Errors
/// [`OpenError::Damaged`] names the first damage.
pub(in crate::store) fn verify(dir: &Path, options: &LogOptions) -> Result<u64, OpenError> {
    read(dir, options, &mut |_, _, _| Ok(()))
}

/// As [`verify`], and passes every record with its body to `replay`.
pub(in crate::store) fn read(dir: &Path, options: &LogOptions, replay: Replay<'_>) -> Result<u64, OpenError> {
    Ok(scan(dir, options, None, replay)?.tail.seq)
}

const _: () = assert!((FRAME_BYTES as u64).is_multiple_of(ALIGNMENT) && HEADER_BYTES.is_multiple_of(ALIGNMENT));
