//! Verification of certificates, the same for both directions and again for live connections.

use std::sync::Arc;
use std::time::Duration;

use barid_core::certificate::{self, Purpose, Unfit};
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, Der, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, PeerIncompatible, SignatureScheme};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use webpki::{EndEntityCert, ExpirationPolicy, KeyUsage, RevocationOptionsBuilder, UnknownStatusPolicy};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::rejection::{NO_URI, Rejection, UNSUITABLE};
use super::revocation::{Crl, CrlStore};
use super::trust::{Authority, PeerIdentity, SpiffeId, Trust};

/// Result of verifying a signature in a handshake.
pub(crate) type Verified = Result<HandshakeSignatureValid, rustls::Error>;

/// Which identities a verifier admits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Nodes of members outside this trust domain.
    Peers(String),
    /// People and systems of this trust domain, except its node.
    OwnClients(String),
    /// Exactly this identity.
    Exactly(SpiffeId),
}

/// Verifies certificates by the newest roster and CRLs.
#[derive(Clone, Debug)]
pub struct Verifier {
    /// Authorities by trust domain.
    pub trust: Trust,
    /// Their CRLs.
    pub crls: CrlStore,
    /// Which identities are admitted.
    pub policy: Policy,
    /// Seconds after a CRL's nextUpdate during which nodes are still admitted.
    pub grace_seconds: i64,
    pub(super) provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// Creates a verifier with the default cryptography provider.
    #[must_use]
    pub fn new(trust: Trust, crls: CrlStore, policy: Policy, grace_seconds: i64) -> Self {
        Self { trust, crls, policy, grace_seconds, provider: Arc::new(aws_lc_rs::default_provider()) }
    }

    /// Returns the identity of a certificate that is admitted at `now`. Only the authorities in the
    /// roster issue certificates; intermediates are not accepted, because no CRL that this node
    /// trusts could revoke what they issued. A member with intermediate authorities lists those in
    /// the roster.
    ///
    /// # Errors
    /// [`Rejection`] with a stable reason.
    pub fn identify(&self, end_entity: &CertificateDer<'_>, now: UnixTime) -> Result<PeerIdentity, Rejection> {
        let (spiffe, not_before, not_after) = read(end_entity)?;
        self.admits(&spiffe)?;
        let domains = self.trust.load();
        let domain = domains.get(&spiffe.trust_domain).ok_or_else(|| {
            Rejection::new("unknown-member", format!("the roster has no trust domain {}", spiffe.trust_domain))
        })?;
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if seconds < not_before {
            return Err(Rejection::new(
                "not-yet-valid",
                format!("{spiffe} is not valid before {}", rfc3339(not_before)),
            ));
        }
        if seconds > not_after {
            return Err(Rejection::new("expired", format!("{spiffe} was valid until {}", rfc3339(not_after))));
        }
        let certificate = parse_fit(end_entity, &spiffe)?;
        let mut rejected = None;
        for authority in &domain.authorities {
            let crl = self.crls.of(&authority.id());
            match self.path(&certificate, authority, crl.as_deref(), now) {
                Ok(()) => {
                    let good_until = self.fresh(&spiffe, crl.as_deref(), seconds)?;
                    let until = not_after.min(good_until);
                    return Ok(PeerIdentity { spiffe, member: domain.member.clone(), until });
                }
                Err(webpki::Error::CertRevoked) => {
                    return Err(Rejection::new("revoked", format!("{spiffe} was revoked")));
                }
                Err(webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey) => {}
                Err(other) => rejected = Some(Rejection::new("invalid-path", format!("{spiffe}: {other}"))),
            }
        }
        Err(rejected.unwrap_or_else(|| {
            let mut detail = format!("{spiffe} is not certified by an authority of {}", domain.member);
            for unfit in &domain.unfit {
                detail = format!("{detail}; an authority in the roster is not used: {unfit}");
            }
            Rejection::new("wrong-ca", detail)
        }))
    }

    /// Versions of the trust and the CRLs. Together with a certificate and the time they determine
    /// the result.
    pub(super) fn state(&self) -> (u64, u64) {
        (self.trust.version(), self.crls.version())
    }

