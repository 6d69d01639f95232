//! Synchronizes rosters over links: sends the versions that a peer lacks, and adopts newer ones.
//!
//! In scope: adoption as one commit, and the alarms about rejected rosters. Out of scope: verifying
//! a roster (`core::roster`).

use barid_core::ids::Member;
use barid_core::limits::MESSAGE_BYTES_MAX;
use barid_core::proto;
use barid_core::roster::{ChainError, Roster, RosterChain};
use bytes::Bytes;
use tokio::sync::MutexGuard;

use super::{Exchange, ExchangeState};
use crate::committer::{CommitFailure, Records};
use crate::store::{CrlRecord, RosterRecord};
use crate::telemetry::alarms::Alarm;
use crate::telemetry::{AuditEvent, audit};

/// Returns the versions after `after`, as many as one message holds.
pub(crate) fn rosters_after(chain: &RosterChain, after: u64) -> proto::Rosters {
    let mut notes: Vec<Bytes> = Vec::new();
    let mut bytes = 0;
    for (_, note) in chain.notes().filter(|(version, _)| *version > after) {
        bytes += note.len() + 8;
        if bytes > MESSAGE_BYTES_MAX - 64 && !notes.is_empty() {
            break;
        }
        notes.push(note.clone());
    }
    proto::Rosters { notes }
}

/// Rosters about to be put in force. It holds the lock that serializes adoptions. Dropping it
/// changes nothing.
pub struct Adoption<'a> {
    shared: &'a ExchangeState,
    chain: RosterChain,
    records: Vec<RosterRecord>,
    _lock: MutexGuard<'a, ()>,
}

impl Exchange {
    /// Begins to adopt rosters on top of those in force.
    pub async fn adoption(&self) -> Adoption<'_> {
        Adoption::begin(&self.shared).await
    }
}

impl<'a> Adoption<'a> {
    async fn begin(shared: &'a ExchangeState) -> Self {
        let lock = shared.adoption_lock.lock().await;
        let chain = RosterChain::clone(&shared.options.rosters.load());
        Self { shared, chain, records: Vec::new(), _lock: lock }
    }

    /// Adds the next version. Returns false if it is in force or has been added already.
    ///
    /// # Errors
    /// As [`RosterChain::extend`].
    pub fn extend(&mut self, note: &Bytes) -> Result<bool, ChainError> {
        let extended = self.chain.extend(note)?;
        if extended {
            self.records.push(RosterRecord { version: self.chain.newest().version(), note: note.clone() });
        }
        Ok(extended)
    }

    /// Returns the roster that would be in force.
    #[must_use]
    pub fn newest(&self) -> &Roster {
        self.chain.newest()
    }

    /// Persists the rosters and, in the same commit, revocation lists; then puts the rosters in
    /// force. Returns the version adopted, if there is a newer one.
    ///
    /// # Errors
    /// If the commit fails. Nothing has changed then.
    pub async fn commit(self, crls: Vec<CrlRecord>) -> Result<Option<u64>, CommitFailure> {
        let version = self.records.last().map(|record| record.version);
        if version.is_some() || !crls.is_empty() {
            let new_records = Records { rosters: self.records, crls, ..Records::default() };
            self.shared.options.committer.persist(new_records).await?;
        }
        if let Some(version) = version {
            self.shared.options.rosters.replace(self.chain);
            self.shared.alarms.clear(|alarm| is_resolved_by(alarm, version));
        }
        Ok(version)
    }
}

/// Whether a roster of this version resolves an alarm.
fn is_resolved_by(alarm: &Alarm, version: u64) -> bool {
    match alarm {
        Alarm::RosterMissing { version: missing, .. } => *missing <= version,
        Alarm::RosterFork { version: disputed, .. } => *disputed < version,
        Alarm::RosterRejected { .. } => true,
        _ => false,
    }
}

/// Verifies rosters from `peer`, persists those that extend ours, and puts them in force.
pub(crate) async fn adopt_rosters(shared: &ExchangeState, peer: &Member, notes: &[Bytes]) {
    let mut adoption = Adoption::begin(shared).await;
    for note in notes {
        if let Err(error) = adoption.extend(note) {
            record_rejection(shared, peer, &error);
            break;
        }
    }
    match adoption.commit(Vec::new()).await {
        Ok(Some(version)) => {
            audit(&AuditEvent {
                event: "roster-adopted",
                reason: "newer",
                actor: peer,
                resource: &version,
                detail: &"",
            });
        }
        Ok(None) => {}
        Err(failure) => tracing::warn!(%failure, "a newer roster could not be persisted"),
    }
}

fn record_rejection(shared: &ExchangeState, peer: &Member, error: &ChainError) {
    let reason = match error {
        ChainError::Fork { version, .. } => {
            shared.alarms.raise(Alarm::RosterFork { version: *version, by: peer.clone() });
            "roster-fork"
        }
        // Enough governors signed it, so operators must know: otherwise the next version is
        // rejected everywhere for no visible reason.
        ChainError::InvariantChanged { .. } => {
            shared.alarms.raise(Alarm::RosterRejected { why: error.to_string(), by: peer.clone() });
            "roster-invariant"
        }
        ChainError::Gap { .. } => "roster-gap",
        _ => "bad-roster",
    };
    audit(&AuditEvent { event: "roster-rejected", reason, actor: peer, resource: &"", detail: error });
}
