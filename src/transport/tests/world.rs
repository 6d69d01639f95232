//! Members with authorities, and the trust of their nodes.

use std::time::Duration;

use barid_core::feed::note::{Algorithm, SigningKey};
use barid_core::roster::Roster;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;

use super::super::{CrlStore, Policy, Trust, Verifier};
use crate::pki::{Authority, Issued};

/// Builds a roster of these members and authorities.
pub(super) fn roster(members: &[(&str, &[&Authority])]) -> Roster {
    let key = |name: &str, algorithm| {
        let seed = barid_core::envelope::digest(name.as_bytes()).0;
        SigningKey::from_seed(name, algorithm, seed).unwrap().verifier().to_string()
    };
    let mut text = format!(
        "format = 1\nexchange = \"rabat.example\"\nversion = 1\nissued = 2025-01-01T00:00:00Z\n\
         review_by = 2030-01-01T00:00:00Z\nquorum = 1\nworking_groups = []\n[governors]\nthreshold = 1\nkeys = [\"{}\"]\n",
        key("governor.example/1", Algorithm::Ed25519)
    );
    for (code, authorities) in members {
        let host = format!("{code}.rabat.example");
        let certificates: Vec<_> =
            authorities.iter().map(|authority| format!("\"\"\"\n{}\"\"\"", authority.certificate())).collect();
        text += &format!(
            "[[members]]\ncode = \"{code}\"\nkind = \"full\"\nnames = {{ ar = \"x\", fr = \"x\", en = \"x\" }}\n\
             trust_domain = \"{host}\"\nca_certificates = [{}]\nkeys = [{{ role = \"mirror\", key = \"{}\" }}, \
             {{ role = \"custody\", key = \"{}\" }}]\n",
            certificates.join(", "),
            key(&format!("{host}/mirror"), Algorithm::CosignatureEd25519),
            key(&format!("{host}/custody"), Algorithm::Ed25519)
        );
    }
    Roster::from_text(&text).unwrap()
}

/// Morocco and Libya.
pub(super) struct World {
    pub(super) ma: Authority,
    pub(super) ly: Authority,
    pub(super) trust: Trust,
    pub(super) crls: CrlStore,
}

impl World {
    pub(super) fn new() -> Self {
        let (ma, ly) = (Authority::new("ma.rabat.example").unwrap(), Authority::new("ly.rabat.example").unwrap());
        let trust = Trust::of(&roster(&[("ma", &[&ma]), ("ly", &[&ly])]));
        Self { ma, ly, trust, crls: CrlStore::default() }
    }

    pub(super) fn verifier(&self, policy: Policy) -> Verifier {
        Verifier::new(self.trust.clone(), self.crls.clone(), policy, 30 * 86_400)
    }

    /// Verifies a certificate as ma's exchange listener.
    pub(super) fn at_ma(&self, issued: &Issued) -> Result<String, &'static str> {
        self.at(Policy::Peers("ma.rabat.example".into()), issued, 0)
    }

    /// Verifies a certificate under a policy, `in_days` days from now.
    pub(super) fn at(&self, policy: Policy, issued: &Issued, in_days: u64) -> Result<String, &'static str> {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + in_days * 86_400));
        let result = self.verifier(policy).identify(&der(issued), now);
        result.map(|identity| identity.member.to_string()).map_err(|rejected| rejected.reason)
    }

    /// Offers a CRL; returns whether it was newer.
    pub(super) fn offer(&self, crl: &[u8]) -> bool {
        self.crls.offer(crl, &self.trust).unwrap().is_some()
    }
}

pub(super) fn der(issued: &Issued) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()
}

/// Days from now.
pub(super) fn days(from: i64, to: i64) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now + time::Duration::days(from), now + time::Duration::days(to))
}
