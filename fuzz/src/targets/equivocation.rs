//! Evidence of an equivocation, in both forms. Valid evidence has exactly one encoding, and without
//! the feed's key nobody can make evidence of anything else.

use barid_core::bulletin::kinds::feed_forked;
use barid_core::bulletin::{DraftDefaults, prepare};
use barid_core::feed::checkpoint::SignedCheckpoint;
use barid_core::feed::tree::{MemoryTree, consistency_proof, inclusion_proof, root_at};
use barid_core::follow::{
    EntryEquivocation, Equivocation, EquivocationClaims, EquivocationEvidence, ProvenEntry, ResolvedForks,
};
use barid_core::ids::{Digest, Hash};

use super::{chain, choice, golden};
use crate::fixture;

const FILES: [&str; 3] = ["equivocation-one-size.txt", "equivocation-two-sizes.txt", "equivocation-two-entries.txt"];

pub fn check(data: &[u8]) {
    let Some((chosen, rest)) = choice(data) else { return };
    match chosen % 4 {
        0 => file(rest),
        1 => lines(rest),
        2 => entries(rest),
        _ => trees(rest),
    }
}

/// Checks the bytes as a file.
fn file(file: &[u8]) {
    let claims = EquivocationClaims::read(file);
    let Ok(evidence) = EquivocationEvidence::verify(file, chain().newest()) else { return };
    assert_eq!(evidence.format().as_bytes(), file, "evidence has one encoding");
    assert_eq!(claims.as_ref(), Ok(&evidence.claims()), "the proof matches the claims");
    check_announcement(&evidence);
    // Only the key of the fixture's feed has signed, and only these checkpoints.
    let honest = FILES.map(|name| EquivocationEvidence::verify(&golden(name), chain().newest()).unwrap());
    let signed: Vec<_> = honest.iter().flat_map(|honest| honest.claims().checkpoints().map(Clone::clone)).collect();
    assert!(
        evidence.claims().checkpoints().into_iter().all(|checkpoint| signed.contains(checkpoint)),
        "no other tree was signed"
    );
    let mut decided = ResolvedForks::default();
    decided.add_evidence(&evidence.claims());
    assert!(evidence.claims().checkpoints().into_iter().all(|tree| decided.covers_tree(tree.size, &tree.root)));
}

/// Checks a file of lines of the committed files, selected and mixed by the data.
fn lines(data: &[u8]) {
    let files = FILES.map(|name| String::from_utf8(golden(name)).unwrap());
    let lines: Vec<&str> = files.iter().flat_map(|file| file.lines()).collect();
    let chosen = data.iter().map(|byte| lines[usize::from(*byte) % lines.len()]);
    let made: String = chosen.flat_map(|line| [line, "\n"]).collect();
    file(made.as_bytes());
}

/// Checks evidence from signed trees that differ in one entry only: exactly this index is proven.
fn entries(data: &[u8]) {
    let [size, larger, at, claimed, rest @ ..] = data else { return };
    let (size, larger) = (u64::from(size % 40) + 1, u64::from(larger % 40) + 1);
    let (at, claimed) = (u64::from(*at) % size.min(larger), u64::from(*claimed));
    let trees = [tree(size, None), tree(larger, Some(at))];
    let entry = |(tree, differs): (&MemoryTree, bool), index: u64, rest: &[u8]| ProvenEntry {
        digest: leaf(index, differs),
        checkpoint: fixture::checkpoint(tree, tree.size()),
        proof: altered(inclusion_proof(tree, index.min(tree.size() - 1), tree.size()).unwrap(), rest),
    };
    let made = EntryEquivocation::at(
        claimed,
        entry((&trees[0], false), claimed, &[]),
        entry((&trees[1], claimed == at), claimed, rest),
    );
    let Some(made) = made else {
        assert!(claimed != at || !rest.is_empty(), "two entries at one index are an equivocation");
        return;
    };
    assert_eq!(claimed, at, "the other claims are equal");
    let evidence = EquivocationEvidence::from(made);
    assert_eq!(EquivocationEvidence::verify(evidence.format().as_bytes(), chain().newest()).as_ref(), Ok(&evidence));
    check_announcement(&evidence);
}

