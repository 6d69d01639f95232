//! The one map from errors to gRPC status, with `google.rpc` details. Internals stay inside.

use std::collections::HashMap;
use std::str::FromStr;
use std::time::Duration;

use barid_core::bulletin::{Invalid, Rule};
use barid_core::evidence::EvidenceError;
use barid_core::evidence::zip::ZipError;
use barid_core::limits::{FOUND_CHARS_MAX, LINE_CHARS_MAX};
use barid_core::proto;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use super::audit::ExportError;
use crate::committer::CommitFailure;
use crate::store::ReadError;

/// Domain of `ErrorInfo`.
pub(super) const DOMAIN: &str = "barid";
/// After how long to try again when the queue is full.
const BUSY_RETRY: Duration = Duration::from_millis(100);
/// After how long to try again what waits for a peer: heads are told once a second, and links may have to come back.
const CATCHING_UP_RETRY: Duration = Duration::from_secs(5);
/// After how long to try again when the node stops: a restart takes some seconds.
const STOPPING_RETRY: Duration = Duration::from_secs(5);
/// After how long to try again what is read from a view that is being rebuilt: millions of entries take some seconds.
const BEHIND_RETRY: Duration = Duration::from_secs(5);
/// After how long to try again when the disk is full.
const DISK_FULL_RETRY: Duration = Duration::from_secs(10);

/// Text of field errors in one refusal: with base64 and the rest of the trailer it stays below the 16 KiB that HTTP/2 peers take. Those that
/// come after are told when these are mended.
const DETAILS_BYTES_MAX: usize = 6 << 10;
/// What the code of a rule takes, with its key.
const RULE_BYTES: usize = 48;
/// Reason of a refusal that names fields.
const FIELDS: &str = "FIELDS";

/// Fields of a draft that break rules.
pub(super) fn invalid(error: &Invalid) -> Status {
    let violation = |field: &barid_core::bulletin::FieldError| {
        FieldViolation::new(&field.field, format!("`{}` is not {}", field.found, field.expected))
    };
    let mut bytes = 0;
    let violations: Vec<_> = error
        .0
        .iter()
        .map(violation)
        .take_while(|violation| {
            // The words come once more as values of their rule.
            bytes += violation.field.len() + 2 * violation.description.len() + RULE_BYTES;
            bytes <= DETAILS_BYTES_MAX
        })
        .collect();
    let message = format!("{} field(s) break a rule; nothing was stored", error.0.len());
    let rules = error.0.iter().take(violations.len()).map(|field| field.expected.as_str());
    invalid_fields(message, rules.map(Rule::of).collect(), violations)
}

/// Fields at fault, and for each the rule that it breaks, by its code: for programs, and for other languages. The rules are the metadata of
/// an `ErrorInfo` (`FieldViolation` in focal_point.proto): `rule-0` the code of the first violation's, `rule-0-1` its first value, and so on.
fn invalid_fields(message: String, rules: Vec<Option<Rule>>, violations: Vec<FieldViolation>) -> Status {
    let mut metadata = HashMap::new();
    for (n, Rule { code, values }) in rules.into_iter().enumerate().filter_map(|(n, rule)| Some((n, rule?))) {
        metadata.insert(format!("rule-{n}"), code.to_owned());
        metadata.extend((1..).zip(values).map(|(place, value)| (format!("rule-{n}-{place}"), value)));
    }
    let mut details = ErrorDetails::with_bad_request(violations);
    details.set_error_info(FIELDS, DOMAIN, metadata);
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// The arguments of one call that are wrong, all told at once.
#[derive(Default)]
pub(super) struct Faults(Vec<(FieldViolation, Option<Rule>)>);

impl Faults {
    /// Notes one.
    pub(super) fn add(&mut self, field: &str, found: &str, expected: &str) {
        let found: String = found.chars().take(FOUND_CHARS_MAX).collect();
        let violation = FieldViolation::new(field, format!("`{found}` is not {expected}"));
        self.0.push((violation, Rule::of(expected)));
    }

    /// Reads one, or notes it.
    pub(super) fn parse<T: FromStr>(&mut self, field: &str, text: &str, expected: &str) -> Option<T> {
        let read = text.parse().ok();
        if read.is_none() {
            self.add(field, text, expected);
        }
        read
    }

    /// Ends the call if there are any.
    pub(super) fn check(self) -> Result<(), Status> {
        let message = match self.0.as_slice() {
            [] => return Ok(()),
            [(one, _)] => format!("{}: {}", one.field, one.description),
            more => format!("{} arguments are wrong", more.len()),
        };
        let (violations, rules) = self.0.into_iter().unzip();
        Err(invalid_fields(message, rules, violations))
    }
}

/// A right that the caller lacks, by the field that asks for it.
pub(super) fn denied_field(reason: &str, message: &str, field: &str, found: &str, expected: &str) -> Status {
    let found: String = found.chars().take(FOUND_CHARS_MAX).collect();
    let rule = Rule::of(expected).map(|rule| ("rule-0".to_owned(), rule.code.to_owned()));
    let rule: HashMap<_, _> = rule.into_iter().collect();
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, rule);
    details.add_bad_request_violation(field, format!("`{found}` is not {expected}"));
    Status::with_error_details(Code::PermissionDenied, message, details)
}

