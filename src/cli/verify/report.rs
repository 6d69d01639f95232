//! The verdict as text for readers who were not involved: publisher, content and time, the members
//! that attest it, and what is not proven.

use barid_core::evidence::{Cosigner, CustodyHolder, Dispute, Outcome, Report, Uncounted};
use owo_colors::Style;
use prost_types::Timestamp;

use super::{Judged, faults};
use crate::cli::messages::Messages;
use crate::cli::render::{Reading, Render};
use crate::cli::{Context, localize, times, wrap};

/// Indentation of a section below its title.
const INDENT: &str = "  ";

/// Converts Unix seconds to a timestamp.
pub(super) fn timestamp(time: u64) -> Timestamp {
    Timestamp { seconds: i64::try_from(time).unwrap_or(i64::MAX), nanos: 0 }
}

/// Returns the whole text.
pub(super) fn lines(context: &Context, render: &Render<'_>, judged: &Judged) -> Vec<String> {
    let (messages, output) = (&context.messages, &context.output);
    let outcome = &judged.verdict.outcome;
    let Some(report) = &judged.verdict.report else {
        let (id, colour, error) = match outcome {
            Outcome::Undecided(error) => ("verify-undecided", Style::new().yellow(), error),
            Outcome::Invalid(error) => ("verify-invalid", Style::new().red(), error),
            _ => return Vec::new(),
        };
        let labelled = |id: &str, text: &str| {
            let label = output.paint(&messages.text(id), Style::new().bold());
            wrap::hanging(&format!("  {label} "), text, output.width())
        };
        let detail = faults::detail(messages, error).map(|detail| messages.isolate(&detail));
        return [
            vec![output.paint(&messages.text(id), colour.bold())],
            labelled("failure-why", &faults::sentence(messages, error)),
            detail.map(|detail| labelled("invalid-detail", &detail)).unwrap_or_default(),
            labelled("failure-next", &faults::next(messages, error)),
        ]
        .concat();
    };
    let text = ReportText { context, render, messages, report };
    let mut lines = vec![text.heading(outcome)];
    if let Outcome::Disputed(disputes) = outcome {
        let disputes = disputes.iter().map(|dispute| format!("⚠ {}", text.dispute(dispute)));
        lines.extend(text.section("verify-disputes", disputes));
    }
    lines.extend(text.section("verify-who", text.who(outcome)));
    let inside = output.clone().with_width(output.width().saturating_sub(INDENT.len()));
    lines.extend(text.section("verify-what", render.on(&inside).full(&Reading::new(&judged.delivery))));
    lines.extend(text.section("verify-witnesses", text.witnesses()));
    lines.extend(text.section("verify-custody", text.custody()));
    lines.extend(text.section("verify-roster", text.roster(judged)));
    lines.extend(text.section("verify-unproven", text.unproven(outcome).iter().map(|line| format!("– {line}"))));
    lines
}

struct ReportText<'a> {
    context: &'a Context,
    render: &'a Render<'a>,
    messages: &'a Messages,
    report: &'a Report,
}

