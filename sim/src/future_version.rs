//! What a later version of the protocol might send: fields, frames and values that this version
//! does not know.
//!
//! In scope: adding them to messages of this version. Nodes must accept such messages, and keep the
//! unknown parts of signed bytes.

use barid_core::proto;
use barid_core::proto::item::Item;
use bytes::Bytes;
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};

/// Far above every field number in use.
const UNKNOWN_FIELD: u32 = 1_900;

/// Adds fields of two wire types that this version does not know.
fn with_unknown(message: &[u8]) -> Vec<u8> {
    let mut bytes = message.to_vec();
    encode_key(UNKNOWN_FIELD, WireType::LengthDelimited, &mut bytes);
    encode_varint(5, &mut bytes);
    bytes.extend(b"later");
    encode_key(UNKNOWN_FIELD + 1, WireType::Varint, &mut bytes);
    encode_varint(u64::MAX, &mut bytes);
    bytes
}

/// Adds unknown fields to an encoded frame, and to the message in it.
pub(crate) fn frame(frame: &[u8]) -> Bytes {
    let mut rest = frame;
    let (Ok((arm, WireType::LengthDelimited)), Ok(_)) = (decode_key(&mut rest), decode_varint(&mut rest)) else {
        return Bytes::copy_from_slice(frame);
    };
    let message = with_unknown(rest);
    let mut bytes = Vec::with_capacity(message.len() + 16);
    encode_key(arm, WireType::LengthDelimited, &mut bytes);
    encode_varint(message.len() as u64, &mut bytes);
    bytes.extend(message);
    with_unknown(&bytes).into()
}

/// Returns a frame of a kind that this version does not know.
pub(crate) fn unknown_frame() -> Bytes {
    with_unknown(&[]).into()
}

/// Replaces the reasons for digests by one that this version does not know.
pub(crate) fn entries(mut entries: proto::Entries) -> proto::Entries {
    for item in &mut entries.items {
        if let Some(Item::Digests(run)) = &mut item.item {
            run.reason = "sealed-until-tomorrow".to_owned();
        }
    }
    entries
}

/// Adds unknown fields to an envelope and its header.
pub(crate) fn envelope(envelope: &Bytes) -> Bytes {
    match proto::Envelope::decode(envelope.clone()) {
        Ok(mut message) => {
            message.header = with_unknown(&message.header).into();
            with_unknown(&message.encode_to_vec()).into()
        }
        Err(_) => envelope.clone(),
    }
}
