//! The sending task of a link: sends replies first, then one batch of each followed feed in turn,
//! with tree heads and heartbeats between them.
//!
//! In scope: when to send each kind of frame. Out of scope: the order of queued frames
//! (`send_queue`), making a batch (`feed_sender`), urgent entries (`priority`).

use std::collections::BTreeMap;
use std::sync::Arc;

use barid_core::ids::{FeedId, Member};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::backfill::BackfillRequest;
use super::feed_sender::{Batch, FeedSender};
use super::send_queue::{Next, SendQueue};
use super::tree_heads::SentHeads;
use super::{ExchangeState, HEARTBEAT_INTERVAL, TREE_HEADS_INTERVAL};
use crate::clock;
use crate::error_chain;
use crate::low_priority;
use crate::store::ReadError;

pub(crate) struct LinkSender {
    shared: Arc<ExchangeState>,
    peer: Member,
    send_queue: Arc<SendQueue>,
    outgoing: mpsc::Sender<proto::Frame>,
    sent_heads: SentHeads,
    heads_sent_at: Option<Instant>,
    heads_pending: bool,
    sent_at: Instant,
}

/// The transport accepts no more frames.
struct TransportClosed;

impl LinkSender {
    pub(crate) fn new(
        shared: Arc<ExchangeState>,
        peer: Member,
        send_queue: Arc<SendQueue>,
        outgoing: mpsc::Sender<proto::Frame>,
    ) -> Self {
        let sent_heads = SentHeads::default();
        Self {
            shared,
            peer,
            send_queue,
            outgoing,
            sent_heads,
            heads_sent_at: None,
            heads_pending: true,
            sent_at: Instant::now(),
        }
    }

    /// Sends until the send queue is closed or the transport accepts no more frames.
    pub(crate) async fn run(mut self) {
        // If the transport is gone, the receiver notices it too and ends the link.
        let _ = self.send_all().await;
    }

    async fn send_all(&mut self) -> Result<(), TransportClosed> {
        let mut commits = self.shared.options.committer.watch();
        let mut rosters = self.shared.options.rosters.watch();
        let mut crl_versions = self.shared.options.revocations.watch();
        // Feeds that have had nothing to send since the last commit, with their cursors.
        let mut caught_up: BTreeMap<FeedId, u64> = BTreeMap::new();
        loop {
            if rosters.has_changed().unwrap_or(false) {
                // Announce a new roster before the entries published under it.
                self.heads_sent_at = None;
            }
            if commits.has_changed().unwrap_or(false) || rosters.has_changed().unwrap_or(false) {
                commits.mark_unchanged();
                rosters.mark_unchanged();
                caught_up.clear();
                self.heads_pending = true;
            }
            if crl_versions.has_changed().unwrap_or(false) {
                crl_versions.mark_unchanged();
                self.heads_pending = true;
            }
            self.heads_pending |= self.send_queue.take_heads_changed();
            if self.heads_pending && self.next_heads_at().is_none_or(|at| at <= Instant::now()) {
                self.send_heads().await?;
            }
            match self.send_queue.next(&caught_up) {
                Next::Frame(frame) => self.send(frame).await?,
                Next::Backfill(feed, request) => self.send_backfill(feed, request).await?,
                Next::Batch(feed, feed_sender) => self.send_batch(feed, &feed_sender, &mut caught_up).await?,
                Next::Closed => return Ok(()),
                Next::Idle => {
                    let next_heads_at = self.next_heads_at().filter(|_| self.heads_pending);
                    let next_heartbeat_at = self.sent_at + HEARTBEAT_INTERVAL;
                    tokio::select! {
                        () = self.send_queue.notified() => {}
                        changed = commits.changed() => {
                            if changed.is_err() {
                                return Ok(());
                            }
                            commits.mark_changed();
                        }
                        changed = rosters.changed() => {
                            if changed.is_err() {
                                return Ok(());
                            }
                            rosters.mark_changed();
                        }
                        Ok(()) = crl_versions.changed() => crl_versions.mark_changed(),
                        () = tokio::time::sleep_until(next_heads_at.unwrap_or(next_heartbeat_at)) => {}
                        () = self.outgoing.closed() => return Err(TransportClosed),
                    }
                    if self.sent_at + HEARTBEAT_INTERVAL <= Instant::now() {
                        self.heartbeat().await?;
                    }
                }
            }
        }
    }

    async fn send(&mut self, frame: Frame) -> Result<(), TransportClosed> {
        self.sent_at = Instant::now();
        self.outgoing.send(proto::Frame { frame: Some(frame) }).await.map_err(|_| TransportClosed)
    }

