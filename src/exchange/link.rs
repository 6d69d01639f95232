//! One link from its first frame to its last: greeting, becoming the link to a peer, the two tasks, and the end.

use std::sync::Arc;
use std::time::Duration;

use barid_core::names::Member;
use barid_core::proto;
use barid_core::proto::frame::Frame;
use futures::stream::{BoxStream, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::answers::{keep_all, tell_all};
use super::ended::Ended;
use super::express;
use super::fills;
use super::outbox::Outbox;
use super::reader::Reader;
use super::writer::Writer;
use super::{HELLO_WAIT, NOTES_WAITING_MAX, PROTOCOL, Shared};
use crate::clock;
use crate::telemetry::{AuditEvent, audit};

/// Answers to requests for missing content that may wait: one request is on its way at a time.
const ANSWERS_WAITING_MAX: usize = 2;
/// How long the last frames may take.
const FAREWELL_WAIT: Duration = Duration::from_secs(1);

/// Frames in and out, whatever carries them.
pub struct Wire {
    /// What the peer says; ends when the peer closes; an error when the transport breaks.
    pub incoming: BoxStream<'static, Result<proto::Frame, String>>,
    /// What is said to the peer; at most a few frames wait here.
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
    /// The first frame was not what it must be.
    #[error("the peer did not greet as it must: {0}")]
    Greeting(String),
    /// Another link to the same peer is open, and stays.
    #[error("another link to this peer is open")]
    Duplicate,
    /// A newer link, or the one that the lower code dialled, took over.
    #[error("another link took over")]
    Replaced,
    /// The peer ended it, and said why.
    #[error("the peer ended the link: {0}: {1}")]
    Refused(String, String),
    /// Nothing was heard for too long.
    #[error("nothing was heard from the peer for {} s", super::SILENCE_MAX.as_secs())]
    Silent,
    /// The peer sends without reading our answers.
    #[error("the peer does not read what it is answered")]
    Flood,
    /// The roster in force does not list the peer any more.
    #[error("the roster no longer lists this peer")]
    Expelled,
    /// This node's store has failed.
    #[error("the store has stopped: {0}")]
    Store(String),
    /// This node stops.
    #[error("this node stops")]
    Stopped,
}

impl LinkError {
    /// What the peer is told: a stable word and a sentence; `None` when there is nothing to tell or nobody to hear it.
    fn farewell(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Closed | Self::Broken(_) | Self::Refused(..) | Self::Stopped => None,
            Self::Greeting(_) => Some(("protocol", self.to_string())),
            Self::Expelled => Some(("not-allowed", self.to_string())),
            Self::Duplicate | Self::Replaced => Some(("duplicate", self.to_string())),
            Self::Silent | Self::Flood | Self::Store(_) => Some(("busy", self.to_string())),
        }
    }

    /// Whether the link to this peer is in order all the same, by another stream.
    pub(crate) fn is_double(&self) -> bool {
        matches!(self, Self::Duplicate | Self::Replaced)
            || matches!(self, Self::Refused(word, _) if word == "duplicate")
    }
}

pub(crate) async fn run(shared: &Arc<Shared>, peer: &Member, dialled: bool, wire: Wire) -> Result<(), LinkError> {
    let outgoing = wire.outgoing.clone();
    let result = speak(shared, peer, dialled, wire).await;
    if let Err(error) = &result {
        shared.peers.failed(peer, error.to_string());
        if let Some((reason, detail)) = error.farewell() {
            let fault = proto::Fault { feed: String::new(), reason: reason.into(), detail };
            let frame = proto::Frame { frame: Some(Frame::Fault(fault)) };
            // A peer that does not read does not hear it.
            let _ = tokio::time::timeout(FAREWELL_WAIT, outgoing.send(frame)).await;
        }
    }
    result
}

