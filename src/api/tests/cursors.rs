//! Cursors: how they are verified, where a stream resumes from one, and entries held back before
//! one.

use std::sync::Arc;

use barid_core::limits::CURSOR_BYTES_MAX;
use barid_core::proto;
use barid_core::proto::subscribe_request::Start;
use barid_core::proto::subscribe_response::Event;
use bytes::Bytes;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::world::{POLICE, World, bulletin, called, careless, draft, fields};
use crate::rpc::focal_point_server::FocalPoint;
use crate::store::Store;
use crate::store::memory::MemoryStore;

pub(super) fn after(cursor: &Bytes) -> proto::SubscribeRequest {
    proto::SubscribeRequest { cursor: cursor.clone(), ..Default::default() }
}

pub(super) fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

async fn publish(world: &World, count: usize) {
    for _ in 0..count {
        world.published(draft(|_| {})).await;
    }
}

/// The cursor after the `n`th bulletin from the beginning.
async fn cursor_of(world: &World, n: usize) -> Bytes {
    let mut stream = world.follow(POLICE).await;
    for _ in 1..n {
        stream.delivery().await;
    }
    stream.delivery_with_cursor().await.1
}

#[tokio::test]
async fn stream_resumes_after_the_cursor_of_any_event() {
    let world = World::start().await;
    publish(&world, 3).await;
    let mut stream = world.subscribe(POLICE, proto::SubscribeRequest::default()).await.unwrap();
    let first = stream.response().await.unwrap().unwrap();
    assert_eq!((first.event, first.subscription.as_str()), (Some(Event::Position(3)), ""), "from now");
    let from_beginning = proto::SubscribeRequest { begin: "beginning".into(), ..Default::default() };
    let mut stream = world.subscribe(POLICE, from_beginning).await.unwrap();
    let mut cursors = vec![stream.response().await.unwrap().unwrap().cursor];
    for offset in 1..=3 {
        let (delivery, cursor) = stream.delivery_with_cursor().await;
        assert_eq!(delivery.offset, offset);
        cursors.push(cursor);
    }
    publish(&world, 1).await;
    for (offset, cursor) in (0..).zip(&cursors) {
        assert!(!cursor.is_empty() && cursor.len() <= CURSOR_BYTES_MAX);
        let mut again = world.subscribe(POLICE, after(cursor)).await.unwrap();
        assert_eq!(again.position().await, offset);
        assert_eq!(again.delivery().await.offset, offset + 1);
    }
    // Where nothing matches, positions carry the cursor.
    let filter = Some(proto::Filter { members: vec!["ly".into()], ..Default::default() });
    let request = proto::SubscribeRequest { filter, begin: "beginning".into(), ..Default::default() };
    let mut nothing = world.subscribe(POLICE, request).await.unwrap();
    assert_eq!(nothing.position().await, 0);
    let last_cursor = loop {
        tokio::time::pause();
        let response = nothing.response().await.unwrap().unwrap();
        tokio::time::resume();
        if response.event == Some(Event::Position(4)) {
            break response.cursor;
        }
    };
    let mut again = world.subscribe(POLICE, after(&last_cursor)).await.unwrap();
    assert_eq!(again.position().await, 4);
}

#[tokio::test]
async fn bare_offsets_and_malformed_cursors_are_rejected_by_field() {
    let world = World::start().await;
    publish(&world, 3).await;
    let cursor = cursor_of(&world, 2).await;
    let start = |after| proto::SubscribeRequest { start: Some(Start::After(after)), ..Default::default() };
    for offset in [1, 2, 3, 4, u64::MAX] {
        assert_eq!(fields(world.subscribe(POLICE, start(offset)).await), ["after"], "{offset}");
    }
    let begin = |begin: &str| proto::SubscribeRequest { begin: begin.into(), ..after(&cursor) };
    assert_eq!(fields(world.subscribe(POLICE, begin("now")).await), ["begin"], "one of both");
    let sometime = proto::SubscribeRequest { begin: "sometime".into(), ..Default::default() };
    assert_eq!(fields(world.subscribe(POLICE, sometime).await), ["begin"]);
    let both = proto::SubscribeRequest { cursor: cursor.clone(), ..start(0) };
    assert_eq!(fields(world.subscribe(POLICE, both).await), ["cursor"]);
    for wrong in [&b"x"[..], &cursor[1..], &[0; 97], &[7; 1 << 20]] {
        assert_eq!(fields(world.subscribe(POLICE, after(&Bytes::copy_from_slice(wrong))).await), ["cursor"]);
        let acknowledged = world.acknowledge(POLICE, "alerts", &Bytes::copy_from_slice(wrong)).await;
        assert_eq!(fields(acknowledged), ["cursor"]);
    }
    let bare = proto::AcknowledgeRequest { subscription: "alerts".into(), offset: 2, ..Default::default() };
    assert_eq!(fields(world.api.acknowledge(called(POLICE, bare)).await), ["offset"]);
    let none = proto::AcknowledgeRequest::default();
    assert_eq!(fields(world.api.acknowledge(called(POLICE, none)).await), ["subscription", "cursor"]);
}

