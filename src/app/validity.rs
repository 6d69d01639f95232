//! Alarms before and after certificates end and revocation lists are due.

use std::collections::BTreeSet;
use std::time::Duration;

use rustls::pki_types::UnixTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Node;
use crate::telemetry::{AuditEvent, audit};
use crate::transport::{Policy, SpiffeId, Verifier, not_after};

/// How long before an end there is an alarm: time enough to have an authority act.
const AHEAD_SECONDS: i64 = 30 * 86_400;
/// How often the records are brought up to date; a status is always.
const CHECK_EVERY: Duration = Duration::from_secs(60);

/// An end of validity that is near or over; both are told with their time.
fn ending(what: &str, end: i64, now: i64, before: &str, after: &str) -> Option<String> {
    let at = |seconds: i64| {
        let time = OffsetDateTime::from_unix_timestamp(seconds).ok();
        time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| format!("Unix second {seconds}"))
    };
    if now > end {
        Some(format!("{what} {after} {}", at(end)))
    } else if now >= end.saturating_sub(AHEAD_SECONDS) {
        Some(format!("{what} {before} {}", at(end)))
    } else {
        None
    }
}

impl Node {
    /// What ends soon or has ended, at `now`.
    pub(super) fn validity_alarms(&self, now: UnixTime) -> Vec<String> {
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let mut alarms = Vec::new();
        if let Some(certificate) = self.credentials.certificate() {
            let end = not_after(&certificate);
            alarms.extend(end.and_then(|end| {
                ending("the certificate of this node", end, seconds, "ends on", "ended: it is refused since")
            }));
            let policy = Policy::Exactly(SpiffeId::node(&self.trust_domain));
            let (trust, held) = (self.lists.trust.clone(), self.lists.held.clone());
            if let Err(refused) = Verifier::new(trust, held, policy, self.grace_seconds).identify(&certificate, now)
                && refused.reason != "expired"
            {
                alarms.push(format!("the certificate of this node is refused by others: {refused}"));
            }
        }
        for end in self.lists.trust.authorities_end(&self.trust_domain) {
            let what = format!("the certificate of an authority of {}", self.trust_domain);
            alarms.extend(ending(&what, end, seconds, "ends on", "ended on"));
        }
        for list in self.lists.held.held(&self.lists.trust) {
            let what = format!("the revocation list of {}", list.trust_domain);
            let over = list.next_update.saturating_add(self.grace_seconds);
            let after = if seconds > over {
                "was due: its people and its node are refused, known revocations stay in force; since"
            } else {
                "was due: its people are refused, its node is let in for the grace time, known revocations stay in force; \
                 since"
            };
            alarms.extend(ending(&what, list.next_update, seconds, "is due on", after));
        }
        alarms
    }

    /// Records each alarm that has a date or a clock to it once, as it comes up. Returns never.
    pub(super) async fn watch_validity(&self) {
        let mut told = BTreeSet::new();
        let mut tick = tokio::time::interval(CHECK_EVERY);
        loop {
            tick.tick().await;
            let validity = self.validity_alarms(UnixTime::now()).into_iter().map(|alarm| ("validity", alarm));
            let clocks = self.clock_alarms().into_iter().map(|alarm| ("clock", alarm));
            let now: BTreeSet<(&str, String)> = validity.chain(clocks).collect();
            for (reason, alarm) in now.difference(&told) {
                audit(&AuditEvent { what: "alarm", reason, who: &"", subject: &"", detail: alarm });
            }
            told = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_an_alarm_from_30_days_before_the_end_on() {
        let end = 1_800_000_000;
        let at = |now| ending("it", end, now, "ends on", "ended on");
        assert_eq!(at(end - AHEAD_SECONDS - 1), None);
        assert_eq!(at(end - AHEAD_SECONDS).as_deref(), Some("it ends on 2027-01-15T08:00:00Z"));
        assert_eq!(at(end).as_deref(), Some("it ends on 2027-01-15T08:00:00Z"));
        assert_eq!(at(end + 1).as_deref(), Some("it ended on 2027-01-15T08:00:00Z"));
    }
}
