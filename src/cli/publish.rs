//! `barid publish`: sends one draft to the own member's node, and shows the receipt.
//!
//! In scope: reading the draft, assigning an id so that a retry is safe, waiting for other members,
//! the receipt. Out of scope: validating the draft, which the node does field by field.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use barid_core::bulletin::header::BulletinId;
use barid_core::ids::Member;
use barid_core::limits::ENVELOPE_BYTES_MAX;
use barid_core::proto;
use clap::Args;
use tokio::time::Instant;

use super::client::Client;
use super::failure::Field;
use super::render::Render;
use super::{Context, Exit, Failure, Messages, args, leap_second, localize, message, times};
use crate::clock;

/// Largest draft that is read. JSON is larger than the envelope, but hardly ever four times as
/// large.
const DRAFT_BYTES_MAX: u64 = 4 * ENVELOPE_BYTES_MAX as u64;
/// Pause before the first retry when the node cannot be reached and gave no delay; doubled each
/// time.
const RETRY_DELAY_MS: u64 = 500;
/// Longest such pause: a user is waiting.
const RETRY_DELAY_MS_MAX: u64 = 5_000;

/// Code of the rule that an id breaks if it was created by a clock ahead of the node's.
const CLOCK_AHEAD: &str = "clock-ahead";

/// Longest time reserved for the response to arrive: two round trips on a satellite link.
const RESPONSE_TIMEOUT_MAX: Duration = Duration::from_secs(2);
/// With less time left, another attempt would not be answered in time.
const LAST_ATTEMPT: Duration = Duration::from_millis(400);

/// What to publish, and which members to wait for.
#[derive(Debug, Args)]
pub(super) struct PublishArgs {
    /// Draft in JSON (`examples/bulletins/`); `-` reads standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Wait until other members have stored it in full: a number of members, or their codes
    /// (`ma,tn`).
    #[arg(long, value_name = "N|MEMBERS")]
    wait_for: Option<WaitFor>,
    /// Seconds to try and to wait; the bulletin stays published after that.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    timeout: u32,
    /// Id to publish under, from an attempt that got no answer.
    #[arg(long, value_name = "UUIDV7")]
    id: Option<Id>,
}

/// A bulletin id on the command line.
#[derive(Clone, Copy, Debug)]
struct Id(BulletinId);

/// Members to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum WaitFor {
    Count(u32),
    Members(Vec<Member>),
}

impl FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| "a UUIDv7 in lower case".to_owned())
    }
}

impl FromStr for WaitFor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.bytes().all(|b| b.is_ascii_digit()) {
            let count = text.parse().ok().filter(|count| *count > 0);
            return count.map(Self::Count).ok_or_else(|| "a number of members from 1 on, or their codes".to_owned());
        }
        let members = text.split(',').map(|code| code.trim().parse::<Member>().map_err(|error| error.to_string()));
        // Duplicates count once.
        let members = members.collect::<Result<BTreeSet<_>, _>>()?;
        Ok(Self::Members(members.into_iter().collect()))
    }
}

/// Publishes the draft.
pub(super) async fn run(context: &Context, args: &PublishArgs) -> Result<Exit, Failure> {
    let (name, text) = read(&args.file)?;
    let mut draft = parse(&name, &text)?;
    let chosen = is_chosen(&draft, args);
    identify(&mut draft, args.id.map(|id| id.0), clock::unix_ms())?;
    let profile = context.profile()?;
    let deadline = Instant::now() + Duration::from_secs(args.timeout.into());
    let client = Client::open(&profile)?;
    let mut attempt = attempt_until(context, &client, &draft, args, deadline).await;
    if let Err(failure) = &attempt
        && !chosen
        && let Some(node_unix_ms) = clock_of_node(failure)
    {
        // This program created the id, by this machine's clock. The node rejected it, so nothing
        // was published under it and a new id is safe.
        warn_of_clock(context, node_unix_ms);
        draft.header.get_or_insert_default().id.clear();
        identify(&mut draft, None, node_unix_ms)?;
        attempt = attempt_until(context, &client, &draft, args, deadline).await;
    }
    let id = draft.header.as_ref().map(|header| header.id.clone()).unwrap_or_default();
    let again = again(context, &name, &id, args);
    let response = attempt.map_err(|failure| match failure.exit_code() {
        Exit::NotReached => failure.with_id("publish-unconfirmed").with("id", &id).with("command", &again),
        _ => failure.of_waiting(),
    })?;
    let exit = if response.wait_reached { Exit::Ok } else { Exit::NotReached };
    let written = if context.output.is_json() {
        context.output.json(&message::json_of(&response))
    } else {
        context.output.lines(receipt(&Render::new(context, profile.directory()), context, &response, args))
    };
    // A user who does not see the receipt must not publish a second time.
    written.map_err(|failure| failure.of_published(&id, &again))?;
    Ok(exit)
}