#[tokio::test]
async fn lost_store_sends_a_reset_then_all_entries() {
    let lost = World::start().await;
    publish(&lost, 3).await;
    let cursor = cursor_of(&lost, 3).await;
    let world = World::start().await;
    publish(&world, 5).await;
    let mut stream = world.subscribe(POLICE, after(&cursor)).await.unwrap();
    let first = stream.response().await.unwrap().unwrap();
    let reset = proto::Reset { reason: "store-lost".into(), offset: 0, cursor_offset: 3 };
    assert_eq!(first.event, Some(Event::Reset(reset)));
    assert_eq!(stream.position().await, 0);
    for offset in 1..=5 {
        assert_eq!(stream.delivery().await.offset, offset);
    }
    // A client that received a reset does not receive a second one.
    let mut again = world.subscribe(POLICE, after(&first.cursor)).await.unwrap();
    assert_eq!(again.position().await, 0);
}

#[tokio::test]
async fn page_token_and_acknowledgement_of_another_store_are_rejected() {
    let lost = World::start().await;
    publish(&lost, 5).await;
    let request = proto::HistoryRequest { page_size: 2, ..Default::default() };
    let page = lost.history(POLICE, request.clone()).await.unwrap();
    let next = proto::HistoryRequest { page_token: page.next_page_token, ..request };
    let cursor = cursor_of(&lost, 2).await;
    assert_eq!(lost.history(POLICE, next.clone()).await.unwrap().deliveries[0].offset, 3);

    let world = World::start().await;
    publish(&world, 7).await;
    let error = world.history(POLICE, next).await.unwrap_err();
    assert_eq!((error.code(), reason(&error).as_str()), (Code::FailedPrecondition, "CURSOR_MISMATCH"));
    assert!(error.message().contains("page_token"), "{error:?}");
    let named = proto::SubscribeRequest {
        start: Some(Start::Subscription("alerts".into())),
        begin: "beginning".into(),
        ..Default::default()
    };
    world.subscribe(POLICE, named).await.unwrap();
    let error = world.acknowledge(POLICE, "alerts", &cursor).await.unwrap_err();
    assert_eq!((error.code(), reason(&error).as_str()), (Code::FailedPrecondition, "CURSOR_MISMATCH"));
    world.acknowledge(POLICE, "alerts", &cursor_of(&world, 2).await).await.unwrap();
}

#[tokio::test]
async fn held_back_entry_is_delivered_on_a_later_stream() {
    let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
    let world = World::with_high_water_mark(Arc::clone(&store), 1, folder.path().join("mark")).await;
    let early = |n| careless("tn", n, |_, header| header.roster_version = 2);
    let never = careless("tn", 9, |_, header| header.roster_version = 99);
    let envelopes = vec![bulletin("tn", 1, |_| {}).envelope, early(2), never, early(3)];
    world.peer_appends("tn", envelopes).await;
    publish(&world, 2).await;
    let named = |begin: &str| proto::SubscribeRequest {
        start: Some(Start::Subscription("alerts".into())),
        begin: begin.into(),
        ..Default::default()
    };
    let mut stream = world.subscribe(POLICE, named("beginning")).await.unwrap();
    let mut cursor = Bytes::new();
    for offset in [1, 5, 6] {
        let (delivery, behind) = stream.delivery_with_cursor().await;
        assert_eq!(delivery.offset, offset, "others pass them");
        cursor = behind;
    }
    drop(stream);
    world.acknowledge(POLICE, "alerts", &cursor).await.unwrap();
    // Nothing is delivered before the roster arrives.
    let mut stream = world.subscribe(POLICE, after(&cursor)).await.unwrap();
    assert_eq!(stream.position().await, 6);
    publish(&world, 1).await;
    assert_eq!(stream.delivery().await.offset, 7);
    world.adopt_roster_2();
    let mut released = Vec::new();
    for _ in 0..2 {
        let (delivery, behind) = stream.delivery_with_cursor().await;
        released.push(delivery.offset);
        cursor = behind;
    }
    assert_eq!(released, [2, 4], "each once, on the stream that was open");
    publish(&world, 1).await;
    assert_eq!(stream.delivery().await.offset, 8);
    // On a stream that begins at the recorded offset, and after a restart of the node.
    world.committer.stop().await;
    let world = World::with_high_water_mark(store, 1, folder.path().join("mark")).await;
    world.adopt_roster_2();
    let mut stream = world.subscribe(POLICE, named("")).await.unwrap();
    assert_eq!(stream.position().await, 6);
    for offset in [2, 4, 7, 8] {
        assert_eq!(stream.delivery_with_cursor().await.0.offset, offset);
    }
    // Only entries that still wait are held back behind the last cursor.
    let mut stream = world.subscribe(POLICE, after(&cursor)).await.unwrap();
    assert_eq!(stream.position().await, 7);
    assert_eq!(stream.delivery().await.offset, 8);
}
