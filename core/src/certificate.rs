//! Decides whether a certificate is fit for its purpose in the exchange.
//!
//! In scope: the certificate's own content: key, basic constraints, key usages, name constraints,
//! critical extensions, validity (RFC 5280 section 4.2, X509-SVID section 4). All callers share
//! these checks: nodes for their own certificate and for a peer's, governors for authorities, and
//! the command line. Out of scope: the name in it, its issuer's signature, and revocation
//! (transport).

use std::fmt;

use prost_types::Timestamp;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, KeyUsage, NameConstraints, ParsedExtension};
use x509_parser::oid_registry::{
    OID_CT_LIST_SCT, OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521,
    OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519, OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_CRL_DISTRIBUTION_POINTS,
    OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_KEY_USAGE, OID_X509_EXT_NAME_CONSTRAINTS,
    OID_X509_EXT_SUBJECT_ALT_NAME,
};
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Version};

use crate::bulletin::times::Time;

/// Label of a certificate in PEM (RFC 7468 section 5).
const LABEL: &str = "CERTIFICATE";
/// Smallest RSA key that TLS libraries still verify with, in bits.
const RSA_BITS_MIN: usize = 2_048;
/// Largest RSA key that our TLS library verifies with, in bits.
const RSA_BITS_MAX: usize = 8_192;
/// Bytes of an address with its mask in a name constraint (RFC 5280 section 4.2.1.10): IPv4 and
/// IPv6.
const MASKED_ADDRESS_BYTES: [usize; 2] = [8, 32];

/// Purpose of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Signs certificates and revocation lists of a member.
    Authority,
    /// Presented by a node, which accepts connections and dials.
    Node,
    /// Presented by a person or system, which only dials.
    Client,
}

/// Period of validity of a certificate, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub not_before: i64,
    /// Last second.
    pub not_after: i64,
}

impl Validity {
    /// Returns the period with its start moved this many seconds earlier, to tolerate clock
    /// differences.
    #[must_use]
    pub fn with_skew(self, seconds: i64) -> Self {
        Self { not_before: self.not_before.saturating_sub(seconds), ..self }
    }

    /// Checks that `now`, in Unix seconds, is within the period.
    ///
    /// # Errors
    /// [`Unfit`] if it is outside.
    pub fn at(self, now: i64) -> Result<(), Unfit> {
        match now {
            _ if now > self.not_after => Err(Unfit::Expired { not_after: self.not_after }),
            _ if now < self.not_before => Err(Unfit::NotYetValid { not_before: self.not_before }),
            _ => Ok(()),
        }
    }
}

/// Why a certificate is not fit for its purpose.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// No certificate in the PEM, or invalid DER.
    #[error("it contains no readable certificate")]
    Unreadable,
    /// An extension is malformed or duplicated.
    #[error("its extensions cannot be read: {0}")]
    Extensions(String),
    /// A critical extension that our verifier does not process.
    #[error(
        "its extension {0} is critical, which no extension may be but basic constraints, key usage, extended key usage, name constraints, subject alternative name, CRL distribution points and certificate timestamps"
    )]
    Critical(String),
    /// A signature algorithm that our verifier does not support.
    #[error("it is signed with {0}, not with RSA, ECDSA or Ed25519 and SHA-256, SHA-384 or SHA-512")]
    SignatureAlgorithm(String),
    /// An authority that names itself as its issuer but is not signed by its own key.
    #[error("it names itself as its issuer, but its own key has not signed it")]
    OwnSignature,
    /// An X.509 version before 3.
    #[error("it is not an X.509 certificate of version 3")]
    Version,
    /// A key type or size that is not supported.
    #[error("its key is not RSA of {RSA_BITS_MIN} to {RSA_BITS_MAX} bits, ECDSA on P-256, P-384 or P-521, or Ed25519")]
    Key,
    /// The certificate of an authority lacks CA true.
    #[error("it is not an authority's: its basic constraints do not have CA true")]
    NotAuthority,
    /// An authority's certificate where a node's or a person's is needed.
    #[error("it is an authority's: its basic constraints have CA true")]
    IsAuthority,
    /// A required key usage is missing.
    #[error("its key usage does not have {0}")]
    NoKeyUsage(&'static str),
    /// A key usage that only an authority may have.
    #[error("its key usage has {0}, which only an authority's may have")]
    KeyUsage(&'static str),
    /// A required extended key usage is missing.
    #[error("its extended key usage does not have {0}")]
    NoExtendedKeyUsage(&'static str),
    /// Name constraints that no certificate of a member can satisfy at our verifier.
    #[error(
        "its name constraints are on {0}, which are not supported: every certificate that it signs would be rejected"
    )]
    NameConstraints(&'static str),
    /// The period of validity has ended.
    #[error("it expired on {}", Utc(*.not_after))]
    Expired {
        /// Last second, Unix time.
        not_after: i64,
    },
    /// The period of validity has not begun.
    #[error("it is not valid before {}", Utc(*.not_before))]
    NotYetValid {
        /// First second, Unix time.
        not_before: i64,
    },
}

/// Checks a DER certificate. Returns its period of validity, which the caller compares with the
/// time it needs.
///
/// # Errors
/// [`Unfit`] with the first reason found.
pub fn check(der: &[u8], purpose: Purpose) -> Result<Validity, Unfit> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| Unfit::Unreadable)?;
    if !rest.is_empty() {
        return Err(Unfit::Unreadable);
    }
    if certificate.version() != X509Version::V3 {
        return Err(Unfit::Version);
    }
    check_critical(&certificate)?;
    let unparsed = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::ParseError { .. } => Some(extension.oid.to_id_string()),
        _ => None,
    });
    if let Some(oid) = unparsed {
        return Err(Unfit::Extensions(oid));
    }
    check_key(certificate.public_key())?;
    check_constraints(&certificate, purpose)?;
    check_key_usage(&certificate, purpose)?;
    check_extended_key_usage(&certificate, purpose)?;
    let validity = certificate.validity();
    Ok(Validity { not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp() })
}

