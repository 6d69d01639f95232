//! Replacements for decisions of core: the injected defects, and some dishonest members.

use std::collections::BTreeMap;
use std::sync::Arc;

use barid_core::bulletin::audience::may_read;
use barid_core::bulletin::header_priority;
use barid_core::envelope;
use barid_core::feed::checkpoint::SignedCheckpoint;
use barid_core::follow::{
    Fault, FaultKind, FollowState, VerifiedBackfill, VerifiedBackfills, VerifiedBatch, VerifiedContent, VerifiedEntry,
    VerifiedPriority,
};
use barid_core::ids::{Digest, FeedId, Hash, Member, Undisclosed};
use barid_core::proto;
use barid_core::proto::item::Item;
use barid_core::roster::RosterChain;
use bytes::Bytes;

use crate::backfill::UndisclosedEntries;
use crate::node::{Content, Entry, Log};

/// An entry in full, whatever the audience.
pub(crate) fn everything(entry: &Entry) -> proto::Item {
    let item = match &entry.content {
        Content::Disclosed { envelope, .. } => Item::Envelope(envelope.clone()),
        Content::Undisclosed(_) => digest(entry, Undisclosed::NotHeld),
    };
    proto::Item { item: Some(item) }
}

fn digest(entry: &Entry, reason: Undisclosed) -> Item {
    let digests = Bytes::copy_from_slice(&entry.digest.0);
    Item::Digests(proto::DigestRun { digests, reason: reason.as_str().to_owned() })
}

/// Entries as served if only the newest roster decided the audience.
pub(crate) fn by_newest(held: &[Entry], reader: &Member, rosters: &RosterChain) -> Vec<proto::Item> {
    let item = |entry: &Entry| match &entry.content {
        Content::Disclosed { header: Some(header), .. } if may_read(header, reader, rosters.newest()) => {
            everything(entry)
        }
        _ => proto::Item { item: Some(digest(entry, Undisclosed::Withheld)) },
    };
    held.iter().map(item).collect()
}

/// Reports all digests of a batch as withheld.
pub(crate) fn blaming(mut message: proto::Entries) -> proto::Entries {
    for item in &mut message.items {
        if let Some(Item::Digests(run)) = &mut item.item {
            run.reason = Undisclosed::Withheld.as_str().to_owned();
        }
    }
    message
}

/// Replaces all content of a batch by digests reported as withheld.
pub(crate) fn withholding(mut message: proto::Entries) -> proto::Entries {
    for item in &mut message.items {
        if let Some(Item::Envelope(envelope)) = &item.item {
            let digests = Bytes::copy_from_slice(&envelope::digest(envelope).0);
            let run = proto::DigestRun { digests, reason: Undisclosed::Withheld.as_str().to_owned() };
            item.item = Some(Item::Digests(run));
        }
    }
    message
}

/// Serves the content held in these ranges to any peer.
pub(crate) fn anything(log: Option<&Log>, feed: &FeedId, ranges: &[proto::IndexRange]) -> proto::BackfillResponse {
    let size = log.map_or(0, |log| log.tree.size());
    let envelope = |index: u64| match log?.entry(index)? {
        Entry { content: Content::Disclosed { envelope, .. }, .. } => {
            Some(proto::Backfill { index, envelope: envelope.clone() })
        }
        Entry { .. } => None,
    };
    let indexes = ranges.iter().flat_map(|range| range.start..range.end.min(size));
    let items = indexes.filter_map(envelope).collect();
    proto::BackfillResponse { feed: feed.to_string(), items, scanned_to: ranges.last().map_or(0, |range| range.end) }
}

/// Backfilled content without verification.
pub(crate) fn unverified_backfill(
    feed: &FeedId,
    message: &proto::BackfillResponse,
    undisclosed: &UndisclosedEntries,
) -> VerifiedBackfills {
    let entry = |backfill: &proto::Backfill| {
        let (digest, _) = undisclosed.get(&backfill.index)?;
        let header = envelope::header_of(&backfill.envelope).ok().map(Arc::new);
        let (index, envelope) = (backfill.index, backfill.envelope.clone());
        Some(VerifiedBackfill { index, digest: *digest, envelope, header, pending_roster: None })
    };
    VerifiedBackfills {
        feed: feed.clone(),
        feed_sender: feed.member.clone(),
        entries: message.items.iter().filter_map(entry).collect(),
        findings: Vec::new(),
    }
}

/// A priority entry without a check of its proof and audience.
pub(crate) fn unverified_priority(
    feed: &FeedId,
    message: &proto::PriorityEntry,
    newest: Option<&SignedCheckpoint>,
) -> Option<VerifiedPriority> {
    let header = envelope::header_of(&message.envelope).ok()?;
    let hash = |bytes: &Bytes| <[u8; 32]>::try_from(bytes.as_ref()).ok().map(Hash);
    Some(VerifiedPriority {
        feed: feed.clone(),
        feed_sender: feed.member.clone(),
        index: message.index,
        class: header_priority(&header),
        entry: VerifiedEntry {
            digest: envelope::digest(&message.envelope),
            content: VerifiedContent::Disclosed { envelope: message.envelope.clone(), header: Some(Arc::new(header)) },
            pending_roster: None,
        },
        checkpoint: newest?.clone(),
        proof: message.inclusion_proof.iter().filter_map(hash).collect(),
        findings: Vec::new(),
    })
}

/// A batch without verification of the log.
pub(crate) fn unverified(state: &FollowState, message: &proto::Entries, fault: Fault) -> Result<VerifiedBatch, Fault> {
    let wrong = matches!(fault.kind, FaultKind::BadRoot | FaultKind::BadProof);
    let Some(checkpoint) = state.newest.clone().filter(|_| wrong) else { return Err(fault) };
    let mut compact_range = state.compact_range.clone();
    let mut entries = Vec::new();
    for item in &message.items {
        let Some(Item::Envelope(envelope)) = &item.item else { continue };
        let digest = envelope::digest(envelope);
        compact_range.append(&digest);
        let content = VerifiedContent::Disclosed { envelope: envelope.clone(), header: None };
        entries.push(VerifiedEntry { digest, content, pending_roster: None });
    }
    Ok(VerifiedBatch {
        feed: state.feed.clone(),
        feed_sender: state.feed_sender.clone(),
        first: state.compact_range.size(),
        entries,
        compact_range,
        checkpoint,
        consistency_proof: Vec::new(),
        findings: Vec::new(),
    })
}

/// Restores the content that the audience check had removed from a batch.
pub(crate) fn accept_everything(batch: &mut VerifiedBatch, message: &proto::Entries) {
    let envelopes = message.items.iter().filter_map(|item| match &item.item {
        Some(Item::Envelope(envelope)) => Some((envelope::digest(envelope), envelope)),
        _ => None,
    });
    let envelopes: BTreeMap<Digest, &Bytes> = envelopes.collect();
    for entry in &mut batch.entries {
        if let Some(&envelope) = envelopes.get(&entry.digest) {
            let header = envelope::header_of(envelope).ok().map(Arc::new);
            entry.content = VerifiedContent::Disclosed { envelope: envelope.clone(), header };
        }
    }
}
