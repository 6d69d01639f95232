//! Identities, and whose authorities certify them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use barid_core::names::Member;
use barid_core::roster::Roster;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, TrustAnchor};

/// A SPIFFE ID: `spiffe://ma.rabat.example/focal-point/police-hq` (SPIFFE-ID §2).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    /// Trust domain: `ma.rabat.example`.
    pub trust_domain: String,
    /// Path without its first slash: `node`, `focal-point/police-hq`.
    pub path: String,
}

impl FromStr for SpiffeId {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        // Nobody has vouched for this text yet: it is cut and escaped before it gets into a record.
        let bad = || {
            let found: String = text.chars().take(80).flat_map(char::escape_default).collect();
            Refused::new("not-spiffe", format!("`{found}` is no SPIFFE ID"))
        };
        let (trust_domain, path) =
            text.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).ok_or_else(bad)?;
        let domain_char = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
        let path_char = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        let segment = |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(path_char);
        if trust_domain.is_empty()
            || !trust_domain.bytes().all(domain_char)
            || !path.split('/').all(segment)
            || text.len() > 2_048
        {
            return Err(bad());
        }
        Ok(Self { trust_domain: trust_domain.into(), path: path.into() })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/{}", self.trust_domain, self.path)
    }
}

impl SpiffeId {
    /// The node of a trust domain.
    #[must_use]
    pub fn node(trust_domain: &str) -> Self {
        Self { trust_domain: trust_domain.into(), path: "node".into() }
    }

    /// Whether it names a node.
    #[must_use]
    pub fn is_node(&self) -> bool {
        self.path == "node"
    }
}

/// Who is at the other end of a verified connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its identity.
    pub spiffe: SpiffeId,
    /// The member whose authority certified it.
    pub member: Member,
    /// Unix seconds at which its certificate ends.
    pub not_after: i64,
}

/// Why an identity was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Refused {
    /// Stable word.
    pub reason: &'static str,
    /// For people.
    pub detail: String,
}

impl Refused {
    pub(crate) fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// One member's authorities.
#[derive(Clone, Debug)]
pub struct Authorities {
    /// The member.
    pub member: Member,
    /// Certificates of its authorities.
    pub certificates: Vec<CertificateDer<'static>>,
    pub(super) anchors: Vec<TrustAnchor<'static>>,
}

/// Which authorities certify which trust domain, by the newest roster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Trust {
    domains: Arc<ArcSwap<BTreeMap<String, Authorities>>>,
}

impl Trust {
    /// The trust that a roster gives. Certificates that cannot be read are left out and logged: they can certify nothing.
    #[must_use]
    pub fn of(roster: &Roster) -> Self {
        Self { domains: Arc::new(ArcSwap::from_pointee(domains(roster))) }
    }

    /// Puts another roster in force.
    pub fn replace(&self, roster: &Roster) {
        self.domains.store(Arc::new(domains(roster)));
    }

    pub(super) fn load(&self) -> Arc<BTreeMap<String, Authorities>> {
        self.domains.load_full()
    }
}

fn domains(roster: &Roster) -> BTreeMap<String, Authorities> {
    let mut domains: BTreeMap<String, Authorities> = BTreeMap::new();
    for entry in roster.entries() {
        let mut certificates = Vec::new();
        let mut anchors = Vec::new();
        for pem in &entry.ca_certificates {
            let read = CertificateDer::from_pem_slice(pem.as_bytes()).ok();
            let anchor = read
                .as_ref()
                .and_then(|der| webpki::anchor_from_trusted_cert(der).ok().map(|anchor| anchor.to_owned()));
            // One key under two members is refused with the roster; TLS does not rely on it.
            let taken = anchor.as_ref().is_some_and(|anchor| {
                let key = &anchor.subject_public_key_info;
                domains.values().flat_map(|other| &other.anchors).any(|other| other.subject_public_key_info == *key)
            });
            match (read, anchor) {
                (Some(der), Some(anchor)) if !taken => {
                    certificates.push(der);
                    anchors.push(anchor);
                }
                _ => tracing::error!(member = %entry.code, taken, "an authority of the roster cannot be used"),
            }
        }
        domains.insert(entry.trust_domain.clone(), Authorities { member: entry.code.clone(), certificates, anchors });
    }
    domains
}
