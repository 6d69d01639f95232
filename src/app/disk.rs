//! Alarms of a disk that is full or nearly so, and of members that bring more than their share of it.

use std::sync::Arc;
use std::time::Duration;

use barid_core::quota::Tier;

use super::node::Node;
use crate::committer::Committer;
use crate::store::Store;
use crate::telemetry::alarms::Alarm;

/// How often alarms are looked at whatever happens; a status always does.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The alarms now; nothing else is to be done than to make room.
pub(super) fn alarms(committer: &Committer, store: &dyn Store) -> Vec<Alarm> {
    let full = committer.disk_full().borrow().as_ref().map(|why| Alarm::DiskFull { why: why.clone() });
    let low = full.is_none() && *committer.tier().borrow() < Tier::All;
    let low = low.then(|| Alarm::DiskLow { free_mib: store.disk_bytes().free >> 20 });
    let over = committer.over_share().into_iter();
    let over = over.map(|(member, over)| Alarm::MemberOverShare { member, entries: over.entries });
    full.into_iter().chain(low).chain(over).collect()
}

impl Node {
    /// Looks at all alarms again and again, and at once when the disk is full or has room again. Never ends.
    pub(super) async fn watch_alarms(self: Arc<Self>) {
        let (mut full, mut tier) = (self.committer.disk_full(), self.committer.tier());
        loop {
            // Here and not on a blocking thread, which would hold the store open beyond the node's end: it reads what lies in memory.
            full.mark_unchanged();
            tier.mark_unchanged();
            self.update_alarms();
            tokio::select! {
                changed = full.changed() => if changed.is_err() { return },
                changed = tier.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
            }
        }
    }
}
