//! What is true in Barid.
//!
//! In scope: bulletins, envelopes, feeds and their proofs, rosters, and the decisions of follower and provider. Out of scope:
//! files, networks, clocks and randomness; where one of these matters it comes in as an argument.

pub mod bulletin;
pub mod certificate;
pub mod envelope;
pub mod evidence;
pub mod express;
pub mod feed;
pub mod follow;
pub mod gaps;
pub mod json;
pub mod limits;
pub mod names;
pub mod proto;
pub mod provide;
pub mod quota;
pub mod ranges;
pub mod relay;
pub mod roster;
