//! The table of live connections: bounds them by owner, and ends those that are no longer allowed.
//!
//! In scope: admission and eviction by access level, verifying live connections again when trust,
//! CRLs or time change, counting calls in progress, and ending connections that flood. Out of
//! scope: verification itself (`verify`), and handshakes (`handshakes`).

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::handshakes::Source;
use super::listener::ListenerOptions;
use super::meter::FrameMeter;
use super::rejection::{OnRejected, Rejection, RejectionRecord};
use super::revocation::CrlStore;
use super::trust::{PeerIdentity, SpiffeId, Trust};
use super::verify::Verifier;
use crate::budgets::{Charge, Class};

/// How often expiry times are compared with the clock. The clock may be set, so an expiry is
/// noticed within this time.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// All live connections of a node, in both directions. Cheap to clone.
#[derive(Clone, Default)]
pub struct Connections {
    table: Arc<Mutex<Table>>,
    /// Called for connections that this node ends for what they send, or evicts.
    on_rejected: Option<OnRejected>,
}

#[derive(Default)]
struct Table {
    next: u64,
    live: BTreeMap<u64, Live>,
}

struct Live {
    peer: Arc<Peer>,
    /// Unix seconds up to which the connection may live under the current trust and CRLs.
    until: i64,
    cut: watch::Sender<bool>,
    level: AccessLevel,
    activity: Activity,
    /// Its charge to the listener's budget.
    _charge: Option<Charge>,
}

/// What the access rules grant to an identity, as far as connections are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLevel {
    /// The operator role: admitted whatever the load from others.
    Operator,
    /// Another grant.
    Granted,
    /// No grant.
    Ungranted,
}

/// The verified other end of a connection.
struct Peer {
    origin: Origin,
    identity: PeerIdentity,
    certificate: CertificateDer<'static>,
    verifier: Arc<Verifier>,
}

impl Peer {
    /// Builds the record of the end of this connection.
    fn rejection_record(&self, Rejection { reason, detail }: Rejection) -> RejectionRecord {
        let detail = format!("{detail}; {}", self.origin.address);
        RejectionRecord { reason, actor: self.identity.spiffe.to_string(), at: self.origin.at, detail }
    }
}

/// Where a connection comes from.
pub(super) struct Origin {
    pub(super) at: &'static str,
    pub(super) address: String,
    /// `None` for connections that this node dials, which have no bound by source.
    pub(super) source: Option<Source>,
}

/// Which connections to verify again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// All: the trust or the CRLs have changed.
    All,
    /// Those whose time has expired.
    Expired,
}

impl Connections {
    /// Creates an empty table. `on_rejected` is called for each connection that this node ends for
    /// what it sends, or evicts.
    #[must_use]
    pub fn reporting(on_rejected: OnRejected) -> Self {
        Self { on_rejected: Some(on_rejected), ..Self::default() }
    }

    /// Verifies live connections again, and ends those that would be rejected now. Returns their
    /// records.
    pub fn reverify(&self, which: Which, now: UnixTime) -> Vec<RejectionRecord> {
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let chosen: Vec<(u64, Arc<Peer>)> = {
            let table = self.table.lock();
            let selected = table.live.iter().filter(|(_, live)| which == Which::All || live.until < seconds);
            selected.map(|(number, live)| (*number, Arc::clone(&live.peer))).collect()
        };
        // Verify without the lock: a certificate takes a tenth of a millisecond, and there may be a
        // thousand.
        let checked: Vec<_> = chosen
            .into_iter()
            .map(|(number, peer)| (number, peer.verifier.identify(&peer.certificate, now), peer))
            .collect();
        let mut ended = Vec::new();
        let mut table = self.table.lock();
        for (number, result, peer) in checked {
            match result {
                Ok(identity) => {
                    if let Some(live) = table.live.get_mut(&number) {
                        live.until = identity.until;
                    }
                }
                Err(rejected) => {
                    // The connection may have ended by itself meanwhile.
                    if let Some(live) = table.live.remove(&number) {
                        live.cut.send_replace(true);
                        ended.push(peer.rejection_record(rejected));
                    }
                }
            }
        }
        ended
    }

