//! Admits calls before their methods run: the checks that need only the headers.

use std::convert::Infallible;
use std::sync::Arc;

use futures::future::Either;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceExt as _;

use super::progress::Progress;
use super::request::RequestBody;
use super::response::ResponseBody;
use super::{Admission, Call, RESPONSE_WAIT_MAX, Terms, deadline, deadline_exceeded};
use crate::budgets::{Rate, TokenBucket};

/// The methods of a listener, behind its admission. Cheap to clone.
#[derive(Clone)]
pub struct Calls {
    routes: Routes,
    admission: Arc<dyn Admission>,
    denials: Arc<Denials>,
}

/// Rate of denied calls on one connection. Denying a call costs some ten microseconds. A client
/// beyond this rate ignores the responses, and its connection is closed.
const DENIALS: Rate = Rate { per_second: 1_000.0, burst: 10_000.0 };

/// Metadata fields up to which a call's headers are left unchanged: what usual clients send.
const METADATA_FIELDS_MAX: usize = 12;

/// Counts the denied calls of one connection.
pub(super) struct Denials {
    left: Mutex<TokenBucket>,
    flooded: Notify,
}

impl Default for Denials {
    fn default() -> Self {
        Self { left: Mutex::new(TokenBucket::full(DENIALS, Instant::now())), flooded: Notify::new() }
    }
}

impl Denials {
    fn count(&self) {
        if self.left.lock().take(DENIALS, 1.0, Instant::now()).is_err() {
            self.flooded.notify_one();
        }
    }

    /// Returns when the rate is exceeded.
    pub(super) async fn flooded(&self) {
        self.flooded.notified().await;
    }
}

impl Calls {
    /// Serves `routes` behind `admission`.
    #[must_use]
    pub fn new(routes: Routes, admission: Arc<dyn Admission>) -> Self {
        Self { routes: routes.prepare(), admission, denials: Arc::default() }
    }

    /// Returns a copy for one connection, with its own count of denied calls.
    pub(super) fn of_connection(&self) -> (Self, Arc<Denials>) {
        let denials = Arc::default();
        (Self { denials: Arc::clone(&denials), ..self.clone() }, denials)
    }

    fn begin(&self, request: &mut Request<Incoming>) -> Result<(Terms, Option<Instant>), Box<Response<Body>>> {
        if request.method() != Method::POST {
            return Err(plain(StatusCode::METHOD_NOT_ALLOWED));
        }
        if !is_grpc(request.headers()) {
            return Err(plain(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        let timeout = deadline::timeout(request.headers()).map_err(denied)?;
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(denied(deadline_exceeded("DEADLINE", "the timeout of the call is zero")));
        }
        let path = request.uri().path().to_owned();
        let terms = self.admission.admit(&path, request.extensions_mut()).map_err(denied)?;
        Ok((terms, timeout.and_then(|timeout| Instant::now().checked_add(timeout))))
    }
}

/// A response without a gRPC status: the client does not speak gRPC.
fn plain(status: StatusCode) -> Box<Response<Body>> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    Box::new(response)
}

fn denied(status: Status) -> Box<Response<Body>> {
    Box::new(status.into_http())
}

/// Returns whether the content type is `application/grpc` or `application/grpc+proto`, the one
/// encoding supported here. Parameters may follow.
fn is_grpc(headers: &HeaderMap<HeaderValue>) -> bool {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(one), None) = (values.next(), values.next()) else { return false };
    let media = one.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    ["application/grpc", "application/grpc+proto"].iter().any(|known| media.eq_ignore_ascii_case(known))
}

impl Calls {
    /// Handles one call.
    pub(super) fn call(
        &self,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Body>, Infallible>> + Send + use<> {
        let (terms, deadline) = match self.begin(&mut request) {
            Ok(begun) => begun,
            Err(response) => {
                self.denials.count();
                // The body is dropped unread.
                return Either::Left(std::future::ready(Ok(*response)));
            }
        };
        let routes = self.routes.clone();
        // Boxed, because the future is moved several times before it runs.
        Either::Right(Box::pin(async move {
            let progress = Progress::current();
            let (bytes_max, one_request, response_bytes) =
                (terms.request_bytes_max, terms.one_request, terms.response_bytes);
            let call = Call::new(terms);
            if let Some(progress) = &progress {
                progress.watch(deadline, call.clone());
            }
            let handled = handle(routes, request, &call, (bytes_max, one_request), response_bytes);
            let response = match deadline {
                None => handled.await,
                Some(at) => tokio::time::timeout_at(at, handled)
                    .await
                    .unwrap_or_else(|_| Err(deadline_exceeded("DEADLINE", "the deadline of the call has passed"))),
            };
            if one_request {
                // The request has been handled, although the response may not have been read yet.
                call.0.received.lock().clear();
            }
            let response = response.unwrap_or_else(Status::into_http);
            Ok(response.map(|body| Body::new(ResponseBody::new(body, call, progress, deadline))))
        }))
    }
}

async fn handle(
    routes: Routes,
    request: Request<Incoming>,
    call: &Call,
    (bytes_max, one_request): (usize, bool),
    response_bytes: u64,
) -> Result<Response<Body>, Status> {
    if response_bytes > 0 {
        match tokio::time::timeout(RESPONSE_WAIT_MAX, call.charge_response(response_bytes)).await {
            Ok(charge) => call.attach(charge),
            // Fails with the bound that has no room.
            Err(_) => call.grow_response(response_bytes)?,
        }
    }
    let (mut parts, body) = request.into_parts();
    // No method reads other metadata, so large metadata does not stay in memory during the call.
    if parts.headers.len() > METADATA_FIELDS_MAX {
        let forwarded = [header::CONTENT_TYPE, header::TE, header::HeaderName::from_static("grpc-encoding")];
        let headers = std::mem::take(&mut parts.headers);
        parts.headers.extend(forwarded.into_iter().filter_map(|name| Some((name.clone(), headers.get(name)?.clone()))));
    }
    parts.extensions.insert(call.clone());
    let body = RequestBody::new(body, call.clone(), bytes_max, one_request);
    let request = Request::from_parts(parts, body);
    match routes.oneshot(request).await {
        Ok(response) => Ok(response),
        Err(never) => match never {},
    }
}