/// Like [`check`], for the first certificate of a PEM text.
///
/// # Errors
/// See [`check`].
pub fn check_pem(text: &str, purpose: Purpose) -> Result<Validity, Unfit> {
    check(&first_der(text).ok_or(Unfit::Unreadable)?, purpose)
}

/// Returns the DER of the first certificate of a PEM text, which may begin with a byte order mark.
#[must_use]
pub fn first_der(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_start().trim_start_matches('\u{feff}');
    let pem = Pem::iter_from_buffer(text.as_bytes()).next()?.ok()?;
    (pem.label == LABEL).then_some(pem.contents)
}

/// Checks critical extensions. RFC 5280 section 4.2 requires a verifier to reject a certificate
/// with a critical extension that it does not process. The list holds those that the verifier
/// (rustls-webpki) processes; policies and TLS features are not among them.
fn check_critical(certificate: &X509Certificate<'_>) -> Result<(), Unfit> {
    let processed = [
        OID_X509_EXT_BASIC_CONSTRAINTS,
        OID_X509_EXT_KEY_USAGE,
        OID_X509_EXT_EXTENDED_KEY_USAGE,
        OID_X509_EXT_NAME_CONSTRAINTS,
        OID_X509_EXT_SUBJECT_ALT_NAME,
        OID_X509_EXT_CRL_DISTRIBUTION_POINTS,
        OID_CT_LIST_SCT,
    ];
    let mut critical = certificate.extensions().iter().filter(|extension| extension.critical);
    match critical.find(|extension| !processed.contains(&extension.oid)) {
        Some(unknown) => Err(Unfit::Critical(unknown.oid.to_id_string())),
        None => Ok(()),
    }
}

fn unreadable(error: &dyn fmt::Display) -> Unfit {
    Unfit::Extensions(error.to_string())
}

/// Checks that the verifier (rustls-webpki with aws-lc-rs) supports signatures by this key.
fn check_key(key: &SubjectPublicKeyInfo<'_>) -> Result<(), Unfit> {
    let algorithm = &key.algorithm.algorithm;
    let fit = if *algorithm == OID_PKCS1_RSAENCRYPTION {
        matches!(key.parsed(), Ok(PublicKey::RSA(rsa)) if (RSA_BITS_MIN..=RSA_BITS_MAX).contains(&rsa.key_size()))
    } else if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        curve.is_some_and(|curve| [OID_EC_P256, OID_NIST_EC_P384, OID_NIST_EC_P521].contains(&curve))
    } else {
        *algorithm == OID_SIG_ED25519
    };
    if fit { Ok(()) } else { Err(Unfit::Key) }
}

fn check_constraints(certificate: &X509Certificate<'_>, purpose: Purpose) -> Result<(), Unfit> {
    let basic = certificate.basic_constraints().map_err(|error| unreadable(&error))?;
    match (purpose, basic.is_some_and(|basic| basic.value.ca)) {
        (Purpose::Authority, false) => return Err(Unfit::NotAuthority),
        (Purpose::Node | Purpose::Client, true) => return Err(Unfit::IsAuthority),
        _ => {}
    }
    match certificate.name_constraints().map_err(|error| unreadable(&error))? {
        Some(names) => check_name_constraints(names.value),
        None => Ok(()),
    }
}

