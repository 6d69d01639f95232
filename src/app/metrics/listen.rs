//! The metrics listener: plain HTTP/1.1 with one resource, `/metrics`.
//!
//! There is no authentication: anyone who can connect reads the metrics. So it listens on this
//! machine only, unless the configuration declares that other means keep strangers out.
//! Connections, and size and time of a request, are bounded.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::MetricsSource;
use super::negotiate::{self, Hosts};
use crate::app::AppError;
use crate::config::MetricsText;
use crate::telemetry::{AuditEvent, audit};

/// Most connections: a monitoring system, its standby, and a person.
const CONNECTIONS_MAX: usize = 8;
/// Time limit of a connection, from its request to the last byte of the response.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
/// Largest head of a request.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// Opens the listener.
///
/// # Errors
/// If the address is not available, or is reachable from other machines without the permission of
/// the configuration.
pub(in crate::app) async fn bind(metrics: &MetricsText) -> Result<TcpListener, AppError> {
    let listen = |source| AppError::Listen { address: metrics.listen.clone(), source };
    let tcp = TcpListener::bind(&metrics.listen).await.map_err(listen)?;
    let address = tcp.local_addr().map_err(listen)?;
    if !address.ip().is_loopback() && !metrics.allow_non_loopback {
        return Err(AppError::MetricsNonLoopback(address.to_string()));
    }
    Ok(tcp)
}

/// Serves requests until it is dropped.
pub(in crate::app) async fn serve(tcp: TcpListener, metrics: MetricsText, source: MetricsSource) {
    let hosts = Arc::new(Hosts::new(&metrics.listen, &metrics.hosts));
    let open = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&open).acquire_owned().await else { return };
        let (stream, from) = match tcp.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                let (event, reason) = ("connection-rejected", "accept-failed");
                audit(&AuditEvent { event, reason, actor: &"", resource: &"metrics", detail: &error });
                // Too many files are open: pause before accepting again.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (source, hosts) = (source.clone(), Arc::clone(&hosts));
        tokio::spawn(async move {
            if tokio::time::timeout(CONNECTION_MAX, handle_connection(stream, hosts, source)).await.is_err() {
                tracing::debug!(%from, "a metrics connection timed out");
            }
            drop(permit);
        });
    }
}

async fn handle_connection(stream: TcpStream, hosts: Arc<Hosts>, source: MetricsSource) {
    let local_address = stream.local_addr().ok().map(|address| address.ip());
    let service = service_fn(|request: Request<Incoming>| {
        let allowed = hosts.allow(request.headers(), local_address);
        respond(request, allowed, source.clone())
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(CONNECTION_MAX).max_buf_size(HEAD_BYTES_MAX).keep_alive(false);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a metrics connection failed");
    }
}

async fn respond(
    request: Request<Incoming>,
    allowed: bool,
    source: MetricsSource,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if !allowed {
        let text = "host not allowed: use localhost or the configured address, or list the name in metrics.hosts\n";
        return Ok(plain(StatusCode::MISDIRECTED_REQUEST, text));
    }
    if request.uri().path() != "/metrics" {
        return Ok(plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n"));
    }
    if request.method() != Method::GET {
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed\n"));
    }
    let gathered = tokio::task::spawn_blocking(move || source.text()).await;
    let Ok(text) = gathered else {
        return Ok(plain(StatusCode::INTERNAL_SERVER_ERROR, "internal error of the node\n"));
    };
    let (text, media) = if negotiate::wants_openmetrics(request.headers()) {
        (text, negotiate::OPENMETRICS)
    } else {
        (negotiate::plain(&text), negotiate::PLAIN)
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media));
    response.headers_mut().insert(header::VARY, header::HeaderValue::from_static("accept"));
    Ok(response)
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}

/// Returns the bound address, for the log.
pub(in crate::app) fn address(tcp: &TcpListener) -> Option<SocketAddr> {
    tcp.local_addr().ok()
}
