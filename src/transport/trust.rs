//! SPIFFE identities, and the authorities that certify them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use barid_core::certificate::{self, Purpose, Unfit, Validity};
use barid_core::ids::Member;
use barid_core::roster::{MemberEntry, Roster};
use rustls::pki_types::{CertificateDer, TrustAnchor};
use tokio::sync::watch;

use super::rejection::Rejection;
use crate::budgets::Owner;

/// A SPIFFE ID: `spiffe://ma.rabat.example/focal-point/police-hq` (SPIFFE-ID §2).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    /// Trust domain: `ma.rabat.example`.
    pub trust_domain: String,
    /// Path without its first slash: `node`, `focal-point/police-hq`.
    pub path: Arc<str>,
}

impl FromStr for SpiffeId {
    type Err = Rejection;

    fn from_str(text: &str) -> Result<Self, Rejection> {
        // The text is not authenticated yet, so it is truncated and escaped before it is recorded.
        let bad = || {
            let found: String = text.chars().take(80).flat_map(char::escape_default).collect();
            Rejection::new("not-spiffe", format!("`{found}` is not a SPIFFE ID"))
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
    /// Returns the identity of a trust domain's node.
    #[must_use]
    pub fn node(trust_domain: &str) -> Self {
        Self { trust_domain: trust_domain.into(), path: "node".into() }
    }

    /// Returns whether this is a node.
    #[must_use]
    pub fn is_node(&self) -> bool {
        &*self.path == "node"
    }
}

impl PeerIdentity {
    /// Returns the owner of budget charges. For a node it is its member.
    #[must_use]
    pub fn owner(&self) -> Owner {
        if self.spiffe.is_node() {
            Owner::Member(self.member.as_str().into())
        } else {
            Owner::Identity(Arc::clone(&self.spiffe.path))
        }
    }
}

/// The identity at the other end of a verified connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The SPIFFE ID.
    pub spiffe: SpiffeId,
    /// The member whose authority certified it.
    pub member: Member,
    /// Unix seconds up to which the connection may live: the certificate's end, or the time until
    /// which its authority's CRL is fresh enough.
    pub until: i64,
}

/// One authority of a member.
#[derive(Clone, Debug)]
pub(super) struct Authority {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) anchor: TrustAnchor<'static>,
    /// notBefore and notAfter, in Unix seconds.
    pub(super) validity: (i64, i64),
}

impl Authority {
    /// Does not check whether the authority is valid now: the roster keeps it in force, and its
    /// expiry raises an alarm.
    fn read(pem: &str) -> Result<Self, Unfit> {
        let certificate = CertificateDer::from(certificate::first_der(pem).ok_or(Unfit::Unreadable)?);
        let (anchor, validity) = anchor(&certificate).map(|(anchor, validity)| (anchor.to_owned(), validity))?;
        Ok(Self { anchor, validity: (validity.not_before, validity.not_after), certificate })
    }

    /// Returns its id: name and key. A renewed certificate with the same name and key is the same
    /// authority.
    pub(super) fn id(&self) -> AuthorityId {
        AuthorityId { name: self.anchor.subject.to_vec(), key: self.key().to_vec() }
    }

    fn key(&self) -> &[u8] {
        &self.anchor.subject_public_key_info
    }
}

/// Checks an authority's certificate like a node that finds it in its roster. It does not check
/// whether the certificate is valid now.
///
/// # Errors
/// [`Unfit`] with the first reason found.
pub fn examine_authority(certificate: &CertificateDer<'_>) -> Result<Validity, Unfit> {
    anchor(certificate).map(|(_, validity)| validity)
}

fn anchor<'a>(certificate: &'a CertificateDer<'a>) -> Result<(TrustAnchor<'a>, Validity), Unfit> {
    let validity = certificate::check(certificate, Purpose::Authority)?;
    let anchor = webpki::anchor_from_trusted_cert(certificate).map_err(|_| Unfit::Unreadable)?;
    Ok((anchor, validity))
}

/// Name and public key of an authority, DER.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AuthorityId {
    pub(super) name: Vec<u8>,
    pub(super) key: Vec<u8>,
}

/// One member with its authorities.
#[derive(Clone, Debug)]
pub(super) struct Domain {
    pub(super) member: Member,
    pub(super) authorities: Vec<Authority>,
    /// Why listed certificates are not used.
    pub(super) unfit: Vec<Unfit>,
}

/// The authorities of each trust domain, by the newest roster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Trust {
    domains: Arc<ArcSwap<BTreeMap<String, Domain>>>,
    version: watch::Sender<u64>,
}

impl Trust {
    /// Builds the trust of a roster. Unsuitable authority certificates are logged and left out:
    /// they certify nothing.
    #[must_use]
    pub fn of(roster: &Roster) -> Self {
        Self { domains: Arc::new(ArcSwap::from_pointee(domains(roster.entries()))), version: watch::Sender::new(0) }
    }

    /// Replaces the roster.
    pub fn replace(&self, roster: &Roster) {
        self.domains.store(Arc::new(domains(roster.entries())));
        self.version.send_modify(|version| *version += 1);
    }

    /// Notifies when the roster is replaced.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Returns notBefore and notAfter of each authority of a trust domain, in Unix seconds.
    #[must_use]
    pub fn authorities_validity(&self, trust_domain: &str) -> Vec<(i64, i64)> {
        let domains = self.domains.load();
        domains.get(trust_domain).into_iter().flat_map(|domain| &domain.authorities).map(|ca| ca.validity).collect()
    }

    pub(super) fn version(&self) -> u64 {
        *self.version.borrow()
    }

    pub(super) fn load(&self) -> Arc<BTreeMap<String, Domain>> {
        self.domains.load_full()
    }
}

pub(super) fn domains<'a>(entries: impl Iterator<Item = &'a MemberEntry>) -> BTreeMap<String, Domain> {
    let mut domains = BTreeMap::new();
    let mut owners: BTreeMap<Vec<u8>, BTreeSet<&Member>> = BTreeMap::new();
    for entry in entries {
        let (mut authorities, mut unfit) = (Vec::new(), Vec::new());
        for pem in &entry.ca_certificates {
            match Authority::read(pem) {
                Ok(authority) => {
                    owners.entry(authority.key().to_vec()).or_default().insert(&entry.code);
                    authorities.push(authority);
                }
                Err(reason) => {
                    tracing::error!(member = %entry.code, %reason, "an authority of the roster is not used");
                    unfit.push(reason);
                }
            }
        }
        domains.insert(entry.trust_domain.clone(), Domain { member: entry.code.clone(), authorities, unfit });
    }
    // A key that two members list could certify identities of either. It is used for neither, in
    // any certificate.
    for domain in domains.values_mut() {
        domain.authorities.retain(|authority| {
            let sole = owners.get(authority.key()).is_some_and(|owners| owners.len() == 1);
            if !sole {
                tracing::error!(
                    member = %domain.member,
                    "an authority of the roster is not used: another member lists the same key"
                );
            }
            sole
        });
    }
    domains
}
