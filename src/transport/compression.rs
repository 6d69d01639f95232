//! Compression of a connection between nodes: few bytes on thin lines.
//!
//! In scope: one Zstandard stream each way inside TLS, chosen by ALPN when the connection is made. One stream, not one a message: a
//! bulletin is small and much like the one before it, and names, headers and notes come again and again. Out of scope: when it pays,
//! which the dialling side decides ([`Compress`]); and people's connections, which carry secrets of several people side by side.
//!
//! What is compressed leaves its length on the line. A link carries one member's bulletins to one other; somebody who may publish there
//! and also measures the encrypted line might learn whether his own words resemble a colleague's. `docs/adr/compressed-links.md`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_compression::Level;
use async_compression::tokio::bufread::ZstdDecoder;
use async_compression::tokio::write::ZstdEncoder;
use async_compression::zstd::{CParameter, DParameter};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf, ReadHalf, WriteHalf, split};

use super::rejection::Rejection;

/// HTTP/2 as it is (RFC 9113 §3.2).
pub(super) const ALPN_PLAIN: &[u8] = b"h2";
/// HTTP/2 in one Zstandard stream (RFC 8878) each way.
pub(super) const ALPN_ZSTD: &[u8] = b"barid-zstd/1";
/// Level: most of the gain, at some hundred MB/s a core.
const LEVEL: i32 = 3;
/// Window, as a power of two: what a side remembers of the stream, and so what it costs in memory at both ends. Some hundred bulletins.
const WINDOW_LOG: u32 = 20;
/// Bytes out after which their ratio to the bytes in is looked at, and counting begins anew: many full batches.
const INFLATED_BYTES: u64 = 64 << 20;
/// Bytes out for one in over so many of them. A bulletin of 1 MiB that repeats one sentence reaches some 3,500: its id, its salt and its
/// checkpoint cannot be compressed. Beyond is nothing that a node sends.
const INFLATION_MAX: u64 = 5_000;
/// A line on which TCP takes so long to connect is far away; compression costs it nothing that would be noticed.
const DISTANT_CONNECT_TIME: Duration = Duration::from_millis(10);

/// Whether a node compresses the links that it dials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compress {
    /// Where the other node is far away: where TCP takes 10 ms or more to connect.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Compress {
    /// The protocols to offer on a line on which TCP took so long to connect, most wanted first.
    pub(super) fn offer(self, connecting: Duration) -> Vec<Vec<u8>> {
        let compressed = match self {
            Self::Auto => connecting >= DISTANT_CONNECT_TIME,
            Self::Always => true,
            Self::Never => false,
        };
        if compressed { vec![ALPN_ZSTD.to_vec(), ALPN_PLAIN.to_vec()] } else { vec![ALPN_PLAIN.to_vec()] }
    }
}

/// A connection as it is, or compressed.
pub enum MaybeCompressed<S> {
    /// As it is.
    Plain(S),
    /// Compressed both ways.
    Compressed(Box<Compressed<S>>),
}

/// A compressed connection.
pub struct Compressed<S> {
    read: ZstdDecoder<BufReader<CountingReader<ReadHalf<S>>>>,
    write: ZstdEncoder<WriteHalf<S>>,
    inflation: Inflation,
}

/// Counts the bytes that are read.
struct CountingReader<R> {
    inner: R,
    bytes: u64,
}

impl<R: AsyncRead + Unpin> AsyncRead for CountingReader<R> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buf))?;
        self.bytes += (buf.filled().len() - before) as u64;
        Poll::Ready(Ok(()))
    }
}

/// What came out since counting began, and how much had gone in then.
#[derive(Default)]
struct Inflation {
    out: u64,
    in_before: u64,
}

impl Inflation {
    /// So many bytes came out, after so many had gone in.
    fn inflated(&mut self, out: u64, bytes_in: u64) -> io::Result<()> {
        self.out += out;
        if self.out < INFLATED_BYTES {
            return Ok(());
        }
        let taken = bytes_in.saturating_sub(self.in_before);
        let ratio = self.out / taken.max(1);
        (self.out, self.in_before) = (0, bytes_in);
        if ratio > INFLATION_MAX {
            let detail = format!("{taken} bytes inflated {ratio}-fold, more than {INFLATION_MAX}-fold");
            return Err(io::Error::other(Rejection::new("inflation", detail)));
        }
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Compressed<S> {
    /// Gives way after some reads even where there is always more: little input may hold much output.
    fn poll_read(&mut self, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let turn = ready!(tokio::task::coop::poll_proceed(context));
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.read).poll_read(context, buf))?;
        turn.made_progress();
        let bytes_in = self.read.get_ref().get_ref().bytes;
        Poll::Ready(self.inflation.inflated((buf.filled().len() - before) as u64, bytes_in))
    }
}

