//! Frames between nodes, processed by the follower. A batch is verified or rejected as a whole, and
//! an accepted batch can be served to another follower.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use barid_core::envelope;
use barid_core::feed::checkpoint::{Checkpoint, sign};
use barid_core::feed::tree::{CompactRange, MemoryTree, consistency_proof, root_at};
use barid_core::follow::{
    FaultKind, FollowState, VerifiedBatch, VerifiedContent, delivery, verify_backfills, verify_entries,
};
use barid_core::ids::{Digest, FeedId, Hash, Undisclosed};
use barid_core::limits::BATCH_ENTRIES_MAX;
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::proto::item::Item;
use barid_core::serve::{self, Held, may_disclose};
use bytes::Bytes;
use prost::Message as _;

use super::{chain, choice};
use crate::fixture;

pub fn check(data: &[u8]) {
    let Some((chosen, rest)) = choice(data) else { return };
    let Ok(frame) = proto::Frame::decode(rest) else { return };
    let again = frame.encode_to_vec();
    assert_eq!(proto::Frame::decode(again.as_slice()).as_ref(), Ok(&frame));
    match frame.frame {
        Some(Frame::Entries(entries)) => {
            check_unsigned(&entries);
            proven(&entries, chosen);
        }
        Some(Frame::BackfillResponse(backfills)) => check_backfill(&backfills, chosen),
        _ => {}
    }
}

/// Checks backfill. Only content with the stored digest that was requested and is missing is
/// accepted.
fn check_backfill(backfills: &proto::BackfillResponse, chosen: u8) {
    let requested = [0..4, 6..u64::from(chosen).max(7)];
    let honest = |item: &&proto::Backfill| item.index % 5 != u64::from(chosen % 5);
    let undisclosed: BTreeMap<u64, (Digest, Undisclosed)> = backfills
        .items
        .iter()
        .filter(honest)
        .map(|item| (item.index, (envelope::digest(&item.envelope), Undisclosed::Withheld)))
        .collect();
    let (owner, reader) = (feed().member, fixture::member("tn"));
    let Ok(verified) = verify_backfills(&feed(), &owner, backfills, &requested, &undisclosed, chain(), &reader) else {
        return;
    };
    for entry in &verified.entries {
        assert!(requested.iter().any(|range| range.contains(&entry.index)));
        assert_eq!(undisclosed[&entry.index].0, envelope::digest(&entry.envelope));
        assert!(entry.header.is_some());
    }
    assert!(verified.entries.is_sorted_by(|a, b| a.index < b.index));
}

fn feed() -> FeedId {
    fixture::checkpoint(&fixture::tree(), fixture::SIZE).checkpoint.feed
}

/// Checks entries without a valid signature: they are rejected, and only what the fixture has
/// signed can pass.
fn check_unsigned(entries: &proto::Entries) {
    for start in [CompactRange::new(), honest_compact_range()] {
        let state = FollowState::new(feed(), start);
        if let Ok(batch) = verify_entries(&state, entries, chain(), &fixture::member("tn")) {
            sound(&state, entries, &batch);
        }
    }
}

