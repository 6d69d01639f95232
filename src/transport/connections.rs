//! Live connections, and ending them when they are no longer allowed.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tonic::transport::server::Connected;

use super::handshakes::Source;
use super::limits::Limits;
use super::refusal::{Refusal, Refused};
use super::revocation::RevocationLists;
use super::trust::{PeerIdentity, Trust};
use super::verify::Verifier;

/// How often the ends of validity are compared with the clock, which may be set: an end is seen within this time.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// All live connections of a node, of both directions. Cheap to clone.
#[derive(Clone, Default)]
pub struct Connections {
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    next: u64,
    live: BTreeMap<u64, Live>,
}

struct Live {
    shown: Arc<Shown>,
    /// Unix seconds up to which it may stay as things are.
    until: i64,
    cut: watch::Sender<bool>,
}

/// What the other end has shown.
struct Shown {
    origin: Origin,
    identity: PeerIdentity,
    certificate: CertificateDer<'static>,
    verifier: Arc<Verifier>,
}

/// Where a connection comes from.
pub(super) struct Origin {
    pub(super) at: &'static str,
    pub(super) address: String,
    /// Absent for those that this node dials: it is not bounded by others.
    pub(super) source: Option<Source>,
}

/// Which connections to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// All: what they were let in by has changed.
    All,
    /// Those whose time is over.
    Due,
}

impl Connections {
    /// Verifies live connections again and ends those that would be refused now. Returns who was cut, and why.
    pub fn reverify(&self, which: Which, now: UnixTime) -> Vec<Refusal> {
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let chosen: Vec<(u64, Arc<Shown>)> = {
            let table = self.table.lock();
            let due = table.live.iter().filter(|(_, live)| which == Which::All || live.until < seconds);
            due.map(|(number, live)| (*number, Arc::clone(&live.shown))).collect()
        };
        // The table stays open to others meanwhile: a chain takes a tenth of a millisecond, and there may be a thousand.
        let judged: Vec<_> = chosen
            .into_iter()
            .map(|(number, shown)| (number, shown.verifier.identify(&shown.certificate, now), shown))
            .collect();
        let mut ended = Vec::new();
        let mut table = self.table.lock();
        for (number, judgement, shown) in judged {
            match judgement {
                Ok(identity) => {
                    if let Some(live) = table.live.get_mut(&number) {
                        live.until = identity.until;
                    }
                }
                Err(Refused { reason, detail }) => {
                    // One that has ended by itself meanwhile is not cut.
                    if let Some(live) = table.live.remove(&number) {
                        live.cut.send_replace(true);
                        let detail = format!("{detail}; {}", shown.origin.address);
                        let (who, at) = (shown.identity.spiffe.to_string(), shown.origin.at);
                        ended.push(Refusal { reason, who, at, detail });
                    }
                }
            }
        }
        ended
    }

    /// Live connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.lock().live.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Looks at all live connections whenever trust or lists change, and at each when its time is over; tells of every cut. Returns
    /// never.
    pub async fn watch(self, trust: Trust, lists: RevocationLists, told: impl Fn(&Refusal) + Send) {
        let (mut trusted, mut listed) = (trust.watch(), lists.watch());
        let mut tick = tokio::time::interval(CHECK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let which = tokio::select! {
                Ok(()) = trusted.changed() => Which::All,
                Ok(()) = listed.changed() => Which::All,
                _ = tick.tick() => Which::Due,
            };
            let connections = self.clone();
            let looking = tokio::task::spawn_blocking(move || connections.reverify(which, UnixTime::now()));
            for ended in looking.await.unwrap_or_default() {
                told(&ended);
            }
        }
    }

    /// Whether one more from this source would be taken; nothing is known of it but that.
    pub(super) fn has_room(&self, at: &'static str, source: Source, limits: &Limits) -> Result<(), Refused> {
        let table = self.table.lock();
        let here = || table.live.values().filter(|live| live.shown.origin.at == at);
        let crowded = |what: &str| Err(Refused::new("too-many-connections", format!("{what} has as many as it may")));
        if here().count() >= limits.connections_max {
            return crowded("this listener");
        }
        if here().filter(|live| live.shown.origin.source == Some(source)).count() >= limits.per_source_max {
            return crowded("this address");
        }
        Ok(())
    }

    /// Takes a connection in on which `certificate` was shown and its key proven.
    pub(super) fn admit<S>(
        &self,
        stream: S,
        origin: Origin,
        certificate: CertificateDer<'static>,
        verifier: Arc<Verifier>,
        limits: Option<&Limits>,
    ) -> Result<Guarded<S>, Refused> {
        let before = verifier.state();
        let identity = verifier.identify(&certificate, UnixTime::now())?;
        let until = identity.until;
        let shown = Arc::new(Shown { origin, identity, certificate, verifier });
        let guarded = self.enter(stream, &shown, until, limits)?;
        // Whoever looked at all connections since then may have looked before this one was among them.
        if shown.verifier.state() != before {
            shown.verifier.identify(&shown.certificate, UnixTime::now())?;
        }
        Ok(guarded)
    }

    fn enter<S>(
        &self,
        stream: S,
        shown: &Arc<Shown>,
        until: i64,
        limits: Option<&Limits>,
    ) -> Result<Guarded<S>, Refused> {
        let mut table = self.table.lock();
        if let Some(limits) = limits {
            let same = |live: &&Live| {
                live.shown.origin.at == shown.origin.at && live.shown.identity.spiffe == shown.identity.spiffe
            };
            if table.live.values().filter(same).count() >= limits.per_identity_max {
                let detail = format!("{} has as many as it may", shown.identity.spiffe);
                return Err(Refused::new("too-many-connections", detail));
            }
        }
        let (cut, mut cuts) = watch::channel(false);
        let number = table.next;
        table.next += 1;
        table.live.insert(number, Live { shown: Arc::clone(shown), until, cut });
        drop(table);
        let ended = Box::pin(async move {
            // Only a cut ends the wait: that the table forgot the connection does not.
            if cuts.wait_for(|cut| *cut).await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        let identity = shown.identity.clone();
        Ok(Guarded { stream, identity, ended, cut: false, number, connections: self.clone() })
    }
}

/// A connection that ends when it is cut.
pub struct Guarded<S> {
    stream: S,
    identity: PeerIdentity,
    ended: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    cut: bool,
    number: u64,
    connections: Connections,
}

impl<S> Guarded<S> {
    fn alive(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.cut || self.ended.as_mut().poll(context).is_ready() {
            self.cut = true;
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the certificate is no longer accepted"));
        }
        Ok(())
    }
}

impl<S> Drop for Guarded<S> {
    fn drop(&mut self) {
        self.connections.table.lock().live.remove(&self.number);
    }
}

impl<S> Connected for Guarded<S> {
    type ConnectInfo = PeerIdentity;

    fn connect_info(&self) -> PeerIdentity {
        self.identity.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.alive(context)?;
        Pin::new(&mut self.stream).poll_read(context, buf)
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
