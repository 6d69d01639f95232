//! The services as they are mounted.

use std::io;

use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use super::world::{POST, World};
use crate::api::Identity;
use crate::calls::testing::Verified;
use crate::transport::Limits;

/// Returns the client end of a connection of `path` to a served node.
pub(super) fn connected(world: &World, path: &'static str) -> DuplexStream {
    let (near, stream) = tokio::io::duplex(1 << 16);
    let connection = Verified::new(stream, move |extensions| {
        extensions.insert(Identity { path: path.into() });
    });
    let calls = crate::api::calls(&world.api).unwrap();
    let incoming = tokio_stream::once(Ok(connection));
    tokio::spawn(crate::calls::serve(incoming, calls, Limits::API, std::future::pending()));
    near
}

/// Connects an agency to a served node.
pub(super) async fn served(world: &World) -> Channel {
    let mut near = Some(TokioIo::new(connected(world, POST)));
    let connector = tower::service_fn(move |_: http::Uri| {
        let near = near.take();
        async move { near.ok_or_else(|| io::Error::other("connected once")) }
    });
    Endpoint::from_static("http://node.example").connect_with_connector(connector).await.unwrap()
}

async fn query(channel: &Channel, request: MessageRequest) -> Result<MessageResponse, Status> {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let mut client = ServerReflectionClient::new(channel.clone());
    let mut responses = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let response: Option<ServerReflectionResponse> = responses.message().await?;
    Ok(response.unwrap().message_response.unwrap())
}

#[tokio::test]
async fn reflection_lists_what_is_served_and_nothing_else() {
    let world = World::start().await;
    let channel = served(&world).await;
    let response = query(&channel, MessageRequest::ListServices(String::new())).await.unwrap();
    let MessageResponse::ListServicesResponse(listed) = response else { panic!("{response:?}") };
    let mut names: Vec<&str> = listed.service.iter().map(|service| service.name.as_str()).collect();
    names.sort_unstable();
    let expected = [
        "barid.v1.Audit",
        "barid.v1.FocalPoint",
        "barid.v1.Operator",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ];
    assert_eq!(names, expected);
    for name in expected {
        let response = query(&channel, MessageRequest::FileContainingSymbol(name.into())).await.unwrap();
        assert!(matches!(response, MessageResponse::FileDescriptorResponse(_)), "{name} is described: {response:?}");
    }
    // Protocols between peers and records on disk are not described.
    for name in ["barid.v1.Exchange", "barid.v1.RecordHead"] {
        let response = query(&channel, MessageRequest::FileContainingSymbol(name.into())).await.unwrap();
        let MessageResponse::ErrorResponse(error) = response else { panic!("{name} is not described: {response:?}") };
        assert_eq!(error.error_code, 5, "{name}");
    }
}

#[tokio::test]
async fn health_knows_every_service() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    let world = World::start().await;
    let mut health = HealthClient::new(served(&world).await);
    for service in ["", "barid.v1.Audit", "barid.v1.FocalPoint", "barid.v1.Operator"] {
        let request = HealthCheckRequest { service: service.into() };
        assert_eq!(health.check(request).await.unwrap().into_inner().status, 1, "{service}");
    }
}

#[tokio::test]
async fn reflection_rejects_unknown_names_and_continues() {
    use MessageRequest::{AllExtensionNumbersOfType, FileByFilename, FileContainingSymbol, ListServices};
    use tonic_reflection::pb::v1alpha;
    let world = World::start().await;
    let channel = served(&world).await;
    let requests = [
        FileContainingSymbol("barid.v1.Nothing".into()),
        FileByFilename("nothing.proto".into()),
        AllExtensionNumbersOfType("barid.v1.Nothing".into()),
        ListServices(String::new()),
    ];
    let to_request = |request: &MessageRequest| ServerReflectionRequest {
        host: "node.example".into(),
        message_request: Some(request.clone()),
    };
    let mut client = ServerReflectionClient::new(channel.clone());
    let query = tokio_stream::iter(requests.iter().map(to_request).collect::<Vec<_>>());
    let mut responses = client.server_reflection_info(query).await.unwrap().into_inner();
    for request in &requests {
        let response = responses.message().await.unwrap().expect("the stream continues");
        assert_eq!(response.original_request.unwrap(), to_request(request));
        let known = matches!(request, ListServices(_));
        assert_eq!(matches!(response.message_response.unwrap(), MessageResponse::ErrorResponse(_)), !known);
    }
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let list = |list: &str| v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(list.into())),
    };
    let mut responses = client.server_reflection_info(tokio_stream::once(list("*"))).await.unwrap().into_inner();
    let response = responses.message().await.unwrap().unwrap().message_response.unwrap();
    let v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(listed) = response else {
        panic!("{response:?}")
    };
    assert!(listed.service.iter().any(|service| service.name == "barid.v1.FocalPoint"));
}

#[tokio::test]
async fn health_watch_of_an_unknown_service_stays_open_and_of_a_known_one_responds() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    let world = World::start().await;
    let mut health = HealthClient::new(served(&world).await);
    let request = |service: &str| HealthCheckRequest { service: service.into() };
    let mut unknown = health.watch(request("nothing")).await.unwrap().into_inner();
    // SERVICE_UNKNOWN.
    assert_eq!(unknown.message().await.unwrap().unwrap().status, 3);
    let mut known = health.watch(request("barid.v1.Audit")).await.unwrap().into_inner();
    let mut status = known.message().await.unwrap().unwrap().status;
    while status != 1 {
        status = known.message().await.unwrap().unwrap().status;
    }
    let ended = tokio::time::timeout(std::time::Duration::from_millis(10), unknown.message()).await;
    assert!(ended.is_err(), "it stays open: {ended:?}");
    assert_eq!(health.check(request("nothing")).await.unwrap_err().code(), tonic::Code::NotFound);
}
