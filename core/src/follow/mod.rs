//! The follower: what a peer sent of a feed either continues the copy held here, proven, or is a fault.
//!
//! In scope: verifying one batch against the edge of the tree held ([`verify_entries`]), an urgent entry that comes ahead of it
//! ([`verify_express`]), and content that comes later against the digests held ([`verify_fills`]); what is kept of each entry, who at home may be given it ([`delivery()`]), and noticing two histories
//! ([`ForkEvidence`]). Out of scope: fetching, storing, cosigning, and what
//! a peer may read ([`crate::provide`]).
//!
//! A fault of the log (signature, proof, root, bounds) refuses the batch whole. Nothing that stands *in* an entry does: what has the
//! right hash is appended, and what is odd about it is a [`Finding`].

mod delivery;
mod equivocation;
mod express;
mod fault;
mod fill;
mod forks;
mod reduce;
#[cfg(test)]
mod tests;
mod two_entries;

use std::sync::Arc;

use bytes::Bytes;

pub use delivery::{Delivery, NeverDelivered, delivery};
pub use equivocation::{Claims, Equivocation, EquivocationError, HEADING as EQUIVOCATION_HEADING};
pub use express::{VerifiedExpress, verify_express};
pub use fault::{Fault, FaultKind};
pub use fill::{VerifiedFill, VerifiedFills, verify_fills};
pub use forks::{Decided, ForkClaims, ForkEvidence};
pub use two_entries::{ClaimedEntry, EntriesClaims, HEADING as TWO_ENTRIES_HEADING, ProvenEntry, TwoEntries};

use crate::envelope;
use crate::feed::checkpoint::SignedCheckpoint;
use crate::feed::tree::{Frontier, TREE_SIZE_MAX, verify_consistency};
use crate::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, ENVELOPE_BYTES_MAX, PROOF_HASHES_MAX};
use crate::names::{Digest, FeedId, Hash, Member, Undisclosed};
use crate::proto;
use crate::proto::item::Item;
use crate::roster::RosterChain;
use delivery::{Standing, standing};

/// Where a followed feed stands here. A batch must begin exactly at the frontier's size.
#[derive(Clone, Debug)]
pub struct FollowState {
    /// Which feed.
    pub feed: FeedId,
    /// Right edge of the tree held.
    pub frontier: Frontier,
    /// Largest verified checkpoint seen since following began. Its signature is not verified again, and it must not be contradicted.
    pub newest: Option<SignedCheckpoint>,
    /// Who sends it: its owner, who alone may hand history to members that joined later, or another peer.
    pub provider: Member,
}

impl FollowState {
    /// Follows `feed` at its owner, from what is held.
    #[must_use]
    pub fn new(feed: FeedId, frontier: Frontier) -> Self {
        let provider = feed.member.clone();
        Self { feed, frontier, newest: None, provider }
    }

    /// Follows it at another peer.
    #[must_use]
    pub fn at(self, provider: Member) -> Self {
        Self { provider, ..self }
    }

    /// Takes a verified batch in. Nothing else may have been taken in since it was verified.
    pub fn advance(&mut self, batch: &VerifiedBatch) {
        self.frontier.clone_from(&batch.frontier);
        let newer = |newest: &SignedCheckpoint| newest.checkpoint.size >= batch.checkpoint.checkpoint.size;
        if !self.newest.as_ref().is_some_and(newer) {
            self.newest = Some(batch.checkpoint.clone());
        }
    }
}

/// Entries that continue a feed, proven by a checkpoint that its owner signed.
#[derive(Clone, Debug)]
pub struct VerifiedBatch {
    /// Which feed.
    pub feed: FeedId,
    /// Who sent it.
    pub provider: Member,
    /// Index of the first entry.
    pub first: u64,
    /// The entries, at least one.
    pub entries: Vec<VerifiedEntry>,
    /// Right edge of the tree with them.
    pub frontier: Frontier,
    /// What proves them: of the frontier's size or larger.
    pub checkpoint: SignedCheckpoint,
    /// From the frontier's size to the checkpoint's; empty when these are equal.
    pub consistency_proof: Vec<Hash>,
    /// What is odd about single entries, by index.
    pub findings: Vec<Finding>,
}

