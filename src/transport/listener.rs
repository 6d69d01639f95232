//! Both directions of mutual TLS: a listener for tonic, and a connector.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper_util::rt::TokioIo;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::transport::{Channel, Endpoint, Server};

use super::connections::{Connections, Guarded};
use super::trust::{Refused, SpiffeId};
use super::verify::{Policy, Verifier};
use super::{OnRefusal, Refusal};

/// Longest for TCP and the handshake together; a satellite link needs some seconds.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes under way at once; further connections wait in the kernel's queue.
const HANDSHAKES_MAX: usize = 256;
/// Accepted connections that wait for tonic.
const ACCEPTED_MAX: usize = 64;
/// Flow-control window of a stream: one full batch on a long line.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Flow-control window of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// How often a quiet connection is asked for a sign of life, and how long that may take.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(20));

/// Why TLS cannot be set up, or a connection was not made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A certificate or key cannot be used.
    #[error("{path} cannot be used: {reason}")]
    Identity {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The endpoint is not `host:port`.
    #[error("`{0}` is not `host:port`")]
    Endpoint(String),
    /// The connection was not made.
    #[error("{0}")]
    Connect(String),
}

/// This node's certificate and key, read again without a restart. Cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    certificate: PathBuf,
    key: PathBuf,
    current: Arc<ArcSwap<CertifiedKey>>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads a PEM chain and its PEM key.
    ///
    /// # Errors
    /// If they cannot be read, or do not belong together.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TransportError> {
        let read = certified(certificate, key)?;
        let current = Arc::new(ArcSwap::from_pointee(read));
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), current })
    }

    /// Reads both files again; on an error the old ones stay.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn reload(&self) -> Result<(), TransportError> {
        self.current.store(Arc::new(certified(&self.certificate, &self.key)?));
        Ok(())
    }
}

fn certified(certificate: &Path, key: &Path) -> Result<CertifiedKey, TransportError> {
    let unusable = |path: &Path, reason: String| TransportError::Identity { path: path.to_owned(), reason };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(unusable(certificate, "no PEM certificate in it".into()));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, error.to_string()))?;
    CertifiedKey::from_der(chain, private, &rustls::crypto::aws_lc_rs::default_provider())
        .map_err(|error| unusable(key, error.to_string()))
}

impl ResolvesServerCert for Credentials {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl ResolvesClientCert for Credentials {
    fn resolve(&self, _root_hint_subjects: &[&[u8]], _sigschemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// TLS of a listener: 1.3 only, client certificates always, no resumption.
///
/// # Errors
/// If TLS cannot be set up.
pub fn server_config(verifier: Arc<Verifier>, credentials: Credentials) -> Result<ServerConfig, TransportError> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&verifier.provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(credentials));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// Windows and signs of life for volume over long lines.
#[must_use]
pub fn tune_server(server: Server) -> Server {
    server
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEP_ALIVE.0))
        .http2_keepalive_timeout(Some(KEEP_ALIVE.1))
        .tcp_nodelay(true)
}

/// Accepts connections on `tcp`: for tonic's `serve_with_incoming`. Handshakes run apart from each other, bounded in number and
/// time; what is refused is told to `on_refusal`.
///
/// # Errors
/// If TLS cannot be set up.
pub fn listen(
    tcp: TcpListener,
    verifier: Arc<Verifier>,
    credentials: Credentials,
    connections: Connections,
    on_refusal: OnRefusal,
) -> Result<
    tokio_stream::wrappers::ReceiverStream<io::Result<Guarded<tokio_rustls::server::TlsStream<TcpStream>>>>,
    TransportError,
