//! Identifies certificate authorities by their public key. A renewed or cross-signed authority has
//! a new certificate, but the holder of the key can sign for all of them.
//!
//! In scope: finding the key in a PEM certificate. Out of scope: whether the certificate is valid
//! (TLS decides).

use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::certificate;

/// Identity of a listed certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Authority {
    /// The public key bits in its SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7). The algorithm is
    /// left out, because some keys allow several encodings of it.
    Key(Vec<u8>),
    /// A text without a readable certificate. It certifies nothing, and the text itself identifies
    /// it.
    Unreadable(String),
}

impl Authority {
    /// Returns the identity of one listed text.
    pub(super) fn read(text: &str) -> Self {
        public_key(text).map_or_else(|| Self::Unreadable(text.trim().to_owned()), Self::Key)
    }
}

/// Returns whether a text holds more than one PEM block. Only the first would ever be used.
pub(super) fn has_several(text: &str) -> bool {
    text.matches("-----BEGIN ").count() > 1
}

fn public_key(text: &str) -> Option<Vec<u8>> {
    let der = certificate::first_der(text)?;
    let (rest, certificate) = X509Certificate::from_der(&der).ok()?;
    rest.is_empty().then(|| certificate.public_key().subject_public_key.data.to_vec())
}
