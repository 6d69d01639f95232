//! What the node tells its operators: logs, and the one place through which auditable events pass.
//!
//! Content of bulletins and keys never pass here. Events are structured records; a journal will keep them. Whoever can cause an event can cause it
//! at will: of each source the first few of a kind are recorded one by one and the rest as a number (`audit_limiter`), and every line is escaped, cut
//! and charged to its source (`lines`).

pub mod alarms;
mod audit_limiter;
mod escape;
mod lines;

use std::collections::BTreeMap;
use std::fmt;

pub use audit_limiter::{AuditLimiter, INDIVIDUAL_RECORDS_MAX};
pub use escape::{Foreign, VALUE_CHARS_MAX};
pub use lines::charge_lines_to;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Something that an auditor may ask about.
pub struct AuditEvent<'a> {
    /// Stable word: "connection-rejected", "call-denied", "batch-rejected", "alarm" ...
    pub event: &'static str,
    /// Stable word for why, of this program: never a peer's or a caller's, as reasons are counted one by one.
    pub reason: &'static str,
    /// Who, as SPIFFE ID or address; empty if unknown.
    pub actor: &'a dyn fmt::Display,
    /// What it concerned: a feed, a method; empty if nothing.
    pub resource: &'a dyn fmt::Display,
    /// For people. No content of bulletins.
    pub detail: &'a dyn fmt::Display,
}

/// Records an auditable event: of one source, kind and reason the first [`INDIVIDUAL_RECORDS_MAX`] of a minute one by one, the rest as a number. The
/// source is who caused it, or where that is nobody what it concerns.
pub fn audit(event: &AuditEvent<'_>) {
    audit_limited(INDIVIDUAL_RECORDS_MAX, event);
}

/// As [`audit`], with another number of records: for what somebody may rightly do often.
pub fn audit_limited(individual_max: u64, event: &AuditEvent<'_>) {
    let source = match escape::cut(format_args!("{}", event.actor)) {
        nobody if nobody.is_empty() => escape::cut(format_args!("{}", event.resource)),
        actor => actor,
    };
    with_events(|events| events.record(&source, individual_max, event, Instant::now()));
}

/// What [`audit`] counts.
#[cfg(not(test))]
fn with_events<T>(act: impl FnOnce(&AuditLimiter) -> T) -> T {
    static EVENTS: std::sync::LazyLock<AuditLimiter> = std::sync::LazyLock::new(AuditLimiter::default);
    act(&EVENTS)
}

/// Each test counts its own.
#[cfg(test)]
fn with_events<T>(act: impl FnOnce(&AuditLimiter) -> T) -> T {
    thread_local! {
        static EVENTS: AuditLimiter = AuditLimiter::default();
    }
    EVENTS.with(act)
}

/// Records what [`audit`] only counted, as intervals end. Never ends.
pub async fn summarize_periodically() {
    let mut tick = tokio::time::interval(audit_limiter::SUMMARY_INTERVAL);
    loop {
        tick.tick().await;
        with_events(|events| events.summarize_expired(Instant::now()));
    }
}

/// Records everything that [`audit`] only counted: nothing more comes.
pub fn summarize_all() {
    with_events(AuditLimiter::summarize_all);
}

/// Kinds and reasons that are told apart in [`event_counts`]: twice as many as the operator's guide lists. Reasons are words of this program; a
/// defect that made others must not fill the memory.
const EVENT_COUNTS_MAX: usize = 256;

/// Events since the start of the process, recorded one by one or not, by what happened and why.
static EVENT_COUNTS: Mutex<BTreeMap<(&'static str, &'static str), u64>> = Mutex::new(BTreeMap::new());

/// How many events there were since the start of the process, by what happened and why.
#[must_use]
pub fn event_counts() -> BTreeMap<(&'static str, &'static str), u64> {
    EVENT_COUNTS.lock().clone()
}

fn count(event: &'static str, reason: &'static str) {
    let mut event_counts = EVENT_COUNTS.lock();
    if event_counts.len() < EVENT_COUNTS_MAX || event_counts.contains_key(&(event, reason)) {
        *event_counts.entry((event, reason)).or_default() += 1;
    }
}

fn emit(event: &AuditEvent<'_>) {
    #[cfg(test)]
    captured::push(event);
    tracing::info!(
        target: "barid::audit",
        event = event.event,
        reason = event.reason,
        actor = %event.actor,
        resource = %event.resource,
        detail = %event.detail,
    );
}

/// A log filter as in `RUST_LOG` ("info,barid=debug"). Whatever it says, auditable events are recorded.
///
/// # Errors
/// What cannot be read. A bare word must be a level: as the name of a module it would silence everything else.
pub fn filter(text: &str) -> Result<EnvFilter, String> {
    let bare = |part: &&str| !part.contains(['=', '[']) && part.trim().parse::<LevelFilter>().is_err();
    if let Some(part) = text.split(',').find(bare) {
        return Err(format!("`{}` is not off, error, warn, info, debug or trace, or target=level", part.trim()));
    }
    let audited = "barid::audit=info".parse().map_err(|error| format!("{error}"))?;
    EnvFilter::try_new(text).map(|filter| filter.add_directive(audited)).map_err(|error| error.to_string())
}

/// Starts logging to standard error: `filter` as [`filter()`] reads it, JSON lines or text. May be called once.
pub fn init(text: &str, json: bool) {
    let filter = filter(text).unwrap_or_else(|_| EnvFilter::new("info"));
    let started = tracing_subscriber::registry().with(filter).with(lines::Lines::new(json)).try_init();
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
}

/// What passes through [`audit`], for tests. Not by a subscriber of their own: which one hears a place in the code is remembered for
/// all threads, and tests that begin at the same time lose records by it.
#[cfg(test)]
pub(crate) mod captured {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::AuditEvent;

    /// One auditable event.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Record {
        pub(crate) event: String,
        pub(crate) reason: String,
        pub(crate) actor: String,
        pub(crate) resource: String,
        pub(crate) detail: String,
    }

    thread_local! {
        static CAPTURED: RefCell<Option<Rc<RefCell<Vec<Record>>>>> = const { RefCell::new(None) };
    }

    /// The events of this thread, from its making until it is dropped.
    pub(crate) struct CapturedRecords(Rc<RefCell<Vec<Record>>>);

    impl CapturedRecords {
        pub(crate) fn start() -> Self {
            let records = Rc::default();
            CAPTURED.set(Some(Rc::clone(&records)));
            Self(records)
        }

        /// So far, in order.
        pub(crate) fn records(&self) -> Vec<Record> {
            self.0.borrow().clone()
        }

        /// `event reason actor resource` of each so far, in order, and forgets them.
        pub(crate) fn take(&self) -> Vec<String> {
            let words = |Record { event, reason, actor, resource, .. }: Record| {
                [event, reason, actor, resource]
                    .into_iter()
                    .filter(|word| !word.is_empty())
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            self.0.take().into_iter().map(words).collect()
        }
    }

    impl Drop for CapturedRecords {
        fn drop(&mut self) {
            CAPTURED.set(None);
        }
    }

    pub(super) fn push(event: &AuditEvent<'_>) {
        let AuditEvent { event, reason, actor, resource, detail } = event;
        let record = Record {
            event: (*event).to_owned(),
            reason: (*reason).to_owned(),
            actor: actor.to_string(),
            resource: resource.to_string(),
            detail: detail.to_string(),
        };
        CAPTURED.with_borrow(|captured| {
            if let Some(records) = captured {
                records.borrow_mut().push(record);
            }
        });
    }
}
