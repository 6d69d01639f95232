//! One's own certificate: when it ends, and what it means that a node refuses it.
//!
//! In scope: warning before the end, and the words for each alert (RFC 8446 §6.2) with which a node refuses a certificate. Out of scope:
//! asking for a new one (`cert`), and what the node knows of it beyond the alert.

use std::io;
use std::time::Duration;

use pbjson_types::Timestamp;
use rustls::{AlertDescription, CertificateError};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::tls::{self, Door, NotTheNode, tls_error};
use super::{Context, Exit, Failure, Profile, say, times};
use crate::clock;
use crate::files::is_readable_by_others;

/// How long before its end a certificate is warned of, if it does not live shorter: time enough to ask an authority for the next.
const AHEAD: Duration = Duration::from_secs(30 * 86_400);

/// When the profile's certificate is valid, in Unix seconds.
#[derive(Clone, Debug)]
pub(super) struct Own {
    not_before: i64,
    not_after: i64,
    path: String,
}

impl Own {
    /// `None` if it cannot be read; connecting says so better.
    pub(super) fn read(profile: &Profile) -> Option<Self> {
        let chain = tls::certificates(&profile.certificate).ok()?;
        let (_, parsed) = X509Certificate::from_der(chain.first()?).ok()?;
        let validity = parsed.validity();
        let path = profile.certificate.display().to_string();
        Some(Self { not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp(), path })
    }

    /// Whether it ends soon by this machine's clock: within 30 days, or within the last third of its life if that is shorter.
    fn ends_soon(&self, now: i64) -> bool {
        let third = self.not_after.saturating_sub(self.not_before) / 3;
        let ahead = third.min(i64::try_from(AHEAD.as_secs()).unwrap_or(i64::MAX));
        (self.not_after.saturating_sub(ahead)..=self.not_after).contains(&now)
    }

    /// The refusal of it that an alert is.
    fn refused(&self, alert: AlertDescription, now: i64) -> Failure {
        let id = match alert {
            AlertDescription::CertificateExpired if now > self.not_after => "certificate-expired",
            AlertDescription::CertificateExpired => "certificate-not-now",
            AlertDescription::CertificateRevoked => "certificate-revoked",
            AlertDescription::UnknownCA => "certificate-unknown-authority",
            AlertDescription::BadCertificateStatusResponse => "certificate-list-overdue",
            AlertDescription::AccessDenied => "certificate-elsewhere",
            AlertDescription::UnsupportedCertificate => "certificate-unsuitable",
            _ => "certificate-refused",
        };
        let failure = Failure::new(id).with("path", &self.path);
        let failure = failure.with("at", &written(self.not_after)).with("from", &written(self.not_before));
        if id == "certificate-refused" { failure.cause(format!("TLS: {alert:?}")) } else { failure }
    }
}

fn written(seconds: i64) -> String {
    times::minutes(Some(&Timestamp { seconds, nanos: 0 }))
}

fn now() -> i64 {
    i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX)
}

/// Says on the error output if the certificate of the profile in use ends soon, or others can read its key.
pub(super) fn warn(context: &Context) {
    let Ok(profile) = context.profile() else { return };
    if let Some(own) = Own::read(&profile).filter(|own| own.ends_soon(now())) {
        let text = say!(context.messages, "certificate-ends", at = written(own.not_after), path = &own.path);
        context.warn("certificate-ends", &text);
    }
    if is_readable_by_others(&profile.key) {
        let text = say!(context.messages, "key-readable", path = profile.key.display().to_string());
        context.warn("key-readable", &text);
    }
}

/// What a call failed for: if the node refuses our certificate, why it does. That may be asked for on another connection, as the alert is
/// easily lost behind what was sent.
pub(super) async fn explained(status: &tonic::Status, own: Option<&Own>, door: &Door) -> Failure {
    let failure = Failure::from_status(status);
    let Some(source) = std::error::Error::source(status).filter(|_| failure.id() == "unavailable") else {
        return failure;
    };
    let alert = match tls_error(source) {
        Some(rustls::Error::AlertReceived(alert)) => Some(*alert),
        Some(error) if let Some(id) = not_the_node(error) => {
            let (endpoint, ca) = door.named();
            let exit = if MISNAMED.contains(&id) { Exit::Usage } else { Exit::Failure };
            return failure.told_as(id).exit(exit).with("endpoint", endpoint).with("path", ca).cause(told(error));
        }
        Some(_) => None,
        None if was_cut(source) => door.refusal().await,
        None => None,
    };
    match (alert, own) {
        (Some(alert), Some(own)) => own.refused(alert, now()),
        (Some(_), None) => failure.exit(Exit::Failure),
        (None, _) => failure,
    }
}

