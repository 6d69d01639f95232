//! What a member's own people and systems call.
//!
//! In scope: the services on the API listener, roles, and the one map from errors to status. Out of scope: TLS (`transport`), peers
//! (`exchange`), signing and durability (`committer`). Deny by default; every refusal is recorded with its reason.

mod audit;
mod caller;
mod errors;
mod operator;
mod publish;
mod read;
mod stored;
mod subscribe;

use std::sync::Arc;

use arc_swap::ArcSwap;
use barid_core::limits::MESSAGE_BYTES_MAX;
use barid_core::names::Member;
use barid_core::proto;
use futures::future::BoxFuture;

use crate::access::Access;
use crate::committer::Committer;
use crate::rosters::Rosters;
use crate::rpc::audit_server::AuditServer;
use crate::rpc::focal_point_server::FocalPointServer;
use crate::rpc::operator_server::OperatorServer;
use crate::store::Store;

pub use caller::{Identify, Identity};

/// What the node tells its operators about peers, and does for them; given by the wiring.
pub trait Node: Send + Sync + 'static {
    /// Every other member.
    fn peers(&self) -> Vec<proto::PeerStatus>;
    /// What needs an operator.
    fn alarms(&self) -> Vec<String>;
    /// Reads certificates, lists and access rules again; says what changed.
    fn reload(&self) -> BoxFuture<'_, Result<Vec<String>, String>>;
}

/// What the services need. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    /// The one writer, and through it the store.
    pub committer: Committer,
    /// Rosters in force.
    pub rosters: Rosters,
    /// Access rules in force.
    pub access: Arc<ArcSwap<Access>>,
    /// Who calls.
    pub identify: Identify,
    /// The rest of the node.
    pub node: Arc<dyn Node>,
}

impl Api {
    fn me(&self) -> &Member {
        &self.committer.feed().member
    }

    fn store(&self) -> &Arc<dyn Store> {
        self.committer.store()
    }
}

/// All services of the API listener, with gRPC health and reflection.
///
/// # Errors
/// If the descriptors cannot be read: a defect of the build.
pub fn routes(api: &Api) -> Result<tonic::service::Routes, tonic_reflection::server::Error> {
    let (health, serving) = tonic_health::server::health_reporter();
    tokio::spawn(async move { health.set_serving::<FocalPointServer<Api>>().await });
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .build_v1()?;
    let focal_point = FocalPointServer::new(api.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let operator = OperatorServer::new(api.clone());
    let audit = AuditServer::new(api.clone());
    let routes = tonic::service::Routes::new(focal_point).add_service(operator).add_service(audit);
    Ok(routes.add_service(serving).add_service(reflection))
}
