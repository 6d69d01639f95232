//! Peers that send what no node would: a batch is rejected whole, with its reason recorded, and
//! everything else continues. The content of an entry causes no rejection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use barid_core::bulletin::ValidBulletin;
use barid_core::envelope;
use barid_core::feed::checkpoint::{Checkpoint, SignedCheckpoint, sign};
use barid_core::feed::note::{Algorithm, Note, SigningKey};
use barid_core::feed::tree::{MemoryTree, root_at};
use barid_core::ids::{Hash, Undisclosed};
use barid_core::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, ENVELOPE_BYTES_MAX, MESSAGE_BYTES_MAX, PROOF_HASHES_MAX};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::proto::item::Item;
use bytes::{Buf as _, BufMut as _, Bytes};
use parking_lot::Mutex;
use prost::Message as _;
use tokio_stream::StreamExt as _;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Endpoint;

use super::world::{Actor, EXCHANGE, Node, Tamper, bulletin, connect, feed, honest, key, member, until};
use super::{disclosed, listen};
use crate::telemetry::captured::CapturedRecords;

fn ma_key() -> SigningKey {
    key("ma", "feed/1", Algorithm::Ed25519)
}

fn signed(size: u64, root: Hash, key: &SigningKey) -> Bytes {
    sign(&Checkpoint { feed: feed("ma"), size, root }, std::slice::from_ref(key)).unwrap().note
}

/// Parses the text of a checkpoint note.
fn parse_checkpoint(note: &[u8]) -> Checkpoint {
    Checkpoint::parse_text(&Note::parse(note).unwrap().text).unwrap()
}

fn run(bytes: Vec<u8>) -> proto::Item {
    let reason = Undisclosed::Withheld.as_str().to_owned();
    proto::Item { item: Some(Item::Digests(proto::DigestRun { digests: bytes.into(), reason })) }
}

fn envelope_item(bytes: Bytes) -> proto::Item {
    proto::Item { item: Some(Item::Envelope(bytes)) }
}

type Lie = fn(&mut proto::Entries);

/// Each way to falsify a batch of several entries, and the reason of its fault.
const LIES: [(&str, Lie, &str); 21] = [
    ("an envelope is altered", |batch| alter_last(batch), "bad-root"),
    ("two entries have changed places", |batch| batch.items.swap(1, 2), "bad-root"),
    (
        "the feed's own key signed another root",
        |batch| batch.checkpoint = signed(parse_checkpoint(&batch.checkpoint).size, Hash([9; 32]), &ma_key()),
        "bad-root",
    ),
    ("the last entry is missing", |batch| drop(batch.items.pop()), "bad-proof"),
    ("a proof where none is needed", |batch| batch.consistency_proof.push(vec![1; 32].into()), "bad-proof"),
    ("an entry is there twice", |batch| batch.items.push(batch.items[0].clone()), "bad-bounds"),
    ("too many entries", |batch| batch.items = vec![run(vec![1; 32 * (BATCH_ENTRIES_MAX + 1)])], "bad-bounds"),
    ("too many bytes", |batch| batch.items.insert(0, envelope_item(vec![0; BATCH_BYTES_MAX + 1].into())), "bad-bounds"),
    (
        "the checkpoint is older than the entries",
        |batch| batch.checkpoint = signed(batch.first + 1, Hash([9; 32]), &ma_key()),
        "bad-bounds",
    ),
    (
        "a proof without end",
        |batch| batch.consistency_proof = vec![vec![1; 32].into(); PROOF_HASHES_MAX + 1],
        "bad-bounds",
    ),
    ("no entries", |batch| batch.items.clear(), "malformed"),
    ("half a digest", |batch| batch.items[0] = run(vec![1; 48]), "malformed"),
    ("an empty run of digests", |batch| batch.items[0] = run(Vec::new()), "malformed"),
    ("an item of a kind that is unknown", |batch| batch.items[0].item = None, "malformed"),
    ("half a hash in the proof", |batch| batch.consistency_proof.push(vec![1; 16].into()), "malformed"),
    ("the checkpoint is cut short", |batch| batch.checkpoint.truncate(batch.checkpoint.len() / 2), "malformed"),
    ("the checkpoint is not a note", |batch| batch.checkpoint = vec![0xff; 70].into(), "malformed"),
    (
        "another key of the same name signed",
        |batch| {
            let forged = SigningKey::from_seed(ma_key().name(), Algorithm::Ed25519, [9; 32]).unwrap();
            let head = parse_checkpoint(&batch.checkpoint);
            batch.checkpoint = signed(head.size, head.root, &forged);
        },
        "bad-signature",
    ),
    (
        "another member's key signed",
        |batch| {
            let (head, key) = (parse_checkpoint(&batch.checkpoint), key("ly", "feed/1", Algorithm::Ed25519));
            let of_ly = Checkpoint { feed: feed("ly"), ..head };
            batch.checkpoint = sign(&of_ly, &[key]).unwrap().note;
        },
        "bad-signature",
    ),
    ("a place further on", |batch| batch.first += 1, "gap"),
    ("a place that is held", |batch| batch.first = 0, "gap"),
];

