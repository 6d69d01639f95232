//! Calls on a node in memory, without TLS.
#![allow(clippy::unwrap_used)]

mod publishing;
mod reading;
mod served;
mod subscribing;
mod world;
