//! `barid health`: whether the node serves, as an exit code for containers and scripts.
//!
//! A node with a damaged store serves what can be read. The damage is reported as text, but the
//! exit code is 0, because a restart would repair nothing. Out of scope: details of the node's
//! status (`status`).

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tonic_health::pb::health_check_response::ServingStatus;

use super::client::Client;
use super::{Context, Exit, Failure, localize};
use crate::api::STORE;

/// Arguments of `barid health`.
#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// Seconds to wait for an answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(super) timeout: u64,
    /// gRPC service to check; empty: the node as a whole.
    #[arg(long, value_name = "SERVICE", default_value = "")]
    service: String,
}

/// Checks the node's health.
pub(super) async fn run(context: &Context, args: &HealthArgs) -> Result<Exit, Failure> {
    let timeout = Duration::from_secs(args.timeout);
    let client = Client::with_timeout(&context.profile()?, timeout)?;
    let status = client.health(&args.service, timeout).await?;
    let serving = status == ServingStatus::Serving;
    // A node of an older version does not have this service.
    let damaged = serving
        && args.service.is_empty()
        && matches!(client.health(STORE, timeout).await, Ok(ServingStatus::NotServing));
    if context.output.is_json() {
        context.output.json(&json!({"status": status.as_str_name(), "storeDamaged": damaged}))?;
    } else {
        let id = match (serving, damaged) {
            (true, false) => "health-serving",
            (true, true) => "health-damaged",
            (false, _) => "health-not-serving",
        };
        context.output.line(&localize!(context.messages, id, status = status.as_str_name()))?;
    }
    Ok(if serving { Exit::Ok } else { Exit::Failure })
}
