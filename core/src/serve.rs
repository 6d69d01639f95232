//! The provider: what a peer is shown of a feed, and what proves it.
//!
//! In scope: who may be shown an entry ([`may_disclose`]), turning entries held into items ([`items`]) or into what a reader lacks
//! ([`backfills`]), how many fit a batch ([`batch_len`]) and the proof that a batch needs ([`plan_batch`]). Out of scope: reading the store, pacing, and the wire.
//!
//! An entry that a reader may not read is shown as its digest and as nothing else: neither its topic nor whether it was asked for.

use std::ops::Range;

use bytes::Bytes;

use crate::bulletin::audience::may_read;
use crate::bulletin::{TopicFilter, urgent};
use crate::feed::partial_proofs::partial_consistency_proof;
use crate::feed::tree::{HashReader, consistency_proof};
use crate::ids::{Digest, FeedId, Hash, Member, Undisclosed};
use crate::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, ENVELOPE_BYTES_MAX};
use crate::proto;
use crate::proto::item::Item;
use crate::roster::RosterChain;

/// What is held of one entry.
#[derive(Clone, Copy, Debug)]
pub enum Held<'a> {
    /// The envelope, and its header unless that cannot be decoded.
    Disclosed {
        /// Exact bytes.
        envelope: &'a Bytes,
        /// Decoded header.
        header: Option<&'a proto::Header>,
    },
    /// The digest only.
    Undisclosed(Undisclosed),
}

/// What is held of a feed, and what vouches for it.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Entries held.
    pub size: u64,
    /// Size of the newest checkpoint held; not below `size`.
    pub checkpoint_size: u64,
    /// Consistency proof from `size` to `checkpoint_size`; empty when these are equal.
    pub consistency_proof: &'a [Hash],
}

/// Whether `reader` may be shown the bulletin with this header: by the roster of the header's version *and* by the newest, so that
/// the expelled get nothing more. A version that is not held closes.
#[must_use]
pub fn may_disclose(header: &proto::Header, reader: &Member, rosters: &RosterChain) -> bool {
    let newest = rosters.newest();
    may_read(header, reader, newest)
        && (header.roster_version == newest.version()
            || rosters.at(header.roster_version).is_some_and(|then| may_read(header, reader, then)))
}

/// What `reader`, who asked for the topics that `filters` match (none: every topic), is shown of consecutive entries. Neighbours that
/// are digests for one reason become one run. Envelopes are shared, not copied.
#[must_use]
pub fn items<'a>(
    entries: impl IntoIterator<Item = (Digest, Held<'a>)>,
    reader: &Member,
    filters: &[TopicFilter],
    rosters: &RosterChain,
) -> Vec<proto::Item> {
    let entries = entries.into_iter();
    let mut items = Items { done: Vec::with_capacity(entries.size_hint().0), run: None };
    for (digest, held) in entries {
        match disclose(held, reader, filters, rosters) {
            Ok(envelope) => items.envelope(envelope),
            Err(reason) => items.digest(&digest, reason),
        }
    }
    items.finish()
}

/// What `reader` is shown of entries that it lacks: in full what it may read and asked for, nothing of the others. `history`: the feed is
/// our own, and by our policy who joined later may read what was before, if the newest roster admits it. An envelope above the limit
/// is not shown: nobody takes it.
#[must_use]
pub fn backfills<'a>(
    entries: impl IntoIterator<Item = (u64, Held<'a>)>,
    reader: &Member,
    filters: &[TopicFilter],
    rosters: &RosterChain,
    history: bool,
) -> Vec<proto::Backfill> {
    let backfill = |(index, held): (u64, Held<'a>)| {
        let Held::Disclosed { envelope, header: Some(header) } = held else { return None };
        let may = may_disclose(header, reader, rosters)
            || history
                && header.roster_version <= rosters.newest().version()
                && may_read(header, reader, rosters.newest());
        let requested = filters.is_empty() || filters.iter().any(|filter| filter.matches_header(&header.topic));
        (may && requested && envelope.len() <= ENVELOPE_BYTES_MAX)
            .then(|| proto::Backfill { index, envelope: envelope.clone() })
    };
    entries.into_iter().filter_map(backfill).collect()
}

/// Whether `reader`, who asked for the topics that `filters` match (none: every topic), may be sent the bulletin with this header ahead of its
/// feed's order.
#[must_use]
pub fn may_send_priority(
    header: &proto::Header,
    reader: &Member,
    filters: &[TopicFilter],
    rosters: &RosterChain,
) -> bool {
    let requested = filters.is_empty() || filters.iter().any(|filter| filter.matches_header(&header.topic));
    requested && urgent(header).is_some() && may_disclose(header, reader, rosters)
}

