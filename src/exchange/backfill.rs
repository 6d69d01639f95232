//! Backfill: requests missing content from a peer, commits it, and serves the requests of peers.
//!
//! In scope: one request in flight per link, each answered by one frame; verifying and committing
//! the content, and sending the custody notes about it. Out of scope: what to request
//! (`backfill_schedule`), who may read what (`core::serve`), what is stored (`core::follow`).

use std::ops::Range;
use std::sync::Arc;

use barid_core::bulletin::TopicFilter;
use barid_core::follow::{Fault, verify_backfills};
use barid_core::ids::{FeedId, Member, Undisclosed};
use barid_core::limits::{BACKFILL_RANGES_MAX, BACKFILL_SCAN_MAX, BATCH_BYTES_MAX, BATCH_ENTRIES_MAX};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::roster::RosterChain;
use barid_core::serve::{self, Held};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::announcements;
use super::backfill_schedule::{PeerContext, Request, Step};
use super::findings::record_findings;
use super::send_queue::SendQueue;
use super::{BACKFILL_TIMEOUT, ExchangeState};
use crate::committer::BackfillWork;
use crate::store::{Content, ReadError, Store};
use crate::telemetry::AuditEvent;

/// A peer's reply to a request.
pub(crate) enum BackfillReply {
    /// Content.
    BackfillResponse(proto::BackfillResponse),
    /// A fault about this feed.
    Rejected(FeedId),
}

/// A request of a peer.
#[derive(Clone, Debug)]
pub(crate) struct BackfillRequest {
    ranges: Vec<Range<u64>>,
    filters: Arc<[TopicFilter]>,
}

/// Requests missing content that `peer` may have, for as long as the link lasts.
pub(crate) async fn request_missing(
    shared: Arc<ExchangeState>,
    peer: Member,
    send_queue: Arc<SendQueue>,
    mut replies: mpsc::Receiver<BackfillReply>,
) {
    let mut needed = shared.backfill_needed.subscribe();
    let mut rosters = shared.options.rosters.watch();
    let mut tier = shared.options.committer.tier();
    loop {
        tier.mark_unchanged();
        needed.mark_unchanged();
        rosters.mark_unchanged();
        let retry_at = match plan(&shared, &peer).await {
            Some(Step::Request(request)) => {
                send_queue.push(Frame::Follow(follow_frame(&shared, &request)));
                let reply = tokio::time::timeout(BACKFILL_TIMEOUT, reply_to(&request.feed, &mut replies));
                match reply.await {
                    Ok(Some(BackfillReply::BackfillResponse(backfills))) => {
                        receive(&shared, &peer, request, backfills).await;
                    }
                    Ok(None) => return,
                    Ok(Some(BackfillReply::Rejected(_))) | Err(_) => {
                        shared.backfill_schedule.failed(&peer, &request.feed, Instant::now());
                    }
                }
                continue;
            }
            Some(Step::Wait(retry_at)) => retry_at,
            // After a read error, retry after the next commit.
            None => None,
        };
        tokio::select! {
            changed = needed.changed() => if changed.is_err() { return },
            changed = rosters.changed() => if changed.is_err() { return },
            changed = tier.changed() => if changed.is_err() { return },
            reply = replies.recv() => if reply.is_none() { return },
            () = super::receiver::sleep_until(retry_at) => {}
        }
    }
}

async fn plan(shared: &Arc<ExchangeState>, peer: &Member) -> Option<Step> {
    let (shared, peer) = (Arc::clone(shared), peer.clone());
    let planned = tokio::task::spawn_blocking(move || {
        let roster = shared.options.rosters.load().newest().version();
        let all_topics = shared.options.topics.is_empty();
        let context = PeerContext {
            me: &shared.me,
            peer: &peer,
            roster,
            all_topics,
            // Content that could not be committed is not requested.
            may_request: &|owner| shared.options.committer.may_backfill(owner, &peer),
        };
        shared.backfill_schedule.next(shared.store().as_ref(), &context, Instant::now())
    });
    match planned.await {
        Ok(Ok(step)) => Some(step),
        Ok(Err(error)) => {
            tracing::error!(%error, "what is missing cannot be read");
            None
        }
        // A panic, which has been reported.
        Err(_) => None,
    }
}

