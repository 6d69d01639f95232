//! Mutual TLS: verifies the identity at the other end, at the handshake and for as long as the
//! connection lives.
//!
//! In scope: SPIFFE identities, verification bound to one member's authorities, CRLs, both
//! directions of mutual TLS 1.3, bounds on connections, and ending connections that are no longer
//! allowed or send useless frames. Out of scope: what a peer or caller may do (`core`, `access`),
//! and calls (`calls`).
//!
//! There is no common authority and never a union of roots. The trust domain in the certificate's
//! one URI selects the authorities, and the path is verified against those only. Session resumption
//! is off, because it would skip these checks.

mod compression;
mod connections;
mod credentials;
mod dial;
mod handshakes;
mod limits;
mod listener;
mod meter;
mod peeked_stream;
mod rejection;
mod revocation;
mod trust;
mod verify;

#[cfg(test)]
mod tests;

pub use compression::{Compress, MaybeCompressed};
pub use connections::{AccessLevel, Activity, Connections, Guarded, Served, Which};
pub use credentials::{Certified, Credentials, TransportError};
pub use dial::Connector;
pub use limits::{HANDSHAKE_TIME_MAX, Limits};
pub use listener::{Incoming, LevelOf, ListenerOptions, listen};
pub use rejection::{NO_URI, OnRejected, Rejection, RejectionRecord, UNSUITABLE};
pub use revocation::{CheckedCrl, CrlError, CrlStore, HeldCrl};
pub use trust::{PeerIdentity, SpiffeId, Trust, examine_authority};
pub(crate) use verify::Verified;
pub use verify::{Policy, Verifier, examine, named, validity};
