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
use crate::calls::{DOMAIN, status_with_reason};
use crate::committer::CommitFailure;
use crate::store::ReadError;

/// Retry delay while the commit queue is full.
const BUSY_RETRY: Duration = Duration::from_millis(100);
/// Retry delay for data that must come from a peer: tree heads are sent once a second, and links
/// may have to reconnect.
const CATCHING_UP_RETRY: Duration = Duration::from_secs(5);
/// Retry delay when the node stops: a restart takes some seconds.
const STOPPING_RETRY: Duration = Duration::from_secs(5);
/// Retry delay while the index database is rebuilt: millions of entries take some seconds.
const BEHIND_RETRY: Duration = Duration::from_secs(5);
/// Retry delay while the node starts: it waits for a peer.
const STARTING_RETRY: Duration = Duration::from_secs(5);
/// Retry delay while the disk is full.
const DISK_FULL_RETRY: Duration = Duration::from_secs(10);

/// Bytes of field errors in one status. With base64 and the rest of the trailer the status stays
/// below the 16 KiB of headers that HTTP/2 peers accept. Further errors are reported once these are
/// fixed.
const DETAILS_BYTES_MAX: usize = 6 << 10;
/// Bytes of a rule's code with its metadata key.
const RULE_BYTES: usize = 48;
/// `ErrorInfo` reason of a status that lists fields.
const FIELDS: &str = "FIELDS";

/// Maps the fields of a draft that break rules.
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
            // The description's text is repeated in the values of its rule.
            bytes += violation.field.len() + 2 * violation.description.len() + RULE_BYTES;
            bytes <= DETAILS_BYTES_MAX
        })
        .collect();
    let message = format!("{} field(s) break a rule; nothing was stored", error.0.len());
    let rules = error.0.iter().take(violations.len()).map(|field| field.expected.as_str());
    invalid_fields(message, rules.map(Rule::of).collect(), violations)
}

/// Builds `INVALID_ARGUMENT` with the fields at fault and the code of the rule that each breaks,
/// for programs and for translation. The rules are metadata of an `ErrorInfo` (`FieldViolation` in
/// focal_point.proto): `rule-0` is the code for the first violation, `rule-0-1` its first value,
/// and so on.
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

/// The invalid arguments of one call, reported together.
#[derive(Default)]
pub(super) struct Faults(Vec<(FieldViolation, Option<Rule>)>);

impl Faults {
    /// Adds an invalid argument.
    pub(super) fn add(&mut self, field: &str, found: &str, expected: &str) {
        let found: String = found.chars().take(FOUND_CHARS_MAX).collect();
        let violation = FieldViolation::new(field, format!("`{found}` is not {expected}"));
        self.0.push((violation, Rule::of(expected)));
    }

    /// Parses an argument. Adds an error and returns `None` if it is invalid.
    pub(super) fn parse<T: FromStr>(&mut self, field: &str, text: &str, expected: &str) -> Option<T> {
        let read = text.parse().ok();
        if read.is_none() {
            self.add(field, text, expected);
        }
        read
    }

    /// Returns `INVALID_ARGUMENT` if there are any errors.
    pub(super) fn check(self) -> Result<(), Status> {
        let message = match self.0.as_slice() {
            [] => return Ok(()),
            [(one, _)] => format!("{}: {}", one.field, one.description),
            more => format!("{} arguments are invalid", more.len()),
        };
        let (violations, rules) = self.0.into_iter().unzip();
        Err(invalid_fields(message, rules, violations))
    }
}

/// Builds `PERMISSION_DENIED` for the field that asks for the missing permission.
pub(super) fn denied_field(reason: &str, message: &str, field: &str, found: &str, expected: &str) -> Status {
    let found: String = found.chars().take(FOUND_CHARS_MAX).collect();
    let rule = Rule::of(expected).map(|rule| ("rule-0".to_owned(), rule.code.to_owned()));
    let rule: HashMap<_, _> = rule.into_iter().collect();
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, rule);
    details.add_bad_request_violation(field, format!("`{found}` is not {expected}"));
    Status::with_error_details(Code::PermissionDenied, message, details)
}

/// Builds `INVALID_ARGUMENT` for one argument.
pub(super) fn argument(field: &str, found: &str, expected: &str) -> Status {
    let mut faults = Faults::default();
    faults.add(field, found, expected);
    faults.check().expect_err("one error was added")
}

/// Status of a broken invariant.
pub(super) fn defect() -> Status {
    Status::internal("internal error of the node")
}

