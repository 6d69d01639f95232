//! The error type of the command line: what failed, why, what to do, and the exit code.
//!
//! In scope: one type for all commands, its text in the reader's language and its JSON form, and
//! the one map from a node's error (`tonic::Status` with google.rpc details). Out of scope: the
//! errors of other modules.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use barid_core::bulletin::FieldError;
use fluent_bundle::FluentArgs;
use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceSpan};
use serde_json::json;
use tonic_types::StatusExt;

use super::messages::{Arg, Messages, clean};
use super::output::Output;

/// Exit code of a run. The numbers are part of the interface: scripts and containers rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: success. For `verify`: witnessed.
    Ok = 0,
    /// 1: failed, or rejected or denied by the node.
    Failure = 1,
    /// 2: the command line, or a file named on it, cannot be used.
    Usage = 2,
    /// 3: not reached in time: the node did not answer, or the awaited condition did not occur.
    NotReached = 3,
    /// 10, `verify`: signed by the feed, but not witnessed by a quorum. `roster verify`: signed by
    /// its own governors, but not linked to a trusted roster.
    SignedOnly = 10,
    /// 11, `verify`: signed by a key of an epoch that the roster has since closed, and not
    /// witnessed. `roster verify`: a second roster of one version.
    Disputed = 11,
    /// 12, `verify`: the file does not prove its content. `roster verify`: signatures are missing
    /// or invalid, or the file is no roster.
    Invalid = 12,
    /// 13, `verify`: this roster does not suffice to decide; a newer one is needed.
    Undecided = 13,
    /// 14, `verify`: the file proves an equivocation: one feed's key signed two trees.
    Equivocation = 14,
}

/// One field at fault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Field {
    /// Path: `header.handling.tlp`.
    pub field: String,
    /// The value found and what was expected, in English.
    pub description: String,
    /// The value found; empty if the field is missing.
    pub found: String,
    /// Code of the rule that the field breaks; empty if it breaks none of
    /// [`Rule`](barid_core::bulletin::Rule).
    pub rule: String,
    /// Values for the placeholders of the rule's text.
    pub values: Vec<String>,
}

impl Field {
    /// Creates a field at fault with a description in English alone.
    pub(super) fn new(field: &str, description: String) -> Self {
        Self { field: field.to_owned(), description, ..Self::default() }
    }

    /// Converts a field error found by this program itself.
    pub(super) fn of(error: &FieldError) -> Self {
        let (rule, values) = (error.rule.code().to_owned(), error.rule.values());
        Self { found: error.found.clone(), rule, values, ..Self::new(&error.field, error.description()) }
    }

    /// Returns the found and expected values in the reader's language, or in English if the
    /// catalogue lacks the rule. The English catalogue has none: the description is the text.
    pub(super) fn localize(&self, messages: &Messages) -> String {
        let mut args = FluentArgs::new();
        for (place, value) in (1..).zip(&self.values) {
            let term = messages.find(&format!("rule-value-{}", value.replace(' ', "-")), None);
            args.set(format!("v{place}"), term.as_ref().unwrap_or(value).arg());
        }
        let Some(expected) = messages.find(&format!("rule-{}", self.rule), Some(&args)) else {
            return messages.value(&self.description);
        };
        let mut args = FluentArgs::new();
        args.set("expected", fluent_bundle::FluentValue::from(expected));
        args.set("found", self.found.as_str().arg());
        messages.with(if self.found.is_empty() { "rule-missing" } else { "rule-broken" }, &args)
    }
}

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    id: &'static str,
    exit: Exit,
    args: Vec<(&'static str, String)>,
    cause: Option<String>,
    fields: Vec<Field>,
    retry_after_ms: Option<u64>,
    source: Option<Box<(NamedSource<String>, SourceSpan)>>,
}

impl Failure {
    /// Creates a failure with message `error-<id>` of the catalogue and its attributes `.why`
    /// (unless there is a cause) and `.next`. Its exit code is [`Exit::Failure`].
    #[must_use]
    pub fn new(id: &'static str) -> Self {
        let (args, fields) = (Vec::new(), Vec::new());
        Self { id, exit: Exit::Failure, args, cause: None, fields, retry_after_ms: None, source: None }
    }

