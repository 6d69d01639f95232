//! Rosters on links: handing on what a peer lacks, and adopting what it sends.

use barid_core::limits::MESSAGE_BYTES_MAX;
use barid_core::names::Member;
use barid_core::proto;
use barid_core::roster::{ChainError, RosterChain};
use bytes::Bytes;

use super::Shared;
use crate::committer::Kept;
use crate::store::RosterRecord;
use crate::telemetry::{AuditEvent, audit};

/// The versions after `after`, as many as one message holds.
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

/// Verifies rosters that `peer` sent, keeps those that extend ours, and puts them in force.
pub(crate) async fn adopt(shared: &Shared, peer: &Member, notes: &[Bytes]) {
    let _one_at_a_time = shared.adopting.lock().await;
    let mut chain = RosterChain::clone(&shared.options.rosters.load());
    let mut records = Vec::new();
    for note in notes {
        match chain.extend(note) {
            Ok(true) => records.push(RosterRecord { version: chain.newest().version(), note: note.clone() }),
            Ok(false) => {}
            Err(error) => {
                refused(shared, peer, &error);
                break;
            }
        }
    }
    if records.is_empty() {
        return;
    }
    let version = chain.newest().version();
    match shared.options.committer.keep(Kept { rosters: records, ..Kept::default() }).await {
        Ok(()) => {
            shared.options.rosters.replace(chain);
            audit(&AuditEvent { what: "roster-adopted", reason: "newer", who: peer, subject: &version, detail: &"" });
        }
        Err(failure) => tracing::warn!(%failure, version, "a newer roster could not be kept"),
    }
}

fn refused(shared: &Shared, peer: &Member, error: &ChainError) {
    let reason = match error {
        ChainError::Fork { version, .. } => {
            shared.peers.alarm(format!("two rosters of version {version} are signed; {peer} sent the one not held"));
            "roster-fork"
        }
        // Enough governors signed it: they are told, or their next version is refused everywhere and nobody knows why.
        ChainError::Settled { .. } => {
            shared.peers.alarm(format!("a newer roster is refused: {error}"));
            "roster-settled"
        }
        ChainError::Gap { .. } => "roster-gap",
        _ => "bad-roster",
    };
    audit(&AuditEvent { what: "refused-roster", reason, who: peer, subject: &"", detail: error });
}
