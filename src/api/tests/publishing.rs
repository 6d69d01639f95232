//! A focal point publishes, retries, and waits for custody notes of other members.

use std::sync::Arc;

use barid_core::bulletin::{BulletinId, kinds};
use barid_core::ids::Undisclosed;
use barid_core::proto;
use barid_core::proto::publish_result::Outcome;
use futures::stream::{self, Stream, StreamExt};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::world::{
    CUSTOMS, POLICE, POST, World, about, access, called, careless, draft, feed, fields, member, red, until,
    verify_receipt,
};
use crate::access::Access;
use crate::api::methods::PUBLISH_STREAM;
use crate::committer::QUEUE_MAX;
use crate::store::Content;
use crate::store::memory::MemoryStore;
use crate::telemetry::captured::CapturedRecords;

fn with_id(n: u64) -> proto::Draft {
    draft(|header| header.id = format!("01971f5a-3c00-7a10-8b5e-{n:012x}"))
}

/// The responses of a publish stream.
type ResponseStream = futures::stream::BoxStream<'static, Result<proto::PublishStreamResponse, Status>>;

/// Opens a stream of a focal point that sends `requests` and then stays open.
fn stream_of(world: &World, requests: Vec<proto::PublishStreamRequest>) -> ResponseStream {
    let requests = stream::iter(requests.into_iter().map(Ok)).chain(stream::pending()).boxed();
    open(world, requests)
}

fn open(
    world: &World,
    requests: impl Stream<Item = Result<proto::PublishStreamRequest, Status>> + Send + Unpin + 'static,
) -> ResponseStream {
    let request = called(POLICE, ());
    let (caller, call) = world.api.begin(request.extensions(), &PUBLISH_STREAM).unwrap();
    let now = tokio::time::Instant::now();
    let open =
        world.api.call_limiter.open(&caller.path, &caller.grant.limits, "FocalPoint.PublishStream", now).unwrap();
    world.api.clone().publish_many(caller, &call, open, requests).boxed()
}

fn request(request: u64, draft: proto::Draft) -> proto::PublishStreamRequest {
    let publish = proto::PublishRequest { draft: Some(draft), wait_for: None };
    proto::PublishStreamRequest { request, publish: Some(publish) }
}

/// Collects `count` results by request number; verifies each receipt.
async fn collect_outcomes(stream: &mut ResponseStream, count: usize) -> std::collections::BTreeMap<u64, Outcome> {
    let mut all = std::collections::BTreeMap::new();
    while all.len() < count {
        let message = stream.next().await.expect("the stream is open").unwrap();
        for result in message.results {
            let outcome = result.outcome.unwrap();
            if let Outcome::Published(published) = &outcome {
                verify_receipt(published.receipt.as_ref().unwrap(), &message.checkpoint);
            }
            assert!(all.insert(result.request, outcome).is_none(), "each is answered once");
        }
    }
    all
}