    /// Returns the number of live connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.lock().live.len()
    }

    /// Returns whether there are no live connections.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Verifies all live connections whenever trust or CRLs change, and each connection when its
    /// time expires. Reports each one that it ends. Never returns.
    pub async fn watch(self, trust: Trust, crls: CrlStore, on_ended: impl Fn(&RejectionRecord) + Send) {
        let (mut trusted, mut listed) = (trust.watch(), crls.watch());
        let mut tick = tokio::time::interval(CHECK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let which = tokio::select! {
                Ok(()) = trusted.changed() => Which::All,
                Ok(()) = listed.changed() => Which::All,
                _ = tick.tick() => Which::Expired,
            };
            let connections = self.clone();
            let looking = tokio::task::spawn_blocking(move || connections.reverify(which, UnixTime::now()));
            for ended in looking.await.unwrap_or_default() {
                on_ended(&ended);
            }
        }
    }

    /// Admits a connection whose other end has presented `certificate` and proven its key. A
    /// connection that this node dialled (`listener` is `None`) has no bound.
    pub(super) fn admit<S>(
        &self,
        stream: S,
        origin: Origin,
        certificate: CertificateDer<'static>,
        verifier: Arc<Verifier>,
        listener: Option<&ListenerOptions>,
    ) -> Result<Guarded<S>, Rejection> {
        let before = verifier.state();
        let identity = verifier.identify(&certificate, UnixTime::now())?;
        let until = identity.until;
        let peer = Arc::new(Peer { origin, identity, certificate, verifier });
        let guarded = self.enter(stream, &peer, until, listener)?;
        // A concurrent pass over all connections may have run before this one was in the table.
        if peer.verifier.state() != before {
            peer.verifier.identify(&peer.certificate, UnixTime::now())?;
        }
        Ok(guarded)
    }

    fn enter<S>(
        &self,
        stream: S,
        peer: &Arc<Peer>,
        until: i64,
        listener: Option<&ListenerOptions>,
    ) -> Result<Guarded<S>, Rejection> {
        let mut table = self.table.lock();
        let level = listener.map_or(AccessLevel::Granted, |listener| (listener.level)(&peer.identity));
        let mut evicted = Vec::new();
        let charge = match listener {
            Some(listener) => Some(table.charge(peer, level, listener, &mut evicted)?),
            None => None,
        };
        let (cut, mut cuts) = watch::channel(false);
        let number = table.next;
        table.next += 1;
        let activity = Activity::default();
        table.live.insert(
            number,
            Live { peer: Arc::clone(peer), until, cut, level, activity: activity.clone(), _charge: charge },
        );
        drop(table);
        evicted.iter().for_each(|rejection_record| self.ended(rejection_record));
        let ended = Box::pin(async move {
            // Only a cut ends the wait. The sender is also dropped when the connection leaves the
            // table.
            if cuts.wait_for(|cut| *cut).await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        let meter = FrameMeter::new(listener.is_some());
        Ok(Guarded {
            stream,
            peer: Arc::clone(peer),
            activity,
            meter,
            ended,
            cut: false,
            number,
            connections: self.clone(),
        })
    }

    /// Reports a connection that this node ended.
    fn ended(&self, rejection_record: &RejectionRecord) {
        if let Some(on_rejected) = &self.on_rejected {
            on_rejected(rejection_record);
        }
    }
}

/// Connections of an identity without a grant, and of all such identities together. They may check
/// health, and receive `PERMISSION_DENIED`.
const UNGRANTED_MAX: (usize, usize) = (4, 32);

impl Table {
    /// Charges one more connection; evicts an idle one if necessary. Identities without a grant get
    /// very few. Operators are charged to the reserve, and have no bound by address.
    fn charge(
        &mut self,
        peer: &Peer,
        level: AccessLevel,
        listener: &ListenerOptions,
        evicted: &mut Vec<RejectionRecord>,
    ) -> Result<Charge, Rejection> {
        let too_many = |what: String| Rejection::new("too-many-connections", format!("{what} is at its limit"));
        let same_listener = |live: &&Live| live.peer.origin.at == peer.origin.at;
        let same = |live: &&Live| live.peer.identity.spiffe == peer.identity.spiffe;
        let own = self.live.values().filter(same_listener).filter(same).count();
        if level == AccessLevel::Ungranted {
            let ungranted = |live: &&Live| live.level == AccessLevel::Ungranted;
            let all = self.live.values().filter(same_listener).filter(ungranted).count();
            if own >= UNGRANTED_MAX.0 || all >= UNGRANTED_MAX.1 {
                return Err(too_many(format!("{} (without a grant)", peer.identity.spiffe)));
            }
        }
        let source = peer.origin.source.filter(|_| level != AccessLevel::Operator);
        let from = |live: &&Live| source.is_some() && live.peer.origin.source == source;
        if self.live.values().filter(same_listener).filter(from).count() >= listener.limits.per_source_max {
            let number = self.idle(peer, level, own, source).ok_or_else(|| too_many("this address".into()))?;
            evicted.extend(self.evict(number));
        }
        let class = if level == AccessLevel::Operator { Class::Reserved } else { Class::Ordinary };
        let owner = peer.identity.owner();
        let bounds = listener.budget.bounds();
        // Operators beyond their reserve evict others.
        for _ in 0..=bounds.total {
            match listener.budget.try_charge(&owner, class, 1) {
                Ok(charge) => return Ok(charge),
                Err(_) if own as u64 >= bounds.per_owner => return Err(too_many(peer.identity.spiffe.to_string())),
                Err(_) => {
                    let number = self.idle(peer, level, own, None).ok_or_else(|| too_many("this listener".into()))?;
                    evicted.extend(self.evict(number));
                }
            }
        }
        Err(too_many("this listener".into()))
    }

    /// Returns the idle connection to evict for a new one of an identity that has `own`
    /// connections. Operators evict any; identities with a grant evict those without one. Otherwise
    /// the other identity must retain at least as many as the new one will have. Preferred are
    /// connections without a grant, then those of the identity that has most, then the oldest.
    fn idle(&self, peer: &Peer, level: AccessLevel, own: usize, source: Option<Source>) -> Option<u64> {
        let at = peer.origin.at;
        let mut counts: HashMap<&SpiffeId, usize> = HashMap::new();
        for live in self.live.values().filter(|live| live.peer.origin.at == at) {
            *counts.entry(&live.peer.identity.spiffe).or_default() += 1;
        }
        let evictable = |live: &Live| {
            let has = counts.get(&live.peer.identity.spiffe).copied().unwrap_or(0);
            match (level, live.level) {
                (AccessLevel::Operator, _) | (AccessLevel::Granted, AccessLevel::Ungranted) => true,
                (_, AccessLevel::Operator) | (AccessLevel::Ungranted, AccessLevel::Granted) => false,
                (AccessLevel::Granted, AccessLevel::Granted) | (AccessLevel::Ungranted, AccessLevel::Ungranted) => {
                    has > own + 1
                }
            }
        };
        let candidates = self.live.iter().filter(|(_, live)| {
            live.peer.origin.at == at
                && source.is_none_or(|source| live.peer.origin.source == Some(source))
                && live.peer.identity.spiffe != peer.identity.spiffe
                && live.activity.is_idle()
                && evictable(live)
        });
        let rank = |live: &Live| {
            (live.level == AccessLevel::Ungranted, counts.get(&live.peer.identity.spiffe).copied().unwrap_or(0))
        };
        // `max_by_key` returns the last of equals, so reverse the order to get the oldest.
        candidates.rev().max_by_key(|(_, live)| rank(live)).map(|(number, _)| *number)
    }

    /// Ends a connection and returns its record.
    fn evict(&mut self, number: u64) -> Option<RejectionRecord> {
        let live = self.live.remove(&number)?;
        live.cut.send_replace(true);
        Some(
            live.peer.rejection_record(Rejection::new(
                "connection-evicted",
                "it was idle and was replaced by a new connection",
            )),
        )
    }
}

/// Number of calls in progress on a connection. Cheap to clone.
#[derive(Clone, Default)]
pub struct Activity(Arc<AtomicUsize>);

/// One call in progress, until it is dropped.
pub struct Active(Activity);

impl Activity {
    /// Counts a call until the result is dropped.
    #[must_use]
    pub fn begin(&self) -> Active {
        self.0.fetch_add(1, Ordering::Relaxed);
        Active(self.clone())
    }

    fn is_idle(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that serves calls.
pub trait Served: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Adds the identity of the other end to the extensions of calls.
    fn describe(&self, extensions: &mut http::Extensions);
    /// Returns the counter of calls in progress.
    fn activity(&self) -> Activity;
    /// Returns a function that reports that the connection is ended for too many denied calls.
    fn on_flood(&self) -> Box<dyn Fn() + Send + Sync>;
}

/// A connection that ends when it is cut.
pub struct Guarded<S> {
    stream: S,
    peer: Arc<Peer>,
    activity: Activity,
    meter: FrameMeter,
    ended: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    cut: bool,
    number: u64,
    connections: Connections,
}

impl<S> Guarded<S> {
    fn alive(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.cut || self.ended.as_mut().poll(context).is_ready() {
            self.cut = true;
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "this node has ended the connection"));
        }
        Ok(())
    }

    /// Reports why this node ends the connection, if it is for what the other end sent.
    fn rejected(&mut self, error: io::Error) -> io::Error {
        if let Some(Rejection { reason, detail }) = error.get_ref().and_then(|inner| inner.downcast_ref::<Rejection>())
            && !std::mem::replace(&mut self.cut, true)
        {
            self.connections.ended(&self.peer.rejection_record(Rejection { reason, detail: detail.clone() }));
        }
        error
    }
}

