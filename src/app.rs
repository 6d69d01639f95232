//! Assembles a node from its configuration, runs it, and shuts it down in order. This is the only
//! place that wires modules together.
//!
//! In scope: opening the store, the keys, the rosters, both listeners and the links, and shutting
//! them down. Out of scope: what these parts do.

mod cert_expiry;
mod clock;
mod close_announcer;
mod crls;
mod disk;
mod error;
mod fork_announcer;
mod identity;
mod metrics;
mod node;
mod recover;
mod reload;
mod repair;
mod roster_conflict;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use barid_core::feed::note::SigningKey;
use barid_core::ids::Member;
use barid_core::roster::{Role, Roster, RosterChain};
use crls::Crls;
use futures::future::BoxFuture;
use node::Node;
use rustls::pki_types::UnixTime;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use error::AppError;
pub use recover::{PeerProgress, Progress, RecoverError, RecoverOptions, recover};
pub use repair::{RepairOutcome, repair};

use crate::access::{self, Access};
use crate::api::{self, Api};
use crate::budgets::{Budgets, table};
use crate::calls;
use crate::committer::{
    Committer, Keys, Options, PublishState, Records, StartError, key_path, read_high_water_epoch, read_high_water_size,
};
use crate::config::NodeConfig;
use crate::exchange::{self, Exchange};
use crate::files::{self, Guard};
use crate::roster_store::RosterStore;
use crate::store::disk::{DiskOptions, DiskStore};
use crate::store::{RosterRecord, Store};
use crate::telemetry::{self, AuditEvent, AuditLimiter, INDIVIDUAL_RECORDS_MAX};
use crate::transport::{
    self, AccessLevel, Connections, Connector, Credentials, CrlStore, Limits, ListenerOptions, PeerIdentity, Policy,
    SpiffeId, Trust, Verifier,
};

/// Result of a node that was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Callers' streams that were open.
    pub streams: u64,
    /// Commits made after the request to stop.
    pub commits: u64,
    /// Whether calls that did not end in time were cut.
    pub cut: bool,
}

/// Bound addresses of a running node.
#[derive(Clone, Debug)]
pub struct ListenAddresses {
    /// Bound address of the exchange listener, if there is one.
    pub exchange: Option<SocketAddr>,
    /// Bound address of the API listener.
    pub api: SocketAddr,
}

/// Facts that the operator declares at start because the node cannot know them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartFlags {
    /// This member's feed has never been started before.
    pub bootstrap: bool,
    /// The store is lost, not only unavailable: start with an empty one.
    pub accept_data_loss: bool,
}

/// Runs a node until `stop` completes. `on_listening` is called with the bound addresses.
///
/// # Errors
/// See [`AppError`].
pub async fn run(
    config: &NodeConfig,
    flags: StartFlags,
    stop: impl Future<Output = ()> + Send,
    on_listening: impl FnOnce(&ListenAddresses) + Send,
) -> Result<Stopped, AppError> {
    let purpose = Purpose::Serve(flags);
    let while_open = |open_node: OpenNode| {
        if let Some(addresses) = &open_node.addresses {
            on_listening(addresses);
        }
        stop
    };
    serve(config, purpose, while_open).await.map(|(_, _, stopped)| stopped)
}

/// Why a node is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To run all services.
    Serve(StartFlags),
    /// To fetch what peers hold of a feed that needs recovery, over links only. The feed's own keys
    /// are not needed.
    Recover,
}

/// An open node.
struct OpenNode {
    addresses: Option<ListenAddresses>,
    exchange: Exchange,
    committer: Committer,
    rosters: RosterStore,
}

