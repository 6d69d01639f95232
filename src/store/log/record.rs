//! One record of the commit log: a checksummed head, then the envelopes, whose checksums are in the
//! head.
//!
//! In scope: encoding a [`Commit`] to bytes and decoding it, without I/O. Out of scope: where
//! records lie (`segment`), and handling bytes that are not a record (`scan`).
//!
//! The head is preceded by a frame of [`FRAME_BYTES`], with numbers in little endian: magic (4),
//! length of the head (4), length of all envelopes (8), CRC-32C over the log's salt, these 16 bytes
//! and the head (4), zeros (4). The salt is random and never leaves the log, so that no publisher
//! can make an envelope that a scan takes for a record. Records start at multiples of
//! [`ALIGNMENT`].

mod priority;
mod subscriptions;

use std::ops::Range;
use std::sync::Arc;

use barid_core::feed::tree::TREE_SIZE_MAX;
use barid_core::ids::{Digest, FeedId, Hash, Undisclosed};
use barid_core::limits::{ENVELOPE_BYTES_MAX, RECORD_HEAD_BYTES_MAX};
use barid_core::proto;
use bytes::Bytes;
use prost::Message as _;
use sha2::Digest as _;

use self::priority::PriorityProof;
use super::bit_flip;
use crate::store::validate;
use crate::store::{
    Append, Backfill, Commit, Content, Cosigned, CrlRecord, CustodyRecord, ForkRecord, NewEntry, RosterRecord,
};

/// Length of a frame in bytes.
pub(in crate::store) const FRAME_BYTES: usize = 24;
/// Records start at multiples of this.
pub(in crate::store) const ALIGNMENT: u64 = ALIGNMENT_LEN as u64;
/// The same, for buffers.
pub(in crate::store) const ALIGNMENT_LEN: usize = 8;
/// First bytes of a frame: "BRD" and the version of the framing.
pub(in crate::store) const MAGIC: [u8; 4] = *b"BRD\x01";
/// Random bytes of one log.
pub(in crate::store) type Salt = [u8; 16];

/// The position of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::store) struct Position {
    /// Number of the segment, from 1.
    pub(in crate::store) segment: u32,
    /// Byte offset in the segment.
    pub(in crate::store) byte_offset: u32,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "segment {} at byte {}", self.segment, self.byte_offset)
    }
}

/// A decoded frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Frame {
    /// Length of the head in bytes.
    pub(in crate::store) head_len: usize,
    /// Length of all envelopes in bytes.
    pub(in crate::store) body_len: u64,
    checksum: u32,
}

