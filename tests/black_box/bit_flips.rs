//! One of five nodes has a bad disk: bits flip in its commit log, a range of it is overwritten, its
//! index database is corrupted, its log loses its end. No acknowledged entry is lost or served
//! wrong; the damage is reported, and repaired by error correction or from peers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use barid::cli::{Profile, channel};
use barid_core::envelope;
use barid_core::ids::Digest;
use barid_core::proto;
use barid_core::proto::publish_result::Outcome;
use barid_core::roster::Roster;
use futures::StreamExt;
use serde_json::Value;
use tokio::sync::Semaphore;
use tonic::transport::Channel;

use crate::kill::{Random, random_seed};
use crate::power::NodeState;
use crate::publishers::client;
use crate::world::{DEADLINE, World, barid, example, program, text, until_within};

const FIVE: [&str; 5] = ["ma", "ly", "tn", "ne", "mr"];
/// Entries of all five nodes together; `BARID_FLIP_ENTRIES` sets another number.
const ENTRIES: u64 = 3_000;
/// Unanswered bulletins of one publisher.
const WINDOW: usize = 1_024;
/// Number of bits that flip in an index database at once.
const INDEX_FLIPS: usize = 64;
/// Maximum number of entries read through the API: the oldest, where the damage is. At the end all
/// are read from the disks.
const READ_MAX: usize = 20_000;

/// Five nodes, and the receipts of their publishers.
struct Five {
    world: World,
    runtime: tokio::runtime::Runtime,
    channels: BTreeMap<&'static str, Channel>,
    /// Digests with a receipt, by member and index.
    released: BTreeMap<&'static str, Vec<Digest>>,
    random: Random,
}

impl Five {
    fn with(entries: u64) -> Self {
        let seed = std::env::var("BARID_FLIP_SEED").ok().map_or_else(random_seed, |seed| seed.parse().unwrap());
        println!("{entries} entries, BARID_FLIP_SEED={seed}");
        let mut world = World::prepared(&FIVE, "info", |_, config| config);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut channels = BTreeMap::new();
        for member in FIVE {
            world.run(member);
            let profile = Profile::read(&world.folder(member).join("clients/police-hq/client.toml")).unwrap();
            channels.insert(member, runtime.block_on(async { channel(&profile) }).unwrap());
        }
        let publishing = channels.values().map(|channel| publish(channel.clone(), entries / FIVE.len() as u64));
        let released = runtime.block_on(futures::future::join_all(publishing));
        let released = channels.keys().copied().zip(released).collect();
        let five = Self { world, runtime, channels, released, random: Random(seed | 1) };
        five.until_all_equal();
        five
    }

    /// Returns a deadline with one millisecond for each entry.
    fn timeout(&self) -> Duration {
        let entries = self.released.values().map(Vec::len).sum::<usize>();
        DEADLINE + Duration::from_millis(u64::try_from(entries).unwrap())
    }

    fn until_all_equal(&self) {
        until_within(self.timeout(), "all hold all", || self.all_equal());
    }

    fn all_equal(&self) -> bool {
        let feeds = FIVE.map(|member| self.world.feeds(member));
        feeds[0].len() == FIVE.len() && feeds.iter().all(|other| *other == feeds[0])
    }

    /// Returns the number of entries read through the API.
    fn readable(&self) -> usize {
        self.released.values().map(Vec::len).sum::<usize>().min(READ_MAX)
    }

    /// Checks that a member serves exactly the entries with receipts.
    fn serves_what_was_released(&self, at: &str) {
        let all = self.readable();
        let deliveries = self.runtime.block_on(oldest(&self.channels[at], all)).unwrap();
        assert_eq!(deliveries.len(), all, "at {at}");
        for delivery in deliveries {
            let (member, epoch) = delivery.feed.split_once('.').unwrap();
            if epoch.ends_with("/feed/1") {
                let digest = self.released[member][usize::try_from(delivery.index).unwrap()];
                assert_eq!(
                    envelope::digest(&delivery.envelope),
                    digest,
                    "{} {} at {at}",
                    delivery.feed,
                    delivery.index
                );
            }
        }
    }