fn follow_frame(shared: &ExchangeState, request: &Request) -> proto::Follow {
    let range = |range: &Range<u64>| proto::IndexRange { start: range.start, end: range.end };
    // Of its own feeds a member requests every topic.
    let filters = shared.options.topics.iter().filter(|_| request.feed.member != shared.me);
    proto::Follow {
        feed: request.feed.to_string(),
        from: shared.store().feed(&request.feed).map_or(0, |state| state.compact_range.size()),
        topics: filters.map(|filter| filter.as_str().to_owned()).collect(),
        ranges: request.found.ranges.iter().map(range).collect(),
    }
}

/// Returns the reply to the request for this feed; replies to earlier requests are dropped.
async fn reply_to(feed: &FeedId, replies: &mut mpsc::Receiver<BackfillReply>) -> Option<BackfillReply> {
    loop {
        let reply = replies.recv().await?;
        let ours = match &reply {
            BackfillReply::BackfillResponse(backfills) => backfills.feed.parse().as_ref() == Ok(feed),
            BackfillReply::Rejected(failed) => failed == feed,
        };
        if ours {
            return Some(reply);
        }
    }
}

/// Verifies and commits the content, and sends the custody notes about it to the feed's owner, if
/// it is linked.
async fn receive(shared: &Arc<ExchangeState>, peer: &Member, request: Request, message: proto::BackfillResponse) {
    let scanned_to = message.scanned_to;
    let verified = {
        let (shared, peer, request) = (Arc::clone(shared), peer.clone(), request.clone());
        tokio::task::spawn_blocking(move || verify(&shared, &peer, &request, &message)).await
    };
    let back_off = || shared.backfill_schedule.failed(peer, &request.feed, Instant::now());
    let pending = match verified {
        Ok(Ok(pending)) => pending,
        Ok(Err(BackfillError::Fault(fault))) => {
            let (reason, resource, detail) = (fault.kind.as_str(), &request.feed, &fault.detail);
            shared.record(peer, &AuditEvent { event: "batch-rejected", reason, actor: peer, resource, detail });
            return back_off();
        }
        Ok(Err(BackfillError::Read(error))) => {
            tracing::error!(feed = %request.feed, %error, "what is missing cannot be read");
            return back_off();
        }
        // A panic, which has been reported.
        Err(_) => return back_off(),
    };
    record_findings(shared, peer, &request.feed, &pending.backfills.findings);
    announcements::verify_in_backfill(shared, &request.feed, &pending.backfills);
    if pending.backfills.entries.is_empty() {
        return shared.backfill_schedule.on_response(peer, &request, scanned_to, 0);
    }
    match shared.options.committer.backfill(pending).await {
        Ok(backfilled) => {
            for note in backfilled.custody {
                // An owner without a link requests them on its next link.
                shared.peers.send(&request.feed.member, Frame::Custody(proto::Custody { note }));
            }
            shared.backfill_schedule.on_response(peer, &request, scanned_to, backfilled.entries);
        }
        Err(failure) => {
            tracing::warn!(feed = %request.feed, %failure, "content that came late could not be kept");
            back_off();
        }
    }
}

enum BackfillError {
    Fault(Fault),
    Read(ReadError),
}

fn verify(
    shared: &ExchangeState,
    peer: &Member,
    request: &Request,
    message: &proto::BackfillResponse,
) -> Result<BackfillWork, BackfillError> {
    let (store, feed) = (shared.store(), &request.feed);
    let indexes: Vec<u64> = message.items.iter().take(BATCH_ENTRIES_MAX).map(|item| item.index).collect();
    // A response out of order is rejected below in any case.
    let missing =
        if indexes.is_sorted() { store.missing(feed, &indexes).map_err(BackfillError::Read)? } else { Vec::new() };
    let missing = indexes.into_iter().zip(missing).filter_map(|(index, missing)| Some((index, missing?))).collect();
    let rosters = shared.options.rosters.load();
    // Our own entries are charged to ourselves, whichever peer returns them.
    let upstream = if feed.member == shared.me { &shared.me } else { peer };
    let backfills = verify_backfills(feed, upstream, message, &request.found.ranges, &missing, &rosters, &shared.me)
        .map_err(BackfillError::Fault)?;
    let not_held = match (backfills.entries.first(), backfills.entries.last()) {
        (Some(first), Some(last)) => {
            not_held(store.as_ref(), feed, first.index..last.index + 1).map_err(BackfillError::Read)?
        }
        _ => Vec::new(),
    };
    Ok(BackfillWork { backfills, not_held })
}

