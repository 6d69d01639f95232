//! The receiving task of a link: verifies incoming frames, passes entries to the committer, and
//! leaves the replies to the sender.
//!
//! In scope: dispatching frames, which feeds are followed over this link, and the outcome of their
//! batches. Out of scope: verifying a batch (`core::follow`), where a feed is followed (`upstream`,
//! `self_recovery`), signed notes (`note_verifier`), making replies (`sender`).

mod faults;
mod following;
mod recv_gossip;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use barid_core::backfill::is_missing;
use barid_core::bulletin::TopicFilter;
use barid_core::follow::{self, Fault, FaultKind, FollowState, VerifiedBatch, VerifiedContent, VerifiedEntry};
use barid_core::ids::{FeedId, Member};
use barid_core::limits::FILTERS_MAX;
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::quota::Tier;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesOrdered, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::committer::{Appended, CommitFailure};
use crate::exchange::announcements;
use crate::exchange::backfill::{BackfillReply, BackfillRequest};
use crate::exchange::equivocation;
use crate::exchange::feed_receiver::FeedReceiver;
use crate::exchange::feed_sender::FeedSender;
use crate::exchange::findings::record_findings;
use crate::exchange::frame_budget;
use crate::exchange::link::LinkError;
use crate::exchange::note_verifier::IncomingNote;
use crate::exchange::priority;
use crate::exchange::relayed_custody::CustodyForwarder;
use crate::exchange::roster_sync::{adopt_rosters, rosters_after};
use crate::exchange::self_recovery::LinkId;
use crate::exchange::send_queue::SendQueue;
use crate::exchange::{ExchangeState, IDLE_TIMEOUT, PENDING_COMMITS_MAX};
use crate::low_priority;
use crate::telemetry::AuditEvent;

/// Batches of at most this many items are verified inline; longer ones would delay other links.
const INLINE_VERIFY_ITEMS_MAX: usize = 16;
/// Delay before a feed is requested again because another link committed its entries first.
const STALE_PAUSE: Duration = Duration::from_millis(100);

type PendingCommit = BoxFuture<'static, FinishedCommit>;

struct FinishedCommit {
    feed: FeedId,
    request: u64,
    first: u64,
    /// Entries whose content the peer did not hold; other peers may.
    missing: u64,
    result: Result<Appended, CommitFailure>,
}

pub(crate) struct LinkReceiver {
    shared: Arc<ExchangeState>,
    peer: Member,
    send_queue: Arc<SendQueue>,
    notes: mpsc::Sender<IncomingNote>,
    replies: mpsc::Sender<BackfillReply>,
    feed_receivers: BTreeMap<FeedId, FeedReceiver>,
    pending_commits: FuturesOrdered<PendingCommit>,
    requested_roster: u64,
    /// When to check again which feeds of other members are followed over this link.
    next_check: Option<Instant>,
    last_received_at: Instant,
    link: LinkId,
    /// When to check again which of our own feeds are followed over this link.
    own_check_at: Option<Instant>,
    custody_forwarder: CustodyForwarder,
}

impl Drop for LinkReceiver {
    fn drop(&mut self) {
        self.shared.self_recovery.link_ended(self.link);
    }
}

impl LinkReceiver {
    pub(crate) fn new(
        shared: Arc<ExchangeState>,
        peer: Member,
        send_queue: Arc<SendQueue>,
        notes: mpsc::Sender<IncomingNote>,
        replies: mpsc::Sender<BackfillReply>,
    ) -> Self {
        Self {
            shared,
            peer,
            send_queue,
            notes,
            replies,
            next_check: None,
            feed_receivers: BTreeMap::new(),
            pending_commits: FuturesOrdered::new(),
            requested_roster: 0,
            last_received_at: Instant::now(),
            link: LinkId::next(),
            own_check_at: None,
            custody_forwarder: CustodyForwarder::new(),
        }
    }

