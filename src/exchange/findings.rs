//! Records findings about single entries from a peer, and raises alarms for some of them.
//!
//! In scope: which findings raise an alarm, and for which member. Out of scope: detecting them
//! (`core::follow`).

use std::time::Duration;

use barid_core::follow::{Finding, FindingKind};
use barid_core::ids::{FeedId, Member};

use super::ExchangeState;
use crate::telemetry::AuditEvent;
use crate::telemetry::alarms::Alarm;

/// Time without a further finding after which the alarm is cleared: a day, so that every shift of
/// operators sees it.
const ENTRY_ALARM_QUIET: Duration = Duration::from_secs(24 * 60 * 60);

/// Records findings about entries from `peer`, and raises at most one alarm of each kind for the
/// peer.
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
        // A raised alarm makes its own record.
        if !raised {
            shared
                .record(peer, &AuditEvent { event: "finding", reason, actor: peer, resource: &resource, detail: &"" });
        }
    }
}
