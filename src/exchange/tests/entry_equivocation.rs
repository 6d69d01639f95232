//! Two entries at one index of one feed: found over the priority lane, decided by an operator, and
//! what stops the feed again.

use barid_core::follow::{EntryEquivocation, EquivocationEvidence};
use barid_core::proto;
use barid_core::proto::frame::Frame;

use super::priority::{Feed, bulletins_with, by_offset, followed_peer, immediate};
use super::world::{Node, connect, feed, honest, until};
use crate::committer::feed_forked_bulletin;
use crate::store::Content;

fn all_priority() -> Feed {
    Feed::of(bulletins_with(|_, draft| immediate("Exercise")(draft)))
}

/// A feed of another size: its checkpoint alone does not contradict the others.
fn longer() -> Feed {
    let change = |_, draft: &mut proto::Draft| immediate("Exercise")(draft);
    Feed::of(bulletins_with(change).into_iter().chain(bulletins_with(change).into_iter().take(1)).collect())
}

fn stopped(node: &Node) -> bool {
    node.exchange.stopped_feeds().contains(&feed("ma"))
}

fn forks(node: &Node) -> (usize, usize) {
    let forks = node.store.forks().unwrap();
    (forks.len(), forks.iter().filter(|fork| fork.resumed).count())
}

/// Returns the newest evidence without a decision, which must be two entries at this index.
fn undecided(node: &Node, index: u64) -> EntryEquivocation {
    let fork = node.store.forks().unwrap().into_iter().find(|fork| !fork.resumed).unwrap();
    match EquivocationEvidence::verify(&fork.evidence, node.rosters.load().newest()).unwrap() {
        EquivocationEvidence::Entries(entries) if entries.index == index => entries,
        other => panic!("{other}"),
    }
}

async fn resume(node: &Node) {
    assert!(node.exchange.resume_feed(&feed("ma")).await.unwrap() && !stopped(node));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decision_on_two_entries_persists_and_a_third_entry_stops_the_feed_again() {
    let ly = Node::start("ly");
    let (one, other, third) = (all_priority(), all_priority(), longer());
    let mut ma = followed_peer(&ly).await;
    ma.send(Frame::PriorityEntry(one.priority(3))).await;
    until("the priority entry is held", || by_offset(&ly) == [3]).await;
    ma.send(Frame::Entries(other.entries())).await;
    until("the feed is stopped", || stopped(&ly) && forks(&ly) == (1, 0)).await;
    assert_eq!(ly.size(&feed("ma")), 0, "nothing of it is accepted");
    let digests = [one.bulletins[3].digest, other.bulletins[3].digest];
    let evidence = undecided(&ly, 3);
    assert!(digests.contains(&evidence.one.digest) && digests.contains(&evidence.other.digest));

    // The decision covers its evidence, here and after a restart: the feed continues with another
    // entry than the one received ahead of the order.
    resume(&ly).await;
    let ly = ly.restart_with_topics(&[]);
    assert!(!stopped(&ly));
    ma = followed_peer(&ly).await;
    ma.send(Frame::PriorityEntry(one.priority(3))).await;
    ma.send(Frame::PriorityEntry(other.priority(3))).await;
    ma.send(Frame::Entries(other.entries())).await;
    until("it is followed again", || ly.size(&feed("ma")) == 8).await;
    let held = ly.store.entries(&feed("ma"), 0, 9, usize::MAX).unwrap();
    assert!(held.iter().zip(&other.bulletins).all(|(held, sent)| held.digest == sent.digest));
    assert!(held.iter().all(|entry| matches!(entry.content, Content::Disclosed { .. })));
    assert!(ly.store.out_of_order(&feed("ma"), 0..u64::MAX).is_empty());
    assert_eq!(by_offset(&ly), [3, 0, 1, 2, 3, 4, 5, 6, 7], "both entries of this index have offsets");
    let first = ly.store.entries_from(1, 1, usize::MAX).unwrap().remove(0);
    assert_eq!(first.digest, one.bulletins[3].digest, "a delivered entry does not change");

    // The same evidence, also behind the feed, is covered by the decision. A third entry at the
    // same index is not.
    ma.send(Frame::PriorityEntry(one.priority(3))).await;
    ma.send(Frame::PriorityEntry(one.priority(5))).await;
    ma.send(Frame::PriorityEntry(third.priority(3))).await;
    until("it is stopped again", || stopped(&ly) && forks(&ly) == (2, 1)).await;
    let digests = [third.bulletins[3].digest, other.bulletins[3].digest];
    let evidence = undecided(&ly, 3);
    assert!(digests.contains(&evidence.one.digest) && digests.contains(&evidence.other.digest), "{evidence:?}");
    let ly = ly.restart_with_topics(&[]);
    assert!(stopped(&ly));
    resume(&ly).await;
    let ly = ly.restart_with_topics(&[]);
    assert!(!stopped(&ly) && forks(&ly) == (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumed_feed_accepts_only_decided_entries_in_order() {
    let ly = Node::start("ly");
    let (one, other, third) = (all_priority(), all_priority(), all_priority());
    let mut ma = followed_peer(&ly).await;
    ma.send(Frame::PriorityEntry(one.priority(3))).await;
    until("the priority entry is held", || by_offset(&ly) == [3]).await;
    ma.send(Frame::PriorityEntry(other.priority(3))).await;
    until("the feed is stopped", || stopped(&ly) && forks(&ly) == (1, 0)).await;
    resume(&ly).await;
    ma = followed_peer(&ly).await;
    ma.send(Frame::Entries(third.entries())).await;
    until("a third entry stops it", || stopped(&ly) && forks(&ly) == (2, 1)).await;
    assert_eq!(ly.size(&feed("ma")), 0);
    resume(&ly).await;
    ma = followed_peer(&ly).await;
    ma.send(Frame::Entries(one.entries())).await;
    until("the first fork is followed", || ly.size(&feed("ma")) == 8).await;
    assert_eq!(by_offset(&ly), [3, 0, 1, 2, 4, 5, 6, 7], "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn announced_entry_equivocation_stops_the_feed_at_other_members() {
    let (ly, tn) = (Node::start("ly"), Node::start("tn"));
    let _cable = connect(&ly, &tn, honest(), honest());
    let (one, other) = (all_priority(), all_priority());
    let ma = followed_peer(&ly).await;
    for feed in [&one, &other] {
        ma.send(Frame::PriorityEntry(feed.priority(3))).await;
    }
    until("the feed is stopped", || stopped(&ly) && forks(&ly) == (1, 0)).await;
    let evidence = undecided(&ly, 3);
    let announcement = feed_forked_bulletin(&evidence.clone().into(), &ly.me, ly.rosters.load().newest()).unwrap();
    assert_eq!(
        barid_core::bulletin::header_priority(&announcement.proto_header),
        Some(barid_core::bulletin::Priority::Other)
    );
    let body = barid_core::envelope::body_of(&announcement.envelope).unwrap();
    let Some(proto::body::Content::FeedForked(announced)) = body.content else { panic!("another kind") };
    assert_eq!((announced.index, announced.digest.as_ref()), (3, &evidence.one.digest.0[..]));
    ly.publish(1, |_| {}).await;
    ly.committer.publish(vec![announcement]).await.unwrap();
    until("Tunis has stopped it", || stopped(&tn) && forks(&tn) == (1, 0)).await;
    assert_eq!(undecided(&tn, 3), evidence);
    let alarm = tn.exchange.alarms().snapshot().remove(0).alarm;
    assert_eq!((alarm.code(), alarm.values()[0].as_str()), ("fork", "ma.rabat.example/feed/1"));
}
