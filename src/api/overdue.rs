//! Bulletins that wait for a roster which does not come.
//!
//! Who may read them is not known without it, so they are neither shown nor guessed at. For a while everything after them waits, so that a
//! reader's order is that of arrival; then the others go on, and operators are told. In scope: how long, for all readers of the node
//! together. Pure: time comes in. Out of scope: what a reader passed over (`subscribe`).

use std::collections::BTreeMap;
use std::time::Duration;

use barid_core::names::Member;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::telemetry::{AuditEvent, audit};

/// How long everything after such a bulletin waits: rosters come with the heads, once a second over every link, so one that is not here by
/// then is held by no member that can be reached, or by none at all.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// What waits, by the member that published it: members are as many as the roster has. Shared by all readers.
#[derive(Default)]
pub struct Overdue {
    waiting: Mutex<BTreeMap<Member, Waiting>>,
}

/// By member and not by bulletin: one that names a further version each time must not have everybody wait for each.
struct Waiting {
    since: Instant,
    /// The largest version that it named.
    roster_version: u64,
    told: bool,
}

impl Overdue {
    /// Whether others go on without a bulletin of `member` of a roster version that is not here, while `held` is.
    pub(super) fn passes(&self, member: &Member, roster_version: u64, held: u64, now: Instant) -> bool {
        let mut waiting = self.waiting.lock();
        waiting.retain(|_, entry| entry.roster_version > held);
        let entry = waiting.entry(member.clone()).or_insert(Waiting { since: now, roster_version, told: false });
        entry.roster_version = entry.roster_version.max(roster_version);
        let over = now.saturating_duration_since(entry.since) >= WAIT_MAX;
        if over && !entry.told {
            entry.told = true;
            let detail = format!("roster version {roster_version}");
            audit(&AuditEvent { what: "alarm", reason: "roster-missing", who: member, subject: &"", detail: &detail });
        }
        over
    }

    /// Whose bulletins are passed over, for operators, while the roster in force is of version `held`.
    pub(super) fn alarms(&self, held: u64) -> Vec<String> {
        let mut waiting = self.waiting.lock();
        waiting.retain(|_, entry| entry.roster_version > held);
        let overdue = waiting.iter().filter(|(_, entry)| entry.told);
        let text = |(member, entry): (&Member, &Waiting)| {
            format!(
                "{member} publishes by roster version {}, which no peer has shown: such bulletins are passed over until it comes",
                entry.roster_version
            )
        };
        overdue.map(text).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::telemetry::heard::Heard;

    #[test]
    fn others_wait_for_a_while_and_operators_are_told_once() {
        let (heard, overdue, begun) = (Heard::listen(), Overdue::default(), Instant::now());
        let (tn, ly): (Member, Member) = ("tn".parse().unwrap(), "ly".parse().unwrap());
        assert!(!overdue.passes(&tn, 9, 8, begun));
        assert!(!overdue.passes(&tn, 9, 8, begun + WAIT_MAX - Duration::from_secs(1)));
        assert!(overdue.alarms(8).is_empty() && heard.take().is_empty());
        assert!(overdue.passes(&tn, 9, 8, begun + WAIT_MAX));
        assert!(overdue.passes(&tn, 10, 8, begun + WAIT_MAX), "for the next one nobody waits again");
        assert!(!overdue.passes(&ly, 9, 8, begun + WAIT_MAX), "each member for itself");
        assert_eq!(heard.take(), ["alarm roster-missing tn"]);
        assert!(overdue.alarms(8).first().is_some_and(|alarm| alarm.contains("roster version 10")));
        assert!(!overdue.alarms(9).is_empty() && overdue.alarms(10).is_empty(), "it has come");
        assert!(!overdue.passes(&tn, 11, 10, begun + WAIT_MAX), "and the next one may come, too");
    }
}
