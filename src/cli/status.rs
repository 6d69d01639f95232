//! `barid status`: shows the status of the node, its feed and its peers.
//!
//! In scope: the status with its alarms. The exit code is 0 if the node answered, whatever its
//! status. Out of scope: whether the node serves (`health`).

use barid_core::proto;
use clap::Args;
use fluent_bundle::FluentArgs;
use owo_colors::Style;
use prost_types::Timestamp;

use super::client::Client;
use super::deadline::TimeoutArgs;
use super::messages::{Arg, Messages};
use super::output::{Cell, Table};
use super::render::Render;
use super::{Context, Exit, Failure, localize, message, times};

/// Arguments of `barid status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    pub(super) within: TimeoutArgs,
}

/// Shows the status.
pub(super) async fn run(context: &Context, args: &StatusArgs) -> Result<Exit, Failure> {
    let profile = context.profile()?;
    let client = Client::with_timeout(&profile, args.within.duration())?;
    let status = client.status().await?;
    if context.output.is_json() {
        context.output.json(&message::json_of(&status))?;
    } else {
        context.output.lines(lines(context, &Render::new(context, profile.directory()), &status))?;
    }
    Ok(Exit::Ok)
}

fn lines(context: &Context, render: &Render<'_>, status: &proto::GetStatusResponse) -> Vec<String> {
    let (messages, output) = (&context.messages, &context.output);
    let own = status.own.clone().unwrap_or_default();
    let publishing = publishing(messages, &status.publishing);
    let good = if status.publishing == "yes" { Style::new().green() } else { Style::new().red().bold() };
    let number = |n: u64| messages.isolate(&n.to_string());
    let corrected = match status.corrected_bits {
        0 => String::new(),
        bits => localize!(messages, "corrected-bits", nBits = bits),
    };
    let mut lines = vec![output.paint(
        &localize!(messages, "node-heading", member = render.name(&status.member), exchange = &status.exchange),
        Style::new().bold(),
    )];
    lines.extend(render.block(&[
        render.pair("label-publishing", output.paint(&publishing, good)),
        render.pair("label-feed", localize!(messages, "feed-size", feed = &own.feed, nEntries = own.size)),
        render.pair("label-root", messages.value(&hex::encode(&own.root))),
        render.pair("label-offset", number(status.newest_offset)),
        render.pair("label-roster", number(status.roster_version)),
        render.pair("label-index-lag", number(status.index_lag_commits)),
        render.pair("label-corrected", corrected),
        render.pair("label-now", messages.value(&times::seconds(status.now.as_ref()))),
        render.pair("label-version", messages.value(&status.version)),
    ]));
    lines.push(String::new());
    lines.extend(peers(context, render, status));
    let held: Vec<String> = status.peers.iter().flat_map(|peer| undisclosed_ranges(context, render, peer)).collect();
    if !held.is_empty() {
        lines.push(String::new());
        lines.push(output.paint(&messages.text("node-not-held"), Style::new().bold()));
        lines.extend(held);
    }
    lines.extend(budgets(context, status));
    lines.push(String::new());
    if status.alarms.is_empty() {
        lines.push(messages.text("node-no-alarms"));
    } else {
        lines.push(output.paint(&messages.text("node-alarms"), Style::new().red().bold()));
        // An older node sends the texts alone.
        let coded = |n: usize| status.coded_alarms.get(n).filter(|alarm| !alarm.code.is_empty());
        lines.extend(status.alarms.iter().enumerate().map(|(n, text)| match coded(n) {
            Some(alarm) => alarm_line(context, alarm, status.now.as_ref()),
            None => format!("  ⚠ {}", messages.value(text)),
        }));
    }
    lines
}

/// Returns the budgets that were more than half used since the start, or were exhausted, with their
/// largest user.
fn budgets(context: &Context, status: &proto::GetStatusResponse) -> Vec<String> {
    let messages = &context.messages;
    let busy = |usage: &&proto::BudgetUsage| usage.denied > 0 || usage.high_water > usage.total / 2;
    let headings = ["column-budget", "column-in-use", "column-most", "column-bound", "column-denied", "column-owner"];
    let mut table = Table::new(headings.map(|id| messages.text(id)));
    let mut any = false;
    for usage in status.budgets.iter().filter(busy) {
        any = true;
        let owner = usage.owners.first().map(|owner| messages.value(&owner.owner)).unwrap_or_default();
        let number = |n: u64| Cell::from(messages.isolate(&n.to_string()));
        table.row([
            Cell::from(messages.value(&usage.name)),
            number(usage.used),
            number(usage.high_water),
            Cell::from(messages.isolate(&format!("{} {}", usage.total, usage.unit))),
            number(usage.denied),
            Cell::from(owner),
        ]);
    }
    if any { [vec![String::new()], table.lines(&context.output)].concat() } else { Vec::new() }
}

