//! Envelopes: the exact bytes of one bulletin.
//!
//! In scope: decoding within bounds, the digest, and encoding once. Out of scope: the meaning of
//! header and body ([`crate::bulletin`]). Nothing here re-encodes decoded bytes.
//!
//! # Examples
//! ```
//! use barid_core::envelope::{SALT_BYTES, digest, encode, header_of};
//! use barid_core::proto::{Body, Header};
//!
//! let header = Header { topic: "customs.seizures".to_owned(), ..Header::default() };
//! let envelope = encode(&header, &Body::default(), [7; SALT_BYTES]);
//! assert_eq!(header_of(&envelope)?, header);
//! // The salt makes the digests of equal bulletins differ.
//! let other = encode(&header, &Body::default(), [8; SALT_BYTES]);
//! assert_ne!(digest(&envelope), digest(&other));
//! # Ok::<(), barid_core::envelope::EnvelopeError>(())
//! ```

use bytes::{BufMut, Bytes};
use prost::Message;
use prost::encoding::{self, DecodeContext, WireType};
use sha2::{Digest as _, Sha256};

use crate::ids::Digest;
use crate::limits::{
    AUTHOR_SIGNATURES_MAX, BODY_FIELDS_MAX, ENVELOPE_BYTES_MAX, HEADER_READ_BYTES_MAX, NAME_BYTES_MAX,
};
use crate::proto;

/// Form and version of the payload that this version writes: an encoded [`proto::Body`].
pub const PAYLOAD_TYPE: &str = "barid.body/1";
/// Length of the salt, in bytes.
pub const SALT_BYTES: usize = 16;

/// Bytes that are not an envelope, or not one that this version can read. The sender's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// More than [`ENVELOPE_BYTES_MAX`].
    #[error("the envelope has {0} bytes, at most {ENVELOPE_BYTES_MAX} are read")]
    TooLarge(usize),
    /// More than [`HEADER_READ_BYTES_MAX`].
    #[error("the header has {0} bytes, at most {HEADER_READ_BYTES_MAX} are read")]
    HeaderTooLarge(usize),
    /// More than [`AUTHOR_SIGNATURES_MAX`].
    #[error("the envelope has more than {AUTHOR_SIGNATURES_MAX} author signatures")]
    TooManySignatures,
    /// Invalid protocol buffers.
    #[error("the {0} is malformed")]
    Malformed(&'static str),
    /// More than [`BODY_FIELDS_MAX`].
    #[error("the body has more than {BODY_FIELDS_MAX} fields")]
    TooManyFields,
    /// A payload of a form that this version does not know. Such an envelope is stored and
    /// forwarded.
    #[error("the payload has the unknown form `{0}`")]
    UnknownPayload(String),
}

/// The parts of an envelope, borrowed from its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts<'a> {
    /// An encoded header.
    pub header: &'a [u8],
    /// Form and version of the payload.
    pub payload_type: &'a str,
    /// The encoded body.
    pub payload: &'a [u8],
    /// Makes the digest unguessable.
    pub salt: &'a [u8],
    /// Number of author signatures.
    pub signatures: usize,
}

/// Returns the SHA-256 of the exact bytes, which is the record in the feed's tree.
#[must_use]
pub fn digest(envelope: &[u8]) -> Digest {
    Digest(Sha256::digest(envelope).into())
}

/// Returns the envelope's parts without copying. As protocol buffers require, the last of repeated
/// fields wins and unknown fields are skipped.
///
/// # Errors
/// [`EnvelopeError`] if a bound is exceeded or the outer form is malformed. Header and payload are
/// not decoded.
pub fn parts(envelope: &[u8]) -> Result<Parts<'_>, EnvelopeError> {
    if envelope.len() > ENVELOPE_BYTES_MAX {
        return Err(EnvelopeError::TooLarge(envelope.len()));
    }
    let mut parts = Parts::default();
    for field in Fields(envelope) {
        match field? {
            (1, Some(value)) => parts.header = value,
            (2, Some(value)) => parts.payload_type = std::str::from_utf8(value).map_err(|_| MALFORMED)?,
            (3, Some(value)) => parts.payload = value,
            (4, Some(_)) => parts.signatures += 1,
            (5, Some(value)) => parts.salt = value,
            (1..=5, None) => return Err(MALFORMED),
            _ => {}
        }
    }
    if parts.header.len() > HEADER_READ_BYTES_MAX {
        return Err(EnvelopeError::HeaderTooLarge(parts.header.len()));
    }
    if parts.signatures > AUTHOR_SIGNATURES_MAX {
        return Err(EnvelopeError::TooManySignatures);
    }
    Ok(parts)
}

