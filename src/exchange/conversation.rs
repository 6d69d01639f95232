//! Conversations with a rogue member: what must hold after any sequence of frames. Used by the fuzz
//! target `conversation`, and by a test that plays seeded ones.
//!
//! In scope: a member with keys that the roster lists. It signs anything: entries, checkpoints, two
//! trees, custody notes and cosignatures on another member's feed. It sends frames in any order,
//! and frames of any bytes. Out of scope: TLS and HTTP/2 (`transport`). Not for use by the node.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::OnceLock;
use std::time::Duration;

use barid_core::envelope;
use barid_core::feed::checkpoint::{Checkpoint, SignedCheckpoint, sign};
use barid_core::feed::cosignature::{cosign, heartbeat_line};
use barid_core::feed::custody::CustodyNote;
use barid_core::feed::note::Algorithm;
use barid_core::feed::tree::{MemoryTree, consistency_proof, inclusion_proof, root_at};
use barid_core::ids::{Digest, FeedId, Hash, Undisclosed};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::proto::item::Item;
use bytes::Bytes;
use prost::Message as _;
use tokio::runtime::Runtime;

use super::world::{Actor, EXCHANGE, Node, bulletin, connect, feed, honest, key, member, roster, until};

/// Steps of one conversation; more steps only repeat the same states.
const STEPS_MAX: usize = 64;
/// Entries that one step appends.
const APPEND_MAX: u64 = 40;
/// Active alarms that one member may cause.
const ALARMS_MAX: usize = 32;

/// Fuzz input read as choices. Once it has run out, every choice is 0.
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Returns mostly small numbers, and numbers at the ends of ranges.
    fn number(&mut self, near: u64) -> u64 {
        let step = u64::from(self.byte());
        match step {
            0..100 => step,
            100..180 => near.saturating_add(step - 100).saturating_sub(40),
            180..220 => near.saturating_sub(step - 180),
            220..230 => near.saturating_mul(step - 219),
            230..240 => 1 << (step - 200),
            240..250 => u64::MAX - (step - 240),
            _ => near,
        }
    }

    fn bytes(&mut self, max: usize) -> &'a [u8] {
        let length = usize::from(self.byte()).min(max).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The rogue member: a feed with one tree, or two.
struct Rogue {
    trees: [MemoryTree; 2],
    envelopes: [Vec<Option<Bytes>>; 2],
    /// The tree that it sends now.
    current_tree: usize,
}

/// Plays a conversation. Panics if an invariant does not hold.
pub fn check(data: &[u8]) {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads start")
    });
    runtime.block_on(converse(data));
}

async fn converse(data: &[u8]) {
    let mut choices = Choices(data);
    let node = Node::start("ma");
    let mut rogue = Rogue { trees: Default::default(), envelopes: Default::default(), current_tree: 0 };
    node.publish(3, |_| {}).await;
    let with_honest_peer = choices.byte() % 8 == 0;
    let mut actor = open(&node, &mut choices).await;
    for _ in 0..STEPS_MAX {
        if choices.is_empty() {
            break;
        }
        let Some(frame) = rogue.step(&node, &mut choices) else {
            actor = open(&node, &mut choices).await;
            continue;
        };
        // A link that was ended is opened again.
        if actor.to_node.send(proto::Frame { frame: Some(frame) }).await.is_err() {
            actor = open(&node, &mut choices).await;
        }
    }
    // The node still publishes, whatever it received.
    let held = node.size(&node.feed());
    node.publish(2, |_| {}).await;
    assert_eq!(node.size(&node.feed()), held + 2);
    if with_honest_peer {
        let other = Node::start("ly");
        other.publish(2, |_| {}).await;
        let _cable = connect(&node, &other, honest(), honest());
        until("the feeds of an honest member are not stopped", || {
            node.size(&other.feed()) == 2 && other.size(&node.feed()) == held + 2
        })
        .await;
    }
    actor.end().await;
    // The copy held of the rogue's feed is one of the trees that it signed.
    if let Some(root) = node.root(&feed("tn")) {
        let size = node.size(&feed("tn"));
        let signed = rogue.trees.iter().any(|tree| size <= tree.size() && root_at(tree, size).unwrap() == root);
        assert!(signed || size == 0, "a tree of {size} entries that nobody signed");
    }
    let alarms = node.exchange.alarms().snapshot();
    assert!(alarms.len() <= ALARMS_MAX, "{} alarms by one member: {:?}", alarms.len(), alarms.first());
    for usage in node.exchange.shared.options.budgets.usage() {
        assert!(usage.used <= usage.bounds.total, "{usage:?}");
    }
}

