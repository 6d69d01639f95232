//! A store that fails, a clock that is wrong, callers that ask too much, and a node that stops.

use std::sync::Arc;
use std::time::Duration;

use barid_core::proto;
use barid_core::proto::subscribe_request::Start;
use barid_core::proto::subscribe_response::Event;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::world::{EXCHANGE, POLICE, POST, World, access, bulletin, draft, feed, member, until};
use crate::access::Access;
use crate::committer::{CommitFailure, Gate, Kept};
use crate::store::disk::{DiskOptions, DiskStore};
use crate::store::{CursorRecord, Store};
use crate::telemetry::heard::Heard;

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
async fn of_a_commit_that_failed_nothing_is_released_ever_and_reading_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let options = DiskOptions { reserve_bytes: 0, ..DiskOptions::new(member("ma"), EXCHANGE.parse().unwrap()) };
    let disk = Arc::new(DiskStore::open(folder.path(), &options).unwrap());
    let world = World::over(Arc::clone(&disk) as Arc<dyn Store>, 1).await;
    let held = world.published(draft(|_| {})).await;
    let mut reader = world.follow(POLICE).await;
    assert_eq!(reader.delivery().await.arrival, 1);

    disk.fail_next_sync();
    let (one, two) = tokio::join!(world.publish(POLICE, draft(|_| {})), world.publish(POLICE, draft(|_| {})));
    for refused in [one, two, world.publish(POLICE, draft(|_| {})).await] {
        let refused = refused.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "STOPPED"), "{refused:?}");
    }
    assert!(matches!(&*world.committer.gate().borrow(), Gate::Stopped(why) if why.contains("the sync failed")));
    let cursor = CursorRecord { subscription: "focal-point/police-hq/all".into(), arrival: 1, ..Default::default() };
    let kept = world.committer.keep(Kept { cursors: vec![cursor], ..Kept::default() }).await;
    assert!(matches!(kept, Err(CommitFailure::Stopped(_))), "{kept:?}");
    assert_eq!((world.store.end_arrival(), world.store.feed(&feed("ma", 1)).unwrap().frontier.size()), (2, 1));
    assert_eq!(world.get(POST, "ma", &held.id).await.unwrap().delivery.unwrap().index, 0);
    // A lookup of health comes after the node has seen it: NOT_SERVING follows.
    let mut health = tonic_health::pb::health_client::HealthClient::new(super::served::served(&world).await);
    let mut status = 1;
    while status == 1 {
        let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
        status = health.check(request).await.unwrap().into_inner().status;
    }
    assert_eq!(status, 2);
}

#[tokio::test]
async fn a_clock_behind_the_last_cosignature_signs_nothing_until_it_is_right() {
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
    assert_eq!(cosigned(), Some(2), "a little is made up for by the last time");
    assert_eq!(custody().2, before);
    world.committer.set_clock(-3_600);
    assert_eq!(world.committer.clock_behind(), Some(before));
    world.peer_appends("tn", vec![bulletin("tn", 3, |_| {}).envelope]).await;
    world.peer_withholds("tn").await;
    assert_eq!(world.store.feed(&tn).unwrap().frontier.size(), 4, "entries are taken all the same");
    assert_eq!((cosigned(), custody().0), (Some(2), 1..2));
    let now = super::world::now() / 1_000;
    assert!(world.committer.heartbeat(now).is_some() && world.committer.heartbeat(now - 3_600).is_none());
    // What this node publishes is in no doubt by it.
    world.published(draft(|_| {})).await;

    world.committer.set_clock(0);
    assert_eq!(world.committer.clock_behind(), None);
    world.peer_appends("tn", vec![bulletin("tn", 4, |_| {}).envelope]).await;
    let (range, not_held, after) = custody();
    let not_held: Vec<u64> = not_held.into_iter().flatten().collect();
    assert_eq!((cosigned(), range, not_held), (Some(5), 2..5, vec![3]), "nothing is left out");
    assert!(after >= before);
}

#[tokio::test]
async fn a_caller_that_asks_too_much_is_told_when_to_come_back_and_others_go_on() {
    let world = World::start().await;
    let limited = access().replacen(
        "working_groups",
        "limits = { calls_per_second = 3, subscriptions = 2, streams = 2 }\nworking_groups",
        1,
    );
    world.access.store(Arc::new(Access::parse(&limited).unwrap()));
    let (heard, mut told) = (Heard::listen(), Vec::new());
    for _ in 0..50 {
        told.extend(world.get(POLICE, "ma", "01971f5a-3c00-7a10-8b5e-000000000001").await.err());
    }
    let refused: Vec<&Status> = told.iter().filter(|status| status.code() == Code::ResourceExhausted).collect();
    assert!(refused.len() > 10, "{told:?}");
    assert!(refused.iter().all(|status| reason(status) == "RATE" && retry(status) < Some(Duration::from_secs(1))));
    let records = heard.take();
    assert_eq!(records, ["refused-call RATE focal-point/police-hq FocalPoint.Get"]);
    world.get(POST, "ma", "01971f5a-3c00-7a10-8b5e-000000000001").await.unwrap_err();
    assert_eq!(world.get(POST, "ma", "x").await.unwrap_err().code(), Code::InvalidArgument, "others go on");

    // Streams and names are bounded apart from calls.
    let limited = limited.replace("calls_per_second = 3, ", "");
    world.access.store(Arc::new(Access::parse(&limited).unwrap()));
    let first = world.subscribe(POLICE, named("one")).await.unwrap();
    let second = world.subscribe(POLICE, named("two")).await.unwrap();
    let Err(refused) = world.subscribe(POLICE, named("one")).await else { panic!("refused") };
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "STREAMS"));
    assert!(retry(&refused).is_some());
    drop((first, second));
    until("the streams have ended", || world.api.pace.open_streams() == 0).await;
    let Err(refused) = world.subscribe(POLICE, named("three")).await else { panic!("refused") };
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "SUBSCRIPTIONS"));
    let mut again = world.subscribe(POLICE, named("two")).await.unwrap();
    assert_eq!(again.position().await, 0);
    world.subscribe(POST, named("three")).await.unwrap();
}

