//! Derives proofs in the middle of a catch-up.
//!
//! In scope: a holder of the first `size` entries of a feed, and of the proof that a checkpoint of
//! size `new` extends them, can derive the proofs for every smaller size and for every entry it
//! holds. So a node whose own upstream is gone can still serve the part of the feed that it has,
//! from the first entry on. Out of scope: verification (`tree`).

use std::ops::Range;

use super::tree::{HashReader, consistency_ranges, inclusion_ranges, node_hash, range_roots, split_point};
use crate::ids::Hash;

/// Returns the consistency proof from `end` to `new` leaves, given a tree known only up to `size`
/// and the `proof` from `size` to `new`: `0 < end <= size <= new`. `None` if the length of `proof`
/// does not match the sizes.
///
/// # Errors
/// Any error of reading `tree`.
pub fn partial_consistency_proof<R: HashReader>(
    tree: &R,
    end: u64,
    size: u64,
    new: u64,
    proof: &[Hash],
) -> Result<Option<Vec<Hash>>, R::Error> {
    let ranges = consistency_ranges(size, new);
    if ranges.len() != proof.len() || end == 0 || end > size || size > new {
        return Ok(None);
    }
    let partial_tree = PartialTree { tree, size, known_roots: ranges.into_iter().zip(proof).collect() };
    consistency_ranges(end, new).into_iter().map(|range| partial_tree.root(range)).collect()
}

/// Returns the inclusion proof of the record at `index` in a tree of `new` leaves, given a tree
/// known only up to `size` and the `proof` from `size` to `new`: `index < size <= new`. `None` if
/// the length of `proof` does not match the sizes.
///
/// # Errors
/// Any error of reading `tree`.
pub fn partial_inclusion_proof<R: HashReader>(
    tree: &R,
    index: u64,
    size: u64,
    new: u64,
    proof: &[Hash],
) -> Result<Option<Vec<Hash>>, R::Error> {
    let ranges = consistency_ranges(size, new);
    if ranges.len() != proof.len() || index >= size || size > new {
        return Ok(None);
    }
    let partial_tree = PartialTree { tree, size, known_roots: ranges.into_iter().zip(proof).collect() };
    inclusion_ranges(index, new).into_iter().map(|range| partial_tree.root(range)).collect()
}

struct PartialTree<'a, R> {
    tree: &'a R,
    size: u64,
    /// Subtree roots from the proof. They include every subtree beyond `size` that is a sibling on
    /// the path to the right edge at `size`.
    known_roots: Vec<(Range<u64>, &'a Hash)>,
}

impl<R: HashReader> PartialTree<'_, R> {
    fn root(&self, range: Range<u64>) -> Result<Option<Hash>, R::Error> {
        if range.end <= self.size {
            return Ok(range_roots(self.tree, &[range])?.first().copied());
        }
        if range.start >= self.size {
            return Ok(self.known_roots.iter().find(|(known, _)| *known == range).map(|(_, hash)| **hash));
        }
        let split = range.start + split_point(range.end - range.start);
        let (left, right) = (self.root(range.start..split)?, self.root(split..range.end)?);
        Ok(left.zip(right).map(|(left, right)| node_hash(&left, &right)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tree::{MemoryTree, consistency_proof, inclusion_proof, verify_consistency};
    use super::*;
    use crate::ids::Digest;

    #[test]
    fn holder_of_a_prefix_proves_every_smaller_size() {
        let trees: Vec<MemoryTree> = (0..70_u8)
            .map(|size| {
                let mut tree = MemoryTree::new();
                (0..size).for_each(|n| tree.append(&Digest([n; 32])));
                tree
            })
            .collect();
        for (new, whole) in (1_u64..).zip(&trees[1..]) {
            for size in 1..=new {
                let held = &trees[usize::try_from(size).unwrap()];
                let proof = consistency_proof(whole, size, new).unwrap();
                for end in 1..=size {
                    let derived = partial_consistency_proof(held, end, size, new, &proof).unwrap().unwrap();
                    assert_eq!(derived, consistency_proof(whole, end, new).unwrap(), "{end} {size} {new}");
                    let old = trees[usize::try_from(end).unwrap()].root();
                    if end < new {
                        verify_consistency(end, &old, new, &whole.root(), &derived).unwrap();
                    }
                    let included = partial_inclusion_proof(held, end - 1, size, new, &proof).unwrap().unwrap();
                    assert_eq!(included, inclusion_proof(whole, end - 1, new).unwrap(), "{end} {size} {new}");
                }
                assert_eq!(partial_consistency_proof(held, 0, size, new, &proof).unwrap(), None);
                assert_eq!(
                    partial_consistency_proof(held, 1, size, new, &[&proof[..], &[Hash([1; 32])]].concat()).unwrap(),
                    None
                );
            }
        }
    }
}
