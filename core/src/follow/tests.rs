#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::bulletin::Priority;
use crate::bulletin::audience::may_read;
use crate::feed::checkpoint::{Checkpoint, sign};
use crate::feed::note::{Algorithm, Note, SigningKey};
use crate::feed::tree::{MemoryTree, inclusion_proof};
use crate::serve::{self, Head, Held};

const EXCHANGE: &str = "rabat.example";
const EVERYBODY: &[&str] = &["ly", "ma", "tn"];

fn member(code: &str) -> Member {
    code.parse().unwrap()
}

fn key(code: &str, role: &str, algorithm: Algorithm) -> SigningKey {
    let name = format!("{code}.{EXCHANGE}/{role}");
    SigningKey::from_seed(&name, algorithm, envelope::digest(name.as_bytes()).0).unwrap()
}

/// Returns a chain whose nth version has these members, all of them full and in customs.
fn chain(versions: &[&[&str]]) -> RosterChain {
    let governor = SigningKey::from_seed("governors.example/one", Algorithm::Ed25519, [1; 32]).unwrap();
    let mut chain: Option<RosterChain> = None;
    for (members, version) in versions.iter().zip(1..) {
        let mut text = format!("format = 1\nexchange = \"{EXCHANGE}\"\nversion = {version}\n");
        if let Some(chain) = &chain {
            text += &format!("previous = \"{}\"\n", chain.newest().text_hash());
        }
        text += "issued = 2025-01-01T00:00:00Z\nreview_by = 2030-01-01T00:00:00Z\nquorum = 1\n";
        text += "working_groups = [\"customs\"]\n[governors]\nthreshold = 1\n";
        text += &format!("keys = [\"{}\"]\n", governor.verifier());
        for code in *members {
            text += &format!(
                "[[members]]\ncode = \"{code}\"\nkind = \"full\"\nnames = {{ ar = \"x\", fr = \"x\", en = \"x\" }}\n\
                 trust_domain = \"{code}.{EXCHANGE}\"\nca_certificates = [\"certificate of {code}\"]\n\
                 working_groups = [\"customs\"]\nkeys = [{{ role = \"feed\", epoch = 1, key = \"{}\" }}, \
                 {{ role = \"mirror\", key = \"{}\" }}, {{ role = \"custody\", key = \"{}\" }}]\n",
                key(code, "feed/1", Algorithm::Ed25519).verifier(),
                key(code, "mirror", Algorithm::CosignatureEd25519).verifier(),
                key(code, "custody", Algorithm::Ed25519).verifier(),
            );
        }
        let note = Note::sign(&text, &governor).unwrap().to_bytes();
        match &mut chain {
            Some(chain) => assert!(chain.extend(&note).unwrap()),
            None => chain = Some(RosterChain::start(&note).unwrap()),
        }
    }
    chain.unwrap()
}

fn header(tlp: &str, releasable_to: &[&str], roster_version: u64) -> proto::Header {
    proto::Header {
        format: 1,
        kind: "seizure-report".into(),
        member: "ma".into(),
        topic: "customs.seizures".into(),
        handling: Some(proto::Handling {
            tlp: tlp.into(),
            releasable_to: releasable_to.iter().map(|&code| code.into()).collect(),
            ..proto::Handling::default()
        }),
        roster_version,
        ..proto::Header::default()
    }
}

fn sealed(header: &proto::Header, n: u8) -> Bytes {
    envelope::encode(header, &proto::Body::default(), [n; 16])
}

/// The feed of `ma`, as held by its own node.
struct Feed {
    tree: MemoryTree,
    envelopes: Vec<Bytes>,
}

impl Feed {
    fn of(envelopes: Vec<Bytes>) -> Self {
        let mut tree = MemoryTree::new();
        envelopes.iter().for_each(|envelope| tree.append(&envelope::digest(envelope)));
        Self { tree, envelopes }
    }

    fn clear(entries: u8) -> Self {
        Self::of((0..entries).map(|n| sealed(&header("TLP:CLEAR", &[], 1), n)).collect())
    }

    fn id() -> FeedId {
        FeedId::new(member("ma"), EXCHANGE.parse().unwrap(), 1)
    }

    fn checkpoint(&self) -> SignedCheckpoint {
        signed(self.tree.size(), self.tree.root())
    }

    /// Returns the entries `first..end` with every envelope, for any reader.
    fn batch(&self, first: usize, end: usize) -> proto::Entries {
        let items = self.envelopes[first..end].iter().map(|envelope| item(envelope.clone())).collect();
        let head = Head { size: self.tree.size(), checkpoint_size: self.tree.size(), consistency_proof: &[] };
        let proof = serve::plan_batch(&head, end as u64, &self.tree).unwrap().unwrap();
        serve::message(&Self::id(), first as u64, items, self.checkpoint().note, &proof)
    }
}

