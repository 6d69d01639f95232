//! The node: everything that touches disk, network or clock.
#![forbid(unsafe_code)]

pub mod cli;
pub mod committer;
pub mod exchange;
pub mod rosters;
pub mod store;
pub mod telemetry;

/// Generated gRPC services.
pub mod rpc {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    tonic::include_proto!("barid.v1");
}
