//! `barid node`: run this member's node until it is told to stop.

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

/// How long work on blocking threads may take after everything is committed and closed: its links have ended, and it looks for that.
const LEFTOVERS_MAX: Duration = Duration::from_secs(2);

/// What `node` is told.
#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    /// Configuration of the node.
    #[arg(long, value_name = "FILE", default_value = "node.toml", env = "BARID_CONFIG", hide_env = true)]
    config: PathBuf,
    /// This is the first start ever of this member's feed; later it changes nothing.
    #[arg(long)]
    bootstrap: bool,
    /// The store is lost, not only out of reach: begin an empty one. The feed is in doubt until it is recovered.
    #[arg(long)]
    accept_data_loss: bool,
    /// Allow core dumps and debuggers, which see private keys; to find a defect, and not in service.
    #[arg(long)]
    allow_core_dumps: bool,
    /// Stop when standard input ends: for a program that starts nodes and holds its other end, so that they end with it, however it ends.
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

/// Runs the node; ends on SIGINT or SIGTERM.
pub(super) fn run(_context: &Context, args: &NodeArgs) -> Result<Exit, Failure> {
    let config = NodeConfig::load(&args.config).map_err(|error| Failure::new("node-start").because(&error))?;
    telemetry::init(&config.text.log, config.text.log_json);
    let runtime = runtime().map_err(|error| Failure::new("internal").because(&error))?;
    // Before anything else: as the first process of a container the node would never hear a signal that it does not handle, and one
    // that comes during a long start must not be lost.
    let stop = {
        let _inside = runtime.enter();
        stopped(args.exit_on_stdin_eof).map_err(|error| Failure::new("internal").because(&error))?
    };
    let ran = runtime.block_on(app::run(&config, args.flags(), stop, |_| ()));
    // What still reads or verifies for nobody ends with the process.
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

/// Threads for the network: one for each two cores. The committer, the view, the log's next segment and whatever blocks have threads of
/// their own; with more than these, each bulletin wakes threads that find nothing to do.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    tokio::runtime::Builder::new_multi_thread().worker_threads(cores.div_ceil(2)).enable_all().build()
}

/// SIGINT or SIGTERM, from now on; or the end of standard input, if it is to be heeded.
fn stopped(exit_on_stdin_eof: bool) -> std::io::Result<impl Future<Output = ()>> {
    let (mut interrupted, mut terminated) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let input_ended = exit_on_stdin_eof.then(input_end);
    Ok(async move {
        let input_ended = async {
            match input_ended {
                // That the reader is gone means the same: nobody holds the other end any more.
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

/// The end of standard input. On a thread of its own: a read that never returns would hold the runtime's end up.
fn input_end() -> oneshot::Receiver<()> {
    let (ended, end) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = ended.send(());
    });
    end
}
