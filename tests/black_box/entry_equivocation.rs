//! A member signs two trees and reveals them entry by entry in the priority lane. Its feed stops at
//! the others, the evidence can be verified by anybody, operators everywhere are alarmed, and an
//! operator's decision holds until there is evidence of a further fork.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use barid::config::NodeConfig;
use barid::rpc::exchange_client::ExchangeClient;
use barid::transport::{Compress, Connections, Connector, Credentials, CrlStore, Policy, SpiffeId, Trust, Verifier};
use barid_core::bulletin::{BulletinId, DraftDefaults, ValidBulletin, kinds, prepare};
use barid_core::feed::checkpoint::{Checkpoint, sign};
use barid_core::feed::note::SigningKey;
use barid_core::feed::tree::{MemoryTree, inclusion_proof};
use barid_core::ids::{FeedId, Hash};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::proto::item::Item;
use barid_core::roster::Roster;
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::world::{MEMBERS, World, barid, example, until};

const FEED: &str = "ma.rabat.example/feed/1";
/// Index at which the trees have different entries.
const PLACE: usize = 3;

/// The node of Rabat under an attacker's control, with its keys and certificate.
struct Rabat {
    runtime: tokio::runtime::Runtime,
    connector: Connector,
    roster: Roster,
    key: SigningKey,
}

/// One of the trees that it signs, with its bulletins.
struct History {
    tree: MemoryTree,
    bulletins: Vec<ValidBulletin>,
}

/// A link to one member, on which the attacker sends any frames.
struct Link {
    sender: mpsc::Sender<proto::LinkRequest>,
    /// Number of Follow requests received for the feed.
    follow_requests: Arc<AtomicU64>,
    _receive_task: tokio::task::JoinHandle<()>,
}

