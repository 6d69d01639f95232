//! The real binary, real files, real mutual TLS.
#![allow(clippy::unwrap_used)]

mod containers;
mod evidence;
mod bench;
mod four_members;
mod world;