/// Of consecutive entries, given the header of each one that is held in full, the ranges that `reader` may read too: what may be said before it
/// of who holds them. The owner of an entry is told anyway.
#[must_use]
pub fn readable_by_both<'a>(
    entries: impl IntoIterator<Item = (u64, Option<&'a proto::Header>)>,
    reader: &Member,
    rosters: &RosterChain,
) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (index, header) in entries {
        if header.is_none_or(|header| !may_disclose(header, reader, rosters)) {
            continue;
        }
        match ranges.last_mut() {
            Some(range) if range.end == index => range.end = index + 1,
            _ => ranges.push(index..index + 1),
        }
    }
    ranges
}

/// How many of the next entries fit one batch, given the bytes of each one's envelope as it is held (0: a digest). One always does.
#[must_use]
pub fn batch_len(envelope_bytes: impl IntoIterator<Item = usize>) -> usize {
    let mut bytes = 0;
    let fits = |next: &usize| {
        let first = bytes == 0;
        bytes += next;
        first || bytes <= BATCH_BYTES_MAX
    };
    envelope_bytes.into_iter().take(BATCH_ENTRIES_MAX).take_while(fits).count()
}

/// The consistency proof that a batch ending before index `end` carries: none if it ends at the checkpoint (a live batch), else one
/// to the checkpoint (a backlog batch). What was only partly caught up is provable from its beginning too, by the proof with which it
/// came. `None` if such a batch cannot be proven.
///
/// # Errors
/// What reading `tree` says.
pub fn plan_batch<R: HashReader>(head: &Head<'_>, end: u64, tree: &R) -> Result<Option<Vec<Hash>>, R::Error> {
    if end == head.size {
        Ok(Some(head.consistency_proof.to_vec()))
    } else if end < head.size && head.checkpoint_size == head.size {
        consistency_proof(tree, end, head.size).map(Some)
    } else if end < head.size {
        partial_consistency_proof(tree, end, head.size, head.checkpoint_size, head.consistency_proof)
    } else {
        Ok(None)
    }
}

/// A batch as it goes over the wire.
#[must_use]
pub fn message(
    feed: &FeedId,
    first: u64,
    items: Vec<proto::Item>,
    checkpoint: Bytes,
    proof: &[Hash],
) -> proto::Entries {
    let consistency_proof = proof.iter().map(|hash| Bytes::copy_from_slice(&hash.0)).collect();
    proto::Entries { feed: feed.to_string(), first, items, checkpoint, consistency_proof }
}

/// An entry as it goes over the wire ahead of its feed's order, with its inclusion proof to the checkpoint's root.
#[must_use]
pub fn priority(feed: &FeedId, index: u64, envelope: Bytes, proof: &[Hash], checkpoint: Bytes) -> proto::PriorityEntry {
    let inclusion_proof = proof.iter().map(|hash| Bytes::copy_from_slice(&hash.0)).collect();
    proto::PriorityEntry { feed: feed.to_string(), index, envelope, inclusion_proof, checkpoint }
}

fn disclose<'a>(
    held: Held<'a>,
    reader: &Member,
    filters: &[TopicFilter],
    rosters: &RosterChain,
) -> Result<&'a Bytes, Undisclosed> {
    match held {
        // What nobody may read is purged for everybody; any other reason is between us and who sent it to us.
        Held::Undisclosed(Undisclosed::Purged) => Err(Undisclosed::Purged),
        Held::Undisclosed(_) => Err(Undisclosed::NotHeld),
        Held::Disclosed { envelope, header } => {
            let header = header.ok_or(Undisclosed::Withheld)?;
            if !may_disclose(header, reader, rosters) {
                // Whose roster is not here we cannot judge; that is not the same as to judge against the reader.
                let roster_known = rosters.at(header.roster_version).is_some();
                return Err(if roster_known { Undisclosed::Withheld } else { Undisclosed::NotHeld });
            }
            let requested = filters.is_empty() || filters.iter().any(|filter| filter.matches_header(&header.topic));
            if requested { Ok(envelope) } else { Err(Undisclosed::Unfollowed) }
        }
    }
}

/// Items in the making.
struct Items {
    done: Vec<proto::Item>,
    run: Option<(Undisclosed, Vec<u8>)>,
}

impl Items {
    fn envelope(&mut self, envelope: &Bytes) {
        self.end_run();
        self.done.push(proto::Item { item: Some(Item::Envelope(envelope.clone())) });
    }

    fn digest(&mut self, digest: &Digest, reason: Undisclosed) {
        if self.run.as_ref().is_some_and(|(of, _)| *of != reason) {
            self.end_run();
        }
        self.run.get_or_insert_with(|| (reason, Vec::new())).1.extend_from_slice(&digest.0);
    }

    fn end_run(&mut self) {
        if let Some((reason, digests)) = self.run.take() {
            let run = proto::DigestRun { digests: digests.into(), reason: reason.as_str().to_owned() };
            self.done.push(proto::Item { item: Some(Item::Digests(run)) });
        }
    }

    fn finish(mut self) -> Vec<proto::Item> {
        self.end_run();
        self.done
    }
}
