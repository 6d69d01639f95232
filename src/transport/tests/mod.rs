//! Who gets in, who does not, and who is put out.
#![allow(clippy::unwrap_used)]

mod handshakes;
mod identities;
mod lists;
mod sockets;
mod usages;
mod world;