fn alter_last(batch: &mut proto::Entries) {
    if let Some(Item::Envelope(envelope)) = batch.items.last_mut().and_then(|item| item.item.as_mut()) {
        let mut bytes = envelope.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        *envelope = bytes.into();
    }
}

/// ly holds four entries of ma's feed; then ma sends the next twenty falsified, until `lying` is
/// reset.
async fn receive_lie(what: &str, lie: Lie, reason: &str) {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    let (lying, faults) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let from_ma: Tamper = {
        let lying = Arc::clone(&lying);
        Box::new(move |mut frame| {
            if let Some(Frame::Entries(batch)) = &mut frame.frame
                && lying.load(Ordering::SeqCst)
            {
                lie(batch);
            }
            Some(frame)
        })
    };
    let from_ly: Tamper = {
        let faults = Arc::clone(&faults);
        Box::new(move |frame| {
            if let Some(Frame::Fault(fault)) = &frame.frame {
                faults.lock().push((fault.feed.clone(), fault.reason.clone()));
            }
            Some(frame)
        })
    };
    let cable = connect(&ma, &ly, from_ma, from_ly);
    ma.publish(4, |_| {}).await;
    until("the first entries are held", || ly.size(&ma.feed()) == 4).await;
    let (root, end_offset) = (ly.root(&ma.feed()), ly.store.end_offset());
    lying.store(true, Ordering::SeqCst);
    ma.publish(20, |_| {}).await;
    until(what, || !faults.lock().is_empty()).await;
    assert_eq!(faults.lock()[0], (ma.feed().to_string(), reason.to_owned()), "{what}");
    ly.publish(2, |_| {}).await;
    until("the other feed continues over the same link", || ma.size(&ly.feed()) == 2).await;
    assert_eq!((ly.root(&ma.feed()), ly.size(&ma.feed())), (root, 4), "{what}: nothing of it is stored");
    assert_eq!(ly.store.end_offset(), end_offset + 2, "{what}: only ly's own entries arrived");
    assert!(!cable.dialled.is_finished() && !cable.dialler.is_finished(), "{what}: the link stays open");
    assert!(ly.exchange.stopped_feeds().all().is_empty(), "{what}: a dishonest relay proves nothing about the owner");
    lying.store(false, Ordering::SeqCst);
    until("the next attempt is accepted", || ly.size(&ma.feed()) == 24).await;
    assert_eq!(ly.root(&ma.feed()), ma.root(&ma.feed()), "{what}");
    assert_eq!(ly.store.end_offset(), 27, "{what}: each entry arrived once");
}

#[tokio::test]
async fn malformed_batch_is_rejected_whole_and_recorded() {
    let captured = CapturedRecords::start();
    futures::future::join_all(LIES.map(|(what, lie, reason)| receive_lie(what, lie, reason))).await;
    for (_, _, reason) in LIES {
        let expected = LIES.iter().filter(|(_, _, other)| *other == reason).count();
        let ma = feed("ma").to_string();
        let rejected = captured.records().into_iter().filter(|record| {
            record.event == "batch-rejected" && record.reason == reason && record.actor == "ma" && record.resource == ma
        });
        assert!(rejected.count() >= expected, "{reason} {:?}", captured.records());
    }
}

/// Six entries of ma's as three batches of two, each under its own checkpoint.
fn batches() -> [proto::Entries; 3] {
    let mut tree = MemoryTree::new();
    let envelopes: Vec<Bytes> = (0..6).map(|_| bulletin(&member("ma"), &|_| {}).envelope).collect();
    envelopes.iter().for_each(|envelope| tree.append(&envelope::digest(envelope)));
    [0, 2, 4].map(|first: usize| {
        let size = first as u64 + 2;
        proto::Entries {
            feed: feed("ma").to_string(),
            first: first as u64,
            items: envelopes[first..first + 2].iter().cloned().map(envelope_item).collect(),
            checkpoint: signed(size, root_at(&tree, size).unwrap(), &ma_key()),
            consistency_proof: Vec::new(),
        }
    })
}

