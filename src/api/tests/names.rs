//! Named subscriptions: how they begin, what is recorded, when they are rejected, and how they end.

use std::sync::Arc;

use barid_core::proto;
use barid_core::proto::subscribe_request::Start;
use barid_core::proto::subscribe_response::Event;
use bytes::Bytes;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::cursors::reason;
use super::world::{POLICE, POST, Subscriber, World, access, called, draft, fields};
use crate::access::Access;
use crate::rpc::focal_point_server::FocalPoint;
use crate::store::memory::MemoryStore;
use crate::store::{Commit, CursorRecord, Store};
use crate::telemetry::captured::CapturedRecords;

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

fn named(name: &str, begin: &str) -> proto::SubscribeRequest {
    let start = Some(Start::Subscription(name.into()));
    proto::SubscribeRequest { start, begin: begin.into(), ..Default::default() }
}

fn customs(request: proto::SubscribeRequest) -> proto::SubscribeRequest {
    let filter = Some(proto::Filter { topics: vec!["customs.>".into(), "information.>".into()], ..Default::default() });
    proto::SubscribeRequest { filter, ..request }
}

/// Opens a named subscription; returns its outcome, position and stream.
async fn opened(
    world: &World,
    by: &str,
    request: proto::SubscribeRequest,
) -> Result<(String, u64, Subscriber), Status> {
    let mut stream = world.subscribe(by, request).await?;
    let first = stream.response().await.unwrap().unwrap();
    let Some(Event::Position(position)) = first.event else { panic!("{first:?}") };
    Ok((first.subscription, position, stream))
}

/// Returns the outcome and position only.
async fn outcome(world: &World, by: &str, request: proto::SubscribeRequest) -> (String, u64) {
    let (outcome, position, _) = opened(world, by, request).await.unwrap();
    (outcome, position)
}

/// Returns code, reason and cause of a rejected request.
async fn open_error(world: &World, by: &str, request: proto::SubscribeRequest) -> (Code, String, String) {
    let Err(status) = opened(world, by, request).await.map(|_| ()) else { panic!("not rejected") };
    let cause = status.get_error_details().error_info().and_then(|info| info.metadata.get("cause").cloned());
    (status.code(), reason(&status), cause.unwrap_or_default())
}

async fn listed(world: &World, by: &str) -> Vec<proto::Subscription> {
    let response = world.api.list_subscriptions(called(by, proto::ListSubscriptionsRequest::default())).await;
    response.unwrap().into_inner().subscriptions
}

async fn delete(world: &World, by: &str, name: &str) -> Result<(), Status> {
    let request = proto::DeleteSubscriptionRequest { subscription: name.into() };
    world.api.delete_subscription(called(by, request)).await.map(|_| ())
}

async fn publish(world: &World, count: usize) {
    for _ in 0..count {
        world.published(draft(|_| {})).await;
    }
}

fn unknown() -> (Code, String, String) {
    (Code::NotFound, "UNKNOWN_SUBSCRIPTION".into(), "unknown".into())
}

#[tokio::test]
async fn unknown_subscription_needs_an_explicit_begin() {
    let world = World::start().await;
    publish(&world, 3).await;
    assert_eq!(open_error(&world, POLICE, named("alerts", "")).await, unknown());
    assert_eq!(outcome(&world, POLICE, named("alerts", "now")).await, ("created".into(), 3));
    assert_eq!(outcome(&world, POLICE, named("all", "beginning")).await, ("created".into(), 0));
    let (.., mut stream) = opened(&world, POLICE, named("all", "")).await.unwrap();
    stream.delivery().await;
    let (_, second) = stream.delivery_with_cursor().await;
    let from_cursor = proto::SubscribeRequest { cursor: second.clone(), ..named("third", "") };
    assert_eq!(outcome(&world, POLICE, from_cursor).await, ("created".into(), 2));
    publish(&world, 1).await;
    // A known name resumes at its acknowledged offset; `begin` has no effect.
    for begin in ["", "now", "beginning"] {
        assert_eq!(outcome(&world, POLICE, named("alerts", begin)).await, ("resumed".into(), 3), "{begin}");
    }
    world.acknowledge(POLICE, "all", &second).await.unwrap();
    assert_eq!(outcome(&world, POLICE, named("all", "")).await, ("resumed".into(), 2));
    // A name belongs to its caller.
    assert_eq!(open_error(&world, POST, named("alerts", "")).await, unknown());
    let acknowledged = world.acknowledge(POST, "alerts", &second).await.unwrap_err();
    assert_eq!((acknowledged.code(), reason(&acknowledged).as_str()), (Code::NotFound, "UNKNOWN_SUBSCRIPTION"));
    assert_eq!(fields(world.subscribe(POLICE, named("a/b", "now")).await), ["subscription"]);
}

