//! The FocalPoint service: calls in, answers out.

use std::pin::Pin;

use barid_core::bulletin::BulletinId;
use barid_core::names::Member;
use barid_core::proto;
use futures::stream::Stream;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::caller::Caller;
use super::deliver::Hidden;
use super::errors::Faults;
use super::filter::Filter;
use super::history::Question;
use super::standing::Work;
use super::stored::stored_by;
use super::{Api, errors, methods};
use crate::committer::Kept;
use crate::rpc::focal_point_server::FocalPoint;
use crate::store::{CursorRecord, Entry};

/// Bytes of a subscription's name.
const NAME_BYTES_MAX: usize = 64;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl FocalPoint for Api {
    type PublishStreamStream = Answers<proto::PublishStreamResponse>;
    type SubscribeStream = Answers<proto::SubscribeResponse>;

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
        let open = self.pace.open(&caller.path, &caller.grant.limits, methods::PUBLISH_STREAM.name, Instant::now())?;
        let answers = self.clone().publish_many(caller, &call, open, request.into_inner());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Result<Response<proto::GetResponse>, Status> {
        let (caller, call) = self.begin(request.extensions(), &methods::GET)?;
        let proto::GetRequest { member, id } = request.into_inner();
        let mut faults = Faults::default();
        let owner: Option<Member> = faults.parse("member", &member, "a member code");
        let uuid: Option<BulletinId> = faults.parse("id", &id, "a UUIDv7 in lower case");
        faults.check()?;
        let (Some(owner), Some(uuid)) = (owner, uuid) else { return Err(errors::defect()) };
        // What the caller may not read does not exist for it.
        let hidden = |entry: &Entry| self.hidden(&caller, entry).map(Hidden::reason);
        let found = self.find_for(&caller, methods::GET.name, (&owner, uuid), hidden).await?;
        let entry = found.ok_or_else(|| Status::not_found("no such bulletin is held for you"))?;
        let answer = self.reading_for(&call, move |api| {
            let state = Some(api.state(&caller, &entry)?);
            let own = owner == *api.me();
            let stored = if own { stored_by(api.holders(&entry.feed, entry.index)?) } else { Vec::new() };
            let delivery = api.deliveries(&caller, vec![entry], &mut Work::new(Work::ONE))?.into_iter().next();
            Ok(proto::GetResponse { delivery, state, stored })
        });
        answer.await.map(Response::new)
    }

    async fn subscribe(
        &self,
        request: Request<proto::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        use proto::subscribe_request::Start;
        let (caller, call) = self.begin(request.extensions(), &methods::SUBSCRIBE)?;
        let proto::SubscribeRequest { filter, start } = request.into_inner();
        let mut faults = Faults::default();
        let filter = Filter::read(filter, &mut faults);
        let end = self.store().end_arrival();
        let mut name = None;
        let mut next = end;
        match start {
            None => {}
            Some(Start::After(arrival)) => next = after(arrival, end, "after", &mut faults) + 1,
            Some(Start::Subscription(text)) => name = subscription(&caller, &text, &mut faults),
        }
        faults.check()?;
        let warnings = self.judge_filter(&caller, methods::SUBSCRIBE.name, &filter)?;
        let open = self.pace.open(&caller.path, &caller.grant.limits, methods::SUBSCRIBE.name, Instant::now())?;
        if let Some(name) = name {
            // Remembered at once: what arrives from now on waits for its subscriber.
            next = self.named(&caller, name, methods::SUBSCRIBE.name, end - 1, false).await? + 1;
        }
        Ok(Response::new(Box::pin(self.clone().follow_arrivals(caller, &call, open, (filter, warnings), next))))
    }

    async fn acknowledge(
        &self,
        request: Request<proto::AcknowledgeRequest>,
    ) -> Result<Response<proto::AcknowledgeResponse>, Status> {
        let (caller, _call) = self.begin(request.extensions(), &methods::ACKNOWLEDGE)?;
        let proto::AcknowledgeRequest { subscription: name, arrival } = request.into_inner();
        let mut faults = Faults::default();
        let name = subscription(&caller, &name, &mut faults);
        let arrival = after(arrival, self.store().end_arrival(), "arrival", &mut faults);
        faults.check()?;
        self.named(&caller, name.ok_or_else(errors::defect)?, "FocalPoint.Acknowledge", arrival, true).await?;
        Ok(Response::new(proto::AcknowledgeResponse {}))
    }

    async fn history(
        &self,
        request: Request<proto::HistoryRequest>,
    ) -> Result<Response<proto::HistoryResponse>, Status> {
        let (caller, call) = self.begin(request.extensions(), &methods::HISTORY)?;
        let question = Question::read(request.into_inner(), self.store().end_arrival())?;
        let warnings = self.judge_filter(&caller, methods::HISTORY.name, question.filter())?;
        let page = self.reading_for(&call, move |api| api.page(&caller, &question)).await?;
        Ok(Response::new(proto::HistoryResponse { warnings, ..page }))
    }
}

impl Api {
    /// Where a named subscription stands; one that is new stands at `arrival` from now on, one that is behind if it is to move. It never
    /// moves back: what was taken once was taken.
    async fn named(
        &self,
        caller: &Caller,
        name: String,
        method: &'static str,
        arrival: u64,
        moves: bool,
    ) -> Result<u64, Status> {
        let key = name.clone();
        if let Some(held) = self.reading(move |api| api.store().cursor(&key)).await? {
            if moves && held < arrival {
                self.remember(name, arrival).await?;
            }
            return Ok(held.max(if moves { arrival } else { 0 }));
        }
        // One new name at a time, so that those that come together are counted.
        let _turn = self.naming.lock().await;
        let (key, prefix) = (name.clone(), format!("{}/", caller.path));
        let limits = &caller.grant.limits;
        let names = move |api: &Self| Ok((api.store().cursor(&key)?, api.store().cursors_under(&prefix)?));
        match self.reading(names).await? {
            // Another call was faster.
            (Some(held), _) if !moves || held >= arrival => Ok(held),
            (Some(_), _) => self.remember(name, arrival).await.map(|()| arrival),
            (None, count) if count >= u64::from(limits.subscriptions) => {
                Err(self.pace.too_many_names(&caller.path, limits, method, Instant::now()))
            }
            (None, _) => self.remember(name, arrival).await.map(|()| arrival),
        }
    }

    async fn remember(&self, subscription: String, arrival: u64) -> Result<(), Status> {
        let kept = Kept { cursors: vec![CursorRecord { subscription, arrival }], ..Kept::default() };
        self.committer.keep(kept).await.map_err(|error| errors::commit(&error))
    }
}

/// A cursor, which must be one of this node.
fn after(arrival: u64, end: u64, field: &str, faults: &mut Faults) -> u64 {
    if arrival >= end {
        faults.add(field, &arrival.to_string(), "an arrival of this node");
        return end - 1;
    }
    arrival
}

/// A subscription belongs to its caller.
fn subscription(caller: &Caller, name: &str, faults: &mut Faults) -> Option<String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(fits) {
        faults.add("subscription", name, "1 to 64 letters, digits, `-`, `_` or `.`");
        return None;
    }
    Some(format!("{}/{name}", caller.path))
}
