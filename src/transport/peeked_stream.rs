//! A dialled stream that waits for the server's first bytes, so that a rejection of this node's
//! certificate is seen before the connection is used.
//!
//! In TLS 1.3 the handshake ends for the client before the server has verified the client's
//! certificate. The result is the first data that arrives: an alert, or the SETTINGS with which a
//! node begins (RFC 9113 section 3.4). A client that writes first may lose the alert.

use std::io::{self, Cursor};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Chain, Join, ReadHalf, WriteHalf, join, split};

/// Longest wait for the first bytes. Nodes send them at once. If the server waits for the client
/// instead, the connection continues.
const FIRST_BYTES_WAIT: Duration = Duration::from_secs(3);
/// Bytes read ahead. The first TLS record of a node is smaller.
const FIRST_BYTES_MAX: usize = 1_024;

/// A stream whose first bytes have been read.
pub(super) type PeekedStream<S> = Join<Chain<Cursor<Vec<u8>>, ReadHalf<S>>, WriteHalf<S>>;

/// Waits for the first bytes.
///
/// # Errors
/// The other end has closed the connection. The error contains its alert.
pub(super) async fn peek<S: AsyncRead + AsyncWrite>(stream: S) -> io::Result<PeekedStream<S>> {
    let (mut read, write) = split(stream);
    let mut first = vec![0; FIRST_BYTES_MAX];
    let count = match tokio::time::timeout(FIRST_BYTES_WAIT, read.read(&mut first)).await {
        Ok(Ok(0)) => {
            let why = "the other end has closed the connection before it sent anything";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        Ok(Ok(count)) => count,
        Ok(Err(error)) => return Err(error),
        Err(_) => 0,
    };
    first.truncate(count);
    Ok(join(Cursor::new(first).chain(read), write))
}