impl Frame {
    /// Encodes the frame of a head.
    pub(in crate::store) fn encode(salt: &Salt, head: &[u8], body_len: u64) -> [u8; FRAME_BYTES] {
        let mut bytes = [0; FRAME_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&u32::try_from(head.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes[8..16].copy_from_slice(&body_len.to_le_bytes());
        let checksum = checksum(salt, &bytes[..16], head);
        bytes[16..20].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Decodes a frame; `None` if these bytes are not one.
    pub(in crate::store) fn decode(bytes: &[u8; FRAME_BYTES]) -> Option<Self> {
        let head_len = u32::from_le_bytes(*bytes[4..].first_chunk()?) as usize;
        let body_len = u64::from_le_bytes(*bytes[8..].first_chunk()?);
        let checksum = u32::from_le_bytes(*bytes[16..].first_chunk()?);
        let fits = bytes[..4] == MAGIC
            && bytes[20..] == [0; 4]
            && head_len <= RECORD_HEAD_BYTES_MAX
            && body_len <= u64::from(u32::MAX);
        fits.then_some(Self { head_len, body_len, checksum })
    }

    /// Flips the one bit of `head` that makes it match the frame; returns the byte that it is in.
    pub(in crate::store) fn correct(&self, salt: &Salt, bytes: &[u8; FRAME_BYTES], head: &mut [u8]) -> Option<usize> {
        let found = checksum(salt, &bytes[..16], head);
        bit_flip::correct(head, found, self.checksum)
    }

    /// Returns whether `head` matches the checksum of this frame.
    pub(in crate::store) fn matches(&self, salt: &Salt, bytes: &[u8; FRAME_BYTES], head: &[u8]) -> bool {
        checksum(salt, &bytes[..16], head) == self.checksum
    }
}

fn checksum(salt: &Salt, frame: &[u8], head: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(salt), frame), head)
}

/// Returns the SHA-256 of an encoded head, which the next head contains.
pub(in crate::store) fn head_hash(head: &[u8]) -> Hash {
    Hash(sha2::Sha256::digest(head).into())
}

/// Encodes the head of a commit.
pub(in crate::store) fn encode_head(commit: &Commit, seq: u64, previous: &Hash, first_offset: u64) -> Vec<u8> {
    let head = proto::RecordHead {
        seq,
        previous: Bytes::copy_from_slice(&previous.0),
        first_offset,
        appends: commit.appends.iter().map(encode_append).collect(),
        cosigned: commit.cosigned.iter().map(encode_cosigned).collect(),
        custody: commit.custody.iter().map(encode_custody).collect(),
        cursors: commit.cursors.iter().map(subscriptions::encode_cursor).collect(),
        rosters: commit
            .rosters
            .iter()
            .map(|roster| proto::RecordRoster { version: roster.version, note: roster.note.clone() })
            .collect(),
        crls: commit
            .crls
            .iter()
            .map(|crl| proto::RecordCrl { authority: crl.authority.clone(), der: crl.der.clone() })
            .collect(),
        forks: commit
            .forks
            .iter()
            .map(|fork| proto::RecordFork {
                feed: fork.feed.to_string(),
                evidence: fork.evidence.clone(),
                resumed: fork.resumed,
            })
            .collect(),
        time_unix_ms: commit.time_unix_ms,
        backfills: commit.backfills.iter().map(encode_backfill).collect(),
        priority: commit.priority.iter().map(priority::encode).collect(),
        displaced: commit.displaced.iter().map(priority::encode_displaced).collect(),
        subscriptions: commit.subscriptions.iter().map(subscriptions::encode).collect(),
    };
    head.encode_to_vec()
}

fn encode_backfill(backfill: &Backfill) -> proto::RecordBackfill {
    let mut record = proto::RecordBackfill { feed: backfill.feed.to_string(), ..proto::RecordBackfill::default() };
    let (mut digests, mut ids) = (Vec::new(), Vec::new());
    for (index, entry) in &backfill.entries {
        // Validation rejected everything else.
        let Content::Disclosed { envelope, header } = &entry.content else { continue };
        record.indexes.push(*index);
        digests.extend_from_slice(&entry.digest.0);
        record.envelope_sizes.push(u32::try_from(envelope.len()).unwrap_or(u32::MAX));
        record.envelope_checksums.push(crc32c::crc32c(envelope));
        ids.extend_from_slice(validate::id_of(&backfill.feed, header.as_deref()).unwrap_or_default().as_bytes());
    }
    record.digests = digests.into();
    record.ids = ids.into();
    record
}

fn encode_append(append: &Append) -> proto::RecordAppend {
    let count = append.entries.len();
    let mut digests = Vec::with_capacity(count * 32);
    let mut ids = Vec::with_capacity(count * 16);
    let mut states = Vec::with_capacity(count);
    let mut envelope_sizes = Vec::with_capacity(count);
    let mut envelope_checksums = Vec::with_capacity(count);
    for entry in &append.entries {
        digests.extend_from_slice(&entry.digest.0);
        match &entry.content {
            Content::Disclosed { envelope, header } => {
                states.push(0);
                envelope_sizes.push(u32::try_from(envelope.len()).unwrap_or(u32::MAX));
                envelope_checksums.push(crc32c::crc32c(envelope));
                let id = validate::id_of(&append.feed, header.as_deref()).unwrap_or_default();
                ids.extend_from_slice(id.as_bytes());
            }
            Content::Undisclosed(reason) => {
                states.push(reason.number());
                envelope_sizes.push(0);
                envelope_checksums.push(0);
            }
        }
    }
    proto::RecordAppend {
        feed: append.feed.to_string(),
        first: append.first,
        digests: digests.into(),
        envelope_sizes,
        envelope_checksums,
        states: states.into(),
        checkpoint: append.checkpoint.clone(),
        checkpoint_size: append.checkpoint_size,
        consistency_proof: append.consistency_proof.iter().flat_map(|hash| hash.0).collect(),
        ids: ids.into(),
    }
}

fn encode_cosigned(cosigned: &Cosigned) -> proto::RecordCosigned {
    proto::RecordCosigned {
        feed: cosigned.feed.to_string(),
        cosigner: cosigned.cosigner.to_string(),
        size: cosigned.size,
        time: cosigned.time,
        note: cosigned.note.clone(),
    }
}

fn encode_custody(custody: &CustodyRecord) -> proto::RecordCustody {
    proto::RecordCustody {
        feed: custody.feed.to_string(),
        holder: custody.holder.to_string(),
        start: custody.range.start,
        end: custody.range.end,
        not_held: custody.not_held.iter().flat_map(|range| [range.start, range.end]).collect(),
        time: custody.time,
        note: custody.note.clone(),
    }
}

/// A record whose head was read and is well formed.
#[derive(Debug)]
pub(in crate::store) struct Record {
    /// Number of the commit.
    pub(in crate::store) seq: u64,
    /// Hash of the head before it.
    pub(in crate::store) previous: Hash,
    /// Hash of this head.
    pub(in crate::store) hash: Hash,
    /// Offset of the first disclosed entry.
    pub(in crate::store) first_offset: u64,
    /// One past the offset of the last disclosed entry.
    pub(in crate::store) end_offset: u64,
    /// The entries of each append in `rest`.
    pub(in crate::store) appends: Vec<RecordEntries>,
    /// The backfills, then the priority entries as backfills of one entry each.
    pub(in crate::store) backfills: Vec<RecordEntries>,
    /// The rest of the commit: its appends have no entries, and it has no backfills.
    pub(in crate::store) rest: Commit,
    /// Where the envelopes begin, from the start of the record.
    pub(in crate::store) body_start: usize,
    /// Length of all envelopes in bytes.
    pub(in crate::store) body_len: usize,
    /// Length of the encoded head in bytes.
    pub(in crate::store) head_len: usize,
}

/// Entries of one feed in a record.
#[derive(Debug)]
pub(in crate::store) struct RecordEntries {
    /// The feed.
    pub(in crate::store) feed: FeedId,
    /// Index and entry, ascending.
    pub(in crate::store) slots: Vec<(u64, Slot)>,
    /// The proof of a priority entry; `None` for an append or a backfill.
    pub(in crate::store) priority_proof: Option<PriorityProof>,
}

/// An entry in a record.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Slot {
    /// Entry digest.
    pub(in crate::store) digest: Digest,
    /// Why only the digest is held; `None` if the entry is disclosed.
    pub(in crate::store) undisclosed: Option<Undisclosed>,
    /// Offset, if disclosed.
    pub(in crate::store) offset: u64,
    /// Where the envelope begins in the body.
    pub(in crate::store) start: usize,
    /// Length of the envelope.
    pub(in crate::store) len: usize,
    checksum: u32,
}

