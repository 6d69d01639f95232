//! `barid health`: whether the node serves, as an exit code for containers and scripts.
//!
//! A node whose store is damaged serves what can be read: it is said in words, and the exit code is that of a node that serves, as a restart
//! would mend nothing. Out of scope: how well it does (`status`).

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tonic_health::pb::health_check_response::ServingStatus;

use super::client::Client;
use super::{Context, Exit, Failure, localize};
use crate::api::STORE;

/// How long to wait.
#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// Seconds to wait for an answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(super) timeout: u64,
    /// gRPC service to ask about; empty: the node as a whole.
    #[arg(long, value_name = "SERVICE", default_value = "")]
    service: String,
}

/// Asks.
pub(super) async fn run(context: &Context, args: &HealthArgs) -> Result<Exit, Failure> {
    let timeout = Duration::from_secs(args.timeout);
    let client = Client::with_timeout(&context.profile()?, timeout)?;
    let status = client.health(&args.service, timeout).await?;
    let serving = status == ServingStatus::Serving;
    // A node of an older version does not know of it.
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
