//! Evidence export: repeated exports are recorded without filling the log.

use barid_core::proto;

use super::world::{POLICE, World, called, draft};
use crate::rpc::audit_server::Audit as _;
use crate::telemetry::captured::CapturedRecords;

#[tokio::test]
async fn exports_are_recorded_singly_then_counted() {
    let world = World::start().await;
    let receipt = world.published(draft(|_| {})).await;
    let captured = CapturedRecords::start();
    for _ in 0..100 {
        let request = proto::ExportEvidenceRequest { member: "ma".into(), id: receipt.id.clone() };
        assert!(world.api.export_evidence(called(POLICE, request)).await.is_ok());
    }
    let one = format!("evidence exported {POLICE} {} {}", receipt.feed, receipt.index);
    assert_eq!(captured.take(), vec![one.clone(); 60]);
    crate::telemetry::summarize_all();
    assert_eq!(captured.take(), [one], "one for all others");
}
