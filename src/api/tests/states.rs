//! States of bulletins in all responses, their references and acknowledgements, and filters that
//! match nothing known.

use std::collections::BTreeMap;
use std::sync::Arc;

use barid_core::proto;
use barid_core::proto::subscribe_request::Start;
use bytes::Bytes;
use futures::stream::StreamExt;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::world::{
    CUSTOMS, EXCHANGE, OPERATOR, POLICE, POST, World, about, bulletin, called, careless, draft, member, now, red,
};
use crate::api::bulletin_state::Work;
use crate::rpc::audit_server::Audit;
use crate::rpc::focal_point_server::FocalPoint;
use crate::store::Store;
use crate::store::disk::{DiskOptions, DiskStore};
use crate::telemetry::captured::CapturedRecords;

/// State, reason and the id of the bulletin that changed it.
fn summary(state: Option<&proto::State>) -> (String, String, String) {
    let state = state.expect("every delivery has its state").clone();
    (state.state, state.reason, state.by.map(|by| by.id).unwrap_or_default())
}

fn active() -> (String, String, String) {
    ("active".into(), String::new(), String::new())
}

async fn history(world: &World, by: &str) -> Vec<proto::Delivery> {
    world.history(by, proto::HistoryRequest::default()).await.unwrap().deliveries
}

/// A peer's bulletin that refers to another bulletin.
fn peer_about(by: &str, n: u32, msg_type: &str, issuer: &str, reference: &proto::Reference) -> Bytes {
    careless(by, 1, |_, header| {
        header.id = format!("01971f5a-3c00-7a10-8b5e-{n:012x}");
        header.issuer = issuer.into();
        header.kind = if msg_type == "Ack" { "acknowledgement".into() } else { "cancellation".into() };
        header.msg_type = msg_type.into();
        header.references = vec![reference.clone()];
    })
}

fn reference(receipt: &proto::Receipt) -> proto::Reference {
    proto::Reference { member: "ma".into(), id: receipt.id.clone(), digest: receipt.digest.clone() }
}

#[tokio::test]
async fn cancelled_bulletin_carries_its_state_in_every_delivery() {
    let world = World::start().await;
    let mut live = world.follow(POST).await;
    let original = draft(|_| {});
    let receipt = world.published(original.clone()).await;
    assert_eq!(summary(live.delivery().await.state.as_ref()), active());
    let update = world.published(about("situation-report", &original, &receipt)).await;
    let delivered = live.delivery().await;
    assert_eq!(summary(delivered.state.as_ref()), active());
    let page = history(&world, POST).await;
    let superseded = ("superseded".to_owned(), String::new(), update.id.clone());
    assert_eq!(page.iter().map(|it| summary(it.state.as_ref())).collect::<Vec<_>>(), [active(), superseded]);
    let cancel = world.published(about("cancellation", &original, &receipt)).await;
    let cancelled = ("cancelled".to_owned(), "recovered".to_owned(), cancel.id.clone());

    // The cancellation includes the headline of the bulletin that it cancels.
    let delivered = live.delivery().await;
    let names = &delivered.referenced[0];
    assert_eq!(
        (names.reference.as_ref().unwrap(), names.held, names.changes_state),
        (&reference(&receipt), true, true)
    );
    let headline = &original.body.as_ref().unwrap().texts[0];
    assert_eq!((&names.headlines[0].language, &names.headlines[0].headline), (&headline.language, &headline.headline));
    assert!(names.headlines[0].description.is_empty());

    let page = history(&world, POST).await;
    assert_eq!(summary(page[2].state.as_ref()), cancelled);
    assert_eq!(page[0].referenced, delivered.referenced);
    let got = world.get(POST, "ma", &receipt.id).await.unwrap();
    assert_eq!(
        (summary(got.state.as_ref()), summary(got.delivery.unwrap().state.as_ref())),
        (cancelled.clone(), cancelled.clone())
    );
    let mut later = world.follow(POST).await;
    assert_eq!(summary(later.delivery().await.state.as_ref()), cancelled, "a later reader gets the state at once");
}

#[tokio::test]
async fn expiry_is_applied_in_every_delivery_and_clamped() {
    let world = World::start().await;
    let at = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
    let past = i64::try_from(now() / 1_000).unwrap() - 10;
    let ends = [at(past, 0), at(i64::MIN, -1), at(i64::MAX, i32::MAX), at(past, -7), None];
    let sent: Vec<Bytes> =
        (1..).zip(ends).map(|(n, ends)| careless("tn", n, |_, header| header.expires = ends)).collect();
    world.peer_appends("tn", sent).await;
    let page = history(&world, POLICE).await;
    let states: Vec<String> = page.iter().rev().map(|it| summary(it.state.as_ref()).0).collect();
    assert_eq!(states, ["expired", "expired", "active", "expired", "active"]);
}

