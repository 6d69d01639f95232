//! The express lane: urgent entries ahead of their feed's order, both ways.
//!
//! In scope: looking for what a peer is sent ahead of the order; taking in what a peer sends so, and two entries at one place. Out of scope: which
//! are sent, in which turn, and how many (`core::express`), the order in a feed (`provider`, `reader`), verifying (`core::follow`), going first
//! at the committer.
//!
//! A task of its own sends them, so that they wait neither for a batch in the making nor for their turn among the feeds. It sends what
//! would otherwise wait: what lies in or behind a backlog of the link. What the next batch carries anyway is left to it. When a peer asks for
//! a feed, what is urgent of it goes before its first batch.

use std::sync::Arc;

use barid_core::bulletin::Urgent;
use barid_core::express::{Progress, Room, Unmatched, would_wait};
use barid_core::feed::bridge::bridged_inclusion;
use barid_core::feed::checkpoint::SignedCheckpoint;
use barid_core::feed::tree::{NodeId, leaf_hash};
use barid_core::follow::{Fault, FaultKind, ProvenEntry, TwoEntries, VerifiedExpress, verify_express};
use barid_core::limits::EXPRESS_ENTRIES_MAX;
use barid_core::names::{FeedId, Member};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::provide;
use barid_core::roster::RosterChain;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::findings::tell_findings;
use super::outbox::Outbox;
use super::provider::Provider;
use super::{FRAMES_WAITING_MAX, Shared, forks, told};
use crate::clock;
use crate::committer::{CommitFailure, Expressed};
use crate::store::{Content, FeedTree, ReadError, Store};

/// Entries of a feed that are looked at, from the first one that the peer lacks, of those that are Actual and of the others: of more than these those
/// that follow are not found yet.
const LOOKED_AT_MAX: usize = 4 * EXPRESS_ENTRIES_MAX;
/// Of these the first, by which it is seen that all is urgent without looking at the others.
const FIRST_LOOKED_AT: usize = 64;
/// Envelopes up to this size are verified on the spot.
const VERIFIED_AT_ONCE_BYTES_MAX: usize = 64 << 10;

// Sending.

/// Sends `peer` what is urgent of the feeds that it follows, until the transport takes nothing more.
pub(crate) async fn send(shared: Arc<Shared>, peer: Member, outbox: Arc<Outbox>, outgoing: mpsc::Sender<proto::Frame>) {
    let mut commits = shared.options.committer.watch();
    let mut rosters = shared.options.rosters.watch();
    let mut followed = outbox.followed();
    let mut unmatched = Unmatched::new(Room::NODE);
    loop {
        commits.mark_unchanged();
        rosters.mark_unchanged();
        followed.mark_unchanged();
        let providers = outbox.providers();
        unmatched.retain(|feed| providers.iter().any(|(followed, _)| followed == feed));
        providers.iter().for_each(|(feed, provider)| unmatched.reached(feed, provider.stored()));
        let asked: Vec<_> = providers.iter().filter(|(_, provider)| !provider.was_looked_at()).cloned().collect();
        let more = if needs_look(shared.store().as_ref(), &providers) {
            let frames_max = FRAMES_WAITING_MAX.min(outgoing.max_capacity());
            let looking = Looking { shared: Arc::clone(&shared), peer: peer.clone(), unmatched, providers, frames_max };
            // Ended only by a panic, which has been reported.
            let Ok((frames, looked)) = tokio::task::spawn_blocking(move || looking.next()).await else { return };
            unmatched = looked;
            let count = frames.len();
            if count > 0 {
                // Together, so that no batch comes between them; then an ordinary frame has its turn.
                let Ok(permits) = outgoing.reserve_many(count).await else { return };
                for (permit, express) in permits.zip(frames) {
                    permit.send(proto::Frame { frame: Some(Frame::Express(express)) });
                }
            }
            count > 0
        } else {
            false
        };
        if more {
            continue;
        }
        if !asked.is_empty() {
            outbox.looked_at(&asked);
        }
        tokio::select! {
            changed = commits.changed() => if changed.is_err() { return },
            changed = rosters.changed() => if changed.is_err() { return },
            changed = followed.changed() => if changed.is_err() { return },
            () = outgoing.closed() => return,
        }
    }
}

/// Whether anything may wait that is urgent: for what has no backlog this costs next to nothing.
fn needs_look(store: &dyn Store, providers: &[(FeedId, Provider)]) -> bool {
    providers.iter().any(|(feed, provider)| {
        let size = store.feed(feed).map_or(0, |state| state.frontier.size());
        would_wait(size, provider.cursor(), provider.has_room())
            || !store.ahead_places(feed, clock::unix_ms()).is_empty()
    })
}

/// Looking for what is to be sent next.
struct Looking {
    shared: Arc<Shared>,
    peer: Member,
    unmatched: Unmatched,
    providers: Vec<(FeedId, Provider)>,
    frames_max: usize,
}

