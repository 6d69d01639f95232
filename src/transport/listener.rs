//! The listening side of mutual TLS: verified connections for `calls::serve`.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::Acceptor;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, LazyConfigAcceptor};
use tokio_stream::wrappers::ReceiverStream;

use super::compression::{MaybeCompressed, negotiated};
use super::connections::{AccessLevel, Connections, Guarded, Origin};
use super::credentials::{Credentials, TransportError, server_config};
use super::handshakes::{self, Handshakes, Source, Stage};
use super::limits::{ACCEPTED_MAX, Limits};
use super::rejection::{OnRejected, Rejection, RejectionRecord};
use super::trust::PeerIdentity;
use super::verify::{Handshake, Verifier};
use crate::budgets::Budget;
use crate::telemetry::{AuditEvent, audit};

/// Pause after a failed accept, which mostly means too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Configuration and shared state of a listener.
#[derive(Clone)]
pub struct ListenerOptions {
    /// Name in rejection records: "api", "exchange".
    pub name: &'static str,
    /// Verifies the certificates of the other end.
    pub verifier: Arc<Verifier>,
    /// This node's certificate.
    pub credentials: Credentials,
    /// The table of live connections.
    pub connections: Connections,
    /// Bounds of the listener.
    pub limits: Limits,
    /// Budget for connections of each identity and of all.
    pub budget: Budget,
    /// Returns the access level of an identity.
    pub level: LevelOf,
    /// Called once for each rejected connection.
    pub on_rejected: OnRejected,
}

/// Looks up what the access rules grant to an identity now.
pub type LevelOf = Arc<dyn Fn(&PeerIdentity) -> AccessLevel + Send + Sync>;

/// A verified connection that serves calls.
pub type Incoming = Guarded<MaybeCompressed<TlsStream<TcpStream>>>;

