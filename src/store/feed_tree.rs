//! Hash reader over the stored tree of one feed, for proofs.
//!
//! In scope: passing reads of tree hashes to the store. Out of scope: making proofs (`core`).

use barid_core::feed::tree::{HashReader, NodeId};
use barid_core::ids::{FeedId, Hash};

use super::{ReadError, Store};

/// Reads the tree hashes of one feed.
#[derive(Clone, Copy)]
pub struct FeedTree<'a> {
    /// The store to read from.
    pub store: &'a dyn Store,
    /// The feed.
    pub feed: &'a FeedId,
}

impl HashReader for FeedTree<'_> {
    type Error = ReadError;

    fn hashes(&self, nodes: &[NodeId]) -> Result<Vec<Hash>, ReadError> {
        self.store.tree_hashes(self.feed, nodes)
    }
}
