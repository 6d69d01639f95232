//! Inspects and repairs a damaged commit log: finds all damage, and restores exactly the original
//! bytes.
//!
//! In scope: reading a log past damage, flipped bits, and envelopes fetched from elsewhere. Out of
//! scope: fetching them, and handling damage that cannot be repaired.
//!
//! Nothing is guessed. An envelope is restored if it has the digest that the log has for the entry.
//! A bit in a head or header is flipped if the checksum then matches and the next record contains
//! the SHA-256 of exactly that head. So the log is again what it was, byte for byte: no offset,
//! digest or signature changes. A torn tail is not damage; the next opening of the log handles it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use barid_core::envelope;
use barid_core::ids::{Digest, FeedId};
use bytes::Bytes;

use super::record::{FRAME_BYTES, Frame, Position, Record, Salt, Slot};
use super::scan::{Rest, header_of, rest_of};
use super::segment::{self, HEADER_BYTES, HEADER_LEN, Header};
use super::{LogOptions, Tail, read_record, tail_hint};
use crate::store::{OpenError, ReadError, RosterRecord};

/// Most damage that is listed; more means that the disk has failed.
const DAMAGES_MAX: usize = 65_536;

/// One damaged place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct LogDamage {
    /// Number of the segment.
    pub(in crate::store) segment: u32,
    /// Byte range in the segment.
    pub(in crate::store) bytes: Range<u64>,
    /// The kind of damage, and how it can be repaired.
    pub(in crate::store) kind: LogDamageKind,
}

/// The kind of damage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) enum LogDamageKind {
    /// One flipped bit: writing this byte at the start of the range repairs it.
    BitFlip(u8),
    /// The envelope of an entry: any envelope with this digest and length is the original.
    Envelope { feed: FeedId, index: u64, digest: Digest },
    /// It cannot be repaired.
    Unrecoverable(String),
}

/// The result of inspecting a log.
#[derive(Debug, Default)]
pub(in crate::store) struct LogInspection {
    /// Newest commit that was read.
    pub(in crate::store) newest: u64,
    /// Newest commit recorded as confirmed; 0 if none is.
    pub(in crate::store) confirmed: u64,
    /// The damage, in the order of the log.
    pub(in crate::store) damages: Vec<LogDamage>,
    /// Whether there is more damage than can be listed; inspection stopped there.
    pub(in crate::store) truncated: bool,
    /// Number of entries of each feed.
    pub(in crate::store) sizes: BTreeMap<FeedId, u64>,
    /// Roster notes by version: they name the members to fetch envelopes from.
    pub(in crate::store) rosters: BTreeMap<u64, RosterRecord>,
}

/// Inspects a whole log; changes nothing. No process may commit to it meanwhile.
///
/// # Errors
/// If files cannot be read, or the log is another node's or a newer version's.
pub(in crate::store) fn inspect(dir: &Path, options: &LogOptions) -> Result<LogInspection, OpenError> {
    let mut walk = Walk { found: LogInspection::default(), tail: Some(Tail::default()), unverified: None };
    let numbers = segment::list(dir)?;
    let mut salt = None;
    let last = numbers.last().copied().unwrap_or(0);
    for number in 1..=last {
        if walk.found.truncated {
            break;
        }
        if !numbers.contains(&number) {
            walk.add_unrecoverable(number, 0..0, "the file is missing".into());
            continue;
        }
        let file = segment::open(dir, number)?;
        let Some(header) = walk.header(&file, number, options)? else { continue };
        if *salt.get_or_insert(header.salt) != header.salt || header.number != number {
            walk.add_unrecoverable(number, 0..HEADER_BYTES, "it belongs to another commit log".into());
            continue;
        }
        if let Some(tail) = walk.tail
            && (header.first_seq, header.previous) != (tail.seq + 1, tail.hash)
        {
            let missing =
                format!("commits {} to {} before it are missing", tail.seq + 1, header.first_seq.saturating_sub(1));
            walk.add_unrecoverable(number, 0..0, missing);
            walk.tail = None;
        }
        walk.segment(&file, number, &header.salt, number == last)?;
    }
    let hint = salt.and_then(|salt| tail_hint::read(dir, &salt));
    walk.found.confirmed = hint.map_or(0, |hint| hint.seq);
    // No later record proves the last one; the tail hint may.
    let matches_hint = |tail: &Tail| hint.is_some_and(|hint| (hint.seq, hint.hash) == (tail.seq, tail.hash));
    if let Some(place) = walk.unverified.take().filter(|_| !walk.tail.as_ref().is_some_and(matches_hint)) {
        walk.found.damages[place].kind =
            LogDamageKind::Unrecoverable("a head whose hash no later record contains".into());
    }
    Ok(walk.found)
}

