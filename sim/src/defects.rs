//! What the defects that are put in on purpose do in place of core, and what some liars do.

use std::collections::BTreeMap;
use std::sync::Arc;

use barid_core::bulletin::audience::may_read;
use barid_core::bulletin::urgent;
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

/// An entry in full, whoever reads.
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

/// Entries as they would be shown if only the newest roster were asked.
pub(crate) fn by_newest(held: &[Entry], reader: &Member, rosters: &RosterChain) -> Vec<proto::Item> {
    let item = |entry: &Entry| match &entry.content {
        Content::Disclosed { header: Some(header), .. } if may_read(header, reader, rosters.newest()) => {
            everything(entry)
        }
        _ => proto::Item { item: Some(digest(entry, Undisclosed::Withheld)) },
    };
    held.iter().map(item).collect()
}

/// A batch that says of what is not held that it is withheld.
pub(crate) fn blaming(mut message: proto::Entries) -> proto::Entries {
    for item in &mut message.items {
        if let Some(Item::Digests(run)) = &mut item.item {
            run.reason = Undisclosed::Withheld.as_str().to_owned();
        }
    }
    message
}

/// A batch that says so of everything.
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

/// What is held of these entries, whoever asks.
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

/// What would be kept of content that comes later if nobody looked at it.
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

/// What would be kept of an entry ahead of its order if neither its proof nor its audience were asked for.
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
        urgent: urgent(&header),
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

/// What a follower would take if it did not look at the log.
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

/// What a follower would keep if it did not ask for the audience.
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
