//! Raises alarms when the disk is full or nearly full, or a member is over its share of it.

use std::sync::Arc;
use std::time::Duration;

use barid_core::quota::Tier;

use super::node::Node;
use crate::committer::Committer;
use crate::store::Store;
use crate::telemetry::alarms::Alarm;

/// Time between two updates of all alarms. A status request updates them too.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Returns the current alarms. The only remedy is to free disk space.
pub(super) fn alarms(committer: &Committer, store: &dyn Store) -> Vec<Alarm> {
    let full = committer.disk_full().borrow().as_ref().map(|why| Alarm::DiskFull { why: why.clone() });
    let low = full.is_none() && *committer.tier().borrow() < Tier::All;
    let low = low.then(|| Alarm::DiskLow { free_mib: store.disk_bytes().free >> 20 });
    let over_share = committer.over_share().into_iter();
    let over_share = over_share.map(|(member, quota)| Alarm::MemberOverShare { member, entries: quota.entries });
    full.into_iter().chain(low).chain(over_share).collect()
}

impl Node {
    /// Updates all alarms at the interval, and at once when the disk becomes full or has space
    /// again. Never returns.
    pub(super) async fn watch_alarms(self: Arc<Self>) {
        let (mut full, mut tier) = (self.committer.disk_full(), self.committer.tier());
        loop {
            // Not on a blocking thread: it would hold the store open beyond the node's end. The
            // data is in memory.
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
