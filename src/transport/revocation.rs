//! Revocation lists: the newest of each authority, wherever it came from.

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

/// The newest list of each authority. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RevocationLists {
    lists: Arc<ArcSwap<BTreeMap<AuthorityId, Arc<List>>>>,
    version: watch::Sender<u64>,
}

impl Default for RevocationLists {
    fn default() -> Self {
        Self { lists: Arc::default(), version: watch::Sender::new(0) }
    }
}

/// A list whose authority has signed it.
#[derive(Debug)]
pub(super) struct List {
    pub(super) parsed: CertRevocationList<'static>,
    pub(super) next_update: i64,
    number: Vec<u8>,
    held: HeldList,
}

/// A list as it is handed on and kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldList {
    /// What it is kept under: `<trust domain>/<SHA-256 of the authority's name and key>`.
    pub name: String,
    /// Trust domain of its authority.
    pub trust_domain: String,
    /// Its bytes.
    pub der: Bytes,
    /// When it was issued, in Unix seconds.
    pub this_update: i64,
    /// When the next one is due, in Unix seconds.
    pub next_update: i64,
}

/// A list that was verified and not taken in yet.
#[derive(Debug)]
pub struct CheckedList {
    authority: AuthorityId,
    list: Arc<List>,
}

impl CheckedList {
    /// The list.
    #[must_use]
    pub fn list(&self) -> &HeldList {
        &self.list.held
    }
}

/// Why a list was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// Not a list that can be read, or too large.
    #[error("not a revocation list: {0}")]
    Malformed(String),
    /// It speaks only of some of what its authority has certified: taken for the whole, it would set others free.
    #[error("not a whole revocation list: it is limited to a distribution point or to changes")]
    Partial,
    /// Not signed by an authority of the roster.
    #[error("not signed by an authority of the roster")]
    Stranger,
}

impl ListError {
    /// The stable word for it.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "crl-malformed",
            Self::Partial => "crl-partial",
            Self::Stranger => "crl-stranger",
        }
    }
}

impl RevocationLists {
    /// Verifies a list; takes nothing in.
    ///
    /// # Errors
    /// See [`ListError`].
    pub fn check(der: &[u8], trust: &Trust) -> Result<CheckedList, ListError> {
        let malformed = |error: &dyn std::fmt::Display| ListError::Malformed(error.to_string());
        if der.len() > CRL_BYTES_MAX {
            return Err(ListError::Malformed(format!("{} bytes, at most {CRL_BYTES_MAX}", der.len())));
        }
        let (rest, list) = CertificateRevocationList::from_der(der).map_err(|error| malformed(&error))?;
        if !rest.is_empty() {
            return Err(ListError::Malformed("bytes behind the list".into()));
        }
        let limits = [OID_X509_EXT_ISSUER_DISTRIBUTION_POINT, OID_X509_EXT_DELTA_CRL_INDICATOR];
        if list.extensions().iter().any(|extension| limits.contains(&extension.oid)) {
            return Err(ListError::Partial);
        }
        // RFC 5280 §5.2.3 and §5.1.2.5: both are always there.
        let number = list.crl_number().ok_or_else(|| ListError::Malformed("no CRL number".into()))?.to_bytes_be();
        let next_update = list.next_update().ok_or_else(|| ListError::Malformed("no nextUpdate".into()))?.timestamp();
        let this_update = list.last_update().timestamp();
        let domains = trust.load();
        let signer = domains.iter().find_map(|(domain, listed)| {
            listed.authorities.iter().find_map(|authority| {
                let (_, parsed) = X509Certificate::from_der(&authority.certificate).ok()?;
                let signed = parsed.subject().as_raw() == list.issuer().as_raw()
                    && list.verify_signature(&parsed.tbs_certificate.subject_pki).is_ok();
                signed.then(|| (domain.clone(), authority.id()))
            })
        });
        let (trust_domain, authority) = signer.ok_or(ListError::Stranger)?;
        let parsed = OwnedCertRevocationList::from_der(der).map_err(|error| malformed(&error))?.into();
        let digest = Sha256::new().chain_update(&authority.name).chain_update(&authority.key).finalize();
        let name = format!("{trust_domain}/{}", hex::encode(digest));
        let held = HeldList { name, trust_domain, der: Bytes::copy_from_slice(der), this_update, next_update };
        Ok(CheckedList { authority, list: Arc::new(List { parsed, next_update, number, held }) })
    }

    /// Takes a list in if it is newer than the one held; says whether it was.
    pub fn take(&self, checked: &CheckedList) -> bool {
        let mut newer = false;
        self.lists.rcu(|held| {
            newer = is_newer(checked, held);
            let mut lists = BTreeMap::clone(held);
            if newer {
                lists.insert(checked.authority.clone(), Arc::clone(&checked.list));
            }
            lists
        });
        if newer {
            self.version.send_modify(|version| *version += 1);
        }
        newer
    }

    /// Whether it is newer than the one held.
    #[must_use]
    pub fn is_newer(&self, checked: &CheckedList) -> bool {
        is_newer(checked, &self.lists.load())
    }

    /// Whether it says something else than the one held, under the same number: which of them is newer nobody can tell.
    #[must_use]
    pub fn contradicts(&self, checked: &CheckedList) -> bool {
        let lists = self.lists.load();
        let held = lists.get(&checked.authority).filter(|held| held.number == checked.list.number);
        held.is_some_and(|held| held.held.der != checked.list.held.der)
    }

    /// Whether this very list is held.
    #[must_use]
    pub fn holds(&self, der: &[u8]) -> bool {
        self.lists.load().values().any(|list| *list.held.der == *der)
    }

    /// Verifies a list and takes it in if it is newer than the one held; gives it back if it was.
    ///
    /// # Errors
    /// See [`ListError`].
    pub fn offer(&self, der: &[u8], trust: &Trust) -> Result<Option<HeldList>, ListError> {
        if self.holds(der) {
            return Ok(None);
        }
        let checked = Self::check(der, trust)?;
        Ok(self.take(&checked).then(|| checked.list.held.clone()))
    }

    /// Changes with every list taken in.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(super) fn version(&self) -> u64 {
        *self.version.borrow()
    }

    /// The lists held of authorities that are trusted now.
    #[must_use]
    pub fn held(&self, trust: &Trust) -> Vec<HeldList> {
        let lists = self.lists.load();
        let domains = trust.load();
        let trusted = domains.values().flat_map(|domain| &domain.authorities);
        let mut held: Vec<HeldList> =
            trusted.filter_map(|authority| lists.get(&authority.id())).map(|list| list.held.clone()).collect();
        // Of one authority there may be two certificates.
        held.sort_by(|a, b| a.name.cmp(&b.name));
        held.dedup_by(|a, b| a.name == b.name);
        held
    }

    pub(super) fn of(&self, authority: &AuthorityId) -> Option<Arc<List>> {
        self.lists.load().get(authority).cloned()
    }
}

fn is_newer(checked: &CheckedList, held: &BTreeMap<AuthorityId, Arc<List>>) -> bool {
    // Numbers are big-endian without leading zeroes.
    let new = &checked.list.number;
    held.get(&checked.authority).is_none_or(|old| (new.len(), new) > (old.number.len(), &old.number))
}
