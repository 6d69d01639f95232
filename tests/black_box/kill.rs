//! Nodes are killed at random moments while focal points publish: what was released stays true, and nothing is there twice.
//!
//! Receipts are kept by the publishers, outside the nodes. A publisher that got no answer sends the same draft with the same id again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use barid::cli::{Profile, channel};
use barid::rpc::focal_point_client::FocalPointClient;
use barid_core::bulletin::BulletinId;
use barid_core::envelope;
use barid_core::feed::checkpoint::SignedCheckpoint;
use barid_core::feed::tree::{MemoryTree, root_at, verify_inclusion};
use barid_core::names::{Digest, FeedId, Hash};
use barid_core::proto;
use barid_core::proto::publish_result::Outcome;
use barid_core::roster::Roster;
use futures::StreamExt;
use tokio::sync::Semaphore;
use tonic::transport::Channel;

use crate::world::{DEADLINE, MEMBERS, World, example, until};

/// Rounds of one test run; `BARID_KILL_ROUNDS` asks for more.
const ROUNDS: u64 = 6;
/// Bulletins that each member publishes in a round.
const PUBLISHED_A_ROUND: usize = 40;
/// Bulletins of one publisher without an answer, at most; each round draws another number.
const WINDOW_MAX: u64 = 24;
/// Pause before a publisher without an answer tries again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Moments drawn at random are at most so far apart: a node opens its store and its links within it.
const MOMENT_MAX_MICROS: u64 = 300_000;
/// Bulletins of each member that are published once more at the end.
const REPEATED: usize = 20;

/// What a publisher keeps.
#[derive(Clone)]
struct Kept {
    id: String,
    draft: proto::Draft,
    feed: FeedId,
    index: u64,
    digest: Digest,
    checkpoint: SignedCheckpoint,
}

/// All that the publishers of one member know.
struct Publisher {
    member: &'static str,
    channel: Channel,
    roster: Arc<Roster>,
    kept: Mutex<Vec<Kept>>,
    answers: Arc<AtomicUsize>,
}

/// xorshift64*: the seed is printed, so that the choices of a run can be repeated (its timing cannot).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn moment(&mut self) -> Duration {
        // Short moments are as likely as long ones: much happens within a commit.
        let most = 1 << self.below(19);
        Duration::from_micros(self.below(MOMENT_MAX_MICROS.min(most)))
    }
}

#[test]
fn what_was_released_outlives_kills_at_any_moment() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let rounds = number("BARID_KILL_ROUNDS").unwrap_or(ROUNDS);
    let seed = number("BARID_KILL_SEED").unwrap_or_else(random_seed);
    println!("{rounds} rounds, BARID_KILL_SEED={seed}");
    let mut random = Random(seed | 1);
    let mut world = World::logging("info");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let answers = Arc::new(AtomicUsize::new(0));
    let publishers: BTreeMap<&str, Arc<Publisher>> = MEMBERS
        .into_iter()
        .map(|member| (member, Arc::new(runtime.block_on(async { Publisher::new(&world, member, &answers) }))))
        .collect();
    let arrivals = Arc::new(Arrivals::default());
    let subscriber = runtime.spawn(Arc::clone(&arrivals).take(publishers["tn"].channel.clone()));
    let (mut kills, mut rebuilt) = (0, 0);

    for round in 0..rounds {
        let before = answers.load(Ordering::SeqCst);
        let publishing: Vec<_> = publishers
            .values()
            .map(|publisher| {
                let drafts = (0..PUBLISHED_A_ROUND).map(|number| draft(publisher.member, round, number)).collect();
                let window = usize::try_from(1 + random.below(WINDOW_MAX)).unwrap();
                runtime.spawn(Arc::clone(publisher).publish(drafts, window))
            })
            .collect();
        let awaited = before + usize::try_from(random.below((PUBLISHED_A_ROUND * MEMBERS.len()) as u64)).unwrap();
        until("publishing goes on", || answers.load(Ordering::SeqCst) >= awaited);
        std::thread::sleep(random.moment());

        let count = match random.below(10) {
            0 => 4,
            1..=3 => 2,
            _ => 1,
        };
        let mut victims = BTreeSet::new();
        while victims.len() < count {
            victims.insert(MEMBERS[usize::try_from(random.below(4)).unwrap()]);
        }
        for victim in &victims {
            world.kill(victim);
            kills += 1;
            if random.chance(20) {
                std::fs::remove_dir_all(world.folder(victim).join("data/db")).unwrap();
                rebuilt += 1;
            }
        }
        for victim in &victims {
            // Some are killed again while they start.
            while random.chance(30) {
                world.spawn(victim);
                std::thread::sleep(random.moment());
                world.kill(victim);
                kills += 1;
            }
            world.run(victim);
        }
        for done in publishing {
            runtime.block_on(async { tokio::time::timeout(DEADLINE, done).await.expect("published in time") }).unwrap();
        }
        for victim in victims {
            let publisher = &publishers[victim];
            let held = runtime.block_on(history(&publisher.channel, Some(victim)));
            publisher.still_true(&tree_of(&held, publisher));
        }
    }

    let published = usize::try_from(rounds).unwrap() * PUBLISHED_A_ROUND;
    all_hold_the_same(&world, &runtime, &publishers, published);
    assert!(!subscriber.is_finished(), "the subscriber found something wrong");
    subscriber.abort();
    arrivals.check(&runtime.block_on(history(&publishers["tn"].channel, None)));
    // The view was never believed: without it nothing is missing.
    for member in MEMBERS {
        world.kill(member);
        std::fs::remove_dir_all(world.folder(member).join("data/db")).unwrap();
        world.run(member);
    }
    all_hold_the_same(&world, &runtime, &publishers, published);
    for publisher in publishers.values() {
        runtime.block_on(publisher.repeat_some());
    }
    println!("{kills} kills, {rebuilt} views deleted, {} receipts", published * MEMBERS.len());
}

