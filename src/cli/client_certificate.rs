//! Checks the client's own certificate: its expiry, and why a node rejects it.
//!
//! In scope: a warning before expiry, and a message for each TLS alert (RFC 8446 §6.2) with which a
//! node rejects a certificate. Out of scope: requesting a new one (`cert_request`), and what the
//! node knows beyond the alert.

use std::io;
use std::time::Duration;

use prost_types::Timestamp;
use rustls::{AlertDescription, CertificateError};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::tls::{self, NodeConnector, NotTheNode, tls_error};
use super::{Context, Exit, Failure, Profile, localize, times};
use crate::clock;
use crate::files::is_readable_by_others;

/// How long before its expiry a certificate is reported as expiring, unless its lifetime is
/// shorter. It is enough time to obtain the next one from an authority.
const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 86_400);

/// Validity period of the profile's certificate, in Unix seconds.
#[derive(Clone, Debug)]
pub(super) struct OwnCertificate {
    not_before: i64,
    not_after: i64,
    path: String,
}

impl OwnCertificate {
    /// Reads the profile's certificate. Returns `None` if it cannot be read: connecting reports
    /// that error better.
    pub(super) fn read(profile: &Profile) -> Option<Self> {
        let chain = tls::certificates(&profile.certificate).ok()?;
        let (_, parsed) = X509Certificate::from_der(chain.first()?).ok()?;
        let validity = parsed.validity();
        let path = profile.certificate.display().to_string();
        Some(Self { not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp(), path })
    }

    /// Returns whether it expires soon by this machine's clock: within 30 days, or within the last
    /// third of its lifetime if that is shorter.
    fn is_expiring(&self, now: i64) -> bool {
        let third = self.not_after.saturating_sub(self.not_before) / 3;
        let warning_seconds = third.min(i64::try_from(EXPIRY_WARNING.as_secs()).unwrap_or(i64::MAX));
        (self.not_after.saturating_sub(warning_seconds)..=self.not_after).contains(&now)
    }

    /// Returns the failure for the alert with which the node rejected this certificate.
    fn rejection(&self, alert: AlertDescription, now: i64) -> Failure {
        let id = match alert {
            AlertDescription::CertificateExpired if now > self.not_after => "certificate-expired",
            AlertDescription::CertificateExpired => "certificate-not-yet-valid",
            AlertDescription::CertificateRevoked => "certificate-revoked",
            AlertDescription::UnknownCA => "certificate-unknown-authority",
            AlertDescription::BadCertificateStatusResponse => "certificate-crl-overdue",
            AlertDescription::AccessDenied => "certificate-elsewhere",
            AlertDescription::UnsupportedCertificate => "certificate-unsuitable",
            _ => "certificate-rejected",
        };
        let failure = Failure::new(id).with("path", &self.path);
        let failure = failure.with("at", &written(self.not_after)).with("from", &written(self.not_before));
        if id == "certificate-rejected" { failure.cause(format!("TLS: {alert:?}")) } else { failure }
    }
}

fn written(seconds: i64) -> String {
    times::minutes(Some(&Timestamp { seconds, nanos: 0 }))
}

fn now() -> i64 {
    i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX)
}

/// Writes a warning on the error output if the profile's certificate expires soon, or if other
/// users can read its key.
pub(super) fn warn(context: &Context) {
    let Ok(profile) = context.profile() else { return };
    if let Some(own) = OwnCertificate::read(&profile).filter(|own| own.is_expiring(now())) {
        let text = localize!(context.messages, "certificate-expiring", at = written(own.not_after), path = &own.path);
        context.warn("certificate-expiring", &text);
    }
    if is_readable_by_others(&profile.key) {
        let text = localize!(context.messages, "key-readable", path = profile.key.display().to_string());
        context.warn("key-readable", &text);
    }
}