/// Accepts connections on `tcp` until the stream is dropped. Handshakes run concurrently.
///
/// # Errors
/// TLS cannot be set up.
pub fn listen(
    tcp: TcpListener,
    listener: ListenerOptions,
) -> Result<ReceiverStream<io::Result<Incoming>>, TransportError> {
    // Fail now rather than at the first connection.
    listener.tls()?;
    let (accepted, incoming) = mpsc::channel(ACCEPTED_MAX);
    let listener = Arc::new(listener);
    let handshakes = Handshakes::new(listener.limits.handshakes_max);
    tokio::spawn(async move {
        loop {
            let connection = tokio::select! {
                () = accepted.closed() => return,
                connection = tcp.accept() => connection,
            };
            let (stream, address) = match connection {
                Ok(connection) => connection,
                Err(error) => {
                    // Too many open files, or a connection that ended at once. Neither ends the
                    // listener.
                    let (event, reason) = ("connection-rejected", "accept-failed");
                    audit(&AuditEvent { event, reason, actor: &"", resource: &listener.name, detail: &error });
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let source = Source::of(address.ip());
            let slot = handshakes.begin(source);
            let (listener, accepted) = (Arc::clone(&listener), accepted.clone());
            tokio::spawn(async move {
                let limit = listener.limits.handshake_time_max;
                let established = tokio::select! {
                    biased;
                    established = accept_tls(&listener, stream, &slot) => established,
                    () = tokio::time::sleep(limit) => {
                        let detail = format!("not complete within {} ms", limit.as_millis());
                        Err(Rejection::new("handshake-timeout", detail))
                    }
                };
                drop(slot);
                let admitted = established.and_then(|(stream, presented)| {
                    let origin = Origin { at: listener.name, address: address.to_string(), source: Some(source) };
                    let verifier = Arc::clone(&listener.verifier);
                    listener.connections.admit(stream, origin, presented, verifier, Some(&listener))
                });
                match admitted {
                    Ok(guarded) => drop(accepted.send(Ok(guarded)).await),
                    Err(rejected) => listener.rejected(address, rejected),
                }
            });
        }
    });
    Ok(ReceiverStream::new(incoming))
}

impl ListenerOptions {
    /// Returns the TLS configuration of one connection, and the verifier that records its
    /// rejection.
    fn tls(&self) -> Result<(Arc<ServerConfig>, Arc<Handshake>), TransportError> {
        let handshake = Arc::new(Handshake::new(Arc::clone(&self.verifier)));
        let config = server_config(Arc::clone(&handshake), self.credentials.clone())?;
        Ok((Arc::new(config), handshake))
    }

    fn rejected(&self, address: SocketAddr, Rejection { reason, detail }: Rejection) {
        (self.on_rejected)(&RejectionRecord { reason, actor: address.to_string(), at: self.name, detail });
    }
}

async fn accept_tls(
    listener: &ListenerOptions,
    stream: TcpStream,
    slot: &handshakes::Handshake,
) -> Result<(MaybeCompressed<TlsStream<TcpStream>>, CertificateDer<'static>), Rejection> {
    let from_tls = |error: io::Error| Rejection::from_tls(&error);
    stream.set_nodelay(true).map_err(from_tls)?;
    tokio::select! {
        biased;
        readable = stream.readable() => {
            readable.map_err(from_tls)?;
            if !slot.advance(Stage::Begun) {
                // It was evicted at the same moment.
                slot.evicted().await;
                slot.readmit();
            }
        }
        // Under load this check may be late. A connection that has sent data meanwhile was not
        // silent.
        () = slot.evicted() => {
            if !has_data(&stream) {
                return Err(evicted());
            }
            slot.readmit();
        }
    }
    tokio::select! {
        biased;
        established = complete_tls(listener, stream, slot) => established,
        () = slot.evicted() => Err(evicted()),
    }
}

fn evicted() -> Rejection {
    Rejection::new("handshake-evicted", "evicted before it was complete: too many other handshakes")
}

/// Returns whether data can be read. It asks the operating system, because the runtime may not have
/// registered it yet for a new connection.
fn has_data(stream: &TcpStream) -> bool {
    use rustix::net::{RecvFlags, recv};
    matches!(recv(stream, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT), Ok((_, 1..)))
}

async fn complete_tls(
    listener: &ListenerOptions,
    stream: TcpStream,
    slot: &handshakes::Handshake,
) -> Result<(MaybeCompressed<TlsStream<TcpStream>>, CertificateDer<'static>), Rejection> {
    let from_tls = |error: io::Error| Rejection::from_tls(&error);
    let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await.map_err(from_tls)?;
    slot.advance(Stage::Hello);
    let (accepting, handshake) = {
        let _turn = slot.turn().await;
        let (config, handshake) = listener.tls().map_err(|error| Rejection::new("tls-handshake", error.to_string()))?;
        // This computes the ServerHello.
        (hello.into_stream(config), handshake)
    };
    slot.advance(Stage::Replied);
    let stream = finish_handshake(accepting, slot).await.map_err(|error| handshake.rejected(&error))?;
    let presented = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let presented = presented.ok_or_else(|| Rejection::new("no-certificate", "no certificate was presented"))?;
    let presented = presented.clone().into_owned();
    let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    Ok((negotiated(stream, alpn.as_deref()), presented))
}

/// Runs a handshake from the server's reply to its end.
async fn finish_handshake(
    mut accepting: Accept<TcpStream>,
    slot: &handshakes::Handshake,
) -> io::Result<TlsStream<TcpStream>> {
    let mut replied = false;
    poll_fn(|context| {
        // Once the reply is sent and all earlier data has been read, readable data came after the
        // reply.
        let readable = |tcp: &TcpStream| tcp.poll_read_ready(context).is_ready();
        if replied && accepting.get_ref().is_some_and(readable) {
            slot.advance(Stage::Proceeds);
        }
        replied = true;
        Pin::new(&mut accepting).poll(context)
    })
    .await
}