impl Rabat {
    fn of(world: &World) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let config = NodeConfig::load(&world.folder("ma").join("node.toml")).unwrap();
        let roster = Roster::read(&fs::read(world.roster()).unwrap()).unwrap().0;
        let key = fs::read_to_string(config.text.keys.join("feed.key")).unwrap();
        let policy = Policy::Peers("ma.rabat.example".into());
        let connector = Connector {
            verifier: Verifier::new(Trust::of(&roster), CrlStore::default(), policy, 0),
            credentials: Credentials::load(&config.text.certificate, &config.text.private_key).unwrap(),
            connections: Connections::default(),
            compress: Compress::Never,
            on_rejected: Arc::new(|_| ()),
        };
        Self { runtime, connector, roster, key: SigningKey::from_text(key.trim_end()).unwrap() }
    }

    /// Returns a history of eight urgent reports, different each time.
    fn history(&self) -> History {
        let mut history = History { tree: MemoryTree::new(), bulletins: Vec::new() };
        (0..8).for_each(|_| self.append(&mut history));
        history
    }

    fn append(&self, history: &mut History) {
        let mut draft = kinds::find("situation-report").unwrap().sample().unwrap();
        draft.header.as_mut().unwrap().urgency = "Immediate".into();
        let mut random = [0; 26];
        getrandom::fill(&mut random).unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        let now = u64::try_from(now).unwrap();
        let (id, salt) = random.split_at(10);
        let defaults = DraftDefaults {
            member: "ma".parse().unwrap(),
            issuer: "situation-room".into(),
            id: BulletinId::new(now, id.try_into().unwrap()),
            sent_at_unix_ms: now,
            roster_version: self.roster.version(),
        };
        let bulletin = prepare(&draft, &defaults, salt.try_into().unwrap()).unwrap();
        history.tree.append(&bulletin.digest);
        history.bulletins.push(bulletin);
    }

    fn checkpoint(&self, history: &History) -> Bytes {
        let (feed, tree) = (FEED.parse::<FeedId>().unwrap(), &history.tree);
        let checkpoint = Checkpoint { feed, size: tree.size(), root: tree.root() };
        sign(&checkpoint, std::slice::from_ref(&self.key)).unwrap().note
    }

    /// Returns one entry of a history as a priority entry.
    fn priority_entry(&self, history: &History, index: usize) -> Frame {
        let proof = inclusion_proof(&history.tree, index as u64, history.tree.size()).unwrap();
        Frame::PriorityEntry(proto::PriorityEntry {
            feed: FEED.into(),
            index: index as u64,
            envelope: history.bulletins[index].envelope.clone(),
            inclusion_proof: hashes(&proof),
            checkpoint: self.checkpoint(history),
        })
    }

    /// Returns the entries of a history in order, from `first` on.
    fn entries(&self, history: &History, first: usize) -> Frame {
        let envelopes = history.bulletins[first..].iter().map(|bulletin| bulletin.envelope.clone());
        Frame::Entries(proto::Entries {
            feed: FEED.into(),
            first: first as u64,
            items: envelopes.map(|envelope| proto::Item { item: Some(Item::Envelope(envelope)) }).collect(),
            checkpoint: self.checkpoint(history),
            consistency_proof: Vec::new(),
        })
    }

    /// Connects to a member, and waits until it requests Rabat's feed.
    fn dial(&self, member: &str) -> Link {
        let endpoint = self.roster.member(&member.parse().unwrap()).unwrap().endpoints[0].clone();
        let follow_requests = Arc::new(AtomicU64::new(0));
        let link = self.runtime.block_on(async {
            let expected = SpiffeId::node(&format!("{member}.rabat.example"));
            let channel = self.connector.dial(&endpoint, expected).await.unwrap();
            let (sender, outgoing) = mpsc::channel(64);
            let hello = proto::Hello {
                protocol: 1,
                exchange: "rabat.example".into(),
                roster_version: self.roster.version(),
                ..proto::Hello::default()
            };
            sender
                .send(proto::LinkRequest { frame: Some(proto::Frame { frame: Some(Frame::Hello(hello)) }) })
                .await
                .unwrap();
            let mut client = ExchangeClient::new(channel).max_decoding_message_size(16 << 20);
            let mut incoming = client.link(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
            let count = Arc::clone(&follow_requests);
            let receive_task = tokio::spawn(async move {
                while let Ok(Some(message)) = incoming.message().await {
                    if let Some(Frame::Follow(follow)) = message.frame.and_then(|frame| frame.frame)
                        && follow.feed == FEED
                    {
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
            Link { sender, follow_requests, _receive_task: receive_task }
        });
        until("its feed is requested", || link.follow_requests.load(Ordering::SeqCst) > 0);
        link
    }

    fn send(&self, link: &Link, frame: Frame) {
        let outgoing = proto::LinkRequest { frame: Some(proto::Frame { frame: Some(frame) }) };
        self.runtime.block_on(link.sender.send(outgoing)).unwrap();
    }
}

fn hashes(hashes: &[Hash]) -> Vec<Bytes> {
    hashes.iter().map(|hash| Bytes::copy_from_slice(&hash.0)).collect()
}

/// Returns how many pieces of evidence of Rabat's fork a member has, and how many of these are
/// resolved.
fn forks(world: &World, member: &str) -> (usize, usize) {
    let forks = world.json(member, "operator", &["feed", "forks"]);
    let of: Vec<&Value> = forks.iter().filter(|fork| fork["feed"] == FEED).collect();
    (of.len(), of.iter().filter(|fork| fork["resumed"] == true).count())
}

/// Returns whether an alarm about Rabat's feed is raised.
fn alarmed(world: &World, member: &str) -> bool {
    let status = world.json(member, "operator", &["status"]).remove(0);
    let alarms = status["codedAlarms"].as_array().cloned().unwrap_or_default();
    let raised = alarms.iter().any(|alarm| alarm["code"] == "fork" && alarm["values"][0] == FEED);
    assert_eq!(raised, status["alarms"].to_string().contains(FEED), "{alarms:?}");
    raised
}

fn size(world: &World, member: &str) -> String {
    world.feeds(member).get(FEED).map(|(size, _)| size.clone()).unwrap_or_default()
}

/// Verifies a file with nothing but the roster.
fn verify(world: &World, path: &str) -> (Option<i32>, Value) {
    let roster = world.roster();
    let judged = barid(&["--json", "verify", path, "--roster", roster.to_str().unwrap()]);
    (judged.status.code(), serde_json::from_slice(&judged.stdout).unwrap())
}

/// Returns the fork bulletins that a member's operators can read.
fn fork_bulletins(world: &World, member: &str) -> Vec<Value> {
    world.json(member, "operator", &["history"])
}

#[test]
fn conflicting_entries_stop_feed_everywhere_until_resumed_and_again_on_new_evidence() {
    let mut world = World::prepared(&MEMBERS, "info", |_, config| config);
    let rabat = Rabat::of(&world);
    for member in ["ly", "tn", "ne"] {
        world.run(member);
    }
    until("they are linked", || world.linked(&["ly", "tn", "ne"]));
    // A bulletin that operators may not read.
    let draft = world.draft("report.json", &example("situation-report.json", |_| ()));
    world.json("ly", "situation-room", &["publish", &draft]);
    let (one, mut other, third) = (rabat.history(), rabat.history(), rabat.history());

    // Tripoli receives a priority entry, and then a different entry at its index.
    let link = rabat.dial("ly");
    rabat.send(&link, rabat.priority_entry(&one, PLACE));
    let id = one.bulletins[PLACE].header.id.to_string();
    let show = |world: &World, by: &str| world.client("ly", by, &["show", &format!("ma/{id}")]);
    until("it is read in Tripoli", || show(&world, "situation-room").status.success());
    rabat.send(&link, rabat.entries(&other, 0));
    until("Tripoli has stopped the feed", || forks(&world, "ly") == (1, 0) && alarmed(&world, "ly"));
    assert!(!world.records("ly", &["alarm", "equivocation", FEED]).is_empty());

    // The file can be verified with the roster alone.
    let path = world.roster().with_file_name("two.txt").to_str().unwrap().to_owned();
    world.json("ly", "operator", &["feed", "evidence", FEED, "-o", &path]);
    let (code, verdict) = verify(&world, &path);
    assert_eq!(
        (code, verdict["result"].as_str(), verdict["index"].as_u64()),
        (Some(14), Some("equivocation"), Some(3))
    );
    let mut digests = [&one, &other].map(|history| history.bulletins[PLACE].digest.to_string());
    let mut found: Vec<&str> =
        verdict["digests"].as_array().unwrap().iter().map(|digest| digest.as_str().unwrap()).collect();
    digests.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, digests);
    let altered = world.roster().with_file_name("altered.txt").to_str().unwrap().to_owned();
    fs::write(&altered, fs::read_to_string(&path).unwrap().replacen("index 3", "index 4", 1)).unwrap();
    assert_eq!(verify(&world, &altered).0, Some(12));

    // The others never had a link to Rabat. Their operators are alarmed, can read the bulletin and
    // export its evidence, and can read nothing else.
    for member in ["tn", "ne"] {
        until("its operators are alarmed", || forks(&world, member) == (1, 0) && alarmed(&world, member));
        until("its operators read of it", || fork_bulletins(&world, member).len() == 1);
    }
    let bulletin = fork_bulletins(&world, "ne").remove(0);
    assert_eq!(
        (&bulletin["header"]["kind"], &bulletin["header"]["urgency"]),
        (&"feed-forked".into(), &"Immediate".into())
    );
    assert_eq!((&bulletin["header"]["status"], &bulletin["header"]["member"]), (&"System".into(), &"ly".into()));
    let id_of_it = format!("ly/{}", bulletin["header"]["id"].as_str().unwrap());
    let whole = world.json("ne", "operator", &["show", &id_of_it]).remove(0);
    assert_eq!(whole["delivery"]["body"]["feedForked"]["index"].as_str(), Some("3"), "{whole}");
    let handed_on = world.roster().with_file_name("handed-on.txt").to_str().unwrap().to_owned();
    world.json("ne", "operator", &["feed", "evidence", FEED, "-o", &handed_on]);
    assert_eq!(fs::read(&handed_on).unwrap(), fs::read(&path).unwrap());
    assert!(!show(&world, "operator").status.success(), "operators read only bulletins about the network");

    // The operator resumes the feed: it is followed as Rabat continues it, also after a restart
    // with a new index database.
    world.json("ly", "operator", &["feed", "resume", FEED]);
    assert!(forks(&world, "ly") == (1, 1) && !alarmed(&world, "ly"));
    world.stop("ly");
    fs::remove_dir_all(world.folder("ly").join("data/db")).unwrap();
    world.run("ly");
    assert!(forks(&world, "ly") == (1, 1) && !alarmed(&world, "ly"));
    let link = rabat.dial("ly");
    rabat.send(&link, rabat.priority_entry(&one, PLACE));
    rabat.send(&link, rabat.entries(&other, 0));
    until("Tripoli follows it again", || size(&world, "ly") == "8");
    rabat.send(&link, rabat.priority_entry(&one, PLACE));
    rabat.append(&mut other);
    rabat.send(&link, rabat.entries(&other, 8));
    until("and further", || size(&world, "ly") == "9");
    assert!(forks(&world, "ly") == (1, 1) && !alarmed(&world, "ly"));
    assert!(show(&world, "situation-room").status.success(), "delivered entries remain");
    world.kill("ly");
    world.run("ly");
    assert!(forks(&world, "ly") == (1, 1) && !alarmed(&world, "ly") && size(&world, "ly") == "9");
    // Each member's operator decides for that member; the feed then comes from Tripoli.
    assert_eq!((size(&world, "tn"), forks(&world, "tn")), (String::new(), (1, 0)));
    world.json("tn", "operator", &["feed", "resume", FEED]);
    until("Tunis has it from Tripoli", || size(&world, "tn") == "9");

    // Evidence of a further fork stops the feed again, everywhere, and is announced again.
    let link = rabat.dial("ly");
    rabat.send(&link, rabat.priority_entry(&third, PLACE));
    until("Tripoli has stopped it again", || forks(&world, "ly") == (2, 1) && alarmed(&world, "ly"));
    until("Tunis has, too", || forks(&world, "tn") == (2, 1) && alarmed(&world, "tn"));
    until("Niamey's operators read of it", || fork_bulletins(&world, "ne").len() == 2);
    let again = world.roster().with_file_name("again.txt").to_str().unwrap().to_owned();
    world.json("ly", "operator", &["feed", "evidence", FEED, "-o", &again]);
    assert_eq!(verify(&world, &again).0, Some(14));
    assert_ne!(fs::read(&again).unwrap(), fs::read(&path).unwrap());
    world.kill("ly");
    world.run("ly");
    assert!(forks(&world, "ly") == (2, 1) && alarmed(&world, "ly"), "also after a restart");
}
