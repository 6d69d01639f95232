//! Kind `cancellation`.

use super::{Context, KindInfo, Labels, SearchKey};
use crate::bulletin::field::Report;
use crate::bulletin::vocabulary::MsgType;
use crate::proto;
use crate::proto::body::Content;

/// The kind.
pub const KIND: KindInfo = KindInfo {
    name: "cancellation",
    working_group: None,
    msg_types: &[MsgType::Cancel],
    informs: false,
    labels: Labels { ar: "إلغاء", fr: "Annulation", en: "Cancellation" },
    holds: |content| matches!(content, Content::Cancellation(_)),
    validate,
    search_keys,
    sample_json: include_str!("../../../../../examples/bulletins/cancellation.json"),
};

fn validate(_body: &proto::Body, _context: &Context<'_>, _report: &mut Report) {}

fn search_keys(_body: &proto::Body) -> Vec<SearchKey> {
    Vec::new()
}