    /// Verifies the path to one authority, with only that authority's CRL: another authority may
    /// use the same serial numbers.
    fn path(
        &self,
        certificate: &EndEntityCert<'_>,
        authority: &Authority,
        crl: Option<&Crl>,
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        let crls: Vec<_> = crl.map(|crl| &crl.parsed).into_iter().collect();
        let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|options| {
            options
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        let usage = match self.policy {
            Policy::Exactly(_) => KeyUsage::server_auth(),
            Policy::Peers(_) | Policy::OwnClients(_) => KeyUsage::client_auth(),
        };
        let algorithms = self.provider.signature_verification_algorithms.all;
        let anchors = std::slice::from_ref(&authority.anchor);
        certificate.verify_for_usage(algorithms, anchors, &[], now, usage, revocation, None).map(|_| ())
    }

    /// Returns until when the CRL is fresh enough for `spiffe`, in Unix seconds. Without a CRL, the
    /// authority is trusted: CRLs arrive over the links.
    fn fresh(&self, spiffe: &SpiffeId, crl: Option<&Crl>, seconds: i64) -> Result<i64, Rejection> {
        let Some(crl) = crl else { return Ok(i64::MAX) };
        let grace = if spiffe.is_node() { self.grace_seconds } else { 0 };
        let until = crl.next_update.saturating_add(grace);
        if seconds > until {
            let next_update = rfc3339(crl.next_update);
            let detail = format!("{spiffe}: the CRL of its authority expired on {next_update}");
            return Err(Rejection::new("crl-stale", detail));
        }
        Ok(until)
    }

    fn admits(&self, spiffe: &SpiffeId) -> Result<(), Rejection> {
        let reject = |reason, expected: &str| Err(Rejection::new(reason, format!("{spiffe} is not {expected}")));
        match &self.policy {
            Policy::Peers(_) if !spiffe.is_node() => reject("not-a-node", "a node"),
            Policy::Peers(own) if spiffe.trust_domain == *own => reject("not-a-peer", "another member"),
            Policy::OwnClients(own) if spiffe.trust_domain != *own => reject("not-our-member", "of this member"),
            Policy::OwnClients(_) if spiffe.is_node() => reject("is-a-node", "a person or system"),
            Policy::Exactly(expected) if spiffe != expected => reject("identity-mismatch", &expected.to_string()),
            _ => Ok(()),
        }
    }
}

/// Returns notBefore and notAfter of a certificate in Unix seconds; `None` if it cannot be parsed.
#[must_use]
pub fn validity(certificate: &CertificateDer<'_>) -> Option<(i64, i64)> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let validity = parsed.validity();
    Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// Returns the identity in a certificate of a node or client, without checking that the certificate
/// is suitable.
///
/// # Errors
/// [`Rejection`] if it does not name exactly one SPIFFE ID.
pub fn named(end_entity: &CertificateDer<'_>) -> Result<SpiffeId, Rejection> {
    read(end_entity).map(|(spiffe, _, _)| spiffe)
}

/// Checks a certificate of a node or client like [`Verifier::identify`], as far as is possible
/// without its issuer, and returns its identity. It does not check whether the certificate is valid
/// now, who signed it or whether it is revoked.
///
/// # Errors
/// [`Rejection`] with a stable reason.
pub fn examine(end_entity: &CertificateDer<'_>) -> Result<SpiffeId, Rejection> {
    let (spiffe, not_before, _) = read(end_entity)?;
    let parsed = parse_fit(end_entity, &spiffe)?;
    let begun = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(not_before).unwrap_or_default()));
    match try_path(end_entity, &parsed, begun) {
        Ok(()) => Ok(spiffe),
        Err(webpki::Error::UnsupportedSignatureAlgorithmContext(_)) => {
            Err(unsuitable(&spiffe, &Unfit::SignatureAlgorithm(signature_algorithm(end_entity))))
        }
        Err(other) => Err(Rejection::new("invalid-path", format!("{spiffe}: {other}"))),
    }
}

/// Parses a certificate and checks that it is suitable for every use of its kind, not only for this
/// one. A certificate that suits only some uses would cause an outage later.
fn parse_fit<'a>(end_entity: &'a CertificateDer<'a>, spiffe: &SpiffeId) -> Result<EndEntityCert<'a>, Rejection> {
    let purpose = if spiffe.is_node() { Purpose::Node } else { Purpose::Client };
    certificate::check(end_entity, purpose).map_err(|unfit| unsuitable(spiffe, &unfit))?;
    EndEntityCert::try_from(end_entity).map_err(|error| Rejection::new("malformed", error.to_string()))
}

