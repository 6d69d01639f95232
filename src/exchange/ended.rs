//! The end of a link, for work on blocking threads: they cannot be aborted, and look here between their steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a link has ended. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ended(Arc<AtomicBool>);

/// Held by the link. Dropping it, also with the future that holds it, is the end.
pub(crate) struct Ends(Ended);

impl Ended {
    /// A link that has not ended, and what ends it.
    pub(crate) fn with_guard() -> (Self, Ends) {
        let ended = Self::default();
        (ended.clone(), Ends(ended))
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}