pub(super) async fn next_follow(peer: &mut Actor) -> u64 {
    peer.receive(|frame| match frame {
        Frame::Follow(follow) if follow.feed == feed("ma").to_string() => Some(follow.from),
        _ => None,
    })
    .await
}

async fn rejected(peer: &mut Actor) -> String {
    peer.receive(|frame| if let Frame::Fault(fault) = frame { Some(fault.reason) } else { None }).await
}

#[tokio::test]
async fn repeated_batch_is_rejected_and_stored_once() {
    let ly = Node::start("ly");
    let [one, two, three] = batches();
    let mut peer = Actor::handshake(&ly, "ma").await;
    assert_eq!(next_follow(&mut peer).await, 0);
    for batch in [&one, &one] {
        peer.send(Frame::Entries(batch.clone())).await;
    }
    assert_eq!(rejected(&mut peer).await, "gap");
    assert_eq!(next_follow(&mut peer).await, 2);
    for batch in [&two, &three] {
        peer.send(Frame::Entries(batch.clone())).await;
    }
    until("all is held", || ly.size(&feed("ma")) == 6).await;
    assert_eq!(ly.store.end_offset(), 7);
}

#[tokio::test]
async fn out_of_order_batches_are_rejected_and_requested_again() {
    let ly = Node::start("ly");
    let [one, two, three] = batches();
    let mut peer = Actor::handshake(&ly, "ma").await;
    assert_eq!(next_follow(&mut peer).await, 0);
    // No batch of an earlier request can be in flight yet: the first batch must be the requested
    // one.
    peer.send(Frame::Entries(two.clone())).await;
    assert_eq!(rejected(&mut peer).await, "gap");
    assert_eq!(next_follow(&mut peer).await, 0);
    for batch in [&one, &three] {
        peer.send(Frame::Entries(batch.clone())).await;
    }
    assert_eq!(rejected(&mut peer).await, "gap");
    assert_eq!(next_follow(&mut peer).await, 2);
    // Batches sent before the rejection arrived are dropped.
    for batch in [&three, &two, &three] {
        peer.send(Frame::Entries(batch.clone())).await;
    }
    until("all is held", || ly.size(&feed("ma")) == 6).await;
    assert_eq!(ly.store.end_offset(), 7);
}

#[tokio::test]
async fn peer_sending_wrong_batches_receives_fault_each_time() {
    let ly = Node::start("ly");
    let [_, two, three] = batches();
    let mut peer = Actor::handshake(&ly, "ma").await;
    for _ in 0..2 {
        assert_eq!(next_follow(&mut peer).await, 0);
        for _ in 0..=super::super::IN_FLIGHT_BATCHES_MAX {
            peer.send(Frame::Entries(two.clone())).await;
            peer.send(Frame::Entries(three.clone())).await;
        }
        assert_eq!(rejected(&mut peer).await, "gap");
    }
    assert_eq!(ly.size(&feed("ma")), 0);
}

/// An entry with these exact bytes, as a node without checks would publish it.
fn unchecked(envelope: Bytes) -> ValidBulletin {
    let digest = envelope::digest(&envelope);
    ValidBulletin { envelope, digest, ..bulletin(&member("ma"), &|_| {}) }
}

/// A bulletin with a changed header.
pub(super) fn headed(change: impl Fn(&mut proto::Header)) -> Bytes {
    let envelope = bulletin(&member("ma"), &|_| {}).envelope;
    let mut header = envelope::header_of(&envelope).unwrap();
    change(&mut header);
    envelope::encode(&header, &envelope::body_of(&envelope).unwrap(), [3; 16])
}