impl Looking {
    /// The next frames. Blocks.
    fn next(mut self) -> (Vec<proto::Express>, Unmatched) {
        let rosters = self.shared.options.rosters.load();
        let store = self.shared.store().as_ref();
        let mut found: Vec<(&FeedId, Urgent, Vec<u64>)> = Vec::new();
        for (feed, provider) in &self.providers {
            let has_room = |how: &Urgent| self.unmatched.has_room(feed, *how);
            if ![Urgent::Actual, Urgent::Other].iter().any(has_room) {
                continue;
            }
            match overtaking(store, feed, provider) {
                Ok(sorts) => found.extend(
                    sorts.into_iter().filter(|(how, _)| has_room(how)).map(|(how, indices)| (feed, how, indices)),
                ),
                Err(error) => {
                    tracing::error!(%feed, peer = %self.peer, %error, "urgent entries cannot be read for a peer");
                }
            }
        }
        let frames = self.unmatched.next(found, self.frames_max, |feed, index| {
            let (_, provider) = self.providers.iter().find(|(followed, _)| followed == feed)?;
            frame(store, feed, index, &self.peer, provider, &rosters).unwrap_or_else(|error| {
                tracing::error!(%feed, index, peer = %self.peer, %error, "an urgent entry cannot be read for a peer");
                None
            })
        });
        (frames, self.unmatched)
    }
}

/// What of a feed is worth sending ahead of the order. Blocks.
fn overtaking(
    store: &dyn Store,
    feed: &FeedId,
    provider: &Provider,
) -> Result<impl IntoIterator<Item = (Urgent, Vec<u64>)>, ReadError> {
    let size = store.feed(feed).map_or(0, |state| state.frontier.size());
    let progress = Progress { size, stored: provider.stored(), cursor: provider.cursor() };
    let read = |how, max| store.urgent(feed, how, progress.stored, max);
    let rest = |how| {
        let first = read(how, FIRST_LOOKED_AT)?;
        let all = first.len() < FIRST_LOOKED_AT || progress.is_dense(&first);
        if all { Ok(first) } else { read(how, LOOKED_AT_MAX) }
    };
    let actual = rest(Urgent::Actual)?;
    let others = rest(Urgent::Other)?;
    Ok(progress.overtaking(&actual, &others))
}

/// An entry as it is sent ahead of the order; `None` if it is not for `reader`, or cannot be proven yet. Blocks.
fn frame(
    store: &dyn Store,
    feed: &FeedId,
    index: u64,
    reader: &Member,
    provider: &Provider,
    rosters: &RosterChain,
) -> Result<Option<proto::Express>, ReadError> {
    let shown = |content: Content| match content {
        Content::Disclosed { envelope, header: Some(header) } => {
            provide::may_express(&header, reader, provider.filters(), rosters).then_some(envelope)
        }
        _ => None,
    };
    let state = store.feed(feed).filter(|state| index < state.frontier.size());
    let (envelope, proof, checkpoint): (Option<Bytes>, _, _) = match state {
        Some(state) => {
            let Some(entry) = store.entries(feed, index, 1, 0)?.into_iter().next() else { return Ok(None) };
            let (tree, size) = (FeedTree { store, feed }, state.frontier.size());
            let proof = bridged_inclusion(&tree, index, size, state.checkpoint_size, &state.consistency_proof)?;
            let Some(proof) = proof else { return Ok(None) };
            (shown(entry.content), proof, state.checkpoint)
        }
        None => {
            let Some(held) = store.express(feed, index)? else { return Ok(None) };
            (shown(held.entry.content), held.proof, held.checkpoint)
        }
    };
    Ok(envelope.map(|envelope| provide::express(feed, index, envelope, &proof, checkpoint)))
}

// Receiving.

/// Takes in what `peer` sent ahead of the order of a feed that it was asked for. `newest` is a checkpoint of it that was verified before.
///
/// # Errors
/// A fault of the peer, or two histories.
pub(crate) async fn take(
    shared: &Arc<Shared>,
    peer: &Member,
    feed: &FeedId,
    newest: Option<SignedCheckpoint>,
    message: proto::Express,
) -> Result<(), Fault> {
    if shared.stopped_feeds.contains(feed) {
        return Ok(());
    }
    let at_once = message.envelope.len() <= VERIFIED_AT_ONCE_BYTES_MAX;
    let verify = {
        let (shared, peer, feed) = (Arc::clone(shared), peer.clone(), feed.clone());
        move || {
            let rosters = shared.options.rosters.load();
            verify_express(&feed, &peer, &message, newest.as_ref(), &rosters, &shared.me)
        }
    };
    let verified = if at_once {
        verify()
    } else {
        let panicked = |_| Fault { kind: FaultKind::Malformed, detail: "verifying it ended in a panic".into() };
        tokio::task::spawn_blocking(verify).await.map_err(panicked)?
    };
    let verified = match verified {
        Err(Fault { kind: FaultKind::Equivocation(shown), .. }) if forks::settled(shared, (*shown).clone()).await => {
            // Of a history about which an operator has decided.
            return Ok(());
        }
        verified => verified?,
    };
    tell_findings(shared, peer, feed, &verified.findings);
    shared.peers.progress(feed, verified.checkpoint.checkpoint.size, None);
    if verified.envelope().is_none() {
        // It comes in order, as a digest or not.
        return Ok(());
    }
    match shared.options.committer.express(verified.clone()).await {
        Ok(answer) => _ = tokio::spawn(settle(Arc::clone(shared), peer.clone(), verified, answer)),
        Err(failure) => tracing::debug!(%feed, %failure, "an urgent entry waits for its turn"),
    }
    Ok(())
}

