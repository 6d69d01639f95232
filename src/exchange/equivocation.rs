//! Detects equivocation by comparing received checkpoints with the copy held here, stops the forked
//! feed, and persists the evidence.
//!
//! In scope: the comparison, the consistency requests and responses that a proof needs, stopping
//! the feed. Out of scope: verifying evidence (`core::follow`), announcing a fork
//! (`app::fork_announcer`), deciding about it (an operator).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use barid_core::feed::checkpoint::{Checkpoint, SignedCheckpoint};
use barid_core::feed::tree::{NodeId, consistency_proof, leaf_hash, root_at};
use barid_core::follow::{EntryEquivocation, Equivocation, EquivocationEvidence};
use barid_core::ids::{Digest, FeedId, Hash, Member};
use barid_core::limits::PROOF_HASHES_MAX;
use barid_core::proto;
use barid_core::proto::frame::Frame;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{ExchangeState, announcements};
use crate::committer::Records;
use crate::store::{FeedTree, ForkRecord, ReadError};

/// How long a checkpoint may be larger than the copy held here before the peer is asked how the two
/// relate. A catch-up on a slow line resolves most cases.
const CONSISTENCY_REQUEST_DELAY: Duration = Duration::from_secs(10);

/// Received checkpoints larger than the copy held: the newest by feed and peer, at most as many as
/// the roster has of both.
#[derive(Default)]
pub(crate) struct LargerCheckpoints {
    received: Mutex<BTreeMap<(FeedId, Member), SignedCheckpoint>>,
}

/// How a verified checkpoint relates to the copy held here.
pub(crate) enum Comparison {
    /// It is of the same tree.
    Consistent,
    /// It is larger than the copy.
    Larger,
    /// It is of another tree; with the evidence, if the copy can prove it.
    Forked(Option<Box<Equivocation>>),
}

impl ExchangeState {
    /// Compares a verified checkpoint with the copy held here. Blocks.
    pub(crate) fn compare(&self, signed: &SignedCheckpoint) -> Result<Comparison, ReadError> {
        let (feed, size) = (&signed.checkpoint.feed, signed.checkpoint.size);
        let held = self.store().feed(feed).map(|state| state.compact_range).unwrap_or_default();
        if held.size() < size {
            return Ok(Comparison::Larger);
        }
        let tree = FeedTree { store: self.store().as_ref(), feed };
        let ours = if held.size() == size { held.root() } else { root_at(&tree, size)? };
        if ours == signed.checkpoint.root {
            return Ok(Comparison::Consistent);
        }
        let Some(larger) = self.signed_from(feed, size)? else { return Ok(Comparison::Forked(None)) };
        let proof = consistency_proof(&tree, size, larger.checkpoint.size)?;
        let evidence =
            Equivocation::between(signed, &larger).or_else(|| Equivocation::by_proof(signed, &larger, &ours, &proof));
        Ok(Comparison::Forked(evidence.map(Box::new)))
    }

    /// Returns a signed checkpoint of the copy, of at least `size` and at most the copy's size.
    fn signed_from(&self, feed: &FeedId, size: u64) -> Result<Option<SignedCheckpoint>, ReadError> {
        let keys = self.options.rosters.load().newest().feed_keys(feed);
        let Some(state) = self.store().feed(feed) else { return Ok(None) };
        let held = state.compact_range.size();
        let mut notes = Vec::new();
        if state.checkpoint_size == held {
            notes.push(state.checkpoint);
        } else {
            let covering = self.store().cosigned_covering(feed, size.saturating_sub(1))?;
            notes.extend(covering.into_iter().filter(|note| note.size <= held).map(|note| note.note));
        }
        let signed = notes.into_iter().filter_map(|note| SignedCheckpoint::verify(&note, &keys).ok());
        Ok(signed.into_iter().find(|signed| signed.checkpoint.size >= size))
    }

    /// Returns the newest signed checkpoint of the copy, to send in a consistency request.
    fn signed_newest(&self, feed: &FeedId) -> Result<Option<SignedCheckpoint>, ReadError> {
        let Some(state) = self.store().feed(feed) else { return Ok(None) };
        if state.checkpoint_size == state.compact_range.size() {
            return self.signed_from(feed, state.checkpoint_size);
        }
        let keys = self.options.rosters.load().newest().feed_keys(feed);
        let notes = self.store().cosigned_newest(feed)?.into_iter();
        let fitting = notes.filter(|note| note.size <= state.compact_range.size()).max_by_key(|note| note.size);
        Ok(fitting.and_then(|note| SignedCheckpoint::verify(&note.note, &keys).ok()))
    }

