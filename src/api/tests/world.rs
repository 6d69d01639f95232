//! An in-memory node with its API, verified callers, and peers whose entries and notes the tests
//! create.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use barid_core::bulletin::{BulletinId, DraftDefaults, ValidBulletin, kinds, prepare};
use barid_core::envelope;
use barid_core::feed::checkpoint::{Checkpoint, SignedCheckpoint, sign};
use barid_core::feed::custody::CustodyNote;
use barid_core::feed::note::{Algorithm, Note, SigningKey};
use barid_core::feed::tree::{CompactRange, verify_inclusion};
use barid_core::follow::{VerifiedBatch, VerifiedContent, VerifiedEntry};
use barid_core::ids::{Digest, FeedId, Hash, Member, Undisclosed};
use barid_core::proto;
use barid_core::roster::RosterChain;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{Stream, StreamExt};
use tokio::sync::watch;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::access::Access;
use crate::api::{Api, Identity, NodeControl};
use crate::committer::{Committer, Keys, Options, PublishState, Records};
use crate::roster_store::RosterStore;
use crate::rpc::focal_point_server::FocalPoint;
use crate::store::memory::MemoryStore;
use crate::store::{CustodyRecord, Store};

pub(super) const EXCHANGE: &str = "rabat.example";
/// Publishes and reads in every working group.
pub(super) const POLICE: &str = "focal-point/police-hq";
/// Publishes and reads in customs only.
pub(super) const CUSTOMS: &str = "focal-point/customs-hq";
/// Reads in every working group.
pub(super) const POST: &str = "agency/border-post";
/// Operates the node.
pub(super) const OPERATOR: &str = "operator/night-shift";

const GROUPS: &str = "[\"security\", \"information\", \"customs\", \"justice\"]";
/// Longest wait for a condition. The machine may be busy.
const DEADLINE: Duration = Duration::from_secs(30);

pub(super) fn member(code: &str) -> Member {
    code.parse().unwrap()
}

pub(super) fn feed(code: &str, epoch: u32) -> FeedId {
    FeedId::new(member(code), EXCHANGE.parse().unwrap(), epoch)
}

/// Returns the same key for the same name.
fn key(code: &str, role: &str, algorithm: Algorithm) -> SigningKey {
    let name = format!("{code}.{EXCHANGE}/{role}");
    SigningKey::from_seed(&name, algorithm, envelope::digest(name.as_bytes()).0).unwrap()
}

pub(super) fn feed_key(feed: &FeedId) -> SigningKey {
    key(feed.member.as_str(), &format!("feed/{}", feed.epoch), Algorithm::Ed25519)
}

/// Roster `version` of ma, ly and tn, all in every working group, ma with the keys of two epochs.
pub(super) fn roster(version: u64, previous: Option<Hash>) -> Bytes {
    let governor = SigningKey::from_seed("governors.example/one", Algorithm::Ed25519, [1; 32]).unwrap();
    let previous = previous.map(|previous| format!("previous = \"{previous}\"\n")).unwrap_or_default();
    let mut text = format!(
        "format = 1\nexchange = \"{EXCHANGE}\"\nversion = {version}\n{previous}issued = 2025-01-01T00:00:00Z\n\
         review_by = 2030-01-01T00:00:00Z\nquorum = 1\nworking_groups = {GROUPS}\n\
         [governors]\nthreshold = 1\nkeys = [\"{}\"]\n",
        governor.verifier()
    );
    for code in ["ma", "ly", "tn"] {
        let epochs = (1..=2).map(|epoch| {
            format!("{{ role = \"feed\", epoch = {epoch}, key = \"{}\" }}, ", feed_key(&feed(code, epoch)).verifier())
        });
        text += &format!(
            "[[members]]\ncode = \"{code}\"\nkind = \"full\"\nnames = {{ ar = \"x\", fr = \"x\", en = \"x\" }}\n\
             endpoints = [\"{code}.example:4443\"]\ntrust_domain = \"{code}.{EXCHANGE}\"\n\
             ca_certificates = [\"certificate of {code}\"]\nworking_groups = {GROUPS}\n\
             keys = [{}{{ role = \"mirror\", key = \"{}\" }}, {{ role = \"custody\", key = \"{}\" }}]\n",
            epochs.collect::<String>(),
            key(code, "mirror", Algorithm::CosignatureEd25519).verifier(),
            key(code, "custody", Algorithm::Ed25519).verifier()
        );
    }
    Note::sign(&text, &governor).unwrap().to_bytes().into()
}

