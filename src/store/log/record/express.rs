//! Entries that came ahead of their feeds' order, in a record.
//!
//! In scope: one entry with what proves it, to bytes and back. Out of scope: everything else in a record (the parent).

use barid_core::feed::tree::TREE_SIZE_MAX;
use barid_core::limits::ENVELOPE_BYTES_MAX;
use barid_core::names::{Digest, FeedId, Hash};
use barid_core::proto;
use bytes::Bytes;

use super::{RecordedFill, Slot};
use crate::store::{Content, Express, NewEntry, admit};

/// What proves an entry that came ahead of the order.
#[derive(Debug)]
pub(in crate::store) struct Proven {
    pub(in crate::store) proof: Vec<Hash>,
    pub(in crate::store) checkpoint: Bytes,
    pub(in crate::store) checkpoint_size: u64,
}

impl Proven {
    /// The entry with what proves it.
    pub(in crate::store) fn express(&self, feed: &FeedId, index: u64, entry: NewEntry) -> Express {
        Express {
            feed: feed.clone(),
            index,
            entry,
            proof: self.proof.clone(),
            checkpoint: self.checkpoint.clone(),
            checkpoint_size: self.checkpoint_size,
        }
    }
}

pub(super) fn encode(express: &Express) -> proto::RecordExpress {
    let mut record = proto::RecordExpress {
        feed: express.feed.to_string(),
        index: express.index,
        digest: Bytes::copy_from_slice(&express.entry.digest.0),
        checkpoint: express.checkpoint.clone(),
        checkpoint_size: express.checkpoint_size,
        inclusion_proof: express.proof.iter().flat_map(|hash| hash.0).collect(),
        ..proto::RecordExpress::default()
    };
    // Nothing else was let in.
    if let Content::Disclosed { envelope, header } = &express.entry.content {
        record.envelope_size = u32::try_from(envelope.len()).unwrap_or(u32::MAX);
        record.envelope_checksum = crc32c::crc32c(envelope);
        let id = admit::id_of(&express.feed, header.as_deref()).unwrap_or_default();
        record.id = Bytes::copy_from_slice(id.as_bytes());
    }
    record
}

pub(super) fn decode(
    express: proto::RecordExpress,
    arrival: &mut u64,
    start: &mut usize,
) -> Result<RecordedFill, String> {
    let feed: FeedId = express.feed.parse().map_err(|error: barid_core::names::NameError| error.to_string())?;
    let (index, len) = (express.index, express.envelope_size as usize);
    let digest =
        express.digest.as_ref().try_into().map_err(|_| format!("{feed} {index}: the digest is not 32 bytes"))?;
    let (proof, rest) = express.inclusion_proof.as_chunks::<32>();
    if !rest.is_empty() || len == 0 || len > ENVELOPE_BYTES_MAX || index >= TREE_SIZE_MAX || *arrival == u64::MAX {
        return Err(format!("{feed} {index}: an envelope of {len} bytes, or a proof that is none"));
    }
    let checksum = express.envelope_checksum;
    let slot = Slot { digest: Digest(digest), undisclosed: None, arrival: *arrival, start: *start, len, checksum };
    *start += len;
    *arrival += 1;
    let proof = proof.iter().map(|hash| Hash(*hash)).collect();
    let proven = Proven { proof, checkpoint: express.checkpoint, checkpoint_size: express.checkpoint_size };
    Ok(RecordedFill { feed, slots: vec![(index, slot)], proven: Some(proven) })
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
