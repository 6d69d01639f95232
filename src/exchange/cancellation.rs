//! The end of a link, for work on blocking threads: they cannot be aborted, and look here between their steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a link has ended. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct CancellationToken(Arc<AtomicBool>);

/// Held by the link. Dropping it, also with the future that holds it, is the end.
pub(crate) struct CancelGuard(CancellationToken);

impl CancellationToken {
    /// A link that has not ended, and what ends it.
    pub(crate) fn with_guard() -> (Self, CancelGuard) {
        let token = Self::default();
        (token.clone(), CancelGuard(token))
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}
