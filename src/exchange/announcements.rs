//! Verifies fork announcements: bulletins of kind `feed-forked` in which another member sends
//! evidence of equivocation. Valid evidence counts as if it had been found here. A claim without
//! valid evidence is only recorded and raises no alarm.
//!
//! In scope: bulletins as they arrive, and those that arrived before a restart. Out of scope:
//! announcing forks found here (`app::fork_announcer`).

use std::sync::Arc;

use barid_core::bulletin::kinds::feed_forked;
use barid_core::envelope::body_of;
use barid_core::follow::{EquivocationEvidence, VerifiedBackfills, VerifiedBatch, VerifiedContent, VerifiedPriority};
use barid_core::ids::{FeedId, Member};
use barid_core::proto::body::Content as BodyContent;
use barid_core::proto::{self};
use bytes::Bytes;

use super::{ExchangeState, equivocation};
use crate::store::{Columns, Content, Entry, ForkRecord, ReadError};
use crate::telemetry::AuditEvent;

/// Announcements verified in one batch; each costs several signature checks. An honest member
/// announces a feed once, and a stopped feed is not announced again.
const ANNOUNCEMENTS_PER_BATCH_MAX: usize = 16;
/// Held announcements that are verified again, and the number of offsets scanned for them.
const HELD_ANNOUNCEMENTS_MAX: (usize, u64) = (64, 10_000);

/// Verifies the announcements in a batch of `feed`.
pub(super) fn verify_in_batch(shared: &Arc<ExchangeState>, feed: &FeedId, batch: &VerifiedBatch) {
    let disclosed = batch.entries.iter().filter_map(|entry| match &entry.content {
        VerifiedContent::Disclosed { envelope, header: Some(header) } => Some((envelope, header.as_ref())),
        _ => None,
    });
    verify_announcements(shared, feed, disclosed);
}

/// Verifies an announcement that arrived ahead of its feed's order.
pub(super) fn verify_in_priority(shared: &Arc<ExchangeState>, priority: &VerifiedPriority) {
    if let VerifiedContent::Disclosed { envelope, header: Some(header) } = &priority.entry.content {
        verify_announcements(shared, &priority.feed, [(envelope, header.as_ref())]);
    }
}

/// Verifies the announcements in backfilled content of `feed`.
pub(super) fn verify_in_backfill(shared: &Arc<ExchangeState>, feed: &FeedId, backfills: &VerifiedBackfills) {
    verify_announcements(
        shared,
        feed,
        backfills.entries.iter().filter_map(|entry| Some((&entry.envelope, entry.header.as_deref()?))),
    );
}

/// Returns the newest fork announcements held here. Blocks.
pub(super) fn held(shared: &ExchangeState) -> Result<Vec<Entry>, ReadError> {
    let announces = |columns: &Columns| columns.kind == feed_forked::KIND.name;
    let store = shared.store();
    Ok(store.history(store.end_offset(), HELD_ANNOUNCEMENTS_MAX.0, HELD_ANNOUNCEMENTS_MAX.1, &announces)?.0)
}

/// Returns the evidence that they prove. Blocks.
pub(super) fn proven(shared: &ExchangeState) -> Result<Vec<EquivocationEvidence>, ReadError> {
    let of = |entry: Entry| match &entry.content {
        Content::Disclosed { envelope, .. } => evidence(shared, envelope)?.ok(),
        Content::Undisclosed(_) => None,
    };
    Ok(held(shared)?.into_iter().filter_map(of).collect())
}

/// Verifies announcements held here again.
pub(super) fn verify_held_announcements(shared: &Arc<ExchangeState>, entries: &[Entry]) {
    for entry in entries {
        if let Content::Disclosed { envelope, header: Some(header) } = &entry.content {
            verify_announcements(shared, &entry.feed, [(envelope, header.as_ref())]);
        }
    }
}

fn verify_announcements<'a>(
    shared: &Arc<ExchangeState>,
    feed: &FeedId,
    disclosed: impl IntoIterator<Item = (&'a Bytes, &'a proto::Header)>,
) {
    let announces = |header: &proto::Header| {
        header.kind == feed_forked::KIND.name && header.member == feed.member.as_str() && feed.member != shared.me
    };
    let announced = disclosed.into_iter().filter(|(_, header)| announces(header)).take(ANNOUNCEMENTS_PER_BATCH_MAX);
    let announced: Vec<Bytes> = announced.map(|(envelope, _)| envelope.clone()).collect();
    if announced.is_empty() {
        return;
    }
    let (shared, by) = (Arc::clone(shared), feed.member.clone());
    tokio::spawn(async move {
        let verifying = Arc::clone(&shared);
        let verified = tokio::task::spawn_blocking(move || {
            announced.iter().filter_map(|envelope| verify_announcement(&verifying, envelope, &by)).collect::<Vec<_>>()
        });
        // A panic has been reported.
        for found in verified.await.unwrap_or_default() {
            equivocation::persist(&shared, Some(found)).await;
        }
    });
}

/// Returns the fork that an envelope's evidence proves, if it is new. Blocks.
fn verify_announcement(shared: &ExchangeState, envelope: &[u8], by: &Member) -> Option<ForkRecord> {
    let evidence = match evidence(shared, envelope)? {
        Ok(evidence) => evidence,
        Err(why) => {
            unproven(shared, by, &why);
            return None;
        }
    };
    let found = shared.stop_forked(&evidence, by)?;
    let (feed, own) = (evidence.feed(), shared.own_feed());
    if feed.member == own.member && feed.epoch >= own.epoch {
        // Another node signs with our key, or this node has lost entries that it signed.
        let reason = format!("{by} proves an equivocation of the key of {feed}");
        shared.options.committer.require_recovery(reason);
    }
    Some(found)
}

/// Returns the verified evidence in an envelope, or why it proves nothing; `None` if it is not a
/// fork announcement.
fn evidence(shared: &ExchangeState, envelope: &[u8]) -> Option<Result<EquivocationEvidence, String>> {
    let Some(BodyContent::FeedForked(announced)) = body_of(envelope).ok()?.content else { return None };
    let roster = shared.options.rosters.load().newest_shared();
    Some(match EquivocationEvidence::verify(&announced.evidence, &roster) {
        Ok(evidence) if evidence.feed().to_string() == announced.feed => Ok(evidence),
        Ok(_) => Err("the evidence is of another feed".to_owned()),
        Err(error) => Err(error.to_string()),
    })
}

fn unproven(shared: &ExchangeState, by: &Member, why: &dyn std::fmt::Display) {
    shared.record(by, &AuditEvent { event: "finding", reason: "unproven-fork", actor: by, resource: &"", detail: why });
}