#[tokio::test]
async fn entry_content_never_stops_its_feed() {
    let with_body = |payload: Vec<u8>, payload_type: &str| {
        let mut message = envelope::decode(&headed(|_| {})).unwrap();
        message.payload = payload.into();
        message.payload_type = payload_type.to_owned();
        Bytes::from(message.encode_to_vec())
    };
    let releasable = |to: &str| {
        let to = to.to_owned();
        headed(move |header| {
            let handling =
                proto::Handling { tlp: "TLP:RED".into(), releasable_to: vec![to.clone()], ..Default::default() };
            header.handling = Some(handling);
        })
    };
    // Each with whether it is stored in full, and its finding.
    let entries: [(Bytes, bool, Option<&str>); 14] = [
        (headed(|_| {}), true, None),
        (headed(|header| header.kind = "of-tomorrow".into()), true, None),
        (headed(|header| header.id = "no id at all".into()), true, None),
        (headed(|header| header.id = "00000000-0000-0000-0000-000000000000".into()), true, None),
        (headed(|header| header.kind = "k".repeat(3_000)), true, None),
        (with_body(vec![0xff; 40], envelope::PAYLOAD_TYPE), true, None),
        (with_body(vec![1, 2, 3], "barid.sealed/9"), true, None),
        (headed(|header| header.member = "tn".into()), true, Some("misdirected")),
        (headed(|header| header.roster_version = 99), true, Some("newer-roster")),
        (headed(|header| header.format = 2), false, Some("not-understood")),
        (releasable("tn"), false, Some("excluded")),
        (Bytes::from_static(b"no envelope"), false, Some("undecodable-header")),
        (headed(|_| {}), true, None),
        (with_body(vec![0; ENVELOPE_BYTES_MAX], envelope::PAYLOAD_TYPE), false, Some("too-large")),
    ];
    // The sender serves everything, whatever the audience.
    let mut tree = MemoryTree::new();
    entries.iter().for_each(|(envelope, ..)| tree.append(&envelope::digest(envelope)));
    let count = entries.len() as u64;
    let batch = proto::Entries {
        feed: feed("ma").to_string(),
        first: 0,
        items: entries.iter().map(|(envelope, ..)| envelope_item(envelope.clone())).collect(),
        checkpoint: signed(count, tree.root(), &ma_key()),
        consistency_proof: Vec::new(),
    };
    let captured = CapturedRecords::start();
    let (ly, tn) = (Node::start("ly"), Node::start("tn"));
    let mut ma = Actor::handshake(&ly, "ma").await;
    assert_eq!(next_follow(&mut ma).await, 0);
    ma.send(Frame::Entries(batch)).await;
    until("the log is held", || ly.size(&feed("ma")) == count).await;
    assert_eq!(ly.root(&feed("ma")), Some(tree.root()));
    assert_eq!(disclosed(&ly, "ma"), entries.each_ref().map(|(_, in_full, _)| *in_full));
    for (index, (_, _, reason)) in entries.iter().enumerate() {
        let resource = format!("{} {index}", feed("ma"));
        let recorded: Vec<_> = captured.records().into_iter().filter(|record| record.resource == resource).collect();
        let recorded: Vec<_> = recorded.iter().map(|record| (record.reason.as_str(), record.actor.as_str())).collect();
        assert_eq!(recorded, reason.map(|reason| (reason, "ma")).as_slice(), "{index}");
    }
    // The feed continues, and so do the others.
    let more = bulletin(&member("ma"), &|_| {}).envelope;
    tree.append(&envelope::digest(&more));
    ma.send(Frame::Entries(proto::Entries {
        feed: feed("ma").to_string(),
        first: count,
        items: vec![envelope_item(more)],
        checkpoint: signed(count + 1, tree.root(), &ma_key()),
        consistency_proof: Vec::new(),
    }))
    .await;
    until("the next entry is held", || ly.size(&feed("ma")) == count + 1).await;
    let _cable = connect(&ly, &tn, honest(), honest());
    tn.publish(1, |_| {}).await;
    until("another feed is followed", || ly.size(&feed("tn")) == 1).await;
}

#[tokio::test]
async fn malformed_relayed_custody_is_recorded_and_not_persisted() {
    let captured = CapturedRecords::start();
    let ly = Node::start("ly");
    ly.publish(2, |_| {}).await;
    let mut ma = Actor::handshake(&ly, "ma").await;
    assert_eq!(next_follow(&mut ma).await, 0);
    let (own, theirs) = (feed("ly").to_string(), feed("ma").to_string());
    let relayed_request = |feed: &str, holder: &str| {
        let (feed, holder) = (feed.to_owned(), holder.to_owned());
        Frame::RelayedCustodyRequest(proto::RelayedCustodyRequest { feed, holder, from: u64::MAX })
    };
    let relayed_notes = |feed: &str, holder: &str, notes: Vec<Bytes>| {
        let (feed, holder) = (feed.to_owned(), holder.to_owned());
        Frame::RelayedCustody(proto::RelayedCustody { feed, holder, notes, scanned_to: u64::MAX })
    };
    let note = Bytes::from_static(b"no note");
    let of = |what: &str| {
        captured.records().into_iter().filter(|record| record.event == what && record.actor == "ma").count()
    };
    for frame in [
        // Rejected with a record: malformed names, a feed that is not the sender's, more notes than
        // a frame may hold.
        relayed_request("no feed", "tn"),
        relayed_request(&theirs, "Tunisia"),
        relayed_request(&feed("tn").to_string(), "ne"),
        relayed_notes("no feed", "tn", Vec::new()),
        relayed_notes(&own, "Tunisia", Vec::new()),
        relayed_notes(&own, "tn", vec![note.clone(); 10_000]),
        relayed_notes(&own, "tn", vec![Bytes::from(vec![7; 1 << 20])]),
        relayed_notes(&feed("tn").to_string(), "ne", Vec::new()),
        // Notes that prove nothing, of a holder that is a member and of one that is not.
        relayed_notes(&own, "tn", vec![note.clone()]),
        relayed_notes(&own, "x-nobody", vec![note.clone()]),
        // Not forwarded, since no such member is linked; not answered, since nothing is held.
        relayed_request(&theirs, "tn"),
        relayed_notes(&theirs, "ma", vec![note]),
        relayed_request(&feed("tn").to_string(), "ly"),
    ] {
        ma.send(frame).await;
    }
    // The feed continues.
    for batch in batches() {
        ma.send(Frame::Entries(batch)).await;
    }
    until("all is held", || ly.size(&feed("ma")) == 6).await;
    // The first few records of a peer are written singly, the rest only counted.
    assert!(of("frame-rejected") >= 3, "{}", of("frame-rejected"));
    assert!(ly.store.custody_newest(&feed("ly")).unwrap().is_empty());
}

