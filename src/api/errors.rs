//! The one map from errors to gRPC status, with `google.rpc` details. Internals stay inside.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use barid_core::bulletin::field::Report;
use barid_core::bulletin::{FieldError, Invalid, Rule};
use barid_core::evidence::EvidenceError;
use barid_core::evidence::zip::ZipError;
use barid_core::limits::LINE_CHARS_MAX;
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
/// Bytes of a rule's code, and of the metadata keys of the code and the value found.
const RULE_BYTES: usize = 64;
/// `ErrorInfo` reason of a status that lists fields.
const FIELDS: &str = "FIELDS";

/// Maps the fields of a draft that break rules.
pub(super) fn invalid(Invalid(errors): &Invalid) -> Status {
    let message = format!("{} field(s) break a rule; nothing was stored", errors.len());
    Status::with_error_details(Code::InvalidArgument, message, fields(FIELDS, errors))
}

/// Returns `INVALID_ARGUMENT` if arguments of a call are invalid: all of them together.
pub(super) fn check(report: Report) -> Result<(), Status> {
    report.into_result().map_err(|Invalid(errors)| {
        let message = match errors.as_slice() {
            [one] => one.to_string(),
            more => format!("{} arguments are invalid", more.len()),
        };
        Status::with_error_details(Code::InvalidArgument, message, fields(FIELDS, &errors))
    })
}

/// Builds `INVALID_ARGUMENT` for one argument.
pub(super) fn argument(field: &str, found: impl fmt::Display, rule: Rule) -> Status {
    let error = FieldError::new(field, found, rule);
    Status::with_error_details(Code::InvalidArgument, error.to_string(), fields(FIELDS, &[error]))
}

/// Builds `PERMISSION_DENIED` for the field that asks for the missing permission.
pub(super) fn denied_field(reason: &str, message: &str, error: FieldError) -> Status {
    Status::with_error_details(Code::PermissionDenied, message, fields(reason, &[error]))
}

/// Builds the details of the fields at fault, with the rule that each breaks and the values, for
/// programs and for translation. These are metadata of an `ErrorInfo` (`FieldViolation` in
/// focal_point.proto): of the first field `rule-0` is the code, `rule-0-1` the first value in the
/// rule's text, and `found-0` the value found.
fn fields(reason: &str, errors: &[FieldError]) -> ErrorDetails {
    let (mut violations, mut metadata, mut bytes) = (Vec::new(), HashMap::new(), 0);
    for (n, error) in errors.iter().enumerate() {
        let (FieldError { field, found, rule }, description) = (error, error.description());
        // The description's text is repeated in the metadata.
        bytes += field.len() + 2 * description.len() + RULE_BYTES;
        if bytes > DETAILS_BYTES_MAX {
            break;
        }
        violations.push(FieldViolation::new(field, description));
        metadata.insert(format!("rule-{n}"), rule.code().to_owned());
        metadata.insert(format!("found-{n}"), found.clone());
        metadata.extend((1..).zip(rule.values()).map(|(place, value)| (format!("rule-{n}-{place}"), value)));
    }
    let mut details = ErrorDetails::with_bad_request(violations);
    details.set_error_info(reason, DOMAIN, metadata);
    details
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
    let metadata = |key: &str| details.error_info()?.metadata.get(key).cloned();
    let fields = details.bad_request().map(|request| {
        let field = |(n, violation): (usize, &FieldViolation)| proto::FieldViolation {
            field: violation.field.clone(),
            description: violation.description.clone(),
            rule: metadata(&format!("rule-{n}")).unwrap_or_default(),
            values: (1..).map_while(|place| metadata(&format!("rule-{n}-{place}"))).collect(),
            found: metadata(&format!("found-{n}")).unwrap_or_default(),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn invalid_arguments_have_their_rules_values_and_what_was_found() {
        let mut report = Report::default();
        report.add("filter", 65, Rule::FilterAtMost { max: 64 });
        report.missing("draft", Rule::Draft);
        let error = publish_error(&check(report).unwrap_err());
        assert_eq!(error.message, "2 arguments are invalid");
        let filter = proto::FieldViolation {
            field: "filter".into(),
            description: "`65`: expected at most 64 topics, kinds and members together".into(),
            rule: "filter-at-most".into(),
            values: vec!["64".into()],
            found: "65".into(),
        };
        assert_eq!(error.fields[0], filter);
        assert_eq!(error.fields[1].description, "missing: expected a draft");
    }

    #[test]
    fn details_of_many_fields_are_bounded() {
        let error = |n| FieldError::new(format!("body.texts[{n}].headline"), "x".repeat(80), Rule::Line { max: 250 });
        let status = invalid(&Invalid((0..256).map(error).collect()));
        assert!(status.message().starts_with("256 "), "{status:?}");
        assert!(status.details().len() < 2 * DETAILS_BYTES_MAX, "{}", status.details().len());
        assert!(publish_error(&status).fields.len() > 10);
    }
}