pub(super) fn access() -> String {
    let grant = |path: &str, role: &str, groups: &str| {
        format!("[[grant]]\npath = \"{path}\"\nroles = [\"{role}\"]\nworking_groups = {groups}\n")
    };
    grant(POLICE, "focal-point", GROUPS)
        + &grant(CUSTOMS, "focal-point", "[\"customs\"]")
        + &grant(POST, "agency", GROUPS)
        + &grant(OPERATOR, "operator", "[]")
}

struct Alone;

impl NodeControl for Alone {
    fn peers(&self) -> Vec<proto::PeerStatus> {
        Vec::new()
    }

    fn alarms(&self) -> Vec<crate::telemetry::alarms::ActiveAlarm> {
        Vec::new()
    }

    fn resume_feed<'a>(&'a self, _feed: &'a barid_core::ids::FeedId) -> BoxFuture<'a, Result<bool, String>> {
        Box::pin(async { Ok(false) })
    }

    fn reload<'a>(&'a self, caller: &'a str) -> BoxFuture<'a, Result<Vec<String>, String>> {
        Box::pin(async move { Ok(vec![format!("for {caller}")]) })
    }
}

/// Morocco's node.
pub(super) struct World {
    pub(super) api: Api,
    pub(super) store: Arc<dyn Store>,
    pub(super) committer: Committer,
    pub(super) rosters: RosterStore,
    pub(super) access: Arc<ArcSwap<Access>>,
    /// Stops the node.
    pub(super) stop: watch::Sender<bool>,
    _folder: Option<tempfile::TempDir>,
}

impl World {
    pub(super) async fn start() -> Self {
        Self::with_store(Arc::new(MemoryStore::new()), 1).await
    }

    /// Starts a node in its `epoch`, over a store that may hold earlier ones.
    pub(super) async fn with_store(store: Arc<dyn Store>, epoch: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let high_water_mark = folder.path().join("mark");
        Self { _folder: Some(folder), ..Self::with_high_water_mark(store, epoch, high_water_mark).await }
    }

    /// Like [`Self::with_store`], with the high-water mark at the given path.
    pub(super) async fn with_high_water_mark(
        store: Arc<dyn Store>,
        epoch: u32,
        high_water_mark: std::path::PathBuf,
    ) -> Self {
        let world = Self::starting(store, epoch, high_water_mark, Duration::ZERO);
        world.committer.peer_heads_received();
        assert_eq!(*world.committer.publish_state().borrow(), PublishState::Open);
        world
    }

    /// Starts a node that may not publish before `peer_wait` has passed.
    pub(super) fn starting(
        store: Arc<dyn Store>,
        epoch: u32,
        high_water_mark: std::path::PathBuf,
        peer_wait: Duration,
    ) -> Self {
        let own = feed("ma", epoch);
        let options = Options {
            keys: Keys {
                feed: vec![feed_key(&own)],
                mirror: key("ma", "mirror", Algorithm::CosignatureEd25519),
                custody: key("ma", "custody", Algorithm::Ed25519),
            },
            feed: own,
            high_water_mark,
            bootstrap: true,
            peer_wait,
            share_percent: barid_core::quota::SHARE_PERCENT,
        };
        let committer = Committer::start(Arc::clone(&store), options).unwrap();
        let rosters = RosterStore::new(RosterChain::start(&roster(1, None)).unwrap());
        let access = Arc::new(ArcSwap::from_pointee(Access::parse(&access()).unwrap()));
        let stop = watch::Sender::new(false);
        let api = Api {
            committer: committer.clone(),
            rosters: rosters.clone(),
            access: Arc::clone(&access),
            identify: Arc::new(|extensions| extensions.get::<Identity>().cloned()),
            node: Arc::new(Alone),
            call_limiter: Arc::default(),
            budgets: crate::budgets::Budgets::default(),
            states: Arc::default(),
            alarms: crate::telemetry::alarms::Alarms::default(),
            naming: Arc::default(),
            stopping: stop.subscribe(),
        };
        Self { api, store, committer, rosters, access, stop, _folder: None }
    }