/// The rogue's end of a link; the frames it receives are discarded.
struct RogueLink {
    to_node: tokio::sync::mpsc::Sender<proto::Frame>,
    link: tokio::task::JoinHandle<Result<(), super::LinkError>>,
    receive_task: tokio::task::JoinHandle<()>,
}

impl RogueLink {
    /// Ends the link, which must not have panicked, and must end soon.
    async fn end(self) {
        drop(self.to_node);
        let ended =
            tokio::time::timeout(Duration::from_secs(20), self.link).await.expect("a link ends when its wire ends");
        let _ = ended.expect("a link does not panic");
        self.receive_task.abort();
    }
}

async fn open(node: &Node, choices: &mut Choices<'_>) -> RogueLink {
    let Actor { to_node, mut from_node, link } = Actor::dial(node, "tn");
    let receive_task = tokio::spawn(async move { while from_node.recv().await.is_some() {} });
    let mut hello =
        proto::Hello { protocol: 1, exchange: EXCHANGE.into(), roster_version: 1, ..proto::Hello::default() };
    match choices.byte() {
        0..230 => {}
        230..235 => hello.exchange = text(choices),
        235..240 => hello.roster_version = choices.number(1),
        240..245 => hello.software = text(choices),
        245..250 => hello.now_unix_ms = choices.number(0),
        _ => hello.protocol = u32::try_from(choices.number(1)).unwrap_or(u32::MAX),
    }
    let _ = to_node.send(proto::Frame { frame: Some(Frame::Hello(hello)) }).await;
    RogueLink { to_node, link, receive_task }
}

fn text(choices: &mut Choices<'_>) -> String {
    String::from_utf8_lossy(choices.bytes(200)).into_owned()
}

impl Rogue {
    /// Returns the next frame; `None` if a new link is to be opened.
    fn step(&mut self, node: &Node, choices: &mut Choices<'_>) -> Option<Frame> {
        let own = node.feed();
        let own_size = node.size(&own);
        Some(match choices.byte() % 22 {
            0 => {
                let bytes = choices.bytes(255);
                return proto::Frame::decode(bytes).ok()?.frame;
            }
            1..=4 => self.entries(node, choices),
            5 => {
                self.current_tree = 1 - self.current_tree;
                self.entries(node, choices)
            }
            6 => Frame::Custody(proto::Custody { note: self.custody(node, choices) }),
            7 => Frame::Cosigned(proto::Cosigned { note: cosigned(node, choices), ..Default::default() }),
            8 => self.heartbeat(choices),
            9 => self.heads(node, choices),
            10 => self.priority(node, choices),
            11 => {
                let feed = any_feed(choices);
                let (from, topics) = (choices.number(own_size), (0..choices.byte() % 3).map(|_| text(choices)));
                let topics = topics.collect();
                let ranges = (0..choices.byte() % 4).map(|_| range(choices, own_size)).collect();
                Frame::Follow(proto::Follow { feed, from, topics, ranges })
            }
            12 => Frame::ReplicationProgress(proto::ReplicationProgress {
                feed: any_feed(choices),
                size: choices.number(own_size),
            }),
            13 => {
                let reason = text(choices);
                Frame::Fault(proto::Fault { feed: any_feed(choices), reason, detail: text(choices) })
            }
            14 => Frame::AttestationsRequest(proto::AttestationsRequest {
                feed: any_feed(choices),
                custody_from: choices.number(0),
                backfilled_since: choices.number(0),
            }),
            15 => {
                let items = (0..choices.byte() % 4).map(|_| {
                    let index = choices.number(self.size());
                    let envelope = self.envelopes[self.current_tree].get(usize::try_from(index).unwrap_or(usize::MAX));
                    let envelope = envelope.cloned().flatten().unwrap_or_default();
                    proto::Backfill { index, envelope }
                });
                let items = items.collect();
                Frame::BackfillResponse(proto::BackfillResponse {
                    feed: any_feed(choices),
                    items,
                    scanned_to: choices.number(self.size()),
                })
            }
            16 => Frame::ConsistencyRequest(proto::ConsistencyRequest {
                feed: any_feed(choices),
                size: choices.number(own_size),
            }),
            17 => self.consistency(choices),
            18 => Frame::RosterRequest(proto::RosterRequest { after: choices.number(1) }),
            19 => {
                let version = choices.number(1).max(1);
                let note = if version > 100 { choices.bytes(200).to_vec().into() } else { roster(version, None) };
                Frame::Rosters(proto::Rosters { notes: vec![note] })
            }
            20 => {
                let holder = ["ly", "tn", "ma", "zz"][usize::from(choices.byte() % 4)].to_owned();
                let (notes, scanned_to) = (vec![self.custody(node, choices)], choices.number(own_size));
                Frame::RelayedCustody(proto::RelayedCustody { feed: own.to_string(), holder, notes, scanned_to })
            }
            _ => return None,
        })
    }

