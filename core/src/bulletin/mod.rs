//! Bulletins: what a member says, to whom, and what became of it.
//!
//! In scope: topics, vocabularies, headers, bodies, the kinds, the one way from a draft to an envelope ([`prepare()`]), who may read
//! ([`audience`]) and the state that updates and cancellations lead to ([`state`]). Out of scope: the envelope's outer form
//! ([`crate::envelope`]), signing (a feed signs, not a bulletin) and the roster itself.
//!
//! A publisher's node applies every rule here. A receiver applies only [`audience`] and [`state`]: content that a newer or careless
//! node let pass is kept and flagged, never a reason to stop a feed.

pub mod audience;
pub mod body;
pub mod countries;
pub mod field;
pub mod geo;
pub mod header;
pub mod kinds;
pub mod prepare;
pub mod rules;
pub mod state;
pub mod text;
pub mod times;
pub mod topic;
pub mod urgent;
pub mod vocabulary;

pub use field::{FieldError, Invalid};
pub use header::{BulletinId, Handling, Header, Reference};
pub use prepare::{DraftDefaults, ValidBulletin, encode, prepare, validate};
pub use rules::Rule;
pub use topic::{Topic, TopicFilter};
pub use urgent::{Priority, urgent};
