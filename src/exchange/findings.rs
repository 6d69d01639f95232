//! What is odd about single entries that a peer sent: recorded, and raised as alarms.
//!
//! In scope: which findings are alarms, and of whom. Out of scope: finding it (`core::follow`).

use std::time::Duration;

use barid_core::follow::{Finding, FindingKind};
use barid_core::ids::{FeedId, Member};

use super::ExchangeState;
use crate::telemetry::AuditEvent;
use crate::telemetry::alarms::Alarm;

/// An alarm about entries is active until the peer has sent no further ones for so long: every shift of operators sees it.
const ENTRY_ALARM_QUIET: Duration = Duration::from_secs(24 * 60 * 60);

/// Records what is odd about entries that `peer` sent, and raises alarms: of each kind one for the peer.
pub(crate) fn record_findings(shared: &ExchangeState, peer: &Member, feed: &FeedId, findings: &[Finding]) {
    for finding in findings {
        let (resource, reason) = (format!("{feed} {}", finding.index), finding.kind.as_str());
        let raised = match finding.kind {
            FindingKind::NewerRoster(version) => {
                shared.alarms.raise(Alarm::RosterMissing { member: feed.member.clone(), version });
                false
            }
            _ if finding.kind.is_alarm() => {
                let (feed, by) = (feed.clone(), peer.clone());
                let alarm = Alarm::Entry { finding: reason, feed, index: finding.index, by };
                shared.alarms.raise_for(alarm, ENTRY_ALARM_QUIET)
            }
            _ => false,
        };
        // The alarm has its record.
        if !raised {
            shared
                .record(peer, &AuditEvent { event: "finding", reason, actor: peer, resource: &resource, detail: &"" });
        }
    }
}
