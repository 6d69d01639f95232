//! What a member's own people and systems call.
//!
//! In scope: the services on the API listener, roles, and the one map from errors to status. Out of scope: TLS (`transport`), peers
//! (`exchange`), signing and durability (`committer`). Deny by default; every refusal is recorded with its reason.

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

/// What one read of the store that looks at much holds: the entries of [`history`] that are read at once, each of the largest size.
const READ_BYTES: u64 = 8 << 20;

/// Encoded `google.protobuf.FileDescriptorSet` of the services here and their messages, for reflection.
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/api.descriptors.bin"));

pub use bulletin_state::StateCache;
pub use caller::{Identify, Identity};
pub use rate_limit::CallLimiter;

/// What the node tells its operators about peers, and does for them; given by the wiring.
pub trait NodeControl: Send + Sync + 'static {
    /// Every other member.
    fn peers(&self) -> Vec<proto::PeerStatus>;
    /// What needs an operator.
    fn alarms(&self) -> Vec<ActiveAlarm>;
    /// Follows a feed again of which two histories were seen; false if there is none of that name.
    fn resume_feed<'a>(&'a self, feed: &'a FeedId) -> BoxFuture<'a, Result<bool, String>>;
    /// Reads certificates, lists and access rules again for a caller; says what changed.
    fn reload<'a>(&'a self, caller: &'a str) -> BoxFuture<'a, Result<Vec<String>, String>>;
}

/// What the services need. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    /// The one writer, and through it the store.
    pub committer: Committer,
    /// Rosters in force.
    pub rosters: RosterStore,
    /// Access rules in force.
    pub access: Arc<ArcSwap<Access>>,
    /// Who calls.
    pub identify: Identify,
    /// The rest of the node.
    pub node: Arc<dyn NodeControl>,
    /// What each caller has asked lately.
    pub call_limiter: Arc<CallLimiter>,
    /// What callers may use of the node.
    pub budgets: Budgets,
    /// What is remembered of bulletins that were updated or cancelled.
    pub states: Arc<StateCache>,
    /// What needs an operator.
    pub alarms: Alarms,
    /// Becomes true when the node stops.
    pub stopping: watch::Receiver<bool>,
    /// Held while a new subscription is given its name.
    pub naming: Arc<tokio::sync::Mutex<()>>,
}

impl Api {
    fn me(&self) -> &Member {
        &self.committer.feed().member
    }

    /// Returns when the node stops.
    async fn stopped(&self) {
        // A sender that is gone means the same.
        let _ = self.stopping.clone().wait_for(|stop| *stop).await;
    }

    fn store(&self) -> &Arc<dyn Store> {
        self.committer.store()
    }

    /// Runs what blocks on a thread of its own.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> Result<T, Status> {
        let api = self.clone();
        tokio::task::spawn_blocking(move || work(&api)).await.map_err(|_| errors::defect())
    }

    /// Reads the store on a thread of its own.
    async fn reading<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Self) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, Status> {
        self.blocking(read).await?.map_err(|error| errors::read(&error))
    }
}

impl Api {
    /// The same for a call that reads much: so many of one caller at a time, and of all, that reading leaves processor and memory to others; on
    /// threads that give way if `low_priority`.
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
            // A call that is given up while it reads still counts.
            drop(turn);
            read
        };
        let done =
            if low_priority { low_priority::run_scan(read).await } else { tokio::task::spawn_blocking(read).await };
        done.map_err(|_| errors::defect())?.map_err(|error| errors::read(&error))
    }
}

/// All calls of the API listener, with gRPC health and reflection: what is mounted is what these speak of.
///
/// # Errors
/// If the descriptors cannot be read: a defect of the build.
pub fn calls(api: &Api) -> Result<Calls, prost::DecodeError> {
    // Sizes of requests are looked at before these see any of them.
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
        // Whoever stands before the node sends its callers elsewhere, while those that are here are still answered.
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

/// What health is asked about to know whether this node publishes now. It serves readers all the same.
const PUBLISHING: &str = "barid.v1.FocalPoint/Publish";

/// What health is asked about to know whether all that this node holds can be read. It serves what can be read all the same: restarting the
/// node, or sending its callers elsewhere, would put nothing back.
pub const STORE: &str = "barid.store";

/// How often it is looked whether damage was met.
const DAMAGE_CHECK_EVERY: Duration = Duration::from_secs(1);

async fn update_store_health(health: tonic_health::server::HealthReporter, api: Api) {
    let mut stopping = api.stopping.clone();
    loop {
        let whole = api.store().damage().is_none();
        let status = if whole { ServingStatus::Serving } else { ServingStatus::NotServing };
        health.set_service_status(STORE, status).await;
        // What is damaged is put back while the node is stopped.
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
