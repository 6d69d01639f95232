//! A disk that is full or nearly so, and members that bring more than their share of it: alarms while it is so, and a record of each end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use barid_core::names::Member;
use barid_core::quota::Tier;

use crate::committer::Committer;
use crate::store::Store;
use crate::telemetry::alarms::{Alarm, Alarms};
use crate::telemetry::{AuditEvent, audit};

/// How often it is looked which members are over their share.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The alarms now; nothing else is to be done than to make room.
pub(super) fn alarms(committer: &Committer, store: &dyn Store) -> Vec<Alarm> {
    let full = committer.disk_full().borrow().as_ref().map(|why| Alarm::DiskFull { why: why.clone() });
    let low = full.is_none() && *committer.tier().borrow() < Tier::All;
    let low = low.then(|| Alarm::DiskLow { free_mib: store.disk_bytes().free >> 20 });
    let over = committer.over_share().into_iter();
    let over = over.map(|(member, over)| Alarm::MemberOverShare { member, entries: over.entries });
    full.into_iter().chain(low).chain(over).collect()
}

fn is_of_the_disk(alarm: &Alarm) -> bool {
    matches!(alarm, Alarm::DiskFull { .. } | Alarm::DiskLow { .. } | Alarm::MemberOverShare { .. })
}

/// Raises these alarms as soon as there is cause, clears them when it is over, and records when there is room again. Never ends.
pub(super) async fn watch(committer: Committer, store: Arc<dyn Store>, active: Alarms) {
    let (mut full, mut tier) = (committer.disk_full(), committer.tier());
    let (mut was_short, mut were_over) = (false, BTreeSet::<Member>::new());
    loop {
        full.mark_unchanged();
        tier.mark_unchanged();
        let now = alarms(&committer, store.as_ref());
        let over = now.iter().filter_map(|alarm| match alarm {
            Alarm::MemberOverShare { member, .. } => Some(member.clone()),
            _ => None,
        });
        let over: BTreeSet<Member> = over.collect();
        let is_short = now.len() > over.len();
        for alarm in &now {
            active.raise(alarm.clone());
        }
        let ended = |alarm: &Alarm| {
            let same = |one: &Alarm| match (one, alarm) {
                (Alarm::MemberOverShare { member: one, .. }, Alarm::MemberOverShare { member: other, .. }) => {
                    one == other
                }
                _ => one.code() == alarm.code(),
            };
            is_of_the_disk(alarm) && !now.iter().any(same)
        };
        active.clear(ended);
        if was_short && !is_short {
            audit(&AuditEvent { what: "disk", reason: "room-again", who: &"", subject: &"", detail: &"" });
        }
        for who in were_over.difference(&over) {
            audit(&AuditEvent { what: "disk", reason: "within-share", who, subject: &"", detail: &"" });
        }
        (was_short, were_over) = (is_short, over);
        tokio::select! {
            changed = full.changed() => if changed.is_err() { return },
            changed = tier.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}