#[tokio::test]
async fn cancellation_received_before_its_bulletin_takes_effect() {
    let folder = tempfile::tempdir().unwrap();
    let options = DiskOptions { reserve_bytes: 0, ..DiskOptions::new(member("ma"), EXCHANGE.parse().unwrap()) };
    let disk = Arc::new(DiskStore::open(folder.path(), &options).unwrap());
    let world = World::with_store(disk as Arc<dyn Store>, 1).await;
    let original = bulletin("tn", 7, |_| {});
    let reference = proto::Reference {
        member: "tn".into(),
        id: original.proto_header.id.clone(),
        digest: Bytes::copy_from_slice(&original.digest.0),
    };
    world.peer_appends("tn", vec![peer_about("tn", 1, "Cancel", "desk", &reference)]).await;
    let page = history(&world, POLICE).await;
    assert_eq!((page[0].referenced[0].held, page[0].referenced[0].changes_state), (false, false), "not here yet");
    let mut live = world.follow(POLICE).await;
    live.delivery().await;
    world.peer_appends("tn", vec![original.envelope, bulletin("tn", 9, |_| {}).envelope]).await;
    assert_eq!(summary(live.delivery().await.state.as_ref()).0, "cancelled");
    assert_eq!(summary(live.delivery().await.state.as_ref()), active());
    world.store.apply_index();
    let page = history(&world, POLICE).await;
    assert_eq!(summary(page[1].state.as_ref()).0, "cancelled", "the index database gives the same state as memory");
    assert!(page[2].referenced[0].changes_state);
}

#[tokio::test]
async fn cancellation_by_another_publisher_has_no_effect_and_is_flagged() {
    let world = World::start().await;
    let original = draft(|_| {});
    let receipt = world.published(original.clone()).await;
    let mut wrong = reference(&receipt);
    wrong.digest = vec![1; 32].into();
    let envelopes = vec![
        peer_about("tn", 1, "Cancel", "desk", &reference(&receipt)),
        peer_about("tn", 2, "Cancel", "desk", &wrong),
        peer_about("tn", 3, "Ack", "desk", &reference(&receipt)),
    ];
    world.peer_appends("tn", envelopes).await;
    let page = history(&world, POLICE).await;
    assert_eq!(summary(page[3].state.as_ref()), active());
    let found: Vec<(bool, bool)> =
        page.iter().rev().skip(1).map(|it| (it.referenced[0].held, it.referenced[0].changes_state)).collect();
    assert_eq!(found, [(true, false), (false, false), (true, false)], "a different content is not held");
}

#[tokio::test]
async fn reference_to_an_unreadable_bulletin_looks_missing() {
    let world = World::start().await;
    let receipt = world.published(draft(red)).await;
    let mut nothing = reference(&receipt);
    nothing.id = "01971f5a-3c00-7a10-8b5e-0000000000ff".into();
    let envelopes = vec![
        peer_about("tn", 1, "Cancel", "desk", &reference(&receipt)),
        peer_about("tn", 2, "Cancel", "desk", &nothing),
    ];
    world.peer_appends("tn", envelopes).await;
    let page = history(&world, POST).await;
    let summary: Vec<proto::Referenced> = page.iter().map(|delivery| delivery.referenced[0].clone()).collect();
    assert!(summary.iter().all(|it| !it.held && !it.changes_state && it.headlines.is_empty()), "{summary:?}");
    assert!(history(&world, POLICE).await[1].referenced[0].held);
}

#[tokio::test]
async fn references_of_a_foreign_header_are_cut() {
    let world = World::start().await;
    let long = proto::Reference { member: "x".repeat(9_000), id: "y".repeat(9_000), digest: vec![7; 9_000].into() };
    let envelope = careless("tn", 1, |_, header| header.references = vec![long; 2]);
    let many = careless("tn", 2, |_, header| header.references = vec![proto::Reference::default(); 500]);
    world.peer_appends("tn", vec![envelope, many]).await;
    let page = history(&world, POLICE).await;
    let bytes = |delivery: &proto::Delivery| prost::Message::encoded_len(delivery) - delivery.envelope.len();
    assert!(page.iter().all(|delivery| bytes(delivery) < 2_000 && delivery.referenced.len() <= 16));
}