    /// Stops all nodes and checks that each store has every entry with a receipt, in full.
    fn hold_all_on_disk(&mut self) {
        let roster = Roster::read(&fs::read(self.world.roster()).unwrap()).unwrap().0;
        for member in FIVE {
            self.world.stop(member);
            let epoch = if member == "ly" { 2 } else { 1 };
            let own = format!("{member}.{}/feed/{epoch}", roster.exchange()).parse().unwrap();
            let node_state = NodeState::of(&self.world.folder(member), &own, &roster)
                .unwrap_or_else(|what| panic!("{member}: {what}"));
            for (publisher, digests) in &self.released {
                let feed = format!("{publisher}.{}/feed/1", roster.exchange()).parse().unwrap();
                assert!(node_state.in_full(&feed).eq(digests.iter().copied()), "{feed} at {member}");
            }
        }
    }

    fn config(&self, member: &str) -> String {
        self.world.folder(member).join("node.toml").to_str().unwrap().to_owned()
    }

    fn repair(&self, member: &str, more: &[&str]) -> (Option<i32>, Value) {
        let config = self.config(member);
        let mut args = vec!["--json", "repair", "--config", config.as_str()];
        args.extend(more);
        let output = barid(&args);
        let message = text(&output.stdout);
        (output.status.code(), serde_json::from_str(message.lines().next().unwrap_or_default()).unwrap_or_default())
    }

    /// Starts a node that must end by itself.
    fn start_failure(&self, member: &str) -> Output {
        let mut node = Command::new(program());
        let ended = node.args(["node", "--config", &self.config(member)]).env("BARID_LANG", "en").output().unwrap();
        assert_eq!(ended.status.code(), Some(1), "{}", text(&ended.stderr));
        ended
    }

    fn draw(&mut self, below: usize) -> usize {
        usize::try_from(self.random.below(below as u64)).unwrap()
    }
}

async fn publish(channel: Channel, count: u64) -> Vec<Digest> {
    let draft: proto::Draft = serde_json::from_value(example("stolen-passport.fr.json", |_| ())).unwrap();
    let room = Arc::new(Semaphore::new(WINDOW));
    let windowed = {
        let room = Arc::clone(&room);
        futures::stream::iter(0..count).then(move |request| {
            let (room, draft) = (Arc::clone(&room), draft.clone());
            async move {
                room.acquire().await.unwrap().forget();
                let publish = Some(proto::PublishRequest { draft: Some(draft), wait_for: None });
                proto::PublishStreamRequest { request, publish }
            }
        })
    };
    let mut released = BTreeMap::new();
    let mut responses = client(&channel).publish_stream(windowed).await.unwrap().into_inner();
    while let Some(response) = responses.message().await.unwrap() {
        room.add_permits(response.results.len());
        for result in response.results {
            let Some(Outcome::Published(published)) = result.outcome else { panic!("rejected") };
            let receipt = published.receipt.unwrap();
            released.insert(receipt.index, Digest(receipt.digest.as_ref().try_into().unwrap()));
        }
    }
    assert!(released.keys().copied().eq(0..count), "every receipt is for a place of its own");
    released.into_values().collect()
}

/// Returns the first `count` deliveries, or the error that prevents reading them.
async fn oldest(channel: &Channel, count: usize) -> Result<Vec<proto::Delivery>, tonic::Status> {
    use proto::subscribe_request::Start;
    use proto::subscribe_response::Event;
    let request = proto::SubscribeRequest { start: Some(Start::After(0)), ..Default::default() };
    let mut events = client(channel).subscribe(request).await?.into_inner();
    let mut deliveries = Vec::new();
    while deliveries.len() < count
        && let Some(event) = events.message().await?
    {
        match event.event {
            Some(Event::Delivery(delivery)) => deliveries.push(delivery),
            Some(Event::Damaged(damaged)) => {
                return Err(tonic::Status::data_loss(format!("{} {}", damaged.feed, damaged.index)));
            }
            _ => {}
        }
    }
    Ok(deliveries)
}

