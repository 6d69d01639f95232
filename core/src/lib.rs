//! What is true in Barid.
//!
//! In scope: bulletins, envelopes, feeds and their proofs, rosters, and the decisions of follower and provider. Out of scope:
//! files, networks, clocks and randomness; where one of these matters it comes in as an argument.

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