/// Opens a node, keeps it open until `while_open` completes, and closes it in order. Returns the
/// output of `while_open`, unless something failed first, and the store, to which nothing commits
/// any more.
async fn serve<T, F: Future<Output = T> + Send>(
    config: &NodeConfig,
    purpose: Purpose,
    while_open: impl FnOnce(OpenNode) -> F + Send,
) -> Result<(T, Arc<dyn Store>, Stopped), AppError> {
    let config = &with_current_epoch(config)?;
    // Installed first: by default SIGHUP ends the process.
    let mut hangup = signal(SignalKind::hangup()).map_err(AppError::Signal)?;
    raise_file_limit();
    let me = config.feed.member.clone();
    let options = DiskOptions {
        reserve_bytes: config.text.min_free_disk_mib << 20,
        ..DiskOptions::new(me.clone(), config.feed.exchange.clone())
    };
    if let Purpose::Serve(StartFlags { accept_data_loss: false, .. }) = purpose
        && !DiskStore::is_initialized(&config.text.data)
        && let Some(size) = read_high_water_size(&high_water_mark_path(config)).map_err(StartError::from)?
    {
        return Err(AppError::StoreMissing { data: config.text.data.clone(), size });
    }
    let store: Arc<dyn Store> = Arc::new(DiskStore::open(&config.text.data, &options)?);
    let rosters = RosterStore::new(chain(config, store.rosters()?)?);
    let roster = rosters.load().newest_shared();
    let own = roster.member(&me).ok_or_else(|| AppError::NotListed(me.to_string()))?;
    let trust_domain = own.trust_domain.clone();
    let committer = Committer::start(
        Arc::clone(&store),
        Options {
            feed: config.feed.clone(),
            keys: keys(config, &roster, purpose)?,
            high_water_mark: high_water_mark_path(config),
            bootstrap: matches!(purpose, Purpose::Serve(StartFlags { bootstrap: true, .. })),
            peer_wait: Duration::from_secs(config.text.peer_wait_seconds.into()),
            share_percent: config.text.member_share_percent,
        },
    )?;
    persist_roster_chain(&committer, &rosters).await?;
    let access = Arc::new(ArcSwap::from_pointee(load_access(&config.text.access)?));

    let trust = Trust::of(&roster);
    let credentials = Credentials::load(&config.text.certificate, &config.text.private_key)
        .map_err(|error| AppError::Transport(error.to_string()))?;
    let grace_seconds = i64::from(config.text.crl_grace_days) * 86_400;
    let audit_limiter = Arc::new(AuditLimiter::default());
    let crls = Crls::new(CrlStore::default(), trust.clone(), committer.clone(), Arc::clone(&audit_limiter));
    crls.load_stored(&store.crls()?);
    for (_, list) in crls::read_files(&config.text.crls, &trust)? {
        crls.held.accept(&list);
    }
    let verifier = |policy| Verifier::new(trust.clone(), crls.held.clone(), policy, grace_seconds);
    // A node whose certificate every peer rejects would be isolated without any error. A temporary
    // rejection only raises an alarm.
    let peers = identity::PeerVerifier { trust: &trust, crls: &crls.held, trust_domain: &trust_domain, grace_seconds };
    if let Some(certificate) = credentials.certificate()
        && let Err(rejection) = peers.verify(&certificate, UnixTime::now())
        && !identity::is_temporary(&rejection)
    {
        let path = config.text.certificate.display();
        return Err(AppError::Transport(format!("every peer would reject {path}: {rejection}")));
    }
    let connections = Connections::reporting(audit_rejection("connection-closed", &audit_limiter));

    let (shutdown, stopping) = watch::channel(false);
    let memory_bytes = config.text.memory_mib << 20;
    let budgets = Budgets::within(memory_bytes);
    telemetry::charge_lines_to(budgets.of(&table::LOG_BYTES).clone());
    tracing::info!(
        bound_mib = budgets.memory_bytes_max() >> 20,
        memory_mib = config.text.memory_mib,
        "memory bound for work of peers and callers"
    );
    let exchange = Exchange::new(exchange::Options {
        committer: committer.clone(),
        rosters: rosters.clone(),
        topics: config.topics.clone(),
        backfill_new_members: config.text.backfill_new_members,
        listens: config.text.listen_exchange.is_some(),
        budgets: budgets.clone(),
        revocations: Arc::new(crls.clone()),
        shutdown: stopping.clone(),
    });
    let connector = Connector {
        verifier: verifier(Policy::Peers(trust_domain.clone())),
        credentials: credentials.clone(),
        connections: connections.clone(),
        compress: config.text.compress,
        on_rejected: audit_rejection("connection-rejected", &audit_limiter),
    };
    let dial = Dialer { connector, rosters: rosters.clone(), endpoints: config.endpoints.clone() };
    let node = Arc::new(Node {
        committer: committer.clone(),
        config: config.clone(),
        exchange: exchange.clone(),
        store: Arc::clone(&store),
        access: Arc::clone(&access),
        credentials: credentials.clone(),
        crls: crls.clone(),
        rosters: rosters.clone(),
        trust_domain: trust_domain.clone(),
        grace_seconds,
        reloading: tokio::sync::Mutex::default(),
        reload_error: parking_lot::Mutex::default(),
    });
    let api = Api {
        committer: committer.clone(),
        rosters: rosters.clone(),
        access: Arc::clone(&access),
        identify: Arc::new(|extensions| {
            let identity = extensions.get::<Arc<PeerIdentity>>()?;
            Some(api::Identity { path: Arc::clone(&identity.spiffe.path) })
        }),
        node: Arc::clone(&node) as Arc<dyn api::NodeControl>,
        call_limiter: Arc::default(),
        budgets: budgets.clone(),
        states: Arc::default(),
        alarms: exchange.alarms().clone(),
        stopping: stopping.clone(),
        naming: Arc::default(),
    };

    let api_listener = ListenerOptions {
        name: "api",
        verifier: Arc::new(verifier(Policy::OwnClients(trust_domain.clone()))),
        credentials,
        connections: connections.clone(),
        limits: Limits::API,
        budget: budgets.of(&table::API_CONNECTIONS).clone(),
        level: Arc::new(move |identity| match access.load().grant(&identity.spiffe.path) {
            Some(grant) if grant.has(access::Role::Operator) => AccessLevel::Operator,
            Some(_) => AccessLevel::Granted,
            None => AccessLevel::Ungranted,
        }),
        on_rejected: audit_rejection("connection-rejected", &audit_limiter),
    };
    let mut serving = JoinSet::new();
    let mut api_address = None;
    if purpose != Purpose::Recover {
        let api_tcp = bind(&config.text.listen_api).await?;
        api_address = Some(local(&api_tcp, &config.text.listen_api)?);
        let incoming =
            transport::listen(api_tcp, api_listener.clone()).map_err(|error| AppError::Transport(error.to_string()))?;
        let calls = api::calls(&api).map_err(|error| AppError::Transport(error.to_string()))?;
        serving.spawn(calls::serve(incoming, calls, Limits::API, stopped(stopping.clone())));
    }
    let mut exchange_address = None;
    if let Some(address) = &config.text.listen_exchange {
        let tcp = bind(address).await?;
        exchange_address = Some(local(&tcp, address)?);
        let peers = ListenerOptions {
            name: "exchange",
            verifier: Arc::new(verifier(Policy::Peers(trust_domain))),
            limits: Limits::EXCHANGE,
            budget: budgets.of(&table::EXCHANGE_CONNECTIONS).clone(),
            // The verifier admits peers only.
            level: Arc::new(|_| AccessLevel::Granted),
            ..api_listener
        };
        let incoming = transport::listen(tcp, peers).map_err(|error| AppError::Transport(error.to_string()))?;
        let identify = Arc::new(|extensions: &tonic::Extensions| {
            extensions.get::<Arc<PeerIdentity>>().map(|identity| identity.member.clone())
        });
        let calls = exchange::calls(exchange.clone(), identify);
        serving.spawn(calls::serve(incoming, calls, Limits::EXCHANGE, stopped(stopping.clone())));
    }
    let dialers = exchange::spawn_dialers(&exchange, Arc::new(dial));
    // Dropping the set ends the tasks.
    let mut tasks = JoinSet::new();
    let ended = audit_rejection("connection-closed", &audit_limiter);
    let peers = exchange.clone();
    let (limiter, call_limiter, links) = (Arc::clone(&audit_limiter), Arc::clone(&api.call_limiter), exchange.clone());
    tasks.spawn(async move {
        let summaries = (
            limiter.summarize_periodically(),
            call_limiter.audit_limiter().summarize_periodically(),
            links.audit_limiter().summarize_periodically(),
        );
        futures::join!(summaries.0, summaries.1, summaries.2, telemetry::summarize_periodically());
    });
    tasks.spawn(crls.clone().run());
    tasks.spawn(connections.watch(trust.clone(), crls.held.clone(), move |rejection| ended(rejection)));
    tasks.spawn(follow_rosters(rosters.clone(), trust));
    if purpose != Purpose::Recover {
        tasks.spawn(close_announcer::announce_closed_epochs(committer.clone(), exchange.clone(), rosters.clone()));
        tasks.spawn(fork_announcer::announce_forks(committer.clone(), exchange.clone(), rosters.clone()));
        tasks.spawn(exchange.clone().request_relayed_custody());
    }
    tasks.spawn(Arc::clone(&node).watch_alarms());
    if let Some(wanted) = config.text.metrics.as_ref().filter(|_| purpose != Purpose::Recover) {
        let tcp = metrics::bind(wanted).await?;
        tracing::info!(address = ?metrics::address(&tcp), "serving metrics at /metrics");
        tasks.spawn(metrics::serve(
            tcp,
            wanted.clone(),
            metrics::MetricsSource {
                node: Arc::clone(&node),
                call_limiter: Arc::clone(&api.call_limiter),
                budgets: budgets.clone(),
            },
        ));
    }
    tasks.spawn(async move {
        while hangup.recv().await.is_some() {
            // The audit record contains the outcome.
            let _ = node.reload_for("SIGHUP").await;
        }
    });
    tracing::info!(member = %me, api = ?api_address, exchange = ?exchange_address, "serving");
    let addresses = api_address.map(|api| ListenAddresses { exchange: exchange_address, api });
    let while_open = while_open(OpenNode { addresses, exchange, committer: committer.clone(), rosters });

    tokio::pin!(while_open);
    let result = {
        tokio::select! {
            done = &mut while_open => Ok(done),
            reason = failed(&committer) => Err(AppError::Stopped(reason)),
            Some(_) = serving.join_next() => Err(AppError::Transport("a listener has ended".into())),
        }
    };
    let (streams, waiting, first_seq) = (api.call_limiter.open_streams(), committer.waiting(), store.seq());
    tracing::info!(streams, waiting, "stopping: committing accepted work first");
    shutdown.send_replace(true);
    drop(dialers);
    let completed = tokio::time::timeout(SHUTDOWN_MAX, async { while serving.join_next().await.is_some() {} }).await;
    if completed.is_err() {
        let streams = api.call_limiter.open_streams();
        tracing::warn!(streams, "some calls did not end in time and were aborted");
        serving.abort_all();
    }
    drop(tasks);
    crls.persist_all().await;
    committer.stop().await;
    [&*audit_limiter, api.call_limiter.audit_limiter(), peers.audit_limiter()]
        .into_iter()
        .for_each(AuditLimiter::summarize_all);
    telemetry::summarize_all();
    let commits = store.seq().saturating_sub(first_seq);
    let stopped = Stopped { streams, commits, cut: completed.is_err() };
    result.map(|done| (done, store, stopped))
}

