//! CRLs: stores the newest one of each authority, from any source.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use barid_core::limits::CRL_BYTES_MAX;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::oid_registry::{OID_X509_EXT_DELTA_CRL_INDICATOR, OID_X509_EXT_ISSUER_DISTRIBUTION_POINT};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::trust::{AuthorityId, Trust};

/// The newest CRL of each authority. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CrlStore {
    crls: Arc<ArcSwap<BTreeMap<AuthorityId, Arc<Crl>>>>,
    version: watch::Sender<u64>,
}

impl Default for CrlStore {
    fn default() -> Self {
        Self { crls: Arc::default(), version: watch::Sender::new(0) }
    }
}

/// A verified CRL.
#[derive(Debug)]
pub(super) struct Crl {
    pub(super) parsed: CertRevocationList<'static>,
    pub(super) next_update: i64,
    number: Vec<u8>,
    held: HeldCrl,
}

/// A CRL as it is sent and stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldCrl {
    /// Its key in storage: `<trust domain>/<SHA-256 of the authority's name and key>`.
    pub name: String,
    /// Trust domain of its authority.
    pub trust_domain: String,
    /// DER bytes.
    pub der: Bytes,
    /// thisUpdate, in Unix seconds.
    pub this_update: i64,
    /// nextUpdate, in Unix seconds.
    pub next_update: i64,
}

/// A verified CRL that is not in the store yet.
#[derive(Debug)]
pub struct CheckedCrl {
    authority: AuthorityId,
    crl: Arc<Crl>,
}

impl CheckedCrl {
    /// Returns the CRL.
    #[must_use]
    pub fn crl(&self) -> &HeldCrl {
        &self.crl.held
    }
}

/// Why a CRL is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// It cannot be parsed, or is too large.
    #[error("not a CRL: {0}")]
    Malformed(String),
    /// It covers only some of the certificates of its authority. Accepted as complete, it would
    /// drop other revocations.
    #[error("not a complete CRL: it is limited to a distribution point or is a delta CRL")]
    Partial,
    /// It is not signed by an authority in the roster.
    #[error("not signed by an authority of the roster")]
    UnknownIssuer,
}

impl CrlError {
    /// Returns the stable code.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "crl-malformed",
            Self::Partial => "crl-partial",
            Self::UnknownIssuer => "crl-unknown-issuer",
        }
    }
}

impl CrlStore {
    /// Verifies a CRL without storing it.
    ///
    /// # Errors
    /// See [`CrlError`].
    pub fn check(der: &[u8], trust: &Trust) -> Result<CheckedCrl, CrlError> {
        let malformed = |error: &dyn std::fmt::Display| CrlError::Malformed(error.to_string());
        if der.len() > CRL_BYTES_MAX {
            return Err(CrlError::Malformed(format!("{} bytes, at most {CRL_BYTES_MAX}", der.len())));
        }
        let (rest, crl) = CertificateRevocationList::from_der(der).map_err(|error| malformed(&error))?;
        if !rest.is_empty() {
            return Err(CrlError::Malformed("trailing bytes after the CRL".into()));
        }
        let limits = [OID_X509_EXT_ISSUER_DISTRIBUTION_POINT, OID_X509_EXT_DELTA_CRL_INDICATOR];
        if crl.extensions().iter().any(|extension| limits.contains(&extension.oid)) {
            return Err(CrlError::Partial);
        }
        // RFC 5280 §5.2.3 and §5.1.2.5 require both.
        let number = crl.crl_number().ok_or_else(|| CrlError::Malformed("no CRL number".into()))?.to_bytes_be();
        let next_update = crl.next_update().ok_or_else(|| CrlError::Malformed("no nextUpdate".into()))?.timestamp();
        let this_update = crl.last_update().timestamp();
        let domains = trust.load();
        let signer = domains.iter().find_map(|(domain, listed)| {
            listed.authorities.iter().find_map(|authority| {
                let (_, parsed) = X509Certificate::from_der(&authority.certificate).ok()?;
                let signed = parsed.subject().as_raw() == crl.issuer().as_raw()
                    && crl.verify_signature(&parsed.tbs_certificate.subject_pki).is_ok();
                signed.then(|| (domain.clone(), authority.id()))
            })
        });
        let (trust_domain, authority) = signer.ok_or(CrlError::UnknownIssuer)?;
        let parsed = OwnedCertRevocationList::from_der(der).map_err(|error| malformed(&error))?.into();
        let digest = Sha256::new().chain_update(&authority.name).chain_update(&authority.key).finalize();
        let name = format!("{trust_domain}/{}", hex::encode(digest));
        let held = HeldCrl { name, trust_domain, der: Bytes::copy_from_slice(der), this_update, next_update };
        Ok(CheckedCrl { authority, crl: Arc::new(Crl { parsed, next_update, number, held }) })
    }

