//! The writing task of a link: answers first, then one batch of each followed feed in turn, heads and heartbeats between them.

use std::collections::BTreeMap;
use std::sync::Arc;

use barid_core::names::{FeedId, Member};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::fills::FillRequest;
use super::heads::Told;
use super::outbox::{Next, Outbox};
use super::provider::{Batch, Provider};
use super::{HEADS_EVERY, HEARTBEAT_EVERY, Shared};
use crate::background;
use crate::causes;
use crate::clock;
use crate::store::ReadError;

pub(crate) struct Writer {
    shared: Arc<Shared>,
    peer: Member,
    outbox: Arc<Outbox>,
    outgoing: mpsc::Sender<proto::Frame>,
    told: Told,
    told_at: Option<Instant>,
    untold: bool,
    sent_at: Instant,
}

/// The transport takes nothing more.
struct Gone;

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        peer: Member,
        outbox: Arc<Outbox>,
        outgoing: mpsc::Sender<proto::Frame>,
    ) -> Self {
        let told = Told::default();
        Self { shared, peer, outbox, outgoing, told, told_at: None, untold: true, sent_at: Instant::now() }
    }

    /// Writes until the outbox is closed or the transport takes nothing more.
    pub(crate) async fn run(mut self) {
        // The transport is gone: the reader notices the same and ends the link.
        let _ = self.write().await;
    }

    async fn write(&mut self) -> Result<(), Gone> {
        let mut commits = self.shared.options.committer.watch();
        let mut rosters = self.shared.options.rosters.watch();
        let mut lists = self.shared.options.revocations.watch();
        // Feeds that had nothing to send since the last commit, by cursor.
        let mut tried: BTreeMap<FeedId, u64> = BTreeMap::new();
        loop {
            if rosters.has_changed().unwrap_or(false) {
                // Told before what is published by it.
                self.told_at = None;
            }
            if commits.has_changed().unwrap_or(false) || rosters.has_changed().unwrap_or(false) {
                commits.mark_unchanged();
                rosters.mark_unchanged();
                tried.clear();
                self.untold = true;
            }
            if lists.has_changed().unwrap_or(false) {
                lists.mark_unchanged();
                self.untold = true;
            }
            self.untold |= self.outbox.take_heads_changed();
            if self.untold && self.heads_due().is_none_or(|due| due <= Instant::now()) {
                self.tell().await?;
            }
            match self.outbox.next(&tried) {
                Next::Frame(frame) => self.send(frame).await?,
                Next::Fill(feed, request) => self.fill(feed, request).await?,
                Next::Batch(feed, provider) => self.provide(feed, &provider, &mut tried).await?,
                Next::Closed => return Ok(()),
                Next::Nothing => {
                    let heads_due = self.heads_due().filter(|_| self.untold);
                    let beat_due = self.sent_at + HEARTBEAT_EVERY;
                    tokio::select! {
                        () = self.outbox.woken() => {}
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
                        Ok(()) = lists.changed() => lists.mark_changed(),
                        () = tokio::time::sleep_until(heads_due.unwrap_or(beat_due)) => {}
                        () = self.outgoing.closed() => return Err(Gone),
                    }
                    if self.sent_at + HEARTBEAT_EVERY <= Instant::now() {
                        self.beat().await?;
                    }
                }
            }
        }
    }

    async fn send(&mut self, frame: Frame) -> Result<(), Gone> {
        self.sent_at = Instant::now();
        self.outgoing.send(proto::Frame { frame: Some(frame) }).await.map_err(|_| Gone)
    }

    async fn provide(
        &mut self,
        feed: FeedId,
        provider: &Provider,
        tried: &mut BTreeMap<FeedId, u64>,
    ) -> Result<(), Gone> {
        match self.batch(&feed, provider).await {
            Ok(Some(Batch { entries, end, bytes })) => {
                let permit = self.outgoing.reserve().await.map_err(|_| Gone)?;
                // Before it leaves: its answer may come at once.
                self.outbox.sent(&feed, provider, end, bytes);
                permit.send(proto::Frame { frame: Some(Frame::Entries(entries)) });
                self.sent_at = Instant::now();
            }
            Ok(None) => {
                tried.insert(feed, provider.cursor());
            }
            Err(error) => {
                tracing::error!(%feed, peer = %self.peer, error = causes::in_one_line(&error), "entries cannot be read for a peer");
                self.outbox.unfollow(&feed);
                self.outbox.fault(feed.to_string(), "busy", "the entries cannot be read now".into());
            }
        }
        Ok(())
    }

    async fn fill(&mut self, feed: FeedId, request: FillRequest) -> Result<(), Gone> {
        let (shared, peer, name) = (Arc::clone(&self.shared), self.peer.clone(), feed.to_string());
        let made = background::run(move || {
            let rosters = shared.options.rosters.load();
            let history = shared.options.share_history && feed.member == shared.me;
            request.answer(shared.store().as_ref(), &feed, &peer, &rosters, history)
        });
        match made.await.unwrap_or_else(|_| Err(ReadError::Damaged("reading ended in a panic".into()))) {
            Ok(fills) => self.send(Frame::Fills(fills)).await,
            Err(error) => {
                tracing::error!(feed = name, peer = %self.peer, error = causes::in_one_line(&error), "entries cannot be read for a peer");
                // Nothing was looked at: it asks again later.
                self.send(Frame::Fills(proto::Fills { feed: name, ..proto::Fills::default() })).await
            }
        }
    }

    async fn batch(&self, feed: &FeedId, provider: &Provider) -> Result<Option<Batch>, ReadError> {
        let store = self.shared.store();
        let rosters = self.shared.options.rosters.load();
        if provider.is_live(store.as_ref(), feed) {
            // The newest entries lie in memory.
            return provider.batch(store.as_ref(), feed, &self.peer, &rosters);
        }
        let (store, feed, peer, provider) = (Arc::clone(store), feed.clone(), self.peer.clone(), provider.clone());
        let made = background::run(move || provider.batch(store.as_ref(), &feed, &peer, &rosters)).await;
        made.unwrap_or_else(|_| Err(ReadError::Damaged("reading ended in a panic".into())))
    }

    fn heads_due(&self) -> Option<Instant> {
        self.told_at.map(|at| at + HEADS_EVERY)
    }

    async fn tell(&mut self) -> Result<(), Gone> {
        self.told_at = Some(Instant::now());
        let (shared, peer, mut told) = (Arc::clone(&self.shared), self.peer.clone(), std::mem::take(&mut self.told));
        let next = tokio::task::spawn_blocking(move || {
            let heads = told.next(&shared, &peer);
            (told, heads)
        });
        let Ok((told, heads)) = next.await else { return Ok(()) };
        self.untold = told.more;
        self.told = told;
        match heads {
            Ok(Some(heads)) => self.send(Frame::Heads(heads)).await,
            Ok(None) => Ok(()),
            Err(error) => {
                tracing::error!(peer = %self.peer, error = causes::in_one_line(&error), "heads cannot be read");
                self.untold = true;
                Ok(())
            }
        }
    }

    async fn beat(&mut self) -> Result<(), Gone> {
        let frame = match self.shared.options.committer.heartbeat(clock::unix_seconds()) {
            Some(beat) => Frame::Cosigned(beat),
            None => Frame::Heads(proto::Heads {
                roster_version: self.shared.options.rosters.load().newest().version(),
                ..proto::Heads::default()
            }),
        };
        self.send(frame).await
    }
}