fn item(envelope: Bytes) -> proto::Item {
    proto::Item { item: Some(Item::Envelope(envelope)) }
}

fn run(digests: &[Digest], reason: &str) -> proto::Item {
    let digests = digests.iter().flat_map(|digest| digest.0).collect::<Vec<u8>>().into();
    proto::Item { item: Some(Item::Digests(proto::DigestRun { digests, reason: reason.into() })) }
}

fn signed(size: u64, root: Hash) -> SignedCheckpoint {
    let checkpoint = Checkpoint { feed: Feed::id(), size, root };
    sign(&checkpoint, &[key("ma", "feed/1", Algorithm::Ed25519)]).unwrap()
}

fn start() -> FollowState {
    FollowState::new(Feed::id(), CompactRange::new())
}

fn verify(message: &proto::Entries) -> Result<VerifiedBatch, Fault> {
    verify_entries(&start(), message, &chain(&[EVERYBODY]), &member("ly"))
}

fn rejected(message: &proto::Entries) -> &'static str {
    verify(message).unwrap_err().kind.as_str()
}

/// Returns the findings of the first entry, and whether its content is stored.
fn found(envelope: Bytes, rosters: &RosterChain, me: &str) -> (Vec<&'static str>, bool) {
    let message = Feed::of(vec![envelope]).batch(0, 1);
    let batch = verify_entries(&start(), &message, rosters, &member(me)).unwrap();
    assert_eq!(batch.compact_range.size(), 1, "it is appended whatever its content");
    let codes = batch.findings.iter().map(|finding| finding.kind.as_str()).collect();
    (codes, matches!(batch.entries[0].content, VerifiedContent::Disclosed { .. }))
}

#[test]
fn live_batch_ends_at_its_checkpoint() {
    let feed = Feed::clear(5);
    let batch = verify(&feed.batch(0, 5)).unwrap();
    assert_eq!((batch.first, batch.entries.len(), batch.compact_range.root()), (0, 5, feed.tree.root()));
    assert!(batch.findings.is_empty() && batch.consistency_proof.is_empty());
    assert_eq!(batch.envelope_bytes(), feed.envelopes.iter().map(Bytes::len).sum::<usize>());
}

#[test]
fn catch_up_verifies_batch_by_batch_to_one_checkpoint() {
    let (feed, rosters, mut state) = (Feed::clear(23), chain(&[EVERYBODY]), start());
    for (first, end) in [(0, 7), (7, 8), (8, 20), (20, 23)] {
        let batch = verify_entries(&state, &feed.batch(first, end), &rosters, &member("ly")).unwrap();
        state.advance(&batch);
    }
    assert_eq!(state.compact_range.root(), feed.tree.root());
}

#[test]
fn repeated_or_later_batch_is_rejected() {
    let feed = Feed::clear(9);
    let mut state = start();
    assert_eq!(rejected(&feed.batch(3, 9)), "gap");
    let rosters = chain(&[EVERYBODY]);
    let batch = feed.batch(0, 4);
    state.advance(&verify_entries(&state, &batch, &rosters, &member("ly")).unwrap());
    assert_eq!(verify_entries(&state, &batch, &rosters, &member("ly")).unwrap_err().kind, FaultKind::Gap);
}

#[test]
fn reordered_truncated_duplicated_and_altered_batches_are_rejected_whole() {
    let feed = Feed::clear(6);
    let mut reordered = feed.batch(0, 6);
    reordered.items.swap(1, 2);
    assert_eq!(rejected(&reordered), "bad-root");
    let mut truncated = feed.batch(0, 6);
    truncated.items.pop();
    assert_eq!(rejected(&truncated), "bad-proof");
    let mut duplicated = feed.batch(0, 6);
    duplicated.items[5] = duplicated.items[4].clone();
    assert_eq!(rejected(&duplicated), "bad-root");
    let mut longer = feed.batch(0, 6);
    longer.items.push(longer.items[5].clone());
    assert_eq!(rejected(&longer), "bad-bounds");
    let mut altered = feed.batch(0, 6);
    altered.items[3] = run(&[Digest([9; 32])], "withheld");
    assert_eq!(rejected(&altered), "bad-root");
}

