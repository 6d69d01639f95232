//! What tells one authority from another: its public key. A certificate is written anew when it is renewed or cross-signed; who holds
//! the key can sign in all of their names.
//!
//! In scope: finding the key in a PEM certificate. Out of scope: whether the certificate is any good (TLS decides).

use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::certificate;

/// Who a listed certificate stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Authority {
    /// The public key in its SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7), as bits. Without the algorithm beside it, which some
    /// keys can be given in several spellings.
    Key(Vec<u8>),
    /// A text in which no certificate can be read: it certifies nothing, and is told from others by itself.
    Unreadable(String),
}

impl Authority {
    /// Of one listed text.
    pub(super) fn read(text: &str) -> Self {
        public_key(text).map_or_else(|| Self::Unreadable(text.trim().to_owned()), Self::Key)
    }
}

/// Whether a text holds more than one PEM block: only the first would ever be used.
pub(super) fn has_several(text: &str) -> bool {
    text.matches("-----BEGIN ").count() > 1
}

fn public_key(text: &str) -> Option<Vec<u8>> {
    let der = certificate::first_der(text)?;
    let (rest, certificate) = X509Certificate::from_der(&der).ok()?;
    rest.is_empty().then(|| certificate.public_key().subject_public_key.data.to_vec())
}
