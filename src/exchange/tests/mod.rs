//! Links between nodes in memory, without TLS.
#![allow(clippy::unwrap_used)]

mod custody;
mod damage;
mod entry_equivocation;
mod equivocation;
mod malformed;
mod priority;
mod quota;
mod records;
mod rosters;
mod self_recovery;
mod upstream;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use barid_core::feed::checkpoint::{Checkpoint, sign};
use barid_core::feed::note::Algorithm;
use barid_core::ids::{Hash, Undisclosed};
use barid_core::limits::BATCH_ENTRIES_MAX;
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::proto::item::Item;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::StreamExt;
use tonic::transport::{Channel, Endpoint};

use super::world::{self, Actor, Node, Tamper, TestCrls, alarms, connect, feed, honest, key, member, roster, until};
use super::{Dial, IN_FLIGHT_BATCHES_MAX, LinkError, TREE_HEADS_CRL_BYTES_MAX, TREE_HEADS_CRLS_MAX, spawn_dialers};
use crate::budgets::{Owner, table};
use crate::calls::testing::Verified;
use crate::committer::PublishState;
use crate::store::Content;
use crate::transport::Limits;

fn handling(draft: &mut proto::Draft) -> &mut proto::Handling {
    draft.header.as_mut().unwrap().handling.as_mut().unwrap()
}