/// Checks evidence of two whole trees from the same signed trees.
fn trees(data: &[u8]) {
    let [size, larger, at, rest @ ..] = data else { return };
    let (size, larger) = (u64::from(size % 40) + 1, u64::from(larger % 40) + 1);
    let (size, larger) = (size.min(larger), size.max(larger));
    let at = u64::from(*at) % larger;
    let (ours, other) = (tree(size, None), tree(larger, Some(at)));
    let signed: [SignedCheckpoint; 2] =
        [(&ours, size), (&other, larger)].map(|(tree, size)| fixture::checkpoint(tree, size));
    let root = root_at(&other, size).unwrap();
    let proof = altered(consistency_proof(&other, size, larger).unwrap(), rest);
    let made = Equivocation::between(&signed[0], &signed[1])
        .or_else(|| Equivocation::by_proof(&signed[0], &signed[1], &root, &proof));
    let Some(made) = made else {
        assert!(at >= size || !rest.is_empty(), "two conflicting trees are an equivocation");
        return;
    };
    assert!(at < size, "one extends the other");
    let evidence = EquivocationEvidence::from(made);
    assert_eq!(EquivocationEvidence::verify(evidence.format().as_bytes(), chain().newest()).as_ref(), Ok(&evidence));
    check_announcement(&evidence);
}

/// Checks that valid evidence can be announced: its bulletin is valid.
fn check_announcement(evidence: &EquivocationEvidence) {
    let draft = feed_forked::draft(evidence, "information");
    let defaults = DraftDefaults {
        member: fixture::member("ly"),
        issuer: "node".to_owned(),
        id: feed_forked::id(evidence.format().as_bytes()),
        sent_at_unix_ms: fixture::NOW_MS,
        roster_version: 1,
    };
    prepare(&draft, &defaults, [0; barid_core::envelope::SALT_BYTES]).expect("proven evidence can be announced");
}

fn leaf(index: u64, other: bool) -> Digest {
    let mut digest = [u8::from(other); 32];
    digest[..8].copy_from_slice(&index.to_le_bytes());
    Digest(digest)
}

/// Returns a tree with a different entry at index `other`.
fn tree(size: u64, other: Option<u64>) -> MemoryTree {
    let mut tree = MemoryTree::new();
    (0..size).for_each(|index| tree.append(&leaf(index, other == Some(index))));
    tree
}

/// Returns a proof with one hash changed, removed or added, as the data selects; without data it is
/// unchanged.
fn altered(mut proof: Vec<Hash>, data: &[u8]) -> Vec<Hash> {
    let [how, at, ..] = data else { return proof };
    let at = usize::from(*at) % (proof.len() + 1);
    match how % 3 {
        0 if at < proof.len() => proof[at].0[usize::from(*how) % 32] ^= 1,
        1 if at < proof.len() => drop(proof.remove(at)),
        _ => proof.insert(at, Hash([*how; 32])),
    }
    proof
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = FILES.map(|name| [&[0], golden(name).as_slice()].concat()).to_vec();
    let lines = FILES.map(|name| golden(name).iter().filter(|byte| **byte == b'\n').count());
    let mut first = 0;
    for count in lines {
        seeds.push(
            [1].into_iter().chain((first..first + count).map(|line| u8::try_from(line).unwrap_or_default())).collect(),
        );
        first += count;
    }
    for (size, larger, at) in [(0, 0, 0), (9, 12, 4), (7, 7, 3), (12, 9, 8), (38, 30, 1)] {
        seeds.push(vec![2, size, larger, at, at]);
        seeds.push(vec![2, size, larger, at, at + 1]);
        seeds.push(vec![2, size, larger, at, at, 1, 1]);
        seeds.push(vec![3, size, larger, at]);
        seeds.push(vec![3, size, larger, at, 0, 1]);
    }
    seeds
}