#[tokio::test]
async fn acknowledged_cursor_never_moves_back() {
    let world = World::start().await;
    publish(&world, 5).await;
    let (.., mut stream) = opened(&world, POLICE, named("all", "beginning")).await.unwrap();
    let mut cursors: Vec<Bytes> = Vec::new();
    for _ in 0..5 {
        cursors.push(stream.delivery_with_cursor().await.1);
    }
    let acknowledge = |n: usize| world.acknowledge(POLICE, "all", &cursors[n - 1]);
    let held = || world.store.subscription("focal-point/police-hq/all").unwrap().offset;
    acknowledge(4).await.unwrap();
    acknowledge(2).await.unwrap();
    assert_eq!(held(), 4, "the offset does not decrease");
    // Concurrent calls: the committer sees both, in any order.
    let (five, three) = tokio::join!(acknowledge(5), acknowledge(3));
    five.unwrap();
    three.unwrap();
    assert_eq!(held(), 5);
    let seq = world.store.seq();
    acknowledge(5).await.unwrap();
    assert_eq!(world.store.seq(), seq, "a known offset needs no commit");
    // A cursor may start a stream before the recorded offset.
    let earlier = proto::SubscribeRequest { cursor: cursors[0].clone(), ..named("all", "") };
    assert_eq!(outcome(&world, POLICE, earlier).await, ("resumed".into(), 1));
    assert_eq!(held(), 5);
}

#[tokio::test]
async fn changed_filter_is_rejected_or_restarts_the_subscription() {
    let world = World::start().await;
    publish(&world, 3).await;
    assert_eq!(outcome(&world, POLICE, customs(named("alerts", "now"))).await, ("created".into(), 3));
    // The same filter, in another order and with a duplicate.
    let mut same = customs(named("alerts", ""));
    same.filter.as_mut().unwrap().topics = vec!["information.>".into(), "customs.>".into(), "customs.>".into()];
    assert_eq!(outcome(&world, POLICE, same).await, ("resumed".into(), 3));
    let Err(status) = world.subscribe(POLICE, named("alerts", "")).await else { panic!("not rejected") };
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "FILTER_DIFFERS"));
    for named in ["topics customs.> information.>", "everything"] {
        assert!(status.message().contains(named), "{status:?}");
    }
    let replace = |begin| proto::SubscribeRequest { replace_filter: true, ..named("alerts", begin) };
    assert_eq!(fields(world.subscribe(POLICE, replace("")).await), ["begin"]);
    assert_eq!(outcome(&world, POLICE, replace("beginning")).await, ("restarted".into(), 0));
    assert_eq!(outcome(&world, POLICE, named("alerts", "")).await, ("resumed".into(), 0));
    // Repeating it changes nothing.
    assert_eq!(outcome(&world, POLICE, replace("now")).await, ("resumed".into(), 0));
    // The largest valid filter is recorded, and so is any text in it.
    let topics = vec![format!("{}.>", ["a"; 7].map(|label| label.repeat(16)).join("."))];
    let kinds = (0..63).map(|n| format!("{}{n:02}", "k".repeat(60))).collect();
    let filter = Some(proto::Filter { topics, kinds, ..Default::default() });
    let large = proto::SubscribeRequest { filter, ..named("large", "now") };
    assert_eq!(outcome(&world, POLICE, large).await.0, "created");
}

