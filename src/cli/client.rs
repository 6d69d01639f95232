//! Connects to the own member's node with the identity in the profile.
//!
//! In scope: the API calls with their limits and timeouts, and conversion of errors to [`Failure`].
//! Out of scope: TLS and identities (`tls`); retries, which each command makes in its own way.

use std::time::Duration;

use barid_core::limits::{EVIDENCE_BYTES_MAX, MESSAGE_BYTES_MAX};
use barid_core::proto;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::client_certificate::{self, OwnCertificate};
use super::tls::{self, NodeConnector};
use super::{Failure, Profile, deadline};
use crate::rpc::audit_client::AuditClient;
use crate::rpc::focal_point_client::FocalPointClient;
use crate::rpc::operator_client::OperatorClient;

/// Largest page of history. A hundred envelopes of the largest size would not fit in one message;
/// the node then sends fewer.
const PAGE_BYTES_MAX: usize = 16 * MESSAGE_BYTES_MAX;

/// A connection to the node. It connects with the first call, and again after a loss.
#[derive(Clone)]
pub(super) struct Client {
    channel: Channel,
    connector: NodeConnector,
    own: Option<OwnCertificate>,
    /// Longest time for one response; connecting has the same limit.
    timeout: Duration,
}

impl Client {
    /// Prepares a connection to the profile's node. The network is not used yet.
    ///
    /// # Errors
    /// Returns an error if the certificate, key or authority cannot be used.
    pub(super) fn open(profile: &Profile) -> Result<Self, Failure> {
        Self::with_timeout(profile, tls::CONNECT_TIMEOUT)
            .map(|client| Self { timeout: Duration::from_secs(deadline::SECONDS), ..client })
    }

    /// As [`Client::open`], with this time limit for connecting and for each response.
    pub(super) fn with_timeout(profile: &Profile, timeout: Duration) -> Result<Self, Failure> {
        let connector = NodeConnector::of(profile, timeout)?;
        Ok(Self { channel: connector.channel()?, connector, own: OwnCertificate::read(profile), timeout })
    }

    /// Returns the response, or the failure that explains why there is none.
    async fn unwrap_or_explain<T>(&self, response: Result<Response<T>, Status>) -> Result<T, Failure> {
        match response {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(client_certificate::explained(&status, self.own.as_ref(), &self.connector).await),
        }
    }

    /// Calls FocalPoint.Publish; `timeout` bounds the whole call.
    pub(super) async fn publish(
        &self,
        request: proto::PublishRequest,
        timeout: Duration,
    ) -> Result<proto::PublishResponse, Failure> {
        self.unwrap_or_explain(self.focal_point().publish(within(timeout, request)).await).await
    }

    /// Calls FocalPoint.Subscribe; its duration is not bounded.
    pub(super) async fn subscribe(
        &self,
        request: proto::SubscribeRequest,
    ) -> Result<Streaming<proto::SubscribeResponse>, Failure> {
        let response = self.focal_point().subscribe(request).await;
        self.unwrap_or_explain(response).await.map_err(Failure::of_reading)
    }

    /// Calls FocalPoint.Acknowledge.
    pub(super) async fn acknowledge(&self, request: proto::AcknowledgeRequest) -> Result<(), Failure> {
        self.unwrap_or_explain(self.focal_point().acknowledge(within(self.timeout, request)).await).await.map(|_| ())
    }

    /// Calls FocalPoint.ListSubscriptions.
    pub(super) async fn list_subscriptions(
        &self,
        request: proto::ListSubscriptionsRequest,
    ) -> Result<proto::ListSubscriptionsResponse, Failure> {
        self.unwrap_or_explain(self.focal_point().list_subscriptions(within(self.timeout, request)).await).await
    }

    /// Calls FocalPoint.DeleteSubscription.
    pub(super) async fn delete_subscription(&self, request: proto::DeleteSubscriptionRequest) -> Result<(), Failure> {
        self.unwrap_or_explain(self.focal_point().delete_subscription(within(self.timeout, request)).await)
            .await
            .map(|_| ())
    }

    /// Calls FocalPoint.Get.
    pub(super) async fn get(&self, request: proto::GetRequest) -> Result<proto::GetResponse, Failure> {
        self.unwrap_or_explain(self.focal_point().get(within(self.timeout, request)).await).await
    }

    /// Calls FocalPoint.History.
    pub(super) async fn history(&self, request: proto::HistoryRequest) -> Result<proto::HistoryResponse, Failure> {
        let mut client = self.focal_point().max_decoding_message_size(PAGE_BYTES_MAX);
        let response = client.history(within(self.timeout, request)).await;
        self.unwrap_or_explain(response).await.map_err(Failure::of_reading)
    }

    /// Calls Audit.ExportEvidence. Returns the summary and the whole file.
    pub(super) async fn export_evidence(
        &self,
        request: proto::ExportEvidenceRequest,
    ) -> Result<(proto::EvidenceSummary, Vec<u8>), Failure> {
        let mut client = AuditClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut pieces = self.unwrap_or_explain(client.export_evidence(within(self.timeout, request)).await).await?;
        let (mut summary, mut file) = (proto::EvidenceSummary::default(), Vec::new());
        // The time limit is for each piece, not for the file: a large file may take long on a slow
        // link.
        let late = |_| Failure::from_status(&tonic::Status::deadline_exceeded(""));
        while let Some(piece) = tokio::time::timeout(self.timeout, pieces.message()).await.map_err(late)?? {
            summary = piece.summary.unwrap_or(summary);
            file.extend_from_slice(&piece.piece);
            if file.len() > EVIDENCE_BYTES_MAX {
                return Err(Failure::new("node-failed").cause(format!("it sent more than {EVIDENCE_BYTES_MAX} bytes")));
            }
        }
        if file.is_empty() || file.len() as u64 != summary.size {
            let cause = format!("it sent {} of {} bytes", file.len(), summary.size);
            return Err(Failure::new("node-failed").cause(cause));
        }
        Ok((summary, file))
    }

    /// Calls Operator.GetForks: the feeds with a proven equivocation.
    pub(super) async fn forks(&self) -> Result<Vec<proto::Fork>, Failure> {
        let mut client = OperatorClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let response = client.get_forks(within(self.timeout, proto::GetForksRequest {})).await;
        Ok(self.unwrap_or_explain(response).await?.forks)
    }

    /// Calls Operator.ResumeFeed: the node follows a forked feed again.
    pub(super) async fn resume_feed(&self, feed: &str) -> Result<(), Failure> {
        let request = proto::ResumeFeedRequest { feed: feed.to_owned() };
        let response = OperatorClient::new(self.channel.clone()).resume_feed(within(self.timeout, request)).await;
        self.unwrap_or_explain(response).await.map(|_| ())
    }

    /// Calls Operator.GetStatus.
    pub(super) async fn status(&self) -> Result<proto::GetStatusResponse, Failure> {
        let mut client = OperatorClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        self.unwrap_or_explain(client.get_status(within(self.timeout, proto::GetStatusRequest {})).await).await
    }

    /// Calls grpc.health.v1.Health.Check; `timeout` bounds the whole call.
    pub(super) async fn health(&self, service: &str, timeout: Duration) -> Result<ServingStatus, Failure> {
        let request = HealthCheckRequest { service: service.to_owned() };
        let response = HealthClient::new(self.channel.clone()).check(within(timeout, request)).await;
        Ok(self.unwrap_or_explain(response).await?.status())
    }

    fn focal_point(&self) -> FocalPointClient<Channel> {
        FocalPointClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

fn within<T>(timeout: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}
