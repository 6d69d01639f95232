//! Alarms before and after certificates end and revocation lists are due.

use std::collections::BTreeSet;
use std::time::Duration;

use rustls::pki_types::UnixTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Node, identity};
use crate::telemetry::{AuditEvent, audit};
use crate::transport::validity;

/// How long before an end there is an alarm: time enough to have an authority act. What lives shorter than three times that is alarmed of
/// in the last third of its life: a list that is renewed every week, or a certificate of a day, is not an alarm for ever.
const AHEAD_SECONDS: i64 = 30 * 86_400;
/// How often the records are brought up to date; a status is always.
const CHECK_EVERY: Duration = Duration::from_secs(60);

/// What ends, and its words before and after the end.
type Ending = (&'static str, &'static str, &'static str);
const OWN: Ending = ("the certificate of this node", "ends on", "ended: it is refused since");
const AUTHORITY: Ending = ("the certificate of an authority of {}", "ends on", "ended on");
const LIST_OVER: Ending = (
    "the revocation list of {}",
    "is due on",
    "was due: its people and its node are refused, known revocations stay in force; since",
);
const LIST_IN_GRACE: Ending = (
    "the revocation list of {}",
    "is due on",
    "was due: its people are refused, its node is let in for the grace time, known revocations stay in force; since",
);

/// An end of validity that is near or over; both are told with their time.
fn ending(what: &str, (begin, end): (i64, i64), now: i64, before: &str, after: &str) -> Option<String> {
    let ahead = AHEAD_SECONDS.min(end.saturating_sub(begin) / 3);
    let at = |seconds: i64| {
        let time = OffsetDateTime::from_unix_timestamp(seconds).ok();
        time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| format!("Unix second {seconds}"))
    };
    if now > end {
        Some(format!("{what} {after} {}", at(end)))
    } else if now >= end.saturating_sub(ahead) {
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
            alarms.extend(validity(&certificate).and_then(|span| {
                let (what, before, after) = OWN;
                ending(what, span, seconds, before, after)
            }));
            let (trust_domain, grace_seconds) = (self.trust_domain.as_str(), self.grace_seconds);
            let (trust, lists) = (&self.lists.trust, &self.lists.held);
            let peers = identity::Peers { trust, lists, trust_domain, grace_seconds };
            if let Err(refused) = peers.judge(&certificate, now)
                && refused.reason != "expired"
            {
                alarms.push(format!("the certificate of this node is refused by others: {refused}"));
            }
        }
        for span in self.lists.trust.authorities_validity(&self.trust_domain) {
            let (what, before, after) = AUTHORITY;
            alarms.extend(ending(&what.replace("{}", &self.trust_domain), span, seconds, before, after));
        }
        for list in self.lists.held.held(&self.lists.trust) {
            let over = list.next_update.saturating_add(self.grace_seconds);
            let (what, before, after) = if seconds > over { LIST_OVER } else { LIST_IN_GRACE };
            let span = (list.this_update, list.next_update);
            alarms.extend(ending(&what.replace("{}", &list.trust_domain), span, seconds, before, after));
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
            let damage = self.store.damage().into_iter().map(|alarm| ("damage", alarm));
            let settled = self.settled_alarms().into_iter().map(|alarm| ("another-history", alarm));
            let now: BTreeSet<(&str, String)> = validity.chain(clocks).chain(damage).chain(settled).collect();
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
    use crate::telemetry::alarms::coded;

    #[test]
    fn there_is_an_alarm_from_30_days_before_the_end_on() {
        let end = 1_800_000_000;
        let at = |now| ending("it", (end - 365 * 86_400, end), now, "ends on", "ended on");
        assert_eq!(at(end - AHEAD_SECONDS - 1), None);
        assert_eq!(at(end - AHEAD_SECONDS).as_deref(), Some("it ends on 2027-01-15T08:00:00Z"));
        assert_eq!(at(end).as_deref(), Some("it ends on 2027-01-15T08:00:00Z"));
        assert_eq!(at(end + 1).as_deref(), Some("it ended on 2027-01-15T08:00:00Z"));
    }

    #[test]
    fn every_alarm_of_an_end_has_a_code() {
        for (what, before, after) in [OWN, AUTHORITY, LIST_IN_GRACE, LIST_OVER] {
            let what = what.replace("{}", "ma.rabat.example");
            for now in [1_800_000_000, 1_800_000_002] {
                let alarm = ending(&what, (0, 1_800_000_001), now, before, after).unwrap_or_default();
                assert!(!coded(&alarm).code.is_empty(), "{alarm}");
            }
        }
    }

    #[test]
    fn what_lives_shorter_is_alarmed_of_in_the_last_third_of_its_life() {
        let (begin, day) = (1_800_000_000, 86_400);
        let week = |now| ending("the list", (begin, begin + 7 * day), now, "is due on", "was due").is_some();
        assert!(!week(begin) && !week(begin + 4 * day), "a list that is renewed every week is in order");
        assert!(week(begin + 5 * day) && week(begin + 8 * day));
    }
}
