//! Limits: every bound of the transport, with its reason.

use std::time::Duration;

use hyper::server::conn::http2;
use tonic::transport::Endpoint;

/// Longest time for TCP and the handshake together. A satellite link needs some seconds.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// Accepted connections buffered for `calls::serve`, which takes each at once.
pub(super) const ACCEPTED_MAX: usize = 64;
/// Flow-control windows of a link and of its connection: a batch of 1 MiB and the data after it,
/// with a delay of 100 ms at 10 MB/s. Together with the bound on connections they bound the unread
/// data of all peers.
const LINK_WINDOW_BYTES: u32 = 1 << 20;
/// Flow-control window of one client call: hundreds of drafts in flight, and 10 MB/s with a delay
/// of 50 ms.
const CALL_WINDOW_BYTES: u32 = 512 << 10;
/// Flow-control window of a client connection. It is larger, so that one unread stream leaves room
/// for the others.
const CALLS_WINDOW_BYTES: u32 = 640 << 10;
/// Encoded bytes of one stream that HTTP/2 buffers before they can be sent. The rest stays in the
/// response, which is charged.
const SEND_BUFFER_BYTES_MAX: usize = 64 << 10;
/// Largest HTTP/2 frame accepted. A batch of 1 MiB needs few frames, and a short call on the same
/// connection does not wait long.
const FRAME_BYTES_MAX: u32 = 64 << 10;
/// Largest header list accepted. A call's path and metadata are below 1 KiB, the details of an
/// error below 16 KiB.
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
/// Streams that a client may open and reset before they are handled. A reset costs the client
/// nothing, so more is an attack (CVE-2023-44487).
const RESET_STREAMS_PENDING_MAX: usize = 20;
/// Streams that this node may reset for a client's errors before it ends the connection.
const ERROR_RESET_STREAMS_MAX: usize = 256;
/// Interval of PING on an idle connection.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
/// The same between nodes, whose links may have little bandwidth and stay open for months. A PING
/// costs some hundred bytes both ways, and is sent only if nothing else was received.
const KEEP_ALIVE_EVERY_ON_LINKS: Duration = Duration::from_secs(40);
/// Longest wait for the PING's reply. Interval and wait together are the longest time until a dead
/// peer is noticed.
const KEEP_ALIVE_WAIT: Duration = Duration::from_secs(20);

/// Limits of one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Handshakes in progress at each stage; four times as many at the stages that wait for the
    /// other end. When a stage is full, a random handshake of the busiest address is evicted, so
    /// that unauthenticated connections cannot keep others out.
    pub handshakes_max: usize,
    /// Longest time of one handshake.
    pub handshake_time_max: Duration,
    /// Open connections from one address (one /64 network for IPv6). Operators' connections are not
    /// bounded.
    pub per_source_max: usize,
    /// Flow-control window of one stream, in bytes.
    pub stream_window_bytes: u32,
    /// Flow-control window of a connection, in bytes. It bounds the unread data of a client.
    pub connection_window_bytes: u32,
    /// Concurrent streams on one connection. Further calls wait at the client.
    pub streams_max: u32,
    /// Interval of PING on an idle connection.
    pub keep_alive_every: Duration,
    /// Longest wait for the PING's reply.
    pub keep_alive_wait: Duration,
}

impl Limits {
    /// For peers: some hundred members. Each needs one link, two while it replaces one, and more
    /// for broken links that are not noticed yet. Several members may share one address if they
    /// share a machine.
    pub const EXCHANGE: Self = Self {
        handshakes_max: 128,
        handshake_time_max: HANDSHAKE_TIME_MAX,
        per_source_max: 128,
        stream_window_bytes: LINK_WINDOW_BYTES,
        connection_window_bytes: LINK_WINDOW_BYTES,
        // One link, with reflection and health checks beside it.
        streams_max: 16,
        keep_alive_every: KEEP_ALIVE_EVERY_ON_LINKS,
        keep_alive_wait: KEEP_ALIVE_WAIT,
    };
    /// For a member's own people and systems: hundreds of posts, often behind one proxy. A system
    /// opens a connection for each of its workers.
    pub const API: Self = Self {
        handshakes_max: 128,
        handshake_time_max: HANDSHAKE_TIME_MAX,
        per_source_max: 512,
        stream_window_bytes: CALL_WINDOW_BYTES,
        connection_window_bytes: CALLS_WINDOW_BYTES,
        // As many calls as one commit can contain entries.
        streams_max: 1_024,
        keep_alive_every: KEEP_ALIVE_EVERY,
        keep_alive_wait: KEEP_ALIVE_WAIT,
    };

    /// Configures HTTP/2 with these limits.
    pub fn tune<E>(&self, http: &mut http2::Builder<E>) {
        http.initial_stream_window_size(self.stream_window_bytes)
            .initial_connection_window_size(self.connection_window_bytes)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
            .max_concurrent_streams(self.streams_max)
            .max_header_list_size(HEADER_LIST_BYTES_MAX)
            .max_pending_accept_reset_streams(RESET_STREAMS_PENDING_MAX)
            .max_local_error_reset_streams(ERROR_RESET_STREAMS_MAX)
            .keep_alive_interval(self.keep_alive_every)
            .keep_alive_timeout(self.keep_alive_wait);
    }
}

/// Configures HTTP/2 of a connection that this node dials, with the same limits.
pub(super) fn tune_endpoint(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(HANDSHAKE_TIME_MAX)
        .initial_stream_window_size(LINK_WINDOW_BYTES)
        .initial_connection_window_size(LINK_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .http2_max_local_error_reset_streams(ERROR_RESET_STREAMS_MAX)
        .http2_keep_alive_interval(KEEP_ALIVE_EVERY_ON_LINKS)
        .keep_alive_timeout(KEEP_ALIVE_WAIT)
        .keep_alive_while_idle(true)
}
