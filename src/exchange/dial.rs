//! Dials peers: the member with the lower code dials at once, the other one if no link was opened
//! to it.
//!
//! In scope: when to dial, retries, and opening a link over a connection. Out of scope: TLS and
//! verifying the peer (an implementation of [`Dial`]), the link itself (`link`), which of two links
//! stays (`peers`).

use std::collections::BTreeMap;
use std::time::Duration;

use barid_core::ids::Member;
use barid_core::limits::MESSAGE_BYTES_MAX;
use barid_core::proto;
use futures::future::BoxFuture;
use futures::stream::StreamExt;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::ServiceExt as _;

use super::{DIAL_BACKOFF, DIAL_GRACE, Exchange, FRAME_QUEUE_MAX, LinkError, STARTUP_GRACE, Wire, backoff};
use crate::calls::Call;
use crate::rpc::exchange_client::ExchangeClient;
use crate::telemetry::alarms::Alarm;

/// A link that lasted this long resets the backoff.
const STABLE_LINK_MIN: Duration = Duration::from_secs(10);

/// How long to wait for the other link after this one was ended as a duplicate.
const DUPLICATE_LINK_WAIT: Duration = Duration::from_secs(2);
/// After this many links were ended as duplicates of a link that this node does not know, with no
/// stable one between them, another node uses this node's identity.
const DUPLICATE_LINKS_MAX: u32 = 3;
/// After this time without such an ending the other node has stopped: four attempts at the longest
/// delay.
const DUPLICATE_LINKS_CLEAR_AFTER: Duration = Duration::from_secs(4 * 30);

/// Opens connections to peers that have proven their identity as a member's node.
pub trait Dial: Send + Sync + 'static {
    /// Connects to `endpoint` (`host:port`) and verifies that it is `peer`. The error text is for
    /// operators.
    fn dial<'a>(&'a self, peer: &'a Member, endpoint: &'a str) -> BoxFuture<'a, Result<Channel, String>>;
}

/// Keeps links to all members of the roster, with one task for each, until shutdown or until the
/// set is dropped.
#[must_use]
pub fn spawn_dialers(exchange: &Exchange, dial: std::sync::Arc<dyn Dial>) -> JoinSet<()> {
    let exchange = exchange.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut rosters = exchange.shared.options.rosters.watch();
        let mut shutdown = exchange.shared.options.shutdown.clone();
        let mut dialers = JoinSet::new();
        let mut by_member: BTreeMap<Member, AbortHandle> = BTreeMap::new();
        loop {
            let roster = exchange.shared.options.rosters.load().newest_shared();
            by_member.retain(|member, dialer| {
                let stays = roster.member(member).is_some();
                if !stays {
                    dialer.abort();
                }
                stays
            });
            for entry in roster.entries().filter(|entry| entry.code != exchange.shared.me) {
                if !by_member.contains_key(&entry.code) {
                    let dialer = Dialer { exchange: exchange.clone(), peer: entry.code.clone(), dial: dial.clone() };
                    by_member.insert(entry.code.clone(), dialers.spawn(dialer.run()));
                }
            }
            tokio::select! {
                changed = rosters.changed() => if changed.is_err() { return },
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    });
    tasks
}

struct Dialer {
    exchange: Exchange,
    peer: Member,
    dial: std::sync::Arc<dyn Dial>,
}

