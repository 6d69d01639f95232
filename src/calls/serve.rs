//! Serves HTTP/2 over verified connections, and supervises each stream from outside.
//!
//! In scope: accepting connections, tracking active streams of each connection, graceful shutdown.
//! Out of scope: the bounds of HTTP/2 (`transport::Limits`).

use std::future::Future;
use std::io;
use std::pin::pin;

use futures::stream::{Stream, StreamExt as _};
use http::Request;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Calls;
use super::progress::supervised;
use crate::transport::{Activity, Limits, Served};

/// Runs the streams of one connection.
#[derive(Clone)]
struct Streams(Activity);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let active = self.0.begin();
        tokio::spawn(async move {
            supervised(stream).await;
            drop(active);
        });
    }
}

/// Serves calls on every accepted connection until `stop` completes. Then lets calls in progress
/// end, and returns when all connections are closed. Dropping the future closes them at once.
pub async fn serve<C: Served>(
    incoming: impl Stream<Item = io::Result<C>>,
    calls: Calls,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    let stopping = watch::Sender::new(false);
    let mut connections = JoinSet::new();
    {
        let (mut incoming, mut stop, mut more) = (pin!(incoming), pin!(stop), true);
        // After the listener has ended, existing connections are served to their end.
        while more || !connections.is_empty() {
            tokio::select! {
                () = &mut stop => break,
                accepted = incoming.next(), if more => match accepted {
                    Some(Ok(connection)) => {
                        connections.spawn(serve_one(connection, calls.clone(), limits, stopping.subscribe()));
                    }
                    Some(Err(error)) => tracing::debug!(%error, "a connection was not accepted"),
                    None => more = false,
                },
                // Removes connections that have ended.
                Some(_) = connections.join_next() => {}
            }
        }
    }
    stopping.send_replace(true);
    while connections.join_next().await.is_some() {}
}

async fn serve_one<C: Served>(connection: C, calls: Calls, limits: Limits, mut stopping: watch::Receiver<bool>) {
    let mut known = http::Extensions::new();
    connection.describe(&mut known);
    let mut http = http2::Builder::new(Streams(connection.activity()));
    http.timer(TokioTimer::new());
    limits.tune(&mut http);
    let (calls, denials) = calls.of_connection();
    let flooded = connection.on_flood();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().extend(known.clone());
        calls.call(request)
    });
    let mut serving = pin!(http.serve_connection(TokioIo::new(connection), service));
    let stopped = async move {
        // A closed channel also means stop.
        _ = stopping.wait_for(|stop| *stop).await;
    };
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = denials.flooded() => {
            flooded();
            return;
        }
        () = stopped => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection ended");
    }
}
