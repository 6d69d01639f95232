//! Stub until the tree lands.
use crate::names::Hash;
/// A complete subtree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId {
    /// Level.
    pub level: u8,
    /// Index.
    pub index: u64,
}
/// Right edge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    hashes: Vec<Hash>,
}