const MALFORMED: EnvelopeError = EnvelopeError::Malformed("envelope");

/// Iterates over the fields of one message in wire order: tag, and the value if it is
/// length-delimited. Ends after an error.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Option<&'a [u8]>), EnvelopeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or(MALFORMED))
    }
}

impl<'a> Fields<'a> {
    fn read(&mut self) -> Option<(u32, Option<&'a [u8]>)> {
        let (tag, wire_type) = encoding::decode_key(&mut self.0).ok()?;
        if wire_type != WireType::LengthDelimited {
            encoding::skip_field(wire_type, tag, &mut self.0, DecodeContext::default()).ok()?;
            return Some((tag, None));
        }
        let length = usize::try_from(encoding::decode_varint(&mut self.0).ok()?).ok()?;
        let (value, after) = self.0.split_at_checked(length)?;
        self.0 = after;
        Some((tag, Some(value)))
    }
}

impl Parts<'_> {
    /// Checks that the payload can be decoded within bounds. Fields are counted first, because two
    /// bytes on the wire can become a hundred in memory.
    ///
    /// # Errors
    /// [`EnvelopeError::UnknownPayload`], or [`EnvelopeError::TooManyFields`].
    pub fn check_payload(&self) -> Result<(), EnvelopeError> {
        if self.payload_type != PAYLOAD_TYPE {
            return Err(EnvelopeError::UnknownPayload(self.payload_type.chars().take(NAME_BYTES_MAX).collect()));
        }
        // Fields 4 to 7 of Body and its content arms from 20 on are messages. Lists are not nested
        // deeper than the fields of these messages.
        let is_message = |tag: u32| (4..=7).contains(&tag) || tag >= 20;
        let mut count = 0;
        for (tag, value) in Fields(self.payload).map_while(Result::ok) {
            count += 1;
            if let Some(value) = value.filter(|_| is_message(tag)) {
                count += Fields(value).take(BODY_FIELDS_MAX + 1).count();
            }
            if count > BODY_FIELDS_MAX {
                return Err(EnvelopeError::TooManyFields);
            }
        }
        Ok(())
    }
}

/// Decodes the envelope as a message whose byte fields share `envelope`'s memory.
///
/// # Errors
/// As [`parts`].
pub fn decode(envelope: &Bytes) -> Result<proto::Envelope, EnvelopeError> {
    parts(envelope)?;
    proto::Envelope::decode(envelope.clone()).map_err(|_| EnvelopeError::Malformed("envelope"))
}

/// Decodes the header of an envelope. Its values are not validated.
///
/// # Errors
/// As [`parts`], or a malformed header.
pub fn header_of(envelope: &[u8]) -> Result<proto::Header, EnvelopeError> {
    proto::Header::decode(parts(envelope)?.header).map_err(|_| EnvelopeError::Malformed("header"))
}

/// Decodes the body of an envelope.
///
/// # Errors
/// As [`parts`], a malformed body, one with too many fields, or a payload of an unknown form.
pub fn body_of(envelope: &[u8]) -> Result<proto::Body, EnvelopeError> {
    let parts = parts(envelope)?;
    parts.check_payload()?;
    proto::Body::decode(parts.payload).map_err(|_| EnvelopeError::Malformed("body"))
}

