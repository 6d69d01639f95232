//! A node that has lost its own feed fetches it back from peers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use barid_core::proto::frame::Frame;

use super::world::{Node, Tamper, connect, honest, until};
use super::{disclosed, handling};
use crate::committer::{CommitFailure, PublishState};
use crate::exchange::tests::world::bulletin;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_store_is_detected_and_own_feed_is_recovered_once() {
    let (ma, ly, tn) = (Node::start("ma"), Node::start("ly"), Node::start("tn"));
    let feed = ma.feed();
    {
        let _cables = [connect(&ma, &ly, honest(), honest()), connect(&ma, &tn, honest(), honest())];
        ma.publish(3_000, |_| {}).await;
        ma.publish(1, |draft| {
            handling(draft).tlp = "TLP:RED".into();
            handling(draft).releasable_to = vec!["tn".into()];
        })
        .await;
        until("both hold it", || ly.size(&feed) == 3_001 && tn.size(&feed) == 3_001).await;
    }
    let root = ma.root(&feed);
    drop(ma);

    let ma = Node::start("ma");
    let entries = Arc::new(AtomicUsize::new(0));
    let counted = || -> Tamper {
        let entries = Arc::clone(&entries);
        Box::new(move |frame| {
            if let Some(Frame::Entries(batch)) = &frame.frame
                && batch.feed.starts_with("ma.")
            {
                entries.fetch_add(batch.items.len(), Ordering::SeqCst);
            }
            Some(frame)
        })
    };
    let _cables = [connect(&ma, &tn, honest(), counted()), connect(&ma, &ly, honest(), counted())];
    until("it needs recovery", || matches!(*ma.committer.publish_state().borrow(), PublishState::NeedsRecovery(_)))
        .await;
    until("it has its feed again", || ma.root(&feed) == root).await;
    assert!(entries.load(Ordering::SeqCst) < 6_000, "it is sent once only: {entries:?}");
    assert!(disclosed(&ma, "ma")[..3_000].iter().all(|held| *held), "it may read its own entries");
    let rejected = ma.committer.publish(vec![bulletin(&ma.me, &|_| {})]).await;
    assert!(matches!(rejected, Err(CommitFailure::NeedsRecovery(_))));
    let replicas = ma.exchange.own_feed_replicas();
    until("both have sent their tree heads", || {
        ma.exchange.own_feed_replicas().values().all(|peer| peer.sizes.get(&feed) == Some(&3_001))
    })
    .await;
    assert!(!replicas.is_empty() && !ma.exchange.peers().snapshot().contains_key(&ma.me), "it is not its own peer");
    assert!(ma.store.cosigned_newest(&feed).unwrap().iter().all(|note| note.cosigner != ma.me));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_feed_is_recovered_through_a_relay() {
    let (ma, ly, tn) = (Node::start("ma"), Node::start("ly"), Node::start("tn"));
    let feed = ma.feed();
    {
        let _cable = connect(&ma, &ly, honest(), honest());
        ma.publish(30, |_| {}).await;
        until("ly holds it", || ly.size(&feed) == 30).await;
    }
    let root = ma.root(&feed);
    drop(ma);
    // ma has lost its store and is linked only to tn, which has never held its feed but is linked
    // to ly.
    let ma = Node::start("ma");
    let _cables = [connect(&ma, &tn, honest(), honest()), connect(&tn, &ly, honest(), honest())];
    until("tn has it from ly, though ma is linked", || tn.root(&feed) == root).await;
    until("ma has it again", || ma.root(&feed) == root).await;
    assert!(matches!(*ma.committer.publish_state().borrow(), PublishState::NeedsRecovery(_)));
    assert!(disclosed(&ma, "ma").iter().all(|held| *held));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovery_switches_peer_after_a_bad_batch() {
    let (ma, ly, tn) = (Node::start("ma"), Node::start("ly"), Node::start("tn"));
    let feed = ma.feed();
    {
        let _cables = [connect(&ma, &ly, honest(), honest()), connect(&ma, &tn, honest(), honest())];
        ma.publish(20, |_| {}).await;
        until("both hold it", || ly.size(&feed) == 20 && tn.size(&feed) == 20).await;
    }
    let root = ma.root(&feed);
    drop(ma);
    let ma = Node::start("ma");
    let tampered: Tamper = Box::new(|mut frame| {
        if let Some(Frame::Entries(batch)) = &mut frame.frame
            && batch.feed.starts_with("ma.")
        {
            batch.items.pop();
        }
        Some(frame)
    });
    let _liar = connect(&ma, &ly, honest(), tampered);
    until("it needs recovery", || matches!(*ma.committer.publish_state().borrow(), PublishState::NeedsRecovery(_)))
        .await;
    let _honest = connect(&ma, &tn, honest(), honest());
    until("it has its feed again", || ma.root(&feed) == root).await;
}
