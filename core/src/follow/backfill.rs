//! Verifies backfilled content for entries held as digests.
//!
//! In scope: that the content matches the digest in the log, and which of it is stored, by the same
//! rules as for a batch. Out of scope: which peer to ask and when, and reading the digests held.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::{ContentPolicy, Fault, FaultKind, Finding, FindingKind, VerifiedContent};
use crate::bulletin::audience::may_read;
use crate::envelope;
use crate::ids::{Digest, FeedId, Member, Undisclosed};
use crate::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX};
use crate::proto;
use crate::roster::RosterChain;

/// Verified content for entries held as digests.
#[derive(Clone, Debug)]
pub struct VerifiedBackfills {
    /// The feed.
    pub feed: FeedId,
    /// The member that sent it.
    pub feed_sender: Member,
    /// By ascending index.
    pub entries: Vec<VerifiedBackfill>,
    /// Anomalies of single entries, stored or not.
    pub findings: Vec<Finding>,
}

/// Verified content of one entry.
#[derive(Clone, Debug)]
pub struct VerifiedBackfill {
    /// Its index in the feed.
    pub index: u64,
    /// Its digest, as held.
    pub digest: Digest,
    /// Exact bytes.
    pub envelope: Bytes,
    /// Decoded header.
    pub header: Option<Arc<proto::Header>>,
    /// The roster version that must be fetched before the entry is delivered or forwarded.
    pub pending_roster: Option<u64>,
}

impl VerifiedBackfills {
    /// Returns the total bytes of the envelopes.
    #[must_use]
    pub fn envelope_bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.envelope.len()).sum()
    }
}

/// Verifies the content that `feed_sender` sent for the `requested` ranges, and decides which of it
/// `me` stores. `missing` holds the entries in these ranges that are still held as digests. Content
/// of other requested entries has arrived in the meantime and is skipped.
///
/// # Errors
/// A [`Fault`] of the sender; nothing of the message may be stored then.
pub fn verify_backfills(
    feed: &FeedId,
    feed_sender: &Member,
    message: &proto::BackfillResponse,
    requested: &[Range<u64>],
    missing: &BTreeMap<u64, (Digest, Undisclosed)>,
    rosters: &RosterChain,
    me: &Member,
) -> Result<VerifiedBackfills, Fault> {
    if message.feed.parse().as_ref() != Ok(feed) {
        return Err(Fault::new(FaultKind::Malformed, format_args!("not content of {feed}")));
    }
    check_bounds(message, requested)?;
    let mut policy = ContentPolicy { owner: &feed.member, feed_sender, rosters, me, findings: Vec::new() };
    let mut entries = Vec::with_capacity(message.items.len());
    for item in &message.items {
        let Some((digest, reason)) = missing.get(&item.index) else { continue };
        let found = envelope::digest(&item.envelope);
        if found != *digest {
            let detail = format_args!("the content of {} has digest {found}, the log has {digest} there", item.index);
            return Err(Fault::new(FaultKind::BadRoot, detail));
        }
        let (content, pending_roster) = policy.envelope(item.index, &item.envelope);
        if let VerifiedContent::Disclosed { envelope, header } = content {
            if *reason == Undisclosed::Withheld
                && header.as_deref().is_some_and(|header| was_in_audience(header, me, rosters))
            {
                policy.find(item.index, FindingKind::WronglyWithheld);
            }
            entries.push(VerifiedBackfill { index: item.index, digest: *digest, envelope, header, pending_roster });
        }
    }
    Ok(VerifiedBackfills { feed: feed.clone(), feed_sender: feed_sender.clone(), entries, findings: policy.findings })
}

fn check_bounds(message: &proto::BackfillResponse, requested: &[Range<u64>]) -> Result<(), Fault> {
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
        let range = requested.partition_point(|range| range.end <= item.index);
        if item.index < next || requested.get(range).is_none_or(|range| item.index < range.start) {
            let detail = format_args!("entry {} is out of order or was not requested", item.index);
            return Err(Fault::new(FaultKind::Malformed, detail));
        }
        next = item.index.saturating_add(1);
    }
    Ok(())
}

/// Returns whether withholding it was wrong under every roster from the header's version on.
fn was_in_audience(header: &proto::Header, me: &Member, rosters: &RosterChain) -> bool {
    let mut versions = header.roster_version..=rosters.newest().version();
    header.roster_version > 0
        && !versions.is_empty()
        && versions.all(|version| rosters.at(version).is_some_and(|roster| may_read(header, me, roster)))
}