#[test]
fn wrong_signatures_proofs_and_forms_have_their_fault_codes() {
    let feed = Feed::clear(6);
    let with = |change: &dyn Fn(&mut proto::Entries)| {
        let mut message = feed.batch(0, 4);
        change(&mut message);
        rejected(&message)
    };
    let other = SigningKey::from_seed(&Feed::id().to_string(), Algorithm::Ed25519, [7; 32]).unwrap();
    let theirs = sign(&feed.checkpoint().checkpoint, &[other]).unwrap().note;
    assert_eq!(with(&|message| message.checkpoint = theirs.clone()), "bad-signature");
    assert_eq!(with(&|message| message.checkpoint = Bytes::from_static(b"not a note")), "malformed");
    assert_eq!(with(&|message| message.consistency_proof.clear()), "bad-proof");
    assert_eq!(with(&|message| message.consistency_proof[0] = Bytes::from_static(&[0; 32])), "bad-proof");
    assert_eq!(with(&|message| message.consistency_proof[0] = Bytes::from_static(&[0; 31])), "malformed");
    assert_eq!(with(&|message| message.consistency_proof = vec![Bytes::from_static(&[0; 32]); 65]), "bad-bounds");
    assert_eq!(with(&|message| message.items[0].item = None), "malformed");
    assert_eq!(with(&|message| message.items[0] = run(&[], "withheld")), "malformed");
    assert_eq!(with(&|message| message.feed = "ly.rabat.example/feed/1".into()), "malformed");
    assert_eq!(with(&|message| message.items.clear()), "malformed");
    let mut live = feed.batch(0, 6);
    live.consistency_proof.push(Bytes::from_static(&[0; 32]));
    assert_eq!(rejected(&live), "bad-proof");
}

#[test]
fn feed_without_keys_in_roster_is_bad_signature() {
    let message = Feed::clear(1).batch(0, 1);
    let fault = verify_entries(&start(), &message, &chain(&[&["ly", "tn"]]), &member("ly")).unwrap_err();
    assert_eq!(fault.kind, FaultKind::BadSignature);
}

#[test]
fn oversized_batch_is_rejected_and_one_entry_always_fits() {
    let mut many = Feed::clear(1).batch(0, 1);
    many.items = vec![run(&[Digest([0; 32]); BATCH_ENTRIES_MAX], "withheld"), run(&[Digest([0; 32])], "withheld")];
    assert_eq!(rejected(&many), "bad-bounds");
    let large = Bytes::from(vec![0; BATCH_BYTES_MAX + 1]);
    many.items = vec![item(large.clone()), item(Bytes::new())];
    assert_eq!(rejected(&many), "bad-bounds");
    assert_eq!(found(large, &chain(&[EVERYBODY]), "ly"), (vec!["too-large"], false));
}

#[test]
fn entry_content_never_stops_a_feed() {
    let rosters = chain(&[EVERYBODY]);
    let clear = |change: &dyn Fn(&mut proto::Header)| {
        let mut header = header("TLP:CLEAR", &[], 1);
        change(&mut header);
        found(sealed(&header, 0), &rosters, "ly")
    };
    assert_eq!(found(Bytes::from_static(b"\xff not an envelope"), &rosters, "ly"), (vec!["undecodable-header"], false));
    assert_eq!(clear(&|header| header.kind = "of-tomorrow".into()), (vec![], true));
    assert_eq!(clear(&|header| header.member = "tn".into()), (vec!["misdirected"], true));
    assert_eq!(clear(&|header| header.format = 2), (vec!["not-understood"], false));
    assert_eq!(
        clear(&|header| header.handling.as_mut().unwrap().tlp = "TLP:BLUE".into()),
        (vec!["not-understood"], false)
    );
    assert_eq!(clear(&|header| header.roster_version = 9), (vec!["newer-roster"], true));
    assert_eq!(clear(&|header| header.roster_version = 0), (vec!["excluded"], false));
    assert_eq!(found(sealed(&header("TLP:RED", &["tn"], 1), 0), &rosters, "ly"), (vec!["excluded"], false));
    assert_eq!(found(sealed(&header("TLP:RED", &["ly"], 1), 0), &rosters, "ly"), (vec![], true));
    assert_eq!(found(sealed(&header("TLP:RED", &[], 1), 0), &rosters, "ly"), (vec!["not-understood"], false));
}

#[test]
fn only_the_owner_may_send_history_to_later_members() {
    let rosters = chain(&[&["ma", "tn"], EVERYBODY]);
    let message = Feed::of(vec![sealed(&header("TLP:GREEN", &[], 1), 0)]).batch(0, 1);
    let disclosed = |state: &FollowState| {
        let batch = verify_entries(state, &message, &rosters, &member("ly")).unwrap();
        matches!(batch.entries[0].content, VerifiedContent::Disclosed { .. })
    };
    assert!(disclosed(&start()));
    assert!(!disclosed(&start().at(member("tn"))));
}

