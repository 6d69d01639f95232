//! Urgent entries overtake the others of their feed, once, and carry their own proof.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use barid_core::bulletin::{ValidBulletin, header_priority};
use barid_core::feed::checkpoint::{Checkpoint, sign};
use barid_core::feed::note::Algorithm;
use barid_core::feed::tree::{MemoryTree, inclusion_proof};
use barid_core::follow::EntryEquivocation;
use barid_core::limits::{BATCH_ENTRIES_MAX, PRIORITY_ENTRIES_MAX, PRIORITY_OTHERS_MAX};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::proto::item::Item;
use bytes::Bytes;
use parking_lot::Mutex;

use super::world::{Actor, Node, Tamper, alarms, bulletin, connect, feed, honest, key, member, until};
use super::{disclosed, handling};

/// Changes a draft into an urgent one of this status.
pub(super) fn immediate(status: &'static str) -> impl Fn(&mut proto::Draft) {
    move |draft| {
        let header = draft.header.as_mut().unwrap();
        header.urgency = "Immediate".into();
        header.status = status.into();
    }
}

/// Indexes of ma's feed in order of offset.
pub(super) fn by_offset(node: &Node) -> Vec<u64> {
    let entries = node.store.entries_from(1, usize::MAX, usize::MAX).unwrap();
    entries.into_iter().filter(|entry| entry.feed == feed("ma")).map(|entry| entry.index).collect()
}

fn assert_each_once(node: &Node, size: u64) {
    let mut once = by_offset(node);
    once.sort_unstable();
    assert_eq!(once, (0..size).collect::<Vec<_>>());
    assert_eq!(disclosed(node, "ma"), vec![true; usize::try_from(size).unwrap()]);
}