    /// Stops a feed whose equivocation is proven by evidence from `by`, and raises an alarm.
    /// Returns the record to persist, or `None` if the feed is stopped already or an operator has
    /// decided about everything in this evidence. Blocks.
    pub(crate) fn stop_forked(&self, evidence: &EquivocationEvidence, by: &Member) -> Option<ForkRecord> {
        let feed = evidence.feed();
        if self.is_resolved(evidence) {
            return None;
        }
        let text = format!("{evidence}, received from {by}{}", self.which_is_held(evidence));
        if !self.stopped_feeds.stop(feed, &text, Some(by)) {
            return None;
        }
        Some(ForkRecord { feed: feed.clone(), evidence: Bytes::from(evidence.format()), resumed: false })
    }

    /// Describes which of the two trees is held here, for operators.
    fn which_is_held(&self, evidence: &EquivocationEvidence) -> String {
        let EquivocationEvidence::Trees(trees) = evidence else { return String::new() };
        let old = &trees.smaller.checkpoint;
        let roots = [old.root, trees.other_root];
        let held = roots.into_iter().find(|root| self.holds(&Checkpoint { root: *root, ..old.clone() }));
        held.map_or_else(String::new, |root| format!("; held here is root {root} at size {}", old.size))
    }

    /// Whether everything in this evidence is held here or is covered by an operator's decision
    /// about the feed.
    fn is_resolved(&self, evidence: &EquivocationEvidence) -> bool {
        let decided = self.stopped_feeds.decided(evidence.feed());
        let tree = |tree: &Checkpoint| decided.covers_tree(tree.size, &tree.root) || self.holds(tree);
        match evidence {
            EquivocationEvidence::Trees(trees) => tree(&trees.smaller.checkpoint) && tree(&trees.larger.checkpoint),
            EquivocationEvidence::Entries(EntryEquivocation { index, one, other }) => {
                [one, other].into_iter().all(|entry| {
                    decided.covers_entry(*index, &entry.digest)
                        || tree(&entry.checkpoint.checkpoint)
                        || self.holds_entry(evidence.feed(), *index, &entry.digest)
                })
            }
        }
    }

    /// Whether the copy held here has this root at this size.
    fn holds(&self, tree: &Checkpoint) -> bool {
        let held = self.store().feed(&tree.feed).map_or(0, |state| state.compact_range.size());
        let copy = FeedTree { store: self.store().as_ref(), feed: &tree.feed };
        tree.size <= held && root_at(&copy, tree.size).is_ok_and(|root| root == tree.root)
    }

    /// Whether the copy held here has this entry at this index.
    pub(super) fn holds_entry(&self, feed: &FeedId, index: u64, digest: &Digest) -> bool {
        let size = self.store().feed(feed).map_or(0, |state| state.compact_range.size());
        let leaf = || self.store().tree_hashes(feed, &[NodeId::leaf(index)]);
        index < size && leaf().is_ok_and(|hashes| hashes.first() == Some(&leaf_hash(digest)))
    }

    /// Returns the evidence in a peer's consistency response, if it proves an equivocation. Blocks.
    pub(crate) fn check_consistency(&self, received: &proto::Consistency) -> Result<Option<Equivocation>, String> {
        let feed: FeedId = received.feed.parse().map_err(|_| "invalid feed name".to_owned())?;
        let hash =
            |bytes: &Bytes| <[u8; 32]>::try_from(bytes.as_ref()).map(Hash).map_err(|_| "invalid hash".to_owned());
        if received.consistency_proof.len() > PROOF_HASHES_MAX {
            return Err("invalid length of the proof".into());
        }
        let proof = received.consistency_proof.iter().map(hash).collect::<Result<Vec<_>, _>>()?;
        let root = hash(&received.root)?;
        let keys = self.options.rosters.load().newest().feed_keys(&feed);
        let theirs = SignedCheckpoint::verify(&received.checkpoint, &keys).map_err(|error| error.to_string())?;
        let ours = self.signed_from(&feed, received.size).map_err(|error| error.to_string())?;
        let Some(ours) = ours else { return Ok(None) };
        if ours.checkpoint.size != received.size {
            // Our copy has grown since: compare it as it is now.
            return match self.compare(&theirs).map_err(|error| error.to_string())? {
                Comparison::Forked(evidence) => Ok(evidence.map(|evidence| *evidence)),
                Comparison::Consistent | Comparison::Larger => Ok(None),
            };
        }
        Ok(Equivocation::between(&ours, &theirs).or_else(|| Equivocation::by_proof(&ours, &theirs, &root, &proof)))
    }

