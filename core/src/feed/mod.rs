//! Feeds as transparency logs.
pub mod tree;