#[tokio::test]
async fn state_is_found_with_bounded_work_and_further_each_time() {
    let world = World::start().await;
    let original = draft(|_| {});
    let receipt = world.published(original.clone()).await;
    for _ in 0..5 {
        world.published(about("situation-report", &original, &receipt)).await;
    }
    let cancel = world.published(about("cancellation", &original, &receipt)).await;
    let entry = world.store.entries_from(1, 1, usize::MAX).unwrap();
    let lookup = |units| {
        let mut work = Work::new(units);
        let state = world.api.states(&entry, &mut work).unwrap().remove(0);
        (state.partial, summary(Some(&state)).0, work.is_exhausted())
    };
    assert_eq!(lookup(0), (true, "active".into(), true), "marked as partial");
    assert_eq!(lookup(3), (true, "superseded".into(), true));
    assert_eq!(lookup(3), (false, "cancelled".into(), false), "entries already read are not read again");
    assert_eq!(lookup(1), (false, "cancelled".into(), false));
    let page = history(&world, POLICE).await;
    assert_eq!(summary(page.last().unwrap().state.as_ref()).2, cancel.id);
}

/// `cargo test --release --lib -- --ignored --nocapture api::tests::states::measure`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures; run it in a release build on a quiet machine"]
async fn measure() {
    const ENTRIES: u64 = 20_000;
    let folder = tempfile::tempdir().unwrap();
    let options = DiskOptions { reserve_bytes: 0, ..DiskOptions::new(member("ma"), EXCHANGE.parse().unwrap()) };
    let disk = Arc::new(DiskStore::open(folder.path(), &options).unwrap());
    let world = World::with_store(disk as Arc<dyn Store>, 1).await;
    for group in 0..ENTRIES / 1_000 {
        let bulletins = (0..1_000).map(|n| super::world::own_bulletin(group << 16 | n)).collect();
        world.committer.publish(bulletins).await.unwrap();
    }
    let read = |from| world.store.entries_from(from, 256, 256 << 10).unwrap();
    let measured = |name: &str, work: &dyn Fn(Vec<crate::store::Entry>)| {
        let (mut from, mut spent) = (1, std::time::Duration::ZERO);
        while from < ENTRIES {
            let entries = read(from);
            from += entries.len() as u64;
            let began = std::time::Instant::now();
            work(entries);
            spent += began.elapsed();
        }
        println!("{name} {:.2} us", spent.as_secs_f64() * 1e6 / ENTRIES as f64);
    };
    let caller = world.api.caller_for_tests(POLICE);
    let states = |entries: Vec<crate::store::Entry>| {
        world.api.states(&entries, &mut Work::new(Work::EVENT_PAGE)).unwrap();
    };
    let deliveries = |entries: Vec<crate::store::Entry>| {
        world.api.deliveries(&caller, entries, &mut Work::new(Work::EVENT_PAGE)).unwrap();
    };
    measured("states.nothing_succeeds", &states);
    measured("deliveries.nothing_succeeds", &deliveries);
    let newest = world.store.entries_from(ENTRIES, 1, usize::MAX).unwrap().remove(0);
    let header = match &newest.content {
        crate::store::Content::Disclosed { header: Some(header), .. } => header.as_ref().clone(),
        _ => panic!("held in full"),
    };
    let original = proto::Draft { header: Some(header.clone()), body: None };
    let receipt =
        proto::Receipt { id: header.id, digest: Bytes::copy_from_slice(&newest.digest.0), ..Default::default() };
    world.published(about("situation-report", &original, &receipt)).await;
    world.store.apply_index();
    measured("states.newest_is_updated", &states);
    measured("deliveries.newest_is_updated", &deliveries);
}

