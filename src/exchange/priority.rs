//! The priority lane: sends and receives urgent entries ahead of their feed's order.
//!
//! In scope: finding the entries to send to a peer ahead of the order; receiving such entries; two
//! entries at one index. Out of scope: which entries are sent, in which order and how many
//! (`core::priority`), the order of a feed (`feed_sender`, `receiver`), verifying (`core::follow`),
//! precedence at the committer (`committer::priority`).
//!
//! A separate task sends urgent entries, so that they wait neither for a batch being made nor for
//! their feed's turn. It sends only entries that would otherwise wait in or behind a backlog of the
//! link; the others are left to the next batch. When a peer requests a feed, its urgent entries are
//! sent before its first batch.

use std::sync::Arc;

use barid_core::bulletin::Priority;
use barid_core::feed::checkpoint::SignedCheckpoint;
use barid_core::feed::partial_proofs::partial_inclusion_proof;
use barid_core::feed::tree::{NodeId, leaf_hash};
use barid_core::follow::{EntryEquivocation, Fault, FaultKind, ProvenEntry, VerifiedPriority, verify_priority};
use barid_core::ids::{FeedId, Member};
use barid_core::limits::PRIORITY_ENTRIES_MAX;
use barid_core::priority::{PriorityInFlight, PriorityLimits, Progress, would_wait};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::roster::RosterChain;
use barid_core::serve;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::feed_sender::FeedSender;
use super::findings::record_findings;
use super::send_queue::SendQueue;
use super::{ExchangeState, FRAME_QUEUE_MAX, announcements, equivocation};
use crate::clock;
use crate::committer::{CommitFailure, PriorityOutcome};
use crate::store::{Content, FeedTree, ReadError, Store};

/// Entries of a feed that are scanned, from the first that the peer lacks, for each of the two
/// urgent classes. Entries beyond this number are found later.
const SCANNED_ENTRIES_MAX: usize = 4 * PRIORITY_ENTRIES_MAX;
/// The first of these, a sample: if it is dense, nearly everything is urgent and the rest is not
/// read.
const DENSITY_SAMPLE_MAX: usize = 64;
/// Envelopes up to this size are verified inline.
const INLINE_VERIFY_BYTES_MAX: usize = 64 << 10;

// Sending.

/// Sends `peer` the urgent entries of the feeds that it follows, until the transport accepts no
/// more.
pub(crate) async fn send(
    shared: Arc<ExchangeState>,
    peer: Member,
    send_queue: Arc<SendQueue>,
    outgoing: mpsc::Sender<proto::Frame>,
) {
    let mut commits = shared.options.committer.watch();
    let mut rosters = shared.options.rosters.watch();
    let mut followed = send_queue.followed();
    let mut in_flight = PriorityInFlight::new(PriorityLimits::NODE);
    loop {
        commits.mark_unchanged();
        rosters.mark_unchanged();
        followed.mark_unchanged();
        let feed_senders = send_queue.feed_senders();
        in_flight.retain(|feed| feed_senders.iter().any(|(followed, _)| followed == feed));
        feed_senders.iter().for_each(|(feed, feed_sender)| in_flight.reached(feed, feed_sender.stored()));
        let unscanned: Vec<_> =
            feed_senders.iter().filter(|(_, feed_sender)| !feed_sender.is_scanned()).cloned().collect();
        let more = if needs_scan(shared.store().as_ref(), &feed_senders) {
            let frames_max = FRAME_QUEUE_MAX.min(outgoing.max_capacity());
            let scan =
                PriorityScan { shared: Arc::clone(&shared), peer: peer.clone(), in_flight, feed_senders, frames_max };
            // Ended only by a panic, which has been reported.
            let Ok((frames, remaining)) = tokio::task::spawn_blocking(move || scan.next()).await else { return };
            in_flight = remaining;
            let count = frames.len();
            if count > 0 {
                // Send them together, so that no batch is sent between them; then an ordinary frame
                // has its turn.
                let Ok(permits) = outgoing.reserve_many(count).await else { return };
                for (permit, priority) in permits.zip(frames) {
                    permit.send(proto::Frame { frame: Some(Frame::PriorityEntry(priority)) });
                }
            }
            count > 0
        } else {
            false
        };
        if more {
            continue;
        }
        if !unscanned.is_empty() {
            send_queue.set_scanned(&unscanned);
        }
        tokio::select! {
            changed = commits.changed() => if changed.is_err() { return },
            changed = rosters.changed() => if changed.is_err() { return },
            changed = followed.changed() => if changed.is_err() { return },
            () = outgoing.closed() => return,
        }
    }
}

