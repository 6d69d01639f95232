//! Envelopes. The hand-written and the generated decoder agree, and a decoded envelope can be
//! encoded and decoded again.

use barid_core::envelope::{self, EnvelopeError};
use barid_core::limits::{ENVELOPE_BYTES_MAX, HEADER_BYTES_MAX};
use barid_core::proto;
use bytes::Bytes;
use prost::Message as _;

use super::golden;

pub fn check(data: &[u8]) {
    let (ours, theirs) = (envelope::parts(data), proto::Envelope::decode(data));
    match (&ours, &theirs) {
        (Ok(ours), Ok(theirs)) => {
            assert_eq!(ours.header, theirs.header.as_ref());
            assert_eq!(ours.payload_type, theirs.payload_type);
            assert_eq!(ours.payload, theirs.payload.as_ref());
            assert_eq!(ours.salt, theirs.salt.as_ref());
            assert_eq!(ours.signatures, theirs.signatures.len());
            assert!(data.len() <= ENVELOPE_BYTES_MAX && ours.header.len() <= HEADER_BYTES_MAX);
        }
        (Err(EnvelopeError::Malformed(_)), Ok(_)) => panic!("only the generated code could read it"),
        _ => {}
    }
    let decoded = envelope::decode(&Bytes::copy_from_slice(data));
    assert_eq!(decoded.is_ok(), ours.is_ok() && theirs.is_ok());

    let (Ok(header), Ok(body)) = (envelope::header_of(data), envelope::body_of(data)) else { return };
    let written = envelope::encode(&header, &body, [7; envelope::SALT_BYTES]);
    let message = proto::Envelope {
        header: header.encode_to_vec().into(),
        payload_type: envelope::PAYLOAD_TYPE.to_owned(),
        payload: body.encode_to_vec().into(),
        signatures: Vec::new(),
        salt: Bytes::from_static(&[7; envelope::SALT_BYTES]),
    };
    assert_eq!(written, message.encode_to_vec(), "written by hand as by the generated code");
    // The canonical encoding may exceed a size limit that the input just met.
    if let (Ok(header), Ok(body)) = (envelope::header_of(&written), envelope::body_of(&written)) {
        assert_eq!(envelope::encode(&header, &body, [7; envelope::SALT_BYTES]), written);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let envelopes = barid_core::bulletin::kinds::REGISTRY.iter().map(|kind| {
        let draft = kind.sample().unwrap();
        let (header, body) = (draft.header.unwrap_or_default(), draft.body.unwrap_or_default());
        envelope::encode(&header, &body, [1; envelope::SALT_BYTES]).to_vec()
    });
    envelopes.chain([golden("envelope.bin")]).collect()
}
