//! TLS to the own member's node: TLS 1.3 with a client certificate. The node is authenticated by
//! its SPIFFE ID and its member's authority.
//!
//! In scope: what an API client needs. Out of scope: the exchange listener, rosters and CRLs.
//!
//! The node is not authenticated by its host name, because names change and can be taken over. Its
//! certificate contains its identity `spiffe://<member>.<exchange>/node`. So no other holder of a
//! certificate of the same authority, such as a focal point, can impersonate it.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use barid_core::certificate::{self, Purpose, Unfit};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, OtherError, PeerIncompatible,
    RootCertStore, SignatureScheme,
};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Failure, Profile};
use crate::files::{self, Guard};
use crate::transport::Verified;

/// Longest time for TCP and the handshake together, in calls that are retried.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the alert with which a node rejects the client.
const ALERT_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of HTTP/2 keep-alive pings on an idle connection.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// Longest wait for the reply to a ping.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Flow-control window of the connection and its streams: large enough for a fast link, small for
/// the memory of a client machine.
const WINDOW_BYTES: u32 = 4 << 20;

/// Returns a channel to the profile's node. It connects with the first call, and again after a
/// loss.
///
/// # Errors
/// Returns an error if the certificate, key or authority cannot be used.
pub fn channel(profile: &Profile) -> Result<Channel, Failure> {
    NodeConnector::of(profile, CONNECT_TIMEOUT)?.channel()
}

/// Opens TLS connections to one node.
#[derive(Clone)]
pub(super) struct NodeConnector {
    connector: TlsConnector,
    address: Arc<str>,
    name: ServerName<'static>,
    authority: String,
    ca: Arc<str>,
    timeout: Duration,
}

/// Largest number of handshakes attempted while each is cut.
const ATTEMPTS_MAX: u32 = 6;
/// Pause before the second attempt; multiplied by the number of the attempt before further ones.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(30);

/// Returns whether the other end closed the connection without an alert.
fn is_cut(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TokioIo<TlsStream<TcpStream>>>> + Send>>;

impl NodeConnector {
    /// Prepares connections to the profile's node; `timeout` bounds TCP and the handshake together.
    /// The network is not used yet.
    ///
    /// # Errors
    /// Returns an error if the certificate, key or authority cannot be used.
    pub(super) fn of(profile: &Profile, timeout: Duration) -> Result<Self, Failure> {
        let connector = TlsConnector::from(Arc::new(config(profile)?));
        // The verifier checks the identity, not this name; the name only has to be valid in TLS.
        let host = profile.endpoint.rsplit_once(':').map_or(profile.endpoint.as_str(), |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host)
            .map_err(|error| Failure::usage("profile-unusable").with("path", &profile.endpoint).because(&error))?;
        let authority = format!("https://{}.{}", profile.member, profile.exchange);
        let (address, ca) = (profile.endpoint.as_str().into(), profile.ca.display().to_string().into());
        Ok(Self { connector, address, name, authority, ca, timeout })
    }

    /// Returns the node's address and the file of its authorities, as in the profile.
    pub(super) fn named(&self) -> (&str, &str) {
        (&self.address, &self.ca)
    }

    /// Returns a channel that connects with the first call, and again after a loss.
    pub(super) fn channel(&self) -> Result<Channel, Failure> {
        let endpoint = Endpoint::try_from(self.authority.clone())
            .map_err(|error| Failure::new("internal").because(&error))?
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .initial_connection_window_size(WINDOW_BYTES)
            .initial_stream_window_size(WINDOW_BYTES);
        let connector = self.clone();
        Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
            let connector = connector.clone();
            Box::pin(async move { connector.connect().await.map(TokioIo::new) }) as Connecting
        })))
    }

    async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let both = async {
            let mut attempt = 1;
            loop {
                let stream = TcpStream::connect(&*self.address).await?;
                stream.set_nodelay(true)?;
                match self.connector.connect(self.name.clone(), stream).await {
                    // A node with too many connections closes some of those that have not
                    // authenticated yet.
                    Err(error) if attempt < ATTEMPTS_MAX && is_cut(&error) => {
                        tokio::time::sleep(ATTEMPT_PAUSE * attempt).await;
                        attempt += 1;
                    }
                    done => return done,
                }
            }
        };
        let late = |_| {
            let text = format!("no connection within {} s", self.timeout.as_secs());
            io::Error::new(io::ErrorKind::TimedOut, text)
        };
        tokio::time::timeout(self.timeout, both).await.map_err(late)?
    }

    /// Returns the alert with which the node rejects this client's certificate, or `None` if it
    /// accepts it. In TLS 1.3 the alert arrives after the client's side of the handshake, and data
    /// already sent can displace it. So nothing is sent here.
    pub(super) async fn rejection_alert(&self) -> Option<AlertDescription> {
        let handshake = async {
            let mut stream = self.connect().await.err_into_alert()?;
            stream.read(&mut [0; 1]).await.err_into_alert().map(|_| ())
        };
        match tokio::time::timeout(ALERT_TIMEOUT, handshake).await {
            Ok(Err(alert)) => alert,
            Ok(Ok(())) | Err(_) => None,
        }
    }
}

/// Converts an I/O error to the TLS alert in it, if there is one.
trait ErrIntoAlert<T> {
    fn err_into_alert(self) -> Result<T, Option<AlertDescription>>;
}

impl<T> ErrIntoAlert<T> for io::Result<T> {
    fn err_into_alert(self) -> Result<T, Option<AlertDescription>> {
        self.map_err(|error| match tls_error(&error) {
            Some(rustls::Error::AlertReceived(alert)) => Some(*alert),
            _ => None,
        })
    }
}

