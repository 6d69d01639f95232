//! Raises alarms when certificates and revocation lists are expiring or expired.

use rustls::pki_types::UnixTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Node, identity};
use crate::telemetry::alarms::Alarm;
use crate::transport::validity;

/// How long before expiry the alarm is raised: time enough for an authority to act. If the validity
/// is shorter than three times this, it is raised in the last third. So a weekly list, or a
/// certificate of one day, is not a permanent alarm.
const WARNING_SECONDS: i64 = 30 * 86_400;

/// A validity that ends soon, or has ended.
#[derive(Debug, PartialEq, Eq)]
enum Expiry {
    Expiring(String),
    Expired(String),
}

/// Returns whether this validity, in Unix seconds, is expiring or expired at `now`, with the time
/// of its end.
fn expiry((begin, end): (i64, i64), now: i64) -> Option<Expiry> {
    let ahead = WARNING_SECONDS.min(end.saturating_sub(begin) / 3);
    let at = || {
        let time = OffsetDateTime::from_unix_timestamp(end).ok();
        time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| format!("Unix second {end}"))
    };
    if now > end {
        Some(Expiry::Expired(at()))
    } else {
        (now >= end.saturating_sub(ahead)).then(|| Expiry::Expiring(at()))
    }
}

impl Node {
    /// Returns the alarms for everything that is expiring or expired at `now`.
    pub(super) fn expiry_alarms(&self, now: UnixTime) -> Vec<Alarm> {
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let mut alarms = Vec::new();
        if let Some(certificate) = self.credentials.certificate() {
            alarms.extend(validity(&certificate).and_then(|span| expiry(span, seconds)).map(|expiry| match expiry {
                Expiry::Expiring(at) => Alarm::CertificateExpiring { at },
                Expiry::Expired(since) => Alarm::CertificateExpired { since },
            }));
            let (trust_domain, grace_seconds) = (self.trust_domain.as_str(), self.grace_seconds);
            let (trust, crls) = (&self.crls.trust, &self.crls.held);
            let peers = identity::PeerVerifier { trust, crls, trust_domain, grace_seconds };
            if let Err(rejection) = peers.verify(&certificate, now)
                && rejection.reason != "expired"
            {
                alarms.push(Alarm::CertificateRejected { why: rejection.to_string() });
            }
        }
        // Alarms of several authorities of one domain replace each other: the first one to expire
        // comes last.
        let mut authorities = self.crls.trust.authorities_validity(&self.trust_domain);
        authorities.sort_unstable_by_key(|(_, end)| std::cmp::Reverse(*end));
        alarms.extend(authorities.into_iter().filter_map(|span| expiry(span, seconds)).map(|expiry| {
            let domain = self.trust_domain.clone();
            match expiry {
                Expiry::Expiring(at) => Alarm::AuthorityExpiring { domain, at },
                Expiry::Expired(since) => Alarm::AuthorityExpired { domain, since },
            }
        }));
        for list in self.crls.held.held(&self.crls.trust) {
            let is_past_grace = seconds > list.next_update.saturating_add(self.grace_seconds);
            let domain = list.trust_domain.clone();
            alarms.extend(expiry((list.this_update, list.next_update), seconds).map(|expiry| match expiry {
                Expiry::Expiring(at) => Alarm::CrlExpiring { domain, at },
                Expiry::Expired(since) if is_past_grace => Alarm::CrlExpired { domain, since },
                Expiry::Expired(since) => Alarm::CrlInGrace { domain, since },
            }));
        }
        alarms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_alarm_is_raised_30_days_ahead() {
        let end = 1_800_000_000;
        let at = |now| expiry((end - 365 * 86_400, end), now);
        let time = || "2027-01-15T08:00:00Z".to_owned();
        assert_eq!(at(end - WARNING_SECONDS - 1), None);
        assert_eq!(at(end - WARNING_SECONDS), Some(Expiry::Expiring(time())));
        assert_eq!(at(end), Some(Expiry::Expiring(time())));
        assert_eq!(at(end + 1), Some(Expiry::Expired(time())));
    }

    #[test]
    fn short_lifetime_is_alarmed_in_its_last_third() {
        let (begin, day) = (1_800_000_000, 86_400);
        let week = |now| expiry((begin, begin + 7 * day), now).is_some();
        assert!(!week(begin) && !week(begin + 4 * day), "a weekly CRL raises no alarm");
        assert!(week(begin + 5 * day) && week(begin + 8 * day));
    }
}
