//! Tiles of Merkle trees, as in C2SP tlog-tiles. A tile holds 256 neighbouring hashes of one level,
//! and the nodes between that level and the next level of tiles.
//!
//! In scope: the tile of a subtree, the partial tiles at a tree's right edge, and a bounded cache
//! of full ones. Out of scope: where full tiles are stored.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use barid_core::feed::tree::{CompactRange, NodeId, node_hash};
use barid_core::ids::{Digest, Hash};
use lru::LruCache;

/// Levels of the tree in one tile.
const TILE_LEVELS: u8 = 8;
/// Hashes in the lowest row of a full tile.
pub(super) const TILE_HASHES: usize = 1 << TILE_LEVELS;
/// Full tiles cached in memory: 16 KiB each, so 8 MiB. Enough for the neighbourhoods of the newest
/// commits of many feeds.
const CACHED_TILES_MAX: NonZeroUsize = NonZeroUsize::new(512).expect("512 is not zero");

/// Identifies a tile in one tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct TileId {
    /// Level of tiles; the lowest row consists of subtrees of `256^level` leaves.
    pub(super) level: u8,
    /// Index among the tiles of that level.
    pub(super) index: u64,
}

impl TileId {
    /// Returns the tile that contains `node`, and the node's row and place in it.
    pub(super) fn of(node: NodeId) -> (Self, usize, usize) {
        let row = node.level % TILE_LEVELS;
        let index = node.index >> (TILE_LEVELS - row);
        let place = node.index & ((TILE_HASHES as u64 >> row) - 1);
        (Self { level: node.level / TILE_LEVELS, index }, usize::from(row), usize::try_from(place).unwrap_or(0))
    }
}

/// A tile, full or partial. Row 0 contains its hashes, each further row the nodes above. Its root
/// is in row 0 of the next level.
#[derive(Clone, Debug, Default)]
pub(super) struct Tile {
    rows: [Vec<Hash>; TILE_LEVELS as usize],
}

impl Tile {
    /// Builds a tile from the hashes of row 0.
    pub(super) fn new(hashes: Vec<Hash>) -> Self {
        let mut tile = Self { rows: Default::default() };
        tile.rows[0] = hashes;
        for row in 1..tile.rows.len() {
            let above = tile.rows[row - 1].chunks_exact(2).map(|pair| node_hash(&pair[0], &pair[1])).collect();
            tile.rows[row] = above;
        }
        tile
    }

    /// Decodes the bytes of [`Tile::to_bytes`]; `None` if they are not a full tile.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (hashes, []) = bytes.as_chunks::<32>() else { return None };
        (hashes.len() == TILE_HASHES).then(|| Self::new(hashes.iter().map(|hash| Hash(*hash)).collect()))
    }

    /// Returns row 0.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.rows[0].iter().flat_map(|hash| hash.0).collect()
    }

    /// Returns the hash at `place` of `row`.
    pub(super) fn get(&self, row: usize, place: usize) -> Option<Hash> {
        self.rows.get(row)?.get(place).copied()
    }

    /// Returns the root; `None` if the tile is not full.
    pub(super) fn root(&self) -> Option<Hash> {
        match self.rows[7].as_slice() {
            [left, right] => Some(node_hash(left, right)),
            _ => None,
        }
    }
}

/// The right edge of one tree: its compact range for appending, and its partial tiles, lowest level
/// first.
#[derive(Clone, Debug, Default)]
pub(super) struct TiledTree {
    compact_range: CompactRange,
    partial: Vec<Tile>,
}

impl TiledTree {
    /// Rebuilds the right edge from the row-0 hashes of the partial tile of each level, lowest
    /// first. Returns `None` if they do not fit `size`.
    pub(super) fn rebuild(size: u64, rows: Vec<Vec<Hash>>) -> Option<Self> {
        let partial: Vec<Tile> = rows.into_iter().map(Tile::new).collect();
        let mut hashes = Vec::new();
        for level in (0..63u8).rev().filter(|level| size >> level & 1 == 1) {
            let (tile, row, place) = TileId::of(NodeId { level, index: (size >> level) - 1 });
            hashes.push(partial.get(usize::from(tile.level))?.get(row, place)?);
        }
        Some(Self { compact_range: CompactRange::from_parts(size, hashes).ok()?, partial })
    }