/// Maps a failed commit.
pub(super) fn commit(error: &CommitFailure) -> Status {
    let retry = |code, delay, reason| status_with_reason(code, error.to_string(), reason, [], Some(delay));
    match error {
        CommitFailure::NeedsRecovery(_) => {
            status_with_reason(Code::FailedPrecondition, error.to_string(), "NEEDS_RECOVERY", [], None)
        }
        CommitFailure::Starting => retry(Code::Unavailable, STARTING_RETRY, "STARTING"),
        CommitFailure::Overloaded => retry(Code::ResourceExhausted, BUSY_RETRY, "BUSY"),
        CommitFailure::DiskFull(_) => retry(Code::ResourceExhausted, DISK_FULL_RETRY, "DISK_FULL"),
        CommitFailure::Stopped(_) => {
            status_with_reason(Code::Unavailable, "the store has stopped", "STOPPED", [], None)
        }
        CommitFailure::Stale { .. }
        | CommitFailure::EntryConflict { .. }
        | CommitFailure::ClockBehind
        | CommitFailure::OverShare => defect(),
    }
}

/// Builds `RESOURCE_EXHAUSTED` for a caller over one of its limits.
pub(super) fn exhausted(reason: &str, message: String, after: Option<Duration>) -> Status {
    status_with_reason(Code::ResourceExhausted, message, reason, [], after)
}

/// Status of calls that end because the node stops.
pub(super) fn stopping() -> Status {
    let message = "the node is stopping; accepted bulletins are stored";
    status_with_reason(Code::Unavailable, message, "STOPPING", [], Some(STOPPING_RETRY))
}

/// Maps a failed read of the store.
pub(super) fn read(error: &ReadError) -> Status {
    match error {
        ReadError::Missing(what) => Status::not_found(format!("{what} is not held")),
        ReadError::Behind(_) => {
            let message = "the index database is being rebuilt; no data is lost";
            status_with_reason(Code::Unavailable, message, "BEHIND", [], Some(BEHIND_RETRY))
        }
        ReadError::DamagedEntry(damaged) => {
            tracing::error!(%error, "an entry could not be read");
            let entry = match &damaged.entry {
                Some((feed, index, _)) => format!("{feed} {index}"),
                None => format!("the entry at offset {}", damaged.offset),
            };
            let message = format!("{entry} is damaged in this node's store");
            status_with_reason(Code::DataLoss, message, "DAMAGED", [], None)
        }
        ReadError::Damaged(_) => {
            tracing::error!(%error, "the store could not be read");
            let message = "the requested part of this node's store is damaged";
            status_with_reason(Code::DataLoss, message, "DAMAGED", [], None)
        }
        ReadError::Io(_) => {
            tracing::error!(%error, "the store could not be read");
            Status::internal("the store could not be read")
        }
    }
}

/// Maps a failed export of evidence.
pub(super) fn export(error: &ExportError) -> Status {
    let not_now = |reason: &str, retry: Option<Duration>| {
        status_with_reason(Code::FailedPrecondition, error.to_string(), reason, [], retry)
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
            tracing::error!(%error, "the parts held here do not form valid evidence");
            Status::internal("the parts held here do not form valid evidence")
        }
    }
}

/// Converts a status to the error of one request on a publish stream.
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

/// Status for a named subscription whose request does not give a place to begin: the name is
/// unknown, or the node was recovered after it was recorded. `recorded` is the recorded offset in
/// the second case.
pub(super) fn unknown_subscription(name: &str, recorded: Option<u64>) -> Status {
    let begin = "give the cursor of the last event received, or set `begin` to `now` or `beginning`";
    let message = match recorded {
        None => format!("the caller has no subscription `{name}`; to create it, {begin}"),
        Some(offset) => format!(
            "subscription `{name}` was recorded at offset {offset} before this node was recovered, and offsets may \
             have changed; {begin}"
        ),
    };
    let cause = if recorded.is_some() { "recovered" } else { "unknown" };
    let info = [("subscription".to_owned(), name.to_owned()), ("cause".to_owned(), cause.to_owned())];
    status_with_reason(Code::NotFound, message, "UNKNOWN_SUBSCRIPTION", info, None)
}

/// Status for a named subscription that is opened with a filter other than the recorded one.
pub(super) fn filter_differs(recorded: &str, requested: &str) -> Status {
    let cut = |text: &str| text.chars().take(LINE_CHARS_MAX).collect::<String>();
    let (recorded, requested) = (cut(recorded), cut(requested));
    let message = format!(
        "the subscription has another filter: recorded is `{recorded}`, requested is `{requested}`; request the \
         recorded one, or set `replace_filter` and `begin`"
    );
    let info = [("recorded".to_owned(), recorded), ("requested".to_owned(), requested)];
    status_with_reason(Code::FailedPrecondition, message, "FILTER_DIFFERS", info, None)
}

/// Status for a cursor of another history of the store, where only this history is accepted.
pub(super) fn cursor_mismatch(field: &str, cause: &str) -> Status {
    let message = format!("`{field}` belongs to another state of this node's store ({cause}); begin again");
    let info = [("field".to_owned(), field.to_owned()), ("cause".to_owned(), cause.to_owned())];
    status_with_reason(Code::FailedPrecondition, message, "CURSOR_MISMATCH", info, None)
}