impl Record {
    /// Decodes a head whose checksum matches. The error names what is malformed.
    pub(in crate::store) fn decode(bytes: Bytes, frame: &Frame) -> Result<Self, String> {
        let hash = head_hash(&bytes);
        let head = proto::RecordHead::decode(bytes).map_err(|error| error.to_string())?;
        let (mut offset, mut start) = (head.first_offset, 0);
        let (mut appends, mut append_entries) = (Vec::new(), Vec::new());
        for append in head.appends {
            let (append, entries) = decode_append(append, &mut offset, &mut start)?;
            appends.push(append);
            append_entries.push(entries);
        }
        let mut backfills = Vec::with_capacity(head.backfills.len());
        for backfill in head.backfills {
            backfills.push(decode_backfill(&backfill, &mut offset, &mut start)?);
        }
        for priority in head.priority {
            backfills.push(priority::decode(priority, &mut offset, &mut start)?);
        }
        if start as u64 != frame.body_len {
            return Err(format!("{start} bytes of envelopes in the head, {} in the frame", frame.body_len));
        }
        let rest = Commit {
            appends,
            backfills: Vec::new(),
            priority: Vec::new(),
            displaced: head.displaced.iter().map(priority::decode_displaced).collect::<Result<_, _>>()?,
            cosigned: head.cosigned.into_iter().map(decode_cosigned).collect::<Result<_, _>>()?,
            custody: head.custody.into_iter().map(decode_custody).collect::<Result<_, _>>()?,
            cursors: head.cursors.into_iter().map(subscriptions::decode_cursor).collect(),
            subscriptions: head.subscriptions.into_iter().map(subscriptions::decode).collect(),
            rosters: head
                .rosters
                .into_iter()
                .map(|roster| RosterRecord { version: roster.version, note: roster.note })
                .collect(),
            forks: head.forks.into_iter().map(decode_fork).collect::<Result<_, _>>()?,
            crls: head.crls.into_iter().map(|crl| CrlRecord { authority: crl.authority, der: crl.der }).collect(),
            time_unix_ms: head.time_unix_ms,
        };
        Ok(Self {
            seq: head.seq,
            previous: Hash(
                head.previous
                    .as_ref()
                    .try_into()
                    .map_err(|_| "the hash of the previous head is not 32 bytes".to_string())?,
            ),
            hash,
            first_offset: head.first_offset,
            end_offset: offset,
            appends: append_entries,
            backfills,
            rest,
            body_start: FRAME_BYTES + frame.head_len,
            body_len: start,
            head_len: frame.head_len,
        })
    }

