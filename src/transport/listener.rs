//! The served side of mutual TLS: connections that are verified, for `calls::serve`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

use super::connections::{AccessLevel, Connections, Guarded, Origin};
use super::credentials::{Credentials, TransportError, server_config};
use super::handshakes::{Handshakes, Source};
use super::limits::{ACCEPTED_MAX, Limits};
use super::refusal::{OnRefusal, Refusal, Refused};
use super::thin::Line;
use super::trust::PeerIdentity;
use super::verify::{Handshake, Verifier};
use crate::budgets::Budget;
use crate::telemetry::{AuditEvent, audit};

/// How long nothing is accepted after the system could not: out of file descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a listener needs.
#[derive(Clone)]
pub struct Listening {
    /// Its name in refusals: "api", "exchange".
    pub name: &'static str,
    /// Who comes in.
    pub verifier: Arc<Verifier>,
    /// Own certificate.
    pub credentials: Credentials,
    /// Where live connections are kept.
    pub connections: Connections,
    /// How much it carries.
    pub limits: Limits,
    /// Connections of each identity and of all.
    pub budget: Budget,
    /// What the access rules give to an identity now.
    pub level: OnLevel,
    /// Told of every refusal, once each.
    pub on_refusal: OnRefusal,
}

/// What the access rules give to an identity.
pub type OnLevel = Arc<dyn Fn(&PeerIdentity) -> AccessLevel + Send + Sync>;

/// A verified connection, on which calls can be served.
pub type Incoming = Guarded<Line<TlsStream<TcpStream>>>;

/// Accepts connections on `tcp`, until the stream is dropped. Handshakes run apart from each other.
///
/// # Errors
/// If TLS cannot be set up.
pub fn listen(tcp: TcpListener, listening: Listening) -> Result<ReceiverStream<io::Result<Incoming>>, TransportError> {
    // Found out before anybody comes.
    listening.tls()?;
    let (accepted, incoming) = mpsc::channel(ACCEPTED_MAX);
    let listening = Arc::new(listening);
    let handshakes = Handshakes::new(listening.limits.handshakes_max);
    tokio::spawn(async move {
        loop {
            let connection = tokio::select! {
                () = accepted.closed() => return,
                connection = tcp.accept() => connection,
            };
            let (stream, address) = match connection {
                Ok(connection) => connection,
                Err(error) => {
                    // Out of file descriptors, or a connection that ended at once: neither ends the listener.
                    let (what, reason) = ("refused-connection", "not-accepted");
                    audit(&AuditEvent { what, reason, who: &"", subject: &listening.name, detail: &error });
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let source = Source::of(address.ip());
            let mut handshake = handshakes.begin(source);
            let (listening, accepted) = (Arc::clone(&listening), accepted.clone());
            tokio::spawn(async move {
                let limit = listening.limits.handshake_time_max;
                let shaken = tokio::select! {
                    biased;
                    shaken = shake_hands(&listening, stream) => shaken,
                    () = handshake.crowded_out() => {
                        Err(Refused::new("handshake-crowded-out", "not done when too many others came"))
                    }
                    () = tokio::time::sleep(limit) => {
                        Err(Refused::new("handshake-timeout", format!("not done within {} ms", limit.as_millis())))
                    }
                };
                drop(handshake);
                let admitted = shaken.and_then(|(stream, shown)| {
                    let origin = Origin { at: listening.name, address: address.to_string(), source: Some(source) };
                    let verifier = Arc::clone(&listening.verifier);
                    listening.connections.admit(stream, origin, shown, verifier, Some(&listening))
                });
                match admitted {
                    Ok(guarded) => drop(accepted.send(Ok(guarded)).await),
                    Err(refused) => listening.refused(address, refused),
                }
            });
        }
    });
    Ok(ReceiverStream::new(incoming))
}

impl Listening {
    /// TLS of one connection, and what it will have refused.
    fn tls(&self) -> Result<(TlsAcceptor, Arc<Handshake>), TransportError> {
        let handshake = Arc::new(Handshake::new(Arc::clone(&self.verifier)));
        let config = server_config(Arc::clone(&handshake), self.credentials.clone())?;
        Ok((TlsAcceptor::from(Arc::new(config)), handshake))
    }

    fn refused(&self, address: SocketAddr, Refused { reason, detail }: Refused) {
        (self.on_refusal)(&Refusal { reason, who: address.to_string(), at: self.name, detail });
    }
}

async fn shake_hands(
    listening: &Listening,
    stream: TcpStream,
) -> Result<(Line<TlsStream<TcpStream>>, CertificateDer<'static>), Refused> {
    stream.set_nodelay(true).map_err(|error| Refused::by_tls(&error))?;
    let (acceptor, handshake) = listening.tls().map_err(|error| Refused::new("tls-handshake", error.to_string()))?;
    let stream = acceptor.accept(stream).await.map_err(|error| handshake.refused(&error))?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let shown = shown.ok_or_else(|| Refused::new("no-certificate", "no certificate was shown"))?;
    let shown = shown.clone().into_owned();
    let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    Ok((Line::agreed(stream, alpn.as_deref()), shown))
}
