//! The Merkle tree of a feed: RFC 6962 section 2.1 over SHA-256. Each record is an entry's 32-byte
//! digest.
//!
//! In scope: hashing, the compact range that an append needs, creating inclusion and consistency
//! proofs from stored subtree hashes, and verifying them (RFC 9162 sections 2.1.3.2 and 2.1.4.2).
//! Out of scope: where hashes are stored, and signatures.
//!
//! A proof by itself does not bind the size of the tree; only a signed checkpoint binds a size to a
//! root. Callers pass size and root from one verified checkpoint.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use crate::ids::{Digest, Hash};
use crate::limits::PROOF_HASHES_MAX;

/// Largest number of leaves in a tree. Sizes in C2SP formats fit in a signed 64-bit number.
pub const TREE_SIZE_MAX: u64 = i64::MAX as u64;

/// A complete subtree, over leaves `[index << level, (index + 1) << level)`. Leaves are level 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    /// Height above the leaves, below 64.
    pub level: u8,
    /// Index among the subtrees of that level, from the left.
    pub index: u64,
}

impl NodeId {
    /// Returns the leaf at `index`.
    #[must_use]
    pub fn leaf(index: u64) -> Self {
        Self { level: 0, index }
    }

    /// Returns the range of leaves below it.
    #[must_use]
    pub fn leaves(self) -> Range<u64> {
        self.index << self.level..(self.index + 1) << self.level
    }
}

/// Returns the hash of a leaf: SHA-256(0x00 ‖ digest).
#[must_use]
pub fn leaf_hash(digest: &Digest) -> Hash {
    let mut bytes = [0; 33];
    bytes[1..].copy_from_slice(&digest.0);
    Hash(Sha256::digest(bytes).into())
}

/// Returns the hash of an inner node: SHA-256(0x01 ‖ left ‖ right).
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut bytes = [1; 65];
    bytes[1..33].copy_from_slice(&left.0);
    bytes[33..].copy_from_slice(&right.0);
    Hash(Sha256::digest(bytes).into())
}

/// Returns the root of the empty tree: SHA-256 of the empty string.
#[must_use]
pub fn empty_root() -> Hash {
    Hash(Sha256::digest([]).into())
}

/// The compact range of a tree: its size and the hashes of its complete subtrees, largest
/// (leftmost) first. Appending and computing the root need nothing else. It holds one hash per bit
/// set in the size.
///
/// # Examples
/// ```
/// use barid_core::envelope::digest;
/// use barid_core::feed::tree::CompactRange;
///
/// let mut range = CompactRange::new();
/// (0..6u8).for_each(|n| range.append(&digest(&[n])));
/// assert_eq!((range.size(), range.hashes().len()), (6, 2));
/// let restored = CompactRange::from_parts(6, range.hashes().to_vec())?;
/// assert_eq!(restored.root(), range.root());
/// # Ok::<(), barid_core::feed::tree::CompactRangeError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompactRange {
    size: u64,
    hashes: Vec<Hash>,
}

/// Parts that do not form a compact range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompactRangeError {
    /// A size beyond [`TREE_SIZE_MAX`].
    #[error("tree size {0} is beyond the largest")]
    Size(u64),
    /// The number of hashes does not match the size.
    #[error("{found} hashes for a tree of {size} leaves, which has {expected} complete subtrees")]
    Count {
        /// The size given.
        size: u64,
        /// Bits set in `size`.
        expected: usize,
        /// Hashes given.
        found: usize,
    },
}

impl CompactRange {
    /// Returns the compact range of the empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a compact range from [`CompactRange::size`] and [`CompactRange::hashes`]. Only the
    /// number of hashes is checked. If the source is not trusted, compare [`CompactRange::root`]
    /// with a signed root.
    pub fn from_parts(size: u64, hashes: Vec<Hash>) -> Result<Self, CompactRangeError> {
        if size > TREE_SIZE_MAX {
            return Err(CompactRangeError::Size(size));
        }
        let expected = size.count_ones() as usize;
        if hashes.len() != expected {
            return Err(CompactRangeError::Count { size, expected, found: hashes.len() });
        }
        Ok(Self { size, hashes })
    }

