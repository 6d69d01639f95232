//! `barid feed`: lists feeds with a proven equivocation, exports the proof, and resumes following a
//! forked feed.
//!
//! In scope: the calls to the node as its operator or auditor. Out of scope: detection and proof
//! (`exchange`), verifying the file (`verify`).

use std::io::Write;
use std::path::{Path, PathBuf};

use barid_core::ids::FeedId;
use barid_core::proto;
use clap::{Args, Subcommand};

use super::client::Client;
use super::deadline::TimeoutArgs;
use super::{Context, Exit, Failure, localize, message};

/// Arguments of `barid feed`.
#[derive(Debug, Args)]
pub(super) struct FeedArgs {
    #[command(flatten)]
    pub(super) within: TimeoutArgs,
    #[command(subcommand)]
    command: FeedCommand,
}

#[derive(Debug, Subcommand)]
enum FeedCommand {
    /// List the feeds that have forked.
    Forks,
    /// Write the file that proves the fork of a feed, for `barid verify`.
    Evidence(EvidenceArgs),
    /// Follow a forked feed again, from the state that the node holds.
    Resume(ResumeArgs),
}

#[derive(Debug, Args)]
struct EvidenceArgs {
    /// Feed: `ma.rabat.example/feed/1`.
    #[arg(value_name = "FEED")]
    feed: FeedId,
    /// File to write; an existing file is never overwritten.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Debug, Args)]
struct ResumeArgs {
    /// Feed: `ma.rabat.example/feed/1`.
    #[arg(value_name = "FEED")]
    feed: FeedId,
}

pub(super) async fn run(context: &Context, args: &FeedArgs) -> Result<Exit, Failure> {
    let client = Client::with_timeout(&context.profile()?, args.within.duration())?;
    let messages = &context.messages;
    match &args.command {
        FeedCommand::Forks => {
            let forks = client.forks().await?;
            if context.output.is_json() {
                forks.iter().try_for_each(|fork| context.output.json(&message::json_of(fork)))?;
            } else if forks.is_empty() {
                context.output.line(&messages.text("feed-no-forks"))?;
            }
            for fork in forks.iter().filter(|_| !context.output.is_json()) {
                let id = if fork.resumed { "feed-fork-resumed" } else { "feed-fork-stopped" };
                let text = match id {
                    "feed-fork-resumed" => localize!(messages, "feed-fork-resumed", feed = &fork.feed),
                    _ => localize!(messages, "feed-fork-stopped", feed = &fork.feed),
                };
                context.output.line(&text)?;
            }
        }
        FeedCommand::Evidence(args) => {
            let feed = args.feed.to_string();
            let fork = client.forks().await?.into_iter().find(|fork| fork.feed == feed);
            let fork = fork.ok_or_else(|| Failure::new("feed-no-fork").with("feed", &feed))?;
            write(&args.output, &fork)?;
            let path = args.output.display().to_string();
            if context.output.is_json() {
                context.output.json(&serde_json::json!({"file": path, "feed": feed}))?;
            } else {
                context.output.line(&localize!(messages, "feed-evidence-written", path = &path))?;
            }
        }
        FeedCommand::Resume(args) => {
            let feed = args.feed.to_string();
            client.resume_feed(&feed).await?;
            if context.output.is_json() {
                context.output.json(&serde_json::json!({"resumed": feed}))?;
            } else {
                context.output.line(&localize!(messages, "feed-resumed", feed = &feed))?;
            }
        }
    }
    Ok(Exit::Ok)
}

fn write(path: &Path, fork: &proto::Fork) -> Result<(), Failure> {
    let unwritable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Failure::usage("file-exists").path(path),
        _ => Failure::new("file-unwritable").path(path).because(&error),
    };
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(unwritable)?;
    file.write_all(&fork.evidence).and_then(|()| file.sync_all()).map_err(unwritable)
}
