//! Forked feeds: what stops a feed again after an operator's decision, and what a member's
//! announcement counts for.

use barid_core::bulletin::ValidBulletin;
use barid_core::feed::checkpoint::{Checkpoint, SignedCheckpoint, sign};
use barid_core::feed::note::{Algorithm, SigningKey};
use barid_core::follow::Equivocation;
use barid_core::ids::Hash;
use barid_core::proto;
use barid_core::proto::frame::Frame;

use super::world::{Actor, Node, alarms, connect, feed, honest, key, until};
use crate::committer::feed_forked_bulletin;

fn tree(size: u64, root: u8) -> Checkpoint {
    Checkpoint { feed: feed("ly"), size, root: Hash([root; 32]) }
}

fn signed(tree: &Checkpoint, key: &SigningKey) -> SignedCheckpoint {
    sign(tree, std::slice::from_ref(key)).unwrap()
}

/// A peer's tree head of Tripoli's feed.
fn head(tree: &Checkpoint) -> Frame {
    let checkpoint = signed(tree, &key("ly", "feed/1", Algorithm::Ed25519)).note;
    let heads = vec![proto::TreeHead { checkpoint, ..proto::TreeHead::default() }];
    Frame::TreeHeads(proto::TreeHeads { heads, roster_version: 1, crls: Vec::new() })
}

/// Rabat's announcement of a fork of Tripoli's feed, with two trees signed by `key`.
fn announcement_of(node: &Node, key: &SigningKey) -> ValidBulletin {
    let evidence = Equivocation::between(&signed(&tree(2, 7), key), &signed(&tree(2, 9), key)).unwrap();
    feed_forked_bulletin(&evidence.into(), &node.me, node.rosters.load().newest()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumed_feed_stays_resumed_until_another_fork_is_proven() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    let _cable = connect(&ma, &ly, honest(), honest());
    ly.publish(3, |_| {}).await;
    until("Rabat holds Tripoli's", || ma.size(&ly.feed()) == 3).await;
    let stopped = || ma.exchange.stopped_feeds().contains(&ly.feed());
    let forks = || ma.store.forks().unwrap();

    let liar = Actor::handshake(&ma, "tn").await;
    liar.send(head(&tree(2, 9))).await;
    until("the feed is stopped", || stopped() && forks().len() == 1).await;
    assert!(ma.exchange.resume_feed(&ly.feed()).await.unwrap() && !stopped());
    ly.publish(2, |_| {}).await;
    until("it is followed again", || ma.size(&ly.feed()) == 5).await;

    // The same tree again, now behind a larger checkpoint of ours: covered by the decision. Then
    // another tree.
    liar.send(head(&tree(2, 9))).await;
    liar.send(head(&tree(4, 8))).await;
    until("the feed is stopped again", || stopped() && forks().len() == 2).await;
    assert_eq!(forks().iter().filter(|fork| fork.resumed).count(), 1);
    let alarms = alarms(&ma);
    assert!(alarms.iter().any(|alarm| alarm.contains("at size 4")), "{alarms:?}");

    // The same after a restart; and one decision covers all known evidence.
    let ma = ma.restart_with_topics(&[]);
    assert!(ma.exchange.stopped_feeds().contains(&ly.feed()));
    assert!(ma.exchange.resume_feed(&ly.feed()).await.unwrap());
    let ma = ma.restart_with_topics(&[]);
    assert!(ma.exchange.stopped_feeds().all().is_empty());
    assert!(!ma.exchange.resume_feed(&feed("tn")).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn announcement_with_evidence_raises_alarm_and_claim_does_not() {
    let (ma, tn) = (Node::start("ma"), Node::start("tn"));
    let _cable = connect(&ma, &tn, honest(), honest());
    ma.publish(1, |_| {}).await;
    // Not Tripoli's key.
    let stranger = SigningKey::from_seed("ly.rabat.example/feed/1", Algorithm::Ed25519, [66; 32]).unwrap();
    ma.committer.publish(vec![announcement_of(&ma, &stranger)]).await.unwrap();
    until("Tunis has it", || tn.size(&ma.feed()) == 2).await;

    let proven = announcement_of(&ma, &key("ly", "feed/1", Algorithm::Ed25519));
    ma.committer.publish(vec![proven.clone()]).await.unwrap();
    until("Tunis stores the evidence", || !tn.store.forks().unwrap().is_empty()).await;
    let forks = tn.store.forks().unwrap();
    let carried = barid_core::envelope::body_of(&proven.envelope).unwrap().content;
    let Some(proto::body::Content::FeedForked(carried)) = carried else { panic!("{carried:?}") };
    assert_eq!(forks.len(), 1, "a claim without proof raises no alarm");
    assert_eq!((&forks[0].feed, &forks[0].evidence), (&feed("ly"), &carried.evidence));
    Equivocation::verify(&forks[0].evidence, tn.rosters.load().newest()).unwrap();
    assert_eq!(tn.exchange.stopped_feeds().all().keys().collect::<Vec<_>>(), [&feed("ly")]);
    assert_eq!(alarms(&tn).len(), 1, "{:?}", alarms(&tn));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decision_covers_forks_announced_meanwhile() {
    let (ma, tn) = (Node::start("ma"), Node::start("tn"));
    let _cable = connect(&ma, &tn, honest(), honest());
    let key = key("ly", "feed/1", Algorithm::Ed25519);
    for roots in [[7, 9], [5, 6]] {
        let [one, other] = roots.map(|root| signed(&tree(2, root), &key));
        let evidence = Equivocation::between(&one, &other).unwrap();
        tn.publish(0, |_| {}).await;
        let announcement = feed_forked_bulletin(&evidence.into(), &tn.me, tn.rosters.load().newest()).unwrap();
        tn.committer.publish(vec![announcement]).await.unwrap();
        until("Rabat has stopped the feed", || ma.exchange.stopped_feeds().contains(&feed("ly"))).await;
    }
    until("Rabat has both", || ma.size(&tn.feed()) == 2).await;
    assert!(ma.exchange.resume_feed(&feed("ly")).await.unwrap());
    let forks = ma.store.forks().unwrap();
    assert!(forks.len() == 2 && forks.iter().all(|fork| fork.resumed), "{}", forks.len());
    // Held announcements are verified again when the node starts.
    let ma = ma.restart_with_topics(&[]);
    ma.exchange.verify_held_announcements().await;
    ma.committer.persist(crate::committer::Records::default()).await.unwrap();
    assert!(!ma.exchange.stopped_feeds().contains(&feed("ly")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn announced_fork_of_own_feed_stops_publishing() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    let _cable = connect(&ma, &ly, honest(), honest());
    ly.publish(3, |_| {}).await;
    ma.committer.publish(vec![announcement_of(&ma, &key("ly", "feed/1", Algorithm::Ed25519))]).await.unwrap();
    let needs_recovery =
        || matches!(&*ly.committer.publish_state().borrow(), crate::committer::PublishState::NeedsRecovery(_));
    until("Tripoli needs recovery", needs_recovery).await;
}