    /// Returns the number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the hashes of the complete subtrees, largest first.
    #[must_use]
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// Appends one record. Costs one leaf hash and, on average, one node hash.
    pub fn append(&mut self, digest: &Digest) {
        self.append_with(digest, |_, _| ());
    }

    /// Appends one record and calls `completed` for every complete subtree that results, from the
    /// leaf upwards.
    pub fn append_with(&mut self, digest: &Digest, completed: impl FnMut(NodeId, &Hash)) {
        self.append_leaf(leaf_hash(digest), completed);
    }

    fn append_leaf(&mut self, leaf: Hash, mut completed: impl FnMut(NodeId, &Hash)) {
        let mut hash = leaf;
        let mut node = NodeId::leaf(self.size);
        completed(node, &hash);
        // Merge while the new subtree is a right child, like the carry in an addition.
        while node.index & 1 == 1
            && let Some(left) = self.hashes.pop()
        {
            hash = node_hash(&left, &hash);
            node = NodeId { level: node.level + 1, index: node.index >> 1 };
            completed(node, &hash);
        }
        self.hashes.push(hash);
        self.size += 1;
    }

    /// Returns the root of the tree.
    #[must_use]
    pub fn root(&self) -> Hash {
        fold(&self.hashes)
    }
}

/// Combines complete subtrees, largest first, into their common root.
fn fold(hashes: &[Hash]) -> Hash {
    let mut rest = hashes.iter().rev();
    let Some(last) = rest.next() else { return empty_root() };
    rest.fold(*last, |right, left| node_hash(left, &right))
}

/// A source of hashes of complete subtrees.
pub trait HashReader {
    /// Error of a read.
    type Error;

    /// Returns the hashes of `nodes`, in the same number and order. A hash that is not held is an
    /// error.
    fn hashes(&self, nodes: &[NodeId]) -> Result<Vec<Hash>, Self::Error>;
}

impl<R: HashReader + ?Sized> HashReader for &R {
    type Error = R::Error;

    fn hashes(&self, nodes: &[NodeId]) -> Result<Vec<Hash>, Self::Error> {
        (**self).hashes(nodes)
    }
}

/// Returns the proof that the record at `index` is in the tree of `size` leaves: from the leaf's
/// sibling to the root's child (RFC 6962 section 2.1.1). All hashes are read at once. If `index` is
/// not below `size`, no proof exists; the result is empty, and [`verify_inclusion`] rejects it.
pub fn inclusion_proof<R: HashReader>(reader: &R, index: u64, size: u64) -> Result<Vec<Hash>, R::Error> {
    range_roots(reader, &inclusion_ranges(index, size))
}

/// Returns the ranges of leaves whose roots form the inclusion proof of the record at `index` in a
/// tree of `size` leaves, in the proof's order.
pub(super) fn inclusion_ranges(index: u64, size: u64) -> Vec<Range<u64>> {
    let mut siblings = Vec::new();
    let (mut low, mut high) = (0, size);
    while index < size && high - low > 1 {
        let split = low + split_point(high - low);
        if index < split {
            siblings.push(split..high);
            high = split;
        } else {
            siblings.push(low..split);
            low = split;
        }
    }
    siblings.reverse();
    siblings
}

/// Returns the proof that the tree of `new` leaves extends the tree of `old` leaves (RFC 6962
/// section 2.1.2). All hashes are read at once. It is empty if `old` is 0 or equals `new`. If `old`
/// is above `new`, no proof exists; the result is empty, and [`verify_consistency`] rejects it.
pub fn consistency_proof<R: HashReader>(reader: &R, old: u64, new: u64) -> Result<Vec<Hash>, R::Error> {
    range_roots(reader, &consistency_ranges(old, new))
}