#[test]
fn entry_of_a_newer_roster_is_pending_until_the_roster_is_held() {
    let (old, new) = (chain(&[EVERYBODY]), chain(&[EVERYBODY, EVERYBODY]));
    let newer = header("TLP:CLEAR", &[], 2);
    let message = Feed::of(vec![sealed(&newer, 0)]).batch(0, 1);
    let batch = verify_entries(&start(), &message, &old, &member("ly")).unwrap();
    assert_eq!(batch.entries[0].pending_roster, Some(2));
    let (ma, ly) = (member("ma"), member("ly"));
    assert_eq!(delivery(&ma, Some(&newer), &ly, &old), Delivery::PendingRoster { roster_version: 2 });
    assert_eq!(delivery(&ma, Some(&newer), &ly, &new), Delivery::Everyone);
    assert!(!serve::may_disclose(&newer, &member("tn"), &old));
}

#[test]
fn deliveries_follow_the_label_and_the_owner() {
    let (rosters, ma, ly) = (chain(&[EVERYBODY]), member("ma"), member("ly"));
    let to = |header: &proto::Header| delivery(&ma, Some(header), &ly, &rosters);
    assert_eq!(to(&header("TLP:AMBER", &[], 1)), Delivery::Everyone);
    assert_eq!(to(&header("TLP:AMBER+STRICT", &[], 1)), Delivery::FocalPoints);
    assert_eq!(to(&header("TLP:RED", &["ly"], 1)), Delivery::FocalPoints);
    assert_eq!(to(&header("TLP:RED", &["tn"], 1)), Delivery::Never(NeverDelivered::Excluded));
    assert_eq!(to(&header("TLP:MAUVE", &[], 1)), Delivery::Never(NeverDelivered::NotUnderstood));
    let misdirected = proto::Header { member: "tn".into(), ..header("TLP:CLEAR", &[], 1) };
    assert_eq!(to(&misdirected), Delivery::Never(NeverDelivered::Misdirected));
    assert_eq!(delivery(&ma, None, &ly, &rosters), Delivery::Never(NeverDelivered::Undecodable));
    assert!(Delivery::FocalPoints.to_focal_points() && !Delivery::FocalPoints.to_agencies());
}

#[test]
fn equivocation_is_distinguished_from_a_dishonest_sender() {
    let (ours, theirs) =
        (Feed::clear(6), Feed::of((10..18).map(|n| sealed(&header("TLP:CLEAR", &[], 1), n)).collect()));
    let rosters = chain(&[EVERYBODY]);
    let same_size = signed(6, theirs.tree.root());
    assert!(Equivocation::between(&ours.checkpoint(), &same_size).is_some());
    assert!(Equivocation::between(&ours.checkpoint(), &ours.checkpoint()).is_none());

    // The known checkpoint has size 6. The batches come from another tree of size 8, proven by its
    // own checkpoint.
    let state = FollowState { newest: Some(ours.checkpoint()), ..start() };
    let fault = verify_entries(&state, &theirs.batch(0, 6), &rosters, &member("ly")).unwrap_err();
    let FaultKind::Equivocation(evidence) = fault.kind else { panic!("{fault}") };
    assert_eq!((evidence.smaller.checkpoint.size, evidence.larger.checkpoint.size), (6, 8));
    assert!(
        Equivocation::by_proof(&evidence.smaller, &evidence.larger, &evidence.other_root, &evidence.proof).is_some()
    );
    assert!(Equivocation::by_proof(&evidence.smaller, &evidence.larger, &Hash([0; 32]), &evidence.proof).is_none());
    // A report names the size of each root, so that operators can compare them.
    let (smaller, larger, other) =
        (evidence.smaller.checkpoint.root, evidence.larger.checkpoint.root, evidence.other_root);
    let reported = format!(
        "ma.rabat.example/feed/1 has forked: at size 6 its checkpoint has root {smaller}, and the checkpoint of size 8 \
         (with root {larger}) commits to root {other} at size 6"
    );
    assert_eq!(evidence.to_string(), reported);
    assert_eq!(
        verify_entries(&state, &theirs.batch(0, 8), &rosters, &member("ly")).unwrap_err().kind,
        FaultKind::BadRoot
    );
}

