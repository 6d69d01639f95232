//! Creates a development exchange in a folder: governors, a roster, and for each member an
//! authority, certificates, keys and configuration.
//!
//! In scope: everything needed to run an exchange on one machine or in containers, and to test
//! rejections. Out of scope: how a real authority protects its key. Use it for development and
//! exercises only.

mod develop;
mod folder;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use barid_core::roster::RosterError;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::ServerName;
use time::OffsetDateTime;

pub use develop::{DevelopMember, DevelopOptions, MEMBERS_MAX, Owner, Place, WORKING_GROUPS, develop};

/// Validity of development certificates.
const VALID: Duration = Duration::from_secs(365 * 24 * 3_600);
/// Validity of a development revocation list: that of the certificates, because it is not renewed.
const CRL_VALID: Duration = VALID;

/// Whether a text is a DNS name or an address, as used in certificates and endpoints.
#[must_use]
pub fn is_host(text: &str) -> bool {
    ServerName::try_from(text).is_ok()
}

/// Why an exchange was not created.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The folder holds an exchange already.
    #[error("{0} exists already; choose another folder or remove it")]
    Exists(PathBuf),
    /// A file could not be written.
    #[error("{path} cannot be written")]
    File {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A text that is not a host.
    #[error("`{0}` is not a DNS name or an address")]
    Host(String),
    /// More members than a roster holds.
    #[error("{0} members are too many: a roster may list at most {MEMBERS_MAX}")]
    TooMany(usize),
    /// A code or an endpoint that is used by several members.
    #[error("two members have {0}")]
    Twice(String),
    /// The options do not make a valid roster.
    #[error("no roster can be built of these members")]
    Roster(#[from] RosterError),
    /// A certificate could not be created.
    #[error("a certificate cannot be made")]
    Certificate(#[from] rcgen::Error),
    /// A key or text could not be created.
    #[error("{0}")]
    Text(String),
}

/// A member's certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    trust_domain: String,
}

/// A certificate with its key.
pub struct Issued {
    /// PEM certificate.
    pub certificate: String,
    /// PEM private key.
    pub key: String,
    /// Serial number.
    pub serial: Vec<u8>,
}

impl Authority {
    /// Creates an authority for a trust domain.
    ///
    /// # Errors
    /// If the key cannot be created.
    pub fn new(trust_domain: &str) -> Result<Self, PkiError> {
        Self::of(trust_domain, KeyPair::generate()?)
    }

    /// Creates an authority for a trust domain with an existing PEM key, which may be one that
    /// verifiers must reject.
    ///
    /// # Errors
    /// If the key cannot be read.
    pub fn with_key(trust_domain: &str, key: &str) -> Result<Self, PkiError> {
        Self::of(trust_domain, KeyPair::from_pem(key)?)
    }

    /// Loads the authority of a trust domain from its PEM certificate and key.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn load(trust_domain: &str, certificate: &str, key: &str) -> Result<Self, PkiError> {
        let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key)?)?;
        Ok(Self { issuer, certificate: certificate.to_owned(), trust_domain: trust_domain.to_owned() })
    }

    fn of(trust_domain: &str, key: KeyPair) -> Result<Self, PkiError> {
        Self::made(trust_domain, key, |_| ())
    }

    fn made(trust_domain: &str, key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Result<Self, PkiError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, format!("{trust_domain} (exercise)"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = span(10 * VALID);
        change(&mut params);
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate, trust_domain: trust_domain.to_owned() })
    }

    /// Returns its own certificate, PEM.
    #[must_use]
    pub fn certificate(&self) -> String {
        self.certificate.clone()
    }

    /// Returns its private key, PEM.
    #[must_use]
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Issues a certificate for a path in its own trust domain, such as `node` or
    /// `focal-point/police-hq`. `hosts` are DNS names or addresses.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn issue(&self, path: &str, hosts: &[String]) -> Result<Issued, PkiError> {
        self.issue_for(&[&format!("spiffe://{}/{path}", self.trust_domain)], hosts, span(VALID))
    }

    /// Issues a certificate for any URIs and validity, including ones that verifiers must reject.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn issue_for(
        &self,
        uris: &[&str],
        hosts: &[String],
        validity: (OffsetDateTime, OffsetDateTime),
    ) -> Result<Issued, PkiError> {
        self.signed(uris, hosts, validity, |_| ())
    }

    fn signed(
        &self,
        uris: &[&str],
        hosts: &[String],
        (not_before, not_after): (OffsetDateTime, OffsetDateTime),
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<Issued, PkiError> {
        let mut params = CertificateParams::new(hosts.to_vec())?;
        params.distinguished_name.push(DnType::CommonName, "exercise");
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into()?));
        }
        let mut serial = [0; 16];
        getrandom::fill(&mut serial).map_err(|error| PkiError::Text(error.to_string()))?;
        serial[0] = serial[0] & 0x7f | 0x40;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.is_ca = IsCa::ExplicitNoCa;
        // Strict verifiers reject a certificate without it (RFC 5280 section 4.2.1.1).
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        (params.not_before, params.not_after) = (not_before, not_after);
        change(&mut params);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { certificate: certificate.pem(), key: key.serialize_pem(), serial: serial.to_vec() })
    }

    /// Issues a certificate that is changed before it is signed, for tests of rejections.
    #[cfg(test)]
    pub(crate) fn issue_changed(
        &self,
        path: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<Issued, PkiError> {
        let uris = [&*format!("spiffe://{}/{path}", self.trust_domain)];
        self.signed(&uris, &[], span(VALID), change)
    }

    /// Creates an authority whose certificate is changed before it is signed.
    #[cfg(test)]
    pub(crate) fn changed(trust_domain: &str, change: impl FnOnce(&mut CertificateParams)) -> Result<Self, PkiError> {
        Self::made(trust_domain, KeyPair::generate()?, change)
    }

    /// Issues a revocation list, DER, with these serial numbers.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn revoke(&self, serials: &[Vec<u8>], number: u64) -> Result<Vec<u8>, PkiError> {
        self.revoke_for(serials, number, span(CRL_VALID))
    }

    /// As [`Self::revoke`], with any validity.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn revoke_for(
        &self,
        serials: &[Vec<u8>],
        number: u64,
        (this_update, next_update): (OffsetDateTime, OffsetDateTime),
    ) -> Result<Vec<u8>, PkiError> {
        let revoked = |serial: &Vec<u8>| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: this_update,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update,
            next_update,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.der().to_vec())
    }
}

/// Returns the validity from an hour ago, of this length.
fn span(length: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let from = OffsetDateTime::now_utc() - Duration::from_secs(3_600);
    (from, from + length)
}
