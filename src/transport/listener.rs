//! The served side of mutual TLS: connections that are verified, for `calls::serve`.

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

use super::compression::MaybeCompressed;
use super::connections::{AccessLevel, Connections, Guarded, Origin};
use super::credentials::{Credentials, TransportError, server_config};
use super::handshakes::{self, Handshakes, Source, Stage};
use super::limits::{ACCEPTED_MAX, Limits};
use super::rejection::{OnRejected, Rejection, RejectionRecord};
use super::trust::PeerIdentity;
use super::verify::{Handshake, Verifier};
use crate::budgets::Budget;
use crate::telemetry::{AuditEvent, audit};

/// How long nothing is accepted after the system could not: out of file descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a listener needs.
#[derive(Clone)]
pub struct ListenerOptions {
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
    pub level: LevelOf,
    /// Told of every refusal, once each.
    pub on_rejected: OnRejected,
}

/// What the access rules give to an identity.
pub type LevelOf = Arc<dyn Fn(&PeerIdentity) -> AccessLevel + Send + Sync>;

/// A verified connection, on which calls can be served.
pub type Incoming = Guarded<MaybeCompressed<TlsStream<TcpStream>>>;

/// Accepts connections on `tcp`, until the stream is dropped. Handshakes run apart from each other.
///
/// # Errors
/// If TLS cannot be set up.
pub fn listen(
    tcp: TcpListener,
    listener: ListenerOptions,
) -> Result<ReceiverStream<io::Result<Incoming>>, TransportError> {
    // Found out before anybody comes.
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
                    // Out of file descriptors, or a connection that ended at once: neither ends the listener.
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
                        Err(Rejection::new("handshake-timeout", format!("not done within {} ms", limit.as_millis())))
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
    /// TLS of one connection, and what it will have refused.
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
                // It gave way at the same moment.
                slot.evicted().await;
                slot.readmit();
            }
        }
        // Where many come at once, it is looked at late: whoever has said something meanwhile was not silent.
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
    Rejection::new("handshake-evicted", "not done when too many others came")
}

/// Whether something can be read, by the system itself: what the runtime knows of a new connection may be late.
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
        // This computes the answer.
        (hello.into_stream(config), handshake)
    };
    slot.advance(Stage::Replied);
    let stream = finish_handshake(accepting, slot).await.map_err(|error| handshake.rejected(&error))?;
    let presented = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let presented = presented.ok_or_else(|| Rejection::new("no-certificate", "no certificate was shown"))?;
    let presented = presented.clone().into_owned();
    let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    Ok((MaybeCompressed::negotiated(stream, alpn.as_deref()), presented))
}

/// A handshake from its answer to its end.
async fn finish_handshake(
    mut accepting: Accept<TcpStream>,
    slot: &handshakes::Handshake,
) -> io::Result<TlsStream<TcpStream>> {
    let mut replied = false;
    poll_fn(|context| {
        // Once the answer is sent, and all that came before was read, what can be read came after it.
        let readable = |tcp: &TcpStream| tcp.poll_read_ready(context).is_ready();
        if replied && accepting.get_ref().is_some_and(readable) {
            slot.advance(Stage::Proceeds);
        }
        replied = true;
        Pin::new(&mut accepting).poll(context)
    })
    .await
}