/// Returns how many of the first `count` entries are delivered, and those reported as damaged.
async fn delivered_and_damaged(channel: &Channel, count: usize) -> (usize, Vec<proto::DamagedEntry>) {
    use proto::subscribe_request::Start;
    use proto::subscribe_response::Event;
    let request = proto::SubscribeRequest { start: Some(Start::After(0)), ..Default::default() };
    let mut events = client(channel).subscribe(request).await.unwrap().into_inner();
    let (mut delivered, mut damaged) = (0, Vec::new());
    while delivered + damaged.len() < count {
        match events.message().await.unwrap().unwrap().event {
            Some(Event::Delivery(_)) => delivered += 1,
            Some(Event::Damaged(entry)) => damaged.push(entry),
            _ => {}
        }
    }
    (delivered, damaged)
}

/// Returns a node's first or last segment of the log.
fn segment(folder: &Path, last: bool) -> (PathBuf, Vec<u8>) {
    let names = fs::read_dir(folder.join("data/log")).unwrap().map(|file| file.unwrap().path());
    let mut paths: Vec<PathBuf> =
        names.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
    paths.sort();
    let path = paths.swap_remove(if last { paths.len() - 1 } else { 0 });
    let bytes = fs::read(&path).unwrap();
    (path, bytes)
}

/// Checks that the content of a segment is unchanged; more may have been appended.
fn is_as_it_was(path: &Path, whole: &[u8]) {
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let now = fs::read(path).unwrap();
    let other = now.iter().zip(&whole[..used]).position(|(now, then)| now != then);
    assert_eq!(other, None, "{} is not what it was", path.display());
    assert!(now.len() >= used);
}

/// Returns the byte offsets of records in a segment.
fn records(segment: &[u8]) -> Vec<usize> {
    (4_096..segment.len() - 4).step_by(8).filter(|at| &segment[*at..*at + 4] == b"BRD\x01").collect()
}

/// Returns the byte range of a record's head, and the byte offset of its envelopes.
fn head_of(segment: &[u8], record: usize) -> (std::ops::Range<usize>, usize) {
    let len = u32::from_le_bytes(segment[record + 4..record + 8].try_into().unwrap());
    let end = record + 24 + usize::try_from(len).unwrap();
    (record + 24..end, end)
}

/// Returns records with envelopes of more than 900 bytes, except the last record of the segment.
fn with_body(segment: &[u8]) -> Vec<usize> {
    let all = records(segment);
    let has_body = |record: &usize| u64::from_le_bytes(segment[record + 8..record + 16].try_into().unwrap()) > 900;
    all[..all.len() - 1].iter().copied().filter(has_body).collect()
}

#[test]
fn bit_flips_on_one_node_lose_nothing_and_are_never_served() {
    let entries = std::env::var("BARID_FLIP_ENTRIES").ok().map_or(ENTRIES, |text| text.parse().unwrap());
    let mut five = Five::with(entries);
    single_bit_flip_is_corrected_on_read_and_on_start(&mut five);
    damaged_range_is_reported_and_repaired_from_peers(&mut five);
    damaged_index_is_rebuilt(&mut five);
    truncated_log_is_reported_and_feed_continues_in_next_epoch(&mut five);
    five.hold_all_on_disk();
    println!("{entries} entries: none lost, none served wrong");
}

