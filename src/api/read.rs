//! The FocalPoint service: calls in, answers out.

use std::pin::Pin;
use std::sync::Arc;

use barid_core::bulletin::BulletinId;
use barid_core::bulletin::state::{Position, Standing, Successor, acknowledges};
use barid_core::bulletin::times::Time;
use barid_core::names::{Digest, Member};
use barid_core::proto;
use bytes::Bytes;
use futures::stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::caller::Caller;
use super::publish::now_unix_ms;
use super::stored::stored_by;
use super::subscribe::Filter;
use super::{Api, errors};
use crate::access::Role;
use crate::committer::Kept;
use crate::rpc::focal_point_server::FocalPoint;
use crate::store::{Columns, Content, CursorRecord, Entry};

/// Entries a page of history has if the caller does not say, and at most.
const PAGE: (usize, usize) = (50, 1_000);
/// Arrivals that one call looks at before it answers with what it has and where to go on.
const SCAN_MAX: u64 = 200_000;
/// Bytes of a subscription's name.
const NAME_BYTES_MAX: usize = 64;

const READERS: [Role; 2] = [Role::FocalPoint, Role::Agency];

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl FocalPoint for Api {
    type PublishStreamStream = Answers<proto::PublishStreamResponse>;
    type SubscribeStream = Answers<proto::SubscribeResponse>;

    async fn publish(
        &self,
        request: Request<proto::PublishRequest>,
    ) -> Result<Response<proto::PublishResponse>, Status> {
        let caller = self.caller(request.extensions(), &[Role::FocalPoint], "FocalPoint.Publish")?;
        self.publish_one(&caller, request.into_inner()).await.map(Response::new)
    }

    async fn publish_stream(
        &self,
        request: Request<Streaming<proto::PublishStreamRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let caller = self.caller(request.extensions(), &[Role::FocalPoint], "FocalPoint.PublishStream")?;
        let answers = self.clone().publish_many(caller, request.into_inner());
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Result<Response<proto::GetResponse>, Status> {
        let caller = self.caller(request.extensions(), &READERS, "FocalPoint.Get")?;
        let proto::GetRequest { member, id } = request.into_inner();
        let owner: Member = member.parse().map_err(|_| errors::argument("member", &member, "a member code"))?;
        let uuid: BulletinId = id.parse().map_err(|_| errors::argument("id", &id, "a UUIDv7 in lower case"))?;
        // What the caller may not read does not exist for it.
        let missing = || Status::not_found(format!("no bulletin {member}/{id} is held for you"));
        let entry =
            self.find(&owner, uuid).await?.filter(|entry| self.may_deliver(&caller, entry)).ok_or_else(missing)?;
        let state = self.state(&caller, &entry).await?;
        let stored = if owner == *self.me() { stored_by(self.holders(entry.index).await?) } else { Vec::new() };
        Ok(Response::new(proto::GetResponse { delivery: Some(self.delivery_of(entry)), state: Some(state), stored }))
    }

    async fn subscribe(
        &self,
        request: Request<proto::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        use proto::subscribe_request::Start;
        let caller = self.caller(request.extensions(), &READERS, "FocalPoint.Subscribe")?;
        let proto::SubscribeRequest { filter, start } = request.into_inner();
        let filter = Filter::read(filter)?;
        let end = self.store().end_arrival();
        let next = match start {
            None => end,
            Some(Start::After(arrival)) if arrival >= end => {
                return Err(errors::argument("after", &arrival.to_string(), "an arrival of this node"));
            }
            Some(Start::After(arrival)) => arrival + 1,
            Some(Start::Subscription(name)) => {
                let key = subscription(&caller, &name)?;
                let store = Arc::clone(self.store());
                let key_read = key.clone();
                let read = tokio::task::spawn_blocking(move || store.cursor(&key_read)).await;
                let held = read
                    .map_err(|_| Status::internal("a defect of the node"))?
                    .map_err(|error| errors::read(&error))?;
                match held {
                    Some(arrival) => arrival + 1,
                    None => {
                        // Remembered at once: what arrives from now on waits for its subscriber.
                        self.remember(key, end - 1).await?;
                        end
                    }
                }
            }
        };
        let answers = self.clone().follow_arrivals(caller, filter, next);
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn acknowledge(
        &self,
        request: Request<proto::AcknowledgeRequest>,
    ) -> Result<Response<proto::AcknowledgeResponse>, Status> {
        let caller = self.caller(request.extensions(), &READERS, "FocalPoint.Acknowledge")?;
        let proto::AcknowledgeRequest { subscription: name, arrival } = request.into_inner();
        if arrival >= self.store().end_arrival() {
            return Err(errors::argument("arrival", &arrival.to_string(), "an arrival of this node"));
        }
        self.remember(subscription(&caller, &name)?, arrival).await?;
        Ok(Response::new(proto::AcknowledgeResponse {}))
    }

    async fn history(
        &self,
        request: Request<proto::HistoryRequest>,
    ) -> Result<Response<proto::HistoryResponse>, Status> {
        let caller = self.caller(request.extensions(), &READERS, "FocalPoint.History")?;
        let proto::HistoryRequest { filter, since, until, page_size, page_token } = request.into_inner();
        let filter = Filter::read(filter)?;
        let ms = |field: &str, at: Option<pbjson_types::Timestamp>| {
            let read = |at: &pbjson_types::Timestamp| {
                Time::from_proto(at).map(Time::unix_ms).ok_or_else(|| errors::argument(field, "", "a time"))
            };
            at.as_ref().map(read).transpose()
        };
        let (since, until) = (ms("since", since)?, ms("until", until)?);
        let page = if page_size == 0 { PAGE.0 } else { (page_size as usize).min(PAGE.1) };
        let before = match page_token.as_str() {
            "" => self.store().end_arrival(),
            token => token.parse().map_err(|_| errors::argument("page_token", token, "the token of a page before"))?,
        };
        let wanted = move |columns: &Columns| {
            let at = columns.sent_at_unix_ms;
            filter.wants_columns(columns)
                && since.is_none_or(|since| i128::from(at) >= i128::from(since))
                && until.is_none_or(|until| i128::from(at) <= i128::from(until))
        };
        let store = Arc::clone(self.store());
        let read = tokio::task::spawn_blocking(move || store.history(before, page, SCAN_MAX, &wanted)).await;
        let (entries, next) =
            read.map_err(|_| Status::internal("a defect of the node"))?.map_err(|error| errors::read(&error))?;
        let visible = entries.into_iter().filter(|entry| self.may_deliver(&caller, entry));
        Ok(Response::new(proto::HistoryResponse {
            deliveries: visible.map(|entry| self.delivery_of(entry)).collect(),
            next_page_token: next.map(|before| before.to_string()).unwrap_or_default(),
        }))
    }
}

impl Api {
    async fn remember(&self, subscription: String, arrival: u64) -> Result<(), Status> {
        let kept = Kept { cursors: vec![CursorRecord { subscription, arrival }], ..Kept::default() };
        self.committer.keep(kept).await.map_err(|error| errors::commit(&error))
    }

    /// What became of a bulletin, by the updates, cancellations and acknowledgements that have arrived here on its topic.
    async fn state(&self, caller: &Caller, entry: &Entry) -> Result<proto::State, Status> {
        let Content::Disclosed { header: Some(original), .. } = &entry.content else {
            return Ok(proto::State::default());
        };
        let topic = original.topic.clone();
        let wanted = move |columns: &Columns| columns.topic == topic;
        let (store, before) = (Arc::clone(self.store()), self.store().end_arrival());
        let read = tokio::task::spawn_blocking(move || store.history(before, usize::MAX, SCAN_MAX, &wanted)).await;
        let (others, _) =
            read.map_err(|_| Status::internal("a defect of the node"))?.map_err(|error| errors::read(&error))?;
        let mut standing = Standing::default();
        let mut acknowledged_by = Vec::new();
        for other in others.iter().filter(|other| self.may_deliver(caller, other)) {
            let Content::Disclosed { envelope, header: Some(header) } = &other.content else { continue };
            let position = Position { epoch: other.feed.epoch, index: other.index };
            if let Some(successor) = Successor::of(original, &entry.digest, envelope, position) {
                standing.add(successor);
            } else if acknowledges(header, original, &entry.digest) {
                acknowledged_by.push(reference(&header.member, &header.id, &other.digest));
            }
        }
        let expires = original.expires.as_ref().and_then(Time::from_proto);
        let state = standing.state(expires, Time::from_unix_ms(now_unix_ms()));
        Ok(proto::State {
            state: state.word().into(),
            by: state.by().map(barid_core::bulletin::header::Reference::to_proto),
            acknowledged_by,
        })
    }
}

fn reference(member: &str, id: &str, digest: &Digest) -> proto::Reference {
    proto::Reference { member: member.into(), id: id.into(), digest: Bytes::copy_from_slice(&digest.0) }
}

/// A subscription belongs to its caller.
fn subscription(caller: &Caller, name: &str) -> Result<String, Status> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(fits) {
        return Err(errors::argument("subscription", name, "1 to 64 letters, digits, `-`, `_` or `.`"));
    }
    Ok(format!("{}/{name}", caller.path))
}
