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
use super::{localize, wrap};

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
    /// Path, as the user writes it: `header.handling.tlp`.
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
        args.set("found", found_text(messages, &self.found).arg());
        messages.with(if self.found.is_empty() { "rule-missing" } else { "rule-broken" }, &args)
    }
}

/// Returns a found value in the reader's language: a number of items or bytes is described, any
/// other value is the user's own.
fn found_text(messages: &Messages, found: &str) -> String {
    let number = |unit: &str| found.strip_suffix(unit).and_then(|number| number.parse::<u64>().ok());
    match (number(" items"), number(" bytes"), found) {
        (Some(items), ..) => localize!(messages, "rule-found-items", nItems = items),
        (_, Some(bytes), _) => localize!(messages, "rule-found-bytes", nBytes = bytes),
        (.., "another one" | "another kind" | "another content") => messages.text("rule-found-another"),
        _ => found.to_owned(),
    }
}

/// What caused a failure.
#[derive(Debug)]
struct Cause {
    /// In English.
    text: String,
    /// The message that has it in every language, if there is one.
    id: Option<&'static str>,
}

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    id: &'static str,
    exit: Exit,
    args: Vec<(&'static str, String)>,
    cause: Option<Box<Cause>>,
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
        self.cause = Cause::new(chain(error), error.downcast_ref().and_then(os_cause));
        self
    }

    /// Sets the cause as text.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.cause = Cause::new(cause.into(), None);
        self
    }

    /// Sets the fields at fault.
    #[must_use]
    pub fn fields(mut self, fields: Vec<Field>) -> Self {
        self.fields = fields;
        self
    }

    /// Sets other paths for the fields at fault.
    #[must_use]
    pub fn with_paths(mut self, mut path: impl FnMut(&str) -> String) -> Self {
        for field in &mut self.fields {
            field.field = path(&field.field);
        }
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
        // The excerpt is printed as it is.
        let cleaned = |part: &str| part.split('\n').map(clean).collect::<Vec<_>>().join("\n");
        let (before, after) = text.split_at(byte_offset);
        let before = cleaned(before);
        let span = SourceSpan::from((before.len(), 0));
        self.source = Some(Box::new((NamedSource::new(clean(name), before + &cleaned(after)), span)));
        self
    }

    /// Converts the failure of a read call: its arguments were rejected, not a bulletin. They are
    /// named as the options that they come from.
    #[must_use]
    pub fn of_reading(self) -> Self {
        if self.id != "rejected-fields" {
            return self;
        }
        self.with_id("rejected-arguments").with_paths(|path| {
            let option = OPTIONS.iter().find(|(argument, _)| path.starts_with(*argument));
            option.map_or(path, |(_, option)| *option).to_owned()
        })
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
        if !violations.is_empty() {
            // The cause only counts or repeats the fields, in English.
            cause.clear();
        }
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
        let reason = details.error_info().map_or("", |info| info.reason.as_str());
        let known = REASONS.iter().find(|(known, _)| *known == reason).map(|(_, cause_id)| *cause_id);
        let mut failure = Self::new(id).exit(exit).fields(fields);
        failure.cause = Cause::new(cause, known.or_else(|| lost_connection(status)));
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
            "STARTING" => ("starting", &[]),
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
                "cause": self.cause.as_ref().map(|cause| cause.text.as_str()).filter(|text| !text.is_empty()),
                "next": self.sentence(messages, ".next"),
                "fields": fields,
                "retryAfterMs": self.retry_after_ms,
            }});
            output.error_json(&error);
            return;
        }
        self.lines(messages, output).iter().for_each(|line| output.error_verbatim(line));
    }

    fn lines(&self, messages: &Messages, output: &Output) -> Vec<String> {
        use owo_colors::Style;
        let bold = |text: &str| output.paint_error(text, Style::new().bold());
        let labelled = |id: &str, text: &str| {
            wrap::hanging(&format!("  {} ", bold(&messages.text(id))), text, output.error_width())
        };
        let heading = output.paint_error(&messages.text("failure-heading"), Style::new().red().bold());
        let mut lines = wrap::hanging(&format!("{heading} "), &self.heading(messages), output.error_width());
        for field in &self.fields {
            let text = format!("{} {}", bold(&messages.value(&field.field)), field.localize(messages));
            lines.extend(wrap::hanging("  • ", &text, output.error_width()));
        }
        // An excerpt has its own layout.
        lines.extend(self.excerpt(output));
        if let Some(why) = self.why(messages) {
            lines.extend(labelled("failure-why", &why));
        }
        if let Some(ms) = self.retry_after_ms {
            lines.extend(labelled("failure-next", &localize!(messages, "failure-retry", nMs = ms)));
        }
        if let Some(next) = self.sentence(messages, ".next") {
            lines.extend(labelled("failure-next", &next));
        }
        lines
    }

    /// Returns the first sentence of the message.
    #[must_use]
    pub fn heading(&self, messages: &Messages) -> String {
        self.sentence(messages, "").unwrap_or_default()
    }

    fn why(&self, messages: &Messages) -> Option<String> {
        match self.cause.as_deref() {
            Some(Cause { id: Some(id), .. }) => Some(messages.text(id)),
            Some(Cause { text, id: None }) => Some(messages.value(text)),
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

/// Reasons of a node (`google.rpc.ErrorInfo`), and the messages that explain them.
const REASONS: [(&str, &str); 16] = [
    ("BEHIND", "reason-behind"),
    ("BUDGET", "reason-budget"),
    ("BUSY", "reason-busy"),
    ("CATCHING_UP", "reason-catching-up"),
    ("DAMAGED", "reason-damaged"),
    ("MESSAGE_TOO_LARGE", "reason-message-too-large"),
    ("NEEDS_RECOVERY", "reason-needs-recovery"),
    ("NO_FEED_KEYS", "reason-no-feed-keys"),
    ("RATE", "reason-rate"),
    ("ROSTER_TOO_OLD", "reason-roster-too-old"),
    ("STARTING", "reason-starting"),
    ("STOPPED", "reason-stopped"),
    ("STOPPING", "reason-stopping"),
    ("STREAMS", "reason-streams"),
    ("SUBSCRIPTIONS", "reason-subscriptions"),
    ("TOO_LARGE", "reason-too-large"),
];

/// Arguments of read calls, and the options that set them.
const OPTIONS: [(&str, &str); 10] = [
    ("filter.topics", "--topic"),
    ("filter.kinds", "--kind"),
    ("filter.min_severity", "--min-severity"),
    ("filter.members", "--member"),
    ("since", "--since"),
    ("until", "--until"),
    ("page_token", "--before"),
    ("subscription", "--subscription"),
    ("cursor", "--from"),
    ("begin", "--from"),
];

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)?;
        self.fields.iter().try_for_each(|field| write!(f, ": {}: {}", field.field, field.description))?;
        let cause = self.cause.as_ref().filter(|cause| !cause.text.is_empty());
        cause.map_or(Ok(()), |cause| write!(f, ": {}", cause.text))
    }
}