/// The fault that Jepsen injects: one bit of one node's log.
fn single_bit_flip_is_corrected_on_read_and_on_start(five: &mut Five) {
    let folder = five.world.folder("tn");
    let (path, whole) = segment(&folder, false);
    let bodies = with_body(&whole);
    // In the content of an entry, while the node runs. It was restarted, so the entry is not in its
    // memory.
    five.world.stop("tn");
    let record = bodies[five.draw(bodies.len())];
    let at = head_of(&whole, record).1 + five.draw(900);
    let mut bytes = whole.clone();
    bytes[at] ^= 1 << five.random.below(8);
    fs::write(&path, &bytes).unwrap();
    five.world.run("tn");
    five.serves_what_was_released("tn");
    assert!(five.world.log_end("tn").contains("a flipped bit of the commit log was corrected"));
    is_as_it_was(&path, &whole);

    // In a head, with a power failure: the whole log is read at the start.
    five.world.kill("tn");
    let (path, whole) = segment(&folder, false);
    let bodies = with_body(&whole);
    let head = head_of(&whole, bodies[five.draw(bodies.len())]).0;
    let at = head.start + five.draw(head.len());
    let mut bytes = whole.clone();
    bytes[at] ^= 1 << five.random.below(8);
    fs::write(&path, &bytes).unwrap();
    fs::write(folder.join("data/db.open"), "another run of the machine").unwrap();
    five.world.run("tn");
    is_as_it_was(&path, &whole);
    assert!(five.world.log_end("tn").contains("a flipped bit of the commit log was corrected"));
    five.until_all_equal();
    five.serves_what_was_released("tn");
}

/// More than one bit: sectors in the content of entries, of the node's own feed and of others.
fn damaged_range_is_reported_and_repaired_from_peers(five: &mut Five) {
    five.world.kill("tn");
    let folder = five.world.folder("tn");
    let (path, whole) = segment(&folder, false);
    let bodies = with_body(&whole);
    let mut bytes = whole.clone();
    for place in [bodies.len() / 3, bodies.len() / 2, 2 * bodies.len() / 3] {
        let at = head_of(&whole, bodies[place]).1;
        bytes[at + 100..at + 600].fill(0xa5);
    }
    fs::write(&path, &bytes).unwrap();

    // Damage read while the node runs is reported and raises an alarm; no wrong content is served,
    // and everything else is.
    five.world.run("tn");
    let all = five.readable();
    let (delivered, damaged) = five.runtime.block_on(delivered_and_damaged(&five.channels["tn"], all));
    assert!((3..=6).contains(&damaged.len()) && delivered + damaged.len() == all, "{delivered} and {damaged:?}");
    assert!(damaged.iter().all(|entry| entry.feed.ends_with("/feed/1")), "{damaged:?}");
    let alarms = five.world.json("tn", "operator", &["status"])[0]["alarms"].to_string();
    assert!(alarms.contains("barid repair"), "{alarms}");
    five.world.kill("tn");

    // After a power failure the node does not start. Its error names the place and the next step.
    fs::remove_dir_all(folder.join("data/db")).unwrap();
    let damaged = fs::read(&path).unwrap();
    let message = text(&five.start_failure("tn").stderr);
    assert!(message.contains("damage: commit ") && message.contains("barid repair"), "{message}");
    let (code, found) = five.repair("tn", &["--check"]);
    assert_eq!((code, found["whole"].as_bool()), (Some(1), Some(false)), "{found}");
    let named = found["damage"].as_array().unwrap();
    assert!(named.len() >= 3 && named.iter().all(|damage| damage["what"] == "envelope"), "{found}");
    assert!(named.iter().all(|damage| damage["file"].as_str().unwrap() == path.to_str().unwrap()), "{found}");
    assert!(fs::read(&path).unwrap() == damaged, "nothing is changed");
    // Without any reachable peer nothing is repaired; one peer suffices.
    for member in ["ma", "ly", "ne", "mr"] {
        five.world.stop(member);
    }
    let (code, report) = five.repair("tn", &[]);
    assert_eq!((code, report["unreached"].as_object().unwrap().len()), (Some(3), 4), "{report}");
    assert!(fs::read(&path).unwrap() == damaged, "nothing is changed");
    five.world.run("ne");
    let (code, repaired) = five.repair("tn", &[]);
    assert_eq!((code, repaired["whole"].as_bool()), (Some(0), Some(true)), "{repaired}");
    five.world.stop("ne");
    is_as_it_was(&path, &whole);
    assert_eq!(five.repair("tn", &["--check"]).1["damage"].as_array().unwrap().len(), 0);

    // The repaired node alone serves everything to a member that has lost its disk.
    five.world.run("tn");
    fs::remove_dir_all(five.world.folder("mr").join("data")).unwrap();
    five.world.run_without_store("mr");
    until_within(five.timeout(), "mr has everything from tn", || five.world.feeds("mr") == five.world.feeds("tn"));
    five.serves_what_was_released("tn");
    five.serves_what_was_released("mr");
    for member in ["ma", "ly", "ne"] {
        five.world.run(member);
    }
}

