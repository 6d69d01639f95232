//! Announces trees of ended epochs of the own feed that are found later, for example because a peer
//! returned more entries.

use std::collections::BTreeMap;
use std::time::Duration;

use barid_core::bulletin::kinds::feed_closed;
use barid_core::feed::checkpoint::Checkpoint;
use barid_core::ids::FeedId;

use crate::committer::{Committer, PublishState, feed_closed_bulletin};
use crate::exchange::Exchange;
use crate::roster_store::RosterStore;

/// Time between two checks. Returned entries arrive in batches, and only the last tree is
/// announced.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Publishes a `feed-closed` bulletin for each tree of an ended epoch that is not announced yet,
/// once it is as long as any that peers hold. Publishes none for an epoch that the governors have
/// closed in the roster. Never returns.
pub(super) async fn announce_closed_epochs(committer: Committer, exchange: Exchange, rosters: RosterStore) {
    let mut done: BTreeMap<FeedId, u64> = BTreeMap::new();
    let mut tick = tokio::time::interval(CHECK_INTERVAL);
    loop {
        tick.tick().await;
        if *committer.publish_state().borrow() != PublishState::Open {
            continue;
        }
        for tree in unannounced(&committer, &exchange, &rosters, &done) {
            let (store, id) = (std::sync::Arc::clone(committer.store()), feed_closed::id(&tree).uuid());
            let member = tree.feed.member.clone();
            let found = tokio::task::spawn_blocking(move || store.find(&member, id)).await;
            let known = match found {
                Ok(Ok(found)) => found.is_some(),
                // Retried; the store reports that it cannot be read.
                Ok(Err(_)) | Err(_) => continue,
            };
            if !known {
                let bulletin = match feed_closed_bulletin(&tree, rosters.load().newest()) {
                    Ok(bulletin) => bulletin,
                    Err(error) => {
                        tracing::error!(feed = %tree.feed, %error, "the end of an epoch cannot be announced");
                        done.insert(tree.feed, tree.size);
                        continue;
                    }
                };
                if let Err(failure) = committer.publish(vec![bulletin]).await {
                    tracing::warn!(feed = %tree.feed, %failure, "the end of an epoch is not announced yet");
                    continue;
                }
                tracing::info!(
                    feed = %tree.feed,
                    size = tree.size,
                    "more entries of an ended epoch were found and announced"
                );
            }
            done.insert(tree.feed, tree.size);
        }
    }
}

fn unannounced(
    committer: &Committer,
    exchange: &Exchange,
    rosters: &RosterStore,
    done: &BTreeMap<FeedId, u64>,
) -> Vec<Checkpoint> {
    let own = committer.feed();
    if own.epoch == 1 {
        return Vec::new();
    }
    let (roster, announced) = (rosters.load().newest_shared(), exchange.own_feed_replicas());
    let closed_feeds = roster.member(&own.member).map(|entry| entry.closed_feeds.as_slice()).unwrap_or_default();
    let ended = committer.store().feeds().into_iter().filter(|state| {
        state.feed.member == own.member
            && state.feed.epoch < own.epoch
            && !closed_feeds.iter().any(|closed| closed.epoch == state.feed.epoch)
    });
    let complete = ended.filter(|state| {
        let size = state.compact_range.size();
        done.get(&state.feed) != Some(&size)
            && !announced.values().any(|peer| peer.sizes.get(&state.feed).is_some_and(|announced| *announced > size))
    });
    complete
        .map(|state| Checkpoint {
            size: state.compact_range.size(),
            root: state.compact_range.root(),
            feed: state.feed,
        })
        .collect()
}
