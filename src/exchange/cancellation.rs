//! Cancels blocking work when its link ends. Blocking threads cannot be aborted; they check the
//! token between their steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a link has ended. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct CancellationToken(Arc<AtomicBool>);

/// Held by the link. Dropping it, also with the future that holds it, cancels the token.
pub(crate) struct CancelGuard(CancellationToken);

impl CancellationToken {
    /// Creates a token and the guard that cancels it.
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
