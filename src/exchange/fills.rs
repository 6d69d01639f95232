//! Content that is missing here: asking a peer for it, taking it, and answering a peer that asks.
//!
//! In scope: one request on its way a link, each answered by one frame; verifying and committing what came, and the custody notes about it.
//! Out of scope: what to ask for (`gaps`), who may be shown what (`core::provide`), what is kept (`core::follow`).

use std::ops::Range;
use std::sync::Arc;

use barid_core::bulletin::TopicFilter;
use barid_core::follow::{Fault, verify_fills};
use barid_core::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, FILL_RANGES_MAX, FILL_SCAN_MAX};
use barid_core::names::{FeedId, Member, Undisclosed};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::provide::{self, Held};
use barid_core::roster::RosterChain;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::findings::tell_findings;
use super::gaps::{Asker, Request, Step};
use super::outbox::Outbox;
use super::told;
use super::{FILL_WAIT_MAX, Shared};
use crate::committer::Filling;
use crate::store::{Content, ReadError, Store};
use crate::telemetry::AuditEvent;

/// What a peer said to a request.
pub(crate) enum Answer {
    /// Content.
    Fills(proto::Fills),
    /// It refused something of this feed.
    Refused(FeedId),
}

/// What a peer asked for.
#[derive(Clone, Debug)]
pub(crate) struct FillRequest {
    ranges: Vec<Range<u64>>,
    filters: Arc<[TopicFilter]>,
}

/// Asks `peer` for what is missing here and it may have, for as long as the link lasts.
pub(crate) async fn ask(shared: Arc<Shared>, peer: Member, outbox: Arc<Outbox>, mut answers: mpsc::Receiver<Answer>) {
    let mut gaps = shared.new_gaps.subscribe();
    let mut rosters = shared.options.rosters.watch();
    let mut tier = shared.options.committer.tier();
    loop {
        tier.mark_unchanged();
        gaps.mark_unchanged();
        rosters.mark_unchanged();
        let due = match plan(&shared, &peer).await {
            Some(Step::Ask(request)) => {
                outbox.push(Frame::Follow(asking(&shared, &request)));
                let answer = tokio::time::timeout(FILL_WAIT_MAX, answer_to(&request.feed, &mut answers));
                match answer.await {
                    Ok(Some(Answer::Fills(fills))) => take(&shared, &peer, request, fills).await,
                    Ok(None) => return,
                    Ok(Some(Answer::Refused(_))) | Err(_) => {
                        shared.gaps.refused(&peer, &request.feed, Instant::now());
                    }
                }
                continue;
            }
            Some(Step::Wait(due)) => due,
            // What cannot be read now may be read after the next commit.
            None => None,
        };
        tokio::select! {
            changed = gaps.changed() => if changed.is_err() { return },
            changed = rosters.changed() => if changed.is_err() { return },
            changed = tier.changed() => if changed.is_err() { return },
            answer = answers.recv() => if answer.is_none() { return },
            () = super::reader::sleep_until(due) => {}
        }
    }
}

