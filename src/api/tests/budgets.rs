//! Raw HTTP/2 clients: windows that stay closed, bodies that never arrive, and the bounds on what
//! they may hold.

use std::future::poll_fn;
use std::time::Duration;

use barid_core::proto;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::join_all;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response, StatusCode};
use prost::Message;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_types::StatusExt as _;

use super::mounted_services::connected;
use super::world::{CUSTOMS, OPERATOR, POLICE, POST, World, draft, until};
use crate::budgets::{Bounds, Budget, BudgetSpec, Budgets, Owner, table};
use crate::telemetry::captured::CapturedRecords;

const MIB: u64 = 1 << 20;
const UNGRANTED: &str = "agency/stranger";

const PUBLISH: &str = "FocalPoint/Publish";
const HISTORY: &str = "FocalPoint/History";
const SUBSCRIBE: &str = "FocalPoint/Subscribe";

/// A client whose connection and streams begin with this window.
async fn client(world: &World, path: &'static str, window: u32) -> SendRequest<Bytes> {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window).initial_connection_window_size(1 << 20);
    let (client, connection) = builder.handshake(connected(world, path)).await.unwrap();
    tokio::spawn(connection);
    client
}

fn head(method: &str, headers: &[(&'static str, &str)]) -> Request<()> {
    let mut request = Request::post(format!("http://node.example/barid.v1.{method}"));
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/grpc");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

/// One message with its gRPC prefix.
fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).unwrap());
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}

/// Begins a call with the first part of its body.
async fn begin(
    client: &SendRequest<Bytes>,
    head: Request<()>,
    body: Bytes,
    whole: bool,
) -> (ResponseFuture, SendStream<Bytes>) {
    let mut ready = client.clone().ready().await.unwrap();
    let (response, mut stream) = ready.send_request(head, false).unwrap();
    // A call that was already answered by headers accepts no body.
    _ = stream.send_data(body, whole);
    (response, stream)
}

async fn invoke(client: &SendRequest<Bytes>, method: &str, message: &impl Message) -> Response<RecvStream> {
    let (response, stream) = begin(client, head(method, &[]), framed(message), true).await;
    let response = response.await.unwrap();
    drop(stream);
    response
}

