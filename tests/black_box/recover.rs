//! A feed that needs recovery: its disk is lost, an old backup was restored, or a second node runs
//! with its keys. It is not continued, but continues in its next epoch, and no member reports an
//! equivocation.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use barid::cli::{Profile, channel};
use barid::rpc::focal_point_client::FocalPointClient;
use barid_core::proto;
use barid_core::proto::publish_result::Outcome;
use serde_json::Value;
use tonic::transport::Channel;

use crate::world::{MEMBERS, World, barid, example, text, until};

/// A focal point that publishes over the API.
struct PublisherClient {
    runtime: Arc<tokio::runtime::Runtime>,
    channel: Channel,
}

impl PublisherClient {
    fn of(world: &World, member: &str) -> Self {
        let profile = Profile::read(&world.folder(member).join("clients/police-hq/client.toml")).unwrap();
        let runtime = Arc::new(tokio::runtime::Runtime::new().unwrap());
        let channel = runtime.block_on(async { channel(&profile) }).unwrap();
        Self { runtime, channel }
    }

    /// Publishes `count` bulletins; returns how many were accepted.
    fn publish(&self, count: u64) -> u64 {
        let draft: proto::Draft = serde_json::from_value(example("stolen-passport.fr.json", |_| ())).unwrap();
        let one = |request| proto::PublishStreamRequest {
            request,
            publish: Some(proto::PublishRequest { draft: Some(draft.clone()), wait_for: None }),
        };
        let requests: Vec<_> = (0..count).map(one).collect();
        self.runtime.block_on(async {
            let mut client = FocalPointClient::new(self.channel.clone()).max_decoding_message_size(64 << 20);
            let Ok(responses) = client.publish_stream(futures::stream::iter(requests)).await else { return 0 };
            let (mut responses, mut published) = (responses.into_inner(), 0);
            while let Ok(Some(response)) = responses.message().await {
                published +=
                    response.results.iter().filter(|r| matches!(r.outcome, Some(Outcome::Published(_)))).count() as u64;
            }
            published
        })
    }
}

