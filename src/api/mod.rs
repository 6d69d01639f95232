//! The gRPC API for a member's own people and systems.
//!
//! In scope: the services on the API listener, roles, and the one map from errors to gRPC status.
//! Out of scope: TLS (`transport`), peers (`exchange`), signing and durability (`committer`).
//! Access is denied by default; every denied call is recorded with its reason.

mod audit;
mod bulletin_state;
mod caller;
mod cursor;
mod errors;
mod filter;
mod focal_point;
mod health;
mod history;
mod methods;
mod operator;
mod publish;
mod rate_limit;
mod receipts;
mod reflection;
mod stored_wait;
mod subscribe;
mod subscriptions;
#[cfg(test)]
mod tests;
mod visibility;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use barid_core::ids::{FeedId, Member};
use barid_core::limits::MESSAGE_BYTES_MAX;
use barid_core::proto;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tonic::Status;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;

use crate::access::Access;
use crate::budgets::{Budgets, table};
use crate::calls::{Call, Calls};
use crate::committer::{Committer, PublishState};
use crate::low_priority;
use crate::roster_store::RosterStore;
use crate::rpc::audit_server::AuditServer;
use crate::rpc::focal_point_server::FocalPointServer;
use crate::rpc::operator_server::OperatorServer;
use crate::store::{ReadError, Store};
use crate::telemetry::alarms::{ActiveAlarm, Alarms};

/// Bytes of memory that one large read of the store is charged: the entries that [`history`] reads
/// at once, each of the largest size.
const READ_BYTES: u64 = 8 << 20;

/// Encoded `google.protobuf.FileDescriptorSet` of these services and their messages, for
/// reflection.
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/api.descriptors.bin"));

pub use bulletin_state::StateCache;
pub use caller::{Identify, Identity};
pub use rate_limit::CallLimiter;

/// Status of peers and operations on the node for operators. The application wiring implements it.
pub trait NodeControl: Send + Sync + 'static {
    /// Returns the status of every other member.
    fn peers(&self) -> Vec<proto::PeerStatus>;
    /// Returns the active alarms.
    fn alarms(&self) -> Vec<ActiveAlarm>;
    /// Resumes a feed that is stopped because of a fork. Returns `false` if no such fork is
    /// recorded.
    fn resume_feed<'a>(&'a self, feed: &'a FeedId) -> BoxFuture<'a, Result<bool, String>>;
    /// Reloads certificates, CRLs and access rules on behalf of `caller`. Returns the changes.
    fn reload<'a>(&'a self, caller: &'a str) -> BoxFuture<'a, Result<Vec<String>, String>>;
}

/// State that the services share. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    /// The only writer, and the store behind it.
    pub committer: Committer,
    /// The rosters in force.
    pub rosters: RosterStore,
    /// The access rules in force.
    pub access: Arc<ArcSwap<Access>>,
    /// Reads the caller's identity from a request.
    pub identify: Identify,
    /// The rest of the node.
    pub node: Arc<dyn NodeControl>,
    /// Rate limits and open streams of each caller.
    pub call_limiter: Arc<CallLimiter>,
    /// Budgets that calls are charged to.
    pub budgets: Budgets,
    /// Cache of successors of bulletins that were updated or cancelled.
    pub states: Arc<StateCache>,
    /// Alarms to operators.
    pub alarms: Alarms,
    /// Becomes true when the node stops.
    pub stopping: watch::Receiver<bool>,
    /// Held while the named subscriptions of callers are created, changed or removed.
    pub naming: Arc<tokio::sync::Mutex<()>>,
}

impl Api {
    fn me(&self) -> &Member {
        &self.committer.feed().member
    }

    /// Returns when the node stops.
    async fn stopped(&self) {
        // A closed channel also means that the node stops.
        let _ = self.stopping.clone().wait_for(|stop| *stop).await;
    }

    fn store(&self) -> &Arc<dyn Store> {
        self.committer.store()
    }

    /// Runs blocking work on a blocking thread.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> Result<T, Status> {
        let api = self.clone();
        tokio::task::spawn_blocking(move || work(&api)).await.map_err(|_| errors::defect())
    }

    /// Reads the store on a blocking thread.
    async fn reading<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Self) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, Status> {
        self.blocking(read).await?.map_err(|error| errors::read(&error))
    }
}