impl ReportText<'_> {
    fn heading(&self, outcome: &Outcome) -> String {
        let (id, style) = match outcome {
            Outcome::Witnessed => ("verify-witnessed", Style::new().green().bold()),
            Outcome::SignedOnly => ("verify-signed-only", Style::new().yellow().bold()),
            Outcome::Disputed(_) => ("verify-disputed", Style::new().red().bold()),
            Outcome::Undecided(_) => ("verify-undecided", Style::new().yellow().bold()),
            Outcome::Invalid(_) => ("verify-invalid", Style::new().red().bold()),
        };
        let (member, feed) = (self.render.name(self.report.member.as_str()), self.report.feed.to_string());
        let (place, witnesses) = (self.report.index.to_string(), self.report.counted);
        let text = localize!(self.messages, id, member = member, feed = feed, place = place, nWitnesses = witnesses);
        self.context.output.paint(&text, style)
    }

    /// Returns a section: a title and its lines.
    fn section(&self, id: &str, lines: impl IntoIterator<Item = String>) -> Vec<String> {
        let title = self.context.output.paint(&self.messages.text(id), Style::new().bold());
        let indented = |line: String| if line.is_empty() { line } else { format!("{INDENT}{line}") };
        [String::new(), title].into_iter().chain(lines.into_iter().map(indented)).collect()
    }

    fn who(&self, outcome: &Outcome) -> Vec<String> {
        let report = self.report;
        let (member, issuer) = (self.render.name(report.member.as_str()), &report.issuer);
        let mut lines = vec![localize!(self.messages, "verify-issuer", member = &member, issuer = issuer)];
        if let Some(at) = report.sent_at {
            lines.push(localize!(self.messages, "verify-sent", at = times::seconds(Some(&at.to_proto()))));
        }
        let is_disputed = matches!(outcome, Outcome::Disputed(_));
        let signed = if is_disputed { "verify-signed-disputed" } else { "verify-signed" };
        lines.push(localize!(self.messages, signed, feed = report.feed.to_string()));
        lines
    }

    fn witnesses(&self) -> Vec<String> {
        let line = |one: &Cosigner| {
            let (member, at) = (self.render.name(one.member.as_str()), self.at(one.time));
            match one.uncounted {
                None => format!("✓ {}", localize!(self.messages, "verify-witness", member = member, at = at)),
                Some(reason) => {
                    let reason = self.messages.text(uncounted(reason));
                    let text = localize!(self.messages, "verify-uncounted", member = member, at = at);
                    format!("✗ {text} {reason}")
                }
            }
        };
        let (counted, quorum) = (self.report.counted, self.report.quorum);
        let mut lines: Vec<String> = self.report.cosigners.iter().map(line).collect();
        if lines.is_empty() {
            lines.push(format!("✗ {}", self.messages.text("verify-no-witness")));
        }
        lines.push(localize!(self.messages, "verify-quorum", nCounted = counted, nQuorum = quorum));
        lines
    }

    fn custody(&self) -> Vec<String> {
        let line = |one: &CustodyHolder| {
            let (member, at) = (self.render.name(one.member.as_str()), self.at(one.time));
            let text = localize!(self.messages, "stored-by", member = member, at = at);
            if one.valid {
                format!("✓ {text}")
            } else {
                format!("✗ {text} {}", self.messages.text("custody-key-expired"))
            }
        };
        let mut lines: Vec<String> = self.report.custody.iter().map(line).collect();
        if lines.is_empty() {
            lines.push(self.messages.text("verify-no-custody"));
        }
        lines
    }

    fn roster(&self, judged: &Judged) -> Vec<String> {
        let (trusted, decided) = (judged.trusted.version(), self.report.roster_version);
        let id = if decided == trusted { "verify-decided" } else { "verify-decided-later" };
        let mut lines = vec![
            localize!(self.messages, "verify-trusted", path = &judged.path, version = trusted.to_string()),
            localize!(self.messages, id, version = decided.to_string()),
        ];
        if !self.report.rosters_tied {
            lines.push(self.messages.text("verify-rosters-untied"));
        }
        lines
    }

    fn unproven(&self, outcome: &Outcome) -> Vec<String> {
        let alone = *outcome == Outcome::SignedOnly;
        let more = alone.then_some("unproven-seen");
        let always = ["unproven-truth", "unproven-read", "unproven-absence", "unproven-now", "unproven-clocks"];
        more.into_iter().chain(always).map(|id| self.messages.text(id)).collect()
    }

    fn dispute(&self, dispute: &Dispute) -> String {
        match dispute {
            Dispute::FeedKeyExpired { compromised, until } => {
                let id = if *compromised { "dispute-key-stolen" } else { "dispute-key-retired" };
                let at = Timestamp { seconds: *until, nanos: 0 };
                localize!(self.messages, id, at = times::seconds(Some(&at)))
            }
            Dispute::Closed { size, index } => {
                localize!(self.messages, "dispute-closed", nSize = *size, place = index.to_string())
            }
            Dispute::Fork { size, by } => {
                let by = match by.as_str() {
                    "the governors" => self.messages.text("governors"),
                    member => self.render.name(member),
                };
                localize!(self.messages, "dispute-fork", nSize = *size, by = by)
            }
            Dispute::FeedKeyGone => self.messages.text("dispute-key-gone"),
            Dispute::CosignerKeyExpired => self.messages.text("dispute-cosigner-key-expired"),
        }
    }

    fn at(&self, time: u64) -> String {
        times::seconds(Some(&timestamp(time)))
    }
}

fn uncounted(reason: Uncounted) -> &'static str {
    match reason {
        Uncounted::Publisher => "uncounted-publisher",
        Uncounted::NotFull => "uncounted-not-full",
        Uncounted::Earlier => "uncounted-earlier",
        Uncounted::KeyExpired => "uncounted-key-expired",
        Uncounted::FeedKeyExpired => "uncounted-feed-key-expired",
    }
}