/// One argument that is wrong.
pub(super) fn argument(field: &str, found: &str, expected: &str) -> Status {
    let mut faults = Faults::default();
    faults.add(field, found, expected);
    faults.check().expect_err("one was added")
}

/// Something that cannot be.
pub(super) fn defect() -> Status {
    Status::internal("a defect of the node")
}

/// Why something was not committed.
pub(super) fn commit(error: &CommitFailure) -> Status {
    let info = |reason: &str| ErrorDetails::with_error_info(reason, DOMAIN, []);
    match error {
        CommitFailure::NeedsRecovery(_) => {
            Status::with_error_details(Code::FailedPrecondition, error.to_string(), info("NEEDS_RECOVERY"))
        }
        CommitFailure::Overloaded => retry(Code::ResourceExhausted, error, BUSY_RETRY, "BUSY"),
        CommitFailure::DiskFull(_) => retry(Code::ResourceExhausted, error, DISK_FULL_RETRY, "DISK_FULL"),
        CommitFailure::Stopped(_) => {
            Status::with_error_details(Code::Unavailable, "the store has stopped", info("STOPPED"))
        }
        CommitFailure::Stale { .. }
        | CommitFailure::EntryConflict { .. }
        | CommitFailure::ClockBehind
        | CommitFailure::OverShare => defect(),
    }
}

/// The caller asks for more than it may.
pub(super) fn exhausted(reason: &str, message: String, after: Option<Duration>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, []);
    if after.is_some() {
        details.set_retry_info(after);
    }
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

fn retry(code: Code, error: &CommitFailure, after: Duration, reason: &str) -> Status {
    let mut details = ErrorDetails::with_retry_info(Some(after));
    details.set_error_info(reason, DOMAIN, []);
    Status::with_error_details(code, error.to_string(), details)
}

/// The node stops: nothing is wrong with the call.
pub(super) fn stopping() -> Status {
    let mut details = ErrorDetails::with_retry_info(Some(STOPPING_RETRY));
    details.set_error_info("STOPPING", DOMAIN, []);
    Status::with_error_details(Code::Unavailable, "this node stops; what was accepted is stored", details)
}

/// Why something could not be read.
pub(super) fn read(error: &ReadError) -> Status {
    match error {
        ReadError::Missing(what) => Status::not_found(format!("{what} is not held")),
        ReadError::Behind(_) => {
            let mut details = ErrorDetails::with_retry_info(Some(BEHIND_RETRY));
            details.set_error_info("BEHIND", DOMAIN, []);
            Status::with_error_details(Code::Unavailable, "the store's view is being rebuilt; nothing is lost", details)
        }
        ReadError::DamagedEntry(damaged) => {
            tracing::error!(%error, "an entry could not be read");
            let entry = match &damaged.entry {
                Some((feed, index, _)) => format!("{feed} {index}"),
                None => format!("what arrived as number {}", damaged.offset),
            };
            let message = format!("{entry} is damaged in this node's store");
            Status::with_error_details(Code::DataLoss, message, ErrorDetails::with_error_info("DAMAGED", DOMAIN, []))
        }
        ReadError::Damaged(_) => {
            tracing::error!(%error, "the store could not be read");
            let details = ErrorDetails::with_error_info("DAMAGED", DOMAIN, []);
            Status::with_error_details(Code::DataLoss, "this node's store is damaged there", details)
        }
        ReadError::Io(_) => {
            tracing::error!(%error, "the store could not be read");
            Status::internal("the store could not be read")
        }
    }
}