    /// Reads until the link ends, and returns the reason.
    pub(crate) async fn run(
        mut self,
        peer_roster: u64,
        mut incoming: BoxStream<'static, Result<proto::Frame, String>>,
    ) -> LinkError {
        match self.read(peer_roster, &mut incoming).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn read(
        &mut self,
        peer_roster: u64,
        incoming: &mut BoxStream<'static, Result<proto::Frame, String>>,
    ) -> Result<std::convert::Infallible, LinkError> {
        let mut rosters = self.shared.options.rosters.watch();
        let mut links = self.shared.peers.watch();
        let (mut self_recovery, mut publish_state) =
            (self.shared.self_recovery.watch(), self.shared.options.committer.publish_state());
        let mut tier = self.shared.options.committer.tier();
        self.request_newer_roster(peer_roster);
        self.follow_peer_feeds();
        self.follow_own();
        self.request_attestations().await;
        loop {
            let retry_at = self.feed_receivers.values().filter_map(FeedReceiver::retry_at).min();
            let open = self.pending_commits.len() < PENDING_COMMITS_MAX;
            tokio::select! {
                biased;
                Some(done) = self.pending_commits.next() => self.commit_finished(done)?,
                changed = rosters.changed() => {
                    if changed.is_err() {
                        return Err(LinkError::Stopped);
                    }
                    if self.shared.options.rosters.load().newest().member(&self.peer).is_none() {
                        return Err(LinkError::Expelled);
                    }
                    self.follow_peer_feeds();
                }
                () = sleep_until(retry_at) => self.retry_follows(),
                _ = links.changed() => self.follow_peer_feeds(),
                () = sleep_until(self.next_check) => self.follow_upstream(),
                _ = self_recovery.changed() => self.follow_own(),
                _ = publish_state.changed() => self.follow_own(),
                _ = tier.changed() => {
                    if *tier.borrow_and_update() >= Tier::Digests {
                        // Attestations received meanwhile may not have been persisted.
                        self.request_attestations().await;
                        self.retry_paused();
                    }
                }
                () = sleep_until(self.own_check_at) => self.follow_own(),
                frame = incoming.next(), if open => match frame {
                    Some(Ok(frame)) => {
                        self.last_received_at = Instant::now();
                        self.receive(frame).await?;
                    }
                    Some(Err(error)) => return Err(LinkError::Broken(error)),
                    None => return Err(LinkError::Closed),
                },
                () = tokio::time::sleep_until(self.last_received_at + IDLE_TIMEOUT), if open => return Err(LinkError::IdleTimeout),
            }
            if self.send_queue.overflowed() {
                return Err(LinkError::SendQueueOverflow);
            }
        }
    }

    async fn receive(&mut self, frame: proto::Frame) -> Result<(), LinkError> {
        if let Some(frame) = &frame.frame {
            self.shared.frame_budgets.charge(&self.peer, frame_budget::cost(frame)).await;
        }
        match frame.frame {
            Some(Frame::Entries(entries)) => self.entries(entries).await?,
            Some(Frame::PriorityEntry(priority)) => self.priority(priority).await,
            Some(Frame::ReplicationProgress(stored)) => match stored.feed.parse() {
                Ok(feed) => self.send_queue.acknowledged(&feed, stored.size),
                Err(_) => self.malformed(&stored.feed, "the feed's name"),
            },
            Some(Frame::Cosigned(cosigned)) if cosigned.heartbeat_feed.is_empty() => {
                self.queue_note(IncomingNote::Cosigned(cosigned.note)).await;
            }
            Some(Frame::Cosigned(heartbeat)) => self.queue_note(IncomingNote::Heartbeat(heartbeat)).await,
            Some(Frame::Custody(custody)) => self.queue_note(IncomingNote::Custody(custody.note)).await,
            Some(Frame::TreeHeads(heads)) => self.heads(heads).await,
            Some(Frame::Follow(follow)) => self.handle_follow(&follow),
            Some(Frame::RosterRequest(request)) => {
                let rosters = rosters_after(&self.shared.options.rosters.load(), request.after);
                if !rosters.notes.is_empty() {
                    self.send_queue.push(Frame::Rosters(rosters));
                }
            }
            Some(Frame::Rosters(rosters)) => {
                adopt_rosters(&self.shared, &self.peer, &rosters.notes).await;
                self.requested_roster = 0;
            }
            Some(Frame::BackfillResponse(backfills)) => {
                // A response that was not requested is dropped while an earlier one is being
                // handled.
                let _ = self.replies.try_send(BackfillReply::BackfillResponse(backfills));
            }
            Some(Frame::ConsistencyRequest(request)) => {
                let shared = Arc::clone(&self.shared);
                let reply = tokio::task::spawn_blocking(move || shared.consistency_at(&request)).await;
                if let Ok(Some(reply)) = reply {
                    self.send_queue.push(Frame::Consistency(reply));
                }
            }
            Some(Frame::Consistency(response)) => self.queue_note(IncomingNote::Consistency(Box::new(response))).await,
            Some(Frame::AttestationsRequest(request)) => self.resend_attestations(&request).await,
            Some(Frame::RelayedCustodyRequest(request)) => {
                let feed = request.feed.clone();
                if let Err(expected) =
                    self.custody_forwarder.handle_request(&self.shared, &self.peer, &self.send_queue, request)
                {
                    self.record_malformed(&feed, expected);
                }
            }
            Some(Frame::RelayedCustody(message)) => {
                let feed = message.feed.clone();
                match self.custody_forwarder.handle_notes(&self.shared, &self.peer, message) {
                    Ok(Some(notes)) => self.queue_note(notes).await,
                    Ok(None) => {}
                    Err(expected) => self.record_malformed(&feed, expected),
                }
            }
            Some(Frame::Fault(fault)) => self.fault(&fault)?,
            // A second Hello is ignored, and so is a frame of a newer protocol version.
            Some(Frame::Hello(_)) | None => {}
        }
        Ok(())
    }

    async fn queue_note(&mut self, note: IncomingNote) {
        // The queue ends with the link.
        let _ = self.notes.send(note).await;
    }

    async fn entries(&mut self, entries: proto::Entries) -> Result<(), LinkError> {
        let Ok(feed) = entries.feed.parse::<FeedId>() else {
            self.malformed(&entries.feed, "the feed's name");
            return Ok(());
        };
        let Some(feed_receiver) = self.feed_receivers.get_mut(&feed) else {
            self.send_queue.fault(entries.feed, "not-allowed", "this feed was not asked for".into());
            return Ok(());
        };
        if self.shared.stopped_feeds.contains(&feed) {
            self.feed_receivers.remove(&feed);
            self.send_queue.fault(entries.feed, "equivocation", "two histories of this feed were seen".into());
            return Ok(());
        }
        if !feed_receiver.accepts(entries.first) {
            return Ok(());
        }
        let request = feed_receiver.request;
        let state = feed_receiver.state.clone();
        match self.verify(state, entries).await {
            Ok((state, batch)) => {
                record_findings(&self.shared, &self.peer, &feed, &batch.findings);
                announcements::verify_in_batch(&self.shared, &feed, &batch);
                self.progress(&feed, batch.checkpoint.checkpoint.size, None);
                if let Some(feed_receiver) = self.feed_receivers.get_mut(&feed) {
                    feed_receiver.state = state;
                }
                let is_own = feed.member == self.shared.me;
                let counts_as_missing = |entry: &VerifiedEntry| matches!(entry.content, VerifiedContent::Undisclosed(reason) if is_missing(reason, is_own));
                let (first, missing) =
                    (batch.first, batch.entries.iter().filter(|entry| counts_as_missing(entry)).count() as u64);
                let reply = self.shared.options.committer.submit_append(batch).await;
                self.pending_commits.push_back(Box::pin(async move {
                    let stopped = || CommitFailure::Stopped("the committer has ended".into());
                    let result = match reply {
                        Ok(reply) => reply.await.unwrap_or_else(|_| Err(stopped())),
                        Err(failure) => Err(failure),
                    };
                    FinishedCommit { feed, request, first, missing, result }
                }));
            }
            Err(fault) => self.reject(&feed, &fault),
        }
        Ok(())
    }

    async fn priority(&mut self, message: proto::PriorityEntry) {
        let Ok(feed) = message.feed.parse::<FeedId>() else {
            self.malformed(&message.feed, "the feed's name");
            return;
        };
        let newest = match self.feed_receivers.get(&feed) {
            // Own entries are accepted only in order.
            Some(feed_receiver) if !feed_receiver.is_closed() && feed.member != self.shared.me => {
                feed_receiver.state.newest.clone()
            }
            Some(_) => return,
            None => {
                self.send_queue.fault(message.feed, "not-allowed", "this feed was not asked for".into());
                return;
            }
        };
        if let Err(fault) = priority::receive(&self.shared, &self.peer, &feed, newest, message).await {
            self.reject(&feed, &fault);
        }
    }

    async fn verify(
        &mut self,
        mut state: FollowState,
        entries: proto::Entries,
    ) -> Result<(FollowState, VerifiedBatch), Fault> {
        let (rosters, me) = (self.shared.options.rosters.load(), self.shared.me.clone());
        let inline = entries.items.len() <= INLINE_VERIFY_ITEMS_MAX;
        let verify = move || {
            let batch = follow::verify_entries(&state, &entries, &rosters, &me)?;
            state.advance(&batch);
            Ok((state, batch))
        };
        if inline {
            return verify();
        }
        match low_priority::run(verify).await {
            Ok(result) => result,
            Err(_) => Err(Fault { kind: FaultKind::Malformed, detail: "verifying it ended in a panic".into() }),
        }
    }

    fn commit_finished(&mut self, done: FinishedCommit) -> Result<(), LinkError> {
        let FinishedCommit { feed, request, first, missing, result } = done;
        let Some(feed_receiver) = self.feed_receivers.get_mut(&feed) else { return Ok(()) };
        let now = Instant::now();
        match result {
            Ok(Appended { size, reduced }) => {
                let missing = missing + reduced;
                feed_receiver.succeeded();
                self.progress(&feed, size, Some(size));
                self.shared.backfill_schedule.on_batch(&self.peer, &feed, first, size, missing);
                if reduced > 0 {
                    self.shared.backfill_schedule.dropped_from(&self.peer, &feed, first);
                }
                if missing > 0 {
                    self.shared.backfill_needed.send_modify(|count| *count += 1);
                }
                self.send_queue.stored(feed, size);
            }
            Err(CommitFailure::Stopped(why)) => return Err(LinkError::Store(why)),
            // It belongs to a request that an earlier rejection already cancelled.
            Err(_) if request != feed_receiver.request => {}
            Err(CommitFailure::EntryConflict { index, proven }) => {
                feed_receiver.pause(now);
                self.send_queue.fault(
                    feed.to_string(),
                    "equivocation",
                    format!("another entry is held at index {index}"),
                );
                let (shared, peer) = (Arc::clone(&self.shared), self.peer.clone());
                let proven = proven.map(|proven| *proven);
                tokio::spawn(async move { priority::entry_equivocation(&shared, &peer, &feed, index, proven).await });
            }
            Err(failure @ CommitFailure::Stale { .. }) => {
                tracing::debug!(%feed, %failure, "asking again");
                feed_receiver.pause_for(now, STALE_PAUSE);
                self.send_queue.fault(feed.to_string(), "busy", String::new());
            }
            // When the batch arrived there was no space for other members' entries; now there is
            // space for digests.
            Err(CommitFailure::DiskFull(_)) if *self.shared.options.committer.tier().borrow() >= Tier::Digests => {
                feed_receiver.pause_for(now, STALE_PAUSE);
                self.send_queue.fault(feed.to_string(), "busy", String::new());
            }
            Err(failure) => {
                let pause = feed_receiver.pause(now);
                tracing::warn!(%feed, %failure, pause_ms = pause.as_millis(), "following pauses");
                self.send_queue.fault(feed.to_string(), "busy", failure.to_string());
            }
        }
        Ok(())
    }

    fn progress(&self, feed: &FeedId, known: u64, held: Option<u64>) {
        if feed.member != self.shared.me {
            self.shared.peers.progress(feed, known, held);
        }
    }

    /// Rejects a whole batch: the feed pauses, the others continue.
    fn reject(&mut self, feed: &FeedId, fault: &Fault) {
        let reason = fault.kind.as_str();
        let event =
            AuditEvent { event: "batch-rejected", reason, actor: &self.peer, resource: feed, detail: &fault.detail };
        self.shared.record(&self.peer, &event);
        if matches!(fault.kind, FaultKind::BadProof | FaultKind::BadRoot) {
            // The batch is invalid or of another fork. If it is a fork, the peer can prove it.
            equivocation::request_consistency(&self.shared, &self.peer, feed);
        }
        if let FaultKind::Equivocation(evidence) = &fault.kind {
            let (shared, evidence, by) = (Arc::clone(&self.shared), evidence.as_ref().clone(), self.peer.clone());
            tokio::spawn(async move { equivocation::record_fork(&shared, evidence.into(), by).await });
        }
        if feed.member == self.shared.me {
            self.feed_receivers.remove(feed);
            if !matches!(fault.kind, FaultKind::Equivocation(_)) {
                self.shared.self_recovery.rejected(feed, &self.peer);
            }
        } else if let Some(feed_receiver) = self.feed_receivers.get_mut(feed) {
            feed_receiver.pause(Instant::now());
        }
        self.send_queue.fault(feed.to_string(), reason, fault.detail.clone());
    }

    // Serving.

    fn handle_follow(&self, follow: &proto::Follow) {
        let rosters = self.shared.options.rosters.load();
        let Ok(feed) = follow.feed.parse::<FeedId>() else {
            self.malformed(&follow.feed, "the feed's name");
            return;
        };
        let known = rosters.newest().member(&self.peer).is_some() && !rosters.newest().feed_keys(&feed).is_empty();
        if !known {
            self.send_queue.fault(follow.feed.clone(), "not-allowed", "the roster has no such feed".into());
            return;
        }
        let filters: Result<Vec<TopicFilter>, _> = follow.topics.iter().map(|topic| topic.parse()).collect();
        match filters {
            Ok(filters) if filters.len() <= FILTERS_MAX && !follow.ranges.is_empty() => {
                match BackfillRequest::read(&follow.ranges, filters)
                    .map(|request| self.send_queue.backfill(feed, request))
                {
                    Ok(true) => {}
                    Ok(false) => {
                        self.send_queue.fault(
                            follow.feed.clone(),
                            "not-allowed",
                            "too many feeds are asked for".into(),
                        );
                    }
                    Err(what) => self.malformed(&follow.feed, what),
                }
            }
            Ok(filters) if filters.len() <= FILTERS_MAX => {
                if !self.send_queue.follow(feed, FeedSender::new(follow.from, filters)) {
                    self.send_queue.fault(follow.feed.clone(), "not-allowed", "too many feeds are followed".into());
                }
            }
            _ => self.malformed(&follow.feed, "the topic filters"),
        }
    }

    fn malformed(&self, feed: &str, what: &str) {
        self.record_malformed(feed, what);
        let feed: String = feed.chars().take(300).collect();
        self.send_queue.fault(feed, "malformed", format!("{what} cannot be read"));
    }

    /// Records a malformed frame that ends neither a feed nor the link.
    fn record_malformed(&self, feed: &str, what: &str) {
        self.shared.record(
            &self.peer,
            &AuditEvent {
                event: "frame-rejected",
                reason: "malformed",
                actor: &self.peer,
                resource: &feed,
                detail: &what,
            },
        );
    }
}

pub(crate) async fn sleep_until(retry_at: Option<Instant>) {
    match retry_at {
        Some(retry_at) => tokio::time::sleep_until(retry_at).await,
        None => std::future::pending().await,
    }
}