/// Returns the ranges of leaves whose roots form the proof that a tree of `new` leaves extends one
/// of `old` leaves, in the proof's order.
pub(super) fn consistency_ranges(old: u64, new: u64) -> Vec<Range<u64>> {
    if old == 0 || old >= new {
        return Vec::new();
    }
    let mut ranges = Vec::new();
    let (mut low, mut high) = (0, new);
    while old < high {
        let split = low + split_point(high - low);
        if old <= split {
            ranges.push(split..high);
            high = split;
        } else {
            ranges.push(low..split);
            low = split;
        }
    }
    // The remaining range is the last complete subtree of the old tree. The verifier knows it
    // already if it is the whole old tree.
    if low > 0 {
        ranges.push(low..high);
    }
    ranges.reverse();
    ranges
}

/// Returns the root of the tree of the first `size` leaves.
pub fn root_at<R: HashReader>(reader: &R, size: u64) -> Result<Hash, R::Error> {
    Ok(fold(&reader.hashes(&complete_subtrees(&(0..size)))?))
}

/// Returns the compact range of the first `size` leaves.
pub fn compact_range_at<R: HashReader>(reader: &R, size: u64) -> Result<CompactRange, R::Error> {
    Ok(CompactRange { size, hashes: reader.hashes(&complete_subtrees(&(0..size)))? })
}

/// Returns the largest power of two below `leaves`, which is 2 or more.
pub(super) fn split_point(leaves: u64) -> u64 {
    1 << (leaves - 1).ilog2()
}

/// Returns the complete subtrees of a range, largest first. The start of the range must be aligned
/// for a subtree of its size.
fn complete_subtrees(range: &Range<u64>) -> Vec<NodeId> {
    let size = range.end - range.start;
    let mut start = range.start;
    let mut nodes = Vec::with_capacity(size.count_ones() as usize);
    for level in (0..64_u8).rev().filter(|level| size >> level & 1 == 1) {
        nodes.push(NodeId { level, index: start >> level });
        start += 1 << level;
    }
    nodes
}

/// Returns the root of each range, with a single read.
pub(super) fn range_roots<R: HashReader>(reader: &R, ranges: &[Range<u64>]) -> Result<Vec<Hash>, R::Error> {
    let nodes: Vec<NodeId> = ranges.iter().flat_map(complete_subtrees).collect();
    if nodes.is_empty() {
        return Ok(Vec::new());
    }
    let hashes = reader.hashes(&nodes)?;
    debug_assert_eq!(hashes.len(), nodes.len(), "the reader returns as many hashes as requested");
    let mut rest = hashes.as_slice();
    let mut roots = Vec::with_capacity(ranges.len());
    for range in ranges {
        let count = ((range.end - range.start).count_ones() as usize).min(rest.len());
        let (these, after) = rest.split_at(count);
        roots.push(fold(these));
        rest = after;
    }
    Ok(roots)
}

/// Why a proof is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The index is not in a tree of that size.
    #[error("index {index} is not in a tree of {size} leaves")]
    Index {
        /// Index claimed.
        index: u64,
        /// Size of the tree.
        size: u64,
    },
    /// The old size is above the new one.
    #[error("a tree of {new} leaves cannot extend one of {old}")]
    Sizes {
        /// The size claimed to be older.
        old: u64,
        /// The size claimed to be newer.
        new: u64,
    },
    /// The number of hashes does not match the sizes.
    #[error("the proof has {0} hashes, which does not fit the sizes")]
    Length(usize),
    /// It leads to another root than the given (new) root.
    #[error("the proof leads to another root")]
    Root,
    /// It leads to another root than the given old root.
    #[error("the proof leads to another root at the old size")]
    OldRoot,
}

/// Verifies that `digest` is the record at `index` in the tree of `size` leaves with this root (RFC
/// 9162 section 2.1.3.2).
pub fn verify_inclusion(digest: &Digest, index: u64, size: u64, proof: &[Hash], root: &Hash) -> Result<(), ProofError> {
    verify_leaf_inclusion(leaf_hash(digest), index, size, proof, root)
}