fn damaged_index_is_rebuilt(five: &mut Five) {
    let folder = five.world.folder("ne");
    for after in ["a clean stop", "a kill"] {
        if after == "a kill" {
            five.world.kill("ne");
        } else {
            five.world.stop("ne");
        }
        for file in fs::read_dir(folder.join("data/db")).unwrap() {
            let path = file.unwrap().path();
            if path.is_file() {
                let mut bytes = fs::read(&path).unwrap();
                let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                for _ in 0..INDEX_FLIPS.min(used) {
                    let at = five.draw(used);
                    bytes[at] ^= 1 << five.random.below(8);
                }
                fs::write(&path, &bytes).unwrap();
            }
        }
        five.world.run("ne");
        // A read error of the index database causes a rebuild at the next start; no wrong content
        // is served meanwhile.
        let read = five.runtime.block_on(oldest(&five.channels["ne"], five.readable()));
        if read.is_err() {
            five.world.kill("ne");
            five.world.run("ne");
        }
        five.until_all_equal();
        five.serves_what_was_released("ne");
    }
}

fn truncated_log_is_reported_and_feed_continues_in_next_epoch(five: &mut Five) {
    five.until_all_equal();
    five.world.kill("ly");
    let folder = five.world.folder("ly");
    let (path, whole) = segment(&folder, true);
    let all = records(&whole);
    fs::write(&path, &whole[..all[all.len() / 2] + 40]).unwrap();
    let message = text(&five.start_failure("ly").stderr);
    assert!(message.contains("damage: ") && message.contains("barid repair"), "{message}");
    // The check recommends recovery, because another run of repair would not help.
    let looked = barid(&["--json", "repair", "--check", "--config", &five.config("ly")]);
    let message = text(&looked.stderr);
    assert!(message.contains("\"id\":\"repair-lost\"") && message.contains("barid recover"), "{message}");
    let (code, found) = five.repair("ly", &[]);
    assert_eq!(code, Some(1), "{found}");
    let missing = found["missing"].as_u64().unwrap();
    assert_eq!(found["damage"][0]["what"], "lost", "{found}");
    println!("the log of ly ends at commit {}, {missing} of its own entries are missing", found["newestCommit"]);

    // As recommended: without the folder the feed needs recovery, the node fetches its entries from
    // peers, and the feed continues in its next epoch.
    fs::rename(folder.join("data"), folder.join("damaged")).unwrap();
    five.world.run_without_store("ly");
    let draft = five.world.draft("x.json", &example("stolen-passport.fr.json", |_| ()));
    let rejected = five.world.client("ly", "police-hq", &["publish", &draft, "--timeout", "5"]);
    assert_eq!(rejected.status.code(), Some(1), "{}", text(&rejected.stdout));
    let size = five.released["ly"].len().to_string();
    until_within(five.timeout(), "peers have returned the lost entries", || {
        five.world.feeds("ly").get("ly.rabat.example/feed/1").is_some_and(|(held, _)| *held == size)
    });
    five.world.kill("ly");
    let (config, key) = (five.config("ly"), folder.join("offline/feed-2.key"));
    let recovered = barid(&["--json", "recover", "--config", &config, "--next-key", key.to_str().unwrap()]);
    assert!(recovered.status.success(), "{}", text(&recovered.stderr));
    five.world.run("ly");
    let draft = five.world.draft("y.json", &example("stolen-passport.fr.json", |_| ()));
    five.world.json("ly", "police-hq", &["publish", &draft]);
    until_within(five.timeout(), "the next epoch is known to all", || {
        FIVE.iter().all(|member| five.world.feeds(member).contains_key("ly.rabat.example/feed/2"))
    });
    five.serves_what_was_released("ly");
}
