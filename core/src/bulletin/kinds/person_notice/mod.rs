//! Kind `person-notice`.

use super::{Context, KindInfo, Labels, SearchKey};
use crate::bulletin::field::Report;
use crate::bulletin::vocabulary::MsgType;
use crate::proto;
use crate::proto::body::Content;

/// The kind.
pub const KIND: KindInfo = KindInfo {
    name: "person-notice",
    working_group: Some("justice"),
    msg_types: &[MsgType::Alert, MsgType::Update],
    informs: true,
    labels: Labels { ar: "نشرة بشأن شخص", fr: "Notice relative à une personne", en: "Person notice" },
    holds: |content| matches!(content, Content::PersonNotice(_)),
    validate,
    search_keys,
    sample_json: include_str!("../../../../../examples/bulletins/person-notice.json"),
};

fn validate(_body: &proto::Body, _context: &Context<'_>, _report: &mut Report) {}

fn search_keys(_body: &proto::Body) -> Vec<SearchKey> {
    Vec::new()
}
