//! Revocation lists: from files, from peers, and kept in the store.
//!
//! In scope: verifying what peers offer, on a thread that gives way and within a budget of each member; what is persisted of it. Out of scope:
//! which list is in force (`transport`).
//!
//! A newer list is in force at once. It is persisted so that a known revocation survives a restart while its authority cannot be reached; an
//! authority that issues one list after the other has the newest persisted now and then, and peers have the rest.

mod inbox;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use barid_core::names::Member;
use bytes::Bytes;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::watch;
use tokio::time::Instant;

use inbox::{Inbox, PERSIST_EVERY};

use super::AppError;
use crate::background;
use crate::committer::{Committer, Kept};
use crate::exchange::Revocations;
use crate::files;
use crate::store::CrlRecord;
use crate::telemetry::{AuditEvent, RECORDED_SINGLY_MAX, Refusals, audit};
use crate::transport::{CheckedList, HeldList, ListError, RevocationLists, Trust};

/// First byte of every DER sequence; PEM begins with text.
const DER_SEQUENCE: u8 = 0x30;

/// The lists held, and what decides about them. Cheap to clone.
#[derive(Clone)]
pub(super) struct Lists {
    pub(super) held: RevocationLists,
    pub(super) trust: Trust,
    pub(super) committer: Committer,
    refusals: Arc<Refusals>,
    inbox: Arc<Inbox>,
}

impl Lists {
    pub(super) fn new(held: RevocationLists, trust: Trust, committer: Committer, refusals: Arc<Refusals>) -> Self {
        Self { held, trust, committer, refusals, inbox: Arc::default() }
    }

    /// Verifies what peers offer, puts it in force, and persists it at most once for each authority and [`PERSIST_EVERY`]. Returns never.
    pub(super) async fn run(self) {
        loop {
            let next = self.inbox.next(Instant::now());
            if let Some((from, der)) = next.list {
                self.judge(&from, der).await;
            }
            let due = self.inbox.due();
            if due.is_some_and(|due| due <= Instant::now()) {
                self.persist(Instant::now()).await;
                continue;
            }
            if next.more {
                continue;
            }
            let wait = next.wait_until.into_iter().chain(due).min();
            tokio::select! {
                () = self.inbox.put.notified() => {}
                () = async { match wait {
                    Some(wait) => tokio::time::sleep_until(wait).await,
                    None => std::future::pending().await,
                } } => {}
            }
        }
    }

    /// Persists what is in force and not persisted yet: the node stops.
    pub(super) async fn persist_all(&self) {
        self.persist(Instant::now() + PERSIST_EVERY).await;
    }

    async fn judge(&self, from: &Member, der: Bytes) {
        let (held, trust) = (self.held.clone(), self.trust.clone());
        match background::run(move || held.offer(&der, &trust)).await {
            Ok(Ok(Some(list))) => self.inbox.in_force(from, list),
            // An older one, or a panic, which has been reported.
            Ok(Ok(None)) | Err(_) => {}
            Ok(Err(error)) => self.refuse(from, error.reason(), &error),
        }
    }

    async fn persist(&self, now: Instant) {
        let due = self.inbox.take_due(now);
        if due.is_empty() {
            return;
        }
        let crls = due.iter().map(|pending| record(&pending.list)).collect();
        let kept = self.committer.keep(Kept { crls, ..Kept::default() }).await;
        for pending in due {
            let (reason, detail) = match &kept {
                Ok(()) if pending.count > 1 => ("newer", format!("the newest of {}", pending.count)),
                Ok(()) => ("newer", String::new()),
                Err(error) => ("not-kept", error.to_string()),
            };
            let subject = &pending.list.trust_domain;
            audit(&AuditEvent { what: "list-taken", reason, who: &pending.from, subject, detail: &detail });
            if kept.is_err() {
                self.inbox.not_persisted(pending);
            }
        }
    }

    fn refuse(&self, from: &Member, reason: &'static str, detail: &dyn std::fmt::Display) {
        let event = AuditEvent { what: "refused-list", reason, who: from, subject: &"", detail };
        self.refusals.record(from.as_str(), RECORDED_SINGLY_MAX, &event, Instant::now());
    }

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
        // The same list comes from every peer.
        let new: Vec<Bytes> = lists.into_iter().filter(|der| !self.held.holds(der)).collect();
        let dropped = self.inbox.put(from, new);
        if dropped > 0 {
            self.refuse(
                from,
                "rate-limited",
                &format!("{dropped} lists came faster than they are verified; newer ones are"),
            );
        }
    }
}
