//! Publishing: authorise, validate, encode, commit, answer.
//!
//! In scope: one call and one stream, in groups. Out of scope: receipts (`receipts`), and waiting for others (`stored`).

use std::sync::Arc;
use std::time::Duration;

use barid_core::bulletin::prepare::check_releasable;
use barid_core::bulletin::{BulletinId, FieldError, Fill, Invalid, ValidBulletin, kinds, prepare, state, urgent};
use barid_core::envelope::SALT_BYTES;
use barid_core::limits::{COMMIT_BYTES_MAX, FOUND_CHARS_MAX};
use barid_core::names::Digest;
use barid_core::proto;
use futures::stream::{Stream, StreamExt};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::caller::Caller;
use super::deliver::Hidden;
use super::methods::PUBLISH_STREAM;
use super::pace::OpenStream;
use super::receipts::{Proven, Received, Sent};
use super::stored::Wanted;
use super::{Api, errors};
use crate::calls::{Call, Responses};
use crate::clock;
use crate::committer::{CommitFailure, Gate, Published, PublishedGroup};
use crate::random;
use crate::store::{Content, Entry};

/// How long a call waits for the node to be ready after its start.
const START_WAIT: Duration = Duration::from_secs(15);
/// Receipts that are proven on the spot: going to a blocking thread costs as much as some ten of them.
const PROVEN_AT_ONCE_MAX: usize = 8;
/// Requests of one stream that are taken together.
const GROUP_MAX: usize = 256;
/// Groups of one stream on their way; beyond it the stream is not read.
const GROUPS_MAX: usize = 16;
/// Answers of one stream that wait until others have the bulletin; beyond it no further answers are given until one is done.
const WAITS_MAX: usize = 1_024;

/// Encoded bytes of answers that wait to be taken; one always fits.
const ANSWERS_BYTES_MAX: u32 = 1 << 20;

type Answers = Responses<proto::PublishStreamResponse>;
/// A group of one stream on its way to the disk.
type SentGroup = (Vec<Sent>, oneshot::Receiver<Result<PublishedGroup, CommitFailure>>);

/// A request that was let pass.
enum Prepared {
    /// It may be committed.
    New(Box<Ready>),
    /// It was, before.
    Repeated(Box<Proven>, Option<Wanted>),
}

/// A request that may be committed.
struct Ready {
    bulletin: ValidBulletin,
    draft: proto::Draft,
    wanted: Option<Wanted>,
}

impl Api {
    /// One bulletin.
    pub(super) async fn publish_one(
        &self,
        caller: &Caller,
        request: proto::PublishRequest,
    ) -> Result<proto::PublishResponse, Status> {
        self.pace.bulletin(&caller.path, &caller.grant.limits, "FocalPoint.Publish", Instant::now())?;
        self.ready().await?;
        let (proven, wanted) = match self.prepared(caller, request).await? {
            Prepared::Repeated(proven, wanted) => (*proven, wanted),
            Prepared::New(ready) => {
                let Ready { bulletin, draft, wanted } = *ready;
                let sent = Sent::of(0, &bulletin, draft, wanted).alone();
                let group = self.committer.publish(vec![bulletin]).await.map_err(|error| errors::commit(&error))?;
                let (proven, sent) = self.proven(caller, vec![sent], group).await?;
                match (proven.into_iter().next(), sent.into_iter().next()) {
                    (Some(proven), Some(sent)) => (proven?, sent.wanted),
                    _ => return Err(errors::defect()),
                }
            }
        };
        self.answer(proven, wanted).await
    }

