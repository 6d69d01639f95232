//! Who gets in, who does not, and who is put out.
#![allow(clippy::unwrap_used)]

mod crls;
mod handshakes;
mod identities;
mod sockets;
mod usages;
mod world;