/// Returns the shell command that publishes the same bulletin again.
fn again(context: &Context, name: &str, id: &str, publish: &PublishArgs) -> String {
    let mut command = args::program(context.profile.as_deref());
    command += &format!(" publish {} --id {id}", args::shell_quoted(name));
    match &publish.wait_for {
        Some(WaitFor::Count(count)) => command += &format!(" --wait-for {count}"),
        Some(WaitFor::Members(members)) => {
            let codes: Vec<_> = members.iter().map(Member::as_str).collect();
            command += &format!(" --wait-for {}", codes.join(","));
        }
        None => {}
    }
    format!("{command} --timeout {}", publish.timeout)
}

fn read(file: &PathBuf) -> Result<(String, String), Failure> {
    let (name, reader): (String, Box<dyn Read>) = if file.as_os_str() == "-" {
        ("-".to_owned(), Box::new(std::io::stdin().lock()))
    } else {
        let open = std::fs::File::open(file);
        let open = open.map_err(|error| Failure::usage("file-unreadable").path(file).because(&error))?;
        (file.display().to_string(), Box::new(open))
    };
    let mut bytes = Vec::new();
    let unreadable = |error| Failure::usage("file-unreadable").with("path", &name).because(&error);
    reader.take(DRAFT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > DRAFT_BYTES_MAX {
        return Err(Failure::usage("draft-too-large").with("path", &name).with("nBytes", &DRAFT_BYTES_MAX));
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| Failure::usage("file-not-utf8").with("path", &name).because(&error.utf8_error()))?;
    // Editors on some systems begin a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    Ok((name, text))
}

fn parse(name: &str, text: &str) -> Result<proto::Draft, Failure> {
    leap_second::check(name, text)?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let read = serde_path_to_error::deserialize(&mut reader);
    let read = read.map_err(|error| (error.path().to_string(), error.into_inner()));
    read.and_then(|draft| reader.end().map(|()| draft).map_err(|error| (String::new(), error))).map_err(
        |(field, error)| {
            let failure = Failure::usage("draft-unreadable").with("path", name);
            let failure = failure.at(name, text, error.line(), error.column());
            // For text that is not JSON at all, the path is only how far the parser came.
            if !error.is_data() || field.is_empty() || field == "." {
                return failure.because(&error);
            }
            let place = format!(" at line {} column {}", error.line(), error.column());
            let message = error.to_string();
            let description = message.strip_suffix(&place).unwrap_or(&message).to_owned();
            failure.fields(vec![Field::new(&field, description)])
        },
    )
}

/// Returns whether the user chose the id.
fn is_chosen(draft: &proto::Draft, args: &PublishArgs) -> bool {
    args.id.is_some() || draft.header.as_ref().is_some_and(|header| !header.id.is_empty())
}

/// Returns the node's clock in Unix milliseconds, if the node rejected the id as too far ahead of
/// it.
fn clock_of_node(failure: &Failure) -> Option<u64> {
    let clock = failure.rule_values("header.id", CLOCK_AHEAD)?.last()?;
    let clock = times::parse(clock).ok()?;
    u64::try_from(clock.seconds).ok()?.checked_mul(1_000)
}

fn warn_of_clock(context: &Context, node_unix_ms: u64) {
    let minutes = clock::unix_ms().saturating_sub(node_unix_ms) / 60_000;
    context.warn("clock-ahead", &localize!(context.messages, "clock-ahead", nMinutes = minutes));
}

/// Sets an id if the draft has none, with the time `now_unix_ms`. A retry with the same id
/// publishes once.
fn identify(draft: &mut proto::Draft, chosen: Option<BulletinId>, now_unix_ms: u64) -> Result<String, Failure> {
    let header = draft.header.get_or_insert_default();
    if let Some(id) = chosen {
        if !header.id.is_empty() && header.id != id.to_string() {
            return Err(Failure::usage("two-ids").with("draft", &header.id).with("id", &id));
        }
        header.id = id.to_string();
    } else if header.id.is_empty() {
        let mut random = [0; 10];
        getrandom::fill(&mut random).map_err(|error| Failure::new("internal").cause(error.to_string()))?;
        header.id = BulletinId::new(now_unix_ms, &random).to_string();
    }
    Ok(header.id.clone())
}

/// Publishes, and retries while the node cannot be reached or requests a delay. All attempts end at
/// the deadline.
async fn attempt_until(
    context: &Context,
    client: &Client,
    draft: &proto::Draft,
    args: &PublishArgs,
    deadline: Instant,
) -> Result<proto::PublishResponse, Failure> {
    let mut delay_ms = RETRY_DELAY_MS;
    let mut last = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait_for = args.wait_for.as_ref().map(|wait| wait.to_proto(left.saturating_sub(response_timeout(left))));
        let request = proto::PublishRequest { draft: Some(draft.clone()), wait_for };
        let call = tokio::time::timeout_at(deadline, client.publish(request, left)).await;
        let failure = match call {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(failure)) => failure,
            Err(_) => return Err(last.unwrap_or_else(|| super::deadline::timed_out(args.timeout.into()))),
        };
        let transient = failure.exit_code() == Exit::NotReached || failure.retry_after_ms().is_some();
        let left = deadline.saturating_duration_since(Instant::now());
        let pause = match failure.retry_after_ms() {
            Some(ms) => Duration::from_millis(ms),
            // The last attempts come closer together, to use the whole time limit.
            None => Duration::from_millis(delay_ms).min(left / 2),
        };
        if !transient || pause >= left || left < LAST_ATTEMPT {
            return Err(failure);
        }
        delay_ms = (delay_ms * 2).min(RETRY_DELAY_MS_MAX);
        if !context.output.is_json() {
            let seconds = pause.as_secs().max(1);
            let line = match failure.retry_after_ms() {
                Some(_) => localize!(
                    context.messages,
                    "retry-after",
                    reason = failure.heading(&context.messages),
                    nSeconds = seconds
                ),
                None => localize!(context.messages, "trying-again", nSeconds = seconds),
            };
            context.output.error_line(&line);
        }
        last = Some(failure);
        tokio::time::sleep(pause).await;
    }
}