impl Dialer {
    async fn run(self) {
        let (mut attempt, mut duplicates) = (0, 0);
        let mut grace = self.grace().min(STARTUP_GRACE);
        loop {
            self.unlinked().await;
            let waited = std::mem::replace(&mut grace, self.grace());
            if waited > Duration::ZERO && self.linked_within(waited).await {
                continue;
            }
            let began = Instant::now();
            match self.attempt().await {
                Ok(()) => attempt = 0,
                Err(error) if error.is_duplicate() && self.linked_within(DUPLICATE_LINK_WAIT).await => {
                    (attempt, duplicates) = (0, 0);
                }
                // The backoff continues however long the link lasted: dialling again at once would
                // only replace the other link.
                Err(error) if error.is_duplicate() => {
                    duplicates += 1;
                    if duplicates >= DUPLICATE_LINKS_MAX {
                        let alarm = Alarm::OwnIdentityInUse { peer: self.peer.clone() };
                        self.exchange.alarms().raise_for(alarm, DUPLICATE_LINKS_CLEAR_AFTER);
                    }
                }
                Err(error) => {
                    if began.elapsed() >= STABLE_LINK_MIN {
                        (attempt, duplicates) = (0, 0);
                    }
                    self.exchange.shared.peers.link_failed(&self.peer, error.to_string());
                    tracing::info!(peer = %self.peer, %error, attempt, "no link");
                }
            }
            self.linked_within(backoff(DIAL_BACKOFF, attempt)).await;
            attempt = attempt.saturating_add(1);
        }
    }

    /// Returns how long to wait for the other side to dial.
    fn grace(&self) -> Duration {
        let shared = &self.exchange.shared;
        if shared.me < self.peer || !shared.options.listens { Duration::ZERO } else { DIAL_GRACE }
    }

    async fn unlinked(&self) {
        let peers = self.exchange.peers();
        let mut changes = peers.watch();
        while peers.linked(&self.peer) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether a link opens within this time.
    async fn linked_within(&self, time: Duration) -> bool {
        let peers = self.exchange.peers();
        let mut changes = peers.watch();
        let linked = async {
            while !peers.linked(&self.peer) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(time, linked).await.is_ok()
    }

    /// Tries each endpoint of the peer in turn, and runs a link over the first that answers until
    /// it ends.
    async fn attempt(&self) -> Result<(), LinkError> {
        let endpoints = {
            let rosters = self.exchange.shared.options.rosters.load();
            rosters.newest().member(&self.peer).map(|entry| entry.endpoints.clone()).unwrap_or_default()
        };
        let mut last = LinkError::Broken("the roster lists no endpoint: the peer has to dial".into());
        for endpoint in endpoints {
            match self.dial.dial(&self.peer, &endpoint).await {
                Ok(channel) => match self.open(channel).await {
                    Ok(wire) => return self.exchange.link(&self.peer, true, wire).await,
                    Err(error) => last = LinkError::Broken(format!("{endpoint}: {error}")),
                },
                Err(error) => last = LinkError::Broken(format!("{endpoint}: {error}")),
            }
        }
        Err(last)
    }

    /// Opens a link whose received frames are charged as on a link that the peer has opened.
    async fn open(&self, channel: Channel) -> Result<Wire, String> {
        let terms = self.exchange.link_terms(&self.peer, Ok(())).map_err(|denied| denied.message().to_owned())?;
        open(channel, Some(Call::new(terms))).await
    }
}

/// Opens a link over a connection. No frame has been sent on it yet.
pub(super) async fn open(channel: Channel, call: Option<Call>) -> Result<Wire, String> {
    let (outgoing, frames) = mpsc::channel(FRAME_QUEUE_MAX);
    let requests = ReceiverStream::new(frames).map(|frame| proto::LinkRequest { frame: Some(frame) });
    let charged = call.clone();
    let channel = channel.map_response(move |response: http::Response<Body>| match charged {
        Some(call) => response.map(|body| call.charged(body, MESSAGE_BYTES_MAX)),
        None => response,
    });
    let mut client = ExchangeClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let opening = tokio::time::timeout(super::HELLO_TIMEOUT, client.link(requests)).await;
    let responses = match opening {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return Err(format!("{:?}: {}", status.code(), status.message())),
        Err(_) => return Err("no answer to the call".into()),
    };
    let incoming = responses.map(move |message| {
        // It is decoded: from here on the receiver's own bounds apply.
        drop(call.as_ref().and_then(Call::received));
        match message {
            Ok(message) => Ok(message.frame.unwrap_or_default()),
            Err(status) => Err(status.message().to_owned()),
        }
    });
    Ok(Wire { incoming: incoming.boxed(), outgoing })
}