/// Returns all ranges in `range` that are held as digests.
fn not_held(store: &dyn Store, feed: &FeedId, range: Range<u64>) -> Result<Vec<(Range<u64>, Undisclosed)>, ReadError> {
    let mut all = Vec::new();
    let mut next = range.start;
    while next < range.end {
        let held = store.undisclosed_ranges_from(feed, next, BACKFILL_RANGES_MAX)?;
        let Some((last, _)) = held.last() else { break };
        next = last.end;
        all.extend(held.into_iter().filter(|(part, _)| part.start < range.end));
    }
    Ok(all)
}

impl BackfillRequest {
    /// Parses a peer's request.
    ///
    /// # Errors
    /// Which part of it is malformed.
    pub(crate) fn read(ranges: &[proto::IndexRange], filters: Vec<TopicFilter>) -> Result<Self, &'static str> {
        if ranges.len() > BACKFILL_RANGES_MAX {
            return Err("the number of ranges");
        }
        let ranges: Vec<Range<u64>> = ranges.iter().map(|range| range.start..range.end).collect();
        if ranges.iter().any(Range::is_empty) || !ranges.is_sorted_by(|a, b| a.end <= b.start) {
            return Err("the order of the ranges");
        }
        Ok(Self { ranges, filters: filters.into() })
    }

    /// Returns the content that `recipient` may read, as much as fits one frame, after scanning a
    /// bounded number of entries. `history`: whether members that joined later may read our own
    /// feed's earlier entries. Blocks.
    pub(crate) fn reply(
        &self,
        store: &dyn Store,
        feed: &FeedId,
        recipient: &Member,
        rosters: &RosterChain,
        history: bool,
    ) -> Result<proto::BackfillResponse, ReadError> {
        let mut backfills = proto::BackfillResponse { feed: feed.to_string(), ..proto::BackfillResponse::default() };
        let (mut scanned, mut bytes) = (0, 0);
        for range in &self.ranges {
            let mut index = range.start;
            while index < range.end {
                if scanned >= BACKFILL_SCAN_MAX {
                    backfills.scanned_to = index;
                    return Ok(backfills);
                }
                let count = usize::try_from(range.end - index).unwrap_or(usize::MAX).min(BATCH_ENTRIES_MAX);
                let entries = store.entries(feed, index, count, BATCH_BYTES_MAX)?;
                if entries.is_empty() {
                    break;
                }
                for entry in entries.iter().take_while(|entry| entry.index < range.end) {
                    let held = match &entry.content {
                        Content::Disclosed { envelope, header } => {
                            Held::Disclosed { envelope, header: header.as_deref() }
                        }
                        Content::Undisclosed(reason) => Held::Undisclosed(*reason),
                    };
                    let visible = serve::backfills([(entry.index, held)], recipient, &self.filters, rosters, history);
                    for backfill in visible {
                        let full = backfills.items.len() >= BATCH_ENTRIES_MAX
                            || bytes + backfill.envelope.len() > BATCH_BYTES_MAX;
                        if full && !backfills.items.is_empty() {
                            backfills.scanned_to = entry.index;
                            return Ok(backfills);
                        }
                        bytes += backfill.envelope.len();
                        backfills.items.push(backfill);
                    }
                    index = entry.index + 1;
                    scanned += 1;
                }
            }
        }
        backfills.scanned_to = self.ranges.last().map_or(0, |range| range.end);
        Ok(backfills)
    }
}
