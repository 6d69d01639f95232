//! Endless custody notes: those that add nothing are dropped, and their sender delays no other
//! member.

use barid_core::feed::checkpoint::Checkpoint;
use barid_core::feed::custody::CustodyNote;
use barid_core::feed::note::Algorithm;
use barid_core::proto;
use barid_core::proto::frame::Frame;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::world::{Actor, Node, key, member, until};
use crate::exchange::cancellation::CancellationToken;
use crate::exchange::note_verifier::{IncomingNote, verify_and_persist};

const TIME: u64 = 1_764_000_000;

/// A custody note in which ly states that it holds a range of ma's feed in full.
fn note(ma: &Node, range: std::ops::Range<u64>, time: u64) -> Bytes {
    let tree = ma.store.feed(&ma.feed()).unwrap().compact_range;
    let checkpoint = Checkpoint { feed: ma.feed(), size: tree.size(), root: tree.root() };
    CustodyNote::new(&checkpoint, time, range, []).unwrap().sign(&key("ly", "custody", Algorithm::Ed25519)).unwrap()
}

fn persisted(ma: &Node) -> usize {
    ma.store.custody_after(&ma.feed(), &member("ly"), 0, usize::MAX).unwrap().len()
}

async fn floods(times: impl Iterator<Item = u64>) -> usize {
    let ma = Node::start("ma");
    ma.publish(10, |_| {}).await;
    let ly = Actor::handshake(&ma, "ly").await;
    for time in times {
        ly.send(Frame::Custody(proto::Custody { note: note(&ma, 0..9, time) })).await;
    }
    ly.send(Frame::Custody(proto::Custody { note: note(&ma, 9..10, 2 * TIME) })).await;
    until("notes that add something are still persisted", || ma.peer_status(&holder()).custody_size == 10).await;
    assert!(!ly.link.is_finished());
    persisted(&ma) - 1
}

fn holder() -> barid_core::ids::Member {
    member("ly")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notes_of_later_times_are_persisted_once() {
    assert_eq!(floods((0..1_500).map(|n| TIME + n)).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notes_of_earlier_times_are_rate_limited() {
    let persisted = floods((0..1_500).map(|n| TIME - n)).await;
    assert!((2..=18).contains(&persisted), "{persisted}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notes_of_a_link_that_has_ended_are_not_verified() {
    for ends in [false, true] {
        let ma = Node::start("ma");
        ma.publish(10, |_| {}).await;
        let (notes, queue) = mpsc::channel(16);
        for range in [0..3, 3..6, 6..10] {
            notes.try_send(IncomingNote::Custody(note(&ma, range, TIME))).unwrap();
        }
        drop(notes);
        let (cancellation, guard) = CancellationToken::with_guard();
        let guard = Some(guard).filter(|_| !ends);
        verify_and_persist(ma.exchange.shared.clone(), member("ly"), queue, cancellation).await;
        assert_eq!(persisted(&ma), if ends { 0 } else { 3 });
        drop(guard);
    }
}
