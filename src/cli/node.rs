//! `barid node`: run this member's node until it is told to stop.

use std::path::PathBuf;

use clap::Args;

use super::{Context, Exit, Failure};
use crate::config::NodeConfig;
use crate::{app, telemetry};

/// What `node` is told.
#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    /// Configuration of the node.
    #[arg(long, value_name = "FILE", default_value = "node.toml", env = "BARID_CONFIG", hide_env = true)]
    config: PathBuf,
    /// This is the first start ever of this member's feed; later it changes nothing.
    #[arg(long)]
    first: bool,
}

/// Runs the node; ends on SIGINT or SIGTERM.
pub(super) fn run(_context: &Context, args: &NodeArgs) -> Result<Exit, Failure> {
    let config = NodeConfig::load(&args.config).map_err(|error| Failure::new("node-start").because(&error))?;
    telemetry::init(&config.text.log, config.text.log_json);
    let runtime = tokio::runtime::Runtime::new().map_err(|error| Failure::new("internal").because(&error))?;
    runtime
        .block_on(app::run(&config, args.first, stopped(), |_| ()))
        .map_err(|error| Failure::new("node-start").because(&error))?;
    Ok(Exit::Ok)
}

async fn stopped() {
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}
