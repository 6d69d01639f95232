//! Full disks and failing disks, with the real binary: a small file system of the test's own, and
//! system calls with injected errors. Where either is not permitted the test reports this and ends.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::Value;

use crate::world::{World, example, text, until};

const PEERS: [&str; 3] = ["ly", "ne", "tn"];

/// A file system of limited size; dropping it unmounts it.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts one of `mib` MiB, or returns why that is not possible.
    fn mount(mib: u32) -> Result<Self, String> {
        let disk = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(disk.path()).unwrap();
        // A real one if there are loop devices, else one in memory.
        let image = disk.folder.path().join("image");
        File::create(&image).unwrap().set_len(u64::from(mib) << 20).unwrap();
        let made = ran(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image));
        let looped = made.and_then(|()| ran(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.path())));
        if looped.is_ok() {
            return Ok(disk);
        }
        let size = format!("size={mib}m");
        ran(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(disk.path())).map(|()| disk)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn free_bytes(&self) -> u64 {
        let space = rustix::fs::statvfs(self.path()).unwrap();
        space.f_bavail * space.f_frsize
    }

    /// Fills the disk until only `left_bytes` are free.
    fn occupy(&self, left_bytes: u64) {
        let mut ballast = File::options().create(true).append(true).open(self.path().join("ballast")).unwrap();
        let block = vec![7; 256 << 10];
        while self.free_bytes() > left_bytes {
            let len = block.len().min(usize::try_from(self.free_bytes() - left_bytes).unwrap().max(1));
            if ballast.write_all(&block[..len]).and_then(|()| ballast.sync_all()).is_err() {
                break;
            }
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.path().join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = ran(Command::new("umount").arg("-l").arg(self.path()));
    }
}

fn ran(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {}", text(&output.stderr))) }
}

/// Starts the exchange with Rabat's store on `disk`.
fn world_on(disk: &SmallDisk, min_free_disk_mib: u32) -> World {
    let data = format!("data = {:?}", disk.path().join("data"));
    World::configured("info", |member, config| match member {
        "ma" => {
            let moved = config.replace("data = \"data\"", &data);
            moved.replace("min_free_disk_mib = 512", &format!("min_free_disk_mib = {min_free_disk_mib}"))
        }
        _ => config,
    })
}

/// Publishes one alert; returns its id and index if it was confirmed.
fn publish(world: &World, member: &str, more: &[&str]) -> Result<(String, u64), String> {
    let draft = world.draft(&format!("{member}.json"), &example("stolen-passport.fr.json", |_| ()));
    let seconds = if more.is_empty() { "1" } else { "60" };
    let output = world.client(member, "police-hq", &[&["publish", &draft, "--timeout", seconds], more].concat());
    if !output.status.success() {
        return Err(text(&output.stdout) + &text(&output.stderr));
    }
    let receipt = serde_json::from_slice::<Value>(&output.stdout).unwrap()["receipt"].clone();
    let index = receipt["index"].as_str().unwrap_or("0").parse().unwrap();
    Ok((receipt["id"].as_str().unwrap().to_owned(), index))
}

fn status(world: &World, member: &str) -> Value {
    world.json(member, "operator", &["status"]).remove(0)
}

fn alarms(world: &World, member: &str) -> String {
    status(world, member)["alarms"].to_string()
}

fn serves(world: &World, service: &str) -> bool {
    world.client("ma", "operator", &["health", "--service", service]).status.success()
}

/// Returns the ids of a member's bulletins by index, as another member shows them.
fn visible(world: &World, at: &str, of: &str) -> BTreeMap<u64, String> {
    let history = world.json(at, "police-hq", &["history", "--member", of, "--limit", "1000"]);
    let entry = |line: &Value| {
        let delivery = if line["delivery"].is_object() { &line["delivery"] } else { line };
        let index = delivery["index"].as_str().unwrap_or("0").parse().unwrap();
        (index, delivery["header"]["id"].as_str().or(delivery["id"].as_str()).unwrap_or_default().to_owned())
    };
    history.iter().map(entry).collect()
}

fn agree(world: &World) -> bool {
    let feeds = world.feeds("ma");
    feeds.len() >= 2 && PEERS.iter().all(|peer| world.feeds(peer) == feeds)
}

