//! A failing store, a wrong clock, callers over their limits, and a node that stops.

use std::sync::Arc;
use std::time::Duration;

use barid_core::proto;
use barid_core::proto::subscribe_request::Start;
use barid_core::proto::subscribe_response::Event;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::world::{EXCHANGE, POLICE, POST, World, access, bulletin, draft, feed, member, until};
use crate::access::Access;
use crate::committer::{CommitFailure, PublishState, Records};
use crate::store::disk::{DiskOptions, DiskStore};
use crate::store::memory::MemoryStore;
use crate::store::{CursorRecord, Store};
use crate::telemetry::captured::CapturedRecords;

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

fn retry(status: &Status) -> Option<Duration> {
    status.get_error_details().retry_info().and_then(|info| info.retry_delay)
}

fn named(name: &str) -> proto::SubscribeRequest {
    let start = Some(Start::Subscription(name.into()));
    proto::SubscribeRequest { start, begin: "now".into(), ..Default::default() }
}

#[tokio::test]
async fn failed_commit_is_never_visible_and_reads_continue() {
    let folder = tempfile::tempdir().unwrap();
    let options = DiskOptions { reserve_bytes: 0, ..DiskOptions::new(member("ma"), EXCHANGE.parse().unwrap()) };
    let disk = Arc::new(DiskStore::open(folder.path(), &options).unwrap());
    let world = World::with_store(Arc::clone(&disk) as Arc<dyn Store>, 1).await;
    let held = world.published(draft(|_| {})).await;
    let mut reader = world.follow(POLICE).await;
    assert_eq!(reader.delivery().await.offset, 1);

    disk.fail_next_sync();
    let (one, two) = tokio::join!(world.publish(POLICE, draft(|_| {})), world.publish(POLICE, draft(|_| {})));
    for error in [one, two, world.publish(POLICE, draft(|_| {})).await] {
        let error = error.unwrap_err();
        assert_eq!((error.code(), reason(&error).as_str()), (Code::Unavailable, "STOPPED"), "{error:?}");
    }
    assert!(
        matches!(&*world.committer.publish_state().borrow(), PublishState::Stopped(why) if why.contains("the sync failed"))
    );
    let cursor = CursorRecord { subscription: "focal-point/police-hq/all".into(), offset: 1, ..Default::default() };
    let persisted = world.committer.persist(Records { cursors: vec![cursor], ..Records::default() }).await;
    assert!(matches!(persisted, Err(CommitFailure::Stopped(_))), "{persisted:?}");
    assert_eq!((world.store.end_offset(), world.store.feed(&feed("ma", 1)).unwrap().compact_range.size()), (2, 1));
    assert_eq!(world.get(POST, "ma", &held.id).await.unwrap().delivery.unwrap().index, 0);
    // Health changes asynchronously: NOT_SERVING follows.
    let mut health = tonic_health::pb::health_client::HealthClient::new(super::mounted_services::served(&world).await);
    let mut status = 1;
    while status == 1 {
        let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
        status = health.check(request).await.unwrap().into_inner().status;
    }
    assert_eq!(status, 2);
}

#[tokio::test]
async fn clock_behind_the_last_cosignature_suspends_signing() {
    let world = World::start().await;
    let tn = feed("tn", 1);
    world.peer_appends("tn", vec![bulletin("tn", 1, |_| {}).envelope]).await;
    let cosigned = || world.store.cosigned_newest(&tn).unwrap().into_iter().map(|note| note.size).max();
    let custody = || {
        let notes = world.store.custody_newest(&tn).unwrap();
        notes.into_iter().map(|note| (note.range, note.not_held, note.time)).next_back().unwrap()
    };
    let (_, _, before) = custody();
    assert_eq!((cosigned(), world.committer.clock_behind()), (Some(1), None));

    world.committer.set_clock(-200);
    world.peer_appends("tn", vec![bulletin("tn", 2, |_| {}).envelope]).await;
    assert_eq!(cosigned(), Some(2), "a small lag is covered by the last time");
    assert_eq!(custody().2, before);
    world.committer.set_clock(-3_600);
    assert_eq!(world.committer.clock_behind(), Some(before));
    world.peer_appends("tn", vec![bulletin("tn", 3, |_| {}).envelope]).await;
    world.peer_withholds("tn").await;
    assert_eq!(world.store.feed(&tn).unwrap().compact_range.size(), 4, "entries are still accepted");
    assert_eq!((cosigned(), custody().0), (Some(2), 1..2));
    let now = super::world::now() / 1_000;
    assert!(world.committer.heartbeat(now).is_some() && world.committer.heartbeat(now - 3_600).is_none());
    // The node can still publish.
    world.published(draft(|_| {})).await;

    world.committer.set_clock(0);
    assert_eq!(world.committer.clock_behind(), None);
    world.peer_appends("tn", vec![bulletin("tn", 4, |_| {}).envelope]).await;
    let (range, not_held, after) = custody();
    let not_held: Vec<u64> = not_held.into_iter().flatten().collect();
    assert_eq!((cosigned(), range, not_held), (Some(5), 2..5, vec![3]), "no entry is omitted");
    assert!(after >= before);
}