/// Corrects a byte, or restores an envelope.
///
/// # Errors
/// If it cannot be written, or the envelope is not the original.
pub(in crate::store) fn write_repair(dir: &Path, damage: &LogDamage, envelope: Option<&[u8]>) -> Result<(), OpenError> {
    let file = segment::open(dir, damage.segment)?;
    match (&damage.kind, envelope) {
        (LogDamageKind::BitFlip(byte), _) => file.write_all_at(&[*byte], damage.bytes.start)?,
        (LogDamageKind::Envelope { digest, .. }, Some(supplied))
            if supplied.len() as u64 == damage.bytes.end - damage.bytes.start
                && envelope::digest(supplied) == *digest =>
        {
            file.write_all_at(supplied, damage.bytes.start)?;
        }
        _ => return Err(OpenError::Damaged("the restored content differs from the original".into())),
    }
    Ok(file.sync_all()?)
}

/// Corrects the bits that flipped in the envelopes of a record, and syncs. Returns the corrected
/// byte offsets in the segment. Changes nothing else.
///
/// # Errors
/// If it cannot be read or written.
pub(super) fn correct_bits(file: &File, position: Position, record: &Record) -> io::Result<Vec<u64>> {
    let mut corrected = Vec::new();
    for (_, _, slot) in envelopes(record) {
        let (at, mut envelope) = read_envelope(file, position, record, slot)?;
        if !slot.is_intact(&envelope)
            && let Some(place) = slot.correct(&mut envelope)
        {
            file.write_all_at(&envelope[place..=place], at + place as u64)?;
            corrected.push(at + place as u64);
        }
    }
    if !corrected.is_empty() {
        file.sync_all()?;
    }
    Ok(corrected)
}

/// Returns the entries whose envelope a record contains.
fn envelopes(record: &Record) -> impl Iterator<Item = (&FeedId, u64, &Slot)> {
    let all = record.appends.iter().chain(&record.backfills);
    let entries = all.flat_map(|entries| entries.slots.iter().map(|(index, slot)| (&entries.feed, *index, slot)));
    entries.filter(|(.., slot)| slot.undisclosed.is_none())
}

/// Reads an envelope; returns its byte offset in the segment and its bytes, empty if the file ends
/// before its end.
fn read_envelope(file: &File, position: Position, record: &Record, slot: &Slot) -> io::Result<(u64, Vec<u8>)> {
    let at = u64::from(position.byte_offset) + (record.body_start + slot.start) as u64;
    let mut envelope = vec![0; slot.len];
    match file.read_exact_at(&mut envelope, at) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => envelope.clear(),
        read => read?,
    }
    Ok((at, envelope))
}

struct Walk {
    found: LogInspection,
    /// What the next record follows; `None` after a record was lost: then any later record is
    /// accepted by its checksum.
    tail: Option<Tail>,
    /// Index in `damages` of a bit flip in the head read last. The next record proves or disproves
    /// it.
    unverified: Option<usize>,
}

impl Walk {
    fn add_damage(&mut self, segment: u32, bytes: Range<u64>, kind: LogDamageKind) {
        if self.found.damages.len() < DAMAGES_MAX {
            self.found.damages.push(LogDamage { segment, bytes, kind });
        } else {
            self.found.truncated = true;
        }
    }

    fn add_unrecoverable(&mut self, segment: u32, bytes: Range<u64>, what: String) {
        self.add_damage(segment, bytes, LogDamageKind::Unrecoverable(what));
    }

    fn header(&mut self, file: &File, number: u32, options: &LogOptions) -> Result<Option<Header>, OpenError> {
        let mut block = vec![0; HEADER_LEN];
        if let Err(error) = file.read_exact_at(&mut block, 0) {
            if error.kind() != io::ErrorKind::UnexpectedEof {
                return Err(error.into());
            }
            self.add_unrecoverable(number, 0..HEADER_BYTES, "it has no header".into());
            self.tail = None;
            return Ok(None);
        }
        let decode = |block: &[u8]| header_of(block, number, options);
        let found = match decode(&block) {
            Err(OpenError::Damaged(what)) => {
                let Some(place) = correct_bit(&mut block, |block| decode(block).is_ok()) else {
                    self.add_unrecoverable(number, 0..HEADER_BYTES, what);
                    self.tail = None;
                    return Ok(None);
                };
                self.add_damage(number, place as u64..place as u64 + 1, LogDamageKind::BitFlip(block[place]));
                decode(&block)
            }
            found => found,
        };
        found.map(Some)
    }

    /// Inspects the records of one segment.
    fn segment(&mut self, file: &File, number: u32, salt: &Salt, is_last: bool) -> Result<(), OpenError> {
        let len = file.metadata()?.len();
        let mut byte_offset = HEADER_BYTES;
        while byte_offset < len && !self.found.truncated {
            let position = Position { segment: number, byte_offset: u32::try_from(byte_offset).unwrap_or(u32::MAX) };
            if let Some(record) = self.record(file, salt, position, len)? {
                self.body(file, position, &record)?;
                byte_offset += record.len();
                continue;
            }
            let seq = self.tail.map_or(self.found.newest, |tail| tail.seq);
            let end = match rest_of(file, byte_offset, len, salt, seq)? {
                Rest::Zeros => return Ok(()),
                Rest::Torn if is_last => return Ok(()),
                Rest::Torn => len,
                Rest::Records(next) => next,
            };
            self.add_unrecoverable(number, byte_offset..end, format!("commit {} cannot be read", seq + 1));
            self.tail = None;
            byte_offset = end;
        }
        Ok(())
    }