#[tokio::test]
async fn names_are_listed_in_pages_and_removed() {
    let world = World::start().await;
    publish(&world, 2).await;
    assert!(listed(&world, POLICE).await.is_empty());
    opened(&world, POLICE, customs(named("b", "now"))).await.unwrap();
    opened(&world, POLICE, named("a", "beginning")).await.unwrap();
    opened(&world, POST, named("c", "now")).await.unwrap();
    let all = listed(&world, POLICE).await;
    let summary: Vec<_> = all.iter().map(|one| (one.name.as_str(), one.offset, one.stale)).collect();
    assert_eq!(summary, [("a", 0, false), ("b", 2, false)]);
    assert_eq!(all[1].filter.as_ref().unwrap().topics, ["customs.>", "information.>"]);
    let seconds = |at: &Option<prost_types::Timestamp>| at.as_ref().unwrap().seconds;
    assert_eq!(seconds(&all[0].expires_at) - seconds(&all[0].used_at), 90 * 24 * 60 * 60);
    assert!(seconds(&all[0].created_at) > 0);
    let mut request = proto::ListSubscriptionsRequest { page_size: 1, page_token: String::new() };
    let mut pages = Vec::new();
    loop {
        let page = world.api.list_subscriptions(called(POLICE, request.clone())).await.unwrap().into_inner();
        assert_eq!(page.newest_offset, 2);
        pages.push(page.subscriptions.into_iter().map(|one| one.name).collect::<Vec<_>>());
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(pages, [["a"], ["b"]]);
    request.page_token = "no/name".into();
    assert_eq!(fields(world.api.list_subscriptions(called(POLICE, request)).await), ["page_token"]);

    assert_eq!(delete(&world, POLICE, "c").await.unwrap_err().code(), Code::NotFound, "another caller's");
    delete(&world, POLICE, "a").await.unwrap();
    assert_eq!(delete(&world, POLICE, "a").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(open_error(&world, POLICE, named("a", "")).await, unknown());
    assert_eq!((listed(&world, POLICE).await.len(), listed(&world, POST).await.len()), (1, 1));
    // A stream that is open under the name continues and does not recreate the name.
    let (.., mut stream) = opened(&world, POST, named("c", "")).await.unwrap();
    delete(&world, POST, "c").await.unwrap();
    publish(&world, 1).await;
    let (_, cursor) = stream.delivery_with_cursor().await;
    assert_eq!(world.acknowledge(POST, "c", &cursor).await.unwrap_err().code(), Code::NotFound);
    assert!(listed(&world, POST).await.is_empty());
}

#[tokio::test]
async fn subscription_limit_frees_a_name_on_removal_or_expiry() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    // Recorded by an earlier version, 80 and 100 days ago.
    let (now, mut seq) = (super::world::now(), 0);
    for (name, days) in [("old", 100), ("used", 80)] {
        let subscription = format!("focal-point/police-hq/{name}");
        let cursor = CursorRecord { subscription, offset: 0, ..Default::default() };
        let commit = Commit { cursors: vec![cursor], time_unix_ms: now - days * DAY_MS, ..Default::default() };
        seq = store.commit(commit, seq).unwrap().seq;
    }
    let world = World::with_store(Arc::clone(&store), 1).await;
    let limits = |limits: &str| {
        let text = access().replacen("working_groups", &format!("limits = {{ {limits} }}\nworking_groups"), 1);
        world.access.store(Arc::new(Access::parse(&text).unwrap()));
    };
    limits("subscriptions = 2, subscription_days = 365");
    let Err(status) = world.subscribe(POLICE, named("new", "now")).await else { panic!("not rejected") };
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "SUBSCRIPTIONS"));

    limits("subscriptions = 2");
    let captured = CapturedRecords::start();
    assert_eq!(open_error(&world, POLICE, named("old", "")).await, unknown(), "it has expired");
    assert_eq!(outcome(&world, POLICE, named("new", "now")).await.0, "created");
    assert_eq!(captured.take(), ["subscription-expired unused focal-point/police-hq old"]);
    assert!(store.subscription("focal-point/police-hq/old").is_none());
    let Err(status) = world.subscribe(POLICE, named("newer", "now")).await else { panic!("not rejected") };
    assert_eq!(reason(&status), "SUBSCRIPTIONS");
    delete(&world, POLICE, "new").await.unwrap();
    assert_eq!(outcome(&world, POLICE, named("newer", "now")).await.0, "created");
    // Opening a name uses it, which gives it another 90 days. The earlier version did not record
    // the filter; now it is recorded.
    assert!(listed(&world, POLICE).await[1].filter.is_none());
    assert_eq!(outcome(&world, POLICE, customs(named("used", ""))).await, ("resumed".into(), 0));
    let used = store.subscription("focal-point/police-hq/used").unwrap();
    assert!(used.used_unix_ms >= now);
    assert_eq!(open_error(&world, POLICE, named("used", "")).await.1, "FILTER_DIFFERS");
}

