//! What a member sends that follows no protocol: garbage, replays, forgeries, and corrupted
//! batches.

use barid_core::ids::FeedId;
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::proto::item::Item;
use bytes::Bytes;

use crate::node::Content;
use crate::world::World;

impl World {
    /// Sends garbage to every linked peer.
    pub(crate) fn garbage(&mut self, node: usize) {
        if !self.nodes[node].up {
            return;
        }
        for peer in self.nodes[node].live.linked.clone() {
            self.count("garbage sent");
            let kind = self.random.below(14);
            self.garbage_for(node, peer, kind);
        }
    }

    fn garbage_for(&mut self, node: usize, peer: usize, kind: u64) {
        let owner = self.random.index(self.exchange.members.len());
        let feed = self.exchange.feed(owner, 1);
        let next = self.nodes[peer].size(&feed);
        let frame = match kind {
            0 => {
                let bytes: Vec<u8> = (0..4).flat_map(|_| self.random.bytes()).collect();
                return self.carry(node, peer, bytes.into(), false);
            }
            1 | 2 => {
                let Some(bytes) = self.overheard.front().cloned() else { return };
                self.overheard.rotate_left(1);
                return self.carry(node, peer, bytes, false);
            }
            3 => Frame::Entries(self.forged_entries(node, &feed, next)),
            4 => {
                let backfill =
                    proto::Backfill { index: next / 2, envelope: Bytes::from_static(b"not what was signed") };
                Frame::BackfillResponse(proto::BackfillResponse {
                    feed: feed.to_string(),
                    items: vec![backfill],
                    scanned_to: u64::MAX,
                })
            }
            5 => {
                let head = proto::TreeHead {
                    checkpoint: self.forged(node, &feed, next + 100),
                    held: Some(next + 100),
                    ..proto::TreeHead::default()
                };
                Frame::TreeHeads(proto::TreeHeads { heads: vec![head], roster_version: u64::MAX, ..Default::default() })
            }
            6 => {
                // Feeds that no member has.
                let head = |epoch: u32| {
                    let feed = FeedId::new(feed.member.clone(), feed.exchange.clone(), 100 + epoch);
                    proto::TreeHead {
                        checkpoint: self.forged(node, &feed, 9),
                        held: Some(9),
                        ..proto::TreeHead::default()
                    }
                };
                Frame::TreeHeads(proto::TreeHeads { heads: (0..200).map(head).collect(), ..Default::default() })
            }
            7 => {
                let range = proto::IndexRange { start: 0, end: u64::MAX };
                let ranges = vec![range; 1 + self.random.index(3)];
                Frame::Follow(proto::Follow { feed: feed.to_string(), from: u64::MAX, ranges, ..Default::default() })
            }
            8 => Frame::Follow(proto::Follow { feed: feed.to_string(), from: u64::MAX, ..Default::default() }),
            9 => Frame::ReplicationProgress(proto::ReplicationProgress { feed: feed.to_string(), size: u64::MAX }),
            10 => {
                let note = self.exchange.notes.last().cloned().unwrap_or_default();
                let mut bad = note.to_vec();
                bad.truncate(note.len() - 2);
                Frame::Rosters(proto::Rosters { notes: vec![bad.into(), Bytes::from_static(b"no roster")] })
            }
            11 | 12 => Frame::PriorityEntry(self.forged_priority(node, &feed, next)),
            _ => Frame::Consistency(proto::Consistency {
                feed: feed.to_string(),
                size: next,
                root: Bytes::from_static(&[9; 32]),
                checkpoint: self.forged(node, &feed, next),
                consistency_proof: vec![Bytes::from_static(&[8; 32]); 3],
            }),
        };
        self.send(node, peer, frame);
    }

    /// Entries that continue the peer's copy and were never signed.
    fn forged_entries(&mut self, node: usize, feed: &FeedId, first: u64) -> proto::Entries {
        let digests = match self.random.below(4) {
            0 => Bytes::new(),
            1 => Bytes::from_static(&[1; 33]),
            2 => vec![2; 32 * 2_000].into(),
            _ => Bytes::from_static(&[3; 64]),
        };
        let run = proto::DigestRun { digests, reason: "withheld".to_owned() };
        proto::Entries {
            feed: feed.to_string(),
            first,
            items: vec![proto::Item { item: Some(Item::Digests(run)) }],
            checkpoint: self.forged(node, feed, first + 2),
            consistency_proof: Vec::new(),
        }
    }

    /// A priority entry beyond the peer's copy that was never signed.
    fn forged_priority(&mut self, node: usize, feed: &FeedId, next: u64) -> proto::PriorityEntry {
        let own = &self.nodes[node].feed;
        let log = self.nodes[node].disk.logs.get(own);
        // One of its own, presented as another member's, or arbitrary bytes.
        let entry = log.and_then(|log| log.entries.iter().rev().find(|entry| entry.is_disclosed()));
        let envelope = entry.and_then(|entry| match &entry.content {
            Content::Disclosed { envelope, .. } => Some(envelope.clone()),
            Content::Undisclosed(_) => None,
        });
        proto::PriorityEntry {
            feed: feed.to_string(),
            index: next + self.random.below(3),
            envelope: envelope.unwrap_or_else(|| Bytes::from_static(b"an alert")),
            inclusion_proof: vec![Bytes::from_static(&[4; 32]); 2],
            checkpoint: self.forged(node, feed, next + 3),
        }
    }

    /// Corrupts a valid priority entry.
    pub(crate) fn corrupt_priority(&mut self, priority: &mut proto::PriorityEntry) {
        match self.random.below(6) {
            0 => priority.index += 1,
            1 => priority.index = u64::MAX,
            2 => priority.envelope = Bytes::from_static(b"something else"),
            3 => priority.envelope = Bytes::new(),
            4 => priority.inclusion_proof.push(Bytes::from_static(&[5; 32])),
            _ => priority.inclusion_proof = vec![Bytes::from_static(&[5; 32]); 70],
        }
    }

    /// Corrupts a valid batch.
    pub(crate) fn corrupted(&mut self, mut message: proto::Entries) -> proto::Entries {
        let last = message.items.len() - 1;
        match self.random.below(7) {
            0 => drop(message.items.pop()),
            1 => message.items.swap(0, last),
            2 => message.items.push(message.items[0].clone()),
            3 => message.items[last] = proto::Item { item: None },
            4 => message.consistency_proof.push(Bytes::from_static(&[5; 32])),
            5 => message.consistency_proof = vec![Bytes::from_static(&[5; 32]); 70],
            _ => {
                let envelope = Item::Envelope(Bytes::from_static(b"something else"));
                message.items[last] = proto::Item { item: Some(envelope) };
            }
        }
        message
    }
}