/// Why there is no evidence of what is held.
pub(super) fn export(error: &ExportError) -> Status {
    let not_now = |reason: &str, retry: Option<Duration>| {
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, []);
        if retry.is_some() {
            details.set_retry_info(retry);
        }
        Status::with_error_details(Code::FailedPrecondition, error.to_string(), details)
    };
    match error {
        ExportError::Read(error) => read(error),
        ExportError::CatchingUp { .. } => not_now("CATCHING_UP", Some(CATCHING_UP_RETRY)),
        ExportError::Evidence(EvidenceError::NoFeedKeys(_)) => not_now("NO_FEED_KEYS", None),
        ExportError::Evidence(EvidenceError::RosterTooOld { .. }) => not_now("ROSTER_TOO_OLD", Some(CATCHING_UP_RETRY)),
        ExportError::Evidence(EvidenceError::Zip(ZipError::TooLarge(_) | ZipError::TooMany)) => {
            not_now("TOO_LARGE", None)
        }
        ExportError::Evidence(error) => {
            tracing::error!(%error, "what is held is no evidence");
            Status::internal("the parts held here are no evidence")
        }
    }
}

/// A status as the answer to one request of a stream.
pub(super) fn publish_error(status: &Status) -> proto::PublishError {
    let details = status.get_error_details();
    let rules = details.error_info().map(|info| &info.metadata);
    let fields = details.bad_request().map(|request| {
        let field = |(n, violation): (usize, &FieldViolation)| proto::FieldViolation {
            field: violation.field.clone(),
            description: violation.description.clone(),
            rule: rules.and_then(|rules| rules.get(&format!("rule-{n}"))).cloned().unwrap_or_default(),
            values: (1..).map_while(|place| rules?.get(&format!("rule-{n}-{place}")).cloned()).collect(),
        };
        request.field_violations.iter().enumerate().map(field).collect()
    });
    let delay = details.retry_info().and_then(|info| info.retry_delay);
    proto::PublishError {
        code: status.code().into(),
        message: status.message().to_owned(),
        fields: fields.unwrap_or_default(),
        retry_delay_ms: delay.map_or(0, |delay| u32::try_from(delay.as_millis()).unwrap_or(u32::MAX)),
    }
}

/// A named subscription that says nothing about where to begin: it is not known, or (`recorded` is the offset that is) the node was recovered
/// since it was recorded.
pub(super) fn unknown_subscription(name: &str, recorded: Option<u64>) -> Status {
    let begin = "give the cursor of the last event that was received, or say `begin`: `now` or `beginning`";
    let message = match recorded {
        None => format!("no subscription `{name}` of the caller is known; to create it, {begin}"),
        Some(offset) => format!(
            "subscription `{name}` was recorded at offset {offset} before this node was recovered, and offsets may mean something else \
             now; {begin}"
        ),
    };
    let cause = if recorded.is_some() { "recovered" } else { "unknown" };
    let info = [("subscription".to_owned(), name.to_owned()), ("cause".to_owned(), cause.to_owned())];
    with_info(Code::NotFound, message, "UNKNOWN_SUBSCRIPTION", info)
}

/// A named subscription is opened with another filter than it has.
pub(super) fn filter_differs(recorded: &str, requested: &str) -> Status {
    let cut = |text: &str| text.chars().take(LINE_CHARS_MAX).collect::<String>();
    let (recorded, requested) = (cut(recorded), cut(requested));
    let message = format!(
        "the subscription has another filter: recorded is `{recorded}`, requested is `{requested}`; request the recorded one, or \
         `replace_filter` and say where to begin"
    );
    let info = [("recorded".to_owned(), recorded), ("requested".to_owned(), requested)];
    with_info(Code::FailedPrecondition, message, "FILTER_DIFFERS", info)
}

/// A cursor that is of another history of the store, where only one of this history will do.
pub(super) fn cursor_mismatch(field: &str, cause: &str) -> Status {
    let message = format!("`{field}` is of another history of this node's store ({cause}); begin again");
    let info = [("field".to_owned(), field.to_owned()), ("cause".to_owned(), cause.to_owned())];
    with_info(Code::FailedPrecondition, message, "CURSOR_MISMATCH", info)
}

fn with_info<const N: usize>(code: Code, message: String, reason: &str, info: [(String, String); N]) -> Status {
    Status::with_error_details(code, message, ErrorDetails::with_error_info(reason, DOMAIN, HashMap::from(info)))
}
