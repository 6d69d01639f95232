//! A committer of Morocco for tests, and entries of Tunisia's feed for it.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use barid_core::feed::checkpoint::sign;
use barid_core::feed::note::{Algorithm, SigningKey};
use barid_core::feed::tree::Frontier;
use barid_core::follow::{VerifiedBatch, VerifiedContent, VerifiedEntry, VerifiedExpress};
use barid_core::names::{Digest, FeedId, Undisclosed};
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
    let (feed, mark, lone_start) = (of("ma"), folder.join("mark"), Duration::ZERO);
    Committer::start(
        Arc::clone(store),
        Options { feed, keys, mark, first: true, lone_start, share_percent: SHARE_PERCENT },
    )
    .unwrap()
}

/// `count` entries of tn's feed, held as digests.
pub(super) fn batch(first: &Frontier, count: u8) -> VerifiedBatch {
    let mut frontier = first.clone();
    let entries: Vec<_> = (0..count)
        .map(|n| {
            let digest = Digest([n; 32]);
            frontier.append(&digest);
            VerifiedEntry { digest, content: VerifiedContent::Undisclosed(Undisclosed::Withheld), held_back: None }
        })
        .collect();
    let checkpoint = sign(&checkpoint_of(&of("tn"), &frontier), &[key("tn")]).unwrap();
    let (feed, first) = (of("tn"), first.size());
    let (consistency_proof, findings) = (Vec::new(), Vec::new());
    let provider = feed.member.clone();
    VerifiedBatch { feed, provider, first, entries, frontier, checkpoint, consistency_proof, findings }
}

/// The first entry of tn's feed, ahead of its order.
pub(super) fn express() -> VerifiedExpress {
    let VerifiedBatch { feed, provider, mut entries, checkpoint, .. } = batch(&Frontier::new(), 1);
    let entry = entries.remove(0);
    VerifiedExpress {
        feed,
        provider,
        index: 0,
        entry,
        urgent: None,
        checkpoint,
        proof: Vec::new(),
        findings: Vec::new(),
    }
}