#[tokio::test]
async fn a_node_that_stops_ends_subscriptions_with_a_reason() {
    let world = World::start().await;
    let mut reader = world.follow(POLICE).await;
    world.published(draft(|_| {})).await;
    assert_eq!(reader.delivery().await.arrival, 1);
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
async fn a_damaged_entry_is_named_and_holds_up_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    // Without a window what is read comes from the disk.
    let options =
        DiskOptions { reserve_bytes: 0, window_bytes: 0, ..DiskOptions::new(member("ma"), EXCHANGE.parse().unwrap()) };
    let disk: Arc<dyn Store> = Arc::new(DiskStore::open(folder.path(), &options).unwrap());
    let world = World::over(disk, 1).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(world.published(draft(|_| {})).await.id);
    }
    world.store.drain_view();
    let path = folder.path().join("log/0000000001.log");
    let mut log = std::fs::read(&path).unwrap();
    for id in &ids[2..4] {
        // Its header is in its envelope, and its envelope's digest in no other place.
        let envelope = world.get(POLICE, "ma", id).await.unwrap().delivery.unwrap().envelope;
        let at = log.windows(envelope.len()).position(|window| window == envelope).unwrap();
        log[at..at + 2].fill(0xee);
    }
    std::fs::write(&path, log).unwrap();
    let damaged = |index| proto::DamagedEntry { arrival: index + 1, feed: feed("ma", 1).to_string(), index };

    let page = world.history(POLICE, proto::HistoryRequest::default()).await.unwrap();
    let shown: Vec<u64> = page.deliveries.iter().map(|delivery| delivery.index).collect();
    assert_eq!((shown, page.damaged), (vec![4, 1, 0], vec![damaged(3), damaged(2)]));
    let second = proto::HistoryRequest { page_size: 2, ..proto::HistoryRequest::default() };
    let page = world.history(POLICE, second.clone()).await.unwrap();
    assert_eq!((page.deliveries.len(), &page.damaged[..]), (1, &[damaged(3)][..]));
    let next = proto::HistoryRequest { page_token: page.next_page_token, ..second.clone() };
    let page = world.history(POLICE, next).await.unwrap();
    assert_eq!((page.deliveries[0].index, &page.damaged[..]), (1, &[damaged(2)][..]));
    let others = proto::Filter { members: vec!["tn".into()], ..proto::Filter::default() };
    let page = world.history(POLICE, proto::HistoryRequest { filter: Some(others.clone()), ..second }).await.unwrap();
    assert!(page.damaged.is_empty(), "it was not asked for");

    let refused = world.get(POLICE, "ma", &ids[2]).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::DataLoss, "DAMAGED"));
    assert!(refused.message().contains("ma.rabat.example/feed/1 2"), "{refused:?}");
    assert_eq!(world.get(POLICE, "ma", &ids[4]).await.unwrap().delivery.unwrap().index, 4);

    let mut reader = world.follow(POLICE).await;
    assert_eq!((reader.delivery().await.index, reader.delivery().await.index), (0, 1));
    for index in [2, 3] {
        assert_eq!(reader.next().await.unwrap().unwrap(), Event::Damaged(damaged(index)));
    }
    assert_eq!(reader.delivery().await.index, 4);
    let filtered = proto::SubscribeRequest { filter: Some(others), start: Some(Start::After(0)), ..Default::default() };
    let mut reader = world.subscribe(POLICE, filtered).await.unwrap();
    assert_eq!((reader.position().await, reader.position().await), (0, 5), "who did not ask for it is not told");

    // It serves; that its store is damaged is told to who asks for that.
    let mut health = tonic_health::pb::health_client::HealthClient::new(super::served::served(&world).await);
    for (service, wanted) in [("barid.store", 2), ("", 1)] {
        let mut status = 0;
        while status != wanted {
            let request = tonic_health::pb::HealthCheckRequest { service: service.into() };
            status = health.check(request).await.map_or(0, |answer| answer.into_inner().status);
        }
    }
}
