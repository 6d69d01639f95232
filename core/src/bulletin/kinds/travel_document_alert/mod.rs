//! Kind `travel-document-alert`.

use super::{Context, KindInfo, Labels, SearchKey};
use crate::bulletin::field::Report;
use crate::bulletin::vocabulary::MsgType;
use crate::proto;
use crate::proto::body::Content;

/// The kind.
pub const KIND: KindInfo = KindInfo {
    name: "travel-document-alert",
    working_group: Some("security"),
    msg_types: &[MsgType::Alert, MsgType::Update],
    informs: true,
    labels: Labels {
        ar: "تنبيه بشأن وثيقة سفر", fr: "Alerte sur un document de voyage", en: "Travel document alert"
    },
    holds: |content| matches!(content, Content::TravelDocumentAlert(_)),
    validate,
    search_keys,
    sample_json: include_str!("../../../../../examples/bulletins/travel-document-alert.json"),
};

fn validate(_body: &proto::Body, _context: &Context<'_>, _report: &mut Report) {}

fn search_keys(_body: &proto::Body) -> Vec<SearchKey> {
    Vec::new()
}