impl Api {
    /// Reads the store for a call that reads much. The budget [`table::API_READS`] bounds such
    /// reads of one caller and of all callers, so that they leave processor and memory to others.
    /// `low_priority` reads run on low-priority threads.
    async fn reading_for<T: Send + 'static>(
        &self,
        call: &Call,
        low_priority: bool,
        read: impl FnOnce(&Self) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, Status> {
        let (owner, class) = call.account();
        let turn = self.budgets.of(&table::API_READS).charge(owner, class, READ_BYTES).await;
        let api = self.clone();
        let read = move || {
            let read = read(&api);
            // The charge lasts until the read ends, even if the call is cancelled meanwhile.
            drop(turn);
            read
        };
        let done =
            if low_priority { low_priority::run_scan(read).await } else { tokio::task::spawn_blocking(read).await };
        done.map_err(|_| errors::defect())?.map_err(|error| errors::read(&error))
    }
}

/// Builds all calls of the API listener, with gRPC health and reflection for the mounted services.
///
/// # Errors
/// The descriptors cannot be decoded: a defect of the build.
pub fn calls(api: &Api) -> Result<Calls, prost::DecodeError> {
    // `calls` checks request sizes before these limits apply.
    let focal_point = FocalPointServer::new(api.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let operator = OperatorServer::new(api.clone());
    let audit = AuditServer::new(api.clone());
    let routes = Routes::new(focal_point).add_service(operator).add_service(audit);
    let mounted = [FocalPointServer::<Api>::NAME, OperatorServer::<Api>::NAME, AuditServer::<Api>::NAME];

    let (health, health_service) = health::service();
    let reflection = reflection::Reflection::of(&mounted)?;
    let (mut publish_state, mut stopping) = (api.committer.publish_state(), api.stopping.clone());
    tokio::spawn(update_publishing_health(health.clone(), api.clone()));
    tokio::spawn(update_store_health(health.clone(), api.clone()));
    tokio::spawn(api.clone().expire_unused());
    tokio::spawn(async move {
        for name in mounted {
            health.set_service_status(name, ServingStatus::Serving).await;
        }
        // A load balancer then sends new callers elsewhere, while calls in progress are still
        // answered.
        tokio::select! {
            _ = publish_state.wait_for(|publish_state| matches!(publish_state, PublishState::Stopped(_))) => {}
            _ = stopping.wait_for(|stop| *stop) => {}
        }
        for name in mounted.into_iter().chain([""]) {
            health.set_service_status(name, ServingStatus::NotServing).await;
        }
    });
    let (v1, v1alpha) = reflection.services();
    let routes = routes.add_service(health_service).add_service(v1).add_service(v1alpha);
    Ok(Calls::new(routes, Arc::new(api.clone())))
}

/// Health service name for "this node accepts bulletins now". While it is NOT_SERVING, reads still
/// work.
const PUBLISHING: &str = "barid.v1.FocalPoint/Publish";

/// Health service name for "everything in this node's store is readable". While it is NOT_SERVING,
/// intact entries are still served: restarting the node or sending its callers elsewhere would
/// repair nothing.
pub const STORE: &str = "barid.store";

/// How often the store is checked for damage.
const DAMAGE_CHECK_EVERY: Duration = Duration::from_secs(1);

async fn update_store_health(health: tonic_health::server::HealthReporter, api: Api) {
    let mut stopping = api.stopping.clone();
    loop {
        let whole = api.store().damage().is_none();
        let status = if whole { ServingStatus::Serving } else { ServingStatus::NotServing };
        health.set_service_status(STORE, status).await;
        // Damage is repaired only while the node is stopped.
        if !whole {
            return;
        }
        tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(DAMAGE_CHECK_EVERY) => {}
        }
    }
}

async fn update_publishing_health(health: tonic_health::server::HealthReporter, api: Api) {
    let (mut publish_state, mut full, mut stopping) =
        (api.committer.publish_state(), api.committer.disk_full(), api.stopping.clone());
    loop {
        let stops = *stopping.borrow_and_update();
        let publishes =
            *publish_state.borrow_and_update() == PublishState::Open && full.borrow_and_update().is_none() && !stops;
        let status = if publishes { ServingStatus::Serving } else { ServingStatus::NotServing };
        health.set_service_status(PUBLISHING, status).await;
        let changed = tokio::select! {
            changed = publish_state.changed() => changed,
            changed = full.changed() => changed,
            changed = stopping.changed() => changed,
        };
        if changed.is_err() || stops {
            return;
        }
    }
}