impl std::error::Error for Failure {}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Self::from_status(&status)
    }
}

impl Cause {
    /// Returns `None` if nothing is known about it.
    fn new(text: String, id: Option<&'static str>) -> Option<Box<Self>> {
        (!text.is_empty() || id.is_some()).then(|| Box::new(Self { text, id }))
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

/// Returns the message for an error of the operating system that users meet.
fn os_cause(error: &std::io::Error) -> Option<&'static str> {
    use std::io::ErrorKind;
    // Other errors of this type have a text of their own.
    error.raw_os_error()?;
    Some(match error.kind() {
        ErrorKind::NotFound => "os-not-found",
        ErrorKind::PermissionDenied => "os-permission-denied",
        ErrorKind::AlreadyExists => "os-already-exists",
        ErrorKind::IsADirectory => "os-is-a-directory",
        ErrorKind::NotADirectory => "os-not-a-directory",
        ErrorKind::StorageFull => "os-storage-full",
        ErrorKind::ReadOnlyFilesystem => "os-read-only",
        ErrorKind::ConnectionRefused => "os-connection-refused",
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => "os-connection-reset",
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "os-unreachable",
        ErrorKind::TimedOut => "os-timed-out",
        _ => return None,
    })
}

/// Returns the message for the error of the operating system by which a call has failed, if there is
/// one.
fn lost_connection(status: &tonic::Status) -> Option<&'static str> {
    let first = std::error::Error::source(status);
    let mut sources = std::iter::successors(first, |&error| error.source());
    sources.find_map(|error| error.downcast_ref().and_then(os_cause))
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
        assert!(text.contains("header.incidents 90 éléments : attendu au plus 20 éléments"), "{text}");
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
    fn cause_of_fields_and_known_reasons_is_not_english_alone() {
        let mut details = ErrorDetails::with_bad_request_violation("header.topic", "`x`: expected a topic");
        details.set_error_info("FIELDS", "barid", []);
        let message = "1 field(s) break a rule; nothing was stored";
        let fields = tonic::Status::with_error_details(tonic::Code::InvalidArgument, message, details);
        for lang in Lang::ALL {
            let text = Failure::from_status(&fields).lines(&Messages::new(lang), &Output::plain()).join("\n");
            assert!(!text.contains("field(s)"), "{text}");
        }
        for (reason, id) in REASONS {
            let details = ErrorDetails::with_error_info(reason, "barid", []);
            let status = tonic::Status::with_error_details(tonic::Code::FailedPrecondition, "english words", details);
            for lang in Lang::ALL {
                let messages = Messages::new(lang);
                let why = Failure::from_status(&status).why(&messages).unwrap_or_default();
                assert!(why != id && !why.contains("english words"), "{lang:?} {reason}: {why}");
            }
        }
    }