    /// Returns our copy at an earlier size, for a peer whose copy does not match. Blocks.
    pub(crate) fn consistency_at(&self, request: &proto::ConsistencyRequest) -> Option<proto::Consistency> {
        let feed: FeedId = request.feed.parse().ok()?;
        let state = self.store().feed(&feed)?;
        let held = state.compact_range.size();
        if request.size == 0 || request.size > held || state.checkpoint_size != held {
            return None;
        }
        let tree = FeedTree { store: self.store().as_ref(), feed: &feed };
        let (root, proof) = (root_at(&tree, request.size).ok()?, consistency_proof(&tree, request.size, held).ok()?);
        Some(proto::Consistency {
            feed: request.feed.clone(),
            size: request.size,
            root: Bytes::copy_from_slice(&root.0),
            checkpoint: state.checkpoint,
            consistency_proof: proof.iter().map(|hash| Bytes::copy_from_slice(&hash.0)).collect(),
        })
    }
}

/// Asks `peer` how its copy of a feed relates to ours. The response arrives over the link, if at
/// all.
pub(crate) fn request_consistency(shared: &Arc<ExchangeState>, peer: &Member, feed: &FeedId) {
    let (shared, peer, feed) = (Arc::clone(shared), peer.clone(), feed.clone());
    tokio::task::spawn_blocking(move || match shared.signed_newest(&feed) {
        Ok(Some(ours)) if ours.checkpoint.size > 0 => {
            let request = proto::ConsistencyRequest { feed: feed.to_string(), size: ours.checkpoint.size };
            shared.peers.send(&peer, Frame::ConsistencyRequest(request));
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%feed, %error, "a copy cannot be compared"),
    });
}

/// Compares a checkpoint of `peer` that is larger than our copy after a delay. If the feed has not
/// reached its size by then, the peer is asked.
pub(crate) fn compare_later(shared: &Arc<ExchangeState>, peer: &Member, signed: SignedCheckpoint) {
    let key = (signed.checkpoint.feed.clone(), peer.clone());
    if shared.larger_checkpoints.received.lock().insert(key.clone(), signed).is_some() {
        return;
    }
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        tokio::time::sleep(CONSISTENCY_REQUEST_DELAY).await;
        let Some(signed) = shared.larger_checkpoints.received.lock().remove(&key) else { return };
        let (feed, peer) = key;
        let comparing = Arc::clone(&shared);
        let compared = tokio::task::spawn_blocking(move || comparing.compare(&signed)).await;
        match compared {
            Ok(Ok(Comparison::Larger)) => request_consistency(&shared, &peer, &feed),
            Ok(Ok(Comparison::Forked(Some(evidence)))) => record_fork(&shared, (*evidence).into(), peer).await,
            // Read errors are reported elsewhere.
            Ok(_) | Err(_) => {}
        }
    });
}

/// Stops a forked feed and persists the evidence from `by`: see [`ExchangeState::stop_forked`].
pub(crate) async fn record_fork(shared: &Arc<ExchangeState>, evidence: EquivocationEvidence, by: Member) {
    let checking = Arc::clone(shared);
    // A panic has been reported.
    if let Ok(found) = tokio::task::spawn_blocking(move || checking.stop_forked(&evidence, &by)).await {
        persist(shared, found).await;
    }
}

/// Whether everything in this evidence is held here or is covered by an operator's decision about
/// the feed.
pub(crate) async fn resolved(shared: &Arc<ExchangeState>, evidence: Equivocation) -> bool {
    let checking = Arc::clone(shared);
    // A panic has been reported.
    tokio::task::spawn_blocking(move || checking.is_resolved(&evidence.into())).await.unwrap_or(false)
}

/// Returns the known evidence on `feed`: what is stored here, and what members announced while it
/// was stopped. Blocks.
pub(crate) fn known(shared: &ExchangeState, feed: &FeedId) -> Result<Vec<ForkRecord>, ReadError> {
    let mut known = shared.store().forks()?;
    known.retain(|fork| fork.feed == *feed);
    if known.is_empty() {
        return Ok(known);
    }
    for announced in announcements::proven(shared)?.iter().filter(|announced| announced.feed() == feed) {
        let evidence = Bytes::from(announced.format());
        if !known.iter().any(|fork| fork.evidence == evidence) {
            known.push(ForkRecord { feed: feed.clone(), evidence, resumed: false });
        }
    }
    Ok(known)
}

/// Persists evidence, so that it survives a restart.
pub(crate) async fn persist(shared: &ExchangeState, found: Option<ForkRecord>) {
    let Some(fork) = found else { return };
    let feed = fork.feed.clone();
    if let Err(failure) = shared.options.committer.persist(Records { forks: vec![fork], ..Records::default() }).await {
        tracing::error!(%feed, %failure, "evidence of a fork could not be persisted");
    }
}