    /// Adds version 2 of the roster.
    pub(super) fn adopt_roster_2(&self) {
        let mut chain = self.rosters.load().as_ref().clone();
        assert!(chain.extend(&roster(2, Some(chain.newest().text_hash()))).unwrap());
        self.rosters.replace(chain);
    }

    pub(super) async fn publish(&self, by: &str, draft: proto::Draft) -> Result<proto::PublishResponse, Status> {
        self.publish_waiting(by, draft, None).await
    }

    pub(super) async fn publish_waiting(
        &self,
        by: &str,
        draft: proto::Draft,
        wait_for: Option<proto::WaitFor>,
    ) -> Result<proto::PublishResponse, Status> {
        let request = proto::PublishRequest { draft: Some(draft), wait_for };
        self.api.publish(called(by, request)).await.map(tonic::Response::into_inner)
    }

    pub(super) async fn published(&self, draft: proto::Draft) -> proto::Receipt {
        self.publish(POLICE, draft).await.unwrap().receipt.unwrap()
    }

    pub(super) async fn get(&self, by: &str, member: &str, id: &str) -> Result<proto::GetResponse, Status> {
        let request = proto::GetRequest { member: member.into(), id: id.into() };
        self.api.get(called(by, request)).await.map(tonic::Response::into_inner)
    }

    pub(super) async fn history(
        &self,
        by: &str,
        request: proto::HistoryRequest,
    ) -> Result<proto::HistoryResponse, Status> {
        self.api.history(called(by, request)).await.map(tonic::Response::into_inner)
    }

    pub(super) async fn acknowledge(&self, by: &str, name: &str, cursor: &Bytes) -> Result<(), Status> {
        let (subscription, cursor) = (name.to_owned(), cursor.clone());
        let request = proto::AcknowledgeRequest { subscription, cursor, ..Default::default() };
        self.api.acknowledge(called(by, request)).await.map(|_| ())
    }

    pub(super) async fn subscribe(&self, by: &str, request: proto::SubscribeRequest) -> Result<Subscriber, Status> {
        let events = self.api.subscribe(called(by, request)).await?.into_inner();
        Ok(Subscriber { events: Box::pin(events) })
    }

    /// Subscribes from the beginning.
    pub(super) async fn follow(&self, by: &str) -> Subscriber {
        let start = Some(proto::subscribe_request::Start::After(0));
        let mut subscriber = self.subscribe(by, proto::SubscribeRequest { start, ..Default::default() }).await.unwrap();
        assert_eq!(subscriber.position().await, 0);
        subscriber
    }

    /// Appends envelopes to a peer's feed; returns the index of the first.
    pub(super) async fn peer_appends(&self, code: &str, envelopes: Vec<Bytes>) -> u64 {
        let content = |envelope: Bytes| {
            let header = envelope::header_of(&envelope).ok().map(Arc::new);
            (envelope::digest(&envelope), VerifiedContent::Disclosed { envelope, header })
        };
        self.append(code, envelopes.into_iter().map(content).collect()).await
    }

    /// Appends a digest to a peer's feed.
    pub(super) async fn peer_withholds(&self, code: &str) -> u64 {
        let content = VerifiedContent::Undisclosed(Undisclosed::Withheld);
        self.append(code, vec![(Digest([7; 32]), content)]).await
    }

    async fn append(&self, code: &str, content: Vec<(Digest, VerifiedContent)>) -> u64 {
        self.append_to(feed(code, 1), content).await
    }

