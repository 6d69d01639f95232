//! A member whose disk has altered an entry: its peers receive all later entries, and the damaged
//! one after its repair.

use std::sync::Arc;

use super::disclosed;
use super::world::{EXCHANGE, Node, connect, feed, honest, member, until};
use crate::exchange::NoRevocations;
use crate::store::disk::{DiskOptions, DiskStore};
use crate::store::{Content, ReadError, Store};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_entry_does_not_block_the_feed_and_is_backfilled_after_repair() {
    let folder = tempfile::tempdir().unwrap();
    // Without a cache every read comes from the disk.
    let options = DiskOptions {
        reserve_bytes: 0,
        tail_cache_bytes: 0,
        ..DiskOptions::new(member("ma"), EXCHANGE.parse().unwrap())
    };
    let store: Arc<dyn Store> = Arc::new(DiskStore::open(folder.path(), &options).unwrap());
    let (ma, ly) = (Node::with_store(store, "ma", &[], Arc::new(NoRevocations)), Node::start("ly"));
    ma.publish(5, |_| {}).await;
    ma.store.apply_index();
    let Content::Disclosed { envelope, .. } = ma.store.entries(&feed("ma"), 2, 1, 0).unwrap().remove(0).content else {
        panic!("it is held")
    };
    let path = folder.path().join("log/0000000001.log");
    let whole = std::fs::read(&path).unwrap();
    let at = whole.windows(envelope.len()).position(|window| window == envelope).unwrap();
    let mut damaged = whole.clone();
    damaged[at..at + 2].fill(0xee);
    std::fs::write(&path, damaged).unwrap();
    assert!(matches!(ma.store.entries(&feed("ma"), 2, 1, 0), Err(ReadError::DamagedEntry(_))));

    let cable = connect(&ma, &ly, honest(), honest());
    until("the entries after it are held", || ly.size(&ma.feed()) == 5).await;
    assert_eq!(disclosed(&ly, "ma"), [true, true, false, true, true]);
    drop(cable);

    std::fs::write(&path, whole).unwrap();
    let _cable = connect(&ma, &ly, honest(), honest());
    until("the restored entry is backfilled", || disclosed(&ly, "ma") == [true; 5]).await;
}
