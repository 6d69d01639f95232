//! The follower: one batch of a peer's feed in, a verified append or a fault out.
//!
//! In scope: bounds, digests, the root against the signed checkpoint, and what of the content may be kept. Out of scope: storing,
//! cosigning, fetching what is missing. Faults of the *log* refuse a batch whole; nothing in the *content* ever does: an entry with
//! a right hash is appended, at least as its digest.

use std::sync::Arc;

use bytes::Bytes;

use crate::bulletin::audience::may_read;
use crate::feed::checkpoint::SignedCheckpoint;
use crate::feed::note::Note;
use crate::feed::tree::{Frontier, verify_consistency};
use crate::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, ENVELOPE_BYTES_MAX, PROOF_HASHES_MAX};
use crate::names::{Digest, FeedId, Hash, Member, Undisclosed};
use crate::roster::RosterChain;
use crate::{envelope, proto};

/// Where a followed feed stands at the follower.
#[derive(Clone, Debug)]
pub struct FollowState {
    /// The feed.
    pub feed: FeedId,
    /// Right edge of its tree as held.
    pub frontier: Frontier,
    verified: Option<SignedCheckpoint>,
}

/// A batch whose every hash is vouched for by the feed's signed checkpoint.
#[derive(Clone, Debug)]
pub struct VerifiedBatch {
    /// The feed.
    pub feed: FeedId,
    /// Index of the first entry: the size held before.
    pub first: u64,
    /// The entries, as they may be kept.
    pub entries: Vec<VerifiedEntry>,
    /// Right edge after them.
    pub frontier: Frontier,
    /// The checkpoint, of this size or larger.
    pub checkpoint: SignedCheckpoint,
    /// Proof from the size after this batch to the checkpoint's; empty when equal.
    pub consistency_proof: Vec<Hash>,
    /// What an operator or the link should know of the content.
    pub findings: Vec<Finding>,
}

/// One entry of a batch.
#[derive(Clone, Debug)]
pub struct VerifiedEntry {
    /// SHA-256 of its envelope.
    pub digest: Digest,
    /// What may be kept of it.
    pub content: VerifiedContent,
}

/// What may be kept of an entry.
#[derive(Clone, Debug)]
pub enum VerifiedContent {
    /// All of it.
    Disclosed {
        /// Exact bytes.
        envelope: Bytes,
        /// Its header.
        header: Option<Arc<proto::Header>>,
    },
    /// The digest.
    Undisclosed(Undisclosed),
}

/// Something about the content of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its index.
    pub index: u64,
    /// What.
    pub what: What,
}

/// What can be found in content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It was sent to us though we are not in its audience; only the digest was kept.
    Excluded,
    /// Its header cannot be read, so its audience is nobody; only the digest was kept.
    UndecodableHeader,
    /// Its header names another member than the feed's owner; kept, never delivered.
    Misdirected,
    /// It is larger than what this version takes in full; only the digest was kept.
    TooLarge,
    /// Its audience is decided by a roster that is not held yet; kept, delivered and forwarded once it is.
    NewerRoster(u64),
}

/// Why a batch was refused whole.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {detail}", .kind.word())]
pub struct Fault {
    /// Which fault.
    pub kind: FaultKind,
    /// For people.
    pub detail: String,
}

/// Faults of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The checkpoint is not signed by the feed's keys.
    BadSignature,
    /// The consistency proof does not hold, or the entries give another root.
    BadProof,
    /// The entries give another root than the checkpoint of the same size.
    BadRoot,
    /// More than a batch may hold, or a size that does not fit.
    BadBounds,
    /// Not in the form that docs/protocol.md gives.
    Malformed,
    /// The batch does not begin where the feed is held to.
    Gap,
    /// Two checkpoints of one size, both signed, with different roots.
    Equivocation {
        /// The note held.
        held: Bytes,
        /// The note shown.
        shown: Bytes,
    },
}

impl FollowState {
    /// A feed held up to `frontier`.
    #[must_use]
    pub fn new(feed: FeedId, frontier: Frontier) -> Self {
        Self { feed, frontier, verified: None }
    }