/// Returns the configuration with the current epoch: that of the high-water mark, or of the file if
/// it is later.
fn with_current_epoch(config: &NodeConfig) -> Result<NodeConfig, AppError> {
    let mut config = config.clone();
    let recorded_epoch = read_high_water_epoch(&high_water_mark_path(&config)).map_err(StartError::from)?;
    config.feed.epoch = recorded_epoch.unwrap_or(0).max(config.feed.epoch);
    Ok(config)
}

fn high_water_mark_path(config: &NodeConfig) -> PathBuf {
    config.text.keys.join("mark")
}

/// Checks that this process runs as the owner of the stopped node's folders. The node could not
/// open, or not write, files of another user.
fn check_user(config: &NodeConfig) -> Result<(), AppError> {
    use std::os::unix::fs::MetadataExt as _;
    let user = rustix::process::geteuid().as_raw();
    for path in [&config.text.data, &config.text.keys] {
        // A missing folder is created, or reported, by the code that needs it.
        let Ok(owner) = std::fs::metadata(path).map(|folder| folder.uid()) else { continue };
        if owner != user {
            return Err(AppError::OtherUser { path: path.clone(), owner, user });
        }
    }
    Ok(())
}

/// Time for running calls to end when the node stops.
const SHUTDOWN_MAX: Duration = Duration::from_secs(5);