fn receipt(outcome: &Outcome) -> &proto::Receipt {
    match outcome {
        Outcome::Published(published) => published.receipt.as_ref().unwrap(),
        Outcome::Error(error) => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn republished_draft_gets_the_first_receipt_and_a_different_one_is_rejected() {
    let world = World::start().await;
    let first = world.published(with_id(1)).await;
    world.published(with_id(2)).await;
    let again = world.published(with_id(1)).await;
    verify_receipt(&first, &first.checkpoint);
    verify_receipt(&again, &again.checkpoint);
    assert_eq!((again.index, &again.id, &again.digest), (0, &first.id, &first.digest));
    assert_eq!(world.store.feed(&feed("ma", 1)).unwrap().compact_range.size(), 2, "nothing was published twice");
    let mut other = with_id(1);
    other.header.as_mut().unwrap().severity = "Minor".into();
    assert_eq!(world.publish(POLICE, other).await.unwrap_err().code(), Code::AlreadyExists);
    let mut customs = with_id(1);
    customs.header.as_mut().unwrap().topic = "customs.seizures".into();
    assert_eq!(fields(world.publish(CUSTOMS, customs).await), ["header.topic"], "of another kind");
}

#[tokio::test]
async fn callers_with_one_last_name_have_two_issuers_and_their_own_receipts() {
    let north = "focal-point/north/customs-hq";
    let agency = "agency/customs-hq";
    let world = World::start().await;
    let grant = |path: &str| {
        format!("[[grant]]\npath = \"{path}\"\nroles = [\"focal-point\"]\nworking_groups = [\"customs\"]\n")
    };
    world.access.store(Arc::new(Access::parse(&(access() + &grant(north) + &grant(agency))).unwrap()));
    let draft = |id: u8| {
        let mut draft = kinds::find("seizure-report").unwrap().sample().unwrap();
        draft.header.as_mut().unwrap().id = BulletinId::new(0, &[id; 10]).to_string();
        draft
    };
    for (caller, id, issuer) in
        [(CUSTOMS, 1, "customs-hq"), (north, 2, "north/customs-hq"), (agency, 3, "/agency/customs-hq")]
    {
        let receipt = world.publish(caller, draft(id)).await.unwrap().receipt.unwrap();
        let entry = world.store.entries(&feed("ma", 1), receipt.index, 1, usize::MAX).unwrap().remove(0);
        let Content::Disclosed { header: Some(header), .. } = &entry.content else { panic!("in full") };
        assert_eq!(header.issuer, issuer);
        let again = world.publish(caller, draft(id)).await.unwrap().receipt.unwrap();
        assert_eq!((again.index, again.digest), (receipt.index, receipt.digest), "{caller}");
        for other in [CUSTOMS, north, agency].into_iter().filter(|other| *other != caller) {
            let error = world.publish(other, draft(id)).await.unwrap_err();
            assert_eq!(error.code(), Code::AlreadyExists, "{other} gets no receipt of {caller}");
        }
    }
}

#[tokio::test]
async fn invalid_topic_is_reported_with_all_other_faults_and_denied_topic_is_named() {
    let world = World::start().await;
    for topic in ["nowhere.at-all", "Information..x", ""] {
        let draft = draft(|header| {
            header.topic = topic.into();
            header.severity = "Worst".into();
        });
        let mut named = fields(world.publish(POLICE, draft).await);
        named.sort();
        assert_eq!(named, ["header.severity", "header.topic"], "{topic}");
    }
    let denied = world.publish(CUSTOMS, draft(|_| ())).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    let details = denied.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "WORKING_GROUP");
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "header.topic");
}

/// The id of an entry in an epoch that has ended: its receipt names that epoch's feed and
/// checkpoint.
#[tokio::test]
async fn id_of_an_older_epoch_gets_the_receipt_of_that_epoch() {
    let store = Arc::new(MemoryStore::new());
    let before = World::with_store(Arc::clone(&store) as _, 1).await;
    before.published(with_id(9)).await;
    let first = before.published(with_id(1)).await;
    before.custody("tn", &feed("ma", 1), 0..2, None).await;
    before.committer.stop().await;
    let world = World::with_store(store, 2).await;
    for n in 2..5 {
        world.published(with_id(n)).await;
    }
    let wait_for = proto::WaitFor { members: vec!["tn".into()], ..proto::WaitFor::default() };
    let again = world.publish_waiting(POLICE, with_id(1), Some(wait_for)).await.unwrap();
    assert!(again.wait_reached);
    let receipt = again.receipt.unwrap();
    assert_eq!((receipt.feed.as_str(), receipt.index), ("ma.rabat.example/feed/1", 1));
    assert_eq!(receipt.digest, first.digest);
    verify_receipt(&receipt, &receipt.checkpoint);
    // The response lists the members that hold that entry, not those that hold the entry with the
    // same index in the new epoch.
    world.custody("ly", &feed("ma", 2), 0..3, None).await;
    let held = world.get(POLICE, "ma", &receipt.id).await.unwrap();
    assert_eq!(held.stored.iter().map(|by| by.member.as_str()).collect::<Vec<_>>(), ["tn"]);
}

#[tokio::test]
async fn retry_that_is_no_longer_valid_gets_the_first_receipt() {
    let world = World::start().await;
    let mut named = with_id(1);
    named.header.as_mut().unwrap().roster_version = 1;
    let first = world.published(named.clone()).await;
    world.adopt_roster_2();
    let again = world.published(named.clone()).await;
    verify_receipt(&again, &again.checkpoint);
    assert_eq!((again.index, again.digest), (first.index, first.digest));
    let mut responses = stream_of(&world, vec![request(1, named.clone()), request(2, with_id(2))]);
    let outcomes = collect_outcomes(&mut responses, 2).await;
    assert_eq!((receipt(&outcomes[&1]).index, receipt(&outcomes[&2]).index), (0, 1));
    named.header.as_mut().unwrap().severity = "Minor".into();
    assert_eq!(fields(world.publish(POLICE, named).await), ["header.roster_version"], "a different draft is rejected");
}