#[tokio::test]
async fn rate_limited_caller_gets_retry_info_and_others_are_served() {
    let world = World::start().await;
    let limited = access().replacen(
        "working_groups",
        "limits = { calls_per_second = 3, subscriptions = 2, streams = 2 }\nworking_groups",
        1,
    );
    world.access.store(Arc::new(Access::parse(&limited).unwrap()));
    let (captured, mut errors) = (CapturedRecords::start(), Vec::new());
    for _ in 0..50 {
        errors.extend(world.get(POLICE, "ma", "01971f5a-3c00-7a10-8b5e-000000000001").await.err());
    }
    let error: Vec<&Status> = errors.iter().filter(|status| status.code() == Code::ResourceExhausted).collect();
    assert!(error.len() > 10, "{errors:?}");
    assert!(error.iter().all(|status| reason(status) == "RATE" && retry(status) < Some(Duration::from_secs(1))));
    let records = captured.take();
    assert_eq!(records, ["call-denied rate focal-point/police-hq FocalPoint.Get"]);
    world.get(POST, "ma", "01971f5a-3c00-7a10-8b5e-000000000001").await.unwrap_err();
    assert_eq!(world.get(POST, "ma", "x").await.unwrap_err().code(), Code::InvalidArgument, "other callers are served");

    // Limits of streams and names are apart from the limit of calls.
    let limited = limited.replace("calls_per_second = 3, ", "");
    world.access.store(Arc::new(Access::parse(&limited).unwrap()));
    let first = world.subscribe(POLICE, named("one")).await.unwrap();
    let second = world.subscribe(POLICE, named("two")).await.unwrap();
    let Err(error) = world.subscribe(POLICE, named("one")).await else { panic!("not denied") };
    assert_eq!((error.code(), reason(&error).as_str()), (Code::ResourceExhausted, "STREAMS"));
    assert!(retry(&error).is_some());
    drop((first, second));
    until("the streams have ended", || world.api.call_limiter.open_streams() == 0).await;
    let Err(error) = world.subscribe(POLICE, named("three")).await else { panic!("not denied") };
    assert_eq!((error.code(), reason(&error).as_str()), (Code::ResourceExhausted, "SUBSCRIPTIONS"));
    let mut again = world.subscribe(POLICE, named("two")).await.unwrap();
    assert_eq!(again.position().await, 0);
    world.subscribe(POST, named("three")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn publishing_on_a_node_that_does_not_start_in_time_is_unavailable() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let world = World::starting(store, 1, folder.path().join("mark"), Duration::from_secs(3_600));
    let error = world.publish(POLICE, draft(|_| {})).await.unwrap_err();
    assert_eq!((error.code(), reason(&error).as_str()), (Code::Unavailable, "STARTING"), "{error:?}");
    assert!(retry(&error).is_some());
}

#[tokio::test]
async fn stopping_node_ends_subscriptions_with_a_reason() {
    let world = World::start().await;
    let mut reader = world.follow(POLICE).await;
    world.published(draft(|_| {})).await;
    assert_eq!(reader.delivery().await.offset, 1);
    world.stop.send_replace(true);
    let end = loop {
        match reader.next().await.expect("a reason") {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!((end.code(), reason(&end).as_str()), (Code::Unavailable, "STOPPING"));
    assert!(retry(&end).is_some());
    assert!(reader.next().await.is_none());
}

#[tokio::test]
async fn damaged_entry_is_reported_and_does_not_block_reads() {
    let folder = tempfile::tempdir().unwrap();
    // Without a tail cache, reads come from the disk.
    let options = DiskOptions {
        reserve_bytes: 0,
        tail_cache_bytes: 0,
        ..DiskOptions::new(member("ma"), EXCHANGE.parse().unwrap())
    };
    let disk: Arc<dyn Store> = Arc::new(DiskStore::open(folder.path(), &options).unwrap());
    let world = World::with_store(disk, 1).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(world.published(draft(|_| {})).await.id);
    }
    world.store.apply_index();
    let path = folder.path().join("log/0000000001.log");
    let mut log = std::fs::read(&path).unwrap();
    for id in &ids[2..4] {
        // Damage the header, which is in the envelope; the envelope's digest is stored elsewhere.
        let envelope = world.get(POLICE, "ma", id).await.unwrap().delivery.unwrap().envelope;
        let at = log.windows(envelope.len()).position(|window| window == envelope).unwrap();
        log[at..at + 2].fill(0xee);
    }
    std::fs::write(&path, log).unwrap();
    let damaged = |index| proto::DamagedEntry { offset: index + 1, feed: feed("ma", 1).to_string(), index };

    let page = world.history(POLICE, proto::HistoryRequest::default()).await.unwrap();
    let indexes: Vec<u64> = page.deliveries.iter().map(|delivery| delivery.index).collect();
    assert_eq!((indexes, page.damaged), (vec![4, 1, 0], vec![damaged(3), damaged(2)]));
    let second = proto::HistoryRequest { page_size: 2, ..proto::HistoryRequest::default() };
    let page = world.history(POLICE, second.clone()).await.unwrap();
    assert_eq!((page.deliveries.len(), &page.damaged[..]), (1, &[damaged(3)][..]));
    let next = proto::HistoryRequest { page_token: page.next_page_token, ..second.clone() };
    let page = world.history(POLICE, next).await.unwrap();
    assert_eq!((page.deliveries[0].index, &page.damaged[..]), (1, &[damaged(2)][..]));
    let others = proto::Filter { members: vec!["tn".into()], ..proto::Filter::default() };
    let page = world.history(POLICE, proto::HistoryRequest { filter: Some(others.clone()), ..second }).await.unwrap();
    assert!(page.damaged.is_empty(), "damage outside the filter is not reported");

    let error = world.get(POLICE, "ma", &ids[2]).await.unwrap_err();
    assert_eq!((error.code(), reason(&error).as_str()), (Code::DataLoss, "DAMAGED"));
    assert!(error.message().contains("ma.rabat.example/feed/1 2"), "{error:?}");
    assert_eq!(world.get(POLICE, "ma", &ids[4]).await.unwrap().delivery.unwrap().index, 4);

    let mut reader = world.follow(POLICE).await;
    assert_eq!((reader.delivery().await.index, reader.delivery().await.index), (0, 1));
    for index in [2, 3] {
        assert_eq!(reader.next().await.unwrap().unwrap(), Event::Damaged(damaged(index)));
    }
    assert_eq!(reader.delivery().await.index, 4);
    let filtered = proto::SubscribeRequest { filter: Some(others), start: Some(Start::After(0)), ..Default::default() };
    let mut reader = world.subscribe(POLICE, filtered).await.unwrap();
    assert_eq!(
        (reader.position().await, reader.position().await),
        (0, 5),
        "damage outside the filter is not delivered"
    );

    // The node serves, and the health service reports the damaged store under its own name.
    let mut health = tonic_health::pb::health_client::HealthClient::new(super::mounted_services::served(&world).await);
    for (service, expected) in [("barid.store", 2), ("", 1)] {
        let mut status = 0;
        while status != expected {
            let request = tonic_health::pb::HealthCheckRequest { service: service.into() };
            status = health.check(request).await.map_or(0, |response| response.into_inner().status);
        }
    }
}
