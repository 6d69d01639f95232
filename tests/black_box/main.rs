//! The real binary, real files, real mutual TLS.
#![allow(clippy::unwrap_used)]

mod four_members;
mod world;
