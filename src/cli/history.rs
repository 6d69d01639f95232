//! `barid history`: lists the bulletins that arrived at the own member's node, newest first.
//!
//! In scope: paging until the limit is reached. Out of scope: one bulletin in full (`show`).

use barid_core::proto;
use clap::Args;
use fluent_bundle::FluentArgs;
use prost_types::Timestamp;
use serde_json::json;

use super::args::FilterArgs;
use super::client::Client;
use super::deadline::TimeoutArgs;
use super::messages::Arg;
use super::render::{Reading, Render};
use super::{Context, Exit, Failure, args, localize, message, times};

/// Largest page that is requested: with this size, a page of bulletins up to the size limit fits in
/// a message.
const PAGE_SIZE_MAX: u32 = 100;

/// Selection of bulletins.
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
    /// Maximum number of bulletins.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Continue after the page that ended with this token.
    #[arg(long, value_name = "PAGE")]
    before: Option<String>,
    #[command(flatten)]
    pub(super) within: TimeoutArgs,
}

/// Shows the history.
pub(super) async fn run(context: &Context, args: &HistoryArgs) -> Result<Exit, Failure> {
    let profile = context.profile()?;
    let client = Client::with_timeout(&profile, args.within.duration())?;
    let mut found: Vec<proto::Delivery> = Vec::new();
    let mut page_token = args.before.clone().unwrap_or_default();
    let (mut left, mut warned) = (args.limit, false);
    let mut damaged: Vec<proto::DamagedEntry> = Vec::new();
    while left > 0 {
        let request = proto::HistoryRequest {
            filter: Some(args.filter.to_proto()),
            since: args.since,
            until: args.until,
            page_size: left.min(PAGE_SIZE_MAX),
            page_token,
        };
        let page = client.history(request).await?;
        if !warned {
            warned = true;
            warn(context, &page.warnings);
        }
        left = left.saturating_sub(u32::try_from(page.deliveries.len() + page.damaged.len()).unwrap_or(u32::MAX));
        page_token = page.next_page_token;
        if context.output.is_json() {
            for delivery in &page.deliveries {
                context.output.json(&Reading::new(delivery).json())?;
            }
            for damaged in &page.damaged {
                context.output.json(&json!({"damaged": message::json_of(damaged)}))?;
            }
        } else {
            found.extend(page.deliveries);
        }
        damaged.extend(page.damaged);
        if page_token.is_empty() {
            break;
        }
    }
    if context.output.is_json() {
        if !page_token.is_empty() {
            context.output.json(&json!({"next": {"before": page_token}}))?;
        }
        return whole(context, &damaged);
    }
    if found.is_empty() && damaged.is_empty() {
        context.output.line(&context.messages.text("history-empty"))?;
        return Ok(Exit::Ok);
    }
    let readings: Vec<Reading<'_>> = found.iter().map(Reading::new).collect();
    context.output.lines(Render::new(context, profile.directory()).list(&readings))?;
    if !page_token.is_empty() {
        let command = next(context, args, &page_token);
        context.output.error_line(&localize!(context.messages, "history-more", command = &command));
    }
    whole(context, &damaged)
}

/// Reports the entries that cannot be read, newest first; the other entries are shown.
fn whole(context: &Context, damaged: &[proto::DamagedEntry]) -> Result<Exit, Failure> {
    if damaged.is_empty() {
        return Ok(Exit::Ok);
    }
    for damaged in damaged.iter().filter(|_| !context.output.is_json()) {
        context.output.error_line(&damage(context, damaged));
    }
    Err(Failure::new("damaged").cause(context.messages.text("history-damaged")))
}

/// Returns the line for a damaged entry: offset, feed and index.
pub(super) fn damage(context: &Context, damaged: &proto::DamagedEntry) -> String {
    let entry = match damaged.feed.as_str() {
        "" => format!("#{}", damaged.offset),
        feed => format!("#{}  {feed} {}", damaged.offset, damaged.index),
    };
    localize!(context.messages, "entry-damaged", entry = &entry)
}

/// Warns of filter values that the node does not know or does not grant.
pub(super) fn warn(context: &Context, warnings: &[proto::FilterWarning]) {
    let messages = &context.messages;
    for warning in warnings {
        if context.output.is_json() {
            context.output.error_json(&json!({"warning": message::json_of(warning)}));
            continue;
        }
        let mut args = FluentArgs::new();
        args.set("value", warning.value.as_str().arg());
        args.set("field", warning.field.as_str().arg());
        let known = messages.find(&format!("filter-{}", warning.reason), Some(&args));
        let mut line = known.unwrap_or_else(|| messages.value(&format!("{} {}", warning.field, warning.value)));
        if !warning.nearest.is_empty() {
            line = format!("{line} {}", localize!(messages, "filter-nearest", nearest = &warning.nearest));
        }
        context.output.error_line(&format!("⚠ {line}"));
    }
}

/// Returns the shell command that shows the next page.
fn next(context: &Context, args: &HistoryArgs, before: &str) -> String {
    let filter = &args.filter;
    let text = |at: &Option<Timestamp>| at.as_ref().map(times::rfc3339).into_iter().collect();
    let options: [(&str, Vec<String>); 6] = [
        ("--topic", filter.topic.iter().map(ToString::to_string).collect()),
        ("--kind", filter.kind.clone()),
        ("--min-severity", filter.min_severity.iter().map(ToString::to_string).collect()),
        ("--member", filter.member.iter().map(ToString::to_string).collect()),
        ("--since", text(&args.since)),
        ("--until", text(&args.until)),
    ];
    let mut command = format!("{} history", args::program(context.profile.as_deref()));
    for (option, values) in options.iter().filter(|(_, values)| !values.is_empty()) {
        command += &format!(" {option} {}", args::shell_quoted(&values.join(",")));
    }
    format!("{command} --limit {} --before {}", args.limit, args::shell_quoted(before))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::messages::{Lang, Messages};
    use crate::cli::output::Output;

    #[test]
    fn unknown_filter_value_suggests_nearest_localized() {
        let warning = |reason: &str| proto::FilterWarning {
            field: "filter.kinds[0]".into(),
            value: "seizure-reports\u{9b}".into(),
            nearest: "seizure-report".into(),
            reason: reason.into(),
        };
        let reasons = ["unknown-kind", "unknown-working-group", "unknown-member", "not-granted", "of-a-newer-node"];
        for (lang, json) in Lang::ALL.into_iter().flat_map(|lang| [(lang, false), (lang, true)]) {
            let (output, captured) = Output::captured(json);
            let context = Context::new(Messages::new(lang), output, None);
            warn(&context, &reasons.map(warning));
            let text = String::from_utf8(captured.lock().clone()).unwrap();
            assert_eq!(text.lines().count(), reasons.len(), "{text}");
            for line in text.lines() {
                assert!(line.contains("seizure-reports") && line.matches("seizure-report").count() == 2, "{line}");
                assert!(!line.contains('\u{9b}') && !line.contains("filter-"), "{line:?}");
                let object = serde_json::from_str::<serde_json::Value>(line).ok();
                assert_eq!(
                    object.is_some_and(|object| object["warning"]["field"] == "filter.kinds[0]"),
                    json,
                    "{line}"
                );
            }
        }
    }
}
