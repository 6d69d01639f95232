//! Kind `acknowledgement`: a person's acknowledgement of a bulletin, in any working group. Its
//! header is an Ack that refers to the exact content.

use super::{Context, KindInfo, Labels, SearchKey};
use crate::bulletin::body::line;
use crate::bulletin::field::Report;
use crate::bulletin::vocabulary::{AckOutcome, MsgType};
use crate::limits::LINE_CHARS_MAX;
use crate::proto;
use crate::proto::body::Content;

/// The entry in the registry of kinds.
pub const KIND: KindInfo = KindInfo {
    name: "acknowledgement",
    working_group: None,
    msg_types: &[MsgType::Ack],
    informs: false,
    node_only: false,
    labels: Labels { ar: "إشعار بالاستلام", fr: "Accusé de réception", en: "Acknowledgement" },
    holds: |content| matches!(content, Content::Acknowledgement(_)),
    validate,
    search_keys,
    sample_json: include_str!("../../../../../examples/bulletins/acknowledgement.json"),
};

fn validate(body: &proto::Body, _context: &Context<'_>, report: &mut Report) {
    let Some(Content::Acknowledgement(ack)) = &body.content else { return };
    report.parse::<AckOutcome>("body.acknowledgement.outcome", &ack.outcome);
    line("body.acknowledgement.remark", &ack.remark, false, LINE_CHARS_MAX, report);
}

fn search_keys(body: &proto::Body) -> Vec<SearchKey> {
    let Some(Content::Acknowledgement(ack)) = &body.content else { return Vec::new() };
    vec![SearchKey::new("outcome", &ack.outcome)]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::bulletin::prepare::tests::{faults, sample};

    #[test]
    fn acknowledgement_needs_a_known_outcome_and_a_reference() {
        let mut draft = sample("acknowledgement");
        draft.body.as_mut().unwrap().content = Some(Content::Acknowledgement(proto::Acknowledgement {
            outcome: "maybe".to_owned(),
            remark: "a\u{0}b".to_owned(),
        }));
        draft.header.as_mut().unwrap().references.clear();
        let expected = ["header.references", "body.acknowledgement.outcome", "body.acknowledgement.remark"];
        assert_eq!(faults(&draft), expected);
    }

    #[test]
    fn acknowledgement_needs_no_text() {
        let mut draft = sample("acknowledgement");
        draft.body.as_mut().unwrap().texts.clear();
        assert!(faults(&draft).is_empty());
    }
}