async fn speak(shared: &Arc<Shared>, peer: &Member, dialled: bool, mut wire: Wire) -> Result<(), LinkError> {
    let hello = greet(shared, &mut wire).await?;
    let by_lower = (shared.me < *peer) == dialled;
    let outbox = Arc::new(Outbox::default());
    let Some(mut registration) = shared.peers.register(peer, by_lower, &outbox) else {
        return Err(LinkError::Duplicate);
    };
    shared.peers.greeted(peer, &hello.software, hello.roster_version, hello.now_unix_ms);
    let reason = if dialled { "dialled" } else { "accepted" };
    audit(&AuditEvent { what: "link-opened", reason, who: peer, subject: &"", detail: &"" });

    let (ended, _ends) = Ended::with_guard();
    let (signed, waiting) = mpsc::channel(NOTES_WAITING_MAX);
    let (answers, answered) = mpsc::channel(ANSWERS_WAITING_MAX);
    let reader = Reader::new(Arc::clone(shared), peer.clone(), Arc::clone(&outbox), signed, answers);
    let express = express::send(Arc::clone(shared), peer.clone(), Arc::clone(&outbox), wire.outgoing.clone());
    let writer = Writer::new(Arc::clone(shared), peer.clone(), Arc::clone(&outbox), wire.outgoing);
    // Dropping the set ends both tasks, also when this future is dropped.
    let mut writing = JoinSet::new();
    writing.spawn(writer.run());
    let mut expressing = JoinSet::new();
    expressing.spawn(express);
    let mut keeping = JoinSet::new();
    keeping.spawn(keep_all(Arc::clone(shared), peer.clone(), waiting, ended.clone()));

    // From now on; what was said before the owner asks for.
    let mut telling = JoinSet::new();
    telling.spawn(tell_all(peer.clone(), Arc::clone(&outbox), shared.options.committer.said()));

    let mut asking = JoinSet::new();
    asking.spawn(fills::ask(Arc::clone(shared), peer.clone(), Arc::clone(&outbox), answered));

    let mut shutdown = shared.options.shutdown.clone();
    let end = tokio::select! {
        // What the peer still said comes first: a link that it ends for a reason does not end as a broken line.
        biased;
        end = reader.run(hello.roster_version, wire.incoming) => end,
        () = registration.replaced() => LinkError::Replaced,
        _ = shutdown.wait_for(|stop| *stop) => LinkError::Stopped,
        _ = writing.join_next() => LinkError::Broken("nothing more can be sent".into()),
    };
    drop(registration);
    outbox.close();
    let _ = tokio::time::timeout(FAREWELL_WAIT, async {
        writing.join_next().await;
        keeping.join_next().await;
    })
    .await;
    audit(&AuditEvent { what: "link-ended", reason, who: peer, subject: &"", detail: &end });
    if matches!(end, LinkError::Closed) { Ok(()) } else { Err(end) }
}

async fn greet(shared: &Shared, wire: &mut Wire) -> Result<proto::Hello, LinkError> {
    let exchange = shared.own_feed().exchange.to_string();
    let hello = proto::Hello {
        protocol: PROTOCOL,
        exchange: exchange.clone(),
        software: concat!("barid ", env!("CARGO_PKG_VERSION")).into(),
        roster_version: shared.options.rosters.load().newest().version(),
        now_unix_ms: clock::unix_ms(),
    };
    let frame = proto::Frame { frame: Some(Frame::Hello(hello)) };
    wire.outgoing.send(frame).await.map_err(|_| LinkError::Broken("nothing can be sent".into()))?;
    let first = tokio::time::timeout(HELLO_WAIT, wire.incoming.next()).await;
    let frame = match first {
        Err(_) => return Err(LinkError::Greeting("it said nothing".into())),
        Ok(None) => return Err(LinkError::Closed),
        Ok(Some(Err(error))) => return Err(LinkError::Broken(error)),
        Ok(Some(Ok(frame))) => frame,
    };
    match frame.frame {
        Some(Frame::Hello(hello)) if hello.protocol == 0 => Err(LinkError::Greeting("protocol 0".into())),
        Some(Frame::Hello(hello)) if hello.exchange != exchange => {
            let theirs: String = hello.exchange.chars().take(80).collect();
            Err(LinkError::Greeting(format!("it is of exchange {theirs}, this one is {exchange}")))
        }
        Some(Frame::Hello(hello)) => Ok(hello),
        Some(Frame::Fault(fault)) => Err(LinkError::Refused(fault.reason, fault.detail)),
        _ => Err(LinkError::Greeting("its first frame is no Hello".into())),
    }
}
