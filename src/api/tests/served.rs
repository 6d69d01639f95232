//! The services as they are mounted.

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Status};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use super::world::World;
use crate::api::routes;

/// A connection to a served node, without TLS.
pub(super) async fn served(world: &World) -> Channel {
    let routes = routes(&world.api).unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    let incoming = tokio_stream::once(Ok::<_, std::io::Error>(far));
    tokio::spawn(Server::builder().add_routes(routes).serve_with_incoming(incoming));
    let mut near = Some(TokioIo::new(near));
    let connector = tower::service_fn(move |_: http::Uri| {
        let near = near.take();
        async move { near.ok_or_else(|| std::io::Error::other("connected once")) }
    });
    Endpoint::from_static("http://node.example").connect_with_connector(connector).await.unwrap()
}

async fn asked(channel: &Channel, question: MessageRequest) -> Result<MessageResponse, Status> {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let mut client = ServerReflectionClient::new(channel.clone());
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer: Option<ServerReflectionResponse> = answers.message().await?;
    Ok(answer.unwrap().message_response.unwrap())
}

#[tokio::test]
async fn reflection_lists_what_is_served_and_nothing_else() {
    let world = World::start().await;
    let channel = served(&world).await;
    let answer = asked(&channel, MessageRequest::ListServices(String::new())).await.unwrap();
    let MessageResponse::ListServicesResponse(listed) = answer else { panic!("{answer:?}") };
    let mut names: Vec<&str> = listed.service.iter().map(|service| service.name.as_str()).collect();
    names.sort_unstable();
    let expected = [
        "barid.v1.Audit",
        "barid.v1.FocalPoint",
        "barid.v1.Operator",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    ];
    assert_eq!(names, expected);
    for name in expected {
        let answer = asked(&channel, MessageRequest::FileContainingSymbol(name.into())).await.unwrap();
        assert!(matches!(answer, MessageResponse::FileDescriptorResponse(_)), "{name} is described: {answer:?}");
    }
    // What peers speak, and what lies on the disk, is not for people.
    for name in ["barid.v1.Exchange", "barid.v1.RecordHead"] {
        let refused = asked(&channel, MessageRequest::FileContainingSymbol(name.into())).await;
        assert_eq!(refused.unwrap_err().code(), Code::NotFound, "{name} is not");
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
