//! The table of active alarms.
//!
//! In scope: one alarm for each code and subject, with its start, count and newest values; and its
//! records when it starts and ends. Out of scope: the kinds of alarms. Subjects are members, feeds
//! and authorities of the roster, so the table is bounded and no alarm displaces another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use barid_core::proto;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Alarm;
use crate::clock;
use crate::telemetry::{AuditEvent, audit};

/// Most active alarms: every kind for every member and feed of a large roster. Beyond it, which
/// only a defect can cause, an alarm is recorded only.
const ACTIVE_MAX: usize = 8_192;

/// An alarm whose condition has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveAlarm {
    /// The alarm as last raised.
    pub alarm: Alarm,
    /// Unix ms when it was first raised.
    pub since_unix_ms: u64,
    /// How often it was raised.
    pub count: u64,
    /// When it ends, unless it is raised again.
    until: Option<Instant>,
}

/// Code and subject.
type Key = (&'static str, String);

/// The active alarms. Clones share them and are cheap.
#[derive(Clone, Default)]
pub struct Alarms {
    active: Arc<Mutex<BTreeMap<Key, ActiveAlarm>>>,
}

impl Alarms {
    /// Raises an alarm until it is cleared. Returns true if it was not active.
    pub fn raise(&self, alarm: Alarm) -> bool {
        self.put(alarm, None, true)
    }

    /// Raises an alarm for an event. It ends when the event has not occurred again for `quiet`.
    pub fn raise_for(&self, alarm: Alarm, quiet: Duration) -> bool {
        self.put(alarm, Some(Instant::now() + quiet), true)
    }

    /// Raises an alarm for a condition that was seen again, without counting it.
    pub fn raise_uncounted(&self, alarm: Alarm) {
        self.put(alarm, None, false);
    }

    /// Clears the alarms for which `is_cleared` holds: their conditions have ended.
    pub fn clear(&self, is_cleared: impl Fn(&Alarm) -> bool) {
        self.remove(|active| is_cleared(&active.alarm));
    }

    /// Makes these the only active ones of the alarms whose conditions are polled.
    pub fn sync_watched(&self, watched: Vec<Alarm>) {
        let keys: Vec<Key> = watched.iter().map(key).collect();
        self.remove(|active| active.alarm.is_watched() && !keys.contains(&key(&active.alarm)));
        for alarm in watched {
            self.put(alarm, None, false);
        }
    }

    /// Returns all active alarms, the most severe first, then the oldest.
    #[must_use]
    pub fn snapshot(&self) -> Vec<ActiveAlarm> {
        self.remove(|_| false);
        let mut all: Vec<ActiveAlarm> = self.active.lock().values().cloned().collect();
        all.sort_by_key(|active| (active.alarm.severity(), active.since_unix_ms));
        all
    }

    fn put(&self, alarm: Alarm, until: Option<Instant>, counts: bool) -> bool {
        self.remove(|_| false);
        {
            let mut active = self.active.lock();
            if let Some(active) = active.get_mut(&key(&alarm)) {
                active.count += u64::from(counts);
                active.until = until;
                active.alarm = alarm.merged_with(&active.alarm);
                return false;
            }
            if active.len() < ACTIVE_MAX {
                let since_unix_ms = clock::unix_ms();
                active.insert(key(&alarm), ActiveAlarm { alarm: alarm.clone(), since_unix_ms, count: 1, until });
            }
        }
        record("alarm", &alarm);
        true
    }

    /// Removes the alarms that have ended by time, and those for which `is_cleared` holds.
    fn remove(&self, is_cleared: impl Fn(&ActiveAlarm) -> bool) {
        let now = Instant::now();
        let has_ended = |active: &ActiveAlarm| active.until.is_some_and(|until| until <= now) || is_cleared(active);
        let cleared: Vec<ActiveAlarm> =
            self.active.lock().extract_if(.., |_, active| has_ended(active)).map(|(_, active)| active).collect();
        cleared.iter().for_each(|active| record("alarm-cleared", &active.alarm));
    }
}

impl ActiveAlarm {
    /// Returns the message of the operator API.
    #[must_use]
    pub fn to_proto(&self) -> proto::Alarm {
        let seconds = i64::try_from(self.since_unix_ms / 1_000).unwrap_or(i64::MAX);
        proto::Alarm {
            text: self.alarm.to_string(),
            code: self.alarm.code().to_owned(),
            values: self.alarm.values(),
            since: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            count: self.count,
            severity: self.alarm.severity().as_str().to_owned(),
        }
    }
}

fn key(alarm: &Alarm) -> Key {
    let parts = alarm.parts();
    (parts.code, parts.resource)
}

fn record(event: &'static str, alarm: &Alarm) {
    let (reason, resource) = (alarm.reason(), alarm.resource());
    let actor = alarm.by().map(ToString::to_string).unwrap_or_default();
    audit(&AuditEvent { event, reason, actor: &actor, resource: &resource, detail: alarm });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use barid_core::ids::FeedId;

    use super::*;
    use crate::telemetry::alarms::{Severity, examples};
    use crate::telemetry::captured::CapturedRecords;

    fn entry(index: u64, by: &str) -> Alarm {
        let feed: FeedId = format!("{by}.rabat.example/feed/1").parse().unwrap();
        Alarm::Entry { finding: "undecodable-header", feed, index, by: by.parse().unwrap() }
    }

    fn fork() -> Alarm {
        Alarm::Fork { feed: "tn.rabat.example/feed/1".parse().unwrap(), why: "seen".into(), by: None }
    }

    #[test]
    fn alarms_of_one_member_are_one_and_displace_no_other() {
        let (captured, alarms) = (CapturedRecords::start(), Alarms::default());
        assert!(alarms.raise(fork()));
        for index in 0..10_000 {
            assert_eq!(alarms.raise_for(entry(index, "ly"), Duration::from_secs(60)), index == 0);
        }
        alarms.raise_for(entry(7, "dz"), Duration::from_secs(60));
        let snapshot_alarms = alarms.snapshot();
        assert_eq!((snapshot_alarms.len(), &snapshot_alarms[0].alarm), (3, &fork()));
        for (alarm, count) in [(entry(7, "dz"), 1), (entry(9_999, "ly"), 10_000)] {
            assert!(
                snapshot_alarms.iter().any(|active| (&active.alarm, active.count) == (&alarm, count)),
                "{snapshot_alarms:?}"
            );
        }
        assert_eq!(captured.take().len(), 3, "one record for each alarm");
    }

    #[test]
    fn snapshot_is_sorted_by_severity() {
        let alarms = Alarms::default();
        let mut all = examples();
        all.reverse();
        all.into_iter().for_each(|alarm| _ = alarms.raise(alarm));
        let severities: Vec<Severity> = alarms.snapshot().iter().map(|active| active.alarm.severity()).collect();
        assert!(severities.is_sorted() && severities.len() == examples().len(), "{severities:?}");
        assert_eq!(severities[0], Severity::Critical);
    }

    #[tokio::test(start_paused = true)]
    async fn transient_alarm_is_cleared_after_its_quiet_time() {
        let (captured, alarms) = (CapturedRecords::start(), Alarms::default());
        alarms.raise_for(entry(1, "ly"), Duration::from_secs(60));
        tokio::time::advance(Duration::from_secs(59)).await;
        alarms.raise_for(entry(2, "ly"), Duration::from_secs(60));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(alarms.snapshot().len(), 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(alarms.snapshot().is_empty());
        let feed = "ly ly.rabat.example/feed/1";
        let expected = ["alarm", "alarm-cleared"].iter().zip([1, 2]);
        let expected: Vec<String> =
            expected.map(|(event, n)| format!("{event} undecodable-header {feed} {n}")).collect();
        assert_eq!(captured.take(), expected);
    }

    #[test]
    fn watched_alarms_follow_their_causes_and_others_stay() {
        let (captured, alarms) = (CapturedRecords::start(), Alarms::default());
        let (disk, clock) =
            (|why: &str| Alarm::DiskFull { why: why.into() }, Alarm::OwnClockBehind { last: "1".into() });
        alarms.raise(fork());
        alarms.sync_watched(vec![disk("1 MiB"), clock.clone()]);
        alarms.sync_watched(vec![disk("2 MiB")]);
        let snapshot_alarms = alarms.snapshot();
        assert!(
            snapshot_alarms.iter().any(|active| active.alarm == disk("2 MiB") && active.count == 1),
            "{snapshot_alarms:?}"
        );
        assert_eq!(snapshot_alarms.len(), 2, "the clock alarm is cleared, the fork alarm remains: {snapshot_alarms:?}");
        alarms.sync_watched(Vec::new());
        alarms.clear(|alarm| matches!(alarm, Alarm::Fork { .. }));
        assert!(alarms.snapshot().is_empty());
        let records = captured.take();
        assert_eq!(records.iter().filter(|record| record.starts_with("alarm ")).count(), 3, "{records:?}");
        assert_eq!(records.iter().filter(|record| record.starts_with("alarm-cleared ")).count(), 3, "{records:?}");
    }
}
