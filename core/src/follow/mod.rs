//! Verifies what a peer sends of a feed: it either extends the local replica with a proof, or is a
//! fault.
//!
//! In scope: verifying a batch against the compact range held ([`verify_entries`]), a priority
//! entry that arrives before its feed reaches it ([`verify_priority`]), and backfilled content
//! against the digests held ([`verify_backfills`]); deciding which content of each entry is stored
//! and which local subscribers may receive it ([`delivery()`]); detecting equivocation
//! ([`EquivocationEvidence`]). Out of scope: fetching, storing, cosigning, and what a peer may read
//! ([`crate::serve`]).
//!
//! A fault in the log (signature, proof, root, bounds) rejects the whole batch. The content of an
//! entry never does: an entry with the right hash is appended, and an anomaly in it is a
//! [`Finding`].

mod backfill;
mod delivery;
mod equivocation;
mod fault;
mod forks;
mod priority;
mod reduce;
#[cfg(test)]
mod tests;
mod two_entries;

use std::sync::Arc;

use bytes::Bytes;

pub use backfill::{VerifiedBackfill, VerifiedBackfills, verify_backfills};
pub use delivery::{Delivery, NeverDelivered, delivery};
pub use equivocation::{CheckpointClaims, Equivocation, EquivocationError, HEADING as EQUIVOCATION_HEADING};
pub use fault::{Fault, FaultKind};
pub use forks::{EquivocationClaims, EquivocationEvidence, ResolvedForks};
pub use priority::{VerifiedPriority, verify_priority};
pub use two_entries::{
    ClaimedEntry, EntryClaims, EntryEquivocation, HEADING as ENTRY_EQUIVOCATION_HEADING, ProvenEntry,
};

use crate::envelope;
use crate::feed::checkpoint::SignedCheckpoint;
use crate::feed::tree::{CompactRange, TREE_SIZE_MAX, verify_consistency};
use crate::ids::{Digest, FeedId, Hash, Member, Undisclosed};
use crate::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, ENVELOPE_BYTES_MAX, PROOF_HASHES_MAX};
use crate::proto;
use crate::proto::item::Item;
use crate::roster::RosterChain;
use delivery::{Eligibility, eligibility};

/// Progress of following one feed. A batch must begin exactly at the size of `compact_range`.
#[derive(Clone, Debug)]
pub struct FollowState {
    /// The feed.
    pub feed: FeedId,
    /// Compact range of the tree held.
    pub compact_range: CompactRange,
    /// Largest verified checkpoint seen since following began. Its signature is not verified again,
    /// and later checkpoints must not contradict it.
    pub newest: Option<SignedCheckpoint>,
    /// The member that sends the feed: its owner or a relay. Only the owner may pass older entries
    /// to members that joined later.
    pub feed_sender: Member,
}

impl FollowState {
    /// Creates the state for following `feed` at its owner.
    #[must_use]
    pub fn new(feed: FeedId, compact_range: CompactRange) -> Self {
        let feed_sender = feed.member.clone();
        Self { feed, compact_range, newest: None, feed_sender }
    }

    /// Sets another peer as the sender.
    #[must_use]
    pub fn at(self, feed_sender: Member) -> Self {
        Self { feed_sender, ..self }
    }

    /// Advances by a verified batch. The state must not have advanced since the batch was verified.
    pub fn advance(&mut self, batch: &VerifiedBatch) {
        self.compact_range.clone_from(&batch.compact_range);
        let newer = |newest: &SignedCheckpoint| newest.checkpoint.size >= batch.checkpoint.checkpoint.size;
        if !self.newest.as_ref().is_some_and(newer) {
            self.newest = Some(batch.checkpoint.clone());
        }
    }
}

/// Entries that extend a feed, proven by a checkpoint that its owner signed.
#[derive(Clone, Debug)]
pub struct VerifiedBatch {
    /// The feed.
    pub feed: FeedId,
    /// The member that sent it.
    pub feed_sender: Member,
    /// Index of the first entry.
    pub first: u64,
    /// The entries, at least one.
    pub entries: Vec<VerifiedEntry>,
    /// Compact range of the tree including these entries.
    pub compact_range: CompactRange,
    /// The checkpoint that proves them; its size is at least that of `compact_range`.
    pub checkpoint: SignedCheckpoint,
    /// Consistency proof from the size of `compact_range` to the checkpoint's; empty if these are
    /// equal.
    pub consistency_proof: Vec<Hash>,
    /// Anomalies of single entries, by index.
    pub findings: Vec<Finding>,
}