> {
    let acceptor = TlsAcceptor::from(Arc::new(server_config(Arc::clone(&verifier), credentials)?));
    let (accepted, incoming) = mpsc::channel(ACCEPTED_MAX);
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    tokio::spawn(async move {
        while let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await {
            let (stream, address) = tokio::select! {
                () = accepted.closed() => return,
                connection = tcp.accept() => match connection {
                    Ok(connection) => connection,
                    Err(error) => {
                        // Out of file descriptors, or a connection that ended at once: neither ends the listener.
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            let (acceptor, verifier, connections) = (acceptor.clone(), Arc::clone(&verifier), connections.clone());
            let (accepted, on_refusal) = (accepted.clone(), Arc::clone(&on_refusal));
            tokio::spawn(async move {
                let _permit = permit;
                let result = match tokio::time::timeout(HANDSHAKE_TIMEOUT, accept(&acceptor, stream)).await {
                    Ok(result) => result,
                    Err(_) => Err(Refused::new("handshake-timeout", "no handshake within 10 s")),
                };
                match result.and_then(|(stream, chain)| guarded(stream, chain, verifier, &connections)) {
                    Ok(guarded) => drop(accepted.send(Ok(guarded)).await),
                    Err(Refused { reason, detail }) => {
                        on_refusal(&Refusal { reason, address: address.to_string(), detail });
                    }
                }
            });
        }
    });
    Ok(tokio_stream::wrappers::ReceiverStream::new(incoming))
}

type Accepted = (tokio_rustls::server::TlsStream<TcpStream>, Vec<CertificateDer<'static>>);

async fn accept(acceptor: &TlsAcceptor, stream: TcpStream) -> Result<Accepted, Refused> {
    stream.set_nodelay(true).map_err(|error| Refused::new("tls-handshake", error.to_string()))?;
    let stream = acceptor.accept(stream).await.map_err(|error| why(&error))?;
    let chain =
        stream.get_ref().1.peer_certificates().unwrap_or_default().iter().cloned().map(CertificateDer::into_owned);
    let chain = chain.collect();
    Ok((stream, chain))
}

fn guarded<S>(
    stream: S,
    chain: Vec<CertificateDer<'static>>,
    verifier: Arc<Verifier>,
    connections: &Connections,
) -> Result<Guarded<S>, Refused> {
    let (end_entity, intermediates) =
        chain.split_first().ok_or_else(|| Refused::new("no-certificate", "no certificate was shown"))?;
    let identity = verifier.identify(end_entity, intermediates, UnixTime::now())?;
    Ok(connections.guard(stream, identity, chain, verifier))
}

/// The stable word for a failed handshake.
fn why(error: &io::Error) -> Refused {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let reason = match tls {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) => {
            if let Some(refused) = other.0.downcast_ref::<Refused>() {
                return refused.clone();
            }
            "tls-handshake"
        }
        Some(rustls::Error::PeerIncompatible(_)) => "tls-version",
        Some(rustls::Error::InvalidMessage(_)) => "plain-text",
        Some(rustls::Error::NoCertificatesPresented) => "no-certificate",
        _ => "tls-handshake",
    };
    Refused::new(reason, error.to_string())
}

/// Opens connections to nodes of other members.
#[derive(Clone)]
pub struct Connector {
    /// Trust and lists; its policy is replaced by the one identity that is dialled.
    pub verifier: Verifier,
    /// Own certificate.
    pub credentials: Credentials,
    /// Where live connections are kept.
    pub connections: Connections,
}

impl Connector {
    /// Connects to `endpoint` (`host:port`) and verifies that `expected` answers.
    ///
    /// # Errors
    /// See [`TransportError`].
    pub async fn dial(&self, endpoint: &str, expected: SpiffeId) -> Result<Channel, TransportError> {
        let host = endpoint.rsplit_once(':').map(|(host, _)| host.trim_matches(['[', ']']).to_owned());
        let name = host
            .and_then(|host| ServerName::try_from(host).ok())
            .ok_or_else(|| TransportError::Endpoint(endpoint.to_owned()))?;
        let uri = format!("https://{}", expected.trust_domain);
        let verifier = Arc::new(Verifier { policy: Policy::Exactly(expected), ..self.verifier.clone() });
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&verifier.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<_>)
            .with_client_cert_resolver(Arc::new(self.credentials.clone()));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        let tls = TlsConnector::from(Arc::new(config));
        let (connections, address) = (self.connections.clone(), endpoint.to_owned());
        let connect = tower::service_fn(move |_| {
            let (tls, verifier, connections) = (tls.clone(), Arc::clone(&verifier), connections.clone());
            let (address, name) = (address.clone(), name.clone());
            async move {
                let stream = TcpStream::connect(address.as_str()).await?;
                stream.set_nodelay(true)?;
                let stream = tls.connect(name, stream).await?;
                let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
                let chain = shown.iter().cloned().map(CertificateDer::into_owned).collect();
                guarded(stream, chain, verifier, &connections).map(TokioIo::new).map_err(io::Error::other)
            }
        });
        let endpoint = Endpoint::try_from(uri)
            .map_err(|error| TransportError::Connect(error.to_string()))?
            .connect_timeout(HANDSHAKE_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(KEEP_ALIVE.0)
            .keep_alive_timeout(KEEP_ALIVE.1)
            .keep_alive_while_idle(true);
        let connected = tokio::time::timeout(HANDSHAKE_TIMEOUT, endpoint.connect_with_connector(connect)).await;
        match connected {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(TransportError::Connect(chain_text(&error))),
            Err(_) => Err(TransportError::Connect("no connection within 10 s".into())),
        }
    }
}

/// An error with its sources, in one line.
fn chain_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