/// The end of a call: its status, and the bytes before it.
async fn end(response: Response<RecvStream>) -> Result<(Status, usize), h2::Error> {
    if let Some(status) = Status::from_header_map(response.headers()) {
        return Ok((status, 0));
    }
    let (mut body, mut bytes) = (response.into_body(), 0);
    while let Some(data) = body.data().await {
        let data = data?;
        bytes += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    let trailers: Option<HeaderMap> = body.trailers().await?;
    Ok((Status::from_header_map(&trailers.unwrap_or_default()).unwrap(), bytes))
}

async fn code(response: Response<RecvStream>) -> Code {
    end(response).await.unwrap().0.code()
}

fn bounded(world: &mut World, changed: &'static BudgetSpec, bounds: Bounds) -> Budget {
    world.api.budgets = Budgets::new(|spec| if spec == changed { bounds } else { spec.bounds });
    world.api.budgets.of(changed).clone()
}

fn owner(path: &str) -> Owner {
    Owner::Identity(path.into())
}

/// A large situation report.
fn large() -> proto::Draft {
    let mut large = draft(|_| {});
    let Some(proto::body::Content::SituationReport(report)) = large.body.as_mut().unwrap().content.as_mut() else {
        panic!("a situation report")
    };
    report.outlook = "Rien à signaler. ".repeat(2_000);
    large
}

fn id_of(receipt: &proto::Receipt) -> proto::GetRequest {
    proto::GetRequest { member: "ma".into(), id: receipt.id.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_that_nobody_reads_stay_within_the_budget_of_their_caller() {
    let mut world = World::start().await;
    let bounds = Bounds { total: 16 * MIB, per_owner: 3 * MIB, reserved: MIB };
    let budget = bounded(&mut world, &table::API_RESPONSE_BYTES, bounds);
    let mut receipts = Vec::new();
    for _ in 0..40 {
        receipts.push(world.published(large()).await);
    }
    let after_all =
        proto::SubscribeRequest { start: Some(proto::subscribe_request::Start::After(0)), ..Default::default() };
    let evidence = proto::ExportEvidenceRequest { member: "ma".into(), id: receipts[0].id.clone() };
    let calls: [(&str, Bytes); 4] = [
        (HISTORY, framed(&proto::HistoryRequest { page_size: 1_000, ..Default::default() })),
        (SUBSCRIBE, framed(&after_all)),
        ("FocalPoint/Get", framed(&id_of(&receipts[0]))),
        ("Audit/ExportEvidence", framed(&evidence)),
    ];
    for (method, message) in calls {
        // Two connections with a closed window, and one with a window of a single byte.
        let clients = [client(&world, POST, 0).await, client(&world, POST, 0).await, client(&world, POST, 1).await];
        let mut held = Vec::new();
        for n in 0..90 {
            held.push(begin(&clients[n % 3], head(method, &[]), message.clone(), true).await);
        }
        until("much of the budget is used", || budget.used_by(&owner(POST)) > MIB).await;
        // Other callers get responses meanwhile.
        let other = client(&world, POLICE, 1 << 20).await;
        let page = proto::HistoryRequest { page_size: 3, ..Default::default() };
        for _ in 0..5 {
            let (status, bytes) = end(invoke(&other, HISTORY, &page).await).await.unwrap();
            assert!(status.code() == Code::Ok && bytes > 90_000, "{method}: {status:?} after {bytes} bytes");
        }
        assert!(budget.used_by(&owner(POST)) <= bounds.per_owner, "{method}");
        drop((clients, held));
        until("all charges are released", || budget.usage().used == 0).await;
    }
    assert!(budget.usage().high_water <= 2 * bounds.per_owner, "{:?}", budget.usage());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_do_not_end_stay_within_the_budget_of_their_caller() {
    let mut world = World::start().await;
    let bounds = Bounds { total: 16 * MIB, per_owner: 4 * MIB, reserved: 8 * MIB };
    let budget = bounded(&mut world, &table::API_REQUEST_BYTES, bounds);
    let attacker = client(&world, CUSTOMS, 1 << 16).await;
    // Five bytes that announce a message of a megabyte, and a few more.
    let promise = Bytes::from([&[0, 0, 0x10, 0, 0][..], &[10; 200]].concat());
    let begun: Vec<_> = join_all((0..64).map(|_| begin(&attacker, head(PUBLISH, &[]), promise.clone(), false))).await;
    let (mut denied, mut held) = (0, Vec::new());
    for (response, stream) in begun {
        let completed = tokio::time::timeout(Duration::from_millis(20), response).await;
        match completed {
            Ok(response) => {
                let (status, _) = end(response.unwrap()).await.unwrap();
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                assert!(status.get_error_details().retry_info().is_some(), "with a retry delay");
                denied += 1;
            }
            Err(_) => held.push(stream),
        }
    }
    assert_eq!((denied, held.len()), (60, 4), "four fit, one of them in the reserve for publishing");
    assert!(budget.used_by(&owner(CUSTOMS)) <= bounds.per_owner + bounds.per_owner / 8);
    world.published(draft(|_| {})).await;
    let other = client(&world, POLICE, 1 << 16).await;
    let request = proto::PublishRequest { draft: Some(large()), wait_for: None };
    assert_eq!(code(invoke(&other, PUBLISH, &request).await).await, Code::Ok);
    drop((attacker, held));
    until("all charges are released", || budget.usage().used == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_streams_wait_for_capacity_and_lose_nothing() {
    let mut world = World::start().await;
    let bounds = Bounds { total: MIB, per_owner: 100 << 10, reserved: 0 };
    let budget = bounded(&mut world, &table::API_REQUEST_BYTES, bounds);
    let publisher = client(&world, POLICE, 1 << 20).await;
    let (response, mut stream) = begin(&publisher, head("FocalPoint/PublishStream", &[]), Bytes::new(), false).await;
    // More than the budget allows, at once.
    for request in 0..20 {
        let publish = Some(proto::PublishRequest { draft: Some(large()), wait_for: None });
        stream.send_data(framed(&proto::PublishStreamRequest { request, publish }), request == 19).unwrap();
    }
    let mut body = response.await.unwrap().into_body();
    let mut bytes = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    let mut completed = 0;
    let mut bytes = bytes.freeze();
    while !bytes.is_empty() {
        let prefix = bytes.split_to(5);
        let length = u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize;
        let response = proto::PublishStreamResponse::decode(bytes.split_to(length)).unwrap();
        for result in response.results {
            assert!(matches!(result.outcome, Some(proto::publish_result::Outcome::Published(_))), "{result:?}");
            completed += 1;
        }
    }
    assert_eq!(completed, 20);
    assert!(budget.usage().high_water <= bounds.per_owner + (64 << 10), "{:?}", budget.usage());
    until("all charges are released", || budget.usage().used == 0).await;
}

#[tokio::test]
async fn caller_without_grant_is_denied_by_its_headers_and_recorded() {
    let world = World::start().await;
    let captured = CapturedRecords::start();
    let ungranted = client(&world, UNGRANTED, 1 << 16).await;
    for method in [PUBLISH, "FocalPoint/PublishStream", SUBSCRIBE, "Operator/GetStatus"] {
        // The body never arrives, and the node does not wait for it.
        let (response, _stream) = begin(&ungranted, head(method, &[]), Bytes::new(), false).await;
        assert_eq!(code(response.await.unwrap()).await, Code::PermissionDenied, "{method}");
    }
    for budget in world.api.budgets.usage() {
        assert_eq!(budget.high_water, 0, "{budget:?}");
    }
    let denied = captured.take();
    assert_eq!(denied.len(), 4, "{denied:?}");
    assert!(denied.iter().all(|record| record.starts_with("call-denied no-grant agency/stranger")), "{denied:?}");
}

#[tokio::test]
async fn headers_decide_on_the_content_type_the_method_and_the_timeout() {
    let world = World::start().await;
    let client = client(&world, POLICE, 1 << 16).await;
    let request = framed(&proto::PublishRequest { draft: Some(draft(|_| {})), wait_for: None });
    for wrong in
        ["text/plain", "application/grpcx", "application/grpc+json", "application/json", "application/grpc-web", ""]
    {
        let (response, _stream) =
            begin(&client, head(PUBLISH, &[("content-type", wrong)]), request.clone(), true).await;
        let response = response.await.unwrap();
        assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "{wrong}");
    }
    let end_offset = world.store.end_offset();
    for right in ["application/grpc+proto", "application/grpc;charset=utf-8", "Application/gRPC"] {
        let (response, _stream) =
            begin(&client, head(PUBLISH, &[("content-type", right)]), request.clone(), true).await;
        assert_eq!(code(response.await.unwrap()).await, Code::Ok, "{right}");
    }
    assert_eq!(world.store.end_offset(), end_offset + 3, "what was no gRPC published nothing");
    let mut get = head(HISTORY, &[]);
    *get.method_mut() = http::Method::GET;
    let (response, _stream) = begin(&client, get, Bytes::new(), true).await;
    assert_eq!(response.await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    for (timeout, expected) in [("5x", Code::InvalidArgument), ("0S", Code::DeadlineExceeded), ("100S", Code::Ok)] {
        let (response, _stream) =
            begin(&client, head(PUBLISH, &[("grpc-timeout", timeout)]), request.clone(), true).await;
        assert_eq!(code(response.await.unwrap()).await, expected, "{timeout}");
    }
    let (response, _stream) = begin(&client, head("FocalPoint/Nothing", &[]), Bytes::new(), true).await;
    assert_eq!(code(response.await.unwrap()).await, Code::Unimplemented);
}

#[tokio::test]
async fn oversized_message_is_denied_by_its_prefix_before_it_is_buffered() {
    let world = World::start().await;
    let client = client(&world, POLICE, 1 << 16).await;
    let oversized = |length: u32| Bytes::from([&[0][..], &length.to_be_bytes()].concat());
    let streamed = proto::PublishStreamRequest {
        request: 1,
        publish: Some(proto::PublishRequest { draft: Some(draft(|_| {})), wait_for: None }),
    };
    for (method, body) in [
        (PUBLISH, oversized((4 << 20) + 1)),
        (PUBLISH, oversized(u32::MAX)),
        ("FocalPoint/PublishStream", oversized(u32::MAX)),
        // The second message of a stream, in the same frame.
        ("FocalPoint/PublishStream", Bytes::from([framed(&streamed), oversized(5 << 20)].concat())),
        // Queries are small.
        (HISTORY, oversized(1 << 20)),
    ] {
        let (response, _stream) = begin(&client, head(method, &[]), body, false).await;
        assert_eq!(code(response.await.unwrap()).await, Code::ResourceExhausted, "{method}");
    }
    let budget = world.api.budgets.of(&table::API_REQUEST_BYTES);
    assert!(budget.usage().high_water < 64 << 10, "{:?}", budget.usage());
}

#[tokio::test]
async fn missing_bodies_and_overlong_calls_time_out() {
    let world = World::start().await;
    world.published(large()).await;
    let captured = CapturedRecords::start();
    let client = client(&world, POLICE, 1 << 16).await;
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let part = Bytes::from_static(&[0, 0, 0, 1, 0, 10]);
    for (method, body, headers, seconds) in [
        (PUBLISH, Bytes::new(), vec![], 20),
        (PUBLISH, part.clone(), vec![], 20),
        // A whole message without an end of stream.
        (HISTORY, framed(&proto::HistoryRequest::default()), vec![], 20),
        ("FocalPoint/PublishStream", part, vec![], 20),
        (SUBSCRIBE, framed(&proto::SubscribeRequest::default()), vec![("grpc-timeout", "3S")], 3),
        ("FocalPoint/PublishStream", Bytes::new(), vec![("grpc-timeout", "4000m")], 4),
    ] {
        let since = begun.elapsed();
        let whole = method == SUBSCRIBE;
        let (response, _stream) = begin(&client, head(method, &headers), body, whole).await;
        assert_eq!(code(response.await.unwrap()).await, Code::DeadlineExceeded, "{method}");
        assert_eq!((begun.elapsed() - since).as_secs(), seconds, "{method}");
    }
    // A stream without a partial message may wait without limit.
    let (response, _idle) = begin(&client, head("FocalPoint/PublishStream", &[]), Bytes::new(), false).await;
    let mut idle = response.await.unwrap().into_body();
    assert!(tokio::time::timeout(Duration::from_secs(3_600), idle.data()).await.is_err());
    assert!(captured.take().contains(&"call-denied body-timeout focal-point/police-hq FocalPoint.Publish".to_owned()));
}

#[tokio::test]
async fn unread_response_is_reset_and_slow_reader_continues() {
    let world = World::start().await;
    for _ in 0..8 {
        world.published(large()).await;
    }
    let captured = CapturedRecords::start();
    let shut = client(&world, POST, 0).await;
    let message = framed(&proto::HistoryRequest::default());
    let (response, _stream) = begin(&shut, head(HISTORY, &[]), message.clone(), true).await;
    let mut body = response.await.unwrap().into_body();
    let timed = head(SUBSCRIBE, &[("grpc-timeout", "5S")]);
    let after =
        proto::SubscribeRequest { start: Some(proto::subscribe_request::Start::After(0)), ..Default::default() };
    let (response, _stream) = begin(&shut, timed, framed(&after), true).await;
    let mut subscribed = response.await.unwrap().into_body();
    let slow = client(&world, POLICE, 1 << 16).await;
    let (response, _stream) = begin(&slow, head(HISTORY, &[]), message, true).await;
    let mut read_slowly = response.await.unwrap().into_body();

    tokio::time::pause();
    let reset = subscribed.data().await.unwrap().unwrap_err();
    assert_eq!(reset.reason(), Some(h2::Reason::CANCEL), "its deadline holds though nothing can be sent");
    let mut pieces = 0;
    while let Some(data) = read_slowly.data().await {
        let length = data.unwrap().len();
        pieces += 1;
        tokio::time::sleep(Duration::from_secs(5)).await;
        read_slowly.flow_control().release_capacity(length).unwrap();
    }
    assert!(pieces > 10);
    let reset = poll_fn(|context| body.poll_data(context)).await.unwrap().unwrap_err();
    assert_eq!(reset.reason(), Some(h2::Reason::CANCEL));
    let budget = world.api.budgets.of(&table::API_RESPONSE_BYTES).clone();
    until("all charges are released", || budget.used_by(&owner(POST)) == 0).await;
    assert!(captured.take().contains(&"call-denied not-read agency/border-post FocalPoint.History".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_readers_are_reset_for_another_of_the_same_caller() {
    let mut world = World::start().await;
    let bounds = Bounds { total: 16 * MIB, per_owner: 4 * MIB, reserved: MIB };
    let budget = bounded(&mut world, &table::API_RESPONSE_BYTES, bounds);
    for _ in 0..64 {
        world.published(large()).await;
    }
    let after =
        proto::SubscribeRequest { start: Some(proto::subscribe_request::Start::After(0)), ..Default::default() };
    let shut = client(&world, POST, 0).await;
    let mut stopped = Vec::new();
    for _ in 0..8 {
        stopped.push(begin(&shut, head(SUBSCRIBE, &[]), framed(&after), true).await);
    }
    until("they use the whole bound of the caller", || budget.blocks_waiters(&owner(POST))).await;
    let reader = client(&world, POST, 1 << 16).await;
    let (response, _stream) = begin(&reader, head(SUBSCRIBE, &[]), framed(&after), true).await;
    let mut body = response.await.unwrap().into_body();
    let read_all = async {
        let mut read = 0;
        while read < 64 * 32_000 {
            let length = body.data().await.unwrap().unwrap().len();
            read += length;
            body.flow_control().release_capacity(length).unwrap();
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(40), read_all).await;
    assert!(in_time.is_ok(), "{:?}", budget.usage());
}

#[tokio::test(flavor = "multi_thread")]
async fn reserved_calls_serve_operators_and_publishers() {
    let mut world = World::start().await;
    let budget = bounded(&mut world, &table::API_CALLS, Bounds { total: 20, per_owner: 12, reserved: 8 });
    let reader = client(&world, POST, 1 << 16).await;
    let subscribe = framed(&proto::SubscribeRequest::default());
    let mut held = Vec::new();
    for _ in 0..12 {
        held.push(begin(&reader, head(SUBSCRIBE, &[]), subscribe.clone(), true).await);
    }
    until("the calls are in progress", || budget.used_by(&owner(POST)) == 12).await;
    let (response, _stream) = begin(&reader, head(SUBSCRIBE, &[]), subscribe, true).await;
    let (status, _) = end(response.await.unwrap()).await.unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.get_error_details().error_info().unwrap().reason, "BUDGET");

    let publisher = client(&world, POLICE, 1 << 16).await;
    assert_eq!(
        code(invoke(&publisher, HISTORY, &proto::HistoryRequest::default()).await).await,
        Code::ResourceExhausted
    );
    let request = proto::PublishRequest { draft: Some(draft(|_| {})), wait_for: None };
    assert_eq!(code(invoke(&publisher, PUBLISH, &request).await).await, Code::Ok);
    let operator = client(&world, OPERATOR, 1 << 20).await;
    let status = proto::GetStatusRequest::default();
    assert_eq!(code(invoke(&operator, "Operator/GetStatus", &status).await).await, Code::Ok);
    drop((reader, held));
    until("all charges are released", || budget.usage().used == 0).await;
    assert_eq!(code(invoke(&publisher, HISTORY, &proto::HistoryRequest::default()).await).await, Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_check_reserve_serves_granted_callers() {
    let mut world = World::start().await;
    let budget = bounded(&mut world, &table::OPEN_CALLS, Bounds { total: 8, per_owner: 4, reserved: 4 });
    let health = |method: &str| {
        let request = Request::post(format!("http://node.example/grpc.health.v1.Health/{method}"));
        request.header("content-type", "application/grpc").body(()).unwrap()
    };
    let message = framed(&HealthCheckRequest::default());
    let ungranted = client(&world, UNGRANTED, 1 << 16).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(begin(&ungranted, health("Watch"), message.clone(), true).await);
    }
    until("the calls are in progress", || budget.used_by(&owner(UNGRANTED)) == 4).await;
    for (path, expected) in [
        ("agency/another-stranger", Code::ResourceExhausted),
        (OPERATOR, Code::Ok),
        (POLICE, Code::Ok),
        (POST, Code::Ok),
    ] {
        let caller = client(&world, path, 1 << 16).await;
        let (response, _stream) = begin(&caller, health("Check"), message.clone(), true).await;
        assert_eq!(code(response.await.unwrap()).await, expected, "{path}");
    }
    drop((ungranted, held));
    until("all charges are released", || budget.usage().used == 0).await;
}

#[tokio::test]
async fn caller_that_floods_denied_calls_is_disconnected() {
    let world = World::start().await;
    let ungranted = client(&world, UNGRANTED, 1 << 16).await;
    // Pause the clock, so that a slow machine does not refill the rate.
    tokio::time::pause();
    let mut denied = 0;
    let ended = loop {
        let Ok(mut ready) = ungranted.clone().ready().await else { break true };
        let Ok((response, _)) = ready.send_request(head(SUBSCRIBE, &[]), true) else { break true };
        match response.await {
            Ok(response) => assert_eq!(code(response).await, Code::PermissionDenied),
            Err(_) => break true,
        }
        denied += 1;
        if denied > 20_000 {
            break false;
        }
    };
    assert!(ended && denied >= 10_000, "after {denied}");
}