    /// Stores a CRL if it is newer than the current one. Returns whether it was.
    pub fn accept(&self, checked: &CheckedCrl) -> bool {
        let mut newer = false;
        self.crls.rcu(|held| {
            newer = is_newer(checked, held);
            let mut crls = BTreeMap::clone(held);
            if newer {
                crls.insert(checked.authority.clone(), Arc::clone(&checked.crl));
            }
            crls
        });
        if newer {
            self.version.send_modify(|version| *version += 1);
        }
        newer
    }

    /// Returns whether the CRL is newer than the current one.
    #[must_use]
    pub fn is_newer(&self, checked: &CheckedCrl) -> bool {
        is_newer(checked, &self.crls.load())
    }

    /// Returns whether the CRL has the same number as the current one but other bytes. It is then
    /// unknown which of them is newer.
    #[must_use]
    pub fn contradicts(&self, checked: &CheckedCrl) -> bool {
        let crls = self.crls.load();
        let held = crls.get(&checked.authority).filter(|held| held.number == checked.crl.number);
        held.is_some_and(|held| held.held.der != checked.crl.held.der)
    }

    /// Returns whether a CRL with exactly these bytes is stored.
    #[must_use]
    pub fn holds(&self, der: &[u8]) -> bool {
        self.crls.load().values().any(|crl| *crl.held.der == *der)
    }

    /// Verifies a CRL, and stores and returns it if it is newer than the current one.
    ///
    /// # Errors
    /// See [`CrlError`].
    pub fn offer(&self, der: &[u8], trust: &Trust) -> Result<Option<HeldCrl>, CrlError> {
        if self.holds(der) {
            return Ok(None);
        }
        let checked = Self::check(der, trust)?;
        Ok(self.accept(&checked).then(|| checked.crl.held.clone()))
    }

    /// Notifies of every stored CRL.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(super) fn version(&self) -> u64 {
        *self.version.borrow()
    }

    /// Returns the CRLs of authorities that are trusted now.
    #[must_use]
    pub fn held(&self, trust: &Trust) -> Vec<HeldCrl> {
        let crls = self.crls.load();
        let domains = trust.load();
        let trusted = domains.values().flat_map(|domain| &domain.authorities);
        let mut held: Vec<HeldCrl> =
            trusted.filter_map(|authority| crls.get(&authority.id())).map(|crl| crl.held.clone()).collect();
        // One authority may have two certificates.
        held.sort_by(|a, b| a.name.cmp(&b.name));
        held.dedup_by(|a, b| a.name == b.name);
        held
    }

    pub(super) fn of(&self, authority: &AuthorityId) -> Option<Arc<Crl>> {
        self.crls.load().get(authority).cloned()
    }
}

fn is_newer(checked: &CheckedCrl, held: &BTreeMap<AuthorityId, Arc<Crl>>) -> bool {
    // Numbers are big-endian without leading zeros.
    let new = &checked.crl.number;
    held.get(&checked.authority).is_none_or(|old| (new.len(), new) > (old.number.len(), &old.number))
}
