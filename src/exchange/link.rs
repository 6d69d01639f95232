//! Runs one link from its first frame to its last: handshake, registration, the tasks, and the
//! closing fault.
//!
//! In scope: the life cycle of a link. Out of scope: handling received frames (`receiver`),
//! choosing what to send (`sender`), dialling (`dial`).

use std::sync::Arc;
use std::time::Duration;

use barid_core::ids::Member;
use barid_core::proto;
use barid_core::proto::frame::Frame;
use futures::stream::{BoxStream, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::backfill;
use super::cancellation::CancellationToken;
use super::note_verifier::{send_attestations, verify_and_persist};
use super::priority;
use super::receiver::LinkReceiver;
use super::send_queue::SendQueue;
use super::sender::LinkSender;
use super::{ExchangeState, HELLO_TIMEOUT, NOTE_QUEUE_MAX, PROTOCOL};
use crate::clock;
use crate::telemetry::{AuditEvent, audit};

/// Backfill responses that may wait. One request is in flight at a time.
const REPLY_QUEUE_MAX: usize = 2;
/// Time allowed for the last frames.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A transport of frames, in both directions.
pub struct Wire {
    /// Frames from the peer. Ends when the peer closes the link; yields an error when the transport
    /// breaks.
    pub incoming: BoxStream<'static, Result<proto::Frame, String>>,
    /// Frames to the peer. At most a few frames wait here.
    pub outgoing: mpsc::Sender<proto::Frame>,
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer closed it in order.
    #[error("the peer closed the link")]
    Closed,
    /// The transport failed.
    #[error("the link broke: {0}")]
    Broken(String),
    /// The first frame was not a valid Hello.
    #[error("handshake failed: {0}")]
    Handshake(String),
    /// Another link to the same peer is open and has precedence.
    #[error("another link to this peer is open")]
    Duplicate,
    /// A newer link, or one dialled by the lower code, replaced it.
    #[error("another link replaced this one")]
    Replaced,
    /// The peer ended it: reason and detail.
    #[error("the peer ended the link: {0}: {1}")]
    Rejected(String, String),
    /// Nothing was received for [`super::IDLE_TIMEOUT`].
    #[error("nothing was received from the peer for {} s", super::IDLE_TIMEOUT.as_secs())]
    IdleTimeout,
    /// The peer sends requests without reading the replies.
    #[error("the peer does not read the replies to its requests")]
    SendQueueOverflow,
    /// The roster in force no longer lists the peer.
    #[error("the roster no longer lists this peer")]
    Expelled,
    /// This node's store has failed.
    #[error("the store has stopped: {0}")]
    Store(String),
    /// This node stops.
    #[error("this node is stopping")]
    Stopped,
}

impl LinkError {
    /// Returns the reason and detail of the fault to send; `None` if there is nothing to report or
    /// the transport is gone.
    fn closing_fault(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Closed | Self::Broken(_) | Self::Rejected(..) | Self::Stopped => None,
            Self::Handshake(_) => Some(("protocol", self.to_string())),
            Self::Expelled => Some(("not-allowed", self.to_string())),
            Self::Duplicate | Self::Replaced => Some(("duplicate", self.to_string())),
            Self::IdleTimeout | Self::SendQueueOverflow | Self::Store(_) => Some(("busy", self.to_string())),
        }
    }

    /// Whether the link ended because another link to this peer is open.
    pub(crate) fn is_duplicate(&self) -> bool {
        matches!(self, Self::Duplicate | Self::Replaced)
            || matches!(self, Self::Rejected(reason, _) if reason == "duplicate")
    }
}

pub(crate) async fn run(
    shared: &Arc<ExchangeState>,
    peer: &Member,
    dialled: bool,
    wire: Wire,
) -> Result<(), LinkError> {
    let outgoing = wire.outgoing.clone();
    let result = run_session(shared, peer, dialled, wire).await;
    if let Err(error) = &result {
        shared.peers.link_failed(peer, error.to_string());
        if let Some((reason, detail)) = error.closing_fault() {
            let fault = proto::Fault { feed: String::new(), reason: reason.into(), detail };
            let frame = proto::Frame { frame: Some(Frame::Fault(fault)) };
            // A peer that does not read does not receive it.
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, outgoing.send(frame)).await;
        }
    }
    result
}

