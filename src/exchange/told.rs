//! Two histories of a feed of which another member tells in a bulletin (kind `feed-forked`): the evidence in it is verified and then is as
//! if it had been found here. What a member merely claims is recorded, and is no alarm.
//!
//! In scope: bulletins as they come in, and those that came before a restart. Out of scope: telling others (`app`).

use std::sync::Arc;

use barid_core::bulletin::kinds::feed_forked;
use barid_core::envelope::body_of;
use barid_core::follow::{ForkEvidence, VerifiedBatch, VerifiedContent, VerifiedExpress, VerifiedFills};
use barid_core::names::{FeedId, Member};
use barid_core::proto::body::Content as Told;
use barid_core::proto::{self};
use bytes::Bytes;

use super::{Shared, forks};
use crate::store::{Columns, Content, Entry, ForkRecord, ReadError};
use crate::telemetry::AuditEvent;

/// Bulletins of one batch that are looked at: each costs some signatures. A member tells of a feed once, and a feed that is stopped is
/// told of no more.
const LOOKED_AT_MAX: usize = 16;
/// Bulletins held that are looked at again, and how far back.
const HELD_MAX: (usize, u64) = (64, 10_000);

/// Looks at what came in with a batch of `feed`.
pub(super) fn heed_batch(shared: &Arc<Shared>, feed: &FeedId, batch: &VerifiedBatch) {
    let disclosed = batch.entries.iter().filter_map(|entry| match &entry.content {
        VerifiedContent::Disclosed { envelope, header: Some(header) } => Some((envelope, header.as_ref())),
        _ => None,
    });
    heed(shared, feed, disclosed);
}

/// Looks at what came ahead of its feed's order.
pub(super) fn heed_express(shared: &Arc<Shared>, express: &VerifiedExpress) {
    if let VerifiedContent::Disclosed { envelope, header: Some(header) } = &express.entry.content {
        heed(shared, &express.feed, [(envelope, header.as_ref())]);
    }
}

/// Looks at content of `feed` that came late.
pub(super) fn heed_fills(shared: &Arc<Shared>, feed: &FeedId, fills: &VerifiedFills) {
    heed(shared, feed, fills.entries.iter().filter_map(|fill| Some((&fill.envelope, fill.header.as_deref()?))));
}

/// The newest bulletins held here that tell of two histories. Blocks.
pub(super) fn held(shared: &Shared) -> Result<Vec<Entry>, ReadError> {
    let tells = |columns: &Columns| columns.kind == feed_forked::KIND.name;
    let store = shared.store();
    Ok(store.history(store.end_arrival(), HELD_MAX.0, HELD_MAX.1, &tells)?.0)
}

/// What these prove. Blocks.
pub(super) fn proven(shared: &Shared) -> Result<Vec<ForkEvidence>, ReadError> {
    let of = |entry: Entry| match &entry.content {
        Content::Disclosed { envelope, .. } => evidence(shared, envelope)?.ok(),
        Content::Undisclosed(_) => None,
    };
    Ok(held(shared)?.into_iter().filter_map(of).collect())
}

/// Looks again at bulletins that are held.
pub(super) fn heed_held(shared: &Arc<Shared>, entries: &[Entry]) {
    for entry in entries {
        if let Content::Disclosed { envelope, header: Some(header) } = &entry.content {
            heed(shared, &entry.feed, [(envelope, header.as_ref())]);
        }
    }
}

fn heed<'a>(shared: &Arc<Shared>, feed: &FeedId, disclosed: impl IntoIterator<Item = (&'a Bytes, &'a proto::Header)>) {
    let tells = |header: &proto::Header| {
        header.kind == feed_forked::KIND.name && header.member == feed.member.as_str() && feed.member != shared.me
    };
    let told = disclosed.into_iter().filter(|(_, header)| tells(header)).take(LOOKED_AT_MAX);
    let told: Vec<Bytes> = told.map(|(envelope, _)| envelope.clone()).collect();
    if told.is_empty() {
        return;
    }
    let (shared, by) = (Arc::clone(shared), feed.member.clone());
    tokio::spawn(async move {
        let judging = Arc::clone(&shared);
        let judged = tokio::task::spawn_blocking(move || {
            told.iter().filter_map(|envelope| judge(&judging, envelope, &by)).collect::<Vec<_>>()
        });
        // A panic has been reported.
        for found in judged.await.unwrap_or_default() {
            forks::keep(&shared, Some(found)).await;
        }
    });
}

/// What an envelope's evidence proves that was not known. Blocks.
fn judge(shared: &Shared, envelope: &[u8], by: &Member) -> Option<ForkRecord> {
    let evidence = match evidence(shared, envelope)? {
        Ok(evidence) => evidence,
        Err(why) => {
            unproven(shared, by, &why);
            return None;
        }
    };
    let found = shared.forked(&evidence, by)?;
    let (feed, own) = (evidence.feed(), shared.own_feed());
    if feed.member == own.member && feed.epoch >= own.epoch {
        // Somebody else signs with our key, or we have forgotten what we signed.
        let reason = format!("{by} proves that the key of {feed} has signed two histories");
        shared.options.committer.doubt(reason);
    }
    Some(found)
}

/// The evidence in an envelope, verified, or why it proves nothing; `None` if it tells of no two histories.
fn evidence(shared: &Shared, envelope: &[u8]) -> Option<Result<ForkEvidence, String>> {
    let Some(Told::FeedForked(told)) = body_of(envelope).ok()?.content else { return None };
    let roster = shared.options.rosters.load().newest_shared();
    Some(match ForkEvidence::verify(&told.evidence, &roster) {
        Ok(evidence) if evidence.feed().to_string() == told.feed => Ok(evidence),
        Ok(_) => Err("the evidence is of another feed".to_owned()),
        Err(error) => Err(error.to_string()),
    })
}

fn unproven(shared: &Shared, by: &Member, why: &dyn std::fmt::Display) {
    shared.record(by, &AuditEvent { what: "finding", reason: "unproven-fork", who: by, subject: &"", detail: why });
}
