//! What connections may cost: every bound of the transport, with its reason.

use std::time::Duration;

use hyper::server::conn::http2;
use tonic::transport::Endpoint;

/// Longest for TCP and the handshake together; a satellite link needs some seconds.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// Accepted connections that wait for tonic, which takes each at once.
pub(super) const ACCEPTED_MAX: usize = 64;
/// Flow-control windows of a link and of its connection: a batch of 1 MiB, and what comes behind it, on a line of 100 ms at 10 MB/s. With the
/// bound of connections they bound what all peers can make this node hold unread.
const LINK_WINDOW_BYTES: u32 = 1 << 20;
/// The same for one call of a person or system: hundreds of drafts on their way, and 10 MB/s on a line of 50 ms.
const CALL_WINDOW_BYTES: u32 = 512 << 10;
/// Of a connection of theirs: a stream that is not read for now leaves something to the others.
const CALLS_WINDOW_BYTES: u32 = 640 << 10;
/// Encoded bytes of one stream that HTTP/2 takes before they can be sent: what is beyond stays with the response, which is charged.
const SEND_BUFFER_BYTES_MAX: usize = 64 << 10;
/// Largest HTTP/2 frame taken: a batch of 1 MiB comes in few of them, and a short call on the same connection does not wait long.
const FRAME_BYTES_MAX: u32 = 64 << 10;
/// Largest list of header fields taken: a call's path and metadata are below 1 KiB, the details of a refusal below 16 KiB.
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
/// Streams that a caller may open and reset before they were looked at: it costs nothing to reset, so more is an attack
/// (CVE-2023-44487).
const RESET_STREAMS_PENDING_MAX: usize = 20;
/// Streams that this node may have to reset for a caller's faults before it gives the connection up.
const ERROR_RESET_STREAMS_MAX: usize = 256;
/// How often a quiet connection is asked for a sign of life.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
/// The same between nodes, whose lines may be thin and stay open for months: some hundred bytes, both ways, and only where nothing else was heard.
const KEEP_ALIVE_EVERY_ON_LINKS: Duration = Duration::from_secs(40);
/// How long that sign may take. Both together are how long a dead peer is believed in.
const KEEP_ALIVE_WAIT: Duration = Duration::from_secs(20);

/// What one listener carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Handshakes under way at once at each stage, and four times as many connections that have said nothing yet. One more, and one of the
    /// address that has most of them is dropped, whichever chance picks: strangers who keep handshakes open cannot keep others out.
    pub handshakes_max: usize,
    /// Longest for one handshake.
    pub handshake_time_max: Duration,
    /// Open connections from one address, an IPv6 network of 64 bits being one; operators' are not counted.
    pub per_source_max: usize,
    /// Flow-control window of one stream, in bytes.
    pub stream_window_bytes: u32,
    /// Flow-control window of a connection: it bounds what a caller can make this node hold unread.
    pub connection_window_bytes: u32,
    /// Streams under way on one connection; further calls wait at the caller.
    pub streams_max: u32,
    /// How often a quiet connection is asked for a sign of life.
    pub keep_alive_every: Duration,
    /// How long that sign may take.
    pub keep_alive_wait: Duration,
}

impl Limits {
    /// For peers: some hundred members, of which each needs one link, two while it replaces one, and more for those that broke and
    /// are not noticed yet; several behind one address where they share a machine.
    pub const EXCHANGE: Self = Self {
        handshakes_max: 128,
        handshake_time_max: HANDSHAKE_TIME_MAX,
        per_source_max: 128,
        stream_window_bytes: LINK_WINDOW_BYTES,
        connection_window_bytes: LINK_WINDOW_BYTES,
        // One link; reflection and health checks beside it.
        streams_max: 16,
        keep_alive_every: KEEP_ALIVE_EVERY_ON_LINKS,
        keep_alive_wait: KEEP_ALIVE_WAIT,
    };
    /// For a member's own people and systems: hundreds of posts, often behind one proxy; a system opens a connection for each of its
    /// workers.
    pub const API: Self = Self {
        handshakes_max: 128,
        handshake_time_max: HANDSHAKE_TIME_MAX,
        per_source_max: 512,
        stream_window_bytes: CALL_WINDOW_BYTES,
        connection_window_bytes: CALLS_WINDOW_BYTES,
        // As many calls as one commit can hold entries.
        streams_max: 1_024,
        keep_alive_every: KEEP_ALIVE_EVERY,
        keep_alive_wait: KEEP_ALIVE_WAIT,
    };

    /// HTTP/2 within these limits: bounds on what a caller can make this node hold, and signs of life.
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

/// The same for a connection that this node dials.
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