#[test]
fn items_disclose_readable_requested_entries() {
    let rosters = chain(&[EVERYBODY, &["ly", "ma"]]);
    let other_topic = proto::Header { topic: "customs.patrols".into(), ..header("TLP:GREEN", &[], 1) };
    let secret = proto::Header { topic: "customs.patrols".into(), ..header("TLP:RED", &["tn"], 1) };
    let headers = [header("TLP:GREEN", &[], 1), other_topic, secret, header("TLP:RED", &["tn"], 1)];
    let envelopes: Vec<Bytes> = headers.iter().map(|header| sealed(header, 0)).collect();
    let held = headers
        .iter()
        .zip(&envelopes)
        .map(|(header, envelope)| (envelope::digest(envelope), Held::Disclosed { envelope, header: Some(header) }));
    let digest = |reason| (Digest([3; 32]), Held::Undisclosed(reason));
    let held: Vec<_> = held
        .chain([digest(Undisclosed::Excluded), digest(Undisclosed::Withheld), digest(Undisclosed::Purged)])
        .chain([(Digest([4; 32]), Held::Disclosed { envelope: &envelopes[0], header: None })])
        .collect();
    let items_for = |reader: &str, filters: &[crate::bulletin::TopicFilter]| -> Vec<(String, usize)> {
        let name = |item: proto::Item| match item.item {
            Some(Item::Envelope(envelope)) => {
                assert!(envelopes.iter().any(|ours| ours.as_ptr() == envelope.as_ptr()), "shared, not copied");
                ("envelope".into(), 1)
            }
            Some(Item::Digests(run)) => (run.reason, run.digests.len() / 32),
            None => panic!(),
        };
        serve::items(held.iter().copied(), &member(reader), filters, &rosters).into_iter().map(name).collect()
    };
    let rest = [("not_held", 2), ("purged", 1), ("withheld", 1)];
    let expect = |begin: &[(&str, usize)]| -> Vec<(String, usize)> {
        begin.iter().chain(&rest).map(|(reason, count)| ((*reason).to_owned(), *count)).collect()
    };
    assert_eq!(items_for("ly", &[]), expect(&[("envelope", 1), ("envelope", 1), ("withheld", 2)]));
    // The withheld entry has a topic that the reader does not follow. The reason must not reveal
    // that.
    let filter = ["customs.seizures".parse().unwrap()];
    assert_eq!(items_for("ly", &filter), expect(&[("envelope", 1), ("unfollowed", 1), ("withheld", 2)]));
    // Expelled by the newest roster.
    assert_eq!(items_for("tn", &[]), expect(&[("withheld", 4)]));
}

#[test]
fn batch_len_is_bounded_by_bytes_and_entries() {
    assert_eq!(serve::batch_len([]), 0);
    assert_eq!(serve::batch_len(vec![0; 3_000]), BATCH_ENTRIES_MAX);
    assert_eq!(serve::batch_len([BATCH_BYTES_MAX + 1, 1]), 1);
    assert_eq!(serve::batch_len([BATCH_BYTES_MAX - 1, 1, 1]), 2);
}

