//! Members that cannot be reached, and content that arrives later.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use barid_core::ids::Undisclosed;
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::proto::item::Item;

use super::world::{Node, Tamper, alarms, connect, honest, member, until};
use super::{disclosed, handling};

fn red_for(readers: &'static [&'static str]) -> impl Fn(&mut proto::Draft) {
    move |draft| {
        *handling(draft) = proto::Handling {
            tlp: "TLP:RED".into(),
            releasable_to: readers.iter().map(|&code| code.into()).collect(),
            ..proto::Handling::default()
        };
    }
}

/// Indexes of a feed in order of offset.
fn by_offset(node: &Node, owner: &str) -> Vec<u64> {
    let entries = node.store.entries_from(1, usize::MAX, usize::MAX).unwrap();
    entries.into_iter().filter(|entry| entry.feed.member == member(owner)).map(|entry| entry.index).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreachable_member_is_followed_at_relay_and_rest_is_backfilled_by_owner() {
    let (ma, ly, tn) = (Node::start("ma"), Node::start("ly"), Node::start("tn"));
    let cables = [connect(&ma, &ly, honest(), honest()), connect(&ly, &tn, honest(), honest())];
    ma.publish(2_000, |_| {}).await;
    ma.publish(3, red_for(&["tn"])).await;
    until("tn holds all of ma's feed through ly", || tn.size(&ma.feed()) == 2_003).await;
    assert_eq!(tn.exchange.shared.upstreams.at(&ma.feed()), Some(ly.me.clone()));
    assert_eq!(tn.root(&ma.feed()), ma.root(&ma.feed()));
    assert_eq!(ly.store.undisclosed_ranges(&ma.feed(), 9).unwrap(), [(2_000..2_003, Undisclosed::Withheld)]);
    assert_eq!(tn.store.undisclosed_ranges(&ma.feed(), 9).unwrap(), [(2_000..2_003, Undisclosed::NotHeld)]);
    // Live entries too, and the other direction.
    ma.publish(1, |_| {}).await;
    tn.publish(4, |_| {}).await;
    until("all feeds are equal", || tn.size(&ma.feed()) == 2_004 && ma.size(&tn.feed()) == 4).await;
    until("ma knows that tn holds its log", || {
        ma.store.cosigned_newest(&ma.feed()).unwrap().iter().any(|note| note.cosigner == tn.me && note.size == 2_004)
    })
    .await;
    assert!(ma.store.custody_newest(&ma.feed()).unwrap().iter().all(|note| note.holder == ly.me), "for the owner only");

    let direct = connect(&tn, &ma, honest(), honest());
    until("the entries that only ma could serve are backfilled", || {
        tn.store.undisclosed_ranges(&ma.feed(), 9).unwrap().is_empty()
    })
    .await;
    until("it is followed at ma again", || tn.exchange.shared.upstreams.at(&ma.feed()).is_none()).await;
    assert_eq!(disclosed(&tn, "ma"), [true; 2_004]);
    let mut once = by_offset(&tn, "ma");
    assert_eq!(&once[once.len() - 4..], [2_003, 2_000, 2_001, 2_002], "in the order of their arrival");
    once.sort_unstable();
    assert_eq!(once, (0..2_004).collect::<Vec<_>>());
    until("ma knows who holds what", || {
        let holds =
            |index| ma.store.custody_covering(&ma.feed(), index).unwrap().iter().any(|note| note.holder == tn.me);
        [0, 1_999, 2_000, 2_002, 2_003].into_iter().all(holds)
    })
    .await;
    ma.publish(1, red_for(&["tn"])).await;
    until("it continues from there", || disclosed(&tn, "ma").len() == 2_005 && disclosed(&tn, "ma")[2_004]).await;
    drop((cables, direct));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partial_replica_is_served_after_its_upstream_is_gone() {
    let (ma, ly, tn) = (Node::start("ma"), Node::start("ly"), Node::start("tn"));
    ma.publish(6_000, |_| {}).await;
    let partial: Tamper = Box::new(|frame| match &frame.frame {
        Some(Frame::Entries(batch)) if batch.first > 2_000 => None,
        _ => Some(frame),
    });
    let cable = connect(&ma, &ly, partial, honest());
    until("ly holds some of it", || ly.size(&ma.feed()) > 1_200).await;
    drop(cable);
    until("ma is gone", || !ly.exchange.peers().linked(&ma.me)).await;
    let held = ly.size(&ma.feed());
    assert!(held < 6_000);
    assert!(ly.store.feed(&ma.feed()).unwrap().checkpoint_size == 6_000, "no checkpoint of its own");
    let _cable = connect(&ly, &tn, honest(), honest());
    until("tn holds what ly holds", || tn.size(&ma.feed()) == held).await;
    assert_eq!(tn.root(&ma.feed()), ly.root(&ma.feed()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrongly_withheld_content_is_backfilled_from_relay_and_raises_alarm() {
    let (ma, ly, tn) = (Node::start("ma"), Node::start("ly"), Node::start("tn"));
    // Towards ly, ma withholds all content, also in backfill responses.
    let hiding: Tamper = Box::new(|mut frame| {
        if let Some(Frame::BackfillResponse(backfills)) = &mut frame.frame {
            backfills.items.clear();
        }
        if let Some(Frame::Entries(entries)) = &mut frame.frame {
            for item in &mut entries.items {
                if let Some(Item::Envelope(envelope)) = &item.item {
                    let digests = barid_core::envelope::digest(envelope).0.to_vec().into();
                    item.item = Some(Item::Digests(proto::DigestRun { digests, reason: "withheld".into() }));
                }
            }
        }
        Some(frame)
    });
    let _cables = [connect(&ma, &ly, hiding, honest()), connect(&ma, &tn, honest(), honest())];
    ma.publish(2, red_for(&["ly", "tn"])).await;
    ma.publish(1, red_for(&["tn"])).await;
    until("both hold the log", || ly.size(&ma.feed()) == 3 && tn.size(&ma.feed()) == 3).await;
    assert_eq!(ly.store.undisclosed_ranges(&ma.feed(), 9).unwrap(), [(0..3, Undisclosed::Withheld)]);
    let _cable = connect(&ly, &tn, honest(), honest());
    until("tn backfilled the entries for ly", || disclosed(&ly, "ma") == [true, true, false]).await;
    until("and ly's operators know", || ly.exchange.alarms().snapshot().first().is_some_and(|alarm| alarm.count == 2))
        .await;
    let alarms = alarms(&ly);
    assert!(alarms.len() == 1 && alarms[0].contains("wrongly withheld"), "{alarms:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_of_added_topics_is_backfilled() {
    let (ma, ly) = (Node::start("ma"), Node::following("ly", &["information.daily"]));
    let cable = connect(&ma, &ly, honest(), honest());
    ma.publish(2, |_| {}).await;
    until("ly holds the log only", || ly.size(&ma.feed()) == 2).await;
    drop(cable);
    let ly = ly.restart_with_topics(&["information.>"]);
    let _cable = connect(&ma, &ly, honest(), honest());
    until("content of the wider topics is backfilled", || disclosed(&ly, "ma") == [true; 2]).await;
    until("ma has the custody note", || ma.store.custody_covering(&ma.feed(), 1).unwrap().len() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backfill_with_wrong_digest_is_rejected_and_retried() {
    let (ma, ly) = (Node::start("ma"), Node::following("ly", &["information.daily"]));
    let cable = connect(&ma, &ly, honest(), honest());
    ma.publish(2, |_| {}).await;
    until("ly holds the log only", || ly.size(&ma.feed()) == 2).await;
    drop(cable);
    let ly = ly.restart_with_topics(&[]);
    let (lying, lies) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let tampering: Tamper = {
        let (lying, lies) = (Arc::clone(&lying), Arc::clone(&lies));
        Box::new(move |mut frame| {
            if let Some(Frame::BackfillResponse(backfills)) = &mut frame.frame
                && lying.load(Ordering::SeqCst)
            {
                backfills.items.swap(0, 1);
                (backfills.items[0].index, backfills.items[1].index) = (0, 1);
                lies.fetch_add(1, Ordering::SeqCst);
            }
            Some(frame)
        })
    };
    let _cable = connect(&ma, &ly, tampering, honest());
    until("a false backfill is sent", || lies.load(Ordering::SeqCst) == 1).await;
    lying.store(false, Ordering::SeqCst);
    ma.publish(1, |_| {}).await;
    until("the feed itself continues", || ly.size(&ma.feed()) == 3).await;
    assert_eq!(lies.load(Ordering::SeqCst), 1, "the pause has not ended");
    until("the next attempt is accepted", || disclosed(&ly, "ma") == [true; 3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custody_of_backfilled_entries_is_resent_when_lost() {
    let (ma, ly) = (Node::start("ma"), Node::following("ly", &["information.daily"]));
    let cable = connect(&ma, &ly, honest(), honest());
    ma.publish(5, |_| {}).await;
    ma.publish(1, |draft| draft.header.as_mut().unwrap().topic = "information.daily".into()).await;
    until("ly has custody of the log", || ma.peer_status(&ly.me).custody_size == 6).await;
    drop(cable);
    let ly = ly.restart_with_topics(&[]);
    let deaf: Tamper = Box::new(|frame| (!matches!(frame.frame, Some(Frame::Custody(_)))).then_some(frame));
    let cable = connect(&ma, &ly, honest(), deaf);
    until("the rest is backfilled", || disclosed(&ly, "ma") == [true; 6]).await;
    assert!(ma.store.custody_covering(&ma.feed(), 0).unwrap().is_empty());
    drop(cable);
    until("both noticed", || !ma.exchange.peers().linked(&ly.me) && !ly.exchange.peers().linked(&ma.me)).await;
    for _ in 0..2 {
        let cable = connect(&ma, &ly, honest(), honest());
        until("ma has the custody note", || ma.store.custody_covering(&ma.feed(), 0).unwrap().len() == 1).await;
        drop(cable);
        until("both noticed", || !ma.exchange.peers().linked(&ly.me) && !ly.exchange.peers().linked(&ma.me)).await;
    }
    assert_eq!(ma.store.custody_late(&ma.feed(), &ly.me, 0, 9).unwrap().len(), 1, "stored once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_backfill_is_split_into_frames_while_feed_continues() {
    let (ma, ly) = (Node::start("ma"), Node::following("ly", &["information.daily"]));
    let cable = connect(&ma, &ly, honest(), honest());
    ma.publish(3_000, |_| {}).await;
    until("ly holds the log only", || ly.size(&ma.feed()) == 3_000).await;
    drop(cable);
    let ly = ly.restart_with_topics(&[]);
    let frames = Arc::new(AtomicUsize::new(0));
    let counting: Tamper = {
        let frames = Arc::clone(&frames);
        Box::new(move |frame| {
            frames.fetch_add(usize::from(matches!(frame.frame, Some(Frame::BackfillResponse(_)))), Ordering::SeqCst);
            Some(frame)
        })
    };
    let _cable = connect(&ma, &ly, counting, honest());
    ma.publish(500, |_| {}).await;
    until("everything is there", || disclosed(&ly, "ma") == [true; 3_500]).await;
    let mut once = by_offset(&ly, "ma");
    once.sort_unstable();
    assert_eq!(once, (0..3_500).collect::<Vec<_>>());
    let sent = frames.load(Ordering::SeqCst);
    assert!((3..8).contains(&sent), "{sent} frames");
}