    async fn send_batch(
        &mut self,
        feed: FeedId,
        feed_sender: &FeedSender,
        caught_up: &mut BTreeMap<FeedId, u64>,
    ) -> Result<(), TransportClosed> {
        match self.batch(&feed, feed_sender).await {
            Ok(Some(Batch { entries, end, bytes })) => {
                let permit = self.outgoing.reserve().await.map_err(|_| TransportClosed)?;
                // Record it before it is sent: the acknowledgement may arrive at once.
                self.send_queue.sent(&feed, feed_sender, end, bytes);
                permit.send(proto::Frame { frame: Some(Frame::Entries(entries)) });
                self.sent_at = Instant::now();
            }
            Ok(None) => {
                caught_up.insert(feed, feed_sender.cursor());
            }
            Err(error) => {
                tracing::error!(%feed, peer = %self.peer, error = error_chain::one_line(&error), "entries cannot be read for a peer");
                self.send_queue.unfollow(&feed);
                self.send_queue.fault(feed.to_string(), "busy", "the entries cannot be read now".into());
            }
        }
        Ok(())
    }

    async fn send_backfill(&mut self, feed: FeedId, request: BackfillRequest) -> Result<(), TransportClosed> {
        let (shared, peer, name) = (Arc::clone(&self.shared), self.peer.clone(), feed.to_string());
        let made = low_priority::run(move || {
            let rosters = shared.options.rosters.load();
            let history = shared.options.backfill_new_members && feed.member == shared.me;
            request.reply(shared.store().as_ref(), &feed, &peer, &rosters, history)
        });
        match made.await.unwrap_or_else(|_| Err(ReadError::Damaged("reading panicked".into()))) {
            Ok(backfills) => self.send(Frame::BackfillResponse(backfills)).await,
            Err(error) => {
                tracing::error!(feed = name, peer = %self.peer, error = error_chain::one_line(&error), "entries cannot be read for a peer");
                // Nothing was scanned, so the peer requests it again later.
                self.send(Frame::BackfillResponse(proto::BackfillResponse {
                    feed: name,
                    ..proto::BackfillResponse::default()
                }))
                .await
            }
        }
    }

    async fn batch(&self, feed: &FeedId, feed_sender: &FeedSender) -> Result<Option<Batch>, ReadError> {
        let store = self.shared.store();
        let rosters = self.shared.options.rosters.load();
        if feed_sender.is_live(store.as_ref(), feed) {
            // The newest entries are in memory.
            return feed_sender.batch(store.as_ref(), feed, &self.peer, &rosters);
        }
        let (store, feed, peer, feed_sender) =
            (Arc::clone(store), feed.clone(), self.peer.clone(), feed_sender.clone());
        let made = low_priority::run(move || feed_sender.batch(store.as_ref(), &feed, &peer, &rosters)).await;
        made.unwrap_or_else(|_| Err(ReadError::Damaged("reading panicked".into())))
    }

    fn next_heads_at(&self) -> Option<Instant> {
        self.heads_sent_at.map(|at| at + TREE_HEADS_INTERVAL)
    }

    async fn send_heads(&mut self) -> Result<(), TransportClosed> {
        self.heads_sent_at = Some(Instant::now());
        let (shared, peer, mut sent_heads) =
            (Arc::clone(&self.shared), self.peer.clone(), std::mem::take(&mut self.sent_heads));
        let next = tokio::task::spawn_blocking(move || {
            let heads = sent_heads.next(&shared, &peer);
            (sent_heads, heads)
        });
        let Ok((sent_heads, heads)) = next.await else { return Ok(()) };
        self.heads_pending = sent_heads.incomplete;
        self.sent_heads = sent_heads;
        match heads {
            Ok(Some(heads)) => self.send(Frame::TreeHeads(heads)).await,
            Ok(None) => Ok(()),
            Err(error) => {
                tracing::error!(peer = %self.peer, error = error_chain::one_line(&error), "tree heads cannot be read");
                self.heads_pending = true;
                Ok(())
            }
        }
    }

    async fn heartbeat(&mut self) -> Result<(), TransportClosed> {
        let frame = match self.shared.options.committer.heartbeat(clock::unix_seconds()) {
            Some(heartbeat) => Frame::Cosigned(heartbeat),
            None => Frame::TreeHeads(proto::TreeHeads {
                roster_version: self.shared.options.rosters.load().newest().version(),
                ..proto::TreeHeads::default()
            }),
        };
        self.send(frame).await
    }
}
