//! Entries that came ahead of their feeds' order, in a record.
//!
//! In scope: one entry with what proves it, to bytes and back. Out of scope: everything else in a record (the parent).

use barid_core::feed::tree::TREE_SIZE_MAX;
use barid_core::ids::{Digest, FeedId, Hash};
use barid_core::limits::ENVELOPE_BYTES_MAX;
use barid_core::proto;
use bytes::Bytes;

use super::{BackfillRecord, Slot};
use crate::store::{Content, NewEntry, PriorityEntry, validate};

/// What proves an entry that came ahead of the order.
#[derive(Debug)]
pub(in crate::store) struct PriorityProof {
    pub(in crate::store) proof: Vec<Hash>,
    pub(in crate::store) checkpoint: Bytes,
    pub(in crate::store) checkpoint_size: u64,
}

impl PriorityProof {
    /// The entry with what proves it.
    pub(in crate::store) fn entry(&self, feed: &FeedId, index: u64, entry: NewEntry) -> PriorityEntry {
        PriorityEntry {
            feed: feed.clone(),
            index,
            entry,
            proof: self.proof.clone(),
            checkpoint: self.checkpoint.clone(),
            checkpoint_size: self.checkpoint_size,
        }
    }
}

pub(super) fn encode(priority: &PriorityEntry) -> proto::RecordPriority {
    let mut record = proto::RecordPriority {
        feed: priority.feed.to_string(),
        index: priority.index,
        digest: Bytes::copy_from_slice(&priority.entry.digest.0),
        checkpoint: priority.checkpoint.clone(),
        checkpoint_size: priority.checkpoint_size,
        inclusion_proof: priority.proof.iter().flat_map(|hash| hash.0).collect(),
        ..proto::RecordPriority::default()
    };
    // Nothing else was let in.
    if let Content::Disclosed { envelope, header } = &priority.entry.content {
        record.envelope_size = u32::try_from(envelope.len()).unwrap_or(u32::MAX);
        record.envelope_checksum = crc32c::crc32c(envelope);
        let id = validate::id_of(&priority.feed, header.as_deref()).unwrap_or_default();
        record.id = Bytes::copy_from_slice(id.as_bytes());
    }
    record
}

pub(super) fn decode(
    priority: proto::RecordPriority,
    offset: &mut u64,
    start: &mut usize,
) -> Result<BackfillRecord, String> {
    let feed: FeedId = priority.feed.parse().map_err(|error: barid_core::ids::NameError| error.to_string())?;
    let (index, len) = (priority.index, priority.envelope_size as usize);
    let digest =
        priority.digest.as_ref().try_into().map_err(|_| format!("{feed} {index}: the digest is not 32 bytes"))?;
    let (proof, rest) = priority.inclusion_proof.as_chunks::<32>();
    if !rest.is_empty() || len == 0 || len > ENVELOPE_BYTES_MAX || index >= TREE_SIZE_MAX || *offset == u64::MAX {
        return Err(format!("{feed} {index}: an envelope of {len} bytes, or a proof that is none"));
    }
    let checksum = priority.envelope_checksum;
    let slot = Slot { digest: Digest(digest), undisclosed: None, offset: *offset, start: *start, len, checksum };
    *start += len;
    *offset += 1;
    let proof = proof.iter().map(|hash| Hash(*hash)).collect();
    let priority_proof =
        PriorityProof { proof, checkpoint: priority.checkpoint, checkpoint_size: priority.checkpoint_size };
    Ok(BackfillRecord { feed, slots: vec![(index, slot)], priority_proof: Some(priority_proof) })
}

/// A place whose entry ahead of the order makes room for another one.
pub(super) fn encode_displaced((feed, index): &(FeedId, u64)) -> proto::RecordDisplaced {
    proto::RecordDisplaced { feed: feed.to_string(), index: *index }
}

/// The same, read.
pub(super) fn decode_displaced(displaced: &proto::RecordDisplaced) -> Result<(FeedId, u64), String> {
    let feed = displaced.feed.parse().map_err(|_| format!("`{}` is no feed", displaced.feed))?;
    Ok((feed, displaced.index))
}
