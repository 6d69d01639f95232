//! `barid watch`: shows bulletins as they arrive, until it is stopped.
//!
//! In scope: the start position; resuming after a lost connection; showing each bulletin once, even
//! if the node's store was reset. Out of scope: the recorded progress (`progress`).

mod progress;
mod seen;

use std::path::PathBuf;
use std::time::Duration;

use barid_core::proto;
use bytes::Bytes;
use clap::Args;
use proto::subscribe_request::Start;
use proto::subscribe_response::Event;
use serde_json::json;
use tokio::time::Instant;

use self::progress::{Progress, cursor_text, parse_cursor};
use super::args::FilterArgs;
use super::client::Client;
use super::expected::Expected;
use super::history::{damage, warn};
use super::render::{Reading, Render};
use super::{Context, Exit, Failure, deadline, localize, message};

/// First pause after a lost connection; doubled each time, and reset when an event is received.
const RETRY_DELAY_SECONDS: u64 = 1;
/// Longest pause, and so the longest delay until a restored connection is used.
const RETRY_DELAY_SECONDS_MAX: u64 = 30;
/// Number of shown bulletins after which the progress is saved, if more are waiting.
const COMMIT_EVERY: u32 = 100;
/// Longest time until the progress is saved if no further event is received.
const COMMIT_INTERVAL: Duration = Duration::from_millis(200);
/// Longest time until a position without matching bulletins is saved, so that they are not scanned
/// again.
const POSITION_COMMIT_INTERVAL: Duration = Duration::from_secs(60);
/// Longest delay of the exit to save the last progress.
const FINAL_COMMIT_TIMEOUT: Duration = Duration::from_secs(2);

/// What to watch, from where, and when to stop.
#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Start position if there is no other: `now`, `beginning`, or a cursor as `--json` shows it
    /// with each bulletin.
    #[arg(long, value_name = "PLACE", value_parser = parse_start)]
    from: Option<StartPosition>,
    /// Resume from the cursor in this file, and save it there; a new file begins at --from.
    #[arg(long, value_name = "FILE")]
    cursor: Option<PathBuf>,
    /// Resume the subscription of this name, and record progress in it at the node; a new name
    /// needs --from.
    #[arg(long, value_name = "NAME")]
    subscription: Option<String>,
    /// Replace the subscription's filter with that of this command line, and begin again at --from.
    #[arg(long, requires = "subscription", requires = "from")]
    replace_filter: bool,
    /// Stop after this number of bulletins.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Stop after this number of seconds; exit code 3 if `--count` was not reached.
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Seconds until the node must answer; watching itself has no time limit.
    #[arg(long, value_name = "SECONDS", default_value_t = deadline::SECONDS, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

/// Start position.
#[derive(Clone, Debug, PartialEq, Eq)]
enum StartPosition {
    Now,
    Beginning,
    Cursor(Bytes),
}

fn parse_start(text: &str) -> Result<StartPosition, Expected> {
    match text {
        "now" => Ok(StartPosition::Now),
        "beginning" | "0" => Ok(StartPosition::Beginning),
        // A number alone does not prove to which state of the node's store it belongs.
        number if number.bytes().all(|b| b.is_ascii_digit()) => Err(Expected::Start),
        text => parse_cursor(text).map(StartPosition::Cursor).ok_or(Expected::Start),
    }
}

/// Watches for bulletins.
pub(super) async fn run(context: &Context, args: &WatchArgs) -> Result<Exit, Failure> {
    let mut progress = match &args.cursor {
        Some(path) => Progress::open(path, &args.filter.to_proto())?,
        None => Progress::default(),
    };
    let profile = context.profile()?;
    let client = Client::with_timeout(&profile, Duration::from_secs(args.timeout))?;
    let render = Render::new(context, profile.directory());
    let mut watch = Watch { context, args, client: &client, render: &render, progress: &mut progress };
    let end = tokio::time::sleep(Duration::from_secs(args.seconds.unwrap_or(0)));
    let done = tokio::select! {
        done = watch.run() => return done,
        () = end, if args.seconds.is_some() => if args.count.is_some() { Exit::NotReached } else { Exit::Ok },
        _ = tokio::signal::ctrl_c() => Exit::Ok,
    };
    if watch.progress.uncommitted > 0 || !watch.progress.is_saved() {
        // What the node does not record in this time is shown again in the next run.
        watch.progress.save()?;
        _ = tokio::time::timeout(FINAL_COMMIT_TIMEOUT, watch.commit()).await;
    }
    Ok(done)
}

struct Watch<'a> {
    context: &'a Context,
    args: &'a WatchArgs,
    client: &'a Client,
    render: &'a Render<'a>,
    progress: &'a mut Progress,
}