/// One entry in the form in which it is stored.
#[derive(Clone, Debug)]
pub struct VerifiedEntry {
    /// SHA-256 of the envelope.
    pub digest: Digest,
    /// The envelope, or the reason why it is not held.
    pub content: VerifiedContent,
    /// The roster version that must be fetched before the entry is delivered or forwarded.
    pub pending_roster: Option<u64>,
}

/// The part of an entry that is stored.
#[derive(Clone, Debug)]
pub enum VerifiedContent {
    /// The content.
    Disclosed {
        /// Exact bytes, sharing the message's memory.
        envelope: Bytes,
        /// Decoded header; `None` if it cannot be decoded.
        header: Option<Arc<proto::Header>>,
    },
    /// The digest only.
    Undisclosed(Undisclosed),
}

/// An anomaly of one entry. It never stops the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Index in the feed.
    pub index: u64,
    /// The kind of anomaly.
    pub kind: FindingKind,
}

/// Kind of anomaly of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FindingKind {
    /// It was sent to this member, which is not in its audience; only the digest is stored.
    Excluded,
    /// Its envelope or header cannot be decoded, so its audience is empty; only the digest is
    /// stored.
    UndecodableHeader,
    /// This version does not understand its format or handling, so its audience is empty; only the
    /// digest is stored.
    NotUnderstood,
    /// Its header names another member than the feed's owner; it is stored but never delivered.
    Misdirected,
    /// It is larger than this version accepts in full; only the digest is stored.
    TooLarge,
    /// This version of the roster decides its audience and is not held yet. The entry is stored,
    /// and delivered and forwarded once the roster is held.
    NewerRoster(u64),
    /// It was withheld from this member, although every roster from its header's version on has
    /// this member in its audience.
    WronglyWithheld,
}

impl VerifiedBatch {
    /// Returns the total bytes of the envelopes.
    #[must_use]
    pub fn envelope_bytes(&self) -> usize {
        self.entries.iter().map(VerifiedEntry::envelope_bytes).sum()
    }
}

impl FindingKind {
    /// Returns the stable code.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Excluded => "excluded",
            Self::UndecodableHeader => "undecodable-header",
            Self::NotUnderstood => "not-understood",
            Self::Misdirected => "misdirected",
            Self::TooLarge => "too-large",
            Self::NewerRoster(_) => "newer-roster",
            Self::WronglyWithheld => "wrongly-withheld",
        }
    }

    /// Returns whether it requires an operator's attention.
    #[must_use]
    pub fn is_alarm(&self) -> bool {
        !matches!(self, Self::TooLarge | Self::NewerRoster(_))
    }
}

/// Verifies that `message` extends the feed, and decides which content of each entry `me` stores.
///
/// The newest roster lists the feed's keys for its epoch; all of them must have signed.
///
/// # Errors
/// A [`Fault`] of the sender; nothing of the batch may be stored then.
pub fn verify_entries(
    state: &FollowState,
    message: &proto::Entries,
    rosters: &RosterChain,
    me: &Member,
) -> Result<VerifiedBatch, Fault> {
    if message.feed.parse().as_ref() != Ok(&state.feed) {
        return Err(Fault::new(FaultKind::Malformed, format_args!("not entries of {}", state.feed)));
    }
    let first = state.compact_range.size();
    if message.first != first {
        let detail = format_args!("the batch begins at {}, expected {first}", message.first);
        return Err(Fault::new(FaultKind::Gap, detail));
    }
    let end = first + count_entries(&message.items)?;
    if end > TREE_SIZE_MAX {
        return Err(Fault::new(FaultKind::BadBounds, "the feed would pass the largest size"));
    }
    let consistency_proof = proof_hashes(&message.consistency_proof)?;
    let checkpoint = signed_checkpoint(state, &message.checkpoint, rosters)?;
    if checkpoint.checkpoint.size < end {
        let size = checkpoint.checkpoint.size;
        return Err(Fault::new(FaultKind::BadBounds, format_args!("the checkpoint of size {size} ends before {end}")));
    }

    let mut log =
        Log { compact_range: state.compact_range.clone(), watched: watched(state, first, end), watched_root: None };
    let mut received = Vec::with_capacity(usize::try_from(end - first).unwrap_or_default());
    for item in &message.items {
        match &item.item {
            Some(Item::Envelope(envelope)) => {
                let digest = envelope::digest(envelope);
                log.append(&digest);
                received.push((digest, Received::Envelope(envelope)));
            }
            Some(Item::Digests(run)) => {
                let reason = Undisclosed::from_code(&run.reason);
                for bytes in run.digests.as_chunks().0 {
                    let digest = Digest(*bytes);
                    log.append(&digest);
                    received.push((digest, Received::Digest(reason)));
                }
            }
            None => {}
        }
    }
    prove(state, &log, &checkpoint, &consistency_proof)?;

    let (owner, feed_sender) = (&state.feed.member, &state.feed_sender);
    let mut policy = ContentPolicy { owner, feed_sender, rosters, me, findings: Vec::new() };
    let entries =
        (first..).zip(received).map(|(index, (digest, received))| policy.entry(index, digest, received)).collect();
    let findings = policy.findings;
    let Log { compact_range, .. } = log;
    let (feed, feed_sender) = (state.feed.clone(), state.feed_sender.clone());
    Ok(VerifiedBatch { feed, feed_sender, first, entries, compact_range, checkpoint, consistency_proof, findings })
}

