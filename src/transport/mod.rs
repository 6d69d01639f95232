//! TLS: who is at the other end, and that it stays true.
//!
//! In scope: SPIFFE identities, verification bound to one member's authorities, revocation lists, both directions of mutual TLS 1.3,
//! and ending live connections that are no longer allowed. Out of scope: what a peer or person may do (`core`, `access`).
//!
//! There is no common authority and never a union of roots: the trust domain in the certificate's one URI picks the authorities, and
//! the path is verified to those only. No resumption: it would skip these checks.

mod connections;
mod listener;
mod revocation;
mod trust;
mod verify;

#[cfg(test)]
mod tests;

pub use connections::{Connections, Guarded};
pub use listener::{Connector, Credentials, TransportError, listen, server_config, tune_server};
pub use revocation::{ListError, RevocationLists};
pub use trust::{Authorities, PeerIdentity, Refused, SpiffeId, Trust};
pub use verify::{Policy, Verifier};

/// Told of every refused connection.
pub type OnRefusal = std::sync::Arc<dyn Fn(&Refusal) + Send + Sync>;

/// A connection that was refused.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Stable word.
    pub reason: &'static str,
    /// Address of the other end.
    pub address: String,
    /// For people.
    pub detail: String,
}