#[test]
fn full_disk_rejects_publishing_serves_reads_and_recovers() {
    let disk = match SmallDisk::mount(64) {
        Ok(disk) => disk,
        Err(reason) => return println!("SKIPPED: a full disk was NOT tested: {reason}"),
    };
    let mut world = world_on(&disk, 16);
    let mut receipts: BTreeMap<u64, String> = BTreeMap::new();
    let confirmed = |receipts: &mut BTreeMap<u64, String>, (id, index)| {
        assert_eq!(receipts.insert(index, id), None, "one bulletin per index");
    };
    for _ in 0..3 {
        confirmed(&mut receipts, publish(&world, "ma", &["--wait-for", "3"]).unwrap());
    }
    world.kill("ne");
    confirmed(&mut receipts, publish(&world, "ma", &[]).unwrap());
    let process = world.process("ma");

    // Other data fills the disk while clients publish.
    disk.occupy(12 << 20);
    until("publishing is rejected", || publish(&world, "ma", &[]).map(|new| confirmed(&mut receipts, new)).is_err());
    let rejected = publish(&world, "ma", &[]).unwrap_err();
    assert!(rejected.contains("reserve"), "{rejected}");
    let node_status = status(&world, "ma");
    assert!(node_status["publishing"].as_str().unwrap().starts_with("disk-full: "), "{node_status}");
    assert!(node_status["alarms"].to_string().contains("the disk is full"), "{node_status}");
    assert!(serves(&world, "") && !serves(&world, "barid.v1.FocalPoint/Publish"));

    // Reading and serving continue. Entries of others are not stored, but their links stay.
    assert_eq!(visible(&world, "ma", "ma"), receipts);
    publish(&world, "tn", &["--wait-for", "ly"]).unwrap();
    world.run("ne");
    until("Niamey has what it missed, from Rabat or others", || {
        world.feeds("ne").len() == 2 && visible(&world, "ne", "ma") == receipts
    });
    until("Rabat reports that it is behind", || {
        status(&world, "ma")["peers"].as_array().unwrap().iter().any(|peer| peer["lagEntries"] == "1")
    });
    assert!(world.linked(&["ma", "ly", "tn", "ne"]));

    // The reserve fills too, to the last byte, while publishers retry.
    let filling = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            disk.occupy(0);
            filling.store(false, Ordering::Relaxed);
        });
        while filling.load(Ordering::Relaxed) {
            assert!(publish(&world, "ma", &[]).is_err());
        }
    });
    assert!(publish(&world, "ma", &[]).is_err());
    assert!(visible(&world, "ma", "ma") == receipts && world.linked(&["ma", "ly", "tn", "ne"]));

    // With free space everything continues by itself.
    disk.make_room();
    until("Rabat publishes again", || publish(&world, "ma", &[]).map(|new| confirmed(&mut receipts, new)).is_ok());
    confirmed(&mut receipts, publish(&world, "ma", &["--wait-for", "3"]).unwrap());
    until("all members hold the same", || agree(&world));
    assert_eq!(world.process("ma"), process, "without a restart");
    assert!(!alarms(&world, "ma").contains("disk"), "{}", alarms(&world, "ma"));
    assert!(serves(&world, "barid.v1.FocalPoint/Publish"));
    // Raised once, and cleared once. Both records contain "alarm".
    assert_eq!(world.records("ma", &["alarm", "disk-full"]).len(), 2);
    assert_eq!(world.records("ma", &["alarm-cleared", "disk-full"]).len(), 1);
    // All stored entries are attested, including those whose attestation could not be persisted
    // before.
    let all = receipts.len().to_string();
    until("Niamey is known to hold everything", || {
        let peers = status(&world, "ma")["peers"].clone();
        peers.as_array().unwrap().iter().all(|peer| peer["custodySize"] == all)
    });
    for member in ["ma", "ly", "ne", "tn"] {
        assert_eq!(
            visible(&world, member, "ma"),
            receipts,
            "every receipt is true at {member}, and nothing is there twice"
        );
    }
    world.kill("ma");
    world.run("ma");
    assert_eq!(visible(&world, "ma", "ma"), receipts);
}

#[test]
fn index_without_space_is_rebuilt_and_node_survives() {
    let disk = match SmallDisk::mount(48) {
        Ok(disk) => disk,
        Err(reason) => return println!("SKIPPED: an index database without space was NOT tested: {reason}"),
    };
    // Without a reserve sled itself reaches the end of the disk.
    let mut world = world_on(&disk, 0);
    let process = world.process("ma");
    let mut receipts: BTreeMap<u64, String> = BTreeMap::new();
    let first = publish(&world, "ma", &["--wait-for", "3"]).unwrap();
    receipts.insert(first.1, first.0);
    disk.occupy(0);
    // The existing segment still has space for some.
    for _ in 0..40 {
        if let Ok((id, index)) = publish(&world, "ma", &[]) {
            assert_eq!(receipts.insert(index, id), None);
        }
    }
    assert!(world.client("ma", "operator", &["health"]).status.success());
    disk.make_room();
    until("Rabat publishes", || publish(&world, "ma", &[]).is_ok_and(|(id, at)| receipts.insert(at, id).is_none()));
    until("reads are answered", || {
        world.client("ma", "police-hq", &["history", "--member", "ma"]).status.success()
            && visible(&world, "ma", "ma") == receipts
    });
    assert_eq!(world.process("ma"), process, "without a restart");
    until("all members hold the same", || PEERS.iter().all(|peer| visible(&world, peer, "ma") == receipts));
    world.kill("ma");
    world.run("ma");
    assert_eq!(visible(&world, "ma", "ma"), receipts);
}