/// Returns the TLS error among an error and its sources. An I/O error contains it, but does not
/// return it as its source.
pub(super) fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            let inner: &(dyn std::error::Error + 'static) = inner;
            if let Some(found) = tls_error(inner) {
                return Some(found);
            }
        }
        next = error.source();
    }
    None
}

fn config(profile: &Profile) -> Result<ClientConfig, Failure> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let anchors = authorities(&profile.ca)?;
    let chain = certificates(&profile.certificate)?;
    // A node would reject it too, but with less detail.
    if let Some(Err(unfit)) = chain.first().map(|own| certificate::check(own, Purpose::Client)) {
        return Err(unusable(&profile.certificate).because(&unfit));
    }
    let key = text(&profile.key)?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| unusable(&profile.key).because(&error))?;
    let verifier = NodeVerifier {
        anchors,
        identity: format!("spiffe://{}.{}/node", profile.member, profile.exchange),
        provider: provider.clone(),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Failure::new("internal").because(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key)
        .map_err(|error| unusable(&profile.certificate).because(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Resumption would skip the node's revocation check of this certificate.
    config.resumption = Resumption::disabled();
    Ok(config)
}

pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let read = CertificateDer::pem_slice_iter(text(path)?.as_bytes()).collect::<Result<Vec<_>, _>>();
    let found = read.map_err(|error| unusable(path).because(&error))?;
    if found.is_empty() { Err(unusable(path).cause("no PEM certificate in it")) } else { Ok(found) }
}

fn text(path: &Path) -> Result<String, Failure> {
    files::read_text(path, Guard::Public).map_err(|error| unusable(path).because(&error))
}

/// Returns the fit authorities of a file; it is an error if there is none.
fn authorities(path: &Path) -> Result<RootCertStore, Failure> {
    let (mut anchors, mut unfit) = (RootCertStore::empty(), None);
    for listed in certificates(path)? {
        match certificate::check(&listed, Purpose::Authority) {
            Ok(_) => anchors.add(listed).map_err(|error| unusable(path).because(&error))?,
            Err(reason) => unfit = unfit.or(Some(reason)),
        }
    }
    match unfit {
        Some(reason) if anchors.is_empty() => Err(unusable(path).because(&reason)),
        _ => Ok(anchors),
    }
}

fn unusable(path: &Path) -> Failure {
    Failure::usage("identity-unusable").path(path)
}

/// Why the server is not the node, for reasons without a TLS error of their own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotTheNode {
    /// A different identity of the same authority.
    #[error("the certificate at this address is for {found}, not for {wanted}")]
    Identity {
        /// Its SPIFFE ID, if it has one.
        found: String,
        /// The node's SPIFFE ID.
        wanted: String,
    },
    /// A certificate that is not fit for a node.
    #[error("the node's certificate: {0}")]
    Unfit(Unfit),
}

impl From<NotTheNode> for rustls::Error {
    fn from(why: NotTheNode) -> Self {
        CertificateError::Other(OtherError(Arc::new(why))).into()
    }
}

/// Accepts exactly one identity, certified by the given authorities.
#[derive(Debug)]
struct NodeVerifier {
    anchors: RootCertStore,
    identity: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.anchors, intermediates, now, algorithms)?;
        certificate::check(end_entity, Purpose::Node).map_err(NotTheNode::Unfit)?;
        match spiffe_id(end_entity) {
            Some(id) if id == self.identity => Ok(ServerCertVerified::assertion()),
            found => {
                let found = found.unwrap_or_else(|| "no SPIFFE ID".into());
                Err(NotTheNode::Identity { found, wanted: self.identity.clone() }.into())
            }
        }
    }

    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Verified {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(&self, text: &[u8], by: &CertificateDer<'_>, sig: &DigitallySignedStruct) -> Verified {
        verify_tls13_signature(text, by, sig, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Returns the only URI among the certificate's names, or `None` if there is not exactly one
/// (SPIFFE X.509-SVID §2).
pub(super) fn spiffe_id(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    let first = uris.next()?;
    uris.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType};

    use super::*;

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn certificate(authority: &CertifiedIssuer<'static, KeyPair>, uris: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
        params.signed_by(&KeyPair::generate().unwrap(), authority).unwrap().der().clone()
    }

    fn verify(verifier: &NodeVerifier, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let name = ServerName::try_from("127.0.0.1").unwrap();
        verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::now()).map(|_| ())
    }

    #[test]
    fn verifier_accepts_only_the_member_node() {
        let (ours, theirs) = (authority(), authority());
        let mut anchors = RootCertStore::empty();
        anchors.add(ours.der().clone()).unwrap();
        let identity = "spiffe://ne.rabat.example/node".to_owned();
        let verifier = NodeVerifier { anchors, identity, provider: Arc::new(aws_lc_rs::default_provider()) };
        let node = "spiffe://ne.rabat.example/node";
        assert_eq!(verify(&verifier, &certificate(&ours, &[node])), Ok(()));
        for (authority, uris) in [
            (&theirs, vec![node]),
            (&ours, vec!["spiffe://ne.rabat.example/focal-point/police-niamey"]),
            (&ours, vec!["spiffe://ma.rabat.example/node"]),
            (&ours, vec![node, "spiffe://ne.rabat.example/other"]),
            (&ours, vec![]),
        ] {
            assert!(verify(&verifier, &certificate(authority, &uris)).is_err(), "{uris:?}");
        }
    }
}