    /// Many, in the order of their requests.
    pub(super) fn publish_many(
        self,
        caller: Caller,
        call: &Call,
        open: OpenStream,
        requests: impl Stream<Item = Result<proto::PublishStreamRequest, Status>> + Send + Unpin + 'static,
    ) -> impl Stream<Item = Result<proto::PublishStreamResponse, Status>> + Send + 'static {
        let (answers, messages) = Responses::new(call, GROUPS_MAX, ANSWERS_BYTES_MAX);
        // Each request is charged until it is answered.
        let of = call.clone();
        let requests = requests.map(move |request| (request, of.received()));
        let (groups, waiting) = mpsc::channel::<SentGroup>(GROUPS_MAX);
        let waits = Arc::new(Semaphore::new(WAITS_MAX));
        let (last, ended) = oneshot::channel();
        tokio::spawn(self.clone().give_answers(caller.clone(), waiting, ended, answers.clone(), Arc::clone(&waits)));
        tokio::spawn(async move {
            let _open = open;
            tokio::select! {
                // Whoever has gone is not waited for: neither for its requests nor for room.
                () = answers.closed() => {}
                broken = self.take_requests(caller, requests, groups, &answers, &waits) => {
                    // A message too large, or one that did not come: said when all before it has been answered.
                    _ = broken.map(|status| last.send(status));
                }
            }
        });
        messages
    }

    async fn take_requests(
        &self,
        mut caller: Caller,
        requests: impl Stream<Item = (Result<proto::PublishStreamRequest, Status>, Received)> + Send + Unpin + 'static,
        groups: mpsc::Sender<SentGroup>,
        answers: &Answers,
        waits: &Arc<Semaphore>,
    ) -> Option<Status> {
        if let Err(status) = self.ready().await {
            answers.send(Err(status), None).await;
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
                answers.send(Err(status), None).await;
                return None;
            }
            // Paced rather than refused: a stream that is not read holds its sender back and loses nothing.
            let pause = self.pace.bulletins(&caller.path, &caller.grant.limits, chunk.len(), Instant::now());
            let (mut group, mut sent, mut done) = (Vec::new(), Vec::new(), Vec::new());
            let (mut urgent_group, mut urgent_sent) = (Vec::new(), Vec::new());
            let (mut bytes, mut broken, mut end) = (0, false, None);
            for (request, received) in chunk {
                // What came whole before the line was cut is published all the same.
                let proto::PublishStreamRequest { request, publish } = match request {
                    Ok(request) => request,
                    Err(status) => {
                        broken = true;
                        // Whoever has gone is told nothing.
                        end = Some(status).filter(|status| status.code() != Code::Cancelled);
                        break;
                    }
                };
                match self.prepared(&caller, publish.unwrap_or_default()).await {
                    Ok(Prepared::New(ready)) => {
                        let Ready { bulletin, draft, wanted } = *ready;
                        bytes += bulletin.envelope.len();
                        let of = Sent::of(request, &bulletin, draft, wanted).received(received);
                        // What is urgent does not wait for the others of its stream.
                        if urgent(&bulletin.proto_header).is_some() {
                            urgent_sent.push(of);
                            urgent_group.push(bulletin);
                        } else {
                            sent.push(of);
                            group.push(bulletin);
                        }
                    }
                    Ok(Prepared::Repeated(proven, None)) => {
                        done.push(result_of(request, Ok(stored_here(proven.receipt))));
                    }
                    Ok(Prepared::Repeated(proven, Some(wanted))) => {
                        self.answer_later(request, received, *proven, wanted, answers, waits).await;
                    }
                    Err(status) => done.push(refusal(request, &status)),
                }
                if bytes >= COMMIT_BYTES_MAX / 2 {
                    bytes = 0;
                    if !self.offer(&groups, &mut urgent_group, &mut urgent_sent, answers).await
                        || !self.offer(&groups, &mut group, &mut sent, answers).await
                    {
                        return None;
                    }
                }
            }
            if !self.offer(&groups, &mut urgent_group, &mut urgent_sent, answers).await {
                return None;
            }
            if !done.is_empty() && !tell(answers, done).await {
                return None;
            }
            if !self.offer(&groups, &mut group, &mut sent, answers).await || broken {
                return end;
            }
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Hands a group to the committer, waiting while its queue is full; `false` when the stream has ended.
    async fn offer(
        &self,
        groups: &mpsc::Sender<SentGroup>,
        group: &mut Vec<ValidBulletin>,
        sent: &mut Vec<Sent>,
        answers: &Answers,
    ) -> bool {
        if group.is_empty() {
            return true;
        }
        let Ok(place) = groups.reserve().await else { return false };
        let (group, sent) = (std::mem::take(group), std::mem::take(sent));
        match self.committer.publishing_waiting(group).await {
            Ok(answer) => {
                place.send((sent, answer));
                true
            }
            Err(error) => refuse_all(answers, &sent, &errors::commit(&error)).await,
        }
    }

    /// One message for each group; answers that wait for others follow on their own.
    async fn give_answers(
        self,
        caller: Caller,
        mut groups: mpsc::Receiver<SentGroup>,
        broken: oneshot::Receiver<Status>,
        answers: Answers,
        waits: Arc<Semaphore>,
    ) {
        while let Some((sent, group)) = groups.recv().await {
            let going_on = match group.await.unwrap_or(Err(CommitFailure::Stopped("shutting down".into()))) {
                Ok(group) => self.give_group(&caller, sent, group, &answers, &waits).await,
                Err(error) => refuse_all(&answers, &sent, &errors::commit(&error)).await,
            };
            if !going_on {
                return;
            }
        }
        let broken = broken.await.ok();
        if let Some(status) = broken.or_else(|| self.stopping.borrow().then(errors::stopping)) {
            // After the last answer of those that wait for others.
            let _all = waits.acquire_many(u32::try_from(WAITS_MAX).unwrap_or(u32::MAX)).await;
            answers.send(Err(status), None).await;
        }
    }

    async fn give_group(
        &self,
        caller: &Caller,
        sent: Vec<Sent>,
        group: PublishedGroup,
        answers: &Answers,
        waits: &Arc<Semaphore>,
    ) -> bool {
        let checkpoint = group.checkpoint.note.clone();
        let (proven, sent) = match self.proven(caller, sent, group).await {
            Ok(proven) => proven,
            // The bulletins are durable: who asks again gets the receipts.
            Err(status) => return answers.send(Err(status), None).await,
        };
        let mut results = Vec::with_capacity(sent.len());
        let mut waiting = Vec::new();
        for (sent, proven) in sent.into_iter().zip(proven) {
            match (proven, sent.wanted) {
                (Ok(proven), Some(wanted)) => waiting.push((sent.request, sent.received, proven, wanted)),
                (Ok(proven), None) => results.push(result_of(sent.request, Ok(stored_here(proven.receipt)))),
                (Err(status), _) => results.push(refusal(sent.request, &status)),
            }
        }
        let response = proto::PublishStreamResponse { checkpoint, results };
        if !response.results.is_empty() && !answers.send(Ok(response), None).await {
            return false;
        }
        for (request, received, proven, wanted) in waiting {
            self.answer_later(request, received, proven, wanted, answers, waits).await;
        }
        true
    }

    /// Answers one request of a stream when others have the bulletin, without holding up the rest; waits for its turn if too many do.
    async fn answer_later(
        &self,
        request: u64,
        received: Received,
        proven: Proven,
        wanted: Wanted,
        answers: &Answers,
        waits: &Arc<Semaphore>,
    ) {
        let Ok(turn) = Arc::clone(waits).acquire_owned().await else { return };
        let (api, answers) = (self.clone(), answers.clone());
        tokio::spawn(async move {
            let _held = (turn, received);
            tokio::select! {
                () = answers.closed() => {}
                result = api.answer(proven, Some(wanted)) => {
                    tell(&answers, vec![result_of(request, result)]).await;
                }
            }
        });
    }

    /// Receipts for a group, and what was sent. A few that are new are proven at once, by hashes that lie in memory; a larger group on one
    /// blocking thread.
    async fn proven(
        &self,
        caller: &Caller,
        sent: Vec<Sent>,
        group: PublishedGroup,
    ) -> Result<(Vec<Result<Proven, Status>>, Vec<Sent>), Status> {
        let issuer = caller.issuer();
        let new = |outcome: &Published| matches!(outcome, Published::New { .. });
        if sent.len() <= PROVEN_AT_ONCE_MAX && group.outcomes.iter().all(new) {
            return Ok((self.receipts(&issuer, &sent, &group), sent));
        }
        self.blocking(move |api| (api.receipts(&issuer, &sent, &group), sent)).await
    }

    /// The answer to one request, once what is wanted has come or the time for it is over.
    async fn answer(&self, proven: Proven, wanted: Option<Wanted>) -> Result<proto::PublishResponse, Status> {
        let Proven { receipt, feed } = proven;
        let Some(wanted) = wanted else { return Ok(stored_here(receipt)) };
        let (stored, wait_reached) = self.wait_stored(&feed, receipt.index, &wanted).await?;
        Ok(proto::PublishResponse { receipt: Some(receipt), stored, wait_reached })
    }

    async fn prepared(&self, caller: &Caller, request: proto::PublishRequest) -> Result<Prepared, Status> {
        let proto::PublishRequest { draft, wait_for } = request;
        let draft = draft.ok_or_else(|| errors::argument("draft", "", "a draft"))?;
        let wanted = wait_for.map(|wait| Wanted::read(&wait, self)).transpose()?;
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
        let random: [u8; 26] = random::bytes().map_err(|_| Status::internal("no random numbers"))?;
        let (salt, rest) = random.split_at(SALT_BYTES);
        let (Ok(salt), Ok(rest)) = (salt.try_into(), rest.try_into()) else { return Err(errors::defect()) };
        match self.validated(caller, &draft, salt, rest).await {
            Ok(bulletin) => {
                wanted.as_ref().map_or(Ok(()), |wanted| wanted.check_possible(&bulletin.proto_header, self))?;
                Ok(Prepared::New(Box::new(Ready { bulletin, draft, wanted })))
            }
            // What was published before is not judged by the rules of today: its id tells.
            Err(status) if draft.header.as_ref().is_none_or(|header| header.id.is_empty()) => Err(status),
            Err(status) => {
                let issuer = caller.issuer();
                match self.blocking(move |api| api.repeated(&issuer, &draft)).await?? {
                    Some(proven) => Ok(Prepared::Repeated(Box::new(proven), wanted)),
                    None => Err(status),
                }
            }
        }
    }

    /// What is wrong with a draft whose topic lies in no working group: all of it, not the topic alone.
    fn without_topic(&self, caller: &Caller, draft: &proto::Draft) -> Status {
        let (now, roster_version) = (clock::unix_ms(), self.rosters.load().newest().version());
        let fill = self.fill(caller, BulletinId::new(now, &[0; 10]), now, roster_version);
        let mut faults = prepare(draft, &fill, [0; SALT_BYTES]).err().map_or_else(Vec::new, |invalid| invalid.0);
        if faults.iter().all(|fault| fault.field != "header.topic") {
            let topic = draft.header.as_ref().map_or("", |header| header.topic.as_str());
            faults.insert(
                0,
                FieldError {
                    field: "header.topic".to_owned(),
                    found: topic.chars().take(FOUND_CHARS_MAX).collect(),
                    expected: "a dotted path under a working group of the roster".to_owned(),
                },
            );
        }
        errors::invalid(&Invalid(faults))
    }

    fn fill(&self, caller: &Caller, id: BulletinId, sent_at_unix_ms: u64, roster_version: u64) -> Fill {
        Fill { member: self.me().clone(), issuer: caller.issuer(), id, sent_at_unix_ms, roster_version }
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
        let fill = self.fill(caller, BulletinId::new(now, random), now, roster_version);
        let bulletin = prepare(draft, &fill, salt).map_err(|error| errors::invalid(&error))?;
        if kinds::find(&bulletin.header.kind).is_some_and(|kind| kind.by_nodes) {
            return Err(errors::argument("header.kind", &bulletin.header.kind, "a kind that people publish"));
        }
        check_releasable(&bulletin.header, rosters.newest()).map_err(|error| errors::invalid(&error))?;
        if let Some((original, digest)) = original {
            let roster = rosters.at(original.roster_version).unwrap_or(rosters.newest());
            state::check_successor(&bulletin.proto_header, &original, &digest, roster)
                .map_err(|error| errors::invalid(&error))?;
        }
        Ok(bulletin)
    }

    /// The bulletin that an Update, Cancel or Ack is about; one that the caller may not read does not exist for it.
    async fn original(&self, caller: &Caller, draft: &proto::Draft) -> Result<Option<(proto::Header, Digest)>, Status> {
        let Some(header) =
            draft.header.as_ref().filter(|header| matches!(header.msg_type.as_str(), "Update" | "Cancel" | "Ack"))
        else {
            return Ok(None);
        };
        let Some((member, id)) = state::referred(header).into_iter().next() else { return Ok(None) };
        let hidden = |entry: &Entry| self.hidden(caller, entry).map(Hidden::reason);
        let entry = self.find_for(caller, "FocalPoint.Publish", (&member, id), hidden).await?;
        match entry.map(|entry| (entry.content, entry.digest)) {
            Some((Content::Disclosed { header: Some(header), .. }, digest)) => {
                Ok(Some((header.as_ref().clone(), digest)))
            }
            _ => {
                let found = format!("{member}/{}", id.uuid());
                Err(errors::argument("header.references[0]", &found, "a bulletin held here"))
            }
        }
    }

    /// Waits while the node starts.
    async fn ready(&self) -> Result<(), Status> {
        let mut gate = self.committer.gate();
        let started = tokio::time::timeout(START_WAIT, gate.wait_for(|gate| *gate != Gate::Starting)).await;
        match started {
            Ok(Ok(gate)) => match &*gate {
                Gate::InDoubt(reason) => Err(errors::commit(&CommitFailure::InDoubt(reason.clone()))),
                Gate::Stopped(reason) => Err(errors::commit(&CommitFailure::Stopped(reason.clone()))),
                Gate::Open | Gate::Starting => Ok(()),
            },
            Ok(Err(_)) | Err(_) => Err(errors::commit(&CommitFailure::Busy)),
        }
    }
}

/// Durable here; nothing else was wanted.
fn stored_here(receipt: proto::Receipt) -> proto::PublishResponse {
    proto::PublishResponse { receipt: Some(receipt), stored: Vec::new(), wait_reached: true }
}

/// Sends answers whose receipts travel alone; `false` when the stream has ended.
async fn tell(answers: &Answers, results: Vec<proto::PublishResult>) -> bool {
    answers.send(Ok(proto::PublishStreamResponse { results, ..Default::default() }), None).await
}

async fn refuse_all(answers: &Answers, sent: &[Sent], status: &Status) -> bool {
    tell(answers, sent.iter().map(|sent| refusal(sent.request, status)).collect()).await
}

fn result_of(request: u64, result: Result<proto::PublishResponse, Status>) -> proto::PublishResult {
    match result {
        Ok(published) => {
            proto::PublishResult { request, outcome: Some(proto::publish_result::Outcome::Published(published)) }
        }
        Err(status) => refusal(request, &status),
    }
}

fn refusal(request: u64, status: &Status) -> proto::PublishResult {
    let refused = errors::refusal(status);
    proto::PublishResult { request, outcome: Some(proto::publish_result::Outcome::Refused(refused)) }
}