/// An strace process that injects errors into system calls of a node.
struct Sabotage(Child);

impl Sabotage {
    /// Attaches strace with the injection `what`, as in `fdatasync:error=EIO:when=1`; returns why
    /// if that is not possible.
    fn begin(process: u32, what: &str) -> Result<Self, String> {
        let call = what.split(':').next().unwrap();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &format!("inject={what}")]);
        let child = strace.args(["-p", &process.to_string()]).stderr(Stdio::piped()).spawn();
        let mut sabotage = Self(child.map_err(|error| format!("`strace` cannot be run: {error}"))?);
        let traced = || {
            let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        };
        let mut ended = false;
        until("the node is traced, or cannot be", || {
            ended = sabotage.0.try_wait().unwrap().is_some();
            ended || traced()
        });
        if ended { Err("`strace` may not attach to a process".into()) } else { Ok(sabotage) }
    }
}

impl Drop for Sabotage {
    fn drop(&mut self) {
        // At SIGINT strace detaches from the process.
        let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), rustix::process::Signal::INT);
        let _ = self.0.wait();
    }
}

#[test]
fn failed_fsync_stops_node_before_commit_is_announced() {
    let mut world = World::logging("info");
    let mut receipts: BTreeMap<u64, String> = BTreeMap::new();
    for _ in 0..3 {
        let (id, index) = publish(&world, "ma", &["--wait-for", "3"]).unwrap();
        receipts.insert(index, id);
    }
    let sabotage = match Sabotage::begin(world.process("ma"), "fdatasync:error=EIO:when=1+") {
        Ok(sabotage) => sabotage,
        Err(reason) => return println!("SKIPPED: a failing fdatasync was NOT tested: {reason}"),
    };
    let id = "01971f5a-3c00-7a10-8b5e-0000000000aa";
    let draft = world.draft(
        "doomed.json",
        &example("stolen-passport.fr.json", |draft| {
            draft["header"]["id"] = id.into();
        }),
    );
    let doomed = world.client("ma", "police-hq", &["publish", &draft, "--timeout", "1"]);
    assert!(!doomed.status.success(), "{}", text(&doomed.stdout));
    let code = world.ended("ma");
    assert_eq!(code.code(), Some(1), "{}", world.log_end("ma"));
    assert!(world.log_end("ma").contains("the commit log cannot be written"), "{}", world.log_end("ma"));
    drop(sabotage);
    for peer in PEERS {
        assert_eq!(world.feeds(peer).len(), 1, "nothing of it left the node");
        assert_eq!(visible(&world, peer, "ma"), receipts);
    }

    world.run("ma");
    let before = visible(&world, "ma", "ma");
    assert!(receipts.iter().all(|(index, id)| before.get(index) == Some(id)), "{before:?}");
    // The entry may exist or not; published again it exists once.
    let again = world.json("ma", "police-hq", &["publish", &draft]);
    assert_eq!(again[0]["receipt"]["id"], id);
    receipts.insert(3, id.to_owned());
    assert_eq!(visible(&world, "ma", "ma"), receipts);
    until("all members hold the same", || PEERS.iter().all(|peer| visible(&world, peer, "ma") == receipts));
    assert_eq!(status(&world, "ma")["publishing"], "yes");
}

#[test]
fn write_without_space_is_rejected_and_next_one_succeeds() {
    let world = World::logging("info");
    let (process, (id, index)) = (world.process("ma"), publish(&world, "ma", &["--wait-for", "3"]).unwrap());
    let mut receipts = BTreeMap::from([(index, id)]);
    let sabotage = match Sabotage::begin(process, "pwritev:error=ENOSPC:when=1..2") {
        Ok(sabotage) => sabotage,
        Err(reason) => return println!("SKIPPED: a write without space was NOT tested: {reason}"),
    };
    let mut rejected = 0;
    until("it is accepted", || match publish(&world, "ma", &[]) {
        Ok((id, index)) => receipts.insert(index, id).is_none(),
        Err(_) => {
            rejected += 1;
            false
        }
    });
    drop(sabotage);
    assert!(rejected > 0, "a publisher was rejected");
    assert_eq!(world.process("ma"), process);
    until("all members hold it", || PEERS.iter().all(|peer| visible(&world, peer, "ma") == receipts));
}