async fn run_session(
    shared: &Arc<ExchangeState>,
    peer: &Member,
    dialled: bool,
    mut wire: Wire,
) -> Result<(), LinkError> {
    let hello = handshake(shared, &mut wire).await?;
    let by_lower = (shared.me < *peer) == dialled;
    let send_queue = Arc::new(SendQueue::default());
    let Some(mut registration) = shared.peers.register(peer, by_lower, &send_queue) else {
        return Err(LinkError::Duplicate);
    };
    shared.peers.hello_received(peer, &hello.software, hello.roster_version, hello.now_unix_ms);
    let reason = if dialled { "dialled" } else { "accepted" };
    audit(&AuditEvent { event: "link-opened", reason, actor: peer, resource: &"", detail: &"" });

    let (cancellation, _cancel_guard) = CancellationToken::with_guard();
    let (notes, note_queue) = mpsc::channel(NOTE_QUEUE_MAX);
    let (replies, reply_queue) = mpsc::channel(REPLY_QUEUE_MAX);
    let receiver = LinkReceiver::new(Arc::clone(shared), peer.clone(), Arc::clone(&send_queue), notes, replies);
    let priority = priority::send(Arc::clone(shared), peer.clone(), Arc::clone(&send_queue), wire.outgoing.clone());
    let sender = LinkSender::new(Arc::clone(shared), peer.clone(), Arc::clone(&send_queue), wire.outgoing);
    // Dropping the set aborts the task, also when this future is dropped.
    let mut send_task = JoinSet::new();
    send_task.spawn(sender.run());
    let mut priority_task = JoinSet::new();
    priority_task.spawn(priority);
    let mut note_task = JoinSet::new();
    note_task.spawn(verify_and_persist(Arc::clone(shared), peer.clone(), note_queue, cancellation.clone()));

    // Only attestations signed from now on; the owner requests earlier ones.
    let mut attestation_task = JoinSet::new();
    attestation_task.spawn(send_attestations(
        peer.clone(),
        Arc::clone(&send_queue),
        shared.options.committer.attestations(),
    ));

    let mut backfill_task = JoinSet::new();
    backfill_task.spawn(backfill::request_missing(
        Arc::clone(shared),
        peer.clone(),
        Arc::clone(&send_queue),
        reply_queue,
    ));

    let mut shutdown = shared.options.shutdown.clone();
    let end = tokio::select! {
        // Frames already received come first: a fault from the peer takes precedence over a broken
        // transport.
        biased;
        end = receiver.run(hello.roster_version, wire.incoming) => end,
        () = registration.replaced() => LinkError::Replaced,
        _ = shutdown.wait_for(|stop| *stop) => LinkError::Stopped,
        _ = send_task.join_next() => LinkError::Broken("no further frame can be sent".into()),
    };
    drop(registration);
    send_queue.close();
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, async {
        send_task.join_next().await;
        note_task.join_next().await;
    })
    .await;
    audit(&AuditEvent { event: "link-closed", reason, actor: peer, resource: &"", detail: &end });
    if matches!(end, LinkError::Closed) { Ok(()) } else { Err(end) }
}

async fn handshake(shared: &ExchangeState, wire: &mut Wire) -> Result<proto::Hello, LinkError> {
    let exchange = shared.own_feed().exchange.to_string();
    let hello = proto::Hello {
        protocol: PROTOCOL,
        exchange: exchange.clone(),
        software: concat!("barid ", env!("CARGO_PKG_VERSION")).into(),
        roster_version: shared.options.rosters.load().newest().version(),
        now_unix_ms: clock::unix_ms(),
    };
    let frame = proto::Frame { frame: Some(Frame::Hello(hello)) };
    wire.outgoing.send(frame).await.map_err(|_| LinkError::Broken("no frame can be sent".into()))?;
    let first = tokio::time::timeout(HELLO_TIMEOUT, wire.incoming.next()).await;
    let frame = match first {
        Err(_) => return Err(LinkError::Handshake(format!("no Hello within {} s", HELLO_TIMEOUT.as_secs()))),
        Ok(None) => return Err(LinkError::Closed),
        Ok(Some(Err(error))) => return Err(LinkError::Broken(error)),
        Ok(Some(Ok(frame))) => frame,
    };
    match frame.frame {
        Some(Frame::Hello(hello)) if hello.protocol == 0 => Err(LinkError::Handshake("protocol 0 is not valid".into())),
        Some(Frame::Hello(hello)) if hello.exchange != exchange => {
            let theirs: String = hello.exchange.chars().take(80).collect();
            Err(LinkError::Handshake(format!("the peer is of exchange {theirs}, this node is of {exchange}")))
        }
        Some(Frame::Hello(hello)) => Ok(hello),
        Some(Frame::Fault(fault)) => Err(LinkError::Rejected(fault.reason, fault.detail)),
        _ => Err(LinkError::Handshake("the first frame is not a Hello".into())),
    }
}