#[test]
fn partial_catch_up_is_served_up_to_its_end() {
    let feed = Feed::clear(9);
    let proof = [Hash([1; 32])];
    let half = Head { size: 5, checkpoint_size: 9, consistency_proof: &proof };
    assert_eq!(serve::plan_batch(&half, 5, &feed.tree).unwrap(), Some(proof.to_vec()));
    assert_eq!(serve::plan_batch(&half, 4, &feed.tree).unwrap(), None, "not a proof");
    let proof = crate::feed::tree::consistency_proof(&feed.tree, 5, 9).unwrap();
    let half = Head { size: 5, checkpoint_size: 9, consistency_proof: &proof };
    let earlier = crate::feed::tree::consistency_proof(&feed.tree, 4, 9).unwrap();
    assert_eq!(serve::plan_batch(&half, 4, &feed.tree).unwrap(), Some(earlier));
    let whole = Head { size: 9, checkpoint_size: 9, consistency_proof: &[] };
    assert_eq!(serve::plan_batch(&whole, 9, &feed.tree).unwrap(), Some(Vec::new()));
    assert!(!serve::plan_batch(&whole, 4, &feed.tree).unwrap().unwrap().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// For every split of a feed into batches, the batches verify, and the reader holds exactly the
    /// content that it may read.
    #[test]
    fn sender_and_receiver_agree(
        labels in prop::collection::vec((0..6_usize, any::<bool>()), 1..40),
        cuts in prop::collection::vec(1..9_usize, 40),
    ) {
        let rosters = chain(&[EVERYBODY]);
        let (ly, codes) = (member("ly"), ["TLP:CLEAR", "TLP:GREEN", "TLP:AMBER", "TLP:AMBER+STRICT", "TLP:RED", "TLP:?"]);
        let headers: Vec<proto::Header> =
            labels.iter().map(|(label, to_ly)| header(codes[*label], if *to_ly { &["ly"] } else { &["tn"] }, 1)).collect();
        let feed = Feed::of(headers.iter().zip(0..).map(|(header, n)| sealed(header, n)).collect());
        let mut state = start();
        let mut disclosed = Vec::new();
        let mut cuts = cuts.into_iter();
        while disclosed.len() < headers.len() {
            let first = disclosed.len();
            let end = (first + cuts.next().unwrap_or(9)).min(headers.len());
            let held = (first..end).map(|n| {
                let envelope = &feed.envelopes[n];
                (envelope::digest(envelope), Held::Disclosed { envelope, header: Some(&headers[n]) })
            });
            let mut message = feed.batch(first, end);
            message.items = serve::items(held, &ly, &[], &rosters);
            let batch = verify_entries(&state, &message, &rosters, &ly).unwrap();
            prop_assert!(batch.findings.is_empty());
            state.advance(&batch);
            disclosed.extend(batch.entries.into_iter().map(|entry| matches!(entry.content, VerifiedContent::Disclosed { .. })));
        }
        prop_assert_eq!(state.compact_range.root(), feed.tree.root());
        let may: Vec<bool> = headers.iter().map(|header| may_read(header, &ly, rosters.newest())).collect();
        prop_assert_eq!(disclosed, may);
    }

    /// One changed byte anywhere in the entries, the checkpoint or the proof makes the batch
    /// invalid, and nothing panics.
    #[test]
    fn batch_with_any_altered_byte_is_rejected(part in 0..3_usize, place in any::<prop::sample::Index>(), flip in 1..=255_u8) {
        let mut message = Feed::clear(7).batch(0, 5);
        let change = |bytes: &mut Bytes| {
            let mut copy = bytes.to_vec();
            let at = place.index(copy.len());
            copy[at] ^= flip;
            *bytes = copy.into();
        };
        match part {
            0 => match &mut message.items[2].item {
                Some(Item::Envelope(envelope)) => change(envelope),
                _ => unreachable!(),
            },
            1 => change(&mut message.checkpoint),
            _ => change(&mut message.consistency_proof[0]),
        }
        prop_assert!(verify(&message).is_err());
    }

    /// Envelopes of any bytes are appended.
    #[test]
    fn any_bytes_are_appended(envelopes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..20)) {
        let feed = Feed::of(envelopes.into_iter().map(Bytes::from).collect());
        let batch = verify(&feed.batch(0, feed.envelopes.len())).unwrap();
        prop_assert_eq!(batch.compact_range.root(), feed.tree.root());
    }
}

fn backfill(index: u64, envelope: &Bytes) -> proto::Backfill {
    proto::Backfill { index, envelope: envelope.clone() }
}

