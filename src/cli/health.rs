//! `barid health`: whether the node serves, as an exit code for containers and scripts.
//!
//! Out of scope: how well it does (`status`).

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tonic_health::pb::health_check_response::ServingStatus;

use super::client::Client;
use super::{Context, Exit, Failure, say};

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
    let client = Client::patient(&context.profile()?, timeout)?;
    let status = client.health(&args.service, timeout).await?;
    let serving = status == ServingStatus::Serving;
    if context.output.is_json() {
        context.output.json(&json!({"status": status.as_str_name()}))?;
    } else {
        let id = if serving { "health-serving" } else { "health-not-serving" };
        context.output.line(&say!(context.messages, id, status = status.as_str_name()))?;
    }
    Ok(if serving { Exit::Ok } else { Exit::Failure })
}