async fn plan(shared: &Arc<Shared>, peer: &Member) -> Option<Step> {
    let (shared, peer) = (Arc::clone(shared), peer.clone());
    let planned = tokio::task::spawn_blocking(move || {
        let roster = shared.options.rosters.load().newest().version();
        let everything = shared.options.topics.is_empty();
        let asker = Asker {
            me: &shared.me,
            peer: &peer,
            roster,
            everything,
            // What could not be taken is not asked for.
            may_ask: &|owner| shared.options.committer.may_ask(owner, &peer),
        };
        shared.gaps.next(shared.store().as_ref(), &asker, Instant::now())
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

fn asking(shared: &Shared, request: &Request) -> proto::Follow {
    let range = |range: &Range<u64>| proto::IndexRange { start: range.start, end: range.end };
    // Of its own a member wants everything back.
    let filters = shared.options.topics.iter().filter(|_| request.feed.member != shared.me);
    proto::Follow {
        feed: request.feed.to_string(),
        from: shared.store().feed(&request.feed).map_or(0, |state| state.frontier.size()),
        topics: filters.map(|filter| filter.as_str().to_owned()).collect(),
        ranges: request.found.ranges.iter().map(range).collect(),
    }
}

/// What is said to the request for this feed; what was said to earlier ones is passed over.
async fn answer_to(feed: &FeedId, answers: &mut mpsc::Receiver<Answer>) -> Option<Answer> {
    loop {
        let answer = answers.recv().await?;
        let ours = match &answer {
            Answer::Fills(fills) => fills.feed.parse().as_ref() == Ok(feed),
            Answer::Refused(refused) => refused == feed,
        };
        if ours {
            return Some(answer);
        }
    }
}

/// Verifies and commits what came, and sends the custody notes about it to the feed's owner, if it is linked.
async fn take(shared: &Arc<Shared>, peer: &Member, request: Request, message: proto::Fills) {
    let through = message.through;
    let verified = {
        let (shared, peer, request) = (Arc::clone(shared), peer.clone(), request.clone());
        tokio::task::spawn_blocking(move || verify(&shared, &peer, &request, &message)).await
    };
    let put_off = || shared.gaps.refused(peer, &request.feed, Instant::now());
    let filling = match verified {
        Ok(Ok(filling)) => filling,
        Ok(Err(Refusal::Fault(fault))) => {
            let (reason, subject, detail) = (fault.kind.word(), &request.feed, &fault.detail);
            shared.record(peer, &AuditEvent { what: "refused-batch", reason, who: peer, subject, detail });
            return put_off();
        }
        Ok(Err(Refusal::Read(error))) => {
            tracing::error!(feed = %request.feed, %error, "what is missing cannot be read");
            return put_off();
        }
        // A panic, which has been reported.
        Err(_) => return put_off(),
    };
    tell_findings(shared, peer, &request.feed, &filling.fills.findings);
    told::heed_fills(shared, &request.feed, &filling.fills);
    if filling.fills.entries.is_empty() {
        return shared.gaps.answered(peer, &request, through, 0);
    }
    match shared.options.committer.fill(filling).await {
        Ok(filled) => {
            for note in filled.custody {
                // An owner that is away asks for it when it is linked again.
                shared.peers.tell(&request.feed.member, Frame::Custody(proto::Custody { note }));
            }
            shared.gaps.answered(peer, &request, through, filled.entries);
        }
        Err(failure) => {
            tracing::warn!(feed = %request.feed, %failure, "content that came late could not be kept");
            put_off();
        }
    }
}

enum Refusal {
    Fault(Fault),
    Read(ReadError),
}

fn verify(shared: &Shared, peer: &Member, request: &Request, message: &proto::Fills) -> Result<Filling, Refusal> {
    let (store, feed) = (shared.store(), &request.feed);
    let indexes: Vec<u64> = message.items.iter().take(BATCH_ENTRIES_MAX).map(|item| item.index).collect();
    // Out of order they are refused below, whatever is lacking.
    let lacking = if indexes.is_sorted() { store.lacks(feed, &indexes).map_err(Refusal::Read)? } else { Vec::new() };
    let lacking = indexes.into_iter().zip(lacking).filter_map(|(index, lacking)| Some((index, lacking?))).collect();
    let rosters = shared.options.rosters.load();
    // Our own is ours, whoever gives it back.
    let provider = if feed.member == shared.me { &shared.me } else { peer };
    let fills = verify_fills(feed, provider, message, &request.found.ranges, &lacking, &rosters, &shared.me)
        .map_err(Refusal::Fault)?;
    let not_held = match (fills.entries.first(), fills.entries.last()) {
        (Some(first), Some(last)) => {
            not_held(store.as_ref(), feed, first.index..last.index + 1).map_err(Refusal::Read)?
        }
        _ => Vec::new(),
    };
    Ok(Filling { fills, not_held })
}

/// Everything in `range` that is held as digests.
fn not_held(store: &dyn Store, feed: &FeedId, range: Range<u64>) -> Result<Vec<(Range<u64>, Undisclosed)>, ReadError> {
    let mut all = Vec::new();
    let mut next = range.start;
    while next < range.end {
        let held = store.not_held_from(feed, next, FILL_RANGES_MAX)?;
        let Some((last, _)) = held.last() else { break };
        next = last.end;
        all.extend(held.into_iter().filter(|(part, _)| part.start < range.end));
    }
    Ok(all)
}

impl FillRequest {
    /// A peer's request; the text says what is wrong with it.
    pub(crate) fn read(ranges: &[proto::IndexRange], filters: Vec<TopicFilter>) -> Result<Self, &'static str> {
        if ranges.len() > FILL_RANGES_MAX {
            return Err("the number of ranges");
        }
        let ranges: Vec<Range<u64>> = ranges.iter().map(|range| range.start..range.end).collect();
        if ranges.iter().any(Range::is_empty) || !ranges.is_sorted_by(|a, b| a.end <= b.start) {
            return Err("the order of the ranges");
        }
        Ok(Self { ranges, filters: filters.into() })
    }

    /// What `reader` is handed of it: as much as fits one frame, having looked at a bounded number of entries. `history`: whether our own
    /// feed is open to who joined later. Blocks.
    pub(crate) fn answer(
        &self,
        store: &dyn Store,
        feed: &FeedId,
        reader: &Member,
        rosters: &RosterChain,
        history: bool,
    ) -> Result<proto::Fills, ReadError> {
        let mut fills = proto::Fills { feed: feed.to_string(), ..proto::Fills::default() };
        let (mut looked, mut bytes) = (0, 0);
        for range in &self.ranges {
            let mut index = range.start;
            while index < range.end {
                if looked >= FILL_SCAN_MAX {
                    fills.through = index;
                    return Ok(fills);
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
                    let shown = provide::fills([(entry.index, held)], reader, &self.filters, rosters, history);
                    for fill in shown {
                        let full =
                            fills.items.len() >= BATCH_ENTRIES_MAX || bytes + fill.envelope.len() > BATCH_BYTES_MAX;
                        if full && !fills.items.is_empty() {
                            fills.through = entry.index;
                            return Ok(fills);
                        }
                        bytes += fill.envelope.len();
                        fills.items.push(fill);
                    }
                    index = entry.index + 1;
                    looked += 1;
                }
            }
        }
        fills.through = self.ranges.last().map_or(0, |range| range.end);
        Ok(fills)
    }
}