    /// Moves on behind a batch that was verified against this state.
    pub fn advance(&mut self, batch: &VerifiedBatch) {
        self.frontier = batch.frontier.clone();
        self.verified = Some(batch.checkpoint.clone());
    }

    /// The checkpoint of a batch; its signatures are checked once for a whole catch-up.
    fn checkpoint(&self, note: &Bytes, rosters: &RosterChain) -> Result<SignedCheckpoint, Fault> {
        if let Some(known) = self.verified.as_ref().filter(|known| known.note == *note) {
            return Ok(known.clone());
        }
        Note::parse(note).map_err(|error| fault(FaultKind::Malformed, error.to_string()))?;
        let keys = rosters.newest().feed_keys(&self.feed);
        let signed =
            SignedCheckpoint::verify(note, &keys).map_err(|error| fault(FaultKind::BadSignature, error.to_string()))?;
        if signed.checkpoint.feed != self.feed {
            return Err(fault(FaultKind::BadSignature, format!("a checkpoint of {}", signed.checkpoint.feed)));
        }
        if let Some(known) = &self.verified
            && known.checkpoint.size == signed.checkpoint.size
            && known.checkpoint.root != signed.checkpoint.root
        {
            let kind = FaultKind::Equivocation { held: known.note.clone(), shown: signed.note };
            return Err(fault(kind, format!("two roots at size {}", known.checkpoint.size)));
        }
        Ok(signed)
    }
}

impl VerifiedBatch {
    /// Bytes of the envelopes in it.
    #[must_use]
    pub fn envelope_bytes(&self) -> usize {
        let bytes = |entry: &VerifiedEntry| match &entry.content {
            VerifiedContent::Disclosed { envelope, .. } => envelope.len(),
            VerifiedContent::Undisclosed(_) => 0,
        };
        self.entries.iter().map(bytes).sum()
    }
}

impl What {
    /// A stable word.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Excluded => "excluded",
            Self::UndecodableHeader => "undecodable-header",
            Self::Misdirected => "misdirected",
            Self::TooLarge => "too-large",
            Self::NewerRoster(_) => "newer-roster",
        }
    }

    /// Whether an operator must look at it.
    #[must_use]
    pub fn is_alarm(&self) -> bool {
        matches!(self, Self::Excluded | Self::UndecodableHeader | Self::Misdirected)
    }
}

impl FaultKind {
    /// The word on the wire (`Fault.reason`).
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::BadSignature => "bad-signature",
            Self::BadProof => "bad-proof",
            Self::BadRoot => "bad-root",
            Self::BadBounds => "bad-bounds",
            Self::Malformed => "malformed",
            Self::Gap => "gap",
            Self::Equivocation { .. } => "equivocation",
        }
    }
}

/// Verifies a batch against the feed as held. `me` is the follower.
///
/// # Errors
/// [`Fault`]; nothing of the batch may be kept then.
pub fn verify_entries(
    state: &FollowState,
    batch: &proto::Entries,
    rosters: &RosterChain,
    me: &Member,
) -> Result<VerifiedBatch, Fault> {
    let first = state.frontier.size();
    if batch.first != first {
        return Err(fault(FaultKind::Gap, format!("begins at {}, held to {first}", batch.first)));
    }
    check_bounds(batch)?;
    let checkpoint = state.checkpoint(&batch.checkpoint, rosters)?;
    let mut taking =
        Taking { state, rosters, me, frontier: state.frontier.clone(), entries: Vec::new(), findings: Vec::new() };
    for item in &batch.items {
        match &item.item {
            Some(proto::item::Item::Envelope(bytes)) => taking.envelope(bytes),
            Some(proto::item::Item::Digests(run)) => taking.digests(run),
            None => return Err(fault(FaultKind::Malformed, "an item that this version does not know")),
        }
    }
    let Taking { frontier, entries, findings, .. } = taking;
    let (size, root) = (checkpoint.checkpoint.size, checkpoint.checkpoint.root);
    if frontier.size() > size {
        return Err(fault(
            FaultKind::BadBounds,
            format!("ends at {}, behind its checkpoint of {size}", frontier.size()),
        ));
    }
    let consistency_proof = batch
        .consistency_proof
        .iter()
        .map(|hash| hash.as_ref().try_into().map(Hash))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| fault(FaultKind::Malformed, "a proof's hash that is not 32 bytes long"))?;
    let kind = if frontier.size() == size { FaultKind::BadRoot } else { FaultKind::BadProof };
    verify_consistency(frontier.size(), &frontier.root(), size, &root, &consistency_proof)
        .map_err(|error| fault(kind, error.to_string()))?;
    Ok(VerifiedBatch { feed: state.feed.clone(), first, entries, frontier, checkpoint, consistency_proof, findings })
}

