//! Verifies this node's own certificate as its peers do.

use rustls::pki_types::{CertificateDer, UnixTime};

use crate::transport::{CrlStore, Policy, Rejection, SpiffeId, Trust, Verifier};

/// The state that peers verify with.
pub(super) struct PeerVerifier<'a> {
    pub(super) trust: &'a Trust,
    pub(super) crls: &'a CrlStore,
    pub(super) trust_domain: &'a str,
    pub(super) grace_seconds: i64,
}

impl PeerVerifier<'_> {
    /// Verifies a certificate.
    ///
    /// # Errors
    /// The reason for which peers would reject it.
    pub(super) fn verify(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Rejection> {
        let policy = Policy::Exactly(SpiffeId::node(self.trust_domain));
        let verifier = Verifier::new(self.trust.clone(), self.crls.clone(), policy, self.grace_seconds);
        verifier.identify(certificate, now).map(|_| ())
    }
}

/// Whether a rejection ends by itself: with time, or with a revocation list that peers may hold
/// already. All others need a new certificate.
pub(super) fn is_temporary(rejection: &Rejection) -> bool {
    ["not-yet-valid", "crl-stale"].contains(&rejection.reason)
}
