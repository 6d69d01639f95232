//! Evidence: what callers can do at will is recorded, and does not fill the log.

use barid_core::proto;

use super::world::{POLICE, World, called, draft};
use crate::rpc::audit_server::Audit as _;
use crate::telemetry::heard::Heard;

#[tokio::test]
async fn exports_are_recorded_one_by_one_and_as_a_number_when_there_are_many() {
    let world = World::start().await;
    let receipt = world.published(draft(|_| {})).await;
    let heard = Heard::listen();
    for _ in 0..100 {
        let request = proto::ExportEvidenceRequest { member: "ma".into(), id: receipt.id.clone() };
        assert!(world.api.export_evidence(called(POLICE, request)).await.is_ok());
    }
    let one = format!("evidence exported {POLICE} {} {}", receipt.feed, receipt.index);
    assert_eq!(heard.take(), vec![one.clone(); 60]);
    crate::telemetry::settle_all();
    assert_eq!(heard.take(), [one], "one for all others");
}
