//! Decodes messages of the services as tonic does, after a check of how many parts a message has.
//!
//! A part of two bytes on the wire takes about a hundred in memory: a message within its bound in
//! bytes could become hundreds of megabytes.
//!
//! In scope: counting the parts of a message before anything is allocated for them. Out of scope:
//! what the parts are (`core`), and bounds in bytes.

use std::any::TypeId;
use std::marker::PhantomData;

use barid_core::limits::FRAME_PARTS_MAX;
use barid_core::proto;
use bytes::Buf as _;
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// The codec of all services.
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(ProstCodec::<T, U>::default().decoder())
    }
}

/// Decodes a message unless it has too many parts.
pub struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default + 'static> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if let Some(depth) = depth_of::<U>() {
            check(src.chunk(), depth)?;
        }
        self.0.decode(src)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Returns how deep the parts of a message are counted, for link frames and requests. Responses of
/// the API are this node's own, and long: they are not counted.
fn depth_of<U: 'static>() -> Option<u32> {
    let is_frame = [TypeId::of::<proto::LinkRequest>(), TypeId::of::<proto::LinkResponse>()];
    if is_frame.contains(&TypeId::of::<U>()) {
        Some(FRAME_DEPTH)
    } else {
        std::any::type_name::<U>().ends_with("Request").then_some(REQUEST_DEPTH)
    }
}

fn check(message: &[u8], depth: u32) -> Result<(), Status> {
    // A part takes at least two bytes.
    if message.len() / 2 <= FRAME_PARTS_MAX {
        return Ok(());
    }
    match count_parts(message, depth, FRAME_PARTS_MAX) {
        // The decoder cannot decode it either, and returns the error.
        None => Ok(()),
        Some(parts) if parts <= FRAME_PARTS_MAX => Ok(()),
        Some(_) => Err(Status::resource_exhausted(format!("a message has more than {FRAME_PARTS_MAX} parts"))),
    }
}

/// Nesting depth of the parts of a frame: request, frame, its kind, and its repeated fields
/// (entries, heads). Deeper fields occur once in each of these, or are bytes.
const FRAME_DEPTH: u32 = 4;
/// Nesting depth of the parts of an API request. The deepest is a draft's body, with the content of
/// its lists.
const REQUEST_DEPTH: u32 = 10;