    #[test]
    fn errors_of_the_system_are_localized() {
        let missing = std::fs::read("/nowhere/at all").expect_err("no such file");
        let own = std::io::Error::new(std::io::ErrorKind::PermissionDenied, "run chmod 600 on it");
        for lang in Lang::ALL {
            let messages = Messages::new(lang);
            let why = |error| Failure::usage("file-unreadable").because(error).why(&messages).unwrap_or_default();
            assert_eq!(why(&missing), messages.text("os-not-found"));
            assert!(why(&own).contains("chmod 600"));
        }
        let rejected = std::io::Error::from_raw_os_error(111);
        let failure = Failure::from_status(&tonic::Status::from_error(Box::new(rejected)));
        assert_eq!(failure.cause.and_then(|cause| cause.id), Some("os-connection-refused"));
    }

    #[test]
    fn arguments_of_read_calls_are_named_as_options() {
        let mut details = ErrorDetails::with_bad_request_violation("page_token", "`x`: expected a token");
        details.add_bad_request_violation("filter.topics[2]", "`x`: expected a topic");
        let status = tonic::Status::with_error_details(tonic::Code::InvalidArgument, "", details);
        let failure = Failure::from_status(&status).of_reading();
        assert_eq!(failure.id(), "rejected-arguments");
        let paths: Vec<&str> = failure.fields.iter().map(|field| field.field.as_str()).collect();
        assert_eq!(paths, ["--before", "--topic"]);
    }

    #[test]
    fn failure_is_wrapped_under_its_labels() {
        let failure = Failure::usage("no-profile").fields(vec![Field::new("header.topic", "x ".repeat(40))]);
        for lang in Lang::ALL {
            let messages = Messages::on_terminal(lang, false);
            let lines = failure.lines(&messages, &Output::plain().with_width(60));
            assert!(lines.iter().all(|line| wrap::columns(line) <= 60), "{lines:?}");
            assert!(lines.iter().any(|line| line.starts_with("    x x")), "a field hangs: {lines:?}");
            assert!(lines.iter().any(|line| line.starts_with("       ")), "a cause hangs: {lines:?}");
        }
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