/// Returns the indices that `me` stores of these items, and the findings. `held` lists the entries
/// held as digests, with the reason.
fn backfilled(
    feed_sender: &str,
    items: Vec<proto::Backfill>,
    held: &[(&Bytes, Undisclosed)],
    rosters: &RosterChain,
) -> Result<(Vec<u64>, Vec<&'static str>), &'static str> {
    let missing = (0..).zip(held).map(|(index, (envelope, reason))| (index, (envelope::digest(envelope), *reason)));
    let message = proto::BackfillResponse { feed: Feed::id().to_string(), items, scanned_to: 9 };
    let requested = [0..3, 5..9];
    verify_backfills(
        &Feed::id(),
        &member(feed_sender),
        &message,
        &requested,
        &missing.collect(),
        rosters,
        &member("ly"),
    )
    .map(|backfills| {
        let codes = backfills.findings.iter().map(|finding| finding.kind.as_str()).collect();
        (backfills.entries.iter().map(|entry| entry.index).collect(), codes)
    })
    .map_err(|fault| fault.kind.as_str())
}

#[test]
fn backfilled_content_must_match_digest_and_audience() {
    let rosters = chain(&[EVERYBODY]);
    let ours = sealed(&header("TLP:RED", &["ly"], 1), 0);
    let theirs = sealed(&header("TLP:RED", &["tn"], 1), 1);
    let held = [(&ours, Undisclosed::NotHeld), (&theirs, Undisclosed::NotHeld)];
    let all = || vec![backfill(0, &ours), backfill(1, &theirs)];
    assert_eq!(backfilled("tn", all(), &held, &rosters), Ok((vec![0], vec!["excluded"])));
    // Its content has already arrived from another peer.
    assert_eq!(backfilled("tn", vec![backfill(2, &ours)], &held, &rosters), Ok((vec![], vec![])));
    assert_eq!(backfilled("tn", vec![backfill(0, &theirs)], &held, &rosters), Err("bad-root"));
    assert_eq!(backfilled("tn", vec![backfill(4, &ours)], &held, &rosters), Err("malformed"), "not requested");
    assert_eq!(
        backfilled("tn", vec![backfill(1, &theirs), backfill(0, &ours)], &held, &rosters),
        Err("malformed"),
        "out of order"
    );
    assert_eq!(
        backfilled("tn", vec![backfill(0, &ours), backfill(0, &ours)], &held, &rosters),
        Err("malformed"),
        "twice"
    );
    let many = (0..=BATCH_ENTRIES_MAX as u64).map(|index| backfill(index, &ours)).collect();
    assert_eq!(backfilled("tn", many, &held, &rosters), Err("bad-bounds"));
}

#[test]
fn wrongly_withheld_entry_is_reported() {
    let ours = sealed(&header("TLP:RED", &["ly"], 1), 0);
    let reported = |rosters: &RosterChain| {
        backfilled("ma", vec![backfill(0, &ours)], &[(&ours, Undisclosed::Withheld)], rosters).unwrap()
    };
    assert_eq!(reported(&chain(&[EVERYBODY])), (vec![0], vec!["wrongly-withheld"]));
    // The member was not in the roster for a time, which may have been the reason.
    assert_eq!(reported(&chain(&[EVERYBODY, &["ma", "tn"], EVERYBODY])), (vec![0], vec![]));
    // The member joined later, and the owner passes the entry on by its own choice.
    assert_eq!(reported(&chain(&[&["ma", "tn"], EVERYBODY])), (vec![0], vec![]));
}

#[test]
fn backfill_serves_readable_requested_entries() {
    let rosters = chain(&[&["ma", "tn"], EVERYBODY]);
    let headers = [
        header("TLP:GREEN", &[], 2),
        header("TLP:GREEN", &[], 1),
        header("TLP:RED", &["tn"], 1),
        proto::Header { topic: "customs.patrols".into(), ..header("TLP:GREEN", &[], 2) },
    ];
    let envelopes: Vec<Bytes> = headers.iter().map(|header| sealed(header, 0)).collect();
    let large = Bytes::from(vec![0; ENVELOPE_BYTES_MAX + 1]);
    let served = |filters: &[crate::bulletin::TopicFilter], history| {
        let held = (0..).zip(headers.iter().zip(&envelopes));
        let held = held.map(|(index, (header, envelope))| (index, Held::Disclosed { envelope, header: Some(header) }));
        let rest = [
            (7, Held::Undisclosed(Undisclosed::NotHeld)),
            (8, Held::Disclosed { envelope: &large, header: Some(&headers[0]) }),
            (9, Held::Disclosed { envelope: &large, header: None }),
        ];
        let backfills = serve::backfills(held.chain(rest), &member("ly"), filters, &rosters, history);
        backfills.into_iter().map(|backfill| backfill.index).collect::<Vec<_>>()
    };
    assert_eq!(served(&[], false), [0, 3]);
    assert_eq!(served(&["customs.seizures".parse().unwrap()], false), [0]);
    // Owner's policy: members that joined later may read what the newest roster admits.
    assert_eq!(served(&[], true), [0, 1, 3]);
}

#[test]
fn entry_of_an_unknown_roster_is_sent_as_not_held() {
    let rosters = chain(&[EVERYBODY]);
    let (newer, now) = (header("TLP:CLEAR", &[], 2), header("TLP:RED", &["tn"], 1));
    let envelope = sealed(&newer, 0);
    let held =
        [&newer, &now].map(|header| (Digest([1; 32]), Held::Disclosed { envelope: &envelope, header: Some(header) }));
    let reasons: Vec<String> = serve::items(held, &member("ly"), &[], &rosters)
        .into_iter()
        .map(|item| if let Some(Item::Digests(run)) = item.item { run.reason } else { "envelope".into() })
        .collect();
    assert_eq!(reasons, ["not_held", "withheld"]);
}

fn alert(status: &str) -> proto::Header {
    proto::Header { urgency: "Immediate".into(), status: status.into(), ..header("TLP:AMBER", &[], 1) }
}

fn sent(feed: &Feed, index: u64) -> proto::PriorityEntry {
    let proof = inclusion_proof(&feed.tree, index, feed.tree.size()).unwrap();
    proto::PriorityEntry {
        feed: Feed::id().to_string(),
        index,
        envelope: feed.envelopes[usize::try_from(index).unwrap()].clone(),
        inclusion_proof: proof.iter().map(|hash| Bytes::copy_from_slice(&hash.0)).collect(),
        checkpoint: feed.checkpoint().note,
    }
}

#[test]
fn priority_entry_is_verified_by_its_own_proof() {
    let (rosters, ly) = (chain(&[EVERYBODY]), member("ly"));
    let headers = [alert("Exercise"), header("TLP:CLEAR", &[], 1), alert("Actual")];
    let feed = Feed::of(headers.iter().zip(0..).map(|(header, n)| sealed(header, n)).collect());
    let verify_one = |message: &proto::PriorityEntry, newest: Option<&SignedCheckpoint>| {
        verify_priority(&Feed::id(), &member("ma"), message, newest, &rosters, &ly)
    };
    for (index, expected) in [(0, Some(Priority::Other)), (1, None), (2, Some(Priority::Actual))] {
        let message = sent(&feed, index);
        let verified = verify_one(&message, None).unwrap();
        assert_eq!((verified.index, verified.class), (index, expected));
        assert_eq!(verified.envelope(), expected.map(|_| &message.envelope));
        assert_eq!(verified.entry.digest, envelope::digest(&message.envelope));
    }
    let red = proto::Header { handling: header("TLP:RED", &["tn"], 1).handling, ..alert("Actual") };
    let verified = verify_one(&sent(&Feed::of(vec![sealed(&red, 1)]), 0), None).unwrap();
    assert_eq!(verified.envelope(), None, "not for us");
    assert_eq!(verified.findings, [Finding { index: 0, kind: FindingKind::Excluded }]);

    let with = |change: &dyn Fn(&mut proto::PriorityEntry)| {
        let mut message = sent(&feed, 2);
        change(&mut message);
        verify_one(&message, Some(&feed.checkpoint())).unwrap_err().kind
    };
    assert_eq!(with(&|message| message.index = 1), FaultKind::BadProof);
    assert_eq!(with(&|message| message.index = 3), FaultKind::BadProof);
    assert_eq!(with(&|message| message.index = u64::MAX), FaultKind::BadBounds);
    assert_eq!(with(&|message| message.envelope = feed.envelopes[1].clone()), FaultKind::BadProof);
    assert_eq!(with(&|message| message.envelope.clear()), FaultKind::Malformed);
    assert_eq!(with(&|message| drop(message.inclusion_proof.pop())), FaultKind::BadProof);
    assert_eq!(with(&|message| message.feed = "tn.rabat.example/feed/1".into()), FaultKind::Malformed);
    let forged = Note::sign(&feed.checkpoint().checkpoint.text(), &key("ly", "custody", Algorithm::Ed25519)).unwrap();
    assert_eq!(with(&|message| message.checkpoint = forged.to_bytes().into()), FaultKind::BadSignature);

    // A checkpoint that contradicts a known one is equivocation.
    let other = Feed::of((0..3).map(|n| sealed(&alert("Actual"), n)).collect());
    let fault = verify_one(&sent(&other, 2), Some(&feed.checkpoint())).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Equivocation(_)), "{fault}");
}

