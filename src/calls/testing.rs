//! Connections without TLS, for a peer or client as if verified.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Extensions;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::transport::{Activity, Served};

/// A connection and the values that describe its peer to calls.
pub(crate) struct Verified<S> {
    stream: S,
    describe: Arc<dyn Fn(&mut Extensions) + Send + Sync>,
    activity: Activity,
}

impl<S> Verified<S> {
    pub(crate) fn new(stream: S, describe: impl Fn(&mut Extensions) + Send + Sync + 'static) -> Self {
        Self { stream, describe: Arc::new(describe), activity: Activity::default() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Served for Verified<S> {
    fn describe(&self, extensions: &mut Extensions) {
        (self.describe)(extensions);
    }

    fn activity(&self) -> Activity {
        self.activity.clone()
    }

    fn on_flood(&self) -> Box<dyn Fn() + Send + Sync> {
        Box::new(|| {})
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Verified<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Verified<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
