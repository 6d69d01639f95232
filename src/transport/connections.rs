//! Live connections, and ending them when they are no longer allowed.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tonic::transport::server::Connected;

use super::trust::PeerIdentity;
use super::verify::Verifier;

/// How often certificates of live connections are looked at: an end of validity is seen within this time.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// All live connections of a node. Cheap to clone.
#[derive(Clone, Default)]
pub struct Connections {
    live: Arc<Mutex<HashMap<u64, Live>>>,
    next: Arc<AtomicU64>,
}

struct Live {
    verifier: Arc<Verifier>,
    chain: Vec<CertificateDer<'static>>,
    cut: watch::Sender<bool>,
}

impl Connections {
    /// Verifies every live connection again and ends those that would be refused now. Returns who was cut, and why.
    pub fn reverify(&self, now: UnixTime) -> Vec<super::Refused> {
        let mut refused = Vec::new();
        self.live.lock().retain(|_, live| {
            let result = match live.chain.split_first() {
                Some((end_entity, intermediates)) => live.verifier.identify(end_entity, intermediates, now),
                None => return true,
            };
            match result {
                Ok(_) => true,
                Err(why) => {
                    live.cut.send_replace(true);
                    refused.push(why);
                    false
                }
            }
        });
        refused
    }

    /// Live connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live.lock().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps looking at the live connections until the node stops, each second; tells of every cut.
    pub async fn watch(self, told: impl Fn(&super::Refused) + Send) {
        let mut tick = tokio::time::interval(CHECK_EVERY);
        loop {
            tick.tick().await;
            for refused in self.reverify(UnixTime::now()) {
                told(&refused);
            }
        }
    }

    pub(super) fn guard<S>(
        &self,
        stream: S,
        identity: PeerIdentity,
        chain: Vec<CertificateDer<'static>>,
        verifier: Arc<Verifier>,
    ) -> Guarded<S> {
        let (cut, mut cuts) = watch::channel(false);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.live.lock().insert(id, Live { verifier, chain, cut });
        let ended = Box::pin(async move {
            // Only a cut ends the wait: that the registry forgot the connection does not.
            if cuts.wait_for(|cut| *cut).await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        Guarded { stream, identity, ended, cut: false, id, connections: self.clone() }
    }
}

/// A connection that ends when it is cut.
pub struct Guarded<S> {
    stream: S,
    identity: PeerIdentity,
    ended: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    cut: bool,
    id: u64,
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
        self.connections.live.lock().remove(&self.id);
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
