//! Members with nodes in memory, and wires between them that a test can cut or tamper with.

use std::sync::Arc;
use std::time::Duration;

use barid_core::bulletin::{BulletinId, DraftDefaults, TopicFilter, ValidBulletin, kinds, prepare};
use barid_core::feed::note::{Algorithm, Note, SigningKey};
use barid_core::ids::{FeedId, Hash, Member};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::roster::RosterChain;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::committer::{Committer, Keys, Options as CommitterOptions};
use crate::exchange::{Exchange, LinkError, NoRevocations, Options, PeerStatus, Revocations, Wire};
use crate::roster_store::RosterStore;
use crate::store::Store;
use crate::store::memory::MemoryStore;

pub(super) const EXCHANGE: &str = "rabat.example";

pub(super) fn member(code: &str) -> Member {
    code.parse().unwrap()
}

pub(super) fn feed(code: &str) -> FeedId {
    FeedId::new(member(code), EXCHANGE.parse().unwrap(), 1)
}

/// Returns the same key for the same name every time.
pub(super) fn key(code: &str, role: &str, algorithm: Algorithm) -> SigningKey {
    let name = format!("{code}.{EXCHANGE}/{role}");
    let seed = barid_core::envelope::digest(name.as_bytes()).0;
    SigningKey::from_seed(&name, algorithm, seed).unwrap()
}

pub(super) fn keys(code: &str) -> Keys {
    Keys {
        feed: vec![key(code, "feed/1", Algorithm::Ed25519)],
        mirror: key(code, "mirror", Algorithm::CosignatureEd25519),
        custody: key(code, "custody", Algorithm::Ed25519),
    }
}

/// The key that signs the rosters.
pub(super) fn governor() -> SigningKey {
    SigningKey::from_seed("governors.example/one", Algorithm::Ed25519, [1; 32]).unwrap()
}

/// Roster `version` of ma, ly and tn, all in every working group.
pub(super) fn roster(version: u64, previous: Option<Hash>) -> Bytes {
    let governor = governor();
    let mut text = format!("format = 1\nexchange = \"{EXCHANGE}\"\nversion = {version}\n");
    if let Some(previous) = previous {
        text += &format!("previous = \"{previous}\"\n");
    }
    text += "issued = 2025-01-01T00:00:00Z\nreview_by = 2030-01-01T00:00:00Z\nquorum = 1\n";
    text += "working_groups = [\"security\", \"information\", \"customs\", \"justice\"]\n";
    text += &format!("[governors]\nthreshold = 1\nkeys = [\"{}\"]\n", governor.verifier());
    for code in ["ma", "ly", "tn"] {
        let keys = keys(code);
        text += &format!(
            "[[members]]\ncode = \"{code}\"\nkind = \"full\"\nnames = {{ ar = \"x\", fr = \"x\", en = \"x\" }}\n\
             endpoints = [\"{code}.example:4443\"]\ntrust_domain = \"{code}.{EXCHANGE}\"\nca_certificates = [\"certificate of {code}\"]\n\
             working_groups = [\"security\", \"information\", \"customs\", \"justice\"]\n\
             keys = [{{ role = \"feed\", epoch = 1, key = \"{}\" }}, {{ role = \"mirror\", key = \"{}\" }}, \
             {{ role = \"custody\", key = \"{}\" }}]\n",
            keys.feed[0].verifier(),
            keys.mirror.verifier(),
            keys.custody.verifier()
        );
    }
    Note::sign(&text, &governor).unwrap().to_bytes().into()
}

pub(super) struct Node {
    pub(super) me: Member,
    pub(super) store: Arc<dyn Store>,
    pub(super) committer: Committer,
    pub(super) rosters: RosterStore,
    pub(super) exchange: Exchange,
    shutdown: watch::Sender<bool>,
    _folder: tempfile::TempDir,
}

impl Node {
    pub(super) fn start(code: &str) -> Self {
        Self::following(code, &[])
    }

    /// A node that follows only these topics.
    pub(super) fn following(code: &str, topics: &[&str]) -> Self {
        Self::with(code, topics, Arc::new(NoRevocations))
    }

    /// A node with revocation lists that the test provides.
    pub(super) fn with(code: &str, topics: &[&str], revocations: Arc<dyn Revocations>) -> Self {
        Self::with_store(Arc::new(MemoryStore::new()), code, topics, revocations)
    }

