//! A dialled stream that waits for the server's first bytes, so that a rejection of this node's
//! certificate is seen before the connection is used.
//!
//! In TLS 1.3 the handshake ends for the client before the server has verified the client's
//! certificate. The result is the first data that arrives: an alert, or the SETTINGS with which a
//! node begins (RFC 9113 section 3.4). A client that writes first may lose the alert.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// Longest wait for the first bytes. Nodes send them at once. If the server waits for the client
/// instead, the connection continues.
const FIRST_BYTES_WAIT: Duration = Duration::from_secs(3);
/// Bytes read ahead. The first TLS record of a node is smaller.
const FIRST_BYTES_MAX: usize = 1_024;

/// A stream whose first bytes have been read.
pub(super) struct PeekedStream<S> {
    stream: S,
    first: Vec<u8>,
    taken: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> PeekedStream<S> {
    /// Waits for the first bytes.
    ///
    /// # Errors
    /// The other end has closed the connection. The error contains its alert.
    pub(super) async fn wait(mut stream: S) -> io::Result<Self> {
        let mut first = vec![0; FIRST_BYTES_MAX];
        let count = match tokio::time::timeout(FIRST_BYTES_WAIT, stream.read(&mut first)).await {
            Ok(Ok(0)) => {
                let why = "the other end has closed the connection before it sent anything";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
            }
            Ok(Ok(count)) => count,
            Ok(Err(error)) => return Err(error),
            Err(_) => 0,
        };
        first.truncate(count);
        Ok(Self { stream, first, taken: 0 })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PeekedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let left = self.first.get(self.taken..).unwrap_or_default();
        if left.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buf);
        }
        let count = left.len().min(buf.remaining());
        buf.put_slice(&left[..count]);
        self.taken += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PeekedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
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
        Pin::new(&mut self.stream).poll_write_vectored(context, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
