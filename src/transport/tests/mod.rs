//! Tests of which connections are admitted, rejected and ended.
#![allow(clippy::unwrap_used)]

mod crls;
mod handshakes;
mod identities;
mod sockets;
mod usages;
mod world;