/// Returns the part of the remaining time that is reserved for the node's response to arrive, after
/// its wait for other members.
fn response_timeout(left: Duration) -> Duration {
    (left / 5).min(RESPONSE_TIMEOUT_MAX)
}

impl WaitFor {
    fn to_proto(&self, left: Duration) -> proto::WaitFor {
        let timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
        match self {
            Self::Count(count) => proto::WaitFor { count: *count, members: Vec::new(), timeout_ms },
            Self::Members(members) => {
                proto::WaitFor { count: 0, members: members.iter().map(ToString::to_string).collect(), timeout_ms }
            }
        }
    }
}

fn receipt(
    render: &Render<'_>,
    context: &Context,
    response: &proto::PublishResponse,
    publish: &PublishArgs,
) -> Vec<String> {
    let messages = &context.messages;
    let receipt = response.receipt.clone().unwrap_or_default();
    let look = format!("{} show {}", args::program(context.profile.as_deref()), receipt.id);
    let mut lines = vec![
        localize!(messages, "published-place", feed = &receipt.feed, place = receipt.index),
        messages.text("published-meaning"),
    ];
    lines.extend(render.block(&[
        render.pair("label-id", messages.value(&receipt.id)),
        render.pair("label-sent", messages.value(&times::seconds(receipt.sent_at.as_ref()))),
        render.pair("label-digest", messages.value(&hex::encode(&receipt.digest))),
    ]));
    if !response.stored.is_empty() {
        lines.push(messages.text("stored-heading"));
        lines.extend(render.stored(&response.stored));
    } else if publish.wait_for.is_none() {
        lines.push(localize!(messages, "stored-unknown", command = &look));
    }
    if !response.wait_reached {
        lines.push(wait_timed_out(render, messages, response, publish));
        lines.push(localize!(messages, "wait-timed-out-next", command = &look));
    }
    lines
}

