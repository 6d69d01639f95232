//! The Barid node: all code that touches disk, network or clock.
#![forbid(unsafe_code)]

pub mod access;
pub mod api;
pub mod app;
pub mod budgets;
pub mod calls;
pub mod cli;
pub mod clock;
pub mod codec;
pub mod committer;
pub mod config;
mod error_chain;
pub mod exchange;
pub mod files;
pub mod low_priority;
pub mod pki;
mod random;
pub mod roster_store;
pub mod store;
pub mod telemetry;
pub mod transport;

/// Generated gRPC services.
pub mod rpc {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    tonic::include_proto!("barid.v1");
}
