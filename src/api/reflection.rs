//! gRPC reflection, v1 and v1alpha, per its protocol: a request without a result gets an error
//! response, and the stream goes on.
//!
//! Both versions have the same bytes on the wire. In scope: files by name and by symbol. Out of
//! scope: extensions; Barid has none.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use barid_core::limits::FOUND_CHARS_MAX;
use bytes::Bytes;
use futures::stream::{Stream, StreamExt as _};
use prost::{DecodeError, Message};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::server_reflection_server::{ServerReflection, ServerReflectionServer};
use tonic_reflection::pb::{v1, v1alpha};

use super::DESCRIPTORS;

/// Descriptors of the mounted services. Cheap to clone.
#[derive(Clone)]
pub(super) struct Reflection(Arc<Described>);

#[derive(Default)]
struct Described {
    services: Vec<String>,
    files: HashMap<String, Bytes>,
    /// Files by the full name of a service, method, message, field, oneof, enumeration or value.
    symbols: HashMap<String, Bytes>,
}

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Reflection {
    /// Collects the descriptors of the mounted services and of gRPC's own.
    pub(super) fn of(mounted: &[&str]) -> Result<Self, DecodeError> {
        let mut described = Described::default();
        let sets =
            [DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET, v1::FILE_DESCRIPTOR_SET, v1alpha::FILE_DESCRIPTOR_SET];
        for set in sets {
            for file in FileDescriptorSet::decode(set)?.file {
                described.add(&file);
            }
        }
        let own = [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ];
        described.services = mounted.iter().chain(&own).map(|name| (*name).to_owned()).collect();
        Ok(Self(Arc::new(described)))
    }

    /// Returns the service in both versions.
    pub(super) fn services(
        &self,
    ) -> (ServerReflectionServer<Self>, v1alpha::server_reflection_server::ServerReflectionServer<Self>) {
        let alpha = v1alpha::server_reflection_server::ServerReflectionServer::new(self.clone());
        (ServerReflectionServer::new(self.clone()), alpha)
    }

    fn response(&self, request: v1::ServerReflectionRequest) -> v1::ServerReflectionResponse {
        let Described { services, files, symbols } = self.0.as_ref();
        let file = |found: Option<&Bytes>, name: &str| match found {
            Some(file) => MessageResponse::FileDescriptorResponse(v1::FileDescriptorResponse {
                file_descriptor_proto: vec![file.to_vec()],
            }),
            None => not_found(name),
        };
        let response = match &request.message_request {
            Some(MessageRequest::ListServices(_)) => MessageResponse::ListServicesResponse(v1::ListServiceResponse {
                service: services.iter().map(|name| v1::ServiceResponse { name: name.clone() }).collect(),
            }),
            Some(MessageRequest::FileByFilename(name)) => file(files.get(name), name),
            Some(MessageRequest::FileContainingSymbol(name)) => file(symbols.get(name), name),
            Some(MessageRequest::AllExtensionNumbersOfType(name)) if symbols.contains_key(name) => {
                MessageResponse::AllExtensionNumbersResponse(v1::ExtensionNumberResponse {
                    base_type_name: name.clone(),
                    extension_number: Vec::new(),
                })
            }
            Some(MessageRequest::AllExtensionNumbersOfType(name)) => not_found(name),
            Some(MessageRequest::FileContainingExtension(extension)) => not_found(&extension.containing_type),
            None => error(Code::InvalidArgument, "this version does not support this message_request".into()),
        };
        let valid_host = request.host.clone();
        v1::ServerReflectionResponse { valid_host, original_request: Some(request), message_response: Some(response) }
    }
}

fn not_found(name: &str) -> MessageResponse {
    let name: String = name.chars().take(FOUND_CHARS_MAX).collect();
    error(Code::NotFound, format!("`{name}` is not described here"))
}

fn error(code: Code, error_message: String) -> MessageResponse {
    MessageResponse::ErrorResponse(v1::ErrorResponse { error_code: code.into(), error_message })
}

impl Described {
    fn add(&mut self, file: &FileDescriptorProto) {
        let bytes = Bytes::from(file.encode_to_vec());
        self.files.insert(file.name().to_owned(), bytes.clone());
        let package = file.package();
        for service in &file.service {
            let name = self.name(package, service.name(), &bytes);
            for method in &service.method {
                self.name(&name, method.name(), &bytes);
            }
        }
        file.message_type.iter().for_each(|message| self.message(package, message, &bytes));
        file.enum_type.iter().for_each(|values| self.values(package, values, &bytes));
    }

    fn message(&mut self, scope: &str, message: &DescriptorProto, file: &Bytes) {
        let name = self.name(scope, message.name(), file);
        for field in &message.field {
            self.name(&name, field.name(), file);
        }
        for oneof in &message.oneof_decl {
            self.name(&name, oneof.name(), file);
        }
        message.nested_type.iter().for_each(|nested| self.message(&name, nested, file));
        message.enum_type.iter().for_each(|values| self.values(&name, values, file));
    }

    fn values(&mut self, scope: &str, values: &EnumDescriptorProto, file: &Bytes) {
        self.name(scope, values.name(), file);
        // Protobuf scopes enum values as siblings of their enum, not as its children.
        for value in &values.value {
            self.name(scope, value.name(), file);
        }
    }

    fn name(&mut self, scope: &str, name: &str, file: &Bytes) -> String {
        let name = if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") };
        self.symbols.insert(name.clone(), file.clone());
        name
    }
}

#[tonic::async_trait]
impl ServerReflection for Reflection {
    type ServerReflectionInfoStream = ResponseStream<v1::ServerReflectionResponse>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<v1::ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let me = self.clone();
        Ok(Response::new(Box::pin(request.into_inner().map(move |request| Ok(me.response(request?))))))
    }
}

#[tonic::async_trait]
impl v1alpha::server_reflection_server::ServerReflection for Reflection {
    type ServerReflectionInfoStream = ResponseStream<v1alpha::ServerReflectionResponse>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<v1alpha::ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let me = self.clone();
        let response = move |request: v1alpha::ServerReflectionRequest| {
            let same = |_: DecodeError| Status::internal("internal error of the node");
            let request = v1::ServerReflectionRequest::decode(request.encode_to_vec().as_slice()).map_err(same)?;
            v1alpha::ServerReflectionResponse::decode(me.response(request).encode_to_vec().as_slice()).map_err(same)
        };
        Ok(Response::new(Box::pin(request.into_inner().map(move |request| response(request?)))))
    }
}
