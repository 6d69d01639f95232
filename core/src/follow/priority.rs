//! Verifies a priority entry: one urgent entry ahead of its feed's order, with its own proof.
//!
//! In scope: verifying the proof, and which content of the entry is stored, by the same rules as
//! for a batch. Out of scope: whether it is already held, and matching it when the feed reaches it
//! (the store).

use bytes::Bytes;

use super::{ContentPolicy, Equivocation, Fault, FaultKind, Finding, VerifiedContent, VerifiedEntry, proof_hashes};
use crate::bulletin::{Priority, header_priority};
use crate::envelope;
use crate::feed::checkpoint::SignedCheckpoint;
use crate::feed::tree::{TREE_SIZE_MAX, verify_inclusion};
use crate::ids::{FeedId, Hash, Member};
use crate::proto;
use crate::roster::RosterChain;

/// An entry with a proof that a signed checkpoint includes it at an index of a feed.
#[derive(Clone, Debug)]
pub struct VerifiedPriority {
    /// The feed.
    pub feed: FeedId,
    /// The member that sent it.
    pub feed_sender: Member,
    /// Its index in the feed.
    pub index: u64,
    /// The entry in the form in which it is stored. An entry reduced to its digest is not stored
    /// ahead of the order.
    pub entry: VerifiedEntry,
    /// Its priority class; `None` if this version does not consider it urgent. It then waits for
    /// its feed to reach it.
    pub class: Option<Priority>,
    /// The checkpoint that proves it.
    pub checkpoint: SignedCheckpoint,
    /// Inclusion proof to the checkpoint's root.
    pub proof: Vec<Hash>,
    /// Anomalies of the entry.
    pub findings: Vec<Finding>,
}

impl VerifiedPriority {
    /// Returns its envelope if it is stored ahead of the order: the entry is urgent and this member
    /// may read it.
    #[must_use]
    pub fn envelope(&self) -> Option<&Bytes> {
        match &self.entry.content {
            VerifiedContent::Disclosed { envelope, .. } if self.class.is_some() => Some(envelope),
            _ => None,
        }
    }
}

/// Verifies one entry of `feed` that `feed_sender` sent ahead of the order, and decides which
/// content `me` stores. `newest` is a verified checkpoint of the feed, if one is known. Its
/// signature is not verified again, and the entry's checkpoint must not contradict it.
///
/// # Errors
/// A [`Fault`] of the sender, or [`FaultKind::Equivocation`] of the feed's owner; nothing may be
/// stored then.
pub fn verify_priority(
    feed: &FeedId,
    feed_sender: &Member,
    message: &proto::PriorityEntry,
    newest: Option<&SignedCheckpoint>,
    rosters: &RosterChain,
    me: &Member,
) -> Result<VerifiedPriority, Fault> {
    if message.feed.parse().as_ref() != Ok(feed) {
        return Err(Fault::new(FaultKind::Malformed, format_args!("not an entry of {feed}")));
    }
    if message.index >= TREE_SIZE_MAX {
        return Err(Fault::new(FaultKind::BadBounds, "the entry is beyond the largest size"));
    }
    if message.envelope.is_empty() {
        return Err(Fault::new(FaultKind::Malformed, "no envelope"));
    }
    let proof = proof_hashes(&message.inclusion_proof)?;
    let keys = rosters.newest().feed_keys(feed);
    let checkpoint = match newest {
        Some(newest) if newest.note == message.checkpoint && !keys.is_empty() => newest.clone(),
        _ => SignedCheckpoint::verify(&message.checkpoint, &keys)?,
    };
    if checkpoint.checkpoint.feed != *feed {
        return Err(Fault::new(FaultKind::Malformed, format_args!("not a checkpoint of {feed}")));
    }
    let digest = envelope::digest(&message.envelope);
    let (size, root) = (checkpoint.checkpoint.size, &checkpoint.checkpoint.root);
    verify_inclusion(&digest, message.index, size, &proof, root)
        .map_err(|error| Fault::new(FaultKind::BadProof, error))?;
    if let Some(evidence) = newest.and_then(|newest| Equivocation::between(newest, &checkpoint)) {
        return Err(evidence.into());
    }
    let mut policy = ContentPolicy { owner: &feed.member, feed_sender, rosters, me, findings: Vec::new() };
    let (content, pending_roster) = policy.envelope(message.index, &message.envelope);
    let class = match &content {
        VerifiedContent::Disclosed { header: Some(header), .. } => header_priority(header),
        _ => None,
    };
    let findings = policy.findings;
    let entry = VerifiedEntry { digest, content, pending_roster };
    let (feed, feed_sender, index) = (feed.clone(), feed_sender.clone(), message.index);
    Ok(VerifiedPriority { feed, feed_sender, index, entry, class, checkpoint, proof, findings })
}
