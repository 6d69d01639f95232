//! This node's own certificate, judged as its peers judge it.

use rustls::pki_types::{CertificateDer, UnixTime};

use crate::transport::{Policy, Refused, RevocationLists, SpiffeId, Trust, Verifier};

/// What peers know when they judge.
pub(super) struct Peers<'a> {
    pub(super) trust: &'a Trust,
    pub(super) lists: &'a RevocationLists,
    pub(super) trust_domain: &'a str,
    pub(super) grace_seconds: i64,
}

impl Peers<'_> {
    /// # Errors
    /// What they would reject it for.
    pub(super) fn judge(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Refused> {
        let policy = Policy::Exactly(SpiffeId::node(self.trust_domain));
        let verifier = Verifier::new(self.trust.clone(), self.lists.clone(), policy, self.grace_seconds);
        verifier.identify(certificate, now).map(|_| ())
    }
}

/// Whether a rejection ends by itself: with time, or with a revocation list that peers may hold already. Everything else needs another
/// certificate.
pub(super) fn passes(refused: &Refused) -> bool {
    ["not-yet-valid", "crl-stale"].contains(&refused.reason)
}