/// Only its publisher changes a bulletin's state, and no member's acknowledgements hide those of
/// another.
#[tokio::test]
async fn acknowledgement_flood_hides_no_other_acknowledgement_or_cancellation() {
    let world = World::start().await;
    let original = draft(|_| {});
    let receipt = world.published(original.clone()).await;
    let about_it = reference(&receipt);
    for chunk in 0..3 {
        let flood = (0..500).map(|n| peer_about("tn", chunk * 500 + n, "Ack", "desk", &about_it));
        let cancel = peer_about("tn", 10_000 + chunk, "Cancel", "desk", &about_it);
        world.peer_appends("tn", flood.chain([cancel]).collect()).await;
    }
    world.peer_appends("tn", vec![peer_about("tn", 20_000, "Ack", "colleague", &about_it)]).await;
    world.peer_appends("ly", vec![peer_about("ly", 20_001, "Ack", "desk", &about_it)]).await;
    let state = world.get(POLICE, "ma", &receipt.id).await.unwrap().state.unwrap();
    assert_eq!((state.state.as_str(), state.partial, state.acknowledgements), ("active", false, 1_502));
    let by: Vec<(&str, &str)> = state.acknowledged_by.iter().map(|by| (by.member.as_str(), &by.id[24..])).collect();
    assert_eq!(by.len(), 4, "of each person the newest, and the first: {by:?}");
    for expected in [("tn", "0000000005db"), ("tn", "000000000000"), ("tn", "000000004e20"), ("ly", "000000004e21")] {
        assert!(by.contains(&expected), "{expected:?} in {by:?}");
    }
    let cancelled = world.published(about("cancellation", &original, &receipt)).await;
    let state = world.get(POLICE, "ma", &receipt.id).await.unwrap().state.unwrap();
    assert_eq!((state.state.as_str(), state.by.unwrap().id), ("cancelled", cancelled.id));
}

#[tokio::test]
async fn acknowledgements_with_oversized_ids_fit_a_response() {
    let world = World::start().await;
    let receipt = world.published(draft(|_| {})).await;
    let about_it = reference(&receipt);
    let endless = |n: u32| {
        careless("tn", 1, |_, header| {
            (header.id, header.issuer) = ("9".repeat(50_000), format!("desk-{n}"));
            (header.kind, header.msg_type) = ("acknowledgement".into(), "Ack".into());
            header.references = vec![about_it.clone()];
        })
    };
    for chunk in 0..10 {
        world.peer_appends("tn", (0..10).map(|n| endless(chunk * 10 + n)).collect()).await;
    }
    let reply = world.get(POLICE, "ma", &receipt.id).await.unwrap();
    assert_eq!(reply.state.as_ref().unwrap().acknowledged_by.len(), 100);
    assert!(prost::Message::encoded_len(&reply) < 64 << 10);
}

#[tokio::test]
async fn acknowledgements_of_one_member_leave_other_members_their_share() {
    let world = World::start().await;
    let receipt = world.published(draft(|_| {})).await;
    let about_it = reference(&receipt);
    for chunk in 0..3 {
        let flood = (0..500).map(|n| peer_about("tn", chunk * 500 + n, "Ack", &format!("desk-{chunk}-{n}"), &about_it));
        world.peer_appends("tn", flood.collect()).await;
    }
    world.peer_appends("ly", vec![peer_about("ly", 20_001, "Ack", "desk", &about_it)]).await;
    let state = world.get(POLICE, "ma", &receipt.id).await.unwrap().state.unwrap();
    assert!(state.acknowledged_by.iter().any(|by| by.member == "ly"));
    assert!(state.acknowledged_by.len() <= 1_000 && state.acknowledgements > 1_000);
}

fn filter_of(topics: &[&str], kinds: &[&str], members: &[&str]) -> proto::Filter {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    proto::Filter { topics: texts(topics), kinds: texts(kinds), members: texts(members), ..Default::default() }
}

#[tokio::test]
async fn unknown_filter_value_gets_a_warning_with_the_nearest_known() {
    let world = World::start().await;
    let filter = filter_of(&["informatoin.>", "*.reports"], &["situation-reports", "weather"], &["tz", "ma"]);
    let page = world.history(POLICE, proto::HistoryRequest { filter: Some(filter.clone()), ..Default::default() });
    let expected = [
        ("filter.topics[0]", "informatoin.>", "information", "unknown-working-group"),
        ("filter.kinds[0]", "situation-reports", "situation-report", "unknown-kind"),
        ("filter.kinds[1]", "weather", "", "unknown-kind"),
        ("filter.members[0]", "tz", "tn", "unknown-member"),
    ];
    let warnings = |warnings: &[proto::FilterWarning]| -> Vec<(String, String, String, String)> {
        warnings.iter().cloned().map(|it| (it.field, it.value, it.nearest, it.reason)).collect()
    };
    let expected: Vec<_> = expected.map(|(a, b, c, d)| (a.to_owned(), b.to_owned(), c.to_owned(), d.to_owned())).into();
    assert_eq!(warnings(&page.await.unwrap().warnings), expected);
    let request = proto::SubscribeRequest { filter: Some(filter), start: Some(Start::After(0)), ..Default::default() };
    let mut events = world.api.subscribe(called(POLICE, request)).await.unwrap().into_inner();
    assert_eq!(warnings(&events.next().await.unwrap().unwrap().warnings), expected, "with the first event");
    let known = filter_of(&["information.>"], &["situation-report"], &["tn"]);
    let page = world.history(POLICE, proto::HistoryRequest { filter: Some(known), ..Default::default() });
    assert_eq!(page.await.unwrap().warnings, []);
}