impl Watch<'_> {
    async fn run(&mut self) -> Result<Exit, Failure> {
        let mut delay = RETRY_DELAY_SECONDS;
        loop {
            let before = self.progress.cursor.clone();
            let failure = match self.follow().await {
                Ok(()) => return Ok(Exit::Ok),
                Err(failure) if failure.exit_code() == Exit::NotReached => failure,
                Err(failure) => return Err(failure),
            };
            if self.progress.cursor != before {
                delay = RETRY_DELAY_SECONDS;
            } else if self.progress.cursor.is_none() && self.begins_now() {
                // Nothing was ever received: the node cannot be reached, and starting "now" later
                // would silently skip the bulletins until then.
                return Err(failure);
            }
            self.context.output.error_line(&localize!(self.context.messages, "connection-lost", nSeconds = delay));
            tokio::time::sleep(Duration::from_secs(delay)).await;
            delay = (delay * 2).min(RETRY_DELAY_SECONDS_MAX);
        }
    }

    fn begins_now(&self) -> bool {
        self.args.from == Some(StartPosition::Now) || self.args.from.is_none() && self.args.subscription.is_none()
    }

    fn request(&self) -> proto::SubscribeRequest {
        let (cursor, begin) = match (&self.progress.cursor, &self.args.from) {
            (Some(cursor), _) | (None, Some(StartPosition::Cursor(cursor))) => (cursor.clone(), ""),
            (None, Some(StartPosition::Now)) => (Bytes::new(), "now"),
            (None, Some(StartPosition::Beginning)) => (Bytes::new(), "beginning"),
            (None, None) => (Bytes::new(), ""),
        };
        proto::SubscribeRequest {
            filter: Some(self.args.filter.to_proto()),
            start: self.args.subscription.clone().map(Start::Subscription),
            cursor,
            begin: begin.to_owned(),
            replace_filter: self.args.replace_filter,
        }
    }

    /// Reads one stream until it ends or enough bulletins are shown.
    async fn follow(&mut self) -> Result<(), Failure> {
        let mut stream = deadline::within(self.args.timeout, self.client.subscribe(self.request())).await?;
        let mut committed_at = Instant::now();
        loop {
            let next = if self.progress.uncommitted == 0 {
                stream.message().await
            } else {
                match tokio::time::timeout(COMMIT_INTERVAL, stream.message()).await {
                    Ok(next) => next,
                    Err(_) => {
                        self.commit().await?;
                        committed_at = Instant::now();
                        continue;
                    }
                }
            };
            let Some(response) = next.map_err(|status| Failure::from_status(&status))? else {
                return Err(Failure::new("unavailable").exit(Exit::NotReached));
            };
            // The start position is saved at once, so that nothing after it is missed, however soon
            // the process ends. After a reset the old position is invalid.
            let begins = self.progress.cursor.is_none() || matches!(response.event, Some(Event::Reset(_)));
            self.show(response)?;
            let enough = self.args.count.is_some_and(|count| self.progress.printed >= count);
            if begins {
                self.progress.save()?;
            }
            if enough || self.progress.uncommitted >= COMMIT_EVERY || committed_at.elapsed() >= POSITION_COMMIT_INTERVAL
            {
                self.commit().await?;
                committed_at = Instant::now();
            }
            if enough {
                return Ok(());
            }
        }
    }

    fn show(&mut self, response: proto::SubscribeResponse) -> Result<(), Failure> {
        let proto::SubscribeResponse { event, cursor, subscription, warnings } = response;
        warn(self.context, &warnings);
        let output = &self.context.output;
        match event {
            Some(Event::Delivery(delivery)) => {
                // After a reset, and sometimes after a lost connection, bulletins are received
                // again.
                if self.progress.is_new(&delivery) {
                    self.show_bulletin(&delivery, &cursor)?;
                }
            }
            // Reported and skipped: a damaged entry does not delay later ones.
            Some(Event::Damaged(damaged)) => {
                if self.progress.is_new_damage(&damaged) {
                    if output.is_json() {
                        output.json(&json!({"damaged": message::json_of(&damaged), "cursor": cursor_text(&cursor)}))?;
                    } else {
                        output.error_line(&damage(self.context, &damaged));
                    }
                }
            }
            Some(Event::Reset(reset)) => {
                self.progress.reset();
                if output.is_json() {
                    output.json(&json!({"reset": message::json_of(&reset), "cursor": cursor_text(&cursor)}))?;
                } else {
                    let (reason, offset) = (&reset.reason, reset.offset);
                    output.error_line(&localize!(
                        self.context.messages,
                        "watch-reset",
                        reason = reason,
                        nOffset = offset
                    ));
                }
            }
            Some(Event::Position(position)) if !subscription.is_empty() => {
                let name = self.args.subscription.as_deref().unwrap_or_default();
                if output.is_json() {
                    let opened = json!({"name": name, "outcome": subscription, "offset": position.to_string()});
                    output.json(&json!({"subscription": opened, "cursor": cursor_text(&cursor)}))?;
                } else {
                    let id = match subscription.as_str() {
                        "created" => "watch-created",
                        "restarted" => "watch-restarted",
                        _ => "watch-resumed",
                    };
                    output.error_line(&localize!(self.context.messages, id, name = name, nOffset = position));
                }
            }
            Some(Event::Position(_)) | None => {}
        }
        if !cursor.is_empty() {
            self.progress.cursor = Some(cursor);
        }
        Ok(())
    }

    fn show_bulletin(&self, delivery: &proto::Delivery, cursor: &[u8]) -> Result<(), Failure> {
        let (output, reading) = (&self.context.output, Reading::new(delivery));
        if output.is_json() {
            let mut object = reading.json();
            if let Some(object) = object.as_object_mut() {
                object.insert("cursor".to_owned(), cursor_text(cursor).into());
            }
            return output.json(&object);
        }
        output.lines(self.render.brief(&reading))?;
        output.line("")
    }

    /// Saves the progress in the file, and records it in the subscription at the node.
    async fn commit(&mut self) -> Result<(), Failure> {
        self.progress.save()?;
        if let (Some(name), Some(cursor)) = (&self.args.subscription, &self.progress.cursor) {
            let (subscription, cursor) = (name.clone(), cursor.clone());
            let request = proto::AcknowledgeRequest { subscription, cursor, ..proto::AcknowledgeRequest::default() };
            match self.client.acknowledge(request).await {
                // The node came back with another store before the stream was cut; the next stream
                // reports where it continues.
                Err(failure) if matches!(failure.id(), "cursor-mismatch" | "unknown-subscription") => {
                    return Err(failure.exit(Exit::NotReached));
                }
                done => done?,
            }
        }
        self.progress.uncommitted = 0;
        Ok(())
    }
}
