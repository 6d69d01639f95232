//! Whether there is room on the disk for entries: known before they come, so that they need not be refused one by one.
//!
//! In scope: looking, and telling. Out of scope: how much room is needed (the store).

use super::run::Writer;
use crate::store::CommitError;

impl Writer {
    /// Looks whether there is room on the disk.
    pub(super) fn look_for_room(&self) {
        match self.shared.store.room() {
            Ok(()) => self.room(None),
            Err(full @ (CommitError::DiskFull { .. } | CommitError::ViewBehind(_))) => {
                self.room(Some(full.to_string()));
            }
            // The next commit says so to whom it concerns.
            Err(error) => tracing::debug!(%error, "it is not known whether there is room"),
        }
    }

    /// There is room, or why there is none.
    pub(super) fn room(&self, full: Option<String>) {
        self.shared.full.send_if_modified(|known| {
            let changed = known.is_some() != full.is_some();
            if changed {
                *known = full;
            }
            changed
        });
    }
}
