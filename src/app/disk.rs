//! A disk that is full: an alarm while it is, and records of its begin and end.

use crate::committer::Committer;
use crate::telemetry::{AuditEvent, audit};

/// What operators are told while there is no room; nothing else is to be done than to make room.
pub(super) fn alarm(committer: &Committer) -> Option<String> {
    committer.disk_full().borrow().as_ref().map(|why| {
        format!(
            "the disk is full: nothing is published here and no entries are taken from peers, and both go on by themselves once \
             there is room; {why}"
        )
    })
}

/// Records when the disk becomes full, and when there is room again. Returns never.
pub(super) async fn watch(committer: Committer) {
    let mut full = committer.disk_full();
    let mut told = false;
    loop {
        let why = full.borrow_and_update().clone();
        let is_full = why.is_some();
        match why {
            Some(why) if !told => {
                audit(&AuditEvent { what: "alarm", reason: "disk-full", who: &"", subject: &"", detail: &why });
            }
            None if told => {
                audit(&AuditEvent { what: "disk", reason: "room-again", who: &"", subject: &"", detail: &"" });
            }
            Some(_) | None => {}
        }
        told = is_full;
        if full.changed().await.is_err() {
            return;
        }
    }
}