fn verify_leaf_inclusion(leaf: Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::Index { index, size });
    }
    if proof.len() > PROOF_HASHES_MAX {
        return Err(ProofError::Length(proof.len()));
    }
    let mut climb = Climb { node: index, last: size - 1 };
    let mut hash = leaf;
    for sibling in proof {
        hash = match climb.step() {
            Some(Side::Left) => node_hash(sibling, &hash),
            Some(Side::Right) => node_hash(&hash, sibling),
            None => return Err(ProofError::Length(proof.len())),
        };
    }
    if climb.last != 0 {
        return Err(ProofError::Length(proof.len()));
    }
    if hash == *root { Ok(()) } else { Err(ProofError::Root) }
}

/// Verifies that the tree of `new` leaves with root `new_root` extends the tree of `old` leaves
/// with root `old_root` (RFC 9162 section 2.1.4.2). Every tree extends the empty one, with an empty
/// proof.
pub fn verify_consistency(
    old: u64,
    old_root: &Hash,
    new: u64,
    new_root: &Hash,
    proof: &[Hash],
) -> Result<(), ProofError> {
    if old > new {
        return Err(ProofError::Sizes { old, new });
    }
    let wrong_length = Err(ProofError::Length(proof.len()));
    if old == 0 || old == new {
        return if !proof.is_empty() {
            wrong_length
        } else if old == 0 && *old_root != empty_root() {
            Err(ProofError::OldRoot)
        } else if old == new && old_root != new_root {
            Err(ProofError::Root)
        } else {
            Ok(())
        };
    }
    if proof.len() > PROOF_HASHES_MAX {
        return wrong_length;
    }
    // If the old tree is one complete subtree, the proof starts at its root and omits it.
    let (start, rest) = if old.is_power_of_two() {
        (*old_root, proof)
    } else {
        let Some((first, rest)) = proof.split_first() else { return wrong_length };
        (*first, rest)
    };
    let below = (old - 1).trailing_ones();
    let mut climb = Climb { node: (old - 1) >> below, last: (new - 1) >> below };
    let (mut old_hash, mut new_hash) = (start, start);
    for hash in rest {
        match climb.step() {
            Some(Side::Left) => {
                old_hash = node_hash(hash, &old_hash);
                new_hash = node_hash(hash, &new_hash);
            }
            Some(Side::Right) => new_hash = node_hash(&new_hash, hash),
            None => return wrong_length,
        }
    }
    if climb.last != 0 {
        return wrong_length;
    }
    if old_hash != *old_root {
        return Err(ProofError::OldRoot);
    }
    if new_hash == *new_root { Ok(()) } else { Err(ProofError::Root) }
}

/// The path from a node up to the root of a tree whose last node on the same level is `last`.
struct Climb {
    node: u64,
    last: u64,
}

/// The side of the path on which the next hash of a proof is.
enum Side {
    Left,
    Right,
}

impl Climb {
    /// Moves up past one sibling. Returns `None` at the root.
    fn step(&mut self) -> Option<Side> {
        if self.last == 0 {
            return None;
        }
        let left = self.node & 1 == 1 || self.node == self.last;
        if left {
            // A last node without a right sibling is moved up until it has a left sibling.
            let lone = if self.node == 0 { 0 } else { self.node.trailing_zeros() };
            self.node >>= lone;
            self.last >>= lone;
        }
        self.node >>= 1;
        self.last >>= 1;
        Some(if left { Side::Left } else { Side::Right })
    }
}

/// A tree with all its hashes in memory, for the memory store, the simulator and tests: 64 bytes
/// per record.
///
/// # Examples
/// ```
/// use barid_core::envelope::digest;
/// use barid_core::feed::tree::{MemoryTree, inclusion_proof, verify_inclusion};
///
/// let mut tree = MemoryTree::new();
/// (0..6u8).for_each(|n| tree.append(&digest(&[n])));
/// let proof = inclusion_proof(&tree, 4, 6)?;
/// verify_inclusion(&digest(&[4]), 4, 6, &proof, &tree.root())?;
/// assert!(verify_inclusion(&digest(&[5]), 4, 6, &proof, &tree.root()).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryTree {
    compact_range: CompactRange,
    levels: Vec<Vec<Hash>>,
}

