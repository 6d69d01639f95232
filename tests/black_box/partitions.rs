//! Members that are partitioned while everybody publishes. Each has its own network namespace, as a
//! machine of its own, on a switch whose links the test cuts. It must run as root; otherwise the
//! test reports this and ends. The same with containers: `containers`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::world::{MEMBERS, World, example, text, until_within};

/// A dead link is detected within a minute (40 s of silence, 20 s for a keep-alive), and a relay is
/// found some seconds later. The machine may also be busy.
const NOTICED_IN: Duration = Duration::from_secs(180);

/// Pause between two bulletins of a publisher: the nodes need the processors, too.
const PUBLISH_EVERY: Duration = Duration::from_millis(200);

/// Four network namespaces on one switch; dropping it removes them.
struct Switch {
    name: String,
}

impl Switch {
    /// Creates the switch with all links up, or returns why that is not possible.
    fn new() -> Result<Self, String> {
        let switch = Self { name: format!("barid-{}", std::process::id()) };
        ip(&["netns", "add", &switch.name])?;
        ip(&["-n", &switch.name, "link", "add", "switch", "type", "bridge"])?;
        ip(&["-n", &switch.name, "link", "set", "dev", "switch", "up"])?;
        for member in MEMBERS {
            let (machine, port) = (switch.machine(member), port(member));
            let address = format!("{}/24", address(member));
            ip(&["netns", "add", &machine])?;
            let cable = ["link", "add", "eth0", "netns", &machine, "type", "veth", "peer", "name", &port, "netns"];
            ip(&[&cable[..], &[&switch.name]].concat())?;
            ip(&["-n", &switch.name, "link", "set", "dev", &port, "master", "switch", "up"])?;
            ip(&["-n", &machine, "address", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &machine, "link", "set", "dev", "eth0", "up"])?;
            ip(&["-n", &machine, "link", "set", "dev", "lo", "up"])?;
        }
        Ok(switch)
    }

    fn machine(&self, member: &str) -> String {
        format!("{}-{member}", self.name)
    }

    /// Sets a member's link up or down.
    fn cable(&self, member: &str, to: &str) {
        ip(&["-n", &self.name, "link", "set", "dev", &port(member), to]).unwrap();
    }

    /// Drops all packets from `from` to `to`; the other direction is open.
    fn cut_one_way(&self, from: &str, to: &str) {
        let nobody = ["lladdr", "02:00:00:00:00:99", "nud", "permanent", "dev", "eth0"];
        ip(&[&["-n", &self.machine(from), "neigh", "replace", &address(to)], &nobody[..]].concat()).unwrap();
    }

    fn heal_one_way(&self, from: &str, to: &str) {
        ip(&["-n", &self.machine(from), "neigh", "del", &address(to), "dev", "eth0"]).unwrap();
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for name in MEMBERS.map(|member| self.machine(member)).iter().chain([&self.name]) {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

fn port(member: &str) -> String {
    format!("port-{member}")
}

fn address(member: &str) -> String {
    format!("10.77.0.{}", 1 + MEMBERS.iter().position(|other| *other == member).unwrap())
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).output().map_err(|error| format!("`ip` cannot be run: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("ip {}: {}", args.join(" "), text(&output.stderr).trim()))
    }
}

/// Starts four nodes, one in each namespace.
fn world_on(switch: &Switch) -> World {
    let others = |member: &str| {
        let others = MEMBERS.into_iter().filter(|other| *other != member);
        others.map(|other| format!("{other} = \"{}:7400\"\n", address(other))).collect::<String>()
    };
    let configured = |member: &str, config: String| {
        let listens = config.lines().find(|line| line.starts_with("listen_exchange")).unwrap().to_owned();
        let here = format!("listen_exchange = \"{}:7400\"", address(member));
        format!("{}\n[endpoints]\n{}", config.replace(&listens, &here), others(member))
    };
    let by = |member: &&'static str| {
        let by = ["ip", "netns", "exec", &switch.machine(member)].map(str::to_owned);
        (*member, by.to_vec())
    };
    World::run_by("info", configured, MEMBERS.iter().map(by).collect())
}

fn patiently(what: &str, condition: impl FnMut() -> bool) {
    until_within(NOTICED_IN, what, condition);
}

fn linked(world: &World, at: &str, peer: &str) -> bool {
    let status = world.json(at, "operator", &["status"]).remove(0);
    status["peers"].as_array().unwrap().iter().any(|entry| entry["member"] == peer && entry["linked"] == true)
}

/// Publishes at a member until stopped; returns the ids with receipts.
fn publish_on(world: &World, member: &str, stop: &AtomicBool) -> BTreeSet<String> {
    let draft = world.draft(&format!("{member}.json"), &example("stolen-passport.fr.json", |_| ()));
    let mut ids = BTreeSet::new();
    while !stop.load(Ordering::Relaxed) {
        let published = &world.json(member, "police-hq", &["publish", &draft])[0];
        assert!(ids.insert(published["receipt"]["id"].as_str().unwrap().to_owned()), "an id twice");
        thread::sleep(PUBLISH_EVERY);
    }
    ids
}

/// Publishes at all members during `during`; returns the ids with receipts, by member.
fn under_load(world: &World, during: impl FnOnce()) -> BTreeMap<&'static str, BTreeSet<String>> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = &stop;
        let publishers = MEMBERS.map(|member| (member, scope.spawn(move || publish_on(world, member, stop))));
        // The publishers must stop even if `during` fails.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(during));
        stop.store(true, Ordering::Relaxed);
        let published = publishers.map(|(member, handle)| (member, handle.join().unwrap()));
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        published.into_iter().collect()
    })
}