/// What becomes of it.
async fn settle(
    shared: Arc<Shared>,
    peer: Member,
    express: VerifiedExpress,
    answer: oneshot::Receiver<Result<Expressed, CommitFailure>>,
) {
    let (feed, index) = (express.feed.clone(), express.index);
    match answer.await {
        Ok(Ok(Expressed::Held { custody })) => {
            // Once for each: what is held has a bound.
            told::heed_express(&shared, &express);
            // For nobody but the owner. One that is away asks for it when it is linked again.
            if let Some(note) = custody {
                shared.peers.tell(&feed.member, Frame::Custody(proto::Custody { note }));
            }
        }
        Ok(Ok(Expressed::Again | Expressed::Full)) | Err(_) => {}
        Ok(Ok(Expressed::Behind)) => {
            let comparing = Arc::clone(&shared);
            let differs = tokio::task::spawn_blocking(move || comparing.differs(&express)).await;
            if let Ok(Some(shown)) = differs {
                another_entry(&shared, &peer, &feed, index, Some(shown)).await;
            }
        }
        Ok(Err(CommitFailure::AnotherEntry { index, shown })) => {
            another_entry(&shared, &peer, &feed, index, shown.map(|shown| *shown)).await;
        }
        Ok(Err(failure)) => tracing::debug!(%feed, %failure, "an urgent entry waits for its turn"),
    }
}

/// `peer` has shown another entry than is held at `index`: the feed stops, if that can be proven.
pub(crate) async fn another_entry(
    shared: &Arc<Shared>,
    peer: &Member,
    feed: &FeedId,
    index: u64,
    shown: Option<ProvenEntry>,
) {
    let Some(shown) = shown else {
        return tracing::error!(%feed, index, %peer, "another entry is shown than is held, not proven yet");
    };
    let comparing = (Arc::clone(shared), peer.clone(), feed.clone());
    let found = tokio::task::spawn_blocking(move || {
        let (shared, peer, feed) = comparing;
        let evidence = TwoEntries::at(index, shared.proven(&feed, index)?, shown)?;
        shared.forked(&evidence.into(), &peer)
    });
    forks::keep(shared, found.await.ok().flatten()).await;
}

impl Shared {
    /// The entry that was sent, if the tree held here has another one at its index. Blocks.
    fn differs(&self, express: &VerifiedExpress) -> Option<ProvenEntry> {
        let held = self.store().tree_hashes(&express.feed, &[NodeId::leaf(express.index)]).ok()?;
        (held.first() != Some(&leaf_hash(&express.entry.digest))).then(|| ProvenEntry {
            digest: express.entry.digest,
            checkpoint: express.checkpoint.clone(),
            proof: express.proof.clone(),
        })
    }

    /// The entry held at `index`, in order or ahead of it, with what proves it. Blocks.
    fn proven(&self, feed: &FeedId, index: u64) -> Option<ProvenEntry> {
        let (store, keys) = (self.store(), self.options.rosters.load().newest().feed_keys(feed));
        let verified = |note: &Bytes| SignedCheckpoint::verify(note, &keys).ok();
        let state = store.feed(feed).filter(|state| index < state.frontier.size());
        // What came ahead of the order came with a proof; but the feed may have come to another entry there.
        if let Some(held) = store.express(feed, index).ok()?
            && (state.is_none() || self.holds_entry(feed, index, &held.entry.digest))
        {
            let checkpoint = verified(&held.checkpoint)?;
            return Some(ProvenEntry { digest: held.entry.digest, checkpoint, proof: held.proof });
        }
        let state = state?;
        let digest = store.entries(feed, index, 1, 0).ok()?.first()?.digest;
        let (tree, size) = (FeedTree { store: store.as_ref(), feed }, state.frontier.size());
        let proof = bridged_inclusion(&tree, index, size, state.checkpoint_size, &state.consistency_proof).ok()??;
        Some(ProvenEntry { digest, checkpoint: verified(&state.checkpoint)?, proof })
    }
}
