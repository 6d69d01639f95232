//! Rejected connections: a stable reason for each, for the audit records, and the TLS alert for the
//! other end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, OtherError, PeerIncompatible, PeerMisbehaved};

use super::handshakes::Source;

/// Reason for a certificate that does not suit all its uses.
pub const UNSUITABLE: &str = "unsuitable";
/// Reason for a certificate without a URI among its names.
pub const NO_URI: &str = "no-uri-san";

/// Called for every rejected or ended connection.
pub type OnRejected = Arc<dyn Fn(&RejectionRecord) + Send + Sync>;

/// Record of a connection that was rejected or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectionRecord {
    /// Stable code.
    pub reason: &'static str,
    /// The identity, if a certificate has proven it, else the remote address. For a dialled
    /// connection, the expected identity.
    pub actor: String,
    /// The listener: "api" or "exchange"; "dial" for a connection that this node dialled.
    pub at: &'static str,
    /// For people.
    pub detail: String,
}

impl RejectionRecord {
    /// Returns the source: a proven or expected identity, or the address without its port, with an
    /// IPv6 address as its /64 network.
    #[must_use]
    pub fn source(&self) -> String {
        self.actor.parse::<SocketAddr>().map_or_else(|_| self.actor.clone(), |at| Source::of(at.ip()).to_string())
    }
}

/// Why a connection was rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Rejection {
    /// Stable code.
    pub reason: &'static str,
    /// For people.
    pub detail: String,
}

impl Rejection {
    pub(super) fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    /// Returns the error behind the TLS alert for the other end (RFC 8446 §6.2; docs/protocol.md
    /// lists the alerts). The reason is no secret: the holder of the certificate has most of the
    /// information, and must fix it.
    pub(super) fn alert(&self) -> CertificateError {
        match self.reason {
            // certificate_expired, which also means "not currently valid".
            "expired" => CertificateError::Expired,
            "not-yet-valid" => CertificateError::NotValidYet,
            // certificate_revoked.
            "revoked" => CertificateError::Revoked,
            // unknown_ca.
            "wrong-ca" | "unknown-member" => CertificateError::UnknownIssuer,
            // bad_certificate_status_response: the revocation status is no longer known.
            "crl-stale" => CertificateError::InvalidOcspResponse,
            // access_denied: a valid certificate at the wrong listener.
            "not-a-node" | "not-a-peer" | "not-our-member" | "is-a-node" | "identity-mismatch" => {
                CertificateError::ApplicationVerificationFailure
            }
            // bad_certificate.
            "malformed" | NO_URI | "many-uri-sans" | "not-spiffe" => CertificateError::BadEncoding,
            // unsupported_certificate.
            UNSUITABLE => CertificateError::InvalidPurpose,
            // certificate_unknown.
            _ => CertificateError::Other(OtherError(Arc::new(self.clone()))),
        }
    }

    /// Returns the rejection for a failed handshake.
    pub(super) fn from_tls(error: &io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let reason = match tls {
            Some(rustls::Error::InvalidCertificate(_)) => "bad-certificate",
            Some(rustls::Error::PeerIncompatible(
                PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::ServerDoesNotSupportTls12Or13,
            )) => "tls-version",
            Some(rustls::Error::PeerMisbehaved(PeerMisbehaved::SelectedUnofferedApplicationProtocol))
            | Some(rustls::Error::NoApplicationProtocol) => "not-http2",
            Some(rustls::Error::InvalidMessage(_)) => "plain-text",
            Some(rustls::Error::NoCertificatesPresented) => "no-certificate",
            Some(rustls::Error::AlertReceived(_)) => "rejected-by-peer",
            Some(_) => "tls-handshake",
            // The other end closed the connection before the handshake was done.
            None => "handshake-aborted",
        };
        match tls {
            Some(rustls::Error::AlertReceived(alert)) => Self::new(reason, describe_alert(*alert)),
            _ => Self::new(reason, error.to_string()),
        }
    }
}

/// Describes an alert from the other end, for the operator who must act on it (docs/protocol.md
/// section 10).
fn describe_alert(alert: AlertDescription) -> String {
    let (name, why) = match alert {
        AlertDescription::CertificateExpired => {
            ("certificate_expired", "by the clock of the other end it has expired or is not valid yet")
        }
        AlertDescription::CertificateRevoked => ("certificate_revoked", "its authority has revoked it"),
        AlertDescription::UnknownCA => {
            ("unknown_ca", "it is not signed by an authority that the roster of the other end lists for this member")
        }
        AlertDescription::BadCertificateStatusResponse => {
            ("bad_certificate_status_response", "the CRL of its authority has expired at the other end")
        }
        AlertDescription::AccessDenied => ("access_denied", "it is not accepted by this listener"),
        AlertDescription::BadCertificate => ("bad_certificate", "it does not name exactly one SPIFFE ID"),
        AlertDescription::UnsupportedCertificate => (
            "unsupported_certificate",
            "its key usage, extended key usage, basic constraints, critical extensions or key are not a node's",
        ),
        AlertDescription::CertificateUnknown => ("certificate_unknown", "see the log of the other end"),
        other => return format!("the other end aborted the handshake: {other:?}"),
    };
    format!("the other end rejects our certificate: {why} ({name})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_alert_describes_what_is_wrong_with_our_certificate() {
        let error = |alert| io::Error::new(io::ErrorKind::InvalidData, rustls::Error::AlertReceived(alert));
        let rejected = Rejection::from_tls(&error(AlertDescription::UnsupportedCertificate));
        assert_eq!(rejected.reason, "rejected-by-peer");
        assert!(rejected.detail.contains("rejects our certificate") && rejected.detail.contains("extended key usage"));
        let other = Rejection::from_tls(&error(AlertDescription::HandshakeFailure)).detail;
        assert!(!other.contains("certificate") && other.contains("HandshakeFailure"), "{other}");
    }

    #[test]
    fn rejection_source_is_an_identity_or_an_address_without_port() {
        let of = |actor: &str| {
            RejectionRecord { reason: "plain-text", actor: actor.into(), at: "api", detail: String::new() }.source()
        };
        assert_eq!(of("10.0.0.1:4000"), "10.0.0.1");
        assert_eq!(of("[2001:db8::7]:4000"), "2001:db8::/64");
        assert_eq!(of("[::ffff:10.0.0.1]:4000"), "10.0.0.1");
        assert_eq!(of("spiffe://ly.rabat.example/node"), "spiffe://ly.rabat.example/node");
    }
}