/// Counts the fields of a message and of its nested messages, `depth` deep, until there are more
/// than `max`. Returns `None` if the bytes are not a message. A string or bytes that look like a
/// message count as one, which adds a few parts.
fn count_parts(message: &[u8], depth: u32, max: usize) -> Option<usize> {
    let (mut rest, mut parts) = (message, 0);
    while !rest.is_empty() && parts <= max {
        parts += 1;
        match varint(&mut rest)? & 7 {
            0 => _ = varint(&mut rest)?,
            1 => rest = rest.get(8..)?,
            5 => rest = rest.get(4..)?,
            2 => {
                let len = usize::try_from(varint(&mut rest)?).ok()?;
                let (inner, after) = rest.split_at_checked(len)?;
                rest = after;
                if depth > 1 {
                    parts += count_parts(inner, depth - 1, max.saturating_sub(parts)).unwrap_or(0);
                }
            }
            // Groups, which no message here uses.
            _ => return None,
        }
    }
    Some(parts)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use barid_core::limits::{
        BACKFILL_RANGES_MAX, BATCH_ENTRIES_MAX, FILTERS_MAX, MESSAGE_BYTES_MAX, PROOF_HASHES_MAX,
    };
    use barid_core::proto::frame::Frame;
    use bytes::Bytes;

    use super::*;

    fn request(frame: Frame) -> Vec<u8> {
        proto::LinkRequest { frame: Some(proto::Frame { frame: Some(frame) }) }.encode_to_vec()
    }

    #[test]
    fn frames_of_a_million_empty_parts_are_rejected_before_they_are_decoded() {
        let heads =
            proto::TreeHeads { heads: vec![proto::TreeHead::default(); 1_000_000], ..proto::TreeHeads::default() };
        let items = vec![proto::Item::default(); 1_000_000];
        let head = proto::TreeHead { cosigned: vec![Bytes::new(); 1_000_000], ..proto::TreeHead::default() };
        let ranges = vec![proto::IndexRange::default(); 1_000_000];
        for frame in [
            Frame::TreeHeads(heads),
            Frame::TreeHeads(proto::TreeHeads { heads: vec![head], ..proto::TreeHeads::default() }),
            Frame::TreeHeads(proto::TreeHeads { crls: vec![Bytes::new(); 1_000_000], ..proto::TreeHeads::default() }),
            Frame::Entries(proto::Entries { items, ..proto::Entries::default() }),
            Frame::Follow(proto::Follow { ranges, ..proto::Follow::default() }),
            Frame::Follow(proto::Follow { topics: vec![String::new(); 1_000_000], ..proto::Follow::default() }),
            Frame::Rosters(proto::Rosters { notes: vec![Bytes::new(); 1_000_000] }),
            Frame::BackfillResponse(proto::BackfillResponse {
                items: vec![proto::Backfill::default(); 1_000_000],
                ..proto::BackfillResponse::default()
            }),
        ] {
            let message = request(frame);
            assert!(message.len() < MESSAGE_BYTES_MAX);
            assert!(check(&message, FRAME_DEPTH).is_err());
        }
        // One frame in many pieces, which a protobuf decoder merges.
        let piece = request(Frame::TreeHeads(proto::TreeHeads {
            heads: vec![proto::TreeHead::default(); 8],
            ..Default::default()
        }));
        assert!(check(&piece, FRAME_DEPTH).is_ok());
        assert!(check(&piece.repeat(10_000), FRAME_DEPTH).is_err());
    }

    #[test]
    fn frames_and_requests_are_counted_and_responses_are_not() {
        assert_eq!(depth_of::<proto::LinkResponse>(), Some(FRAME_DEPTH));
        assert_eq!(depth_of::<proto::LinkRequest>(), Some(FRAME_DEPTH));
        for depth in [
            depth_of::<proto::PublishRequest>(),
            depth_of::<proto::PublishStreamRequest>(),
            depth_of::<proto::SubscribeRequest>(),
        ] {
            assert_eq!(depth, Some(REQUEST_DEPTH));
        }
        assert_eq!(depth_of::<proto::HistoryResponse>(), None);
    }

    #[test]
    fn drafts_of_a_million_empty_parts_are_rejected_before_they_are_decoded() {
        let draft = |header: proto::Header, body: proto::Body| {
            let draft = proto::Draft { header: Some(header), body: Some(body) };
            proto::PublishRequest { draft: Some(draft), ..Default::default() }.encode_to_vec()
        };
        let many = draft(
            proto::Header { references: vec![proto::Reference::default(); 1_000_000], ..Default::default() },
            proto::Body::default(),
        );
        assert!(check(&many, REQUEST_DEPTH).is_err());
        let texts = proto::Body { texts: vec![proto::Text::default(); 1_000_000], ..Default::default() };
        assert!(check(&draft(proto::Header::default(), texts), REQUEST_DEPTH).is_err());
        let filter = proto::Filter { topics: vec![String::new(); 1_000_000], ..Default::default() };
        let subscribe = proto::SubscribeRequest { filter: Some(filter), ..Default::default() };
        assert!(check(&subscribe.encode_to_vec(), REQUEST_DEPTH).is_err());
    }

    #[test]
    fn largest_frames_sent_by_a_node_are_accepted() {
        let hash = Bytes::from_static(&[7; 32]);
        let envelope =
            Bytes::from(proto::Envelope { header: vec![1; 99].into(), ..Default::default() }.encode_to_vec());
        let item = proto::Item { item: Some(proto::item::Item::Envelope(envelope.clone())) };
        let items = vec![item; BATCH_ENTRIES_MAX];
        let consistency_proof = vec![hash; PROOF_HASHES_MAX];
        let backfill = proto::Backfill { index: u64::MAX, envelope };
        let range = proto::IndexRange { start: 1 << 40, end: u64::MAX };
        let topics = vec!["customs.>".into(); FILTERS_MAX];
        let note = Bytes::from_static(b"a note");
        let head = proto::TreeHead { checkpoint: note.clone(), cosigned: vec![note.clone()], held: Some(7) };
        let (heads, crls) = (vec![head; 1_024], vec![note.clone(); 256]);
        for frame in [
            Frame::Entries(proto::Entries { items, consistency_proof, ..proto::Entries::default() }),
            Frame::BackfillResponse(proto::BackfillResponse {
                items: vec![backfill; BATCH_ENTRIES_MAX],
                ..proto::BackfillResponse::default()
            }),
            Frame::Follow(proto::Follow {
                ranges: vec![range; BACKFILL_RANGES_MAX],
                topics,
                ..proto::Follow::default()
            }),
            Frame::TreeHeads(proto::TreeHeads { heads, crls, roster_version: 9 }),
            Frame::RelayedCustody(proto::RelayedCustody { notes: vec![note; 64], ..Default::default() }),
            Frame::Hello(proto::Hello { exchange: "rabat.example".into(), ..proto::Hello::default() }),
        ] {
            check(&request(frame), FRAME_DEPTH).unwrap();
        }
    }

    #[test]
    fn undecodable_message_is_left_to_the_decoder() {
        for message in [&[0xff; 20][..], &[0x0a, 0x7f], &[0x0b], &[0x0a, 0x02, 0x12]] {
            assert!(check(message, FRAME_DEPTH).is_ok());
        }
    }
}