#[tokio::test]
async fn unused_names_are_removed_while_the_node_runs() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let record = |name: &str| CursorRecord { subscription: format!("agency/{name}/alerts"), ..Default::default() };
    let old = Commit { cursors: (0..600).map(|n| record(&n.to_string())).collect(), ..Default::default() };
    let new = Commit { cursors: vec![record("new")], time_unix_ms: super::world::now(), ..Default::default() };
    store.commit(old, 0).unwrap();
    store.commit(new, 1).unwrap();
    let world = World::with_store(Arc::clone(&store), 1).await;
    let _served = super::mounted_services::served(&world).await;
    super::world::until("all but one are removed", || store.subscriptions("", 10).len() == 1).await;
    assert!(store.subscription("agency/new/alerts").is_some());
}

#[tokio::test]
async fn subscription_is_stale_after_recovery_without_a_cursor() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let world = World::with_store(Arc::clone(&store), 1).await;
    publish(&world, 3).await;
    for name in ["one", "two", "three"] {
        opened(&world, POLICE, named(name, "beginning")).await.unwrap();
    }
    let (.., mut stream) = opened(&world, POLICE, named("one", "")).await.unwrap();
    let (_, cursor) = stream.delivery_with_cursor().await;
    world.acknowledge(POLICE, "one", &cursor).await.unwrap();

    // The feed needs recovery: the store may have gone back. A stream that started from its name
    // alone ends.
    world.committer.require_recovery("a peer holds more".into());
    let status = loop {
        if let Err(status) = stream.response().await.expect("a reason") {
            break status;
        }
    };
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "UNKNOWN_SUBSCRIPTION"));
    let recovered = (Code::NotFound, "UNKNOWN_SUBSCRIPTION".to_owned(), "recovered".to_owned());
    assert_eq!(open_error(&world, POLICE, named("one", "")).await, recovered);

    let world = World::with_store(Arc::clone(&store), 2).await;
    assert!(listed(&world, POLICE).await.iter().all(|one| one.stale));
    for name in ["one", "two", "three"] {
        assert_eq!(open_error(&world, POLICE, named(name, "")).await, recovered);
    }
    // A client with a cursor continues, and the name is valid again.
    let with_cursor = proto::SubscribeRequest { cursor: cursor.clone(), ..named("one", "") };
    assert_eq!(outcome(&world, POLICE, with_cursor).await, ("resumed".into(), 1));
    assert_eq!(outcome(&world, POLICE, named("one", "")).await, ("resumed".into(), 1));
    // A client that gives `begin` starts there, and gets the outcome "restarted".
    assert_eq!(outcome(&world, POLICE, named("two", "beginning")).await, ("restarted".into(), 0));
    assert_eq!(outcome(&world, POLICE, named("three", "now")).await, ("restarted".into(), 3));
}

#[tokio::test]
async fn subscription_of_a_lost_store_resumes_from_its_last_cursor() {
    let lost = World::start().await;
    publish(&lost, 3).await;
    let (.., mut stream) = opened(&lost, POLICE, named("alerts", "beginning")).await.unwrap();
    let (_, cursor) = stream.delivery_with_cursor().await;
    lost.acknowledge(POLICE, "alerts", &cursor).await.unwrap();

    let world = World::start().await;
    publish(&world, 2).await;
    assert_eq!(open_error(&world, POLICE, named("alerts", "")).await, unknown());
    let request = proto::SubscribeRequest { cursor, ..named("alerts", "") };
    let mut stream = world.subscribe(POLICE, request).await.unwrap();
    let reset = proto::Reset { reason: "store-lost".into(), offset: 0, cursor_offset: 1 };
    assert_eq!(stream.next().await.unwrap().unwrap(), Event::Reset(reset));
    let first = stream.response().await.unwrap().unwrap();
    assert_eq!((first.event, first.subscription.as_str()), (Some(Event::Position(0)), "created"));
    assert_eq!(stream.delivery().await.offset, 1);
}