fn random_seed() -> u64 {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).unwrap();
    u64::from_le_bytes(seed)
}

fn draft(member: &str, round: u64, number: usize) -> proto::Draft {
    let text = example("stolen-passport.fr.json", |draft| {
        draft["body"]["texts"][0]["headline"] = format!("EXERCICE {member} {round} {number}").into();
    });
    let mut draft: proto::Draft = serde_json::from_value(text).unwrap();
    let mut random = [0; 10];
    getrandom::fill(&mut random).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let id = BulletinId::new(u64::try_from(now.as_millis()).unwrap(), &random);
    draft.header.as_mut().unwrap().id = id.to_string();
    draft
}

fn client(channel: &Channel) -> FocalPointClient<Channel> {
    FocalPointClient::new(channel.clone()).max_decoding_message_size(64 << 20)
}

impl Publisher {
    fn new(world: &World, member: &'static str, answers: &Arc<AtomicUsize>) -> Self {
        let profile = Profile::read(&world.folder(member).join("clients/police-hq/client.toml")).unwrap();
        let note = std::fs::read(profile.roster.as_ref().unwrap()).unwrap();
        Self {
            member,
            channel: channel(&profile).unwrap(),
            roster: Arc::new(Roster::read(&note).unwrap().0),
            kept: Mutex::default(),
            answers: Arc::clone(answers),
        }
    }

    /// Publishes all of these, however often the node goes away meanwhile.
    async fn publish(self: Arc<Self>, drafts: Vec<proto::Draft>, window: usize) {
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

    /// One stream: what is answered leaves `open`.
    async fn attempt(&self, open: &mut BTreeMap<u64, proto::Draft>, window: usize) -> Result<(), tonic::Status> {
        let room = Arc::new(Semaphore::new(window));
        let requests: Vec<_> = open
            .iter()
            .map(|(request, draft)| proto::PublishStreamRequest {
                request: *request,
                publish: Some(proto::PublishRequest { draft: Some(draft.clone()), wait_for: None }),
            })
            .collect();
        let paced = {
            let room = Arc::clone(&room);
            futures::stream::iter(requests).then(move |request| {
                let room = Arc::clone(&room);
                async move {
                    room.acquire().await.unwrap().forget();
                    request
                }
            })
        };
        let mut answers = client(&self.channel).publish_stream(paced).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            for result in answer.results {
                room.add_permits(1);
                match result.outcome.unwrap() {
                    Outcome::Published(published) => {
                        let draft = open.remove(&result.request).unwrap();
                        self.keep(draft, published.receipt.unwrap(), &answer.checkpoint);
                    }
                    Outcome::Refused(refused) => {
                        let code = tonic::Code::from(refused.code);
                        let passing = matches!(code, tonic::Code::Unavailable | tonic::Code::ResourceExhausted);
                        assert!(passing, "{}: {refused:?}", self.member);
                    }
                }
            }
        }
        Ok(())
    }

    /// A receipt is kept only if it proves what it says, to somebody who holds nothing but the roster.
    fn keep(&self, draft: proto::Draft, receipt: proto::Receipt, shared: &[u8]) {
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
        let kept = Kept { id: receipt.id, draft, feed, index: receipt.index, digest, checkpoint };
        self.kept.lock().unwrap().push(kept);
        self.answers.fetch_add(1, Ordering::SeqCst);
    }

    /// Every receipt against the feed as it is now.
    fn still_true(&self, tree: &FeedTree) {
        for kept in self.kept.lock().unwrap().iter() {
            let (index, head) = (kept.index, &kept.checkpoint.checkpoint);
            let place = tree.entries.get(&index);
            assert_eq!(place, Some(&(kept.digest, kept.id.clone())), "{} {index}", kept.feed);
            assert!(head.size <= tree.tree.size(), "{}: size {} was released", kept.feed, head.size);
            assert_eq!(root_at(&tree.tree, head.size), Ok(head.root), "{} at {}", kept.feed, head.size);
        }
    }

