//! `barid node`: runs this member's node until it is stopped.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::{Context, Exit, Failure};
use crate::app::{AppError, StartFlags};
use crate::config::NodeConfig;
use crate::store::OpenError;
use crate::{app, telemetry};

/// How long blocking threads may run after everything is committed and closed. Their links have
/// ended, which they check for.
const LEFTOVERS_MAX: Duration = Duration::from_secs(2);

/// Arguments of `barid node`.
#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    /// Configuration of the node.
    #[arg(long, value_name = "FILE", default_value = "node.toml", env = "BARID_CONFIG", hide_env = true)]
    config: PathBuf,
    /// First start ever of this member's feed; no effect later.
    #[arg(long)]
    bootstrap: bool,
    /// The store is lost, not only out of reach: start with an empty one. The feed needs recovery
    /// after that.
    #[arg(long)]
    accept_data_loss: bool,
    /// Allow core dumps and debuggers, which can read private keys; for debugging only, not in
    /// service.
    #[arg(long)]
    allow_core_dumps: bool,
    /// Stop at the end of standard input. A program that starts nodes holds the other end of a
    /// pipe, so that they stop with it, even if it is killed.
    #[arg(long, hide = true)]
    exit_on_stdin_eof: bool,
}

impl NodeArgs {
    pub(super) fn allows_dumps(&self) -> bool {
        self.allow_core_dumps
    }

    fn flags(&self) -> StartFlags {
        StartFlags { bootstrap: self.bootstrap, accept_data_loss: self.accept_data_loss }
    }
}

/// Runs the node until SIGINT or SIGTERM.
pub(super) fn run(_context: &Context, args: &NodeArgs) -> Result<Exit, Failure> {
    let config = NodeConfig::load(&args.config).map_err(|error| Failure::new("node-start").because(&error))?;
    telemetry::init(&config.text.log, config.text.log_json);
    let runtime = runtime().map_err(|error| Failure::new("internal").because(&error))?;
    // The signal handlers come first. The first process of a container ignores signals that it does
    // not handle, and a signal during a long start must not be lost.
    let stop = {
        let _inside = runtime.enter();
        stopped(args.exit_on_stdin_eof).map_err(|error| Failure::new("internal").because(&error))?
    };
    let ran = runtime.block_on(app::run(&config, args.flags(), stop, |_| ()));
    // Reads and verifications without a caller end with the process.
    runtime.shutdown_timeout(LEFTOVERS_MAX);
    if let Ok(app::Stopped { streams, commits, cut }) = &ran {
        tracing::info!(streams, commits, cut, "stopped: all accepted work is stored");
    }
    ran.map_err(|error| {
        let id = match error {
            AppError::Store(OpenError::Damaged(_)) => "node-damaged",
            AppError::StoreMissing { .. } => "store-missing",
            _ => "node-start",
        };
        Failure::new(id).because(&error)
    })?;
    Ok(Exit::Ok)
}

/// Creates the runtime with one network thread for each two cores. The committer, the index
/// database, the log's next segment and blocking work have their own threads. With more network
/// threads, each bulletin would wake threads that find no work.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    tokio::runtime::Builder::new_multi_thread().worker_threads(cores.div_ceil(2)).enable_all().build()
}

/// Registers the handlers, and returns a future that ends at SIGINT or SIGTERM, or at the end of
/// standard input if `exit_on_stdin_eof`.
fn stopped(exit_on_stdin_eof: bool) -> std::io::Result<impl Future<Output = ()>> {
    let (mut interrupted, mut terminated) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let input_ended = exit_on_stdin_eof.then(input_end);
    Ok(async move {
        let input_ended = async {
            match input_ended {
                // A lost reader thread means the same: standard input is not read any more.
                Some(ended) => drop(ended.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
            () = input_ended => {}
        }
    })
}

/// Returns a receiver for the end of standard input. It is read on its own thread, because a read
/// that never returns would block the runtime's shutdown.
fn input_end() -> oneshot::Receiver<()> {
    let (ended, end) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = ended.send(());
    });
    end
}
