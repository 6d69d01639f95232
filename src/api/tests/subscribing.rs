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
use crate::telemetry::heard::Heard;

#[tokio::test]
async fn what_does_not_match_is_not_sent() {
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
    assert_eq!(stream.delivery().await.arrival, 5);
    // Nobody knows that it is not severe.
    assert_eq!(stream.delivery().await.arrival, 6);
}

/// A header of a roster that has not come yet: who may read it is not known. It is neither skipped nor guessed at, and nothing else waits.
#[tokio::test]
async fn what_waits_for_a_roster_is_delivered_once_it_comes_and_everything_else_passes_it() {
    let world = World::start().await;
    let early = careless("tn", 2, |_, header| header.roster_version = 2);
    let never = careless("tn", 4, |_, header| header.roster_version = 99);
    let plain = |n| bulletin("tn", n, |_| {}).envelope;
    world.peer_appends("tn", vec![plain(1), early, plain(3), never, plain(5)]).await;
    let mut stream = world.follow(POLICE).await;
    world.published(draft(|_| {})).await;
    for arrival in [1, 3, 5, 6] {
        assert_eq!(stream.delivery().await.arrival, arrival, "of that member, too");
    }
    let page = world.history(POLICE, proto::HistoryRequest::default()).await.unwrap();
    assert_eq!(page.deliveries.iter().map(|delivery| delivery.arrival).collect::<Vec<_>>(), [6, 5, 3, 1]);
    world.adopt_roster_2();
    assert_eq!(stream.delivery().await.arrival, 2);
    world.published(draft(|_| {})).await;
    assert_eq!(stream.delivery().await.arrival, 7, "each once");
}

#[tokio::test]
async fn a_bulletin_that_waits_for_a_roster_is_an_alarm_for_whoever_meets_it() {
    let world = World::start().await;
    let waiting = |n, version| careless("tn", n, move |_, header| header.roster_version = version);
    world.peer_appends("tn", vec![waiting(1, 99), waiting(2, 2)]).await;
    assert!(world.api.alarms.snapshot().is_empty(), "nobody has read it: it came before the node was started");
    for _ in 0..2 {
        world.history(POLICE, proto::HistoryRequest::default()).await.unwrap();
    }
    let active = world.api.alarms.snapshot();
    let missing = Alarm::RosterMissing { member: "tn".parse().unwrap(), version: 99 };
    assert_eq!(active.iter().map(|active| (&active.alarm, active.count)).collect::<Vec<_>>(), [(&missing, 1)]);
}

#[tokio::test]
async fn a_quiet_stream_says_that_it_is_alive_and_how_far_it_has_looked() {
    let world = World::start().await;
    let mut agency = world.follow(POST).await;
    world.published(draft(red)).await;
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    assert_eq!(agency.position().await, 1, "nothing for it, but looked at");
    assert_eq!(agency.position().await, 1);
    assert!(began.elapsed() <= Duration::from_secs(60), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_withdrawn_grant_ends_the_stream_with_a_record() {
    let world = World::start().await;
    let audited = Heard::listen();
    let mut stream = world.follow(POST).await;
    world.published(draft(|_| {})).await;
    assert_eq!(stream.delivery().await.arrival, 1);
    world.access.store(Arc::new(Access::default()));
    assert_eq!(stream.next().await.unwrap().unwrap_err().code(), Code::PermissionDenied);
    assert!(stream.next().await.is_none());
    assert_eq!(audited.take(), [format!("refused-call NO_GRANT {POST} FocalPoint.Subscribe")]);
}

#[tokio::test]
async fn a_grant_that_was_narrowed_counts_from_then_on() {
    let world = World::start().await;
    let mut stream = world.follow(POLICE).await;
    world.published(draft(|_| {})).await;
    assert_eq!(stream.delivery().await.arrival, 1);
    let narrowed = super::world::access().replacen("\"information\", ", "", 1);
    world.access.store(Arc::new(Access::parse(&narrowed).unwrap()));
    world.peer_appends("tn", vec![bulletin("tn", 1, |_| {}).envelope]).await;
    let customs = careless("tn", 2, |_, header| header.topic = "customs.seizures".into());
    world.peer_appends("tn", vec![customs]).await;
    assert_eq!(stream.delivery().await.arrival, 3);
}

#[tokio::test]
async fn reload_names_the_operator_who_asked() {
    let world = World::start().await;
    let answer = world.api.reload(called(OPERATOR, proto::ReloadRequest {})).await.unwrap().into_inner();
    assert_eq!(answer.changes, [format!("for {OPERATOR}")]);
}