/// Returns whether the node publishes, with the reason if there is one.
fn publishing(messages: &Messages, text: &str) -> String {
    let (state, reason) = text.split_once(": ").unwrap_or((text, ""));
    let mut args = FluentArgs::new();
    args.set("reason", reason.arg());
    let known = ["disk-full", "needs-recovery", "stopped"]
        .contains(&state)
        .then(|| messages.find(&format!("publishing-{state}"), Some(&args)));
    known.flatten().unwrap_or_else(|| messages.term("publishing", text))
}

/// Returns an alarm with its severity, how long ago it was raised, and how often.
fn alarm_line(context: &Context, alarm: &proto::Alarm, now: Option<&Timestamp>) -> String {
    let messages = &context.messages;
    let text = alarm_text(messages, alarm);
    let style = match alarm.severity.as_str() {
        "critical" => Style::new().red().bold(),
        "warning" => Style::new().yellow(),
        _ => Style::new(),
    };
    let severity = context.output.paint(&messages.term("alarm-severity", &alarm.severity), style);
    let since = ago(context, now, alarm.since.as_ref());
    let raised = match alarm.count {
        // An older node sends the text alone.
        _ if alarm.severity.is_empty() => return format!("  ⚠ {text}"),
        0 | 1 => localize!(messages, "alarm-raised", at = since),
        count => localize!(messages, "alarm-raised-times", at = since, nTimes = count),
    };
    format!("  ⚠ {severity}: {text} ({raised})")
}

/// Returns an alarm in the reader's language, or in English as the node sent it if the catalogue
/// lacks it. The English catalogue has none.
fn alarm_text(messages: &Messages, alarm: &proto::Alarm) -> String {
    let mut args = FluentArgs::new();
    for (place, value) in (1..).zip(&alarm.values) {
        args.set(format!("v{place}"), value.arg());
    }
    messages.find(&format!("alarm-{}", alarm.code), Some(&args)).unwrap_or_else(|| messages.value(&alarm.text))
}

fn peers(context: &Context, render: &Render<'_>, status: &proto::GetStatusResponse) -> Vec<String> {
    let messages = &context.messages;
    let headings = [
        "column-peer",
        "column-link",
        "column-feed",
        "column-lag",
        "column-cosigned",
        "column-custody",
        "column-heartbeat",
    ];
    let mut table = Table::new(headings.map(|id| messages.text(id)));
    let own_size = status.own.as_ref().map_or(0, |own| own.size);
    for peer in &status.peers {
        let (link, style) = if peer.linked {
            (messages.text("link-up"), Style::new().green())
        } else {
            (messages.text("link-down"), Style::new().red())
        };
        let feed = peer.feed.clone().unwrap_or_default();
        let lag = match peer.lag_entries {
            0 => messages.text("lag-none"),
            entries => localize!(messages, "lag", nEntries = entries, nSeconds = peer.lag_seconds),
        };
        let behind = |size: u64, at: Option<&Timestamp>| {
            let at = ago(context, status.now.as_ref(), at);
            messages.isolate(&if at.is_empty() {
                format!("{size}/{own_size}")
            } else {
                format!("{size}/{own_size} {at}")
            })
        };
        table.row([
            Cell::from(render.member(&peer.member)),
            Cell::styled(link, style),
            Cell::from(messages.isolate(&feed.size.to_string())),
            Cell::from(lag),
            Cell::from(behind(peer.cosigned_size, peer.last_cosignature.as_ref())),
            Cell::from(behind(peer.custody_size, None)),
            Cell::from(ago(context, status.now.as_ref(), peer.last_heartbeat.as_ref())),
        ]);
    }
    let mut lines = table.lines(&context.output);
    for peer in status.peers.iter().filter(|peer| !peer.linked && !peer.last_error.is_empty()) {
        let error = localize!(messages, "link-error", member = render.name(&peer.member), cause = &peer.last_error);
        lines.push(format!("  {error}"));
    }
    lines
}

/// Returns the exact ranges of a peer's feed that are held as digests only, each with its reason.
fn undisclosed_ranges(context: &Context, render: &Render<'_>, peer: &proto::PeerStatus) -> Vec<String> {
    let messages = &context.messages;
    let line = |held: &proto::UndisclosedRange| {
        let range = held.range.unwrap_or_default();
        let places = match range.end.saturating_sub(range.start) {
            0 | 1 => range.start.to_string(),
            _ => format!("{}–{}", range.start, range.end - 1),
        };
        let reason = messages.term("undisclosed", &held.reason);
        format!(
            "  {}",
            localize!(messages, "node-range", member = render.name(&peer.member), places = places, reason = reason)
        )
    };
    peer.undisclosed_ranges.iter().map(line).collect()
}