impl<S> Drop for Guarded<S> {
    fn drop(&mut self) {
        self.connections.table.lock().live.remove(&self.number);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Served for Guarded<S> {
    fn describe(&self, extensions: &mut http::Extensions) {
        // Each call on the connection clones this, so it is in an `Arc`.
        extensions.insert(Arc::new(self.peer.identity.clone()));
    }

    fn activity(&self) -> Activity {
        self.activity.clone()
    }

    fn on_flood(&self) -> Box<dyn Fn() + Send + Sync> {
        let (peer, connections) = (Arc::clone(&self.peer), self.connections.clone());
        Box::new(move || {
            let rejected = Rejection::new("call-flood", "it continued to send calls after they were denied");
            connections.ended(&peer.rejection_record(rejected));
        })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.alive(context)?;
        let before = buf.filled().len();
        let me = &mut *self;
        let read = match ready!(Pin::new(&mut me.stream).poll_read(context, buf)) {
            Ok(()) => me.meter.read(buf.filled().get(before..).unwrap_or_default()).map_err(io::Error::other),
            Err(error) => Err(error),
        };
        Poll::Ready(read.map_err(|error| me.rejected(error)))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.alive(context)?;
        Pin::new(&mut self.stream).poll_write(context, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.alive(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.alive(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