    fn size(&self) -> u64 {
        self.trees[self.current_tree].size()
    }

    fn signed(&self, size: u64) -> SignedCheckpoint {
        let root = root_at(&self.trees[self.current_tree], size).unwrap();
        sign(&Checkpoint { feed: feed("tn"), size, root }, &[key("tn", "feed/1", Algorithm::Ed25519)]).unwrap()
    }

    fn append(&mut self, choices: &mut Choices<'_>) {
        let urgency = choices.byte();
        let envelope = match urgency % 5 {
            0 => None,
            1 => Some(Bytes::copy_from_slice(choices.bytes(100))),
            _ => {
                let valid = bulletin(&member("tn"), &|draft| {
                    if urgency > 128 {
                        draft.header.as_mut().unwrap().urgency = "Immediate".into();
                    }
                });
                Some(if urgency.is_multiple_of(3) { altered(&valid.envelope, choices) } else { valid.envelope.clone() })
            }
        };
        let digest = envelope.as_ref().map_or_else(|| Digest([urgency; 32]), |bytes| envelope::digest(bytes));
        self.trees[self.current_tree].append(&digest);
        self.envelopes[self.current_tree].push(envelope);
    }

    /// Returns a range of entries of the current tree, as a live or a backlog batch, valid or
    /// nearly so.
    fn entries(&mut self, node: &Node, choices: &mut Choices<'_>) -> Frame {
        for _ in 0..u64::from(choices.byte()) % APPEND_MAX {
            self.append(choices);
        }
        let held = node.size(&feed("tn"));
        let first = if choices.byte() < 200 { held.min(self.size()) } else { choices.number(held).min(self.size()) };
        let end = if choices.byte() < 200 { self.size() } else { choices.number(held).clamp(first, self.size()) };
        let size = if choices.byte() < 200 { end } else { choices.number(end).clamp(end, self.size()) };
        let (tree, envelopes) = (&self.trees[self.current_tree], &self.envelopes[self.current_tree]);
        let items = (first..end).map(|index| {
            let position = usize::try_from(index).unwrap();
            let item = match &envelopes[position] {
                Some(envelope) if choices.byte() < 240 => Item::Envelope(envelope.clone()),
                envelope => {
                    let digest = envelope.as_ref().map_or_else(
                        || barid_core::feed::tree::NodeId::leaf(index).leaves().start.to_le_bytes().repeat(4),
                        |bytes| envelope::digest(bytes).0.to_vec(),
                    );
                    let reason = Undisclosed::ALL[usize::from(choices.byte() % 8)].1.to_owned();
                    Item::Digests(proto::DigestRun { digests: digest.into(), reason })
                }
            };
            proto::Item { item: Some(item) }
        });
        let items = items.collect();
        let proof = if size == end { Vec::new() } else { consistency_proof(tree, end, size).unwrap_or_default() };
        Frame::Entries(proto::Entries {
            feed: feed("tn").to_string(),
            first,
            items,
            checkpoint: self.signed(size).note,
            consistency_proof: hashes(&proof),
        })
    }

    fn custody(&self, node: &Node, choices: &mut Choices<'_>) -> Bytes {
        let own = node.feed();
        let size = node.size(&own).max(1);
        let root = node.root(&own).unwrap_or(Hash([0; 32]));
        let checkpoint = Checkpoint { feed: own, size: choices.number(size), root };
        let range = range(choices, size);
        let not_held = (0..choices.byte() % 3).map(|n| {
            let start = range.start.saturating_add(u64::from(n) * 2);
            (start..start.saturating_add(1), Undisclosed::ALL[usize::from(n)].0)
        });
        let time = choices.number(1_700_000_000);
        let note = CustodyNote::new(&checkpoint, time, range.start..range.end, not_held);
        let key = key("tn", "custody", Algorithm::Ed25519);
        note.and_then(|note| note.sign(&key)).unwrap_or_else(|_| choices.bytes(100).to_vec().into())
    }

    fn heartbeat(&self, choices: &mut Choices<'_>) -> Frame {
        let size = choices.number(self.size()).min(self.size());
        let key = key("tn", "mirror", Algorithm::CosignatureEd25519);
        let note = heartbeat_line(&self.signed(size).checkpoint, &key, choices.number(1_700_000_000).max(1));
        let heartbeat_size = if choices.byte() < 200 { size } else { choices.number(size) };
        let heartbeat_feed = any_feed(choices);
        Frame::Cosigned(proto::Cosigned { note: note.unwrap_or_default(), heartbeat_feed, heartbeat_size })
    }