    /// A node with a store that the test provides.
    pub(super) fn with_store(
        store: Arc<dyn Store>,
        code: &str,
        topics: &[&str],
        revocations: Arc<dyn Revocations>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let committer = Committer::start(
            Arc::clone(&store),
            CommitterOptions {
                feed: feed(code),
                keys: keys(code),
                high_water_mark: folder.path().join("mark"),
                bootstrap: true,
                peer_wait: Duration::ZERO,
                share_percent: barid_core::quota::SHARE_PERCENT,
            },
        )
        .unwrap();
        let rosters = RosterStore::new(RosterChain::start(&roster(1, None)).unwrap());
        let (exchange, stop) = exchange(&committer, &rosters, topics, revocations);
        Self { me: member(code), store, committer, rosters, exchange, shutdown: stop, _folder: folder }
    }

    /// The same node with other topics; its links end.
    pub(super) fn restart_with_topics(mut self, topics: &[&str]) -> Self {
        self.shutdown.send_replace(true);
        (self.exchange, self.shutdown) = exchange(&self.committer, &self.rosters, topics, Arc::new(NoRevocations));
        self
    }

    pub(super) fn feed(&self) -> FeedId {
        feed(self.me.as_str())
    }

    /// This node's status of a peer.
    pub(super) fn peer_status(&self, peer: &Member) -> PeerStatus {
        self.exchange.peers().snapshot().remove(peer).unwrap_or_default()
    }

    pub(super) fn size(&self, feed: &FeedId) -> u64 {
        self.store.feed(feed).map_or(0, |state| state.compact_range.size())
    }

    pub(super) fn root(&self, feed: &FeedId) -> Option<Hash> {
        self.store.feed(feed).map(|state| state.compact_range.root())
    }

    /// Publishes `count` situation reports, changed by `change`, in groups.
    pub(super) async fn publish(&self, count: usize, change: impl Fn(&mut proto::Draft)) {
        until("publishing opens", || *self.committer.publish_state().borrow() == crate::committer::PublishState::Open)
            .await;
        let mut left = count;
        while left > 0 {
            let group = left.min(500);
            let bulletins = (0..group).map(|_| bulletin(&self.me, &change)).collect();
            self.committer.publish(bulletins).await.unwrap();
            left -= group;
        }
    }
}

fn exchange(
    committer: &Committer,
    rosters: &RosterStore,
    topics: &[&str],
    revocations: Arc<dyn Revocations>,
) -> (Exchange, watch::Sender<bool>) {
    let (stop, shutdown) = watch::channel(false);
    let exchange = Exchange::new(Options {
        committer: committer.clone(),
        rosters: rosters.clone(),
        topics: topics.iter().map(|topic| topic.parse::<TopicFilter>().unwrap()).collect(),
        backfill_new_members: false,
        listens: true,
        budgets: crate::budgets::Budgets::default(),
        revocations,
        shutdown,
    });
    (exchange, stop)
}

pub(super) fn bulletin(by: &Member, change: &impl Fn(&mut proto::Draft)) -> ValidBulletin {
    let mut draft = kinds::find("situation-report").unwrap().sample().unwrap();
    change(&mut draft);
    let mut random = [0; 26];
    getrandom::fill(&mut random).unwrap();
    let now = crate::clock::unix_ms();
    let (id, salt) = random.split_at(10);
    let defaults = DraftDefaults {
        member: by.clone(),
        issuer: "desk".into(),
        id: BulletinId::new(now, id.try_into().unwrap()),
        sent_at_unix_ms: now,
        roster_version: 1,
    };
    prepare(&draft, &defaults, salt.try_into().unwrap()).unwrap()
}

/// Revocation lists that are not verified.
pub(super) struct TestCrls {
    held: Mutex<Vec<(String, Bytes)>>,
    changed: watch::Sender<u64>,
    pub(super) offered: Mutex<Vec<Bytes>>,
}

impl TestCrls {
    pub(super) fn holding(crls: &[(&str, usize)]) -> Arc<Self> {
        let this = Arc::new(Self { held: Mutex::default(), changed: watch::Sender::new(0), offered: Mutex::default() });
        crls.iter().for_each(|(name, bytes)| this.put(name, *bytes));
        this
    }

    /// Replaces the list of this authority by one of this many bytes.
    pub(super) fn put(&self, name: &str, bytes: usize) {
        let mut held = self.held.lock();
        held.retain(|(other, _)| other != name);
        held.push((name.to_owned(), vec![7; bytes].into()));
        drop(held);
        self.changed.send_modify(|version| *version += 1);
    }