/// One entry as it is kept.
#[derive(Clone, Debug)]
pub struct VerifiedEntry {
    /// SHA-256 of the envelope.
    pub digest: Digest,
    /// The envelope, or why it is not held.
    pub content: VerifiedContent,
    /// The roster version that has to be fetched before this is delivered or forwarded.
    pub held_back: Option<u64>,
}

/// What is kept of an entry.
#[derive(Clone, Debug)]
pub enum VerifiedContent {
    /// Content.
    Disclosed {
        /// Exact bytes, sharing the message's memory.
        envelope: Bytes,
        /// Decoded header; `None` if it cannot be decoded.
        header: Option<Arc<proto::Header>>,
    },
    /// The digest only.
    Undisclosed(Undisclosed),
}

/// Something odd about one entry. It never stops the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Index in the feed.
    pub index: u64,
    /// What.
    pub what: What,
}

/// What is odd about an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It was sent to us though we are not in its audience; only the digest is kept.
    Excluded,
    /// Its envelope or header cannot be read, so its audience is nobody; only the digest is kept.
    UndecodableHeader,
    /// Its header has a format or handling that this version does not understand, so its audience is nobody; only the digest is kept.
    NotUnderstood,
    /// Its header names another member than the feed's owner; kept, never delivered.
    Misdirected,
    /// It is larger than what this version takes in full; only the digest is kept.
    TooLarge,
    /// Its audience is decided by this version of the roster, which is not held yet; kept, delivered and forwarded once it is.
    NewerRoster(u64),
    /// It was withheld from us, and every roster from its header's on has us in its audience.
    WronglyWithheld,
}

impl VerifiedBatch {
    /// Bytes of the envelopes in it.
    #[must_use]
    pub fn envelope_bytes(&self) -> usize {
        self.entries.iter().map(VerifiedEntry::envelope_bytes).sum()
    }
}

impl What {
    /// A stable word.
    #[must_use]
    pub fn word(&self) -> &'static str {
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

    /// Whether an operator must look at it.
    #[must_use]
    pub fn is_alarm(&self) -> bool {
        !matches!(self, Self::TooLarge | Self::NewerRoster(_))
    }
}