#[tokio::test]
async fn owner_with_malformed_entries_is_still_followed() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    let _cable = connect(&ma, &ly, honest(), honest());
    ma.publish(1, |_| {}).await;
    let nonsense = [Bytes::from_static(b"no envelope"), headed(|header| header.member = "ly".into())];
    ma.committer.publish(nonsense.map(unchecked).into()).await.unwrap();
    ma.publish(1, |_| {}).await;
    until("the log is held", || ly.size(&ma.feed()) == 4).await;
    assert_eq!(ly.root(&ma.feed()), ma.root(&ma.feed()));
    let newest = ly.store.feed(&ma.feed()).unwrap().checkpoint;
    let keys = ly.rosters.load().newest().feed_keys(&ma.feed());
    assert_eq!(SignedCheckpoint::verify(&newest, &keys).unwrap().checkpoint.size, 4);
}

/// A codec for messages of arbitrary bytes.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Calls `Exchange.Link` with these messages and waits for `done`.
async fn call(address: std::net::SocketAddr, messages: Vec<Bytes>, done: impl Future<Output = ()>) {
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let requests = tokio_stream::iter(messages).chain(tokio_stream::pending());
    let path = "/barid.v1.Exchange/Link".parse().unwrap();
    let responses = grpc.streaming(tonic::Request::new(requests), path, Raw).await.unwrap();
    done.await;
    drop(responses);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undecodable_frame_ends_only_its_link() {
    let (ly, tn) = (Node::start("ly"), Node::start("tn"));
    let _cable = connect(&ly, &tn, honest(), honest());
    until("linked", || ly.exchange.peers().linked(&tn.me)).await;
    let (address, ma) = (listen(&ly, "ma").await, member("ma"));
    let hello = proto::Hello { protocol: 1, exchange: EXCHANGE.into(), roster_version: 1, ..proto::Hello::default() };
    let message = |frame| {
        let frame = Some(proto::Frame { frame: Some(frame) });
        Bytes::from(proto::LinkRequest { frame }.encode_to_vec())
    };
    let hello = message(Frame::Hello(hello));
    let good = message(Frame::Entries(batches()[0].clone()));
    let oversized = proto::Entries { checkpoint: vec![1; MESSAGE_BYTES_MAX].into(), ..batches()[0].clone() };
    for (last, reason) in [
        (message(Frame::Entries(oversized)), "too large"),
        (good.slice(..good.len() - 1), "decode"),
        (Bytes::from_static(&[0xff; 100]), "decode"),
    ] {
        // The error of the previous call remains until this call's link has opened.
        let changes = ly.exchange.peers().watch();
        let before = *changes.borrow();
        let opened_and_ended = || *changes.borrow() >= before + 2 && !ly.exchange.peers().linked(&ma);
        let ended =
            until("the link has ended", || opened_and_ended() && ly.peer_status(&ma).last_error.contains(reason));
        call(address, vec![hello.clone(), last], ended).await;
        assert!(ly.peer_status(&ma).last_error.contains("broke"), "{}", ly.peer_status(&ma).last_error);
        assert!(!ly.exchange.peers().linked(&ma) && ly.exchange.peers().linked(&tn.me), "only its own link");
    }
    assert_eq!(ly.size(&feed("ma")), 0);
    call(address, vec![hello, good], until("the peer may reconnect", || ly.size(&feed("ma")) == 2)).await;
    tn.publish(1, |_| {}).await;
    until("the other feed continues", || ly.size(&tn.feed()) == 1).await;
}