    /// Appends these entries to a feed; returns the index of the first.
    pub(super) async fn append_to(&self, feed: FeedId, content: Vec<(Digest, VerifiedContent)>) -> u64 {
        let mut compact_range = self.store.feed(&feed).map_or_else(CompactRange::new, |state| state.compact_range);
        let first = compact_range.size();
        let mut entries = Vec::new();
        for (digest, content) in content {
            compact_range.append(&digest);
            entries.push(VerifiedEntry { digest, content, pending_roster: None });
        }
        let head = Checkpoint { feed: feed.clone(), size: compact_range.size(), root: compact_range.root() };
        let checkpoint = sign(&head, &[feed_key(&feed)]).unwrap();
        let (consistency_proof, findings) = (Vec::new(), Vec::new());
        let feed_sender = feed.member.clone();
        let batch =
            VerifiedBatch { feed, feed_sender, first, entries, compact_range, checkpoint, consistency_proof, findings };
        self.committer.append(batch).await.unwrap();
        // The cosignatures and custody notes for it are committed with the next records.
        self.committer.persist(Records::default()).await.unwrap();
        first
    }

    /// Adds a peer's custody note for a range of this node's feed, in full except `not_held`.
    pub(super) async fn custody(
        &self,
        by: &str,
        feed: &FeedId,
        range: std::ops::Range<u64>,
        not_held: Option<(std::ops::Range<u64>, Undisclosed)>,
    ) {
        let state = self.store.feed(feed).unwrap();
        let note = CustodyNote {
            feed: feed.clone(),
            size: state.compact_range.size(),
            root: state.compact_range.root(),
            time: 1_700_000_000,
            range: range.clone(),
            not_held: not_held.clone().into_iter().collect(),
        };
        let record = CustodyRecord {
            feed: feed.clone(),
            holder: member(by),
            range,
            not_held: not_held.into_iter().map(|(range, _)| range).collect(),
            time: note.time,
            note: note.sign(&key(by, "custody", Algorithm::Ed25519)).unwrap(),
        };
        self.committer.persist(Records { custody: vec![record], ..Records::default() }).await.unwrap();
    }
}

/// A request of a verified caller.
pub(super) fn called<T>(by: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Identity { path: by.into() });
    request
}

/// An exercise situation report, changed.
pub(super) fn draft(change: impl FnOnce(&mut proto::Header)) -> proto::Draft {
    let mut draft = kinds::find("situation-report").unwrap().sample().unwrap();
    change(draft.header.as_mut().unwrap());
    draft
}

/// A draft that refers to another bulletin, as its publisher would write it: an update, or the
/// sample of the kind.
pub(super) fn about(kind: &str, original: &proto::Draft, receipt: &proto::Receipt) -> proto::Draft {
    let mut draft = kinds::find(kind).unwrap().sample().unwrap();
    let header = draft.header.as_mut().unwrap();
    if kind == "situation-report" {
        header.msg_type = "Update".into();
    }
    let mut first = original.header.clone().unwrap();
    (first.id, first.member) = (receipt.id.clone(), "ma".into());
    header.topic.clone_from(&first.topic);
    header.status.clone_from(&first.status);
    header.handling.clone_from(&first.handling);
    header.retain_until.clone_from(&first.retain_until);
    if header.msg_type == "Ack" {
        header.handling.as_mut().unwrap().releasable_to = vec![first.member.clone()];
    }
    header.references = vec![proto::Reference { member: first.member, id: first.id, digest: receipt.digest.clone() }];
    // The node fills in that of the original.
    header.roster_version = 0;
    draft
}

pub(super) fn digest(bytes: &[u8]) -> Digest {
    Digest(bytes.try_into().unwrap())
}

/// A peer's bulletin in its final bytes.
pub(super) fn bulletin(by: &str, n: u8, change: impl FnOnce(&mut proto::Header)) -> ValidBulletin {
    let defaults = DraftDefaults {
        member: member(by),
        issuer: "desk".into(),
        id: BulletinId::new(now(), &[n; 10]),
        sent_at_unix_ms: now(),
        roster_version: 1,
    };
    prepare(&draft(change), &defaults, [n; 16]).unwrap()
}

/// A bulletin of this node, with an id from a number.
pub(super) fn own_bulletin(n: u64) -> ValidBulletin {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&n.to_be_bytes());
    let defaults = DraftDefaults {
        member: member("ma"),
        issuer: "police-hq".into(),
        id: BulletinId::new(now(), &random),
        sent_at_unix_ms: now(),
        roster_version: 1,
    };
    prepare(&draft(|_| {}), &defaults, [1; 16]).unwrap()
}