/// Verifies that `message` continues the feed, and decides what `me` keeps of each entry.
///
/// The feed's keys are those that the newest roster lists for its epoch, all of which must have signed.
///
/// # Errors
/// A [`Fault`] of the sender; nothing of the batch may be kept then.
pub fn verify_entries(
    state: &FollowState,
    message: &proto::Entries,
    rosters: &RosterChain,
    me: &Member,
) -> Result<VerifiedBatch, Fault> {
    if message.feed.parse().as_ref() != Ok(&state.feed) {
        return Err(Fault::new(FaultKind::Malformed, format_args!("not entries of {}", state.feed)));
    }
    let first = state.frontier.size();
    if message.first != first {
        let detail = format_args!("the batch begins at {}, {first} is next", message.first);
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

    let mut log = Log { frontier: state.frontier.clone(), watched: watched(state, first, end), root_there: None };
    let mut received = Vec::with_capacity(usize::try_from(end - first).unwrap_or_default());
    for item in &message.items {
        match &item.item {
            Some(Item::Envelope(envelope)) => {
                let digest = envelope::digest(envelope);
                log.append(&digest);
                received.push((digest, Received::Envelope(envelope)));
            }
            Some(Item::Digests(run)) => {
                let reason = Undisclosed::from_word(&run.reason);
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

    let (owner, provider) = (&state.feed.member, &state.provider);
    let mut keep = Keep { owner, provider, rosters, me, findings: Vec::new() };
    let entries =
        (first..).zip(received).map(|(index, (digest, received))| keep.entry(index, digest, received)).collect();
    let findings = keep.findings;
    let Log { frontier, .. } = log;
    let (feed, provider) = (state.feed.clone(), state.provider.clone());
    Ok(VerifiedBatch { feed, provider, first, entries, frontier, checkpoint, consistency_proof, findings })
}

/// What came for one place.
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
                // One entry always fits, so that the limit on envelopes can grow.
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

/// The checkpoint, verified; a catch-up that repeats one costs one verification.
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

/// The known checkpoint that this batch reaches or passes, whose root it must then have.
fn watched(state: &FollowState, first: u64, end: u64) -> Option<u64> {
    state.newest.as_ref().map(|newest| newest.checkpoint.size).filter(|size| (first + 1..=end).contains(size))
}

/// The tree as it grows.
struct Log {
    frontier: Frontier,
    /// A size at which the root is of interest.
    watched: Option<u64>,
    root_there: Option<Hash>,
}

impl Log {
    fn append(&mut self, digest: &Digest) {
        self.frontier.append(digest);
        if self.watched == Some(self.frontier.size()) {
            self.root_there = Some(self.frontier.root());
        }
    }
}

/// That the checkpoint vouches for the tree, and that the tree has what an earlier checkpoint promised.
fn prove(state: &FollowState, log: &Log, signed: &SignedCheckpoint, proof: &[Hash]) -> Result<(), Fault> {
    let (size, root) = (log.frontier.size(), log.frontier.root());
    let checkpoint = &signed.checkpoint;
    if checkpoint.size == size {
        if !proof.is_empty() {
            return Err(Fault::new(FaultKind::BadProof, "a proof where none is needed"));
        }
        if checkpoint.root != root {
            let detail = format_args!("the entries lead to root {root}, the checkpoint says {}", checkpoint.root);
            return Err(Fault::new(FaultKind::BadRoot, detail));
        }
    } else {
        verify_consistency(size, &root, checkpoint.size, &checkpoint.root, proof)
            .map_err(|error| Fault::new(FaultKind::BadProof, error))?;
    }
    match (&state.newest, log.root_there) {
        (Some(newest), Some(there)) if newest.checkpoint.root != there => {
            if let Some(evidence) = Equivocation::by_proof(newest, signed, &there, proof) {
                return Err(evidence.into());
            }
            let detail =
                format_args!("another root at size {} than a checkpoint that is known", newest.checkpoint.size);
            Err(Fault::new(FaultKind::BadRoot, detail))
        }
        _ => Ok(()),
    }
}

/// Decides what is kept of each entry.
struct Keep<'a> {
    owner: &'a Member,
    provider: &'a Member,
    rosters: &'a RosterChain,
    me: &'a Member,
    findings: Vec<Finding>,
}

impl Keep<'_> {
    fn entry(&mut self, index: u64, digest: Digest, received: Received<'_>) -> VerifiedEntry {
        let (content, held_back) = match received {
            Received::Digest(reason) => (VerifiedContent::Undisclosed(reason), None),
            Received::Envelope(envelope) => self.envelope(index, envelope),
        };
        VerifiedEntry { digest, content, held_back }
    }

    fn envelope(&mut self, index: u64, envelope: &Bytes) -> (VerifiedContent, Option<u64>) {
        if envelope.len() > ENVELOPE_BYTES_MAX {
            return self.only_digest(index, Undisclosed::TooLarge, What::TooLarge);
        }
        let Ok(header) = envelope::header_of(envelope) else {
            return self.only_digest(index, Undisclosed::NotUnderstood, What::UndecodableHeader);
        };
        let from_owner = self.provider == self.owner;
        let mut held_back = None;
        match standing(&header, self.me, self.rosters) {
            Standing::Reader => {}
            Standing::Later if from_owner => {}
            Standing::NewerRoster { version } => {
                held_back = Some(version);
                self.find(index, What::NewerRoster(version));
            }
            Standing::NotUnderstood => {
                return self.only_digest(index, Undisclosed::NotUnderstood, What::NotUnderstood);
            }
            Standing::Excluded | Standing::Later => {
                return self.only_digest(index, Undisclosed::Excluded, What::Excluded);
            }
        }
        if header.member != self.owner.as_str() {
            self.find(index, What::Misdirected);
        }
        (VerifiedContent::Disclosed { envelope: envelope.clone(), header: Some(Arc::new(header)) }, held_back)
    }

    fn only_digest(&mut self, index: u64, reason: Undisclosed, what: What) -> (VerifiedContent, Option<u64>) {
        self.find(index, what);
        (VerifiedContent::Undisclosed(reason), None)
    }

    fn find(&mut self, index: u64, what: What) {
        self.findings.push(Finding { index, what });
    }
}