/// Returns how long before the node's `now` a time was, as text.
fn ago(context: &Context, now: Option<&Timestamp>, at: Option<&Timestamp>) -> String {
    let (Some(now), Some(at)) = (now, at) else { return String::new() };
    let seconds = now.seconds.saturating_sub(at.seconds).max(0);
    let messages = &context.messages;
    match seconds {
        0..120 => localize!(messages, "ago-seconds", nSeconds = seconds),
        120..7_200 => localize!(messages, "ago-minutes", nMinutes = seconds / 60),
        7_200..172_800 => localize!(messages, "ago-hours", nHours = seconds / 3_600),
        _ => localize!(messages, "ago-days", nDays = seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::messages::{FSI, Lang, PDI};
    use crate::cli::output::Output;
    use crate::cli::profile::Directory;
    use crate::telemetry::alarms::examples;

    #[test]
    fn every_alarm_is_localized_with_its_values() {
        for alarm in examples() {
            let (text, code, values) = (alarm.to_string(), alarm.code().to_owned(), alarm.values());
            let alarm = proto::Alarm { text, code, values, ..Default::default() };
            for lang in Lang::ALL {
                let text = alarm_text(&Messages::new(lang), &alarm);
                let has_values = alarm.values.iter().all(|value| text.contains(value.as_str()));
                assert!(has_values && (text == alarm.text) == (lang == Lang::En), "{lang:?} {alarm:?}: {text}");
            }
        }
    }

    #[test]
    fn alarm_line_has_severity_since_and_count() {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let alarm = |severity: &str, count| proto::Alarm {
            text: "something".into(),
            code: "none-of-ours".into(),
            since: at(1_000),
            count,
            severity: severity.into(),
            ..Default::default()
        };
        for lang in Lang::ALL {
            let context = Context::new(Messages::new(lang), Output::plain(), None);
            let line = |alarm: &proto::Alarm| alarm_line(&context, alarm, at(1_060).as_ref());
            let often = line(&alarm("warning", 960));
            for part in ["something", "60", "960", &context.messages.text("alarm-severity-warning")] {
                assert!(often.contains(part), "{lang:?}: {part} in {often}");
            }
            assert!(!line(&alarm("critical", 1)).contains("960"));
            assert!(line(&alarm("", 0)).ends_with(&context.messages.value("something")), "of an older node");
        }
    }

    #[test]
    fn publishing_state_is_localized() {
        let french = Messages::new(Lang::Fr);
        assert_eq!(
            publishing(&french, "needs-recovery: the high-water mark is missing"),
            "NON : rétablissement nécessaire : the high-water mark is missing"
        );
        assert!(publishing(&french, "stopped: the store has failed").contains("stockage"));
        assert_eq!(publishing(&french, "yes"), french.text("publishing-yes"));
        assert_eq!(publishing(&french, "resting: for a while"), "resting: for a while");
    }

    #[test]
    fn status_prints_lag_ranges_and_alarms() {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let range = |start, end, reason: &str| proto::UndisclosedRange {
            range: Some(proto::IndexRange { start, end }),
            reason: reason.to_owned(),
        };
        let peer = proto::PeerStatus {
            member: "ly".into(),
            last_error: "connection refused".into(),
            lag_entries: 12,
            lag_seconds: 30,
            undisclosed_ranges: vec![range(3, 4, "withheld"), range(7, 10, "not_held")],
            cosigned_size: 5,
            last_cosignature: at(1_000),
            ..Default::default()
        };
        let status = proto::GetStatusResponse {
            member: "ma".into(),
            publishing: "yes".into(),
            corrected_bits: 77,
            now: at(1_060),
            own: Some(proto::FeedStatus { feed: "ma.rabat.example/feed/1".into(), size: 9, ..Default::default() }),
            peers: vec![peer],
            alarms: vec!["something\u{1b}[1m".into()],
            budgets: vec![
                proto::BudgetUsage { name: "api_calls".into(), total: 4_096, denied: 31, ..Default::default() },
                proto::BudgetUsage { name: "link_bytes".into(), total: 4_096, high_water: 4, ..Default::default() },
            ],
            ..Default::default()
        };
        for lang in Lang::ALL {
            let context = Context::new(Messages::new(lang), Output::plain(), None);
            let render = Render::new(&context, Directory::of("ma".parse().expect("a code")));
            let text = lines(&context, &render, &status).join("\n");
            for part in ["ma.rabat.example/feed/1", "connection refused", "12", "30", "7–9", "5/9", "60", "77"] {
                assert!(text.contains(part), "{lang:?}: {part} in {text}");
            }
            assert!(text.contains(&context.messages.text("undisclosed-not-held")), "{text}");
            assert!(text.contains("api_calls") && text.contains("31") && !text.contains("link_bytes"), "{text}");
            assert!(!text.contains('\u{1b}'));
            assert_eq!(text.matches(FSI).count(), text.matches(PDI).count());
        }
    }
}