fn disclosed(node: &Node, owner: &str) -> Vec<bool> {
    let entries = node.store.entries(&feed(owner), 0, usize::MAX, usize::MAX).unwrap();
    entries.iter().map(|entry| matches!(entry.content, Content::Disclosed { .. })).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_entries_are_replicated_with_cosignature_and_custody() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    let _cable = connect(&ma, &ly, honest(), honest());
    ma.publish(3, |_| {}).await;
    ly.publish(2, |_| {}).await;
    until("both hold both feeds", || ly.size(&ma.feed()) == 3 && ma.size(&ly.feed()) == 2).await;
    assert_eq!(ly.root(&ma.feed()), ma.root(&ma.feed()));
    assert_eq!(disclosed(&ly, "ma"), [true; 3]);
    until("attestations were received", || {
        let status = ma.peer_status(&ly.me);
        status.cosigned_size == 3 && status.custody_size == 3 && status.linked
    })
    .await;
    let custody = ma.store.custody_covering(&ma.feed(), 1).unwrap();
    assert_eq!(custody.len(), 1);
    assert!(custody[0].holder == ly.me && custody[0].holds(1));
    assert_eq!(ma.store.cosigned_newest(&ma.feed()).unwrap()[0].cosigner, ly.me);
    assert_eq!(ma.peer_status(&ly.me).known_size, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cosignatures_reach_every_member() {
    let (ma, ly, tn) = (Node::start("ma"), Node::start("ly"), Node::start("tn"));
    let _cables = [
        connect(&ma, &ly, honest(), honest()),
        connect(&ma, &tn, honest(), honest()),
        connect(&ly, &tn, honest(), honest()),
    ];
    ma.publish(1, |_| {}).await;
    until("tn knows that ly cosigned ma's feed", || {
        let notes = tn.store.cosigned_newest(&ma.feed()).unwrap();
        notes.iter().any(|note| note.cosigner == ly.me && note.size == 1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backlog_is_replicated_with_several_batches_in_flight() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    ma.publish(6_000, |_| {}).await;
    let (batches, ahead, widest) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let from_ma: Tamper = {
        let (batches, ahead, widest) = (Arc::clone(&batches), Arc::clone(&ahead), Arc::clone(&widest));
        Box::new(move |frame| {
            if let Some(Frame::Entries(entries)) = &frame.frame {
                assert!(entries.items.len() <= BATCH_ENTRIES_MAX);
                batches.fetch_add(1, Ordering::SeqCst);
                widest.fetch_max(ahead.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            }
            Some(frame)
        })
    };
    let from_ly: Tamper = Box::new(move |frame| {
        if let Some(Frame::ReplicationProgress(_)) = &frame.frame {
            ahead.store(0, Ordering::SeqCst);
        }
        Some(frame)
    });
    let _cable = connect(&ma, &ly, from_ma, from_ly);
    until("ly has caught up", || ly.size(&ma.feed()) == 6_000).await;
    assert_eq!(ly.root(&ma.feed()), ma.root(&ma.feed()));
    assert!(batches.load(Ordering::SeqCst) >= 6);
    assert!((2..=IN_FLIGHT_BATCHES_MAX).contains(&widest.load(Ordering::SeqCst)), "{widest:?}");
    until("one custody note covers it", || ma.peer_status(&ly.me).custody_size == 6_000).await;
    let cosigned = ma.store.cosigned_newest(&ma.feed()).unwrap();
    assert_eq!((cosigned[0].size, cosigned.len()), (6_000, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_link_resumes_where_it_stopped() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    ma.publish(5_000, |_| {}).await;
    for _ in 0..3 {
        let mut left = 2;
        let cable = connect(
            &ma,
            &ly,
            Box::new(move |frame| {
                if matches!(frame.frame, Some(Frame::Entries(_))) {
                    left -= 1;
                }
                (left >= 0).then_some(frame)
            }),
            honest(),
        );
        let before = ly.size(&ma.feed());
        until("two more batches arrived", || ly.size(&ma.feed()) > before).await;
        drop(cable);
        until("both noticed", || !ma.exchange.peers().linked(&ly.me) && !ly.exchange.peers().linked(&ma.me)).await;
    }
    let _cable = connect(&ly, &ma, honest(), honest());
    until("ly has caught up", || ly.size(&ma.feed()) == 5_000).await;
    assert_eq!(ly.root(&ma.feed()), ma.root(&ma.feed()));
    assert_eq!(ly.store.end_offset(), 5_001, "each entry arrived once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tampered_batch_is_rejected_whole_and_other_feeds_continue() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    let (tampering, rejections) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let from_ma: Tamper = {
        let tampering = Arc::clone(&tampering);
        Box::new(move |mut frame| {
            if let Some(Frame::Entries(entries)) = &mut frame.frame
                && tampering.load(Ordering::SeqCst)
                && let Some(Item::Envelope(envelope)) = entries.items.last_mut().and_then(|item| item.item.as_mut())
            {
                let mut bytes = envelope.to_vec();
                *bytes.last_mut().unwrap() ^= 1;
                *envelope = bytes.into();
            }
            Some(frame)
        })
    };
    let from_ly: Tamper = {
        let rejections = Arc::clone(&rejections);
        Box::new(move |frame| {
            if let Some(Frame::Fault(fault)) = &frame.frame {
                assert_eq!((fault.feed.as_str(), fault.reason.as_str()), ("ma.rabat.example/feed/1", "bad-root"));
                rejections.fetch_add(1, Ordering::SeqCst);
            }
            Some(frame)
        })
    };
    let cable = connect(&ma, &ly, from_ma, from_ly);
    ma.publish(20, |_| {}).await;
    until("the batch is rejected", || rejections.load(Ordering::SeqCst) >= 1).await;
    ly.publish(5, |_| {}).await;
    until("the other feed continues over the same link", || ma.size(&ly.feed()) == 5).await;
    assert_eq!(ly.size(&ma.feed()), 0, "nothing of the rejected batch is stored");
    assert!(!cable.dialled.is_finished());
    tampering.store(false, Ordering::SeqCst);
    until("the next attempt is accepted", || ly.size(&ma.feed()) == 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfollowed_topics_are_held_as_digests_and_cosigned() {
    let (ma, ly) = (Node::start("ma"), Node::following("ly", &["information.daily"]));
    let _cable = connect(&ma, &ly, honest(), honest());
    ma.publish(2, |_| {}).await;
    ma.publish(1, |draft| draft.header.as_mut().unwrap().topic = "information.daily".into()).await;
    until("ly holds the log", || ly.size(&ma.feed()) == 3).await;
    assert_eq!(disclosed(&ly, "ma"), [false, false, true]);
    assert_eq!(ly.store.undisclosed_ranges(&ma.feed(), 9).unwrap(), [(0..2, Undisclosed::Unfollowed)]);
    until("ly has sent custody notes", || ma.peer_status(&ly.me).custody_size == 3).await;
    until("ly has cosigned all", || ma.peer_status(&ly.me).cosigned_size == 3).await;
    assert!(ma.store.custody_covering(&ma.feed(), 0).unwrap().is_empty(), "never stored");
    assert_eq!(ma.store.custody_covering(&ma.feed(), 2).unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulletin_not_visible_to_member_is_replicated_as_digest() {
    let (ma, ly, tn) = (Node::start("ma"), Node::start("ly"), Node::start("tn"));
    let leaked = Arc::new(AtomicBool::new(false));
    let watching: Tamper = {
        let leaked = Arc::clone(&leaked);
        Box::new(move |frame| {
            let bytes = prost::Message::encode_to_vec(&frame);
            if bytes.windows(8).any(|window| window == b"q7Zt-tok") {
                leaked.store(true, Ordering::SeqCst);
            }
            Some(frame)
        })
    };
    let _cables = [connect(&ma, &ly, watching, honest()), connect(&ma, &tn, honest(), honest())];
    ma.publish(1, |draft| {
        *handling(draft) =
            proto::Handling { tlp: "TLP:RED".into(), releasable_to: vec!["tn".into()], ..proto::Handling::default() };
        draft.body.as_mut().unwrap().texts[0].headline = "EXERCISE q7Zt-tok".into();
    })
    .await;
    until("both hold the log", || ly.size(&ma.feed()) == 1 && tn.size(&ma.feed()) == 1).await;
    assert_eq!((disclosed(&ly, "ma"), disclosed(&tn, "ma")), (vec![false], vec![true]));
    assert_eq!(ly.root(&ma.feed()), tn.root(&ma.feed()));
    assert_eq!(ly.store.undisclosed_ranges(&ma.feed(), 9).unwrap(), [(0..1, Undisclosed::Withheld)]);
    assert!(!leaked.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn link_dialled_by_lower_code_stays_on_both_sides() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    // "ly" is the lower code.
    let by_higher = connect(&ma, &ly, honest(), honest());
    until("the first link is open", || ly.exchange.peers().linked(&ma.me) && ma.exchange.peers().linked(&ly.me)).await;
    let by_lower = connect(&ly, &ma, honest(), honest());
    until("the first link is replaced", || by_higher.dialler.is_finished() && by_higher.dialled.is_finished()).await;
    let third = connect(&ma, &ly, honest(), honest());
    until("the third link is rejected", || third.dialler.is_finished() && third.dialled.is_finished()).await;
    assert!(!by_lower.dialler.is_finished() && !by_lower.dialled.is_finished());
    ma.publish(2, |_| {}).await;
    until("the remaining link works", || ly.size(&ma.feed()) == 2).await;
}

fn entries(frame: Frame) -> Option<proto::Entries> {
    if let Frame::Entries(entries) = frame { Some(entries) } else { None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_receiver_costs_bounded_window() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    ma.publish(BATCH_ENTRIES_MAX * (IN_FLIGHT_BATCHES_MAX + 4), |_| {}).await;
    let mut slow = Actor::handshake(&ma, "tn").await;
    let origin = ma.feed().to_string();
    slow.send(Frame::Follow(proto::Follow { feed: origin.clone(), ..proto::Follow::default() })).await;
    let (mut end, mut batches) = (0, 0);
    // Until nothing more arrives without an acknowledgement.
    while let Ok(batch) = tokio::time::timeout(Duration::from_millis(300), slow.receive(entries)).await {
        assert_eq!(batch.first, end);
        end += batch.items.len() as u64;
        batches += 1;
        assert!(batches <= IN_FLIGHT_BATCHES_MAX);
    }
    assert!(end > 0 && end < ma.size(&ma.feed()));
    slow.send(Frame::ReplicationProgress(proto::ReplicationProgress { feed: origin, size: end })).await;
    assert_eq!(slow.receive(entries).await.first, end);
    // No other peer is delayed.
    let _cable = connect(&ma, &ly, honest(), honest());
    let size = ma.size(&ma.feed());
    until("another follower catches up", || ly.size(&ma.feed()) == size).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unrequested_frames_are_rejected_and_link_stays() {
    let ma = Node::start("ma");
    let mut peer = Actor::handshake(&ma, "tn").await;
    let fault = |frame| if let Frame::Fault(fault) = frame { Some((fault.feed, fault.reason)) } else { None };
    let batch = |name: &str| proto::Entries { feed: name.into(), ..proto::Entries::default() };
    for (frame, name, reason) in [
        (Frame::Entries(batch("ly.rabat.example/feed/1")), "ly.rabat.example/feed/1", "not-allowed"),
        (Frame::Entries(batch("nonsense")), "nonsense", "malformed"),
        (Frame::Entries(batch("tn.rabat.example/feed/1")), "tn.rabat.example/feed/1", "malformed"),
        (
            Frame::Follow(proto::Follow { feed: "x-au.rabat.example/feed/1".into(), ..proto::Follow::default() }),
            "x-au.rabat.example/feed/1",
            "not-allowed",
        ),
        (
            Frame::Follow(proto::Follow {
                feed: ma.feed().to_string(),
                topics: vec!["customs..x".into()],
                ..proto::Follow::default()
            }),
            "ma.rabat.example/feed/1",
            "malformed",
        ),
    ] {
        peer.send(frame).await;
        assert_eq!(peer.receive(fault).await, (name.to_owned(), reason.to_owned()));
    }
    peer.send(Frame::Custody(proto::Custody { note: Bytes::from_static(b"no note") })).await;
    peer.send(Frame::Follow(proto::Follow { feed: ma.feed().to_string(), ..proto::Follow::default() })).await;
    ma.publish(1, |_| {}).await;
    assert_eq!(peer.receive(entries).await.items.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_without_valid_hello_gets_no_link() {
    let ma = Node::start("ma");
    let early = Actor::dial(&ma, "tn");
    early.send(Frame::TreeHeads(proto::TreeHeads::default())).await;
    assert!(matches!(early.link.await.unwrap(), Err(LinkError::Handshake(_))));
    let mut foreign = Actor::dial(&ma, "tn");
    let hello = proto::Hello { protocol: 1, exchange: "tunis.example".into(), ..proto::Hello::default() };
    foreign.send(Frame::Hello(hello)).await;
    let reason = foreign.receive(|frame| if let Frame::Fault(fault) = frame { Some(fault.reason) } else { None }).await;
    assert_eq!(reason, "protocol");
    assert!(matches!(foreign.link.await.unwrap(), Err(LinkError::Handshake(_))));
    assert!(ma.peer_status(&member("tn")).last_error.contains("tunis.example"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newer_roster_reaches_all_members() {
    let (ma, ly, tn) = (Node::start("ma"), Node::start("ly"), Node::start("tn"));
    let mut chain = barid_core::roster::RosterChain::clone(&ma.rosters.load());
    chain.extend(&roster(2, Some(chain.newest().text_hash()))).unwrap();
    ma.rosters.replace(chain);
    let _cables = [connect(&ma, &ly, honest(), honest()), connect(&ly, &tn, honest(), honest())];
    let version = |node: &Node| node.rosters.load().newest().version();
    until("it has reached the second", || version(&ly) == 2).await;
    until("and the third, which has no link to the first", || version(&tn) == 2).await;
    assert_eq!(tn.store.rosters().unwrap().len(), 1, "persisted for a restart");
    until("ma sees that ly has it", || ma.peer_status(&ly.me).roster_version == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_crls_are_sent_in_frames_that_fit() {
    // One that fills a frame, small ones behind it, and one that fits no frame and must not block
    // the others.
    let sizes = [("large", TREE_HEADS_CRL_BYTES_MAX), ("a", 600_000), ("too-large", TREE_HEADS_CRL_BYTES_MAX + 1)];
    let from = TestCrls::holding(&[&sizes[..], &[("b", 500_000), ("c", 400_000), ("d", 100)]].concat());
    let (to, largest) = (TestCrls::holding(&[]), Arc::new(AtomicUsize::new(0)));
    let (ma, ly) = (Node::with("ma", &[], Arc::clone(&from) as _), Node::with("ly", &[], Arc::clone(&to) as _));
    let seen = Arc::clone(&largest);
    let weighing: Tamper = Box::new(move |frame| {
        if let Some(Frame::TreeHeads(heads)) = &frame.frame {
            let bytes: usize = heads.crls.iter().map(Bytes::len).sum();
            seen.fetch_max(bytes, Ordering::Relaxed);
        }
        Some(frame)
    });
    let _cable = connect(&ma, &ly, weighing, honest());
    let mut wanted = vec![TREE_HEADS_CRL_BYTES_MAX, 600_000, 500_000, 400_000, 100];
    let sorted = || {
        let mut offered = to.offered_bytes();
        offered.sort_unstable_by(|a, b| b.cmp(a));
        offered
    };
    until("all that fit have arrived", || sorted() == wanted).await;
    assert!(largest.load(Ordering::Relaxed) <= TREE_HEADS_CRL_BYTES_MAX);

    // A newer list is sent although nothing else changes, and only that one.
    from.put("a", 700_000);
    wanted.insert(1, 700_000);
    until("the newer one has arrived", || sorted() == wanted).await;

    // With a newer roster the peer may know authorities that it did not know before: all lists are
    // sent again.
    let mut chain = barid_core::roster::RosterChain::clone(&ma.rosters.load());
    chain.extend(&roster(2, Some(chain.newest().text_hash()))).unwrap();
    ma.rosters.replace(chain);
    until("all have arrived again", || to.offered_bytes().len() == wanted.len() + 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frame_with_too_many_crls_is_malformed() {
    let crl_source = TestCrls::holding(&[]);
    let ma = Node::with("ma", &[], Arc::clone(&crl_source) as _);
    let mut ly = Actor::handshake(&ma, "ly").await;
    let crls = vec![Bytes::from_static(b"list"); TREE_HEADS_CRLS_MAX + 1];
    ly.send(Frame::TreeHeads(proto::TreeHeads { roster_version: 1, crls, ..proto::TreeHeads::default() })).await;
    let fault = ly.receive(|frame| if let Frame::Fault(fault) = frame { Some(fault) } else { None }).await;
    assert_eq!(fault.reason, "malformed");
    assert!(crl_source.offered_bytes().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attestations_lost_with_a_link_are_requested_on_the_next() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    let losing: Tamper =
        Box::new(|frame| (!matches!(frame.frame, Some(Frame::Custody(_) | Frame::Cosigned(_)))).then_some(frame));
    let cable = connect(&ma, &ly, honest(), losing);
    for _ in 0..3 {
        let size = ma.size(&ma.feed()) + 1;
        ma.publish(1, |_| {}).await;
        until("ly holds it", || ly.size(&ma.feed()) == size).await;
    }
    assert!(ma.store.custody_newest(&ma.feed()).unwrap().is_empty());
    drop(cable);
    until("the link is gone", || !ma.exchange.peers().linked(&ly.me) && !ly.exchange.peers().linked(&ma.me)).await;
    let _cable = connect(&ma, &ly, honest(), honest());
    until("every entry has a custody note", || {
        (0..3).all(|index| ma.store.custody_covering(&ma.feed(), index).unwrap().len() == 1)
    })
    .await;
    until("and cosigned", || ma.peer_status(&ly.me).cosigned_size == 3).await;
}

fn head(code: &str, size: u64) -> Frame {
    let checkpoint = Checkpoint { feed: feed(code), size, root: Hash([9; 32]) };
    let note = sign(&checkpoint, &[key(code, "feed/1", Algorithm::Ed25519)]).unwrap().note;
    let heads = vec![proto::TreeHead { checkpoint: note, ..proto::TreeHead::default() }];
    Frame::TreeHeads(proto::TreeHeads { heads, roster_version: 1, crls: Vec::new() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn larger_checkpoint_of_own_feed_stops_publishing() {
    let ma = Node::start("ma");
    ma.publish(1, |_| {}).await;
    let peer = Actor::handshake(&ma, "tn").await;
    peer.send(head("ma", 7)).await;
    let needs_recovery = || {
        let publish_state = ma.committer.publish_state();
        matches!(&*publish_state.borrow(), PublishState::NeedsRecovery(why) if why.contains("size 7"))
    };
    until("it needs recovery", needs_recovery).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fork_stops_only_the_forked_feed() {
    let (ma, ly, tn) = (Node::start("ma"), Node::start("ly"), Node::start("tn"));
    let _cables = [connect(&ma, &ly, honest(), honest()), connect(&tn, &ma, honest(), honest())];
    ly.publish(3, |_| {}).await;
    until("ma holds ly's", || ma.size(&ly.feed()) == 3).await;
    // "tn" sends ma another root of ly's feed, signed by ly's key, over a new link.
    let liar = Actor::handshake(&ma, "tn").await;
    liar.send(head("ly", 2)).await;
    until("ly's feed is stopped", || ma.exchange.stopped_feeds().contains(&ly.feed())).await;
    assert!(alarms(&ma).iter().any(|alarm| alarm.contains("ly.rabat.example")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_that_never_reads_loses_its_link_and_others_continue() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    let _cable = connect(&ma, &ly, honest(), honest());
    let deaf = Actor::handshake(&ma, "tn").await;
    let nonsense = || Frame::Follow(proto::Follow { feed: "nonsense".into(), ..proto::Follow::default() });
    let mut sent = 0;
    // Each frame is answered; the replies are not read.
    while deaf.to_node.send(proto::Frame { frame: Some(nonsense()) }).await.is_ok() {
        sent += 1;
        assert!(sent < 100_000, "the link is not closed");
    }
    ma.publish(10, |_| {}).await;
    until("Tripoli has what Rabat published", || ly.size(&ma.feed()) == 10).await;
    assert!(matches!(deaf.link.await.unwrap(), Err(LinkError::SendQueueOverflow)));
    until("its link is closed", || !ma.exchange.peers().linked(&member("tn"))).await;
    assert!(ma.exchange.peers().linked(&ly.me));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_links_of_one_peer_leave_one_open() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    let _cable = connect(&ma, &ly, honest(), honest());
    let mut crowd = Vec::new();
    for _ in 0..1_000 {
        crowd.push(Actor::handshake(&ma, "tn").await);
    }
    ma.publish(10, |_| {}).await;
    until("Tripoli has what Rabat published", || ly.size(&ma.feed()) == 10).await;
    let open = || crowd.iter().filter(|actor| !actor.link.is_finished()).count();
    until("one is left", || open() == 1).await;
    assert!(ma.exchange.peers().linked(&ly.me));
}

#[tokio::test(start_paused = true)]
async fn idle_link_sends_heartbeats_and_times_out() {
    let ma = Node::start("ma");
    let mut peer = Actor::handshake(&ma, "tn").await;
    let heartbeat = |frame| if let Frame::Cosigned(cosigned) = frame { Some(cosigned) } else { None };
    let received = peer.receive(heartbeat).await;
    assert_eq!((received.heartbeat_feed.as_str(), received.heartbeat_size), ("ma.rabat.example/feed/1", 0));
    // A peer that sends nothing itself is dropped.
    let ended = tokio::time::timeout(Duration::from_secs(200), async {
        while peer.from_node.recv().await.is_some() {}
        peer.link.await.unwrap()
    });
    assert!(matches!(ended.await.unwrap(), Err(LinkError::IdleTimeout)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeat_is_verified_and_recorded() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    let peer = Actor::handshake(&ma, "ly").await;
    let heartbeat = |time| Frame::Cosigned(ly.committer.heartbeat(time).unwrap());
    let Frame::Cosigned(mut forged) = heartbeat(99_000) else { unreachable!() };
    forged.note = forged.note.to_ascii_uppercase().into();
    peer.send(Frame::Cosigned(forged)).await;
    peer.send(heartbeat(77_000)).await;
    until("seen alive", || ma.peer_status(&ly.me).heartbeat_time == 77_000).await;
}

/// Listens without TLS; every caller is identified as `caller`.
async fn listen(node: &Node, caller: &'static str) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let calls = super::calls(node.exchange.clone(), Arc::new(move |_| Some(member(caller))));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener).map(|stream| {
        let stream = stream?;
        stream.set_nodelay(true)?;
        Ok(Verified::new(stream, |_| {}))
    });
    tokio::spawn(crate::calls::serve(incoming, calls, Limits::EXCHANGE, std::future::pending()));
    address
}

struct PlainDial(std::collections::BTreeMap<&'static str, std::net::SocketAddr>);

impl Dial for PlainDial {
    fn dial<'a>(
        &'a self,
        peer: &'a barid_core::ids::Member,
        _endpoint: &'a str,
    ) -> BoxFuture<'a, Result<Channel, String>> {
        Box::pin(async move {
            let address = self.0.get(peer.as_str()).ok_or("nobody listens")?;
            let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
            endpoint.connect().await.map_err(|error| error.to_string())
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lower_code_dials_and_redials_with_grpc() {
    let (ly, ma) = (Node::start("ly"), Node::start("ma"));
    ma.publish(3_000, |_| {}).await;
    let at_ma = listen(&ma, "ly").await;
    let dial = Arc::new(PlainDial([("ma", at_ma)].into()));
    let dialers = spawn_dialers(&ly.exchange, dial.clone());
    until("ly has caught up", || ly.size(&ma.feed()) == 3_000).await;
    assert_eq!(ly.root(&ma.feed()), ma.root(&ma.feed()));
    drop(dialers);
    until("both noticed the end", || !ma.exchange.peers().linked(&ly.me) && !ly.exchange.peers().linked(&ma.me)).await;
    ma.publish(10, |_| {}).await;
    let _dialers = spawn_dialers(&ly.exchange, dial);
    until("dialled again", || ly.size(&ma.feed()) == 3_010).await;
    let last_error = ly.peer_status(&member("tn")).last_error.clone();
    assert!(last_error.contains("nobody listens"), "{last_error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn higher_code_dials_after_grace_without_link() {
    let (ly, ma) = (Node::start("ly"), Node::start("ma"));
    let at_ly = listen(&ly, "ma").await;
    let began = std::time::Instant::now();
    let _dialers = spawn_dialers(&ma.exchange, Arc::new(PlainDial([("ly", at_ly)].into())));
    until("linked", || ly.exchange.peers().linked(&ma.me)).await;
    assert!(began.elapsed() >= super::STARTUP_GRACE);
    ma.publish(1, |_| {}).await;
    until("ly, which only listened, follows over the same link", || ly.size(&ma.feed()) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicate_identity_raises_alarms_and_leaves_one_link() {
    let (ma, one, copy) = (Node::start("ma"), Node::start("ly"), Node::start("ly"));
    let at_ma = listen(&ma, "ly").await;
    let dial = Arc::new(PlainDial([("ma", at_ma)].into()));
    let _dialers = (spawn_dialers(&one.exchange, dial.clone()), spawn_dialers(&copy.exchange, dial));
    let alarmed = |node: &Node, part: &str| alarms(node).iter().any(|alarm| alarm.contains(part));
    until("Morocco has an alarm", || alarmed(&ma, "two nodes use the identity of ly")).await;
    let alarmed_own = |node: &Node| alarmed(node, "another node uses this member's identity");
    until("one of the two has an alarm", || alarmed_own(&one) || alarmed_own(&copy)).await;
    assert!(ma.exchange.peers().linked(&one.me), "one of them stays linked");
}

/// A member opens many links, each with the five-byte prefix of a 4 MiB message and a few more
/// bytes.
#[tokio::test(flavor = "multi_thread")]
async fn unfinished_frames_of_peer_are_bounded_by_its_budget() {
    let node = Node::start("ma");
    let address = listen(&node, "ly").await;
    let budgets = &node.exchange.shared.options.budgets;
    let (bytes, links) = (budgets.of(&table::LINK_BYTES).clone(), budgets.of(&table::LINK_CALLS).clone());
    let ly = Owner::Member("ly".into());
    let promise = Bytes::from([&[0, 0, 0x40, 0, 0][..], &[10; 200]].concat());
    let (mut held, mut denied) = (Vec::new(), 0);
    for _ in 0..2 {
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let (client, connection) = h2::client::handshake(tcp).await.unwrap();
        tokio::spawn(connection);
        for _ in 0..8 {
            let request = http::Request::post("http://ma.example/barid.v1.Exchange/Link");
            let request = request.header("content-type", "application/grpc").body(()).unwrap();
            let mut ready = client.clone().ready().await.unwrap();
            let (response, mut stream) = ready.send_request(request, false).unwrap();
            _ = stream.send_data(promise.clone(), false);
            let response = response.await.unwrap();
            denied += usize::from(response.headers().contains_key("grpc-status"));
            held.push((response, stream));
        }
    }
    assert_eq!((denied, links.used_by(&ly)), (8, 8));
    until("its budget is used", || bytes.used_by(&ly) > 16 << 20).await;
    assert!(bytes.usage().high_water <= table::LINK_BYTES.bounds.per_owner);
    drop(held);
    until("all charges are released", || bytes.used_by(&ly) == 0 && links.used_by(&ly) == 0).await;
}
