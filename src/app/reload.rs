//! Reloads certificate, revocation lists, access rules and roster without a restart: all changes or
//! none.

use std::sync::Arc;

use barid_core::roster::ChainError;
use bytes::Bytes;
use rustls::pki_types::UnixTime;

use super::{AppError, Node, crls, identity, load_access, read_roster};
use crate::committer::CommitFailure;
use crate::error_chain;
use crate::telemetry::alarms::Alarm;
use crate::telemetry::{AuditEvent, audit_limited};
use crate::transport::{Certified, CrlStore, Rejection, TransportError, Trust};

/// Why nothing was reloaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] AppError),
    /// Certificate and key cannot be used.
    #[error(transparent)]
    Identity(#[from] TransportError),
    /// Peers would reject the certificate.
    #[error("peers would reject {path}: {rejection}")]
    Rejected {
        /// The file.
        path: String,
        /// The reason.
        rejection: Rejection,
    },
    /// A CRL has the number of another one.
    #[error("{path} differs from the CRL in force and has the same number: issue it again with a higher CRL number")]
    List {
        /// The file.
        path: String,
    },
    /// The changes could not be persisted.
    #[error("the changes cannot be persisted: {0}")]
    Commit(#[from] CommitFailure),
}

impl Node {
    /// Reloads the files and returns what changed; `actor` requested it. A file that cannot be used
    /// leaves everything unchanged.
    pub(super) async fn reload_for(&self, actor: &str) -> Result<Vec<String>, String> {
        let result = self.reload_files().await.map_err(|error| error_chain::one_line(&error));
        let (event, reason, detail) = match &result {
            Ok(changes) if changes.is_empty() => ("reloaded", "nothing-new", String::new()),
            Ok(changes) => ("reloaded", "changed", changes.join("; ")),
            Err(error) => ("reload-rejected", "unusable", error.clone()),
        };
        // Only operators can cause it: each one is recorded.
        audit_limited(u64::MAX, &AuditEvent { event, reason, actor: &actor, resource: &"", detail: &detail });
        *self.reload_error.lock() = result.as_ref().err().cloned();
        result
    }

    /// Returns the alarm that the files are not in use: the next start would fail.
    pub(super) fn reload_alarm(&self) -> Option<Alarm> {
        self.reload_error.lock().clone().map(|why| Alarm::ReloadRejected { why })
    }

    async fn reload_files(&self) -> Result<Vec<String>, ReloadError> {
        let _one_at_a_time = self.reloading.lock().await;
        let text = &self.config.text;

        // First everything is read and verified together ...
        let access = load_access(&text.access)?;
        let certified = self.credentials.read()?;
        let note = read_roster(&text.roster).map(Bytes::from)?;
        let mut adoption = self.exchange.adoption().await;
        match adoption.extend(&note) {
            Ok(_) => {}
            // The file may be older than the roster from the links.
            Err(ChainError::Gap { held, found }) if found < held => {}
            Err(source) => return Err(AppError::Roster { path: text.roster.clone(), source }.into()),
        }
        let trust = Trust::of(adoption.newest());
        let crls = crls::read_files(&text.crls, &trust)?;
        if let Some((path, _)) = crls.iter().find(|(_, list)| self.crls.held.contradicts(list)) {
            return Err(ReloadError::List { path: path.display().to_string() });
        }
        let renewed = !self.credentials.is_current(&certified);
        if renewed {
            self.check_accepted_by_peers(&certified, &trust, &crls)?;
        }

        // ... then it is persisted in one commit, and applied.
        let newer: Vec<_> = crls.iter().filter(|(_, list)| self.crls.held.is_newer(list)).collect();
        let records = newer.iter().map(|(_, list)| crls::record(list.crl())).collect();
        let adopted = adoption.commit(records).await?;
        let mut changes = Vec::new();
        if let Some(version) = adopted {
            self.crls.trust.replace(self.rosters.load().newest());
            changes.push(format!("roster: version {version}"));
        }
        for (path, list) in newer {
            if self.crls.held.accept(list) {
                changes.push(format!("CRL of {}: {}", list.crl().trust_domain, path.display()));
            }
        }
        if renewed {
            self.credentials.put(certified);
            changes.push(format!("certificate: {}", text.certificate.display()));
        }
        if **self.access.load() != access {
            self.access.store(Arc::new(access));
            changes.push(format!("access rules: {}", text.access.display()));
        }
        Ok(changes)
    }

    /// With a certificate that peers reject this node would be isolated.
    fn check_accepted_by_peers(
        &self,
        certified: &Certified,
        trust: &Trust,
        crls: &[(std::path::PathBuf, crate::transport::CheckedCrl)],
    ) -> Result<(), ReloadError> {
        let path = self.credentials.path().display().to_string();
        let Some(certificate) = certified.certificate() else { return Ok(()) };
        let new = CrlStore::default();
        for (_, list) in crls {
            new.accept(list);
        }
        for known in [&self.crls.held, &new] {
            let (trust_domain, grace_seconds) = (self.trust_domain.as_str(), self.grace_seconds);
            identity::PeerVerifier { trust, crls: known, trust_domain, grace_seconds }
                .verify(certificate, UnixTime::now())
                .map_err(|rejection| ReloadError::Rejected { path: path.clone(), rejection })?;
        }
        Ok(())
    }
}