    /// Returns the length of the whole record, including the padding that aligns the next one.
    pub(in crate::store) fn len(&self) -> u64 {
        ((self.body_start + self.body_len) as u64).next_multiple_of(ALIGNMENT)
    }

    /// Returns the commit, with envelopes from the record's body. The error names the damaged
    /// envelope.
    pub(in crate::store) fn commit(&self, body: &Bytes) -> Result<Commit, String> {
        let mut commit = self.rest.clone();
        let all = |recorded: &RecordEntries| recorded.entries(0..recorded.slots.len(), body, 0);
        for (append, recorded) in commit.appends.iter_mut().zip(&self.appends) {
            append.entries = all(recorded)?.into_iter().map(|(_, entry)| entry).collect();
        }
        for recorded in &self.backfills {
            let entries = all(recorded)?;
            let Some(priority_proof) = &recorded.priority_proof else {
                commit.backfills.push(Backfill { feed: recorded.feed.clone(), entries });
                continue;
            };
            commit
                .priority
                .extend(entries.into_iter().map(|(index, entry)| priority_proof.entry(&recorded.feed, index, entry)));
        }
        Ok(commit)
    }
}

impl RecordEntries {
    /// Returns the byte range of these slots' envelopes in the body.
    pub(in crate::store) fn bytes(&self, slots: Range<usize>) -> Range<usize> {
        match self.slots.get(slots) {
            Some([(_, first), .., (_, last)]) => first.start..last.start + last.len,
            Some([(_, only)]) => only.start..only.start + only.len,
            _ => 0..0,
        }
    }

    /// Checks the envelopes in a record's body against their checksums.
    pub(in crate::store) fn check(&self, body: &[u8]) -> Result<(), String> {
        match self.slots.iter().find(|(_, slot)| slot.is_damaged(body)) {
            Some((index, _)) => Err(format!("the envelope of {} {index}", self.feed)),
            None => Ok(()),
        }
    }

    /// Returns the entries of these slots. `bytes` is the part of the record's body from `start`
    /// on.
    pub(in crate::store) fn entries(
        &self,
        slots: Range<usize>,
        bytes: &Bytes,
        start: usize,
    ) -> Result<Vec<(u64, NewEntry)>, String> {
        let slots = self.slots.get(slots).unwrap_or_default();
        let entry = |(index, slot): &(u64, Slot)| {
            let entry = slot.entry(bytes, start).ok_or_else(|| format!("the envelope of {} {index}", self.feed))?;
            Ok((*index, entry))
        };
        slots.iter().map(entry).collect()
    }
}

impl Slot {
    fn is_damaged(&self, body: &[u8]) -> bool {
        let envelope = body.get(self.start..self.start + self.len);
        self.undisclosed.is_none() && envelope.is_none_or(|envelope| crc32c::crc32c(envelope) != self.checksum)
    }

    /// Returns whether the envelope matches its checksum.
    pub(in crate::store) fn is_intact(&self, envelope: &[u8]) -> bool {
        crc32c::crc32c(envelope) == self.checksum
    }

    /// Flips the one bit that makes the envelope match its checksum and digest; returns the byte
    /// that it is in.
    pub(in crate::store) fn correct(&self, envelope: &mut [u8]) -> Option<usize> {
        let place = bit_flip::correct(envelope, crc32c::crc32c(envelope), self.checksum)?;
        (barid_core::envelope::digest(envelope) == self.digest).then_some(place)
    }

    /// Returns the entry, from the part of the body that begins at `start`; `None` if its envelope
    /// is damaged.
    fn entry(&self, bytes: &Bytes, start: usize) -> Option<NewEntry> {
        let content = match self.undisclosed {
            Some(reason) => Content::Undisclosed(reason),
            None => {
                let from = self.start.checked_sub(start)?;
                if from + self.len > bytes.len() {
                    return None;
                }
                let envelope = bytes.slice(from..from + self.len);
                if crc32c::crc32c(&envelope) != self.checksum {
                    return None;
                }
                let header = barid_core::envelope::header_of(&envelope).ok().map(Arc::new);
                Content::Disclosed { envelope, header }
            }
        };
        Some(NewEntry { digest: self.digest, content })
    }
}

