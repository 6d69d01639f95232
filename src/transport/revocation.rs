//! Revocation lists: the newest of each authority, wherever it came from.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::trust::Trust;

/// Largest list taken: some 20,000 certificates.
const LIST_BYTES_MAX: usize = 1 << 20;

/// The newest list of each authority. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct RevocationLists {
    lists: Arc<ArcSwap<BTreeMap<Vec<u8>, Arc<List>>>>,
    version: Arc<AtomicU64>,
}

#[derive(Debug)]
pub(super) struct List {
    pub(super) der: Vec<u8>,
    pub(super) parsed: CertRevocationList<'static>,
    pub(super) next_update: i64,
    number: Vec<u8>,
    authority: String,
}

/// Why a list was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// Not a list that can be read, or too large.
    #[error("not a revocation list: {0}")]
    Malformed(String),
    /// Not signed by an authority of the roster.
    #[error("not signed by an authority of the roster")]
    Stranger,
}

impl RevocationLists {
    /// Takes a list in if it is newer than the one held; says whether it was.
    ///
    /// # Errors
    /// See [`ListError`].
    pub fn offer(&self, der: &[u8], trust: &Trust) -> Result<bool, ListError> {
        let malformed = |error: &dyn std::fmt::Display| ListError::Malformed(error.to_string());
        if der.len() > LIST_BYTES_MAX {
            return Err(ListError::Malformed(format!("{} bytes", der.len())));
        }
        let (rest, list) = CertificateRevocationList::from_der(der).map_err(|error| malformed(&error))?;
        if !rest.is_empty() {
            return Err(ListError::Malformed("bytes behind the list".into()));
        }
        let domains = trust.load();
        let signer = domains.iter().find_map(|(domain, authorities)| {
            authorities.certificates.iter().find_map(|ca| {
                let (_, parsed) = X509Certificate::from_der(ca).ok()?;
                let signed = parsed.subject().as_raw() == list.issuer().as_raw()
                    && list.verify_signature(&parsed.tbs_certificate.subject_pki).is_ok();
                signed.then(|| (domain.clone(), parsed.tbs_certificate.subject_pki.raw.to_vec()))
            })
        });
        let (authority, key) = signer.ok_or(ListError::Stranger)?;
        let number = list.crl_number().map_or_else(Vec::new, x509_parser::num_bigint::BigUint::to_bytes_be);
        let next_update = list.next_update().map_or(i64::MAX, |time| time.timestamp());
        let parsed = OwnedCertRevocationList::from_der(der).map_err(|error| malformed(&error))?.into();
        let new = Arc::new(List { der: der.to_vec(), parsed, next_update, number, authority });
        let mut newer = false;
        self.lists.rcu(|held| {
            let mut lists = BTreeMap::clone(held);
            newer = lists.get(&key).is_none_or(|old| is_newer(&new.number, &old.number));
            if newer {
                lists.insert(key.clone(), Arc::clone(&new));
            }
            lists
        });
        if newer {
            self.version.fetch_add(1, Ordering::Relaxed);
        }
        Ok(newer)
    }

    /// Changes with every list taken in.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    /// Authority (trust domain) and DER of each list held.
    #[must_use]
    pub fn held(&self) -> Vec<(String, Vec<u8>)> {
        self.lists.load().values().map(|list| (list.authority.clone(), list.der.clone())).collect()
    }

    /// When each list's nextUpdate is, by trust domain, in unix seconds.
    #[must_use]
    pub fn next_updates(&self) -> Vec<(String, i64)> {
        self.lists.load().values().map(|list| (list.authority.clone(), list.next_update)).collect()
    }

    pub(super) fn of(&self, trust_domain: &str) -> Vec<Arc<List>> {
        self.lists.load().values().filter(|list| list.authority == trust_domain).cloned().collect()
    }
}

/// Numbers are big-endian without leading zeroes.
fn is_newer(new: &[u8], old: &[u8]) -> bool {
    (new.len(), new) > (old.len(), old)
}