/// Encodes an envelope in one allocation. The bytes equal the encoding of [`proto::Envelope`].
#[must_use]
pub fn encode(header: &proto::Header, body: &proto::Body, salt: [u8; SALT_BYTES]) -> Bytes {
    let (header_len, body_len) = (header.encoded_len(), body.encoded_len());
    let mut out = Vec::with_capacity(header_len + body_len + PAYLOAD_TYPE.len() + SALT_BYTES + 24);
    let start = |tag: u32, len: usize, out: &mut Vec<u8>| {
        encoding::encode_key(tag, WireType::LengthDelimited, out);
        encoding::encode_varint(len as u64, out);
    };
    if header_len > 0 {
        start(1, header_len, &mut out);
        header.encode_raw(&mut out);
    }
    start(2, PAYLOAD_TYPE.len(), &mut out);
    out.put_slice(PAYLOAD_TYPE.as_bytes());
    if body_len > 0 {
        start(3, body_len, &mut out);
        body.encode_raw(&mut out);
    }
    start(5, SALT_BYTES, &mut out);
    out.put_slice(&salt);
    out.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn message(header: Vec<u8>, payload: Vec<u8>) -> proto::Envelope {
        proto::Envelope {
            header: header.into(),
            payload_type: PAYLOAD_TYPE.to_owned(),
            payload: payload.into(),
            signatures: Vec::new(),
            salt: Bytes::from_static(&[7; SALT_BYTES]),
        }
    }

    #[test]
    fn writing_by_hand_equals_the_generated_code() {
        let header = proto::Header { format: 1, kind: "situation-report".to_owned(), ..Default::default() };
        let body = proto::Body { certainty: "Likely".to_owned(), ..Default::default() };
        for (header, body) in
            [(header.clone(), body.clone()), (header, proto::Body::default()), (proto::Header::default(), body)]
        {
            let expected = message(header.encode_to_vec(), body.encode_to_vec()).encode_to_vec();
            let written = encode(&header, &body, [7; SALT_BYTES]);
            assert_eq!(written, expected);
            assert_eq!(header_of(&written).unwrap(), header);
            assert_eq!(body_of(&written).unwrap(), body);
        }
    }

    #[test]
    fn bounds_are_named() {
        let large = message(Vec::new(), vec![0; ENVELOPE_BYTES_MAX]).encode_to_vec();
        assert_eq!(parts(&large), Err(EnvelopeError::TooLarge(large.len())));
        let header = message(vec![0; HEADER_READ_BYTES_MAX + 1], Vec::new()).encode_to_vec();
        assert_eq!(header_of(&header), Err(EnvelopeError::HeaderTooLarge(HEADER_READ_BYTES_MAX + 1)));
        let mut signed = message(Vec::new(), Vec::new());
        signed.signatures = vec![proto::AuthorSignature::default(); AUTHOR_SIGNATURES_MAX + 1];
        assert_eq!(decode(&signed.encode_to_vec().into()), Err(EnvelopeError::TooManySignatures));
    }

    #[test]
    fn body_fields_are_bounded_before_decoding() {
        let goods = vec![proto::Goods::default(); ENVELOPE_BYTES_MAX / 2 - 1_000];
        let seizure = proto::SeizureReport { goods, ..Default::default() };
        let content = Some(proto::body::Content::SeizureReport(seizure));
        let full = message(Vec::new(), proto::Body { content, ..Default::default() }.encode_to_vec()).encode_to_vec();
        assert_eq!(body_of(&full), Err(EnvelopeError::TooManyFields));
        let texts = proto::Body { texts: vec![proto::Text::default(); BODY_FIELDS_MAX + 1], ..Default::default() };
        let full = message(Vec::new(), texts.encode_to_vec()).encode_to_vec();
        assert_eq!(body_of(&full), Err(EnvelopeError::TooManyFields));
        assert_eq!(header_of(&full), Ok(proto::Header::default()), "its header is still decoded");
    }

    #[test]
    fn an_unknown_payload_is_named_and_its_header_still_read() {
        let mut sealed = message(proto::Header { format: 1, ..Default::default() }.encode_to_vec(), vec![1, 2, 3]);
        sealed.payload_type = "barid.sealed/1".to_owned();
        let bytes = sealed.encode_to_vec();
        assert_eq!(body_of(&bytes), Err(EnvelopeError::UnknownPayload("barid.sealed/1".to_owned())));
        assert_eq!(header_of(&bytes).unwrap().format, 1);
    }

    #[test]
    fn the_digest_is_sha_256() {
        assert_eq!(digest(b"abc").to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    proptest! {
        #[test]
        fn reading_by_hand_agrees_with_the_generated_code(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let ours = parts(&bytes);
            match proto::Envelope::decode(bytes.as_slice()) {
                Ok(theirs) => {
                    let ours = ours.unwrap();
                    prop_assert_eq!(ours.header, theirs.header.as_ref());
                    prop_assert_eq!(ours.payload_type, theirs.payload_type.as_str());
                    prop_assert_eq!(ours.payload, theirs.payload.as_ref());
                    prop_assert_eq!(ours.salt, theirs.salt.as_ref());
                }
                // Only the generated code detects a malformed author signature.
                Err(_) => { let _ = decode(&bytes.into()); }
            }
        }

        #[test]
        fn a_cut_envelope_never_panics(cut in 0usize..80) {
            let whole = message(vec![8, 1], vec![1; 40]).encode_to_vec();
            let _ = header_of(&whole[..cut.min(whole.len())]);
            let _ = body_of(&whole[..cut.min(whole.len())]);
        }
    }
}
