//! A disk that is full: an alarm while it is, and records of its begin and end.

use crate::committer::Committer;
use crate::telemetry::alarms::{Alarm, Alarms};
use crate::telemetry::{AuditEvent, audit};

/// The alarm while there is no room; nothing else is to be done than to make room.
pub(super) fn alarm(committer: &Committer) -> Option<Alarm> {
    committer.disk_full().borrow().as_ref().map(|why| Alarm::DiskFull { why: why.clone() })
}

/// Raises the alarm as soon as the disk becomes full, and records when there is room again. Never ends.
pub(super) async fn watch(committer: Committer, alarms: Alarms) {
    let mut full = committer.disk_full();
    let mut told = false;
    loop {
        let why = full.borrow_and_update().clone();
        let is_full = why.is_some();
        match why {
            Some(why) if !told => _ = alarms.raise(Alarm::DiskFull { why }),
            None if told => {
                alarms.clear(|alarm| matches!(alarm, Alarm::DiskFull { .. }));
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
