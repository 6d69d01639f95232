//! Merkle proofs. Each has exactly one encoding, and for an index or a pair of sizes exactly one
//! proof verifies.

use barid_core::feed::tlog_proof::TlogProof;
use barid_core::feed::tree::{
    CompactRange, MemoryTree, consistency_proof, inclusion_proof, root_at, verify_consistency, verify_inclusion,
};
use barid_core::ids::{Digest, Hash};

use super::{choice, golden};
use crate::fixture;

/// Leaves of the tree under test: enough for every shape up to seven levels.
const LEAVES: u8 = 100;

pub fn check(data: &[u8]) {
    let Some((chosen, rest)) = choice(data) else { return };
    match chosen % 4 {
        0 => file(rest),
        1 => inclusion(rest),
        2 => consistency(rest),
        _ => large_sizes(rest),
    }
}

fn file(data: &[u8]) {
    let Ok(proof) = TlogProof::parse(data) else { return };
    assert_eq!(proof.format(), data, "a proof has one encoding");
    let bulletin = fixture::bulletin();
    if proof.verify(&bulletin.digest, &[fixture::feed_key("ma").verifier().clone()]).is_ok() {
        let honest = fixture::proof(&fixture::tree(), fixture::INDEX, fixture::SIZE, &[], 0);
        assert_eq!((proof.index, proof.proof), (honest.index, honest.proof), "the one entry, by the one proof");
    }
}

fn tree(size: u8) -> MemoryTree {
    let mut tree = MemoryTree::new();
    (0..size).for_each(|number| tree.append(&Digest([number; 32])));
    tree
}

fn inclusion(data: &[u8]) {
    let [size, index, claimed, rest @ ..] = data else { return };
    let size = size % LEAVES + 1;
    let (index, claimed) = (index % size, claimed % size);
    let tree = tree(size);
    let honest = inclusion_proof(&tree, index.into(), size.into()).unwrap();
    let proof = mixed(&honest, rest);
    let verified = verify_inclusion(&Digest([index; 32]), claimed.into(), size.into(), &proof, &tree.root());
    assert_eq!(verified.is_ok(), claimed == index && proof == honest);
}

fn consistency(data: &[u8]) {
    let [new, old, rest @ ..] = data else { return };
    let new = new % LEAVES + 1;
    let old = old % (new + 1);
    let tree = tree(new);
    let honest = consistency_proof(&tree, old.into(), new.into()).unwrap();
    let proof = mixed(&honest, rest);
    let root = root_at(&tree, old.into()).unwrap();
    let verified = verify_consistency(old.into(), &root, new.into(), &tree.root(), &proof);
    assert_eq!(verified.is_ok(), proof == honest);
    let other = verify_consistency(old.into(), &Hash([1; 32]), new.into(), &tree.root(), &proof);
    assert!(other.is_err());
}

/// Returns a proof made of honest hashes, selected by the data, and of hashes in the data.
fn mixed(honest: &[Hash], mut data: &[u8]) -> Vec<Hash> {
    let mut proof = Vec::new();
    while let Some((chosen, rest)) = choice(data) {
        data = rest;
        match honest.get(usize::from(chosen)) {
            Some(hash) => proof.push(*hash),
            None => {
                let Some((hash, rest)) = data.split_first_chunk() else { break };
                proof.push(Hash(*hash));
                data = rest;
            }
        }
    }
    proof
}

fn large_sizes(data: &[u8]) {
    let Some((one, rest)) = data.split_first_chunk() else { return };
    let Some((other, rest)) = rest.split_first_chunk() else { return };
    let (one, other) = (u64::from_le_bytes(*one), u64::from_le_bytes(*other));
    let hashes: Vec<Hash> = rest.as_chunks().0.iter().map(|hash| Hash(*hash)).collect();
    let root = Hash([1; 32]);
    assert!(verify_inclusion(&Digest([1; 32]), one, other, &hashes, &root).is_err());
    let consistent = verify_consistency(one, &root, other, &root, &hashes);
    assert_eq!(consistent.is_ok(), one == other && one > 0 && hashes.is_empty());
    if let Ok(compact_range) = CompactRange::from_parts(one, hashes.clone()) {
        assert_eq!((compact_range.size(), compact_range.hashes()), (one, hashes.as_slice()));
        let _ = compact_range.root();
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![[&[0], golden("bulletin.tlog-proof").as_slice()].concat()];
    for (size, index) in [(1, 0), (2, 1), (7, 3), (64, 63), (99, 70)] {
        seeds.push(vec![1, size - 1, index, index, 0, 1, 2, 3, 4, 5, 6][..].to_vec());
        seeds.push(vec![2, size - 1, index, 0, 1, 2, 3, 4, 5, 6, 7][..].to_vec());
    }
    seeds.push([&[3][..], &5_u64.to_le_bytes(), &u64::MAX.to_le_bytes(), &[1; 96]].concat());
    seeds.push([&[3][..], &6_u64.to_le_bytes(), &6_u64.to_le_bytes(), &[1; 64]].concat());
    seeds
}
