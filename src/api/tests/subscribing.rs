//! Subscriptions: where they begin, what they wait for, when they end.

use std::sync::Arc;
use std::time::Duration;

use barid_core::proto;
use barid_core::proto::subscribe_request::Start;
use tonic::Code;

use super::world::{OPERATOR, POLICE, POST, World, bulletin, called, careless, draft, red};
use crate::access::Access;
use crate::rpc::operator_server::Operator as _;
use crate::telemetry::alarms::Alarm;
use crate::telemetry::captured::CapturedRecords;

#[tokio::test]
async fn subscription_filter_excludes_other_bulletins() {
    let world = World::start().await;
    let filter = proto::Filter {
        topics: vec!["information.>".into()],
        kinds: vec!["situation-report".into()],
        min_severity: "Severe".into(),
        members: vec!["tn".into()],
    };
    let request = proto::SubscribeRequest { filter: Some(filter), start: Some(Start::After(0)), ..Default::default() };
    let mut stream = world.subscribe(POLICE, request).await.unwrap();
    assert_eq!(stream.position().await, 0);
    world.published(draft(|header| header.severity = "Extreme".into())).await;
    let peers = vec![
        bulletin("tn", 1, |_| {}).envelope,
        careless("tn", 2, |_, header| {
            (header.kind, header.severity) = ("weather-report".into(), "Extreme".into());
        }),
        bulletin("tn", 3, |header| header.severity = "Moderate".into()).envelope,
        bulletin("tn", 4, |header| header.severity = "Severe".into()).envelope,
        bulletin("tn", 5, |header| header.severity = "Unknown".into()).envelope,
    ];
    world.peer_appends("tn", peers).await;
    world.peer_withholds("tn").await;
    assert_eq!(stream.delivery().await.offset, 5);
    // Its severity is unknown, so it may be severe.
    assert_eq!(stream.delivery().await.offset, 6);
}

/// An entry whose roster has not arrived has an unknown audience. It is neither skipped nor
/// delivered early, and other entries do not wait for it.
#[tokio::test]
async fn entry_pending_its_roster_is_delivered_later_without_blocking_others() {
    let world = World::start().await;
    let early = careless("tn", 2, |_, header| header.roster_version = 2);
    let never = careless("tn", 4, |_, header| header.roster_version = 99);
    let plain = |n| bulletin("tn", n, |_| {}).envelope;
    world.peer_appends("tn", vec![plain(1), early, plain(3), never, plain(5)]).await;
    let mut stream = world.follow(POLICE).await;
    world.published(draft(|_| {})).await;
    for offset in [1, 3, 5, 6] {
        assert_eq!(stream.delivery().await.offset, offset, "of that member, too");
    }
    let page = world.history(POLICE, proto::HistoryRequest::default()).await.unwrap();
    assert_eq!(page.deliveries.iter().map(|delivery| delivery.offset).collect::<Vec<_>>(), [6, 5, 3, 1]);
    world.adopt_roster_2();
    assert_eq!(stream.delivery().await.offset, 2);
    world.published(draft(|_| {})).await;
    assert_eq!(stream.delivery().await.offset, 7, "each once");
}

#[tokio::test]
async fn bulletin_pending_its_roster_raises_an_alarm_when_read() {
    let world = World::start().await;
    let waiting = |n, version| careless("tn", n, move |_, header| header.roster_version = version);
    world.peer_appends("tn", vec![waiting(1, 99), waiting(2, 2)]).await;
    assert!(world.api.alarms.snapshot().is_empty(), "not read yet");
    for _ in 0..2 {
        world.history(POLICE, proto::HistoryRequest::default()).await.unwrap();
    }
    let active = world.api.alarms.snapshot();
    let missing = Alarm::RosterMissing { member: "tn".parse().unwrap(), version: 99 };
    assert_eq!(active.iter().map(|active| (&active.alarm, active.count)).collect::<Vec<_>>(), [(&missing, 1)]);
}

#[tokio::test]
async fn quiet_stream_sends_position_heartbeats() {
    let world = World::start().await;
    let mut agency = world.follow(POST).await;
    world.published(draft(red)).await;
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    assert_eq!(agency.position().await, 1, "scanned without a match");
    assert_eq!(agency.position().await, 1);
    assert!(began.elapsed() <= Duration::from_secs(60), "{:?}", began.elapsed());
}

#[tokio::test]
async fn withdrawn_grant_ends_the_subscription_with_a_record() {
    let world = World::start().await;
    let audited = CapturedRecords::start();
    let mut stream = world.follow(POST).await;
    world.published(draft(|_| {})).await;
    assert_eq!(stream.delivery().await.offset, 1);
    world.access.store(Arc::new(Access::default()));
    assert_eq!(stream.next().await.unwrap().unwrap_err().code(), Code::PermissionDenied);
    assert!(stream.next().await.is_none());
    assert_eq!(audited.take(), [format!("call-denied no-grant {POST} FocalPoint.Subscribe")]);
}

#[tokio::test]
async fn narrowed_grant_applies_to_open_streams() {
    let world = World::start().await;
    let mut stream = world.follow(POLICE).await;
    world.published(draft(|_| {})).await;
    assert_eq!(stream.delivery().await.offset, 1);
    let narrowed = super::world::access().replacen("\"information\", ", "", 1);
    world.access.store(Arc::new(Access::parse(&narrowed).unwrap()));
    world.peer_appends("tn", vec![bulletin("tn", 1, |_| {}).envelope]).await;
    let customs = careless("tn", 2, |_, header| header.topic = "customs.seizures".into());
    world.peer_appends("tn", vec![customs]).await;
    assert_eq!(stream.delivery().await.offset, 3);
}

#[tokio::test]
async fn reload_passes_the_calling_operator() {
    let world = World::start().await;
    let response = world.api.reload(called(OPERATOR, proto::ReloadRequest {})).await.unwrap().into_inner();
    assert_eq!(response.changes, [format!("for {OPERATOR}")]);
}
