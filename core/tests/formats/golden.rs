//! Golden files: one file per format, written by the first version with that format. Every later
//! version must still read it. `BARID_WRITE_GOLDEN=1` rewrites them; use it only for a format that
//! has never been released, or for a new format beside the old one.

use std::path::PathBuf;

use barid_core::bulletin::Header;
use barid_core::bulletin::kinds::feed_forked;
use barid_core::envelope;
use barid_core::evidence::{EvidenceParts, Outcome, assemble, verify};
use barid_core::feed::checkpoint::{SignedCheckpoint, sign};
use barid_core::feed::cosignature::{cosign, verify_cosigned, with_cosignatures};
use barid_core::feed::custody::CustodyNote;
use barid_core::feed::note::{Note, SigningKey};
use barid_core::feed::tlog_proof::TlogProof;
use barid_core::feed::tree::{consistency_proof, inclusion_proof, root_at};
use barid_core::follow::{EntryEquivocation, Equivocation, EquivocationEvidence, ProvenEntry};
use barid_core::proto;
use barid_core::roster::RosterChain;
use bytes::Bytes;
use prost::Message as _;

use crate::fixture::*;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// Returns the committed file.
pub(crate) fn read(name: &str) -> Bytes {
    let path = path(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into()
}

/// Returns the committed file after comparing it with the output of this version.
fn golden(name: &str, written: &[u8]) -> Bytes {
    let path = path(name);
    if std::env::var_os("BARID_WRITE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, written).unwrap();
    }
    let read = read(name);
    assert_eq!(read, written, "{name} is encoded differently than before");
    read
}

fn chain() -> RosterChain {
    let mut chain = RosterChain::start(&golden("roster-1.note", &roster_1())).unwrap();
    assert!(chain.extend(&golden("roster-2.note", &roster_2())).unwrap());
    chain
}

#[test]
fn golden_envelope_decodes() {
    let bytes = golden("envelope.bin", &bulletin().envelope);
    let header = envelope::header_of(&bytes).unwrap();
    assert_eq!(Header::try_from(&header).unwrap(), bulletin().header);
    assert_eq!(header.status, "Exercise");
    assert!(envelope::body_of(&bytes).unwrap().content.is_some());
    assert_eq!(envelope::digest(&bytes), bulletin().digest);
}

#[test]
fn golden_checkpoints_and_cosignatures_verify() {
    let signed = checkpoint(&tree(), SIZE);
    let chain = chain();
    let keys = chain.newest().feed_keys(&signed.checkpoint.feed);
    let note = golden("checkpoint.note", &signed.note);
    assert_eq!(SignedCheckpoint::verify(&note, &keys).unwrap(), signed);
    let note = golden("cosigned-checkpoint.note", &cosigned(&signed, &[("tn", 0)], TIME));
    let mirrors = chain.newest().mirror_keys(&member("tn"), &[]);
    assert_eq!(verify_cosigned(&note, &keys, &mirrors).unwrap(), (signed, TIME));
}

/// A feed and a mirror with two keys each: Ed25519 and ML-DSA-44.
#[test]
fn golden_post_quantum_signatures_verify() {
    let head = checkpoint(&tree(), SIZE).checkpoint;
    let log = [feed_key("ma"), post_quantum_feed_key("ma")];
    let signed = sign(&head, &log).unwrap();
    let mirrors = [mirror_key("tn", 0), post_quantum_mirror_key("tn")];
    let lines = mirrors
        .each_ref()
        .map(|key| Note::parse(&cosign(&signed, key, TIME).unwrap()).unwrap().signatures.pop().unwrap());
    let note = golden("post-quantum-checkpoint.note", &with_cosignatures(&signed, &lines));
    let public = |keys: &[SigningKey]| keys.iter().map(|key| key.verifier().clone()).collect::<Vec<_>>();
    assert_eq!(verify_cosigned(&note, &public(&log), &public(&mirrors)).unwrap(), (signed, TIME));
    // One of the feed's two signatures alone is not enough.
    for line in [0, 1] {
        let mut note = Note::parse(&note).unwrap();
        note.signatures.remove(line);
        assert!(verify_cosigned(&note.to_bytes(), &public(&log), &public(&mirrors)).is_err());
    }
}

#[test]
fn golden_custody_notes_and_proofs_verify() {
    let (chain, feed) = (chain(), checkpoint(&tree(), SIZE).checkpoint.feed);
    let note = golden("custody.note", &custody(&tree(), "ly", 7, Some(2)).1);
    let custody = CustodyNote::verify(&note, &chain.newest().custody_keys(&member("ly"), TIME)).unwrap();
    assert!(custody.holds(INDEX) && !custody.holds(2));
    let bytes = golden("bulletin.tlog-proof", &proof(&tree(), INDEX, SIZE, &[("tn", 0)], TIME).format());
    let proof = TlogProof::parse(&bytes).unwrap();
    proof.verify(&bulletin().digest, &chain.newest().feed_keys(&feed)).unwrap();
}

#[test]
fn golden_evidence_verifies() {
    let file = golden("evidence.barid", &assemble(parts()).unwrap());
    assert_eq!(EvidenceParts::read(&file).unwrap(), parts());
    for version in [1, 2] {
        assert_eq!(verify(&file, chain().at(version).unwrap()).outcome, Outcome::Witnessed);
    }
}

/// The bodies of the bulletins that announce an equivocation, for both forms of evidence.
#[test]
fn feed_forked_bulletins_match_golden_files() {
    for (name, body) in [
        ("equivocation-two-sizes.txt", "feed-forked-two-sizes.bin"),
        ("equivocation-two-entries.txt", "feed-forked-two-entries.bin"),
    ] {
        let evidence = EquivocationEvidence::verify(&read(name), chain().newest()).unwrap();
        let draft = feed_forked::draft(&evidence, "information");
        let read = proto::Body::decode(golden(body, &draft.body.clone().unwrap().encode_to_vec())).unwrap();
        assert_eq!(Some(&read), draft.body.as_ref());
        let Some(proto::body::Content::FeedForked(forked)) = read.content else { panic!("{body}: another kind") };
        assert_eq!(EquivocationEvidence::verify(&forked.evidence, chain().newest()).unwrap(), evidence);
        assert_eq!(read.texts.iter().map(|text| text.language.as_str()).collect::<Vec<_>>(), ["ar", "fr", "en"]);
        assert_eq!(forked.other_root.is_empty(), body == "feed-forked-two-entries.bin");
    }
}

/// Two roots at the same size, and a larger tree that commits to another root at a smaller size.
#[test]
fn golden_equivocation_proofs_verify() {
    let chain = chain();
    let (ours, mut other) = (tree(), barid_core::feed::tree::MemoryTree::new());
    (0..SIZE + 3).for_each(|n| other.append(&envelope::digest(format!("EXERCISE other {n}").as_bytes())));
    let pair = |size| {
        let (smaller, larger) = (checkpoint(&ours, SIZE), checkpoint(&other, size));
        let root = root_at(&other, SIZE).unwrap();
        Equivocation::between(&smaller, &larger)
            .or_else(|| {
                Equivocation::by_proof(&smaller, &larger, &root, &consistency_proof(&other, SIZE, size).unwrap())
            })
            .unwrap()
    };
    for (name, size) in [("equivocation-one-size.txt", SIZE), ("equivocation-two-sizes.txt", SIZE + 3)] {
        let file = golden(name, pair(size).format().as_bytes());
        assert_eq!(Equivocation::verify(&file, chain.newest()).unwrap(), pair(size));
        for at in 0..file.len() {
            let mut altered = file.to_vec();
            altered[at] ^= 1;
            assert!(Equivocation::verify(&altered, chain.newest()).is_err(), "{name}: byte {at}");
        }
    }
    // Two entries at one index, under checkpoints of two sizes.
    let entry = |tree: &barid_core::feed::tree::MemoryTree, size, text: &str| ProvenEntry {
        digest: envelope::digest(text.as_bytes()),
        checkpoint: checkpoint(tree, size),
        proof: inclusion_proof(tree, INDEX, size).unwrap(),
    };
    let ours_there = ProvenEntry { digest: bulletin().digest, ..entry(&ours, SIZE, "") };
    let other_there = entry(&other, SIZE + 3, &format!("EXERCISE other {INDEX}"));
    let two = EntryEquivocation::at(INDEX, ours_there, other_there).unwrap();
    let file = golden("equivocation-two-entries.txt", two.format().as_bytes());
    assert_eq!(EntryEquivocation::verify(&file, chain.newest()).unwrap(), two);
    for at in 0..file.len() {
        let mut altered = file.to_vec();
        altered[at] ^= 1;
        assert!(EntryEquivocation::verify(&altered, chain.newest()).is_err(), "byte {at}");
    }
    // A tree that extends another proves nothing.
    let (smaller, larger) = (checkpoint(&other, 5), checkpoint(&other, SIZE));
    let same = root_at(&other, 5).unwrap();
    assert_eq!(Equivocation::by_proof(&smaller, &larger, &same, &consistency_proof(&other, 5, SIZE).unwrap()), None);
}