#[test]
fn two_entries_at_one_index_prove_equivocation() {
    let (rosters, size) = (chain(&[EVERYBODY]), 5);
    let feeds = [0, 10].map(|from| Feed::of((from..from + size).map(|n| sealed(&alert("Exercise"), n)).collect()));
    let proven = |feed: &Feed, index: u64| ProvenEntry {
        digest: envelope::digest(&feed.envelopes[usize::try_from(index).unwrap()]),
        checkpoint: feed.checkpoint(),
        proof: inclusion_proof(&feed.tree, index, feed.tree.size()).unwrap(),
    };
    let evidence = EntryEquivocation::at(3, proven(&feeds[0], 3), proven(&feeds[1], 3)).unwrap();
    let swapped = EntryEquivocation::at(3, proven(&feeds[1], 3), proven(&feeds[0], 3)).unwrap();
    assert_eq!(evidence, swapped, "one encoding");
    let file = evidence.format();
    assert_eq!(EntryEquivocation::verify(file.as_bytes(), rosters.newest()).unwrap(), evidence);
    assert!(EntryEquivocation::verify(file.replace("index 3", "index 4").as_bytes(), rosters.newest()).is_err());
    assert!(EntryEquivocation::verify(format!("{file}more\n").as_bytes(), rosters.newest()).is_err());
    assert_eq!(EntryEquivocation::at(3, proven(&feeds[0], 3), proven(&feeds[0], 3)), None, "the same one");
    assert_eq!(EntryEquivocation::at(3, proven(&feeds[0], 3), proven(&feeds[1], 2)), None, "of another place");
}