/// Returns the chain of the trusted roster and the later ones in the store. If the file is newer
/// than the store's first roster and follows from it, the chain starts at the store's first roster:
/// bulletins of that time are still judged by the rosters of that time.
fn chain(config: &NodeConfig, held: Vec<RosterRecord>) -> Result<RosterChain, AppError> {
    let path = &config.text.roster;
    let reject = |source| AppError::Roster { path: path.clone(), source };
    let note = read_roster(path)?;
    let from_file = RosterChain::start(&note).map_err(reject)?;
    let mut chain = from_store(&held, &note).unwrap_or(from_file);
    for record in held {
        if record.version > chain.newest().version() {
            chain.extend(&record.note).map_err(reject)?;
        }
    }
    if *chain.newest().exchange() != config.feed.exchange {
        return Err(AppError::NotListed(config.feed.exchange.to_string()));
    }
    Ok(chain)
}

/// Reads the roster's note. Anyone who could write the file would choose whom this node trusts.
fn read_roster(path: &std::path::Path) -> Result<Vec<u8>, AppError> {
    let text = files::read_text(path, Guard::Trusted);
    text.map(String::into_bytes).map_err(|source| AppError::File { path: path.to_owned(), source })
}

/// Reads the access rules. Warns if other users may read them, because they name all callers.
fn load_access(path: &std::path::Path) -> Result<Access, AppError> {
    let access = Access::load(path)?;
    if files::is_readable_by_others(path) {
        let path = path.display();
        tracing::warn!("every user of this machine can read {path}: run `chmod o-r {path}`");
    }
    Ok(access)
}

