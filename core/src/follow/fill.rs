//! Content that comes later, for entries that are held as digests.
//!
//! In scope: that what came has the digest that the log has there, and what is kept of it, by the same rules as for a batch. Out of scope:
//! whom to ask and when, and reading what is held.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::{Fault, FaultKind, Finding, Keep, VerifiedContent, What};
use crate::bulletin::audience::may_read;
use crate::envelope;
use crate::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX};
use crate::names::{Digest, FeedId, Member, Undisclosed};
use crate::proto;
use crate::roster::RosterChain;

/// Content for entries that are held as digests.
#[derive(Clone, Debug)]
pub struct VerifiedFills {
    /// Which feed.
    pub feed: FeedId,
    /// Who sent it.
    pub provider: Member,
    /// By ascending index.
    pub entries: Vec<VerifiedFill>,
    /// What is odd about single entries, kept or not.
    pub findings: Vec<Finding>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct VerifiedFill {
    /// Its place.
    pub index: u64,
    /// Its digest, as held.
    pub digest: Digest,
    /// Exact bytes.
    pub envelope: Bytes,
    /// Decoded header.
    pub header: Option<Arc<proto::Header>>,
    /// The roster version that has to be fetched before this is delivered or forwarded.
    pub held_back: Option<u64>,
}

impl VerifiedFills {
    /// Bytes of the envelopes in it.
    #[must_use]
    pub fn envelope_bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.envelope.len()).sum()
    }
}

/// Verifies what `provider` sent for the ranges `asked`, and decides what `me` keeps of it. `lacking` are the entries in these ranges that
/// are held as digests now; content of others that were asked for has come meanwhile, and is passed over.
///
/// # Errors
/// A [`Fault`] of the sender; nothing of the message may be kept then.
pub fn verify_fills(
    feed: &FeedId,
    provider: &Member,
    message: &proto::Fills,
    asked: &[Range<u64>],
    lacking: &BTreeMap<u64, (Digest, Undisclosed)>,
    rosters: &RosterChain,
    me: &Member,
) -> Result<VerifiedFills, Fault> {
    if message.feed.parse().as_ref() != Ok(feed) {
        return Err(Fault::new(FaultKind::Malformed, format_args!("not content of {feed}")));
    }
    check_bounds(message, asked)?;
    let mut keep = Keep { owner: &feed.member, provider, rosters, me, findings: Vec::new() };
    let mut entries = Vec::with_capacity(message.items.len());
    for item in &message.items {
        let Some((digest, reason)) = lacking.get(&item.index) else { continue };
        let found = envelope::digest(&item.envelope);
        if found != *digest {
            let detail = format_args!("the content of {} has digest {found}, the log has {digest} there", item.index);
            return Err(Fault::new(FaultKind::BadRoot, detail));
        }
        let (content, held_back) = keep.envelope(item.index, &item.envelope);
        if let VerifiedContent::Disclosed { envelope, header } = content {
            if *reason == Undisclosed::Withheld && header.as_deref().is_some_and(|header| was_ours(header, me, rosters))
            {
                keep.find(item.index, What::WronglyWithheld);
            }
            entries.push(VerifiedFill { index: item.index, digest: *digest, envelope, header, held_back });
        }
    }
    Ok(VerifiedFills { feed: feed.clone(), provider: provider.clone(), entries, findings: keep.findings })
}

fn check_bounds(message: &proto::Fills, asked: &[Range<u64>]) -> Result<(), Fault> {
    if message.items.len() > BATCH_ENTRIES_MAX {
        return Err(Fault::new(FaultKind::BadBounds, format_args!("more than {BATCH_ENTRIES_MAX} entries")));
    }
    let (mut bytes, mut next) = (0, 0);
    for item in &message.items {
        if bytes > BATCH_BYTES_MAX {
            return Err(Fault::new(
                FaultKind::BadBounds,
                format_args!("more than {BATCH_BYTES_MAX} bytes of envelopes"),
            ));
        }
        bytes += item.envelope.len();
        let range = asked.partition_point(|range| range.end <= item.index);
        if item.index < next || asked.get(range).is_none_or(|range| item.index < range.start) {
            let detail = format_args!("entry {} is out of order, or was not asked for", item.index);
            return Err(Fault::new(FaultKind::Malformed, detail));
        }
        next = item.index.saturating_add(1);
    }
    Ok(())
}

/// Whether nobody could rightly have withheld it, by any roster since.
fn was_ours(header: &proto::Header, me: &Member, rosters: &RosterChain) -> bool {
    let mut versions = header.roster_version..=rosters.newest().version();
    header.roster_version > 0
        && !versions.is_empty()
        && versions.all(|version| rosters.at(version).is_some_and(|roster| may_read(header, me, roster)))
}