/// Like [`bulletin`], but changed after validation, as by a faulty or newer node.
pub(super) fn careless(by: &str, n: u8, change: impl FnOnce(&mut proto::Envelope, &mut proto::Header)) -> Bytes {
    let valid = bulletin(by, n, |_| {});
    let mut whole = envelope::decode(&valid.envelope).unwrap();
    let mut header = valid.proto_header;
    change(&mut whole, &mut header);
    whole.header = prost::Message::encode_to_vec(&header).into();
    prost::Message::encode_to_vec(&whole).into()
}

pub(super) fn now() -> u64 {
    crate::clock::unix_ms()
}

/// TLP:RED to Tunis, or another label.
pub(super) fn red(header: &mut proto::Header) {
    let handling = header.handling.as_mut().unwrap();
    handling.tlp = "TLP:RED".into();
    handling.releasable_to = vec!["tn".into(), "ma".into()];
}

/// The events of a subscription.
pub(super) struct Subscriber {
    events: std::pin::Pin<Box<dyn Stream<Item = Result<proto::SubscribeResponse, Status>> + Send>>,
}

impl Subscriber {
    /// Returns the next response.
    pub(super) async fn response(&mut self) -> Option<Result<proto::SubscribeResponse, Status>> {
        tokio::time::timeout(DEADLINE, self.events.next()).await.expect("something comes in time")
    }

    pub(super) async fn next(&mut self) -> Option<Result<proto::subscribe_response::Event, Status>> {
        self.response().await.map(|event| event.map(|event| event.event.unwrap()))
    }

    /// Returns the next bulletin, with the cursor after it.
    pub(super) async fn delivery_with_cursor(&mut self) -> (proto::Delivery, Bytes) {
        loop {
            let response = self.response().await.unwrap().unwrap();
            match response.event.unwrap() {
                proto::subscribe_response::Event::Delivery(delivery) => return (delivery, response.cursor),
                proto::subscribe_response::Event::Position(_) => {}
                other => panic!("a bulletin, not {other:?}"),
            }
        }
    }

    pub(super) async fn position(&mut self) -> u64 {
        match self.next().await.unwrap().unwrap() {
            proto::subscribe_response::Event::Position(position) => position,
            other => panic!("a position, not {other:?}"),
        }
    }

    /// Returns the next bulletin. Skips positions, and checks that none is beyond a bulletin that
    /// is still to come.
    pub(super) async fn delivery(&mut self) -> proto::Delivery {
        let mut passed = 0;
        loop {
            match self.next().await.unwrap().unwrap() {
                proto::subscribe_response::Event::Position(position) => passed = passed.max(position),
                proto::subscribe_response::Event::Delivery(delivery) => {
                    assert!(delivery.offset > passed, "{} after position {passed}", delivery.offset);
                    return delivery;
                }
                other => panic!("a bulletin, not {other:?}"),
            }
        }
    }
}

/// Verifies a receipt as its holder would, with the keys in the roster. `beside` is the checkpoint
/// for a receipt without one.
pub(super) fn verify_receipt(receipt: &proto::Receipt, beside: &Bytes) {
    let note = if receipt.checkpoint.is_empty() { beside } else { &receipt.checkpoint };
    let own: FeedId = receipt.feed.parse().unwrap();
    let checkpoint = SignedCheckpoint::verify(note, &[feed_key(&own).verifier().clone()]).unwrap().checkpoint;
    assert_eq!(checkpoint.feed, own);
    let proof: Vec<Hash> = receipt.inclusion_proof.iter().map(|hash| Hash(hash[..].try_into().unwrap())).collect();
    verify_inclusion(&digest(&receipt.digest), receipt.index, checkpoint.size, &proof, &checkpoint.root).unwrap();
}

/// Returns the fields at fault, in order.
pub(super) fn fields(result: Result<impl Sized, Status>) -> Vec<String> {
    let Err(status) = result else { panic!("not rejected") };
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_error_details();
    details.bad_request().unwrap().field_violations.iter().map(|field| field.field.clone()).collect()
}

/// Waits for a condition.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + DEADLINE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "timeout: {what}");
        tokio::task::yield_now().await;
    }
}