    /// Creates a failure of the command line, or of a file named on it.
    #[must_use]
    pub fn usage(id: &'static str) -> Self {
        Self { exit: Exit::Usage, ..Self::new(id) }
    }

    /// Creates the result for a closed output pipe, as with `head`. It is no failure: nothing is
    /// shown and the exit code is 0.
    #[must_use]
    pub fn closed_output() -> Self {
        Self { exit: Exit::Ok, ..Self::new(CLOSED_OUTPUT) }
    }

    /// Sets the exit code.
    #[must_use]
    pub fn exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }

    /// Sets another message.
    #[must_use]
    pub fn with_id(self, id: &'static str) -> Self {
        Self { id, ..self }
    }

    /// Adds a value for the message.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &(impl ToString + ?Sized)) -> Self {
        self.args.push((name, value.to_string()));
        self
    }

    /// Adds the message's `path`.
    #[must_use]
    pub fn path(self, path: &Path) -> Self {
        self.with("path", &path.display())
    }

    /// Sets the cause: the text of `error` and its sources.
    #[must_use]
    pub fn because(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        self.cause = Some(chain(error));
        self
    }

    /// Sets the cause as text.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into()).filter(|cause: &String| !cause.is_empty());
        self
    }

    /// Sets the fields at fault.
    #[must_use]
    pub fn fields(mut self, fields: Vec<Field>) -> Self {
        self.fields = fields;
        self
    }

    /// Sets the position of the fault in a text; `line` and `column` count from 1, as parsers
    /// report them.
    #[must_use]
    pub fn at(mut self, name: &str, text: &str, line: usize, column: usize) -> Self {
        let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
        // An excerpt of a very long line would not show the position on any screen.
        if text[start.min(text.len())..].lines().next().is_some_and(|line| line.len() > EXCERPT_LINE_BYTES_MAX) {
            return self;
        }
        let mut byte_offset = (start + column.saturating_sub(1)).min(text.len());
        while !text.is_char_boundary(byte_offset) {
            byte_offset -= 1;
        }
        self.source = Some(Box::new((NamedSource::new(name, text.to_owned()), SourceSpan::from((byte_offset, 0)))));
        self
    }

    /// Converts the failure of a read call: its arguments were rejected, not a bulletin.
    #[must_use]
    pub fn of_reading(self) -> Self {
        if self.id == "rejected-fields" { self.with_id("rejected-arguments") } else { self }
    }

    /// Converts a rejection of `wait_for` fields only: `--wait-for` is wrong, not the bulletin.
    #[must_use]
    pub fn of_waiting(mut self) -> Self {
        if self.fields.is_empty() || !self.fields.iter().all(|field| field.field.starts_with("wait_for")) {
            return self;
        }
        for field in &mut self.fields {
            "--wait-for".clone_into(&mut field.field);
        }
        // The cause only repeats the fields in English.
        self.cause = None;
        self.with_id("wait-for").exit(Exit::Usage)
    }

    /// Converts a failure to write the receipt: the bulletin is published all the same.
    #[must_use]
    pub fn of_published(self, id: &str, again: &str) -> Self {
        if self.id == CLOSED_OUTPUT {
            self
        } else {
            self.with_id("published-unwritten").with("id", id).with("command", again)
        }
    }

    /// Maps a node's status to a failure.
    #[must_use]
    pub fn from_status(status: &tonic::Status) -> Self {
        use tonic::Code;
        // A source means that the connection failed on this side; a status sent by the node has
        // none.
        let cut = std::error::Error::source(status).is_some();
        let (id, exit) = match status.code() {
            Code::Unknown | Code::Internal if cut => ("unavailable", Exit::NotReached),
            // The connection was closed during the call.
            Code::Cancelled if cut => ("unavailable", Exit::NotReached),
            Code::Unavailable => ("unavailable", Exit::NotReached),
            // Cancelled is the local status at the end of the time limit.
            Code::DeadlineExceeded | Code::Cancelled => ("deadline", Exit::NotReached),
            Code::Unauthenticated => ("unauthenticated", Exit::Failure),
            Code::PermissionDenied => ("permission-denied", Exit::Failure),
            Code::NotFound => ("not-found", Exit::Failure),
            Code::InvalidArgument | Code::OutOfRange => ("rejected-fields", Exit::Failure),
            Code::AlreadyExists => ("already-exists", Exit::Failure),
            Code::FailedPrecondition => ("failed-precondition", Exit::Failure),
            Code::ResourceExhausted => ("overloaded", Exit::Failure),
            Code::Unimplemented => ("unimplemented", Exit::Failure),
            Code::DataLoss => ("damaged", Exit::Failure),
            _ => ("node-failed", Exit::Failure),
        };
        let details = status.get_error_details();
        let mut cause = status.message().to_owned();
        // With field violations, the metadata holds the rules, which are shown with the fields.
        let metadata = |key: &str| details.error_info()?.metadata.get(key).cloned();
        if let Some(info) = details.error_info().filter(|_| details.bad_request().is_none()) {
            let mut metadata: Vec<String> = info.metadata.iter().map(|(k, v)| format!("{k}={v}")).collect();
            metadata.sort();
            let reason = std::iter::once(info.reason.clone()).chain(metadata).collect::<Vec<_>>().join(" ");
            cause = if cause.is_empty() { reason } else { format!("{cause} [{reason}]") };
        }
        if let Some(error) = std::error::Error::source(status) {
            cause = format!("{cause}: {}", chain(error));
        }
        let violations = details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
        let fields = violations
            .iter()
            .enumerate()
            .map(|(n, violation)| Field {
                field: violation.field.clone(),
                description: violation.description.clone(),
                found: metadata(&format!("found-{n}")).unwrap_or_default(),
                rule: metadata(&format!("rule-{n}")).unwrap_or_default(),
                values: (1..).map_while(|place| metadata(&format!("rule-{n}-{place}"))).collect(),
            })
            .collect();
        let retry = details.retry_info().and_then(|info| info.retry_delay);
        let mut failure = Self::new(id).exit(exit).cause(cause).fields(fields);
        if let Some(info) = details.error_info() {
            failure = failure.by_reason(&info.reason, &info.metadata);
        }
        failure.retry_after_ms = retry.map(|delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        failure
    }

    /// Selects the message for reasons that the catalogue has in every language.
    fn by_reason(self, reason: &str, info: &HashMap<String, String>) -> Self {
        let value = |key: &str| info.get(key).cloned().unwrap_or_default();
        let (id, keys): (_, &[&'static str]) = match reason {
            "UNKNOWN_SUBSCRIPTION" => ("unknown-subscription", &["subscription", "cause"]),
            "FILTER_DIFFERS" => ("filter-differs", &["recorded", "requested"]),
            "CURSOR_MISMATCH" => ("cursor-mismatch", &["cause"]),
            "DISK_FULL" => ("disk-full", &[]),
            _ => return self,
        };
        keys.iter().fold(Self { cause: None, ..self.with_id(id) }, |failure, key| failure.with(key, &value(key)))
    }

    /// Returns the exit code.
    #[must_use]
    pub fn exit_code(&self) -> Exit {
        self.exit
    }

    /// Returns the catalogue's id, for scripts.
    #[must_use]
    pub fn id(&self) -> &'static str {
        self.id
    }

    /// Returns the values of `rule` if `field` breaks it.
    #[must_use]
    pub fn rule_values(&self, field: &str, rule: &str) -> Option<&[String]> {
        let broken = self.fields.iter().find(|broken| broken.field == field && broken.rule == rule);
        broken.map(|broken| broken.values.as_slice())
    }

    /// Returns the delay in milliseconds that the node requested before a retry.
    #[must_use]
    pub fn retry_after_ms(&self) -> Option<u64> {
        self.retry_after_ms
    }

    /// Writes the failure on the error output: as text in the reader's language, or as one JSON
    /// object.
    pub fn show(&self, messages: &Messages, output: &Output) {
        if self.id == CLOSED_OUTPUT {
            return;
        }
        if output.is_json() {
            let fields: Vec<_> = self
                .fields
                .iter()
                .map(|f| json!({"field": f.field, "description": f.description, "rule": f.rule, "values": f.values}))
                .collect();
            let error = json!({"error": {
                "id": self.id,
                "exit": self.exit as u8,
                "message": self.heading(messages),
                "why": self.why(messages),
                "next": self.sentence(messages, ".next"),
                "fields": fields,
                "retryAfterMs": self.retry_after_ms,
            }});
            output.error_json(&error);
            return;
        }
        for line in self.lines(messages, output) {
            output.error_line(&line);
        }
    }

    fn lines(&self, messages: &Messages, output: &Output) -> Vec<String> {
        use owo_colors::Style;
        let heading = output.paint_error(&messages.text("failure-heading"), Style::new().red().bold());
        let label = |id: &str| output.paint_error(&messages.text(id), Style::new().bold());
        let mut lines = vec![format!("{heading} {}", self.heading(messages))];
        for field in &self.fields {
            lines.push(format!(
                "  • {} {}",
                output.paint_error(&messages.value(&field.field), Style::new().bold()),
                field.localize(messages)
            ));
        }
        lines.extend(self.excerpt(output));
        if let Some(why) = self.why(messages) {
            lines.push(format!("  {} {why}", label("failure-why")));
        }
        if let Some(ms) = self.retry_after_ms {
            lines.push(format!(
                "  {} {}",
                label("failure-next"),
                crate::localize!(messages, "failure-retry", nMs = ms)
            ));
        }
        if let Some(next) = self.sentence(messages, ".next") {
            lines.push(format!("  {} {next}", label("failure-next")));
        }
        lines
    }

    /// Returns the first sentence of the message.
    #[must_use]
    pub fn heading(&self, messages: &Messages) -> String {
        self.sentence(messages, "").unwrap_or_default()
    }

    fn why(&self, messages: &Messages) -> Option<String> {
        match &self.cause {
            Some(cause) => Some(messages.value(cause)),
            None => self.sentence(messages, ".why"),
        }
    }

    fn sentence(&self, messages: &Messages, attribute: &str) -> Option<String> {
        let mut args = FluentArgs::new();
        for (name, value) in &self.args {
            args.set(*name, value.arg());
        }
        messages.find(&format!("error-{}{attribute}", self.id), Some(&args))
    }

    /// Returns the lines around the fault as miette renders them.
    fn excerpt(&self, output: &Output) -> Vec<String> {
        let Some(source) = &self.source else { return Vec::new() };
        let theme =
            if output.colour_on_error() { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let excerpt = Excerpt { source: &source.0, span: source.1 };
        let mut text = String::new();
        if GraphicalReportHandler::new_themed(theme).with_context_lines(1).render_report(&mut text, &excerpt).is_err() {
            return Vec::new();
        }
        // The first line is the diagnostic's own message, which the heading already has.
        text.lines().skip(1).filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
    }
}

/// Longest line of a file of which an excerpt is shown.
const EXCERPT_LINE_BYTES_MAX: usize = 500;

const CLOSED_OUTPUT: &str = "closed-output";

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)?;
        self.fields.iter().try_for_each(|field| write!(f, ": {}: {}", field.field, field.description))?;
        self.cause.as_ref().map_or(Ok(()), |cause| write!(f, ": {cause}"))
    }
}