#[tokio::test]
async fn two_of_one_id_in_one_group_are_one_bulletin() {
    let world = World::start().await;
    let mut other = with_id(1);
    other.header.as_mut().unwrap().severity = "Minor".into();
    let mut responses = stream_of(&world, vec![request(7, with_id(1)), request(8, with_id(1)), request(9, other)]);
    let outcomes = collect_outcomes(&mut responses, 3).await;
    assert_eq!(receipt(&outcomes[&7]).index, 0);
    assert_eq!(receipt(&outcomes[&8]).index, 0);
    let Outcome::Error(error) = &outcomes[&9] else { panic!("another bulletin") };
    assert_eq!(error.code, i32::from(Code::AlreadyExists));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publish_streams_wait_for_a_full_queue_without_errors() {
    const EACH: usize = 600;
    let world = World::start().await;
    // Room for one group: the other streams wait and do not fail.
    let others = world.committer.occupy(QUEUE_MAX - 256);
    let mut open = Vec::new();
    for writer in 0..6_u64 {
        let requests = (0..EACH as u64).map(|n| request(n, with_id(writer << 20 | n))).collect();
        open.push(stream_of(&world, requests));
    }
    for stream in &mut open {
        let outcomes = collect_outcomes(stream, EACH).await;
        assert!(outcomes.values().all(|outcome| matches!(outcome, Outcome::Published(_))));
        let places: Vec<u64> = outcomes.values().map(|outcome| receipt(outcome).index).collect();
        assert!(places.is_sorted(), "in the order of the requests");
    }
    drop(others);
}

#[tokio::test]
async fn stream_waiting_for_capacity_ends_when_its_client_disconnects() {
    struct Ended(Arc<()>);
    let world = World::start().await;
    let _others = world.committer.occupy(QUEUE_MAX);
    let alive = Arc::new(());
    let held = Ended(Arc::clone(&alive));
    let requests = stream::iter([Ok(request(1, with_id(1)))]).chain(stream::pending()).map(move |request| {
        assert!(Arc::strong_count(&held.0) > 0);
        request
    });
    let responses = open(&world, requests.boxed());
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    drop(responses);
    until("its requests are released", || Arc::strong_count(&alive) == 1).await;
}

#[tokio::test]
async fn requests_before_a_broken_one_are_published_and_completed() {
    let world = World::start().await;
    let requests = stream::iter([
        Ok(request(1, with_id(1))),
        Ok(request(2, with_id(2))),
        Err(Status::cancelled("the line was cut")),
    ]);
    let mut responses = open(&world, requests.boxed());
    assert_eq!(collect_outcomes(&mut responses, 2).await.len(), 2);
    assert!(responses.next().await.is_none());
}

#[tokio::test]
async fn withdrawn_grant_ends_an_open_publish_stream() {
    let audited = CapturedRecords::start();
    let world = World::start().await;
    let (requests, incoming) = tokio::sync::mpsc::channel(4);
    let incoming = tokio_stream::wrappers::ReceiverStream::new(incoming).boxed();
    let mut responses = open(&world, incoming);
    requests.send(Ok(request(1, with_id(1)))).await.unwrap();
    assert_eq!(collect_outcomes(&mut responses, 1).await.len(), 1);
    world.access.store(Arc::new(Access::default()));
    requests.send(Ok(request(2, with_id(2)))).await.unwrap();
    assert_eq!(responses.next().await.unwrap().unwrap_err().code(), Code::PermissionDenied);
    assert!(responses.next().await.is_none());
    assert_eq!(audited.take(), [format!("call-denied no-grant {POLICE} FocalPoint.PublishStream")]);
    assert_eq!(world.store.end_offset(), 2);
}

#[tokio::test]
async fn unauthorised_publish_is_denied_and_recorded() {
    let audited = CapturedRecords::start();
    let world = World::start().await;
    for (by, draft, reason) in [
        (POST, draft(|_| {}), "role"),
        ("focal-point/nobody", draft(|_| {}), "no-grant"),
        (CUSTOMS, draft(|_| {}), "working-group"),
    ] {
        assert_eq!(world.publish(by, draft).await.unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(audited.take(), [format!("call-denied {reason} {by} FocalPoint.Publish")]);
    }
    assert_eq!(world.store.end_offset(), 1);
}

/// To the caller, a bulletin that is not visible does not exist: neither its content nor an error
/// message discloses it.
#[tokio::test]
async fn reference_to_an_unreadable_bulletin_is_rejected_without_disclosure() {
    let audited = CapturedRecords::start();
    let world = World::start().await;
    let original = draft(|_| {});
    let receipt = world.published(original.clone()).await;
    let mut reply = about("cancellation", &original, &receipt);
    reply.header.as_mut().unwrap().topic = "customs.seizures".into();
    let error = world.publish(CUSTOMS, reply).await;
    let text = format!("{:?}", error.as_ref().unwrap_err());
    assert!(!text.contains("information"), "the topic is not disclosed: {text}");
    assert_eq!(fields(error), ["header.references[0]"]);
    assert_eq!(audited.take(), [format!("call-denied working-group {CUSTOMS} FocalPoint.Publish")]);
}

#[tokio::test]
async fn stored_requirement_is_validated() {
    let world = World::start().await;
    let wait = |members: &[&str], count| {
        let members = members.iter().map(ToString::to_string).collect();
        world.publish_waiting(POLICE, draft(|_| {}), Some(proto::WaitFor { count, members, timeout_ms: 1 }))
    };
    assert_eq!(fields(wait(&["tn", "x y"], 0).await), ["wait_for.members[1]"]);
    assert_eq!(fields(wait(&["ma"], 0).await), ["wait_for.members[0]"], "itself");
    assert_eq!(fields(wait(&["ne"], 0).await), ["wait_for.members[0]"], "not listed");
    assert_eq!(fields(wait(&["tn", "ly", "tn"], 0).await), ["wait_for.members"], "more than there are");
    assert_eq!(fields(wait(&[], 3).await), ["wait_for.count"]);
    // A member outside the audience never receives it.
    let to_tunis = |members: &[&str], count| {
        let members = members.iter().map(ToString::to_string).collect();
        world.publish_waiting(POLICE, draft(red), Some(proto::WaitFor { count, members, timeout_ms: 1 }))
    };
    assert_eq!(fields(to_tunis(&["tn", "ly"], 2).await), ["wait_for.members[1]", "wait_for.count"]);
    assert_eq!(fields(to_tunis(&[], 2).await), ["wait_for.count"]);
    assert_eq!(world.store.end_offset(), 1, "nothing was published");
    // A member in the audience is waited for, although it may not subscribe to the topic.
    assert!(!to_tunis(&["tn"], 1).await.unwrap().wait_reached);
}

#[tokio::test]
async fn stored_wait_counts_full_holders_only() {
    let world = World::start().await;
    let wait_for = |members: &[&str], count, timeout_ms| {
        Some(proto::WaitFor { count, members: members.iter().map(ToString::to_string).collect(), timeout_ms })
    };
    // Tunis subscribes to other topics: it cosigns and holds a digest, which never counts as
    // stored.
    let published = world.publish_waiting(POLICE, draft(|_| {}), wait_for(&["tn"], 0, 1)).await.unwrap();
    assert!(!published.wait_reached && published.stored.is_empty());
    let own = feed("ma", 1);
    world.custody("tn", &own, 0..1, Some((0..1, Undisclosed::Unfollowed))).await;
    let again = world.publish_waiting(POLICE, retried(&published), wait_for(&["tn"], 0, 1)).await.unwrap();
    assert!(!again.wait_reached && again.stored.is_empty());
    // Tripoli holds it: the response names one of the two members, and the wait for both times out.
    let both = tokio::spawn({
        let (api, draft) = (world.api.clone(), retried(&published));
        let request = proto::PublishRequest { draft: Some(draft), wait_for: wait_for(&["tn", "ly"], 0, 300) };
        async move { crate::rpc::focal_point_server::FocalPoint::publish(&api, called(POLICE, request)).await }
    });
    world.custody("ly", &own, 0..1, None).await;
    let both = both.await.unwrap().unwrap().into_inner();
    assert!(!both.wait_reached);
    assert_eq!(both.stored.iter().map(|by| by.member.as_str()).collect::<Vec<_>>(), ["ly"]);
    let one = world.publish_waiting(POLICE, retried(&published), wait_for(&[], 1, 1)).await.unwrap();
    assert!(one.wait_reached);
    let two = world.publish_waiting(POLICE, retried(&published), wait_for(&["ly"], 2, 1)).await.unwrap();
    assert!(!two.wait_reached, "two are wanted, and Tripoli among them");
    assert_eq!(member("ly").as_str(), two.stored[0].member);
}

/// The draft of [`draft`] with the id that the node gave it.
fn retried(published: &proto::PublishResponse) -> proto::Draft {
    draft(|header| header.id = published.receipt.clone().unwrap().id)
}

#[tokio::test]
async fn stored_waits_do_not_block_other_responses() {
    let world = World::start().await;
    let mut slow = request(1, with_id(1));
    slow.publish.as_mut().unwrap().wait_for =
        Some(proto::WaitFor { count: 1, members: Vec::new(), timeout_ms: 600_000 });
    let mut responses = stream_of(&world, vec![slow, request(2, with_id(2))]);
    let outcomes = collect_outcomes(&mut responses, 1).await;
    assert_eq!(receipt(&outcomes[&2]).index, 1);
    world.custody("tn", &feed("ma", 1), 0..2, None).await;
    let outcomes = collect_outcomes(&mut responses, 1).await;
    let Outcome::Published(published) = &outcomes[&1] else { panic!("published") };
    assert!(published.wait_reached && published.stored[0].member == "tn");
}

#[tokio::test]
async fn red_names_members_of_the_roster_and_peers_entries_do_not_take_our_ids() {
    let world = World::start().await;
    let mut to = draft(red);
    to.header.as_mut().unwrap().handling.as_mut().unwrap().releasable_to = vec!["ne".into()];
    assert_eq!(fields(world.publish(POLICE, to).await), ["header.handling.releasable_to[0]"]);
    let id = with_id(1).header.unwrap().id;
    world.peer_appends("tn", vec![careless("tn", 1, |_, header| header.id.clone_from(&id))]).await;
    assert_eq!(world.published(with_id(1)).await.index, 0, "ids are unique per member");
}

/// `cargo test --release --lib -- --ignored --nocapture api::tests::publishing::measure`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures; run it in a release build on a quiet machine"]
async fn measure() {
    const GROUPS: u32 = 20;
    let folder = tempfile::tempdir().unwrap();
    let own = feed("ma", 1);
    let options = crate::store::disk::DiskOptions::new(own.member.clone(), own.exchange.clone());
    let store = crate::store::disk::DiskStore::open(folder.path(), &options).unwrap();
    let world = World::with_store(Arc::new(store), 1).await;
    let mut spent = std::time::Duration::ZERO;
    for group in 0..GROUPS {
        let (mut pending, mut bulletins) = (Vec::new(), Vec::new());
        for n in 0..1_024_u64 {
            let bulletin = super::world::own_bulletin(u64::from(group) << 16 | n);
            pending.push(crate::api::receipts::PendingReceipt::of(n, &bulletin, proto::Draft::default(), None));
            bulletins.push(bulletin);
        }
        let group = world.committer.publish(bulletins).await.unwrap();
        let began = std::time::Instant::now();
        assert!(world.api.receipts("police-hq", &pending, &group).iter().all(Result::is_ok));
        spent += began.elapsed();
    }
    println!("receipts.group_1024 {:.2} ms", spent.as_secs_f64() * 1e3 / f64::from(GROUPS));
    let mut alone = Vec::new();
    for n in 0..1_000 {
        let began = std::time::Instant::now();
        world.publish(POLICE, with_id(1 << 30 | n)).await.unwrap();
        alone.push(began.elapsed());
    }
    alone.sort_unstable();
    println!("publish.alone.p50 {:.0} us", alone[500].as_secs_f64() * 1e6);
}

#[tokio::test]
async fn stopping_node_completes_accepted_requests_then_ends_with_unavailable() {
    let world = World::start().await;
    let requests = (0..300).map(|n| request(n, with_id(n))).collect();
    let mut stream = stream_of(&world, requests);
    let mut responses = collect_outcomes(&mut stream, 1).await.len();
    world.stop.send_replace(true);
    let end = loop {
        match stream.next().await.expect("a reason") {
            Ok(message) => responses += message.results.len(),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::Unavailable);
    assert!(stream.next().await.is_none());
    assert_eq!(responses as u64, world.store.end_offset() - 1, "every stored bulletin has a response");
}

#[tokio::test]
async fn stored_wait_ends_when_the_node_stops() {
    let world = World::start().await;
    let wait = proto::WaitFor { count: 1, members: Vec::new(), timeout_ms: 600_000 };
    let (reply, ()) = tokio::join!(world.publish_waiting(POLICE, with_id(1), Some(wait)), async {
        until("it is stored", || world.store.end_offset() == 2).await;
        world.stop.send_replace(true);
    });
    let reply = reply.unwrap();
    assert!(reply.receipt.is_some() && !reply.wait_reached);
}

#[tokio::test]
async fn empty_stored_wait_is_rejected_before_publishing() {
    let world = World::start().await;
    let nobody = proto::WaitFor { count: 0, members: Vec::new(), timeout_ms: 1_000 };
    let error = world.publish_waiting(POLICE, draft(|_| {}), Some(nobody)).await;
    assert_eq!(fields(error), ["wait_for.count"]);
    assert_eq!(world.store.end_offset(), 1);
}