#[tokio::test]
async fn filter_with_nothing_readable_is_denied() {
    let audited = CapturedRecords::start();
    let world = World::start().await;
    let query = async |by: &str, filter: proto::Filter| {
        let request = proto::HistoryRequest { filter: Some(filter.clone()), ..Default::default() };
        let history = world.history(by, request).await.map(|page| page.warnings.len()).map_err(|status| status.code());
        let request = proto::SubscribeRequest { filter: Some(filter), ..Default::default() };
        let subscribed = world.subscribe(by, request).await.map(|_| ()).map_err(|status| status.code());
        assert_eq!(history.is_ok(), subscribed.is_ok(), "{by}");
        history
    };
    let denied = Err(Code::PermissionDenied);
    assert_eq!(query(CUSTOMS, filter_of(&["justice.>"], &[], &[])).await, denied);
    assert_eq!(
        audited.take(),
        [
            format!("call-denied working-group {CUSTOMS} FocalPoint.History"),
            format!("call-denied working-group {CUSTOMS} FocalPoint.Subscribe"),
        ]
    );
    assert_eq!(
        query(CUSTOMS, filter_of(&[], &["person-notice"], &[])).await,
        denied,
        "a kind of another working group"
    );
    assert_eq!(query(CUSTOMS, filter_of(&["customs.>"], &["person-notice"], &[])).await, denied);
    assert_eq!(
        query(CUSTOMS, filter_of(&["justice.>", "customs.>"], &[], &[])).await,
        Ok(1),
        "reports what is not granted"
    );
    assert_eq!(query(CUSTOMS, filter_of(&["*.persons"], &["cancellation", "feed-closed"], &[])).await, Ok(0));
    assert_eq!(query(CUSTOMS, filter_of(&["nowhere.>"], &[], &[])).await, Ok(1), "an unknown topic is not denied");
    assert_eq!(query(OPERATOR, filter_of(&[], &["seizure-report"], &[])).await, denied);
    assert_eq!(query(OPERATOR, filter_of(&["customs.>"], &["feed-closed"], &[])).await, Ok(0));
    let none = "[[grant]]\npath = \"focal-point/new\"\nroles = [\"focal-point\"]\n";
    world.access.store(Arc::new(crate::access::Access::parse(none).unwrap()));
    assert_eq!(query("focal-point/new", proto::Filter::default()).await, denied, "reads in no working group");
}

#[tokio::test]
async fn denied_read_is_recorded_and_looks_like_not_found() {
    let audited = CapturedRecords::start();
    let world = World::start().await;
    let original = draft(|_| {});
    let receipt = world.published(original.clone()).await;
    audited.take();
    let mut absent = receipt.clone();
    absent.id = "01971f5a-3c00-7a10-8b5e-000000000001".into();
    let export = async |id: &str| {
        let request = proto::ExportEvidenceRequest { member: "ma".into(), id: id.into() };
        let status = world.api.export_evidence(called(CUSTOMS, request)).await.err().unwrap();
        (status.code(), status.message().replace(id, "ID"), status.details().to_vec())
    };
    let get = async |id: &str| {
        let status = world.get(CUSTOMS, "ma", id).await.unwrap_err();
        (status.code(), status.message().replace(id, "ID"), status.details().to_vec())
    };
    let publish = async |receipt: &proto::Receipt| {
        let mut reply = about("acknowledgement", &original, receipt);
        reply.header.as_mut().unwrap().topic = "customs.seizures".into();
        let status = world.publish(CUSTOMS, reply).await.unwrap_err();
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        // A map has no order on the wire.
        let metadata: BTreeMap<_, _> = info.metadata.iter().collect();
        let seen = format!("{:?} {} {metadata:?} {:?}", status.code(), status.message(), details.bad_request());
        (seen.replace(&receipt.id, "ID"), info.reason.clone())
    };
    assert_eq!(get(&receipt.id).await, get(&absent.id).await);
    assert_eq!(export(&receipt.id).await, export(&absent.id).await);
    assert_eq!(publish(&receipt).await, publish(&absent).await);
    let records = audited.records();
    assert_eq!(records.len(), 3, "{records:?}");
    assert!(records.iter().all(|record| record.detail == format!("ma/{}", receipt.id)), "{records:?}");
}
