//! `barid watch`: bulletins as they arrive, for as long as it runs.
//!
//! In scope: starting from now, from a cursor or from a named subscription; taking up again where the line was cut. Out of scope:
//! remembering a cursor without a name; the caller has the arrival numbers.

use std::time::Duration;

use barid_core::proto;
use clap::Args;
use proto::subscribe_request::Start;
use proto::subscribe_response::Event;
use serde_json::json;

use super::args::FilterArgs;
use super::client::Client;
use super::history::{damage, warn};
use super::render::{Reading, Render};
use super::{Context, Exit, Failure, deadline, message, say};

/// First pause after a cut line; doubled each time, back to this once something came.
const RETRY_DELAY_SECONDS: u64 = 1;
/// Longest pause: a line that is back is noticed within it.
const RETRY_DELAY_SECONDS_MAX: u64 = 30;
/// Bulletins shown before a named subscription is told so, if more are waiting.
const ACKNOWLEDGE_EVERY: u32 = 100;
/// Longest that shown bulletins stay unacknowledged when nothing more comes.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_millis(200);

/// What to watch, from where, and when to stop.
#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Begin after this arrival number, as shown with each bulletin (`#42`); 0 is the beginning.
    #[arg(long, value_name = "ARRIVAL", conflicts_with = "subscription")]
    from: Option<u64>,
    /// Begin where the subscription of this name stopped, and remember progress under it.
    #[arg(long, value_name = "NAME")]
    subscription: Option<String>,
    /// Stop after so many bulletins.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Stop after so many seconds; exit code 3 if `--count` was not reached.
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Longest until the node answers; watching itself is not bounded by it.
    #[arg(long, value_name = "SECONDS", default_value_t = deadline::SECONDS, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

/// Where a watch stands.
struct Progress {
    /// What was looked at last: where to take up again.
    arrival: Option<u64>,
    shown: u64,
    unacknowledged: u32,
}

/// Watches.
pub(super) async fn run(context: &Context, args: &WatchArgs) -> Result<Exit, Failure> {
    let profile = context.profile()?;
    let client = Client::patient(&profile, Duration::from_secs(args.timeout))?;
    let render = Render::new(context, profile.directory());
    let work = watch(context, args, &client, &render);
    let end = tokio::time::sleep(Duration::from_secs(args.seconds.unwrap_or(0)));
    tokio::select! {
        done = work => done,
        () = end, if args.seconds.is_some() => Ok(if args.count.is_some() { Exit::NotReached } else { Exit::Ok }),
        _ = tokio::signal::ctrl_c() => Ok(Exit::Ok),
    }
}

async fn watch(context: &Context, args: &WatchArgs, client: &Client, render: &Render<'_>) -> Result<Exit, Failure> {
    let mut progress = Progress { arrival: None, shown: 0, unacknowledged: 0 };
    let mut delay = RETRY_DELAY_SECONDS;
    loop {
        let before = progress.arrival;
        let failure = match follow(context, args, client, render, &mut progress).await {
            Ok(()) => return Ok(Exit::Ok),
            Err(failure) if failure.exit_code() == Exit::NotReached => failure,
            Err(failure) => return Err(failure),
        };
        if progress.arrival != before {
            delay = RETRY_DELAY_SECONDS;
        } else if progress.arrival.is_none() && args.subscription.is_none() && args.from.is_none() {
            // Nothing was ever received: the node is not there, and "from now" would silently skip what comes until it is.
            return Err(failure);
        }
        context.output.error_line(&say!(context.messages, "line-cut", nSeconds = delay));
        tokio::time::sleep(Duration::from_secs(delay)).await;
        delay = (delay * 2).min(RETRY_DELAY_SECONDS_MAX);
    }
}

/// One stream: until it ends, or enough was shown.
async fn follow(
    context: &Context,
    args: &WatchArgs,
    client: &Client,
    render: &Render<'_>,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let start = match (&args.subscription, progress.arrival.or(args.from)) {
        (Some(name), _) => Some(Start::Subscription(name.clone())),
        (None, Some(after)) => Some(Start::After(after)),
        (None, None) => None,
    };
    let request = proto::SubscribeRequest { filter: Some(args.filter.to_proto()), start };
    let mut stream = deadline::within(args.timeout, client.subscribe(request)).await?;
    loop {
        let next = if progress.unacknowledged == 0 {
            stream.message().await
        } else {
            match tokio::time::timeout(ACKNOWLEDGE_WITHIN, stream.message()).await {
                Ok(next) => next,
                Err(_) => {
                    acknowledge(args, client, progress).await?;
                    continue;
                }
            }
        };
        let Some(response) = next.map_err(|status| Failure::from_status(&status))? else {
            return Err(Failure::new("unavailable").exit(Exit::NotReached));
        };
        warn(context, &response.warnings);
        match response.event {
            Some(Event::Delivery(delivery)) => {
                // After a cut a named subscription starts at its last acknowledgement; what was shown is not shown again.
                if progress.arrival.is_some_and(|seen| delivery.arrival <= seen) {
                    continue;
                }
                show(context, render, &delivery)?;
                progress.arrival = Some(delivery.arrival);
                progress.shown += 1;
                progress.unacknowledged += 1;
            }
            // Named and passed: what comes after it is not held up.
            Some(Event::Damaged(damaged)) => {
                if progress.arrival.is_some_and(|seen| damaged.arrival <= seen) {
                    continue;
                }
                if context.output.is_json() {
                    context.output.json(&json!({"damaged": message::json_of(&damaged)}))?;
                } else {
                    context.output.error_line(&damage(context, &damaged));
                }
                progress.arrival = Some(damaged.arrival);
            }
            Some(Event::Position(position)) => progress.arrival = progress.arrival.max(Some(position)),
            None => {}
        }
        let enough = args.count.is_some_and(|count| progress.shown >= count);
        if enough || progress.unacknowledged >= ACKNOWLEDGE_EVERY {
            acknowledge(args, client, progress).await?;
        }
        if enough {
            return Ok(());
        }
    }
}

async fn acknowledge(args: &WatchArgs, client: &Client, progress: &mut Progress) -> Result<(), Failure> {
    if let (Some(name), Some(arrival)) = (&args.subscription, progress.arrival) {
        client.acknowledge(proto::AcknowledgeRequest { subscription: name.clone(), arrival }).await?;
    }
    progress.unacknowledged = 0;
    Ok(())
}

fn show(context: &Context, render: &Render<'_>, delivery: &proto::Delivery) -> Result<(), Failure> {
    let reading = Reading::new(delivery);
    if context.output.is_json() {
        return context.output.json(&reading.json());
    }
    context.output.lines(render.brief(&reading))?;
    context.output.line("")
}