    fn heads(&self, node: &Node, choices: &mut Choices<'_>) -> Frame {
        let head = proto::TreeHead {
            checkpoint: self.signed(choices.number(self.size()).min(self.size())).note,
            cosigned: (0..choices.byte() % 3).map(|_| cosigned(node, choices)).collect(),
            held: (choices.byte() > 100).then(|| choices.number(self.size())),
        };
        let crls = (0..choices.byte() % 3).map(|_| Bytes::copy_from_slice(choices.bytes(60))).collect();
        Frame::TreeHeads(proto::TreeHeads { heads: vec![head], roster_version: choices.number(1), crls })
    }

    fn priority(&mut self, node: &Node, choices: &mut Choices<'_>) -> Frame {
        for _ in 0..=choices.byte() % 8 {
            self.append(choices);
        }
        let index = choices.number(node.size(&feed("tn"))).min(self.size() - 1);
        let envelope = self.envelopes[self.current_tree][usize::try_from(index).unwrap()].clone().unwrap_or_default();
        let proof = inclusion_proof(&self.trees[self.current_tree], index, self.size()).unwrap_or_default();
        let index = if choices.byte() < 220 { index } else { choices.number(index) };
        Frame::PriorityEntry(proto::PriorityEntry {
            feed: feed("tn").to_string(),
            index,
            envelope,
            inclusion_proof: hashes(&proof),
            checkpoint: self.signed(self.size()).note,
        })
    }

    fn consistency(&self, choices: &mut Choices<'_>) -> Frame {
        let size = choices.number(self.size()).min(self.size());
        let tree = &self.trees[choices.byte() as usize % 2];
        let proof = consistency_proof(&self.trees[self.current_tree], size, self.size()).unwrap_or_default();
        let root = root_at(tree, size.min(tree.size())).unwrap();
        Frame::Consistency(proto::Consistency {
            feed: feed("tn").to_string(),
            size,
            root: Bytes::copy_from_slice(&root.0),
            checkpoint: self.signed(self.size()).note,
            consistency_proof: hashes(&proof),
        })
    }
}

/// Returns the envelope with a header that no node would sign.
fn altered(envelope: &Bytes, choices: &mut Choices<'_>) -> Bytes {
    let mut altered = proto::Envelope::decode(envelope.clone()).unwrap();
    let mut header = proto::Header::decode(altered.header).unwrap();
    match choices.byte() % 8 {
        0 => header.roster_version = choices.number(1),
        1 => header.sent_at = Some(prost_types::Timestamp { seconds: i64::MIN, nanos: -1 }),
        2 => header.member = text(choices),
        3 => header.topic = text(choices),
        4 => header.kind = text(choices),
        5 => header.format = u32::try_from(choices.number(1)).unwrap_or(u32::MAX),
        6 => header.handling = None,
        _ => header.id = text(choices),
    }
    altered.header = header.encode_to_vec().into();
    altered.encode_to_vec().into()
}

fn hashes(proof: &[Hash]) -> Vec<Bytes> {
    proof.iter().map(|hash| Bytes::copy_from_slice(&hash.0)).collect()
}

fn range(choices: &mut Choices<'_>, near: u64) -> proto::IndexRange {
    let start = choices.number(near / 2);
    proto::IndexRange { start, end: start.saturating_add(choices.number(near)) }
}

fn any_feed(choices: &mut Choices<'_>) -> String {
    match choices.byte() {
        0..100 => feed("ma").to_string(),
        100..200 => feed("tn").to_string(),
        200..230 => feed("ly").to_string(),
        230..240 => FeedId::new(member("tn"), EXCHANGE.parse().unwrap(), 2).to_string(),
        _ => text(choices),
    }
}

/// Returns the rogue's cosignature on the node's own newest checkpoint, or random bytes.
fn cosigned(node: &Node, choices: &mut Choices<'_>) -> Bytes {
    let own = node.feed();
    let state = node.store.feed(&own).unwrap();
    let signed = SignedCheckpoint::from_trusted_store(state.checkpoint).unwrap();
    let key = key("tn", "mirror", Algorithm::CosignatureEd25519);
    let time = choices.number(1_700_000_000);
    // Not every time can be signed.
    let made = (choices.byte() < 220).then(|| cosign(&signed, &key, time).ok()).flatten();
    made.unwrap_or_else(|| choices.bytes(200).to_vec().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fuzzing::mutate::Mutator;

    #[test]
    fn node_stays_consistent_after_any_conversation() {
        // Every step in turn, then mutations of such conversations.
        let seed: Vec<u8> = (0..=255).collect();
        for number in 0..40 {
            let mut mutator = Mutator::new(number);
            let longer = mutator.mutate(&seed, &seed);
            check(&mutator.mutate(&longer, &seed));
        }
    }
}
