//! A committer of Morocco for tests, and entries of Tunisia's feed.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use barid_core::feed::checkpoint::sign;
use barid_core::feed::note::{Algorithm, SigningKey};
use barid_core::feed::tree::CompactRange;
use barid_core::follow::{VerifiedBatch, VerifiedContent, VerifiedEntry, VerifiedPriority};
use barid_core::ids::{Digest, FeedId, Undisclosed};
use barid_core::quota::SHARE_PERCENT;

use super::{Committer, Keys, Options, checkpoint_of};
use crate::store::Store;

pub(super) fn key(member: &str) -> SigningKey {
    SigningKey::from_seed(&format!("{member}.rabat.example/feed/1"), Algorithm::Ed25519, [7; 32]).unwrap()
}

pub(super) fn of(name: &str) -> FeedId {
    format!("{name}.rabat.example/feed/1").parse().unwrap()
}

pub(super) fn start(store: &Arc<dyn Store>, folder: &std::path::Path) -> Committer {
    let mirror = SigningKey::from_seed("ma.rabat.example/mirror", Algorithm::CosignatureEd25519, [8; 32]).unwrap();
    let custody = SigningKey::from_seed("ma.rabat.example/custody", Algorithm::Ed25519, [9; 32]).unwrap();
    let keys = Keys { feed: vec![key("ma")], mirror, custody };
    let (feed, high_water_mark, peer_wait) = (of("ma"), folder.join("mark"), Duration::ZERO);
    Committer::start(
        Arc::clone(store),
        Options { feed, keys, high_water_mark, bootstrap: true, peer_wait, share_percent: SHARE_PERCENT },
    )
    .unwrap()
}

/// Returns `count` entries of tn's feed, held as digests.
pub(super) fn batch(first: &CompactRange, count: u8) -> VerifiedBatch {
    let mut compact_range = first.clone();
    let entries: Vec<_> = (0..count)
        .map(|n| {
            let digest = Digest([n; 32]);
            compact_range.append(&digest);
            VerifiedEntry { digest, content: VerifiedContent::Undisclosed(Undisclosed::Withheld), pending_roster: None }
        })
        .collect();
    let checkpoint = sign(&checkpoint_of(&of("tn"), &compact_range), &[key("tn")]).unwrap();
    let (feed, first) = (of("tn"), first.size());
    let (consistency_proof, findings) = (Vec::new(), Vec::new());
    let feed_sender = feed.member.clone();
    VerifiedBatch { feed, feed_sender, first, entries, compact_range, checkpoint, consistency_proof, findings }
}

/// Returns the first entry of tn's feed, ahead of its order.
pub(super) fn priority() -> VerifiedPriority {
    let VerifiedBatch { feed, feed_sender, mut entries, checkpoint, .. } = batch(&CompactRange::new(), 1);
    let entry = entries.remove(0);
    VerifiedPriority {
        feed,
        feed_sender,
        index: 0,
        entry,
        class: None,
        checkpoint,
        proof: Vec::new(),
        findings: Vec::new(),
    }
}
