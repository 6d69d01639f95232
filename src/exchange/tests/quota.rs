//! A disk that fills, and members that fill it: their feeds continue as digests, and content
//! arrives once there is space.

use std::sync::Arc;

use barid_core::ids::Member;
use barid_core::quota::Tier;

use super::disclosed;
use super::priority::immediate;
use super::world::{Node, bulletin, connect, honest, until};
use crate::committer::CommitFailure;
use crate::exchange::NoRevocations;
use crate::store::Capacity;
use crate::store::memory::MemoryStore;

const MIB: u64 = 1 << 20;

/// A node whose disk size the test sets.
fn small(code: &str) -> (Node, Arc<MemoryStore>) {
    let store = Arc::new(MemoryStore::new());
    (Node::with_store(Arc::clone(&store) as _, code, &[], Arc::new(NoRevocations)), store)
}

async fn set_tier(node: &Node, store: &MemoryStore, tier: Tier) {
    let reserve_bytes = 512 * MIB;
    store.set_capacity(Capacity { tier, free_bytes: tier.leaves_free(reserve_bytes), reserve_bytes });
    until("it is noticed", || *node.committer.tier().borrow() == tier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_of_others_is_backfilled_once_disk_has_space() {
    let (ma, (ly, store)) = (Node::start("ma"), small("ly"));
    set_tier(&ly, &store, Tier::Digests).await;
    let _cable = connect(&ma, &ly, honest(), honest());
    ma.publish(50, |_| {}).await;
    until("the feed is followed", || ly.size(&ma.feed()) == 50).await;
    assert_eq!(ly.root(&ma.feed()), ma.root(&ma.feed()));
    assert_eq!(disclosed(&ly, "ma"), [false; 50]);
    until("ly has custody of the log", || ma.peer_status(&ly.me).custody_size == 50).await;
    assert!(ma.store.custody_covering(&ma.feed(), 7).unwrap().is_empty(), "but not of content");
    ly.publish(3, |_| {}).await;
    until("ly's own entries are replicated", || ma.size(&ly.feed()) == 3).await;
    store.set_capacity(Capacity::UNBOUNDED);
    until("content is backfilled", || disclosed(&ly, "ma") == [true; 50]).await;
    until("ma has the custody notes", || {
        (0..50).all(|index| ma.store.custody_covering(&ma.feed(), index).unwrap().len() == 1)
    })
    .await;
    ma.publish(1, |_| {}).await;
    until("live entries are held in full again", || disclosed(&ly, "ma").len() == 51 && disclosed(&ly, "ma")[50]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_entries_are_committed_on_nearly_full_disk_and_actual_ones_longest() {
    let (ma, (ly, store)) = (Node::start("ma"), small("ly"));
    ly.publish(1, |_| {}).await;
    set_tier(&ly, &store, Tier::Own).await;
    let _cable = connect(&ma, &ly, honest(), honest());
    ma.publish(5, |_| {}).await;
    ly.publish(2, |_| {}).await;
    until("ma follows", || ma.size(&ly.feed()) == 3).await;
    assert_eq!(ly.size(&ma.feed()), 0, "the feed is paused");
    set_tier(&ly, &store, Tier::Priority).await;
    let rejected = ly.committer.publish(vec![bulletin(&ly.me, &|_| {})]).await.unwrap_err();
    assert!(matches!(rejected, CommitFailure::DiskFull(_)), "{rejected}");
    let exercise = ly.committer.publish(vec![bulletin(&ly.me, &immediate("Exercise"))]).await;
    assert!(exercise.is_err(), "exercises do not use the reserve of Actual entries");
    ly.committer.publish(vec![bulletin(&ly.me, &immediate("Actual"))]).await.unwrap();
    until("ma has it", || ma.size(&ly.feed()) == 4).await;
    set_tier(&ly, &store, Tier::Notes).await;
    assert!(ly.committer.publish(vec![bulletin(&ly.me, &immediate("Actual"))]).await.is_err());
    store.set_capacity(Capacity::UNBOUNDED);
    until("following continues", || disclosed(&ly, "ma") == [true; 5]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flooding_member_uses_only_its_share_of_the_disk() {
    let (ma, tn, (ly, store)) = (Node::start("ma"), Node::start("tn"), small("ly"));
    let reserve_bytes = MIB;
    let room = |above: u64| Capacity {
        tier: Tier::All,
        free_bytes: Tier::All.leaves_free(reserve_bytes) + above,
        reserve_bytes,
    };
    store.set_capacity(room(MIB));
    let noticed = || ly.committer.share_bytes() < MIB;
    until("it is noticed", noticed).await;
    let _cables = [connect(&ma, &ly, honest(), honest()), connect(&ly, &tn, honest(), honest())];
    tn.publish(2_000, |_| {}).await;
    until("the feed is followed", || ly.size(&tn.feed()) == 2_000).await;
    let held = disclosed(&ly, "tn").iter().filter(|held| **held).count();
    assert!((50..1_500).contains(&held), "{held} in full");
    let over_share: Vec<Member> = ly.committer.over_share().into_keys().collect();
    assert_eq!(over_share, std::slice::from_ref(&tn.me));
    ma.publish(100, |_| {}).await;
    ly.publish(100, |_| {}).await;
    until("others are followed in full", || disclosed(&ly, "ma") == [true; 100]).await;
    tn.publish(1, immediate("Actual")).await;
    until("urgent entries have their own allowance", || ly.size(&tn.feed()) == 2_001).await;
    assert!(disclosed(&ly, "tn")[2_000]);
    store.set_capacity(room(1 << 30));
    until("the rest is backfilled once there is space", || disclosed(&ly, "tn") == [true; 2_001]).await;
    assert!(ly.committer.over_share().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicated_entries_do_not_block_publishing() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    let _cable = connect(&ma, &ly, honest(), honest());
    let flood = ly.committer.occupy_links();
    ma.publish(3, |_| {}).await;
    ly.publish(3, |_| {}).await;
    until("ly's own are there", || ma.size(&ly.feed()) == 3).await;
    assert_eq!(ly.size(&ma.feed()), 0, "the link waits");
    drop(flood);
    until("the link continues", || ly.size(&ma.feed()) == 3).await;
}
