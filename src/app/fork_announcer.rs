//! Announces proven forks to every member: publishes the evidence in this member's own feed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use barid_core::bulletin::audience::Directory;
use barid_core::bulletin::kinds::feed_forked;
use barid_core::follow::EquivocationEvidence;
use barid_core::ids::Member;
use bytes::Bytes;

use crate::committer::{Committer, PublishState, feed_forked_bulletin};
use crate::exchange::Exchange;
use crate::roster_store::RosterStore;
use crate::store::{ReadError, Store};

/// Time between two checks. This member's operators get an alarm at once; other members hear of it
/// within seconds.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Publishes a `feed-forked` bulletin for each piece of evidence that no member has announced.
/// First verifies the announcements received just before this node last stopped. Never returns.
pub(super) async fn announce_forks(committer: Committer, exchange: Exchange, rosters: RosterStore) {
    exchange.verify_held_announcements().await;
    let mut done = BTreeSet::new();
    let mut tick = tokio::time::interval(CHECK_INTERVAL);
    loop {
        tick.tick().await;
        if *committer.publish_state().borrow() != PublishState::Open || committer.disk_full().borrow().is_some() {
            continue;
        }
        let (store, roster) = (Arc::clone(committer.store()), rosters.load().newest_shared());
        let members: Vec<Member> = roster.members().cloned().collect();
        let known = done.clone();
        let unannounced = tokio::task::spawn_blocking(move || unannounced(store.as_ref(), &members, &known)).await;
        // Retried; the store reports that it cannot be read.
        let Ok(Ok(unannounced)) = unannounced else { continue };
        for (file, is_announced) in unannounced {
            if !is_announced && !publish(&committer, &rosters, &file).await {
                continue;
            }
            done.insert(file);
        }
    }
}

/// Returns the evidence that is not in `done`, and whether a member has announced it. Blocks.
fn unannounced(store: &dyn Store, members: &[Member], done: &BTreeSet<Bytes>) -> Result<Vec<(Bytes, bool)>, ReadError> {
    let mut found = Vec::new();
    for fork in store.forks()? {
        if done.contains(&fork.evidence) {
            continue;
        }
        let id = feed_forked::id(&fork.evidence).uuid();
        let mut is_announced = false;
        for member in members {
            is_announced = is_announced || store.find(member, id)?.is_some();
        }
        found.push((fork.evidence, is_announced));
    }
    Ok(found)
}

/// Returns whether this evidence is finished with.
async fn publish(committer: &Committer, rosters: &RosterStore, file: &[u8]) -> bool {
    let roster = rosters.load().newest_shared();
    let evidence = match EquivocationEvidence::verify(file, &roster) {
        Ok(evidence) => evidence,
        Err(error) => {
            // Keys have left the roster since: nobody could verify the evidence.
            tracing::warn!(%error, "the evidence of a fork is not valid by the current roster: it is not published");
            return true;
        }
    };
    let feed = evidence.feed();
    match feed_forked_bulletin(&evidence, &committer.feed().member, &roster) {
        Ok(bulletin) => match committer.publish(vec![bulletin]).await {
            Ok(_) => {
                tracing::warn!(%feed, "a fork is announced to every member");
                true
            }
            Err(failure) => {
                tracing::warn!(%feed, %failure, "a fork is not announced yet");
                false
            }
        },
        Err(error) => {
            tracing::error!(%feed, %error, "a fork cannot be announced");
            true
        }
    }
}
