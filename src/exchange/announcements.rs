//! Two histories of a feed of which another member tells in a bulletin (kind `feed-forked`): the evidence in it is verified and then is as
//! if it had been found here. What a member merely claims is recorded, and is no alarm.
//!
//! In scope: bulletins as they come in, and those that came before a restart. Out of scope: telling others (`app`).

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

/// Bulletins of one batch that are looked at: each costs some signatures. A member tells of a feed once, and a feed that is stopped is
/// told of no more.
const ANNOUNCEMENTS_PER_BATCH_MAX: usize = 16;
/// Bulletins held that are looked at again, and how far back.
const HELD_ANNOUNCEMENTS_MAX: (usize, u64) = (64, 10_000);

/// Looks at what came in with a batch of `feed`.
pub(super) fn verify_in_batch(shared: &Arc<ExchangeState>, feed: &FeedId, batch: &VerifiedBatch) {
    let disclosed = batch.entries.iter().filter_map(|entry| match &entry.content {
        VerifiedContent::Disclosed { envelope, header: Some(header) } => Some((envelope, header.as_ref())),
        _ => None,
    });
    verify_announcements(shared, feed, disclosed);
}

/// Looks at what came ahead of its feed's order.
pub(super) fn verify_in_priority(shared: &Arc<ExchangeState>, priority: &VerifiedPriority) {
    if let VerifiedContent::Disclosed { envelope, header: Some(header) } = &priority.entry.content {
        verify_announcements(shared, &priority.feed, [(envelope, header.as_ref())]);
    }
}

/// Looks at content of `feed` that came late.
pub(super) fn verify_in_backfill(shared: &Arc<ExchangeState>, feed: &FeedId, backfills: &VerifiedBackfills) {
    verify_announcements(
        shared,
        feed,
        backfills.entries.iter().filter_map(|entry| Some((&entry.envelope, entry.header.as_deref()?))),
    );
}

/// The newest bulletins held here that tell of two histories. Blocks.
pub(super) fn held(shared: &ExchangeState) -> Result<Vec<Entry>, ReadError> {
    let announces = |columns: &Columns| columns.kind == feed_forked::KIND.name;
    let store = shared.store();
    Ok(store.history(store.end_offset(), HELD_ANNOUNCEMENTS_MAX.0, HELD_ANNOUNCEMENTS_MAX.1, &announces)?.0)
}

/// What these prove. Blocks.
pub(super) fn proven(shared: &ExchangeState) -> Result<Vec<EquivocationEvidence>, ReadError> {
    let of = |entry: Entry| match &entry.content {
        Content::Disclosed { envelope, .. } => evidence(shared, envelope)?.ok(),
        Content::Undisclosed(_) => None,
    };
    Ok(held(shared)?.into_iter().filter_map(of).collect())
}

/// Looks again at bulletins that are held.
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

/// What an envelope's evidence proves that was not known. Blocks.
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
        // Somebody else signs with our key, or we have forgotten what we signed.
        let reason = format!("{by} proves that the key of {feed} has signed two histories");
        shared.options.committer.require_recovery(reason);
    }
    Some(found)
}

/// The evidence in an envelope, verified, or why it proves nothing; `None` if it tells of no two histories.
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