fn check_bounds(batch: &proto::Entries) -> Result<(), Fault> {
    let (mut entries, mut bytes) = (0_usize, 0_usize);
    for item in &batch.items {
        match &item.item {
            Some(proto::item::Item::Envelope(envelope)) => {
                entries += 1;
                bytes = bytes.saturating_add(envelope.len());
            }
            Some(proto::item::Item::Digests(run)) => {
                if run.digests.is_empty() || run.digests.len() % 32 != 0 {
                    return Err(fault(FaultKind::Malformed, "a run of digests that is not a multiple of 32 bytes"));
                }
                entries += run.digests.len() / 32;
            }
            None => {}
        }
    }
    if entries > BATCH_ENTRIES_MAX || (bytes > BATCH_BYTES_MAX && entries > 1) {
        return Err(fault(FaultKind::BadBounds, format!("{entries} entries of {bytes} bytes")));
    }
    if batch.consistency_proof.len() > PROOF_HASHES_MAX {
        return Err(fault(FaultKind::BadBounds, format!("a proof of {} hashes", batch.consistency_proof.len())));
    }
    Ok(())
}

/// A batch on its way into the tree.
struct Taking<'a> {
    state: &'a FollowState,
    rosters: &'a RosterChain,
    me: &'a Member,
    frontier: Frontier,
    entries: Vec<VerifiedEntry>,
    findings: Vec<Finding>,
}

impl Taking<'_> {
    fn envelope(&mut self, bytes: &Bytes) {
        let digest = envelope::digest(bytes);
        let index = self.frontier.size();
        let (content, what) = self.judge(bytes);
        self.findings.extend(what.map(|what| Finding { index, what }));
        self.push(digest, content);
    }

    fn digests(&mut self, run: &proto::DigestRun) {
        let reason = Undisclosed::from_word(&run.reason);
        let (digests, _) = run.digests.as_chunks::<32>();
        for digest in digests {
            self.push(Digest(*digest), VerifiedContent::Undisclosed(reason));
        }
    }

    fn push(&mut self, digest: Digest, content: VerifiedContent) {
        self.frontier.append(&digest);
        self.entries.push(VerifiedEntry { digest, content });
    }

    /// What may be kept of an envelope. The audience is asked of the header's roster only: the sender asks the newest one too.
    fn judge(&self, bytes: &Bytes) -> (VerifiedContent, Option<What>) {
        let only_digest = |reason, what| (VerifiedContent::Undisclosed(reason), Some(what));
        if bytes.len() > ENVELOPE_BYTES_MAX {
            return only_digest(Undisclosed::NotHeld, What::TooLarge);
        }
        let Ok(header) = envelope::header_of(bytes) else {
            return only_digest(Undisclosed::Excluded, What::UndecodableHeader);
        };
        let newest = self.rosters.newest().version();
        let what = match self.rosters.at(header.roster_version) {
            Some(roster) if !may_read(&header, self.me, roster) => {
                return only_digest(Undisclosed::Excluded, What::Excluded);
            }
            None if header.roster_version <= newest => return only_digest(Undisclosed::Excluded, What::Excluded),
            Some(_) if header.member != self.state.feed.member.as_str() => Some(What::Misdirected),
            Some(_) => None,
            None => Some(What::NewerRoster(header.roster_version)),
        };
        (VerifiedContent::Disclosed { envelope: bytes.clone(), header: Some(Arc::new(header)) }, what)
    }
}

fn fault(kind: FaultKind, detail: impl Into<String>) -> Fault {
    Fault { kind, detail: detail.into() }
}