/// Members that publish until this is dropped.
struct Traffic {
    stop: Arc<AtomicBool>,
    published: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    fn of(world: &World, members: &[&str]) -> Self {
        let (stop, published) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = members
            .iter()
            .map(|member| {
                let (publisher, stop, published) =
                    (PublisherClient::of(world, member), Arc::clone(&stop), Arc::clone(&published));
                std::thread::spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        published.fetch_add(usize::try_from(publisher.publish(5)).unwrap(), Ordering::SeqCst);
                    }
                })
            })
            .collect();
        Self { stop, published, threads }
    }

    /// Waits until the members together have published 20 more.
    fn goes_on(&self) {
        let before = self.published.load(Ordering::SeqCst);
        until("the others publish", || self.published.load(Ordering::SeqCst) >= before + 20);
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn status(world: &World, member: &str) -> Value {
    world.json(member, "operator", &["status"]).remove(0)
}

fn size(world: &World, at: &str, feed: &str) -> u64 {
    world.feeds(at).get(feed).map_or(0, |(size, _)| size.parse().unwrap())
}

/// Returns whether all these members hold the same entries of a feed.
fn agree(world: &World, feed: &str, members: &[&str]) -> bool {
    let held: Vec<_> = members.iter().map(|member| world.feeds(member).get(feed).cloned()).collect();
    held[0].is_some() && held.iter().all(|one| *one == held[0])
}

/// Returns the id of a failure.
fn error_id(output: &Output) -> String {
    let last = text(&output.stderr).lines().last().unwrap_or_default().to_owned();
    let error: Value = serde_json::from_str(&last).unwrap_or_default();
    error["error"]["id"].as_str().unwrap_or_default().to_owned()
}

fn recover(world: &World, member: &str, key_of: &str, more: &[&str]) -> Output {
    let (config, key) = (world.folder(member).join("node.toml"), world.folder(key_of).join("offline/feed-2.key"));
    let mut args = vec!["--json", "recover", "--config", config.to_str().unwrap(), "--next-key", key.to_str().unwrap()];
    args.extend(more);
    barid(&args)
}

fn last_line(output: &Output) -> Value {
    serde_json::from_str(text(&output.stdout).lines().last().unwrap_or_default()).unwrap_or_default()
}

fn publish_one(world: &World, member: &str) -> Output {
    let draft = world.draft("one.json", &example("stolen-passport.fr.json", |_| ()));
    world.client(member, "police-hq", &["publish", &draft, "--timeout", "20"])
}

/// Publishes a bulletin and waits until all members have stored it; returns its id.
fn known_to_all(world: &World, member: &str) -> String {
    let draft = world.draft("first.json", &example("stolen-passport.fr.json", |_| ()));
    let published = world.json(member, "police-hq", &["publish", &draft, "--wait-for", "3", "--timeout", "60"]);
    published[0]["receipt"]["id"].as_str().unwrap().to_owned()
}

fn evidence(world: &World, member: &str, id: &str, name: &str) -> String {
    let path = world.roster().with_file_name(name).to_str().unwrap().to_owned();
    let bulletin = format!("{member}/{id}");
    until("enough have cosigned", || {
        let _ = fs::remove_file(&path);
        world.client(member, "police-hq", &["evidence", &bulletin, "-o", &path]).status.success()
            && verify(world, &path) == Some(0)
    });
    path
}

fn verify(world: &World, path: &str) -> Option<i32> {
    barid(&["verify", path, "--roster", world.roster().to_str().unwrap()]).status.code()
}

fn assert_no_equivocation(world: &World, members: &[&str]) {
    for member in members {
        assert_eq!(world.records(member, &["equivocation"]), Vec::<String>::new(), "at {member}");
    }
}

fn assert_needs_recovery(world: &World, member: &str) {
    until("it reports that it needs recovery", || {
        status(world, member)["publishing"].as_str().unwrap().starts_with("needs-recovery: ")
    });
    let rejected = publish_one(world, member);
    assert_eq!(rejected.status.code(), Some(1), "{}", text(&rejected.stdout));
    let output = text(&rejected.stderr);
    assert!(output.contains("failed-precondition") && output.contains("barid recover"), "{output}");
    let alarms = status(world, member)["alarms"].to_string();
    assert!(alarms.contains("barid recover"), "{alarms}");
}

#[test]
fn lost_store_is_recovered_from_peers_into_next_epoch() {
    let mut world = World::logging("info");
    let id = known_to_all(&world, "ly");
    let proof = evidence(&world, "ly", &id, "before.barid");
    assert_eq!(PublisherClient::of(&world, "ly").publish(50), 50);
    let traffic = Traffic::of(&world, &["ma", "tn", "ne"]);
    let (old, new) = ("ly.rabat.example/feed/1", "ly.rabat.example/feed/2");
    until("peers hold ly's feed", || ["ma", "tn", "ne"].iter().all(|peer| size(&world, peer, old) == 51));

    // A disk that is not mounted yet does not cause recovery; only an operator can declare a store
    // lost.
    world.stop("ly");
    let (data, away) = (world.folder("ly").join("data"), world.folder("ly").join("away"));
    fs::rename(&data, &away).unwrap();
    world.spawn("ly");
    assert_eq!(world.ended("ly").code(), Some(1));
    let output = world.log_end("ly");
    assert!(output.contains("has published 51 entries") && output.contains("--accept-data-loss"), "{output}");
    fs::rename(&away, &data).unwrap();
    world.run("ly");
    assert_eq!(PublisherClient::of(&world, "ly").publish(1), 1);
    until("peers hold that too", || ["ma", "tn", "ne"].iter().all(|peer| size(&world, peer, old) == 52));

    world.kill("ly");
    fs::remove_dir_all(data).unwrap();
    traffic.goes_on();
    // Every start here has --bootstrap; beside a high-water mark it has no effect.
    world.run_without_store("ly");
    assert_needs_recovery(&world, "ly");
    until("peers have returned the lost entries", || size(&world, "ly", old) == 52);
    let rejected = world.records("ly", &["note-rejected"]);
    assert!(rejected.is_empty(), "attestations of entries not held here are valid: {rejected:?}");
    // The feed still needs recovery after all entries are back.
    world.kill("ly");
    world.run("ly");
    assert_needs_recovery(&world, "ly");

    // Recovery needs a stopped node, its own next key, and every member reached or skipped.
    let running = recover(&world, "ly", "ly", &[]);
    assert_eq!(running.status.code(), Some(1));
    assert!(text(&running.stderr).contains("another process"), "{}", text(&running.stderr));
    world.kill("ly");
    let foreign = recover(&world, "ly", "ma", &[]);
    assert_eq!(foreign.status.code(), Some(1));
    assert!(text(&foreign.stderr).contains("ma.rabat.example/feed/2"), "{}", text(&foreign.stderr));
    let nobody = recover(&world, "ly", "ly", &["--skip-members", "zz"]);
    assert_eq!((nobody.status.code(), error_id(&nobody)), (Some(2), "recover-no-member".into()));
    world.kill("ne");
    let incomplete = recover(&world, "ly", "ly", &["--idle-timeout", "3"]);
    assert_eq!(incomplete.status.code(), Some(3), "{}", text(&incomplete.stderr));
    assert!(text(&incomplete.stderr).contains("--skip-members ne"), "{}", text(&incomplete.stderr));
    let recovered = recover(&world, "ly", "ly", &["--skip-members", "ne"]);
    assert!(recovered.status.success(), "{}", text(&recovered.stderr));
    let output = last_line(&recovered);
    assert_eq!((&output["closed"]["feed"], &output["closed"]["size"]), (&old.into(), &52.into()), "{output}");
    assert_eq!((&output["opened"]["feed"], &output["opened"]["size"]), (&new.into(), &1.into()), "{output}");
    assert!(!world.folder("ly").join("keys/needs-recovery").exists(), "the need for recovery is cleared");
    let again = recover(&world, "ly", "ly", &["--skip-members", "ne"]);
    assert_eq!(again.status.code(), Some(1), "a key is used once: {}", text(&again.stdout));

    // A feed that does not need recovery is reported as such; a user who does not own the node
    // changes nothing.
    let needless = recover(&world, "ne", "ne", &["--idle-timeout", "3"]);
    assert_eq!((needless.status.code(), error_id(&needless)), (Some(1), "recover-not-needed".into()));
    assert!(world.folder("ne").join("keys/mark").exists() && !world.folder("ne").join("keys/feed-2.key").exists());
    if rustix::process::geteuid().is_root() {
        let data = world.folder("ne").join("data");
        let config = world.folder("ne").join("node.toml");
        std::os::unix::fs::chown(&data, Some(65_532), None).unwrap();
        let foreign = recover(&world, "ne", "ne", &[]);
        let output = text(&foreign.stderr);
        assert_eq!((foreign.status.code(), error_id(&foreign)), (Some(1), "other-user".into()), "{output}");
        assert!(output.contains("data belongs to user 65532, but this process runs as user 0"), "{output}");
        let repaired = crate::world::barid(&["--json", "repair", "--config", config.to_str().unwrap()]);
        assert_eq!(error_id(&repaired), "other-user");
        std::os::unix::fs::chown(&data, Some(0), None).unwrap();
    }

    world.run("ly");
    world.run("ne");
    assert_eq!(PublisherClient::of(&world, "ly").publish(10), 10);
    traffic.goes_on();
    drop(traffic);
    until("all hold the new epoch", || agree(&world, new, &MEMBERS) && size(&world, "ne", new) == 11);
    let closed = world.json("tn", "situation-room", &["history", "--kind", "feed-closed"]);
    let line = serde_json::to_string(&closed).unwrap();
    assert!(closed.len() == 1 && line.contains(old) && line.contains("\"52\""), "{line}");

    // The history is continuous: entries of the old epoch can be found, published again under the
    // same id, and proven.
    let history = world.json("ly", "police-hq", &["history", "--member", "ly", "--limit", "100"]);
    assert_eq!(history.len(), 62);
    let delivery = world.json("ly", "police-hq", &["show", &format!("ly/{id}")]);
    assert_eq!(delivery[0]["delivery"]["feed"], old, "{}", delivery[0]);
    let repeated = example("stolen-passport.fr.json", |draft| draft["header"]["id"] = id.clone().into());
    let draft = world.draft("again.json", &repeated);
    let receipt = world.json("ly", "police-hq", &["publish", &draft])[0]["receipt"].clone();
    assert_eq!((&receipt["feed"], &receipt["id"]), (&old.into(), &id.clone().into()));
    assert_eq!(verify(&world, &proof), Some(0));
    evidence(&world, "ly", &id, "after.barid");
    assert_no_equivocation(&world, &MEMBERS);
}

#[test]
fn restored_backup_is_not_continued_and_loses_nothing() {
    let mut world = World::logging("info");
    let (old, new) = ("ly.rabat.example/feed/1", "ly.rabat.example/feed/2");
    let id = known_to_all(&world, "ly");
    let proof = evidence(&world, "ly", &id, "before.barid");
    world.kill("ly");
    let (data, backup) = (world.folder("ly").join("data"), world.folder("ly").join("backup"));
    copy(&data, &backup);
    world.run("ly");
    assert_eq!(PublisherClient::of(&world, "ly").publish(1_000), 1_000);
    until("peers hold all of it", || ["ma", "tn", "ne"].iter().all(|peer| size(&world, peer, old) == 1_001));

    world.kill("ly");
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&backup, &data).unwrap();
    // Also without its high-water mark: then peers, not the mark, show that the backup is old.
    fs::remove_file(world.folder("ly").join("keys/mark")).unwrap();
    world.run("ly");
    assert_needs_recovery(&world, "ly");
    until("peers have returned the entries missing from the backup", || size(&world, "ly", old) == 1_001);
    world.kill("ly");
    let recovered = recover(&world, "ly", "ly", &[]);
    assert!(recovered.status.success(), "{}", text(&recovered.stderr));
    assert_eq!(last_line(&recovered)["closed"]["size"], 1_001);

    world.run("ly");
    assert_eq!(PublisherClient::of(&world, "ly").publish(3), 3);
    until("all hold the new epoch", || agree(&world, new, &MEMBERS) && size(&world, "tn", new) == 4);
    assert_eq!(verify(&world, &proof), Some(0));
    assert_no_equivocation(&world, &MEMBERS);
}