/// Content received for one entry.
#[derive(Clone, Copy)]
enum Received<'a> {
    Envelope(&'a Bytes),
    Digest(Undisclosed),
}

/// Counts the entries before anything is allocated or hashed for them.
fn count_entries(items: &[proto::Item]) -> Result<u64, Fault> {
    let (mut entries, mut envelope_bytes) = (0, 0);
    for item in items {
        match &item.item {
            Some(Item::Envelope(envelope)) => {
                // One entry is always allowed, so that the limit on envelopes can be raised.
                if envelope_bytes > BATCH_BYTES_MAX {
                    let detail = format_args!("more than {BATCH_BYTES_MAX} bytes of envelopes");
                    return Err(Fault::new(FaultKind::BadBounds, detail));
                }
                envelope_bytes += envelope.len();
                entries += 1;
            }
            Some(Item::Digests(run)) if !run.digests.is_empty() && run.digests.len() % 32 == 0 => {
                entries += run.digests.len() / 32;
            }
            Some(Item::Digests(run)) => {
                let detail = format_args!("a run of digests has {} bytes", run.digests.len());
                return Err(Fault::new(FaultKind::Malformed, detail));
            }
            None => return Err(Fault::new(FaultKind::Malformed, "an item is neither envelope nor digests")),
        }
        if entries > BATCH_ENTRIES_MAX {
            return Err(Fault::new(FaultKind::BadBounds, format_args!("more than {BATCH_ENTRIES_MAX} entries")));
        }
    }
    if entries == 0 {
        return Err(Fault::new(FaultKind::Malformed, "no entries"));
    }
    Ok(entries as u64)
}

fn proof_hashes(proof: &[Bytes]) -> Result<Vec<Hash>, Fault> {
    if proof.len() > PROOF_HASHES_MAX {
        return Err(Fault::new(FaultKind::BadBounds, format_args!("a proof of {} hashes", proof.len())));
    }
    let hash = |bytes: &Bytes| {
        let bytes: [u8; 32] = bytes.as_ref().try_into().map_err(|_| {
            Fault::new(FaultKind::Malformed, format_args!("a hash of the proof has {} bytes", bytes.len()))
        })?;
        Ok(Hash(bytes))
    };
    proof.iter().map(hash).collect()
}

/// Returns the verified checkpoint. A catch-up whose batches repeat one checkpoint costs one
/// verification.
fn signed_checkpoint(state: &FollowState, note: &Bytes, rosters: &RosterChain) -> Result<SignedCheckpoint, Fault> {
    let keys = rosters.newest().feed_keys(&state.feed);
    let Some(newest) = &state.newest else {
        return Ok(SignedCheckpoint::verify(note, &keys)?);
    };
    if newest.note == *note && !keys.is_empty() {
        return Ok(newest.clone());
    }
    let signed = SignedCheckpoint::verify(note, &keys)?;
    match Equivocation::between(newest, &signed) {
        Some(evidence) => Err(evidence.into()),
        None => Ok(signed),
    }
}

/// Returns the size of the known checkpoint if the batch reaches or passes it. The root at that
/// size must then match.
fn watched(state: &FollowState, first: u64, end: u64) -> Option<u64> {
    state.newest.as_ref().map(|newest| newest.checkpoint.size).filter(|size| (first + 1..=end).contains(size))
}

