//! Bulletins: their content, their audience and their state.
//!
//! In scope: topics, vocabularies, headers, bodies, the kinds, the single path from a draft to an
//! envelope ([`prepare()`]), who may read ([`audience`]) and the state that updates and
//! cancellations lead to ([`state`]). Out of scope: the envelope's outer form
//! ([`crate::envelope`]), signing (feeds are signed, not bulletins) and the roster itself.
//!
//! A publisher's node applies every rule here. A receiver applies only [`audience`] and [`state`]:
//! content that another node should have rejected is stored and flagged, and never stops a feed.

pub mod audience;
pub mod body;
pub mod countries;
pub mod field;
pub mod geo;
pub mod header;
pub mod kinds;
pub mod prepare;
pub mod priority;
pub mod rules;
pub mod state;
pub mod text;
pub mod times;
pub mod topic;
pub mod vocabulary;

pub use field::{FieldError, Invalid};
pub use header::{BulletinId, Handling, Header, Reference};
pub use prepare::{DraftDefaults, ValidBulletin, encode, prepare, validate};
pub use priority::{Priority, header_priority};
pub use rules::Rule;
pub use topic::{Topic, TopicFilter};