impl<S: AsyncRead + AsyncWrite> MaybeCompressed<S> {
    /// The line that both sides have agreed on.
    pub(super) fn negotiated(stream: S, alpn: Option<&[u8]>) -> Self {
        if alpn != Some(ALPN_ZSTD) {
            return Self::Plain(stream);
        }
        let (read, write) = split(stream);
        let read = CountingReader { inner: read, bytes: 0 };
        let read = ZstdDecoder::with_params(BufReader::new(read), &[DParameter::window_log_max(WINDOW_LOG)]);
        let level = Level::Precise(LEVEL);
        let write = ZstdEncoder::with_quality_and_params(write, level, &[CParameter::window_log(WINDOW_LOG)]);
        Self::Compressed(Box::new(Compressed { read, write, inflation: Inflation::default() }))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for MaybeCompressed<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buf),
            Self::Compressed(compressed) => compressed.poll_read(context, buf),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for MaybeCompressed<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, buf),
            Self::Compressed(compressed) => Pin::new(&mut compressed.write).poll_write(context, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Compressed(compressed) => Pin::new(&mut compressed.write).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Compressed(compressed) => Pin::new(&mut compressed.write).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, bufs),
            // One buffer after another: the encoder gathers them.
            Self::Compressed(compressed) => {
                let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| &**buf);
                Pin::new(&mut compressed.write).poll_write(context, first)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Compressed(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[test]
    fn distant_connections_are_compressed_by_default() {
        let (near, distant) = (Duration::from_millis(1), Duration::from_millis(300));
        assert_eq!(Compress::Auto.offer(near), [ALPN_PLAIN]);
        assert_eq!(Compress::Auto.offer(distant), [ALPN_ZSTD, ALPN_PLAIN]);
        assert_eq!(Compress::Always.offer(near), [ALPN_ZSTD, ALPN_PLAIN]);
        assert_eq!(Compress::Never.offer(distant), [ALPN_PLAIN]);
    }

    #[tokio::test]
    async fn flushed_bytes_are_readable_at_once() {
        let (one, other) = duplex(1 << 20);
        let (mut one, mut other) =
            (MaybeCompressed::negotiated(one, Some(ALPN_ZSTD)), MaybeCompressed::negotiated(other, Some(ALPN_ZSTD)));
        for n in 0..100 {
            let written = format!("EXERCICE : passeport volé, numéro {n}. ").repeat(10);
            one.write_all(written.as_bytes()).await.unwrap();
            one.flush().await.unwrap();
            let mut received = vec![0; written.len()];
            other.read_exact(&mut received).await.unwrap();
            assert_eq!(received, written.as_bytes());
        }
        one.shutdown().await.unwrap();
        assert_eq!(other.read(&mut [0; 9]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn invalid_zstd_and_oversized_window_are_errors() {
        let (mut raw, reader) = duplex(1 << 20);
        let mut reader = MaybeCompressed::negotiated(reader, Some(ALPN_ZSTD));
        raw.write_all(&[0x55; 64]).await.unwrap();
        assert!(reader.read(&mut [0; 9]).await.is_err());
        let (raw, reader) = duplex(1 << 20);
        let mut reader = MaybeCompressed::negotiated(reader, Some(ALPN_ZSTD));
        let large_window = [CParameter::window_log(WINDOW_LOG + 4)];
        let mut raw = ZstdEncoder::with_quality_and_params(raw, Level::Precise(19), &large_window);
        raw.write_all(&[7; 4_096]).await.unwrap();
        raw.flush().await.unwrap();
        assert!(reader.read(&mut [0; 9]).await.is_err());
    }

    #[tokio::test]
    async fn unbounded_inflation_ends_the_connection_and_yields() {
        let (raw, reader) = duplex(1 << 20);
        let mut reader = MaybeCompressed::negotiated(reader, Some(ALPN_ZSTD));
        let mut raw = MaybeCompressed::negotiated(raw, Some(ALPN_ZSTD));
        let zeros = vec![0; 1 << 20];
        let sending = tokio::spawn(async move { while raw.write_all(&zeros).await.is_ok() {} });
        // On this one thread others have their turn only if the reader gives way.
        let others = tokio::spawn(async {
            for turn in 0_u64.. {
                tokio::task::yield_now().await;
                TURNS.store(turn, std::sync::atomic::Ordering::Relaxed);
            }
        });
        let (mut buf, mut read) = (vec![0; 1 << 14], 0);
        let error = loop {
            match reader.read(&mut buf).await {
                Ok(count) => read += count as u64,
                Err(error) => break error,
            }
        };
        let rejected = error.get_ref().and_then(|inner| inner.downcast_ref::<Rejection>()).unwrap();
        assert_eq!(rejected.reason, "inflation");
        assert!((INFLATED_BYTES - (1 << 14)..=INFLATED_BYTES).contains(&read), "{read}");
        assert!(TURNS.load(std::sync::atomic::Ordering::Relaxed) > 10);
        others.abort();
        sending.abort();
    }

    static TURNS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

    #[test]
    fn repetitive_batches_stay_below_the_inflation_limit() {
        let mut inflation = Inflation::default();
        for batch in 1..1_000 {
            // One sentence again and again, with what cannot be compressed beside it.
            inflation.inflated(1 << 20, batch * 400).unwrap();
        }
    }
}
