//! Kind `seizure-report`.

use super::{Context, KindInfo, Labels, SearchKey};
use crate::bulletin::field::Report;
use crate::bulletin::vocabulary::MsgType;
use crate::proto;
use crate::proto::body::Content;

/// The kind.
pub const KIND: KindInfo = KindInfo {
    name: "seizure-report",
    working_group: Some("customs"),
    msg_types: &[MsgType::Alert, MsgType::Update],
    informs: true,
    labels: Labels { ar: "تقرير ضبط", fr: "Rapport de saisie", en: "Seizure report" },
    holds: |content| matches!(content, Content::SeizureReport(_)),
    validate,
    search_keys,
    sample_json: include_str!("../../../../../examples/bulletins/seizure-report.json"),
};

fn validate(_body: &proto::Body, _context: &Context<'_>, _report: &mut Report) {}

fn search_keys(_body: &proto::Body) -> Vec<SearchKey> {
    Vec::new()
}
