//! Dials nodes of other members.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::compression::{Compress, MaybeCompressed, negotiated};
use super::connections::{Connections, Guarded, Origin};
use super::credentials::{Credentials, TransportError, client_config};
use super::limits::{HANDSHAKE_TIME_MAX, tune_endpoint};
use super::peeked_stream::{PeekedStream, peek};
use super::rejection::{OnRejected, Rejection, RejectionRecord};
use super::trust::SpiffeId;
use super::verify::{Handshake, Policy, Verifier};
use crate::error_chain;

/// Place of dialled connections in rejection records.
const DIAL: &str = "dial";

/// Opens connections to nodes of other members.
#[derive(Clone)]
pub struct Connector {
    /// Trust and CRLs. The policy is replaced by the dialled identity.
    pub verifier: Verifier,
    /// This node's certificate.
    pub credentials: Credentials,
    /// The table of live connections.
    pub connections: Connections,
    /// Whether to compress.
    pub compress: Compress,
    /// Called when the TLS handshake fails or the wrong identity answers. An unreachable node is
    /// not a rejection.
    pub on_rejected: OnRejected,
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
        let verifier = Arc::new(Verifier { policy: Policy::Exactly(expected.clone()), ..self.verifier.clone() });
        let handshake = Arc::new(Handshake::new(Arc::clone(&verifier)));
        let tls = client_config(Arc::clone(&handshake), self.credentials.clone())?;
        let attempt = Attempt {
            tls,
            compress: self.compress,
            verifier,
            handshake,
            connections: self.connections.clone(),
            address: endpoint.into(),
            name,
            expected,
            on_rejected: Arc::clone(&self.on_rejected),
        };
        let connect = tower::service_fn(move |_| {
            let attempt = attempt.clone();
            async move { attempt.connect().await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::try_from(uri).map_err(|error| TransportError::Connect(error.to_string()))?;
        let endpoint = tune_endpoint(endpoint);
        let connecting = endpoint.connect_with_connector(connect);
        match tokio::time::timeout(HANDSHAKE_TIME_MAX, connecting).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(TransportError::Connect(error_chain::one_line(&error))),
            Err(_) => Err(TransportError::Connect("no connection within 10 s".into())),
        }
    }
}

#[derive(Clone)]
struct Attempt {
    tls: ClientConfig,
    compress: Compress,
    verifier: Arc<Verifier>,
    handshake: Arc<Handshake>,
    connections: Connections,
    address: Arc<str>,
    name: ServerName<'static>,
    expected: SpiffeId,
    on_rejected: OnRejected,
}

impl Attempt {
    async fn connect(&self) -> io::Result<Guarded<MaybeCompressed<PeekedStream<TlsStream<TcpStream>>>>> {
        let begun = Instant::now();
        let stream = TcpStream::connect(&*self.address).await?;
        let mut tls = self.tls.clone();
        tls.alpn_protocols = self.compress.offer(begun.elapsed());
        stream.set_nodelay(true)?;
        let stream = match TlsConnector::from(Arc::new(tls)).connect(self.name.clone(), stream).await {
            Ok(stream) => stream,
            Err(error) => return Err(self.failure(error)),
        };
        let presented = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let presented = presented.cloned().map(CertificateDer::into_owned);
        let origin = Origin { at: DIAL, address: self.address.to_string(), source: None };
        let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        let stream = peek(stream).await.map_err(|error| self.failure(error))?;
        let stream = negotiated(stream, alpn.as_deref());
        let admitted = match presented {
            Some(presented) => self.connections.admit(stream, origin, presented, Arc::clone(&self.verifier), None),
            None => Err(Rejection::new("no-certificate", "no certificate was presented")),
        };
        admitted.map_err(|rejected| {
            self.rejected(rejected.clone());
            io::Error::other(rejected)
        })
    }

    /// Returns why the connection failed, and records it if it was rejected by either side. A
    /// broken connection is not a rejection.
    fn failure(&self, error: io::Error) -> io::Error {
        if error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_none() {
            return error;
        }
        let rejected = self.handshake.rejected(&error);
        self.rejected(rejected.clone());
        io::Error::other(rejected)
    }

    fn rejected(&self, Rejection { reason, detail }: Rejection) {
        let detail = format!("{}: {detail}", self.address);
        (self.on_rejected)(&RejectionRecord { reason, actor: self.expected.to_string(), at: DIAL, detail });
    }
}
