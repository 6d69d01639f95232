//! Compression of connections between nodes, for links with little bandwidth.
//!
//! In scope: one Zstandard stream in each direction inside TLS, negotiated by ALPN. One stream, not
//! one per message: a bulletin is small and similar to the previous one, and names, headers and
//! notes repeat. Out of scope: when compression pays, which the dialling side decides
//! ([`Compress`]); and client connections, which carry secrets of several people side by side.
//!
//! Compression reveals the length of the compressed data. A link carries one member's bulletins to
//! one other member. A person who may publish there and also measures the encrypted traffic might
//! learn whether their text resembles that of another publisher. See
//! `docs/adr/compressed-links.md`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_compression::Level;
use async_compression::tokio::bufread::ZstdDecoder;
use async_compression::tokio::write::ZstdEncoder;
use async_compression::zstd::{CParameter, DParameter};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, Join, ReadBuf, ReadHalf, WriteHalf, join, split};
use tokio_util::either::Either;

use super::rejection::Rejection;

/// Plain HTTP/2 (RFC 9113 §3.2).
pub(super) const ALPN_PLAIN: &[u8] = b"h2";
/// HTTP/2 in one Zstandard stream (RFC 8878) each way.
pub(super) const ALPN_ZSTD: &[u8] = b"barid-zstd/1";
/// Compression level: most of the gain, at some hundred MB/s per core.
const LEVEL: i32 = 3;
/// Base-2 logarithm of the compression window in bytes. Compressor and decompressor each allocate
/// one window; 1 MiB spans several hundred bulletins.
const WINDOW_LOG: u32 = 20;
/// Output bytes between two checks of the inflation ratio: many full batches.
const INFLATED_BYTES: u64 = 64 << 20;
/// Largest ratio of output to input over [`INFLATED_BYTES`]. A bulletin of 1 MiB that repeats one
/// sentence reaches some 3,500, because its id, salt and checkpoint cannot be compressed. No node
/// sends more.
const INFLATION_MAX: u64 = 5_000;
/// TCP connect time from which a node is distant. On such a link the cost of compression is
/// negligible.
const DISTANT_CONNECT_TIME: Duration = Duration::from_millis(10);

/// Whether a node compresses the links that it dials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compress {
    /// If the other node is distant: TCP takes 10 ms or more to connect.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Compress {
    /// Returns the ALPN protocols to offer after TCP took `connecting`, most preferred first.
    pub(super) fn offer(self, connecting: Duration) -> Vec<Vec<u8>> {
        let compressed = match self {
            Self::Auto => connecting >= DISTANT_CONNECT_TIME,
            Self::Always => true,
            Self::Never => false,
        };
        if compressed { vec![ALPN_ZSTD.to_vec(), ALPN_PLAIN.to_vec()] } else { vec![ALPN_PLAIN.to_vec()] }
    }
}

/// A plain or compressed connection.
pub type MaybeCompressed<S> = Either<S, Box<Join<Decompressor<ReadHalf<S>>, ZstdEncoder<WriteHalf<S>>>>>;

/// Wraps the connection as negotiated by ALPN.
pub(super) fn negotiated<S: AsyncRead + AsyncWrite>(stream: S, alpn: Option<&[u8]>) -> MaybeCompressed<S> {
    if alpn != Some(ALPN_ZSTD) {
        return Either::Left(stream);
    }
    let (read, write) = split(stream);
    let read = CountingReader { inner: read, bytes: 0 };
    let inner = ZstdDecoder::with_params(BufReader::new(read), &[DParameter::window_log_max(WINDOW_LOG)]);
    let level = Level::Precise(LEVEL);
    let write = ZstdEncoder::with_quality_and_params(write, level, &[CParameter::window_log(WINDOW_LOG)]);
    Either::Right(Box::new(join(Decompressor { inner, inflation: Inflation::default() }, write)))
}

/// Decompresses what is read, and bounds how far it inflates.
pub struct Decompressor<R> {
    inner: ZstdDecoder<BufReader<CountingReader<R>>>,
    inflation: Inflation,
}

impl<R: AsyncRead + Unpin> AsyncRead for Decompressor<R> {
    /// Yields to other tasks after some reads, even if more output is ready: little input may
    /// produce much output.
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let turn = ready!(tokio::task::coop::poll_proceed(context));
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buf))?;
        turn.made_progress();
        let bytes_in = self.inner.get_ref().get_ref().bytes;
        Poll::Ready(self.inflation.inflated((buf.filled().len() - before) as u64, bytes_in))
    }
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

/// Output since the last check, and input until then.
#[derive(Default)]
struct Inflation {
    out: u64,
    in_before: u64,
}

impl Inflation {
    /// Counts `out` bytes of output after `bytes_in` bytes of input in all. Fails if the ratio is
    /// too large.
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
        let (mut one, mut other) = (negotiated(one, Some(ALPN_ZSTD)), negotiated(other, Some(ALPN_ZSTD)));
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
        let mut reader = negotiated(reader, Some(ALPN_ZSTD));
        raw.write_all(&[0x55; 64]).await.unwrap();
        assert!(reader.read(&mut [0; 9]).await.is_err());
        let (raw, reader) = duplex(1 << 20);
        let mut reader = negotiated(reader, Some(ALPN_ZSTD));
        let large_window = [CParameter::window_log(WINDOW_LOG + 4)];
        let mut raw = ZstdEncoder::with_quality_and_params(raw, Level::Precise(19), &large_window);
        raw.write_all(&[7; 4_096]).await.unwrap();
        raw.flush().await.unwrap();
        assert!(reader.read(&mut [0; 9]).await.is_err());
    }

    #[tokio::test]
    async fn unbounded_inflation_ends_the_connection_and_yields() {
        let (raw, reader) = duplex(1 << 20);
        let mut reader = negotiated(reader, Some(ALPN_ZSTD));
        let mut raw = negotiated(raw, Some(ALPN_ZSTD));
        let zeros = vec![0; 1 << 20];
        let sending = tokio::spawn(async move { while raw.write_all(&zeros).await.is_ok() {} });
        // On this single thread other tasks run only if the reader yields.
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
            // One sentence repeated, beside data that cannot be compressed.
            inflation.inflated(1 << 20, batch * 400).unwrap();
        }
    }
}
