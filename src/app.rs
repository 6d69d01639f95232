//! The only wiring: from a configuration to a running node, and back down in order.
//!
//! In scope: opening the store, the keys, the rosters, both listeners and the links, and shutting them down. Out of scope: everything
//! that these do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use barid_core::feed::note::SigningKey;
use barid_core::names::Member;
use barid_core::proto;
use barid_core::roster::{ChainError, Role, Roster, RosterChain};
use bytes::Bytes;
use futures::future::BoxFuture;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::Server;

use crate::access::{Access, AccessError};
use crate::api::{self, Api};
use crate::committer::{Committer, Kept, Keys, Options, StartError};
use crate::config::NodeConfig;
use crate::exchange::{self, Exchange, PeerSnapshot};
use crate::rosters::Rosters;
use crate::store::disk::{DiskOptions, DiskStore};
use crate::store::{CrlRecord, OpenError, ReadError, Store};
use crate::telemetry::{AuditEvent, audit};
use crate::transport::{
    self, Connections, Connector, Credentials, PeerIdentity, Policy, RevocationLists, SpiffeId, Trust, Verifier,
};

/// Ranges not held that a status lists for each peer.
const NOT_HELD_LISTED_MAX: usize = 1_000;

/// Why a node did not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A file could not be read.
    #[error("{path} cannot be read")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The roster is not one, or does not follow the one held.
    #[error("the roster {path} cannot be used")]
    Roster {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ChainError,
    },
    /// The roster does not list this node as it is configured.
    #[error("the roster does not list {0}")]
    NotListed(String),
    /// A key file does not hold the key that the roster lists.
    #[error("{path} holds no key that the roster lists: {reason}")]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The store could not be opened.
    #[error("the store cannot be opened")]
    Store(#[from] OpenError),
    /// The store could not be read.
    #[error("the store cannot be read")]
    Read(#[from] ReadError),
    /// The committer did not start.
    #[error("the feed cannot be opened")]
    Start(#[from] StartError),
    /// The access rules could not be read.
    #[error("the access rules cannot be used")]
    Access(#[from] AccessError),
    /// Certificates could not be used.
    #[error("the certificates cannot be used: {0}")]
    Transport(String),
    /// A listener could not be opened.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A listener failed.
    #[error("serving has failed")]
    Serve(#[from] tonic::transport::Error),
}

/// Where a running node can be reached.
#[derive(Clone, Debug)]
pub struct Running {
    /// Bound address of the exchange listener, if there is one.
    pub exchange: Option<SocketAddr>,
    /// Bound address of the API listener.
    pub api: SocketAddr,
}

/// Runs a node until `stop` is done. `first` declares the first start ever of this member's feed. `running` is told where it
/// listens once it does.
///
/// # Errors
/// See [`AppError`].
pub async fn run(
    config: &NodeConfig,
    first: bool,
    stop: impl Future<Output = ()> + Send,
    running: impl FnOnce(&Running) + Send,
) -> Result<(), AppError> {
    let me = config.feed.member.clone();
    let options = DiskOptions {
        reserve_bytes: config.text.reserve_mib << 20,
        ..DiskOptions::new(me.clone(), config.feed.exchange.clone())
    };
    let store: Arc<dyn Store> = Arc::new(DiskStore::open(&config.text.data, &options)?);
    let rosters = Rosters::new(chain(config, store.as_ref())?);
    let roster = rosters.load().newest_shared();
    let own = roster.member(&me).ok_or_else(|| AppError::NotListed(me.to_string()))?;
    let trust_domain = own.trust_domain.clone();
    let committer = Committer::start(
        Arc::clone(&store),
        Options {
            feed: config.feed.clone(),
            keys: keys(config, &roster)?,
            mark: config.text.keys.join("mark"),
            first,
            lone_start: Duration::from_secs(config.text.lone_start_seconds.into()),
        },
    )?;
    let access = Arc::new(ArcSwap::from_pointee(Access::load(&config.text.access)?));

    let trust = Trust::of(&roster);
    let credentials = Credentials::load(&config.text.certificate, &config.text.private_key)
        .map_err(|error| AppError::Transport(error.to_string()))?;
    let grace_seconds = i64::from(config.text.crl_grace_days) * 86_400;
    let lists = Lists { held: RevocationLists::default(), trust: trust.clone(), committer: committer.clone() };
    for record in store.crls()? {
        lists.take(&record.der, "the store");
    }
    lists.read_files(&config.text.crls)?;
    let verifier = |policy| Verifier::new(trust.clone(), lists.held.clone(), policy, grace_seconds);
    let connections = Connections::default();

    let (shutdown, stopping) = watch::channel(false);
    let exchange = Exchange::new(exchange::Options {
        committer: committer.clone(),
        rosters: rosters.clone(),
        topics: config.topics.clone(),
        listens: config.text.listen_exchange.is_some(),
        revocations: Arc::new(lists.clone()),
        shutdown: stopping.clone(),
    });
    let connector = Connector {
        verifier: verifier(Policy::Peers(trust_domain.clone())),
        credentials: credentials.clone(),
        connections: connections.clone(),
    };
    let dial = Dialer { connector, rosters: rosters.clone(), endpoints: config.endpoints.clone() };
    let node = Arc::new(Node {
        config: config.clone(),
        exchange: exchange.clone(),
        store: Arc::clone(&store),
        access: Arc::clone(&access),
        credentials: credentials.clone(),
        lists: lists.clone(),
    });
    let api = Api {
        committer: committer.clone(),
        rosters: rosters.clone(),
        access,
        identify: Arc::new(|extensions| {
            let identity = extensions.get::<PeerIdentity>()?;
            Some(api::Identity { path: identity.spiffe.path.clone() })
        }),
        node,
    };

    let api_tcp = bind(&config.text.listen_api).await?;
    let api_address = local(&api_tcp, &config.text.listen_api)?;
    let people = Arc::new(verifier(Policy::OwnPeople(trust_domain.clone())));
    let incoming = transport::listen(api_tcp, people, credentials.clone(), connections.clone(), on_refusal("api"))
        .map_err(|error| AppError::Transport(error.to_string()))?;
    let routes = api::routes(&api).map_err(|error| AppError::Transport(error.to_string()))?;
    let mut serving = JoinSet::new();
    serving.spawn(
        transport::tune_server(Server::builder())
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, stopped(stopping.clone())),
    );
    let mut exchange_address = None;
    if let Some(address) = &config.text.listen_exchange {
        let tcp = bind(address).await?;
        exchange_address = Some(local(&tcp, address)?);
        let peers = Arc::new(verifier(Policy::Peers(trust_domain)));
        let incoming = transport::listen(tcp, peers, credentials, connections.clone(), on_refusal("exchange"))
            .map_err(|error| AppError::Transport(error.to_string()))?;
        let identify = Arc::new(|extensions: &tonic::Extensions| {
            extensions.get::<PeerIdentity>().map(|identity| identity.member.clone())
        });
        serving.spawn(
            transport::tune_server(Server::builder())
                .add_service(exchange::service(exchange.clone(), identify))
                .serve_with_incoming_shutdown(incoming, stopped(stopping.clone())),
        );
    }
    let dialers = exchange::spawn_dialers(&exchange, Arc::new(dial));
    let watching = tokio::spawn(connections.clone().watch(|refused| {
        audit(&AuditEvent {
            what: "connection-ended",
            reason: refused.reason,
            who: &"",
            subject: &"",
            detail: &refused.detail,
        });
    }));
    let trusting = tokio::spawn(follow_rosters(rosters, trust));
    let told = Running { exchange: exchange_address, api: api_address };
    tracing::info!(member = %me, api = %told.api, exchange = ?told.exchange, "serving");
    running(&told);

    tokio::pin!(stop);
    let result = tokio::select! {
        () = &mut stop => Ok(()),
        Some(ended) = serving.join_next() => match ended {
            Ok(Err(error)) => Err(AppError::Serve(error)),
            Ok(Ok(())) | Err(_) => Ok(()),
        },
    };
    tracing::info!("stopping: what was accepted is committed first");
    shutdown.send_replace(true);
    drop(dialers);
    let drained = tokio::time::timeout(DRAIN_MAX, async { while serving.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!("some calls did not end in time and were cut");
        serving.abort_all();
    }
    watching.abort();
    trusting.abort();
    committer.stop().await;
    tracing::info!("stopped");
    result
}

/// Calls that are under way when the node stops get this long.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// The roster trusted from the start, and those that the store holds beyond it.
fn chain(config: &NodeConfig, store: &dyn Store) -> Result<RosterChain, AppError> {
    let path = &config.text.roster;
    let refuse = |source| AppError::Roster { path: path.clone(), source };
    let note = std::fs::read(path).map_err(|source| AppError::File { path: path.clone(), source })?;
    let mut chain = RosterChain::start(&note).map_err(refuse)?;
    for record in store.rosters()? {
        if record.version > chain.newest().version() {
            chain.extend(&record.note).map_err(refuse)?;
        }
    }
    if *chain.newest().exchange() != config.feed.exchange {
        return Err(AppError::NotListed(config.feed.exchange.to_string()));
    }
    Ok(chain)
}

/// The node's signing keys, each checked against the roster.
fn keys(config: &NodeConfig, roster: &Roster) -> Result<Keys, AppError> {
    let now = OffsetDateTime::now_utc().unix_timestamp().unsigned_abs();
    let read = |file: &str, role: Role| {
        let path = config.text.keys.join(file);
        let text = std::fs::read_to_string(&path).map_err(|source| AppError::File { path: path.clone(), source })?;
        let key = SigningKey::from_text(text.trim_end())
            .map_err(|error| AppError::Key { path: path.clone(), reason: error.to_string() })?;
        let refused =
            |reason: &str| AppError::Key { path: path.clone(), reason: format!("{} {reason}", key.verifier()) };
        let mut listed = roster.keys(&config.feed.member, role);
        match listed.find(|listed| listed.key == *key.verifier()) {
            None => Err(refused("is not listed")),
            Some(listed) if !listed.counts_at(now) => {
                Err(refused("does not count any more by the roster: it was retired or stolen"))
            }
            Some(_) => Ok(key),
        }
    };
    let mut feed = vec![read("feed.key", Role::Feed(config.feed.epoch))?];
    if roster.feed_keys(&config.feed).len() > 1 {
        feed.push(read("feed-ml-dsa-44.key", Role::Feed(config.feed.epoch))?);
    }
    Ok(Keys { feed, mirror: read("mirror.key", Role::Mirror)?, custody: read("custody.key", Role::Custody)? })
}

async fn bind(address: &str) -> Result<TcpListener, AppError> {
    TcpListener::bind(address).await.map_err(|source| AppError::Listen { address: address.to_owned(), source })
}

fn local(tcp: &TcpListener, address: &str) -> Result<SocketAddr, AppError> {
    tcp.local_addr().map_err(|source| AppError::Listen { address: address.to_owned(), source })
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = stopping.wait_for(|stop| *stop).await;
}

fn on_refusal(listener: &'static str) -> transport::OnRefusal {
    Arc::new(move |refusal: &transport::Refusal| {
        let (reason, who, detail) = (refusal.reason, &refusal.address, &refusal.detail);
        audit(&AuditEvent { what: "refused-connection", reason, who, subject: &listener, detail });
    })
}

/// A newer roster changes whom TLS trusts; live connections are looked at again within a second.
async fn follow_rosters(rosters: Rosters, trust: Trust) {
    let mut versions = rosters.watch();
    while versions.changed().await.is_ok() {
        trust.replace(rosters.load().newest());
    }
}

/// Revocation lists: from files, from peers, and kept in the store.
#[derive(Clone)]
struct Lists {
    held: RevocationLists,
    trust: Trust,
    committer: Committer,
}

impl Lists {
    /// Whether the list was newer than the one held.
    fn take(&self, der: &[u8], from: &str) -> bool {
        match self.held.offer(der, &self.trust) {
            Ok(newer) => newer,
            Err(error) => {
                audit(&AuditEvent { what: "refused-list", reason: "crl", who: &from, subject: &"", detail: &error });
                false
            }
        }
    }

    /// Reads list files, DER or PEM; says which were newer.
    fn read_files(&self, files: &[PathBuf]) -> Result<Vec<String>, AppError> {
        let mut newer = Vec::new();
        for path in files {
            let bytes = std::fs::read(path).map_err(|source| AppError::File { path: path.clone(), source })?;
            let der = CertificateRevocationListDer::from_pem_slice(&bytes).map_or(bytes, |list| list.to_vec());
            if self.take(&der, &path.display().to_string()) {
                newer.push(path.display().to_string());
            }
        }
        Ok(newer)
    }
}

impl exchange::Revocations for Lists {
    fn version(&self) -> u64 {
        self.held.version()
    }

    fn held(&self) -> Vec<Bytes> {
        self.held.held().into_iter().map(|(_, der)| der.into()).collect()
    }

    fn offer(&self, from: &Member, lists: Vec<Bytes>) {
        if lists.into_iter().filter(|der| self.take(der, from.as_str())).count() == 0 {
            return;
        }
        // Kept so that a known revocation survives a restart while its authority cannot be reached.
        let crls =
            self.held.held().into_iter().map(|(authority, der)| CrlRecord { authority, der: der.into() }).collect();
        let committer = self.committer.clone();
        tokio::spawn(async move {
            if let Err(error) = committer.keep(Kept { crls, ..Kept::default() }).await {
                tracing::warn!(%error, "revocation lists could not be kept");
            }
        });
    }
}

/// Dials peers by their SPIFFE ID.
struct Dialer {
    connector: Connector,
    rosters: Rosters,
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

/// The rest of the node, for operators.
struct Node {
    config: NodeConfig,
    exchange: Exchange,
    store: Arc<dyn Store>,
    access: Arc<ArcSwap<Access>>,
    credentials: Credentials,
    lists: Lists,
}

impl Node {
    fn peer(&self, member: &Member, peer: &PeerSnapshot) -> proto::PeerStatus {
        let feed = peer.feed.as_ref();
        let state = feed.and_then(|feed| self.store.feed(feed));
        let ranges = feed.and_then(|feed| self.store.not_held(feed, NOT_HELD_LISTED_MAX).ok()).unwrap_or_default();
        let held = state.as_ref().map_or(0, |state| state.frontier.size());
        let lag_entries = peer.known_size.saturating_sub(held);
        let now = u64::try_from(time::OffsetDateTime::now_utc().unix_timestamp()).unwrap_or(0);
        let since = if peer.behind_since_unix_ms == 0 { now } else { peer.behind_since_unix_ms / 1_000 };
        proto::PeerStatus {
            member: member.to_string(),
            linked: peer.linked,
            since: at(peer.since_unix_ms / 1_000),
            last_error: peer.last_error.clone(),
            feed: state.map(|state| proto::FeedStatus {
                feed: state.feed.to_string(),
                size: held,
                root: Bytes::copy_from_slice(&state.frontier.root().0),
                disclosed: state.disclosed,
            }),
            lag_entries,
            lag_seconds: if lag_entries == 0 { 0 } else { now.saturating_sub(since) },
            not_held: ranges
                .into_iter()
                .map(|(range, reason)| proto::NotHeld {
                    range: Some(proto::IndexRange { start: range.start, end: range.end }),
                    reason: reason.word().into(),
                })
                .collect(),
            cosigned_size: peer.cosigned_size,
            last_cosignature: at(peer.cosigned_time),
            last_heartbeat: at(peer.heartbeat_time),
            custody_size: peer.custody_size,
        }
    }
}

/// A time, if there is one.
fn at(unix_seconds: u64) -> Option<pbjson_types::Timestamp> {
    let seconds = i64::try_from(unix_seconds).ok().filter(|seconds| *seconds > 0)?;
    Some(pbjson_types::Timestamp { seconds, nanos: 0 })
}

impl api::Node for Node {
    fn peers(&self) -> Vec<proto::PeerStatus> {
        self.exchange.peers().snapshot().iter().map(|(member, peer)| self.peer(member, peer)).collect()
    }

    fn alarms(&self) -> Vec<String> {
        self.exchange.peers().alarms()
    }

    fn reload(&self) -> BoxFuture<'_, Result<Vec<String>, String>> {
        Box::pin(async move {
            // A file that cannot be used leaves certificate and rules as they were.
            let access = Access::load(&self.config.text.access).map_err(|error| error.to_string())?;
            let lists = self.lists.read_files(&self.config.text.crls).map_err(|error| error.to_string())?;
            self.credentials.reload().map_err(|error| error.to_string())?;
            self.access.store(Arc::new(access));
            Ok(["certificate and access rules".to_owned()].into_iter().chain(lists).collect())
        })
    }
}
