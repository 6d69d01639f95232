//! Records that others can cause at will: the first few of an interval one by one, the rest as a number.
//!
//! In scope: counting by source and reason, within named bounds. Pure but for the record itself: time comes in. Out of scope: what is
//! refused, and how a source is told from another.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{AuditEvent, emit};

/// Records of one source and reason in one interval that are made one by one: enough to see what is going on, with its details.
pub const RECORDED_SINGLY_MAX: u64 = 5;
/// After so long what was only counted is recorded, and counting begins anew.
const INTERVAL: Duration = Duration::from_secs(60);
/// How often it is looked whether an interval has ended.
pub(super) const SETTLE_EVERY: Duration = Duration::from_secs(10);
/// Sources and reasons that are told apart. Whoever comes from more addresses than these is counted with all the others that do: at
/// worst some twenty thousand records an interval, some megabytes.
const TOLD_APART_MAX: usize = 4_096;
/// What the source of those is called that are not told apart.
const OTHERS: &str = "others";

/// Counts refusals. Shared by those who refuse.
#[derive(Default)]
pub struct Refusals {
    counted: Mutex<HashMap<Key, Count>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    what: &'static str,
    source: String,
    reason: &'static str,
}

struct Count {
    since: Instant,
    all: u64,
    singly: u64,
    subject: String,
}

impl Refusals {
    /// Records an event, or counts it if `source` has caused `singly_max` records of its kind and reason in this interval.
    pub fn record(&self, source: &str, singly_max: u64, event: &AuditEvent<'_>, now: Instant) {
        super::count(event.what, event.reason);
        let key = Key { what: event.what, source: source.to_owned(), reason: event.reason };
        let (singly, over) = {
            let mut counted = self.counted.lock();
            let crowded = counted.len() >= TOLD_APART_MAX && !counted.contains_key(&key);
            let key = if crowded { Key { source: OTHERS.to_owned(), ..key } } else { key };
            let over = counted
                .get(&key)
                .is_some_and(|count| now.saturating_duration_since(count.since) >= INTERVAL)
                .then(|| counted.remove(&key).map(|count| (key.clone(), count)))
                .flatten();
            let count = counted.entry(key).or_insert_with(|| Count {
                since: now,
                all: 0,
                singly: 0,
                subject: super::escape::cut(format_args!("{}", event.subject)),
            });
            count.all += 1;
            let singly = count.singly < singly_max;
            count.singly += u64::from(singly);
            (singly, over)
        };
        over.into_iter().for_each(|(key, count)| tell(&key, &count));
        if singly {
            emit(event);
        }
    }

    /// Records what was only counted in intervals that are over at `now`.
    pub fn settle(&self, now: Instant) {
        self.take(|count| now.saturating_duration_since(count.since) >= INTERVAL);
    }

    /// Records everything that was only counted: nothing more comes.
    pub fn settle_all(&self) {
        self.take(|_| true);
    }

    fn take(&self, due: impl Fn(&Count) -> bool) {
        let mut over: Vec<_> = self.counted.lock().extract_if(|_, count| due(count)).collect();
        over.sort_by(|(a, _), (b, _)| (a.what, &a.source, a.reason).cmp(&(b.what, &b.source, b.reason)));
        over.iter().for_each(|(key, count)| tell(key, count));
    }

    /// Settles as intervals end. Returns never.
    pub async fn settle_in_time(&self) {
        let mut tick = tokio::time::interval(SETTLE_EVERY);
        loop {
            tick.tick().await;
            self.settle(Instant::now());
        }
    }
}

fn tell(Key { what, source, reason }: &Key, count: &Count) {
    let left_out = count.all - count.singly;
    if left_out > 0 {
        let detail = format!("{left_out} more of these within {} s", INTERVAL.as_secs());
        emit(&AuditEvent { what, reason, who: source, subject: &count.subject, detail: &detail });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::heard::Heard;

    fn refuse(refusals: &Refusals, source: &str, now: Instant) {
        let who = format!("{source}:1234");
        let event =
            AuditEvent { what: "refused-connection", reason: "plain-text", who: &who, subject: &"api", detail: &"" };
        refusals.record(source, RECORDED_SINGLY_MAX, &event, now);
    }

    #[test]
    fn the_first_few_are_records_and_the_rest_is_one() {
        let (heard, refusals, begun) = (Heard::listen(), Refusals::default(), Instant::now());
        for _ in 0..1_000 {
            refuse(&refusals, "10.0.0.1", begun);
        }
        refuse(&refusals, "10.0.0.2", begun);
        let singly = vec!["refused-connection plain-text 10.0.0.1:1234 api"; 5];
        assert_eq!(heard.take(), [singly, vec!["refused-connection plain-text 10.0.0.2:1234 api"]].concat());
        refusals.settle(begun + INTERVAL - Duration::from_millis(1));
        assert!(heard.take().is_empty(), "the interval is not over");
        refusals.settle(begun + INTERVAL);
        assert_eq!(heard.take(), ["refused-connection plain-text 10.0.0.1 api"], "one for all, and none for one");
        refuse(&refusals, "10.0.0.1", begun + INTERVAL);
        assert_eq!(heard.take().len(), 1, "a new interval begins");
    }

    #[test]
    fn an_interval_ends_without_waiting_for_the_clock() {
        let (heard, refusals, begun) = (Heard::listen(), Refusals::default(), Instant::now());
        for _ in 0..=RECORDED_SINGLY_MAX {
            refuse(&refusals, "10.0.0.1", begun);
        }
        heard.take();
        refuse(&refusals, "10.0.0.1", begun + INTERVAL);
        let told = ["refused-connection plain-text 10.0.0.1 api", "refused-connection plain-text 10.0.0.1:1234 api"];
        assert_eq!(heard.take(), told);
    }

    #[test]
    fn from_however_many_addresses_they_come_the_records_are_bounded() {
        let (heard, refusals, begun) = (Heard::listen(), Refusals::default(), Instant::now());
        for n in 0..2 * TOLD_APART_MAX {
            refuse(&refusals, &format!("2001:db8:0:{n:x}::"), begun);
        }
        assert_eq!(heard.take().len(), TOLD_APART_MAX + 5);
        refusals.settle_all();
        assert_eq!(heard.take(), ["refused-connection plain-text others api"]);
    }
}
