//! Publishing: authorizes, validates, encodes, commits and responds.
//!
//! In scope: single calls, and streams whose requests are committed in groups. Out of scope:
//! receipts (`receipts`), and waiting for custody notes of other members (`stored_wait`).

use std::sync::Arc;
use std::time::Duration;

use barid_core::bulletin::prepare::check_releasable;
use barid_core::bulletin::{
    BulletinId, DraftDefaults, FieldError, Invalid, Rule, ValidBulletin, header_priority, kinds, prepare, state,
};
use barid_core::envelope::SALT_BYTES;
use barid_core::ids::Digest;
use barid_core::limits::COMMIT_BYTES_MAX;
use barid_core::proto;
use futures::stream::{Stream, StreamExt};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::caller::Caller;
use super::methods::PUBLISH_STREAM;
use super::rate_limit::OpenStream;
use super::receipts::{PendingReceipt, Receipt, RequestCharge};
use super::stored_wait::StoredRequirement;
use super::visibility::NotVisible;
use super::{Api, errors};
use crate::calls::{Call, Responses};
use crate::clock;
use crate::committer::{CommitFailure, PublishOutcome, PublishState, PublishedGroup};
use crate::random;
use crate::store::{Content, Entry};

/// How long a call waits for a node that is starting.
const START_WAIT: Duration = Duration::from_secs(15);
/// Receipts that are proven on the async thread. Moving to a blocking thread costs as much as some
/// ten proofs.
const INLINE_PROOFS_MAX: usize = 8;
/// Requests of one stream that are committed together.
const GROUP_MAX: usize = 256;
/// Groups of one stream in progress. At this number the stream is not read.
const GROUPS_MAX: usize = 16;
/// Responses of one stream that wait for custody notes. At this number no further responses are
/// sent until one wait ends.
const WAITS_MAX: usize = 1_024;

/// Encoded bytes of responses that the client has not read yet. One response always fits.
const RESPONSES_BYTES_MAX: u32 = 1 << 20;

type PublishResponses = Responses<proto::PublishStreamResponse>;
/// The receipts of a group that is being committed, and the outcome of the commit.
type PendingGroup = (Vec<PendingReceipt>, oneshot::Receiver<Result<PublishedGroup, CommitFailure>>);

/// A validated request.
enum Prepared {
    /// It is new and may be committed.
    New(Box<Ready>),
    /// It was committed before.
    Repeated(Box<Receipt>, Option<StoredRequirement>),
}

/// A request that may be committed.
struct Ready {
    bulletin: ValidBulletin,
    draft: proto::Draft,
    requirement: Option<StoredRequirement>,
}

impl Api {
    /// Publishes one bulletin.
    pub(super) async fn publish_one(
        &self,
        caller: &Caller,
        request: proto::PublishRequest,
    ) -> Result<proto::PublishResponse, Status> {
        self.call_limiter.bulletin(&caller.path, &caller.grant.limits, "FocalPoint.Publish", Instant::now())?;
        self.ready().await?;
        let (proven, requirement) = match self.prepared(caller, request).await? {
            Prepared::Repeated(proven, requirement) => (*proven, requirement),
            Prepared::New(ready) => {
                let Ready { bulletin, draft, requirement } = *ready;
                let pending = PendingReceipt::of(0, &bulletin, draft, requirement).with_checkpoint();
                let group = self.committer.publish(vec![bulletin]).await.map_err(|error| errors::commit(&error))?;
                let (proven, pending) = self.proven(caller, vec![pending], group).await?;
                match (proven.into_iter().next(), pending.into_iter().next()) {
                    (Some(proven), Some(pending)) => (proven?, pending.requirement),
                    _ => return Err(errors::defect()),
                }
            }
        };
        self.response(proven, requirement).await
    }