/// A second node with the same keys, from a copy of the first one's folder, on other ports.
struct Second {
    folder: std::path::PathBuf,
    node: Option<std::process::Child>,
}

impl Second {
    fn of(world: &World, member: &str) -> Self {
        let folder = world.folder(member).with_file_name(format!("{member}-copy"));
        copy(&world.folder(member), &folder);
        let port = |line: &str| line.rsplit_once(':').unwrap().1.trim_matches('"').parse::<u16>().unwrap();
        let path = folder.join("node.toml");
        let config = fs::read_to_string(&path).unwrap();
        let moved = config.lines().map(|line| match line {
            // Peers cannot connect to it; it connects to them.
            line if line.starts_with("listen_exchange") => String::new(),
            line if line.starts_with("listen_api") => format!("listen_api = \"127.0.0.1:{}\"", port(line) + 1),
            line => line.to_owned(),
        });
        let config = moved.collect::<Vec<_>>().join("\n");
        fs::write(&path, config).unwrap();
        let client = folder.join("clients/police-hq/client.toml");
        let profile = fs::read_to_string(&client).unwrap();
        let endpoint = profile.lines().find(|line| line.starts_with("endpoint")).unwrap().to_owned();
        let moved = format!("endpoint = \"127.0.0.1:{}\"", port(&endpoint) + 1);
        fs::write(&client, profile.replace(&endpoint, &moved)).unwrap();
        let operator = folder.join("clients/operator/client.toml");
        fs::write(&operator, fs::read_to_string(&operator).unwrap().replace(&endpoint, &moved)).unwrap();
        Self { folder, node: None }
    }

