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

use super::connections::{AccessLevel, Connections, Guarded, Origin};
use super::credentials::{Credentials, TransportError, server_config};
use super::handshakes::{self, Handshakes, Source, Stage};
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
            let place = handshakes.begin(source);
            let (listening, accepted) = (Arc::clone(&listening), accepted.clone());
            tokio::spawn(async move {
                let limit = listening.limits.handshake_time_max;
                let shaken = tokio::select! {
                    biased;
                    shaken = shake_hands(&listening, stream, &place) => shaken,
                    () = tokio::time::sleep(limit) => {
                        Err(Refused::new("handshake-timeout", format!("not done within {} ms", limit.as_millis())))
                    }
                };
                drop(place);
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
    fn tls(&self) -> Result<(Arc<ServerConfig>, Arc<Handshake>), TransportError> {
        let handshake = Arc::new(Handshake::new(Arc::clone(&self.verifier)));
        let config = server_config(Arc::clone(&handshake), self.credentials.clone())?;
        Ok((Arc::new(config), handshake))
    }

    fn refused(&self, address: SocketAddr, Refused { reason, detail }: Refused) {
        (self.on_refusal)(&Refusal { reason, who: address.to_string(), at: self.name, detail });
    }
}

async fn shake_hands(
    listening: &Listening,
    stream: TcpStream,
    place: &handshakes::Handshake,
) -> Result<(Line<TlsStream<TcpStream>>, CertificateDer<'static>), Refused> {
    let by_tls = |error: io::Error| Refused::by_tls(&error);
    stream.set_nodelay(true).map_err(by_tls)?;
    tokio::select! {
        biased;
        readable = stream.readable() => {
            readable.map_err(by_tls)?;
            if !place.reaches(Stage::Begun) {
                // It gave way at the same moment.
                place.crowded_out().await;
                place.comes_back();
            }
        }
        // Where many come at once, it is looked at late: whoever has said something meanwhile was not silent.
        () = place.crowded_out() => {
            if !has_come(&stream) {
                return Err(crowded_out());
            }
            place.comes_back();
        }
    }
    tokio::select! {
        biased;
        shaken = shake_on(listening, stream, place) => shaken,
        () = place.crowded_out() => Err(crowded_out()),
    }
}

fn crowded_out() -> Refused {
    Refused::new("handshake-crowded-out", "not done when too many others came")
}

/// Whether something can be read, by the system itself: what the runtime knows of a new connection may be late.
fn has_come(stream: &TcpStream) -> bool {
    use rustix::net::{RecvFlags, recv};
    matches!(recv(stream, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT), Ok((_, 1..)))
}

async fn shake_on(
    listening: &Listening,
    stream: TcpStream,
    place: &handshakes::Handshake,
) -> Result<(Line<TlsStream<TcpStream>>, CertificateDer<'static>), Refused> {
    let by_tls = |error: io::Error| Refused::by_tls(&error);
    let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await.map_err(by_tls)?;
    place.reaches(Stage::Hello);
    let (accepting, handshake) = {
        let _turn = place.turn().await;
        let (config, handshake) = listening.tls().map_err(|error| Refused::new("tls-handshake", error.to_string()))?;
        // This computes the answer.
        (hello.into_stream(config), handshake)
    };
    place.reaches(Stage::Answered);
    let stream = go_on(accepting, place).await.map_err(|error| handshake.refused(&error))?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let shown = shown.ok_or_else(|| Refused::new("no-certificate", "no certificate was shown"))?;
    let shown = shown.clone().into_owned();
    let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    Ok((Line::agreed(stream, alpn.as_deref()), shown))
}

/// A handshake from its answer to its end.
async fn go_on(mut accepting: Accept<TcpStream>, place: &handshakes::Handshake) -> io::Result<TlsStream<TcpStream>> {
    let mut answered = false;
    poll_fn(|context| {
        // Once the answer is sent, and all that came before was read, what can be read came after it.
        let readable = |tcp: &TcpStream| tcp.poll_read_ready(context).is_ready();
        if answered && accepting.get_ref().is_some_and(readable) {
            place.reaches(Stage::Proceeds);
        }
        answered = true;
        Pin::new(&mut accepting).poll(context)
    })
    .await
}