/// The tree does not have this subtree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tree has no complete subtree {} at level {}", .0.index, .0.level)]
pub struct MissingNode(pub NodeId);

impl MemoryTree {
    /// Returns the empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one record.
    pub fn append(&mut self, digest: &Digest) {
        self.append_leaf(leaf_hash(digest));
    }

    fn append_leaf(&mut self, leaf: Hash) {
        let levels = &mut self.levels;
        self.compact_range.append_leaf(leaf, |node, hash| {
            let level = usize::from(node.level);
            if level == levels.len() {
                levels.push(Vec::new());
            }
            levels[level].push(*hash);
        });
    }

    /// Returns the number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.compact_range.size()
    }

    /// Returns the root.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.compact_range.root()
    }

    /// Returns its compact range.
    #[must_use]
    pub fn compact_range(&self) -> &CompactRange {
        &self.compact_range
    }
}

impl HashReader for MemoryTree {
    type Error = MissingNode;

    fn hashes(&self, nodes: &[NodeId]) -> Result<Vec<Hash>, MissingNode> {
        let hash = |node: &NodeId| {
            let level = self.levels.get(usize::from(node.level))?;
            level.get(usize::try_from(node.index).ok()?).copied()
        };
        nodes.iter().map(|node| hash(node).ok_or(MissingNode(*node))).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    /// Leaves and hashes of the reference tree in google/certificate-transparency,
    /// `merkle_tree_test.cc`.
    const LEAVES: [&str; 8] =
        ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
    const EMPTY_ROOT: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const ROOTS: [&str; 8] = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    const INCLUSION: [(u64, u64, &[&str]); 5] = [
        (0, 1, &[]),
        (
            0,
            8,
            &[
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ],
        ),
        (
            5,
            8,
            &[
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ],
        ),
        (2, 3, &["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
        (
            1,
            5,
            &[
                "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            ],
        ),
    ];
    const CONSISTENCY: [(u64, u64, &[&str]); 4] = [
        (1, 1, &[]),
        (
            1,
            8,
            &[
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ],
        ),
        (
            6,
            8,
            &[
                "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ],
        ),
        (
            2,
            5,
            &[
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            ],
        ),
    ];

    fn hash(text: &str) -> Hash {
        Hash(hex::decode(text).unwrap().try_into().unwrap())
    }

    fn proof(texts: &[&str]) -> Vec<Hash> {
        texts.iter().copied().map(hash).collect()
    }

    /// The published leaves have various lengths, but our records have 32 bytes, so they are
    /// appended as leaf hashes.
    fn reference_leaf(index: u64) -> Hash {
        let record = hex::decode(LEAVES[usize::try_from(index).unwrap()]).unwrap();
        Hash(Sha256::new().chain_update([0]).chain_update(record).finalize().into())
    }

    fn reference_tree() -> MemoryTree {
        let mut tree = MemoryTree::new();
        (0..8).for_each(|index| tree.append_leaf(reference_leaf(index)));
        tree
    }

    #[test]
    fn the_reference_tree_has_the_published_roots() {
        let tree = reference_tree();
        assert_eq!(root_at(&tree, 0).unwrap(), hash(EMPTY_ROOT));
        let mut compact_range = CompactRange::new();
        assert_eq!(compact_range.root(), hash(EMPTY_ROOT));
        for (index, root) in (0..).zip(ROOTS) {
            compact_range.append_leaf(reference_leaf(index), |_, _| ());
            assert_eq!(compact_range.root(), hash(root), "root of {} leaves", index + 1);
            assert_eq!(root_at(&tree, index + 1).unwrap(), hash(root));
            assert_eq!(compact_range_at(&tree, index + 1).unwrap(), compact_range);
        }
    }

    #[test]
    fn the_published_inclusion_proofs_are_made_and_verify() {
        let tree = reference_tree();
        for (index, size, texts) in INCLUSION {
            let root = root_at(&tree, size).unwrap();
            assert_eq!(inclusion_proof(&tree, index, size).unwrap(), proof(texts), "{index} in {size}");
            verify_leaf_inclusion(reference_leaf(index), index, size, &proof(texts), &root).unwrap();
        }
    }

    #[test]
    fn the_published_consistency_proofs_are_made_and_verify() {
        let tree = reference_tree();
        for (old, new, texts) in CONSISTENCY {
            assert_eq!(consistency_proof(&tree, old, new).unwrap(), proof(texts), "{old} to {new}");
            let (old_root, new_root) = (root_at(&tree, old).unwrap(), root_at(&tree, new).unwrap());
            verify_consistency(old, &old_root, new, &new_root, &proof(texts)).unwrap();
        }
    }

    #[test]
    fn a_record_is_hashed_as_a_leaf_of_32_bytes() {
        let digest = Digest([7; 32]);
        let expected = Sha256::new().chain_update([0]).chain_update([7; 32]).finalize();
        assert_eq!(leaf_hash(&digest).0.as_slice(), expected.as_slice());
    }

    #[test]
    fn empty_and_equal_trees_are_consistent_by_an_empty_proof_only() {
        let root = reference_tree().root();
        verify_consistency(0, &empty_root(), 8, &root, &[]).unwrap();
        verify_consistency(0, &empty_root(), 0, &empty_root(), &[]).unwrap();
        verify_consistency(8, &root, 8, &root, &[]).unwrap();
        assert_eq!(verify_consistency(0, &root, 8, &root, &[]), Err(ProofError::OldRoot));
        assert_eq!(verify_consistency(0, &empty_root(), 0, &root, &[]), Err(ProofError::Root));
        assert_eq!(verify_consistency(8, &empty_root(), 8, &root, &[]), Err(ProofError::Root));
        assert_eq!(verify_consistency(8, &root, 8, &root, &[root]), Err(ProofError::Length(1)));
        assert_eq!(verify_consistency(0, &empty_root(), 8, &root, &[root]), Err(ProofError::Length(1)));
        assert_eq!(verify_consistency(8, &root, 7, &root, &[]), Err(ProofError::Sizes { old: 8, new: 7 }));
        assert_eq!(verify_consistency(4, &root, 8, &root, &[]), Err(ProofError::Length(0)));
    }

    #[test]
    fn impossible_proof_is_empty_and_rejected() {
        let tree = reference_tree();
        assert!(inclusion_proof(&tree, 8, 8).unwrap().is_empty());
        assert!(consistency_proof(&tree, 8, 3).unwrap().is_empty());
        assert_eq!(
            verify_inclusion(&Digest([0; 32]), 8, 8, &[], &tree.root()),
            Err(ProofError::Index { index: 8, size: 8 })
        );
        assert_eq!(inclusion_proof(&tree, 1, 9), Err(MissingNode(NodeId { level: 0, index: 8 })));
    }

    #[test]
    fn compact_range_parts_must_match_its_size() {
        let compact_range = CompactRange::from_parts(6, vec![hash(ROOTS[0]), hash(ROOTS[1])]).unwrap();
        assert_eq!((compact_range.size(), compact_range.hashes().len()), (6, 2));
        assert!(matches!(
            CompactRange::from_parts(6, vec![]),
            Err(CompactRangeError::Count { expected: 2, found: 0, .. })
        ));
        assert_eq!(CompactRange::from_parts(1 << 63, vec![hash(ROOTS[0])]), Err(CompactRangeError::Size(1 << 63)));
    }

    fn record(index: u64) -> Digest {
        Digest(Sha256::digest(index.to_be_bytes()).into())
    }

    fn tree_of(size: u64) -> MemoryTree {
        let mut tree = MemoryTree::new();
        (0..size).for_each(|index| tree.append(&record(index)));
        tree
    }

    /// The definition of RFC 6962 section 2.1, implemented literally.
    fn defined_root(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => empty_root(),
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
                node_hash(&defined_root(left), &defined_root(right))
            }
        }
    }

    /// Returns the proof with exactly one hash changed, or its length changed, in every way.
    fn alterations(proof: &[Hash]) -> Vec<Vec<Hash>> {
        let mut altered = Vec::new();
        for place in 0..proof.len() {
            let mut flipped = proof.to_vec();
            flipped[place].0[place % 32] ^= 1;
            altered.push(flipped);
            let mut shorter = proof.to_vec();
            shorter.remove(place);
            altered.push(shorter);
        }
        let mut longer = proof.to_vec();
        longer.push(Hash([1; 32]));
        altered.push(longer);
        altered
    }

    #[test]
    fn every_proof_of_every_small_tree_verifies_and_no_altered_one_does() {
        let tree = tree_of(34);
        let roots: Vec<Hash> = (0..=34).map(|size| root_at(&tree, size).unwrap()).collect();
        for (size, root) in (0..=34_u64).zip(&roots) {
            let leaves: Vec<Hash> = (0..size).map(|index| leaf_hash(&record(index))).collect();
            assert_eq!(*root, defined_root(&leaves));
            for index in 0..size {
                let proof = inclusion_proof(&tree, index, size).unwrap();
                verify_inclusion(&record(index), index, size, &proof, root).unwrap();
                assert!(verify_inclusion(&record(index + 1), index, size, &proof, root).is_err());
                for other in (0..=34).filter(|other| *other != index) {
                    assert!(verify_inclusion(&record(index), other, size, &proof, root).is_err());
                }
                for (other, other_root) in (0..=34).zip(&roots).filter(|(other, _)| *other != size) {
                    assert!(verify_inclusion(&record(index), index, other, &proof, other_root).is_err());
                }
                for altered in alterations(&proof) {
                    assert!(verify_inclusion(&record(index), index, size, &altered, root).is_err());
                }
            }
            for (old, old_root) in (0..=size).zip(&roots) {
                let proof = consistency_proof(&tree, old, size).unwrap();
                verify_consistency(old, old_root, size, root, &proof).unwrap();
                for altered in alterations(&proof) {
                    assert!(verify_consistency(old, old_root, size, root, &altered).is_err());
                }
                if old > 0 {
                    assert!(verify_consistency(old, &Hash([9; 32]), size, root, &proof).is_err());
                    assert!(verify_consistency(old, old_root, size, &Hash([9; 32]), &proof).is_err());
                }
            }
        }
    }

    proptest! {
        #[test]
        fn proofs_of_larger_trees_verify(size in 1_u64..700, first in any::<u64>(), second in any::<u64>()) {
            let tree = tree_of(size);
            let (index, old) = (first % size, second % (size + 1));
            let root = tree.root();
            let proof = inclusion_proof(&tree, index, size).unwrap();
            prop_assert_eq!(verify_inclusion(&record(index), index, size, &proof, &root), Ok(()));
            let old_root = root_at(&tree, old).unwrap();
            let proof = consistency_proof(&tree, old, size).unwrap();
            prop_assert_eq!(verify_consistency(old, &old_root, size, &root, &proof), Ok(()));
            let compact_range = compact_range_at(&tree, old).unwrap();
            let mut rebuilt = CompactRange::from_parts(compact_range.size(), compact_range.hashes().to_vec()).unwrap();
            (old..size).for_each(|index| rebuilt.append(&record(index)));
            prop_assert_eq!(&rebuilt, tree.compact_range());
        }

        #[test]
        fn any_input_is_verified_without_panic(
            numbers in any::<[u64; 2]>(),
            hashes in prop::collection::vec(any::<[u8; 32]>(), 0..70),
        ) {
            let hashes: Vec<Hash> = hashes.into_iter().map(Hash).collect();
            let [one, two] = numbers;
            prop_assert!(verify_inclusion(&Digest([0; 32]), one, two, &hashes, &Hash([1; 32])).is_err());
            prop_assert!(verify_consistency(one, &Hash([1; 32]), two, &Hash([2; 32]), &hashes).is_err());
        }
    }
}