    fn run(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.folder.join("node.log")).unwrap();
        let node = Command::new(env!("CARGO_BIN_EXE_barid"))
            .args(["node", "--config"])
            .arg(self.folder.join("node.toml"))
            .stdout(std::process::Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.node = Some(node);
        until("the copy serves", || self.client("operator", &["health"]).status.success());
    }

    fn client(&self, name: &str, args: &[&str]) -> Output {
        let profile = self.folder.join("clients").join(name).join("client.toml");
        let mut all = vec!["--json", "--profile", profile.to_str().unwrap()];
        all.extend(args);
        barid(&all)
    }

    fn kill(&mut self) {
        if let Some(mut node) = self.node.take() {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
fn duplicate_node_needs_recovery_and_no_equivocation_is_reported() {
    let mut world = World::logging("info");
    let feed = "ma.rabat.example/feed/1";
    known_to_all(&world, "ma");
    world.kill("ma");
    let mut second = Second::of(&world, "ma");
    world.run("ma");
    assert_eq!(PublisherClient::of(&world, "ma").publish(5), 5);
    until("peers hold it", || ["ly", "tn", "ne"].iter().all(|peer| size(&world, peer, feed) == 6));
    second.run();
    until("the copy needs recovery", || {
        let status = second.client("operator", &["status"]);
        text(&status.stdout).contains("needs-recovery: ")
    });
    let draft = world.draft("second.json", &example("stolen-passport.fr.json", |_| ()));
    let rejected = second.client("police-hq", &["publish", &draft, "--timeout", "10"]);
    assert_eq!(rejected.status.code(), Some(1), "{}", text(&rejected.stdout));
    second.kill();
    assert!(publish_one(&world, "ma").status.success(), "the first node continues");
    until("and peers follow it", || ["ly", "tn", "ne"].iter().all(|peer| size(&world, peer, feed) == 7));
    assert_no_equivocation(&world, &MEMBERS);
}

#[test]
fn equivocation_is_proven_persisted_and_stops_feed_until_resumed() {
    let mut world = World::logging("info");
    let feed = "ma.rabat.example/feed/1";
    known_to_all(&world, "ma");
    world.kill("ma");
    let mut second = Second::of(&world, "ma");
    // Both continue separately, each with its own tree: ly and ne follow the first node, tn the
    // copy.
    world.kill("tn");
    world.run("ma");
    assert_eq!(PublisherClient::of(&world, "ma").publish(2), 2);
    until("ly and ne hold it", || ["ly", "ne"].iter().all(|peer| size(&world, peer, feed) == 3));
    for member in ["ma", "ly", "ne"] {
        world.kill(member);
    }
    second.run();
    let draft = world.draft("second.json", &example("stolen-passport.fr.json", |_| ()));
    until("the copy publishes alone", || {
        let published = second.client("police-hq", &["publish", &draft, "--timeout", "10"]);
        published.status.success()
    });
    for _ in 0..3 {
        assert!(second.client("police-hq", &["publish", &draft, "--timeout", "10"]).status.success());
    }
    world.run("tn");
    until("tn holds the copy's fork", || size(&world, "tn", feed) == 5);
    second.kill();
    world.run("ly");

    // ly holds 3 entries, tn 5 different ones: one of them requests the proof from the other.
    let stopped = |world: &World, member: &str| {
        let forks = world.json(member, "operator", &["feed", "forks"]);
        forks.iter().any(|fork| fork["feed"] == feed && fork["resumed"] != true)
    };
    until("the fork is detected", || stopped(&world, "ly") || stopped(&world, "tn"));
    let finder = if stopped(&world, "ly") { "ly" } else { "tn" };
    assert!(!world.records(finder, &["alarm", "equivocation", feed]).is_empty());
    assert!(status(&world, finder)["alarms"].to_string().contains(feed));
    let path = world.roster().with_file_name("two.txt").to_str().unwrap().to_owned();
    world.json(finder, "operator", &["feed", "evidence", feed, "-o", &path]);
    assert_eq!(verify(&world, &path), Some(14));
    let altered = fs::read_to_string(&path).unwrap().replacen("smaller ", "smaller A", 1);
    fs::write(world.roster().with_file_name("altered.txt"), altered).unwrap();
    let altered = world.roster().with_file_name("altered.txt");
    assert_eq!(verify(&world, altered.to_str().unwrap()), Some(12));

    // Every member receives a bulletin with the evidence; its operators can export it for others.
    world.run("ne");
    until("Niamey's operators are alarmed", || {
        stopped(&world, "ne") && status(&world, "ne")["alarms"].to_string().contains(feed)
    });
    let handed_on = world.roster().with_file_name("handed-on.txt").to_str().unwrap().to_owned();
    world.json("ne", "operator", &["feed", "evidence", feed, "-o", &handed_on]);
    assert_eq!(verify(&world, &handed_on), Some(14));
    // A member announces a fork that it has proven and not yet heard of, once; Niamey can prove it
    // too.
    let notices_by = |world: &World, by: &str| {
        let history = world.json("ne", "situation-room", &["history", "--kind", "feed-forked"]);
        history.iter().filter(|line| line["header"]["member"] == by).count()
    };
    let notice_counts = |world: &World| ["ly", "tn", "ne"].map(|by| notices_by(world, by));
    until("a member has announced it", || notice_counts(&world).contains(&1));
    until("all members hold the announcement", || {
        ["ly", "tn"].iter().all(|member| stopped(&world, member)) && world.feeds("ly") == world.feeds("ne")
    });
    let first_counts = notice_counts(&world);
    assert!(first_counts.iter().all(|count| *count <= 1), "{first_counts:?}");

    // The fork and an operator's decision survive a restart.
    world.kill(finder);
    let finder = *MEMBERS.iter().find(|member| **member == finder).unwrap();
    let own = format!("{finder}.rabat.example/feed/1");
    world.run(finder);
    assert!(stopped(&world, finder) && status(&world, finder)["alarms"].to_string().contains(feed));
    world.json(finder, "operator", &["feed", "resume", feed]);
    assert!(!stopped(&world, finder));
    world.kill(finder);
    world.run(finder);
    assert!(!stopped(&world, finder));
    until("Niamey has all of the finder's", || world.feeds("ne").get(&own) == world.feeds(finder).get(&own));
    assert_eq!(notice_counts(&world), first_counts, "nothing is announced again");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap();
    assert!(copied.success());
}
