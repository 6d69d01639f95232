//! Revocation lists: from files, from peers, and kept in the store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use barid_core::names::Member;
use bytes::Bytes;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::watch;

use super::AppError;
use crate::committer::{Committer, Kept};
use crate::exchange::Revocations;
use crate::files;
use crate::store::CrlRecord;
use crate::telemetry::{AuditEvent, audit};
use crate::transport::{CheckedList, HeldList, ListError, RevocationLists, Trust};

/// First byte of every DER sequence; PEM begins with text.
const DER_SEQUENCE: u8 = 0x30;

/// The lists held, and what decides about them. Cheap to clone.
#[derive(Clone)]
pub(super) struct Lists {
    pub(super) held: RevocationLists,
    pub(super) trust: Trust,
    pub(super) committer: Committer,
}

impl Lists {
    /// Takes up what the store remembers. Lists of authorities that the roster no longer has are left aside.
    pub(super) fn recall(&self, records: &[CrlRecord]) {
        for record in records {
            if let Err(error) = self.held.offer(&record.der, &self.trust) {
                tracing::info!(authority = record.authority, %error, "a kept revocation list is left aside");
            }
        }
    }
}

/// Reads and verifies list files: one list as DER, or any number as PEM. Takes nothing in.
pub(super) fn read_files(files: &[PathBuf], trust: &Trust) -> Result<Vec<(PathBuf, CheckedList)>, AppError> {
    let mut lists = Vec::new();
    for path in files {
        let bytes = std::fs::read(path).map_err(|source| AppError::File { path: path.clone(), source })?;
        for der in ders(path, files::without_mark(&bytes))? {
            let checked =
                RevocationLists::check(&der, trust).map_err(|source| AppError::List { path: path.clone(), source })?;
            lists.push((path.clone(), checked));
        }
    }
    Ok(lists)
}

fn ders(path: &Path, bytes: &[u8]) -> Result<Vec<Vec<u8>>, AppError> {
    if bytes.first() == Some(&DER_SEQUENCE) {
        return Ok(vec![bytes.to_vec()]);
    }
    let malformed = |why: String| AppError::List { path: path.to_owned(), source: ListError::Malformed(why) };
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(bytes).collect();
    let lists = lists.map_err(|error| malformed(error.to_string()))?;
    if lists.is_empty() {
        return Err(malformed("neither DER nor a PEM `X509 CRL` in it".into()));
    }
    Ok(lists.iter().map(|list| list.to_vec()).collect())
}

/// A list as the store keeps it.
pub(super) fn record(list: &HeldList) -> CrlRecord {
    CrlRecord { authority: list.name.clone(), der: list.der.clone() }
}

impl Revocations for Lists {
    fn watch(&self) -> watch::Receiver<u64> {
        self.held.watch()
    }

    fn held(&self) -> Vec<(String, Bytes)> {
        self.held.held(&self.trust).into_iter().map(|list| (list.name, list.der)).collect()
    }

    fn offer(&self, from: &Member, lists: Vec<Bytes>) {
        let mut newer = Vec::new();
        // One record for all of a kind: a peer could send thousands.
        let mut refused: BTreeMap<&'static str, (usize, String)> = BTreeMap::new();
        for der in lists {
            match self.held.offer(&der, &self.trust) {
                Ok(Some(list)) => newer.push(list),
                Ok(None) => {}
                Err(error) => refused.entry(error.reason()).or_insert_with(|| (0, error.to_string())).0 += 1,
            }
        }
        for (reason, (count, first)) in refused {
            let detail = format!("{count}: {first}");
            audit(&AuditEvent { what: "refused-list", reason, who: from, subject: &"", detail: &detail });
        }
        if newer.is_empty() {
            return;
        }
        // In force at once, and kept so that a known revocation survives a restart while its authority cannot be reached.
        let (committer, from) = (self.committer.clone(), from.clone());
        tokio::spawn(async move {
            let crls = newer.iter().map(record).collect();
            let (reason, detail) = match committer.keep(Kept { crls, ..Kept::default() }).await {
                Ok(()) => ("newer", String::new()),
                Err(error) => ("not-kept", error.to_string()),
            };
            for list in newer {
                let subject = &list.trust_domain;
                audit(&AuditEvent { what: "list-taken", reason, who: &from, subject, detail: &detail });
            }
        });
    }
}
