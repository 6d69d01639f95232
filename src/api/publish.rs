//! Publishing: authorise, validate, encode, commit, prove.

use std::sync::Arc;
use std::time::Duration;

use barid_core::bulletin::prepare::check_releasable;
use barid_core::bulletin::{BulletinId, Fill, ValidBulletin, prepare, state};
use barid_core::envelope::{self, SALT_BYTES};
use barid_core::feed::checkpoint::SignedCheckpoint;
use barid_core::feed::tree::inclusion_proof;
use barid_core::limits::COMMIT_BYTES_MAX;
use barid_core::names::Digest;
use barid_core::proto;
use bytes::Bytes;
use futures::stream::{Stream, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use super::caller::Caller;
use super::stored::Wanted;
use super::{Api, errors};
use crate::committer::{CommitFailure, Gate, Published, PublishedGroup};
use crate::store::{Content, Entry, FeedTree, Location};

/// How long a call waits for the node to be ready after its start.
const START_WAIT: Duration = Duration::from_secs(15);
/// Requests of one stream that are taken together.
const GROUP_MAX: usize = 256;
/// Groups of one stream on their way; beyond it the stream is not read.
const GROUPS_MAX: usize = 16;
/// Pause before a stream's group is offered to a full queue again.
const BUSY_PAUSE: Duration = Duration::from_millis(2);

/// A group of one stream on its way to the disk.
type SentGroup = (Vec<Sent>, oneshot::Receiver<Result<PublishedGroup, CommitFailure>>);

/// A request that may be committed.
struct Ready {
    bulletin: ValidBulletin,
    draft: proto::Draft,
    wanted: Option<Wanted>,
}

/// What is left of a request while its bulletin is committed.
struct Sent {
    request: u64,
    id: String,
    digest: Digest,
    sent_at: Option<pbjson_types::Timestamp>,
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
        self.ready().await?;
        let Ready { bulletin, draft, wanted } = self.prepared(caller, request).await?;
        let sent = Sent::of(0, &bulletin, draft, wanted);
        let group = self.committer.publish(vec![bulletin]).await.map_err(|error| errors::commit(&error))?;
        let outcome = group.outcomes.into_iter().next().ok_or_else(|| Status::internal("a defect of the node"))?;
        self.answer(caller, sent, &outcome, &group.checkpoint, true).await
    }

    /// Many, in the order of their requests.
    pub(super) fn publish_many(
        self,
        caller: Caller,
        requests: impl Stream<Item = Result<proto::PublishStreamRequest, Status>> + Send + Unpin + 'static,
    ) -> mpsc::Receiver<Result<proto::PublishStreamResponse, Status>> {
        let (answers, receiver) = mpsc::channel(GROUPS_MAX);
        let (groups, mut waiting) = mpsc::channel::<SentGroup>(GROUPS_MAX);
        let answering = self.clone();
        let (who, out) = (caller.clone(), answers.clone());
        tokio::spawn(async move {
            while let Some((sent, group)) = waiting.recv().await {
                let group = group.await.unwrap_or(Err(CommitFailure::Stopped("shutting down".into())));
                if out.send(Ok(answering.answers(&who, sent, group, &out).await)).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            if let Err(status) = self.ready().await {
                let _ = answers.send(Err(status)).await;
                return;
            }
            let mut requests = requests.ready_chunks(GROUP_MAX);
            while let Some(chunk) = requests.next().await {
                let (mut group, mut sent, mut refused) = (Vec::new(), Vec::new(), Vec::new());
                let mut bytes = 0;
                for request in chunk {
                    let Ok(proto::PublishStreamRequest { request, publish }) = request else { return };
                    match self.prepared(&caller, publish.unwrap_or_default()).await {
                        Ok(Ready { bulletin, draft, wanted }) => {
                            bytes += bulletin.envelope.len();
                            sent.push(Sent::of(request, &bulletin, draft, wanted));
                            group.push(bulletin);
                        }
                        Err(status) => refused.push(refusal(request, &status)),
                    }
                    if bytes >= COMMIT_BYTES_MAX / 2 {
                        bytes = 0;
                        if !self.offer(&groups, &mut group, &mut sent, &answers).await {
                            return;
                        }
                    }
                }
                if !refused.is_empty()
                    && answers
                        .send(Ok(proto::PublishStreamResponse { results: refused, ..Default::default() }))
                        .await
                        .is_err()
                {
                    return;
                }
                if !self.offer(&groups, &mut group, &mut sent, &answers).await {
                    return;
                }
            }
        });
        receiver
    }

    /// Hands a group to the committer, waiting while its queue is full; `false` when the stream has ended.
    async fn offer(
        &self,
        groups: &mpsc::Sender<SentGroup>,
        group: &mut Vec<ValidBulletin>,
        sent: &mut Vec<Sent>,
        answers: &mpsc::Sender<Result<proto::PublishStreamResponse, Status>>,
    ) -> bool {
        if group.is_empty() {
            return !answers.is_closed();
        }
        let Ok(place) = groups.reserve().await else { return false };
        while !self.committer.has_room(group.len()) {
            tokio::time::sleep(BUSY_PAUSE).await;
        }
        let (group, sent) = (std::mem::take(group), std::mem::take(sent));
        match self.committer.publishing(group) {
            Ok(answer) => place.send((sent, answer)),
            Err(error) => {
                let status = errors::commit(&error);
                let results = sent.iter().map(|sent| refusal(sent.request, &status)).collect();
                return answers.send(Ok(proto::PublishStreamResponse { results, ..Default::default() })).await.is_ok();
            }
        }
        true
    }

    /// One message for a group; answers that wait for others follow on their own.
    async fn answers(
        &self,
        caller: &Caller,
        sent: Vec<Sent>,
        group: Result<PublishedGroup, CommitFailure>,
        out: &mpsc::Sender<Result<proto::PublishStreamResponse, Status>>,
    ) -> proto::PublishStreamResponse {
        let group = match group {
            Ok(group) => group,
            Err(error) => {
                let status = errors::commit(&error);
                let results = sent.iter().map(|sent| refusal(sent.request, &status)).collect();
                return proto::PublishStreamResponse { results, ..Default::default() };
            }
        };
        let mut results = Vec::with_capacity(sent.len());
        for (sent, outcome) in sent.into_iter().zip(group.outcomes) {
            let request = sent.request;
            if sent.wanted.is_some() {
                let (api, caller, out) = (self.clone(), caller.clone(), out.clone());
                let checkpoint = group.checkpoint.clone();
                tokio::spawn(async move {
                    let result = api.answer(&caller, sent, &outcome, &checkpoint, true).await;
                    let results = vec![result_of(request, result)];
                    let _ = out.send(Ok(proto::PublishStreamResponse { results, ..Default::default() })).await;
                });
            } else {
                let result = self.answer(caller, sent, &outcome, &group.checkpoint, false).await;
                results.push(result_of(request, result));
            }
        }
        proto::PublishStreamResponse { checkpoint: group.checkpoint.note, results }
    }

    async fn answer(
        &self,
        caller: &Caller,
        sent: Sent,
        outcome: &Published,
        checkpoint: &SignedCheckpoint,
        with_checkpoint: bool,
    ) -> Result<proto::PublishResponse, Status> {
        let wanted = sent.wanted.clone();
        let receipt = match outcome {
            Published::New { index, .. } => {
                let note = if with_checkpoint { checkpoint.note.clone() } else { Bytes::new() };
                self.receipt(*index, sent.id, sent.digest, sent.sent_at, checkpoint, note)?
            }
            Published::Taken(location) => self.first_receipt(caller, &sent, location, checkpoint).await?,
            Published::TakenInGroup => return Err(id_taken(&sent.id)),
        };
        let (stored, wait_reached) = match wanted {
            Some(wanted) => self.wait_stored(receipt.index, &wanted).await?,
            None => (Vec::new(), true),
        };
        Ok(proto::PublishResponse { receipt: Some(receipt), stored, wait_reached })
    }

    fn receipt(
        &self,
        index: u64,
        id: String,
        digest: Digest,
        sent_at: Option<pbjson_types::Timestamp>,
        checkpoint: &SignedCheckpoint,
        note: Bytes,
    ) -> Result<proto::Receipt, Status> {
        let feed = self.committer.feed();
        let tree = FeedTree { store: self.store().as_ref(), feed };
        let proof = inclusion_proof(&tree, index, checkpoint.checkpoint.size).map_err(|error| errors::read(&error))?;
        Ok(proto::Receipt {
            feed: feed.to_string(),
            index,
            id,
            digest: Bytes::copy_from_slice(&digest.0),
            checkpoint: note,
            inclusion_proof: proof.iter().map(|hash| Bytes::copy_from_slice(&hash.0)).collect(),
            sent_at,
        })
    }

    /// The id is taken: the same bulletin by the same issuer gets its receipt, another one is refused.
    async fn first_receipt(
        &self,
        caller: &Caller,
        sent: &Sent,
        location: &Location,
        checkpoint: &SignedCheckpoint,
    ) -> Result<proto::Receipt, Status> {
        let entry = self.entry(location).await?;
        let Content::Disclosed { envelope, header: Some(header) } = &entry.content else {
            return Err(id_taken(&sent.id));
        };
        if header.issuer != caller.issuer() {
            return Err(id_taken(&sent.id));
        }
        let parts = envelope::parts(envelope).map_err(|_| Status::internal("a defect of the node"))?;
        let salt: [u8; SALT_BYTES] = parts.salt.try_into().map_err(|_| Status::internal("a defect of the node"))?;
        let fill = Fill {
            member: self.me().clone(),
            issuer: header.issuer.clone(),
            id: header.id.parse().map_err(|_| Status::internal("a defect of the node"))?,
            sent_at_unix_ms: sent_at_unix_ms(header),
            roster_version: header.roster_version,
        };
        if prepare::encode(&sent.draft, &fill, salt).1 != entry.digest {
            return Err(id_taken(&sent.id));
        }
        let note = checkpoint.note.clone();
        self.receipt(location.index, header.id.clone(), entry.digest, header.sent_at, checkpoint, note)
    }

    /// One entry, read on a blocking thread.
    pub(super) async fn entry(&self, location: &Location) -> Result<Entry, Status> {
        let (store, feed, index) = (Arc::clone(self.store()), location.feed.clone(), location.index);
        let read = tokio::task::spawn_blocking(move || store.entries(&feed, index, 1, usize::MAX)).await;
        let entries =
            read.map_err(|_| Status::internal("a defect of the node"))?.map_err(|error| errors::read(&error))?;
        entries.into_iter().next().ok_or_else(|| Status::not_found("the entry is not held"))
    }

    async fn prepared(&self, caller: &Caller, request: proto::PublishRequest) -> Result<Ready, Status> {
        let proto::PublishRequest { draft, wait_for } = request;
        let draft = draft.ok_or_else(|| errors::argument("draft", "", "a draft"))?;
        let wanted = wait_for.map(|wait| Wanted::read(&wait, self)).transpose()?;
        let topic = draft.header.as_ref().map_or("", |header| header.topic.as_str());
        let group = topic.split('.').next().unwrap_or_default();
        if !caller.grant.may_publish_in(group) {
            let known = self.rosters.load().newest().working_groups().contains(group);
            return Err(if known || topic.is_empty() && !caller.is_focal_point() {
                self.denied(
                    &caller.path,
                    "FocalPoint.Publish",
                    "WORKING_GROUP",
                    "the caller does not publish in this working group",
                )
            } else {
                errors::argument("header.topic", topic, "a dotted path under a working group of the roster")
            });
        }
        let mut random = [0; 26];
        getrandom::fill(&mut random).map_err(|_| Status::internal("no random numbers"))?;
        let (salt, rest) = random.split_at(SALT_BYTES);
        let (Ok(salt), Ok(rest)) = (salt.try_into(), rest.try_into()) else {
            return Err(Status::internal("a defect of the node"));
        };
        let now = now_unix_ms();
        let rosters = self.rosters.load();
        let original = self.original(&draft).await?;
        let fill = Fill {
            member: self.me().clone(),
            issuer: caller.issuer().to_owned(),
            id: BulletinId::new(now, rest),
            sent_at_unix_ms: now,
            roster_version: original.as_ref().map_or(rosters.newest().version(), |(header, _)| header.roster_version),
        };
        let bulletin = prepare(&draft, &fill, salt).map_err(|error| errors::invalid(&error))?;
        check_releasable(&bulletin.header, rosters.newest()).map_err(|error| errors::invalid(&error))?;
        if let Some((original, digest)) = original {
            let roster = rosters.at(original.roster_version).unwrap_or(rosters.newest());
            state::check_successor(&bulletin.proto_header, &original, &digest, roster)
                .map_err(|error| errors::invalid(&error))?;
        }
        Ok(Ready { bulletin, draft, wanted })
    }

    /// The bulletin that an Update, Cancel or Ack is about.
    async fn original(&self, draft: &proto::Draft) -> Result<Option<(proto::Header, Digest)>, Status> {
        let Some(header) =
            draft.header.as_ref().filter(|header| matches!(header.msg_type.as_str(), "Update" | "Cancel" | "Ack"))
        else {
            return Ok(None);
        };
        let Some((member, id)) = state::referred(header).into_iter().next() else { return Ok(None) };
        match self.find(&member, id).await?.map(|entry| (entry.content, entry.digest)) {
            Some((Content::Disclosed { header: Some(header), .. }, digest)) => {
                Ok(Some((header.as_ref().clone(), digest)))
            }
            _ => {
                let found = format!("{member}/{}", id.uuid());
                Err(errors::argument("header.references[0]", &found, "a bulletin held here"))
            }
        }
    }

    /// A bulletin by member and id.
    pub(super) async fn find(
        &self,
        member: &barid_core::names::Member,
        id: BulletinId,
    ) -> Result<Option<Entry>, Status> {
        let (store, member) = (Arc::clone(self.store()), member.clone());
        let found = tokio::task::spawn_blocking(move || store.find(&member, id.uuid())).await;
        match found.map_err(|_| Status::internal("a defect of the node"))?.map_err(|error| errors::read(&error))? {
            Some(location) => self.entry(&location).await.map(Some),
            None => Ok(None),
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

impl Sent {
    fn of(request: u64, bulletin: &ValidBulletin, draft: proto::Draft, wanted: Option<Wanted>) -> Self {
        let header = &bulletin.proto_header;
        Self { request, id: header.id.clone(), digest: bulletin.digest, sent_at: header.sent_at, draft, wanted }
    }
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

fn id_taken(id: &str) -> Status {
    Status::already_exists(format!("another bulletin has the id {id}; publish this one with a new id"))
}

fn sent_at_unix_ms(header: &proto::Header) -> u64 {
    header.sent_at.as_ref().map_or(0, |at| {
        let ms = at.seconds.saturating_mul(1_000).saturating_add(i64::from(at.nanos) / 1_000_000);
        u64::try_from(ms).unwrap_or(0)
    })
}

pub(super) fn now_unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
