//! Decides which parts of a feed a peer may receive, and builds the messages with their proofs.
//!
//! In scope: which peer an entry may be disclosed to ([`may_disclose`]), converting held entries
//! into items ([`items`]) or into backfill ([`backfills`]), how many entries fit in a batch
//! ([`batch_len`]), and the proof for a batch ([`plan_batch`]). Out of scope: reading the store,
//! flow control, and the wire.
//!
//! An entry that a reader may not read is sent as its digest only. Neither its topic is revealed,
//! nor whether the reader's filters match it.

use std::ops::Range;

use bytes::Bytes;

use crate::bulletin::audience::may_read;
use crate::bulletin::{TopicFilter, header_priority};
use crate::feed::partial_proofs::partial_consistency_proof;
use crate::feed::tree::{HashReader, consistency_proof};
use crate::ids::{Digest, FeedId, Hash, Member, Undisclosed};
use crate::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, ENVELOPE_BYTES_MAX};
use crate::proto;
use crate::proto::item::Item;
use crate::roster::RosterChain;

/// What this node holds of an entry.
#[derive(Clone, Copy, Debug)]
pub enum Held<'a> {
    /// The envelope, and its header if it can be decoded.
    Disclosed {
        /// Exact bytes.
        envelope: &'a Bytes,
        /// Decoded header.
        header: Option<&'a proto::Header>,
    },
    /// The digest only.
    Undisclosed(Undisclosed),
}

/// What this node holds of a feed, with its proof.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Number of entries held.
    pub size: u64,
    /// Size of the newest checkpoint held; at least `size`.
    pub checkpoint_size: u64,
    /// Consistency proof from `size` to `checkpoint_size`; empty if these are equal.
    pub consistency_proof: &'a [Hash],
}

/// Returns whether the bulletin with this header may be disclosed to `reader`: under the roster of
/// the header's version *and* under the newest, so that expelled members receive nothing more.
/// Returns false if the roster of that version is not held.
#[must_use]
pub fn may_disclose(header: &proto::Header, reader: &Member, rosters: &RosterChain) -> bool {
    let newest = rosters.newest();
    may_read(header, reader, newest)
        && (header.roster_version == newest.version()
            || rosters.at(header.roster_version).is_some_and(|then| may_read(header, reader, then)))
}

/// Returns the items for consecutive entries to `reader`, whose requested topics match `filters`
/// (if empty, every topic). Adjacent digests with the same reason become one run. Envelopes are
/// shared, not copied.
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

/// Returns the backfill for entries that `reader` lacks: those that it may read and requested, in
/// full; the others are omitted.
///
/// `history` means that the feed is this member's own and that by its policy members that joined
/// later may read earlier entries, if the newest roster admits them. An envelope above the limit is
/// omitted, because no receiver accepts it.
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

/// Returns whether the bulletin with this header may be sent to `reader` ahead of its feed's order.
/// The topics that `reader` requested match `filters` (if empty, every topic).
#[must_use]
pub fn may_send_priority(
    header: &proto::Header,
    reader: &Member,
    filters: &[TopicFilter],
    rosters: &RosterChain,
) -> bool {
    let requested = filters.is_empty() || filters.iter().any(|filter| filter.matches_header(&header.topic));
    requested && header_priority(header).is_some() && may_disclose(header, reader, rosters)
}

/// Returns the ranges of entries that this node holds in full and `reader` may read too. `entries`
/// are consecutive; each has a header if it is held in full. A custody note that passes through
/// `reader` may cover only these ranges, because it shows who may read the entries. The owner of an
/// entry may always see its custody.
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

/// Returns how many of the next entries fit in one batch, given the bytes of each envelope held (0
/// for a digest). One always fits.
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

/// Returns the consistency proof for a batch that ends before index `end`: from `end` to the
/// checkpoint, and empty if the batch ends at the checkpoint. A feed that is only partly caught up
/// is provable at every smaller size too, with the proof received with it. `None` if such a batch
/// cannot be proven.
///
/// # Errors
/// Any error of reading `tree`.
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

/// Returns a batch as a wire message.
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

/// Returns a priority entry as a wire message, with its inclusion proof to the checkpoint's root.
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
        // A purged entry is purged for everybody. Any other reason concerns only this member and
        // its own sender.
        Held::Undisclosed(Undisclosed::Purged) => Err(Undisclosed::Purged),
        Held::Undisclosed(_) => Err(Undisclosed::NotHeld),
        Held::Disclosed { envelope, header } => {
            let header = header.ok_or(Undisclosed::Withheld)?;
            if !may_disclose(header, reader, rosters) {
                // If the deciding roster is not held, the audience is unknown. This differs from
                // being excluded.
                let roster_known = rosters.at(header.roster_version).is_some();
                return Err(if roster_known { Undisclosed::Withheld } else { Undisclosed::NotHeld });
            }
            let requested = filters.is_empty() || filters.iter().any(|filter| filter.matches_header(&header.topic));
            if requested { Ok(envelope) } else { Err(Undisclosed::Unfollowed) }
        }
    }
}

/// Items under construction.
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
