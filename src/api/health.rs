//! gRPC health, per its protocol: a watch of an unknown service reports SERVICE_UNKNOWN and
//! continues, so that it sees the service once it is known.

use std::pin::Pin;
use std::time::Duration;

use futures::stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_health::server::{HealthReporter, HealthService};

/// How often an unknown service is looked up again. All services are known some milliseconds after
/// the start.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Returns the health service and the reporter that sets its statuses.
pub(super) fn service() -> (HealthReporter, HealthServer<HealthWatch>) {
    let reporter = HealthReporter::new();
    (reporter.clone(), HealthServer::new(HealthWatch { reporter }))
}

pub(super) struct HealthWatch {
    reporter: HealthReporter,
}

impl HealthWatch {
    fn inner(&self) -> HealthService {
        HealthService::from_health_reporter(self.reporter.clone())
    }
}

#[tonic::async_trait]
impl Health for HealthWatch {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        self.inner().check(request).await
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (inner, request) = (self.inner(), request.into_inner());
        let stream = async_stream::stream! {
            let mut sent_unknown = false;
            loop {
                match inner.watch(Request::new(request.clone())).await {
                    Ok(updates) => {
                        let mut updates = updates.into_inner();
                        while let Some(status) = updates.next().await {
                            yield status;
                        }
                        return;
                    }
                    Err(status) if status.code() == Code::NotFound => {
                        if !std::mem::replace(&mut sent_unknown, true) {
                            yield Ok(HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() });
                        }
                        tokio::time::sleep(POLL_INTERVAL).await;
                    }
                    Err(status) => {
                        yield Err(status);
                        return;
                    }
                }
            }
        };
        Ok(Response::new(Box::pin(stream)))
    }
}