/// Returns the store's chain, if it contains or leads to the roster in the file.
fn from_store(records: &[RosterRecord], file: &[u8]) -> Option<RosterChain> {
    let (first, rest) = records.split_first()?;
    let mut chain = RosterChain::start(&first.note).ok()?;
    for record in rest {
        chain.extend(&record.note).ok()?;
    }
    chain.extend(file).is_ok().then_some(chain)
}

/// Persists the first roster of the chain too: a newer file may replace it.
async fn persist_roster_chain(committer: &Committer, rosters: &RosterStore) -> Result<(), AppError> {
    let persisted: Vec<u64> = committer.store().rosters()?.iter().map(|record| record.version).collect();
    let rosters = rosters.load();
    let missing = rosters.notes().filter(|(version, _)| !persisted.contains(version));
    let rosters: Vec<_> = missing.map(|(version, note)| RosterRecord { version, note: note.clone() }).collect();
    if !rosters.is_empty() {
        committer.persist(Records { rosters, ..Records::default() }).await?;
    }
    Ok(())
}

/// Returns the node's signing keys, each checked against the roster.
fn keys(config: &NodeConfig, roster: &Roster, purpose: Purpose) -> Result<Keys, AppError> {
    let now = OffsetDateTime::now_utc().unix_timestamp().unsigned_abs();
    let read = |path: PathBuf, role: Role| {
        let text =
            files::read_text(&path, Guard::Secret).map_err(|source| AppError::File { path: path.clone(), source })?;
        let key = SigningKey::from_text(text.trim_end())
            .map_err(|error| AppError::Key { path: path.clone(), reason: error.to_string() })?;
        let rejection =
            |reason: &str| AppError::Key { path: path.clone(), reason: format!("{} {reason}", key.verifier()) };
        let mut listed = roster.keys(&config.feed.member, role);
        match listed.find(|listed| listed.key == *key.verifier()) {
            None => Err(rejection("is not listed")),
            Some(listed) if !listed.counts_at(now) => {
                Err(rejection("is no longer valid by the roster: it was retired or stolen"))
            }
            Some(_) => Ok(key),
        }
    };
    let (folder, epoch) = (&config.text.keys, config.feed.epoch);
    files::check_secret_folder(folder).map_err(|source| AppError::File { path: folder.clone(), source })?;
    let mut feed = Vec::new();
    if purpose != Purpose::Recover {
        feed.push(read(key_path(folder, epoch, false), Role::Feed(epoch))?);
        if roster.feed_keys(&config.feed).len() > 1 {
            feed.push(read(key_path(folder, epoch, true), Role::Feed(epoch))?);
        }
    }
    let (mirror, custody) = (folder.join("mirror.key"), folder.join("custody.key"));
    Ok(Keys { feed, mirror: read(mirror, Role::Mirror)?, custody: read(custody, Role::Custody)? })
}