    /// Sizes of the offered lists.
    pub(super) fn offered_bytes(&self) -> Vec<usize> {
        self.offered.lock().iter().map(Bytes::len).collect()
    }
}

impl Revocations for TestCrls {
    fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn held(&self) -> Vec<(String, Bytes)> {
        self.held.lock().clone()
    }

    fn offer(&self, _from: &Member, crls: Vec<Bytes>) {
        self.offered.lock().extend(crls);
    }
}

/// Changes a frame in flight; `None` drops it.
pub(super) type Tamper = Box<dyn FnMut(proto::Frame) -> Option<proto::Frame> + Send>;

pub(super) fn honest() -> Tamper {
    Box::new(Some)
}

/// A link between two nodes. Dropping it cuts the wire.
pub(super) struct Cable {
    tasks: Vec<JoinHandle<()>>,
    pub(super) dialler: JoinHandle<Result<(), LinkError>>,
    pub(super) dialled: JoinHandle<Result<(), LinkError>>,
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// `a` dials `b`; frames pass through `from_a` and `from_b`.
pub(super) fn connect(a: &Node, b: &Node, from_a: Tamper, from_b: Tamper) -> Cable {
    let (a_out, a_sent) = mpsc::channel(4);
    let (b_out, b_sent) = mpsc::channel(4);
    let (to_a, a_in) = mpsc::channel(4);
    let (to_b, b_in) = mpsc::channel(4);
    let tasks = vec![tokio::spawn(carry(a_sent, to_b, from_a)), tokio::spawn(carry(b_sent, to_a, from_b))];
    let side = |node: &Node, peer: &Node, dialled: bool, outgoing, incoming| {
        let (exchange, peer) = (node.exchange.clone(), peer.me.clone());
        let incoming = ReceiverStream::new(incoming).map(Ok).boxed();
        tokio::spawn(async move { exchange.link(&peer, dialled, Wire { incoming, outgoing }).await })
    };
    Cable { tasks, dialler: side(a, b, true, a_out, a_in), dialled: side(b, a, false, b_out, b_in) }
}

async fn carry(mut from: mpsc::Receiver<proto::Frame>, to: mpsc::Sender<proto::Frame>, mut tamper: Tamper) {
    while let Some(frame) = from.recv().await {
        if let Some(frame) = tamper(frame)
            && to.send(frame).await.is_err()
        {
            return;
        }
    }
}

/// A peer played by the test, frame by frame.
pub(super) struct Actor {
    pub(super) to_node: mpsc::Sender<proto::Frame>,
    pub(super) from_node: mpsc::Receiver<proto::Frame>,
    pub(super) link: JoinHandle<Result<(), LinkError>>,
}

impl Actor {
    /// Dials `node` as `code` and completes the handshake.
    pub(super) async fn handshake(node: &Node, code: &str) -> Self {
        let actor = Self::dial(node, code);
        actor
            .send(Frame::Hello(proto::Hello {
                protocol: 1,
                exchange: EXCHANGE.into(),
                roster_version: 1,
                ..proto::Hello::default()
            }))
            .await;
        actor
    }

    pub(super) fn dial(node: &Node, code: &str) -> Self {
        let (to_node, node_incoming) = mpsc::channel(64);
        let (outgoing, from_node) = mpsc::channel(4);
        let (exchange, peer) = (node.exchange.clone(), member(code));
        let incoming = ReceiverStream::new(node_incoming).map(Ok).boxed();
        let link = tokio::spawn(async move { exchange.link(&peer, false, Wire { incoming, outgoing }).await });
        Self { to_node, from_node, link }
    }

    pub(super) async fn send(&self, frame: Frame) {
        self.to_node.send(proto::Frame { frame: Some(frame) }).await.unwrap();
    }

    /// Returns the next frame that `wanted` picks; others are dropped.
    pub(super) async fn receive<T>(&mut self, wanted: impl Fn(Frame) -> Option<T>) -> T {
        tokio::time::timeout(Duration::from_secs(100), async {
            loop {
                let frame = self.from_node.recv().await.expect("the link is open").frame;
                if let Some(found) = frame.and_then(&wanted) {
                    return found;
                }
            }
        })
        .await
        .expect("received in time")
    }
}

/// Active alarms of this node.
#[cfg(test)]
pub(super) fn alarms(node: &Node) -> Vec<String> {
    node.exchange.alarms().snapshot().iter().map(|active| active.alarm.to_string()).collect()
}

/// Waits for a condition, at most 20 s.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "timeout: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
