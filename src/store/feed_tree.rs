//! A feed's tree as the store holds it, for proofs.

use barid_core::feed::tree::{HashReader, NodeId};
use barid_core::ids::{FeedId, Hash};

use super::{ReadError, Store};

/// Reads one feed's tree hashes.
#[derive(Clone, Copy)]
pub struct FeedTree<'a> {
    /// Where from.
    pub store: &'a dyn Store,
    /// Which feed.
    pub feed: &'a FeedId,
}

impl HashReader for FeedTree<'_> {
    type Error = ReadError;

    fn hashes(&self, nodes: &[NodeId]) -> Result<Vec<Hash>, ReadError> {
        self.store.tree_hashes(self.feed, nodes)
    }
}
