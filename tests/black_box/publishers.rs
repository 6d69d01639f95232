//! Focal points that publish while their nodes fail, and store what they receive: receipts, each
//! verified with nothing but the roster, and the offsets of a subscriber's deliveries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use barid::cli::{Profile, channel};
use barid::rpc::focal_point_client::FocalPointClient;
use barid_core::bulletin::BulletinId;
use barid_core::envelope;
use barid_core::feed::checkpoint::SignedCheckpoint;
use barid_core::feed::tree::{MemoryTree, root_at, verify_inclusion};
use barid_core::ids::{Digest, FeedId, Hash};
use barid_core::proto;
use barid_core::proto::publish_result::Outcome;
use barid_core::roster::Roster;
use futures::StreamExt;
use tokio::sync::Semaphore;
use tonic::transport::Channel;

use crate::world::{World, example};

/// Pause of a publisher before a retry.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Bulletins of each member that are published once more at the end.
const REPEATED: usize = 20;

/// A receipt that a publisher has stored.
#[derive(Clone)]
pub(crate) struct SavedReceipt {
    pub(crate) id: String,
    draft: proto::Draft,
    pub(crate) feed: FeedId,
    pub(crate) index: u64,
    pub(crate) digest: Digest,
    pub(crate) checkpoint: SignedCheckpoint,
    /// When it was received, in ns since 1970.
    pub(crate) came_ns: u64,
}

/// The publishers of one member, and their receipts.
pub(crate) struct Publisher {
    pub(crate) member: &'static str,
    pub(crate) channel: Channel,
    pub(crate) roster: Arc<Roster>,
    pub(crate) saved: Mutex<Vec<SavedReceipt>>,
    responses: Arc<AtomicUsize>,
}

/// Returns an alert of a member with a new id.
pub(crate) fn draft(member: &str, round: u64, number: usize) -> proto::Draft {
    let text = example("stolen-passport.fr.json", |draft| {
        draft["body"]["texts"][0]["headline"] = format!("EXERCICE {member} {round} {number}").into();
    });
    let mut draft: proto::Draft = serde_json::from_value(text).unwrap();
    let mut random = [0; 10];
    getrandom::fill(&mut random).unwrap();
    let id = BulletinId::new(now_ns() / 1_000_000, &random);
    draft.header.as_mut().unwrap().id = id.to_string();
    draft
}

/// Returns the current time in ns since 1970.
pub(crate) fn now_ns() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

pub(crate) fn client(channel: &Channel) -> FocalPointClient<Channel> {
    FocalPointClient::new(channel.clone()).max_decoding_message_size(64 << 20)
}

impl Publisher {
    pub(crate) fn new(world: &World, member: &'static str, responses: &Arc<AtomicUsize>) -> Self {
        let profile = Profile::read(&world.folder(member).join("clients/police-hq/client.toml")).unwrap();
        let note = std::fs::read(profile.roster.as_ref().unwrap()).unwrap();
        Self {
            member,
            channel: channel(&profile).unwrap(),
            roster: Arc::new(Roster::read(&note).unwrap().0),
            saved: Mutex::default(),
            responses: Arc::clone(responses),
        }
    }

