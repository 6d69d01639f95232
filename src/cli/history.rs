//! `barid history`: what has arrived at one's node, newest first.
//!
//! In scope: paging until enough is shown. Out of scope: what one bulletin says in full (`show`).

use barid_core::proto;
use clap::Args;
use pbjson_types::Timestamp;

use super::args::FilterArgs;
use super::client::Client;
use super::render::{Reading, Render};
use super::{Context, Exit, Failure, times};

/// Bulletins asked for at once: one page of any size up to the limit fits a message.
const PAGE_SIZE_MAX: u32 = 100;

/// Which part of the history.
#[derive(Debug, Args)]
pub(super) struct HistoryArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Sent at or after this time: `2026-11-23T20:05:11Z` or a day.
    #[arg(long, value_name = "TIME", value_parser = times::parse)]
    since: Option<Timestamp>,
    /// Sent at or before this time.
    #[arg(long, value_name = "TIME", value_parser = times::parse)]
    until: Option<Timestamp>,
    /// At most so many bulletins.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

/// Shows the history.
pub(super) async fn run(context: &Context, args: &HistoryArgs) -> Result<Exit, Failure> {
    let profile = context.profile()?;
    let client = Client::open(&profile)?;
    let mut found: Vec<proto::Delivery> = Vec::new();
    let mut page_token = String::new();
    let mut left = args.limit;
    while left > 0 {
        let request = proto::HistoryRequest {
            filter: Some(args.filter.to_proto()),
            since: args.since,
            until: args.until,
            page_size: left.min(PAGE_SIZE_MAX),
            page_token,
        };
        let page = client.history(request).await?;
        left = left.saturating_sub(u32::try_from(page.deliveries.len()).unwrap_or(u32::MAX));
        page_token = page.next_page_token;
        if context.output.is_json() {
            for delivery in &page.deliveries {
                let object = Reading::new(delivery).json();
                context.output.json(&object.map_err(|error| Failure::new("internal").because(&error))?)?;
            }
        } else {
            found.extend(page.deliveries);
        }
        if page_token.is_empty() {
            break;
        }
    }
    if context.output.is_json() {
        return Ok(Exit::Ok);
    }
    if found.is_empty() {
        context.output.line(&context.messages.text("history-empty"))?;
        return Ok(Exit::Ok);
    }
    let readings: Vec<Reading<'_>> = found.iter().map(Reading::new).collect();
    context.output.lines(Render::new(context, profile.directory()).table(&readings))?;
    if !page_token.is_empty() {
        context.output.error_line(&context.messages.text("history-more"));
    }
    Ok(Exit::Ok)
}