/// Returns why a call failed. If the connection was cut, it asks on a second connection whether the
/// node rejects this certificate: the alert is easily lost behind data already sent.
pub(super) async fn explained(
    status: &tonic::Status,
    own: Option<&OwnCertificate>,
    connector: &NodeConnector,
) -> Failure {
    let failure = Failure::from_status(status);
    let Some(source) = std::error::Error::source(status).filter(|_| failure.id() == "unavailable") else {
        return failure;
    };
    let alert = match tls_error(source) {
        Some(rustls::Error::AlertReceived(alert)) => Some(*alert),
        Some(error) if let Some(id) = not_the_node(error) => {
            let (endpoint, ca) = connector.named();
            let exit = if MISNAMED.contains(&id) { Exit::Usage } else { Exit::Failure };
            return failure.with_id(id).exit(exit).with("endpoint", endpoint).with("path", ca).cause(error_text(error));
        }
        Some(_) => None,
        None if was_cut(source) => connector.rejection_alert().await,
        None => None,
    };
    match (alert, own) {
        (Some(alert), Some(own)) => own.rejection(alert, now()),
        (Some(_), None) => failure.exit(Exit::Failure),
        (None, _) => failure,
    }
}

/// Failures caused by the profile, or for which the profile is the first thing to check.
const MISNAMED: [&str; 3] = ["node-other-authority", "node-another", "node-no-tls"];

/// Returns the message id if the server that answers is not the node of this profile. A retry
/// solves none of these faults.
fn not_the_node(error: &rustls::Error) -> Option<&'static str> {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidYet, NotValidYetContext, Other, UnknownIssuer,
    };
    match error {
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => Some("node-certificate-expired"),
        rustls::Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => {
            Some("node-certificate-not-yet-valid")
        }
        rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature) => Some("node-other-authority"),
        rustls::Error::InvalidCertificate(Other(why)) => why.0.downcast_ref::<NotTheNode>().map(|why| match why {
            NotTheNode::Identity { .. } => "node-another",
            NotTheNode::Unfit(_) => "node-certificate-unsuitable",
        }),
        rustls::Error::InvalidMessage(_) => Some("node-no-tls"),
        _ => None,
    }
}

/// Returns the text of the reason inside the TLS error.
fn error_text(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(why)) => why.0.to_string(),
        error => error.to_string(),
    }
}

/// Returns whether a connection existed and the other end closed it. HTTP/2 reports an alert only
/// as text.
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

    fn own(days: i64) -> OwnCertificate {
        let not_before = 1_795_000_000;
        OwnCertificate { not_before, not_after: not_before + days * DAY, path: "me.pem".into() }
    }

    #[test]
    fn expiry_warning_starts_30_days_ahead_or_in_last_third_of_validity() {
        let year = own(365);
        assert!(!year.is_expiring(year.not_after - 31 * DAY));
        assert!(year.is_expiring(year.not_after - 30 * DAY));
        assert!(!year.is_expiring(year.not_after + 1), "the node reports that it has expired");
        let week = own(7);
        assert!(!week.is_expiring(week.not_before + 4 * DAY));
        assert!(week.is_expiring(week.not_before + 5 * DAY));
    }

    #[test]
    fn every_tls_alert_has_localized_message_and_next_step() {
        let own = own(365);
        for (alert, now, id) in [
            (AlertDescription::CertificateExpired, own.not_after + 1, "certificate-expired"),
            (AlertDescription::CertificateExpired, own.not_after - 1, "certificate-not-yet-valid"),
            (AlertDescription::CertificateRevoked, own.not_before, "certificate-revoked"),
            (AlertDescription::UnknownCA, own.not_before, "certificate-unknown-authority"),
            (AlertDescription::BadCertificateStatusResponse, own.not_before, "certificate-crl-overdue"),
            (AlertDescription::AccessDenied, own.not_before, "certificate-elsewhere"),
            (AlertDescription::CertificateUnknown, own.not_before, "certificate-rejected"),
        ] {
            let failure = own.rejection(alert, now);
            assert_eq!((failure.id(), failure.exit_code()), (id, Exit::Failure));
            for lang in Lang::ALL {
                let (output, captured) = Output::captured(true);
                failure.show(&Messages::new(lang), &output);
                let text = String::from_utf8_lossy(&captured.lock()).into_owned();
                let output: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
                assert!(output["error"]["message"].as_str().is_some_and(|text| !text.is_empty()), "{lang:?} {id}");
                assert!(output["error"]["next"].as_str().is_some(), "{lang:?} {id}");
            }
        }
    }
}