/// Passes batches that begin at or after an index only while it is open; records the priority
/// entries in order.
fn gate(from: u64) -> (Arc<AtomicBool>, Arc<Mutex<Vec<proto::PriorityEntry>>>, Tamper) {
    let (open, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let shared = (Arc::clone(&open), Arc::clone(&seen));
    let tamper: Tamper = Box::new(move |frame| match &frame.frame {
        Some(Frame::Entries(batch)) if batch.first >= from && !shared.0.load(Ordering::SeqCst) => None,
        Some(Frame::PriorityEntry(priority)) => {
            shared.1.lock().push(priority.clone());
            Some(frame)
        }
        _ => Some(frame),
    });
    (open, seen, tamper)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn priority_entries_precede_backlog_once_with_custody() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    ma.publish(1_500, |_| {}).await;
    ma.publish(2, immediate("Exercise")).await;
    ma.publish(1_500, |_| {}).await;
    ma.publish(1, immediate("Actual")).await;
    ma.publish(10, |_| {}).await;
    let (_, seen, stuck) = gate(0);
    let cable = connect(&ma, &ly, stuck, honest());
    until("the urgent entries are held", || by_offset(&ly).len() == 3).await;
    assert_eq!(by_offset(&ly), [3_002, 1_500, 1_501], "Actual entries before exercises");
    // New ones too, while nothing arrives in order.
    ma.publish(1, immediate("Actual")).await;
    until("the new entry is held", || by_offset(&ly).len() == 4).await;
    assert_eq!(by_offset(&ly)[3], 3_013);
    assert_eq!(ly.size(&ma.feed()), 0);
    for index in [1_500, 3_002, 3_013] {
        until("ma knows that ly has it", || ma.store.custody_covering(&ma.feed(), index).unwrap().len() == 1).await;
    }
    assert!(ma.store.custody_covering(&ma.feed(), 1_499).unwrap().is_empty(), "and nothing else");
    assert!(ma.store.custody_newest(&ma.feed()).unwrap().is_empty(), "the entries between are still requested");
    assert_eq!(seen.lock().len(), 4, "each was sent once");
    drop(cable);

    let _cable = connect(&ma, &ly, honest(), honest());
    until("the rest has arrived in order", || ly.size(&ma.feed()) == 3_014).await;
    assert_eq!(ly.root(&ma.feed()), ma.root(&ma.feed()));
    assert_each_once(&ly, 3_014);
    assert_eq!(&by_offset(&ly)[..4], [3_002, 1_500, 1_501, 3_013]);
    until("ma knows that ly has everything", || {
        (0..3_014).all(|index| ma.store.custody_covering(&ma.feed(), index).unwrap().len() == 1)
    })
    .await;
    assert!(ly.store.out_of_order(&ma.feed(), 0..u64::MAX).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exercises_do_not_use_capacity_of_actual_entries() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    // Behind a backlog: more entries than are scanned, then as many Actual ones as fit.
    ma.publish(PRIORITY_ENTRIES_MAX, |_| {}).await;
    ma.publish(4 * PRIORITY_ENTRIES_MAX + 10, immediate("Exercise")).await;
    let first = 5 * PRIORITY_ENTRIES_MAX as u64 + 10;
    let (_, _, stuck) = gate(0);
    let _cable = connect(&ma, &ly, stuck, honest());
    until("exercises have reached their limit", || by_offset(&ly).len() == PRIORITY_OTHERS_MAX).await;
    ma.publish(PRIORITY_ENTRIES_MAX + 1, immediate("Actual")).await;
    let ahead = || by_offset(&ly).into_iter().filter(|index| *index >= first).count();
    until("the Actual entries are held", || ahead() == PRIORITY_ENTRIES_MAX).await;
    assert_eq!(by_offset(&ly).len(), PRIORITY_OTHERS_MAX + PRIORITY_ENTRIES_MAX);
    assert_eq!(ly.size(&ma.feed()), 0, "nothing arrived in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backlog_of_only_priority_entries_is_sent_in_order_once() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    ma.publish(2 * BATCH_ENTRIES_MAX, immediate("Actual")).await;
    let (open, seen, tamper) = gate(0);
    open.store(true, Ordering::SeqCst);
    let _cable = connect(&ma, &ly, tamper, honest());
    until("everything is held", || ly.size(&ma.feed()) == 2 * BATCH_ENTRIES_MAX as u64).await;
    assert!(seen.lock().is_empty());
    assert_each_once(&ly, 2 * BATCH_ENTRIES_MAX as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_without_backlog_are_sent_once() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    let (open, seen, tamper) = gate(0);
    open.store(true, Ordering::SeqCst);
    let _cable = connect(&ma, &ly, tamper, honest());
    for count in 1..=20 {
        ma.publish(1, immediate("Actual")).await;
        // On a busy machine they would form a backlog.
        until("it is there", || ly.size(&ma.feed()) == count).await;
    }
    assert!(seen.lock().is_empty());
    assert_each_once(&ly, 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_forwards_priority_entries_at_once() {
    let (ma, ly, tn) = (Node::start("ma"), Node::start("ly"), Node::start("tn"));
    ma.publish(2 * BATCH_ENTRIES_MAX, |_| {}).await;
    let (_, _, stuck) = gate(1);
    let first = connect(&ma, &ly, stuck, honest());
    let _second = connect(&ly, &tn, honest(), honest());
    until("the first entries arrived through ly", || tn.size(&ma.feed()) > 0).await;
    let begun = ly.size(&ma.feed());
    ma.publish(1, immediate("Actual")).await;
    // Not for ly: only its owner can serve it.
    ma.publish(1, |draft| {
        immediate("Actual")(draft);
        *handling(draft) =
            proto::Handling { tlp: "TLP:RED".into(), releasable_to: vec!["tn".into()], ..proto::Handling::default() };
    })
    .await;
    let index = 2 * BATCH_ENTRIES_MAX as u64;
    until("the urgent entry arrived through ly", || by_offset(&tn).contains(&index)).await;
    assert!(begun < index && tn.size(&ma.feed()) == begun);
    assert!(!by_offset(&ly).contains(&(index + 1)));
    drop(first);
    let _again = connect(&ma, &ly, honest(), honest());
    let direct = connect(&tn, &ma, honest(), honest());
    until("everything is held", || tn.size(&ma.feed()) == index + 2 && ly.size(&ma.feed()) == index + 2).await;
    until("also the entry that is not for ly", || by_offset(&tn).contains(&(index + 1))).await;
    assert_each_once(&tn, index + 2);
    assert_eq!(disclosed(&ly, "ma").iter().filter(|held| !**held).count(), 1);
    until("ma knows that tn has it", || {
        ma.store.custody_covering(&ma.feed(), index).unwrap().iter().any(|note| note.holder == tn.me)
    })
    .await;
    drop(direct);
}

type Lie = fn(&mut proto::PriorityEntry);

/// ma's feed as the test makes it.
pub(super) struct Feed {
    tree: MemoryTree,
    pub(super) bulletins: Vec<ValidBulletin>,
}

impl Feed {
    pub(super) fn of(bulletins: Vec<ValidBulletin>) -> Self {
        let mut tree = MemoryTree::new();
        bulletins.iter().for_each(|bulletin| tree.append(&bulletin.digest));
        Self { tree, bulletins }
    }

    fn checkpoint(&self) -> Bytes {
        let checkpoint = Checkpoint { feed: feed("ma"), size: self.tree.size(), root: self.tree.root() };
        sign(&checkpoint, &[key("ma", "feed/1", Algorithm::Ed25519)]).unwrap().note
    }

    pub(super) fn priority(&self, index: usize) -> proto::PriorityEntry {
        let proof = inclusion_proof(&self.tree, index as u64, self.tree.size()).unwrap();
        proto::PriorityEntry {
            feed: feed("ma").to_string(),
            index: index as u64,
            envelope: self.bulletins[index].envelope.clone(),
            inclusion_proof: proof.iter().map(|hash| Bytes::copy_from_slice(&hash.0)).collect(),
            checkpoint: self.checkpoint(),
        }
    }

    pub(super) fn entries(&self) -> proto::Entries {
        let item = |bulletin: &ValidBulletin| proto::Item { item: Some(Item::Envelope(bulletin.envelope.clone())) };
        proto::Entries {
            feed: feed("ma").to_string(),
            first: 0,
            items: self.bulletins.iter().map(item).collect(),
            checkpoint: self.checkpoint(),
            consistency_proof: Vec::new(),
        }
    }
}

pub(super) fn bulletins_with(change: impl Fn(usize, &mut proto::Draft)) -> Vec<ValidBulletin> {
    (0..8).map(|n| bulletin(&member("ma"), &|draft: &mut proto::Draft| change(n, draft))).collect()
}

/// Plays ma, after ly has requested its feed.
pub(super) async fn followed_peer(ly: &Node) -> Actor {
    let mut ma = Actor::handshake(ly, "ma").await;
    ma.receive(|frame| matches!(frame, Frame::Follow(follow) if follow.feed == feed("ma").to_string()).then_some(()))
        .await;
    ma
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_excluded_and_ordinary_priority_frames_are_ignored() {
    let ly = Node::start("ly");
    let sent = Feed::of(bulletins_with(|n, draft| match n {
        3 | 7 => immediate("Exercise")(draft),
        5 => {
            immediate("Actual")(draft);
            *handling(draft) = proto::Handling {
                tlp: "TLP:RED".into(),
                releasable_to: vec!["tn".into()],
                ..proto::Handling::default()
            };
        }
        _ => {}
    }));
    assert_eq!(sent.bulletins.iter().filter(|bulletin| header_priority(&bulletin.proto_header).is_some()).count(), 3);
    let mut ma = followed_peer(&ly).await;
    for index in [5, 3, 4, 3, 7, 3] {
        ma.send(Frame::PriorityEntry(sent.priority(index))).await;
    }
    let mut custody = Vec::new();
    while custody.len() < 2 {
        custody.push(
            ma.receive(|frame| if let Frame::Custody(custody) = frame { Some(custody.note) } else { None }).await,
        );
    }
    assert_eq!(by_offset(&ly), [3, 7]);
    ma.send(Frame::Entries(sent.entries())).await;
    until("everything is held", || ly.size(&feed("ma")) == 8).await;
    ma.send(Frame::PriorityEntry(sent.priority(3))).await;
    assert_eq!(by_offset(&ly), [3, 7, 0, 1, 2, 4, 6]);
    assert!(!disclosed(&ly, "ma")[5]);
    assert!(alarms(&ly).iter().any(|alarm| alarm.contains("not in its audience")), "ma should not have sent it");
    assert!(!ly.exchange.stopped_feeds().contains(&feed("ma")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unproven_priority_entry_is_rejected() {
    let lies: [(Lie, &str); 6] = [
        (|priority| priority.index = 4, "bad-proof"),
        (|priority| priority.inclusion_proof.truncate(2), "bad-proof"),
        (|priority| priority.envelope = Bytes::from_static(b"another one"), "bad-proof"),
        (|priority| priority.envelope = Bytes::new(), "malformed"),
        (|priority| priority.inclusion_proof = vec![Bytes::from_static(&[1; 32]); 65], "bad-bounds"),
        (|priority| priority.checkpoint = Bytes::from_static(b"no note"), "malformed"),
    ];
    for (lie, reason) in lies {
        let ly = Node::start("ly");
        let sent = Feed::of(bulletins_with(|_, draft| immediate("Exercise")(draft)));
        let mut ma = followed_peer(&ly).await;
        let mut priority = sent.priority(3);
        lie(&mut priority);
        ma.send(Frame::PriorityEntry(priority)).await;
        let fault = ma.receive(|frame| if let Frame::Fault(fault) = frame { Some(fault) } else { None }).await;
        assert_eq!((fault.reason.as_str(), by_offset(&ly).len()), (reason, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_entries_at_one_index_are_proven_in_any_order() {
    let all_priority = || Feed::of(bulletins_with(|_, draft| immediate("Exercise")(draft)));
    let (one, other) = (all_priority(), all_priority());
    let cases: [(&str, Vec<Frame>); 3] = [
        ("ahead, then in order", vec![Frame::PriorityEntry(one.priority(3)), Frame::Entries(other.entries())]),
        ("in order, then ahead", vec![Frame::Entries(other.entries()), Frame::PriorityEntry(one.priority(3))]),
        ("both ahead", vec![Frame::PriorityEntry(one.priority(3)), Frame::PriorityEntry(other.priority(3))]),
    ];
    for (what, frames) in cases {
        let ly = Node::start("ly");
        let ma = followed_peer(&ly).await;
        for frame in frames {
            let ahead = matches!(frame, Frame::PriorityEntry(_));
            ma.send(frame).await;
            let settled = || ly.size(&feed("ma")) == 8 || !ly.store.forks().unwrap().is_empty();
            until(what, || settled() || ahead && by_offset(&ly) == [3]).await;
        }
        // Both checkpoints have the same size, so either form of evidence may be found first.
        until(what, || !ly.store.forks().unwrap().is_empty()).await;
        assert!(ly.exchange.stopped_feeds().contains(&feed("ma")), "{what}");
        let fork = ly.store.forks().unwrap().remove(0);
        let roster = ly.rosters.load().newest_shared();
        let by_entries = EntryEquivocation::verify(&fork.evidence, &roster);
        let by_trees = barid_core::follow::Equivocation::verify(&fork.evidence, &roster);
        assert!(by_trees.is_ok() || by_entries.is_ok_and(|evidence| evidence.index == 3), "{what}");
    }
}