fn decode_backfill(
    backfill: &proto::RecordBackfill,
    offset: &mut u64,
    start: &mut usize,
) -> Result<RecordEntries, String> {
    let feed: FeedId = backfill.feed.parse().map_err(|error: barid_core::ids::NameError| error.to_string())?;
    let (digests, rest) = backfill.digests.as_chunks::<32>();
    let count = backfill.indexes.len();
    if digests.len() != count
        || !rest.is_empty()
        || backfill.envelope_sizes.len() != count
        || backfill.envelope_checksums.len() != count
    {
        return Err(format!("{feed}: the columns of {count} backfilled entries differ in length"));
    }
    if offset.checked_add(count as u64).is_none() {
        return Err(format!("{feed}: the offsets of {count} backfilled entries from {offset} overflow"));
    }
    let columns =
        backfill.indexes.iter().zip(digests).zip(backfill.envelope_sizes.iter().zip(&backfill.envelope_checksums));
    let mut slots = Vec::with_capacity(count);
    for ((index, digest), (len, checksum)) in columns {
        let len = *len as usize;
        if len == 0 || len > ENVELOPE_BYTES_MAX {
            return Err(format!("{feed}: an envelope of {len} bytes"));
        }
        let (digest, checksum) = (Digest(*digest), *checksum);
        slots.push((*index, Slot { digest, undisclosed: None, offset: *offset, start: *start, len, checksum }));
        *start += len;
        *offset += 1;
    }
    Ok(RecordEntries { feed, slots, priority_proof: None })
}

fn decode_append(
    append: proto::RecordAppend,
    offset: &mut u64,
    start: &mut usize,
) -> Result<(Append, RecordEntries), String> {
    let feed: FeedId = append.feed.parse().map_err(|error: barid_core::ids::NameError| error.to_string())?;
    let count = append.states.len();
    let digests = append.digests.as_chunks::<32>();
    let proof = append.consistency_proof.as_chunks::<32>();
    if digests.0.len() != count
        || !digests.1.is_empty()
        || !proof.1.is_empty()
        || append.envelope_sizes.len() != count
        || append.envelope_checksums.len() != count
    {
        return Err(format!("{feed}: the columns of {count} entries differ in length"));
    }
    let last = append.first.checked_add(count as u64).filter(|end| *end <= TREE_SIZE_MAX);
    if last.is_none() || offset.checked_add(count as u64).is_none() {
        let first = append.first;
        return Err(format!(
            "{feed}: the indexes of {count} entries from {first}, or their offsets from {offset}, overflow"
        ));
    }
    let mut slots = Vec::with_capacity(count);
    for (place, state) in append.states.iter().enumerate() {
        let len = append.envelope_sizes[place] as usize;
        let undisclosed = match state {
            0 => None,
            number => Some(Undisclosed::from_number(*number).ok_or_else(|| format!("{feed}: state {number}"))?),
        };
        if len > ENVELOPE_BYTES_MAX || (undisclosed.is_some() && len > 0) {
            return Err(format!("{feed}: an envelope of {len} bytes"));
        }
        let (digest, checksum) = (Digest(digests.0[place]), append.envelope_checksums[place]);
        let slot = Slot { digest, undisclosed, offset: *offset, start: *start, len, checksum };
        slots.push((append.first + place as u64, slot));
        *start += len;
        *offset += u64::from(undisclosed.is_none());
    }
    let consistency_proof = proof.0.iter().map(|hash| Hash(*hash)).collect();
    let append = Append {
        feed: feed.clone(),
        first: append.first,
        entries: Vec::new(),
        checkpoint: append.checkpoint,
        checkpoint_size: append.checkpoint_size,
        consistency_proof,
    };
    Ok((append, RecordEntries { feed, slots, priority_proof: None }))
}

fn decode_fork(fork: proto::RecordFork) -> Result<ForkRecord, String> {
    let feed = fork.feed.parse().map_err(|_| format!("`{}` is not a feed", fork.feed))?;
    Ok(ForkRecord { feed, evidence: fork.evidence, resumed: fork.resumed })
}

fn decode_cosigned(cosigned: proto::RecordCosigned) -> Result<Cosigned, String> {
    let name = |error: barid_core::ids::NameError| error.to_string();
    Ok(Cosigned {
        feed: cosigned.feed.parse().map_err(name)?,
        cosigner: cosigned.cosigner.parse().map_err(name)?,
        size: cosigned.size,
        time: cosigned.time,
        note: cosigned.note,
    })
}

fn decode_custody(custody: proto::RecordCustody) -> Result<CustodyRecord, String> {
    let name = |error: barid_core::ids::NameError| error.to_string();
    Ok(CustodyRecord {
        feed: custody.feed.parse().map_err(name)?,
        holder: custody.holder.parse().map_err(name)?,
        range: custody.start..custody.end,
        not_held: custody.not_held.as_chunks::<2>().0.iter().map(|[start, end]| *start..*end).collect(),
        time: custody.time,
        note: custody.note,
    })
}