/// Whether an urgent entry may be waiting. Cheap for a feed without a backlog.
fn needs_scan(store: &dyn Store, feed_senders: &[(FeedId, FeedSender)]) -> bool {
    feed_senders.iter().any(|(feed, feed_sender)| {
        let size = store.feed(feed).map_or(0, |state| state.compact_range.size());
        would_wait(size, feed_sender.cursor(), feed_sender.has_room())
            || !store.out_of_order_unexpired(feed, clock::unix_ms()).is_empty()
    })
}

/// One scan for the next urgent entries to send.
struct PriorityScan {
    shared: Arc<ExchangeState>,
    peer: Member,
    in_flight: PriorityInFlight,
    feed_senders: Vec<(FeedId, FeedSender)>,
    frames_max: usize,
}

impl PriorityScan {
    /// Returns the next frames. Blocks.
    fn next(mut self) -> (Vec<proto::PriorityEntry>, PriorityInFlight) {
        let rosters = self.shared.options.rosters.load();
        let store = self.shared.store().as_ref();
        let mut found: Vec<(&FeedId, Priority, Vec<u64>)> = Vec::new();
        for (feed, feed_sender) in &self.feed_senders {
            let has_room = |how: &Priority| self.in_flight.has_room(feed, *how);
            if ![Priority::Actual, Priority::Other].iter().any(has_room) {
                continue;
            }
            match overtaking(store, feed, feed_sender) {
                Ok(sorts) => found.extend(
                    sorts.into_iter().filter(|(how, _)| has_room(how)).map(|(how, indices)| (feed, how, indices)),
                ),
                Err(error) => {
                    tracing::error!(%feed, peer = %self.peer, %error, "urgent entries cannot be read for a peer");
                }
            }
        }
        let frames = self.in_flight.next(found, self.frames_max, |feed, index| {
            let (_, feed_sender) = self.feed_senders.iter().find(|(followed, _)| followed == feed)?;
            frame(store, feed, index, &self.peer, feed_sender, &rosters).unwrap_or_else(|error| {
                tracing::error!(%feed, index, peer = %self.peer, %error, "an urgent entry cannot be read for a peer");
                None
            })
        });
        (frames, self.in_flight)
    }
}

/// Returns the entries of a feed that are worth sending ahead of the order. Blocks.
fn overtaking(
    store: &dyn Store,
    feed: &FeedId,
    feed_sender: &FeedSender,
) -> Result<impl IntoIterator<Item = (Priority, Vec<u64>)>, ReadError> {
    let size = store.feed(feed).map_or(0, |state| state.compact_range.size());
    let progress = Progress { size, stored: feed_sender.stored(), cursor: feed_sender.cursor() };
    let read = |how, max| store.priority_indexes(feed, how, progress.stored, max);
    let rest = |how| {
        let first = read(how, DENSITY_SAMPLE_MAX)?;
        let all = first.len() < DENSITY_SAMPLE_MAX || progress.is_dense(&first);
        if all { Ok(first) } else { read(how, SCANNED_ENTRIES_MAX) }
    };
    let actual = rest(Priority::Actual)?;
    let others = rest(Priority::Other)?;
    Ok(progress.overtaking(&actual, &others))
}

