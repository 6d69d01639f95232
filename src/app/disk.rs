//! A disk that is full or nearly so, and members that bring more than their share of it: alarms while it is so, and records of begin and end.

use std::collections::BTreeSet;
use std::time::Duration;

use barid_core::names::Member;
use barid_core::quota::Tier;

use crate::committer::Committer;
use crate::store::Store;
use crate::telemetry::{AuditEvent, audit};

/// How often it is looked which members are over their share.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What operators are told; nothing else is to be done than to make room.
pub(super) fn alarms(committer: &Committer, store: &dyn Store) -> Vec<String> {
    let full = committer.disk_full().borrow().as_ref().map(|why| {
        format!(
            "the disk is full: nothing is published here and no entries are taken from peers, and both go on by themselves once \
             there is room; {why}"
        )
    });
    let tier = *committer.tier().borrow();
    let low = (full.is_none() && tier < Tier::All).then(|| {
        let free_mib = store.disk_bytes().free >> 20;
        format!(
            "little room is left on the disk ({free_mib} MiB free): the content of other members' bulletins is not stored for now, \
             and is fetched by itself once there is room"
        )
    });
    let over = committer.over_share().into_iter().map(|(member, over)| over_share(&member, over.entries));
    full.into_iter().chain(low).chain(over).collect()
}

fn over_share(member: &Member, entries: u64) -> String {
    format!(
        "{member} has brought its share of the room on the disk: of {entries} of its entries only digests are stored for now, and \
         their content is fetched by itself later"
    )
}

fn room_again(detail: &dyn std::fmt::Display) {
    audit(&AuditEvent { what: "disk", reason: "room-again", who: &"", subject: &"", detail });
}

/// Records when the disk becomes full or nearly so, when there is room again, and which members are over their share. Returns never.
pub(super) async fn watch(committer: Committer) {
    let (mut full, mut tier) = (committer.disk_full(), committer.tier());
    let (mut was_full, mut was_low, mut were_over) = (false, false, BTreeSet::new());
    loop {
        let why = full.borrow_and_update().clone();
        let is_low = why.is_none() && *tier.borrow_and_update() < Tier::All;
        match &why {
            Some(why) if !was_full => {
                audit(&AuditEvent { what: "alarm", reason: "disk-full", who: &"", subject: &"", detail: why });
            }
            None if was_full => room_again(&""),
            Some(_) | None => {}
        }
        match (was_low, is_low) {
            (false, true) => {
                audit(&AuditEvent { what: "alarm", reason: "disk-low", who: &"", subject: &"", detail: &"" });
            }
            (true, false) if why.is_none() => room_again(&"for the content of others"),
            _ => {}
        }
        (was_full, was_low) = (why.is_some(), is_low);
        let over = committer.over_share();
        for (who, over) in over.iter().filter(|(member, _)| !were_over.contains(*member)) {
            let detail = over_share(who, over.entries);
            audit(&AuditEvent { what: "alarm", reason: "member-over-share", who, subject: &"", detail: &detail });
        }
        for who in were_over.iter().filter(|member| !over.contains_key(*member)) {
            audit(&AuditEvent { what: "disk", reason: "within-share", who, subject: &"", detail: &"" });
        }
        were_over = over.into_keys().collect();
        tokio::select! {
            changed = full.changed() => if changed.is_err() { return },
            changed = tier.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}
