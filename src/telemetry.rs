//! What the node tells its operators: logs, and the one place through which auditable events pass.
//!
//! Content of bulletins and keys never pass here. Events are structured records; a journal will keep them.

use std::fmt;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Something that an auditor may ask about.
pub struct AuditEvent<'a> {
    /// Stable word: "refused-connection", "refused-call", "refused-batch", "published", "alarm" ...
    pub what: &'static str,
    /// Stable word for why.
    pub reason: &'a str,
    /// Who, as SPIFFE ID or address; empty if unknown.
    pub who: &'a dyn fmt::Display,
    /// What it concerned: a feed, a method; empty if nothing.
    pub subject: &'a dyn fmt::Display,
    /// For people. No content of bulletins.
    pub detail: &'a dyn fmt::Display,
}

/// Records an auditable event.
pub fn audit(event: &AuditEvent<'_>) {
    tracing::info!(
        target: "barid::audit",
        what = event.what,
        reason = event.reason,
        who = %event.who,
        subject = %event.subject,
        detail = %event.detail,
    );
}

/// Starts logging to standard error: `filter` as in `RUST_LOG` ("info,barid=debug"), JSON lines or text. May be called once.
pub fn init(filter: &str, json: bool) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let started =
        if json { registry.with(layer.json()).try_init() } else { registry.with(layer.with_ansi(false)).try_init() };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
}