fn unsuitable(spiffe: &SpiffeId, unfit: &Unfit) -> Rejection {
    Rejection::new(UNSUITABLE, format!("the certificate of {spiffe}: {unfit}"))
}

/// Verifies the path to an anchor with the issuer's name and the certificate's own key. The
/// certificate is suitable if verification gets as far as the signature, which that key did not
/// make.
fn try_path(end_entity: &CertificateDer<'_>, parsed: &EndEntityCert<'_>, time: UnixTime) -> Result<(), webpki::Error> {
    let own = webpki::anchor_from_trusted_cert(end_entity)?;
    let anchors = [TrustAnchor {
        subject: Der::from_slice(parsed.issuer()),
        subject_public_key_info: own.subject_public_key_info,
        name_constraints: None,
    }];
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let usage = KeyUsage::client_auth();
    let found = parsed.verify_for_usage(algorithms, &anchors, &[], time, usage, None, None).map(|_| ());
    match found {
        Err(
            webpki::Error::InvalidSignatureForPublicKey
            | webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_),
        ) => Ok(()),
        other => other,
    }
}

/// Returns the object identifier of a certificate's signature algorithm.
fn signature_algorithm(certificate: &CertificateDer<'_>) -> String {
    let parsed = X509Certificate::from_der(certificate);
    parsed.map_or_else(|_| String::new(), |(_, parsed)| parsed.signature_algorithm.algorithm.to_id_string())
}

/// Returns the one URI among a certificate's names (X509-SVID §2), and its validity in Unix
/// seconds.
fn read(certificate: &CertificateDer<'_>) -> Result<(SpiffeId, i64, i64), Rejection> {
    let malformed = || Rejection::new("malformed", "the certificate cannot be read");
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| malformed())?;
    let names = parsed.subject_alternative_name().map_err(|_| malformed())?;
    let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let first = uris.next().ok_or_else(|| Rejection::new(NO_URI, "the certificate names no SPIFFE ID"))?;
    if uris.next().is_some() {
        return Err(Rejection::new("many-uri-sans", "the certificate names more than one URI"));
    }
    let validity = parsed.validity();
    Ok((first.parse()?, validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// Formats Unix seconds for people.
fn rfc3339(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| format!("Unix second {seconds}"))
}

/// The verifier of one handshake. It stores the rejection for this node's records; the other end
/// receives the matching TLS alert.
#[derive(Debug)]
pub(super) struct Handshake {
    verifier: Arc<Verifier>,
    rejected: Mutex<Option<Rejection>>,
}

impl Handshake {
    pub(super) fn new(verifier: Arc<Verifier>) -> Self {
        Self { verifier, rejected: Mutex::default() }
    }

    pub(super) fn provider(&self) -> &Arc<CryptoProvider> {
        &self.verifier.provider
    }

    /// Returns why the handshake failed: the stored rejection, else one from the error.
    pub(super) fn rejected(&self, error: &std::io::Error) -> Rejection {
        self.rejected.lock().take().unwrap_or_else(|| Rejection::from_tls(error))
    }

    fn identify(&self, end_entity: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
        let Err(rejected) = self.verifier.identify(end_entity, now) else { return Ok(()) };
        let alert = rejected.alert();
        *self.rejected.lock() = Some(rejected);
        Err(alert.into())
    }
}

impl ClientCertVerifier for Handshake {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.identify(end_entity, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Verified {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(&self, text: &[u8], by: &CertificateDer<'_>, sig: &DigitallySignedStruct) -> Verified {
        verify_tls13_signature(text, by, sig, &self.provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Handshake {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.identify(end_entity, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(&self, text: &[u8], by: &CertificateDer<'_>, sig: &DigitallySignedStruct) -> Verified {
        ClientCertVerifier::verify_tls12_signature(self, text, by, sig)
    }

    fn verify_tls13_signature(&self, text: &[u8], by: &CertificateDer<'_>, sig: &DigitallySignedStruct) -> Verified {
        ClientCertVerifier::verify_tls13_signature(self, text, by, sig)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ClientCertVerifier::supported_verify_schemes(self)
    }
}
