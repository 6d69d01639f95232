//! Alarms before and after certificates end and revocation lists are due.

use rustls::pki_types::UnixTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Node, identity};
use crate::telemetry::alarms::Alarm;
use crate::transport::validity;

/// How long before an end there is an alarm: time enough to have an authority act. What lives shorter than three times that is alarmed of
/// in the last third of its life: a list that is renewed every week, or a certificate of a day, is not an alarm for ever.
const AHEAD_SECONDS: i64 = 30 * 86_400;

/// An end of validity that is near, or over.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    Near(String),
    Over(String),
}

/// Whether something that is valid in this span of Unix seconds ends soon or has ended at `now`, with the time of its end.
fn ending((begin, end): (i64, i64), now: i64) -> Option<Ending> {
    let ahead = AHEAD_SECONDS.min(end.saturating_sub(begin) / 3);
    let at = || {
        let time = OffsetDateTime::from_unix_timestamp(end).ok();
        time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| format!("Unix second {end}"))
    };
    if now > end { Some(Ending::Over(at())) } else { (now >= end.saturating_sub(ahead)).then(|| Ending::Near(at())) }
}

impl Node {
    /// What ends soon or has ended, at `now`.
    pub(super) fn validity_alarms(&self, now: UnixTime) -> Vec<Alarm> {
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let mut alarms = Vec::new();
        if let Some(certificate) = self.credentials.certificate() {
            alarms.extend(validity(&certificate).and_then(|span| ending(span, seconds)).map(|ending| match ending {
                Ending::Near(at) => Alarm::CertificateExpiring { at },
                Ending::Over(since) => Alarm::CertificateExpired { since },
            }));
            let (trust_domain, grace_seconds) = (self.trust_domain.as_str(), self.grace_seconds);
            let (trust, lists) = (&self.lists.trust, &self.lists.held);
            let peers = identity::Peers { trust, lists, trust_domain, grace_seconds };
            if let Err(refused) = peers.judge(&certificate, now)
                && refused.reason != "expired"
            {
                alarms.push(Alarm::CertificateRejected { why: refused.to_string() });
            }
        }
        // Of several that end the first one: they are alarms of one subject.
        let mut authorities = self.lists.trust.authorities_validity(&self.trust_domain);
        authorities.sort_unstable_by_key(|(_, end)| std::cmp::Reverse(*end));
        alarms.extend(authorities.into_iter().filter_map(|span| ending(span, seconds)).map(|ending| {
            let domain = self.trust_domain.clone();
            match ending {
                Ending::Near(at) => Alarm::AuthorityExpiring { domain, at },
                Ending::Over(since) => Alarm::AuthorityExpired { domain, since },
            }
        }));
        for list in self.lists.held.held(&self.lists.trust) {
            let over = seconds > list.next_update.saturating_add(self.grace_seconds);
            let domain = list.trust_domain.clone();
            alarms.extend(ending((list.this_update, list.next_update), seconds).map(|ending| match ending {
                Ending::Near(at) => Alarm::CrlExpiring { domain, at },
                Ending::Over(since) if over => Alarm::CrlExpired { domain, since },
                Ending::Over(since) => Alarm::CrlInGrace { domain, since },
            }));
        }
        alarms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_an_alarm_from_30_days_before_the_end_on() {
        let end = 1_800_000_000;
        let at = |now| ending((end - 365 * 86_400, end), now);
        let time = || "2027-01-15T08:00:00Z".to_owned();
        assert_eq!(at(end - AHEAD_SECONDS - 1), None);
        assert_eq!(at(end - AHEAD_SECONDS), Some(Ending::Near(time())));
        assert_eq!(at(end), Some(Ending::Near(time())));
        assert_eq!(at(end + 1), Some(Ending::Over(time())));
    }

    #[test]
    fn what_lives_shorter_is_alarmed_of_in_the_last_third_of_its_life() {
        let (begin, day) = (1_800_000_000, 86_400);
        let week = |now| ending((begin, begin + 7 * day), now).is_some();
        assert!(!week(begin) && !week(begin + 4 * day), "a list that is renewed every week is in order");
        assert!(week(begin + 5 * day) && week(begin + 8 * day));
    }
}
