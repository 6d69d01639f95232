//! The FocalPoint service: admits each call, parses its request and builds the response. Out of
//! scope: the work behind each call (`publish`, `subscribe`, `history`, `subscriptions`).

use std::pin::Pin;

use barid_core::bulletin::BulletinId;
use barid_core::bulletin::field::Report;
use barid_core::ids::Member;
use barid_core::proto;
use futures::stream::Stream;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::bulletin_state::Work;
use super::history::HistoryQuery;
use super::stored_wait::stored_by;
use super::subscriptions::Opening;
use super::visibility::NotVisible;
use super::{Api, errors, methods};
use crate::rpc::focal_point_server::FocalPoint;
use crate::store::Entry;

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl FocalPoint for Api {
    type PublishStreamStream = ResponseStream<proto::PublishStreamResponse>;
    type SubscribeStream = ResponseStream<proto::SubscribeResponse>;

    async fn publish(
        &self,
        request: Request<proto::PublishRequest>,
    ) -> Result<Response<proto::PublishResponse>, Status> {
        let (caller, _call) = self.begin(request.extensions(), &methods::PUBLISH)?;
        self.publish_one(&caller, request.into_inner()).await.map(Response::new)
    }

    async fn publish_stream(
        &self,
        request: Request<Streaming<proto::PublishStreamRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let (caller, call) = self.begin(request.extensions(), &methods::PUBLISH_STREAM)?;
        let open =
            self.call_limiter.open(&caller.path, &caller.grant.limits, methods::PUBLISH_STREAM.name, Instant::now())?;
        let responses = self.clone().publish_many(caller, &call, open, request.into_inner());
        Ok(Response::new(Box::pin(responses)))
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Result<Response<proto::GetResponse>, Status> {
        let (caller, call) = self.begin(request.extensions(), &methods::GET)?;
        let proto::GetRequest { member, id } = request.into_inner();
        let mut report = Report::default();
        let owner: Option<Member> = report.parse("member", &member);
        let uuid: Option<BulletinId> = report.parse("id", &id);
        errors::check(report)?;
        let (Some(owner), Some(uuid)) = (owner, uuid) else { return Err(errors::defect()) };
        // To the caller, a bulletin that is not visible does not exist.
        let not_visible = |entry: &Entry| self.not_visible(&caller, entry).map(NotVisible::reason);
        let found = self.find_for(&caller, methods::GET.name, (&owner, uuid), not_visible).await?;
        let entry = found.ok_or_else(|| Status::not_found("no such bulletin that you may read is held here"))?;
        let response = self.reading_for(&call, false, move |api| {
            let state = Some(api.state(&caller, &entry)?);
            let own = owner == *api.me();
            let stored = if own { stored_by(api.holders(&entry.feed, entry.index)?) } else { Vec::new() };
            let delivery = api.deliveries(&caller, vec![entry], &mut Work::new(Work::ONE))?.into_iter().next();
            Ok(proto::GetResponse { delivery, state, stored })
        });
        response.await.map(Response::new)
    }

    async fn subscribe(
        &self,
        request: Request<proto::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (caller, call) = self.begin(request.extensions(), &methods::SUBSCRIBE)?;
        let opening = Opening::read(&caller, request.into_inner())?;
        let warnings = self.check_filter(&caller, methods::SUBSCRIBE.name, &opening.filter)?;
        let open =
            self.call_limiter.open(&caller.path, &caller.grant.limits, methods::SUBSCRIBE.name, Instant::now())?;
        let opened = self.open(&caller, &opening).await?;
        let events = self.clone().stream_events(caller, &call, open, (opening.filter, warnings), opened).await?;
        Ok(Response::new(Box::pin(events)))
    }

    async fn acknowledge(
        &self,
        request: Request<proto::AcknowledgeRequest>,
    ) -> Result<Response<proto::AcknowledgeResponse>, Status> {
        let (caller, _call) = self.begin(request.extensions(), &methods::ACKNOWLEDGE)?;
        self.acknowledge_named(&caller, request.into_inner()).await?;
        Ok(Response::new(proto::AcknowledgeResponse {}))
    }

    async fn list_subscriptions(
        &self,
        request: Request<proto::ListSubscriptionsRequest>,
    ) -> Result<Response<proto::ListSubscriptionsResponse>, Status> {
        let (caller, _call) = self.begin(request.extensions(), &methods::LIST_SUBSCRIPTIONS)?;
        self.list(&caller, request.into_inner()).map(Response::new)
    }

    async fn delete_subscription(
        &self,
        request: Request<proto::DeleteSubscriptionRequest>,
    ) -> Result<Response<proto::DeleteSubscriptionResponse>, Status> {
        let (caller, _call) = self.begin(request.extensions(), &methods::DELETE_SUBSCRIPTION)?;
        self.delete(&caller, request.into_inner()).await?;
        Ok(Response::new(proto::DeleteSubscriptionResponse {}))
    }

    async fn history(
        &self,
        request: Request<proto::HistoryRequest>,
    ) -> Result<Response<proto::HistoryResponse>, Status> {
        let (caller, call) = self.begin(request.extensions(), &methods::HISTORY)?;
        let query = HistoryQuery::read(request.into_inner(), self.store().end_offset())?;
        let warnings = self.check_filter(&caller, methods::HISTORY.name, query.filter())?;
        let page =
            self.reading_for(&call, true, move |api| Ok((query.check(&**api.store()), api.page(&caller, &query)?)));
        let (checked, page) = page.await?;
        checked?;
        Ok(Response::new(proto::HistoryResponse { warnings, ..page }))
    }
}
