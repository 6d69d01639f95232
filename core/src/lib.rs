//! The deterministic core of Barid.
//!
//! In scope: bulletins, envelopes, feeds and their proofs, rosters, and the decisions about
//! following and serving feeds. Out of scope: files, networks, clocks and randomness; time and
//! random bytes are arguments.

pub mod backfill;
pub mod bulletin;
pub mod certificate;
pub mod envelope;
pub mod evidence;
pub mod feed;
pub mod follow;
pub mod ids;
pub mod json;
pub mod limits;
pub mod priority;
pub mod proto;
pub mod quota;
pub mod ranges;
pub mod roster;
pub mod serve;
pub mod upstream;