impl std::error::Error for Failure {}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Self::from_status(&status)
    }
}

/// A position in a file, for miette.
#[derive(Debug)]
struct Excerpt<'a> {
    source: &'a NamedSource<String>,
    span: SourceSpan,
}

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.source.name())
    }
}

impl std::error::Error for Excerpt<'_> {}

impl miette::Diagnostic for Excerpt<'_> {
    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(std::iter::once(LabeledSpan::new_with_span(None, self.span))))
    }
}

/// Returns an error and its sources in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    clean(&crate::error_chain::one_line(error))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use barid_core::bulletin::Rule;
    use tonic_types::ErrorDetails;

    use super::*;
    use crate::cli::messages::Lang;

    #[test]
    fn rejected_draft_lists_every_field_localized() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("header.topic", "`x`: expected a topic");
        details.add_bad_request_violation("body.texts", "one is needed");
        details.set_retry_info(Some(Duration::from_millis(1500)));
        let status = tonic::Status::with_error_details(tonic::Code::InvalidArgument, "rejected", details);
        let failure = Failure::from_status(&status);
        assert_eq!(failure.exit_code(), Exit::Failure);
        assert_eq!(failure.retry_after_ms(), Some(1500));
        for lang in Lang::ALL {
            let text = failure.lines(&Messages::new(lang), &Output::plain()).join("\n");
            for part in ["header.topic", "`x`: expected a topic", "body.texts", "one is needed"] {
                assert!(text.contains(part), "{lang:?}: {text}");
            }
        }
    }

    #[test]
    fn field_expectation_is_localized() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("header.incidents", "`90 items`: expected at most 20 items");
        details.add_bad_request_violation("body.texts", "missing: expected at least one text");
        let metadata =
            [("rule-0", "items-at-most"), ("rule-0-1", "20"), ("found-0", "90 items"), ("rule-1", "text-needed")];
        details.set_error_info("FIELDS", "barid", metadata.map(|(key, value)| (key.to_owned(), value.to_owned())));
        let status = tonic::Status::with_error_details(tonic::Code::InvalidArgument, "rejected", details);
        let failure = Failure::from_status(&status);
        let text = failure.lines(&Messages::new(Lang::Fr), &Output::plain()).join("\n");
        assert!(text.contains("header.incidents 90 items : attendu au plus 20 éléments"), "{text}");
        assert!(text.contains("body.texts il manque : au moins un texte"), "{text}");
        let text = failure.lines(&Messages::new(Lang::Ar), &Output::plain()).join("\n");
        assert!(text.contains("على الأكثر") && !text.contains("at most"), "{text}");
        let text = failure.lines(&Messages::new(Lang::En), &Output::plain()).join("\n");
        assert!(text.contains("header.incidents `90 items`: expected at most 20 items"), "{text}");
    }

    #[test]
    fn every_rule_is_localized_with_its_values() {
        for (code, text) in Rule::TEXTS {
            let values: Vec<String> = (1..=text.matches('{').count()).map(|n| format!("value{n}")).collect();
            let (found, rule) = ("found".to_owned(), (*code).to_owned());
            let field = Field { found, rule, values, ..Field::new("header", "English".to_owned()) };
            for lang in [Lang::Ar, Lang::Fr] {
                let localized = field.localize(&Messages::new(lang));
                let whole =
                    field.values.iter().all(|value| localized.contains(value.as_str())) && localized.contains("found");
                assert!(whole && !localized.contains("English"), "{lang:?} {code}: {localized}");
            }
        }
        let rule = Rule::ZoneCheckDigit { digit: '2', part: "date of birth", place: 7 };
        let field = Field::of(&FieldError::new("mrz[0]", "", rule));
        let localized = field.localize(&Messages::new(Lang::Fr));
        assert_eq!(localized, "il manque : le chiffre de contrôle 2 (date de naissance) à la position 7");
        assert_eq!(
            field.localize(&Messages::new(Lang::En)),
            "missing: expected check digit 2 of the date of birth at position 7"
        );
    }

    #[test]
    fn unreachable_node_exits_with_3() {
        assert_eq!(Failure::from_status(&tonic::Status::unavailable("")).exit_code(), Exit::NotReached);
        assert_eq!(Failure::from_status(&tonic::Status::deadline_exceeded("")).exit_code(), Exit::NotReached);
        assert_eq!(Failure::from_status(&tonic::Status::permission_denied("")).exit_code(), Exit::Failure);
    }

    #[test]
    fn lost_connection_is_not_a_rejection() {
        let cut = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "peer closed connection");
        let status = tonic::Status::from_error(Box::new(cut));
        assert_eq!(Failure::from_status(&status).exit_code(), Exit::NotReached, "{status:?}");
        assert_eq!(Failure::from_status(&tonic::Status::unknown("")).exit_code(), Exit::Failure);
    }

    #[test]
    fn parse_error_shows_source_location() {
        let text = "{\n  \"header\": {,}\n}\n";
        let failure = Failure::usage("draft-unreadable").with("path", "draft.json").at("draft.json", text, 2, 14);
        let rendered = failure.lines(&Messages::new(Lang::En), &Output::plain()).join("\n");
        assert!(rendered.contains("\"header\": {,}"), "{rendered}");
        assert!(rendered.contains("draft.json"), "{rendered}");
    }

    #[test]
    fn source_location_past_end_does_not_panic() {
        let _ = Failure::usage("draft-unreadable").at("x", "é", 1, 2);
        let _ = Failure::usage("draft-unreadable").at("x", "", 90, 90);
    }
}