/// Checks the same items under a checkpoint that the feed's key did sign. Only faults of the items
/// can now reject them.
fn proven(entries: &proto::Entries, chosen: u8) {
    let mut tree = MemoryTree::new();
    let held = u64::from(chosen % 8);
    (0..held).for_each(|number| tree.append(&Digest([u8::try_from(number).unwrap(); 32])));
    let state = FollowState::new(feed(), tree.compact_range().clone());
    let mut well_formed = true;
    for item in &entries.items {
        match &item.item {
            Some(Item::Envelope(envelope)) => tree.append(&envelope::digest(envelope)),
            Some(Item::Digests(run)) => {
                well_formed &= !run.digests.is_empty() && run.digests.len() % 32 == 0;
                run.digests.as_chunks().0.iter().for_each(|digest| tree.append(&Digest(*digest)));
            }
            None => well_formed = false,
        }
    }
    let end = tree.size();
    let count = end - held;
    // A live batch ends at its checkpoint, a backlog batch before it.
    let beyond = u64::from(chosen / 8 % 4);
    (0..beyond).for_each(|number| tree.append(&Digest([100 + u8::try_from(number).unwrap(); 32])));
    let checkpoint = Checkpoint { feed: feed(), size: tree.size(), root: tree.root() };
    let signed = sign(&checkpoint, &[fixture::feed_key("ma")]).unwrap();
    let proof = if beyond == 0 { Vec::new() } else { consistency_proof(&tree, end, tree.size()).unwrap() };
    let message = serve::message(&feed(), held, entries.items.clone(), signed.note.clone(), &proof);
    let me = fixture::member(["tn", "ne", "x-observer", "dz"][usize::from(chosen / 32 % 4)]);
    let result = verify_entries(&state, &message, chain(), &me);
    let batch = match result {
        Ok(batch) => batch,
        Err(fault) => {
            let bounded = fault.kind == FaultKind::BadBounds;
            assert!(bounded || !well_formed || count == 0, "rejected without a reason: {fault}");
            return;
        }
    };
    assert!(well_formed && (1..=BATCH_ENTRIES_MAX as u64).contains(&count));
    sound(&state, &message, &batch);
    assert_eq!(batch.compact_range.root(), root_at(&tree, end).unwrap());
    rejected_when_altered(&state, &message, chosen);
    served_on(&state, &batch);
}

/// Checks the properties of an accepted batch.
fn sound(state: &FollowState, message: &proto::Entries, batch: &VerifiedBatch) {
    let mut compact_range = state.compact_range.clone();
    for (entry, index) in batch.entries.iter().zip(batch.first..) {
        compact_range.append(&entry.digest);
        let VerifiedContent::Disclosed { envelope, header } = &entry.content else { continue };
        assert_eq!(envelope::digest(envelope), entry.digest);
        assert_eq!(envelope::header_of(envelope).ok().as_ref(), header.as_deref(), "entry {index}");
        let given = delivery(&batch.feed.member, header.as_deref(), &fixture::member("tn"), chain());
        assert!(entry.pending_roster.is_none() || !given.to_focal_points());
    }
    assert_eq!(compact_range, batch.compact_range);
    assert_eq!(compact_range.size() - batch.first, batch.entries.len() as u64);
    assert!(batch.checkpoint.checkpoint.size >= compact_range.size());
    assert_eq!(batch.checkpoint.checkpoint.feed, state.feed);
    let again = verify_entries(state, message, chain(), &fixture::member("tn")).unwrap();
    assert_eq!(again.compact_range, batch.compact_range);
    let mut state = state.clone();
    state.advance(batch);
    let repeated = verify_entries(&state, message, chain(), &fixture::member("tn"));
    assert_eq!(repeated.unwrap_err().kind, FaultKind::Gap, "a repeated batch is rejected");
}

fn rejected_when_altered(state: &FollowState, message: &proto::Entries, chosen: u8) {
    let mut altered = message.clone();
    let place = usize::from(chosen) % altered.items.len();
    match &mut altered.items[place].item {
        Some(Item::Envelope(envelope)) => {
            let mut bytes = envelope.to_vec();
            bytes.push(1);
            *envelope = bytes.into();
        }
        Some(Item::Digests(run)) => {
            let mut bytes = run.digests.to_vec();
            bytes[0] ^= 1;
            run.digests = bytes.into();
        }
        None => return,
    }
    assert!(verify_entries(state, &altered, chain(), &fixture::member("tn")).is_err());
    let mut short = message.clone();
    short.items.pop();
    assert!(verify_entries(state, &short, chain(), &fixture::member("tn")).is_err());
}

