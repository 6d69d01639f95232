//! A member's feed: an append-only log that proves itself, in the formats of C2SP.
//!
//! In scope: the Merkle tree, signed notes, checkpoints, cosignatures, custody notes and offline proofs. Out of scope: what the
//! entries say (`bulletin`), whose keys are valid (`roster`), and where anything is stored.

pub mod checkpoint;
pub mod cosignature;
pub mod custody;
mod key;
pub mod note;
pub mod partial_proofs;
pub(crate) mod text;
mod timestamped;
pub mod tlog_proof;
pub mod tree;
