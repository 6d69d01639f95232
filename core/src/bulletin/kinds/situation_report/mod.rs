//! Kind `situation-report`.

use super::{Context, KindInfo, Labels, SearchKey};
use crate::bulletin::field::Report;
use crate::bulletin::vocabulary::MsgType;
use crate::proto;
use crate::proto::body::Content;

/// The kind.
pub const KIND: KindInfo = KindInfo {
    name: "situation-report",
    working_group: Some("information"),
    msg_types: &[MsgType::Alert, MsgType::Update],
    informs: true,
    labels: Labels { ar: "تقرير عن الوضع", fr: "Rapport de situation", en: "Situation report" },
    holds: |content| matches!(content, Content::SituationReport(_)),
    validate,
    search_keys,
    sample_json: include_str!("../../../../../examples/bulletins/situation-report.json"),
};

fn validate(_body: &proto::Body, _context: &Context<'_>, _report: &mut Report) {}

fn search_keys(_body: &proto::Body) -> Vec<SearchKey> {
    Vec::new()
}
