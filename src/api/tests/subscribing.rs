//! Subscriptions: where they begin, what they wait for, when they end.

use std::sync::Arc;
use std::time::Duration;

use barid_core::proto;
use barid_core::proto::subscribe_request::Start;
use barid_core::proto::subscribe_response::Event;
use tonic::Code;

use super::world::{OPERATOR, POLICE, POST, World, bulletin, called, careless, draft, red};
use crate::access::Access;
use crate::rpc::operator_server::Operator;
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

/// A header of a roster that has not come yet: who may read it is not known. It is neither skipped nor guessed at.
#[tokio::test]
async fn what_waits_for_a_roster_is_delivered_once_it_comes_and_nothing_passes_it() {
    let world = World::start().await;
    let early = careless("tn", 2, |_, header| header.roster_version = 2);
    world.peer_appends("tn", vec![bulletin("tn", 1, |_| {}).envelope, early, bulletin("tn", 3, |_| {}).envelope]).await;
    let mut stream = world.follow(POLICE).await;
    let elsewhere = proto::Filter { members: vec!["ma".into()], ..proto::Filter::default() };
    let elsewhere =
        proto::SubscribeRequest { filter: Some(elsewhere), start: Some(Start::After(0)), ..Default::default() };
    let mut elsewhere = world.subscribe(POLICE, elsewhere).await.unwrap();
    world.published(draft(|_| {})).await;
    assert_eq!(stream.delivery().await.arrival, 1);
    // Who did not ask for it does not wait for it.
    assert_eq!(elsewhere.position().await, 0);
    assert_eq!(elsewhere.delivery().await.arrival, 4);
    // Long after: only that all before it was looked at is said.
    tokio::time::pause();
    assert_eq!(stream.position().await, 1);
    assert_eq!(stream.position().await, 1);
    tokio::time::resume();
    let page = world.history(POLICE, proto::HistoryRequest::default()).await.unwrap();
    assert_eq!(page.deliveries.iter().map(|delivery| delivery.arrival).collect::<Vec<_>>(), [4, 3, 1]);
    world.adopt_roster_2();
    for arrival in 2..=4 {
        assert_eq!(stream.delivery().await.arrival, arrival, "each once, in order");
    }
}

/// A roster that never comes stalls nobody for ever; should it come after all, what was passed over is sent then.
#[tokio::test]
async fn what_waits_for_a_roster_that_does_not_come_is_passed_over_in_time_and_sent_should_it_come() {
    let world = World::start().await;
    let never = careless("tn", 2, |_, header| header.roster_version = 99);
    let late = careless("tn", 3, |_, header| header.roster_version = 2);
    world.peer_appends("tn", vec![bulletin("tn", 1, |_| {}).envelope, never, late]).await;
    let mut stream = world.follow(POLICE).await;
    world.published(draft(|_| {})).await;
    assert_eq!(stream.delivery().await.arrival, 1);
    assert_eq!(stream.position().await, 1, "it waits");
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let delivered = loop {
        match stream.next().await.expect("it is open").expect("it goes on") {
            Event::Delivery(delivery) => break delivery.arrival,
            other @ (Event::Damaged(_) | Event::Reset(_)) => panic!("{other:?}"),
            Event::Position(_) => assert!(began.elapsed() < Duration::from_secs(1_000), "it stalls"),
        }
    };
    assert_eq!(delivered, 4, "others go on");
    assert!(began.elapsed() >= Duration::from_secs(200), "at first they wait: {:?}", began.elapsed());
    tokio::time::resume();
    let status = world.api.get_status(called(POLICE, proto::GetStatusRequest {})).await.unwrap().into_inner();
    assert!(status.alarms.iter().any(|alarm| alarm.contains("roster version 99")), "{:?}", status.alarms);
    world.adopt_roster_2();
    let come = loop {
        if let Event::Delivery(delivery) = stream.next().await.expect("it is open").expect("it goes on") {
            break delivery.arrival;
        }
    };
    assert_eq!(come, 3, "it has come after all");
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
