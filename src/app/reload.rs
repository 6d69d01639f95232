//! Reading certificate, lists, access rules and roster again without a restart: all that changed, or nothing.

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
    /// Everybody would refuse the certificate.
    #[error("{path} would be refused: {rejection}")]
    Rejected {
        /// The file.
        path: String,
        /// Why.
        rejection: Rejection,
    },
    /// A revocation list with the number of another one.
    #[error(
        "{path} differs from the revocation list in force and has the same number: issue it again with a higher CRL number"
    )]
    List {
        /// The file.
        path: String,
    },
    /// What was read could not be kept.
    #[error("it cannot be kept: {0}")]
    Commit(#[from] CommitFailure),
}

impl Node {
    /// Reads the files again and says what changed; `actor` asked for it. A file that cannot be used leaves everything as it was.
    pub(super) async fn reload_for(&self, actor: &str) -> Result<Vec<String>, String> {
        let result = self.reload_files().await.map_err(|error| error_chain::one_line(&error));
        let (event, reason, detail) = match &result {
            Ok(changes) if changes.is_empty() => ("reloaded", "nothing-new", String::new()),
            Ok(changes) => ("reloaded", "changed", changes.join("; ")),
            Err(error) => ("reload-rejected", "unusable", error.clone()),
        };
        // Nobody outside asks for it: each one is recorded.
        audit_limited(u64::MAX, &AuditEvent { event, reason, actor: &actor, resource: &"", detail: &detail });
        *self.reload_error.lock() = result.as_ref().err().cloned();
        result
    }

    /// What is in the files is not what is in force: the next start would fail.
    pub(super) fn reload_alarm(&self) -> Option<Alarm> {
        self.reload_error.lock().clone().map(|why| Alarm::ReloadRejected { why })
    }

    async fn reload_files(&self) -> Result<Vec<String>, ReloadError> {
        let _one_at_a_time = self.reloading.lock().await;
        let text = &self.config.text;

        // Everything is read and judged as it would stand together ...
        let access = load_access(&text.access)?;
        let certified = self.credentials.read()?;
        let note = read_roster(&text.roster).map(Bytes::from)?;
        let mut adoption = self.exchange.adoption().await;
        match adoption.extend(&note) {
            Ok(_) => {}
            // The file may be older than what came over the links.
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

        // ... made durable in one commit, and put in force.
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
                changes.push(format!("revocation list of {}: {}", list.crl().trust_domain, path.display()));
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

    /// With a certificate that others refuse this node would be alone.
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