/// Of these the profile is at fault, or at least the first thing to look at.
const MISNAMED: [&str; 3] = ["node-other-authority", "node-another", "node-no-tls"];

/// What is wrong where somebody answers that this profile does not know as the node. To try again mends none of it.
fn not_the_node(error: &rustls::Error) -> Option<&'static str> {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidYet, NotValidYetContext, Other, UnknownIssuer,
    };
    match error {
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => Some("node-certificate-expired"),
        rustls::Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => Some("node-certificate-not-now"),
        rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature) => Some("node-other-authority"),
        rustls::Error::InvalidCertificate(Other(why)) => why.0.downcast_ref::<NotTheNode>().map(|why| match why {
            NotTheNode::Identity { .. } => "node-another",
            NotTheNode::Unfit(_) => "node-certificate-unsuitable",
        }),
        rustls::Error::InvalidMessage(_) => Some("node-no-tls"),
        _ => None,
    }
}

/// The reason as it stands inside of the TLS error.
fn told(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(why)) => why.0.to_string(),
        error => error.to_string(),
    }
}

/// Whether there was a connection, which the other end has ended; not that there was none. HTTP/2 tells an alert as text.
fn was_cut(error: &(dyn std::error::Error + 'static)) -> bool {
    use io::ErrorKind::{
        AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable, TimedOut,
    };
    let none = [AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable, TimedOut];
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(|error| none.contains(&error.kind())) {
            return false;
        }
        next = error.source();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::messages::{Lang, Messages};
    use crate::cli::output::Output;

    const DAY: i64 = 86_400;

    fn own(days: i64) -> Own {
        let not_before = 1_795_000_000;
        Own { not_before, not_after: not_before + days * DAY, path: "me.pem".into() }
    }

    #[test]
    fn a_warning_begins_30_days_before_the_end_and_later_for_what_lives_shorter() {
        let year = own(365);
        assert!(!year.ends_soon(year.not_after - 31 * DAY));
        assert!(year.ends_soon(year.not_after - 30 * DAY));
        assert!(!year.ends_soon(year.not_after + 1), "that it has ended is said by the node");
        let week = own(7);
        assert!(!week.ends_soon(week.not_before + 4 * DAY));
        assert!(week.ends_soon(week.not_before + 5 * DAY));
    }

    #[test]
    fn every_alert_has_words_with_what_to_do_in_every_language() {
        let own = own(365);
        for (alert, now, id) in [
            (AlertDescription::CertificateExpired, own.not_after + 1, "certificate-expired"),
            (AlertDescription::CertificateExpired, own.not_after - 1, "certificate-not-now"),
            (AlertDescription::CertificateRevoked, own.not_before, "certificate-revoked"),
            (AlertDescription::UnknownCA, own.not_before, "certificate-unknown-authority"),
            (AlertDescription::BadCertificateStatusResponse, own.not_before, "certificate-list-overdue"),
            (AlertDescription::AccessDenied, own.not_before, "certificate-elsewhere"),
            (AlertDescription::CertificateUnknown, own.not_before, "certificate-refused"),
        ] {
            let failure = own.refused(alert, now);
            assert_eq!((failure.id(), failure.exit_code()), (id, Exit::Failure));
            for lang in Lang::ALL {
                let (output, captured) = Output::captured(true);
                failure.show(&Messages::new(lang), &output);
                let text = String::from_utf8_lossy(&captured.lock()).into_owned();
                let told: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
                assert!(told["error"]["message"].as_str().is_some_and(|text| !text.is_empty()), "{lang:?} {id}");
                assert!(told["error"]["next"].as_str().is_some(), "{lang:?} {id}");
            }
        }
    }
}