/// Makes the frame of an entry; `None` if `recipient` may not read it, or if it cannot be proven
/// yet. Blocks.
fn frame(
    store: &dyn Store,
    feed: &FeedId,
    index: u64,
    recipient: &Member,
    feed_sender: &FeedSender,
    rosters: &RosterChain,
) -> Result<Option<proto::PriorityEntry>, ReadError> {
    let visible = |content: Content| match content {
        Content::Disclosed { envelope, header: Some(header) } => {
            serve::may_send_priority(&header, recipient, feed_sender.filters(), rosters).then_some(envelope)
        }
        _ => None,
    };
    let state = store.feed(feed).filter(|state| index < state.compact_range.size());
    let (envelope, proof, checkpoint): (Option<Bytes>, _, _) = match state {
        Some(state) => {
            let Some(entry) = store.entries(feed, index, 1, 0)?.into_iter().next() else { return Ok(None) };
            let (tree, size) = (FeedTree { store, feed }, state.compact_range.size());
            let proof = partial_inclusion_proof(&tree, index, size, state.checkpoint_size, &state.consistency_proof)?;
            let Some(proof) = proof else { return Ok(None) };
            (visible(entry.content), proof, state.checkpoint)
        }
        None => {
            let Some(held) = store.priority_entry(feed, index)? else { return Ok(None) };
            (visible(held.entry.content), held.proof, held.checkpoint)
        }
    };
    Ok(envelope.map(|envelope| serve::priority(feed, index, envelope, &proof, checkpoint)))
}

// Receiving.

/// Verifies an entry that `peer` sent ahead of the order of a requested feed, and queues it at the
/// committer. `newest` is the last verified checkpoint of the feed.
///
/// # Errors
/// A fault of the peer, including an equivocation.
pub(crate) async fn receive(
    shared: &Arc<ExchangeState>,
    peer: &Member,
    feed: &FeedId,
    newest: Option<SignedCheckpoint>,
    message: proto::PriorityEntry,
) -> Result<(), Fault> {
    if shared.stopped_feeds.contains(feed) {
        return Ok(());
    }
    let at_once = message.envelope.len() <= INLINE_VERIFY_BYTES_MAX;
    let verify = {
        let (shared, peer, feed) = (Arc::clone(shared), peer.clone(), feed.clone());
        move || {
            let rosters = shared.options.rosters.load();
            verify_priority(&feed, &peer, &message, newest.as_ref(), &rosters, &shared.me)
        }
    };
    let verified = if at_once {
        verify()
    } else {
        let panicked = |_| Fault { kind: FaultKind::Malformed, detail: "verification panicked".into() };
        tokio::task::spawn_blocking(verify).await.map_err(panicked)?
    };
    let verified = match verified {
        Err(Fault { kind: FaultKind::Equivocation(proven), .. })
            if equivocation::resolved(shared, (*proven).clone()).await =>
        {
            // It belongs to a fork that an operator has already decided about.
            return Ok(());
        }
        verified => verified?,
    };
    record_findings(shared, peer, feed, &verified.findings);
    shared.peers.progress(feed, verified.checkpoint.checkpoint.size, None);
    if verified.envelope().is_none() {
        // It arrives in order later, in full or as a digest.
        return Ok(());
    }
    match shared.options.committer.append_priority(verified.clone()).await {
        Ok(completion) => _ = tokio::spawn(finish(Arc::clone(shared), peer.clone(), verified, completion)),
        Err(failure) => {
            tracing::debug!(%feed, %failure, "an urgent entry is not accepted now and arrives in order later");
        }
    }
    Ok(())
}