async fn bind(address: &str) -> Result<TcpListener, AppError> {
    TcpListener::bind(address).await.map_err(|source| AppError::Listen { address: address.to_owned(), source })
}

fn local(tcp: &TcpListener, address: &str) -> Result<SocketAddr, AppError> {
    tcp.local_addr().map_err(|source| AppError::Listen { address: address.to_owned(), source })
}

/// Waits until the store has failed, and returns the reason. Work that was not completed by then
/// never is; the next start reads what the disk holds.
async fn failed(committer: &Committer) -> String {
    let mut publish_state = committer.publish_state();
    match publish_state.wait_for(|publish_state| matches!(publish_state, PublishState::Stopped(_))).await.as_deref() {
        Ok(PublishState::Stopped(reason)) => reason.clone(),
        _ => std::future::pending().await,
    }
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // A dropped sender means the same.
    let _ = stopping.wait_for(|stop| *stop).await;
}

fn audit_rejection(event: &'static str, audit_limiter: &Arc<AuditLimiter>) -> transport::OnRejected {
    let audit_limiter = Arc::clone(audit_limiter);
    Arc::new(move |rejection: &transport::RejectionRecord| {
        let transport::RejectionRecord { reason, actor, at, detail } = rejection;
        let event = AuditEvent { event, reason, actor, resource: at, detail };
        audit_limiter.record(&rejection.source(), INDIVIDUAL_RECORDS_MAX, &event, tokio::time::Instant::now());
    })
}

/// Raises the soft limit of open files to the hard limit. Every connection takes a file descriptor,
/// and the usual soft limit of 1,024 is below what the listeners and the store may need. The hard
/// limit is the administrator's.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

/// Updates the trusted authorities when a newer roster is adopted. It also decides which peers stay
/// connected.
async fn follow_rosters(rosters: RosterStore, trust: Trust) {
    let mut versions = rosters.watch();
    while versions.changed().await.is_ok() {
        trust.replace(rosters.load().newest());
    }
}

/// Dials peers by their SPIFFE ID.
struct Dialer {
    connector: Connector,
    rosters: RosterStore,
    endpoints: BTreeMap<Member, String>,
}

impl exchange::Dial for Dialer {
    fn dial<'a>(
        &'a self,
        peer: &'a Member,
        endpoint: &'a str,
    ) -> BoxFuture<'a, Result<tonic::transport::Channel, String>> {
        Box::pin(async move {
            let roster = self.rosters.load().newest_shared();
            let entry = roster.member(peer).ok_or_else(|| format!("the roster does not list {peer}"))?;
            let endpoint = self.endpoints.get(peer).map_or(endpoint, String::as_str);
            let expected = SpiffeId::node(&entry.trust_domain);
            self.connector.dial(endpoint, expected).await.map_err(|error| error.to_string())
        })
    }
}
