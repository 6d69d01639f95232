//! A member's feed: an append-only log with cryptographic proofs, in the formats of C2SP.
//!
//! In scope: the Merkle tree, signed notes, checkpoints, cosignatures, custody notes and offline
//! proofs. Out of scope: the content of entries (`bulletin`), which keys are valid (`roster`), and
//! storage.

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
