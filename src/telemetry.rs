//! Logging, and the single path of all audit events.
//!
//! Events are structured records. They never contain bulletins' content or keys. A remote party can
//! cause events at will. So for each source and kind only the first few are recorded one by one,
//! and the rest as a count (`audit_limiter`); every line is escaped, cut and charged to its source
//! (`lines`).
//!
//! In scope: recording and counting events, and starting the logger. Out of scope: alarms
//! (`alarms`).

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

/// An event that an auditor may ask about.
pub struct AuditEvent<'a> {
    /// Stable name of the event: "connection-rejected", "call-denied", "batch-rejected", "alarm"
    /// ...
    pub event: &'static str,
    /// Stable reason. It must be a constant of this program, never text of a peer or a caller,
    /// because each reason is counted.
    pub reason: &'static str,
    /// SPIFFE ID or address of the cause; empty if unknown.
    pub actor: &'a dyn fmt::Display,
    /// The feed, method or other resource; empty if there is none.
    pub resource: &'a dyn fmt::Display,
    /// Text for people. It must not contain bulletins' content.
    pub detail: &'a dyn fmt::Display,
}

/// Records an audit event. For one source, kind and reason the first [`INDIVIDUAL_RECORDS_MAX`] of
/// a minute are recorded one by one, the rest as a count. The source is the actor, or the resource
/// if there is no actor.
pub fn audit(event: &AuditEvent<'_>) {
    audit_limited(INDIVIDUAL_RECORDS_MAX, event);
}

/// As [`audit`], with another number of single records, for events that are legitimately frequent.
pub fn audit_limited(individual_max: u64, event: &AuditEvent<'_>) {
    let source = match escape::cut(format_args!("{}", event.actor)) {
        nobody if nobody.is_empty() => escape::cut(format_args!("{}", event.resource)),
        actor => actor,
    };
    with_events(|events| events.record(&source, individual_max, event, Instant::now()));
}

/// Counters of [`audit`].
#[cfg(not(test))]
fn with_events<T>(act: impl FnOnce(&AuditLimiter) -> T) -> T {
    static EVENTS: std::sync::LazyLock<AuditLimiter> = std::sync::LazyLock::new(AuditLimiter::default);
    act(&EVENTS)
}

/// Each test has its own counters.
#[cfg(test)]
fn with_events<T>(act: impl FnOnce(&AuditLimiter) -> T) -> T {
    thread_local! {
        static EVENTS: AuditLimiter = AuditLimiter::default();
    }
    EVENTS.with(act)
}

/// Records the counts of [`audit`] as intervals end. Never returns.
pub async fn summarize_periodically() {
    let mut tick = tokio::time::interval(audit_limiter::SUMMARY_INTERVAL);
    loop {
        tick.tick().await;
        with_events(|events| events.summarize_expired(Instant::now()));
    }
}

/// Records all counts of [`audit`], at the end of the process.
pub fn summarize_all() {
    with_events(AuditLimiter::summarize_all);
}

/// Most pairs of event and reason in [`event_counts`], twice as many as the operator's guide lists.
/// Both are constants of this program; the bound protects the memory from a defect.
const EVENT_COUNTS_MAX: usize = 256;

/// Events since the start of the process, recorded one by one or not, by event and reason.
static EVENT_COUNTS: Mutex<BTreeMap<(&'static str, &'static str), u64>> = Mutex::new(BTreeMap::new());

/// Returns the number of events since the start of the process, by event and reason.
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

/// Parses a log filter as in `RUST_LOG` ("info,barid=debug"). Audit events are recorded whatever
/// the filter.
///
/// # Errors
/// Describes what cannot be parsed. A single name must be a level: as a module name it would
/// silence everything else.
pub fn filter(text: &str) -> Result<EnvFilter, String> {
    let bare = |part: &&str| !part.contains(['=', '[']) && part.trim().parse::<LevelFilter>().is_err();
    if let Some(part) = text.split(',').find(bare) {
        return Err(format!("`{}` is not off, error, warn, info, debug or trace, or target=level", part.trim()));
    }
    let audited = "barid::audit=info".parse().map_err(|error| format!("{error}"))?;
    EnvFilter::try_new(text).map(|filter| filter.add_directive(audited)).map_err(|error| error.to_string())
}

/// Starts logging to standard error, as JSON lines or text. [`filter()`] parses `text`. Call it at
/// most once.
pub fn init(text: &str, json: bool) {
    let filter = filter(text).unwrap_or_else(|_| EnvFilter::new("info"));
    let started = tracing_subscriber::registry().with(filter).with(lines::Lines::new(json)).try_init();
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
}

/// Captures audit events for tests. A tracing subscriber of each test does not work: tracing caches
/// the interest of a call site for all threads, so tests that start at the same time would lose
/// records.
#[cfg(test)]
pub(crate) mod captured {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::AuditEvent;

    /// One audit event.
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

    /// Captures the events of this thread until it is dropped.
    pub(crate) struct CapturedRecords(Rc<RefCell<Vec<Record>>>);

    impl CapturedRecords {
        pub(crate) fn start() -> Self {
            let records = Rc::default();
            CAPTURED.set(Some(Rc::clone(&records)));
            Self(records)
        }

        /// Returns the events so far, in order.
        pub(crate) fn records(&self) -> Vec<Record> {
            self.0.borrow().clone()
        }

        /// Returns `event reason actor resource` of each event so far, in order, and clears them.
        pub(crate) fn take(&self) -> Vec<String> {
            let fields = |Record { event, reason, actor, resource, .. }: Record| {
                [event, reason, actor, resource]
                    .into_iter()
                    .filter(|field| !field.is_empty())
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            self.0.take().into_iter().map(fields).collect()
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