/// Handles the outcome of the commit.
async fn finish(
    shared: Arc<ExchangeState>,
    peer: Member,
    priority: VerifiedPriority,
    completion: oneshot::Receiver<Result<PriorityOutcome, CommitFailure>>,
) {
    let (feed, index) = (priority.feed.clone(), priority.index);
    match completion.await {
        Ok(Ok(PriorityOutcome::Held { custody })) => {
            // Once for each entry; the number of entries held out of order is bounded.
            announcements::verify_in_priority(&shared, &priority);
            // Only for the owner. If it is not linked, it requests the note on its next link.
            if let Some(note) = custody {
                shared.peers.send(&feed.member, Frame::Custody(proto::Custody { note }));
            }
        }
        Ok(Ok(PriorityOutcome::Duplicate | PriorityOutcome::Full)) | Err(_) => {}
        Ok(Ok(PriorityOutcome::Stale)) => {
            let comparing = Arc::clone(&shared);
            let conflicting = tokio::task::spawn_blocking(move || comparing.conflicting(&priority)).await;
            if let Ok(Some(proven)) = conflicting {
                entry_equivocation(&shared, &peer, &feed, index, Some(proven)).await;
            }
        }
        Ok(Err(CommitFailure::EntryConflict { index, proven })) => {
            entry_equivocation(&shared, &peer, &feed, index, proven.map(|proven| *proven)).await;
        }
        Ok(Err(failure)) => {
            tracing::debug!(%feed, %failure, "an urgent entry is not accepted now and arrives in order later");
        }
    }
}

/// Handles another entry from `peer` than the one held at `index`: stops the feed if the
/// equivocation can be proven.
pub(crate) async fn entry_equivocation(
    shared: &Arc<ExchangeState>,
    peer: &Member,
    feed: &FeedId,
    index: u64,
    proven: Option<ProvenEntry>,
) {
    let Some(proven) = proven else {
        return tracing::error!(%feed, index, %peer, "a conflicting entry was received; the fork is not proven yet");
    };
    let comparing = (Arc::clone(shared), peer.clone(), feed.clone());
    let found = tokio::task::spawn_blocking(move || {
        let (shared, peer, feed) = comparing;
        let evidence = EntryEquivocation::at(index, shared.proven(&feed, index)?, proven)?;
        shared.stop_forked(&evidence.into(), &peer)
    });
    equivocation::persist(shared, found.await.ok().flatten()).await;
}

impl ExchangeState {
    /// Returns the received entry if the tree held here has another one at its index. Blocks.
    fn conflicting(&self, priority: &VerifiedPriority) -> Option<ProvenEntry> {
        let held = self.store().tree_hashes(&priority.feed, &[NodeId::leaf(priority.index)]).ok()?;
        (held.first() != Some(&leaf_hash(&priority.entry.digest))).then(|| ProvenEntry {
            digest: priority.entry.digest,
            checkpoint: priority.checkpoint.clone(),
            proof: priority.proof.clone(),
        })
    }

    /// Returns the entry held at `index`, in order or ahead of it, with its proof. Blocks.
    fn proven(&self, feed: &FeedId, index: u64) -> Option<ProvenEntry> {
        let (store, keys) = (self.store(), self.options.rosters.load().newest().feed_keys(feed));
        let verified = |note: &Bytes| SignedCheckpoint::verify(note, &keys).ok();
        let state = store.feed(feed).filter(|state| index < state.compact_range.size());
        // An entry held ahead of the order has its own proof, but the feed may have reached its
        // index with another entry.
        if let Some(held) = store.priority_entry(feed, index).ok()?
            && (state.is_none() || self.holds_entry(feed, index, &held.entry.digest))
        {
            let checkpoint = verified(&held.checkpoint)?;
            return Some(ProvenEntry { digest: held.entry.digest, checkpoint, proof: held.proof });
        }
        let state = state?;
        let digest = store.entries(feed, index, 1, 0).ok()?.first()?.digest;
        let (tree, size) = (FeedTree { store: store.as_ref(), feed }, state.compact_range.size());
        let proof =
            partial_inclusion_proof(&tree, index, size, state.checkpoint_size, &state.consistency_proof).ok()??;
        Some(ProvenEntry { digest, checkpoint: verified(&state.checkpoint)?, proof })
    }
}
