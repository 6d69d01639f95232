//! Kind `cancellation`: why a bulletin is no longer valid, in any working group. Its header is a
//! Cancel by the publisher of that bulletin.

use super::{Context, KindInfo, Labels, SearchKey};
use crate::bulletin::body::line;
use crate::bulletin::field::Report;
use crate::bulletin::vocabulary::{CancelReason, MsgType};
use crate::limits::LINE_CHARS_MAX;
use crate::proto;
use crate::proto::body::Content;

/// The entry in the registry of kinds.
pub const KIND: KindInfo = KindInfo {
    name: "cancellation",
    working_group: None,
    msg_types: &[MsgType::Cancel],
    informs: false,
    node_only: false,
    labels: Labels { ar: "إلغاء", fr: "Annulation", en: "Cancellation" },
    holds: |content| matches!(content, Content::Cancellation(_)),
    validate,
    search_keys,
    sample_json: include_str!("../../../../../examples/bulletins/cancellation.json"),
};

fn validate(body: &proto::Body, _context: &Context<'_>, report: &mut Report) {
    let Some(Content::Cancellation(cancellation)) = &body.content else { return };
    let reason = report.parse("body.cancellation.reason", &cancellation.reason);
    let needed = reason == Some(CancelReason::Other);
    line("body.cancellation.remark", &cancellation.remark, needed, LINE_CHARS_MAX, report);
}

fn search_keys(body: &proto::Body) -> Vec<SearchKey> {
    let Some(Content::Cancellation(cancellation)) = &body.content else { return Vec::new() };
    vec![SearchKey::new("reason", &cancellation.reason)]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::bulletin::prepare::tests::{faults, sample};

    #[test]
    fn cancellation_for_another_reason_needs_a_remark() {
        let mut draft = sample("cancellation");
        let content = |reason: &str| {
            Content::Cancellation(proto::Cancellation { reason: reason.to_owned(), remark: String::new() })
        };
        draft.body.as_mut().unwrap().content = Some(content("withdrawn"));
        assert!(faults(&draft).is_empty());
        draft.body.as_mut().unwrap().content = Some(content("other"));
        assert_eq!(faults(&draft), ["body.cancellation.remark"]);
        draft.body.as_mut().unwrap().content = Some(content("whim"));
        assert_eq!(faults(&draft), ["body.cancellation.reason"]);
    }
}