/// Checks name constraints. Every certificate of a member has a URI and a subject, and the verifier
/// (rustls-webpki) rejects both if their type is constrained. Constraints on host names and
/// addresses can be satisfied, and apply only to certificates that have some.
fn check_name_constraints(constraints: &NameConstraints<'_>) -> Result<(), Unfit> {
    let subtrees = [&constraints.permitted_subtrees, &constraints.excluded_subtrees];
    for subtree in subtrees.into_iter().flatten().flatten() {
        match &subtree.base {
            GeneralName::URI(_) => return Err(Unfit::NameConstraints("URIs")),
            GeneralName::DirectoryName(_) => return Err(Unfit::NameConstraints("directory names")),
            GeneralName::IPAddress(masked) if !MASKED_ADDRESS_BYTES.contains(&masked.len()) => {
                return Err(Unfit::Extensions("a name constraint on an address without its mask".into()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_key_usage(certificate: &X509Certificate<'_>, purpose: Purpose) -> Result<(), Unfit> {
    let usage = certificate.key_usage().map_err(|error| unreadable(&error))?.map(|usage| usage.value);
    let has = |bit: fn(&KeyUsage) -> bool| usage.is_some_and(bit);
    let (certificates, lists) = (has(KeyUsage::key_cert_sign), has(KeyUsage::crl_sign));
    match purpose {
        // RFC 5280 section 4.2.1.3: an authority's certificate always has the extension.
        Purpose::Authority if !certificates => Err(Unfit::NoKeyUsage("keyCertSign")),
        Purpose::Authority if !lists => Err(Unfit::NoKeyUsage("cRLSign")),
        Purpose::Authority => Ok(()),
        _ if certificates => Err(Unfit::KeyUsage("keyCertSign")),
        _ if lists => Err(Unfit::KeyUsage("cRLSign")),
        _ if usage.is_some() && !has(KeyUsage::digital_signature) => Err(Unfit::NoKeyUsage("digitalSignature")),
        _ => Ok(()),
    }
}

/// Checks the extended key usage. Without the extension every use is allowed (RFC 5280 section
/// 4.2.1.12). In a node's or a person's certificate `anyExtendedKeyUsage` allows nothing, because
/// our verifier ignores it.
fn check_extended_key_usage(certificate: &X509Certificate<'_>, purpose: Purpose) -> Result<(), Unfit> {
    let Some(usage) = certificate.extended_key_usage().map_err(|error| unreadable(&error))? else { return Ok(()) };
    let any = purpose == Purpose::Authority && usage.value.any;
    let server = any || purpose == Purpose::Client || usage.value.server_auth;
    let client = any || usage.value.client_auth;
    match (server, client) {
        (_, false) => Err(Unfit::NoExtendedKeyUsage("clientAuth")),
        (false, _) => Err(Unfit::NoExtendedKeyUsage("serverAuth")),
        (true, true) => Ok(()),
    }
}

/// Unix seconds, displayed as a date and time.
struct Utc(i64);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Time::from_proto(&Timestamp { seconds: self.0, nanos: 0 }) {
            Some(time) => time.fmt(f),
            None => write!(f, "Unix second {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const AUTHORITY: &str = include_str!("roster/vectors/authority.pem");
    /// Object identifiers below 2.5.29, DER: key usage, which is critical in the authority's
    /// certificate, and subject key identifier, which is not.
    const KEY_USAGE: [u8; 5] = [0x06, 0x03, 0x55, 0x1d, 15];
    const KEY_IDENTIFIER: [u8; 5] = [0x06, 0x03, 0x55, 0x1d, 14];

    /// Returns the authority's certificate with one extension's identifier replaced. This breaks
    /// its signature, which these tests do not check.
    fn renamed(extension: [u8; 5], arc: u8) -> Vec<u8> {
        let mut der = first_der(AUTHORITY).unwrap();
        let places: Vec<usize> = (0..der.len()).filter(|at| der[*at..].starts_with(&extension)).collect();
        assert_eq!(places.len(), 1);
        der[places[0] + 4] = arc;
        der
    }

    #[test]
    fn critical_extension_that_the_verifier_does_not_process_is_named() {
        assert!(check_pem(AUTHORITY, Purpose::Authority).is_ok());
        // Private, issuer alternative name, certificate policies, policy mappings, policy
        // constraints, inhibit anyPolicy.
        for arc in [99, 18, 32, 33, 36, 54] {
            for purpose in [Purpose::Authority, Purpose::Node, Purpose::Client] {
                let unfit = check(&renamed(KEY_USAGE, arc), purpose).unwrap_err();
                assert_eq!(unfit, Unfit::Critical(format!("2.5.29.{arc}")), "{purpose:?}");
                assert!(unfit.to_string().contains("critical"), "{unfit}");
            }
        }
        // Extensions that are not critical may be unknown.
        assert!(check(&renamed(KEY_IDENTIFIER, 99), Purpose::Authority).is_ok());
    }
}