/// Returns whether every member shows exactly the bulletins with receipts, each once.
fn complete(world: &World, published: &BTreeMap<&'static str, BTreeSet<String>>) -> bool {
    let feeds = MEMBERS.map(|member| world.feeds(member));
    feeds.iter().all(|held| held.len() == MEMBERS.len() && *held == feeds[0])
        && published.iter().all(|(of, ids)| {
            let (size, _) = &feeds[0][&format!("{of}.rabat.example/feed/1")];
            *size == ids.len().to_string() && MEMBERS.iter().all(|at| visible(world, at, of) == *ids)
        })
}

fn visible(world: &World, at: &str, of: &str) -> BTreeSet<String> {
    let history = world.json(at, "police-hq", &["history", "--member", of, "--limit", "1000000"]);
    let id = |line: &Value| line["header"]["id"].as_str().unwrap().to_owned();
    history.iter().map(id).collect()
}

#[test]
fn partitioned_member_continues_and_converges_without_duplicates() {
    let switch = match Switch::new() {
        Ok(switch) => switch,
        Err(reason) => return println!("SKIPPED: partitions between machines were NOT tested: {reason}"),
    };
    let world = world_on(&switch);
    patiently("all are linked", || world.linked(&MEMBERS));

    // Tunis is cut off from everybody. Packets from Tripoli do not reach Rabat, but those from Rabat
    // reach Tripoli. No connection is closed: the dead links have to be detected.
    let during = || {
        switch.cable("tn", "down");
        switch.cut_one_way("ly", "ma");
        patiently("the others know that Tunis is away", || !linked(&world, "ma", "tn") && !linked(&world, "ly", "tn"));
        patiently("Tunis knows that all are away", || MEMBERS[..2].iter().all(|peer| !linked(&world, "tn", peer)));
        patiently("Rabat and Tripoli know it", || !linked(&world, "ma", "ly") && !linked(&world, "ly", "ma"));
        assert!(world.linked(&["ma", "ne"]) && world.linked(&["ly", "ne"]), "the others are not disturbed");
        // Entries of Tripoli reach Rabat through Niamey.
        let newest = || world.feeds("ly")["ly.rabat.example/feed/1"].0.parse::<u64>().unwrap();
        let there = newest();
        patiently("Rabat has what Tripoli published since", || {
            world.feeds("ma")["ly.rabat.example/feed/1"].0.parse::<u64>().unwrap() > there
        });
        switch.cable("tn", "up");
        switch.heal_one_way("ly", "ma");
        patiently("all are linked again", || world.linked(&MEMBERS));
    };
    let published = under_load(&world, during);
    for (member, ids) in &published {
        assert!(ids.len() > 3, "{member} published {}", ids.len());
    }
    patiently("all have everything, once", || complete(&world, &published));
}
