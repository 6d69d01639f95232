//! Accepts revocation lists from files, peers and the store.
//!
//! A newer list applies at once. It is persisted so that a known revocation survives a restart
//! while its authority is unreachable. If an authority issues many lists, only the newest is
//! persisted at an interval; peers hold the rest.
//!
//! In scope: verifying peers' lists, on a low-priority thread and within a budget for each member;
//! and which lists are persisted. Out of scope: which list applies (`transport`).

mod inbox;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use barid_core::ids::Member;
use bytes::Bytes;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::watch;
use tokio::time::Instant;

use inbox::{Inbox, PERSIST_EVERY};

use super::AppError;
use crate::committer::{Committer, Records};
use crate::exchange::Revocations;
use crate::files;
use crate::low_priority;
use crate::store::CrlRecord;
use crate::telemetry::{AuditEvent, AuditLimiter, INDIVIDUAL_RECORDS_MAX, audit};
use crate::transport::{CheckedCrl, CrlError, CrlStore, HeldCrl, Trust};

/// First byte of every DER sequence; PEM is text.
const DER_SEQUENCE: u8 = 0x30;

/// The held lists, with what verifies and persists them. Cheap to clone.
#[derive(Clone)]
pub(super) struct Crls {
    pub(super) held: CrlStore,
    pub(super) trust: Trust,
    pub(super) committer: Committer,
    audit_limiter: Arc<AuditLimiter>,
    inbox: Arc<Inbox>,
}

impl Crls {
    pub(super) fn new(held: CrlStore, trust: Trust, committer: Committer, audit_limiter: Arc<AuditLimiter>) -> Self {
        Self { held, trust, committer, audit_limiter, inbox: Arc::default() }
    }

    /// Verifies the revocation lists that peers send and applies them at once. Persists at most one
    /// list per authority in each [`PERSIST_EVERY`]. Never returns.
    pub(super) async fn run(self) {
        loop {
            let next = self.inbox.next(Instant::now());
            if let Some((from, der)) = next.list {
                self.verify(&from, der).await;
            }
            let next_persist = self.inbox.next_persist();
            if next_persist.is_some_and(|next_persist| next_persist <= Instant::now()) {
                self.persist(Instant::now()).await;
                continue;
            }
            if next.more {
                continue;
            }
            let wait = next.wait_until.into_iter().chain(next_persist).min();
            tokio::select! {
                () = self.inbox.put.notified() => {}
                () = async { match wait {
                    Some(wait) => tokio::time::sleep_until(wait).await,
                    None => std::future::pending().await,
                } } => {}
            }
        }
    }

    /// Persists all lists that apply and are not persisted yet, before the node stops.
    pub(super) async fn persist_all(&self) {
        self.persist(Instant::now() + PERSIST_EVERY).await;
    }

    async fn verify(&self, from: &Member, der: Bytes) {
        let (held, trust) = (self.held.clone(), self.trust.clone());
        match low_priority::run(move || held.offer(&der, &trust)).await {
            Ok(Ok(Some(list))) => self.inbox.set_in_force(from, list),
            // An older list, or a panic, which is reported elsewhere.
            Ok(Ok(None)) | Err(_) => {}
            Ok(Err(error)) => self.record_rejection(from, error.reason(), &error),
        }
    }

    async fn persist(&self, now: Instant) {
        let ready = self.inbox.take_pending(now);
        if ready.is_empty() {
            return;
        }
        let crls = ready.iter().map(|pending| record(&pending.list)).collect();
        let persisted = self.committer.persist(Records { crls, ..Records::default() }).await;
        for pending in ready {
            let (reason, detail) = match &persisted {
                Ok(()) if pending.count > 1 => ("newer", format!("the newest of {}", pending.count)),
                Ok(()) => ("newer", String::new()),
                Err(error) => ("not-persisted", error.to_string()),
            };
            let resource = &pending.list.trust_domain;
            audit(&AuditEvent { event: "crl-accepted", reason, actor: &pending.from, resource, detail: &detail });
            if persisted.is_err() {
                self.inbox.not_persisted(pending);
            }
        }
    }

    fn record_rejection(&self, from: &Member, reason: &'static str, detail: &dyn std::fmt::Display) {
        let event = AuditEvent { event: "crl-rejected", reason, actor: from, resource: &"", detail };
        self.audit_limiter.record(from.as_str(), INDIVIDUAL_RECORDS_MAX, &event, Instant::now());
    }

    /// Loads the lists in the store. Lists of authorities that the roster no longer names are
    /// skipped.
    pub(super) fn load_stored(&self, records: &[CrlRecord]) {
        for record in records {
            if let Err(error) = self.held.offer(&record.der, &self.trust) {
                tracing::info!(authority = record.authority, %error, "a stored CRL is skipped");
            }
        }
    }
}

/// Reads and verifies list files: one list as DER, or any number as PEM. Does not apply them.
pub(super) fn read_files(files: &[PathBuf], trust: &Trust) -> Result<Vec<(PathBuf, CheckedCrl)>, AppError> {
    let mut crls = Vec::new();
    for path in files {
        let bytes = std::fs::read(path).map_err(|source| AppError::File { path: path.clone(), source })?;
        for der in ders(path, files::strip_bom(&bytes))? {
            let checked =
                CrlStore::check(&der, trust).map_err(|source| AppError::List { path: path.clone(), source })?;
            crls.push((path.clone(), checked));
        }
    }
    Ok(crls)
}

fn ders(path: &Path, bytes: &[u8]) -> Result<Vec<Vec<u8>>, AppError> {
    if bytes.first() == Some(&DER_SEQUENCE) {
        return Ok(vec![bytes.to_vec()]);
    }
    let malformed = |why: String| AppError::List { path: path.to_owned(), source: CrlError::Malformed(why) };
    let crls: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(bytes).collect();
    let crls = crls.map_err(|error| malformed(error.to_string()))?;
    if crls.is_empty() {
        return Err(malformed("it contains neither DER nor a PEM `X509 CRL`".into()));
    }
    Ok(crls.iter().map(|list| list.to_vec()).collect())
}

/// Converts a list to its record in the store.
pub(super) fn record(list: &HeldCrl) -> CrlRecord {
    CrlRecord { authority: list.name.clone(), der: list.der.clone() }
}

impl Revocations for Crls {
    fn watch(&self) -> watch::Receiver<u64> {
        self.held.watch()
    }

    fn held(&self) -> Vec<(String, Bytes)> {
        self.held.held(&self.trust).into_iter().map(|list| (list.name, list.der)).collect()
    }

    fn offer(&self, from: &Member, crls: Vec<Bytes>) {
        // Every peer sends the same list.
        let new: Vec<Bytes> = crls.into_iter().filter(|der| !self.held.holds(der)).collect();
        let dropped = self.inbox.put(from, new);
        if dropped > 0 {
            self.record_rejection(
                from,
                "rate-limited",
                &format!("{dropped} CRLs were replaced by newer ones before they were verified"),
            );
        }
    }
}