    /// Publishes all drafts, with retries while the node is unavailable.
    pub(crate) async fn publish(self: Arc<Self>, drafts: Vec<proto::Draft>, window: usize) {
        let mut open: BTreeMap<u64, proto::Draft> = (0..).zip(drafts).collect();
        while !open.is_empty() {
            if let Err(status) = self.attempt(&mut open, window).await {
                use tonic::Code::{Cancelled, Internal, Unavailable, Unknown};
                let passing = matches!(status.code(), Unavailable | Unknown | Cancelled | Internal);
                assert!(passing, "{}: {status:?}", self.member);
            }
            if !open.is_empty() {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }

    /// Publishes on one stream; bulletins with a receipt are removed from `open`.
    async fn attempt(&self, open: &mut BTreeMap<u64, proto::Draft>, window: usize) -> Result<(), tonic::Status> {
        let room = Arc::new(Semaphore::new(window));
        let requests: Vec<_> = open
            .iter()
            .map(|(request, draft)| proto::PublishStreamRequest {
                request: *request,
                publish: Some(proto::PublishRequest { draft: Some(draft.clone()), wait_for: None }),
            })
            .collect();
        let windowed = {
            let room = Arc::clone(&room);
            futures::stream::iter(requests).then(move |request| {
                let room = Arc::clone(&room);
                async move {
                    room.acquire().await.unwrap().forget();
                    request
                }
            })
        };
        let mut responses = client(&self.channel).publish_stream(windowed).await?.into_inner();
        while let Some(response) = responses.message().await? {
            for result in response.results {
                room.add_permits(1);
                match result.outcome.unwrap() {
                    Outcome::Published(published) => {
                        let draft = open.remove(&result.request).unwrap();
                        self.save(draft, published.receipt.unwrap(), &response.checkpoint);
                    }
                    Outcome::Error(rejected) => {
                        let code = tonic::Code::from(rejected.code);
                        let passing = matches!(code, tonic::Code::Unavailable | tonic::Code::ResourceExhausted);
                        assert!(passing, "{}: {rejected:?}", self.member);
                    }
                }
            }
        }
        Ok(())
    }

    /// Stores a receipt after it is verified with nothing but the roster.
    fn save(&self, draft: proto::Draft, receipt: proto::Receipt, shared: &[u8]) {
        let came_ns = now_ns();
        let note = if receipt.checkpoint.is_empty() { shared } else { &receipt.checkpoint };
        let feed: FeedId = receipt.feed.parse().unwrap();
        assert_eq!(feed.member.as_str(), self.member);
        let checkpoint = SignedCheckpoint::verify(note, &self.roster.feed_keys(&feed)).unwrap();
        let digest = Digest(receipt.digest.as_ref().try_into().unwrap());
        let proof: Vec<Hash> =
            receipt.inclusion_proof.iter().map(|hash| Hash(hash.as_ref().try_into().unwrap())).collect();
        let head = &checkpoint.checkpoint;
        assert_eq!(head.feed, feed);
        verify_inclusion(&digest, receipt.index, head.size, &proof, &head.root).unwrap();
        let saved = SavedReceipt { id: receipt.id, draft, feed, index: receipt.index, digest, checkpoint, came_ns };
        self.saved.lock().unwrap().push(saved);
        self.responses.fetch_add(1, Ordering::SeqCst);
    }

    /// Checks every receipt that was received before `before_ns` with the current feed.
    pub(crate) fn still_true(&self, tree: &FeedTree, before_ns: u64) {
        for saved in self.saved.lock().unwrap().iter().filter(|saved| saved.came_ns < before_ns) {
            let (index, head) = (saved.index, &saved.checkpoint.checkpoint);
            let place = tree.entries.get(&index);
            assert_eq!(place, Some(&(saved.digest, saved.id.clone())), "{} {index}", saved.feed);
            assert!(head.size <= tree.tree.size(), "{}: size {} was released", saved.feed, head.size);
            assert_eq!(root_at(&tree.tree, head.size), Ok(head.root), "{} at {}", saved.feed, head.size);
        }
    }

    /// Checks that a bulletin published again gets the same receipt.
    pub(crate) async fn repeat_some(&self) {
        let saved: Vec<SavedReceipt> = self.saved.lock().unwrap().iter().rev().take(REPEATED).cloned().collect();
        for saved in saved {
            let request = proto::PublishRequest { draft: Some(saved.draft), wait_for: None };
            let receipt = client(&self.channel).publish(request).await.unwrap().into_inner().receipt.unwrap();
            assert_eq!((receipt.index, receipt.digest.as_ref()), (saved.index, saved.digest.0.as_slice()));
        }
    }
}

/// A feed as one member's history shows it.
pub(crate) struct FeedTree {
    pub(crate) tree: MemoryTree,
    /// Digest and id, by index.
    entries: BTreeMap<u64, (Digest, String)>,
}

/// Builds the tree of a publisher's feed from deliveries, and checks that no entry is missing or
/// exists twice.
pub(crate) fn tree_of(deliveries: &[proto::Delivery], publisher: &Publisher) -> FeedTree {
    let mut entries = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for delivery in deliveries {
        let header = envelope::header_of(&delivery.envelope).unwrap();
        if header.member != publisher.member {
            continue;
        }
        let digest = envelope::digest(&delivery.envelope);
        assert_eq!(digest.0.as_slice(), delivery.digest.as_ref());
        assert!(ids.insert(header.id.clone()), "{} is there twice", header.id);
        assert!(entries.insert(delivery.index, (digest, header.id)).is_none(), "{} {}", delivery.feed, delivery.index);
    }
    let mut tree = MemoryTree::new();
    for ((index, (digest, _)), expected) in entries.iter().zip(0..) {
        assert_eq!(*index, expected, "{}: an entry is missing", publisher.member);
        tree.append(digest);
    }
    FeedTree { tree, entries }
}

/// Returns all that a member's focal point may read, newest first; no offset exists twice.
pub(crate) async fn history(channel: &Channel, member: Option<&str>) -> Vec<proto::Delivery> {
    let filter = proto::Filter { members: member.map(str::to_owned).into_iter().collect(), ..proto::Filter::default() };
    let mut request =
        proto::HistoryRequest { filter: Some(filter), page_size: 1_000, ..proto::HistoryRequest::default() };
    let mut deliveries = Vec::new();
    let mut last = u64::MAX;
    loop {
        let page = client(channel).history(request.clone()).await.unwrap().into_inner();
        for delivery in page.deliveries {
            assert!(delivery.offset < last, "offset {} after {last}", delivery.offset);
            last = delivery.offset;
            deliveries.push(delivery);
        }
        if page.next_page_token.is_empty() {
            return deliveries;
        }
        request.page_token = page.next_page_token;
    }
}

/// Deliveries to one subscriber over all restarts of its node: feed and index by offset, with the
/// time of the first delivery in ns since 1970; and the newest cursor.
#[derive(Default)]
pub(crate) struct DeliveryLog(pub(crate) Mutex<BTreeMap<u64, (String, u64, u64)>>, Mutex<bytes::Bytes>);

impl DeliveryLog {
    /// Subscribes from the newest cursor, again and again.
    pub(crate) async fn follow(self: Arc<Self>, channel: Channel) {
        loop {
            let _ = self.attempt(&channel).await;
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn attempt(&self, channel: &Channel) -> Result<(), tonic::Status> {
        use proto::subscribe_request::Start;
        use proto::subscribe_response::Event;
        let cursor = self.1.lock().unwrap().clone();
        let start = cursor.is_empty().then_some(Start::After(0));
        let request = proto::SubscribeRequest { start, cursor, ..Default::default() };
        let mut events = client(channel).subscribe(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            assert!(!matches!(event.event, Some(Event::Reset(_))), "the store is the same");
            *self.1.lock().unwrap() = event.cursor;
            if let Some(Event::Delivery(delivery)) = event.event {
                let came = (delivery.feed, delivery.index, now_ns());
                let mut delivered = self.0.lock().unwrap();
                let first = delivered.entry(delivery.offset).or_insert_with(|| came.clone());
                assert_eq!((&first.0, first.1), (&came.0, came.1), "offset {} was another", delivery.offset);
            }
        }
        Ok(())
    }

    /// Checks that no entry was delivered twice, and that the node still has the same entry at each
    /// offset.
    pub(crate) fn check(&self, deliveries: &[proto::Delivery]) {
        let delivered = self.0.lock().unwrap();
        let places: BTreeSet<_> = delivered.values().map(|(feed, index, _)| (feed, index)).collect();
        assert_eq!(places.len(), delivered.len(), "an entry has two offsets");
        assert!(!delivered.is_empty());
        let now: BTreeMap<u64, (&str, u64)> =
            deliveries.iter().map(|held| (held.offset, (held.feed.as_str(), held.index))).collect();
        for (offset, (feed, index, _)) in delivered.iter() {
            assert_eq!(now.get(offset), Some(&(feed.as_str(), *index)), "offset {offset}");
        }
    }
}