    /// Returns size and root.
    pub(super) fn compact_range(&self) -> &CompactRange {
        &self.compact_range
    }

    /// Appends one digest; calls `completed` with every tile that it fills.
    pub(super) fn append(&mut self, digest: &Digest, mut completed: impl FnMut(TileId, Tile)) {
        let partial = &mut self.partial;
        self.compact_range.append_with(digest, |node, hash| {
            let (id, row, _) = TileId::of(node);
            let level = usize::from(id.level);
            if partial.len() <= level {
                partial.resize_with(level + 1, Tile::default);
            }
            if let Some(tile) = partial.get_mut(level) {
                tile.rows[row].push(*hash);
                if row == 7 && tile.rows[7].len() == 2 {
                    completed(id, std::mem::take(tile));
                }
            }
        });
    }

    /// Returns a node of a partial tile.
    pub(super) fn get(&self, node: NodeId) -> Option<Hash> {
        let (id, row, place) = TileId::of(node);
        let entries = self.compact_range.size() >> (u32::from(id.level) * u32::from(TILE_LEVELS)).min(63);
        if entries >> TILE_LEVELS != id.index {
            return None;
        }
        self.partial.get(usize::from(id.level))?.get(row, place)
    }
}

/// Full tiles in memory: those not yet applied to the index database, and the most recently used
/// others.
pub(super) struct TileCache<K: std::hash::Hash + Eq + Copy> {
    pending: HashMap<(K, TileId), Arc<Tile>>,
    recent: LruCache<(K, TileId), Arc<Tile>>,
}

impl<K: std::hash::Hash + Eq + Copy> TileCache<K> {
    /// Creates an empty cache.
    pub(super) fn new() -> Self {
        Self { pending: HashMap::new(), recent: LruCache::new(CACHED_TILES_MAX) }
    }

    /// Adds a newly filled tile, which stays until [`TileCache::applied`].
    pub(super) fn insert(&mut self, tree: K, id: TileId, tile: Arc<Tile>) {
        self.pending.insert((tree, id), tile);
    }

    /// Records that the index database has this tile.
    pub(super) fn applied(&mut self, tree: K, id: TileId) {
        if let Some(tile) = self.pending.remove(&(tree, id)) {
            self.recent.put((tree, id), tile);
        }
    }

    /// Caches a tile that was read from the index database.
    pub(super) fn loaded(&mut self, tree: K, id: TileId, tile: Arc<Tile>) {
        self.recent.put((tree, id), tile);
    }

    /// Returns a tile if it is in memory.
    pub(super) fn get(&mut self, tree: K, id: TileId) -> Option<Arc<Tile>> {
        let key = (tree, id);
        self.pending.get(&key).or_else(|| self.recent.get(&key)).cloned()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use barid_core::feed::tree::{HashReader, MemoryTree};

    use super::*;

    #[test]
    fn tiled_tree_and_full_tiles_hold_every_node() {
        let (mut tiled_tree, mut tree, mut tiles) = (TiledTree::default(), MemoryTree::new(), HashMap::new());
        let size = 256 * 256 + 700;
        for number in 0..size {
            let mut digest = Digest([7; 32]);
            digest.0[..8].copy_from_slice(&u64::to_le_bytes(number));
            tree.append(&digest);
            tiled_tree.append(&digest, |id, tile| assert!(tiles.insert(id, tile).is_none()));
        }
        assert_eq!(tiled_tree.compact_range(), tree.compact_range());
        assert_eq!(tiles.len(), 256 + 2 + 1);
        for level in 0..17u8 {
            for index in 0..size >> level {
                let node = NodeId { level, index };
                let (id, row, place) = TileId::of(node);
                let found =
                    tiled_tree.get(node).or_else(|| tiles.get(&id).and_then(|tile| tile.get(row, place))).unwrap();
                assert_eq!(found, tree.hashes(&[node]).unwrap()[0], "{node:?}");
            }
        }
        let rebuilt =
            TiledTree::rebuild(size, (0..3).map(|level| tiled_tree.partial[level].rows[0].clone()).collect()).unwrap();
        assert_eq!(rebuilt.compact_range(), tiled_tree.compact_range());
        let first = &tiles[&TileId { level: 0, index: 0 }];
        assert_eq!(Tile::from_bytes(&first.to_bytes()).unwrap().root(), first.root());
        assert!(Tile::from_bytes(&[0; 64]).is_none());
    }
}