    /// Returns the record at a position, possibly after correcting one bit; `None` if there is
    /// none.
    fn record(&mut self, file: &File, salt: &Salt, position: Position, len: u64) -> Result<Option<Record>, OpenError> {
        let read = match read_record(file, salt, position) {
            Err(ReadError::Io(error)) => return Err(error.into()),
            read => read.ok(),
        };
        let record = match read.filter(|record| self.follows(record)) {
            Some(record) => Some(record),
            None => self.corrected(file, salt, position, len)?,
        };
        if let Some(record) = &record {
            self.tail = Some(Tail { seq: record.seq, hash: record.hash, end_offset: record.end_offset });
            self.found.newest = record.seq;
            for (append, entries) in record.rest.appends.iter().zip(&record.appends) {
                self.found.sizes.insert(append.feed.clone(), append.first + entries.slots.len() as u64);
            }
            for roster in &record.rest.rosters {
                self.found.rosters.insert(roster.version, roster.clone());
            }
        }
        Ok(record)
    }

    /// Returns whether a record is the next one. If so, it proves the head before it.
    fn follows(&mut self, record: &Record) -> bool {
        let Some(tail) = self.tail else { return record.seq > self.found.newest };
        let follows = (record.seq, record.previous, record.first_offset) == (tail.seq + 1, tail.hash, tail.end_offset);
        if follows {
            self.unverified = None;
        }
        follows
    }

    /// Looks for the one flipped bit that keeps the frame and head at a position from being the
    /// next record's.
    fn corrected(
        &mut self,
        file: &File,
        salt: &Salt,
        position: Position,
        len: u64,
    ) -> Result<Option<Record>, OpenError> {
        let start = u64::from(position.byte_offset);
        let available = usize::try_from(len - start).unwrap_or(usize::MAX);
        let mut frame = [0; FRAME_BYTES];
        if available < FRAME_BYTES {
            return Ok(None);
        }
        file.read_exact_at(&mut frame, start)?;
        let read_head = |decoded: &Frame| -> io::Result<Option<Vec<u8>>> {
            if decoded.head_len > available - FRAME_BYTES {
                return Ok(None);
            }
            let mut head = vec![0; decoded.head_len];
            file.read_exact_at(&mut head, start + FRAME_BYTES as u64)?;
            Ok(Some(head))
        };
        let mut candidate = None;
        if let Some(decoded) = Frame::decode(&frame)
            && let Some(mut head) = read_head(&decoded)?
            && let Some(place) = decoded.correct(salt, &frame, &mut head)
        {
            candidate = Some((FRAME_BYTES + place, head[place], decoded, head));
        }
        for (place, bit) in (0..FRAME_BYTES).flat_map(|place| (0..8).map(move |bit| (place, bit))) {
            if candidate.is_some() {
                break;
            }
            let mut corrected = frame;
            corrected[place] ^= 1 << bit;
            if let Some(decoded) = Frame::decode(&corrected)
                && let Some(head) = read_head(&decoded)?
                && decoded.matches(salt, &corrected, &head)
            {
                candidate = Some((place, corrected[place], decoded, head));
            }
        }
        let Some((place, byte, decoded, head)) = candidate else { return Ok(None) };
        let Some(record) = Record::decode(Bytes::from(head), &decoded).ok().filter(|record| self.follows(record))
        else {
            return Ok(None);
        };
        let at = start + place as u64;
        self.add_damage(position.segment, at..at + 1, LogDamageKind::BitFlip(byte));
        self.unverified = self.found.damages.len().checked_sub(1);
        Ok(Some(record))
    }

    /// Inspects the envelopes of a record.
    fn body(&mut self, file: &File, position: Position, record: &Record) -> Result<(), OpenError> {
        for (feed, index, slot) in envelopes(record) {
            let (at, mut envelope) = read_envelope(file, position, record, slot)?;
            if slot.is_intact(&envelope) {
                continue;
            }
            match slot.correct(&mut envelope) {
                Some(place) => {
                    let at = at + place as u64;
                    self.add_damage(position.segment, at..at + 1, LogDamageKind::BitFlip(envelope[place]));
                }
                None => {
                    let kind = LogDamageKind::Envelope { feed: feed.clone(), index, digest: slot.digest };
                    self.add_damage(position.segment, at..at + slot.len as u64, kind);
                }
            }
        }
        Ok(())
    }
}

/// Flips the one bit that makes `is_right` true; returns the byte that it is in.
fn correct_bit(bytes: &mut [u8], is_right: impl Fn(&[u8]) -> bool) -> Option<usize> {
    for place in 0..bytes.len() {
        for bit in 0..8 {
            bytes[place] ^= 1 << bit;
            if is_right(bytes) {
                return Some(place);
            }
            bytes[place] ^= 1 << bit;
        }
    }
    None
}
