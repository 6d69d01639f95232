//! Limits audit records that remote parties can cause at will: the first few of an interval are
//! recorded one by one, the rest as a count.
//!
//! In scope: counting by source and reason, within named bounds. Takes time as an argument; its
//! only effect is the record. Out of scope: the events, and how sources are distinguished.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{AuditEvent, emit};

/// Single records of one source and reason in one interval: enough to diagnose a problem.
pub const INDIVIDUAL_RECORDS_MAX: u64 = 5;
/// Length of an interval. At its end the count is recorded and counting starts again.
const INTERVAL: Duration = Duration::from_secs(60);
/// Time between two checks for ended intervals.
pub(super) const SUMMARY_INTERVAL: Duration = Duration::from_secs(10);
/// Most pairs of source and reason with a counter of their own. Further ones share a counter. At
/// worst there are some twenty thousand records in an interval, a few megabytes.
const COUNTERS_MAX: usize = 4_096;
/// Source of the shared counter.
const OTHERS: &str = "others";
/// Returns a reason as written in records. Those that callers also get in `google.rpc.ErrorInfo`
/// are in capitals there.
fn kebab_case(reason: &'static str) -> &'static str {
    match reason {
        "AGENCY" => "agency",
        "AUDIENCE" => "audience",
        "WORKING_GROUP" => "working-group",
        "ROSTER_NOT_FETCHED" => "roster-not-fetched",
        "NO_GRANT" => "no-grant",
        "ROLE" => "role",
        "NOT_CLEARED" => "not-cleared",
        "RATE" => "rate",
        "STREAMS" => "streams",
        "SUBSCRIPTIONS" => "subscriptions",
        "BUDGET" => "budget",
        "MESSAGE_TOO_LARGE" => "message-too-large",
        "BODY_TIMEOUT" => "body-timeout",
        "NOT_READ" => "not-read",
        "UNUSED" => "unused",
        other => other,
    }
}

/// Counts events by source. Shared by all code that records them.
#[derive(Default)]
pub struct AuditLimiter {
    counts: Mutex<HashMap<Key, Count>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    event: &'static str,
    source: String,
    reason: &'static str,
}

struct Count {
    since: Instant,
    all: u64,
    individual: u64,
    resource: String,
}

impl AuditLimiter {
    /// Records an event, or counts it if `source` has caused `individual_max` records of its kind
    /// and reason in this interval.
    pub fn record(&self, source: &str, individual_max: u64, event: &AuditEvent<'_>, now: Instant) {
        let event = &AuditEvent { reason: kebab_case(event.reason), ..*event };
        super::count(event.event, event.reason);
        let key = Key { event: event.event, source: source.to_owned(), reason: event.reason };
        let (individual, expired) = {
            let mut counts = self.counts.lock();
            let is_full = counts.len() >= COUNTERS_MAX && !counts.contains_key(&key);
            let key = if is_full { Key { source: OTHERS.to_owned(), ..key } } else { key };
            let expired = counts
                .get(&key)
                .is_some_and(|count| now.saturating_duration_since(count.since) >= INTERVAL)
                .then(|| counts.remove(&key).map(|count| (key.clone(), count)))
                .flatten();
            let count = counts.entry(key).or_insert_with(|| Count {
                since: now,
                all: 0,
                individual: 0,
                resource: super::escape::cut(format_args!("{}", event.resource)),
            });
            count.all += 1;
            let individual = count.individual < individual_max;
            count.individual += u64::from(individual);
            (individual, expired)
        };
        expired.into_iter().for_each(|(key, count)| emit_summary(&key, &count));
        if individual {
            emit(event);
        }
    }

    /// Records the counts of intervals that have ended at `now`.
    pub fn summarize_expired(&self, now: Instant) {
        self.summarize_where(|count| now.saturating_duration_since(count.since) >= INTERVAL);
    }

    /// Records all counts, at the end of the process.
    pub fn summarize_all(&self) {
        self.summarize_where(|_| true);
    }

    fn summarize_where(&self, is_expired: impl Fn(&Count) -> bool) {
        let mut expired: Vec<_> = self.counts.lock().extract_if(|_, count| is_expired(count)).collect();
        expired.sort_by(|(a, _), (b, _)| (a.event, &a.source, a.reason).cmp(&(b.event, &b.source, b.reason)));
        expired.iter().for_each(|(key, count)| emit_summary(key, count));
    }

    /// Records the counts as intervals end. Never returns.
    pub async fn summarize_periodically(&self) {
        let mut tick = tokio::time::interval(SUMMARY_INTERVAL);
        loop {
            tick.tick().await;
            self.summarize_expired(Instant::now());
        }
    }
}

fn emit_summary(Key { event, source, reason }: &Key, count: &Count) {
    let suppressed = count.all - count.individual;
    if suppressed > 0 {
        let detail = format!("{suppressed} more of these within {} s", INTERVAL.as_secs());
        emit(&AuditEvent { event, reason, actor: source, resource: &count.resource, detail: &detail });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::captured::CapturedRecords;

    fn record_rejection(audit_limiter: &AuditLimiter, source: &str, now: Instant) {
        let actor = format!("{source}:1234");
        let event = AuditEvent {
            event: "connection-rejected",
            reason: "plain-text",
            actor: &actor,
            resource: &"api",
            detail: &"",
        };
        audit_limiter.record(source, INDIVIDUAL_RECORDS_MAX, &event, now);
    }

    #[test]
    fn first_events_are_recorded_individually_and_the_rest_as_one_summary() {
        let (captured, audit_limiter, start) = (CapturedRecords::start(), AuditLimiter::default(), Instant::now());
        for _ in 0..1_000 {
            record_rejection(&audit_limiter, "10.0.0.1", start);
        }
        record_rejection(&audit_limiter, "10.0.0.2", start);
        let individual = vec!["connection-rejected plain-text 10.0.0.1:1234 api"; 5];
        assert_eq!(captured.take(), [individual, vec!["connection-rejected plain-text 10.0.0.2:1234 api"]].concat());
        audit_limiter.summarize_expired(start + INTERVAL - Duration::from_millis(1));
        assert!(captured.take().is_empty(), "the interval has not ended");
        audit_limiter.summarize_expired(start + INTERVAL);
        assert_eq!(
            captured.take(),
            ["connection-rejected plain-text 10.0.0.1 api"],
            "one summary for all, none for a single record"
        );
        record_rejection(&audit_limiter, "10.0.0.1", start + INTERVAL);
        assert_eq!(captured.take().len(), 1, "a new interval begins");
    }

    #[test]
    fn interval_ends_at_the_next_event_after_it() {
        let (captured, audit_limiter, start) = (CapturedRecords::start(), AuditLimiter::default(), Instant::now());
        for _ in 0..=INDIVIDUAL_RECORDS_MAX {
            record_rejection(&audit_limiter, "10.0.0.1", start);
        }
        captured.take();
        record_rejection(&audit_limiter, "10.0.0.1", start + INTERVAL);
        let expected =
            ["connection-rejected plain-text 10.0.0.1 api", "connection-rejected plain-text 10.0.0.1:1234 api"];
        assert_eq!(captured.take(), expected);
    }

    #[test]
    fn records_are_bounded_for_any_number_of_sources() {
        let (captured, audit_limiter, start) = (CapturedRecords::start(), AuditLimiter::default(), Instant::now());
        for n in 0..2 * COUNTERS_MAX {
            record_rejection(&audit_limiter, &format!("2001:db8:0:{n:x}::"), start);
        }
        assert_eq!(captured.take().len(), COUNTERS_MAX + 5);
        audit_limiter.summarize_all();
        assert_eq!(captured.take(), ["connection-rejected plain-text others api"]);
    }
}