    /// Published again, a bulletin is the one that it was.
    async fn repeat_some(&self) {
        let kept: Vec<Kept> = self.kept.lock().unwrap().iter().rev().take(REPEATED).cloned().collect();
        for kept in kept {
            let request = proto::PublishRequest { draft: Some(kept.draft), wait_for: None };
            let receipt = client(&self.channel).publish(request).await.unwrap().into_inner().receipt.unwrap();
            assert_eq!((receipt.index, receipt.digest.as_ref()), (kept.index, kept.digest.0.as_slice()));
        }
    }
}

/// A feed as one member's history shows it.
struct FeedTree {
    tree: MemoryTree,
    /// Digest and id, by index.
    entries: BTreeMap<u64, (Digest, String)>,
}

/// Builds the tree of a publisher's feed from deliveries, among others, and checks that nothing is missing or there twice.
fn tree_of(deliveries: &[proto::Delivery], publisher: &Publisher) -> FeedTree {
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

/// Everything that a member's focal point may read, newest first; no arrival is there twice.
async fn history(channel: &Channel, member: Option<&str>) -> Vec<proto::Delivery> {
    let filter = proto::Filter { members: member.map(str::to_owned).into_iter().collect(), ..proto::Filter::default() };
    let mut request =
        proto::HistoryRequest { filter: Some(filter), page_size: 1_000, ..proto::HistoryRequest::default() };
    let mut deliveries = Vec::new();
    let mut last = u64::MAX;
    loop {
        let page = client(channel).history(request.clone()).await.unwrap().into_inner();
        for delivery in page.deliveries {
            assert!(delivery.arrival < last, "arrival {} after {last}", delivery.arrival);
            last = delivery.arrival;
            deliveries.push(delivery);
        }
        if page.next_page_token.is_empty() {
            return deliveries;
        }
        request.page_token = page.next_page_token;
    }
}

/// All members' views of each feed are equal, and hold exactly what was published, each once.
fn all_hold_the_same(
    world: &World,
    runtime: &tokio::runtime::Runtime,
    publishers: &BTreeMap<&str, Arc<Publisher>>,
    published: usize,
) {
    until("all feeds are equal everywhere and whole", || {
        let feeds = MEMBERS.map(|member| world.feeds(member));
        feeds[0].len() == MEMBERS.len()
            && feeds[0].values().all(|(size, _)| *size == published.to_string())
            && feeds.iter().all(|other| *other == feeds[0])
    });
    let feeds = world.feeds("ma");
    for at in publishers.values() {
        let deliveries = runtime.block_on(history(&at.channel, None));
        assert_eq!(deliveries.len(), published * MEMBERS.len(), "at {}", at.member);
        for publisher in publishers.values() {
            let tree = tree_of(&deliveries, publisher);
            publisher.still_true(&tree);
            let (_, root) = &feeds[&format!("{}.{}/feed/1", publisher.member, publisher.roster.exchange())];
            let shown = tree.tree.root();
            assert_eq!(root_of(root), shown, "{} at {}", publisher.member, at.member);
        }
    }
}

fn root_of(text: &str) -> Hash {
    use base64::Engine as _;
    Hash(base64::engine::general_purpose::STANDARD.decode(text).unwrap().try_into().unwrap())
}

/// What one subscriber was given, over all restarts of its node: places by arrival.
#[derive(Default)]
struct Arrivals(Mutex<BTreeMap<u64, (String, u64)>>);

impl Arrivals {
    /// Subscribes from what it has, again and again.
    async fn take(self: Arc<Self>, channel: Channel) {
        loop {
            let _ = self.attempt(&channel).await;
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn attempt(&self, channel: &Channel) -> Result<(), tonic::Status> {
        use proto::subscribe_request::Start;
        use proto::subscribe_response::Event;
        let after = self.0.lock().unwrap().last_key_value().map_or(0, |(arrival, _)| *arrival);
        let request = proto::SubscribeRequest { filter: None, start: Some(Start::After(after)) };
        let mut events = client(channel).subscribe(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            if let Some(Event::Delivery(delivery)) = event.event {
                let place = (delivery.feed, delivery.index);
                let before = self.0.lock().unwrap().insert(delivery.arrival, place.clone());
                assert!(before.is_none_or(|before| before == place), "arrival {} was another", delivery.arrival);
            }
        }
        Ok(())
    }

    /// Nothing twice, and each arrival is what the node still says that it is.
    fn check(&self, deliveries: &[proto::Delivery]) {
        let arrivals = self.0.lock().unwrap();
        let places: BTreeSet<_> = arrivals.values().collect();
        assert_eq!(places.len(), arrivals.len(), "an entry came under two arrivals");
        assert!(!arrivals.is_empty());
        let now: BTreeMap<u64, (&str, u64)> =
            deliveries.iter().map(|held| (held.arrival, (held.feed.as_str(), held.index))).collect();
        for (arrival, (feed, index)) in arrivals.iter() {
            assert_eq!(now.get(arrival), Some(&(feed.as_str(), *index)), "arrival {arrival}");
        }
    }
}
