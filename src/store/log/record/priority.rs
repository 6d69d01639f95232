//! Priority entries in a record.
//!
//! In scope: encoding and decoding one entry with its proof. Out of scope: the rest of a record
//! (the parent module).

use barid_core::feed::tree::TREE_SIZE_MAX;
use barid_core::ids::{Digest, FeedId, Hash};
use barid_core::limits::ENVELOPE_BYTES_MAX;
use barid_core::proto;
use bytes::Bytes;

use super::{RecordEntries, Slot};
use crate::store::{Content, NewEntry, PriorityEntry, validate};

/// The proof of a priority entry.
#[derive(Debug)]
pub(in crate::store) struct PriorityProof {
    pub(in crate::store) proof: Vec<Hash>,
    pub(in crate::store) checkpoint: Bytes,
    pub(in crate::store) checkpoint_size: u64,
}

impl PriorityProof {
    /// Returns the entry with its proof.
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
    // Validation rejected everything else.
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
) -> Result<RecordEntries, String> {
    let feed: FeedId = priority.feed.parse().map_err(|error: barid_core::ids::NameError| error.to_string())?;
    let (index, len) = (priority.index, priority.envelope_size as usize);
    let digest =
        priority.digest.as_ref().try_into().map_err(|_| format!("{feed} {index}: the digest is not 32 bytes"))?;
    let (proof, rest) = priority.inclusion_proof.as_chunks::<32>();
    if !rest.is_empty() || len == 0 || len > ENVELOPE_BYTES_MAX || index >= TREE_SIZE_MAX || *offset == u64::MAX {
        return Err(format!("{feed} {index}: an envelope of {len} bytes, or an invalid proof"));
    }
    let checksum = priority.envelope_checksum;
    let slot = Slot { digest: Digest(digest), undisclosed: None, offset: *offset, start: *start, len, checksum };
    *start += len;
    *offset += 1;
    let proof = proof.iter().map(|hash| Hash(*hash)).collect();
    let priority_proof =
        PriorityProof { proof, checkpoint: priority.checkpoint, checkpoint_size: priority.checkpoint_size };
    Ok(RecordEntries { feed, slots: vec![(index, slot)], priority_proof: Some(priority_proof) })
}

/// Encodes the index of a displaced entry.
pub(super) fn encode_displaced((feed, index): &(FeedId, u64)) -> proto::RecordDisplaced {
    proto::RecordDisplaced { feed: feed.to_string(), index: *index }
}

/// Decodes the index of a displaced entry.
pub(super) fn decode_displaced(displaced: &proto::RecordDisplaced) -> Result<(FeedId, u64), String> {
    let feed = displaced.feed.parse().map_err(|_| format!("`{}` is not a feed", displaced.feed))?;
    Ok((feed, displaced.index))
}