/// Returns which members have not confirmed storage yet.
fn wait_timed_out(
    render: &Render<'_>,
    messages: &Messages,
    response: &proto::PublishResponse,
    publish: &PublishArgs,
) -> String {
    let seconds = publish.timeout;
    match &publish.wait_for {
        Some(WaitFor::Count(count)) => {
            localize!(
                messages,
                "wait-timed-out-short",
                nStored = response.stored.len(),
                nWanted = *count,
                nSeconds = seconds
            )
        }
        wanted => {
            let members = if let Some(WaitFor::Members(members)) = wanted { members.as_slice() } else { &[] };
            let absent = members.iter().filter(|member| response.stored.iter().all(|by| by.member != member.as_str()));
            let missing = absent.map(|member| render.member(member.as_str())).collect::<Vec<_>>().join(", ");
            localize!(messages, "wait-timed-out", nSeconds = seconds, missing = missing)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use barid_core::bulletin::kinds;

    use super::*;
    use crate::cli::messages::{Lang, Messages};
    use crate::cli::output::Output;
    use crate::cli::profile::Directory;

    fn args(wait_for: Option<&str>) -> PublishArgs {
        let wait_for = wait_for.map(|text| text.parse().unwrap());
        PublishArgs { file: "draft.json".into(), wait_for, timeout: 30, id: None }
    }

    #[test]
    fn bulletin_id_is_generated_once() {
        let mut draft = kinds::REGISTRY[0].sample().unwrap();
        draft.header.as_mut().unwrap().id.clear();
        let first = identify(&mut draft, None, 7).unwrap();
        assert_eq!(first.parse::<BulletinId>().unwrap().unix_ms(), 7);
        assert_eq!(identify(&mut draft, None, 8).unwrap(), first);
        assert_eq!(identify(&mut draft, Some(first.parse().unwrap()), 8).unwrap(), first);
        let other = BulletinId::new(1, &[1; 10]);
        assert_eq!(identify(&mut draft, Some(other), 8).unwrap_err().exit_code(), Exit::Usage);
    }

    #[test]
    fn wait_for_parses_count_or_members() {
        assert_eq!("2".parse::<WaitFor>().unwrap(), WaitFor::Count(2));
        let WaitFor::Members(members) = "ma, tn".parse().unwrap() else { panic!("codes") };
        assert_eq!(members.iter().map(Member::as_str).collect::<Vec<_>>(), ["ma", "tn"]);
        assert_eq!("tn,tn".parse::<WaitFor>().unwrap(), "tn".parse::<WaitFor>().unwrap());
        assert!("MA".parse::<WaitFor>().is_err());
        assert!("99999999999".parse::<WaitFor>().is_err());
    }

    #[test]
    fn draft_accepts_any_proto_json() {
        let draft = parse(
            "draft.json",
            r#"{"header": {"format": 1.0, "msg_type": "Alert", "rosterVersion": "1e0", "id": null, "references": null,
                "sentAt": "2025-11-23T20:44:04.25+01:00"},
                "body": {"attachments": [{"size": 4.12e2, "sha256": "_-8"}], "cancellation": null,
                "situationReport": {"observations": [{"subject": "crossings", "count": 412.0}]}}}"#,
        );
        let draft = draft.unwrap();
        let (header, body) = (draft.header.unwrap(), draft.body.unwrap());
        assert_eq!((header.format, header.msg_type.as_str(), header.roster_version), (1, "Alert", 1));
        let sent_at = header.sent_at.unwrap();
        assert_eq!((sent_at.seconds, sent_at.nanos), (1_763_927_044, 250_000_000));
        assert_eq!((body.attachments[0].size, body.attachments[0].sha256.as_ref()), (412, &[0xff, 0xef][..]));
        let Some(proto::body::Content::SituationReport(report)) = body.content else { panic!("another kind") };
        assert_eq!(report.observations[0].count, Some(412));
    }

    #[test]
    fn draft_error_names_path_as_written() {
        for (draft, expected) in [
            (r#"{"body": {"texts": [{}, {"headlin": "x"}]}}"#, "body.texts[1].headlin: unknown field `headlin`"),
            (r#"{"header": {"msgType": "Ack", "msg_type": "Ack"}}"#, "header.msg_type: field `msgType` is given twice"),
            (
                r#"{"header": {"expires": "tomorrow"}}"#,
                "header.expires: invalid value: string \"tomorrow\", expected an instant",
            ),
            (
                r#"{"header": {"format": 1.5}}"#,
                "header.format: invalid type: floating point `1.5`, expected a whole number",
            ),
            (r#"{"body": {"attachments": [{"size": -1}]}}"#, "body.attachments[0].size: -1 is out of range"),
            (r#"{"body": {"cancellation": {}, "acknowledgement": {}}}"#, "body.acknowledgement: only one of"),
        ] {
            let failure = parse("draft.json", draft).unwrap_err().to_string();
            assert!(failure.contains(expected), "{draft}: {failure}");
        }
    }

    #[test]
    fn malformed_draft_is_usage_error_with_location() {
        let failure = parse("draft.json", "{\"header\": {\"topik\": 1}}").unwrap_err();
        assert_eq!(failure.exit_code(), Exit::Usage);
        assert!(failure.to_string().contains("topik"), "{failure}");
        let failure = parse("draft.json", "{\"header\": {\n\"topic\": 5}}").unwrap_err();
        assert!(
            failure.to_string().contains("header.topic: invalid type: integer `5`, expected a string"),
            "{failure}"
        );
        for cut in ["{\"header\": {", "{} x", "5"] {
            assert_eq!(parse("draft.json", cut).unwrap_err().exit_code(), Exit::Usage);
        }
    }

    #[test]
    fn receipt_is_localized_with_feed_and_holders() {
        let response = proto::PublishResponse {
            receipt: Some(proto::Receipt {
                feed: "ne.rabat.example/feed/1".into(),
                id: "01976f6e-7c00-7000-8000-000000000001".into(),
                index: 4,
                ..Default::default()
            }),
            stored: vec![proto::StoredBy { member: "tn".into(), at: None }],
            wait_reached: false,
        };
        for lang in Lang::ALL {
            let context = Context::new(Messages::new(lang), Output::plain(), None);
            let render = Render::new(&context, Directory::of("ne".parse().unwrap()));
            let text = receipt(&render, &context, &response, &args(Some("tn,ma"))).join("\n");
            for part in
                ["ne.rabat.example/feed/1", "4", "tn", "ma", "30", "barid show 01976f6e-7c00-7000-8000-000000000001"]
            {
                assert!(text.contains(part), "{lang:?}: {text}");
            }
            let text = receipt(&render, &context, &response, &args(Some("3"))).join("\n");
            assert!(!text.contains("1/3") && text.contains('3'), "{lang:?}: {text}");
        }
    }
}