/// The tree as entries are appended.
struct Log {
    compact_range: CompactRange,
    /// Size at which the root is recorded.
    watched: Option<u64>,
    watched_root: Option<Hash>,
}

impl Log {
    fn append(&mut self, digest: &Digest) {
        self.compact_range.append(digest);
        if self.watched == Some(self.compact_range.size()) {
            self.watched_root = Some(self.compact_range.root());
        }
    }
}

/// Checks that the checkpoint commits to the tree, and that the tree matches the known checkpoint.
fn prove(state: &FollowState, log: &Log, signed: &SignedCheckpoint, proof: &[Hash]) -> Result<(), Fault> {
    let (size, root) = (log.compact_range.size(), log.compact_range.root());
    let checkpoint = &signed.checkpoint;
    if checkpoint.size == size {
        if !proof.is_empty() {
            return Err(Fault::new(FaultKind::BadProof, "a proof where none is needed"));
        }
        if checkpoint.root != root {
            let detail = format_args!("the entries have root {root}, the checkpoint has {}", checkpoint.root);
            return Err(Fault::new(FaultKind::BadRoot, detail));
        }
    } else {
        verify_consistency(size, &root, checkpoint.size, &checkpoint.root, proof)
            .map_err(|error| Fault::new(FaultKind::BadProof, error))?;
    }
    match (&state.newest, log.watched_root) {
        (Some(newest), Some(watched_root)) if newest.checkpoint.root != watched_root => {
            if let Some(evidence) = Equivocation::by_proof(newest, signed, &watched_root, proof) {
                return Err(evidence.into());
            }
            let detail =
                format_args!("at size {} the root differs from that of a known checkpoint", newest.checkpoint.size);
            Err(Fault::new(FaultKind::BadRoot, detail))
        }
        _ => Ok(()),
    }
}

/// Decides which content of each entry is stored.
struct ContentPolicy<'a> {
    owner: &'a Member,
    feed_sender: &'a Member,
    rosters: &'a RosterChain,
    me: &'a Member,
    findings: Vec<Finding>,
}

impl ContentPolicy<'_> {
    fn entry(&mut self, index: u64, digest: Digest, received: Received<'_>) -> VerifiedEntry {
        let (content, pending_roster) = match received {
            Received::Digest(reason) => (VerifiedContent::Undisclosed(reason), None),
            Received::Envelope(envelope) => self.envelope(index, envelope),
        };
        VerifiedEntry { digest, content, pending_roster }
    }

    fn envelope(&mut self, index: u64, envelope: &Bytes) -> (VerifiedContent, Option<u64>) {
        if envelope.len() > ENVELOPE_BYTES_MAX {
            return self.digest_only(index, Undisclosed::TooLarge, FindingKind::TooLarge);
        }
        let Ok(header) = envelope::header_of(envelope) else {
            return self.digest_only(index, Undisclosed::NotUnderstood, FindingKind::UndecodableHeader);
        };
        let from_owner = self.feed_sender == self.owner;
        let mut pending_roster = None;
        match eligibility(&header, self.me, self.rosters) {
            Eligibility::Reader => {}
            Eligibility::JoinedLater if from_owner => {}
            Eligibility::NewerRoster { version } => {
                pending_roster = Some(version);
                self.find(index, FindingKind::NewerRoster(version));
            }
            Eligibility::NotUnderstood => {
                return self.digest_only(index, Undisclosed::NotUnderstood, FindingKind::NotUnderstood);
            }
            Eligibility::Excluded | Eligibility::JoinedLater => {
                return self.digest_only(index, Undisclosed::Excluded, FindingKind::Excluded);
            }
        }
        if header.member != self.owner.as_str() {
            self.find(index, FindingKind::Misdirected);
        }
        (VerifiedContent::Disclosed { envelope: envelope.clone(), header: Some(Arc::new(header)) }, pending_roster)
    }

    fn digest_only(&mut self, index: u64, reason: Undisclosed, kind: FindingKind) -> (VerifiedContent, Option<u64>) {
        self.find(index, kind);
        (VerifiedContent::Undisclosed(reason), None)
    }

    fn find(&mut self, index: u64, kind: FindingKind) {
        self.findings.push(Finding { index, kind });
    }
}