    /// Publishes the bulletins of a stream, in the order of their requests.
    pub(super) fn publish_many(
        self,
        caller: Caller,
        call: &Call,
        open: OpenStream,
        requests: impl Stream<Item = Result<proto::PublishStreamRequest, Status>> + Send + Unpin + 'static,
    ) -> impl Stream<Item = Result<proto::PublishStreamResponse, Status>> + Send + 'static {
        let (responses, messages) = Responses::new(call, GROUPS_MAX, RESPONSES_BYTES_MAX);
        // Each request is charged until its response is sent.
        let of = call.clone();
        let requests = requests.map(move |request| (request, of.received()));
        let (groups, waiting) = mpsc::channel::<PendingGroup>(GROUPS_MAX);
        let waits = Arc::new(Semaphore::new(WAITS_MAX));
        let (last, ended) = oneshot::channel();
        tokio::spawn(self.clone().send_responses(
            caller.clone(),
            waiting,
            ended,
            responses.clone(),
            Arc::clone(&waits),
        ));
        tokio::spawn(async move {
            let _open = open;
            tokio::select! {
                // Stop as soon as the client has gone, even while waiting for a request or for
                // room.
                () = responses.closed() => {}
                broken = self.read_requests(caller, requests, groups, &responses, &waits) => {
                    // A message that is too large or was cut off ends the stream, after the
                    // responses to all requests before it.
                    _ = broken.map(|status| last.send(status));
                }
            }
        });
        messages
    }

    async fn read_requests(
        &self,
        mut caller: Caller,
        requests: impl Stream<Item = (Result<proto::PublishStreamRequest, Status>, RequestCharge)> + Send + Unpin + 'static,
        groups: mpsc::Sender<PendingGroup>,
        responses: &PublishResponses,
        waits: &Arc<Semaphore>,
    ) -> Option<Status> {
        if let Err(status) = self.ready().await {
            responses.send(Err(status), None).await;
            return None;
        }
        let mut requests = requests.ready_chunks(GROUP_MAX);
        loop {
            let chunk = tokio::select! {
                chunk = requests.next() => chunk,
                () = self.stopped() => return None,
            };
            let chunk = chunk?;
            if let Err(status) = self.renew(&mut caller, &PUBLISH_STREAM) {
                responses.send(Err(status), None).await;
                return None;
            }
            // Delay reading instead of returning an error: flow control holds the client back, and
            // no request is lost.
            let pause = self.call_limiter.bulletins(&caller.path, &caller.grant.limits, chunk.len(), Instant::now());
            let (mut group, mut pending, mut done) = (Vec::new(), Vec::new(), Vec::new());
            let (mut priority_group, mut priority_pending) = (Vec::new(), Vec::new());
            let (mut bytes, mut broken, mut end) = (0, false, None);
            for (request, received) in chunk {
                // Requests that arrived whole before the connection broke are still published.
                let proto::PublishStreamRequest { request, publish } = match request {
                    Ok(request) => request,
                    Err(status) => {
                        broken = true;
                        // A client that has gone needs no status.
                        end = Some(status).filter(|status| status.code() != Code::Cancelled);
                        break;
                    }
                };
                match self.prepared(&caller, publish.unwrap_or_default()).await {
                    Ok(Prepared::New(ready)) => {
                        let Ready { bulletin, draft, requirement } = *ready;
                        bytes += bulletin.envelope.len();
                        let of = PendingReceipt::of(request, &bulletin, draft, requirement).received(received);
                        // Urgent bulletins do not wait for the other bulletins of their stream.
                        if header_priority(&bulletin.proto_header).is_some() {
                            priority_pending.push(of);
                            priority_group.push(bulletin);
                        } else {
                            pending.push(of);
                            group.push(bulletin);
                        }
                    }
                    Ok(Prepared::Repeated(proven, None)) => {
                        done.push(result_of(request, Ok(stored_here(proven.receipt))));
                    }
                    Ok(Prepared::Repeated(proven, Some(requirement))) => {
                        self.respond_when_stored(request, received, *proven, requirement, responses, waits).await;
                    }
                    Err(status) => done.push(failure(request, &status)),
                }
                if bytes >= COMMIT_BYTES_MAX / 2 {
                    bytes = 0;
                    if !self.enqueue(&groups, &mut priority_group, &mut priority_pending, responses).await
                        || !self.enqueue(&groups, &mut group, &mut pending, responses).await
                    {
                        return None;
                    }
                }
            }
            if !self.enqueue(&groups, &mut priority_group, &mut priority_pending, responses).await {
                return None;
            }
            if !done.is_empty() && !send_results(responses, done).await {
                return None;
            }
            if !self.enqueue(&groups, &mut group, &mut pending, responses).await || broken {
                return end;
            }
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Submits a group to the committer; waits while its queue is full. Returns `false` if the
    /// stream has ended.
    async fn enqueue(
        &self,
        groups: &mpsc::Sender<PendingGroup>,
        group: &mut Vec<ValidBulletin>,
        pending: &mut Vec<PendingReceipt>,
        responses: &PublishResponses,
    ) -> bool {
        if group.is_empty() {
            return true;
        }
        let Ok(place) = groups.reserve().await else { return false };
        let (group, pending) = (std::mem::take(group), std::mem::take(pending));
        match self.committer.submit_publish(group).await {
            Ok(response) => {
                place.send((pending, response));
                true
            }
            Err(error) => fail_all(responses, &pending, &errors::commit(&error)).await,
        }
    }

    /// Sends one message for each group. Responses that wait for custody notes follow on their own.
    async fn send_responses(
        self,
        caller: Caller,
        mut groups: mpsc::Receiver<PendingGroup>,
        broken: oneshot::Receiver<Status>,
        responses: PublishResponses,
        waits: Arc<Semaphore>,
    ) {
        while let Some((pending, group)) = groups.recv().await {
            let going_on = match group.await.unwrap_or(Err(CommitFailure::Stopped("shutting down".into()))) {
                Ok(group) => self.send_group(&caller, pending, group, &responses, &waits).await,
                Err(error) => fail_all(&responses, &pending, &errors::commit(&error)).await,
            };
            if !going_on {
                return;
            }
        }
        let broken = broken.await.ok();
        if let Some(status) = broken.or_else(|| self.stopping.borrow().then(errors::stopping)) {
            // After the last response that waits for custody notes.
            let _all = waits.acquire_many(u32::try_from(WAITS_MAX).unwrap_or(u32::MAX)).await;
            responses.send(Err(status), None).await;
        }
    }

    async fn send_group(
        &self,
        caller: &Caller,
        pending: Vec<PendingReceipt>,
        group: PublishedGroup,
        responses: &PublishResponses,
        waits: &Arc<Semaphore>,
    ) -> bool {
        let checkpoint = group.checkpoint.note.clone();
        let (proven, pending) = match self.proven(caller, pending, group).await {
            Ok(proven) => proven,
            // The bulletins are durable: a client that repeats the requests gets the receipts.
            Err(status) => return responses.send(Err(status), None).await,
        };
        let mut results = Vec::with_capacity(pending.len());
        let mut waiting = Vec::new();
        for (pending, proven) in pending.into_iter().zip(proven) {
            match (proven, pending.requirement) {
                (Ok(proven), Some(requirement)) => {
                    waiting.push((pending.request, pending.received, proven, requirement));
                }
                (Ok(proven), None) => results.push(result_of(pending.request, Ok(stored_here(proven.receipt)))),
                (Err(status), _) => results.push(failure(pending.request, &status)),
            }
        }
        let response = proto::PublishStreamResponse { checkpoint, results };
        if !response.results.is_empty() && !responses.send(Ok(response), None).await {
            return false;
        }
        for (request, received, proven, requirement) in waiting {
            self.respond_when_stored(request, received, proven, requirement, responses, waits).await;
        }
        true
    }

    /// Responds to one request of a stream once its custody requirement is met or timed out,
    /// without delaying the other responses. Blocks while [`WAITS_MAX`] responses wait.
    async fn respond_when_stored(
        &self,
        request: u64,
        received: RequestCharge,
        proven: Receipt,
        requirement: StoredRequirement,
        responses: &PublishResponses,
        waits: &Arc<Semaphore>,
    ) {
        let Ok(turn) = Arc::clone(waits).acquire_owned().await else { return };
        let (api, responses) = (self.clone(), responses.clone());
        tokio::spawn(async move {
            let _held = (turn, received);
            tokio::select! {
                () = responses.closed() => {}
                result = api.response(proven, Some(requirement)) => {
                    send_results(&responses, vec![result_of(request, result)]).await;
                }
            }
        });
    }

    /// Returns the receipts for a group, and its requests. A few new entries are proven inline from
    /// hashes in memory; a larger group is proven on a blocking thread.
    async fn proven(
        &self,
        caller: &Caller,
        pending: Vec<PendingReceipt>,
        group: PublishedGroup,
    ) -> Result<(Vec<Result<Receipt, Status>>, Vec<PendingReceipt>), Status> {
        let issuer = caller.issuer();
        let new = |outcome: &PublishOutcome| matches!(outcome, PublishOutcome::New { .. });
        if pending.len() <= INLINE_PROOFS_MAX && group.outcomes.iter().all(new) {
            return Ok((self.receipts(&issuer, &pending, &group), pending));
        }
        self.blocking(move |api| (api.receipts(&issuer, &pending, &group), pending)).await
    }

    /// Returns the response to one request, after its custody requirement is met or timed out.
    async fn response(
        &self,
        proven: Receipt,
        requirement: Option<StoredRequirement>,
    ) -> Result<proto::PublishResponse, Status> {
        let Receipt { receipt, feed } = proven;
        let Some(requirement) = requirement else { return Ok(stored_here(receipt)) };
        let (stored, wait_reached) = self.wait_stored(&feed, receipt.index, &requirement).await?;
        Ok(proto::PublishResponse { receipt: Some(receipt), stored, wait_reached })
    }

    async fn prepared(&self, caller: &Caller, request: proto::PublishRequest) -> Result<Prepared, Status> {
        let proto::PublishRequest { draft, wait_for } = request;
        let draft = draft.ok_or_else(|| errors::argument("draft", "", Rule::Draft))?;
        let requirement = wait_for.map(|wait| StoredRequirement::read(&wait, self)).transpose()?;
        let topic = draft.header.as_ref().map_or("", |header| header.topic.as_str());
        let group = topic.split('.').next().unwrap_or_default();
        if !caller.grant.may_publish_in(group) {
            let known = self.rosters.load().newest().working_groups().contains(group);
            return Err(if known || topic.is_empty() && !caller.is_focal_point() {
                self.denied_topic(&caller.path, "FocalPoint.Publish", topic)
            } else {
                self.without_topic(caller, &draft)
            });
        }
        let random: [u8; 26] = random::bytes().map_err(|_| Status::internal("the random number generator failed"))?;
        let (salt, rest) = random.split_at(SALT_BYTES);
        let (Ok(salt), Ok(rest)) = (salt.try_into(), rest.try_into()) else { return Err(errors::defect()) };
        match self.validated(caller, &draft, salt, rest).await {
            Ok(bulletin) => {
                requirement
                    .as_ref()
                    .map_or(Ok(()), |requirement| requirement.check_possible(&bulletin.proto_header, self))?;
                Ok(Prepared::New(Box::new(Ready { bulletin, draft, requirement })))
            }
            // The current rules do not apply to a bulletin that was published before. Its id
            // identifies it.
            Err(status) if draft.header.as_ref().is_none_or(|header| header.id.is_empty()) => Err(status),
            Err(status) => {
                let issuer = caller.issuer();
                match self.blocking(move |api| api.repeated(&issuer, &draft)).await?? {
                    Some(proven) => Ok(Prepared::Repeated(Box::new(proven), requirement)),
                    None => Err(status),
                }
            }
        }
    }

    /// Returns all errors of a draft whose topic begins with no known working group: those of its
    /// other fields, too.
    fn without_topic(&self, caller: &Caller, draft: &proto::Draft) -> Status {
        let (now, roster_version) = (clock::unix_ms(), self.rosters.load().newest().version());
        let defaults = self.defaults(caller, BulletinId::new(now, &[0; 10]), now, roster_version);
        let mut faults = prepare(draft, &defaults, [0; SALT_BYTES]).err().map_or_else(Vec::new, |invalid| invalid.0);
        if faults.iter().all(|fault| fault.field != "header.topic") {
            let topic = draft.header.as_ref().map_or("", |header| header.topic.as_str());
            faults.insert(0, FieldError::new("header.topic", topic, Rule::TopicOfRoster));
        }
        errors::invalid(&Invalid(faults))
    }

    fn defaults(&self, caller: &Caller, id: BulletinId, sent_at_unix_ms: u64, roster_version: u64) -> DraftDefaults {
        DraftDefaults { member: self.me().clone(), issuer: caller.issuer(), id, sent_at_unix_ms, roster_version }
    }

    async fn validated(
        &self,
        caller: &Caller,
        draft: &proto::Draft,
        salt: [u8; SALT_BYTES],
        random: &[u8; 10],
    ) -> Result<ValidBulletin, Status> {
        let now = clock::unix_ms();
        let rosters = self.rosters.load();
        let original = self.original(caller, draft).await?;
        let roster_version = original.as_ref().map_or(rosters.newest().version(), |(header, _)| header.roster_version);
        let defaults = self.defaults(caller, BulletinId::new(now, random), now, roster_version);
        let bulletin = prepare(draft, &defaults, salt).map_err(|error| errors::invalid(&error))?;
        if kinds::find(&bulletin.header.kind).is_some_and(|kind| kind.node_only) {
            return Err(errors::argument("header.kind", &bulletin.header.kind, Rule::KindOfPeople));
        }
        check_releasable(&bulletin.header, rosters.newest()).map_err(|error| errors::invalid(&error))?;
        if let Some((original, digest)) = original {
            let roster = rosters.at(original.roster_version).unwrap_or(rosters.newest());
            state::check_successor(&bulletin.proto_header, &original, &digest, roster)
                .map_err(|error| errors::invalid(&error))?;
        }
        Ok(bulletin)
    }

    /// Returns the bulletin that an Update, Cancel or Ack refers to. One that is not visible to the
    /// caller counts as missing.
    async fn original(&self, caller: &Caller, draft: &proto::Draft) -> Result<Option<(proto::Header, Digest)>, Status> {
        let Some(header) =
            draft.header.as_ref().filter(|header| matches!(header.msg_type.as_str(), "Update" | "Cancel" | "Ack"))
        else {
            return Ok(None);
        };
        let Some((member, id)) = state::referred(header).into_iter().next() else { return Ok(None) };
        let not_visible = |entry: &Entry| self.not_visible(caller, entry).map(NotVisible::reason);
        let entry = self.find_for(caller, "FocalPoint.Publish", (&member, id), not_visible).await?;
        match entry.map(|entry| (entry.content, entry.digest)) {
            Some((Content::Disclosed { header: Some(header), .. }, digest)) => {
                Ok(Some((header.as_ref().clone(), digest)))
            }
            _ => {
                let found = format!("{member}/{}", id.uuid());
                Err(errors::argument("header.references[0]", found, Rule::ReferenceHeld))
            }
        }
    }

    /// Waits while the node starts, for at most [`START_WAIT`].
    async fn ready(&self) -> Result<(), Status> {
        let mut publish_state = self.committer.publish_state();
        let started = tokio::time::timeout(
            START_WAIT,
            publish_state.wait_for(|publish_state| *publish_state != PublishState::Starting),
        )
        .await;
        match started {
            Ok(Ok(publish_state)) => match &*publish_state {
                PublishState::NeedsRecovery(reason) => {
                    Err(errors::commit(&CommitFailure::NeedsRecovery(reason.clone())))
                }
                PublishState::Stopped(reason) => Err(errors::commit(&CommitFailure::Stopped(reason.clone()))),
                PublishState::Open | PublishState::Starting => Ok(()),
            },
            Ok(Err(_)) => Err(errors::commit(&CommitFailure::Stopped("shutting down".into()))),
            Err(_) => Err(errors::commit(&CommitFailure::Starting)),
        }
    }
}

/// Response for a bulletin that is durable here, without a custody requirement.
fn stored_here(receipt: proto::Receipt) -> proto::PublishResponse {
    proto::PublishResponse { receipt: Some(receipt), stored: Vec::new(), wait_reached: true }
}

/// Sends results whose receipts carry their own checkpoint. Returns `false` if the stream has
/// ended.
async fn send_results(responses: &PublishResponses, results: Vec<proto::PublishResult>) -> bool {
    responses.send(Ok(proto::PublishStreamResponse { results, ..Default::default() }), None).await
}

async fn fail_all(responses: &PublishResponses, pending: &[PendingReceipt], status: &Status) -> bool {
    send_results(responses, pending.iter().map(|pending| failure(pending.request, status)).collect()).await
}

fn result_of(request: u64, result: Result<proto::PublishResponse, Status>) -> proto::PublishResult {
    match result {
        Ok(published) => {
            proto::PublishResult { request, outcome: Some(proto::publish_result::Outcome::Published(published)) }
        }
        Err(status) => failure(request, &status),
    }
}

fn failure(request: u64, status: &Status) -> proto::PublishResult {
    let error = errors::publish_error(status);
    proto::PublishResult { request, outcome: Some(proto::publish_result::Outcome::Error(error)) }
}