/// Checks that the batch can be served on: the next follower gets the same log, without content
/// that it may not read.
fn served_on(state: &FollowState, batch: &VerifiedBatch) {
    let reader = fixture::member("ne");
    let held = batch.entries.iter().map(|entry| {
        let held = match &entry.content {
            VerifiedContent::Disclosed { envelope, header } => Held::Disclosed { envelope, header: header.as_deref() },
            VerifiedContent::Undisclosed(reason) => Held::Undisclosed(*reason),
        };
        (entry.digest, held)
    });
    let items = serve::items(held, &reader, &[], chain());
    for item in &items {
        if let Some(Item::Envelope(envelope)) = &item.item {
            assert!(may_disclose(&envelope::header_of(envelope).unwrap(), &reader, chain()));
        }
    }
    let message =
        serve::message(&batch.feed, batch.first, items, batch.checkpoint.note.clone(), &batch.consistency_proof);
    let next = verify_entries(&state.clone().at(fixture::member("tn")), &message, chain(), &reader).unwrap();
    assert_eq!(next.compact_range, batch.compact_range);
}

fn honest_compact_range() -> CompactRange {
    barid_core::feed::tree::compact_range_at(&fixture::tree(), 3).unwrap()
}

pub fn seeds() -> Vec<Vec<u8>> {
    static SEEDS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SEEDS.get_or_init(make_seeds).clone()
}

fn make_seeds() -> Vec<Vec<u8>> {
    let signed = fixture::checkpoint(&fixture::tree(), fixture::SIZE);
    let envelope = |envelope: &[u8]| proto::Item { item: Some(Item::Envelope(Bytes::copy_from_slice(envelope))) };
    let run = |digests: &[u8], reason: Undisclosed| proto::Item {
        item: Some(Item::Digests(proto::DigestRun {
            digests: Bytes::copy_from_slice(digests),
            reason: reason.as_str().to_owned(),
        })),
    };
    let batch = |first: u64, items: Vec<proto::Item>, proof: &[Hash]| {
        Frame::Entries(serve::message(&feed(), first, items, signed.note.clone(), proof))
    };
    let mut kinds: Vec<proto::Item> = super::envelope::seeds().iter().map(|bytes| envelope(bytes)).collect();
    kinds.push(run(&[5; 96], Undisclosed::Withheld));
    kinds.push(envelope(b"not an envelope"));
    let bulletin = envelope(&fixture::bulletin().envelope);
    let text = |text: &str| text.to_owned();
    let frames = [
        batch(0, kinds.clone(), &[]),
        batch(3, vec![run(&[6; 64], Undisclosed::Unfollowed), bulletin.clone()], &[Hash([1; 32]); 3]),
        batch(4, vec![bulletin], &[]),
        Frame::Hello(proto::Hello { protocol: 1, exchange: text(fixture::EXCHANGE), ..proto::Hello::default() }),
        Frame::Follow(proto::Follow {
            feed: feed().to_string(),
            from: 7,
            topics: vec![text("customs.>")],
            ..Default::default()
        }),
        Frame::ReplicationProgress(proto::ReplicationProgress { feed: feed().to_string(), size: 7 }),
        Frame::Cosigned(proto::Cosigned {
            note: super::golden("cosigned-checkpoint.note").into(),
            ..Default::default()
        }),
        Frame::Custody(proto::Custody { note: super::golden("custody.note").into() }),
        Frame::RelayedCustody(proto::RelayedCustody {
            feed: feed().to_string(),
            holder: text("tn"),
            notes: vec![super::golden("custody.note").into()],
            scanned_to: 7,
        }),
        Frame::TreeHeads(proto::TreeHeads {
            heads: vec![proto::TreeHead {
                checkpoint: signed.note.clone(),
                cosigned: vec![signed.note.clone()],
                held: Some(3),
            }],
            roster_version: 2,
            crls: vec![Bytes::from_static(b"list")],
        }),
        Frame::BackfillResponse(proto::BackfillResponse {
            feed: feed().to_string(),
            items: (1..4).map(|index| proto::Backfill { index, envelope: fixture::bulletin().envelope }).collect(),
            scanned_to: 7,
        }),
        Frame::Rosters(proto::Rosters { notes: vec![fixture::roster_1()] }),
        Frame::Fault(proto::Fault { feed: feed().to_string(), reason: text("bad-root"), detail: text("exercise") }),
    ];
    let encoded = frames.into_iter().map(|frame| proto::Frame { frame: Some(frame) }.encode_to_vec());
    encoded.zip(0_u8..).map(|(bytes, number)| [&[number * 11], bytes.as_slice()].concat()).collect()
}
