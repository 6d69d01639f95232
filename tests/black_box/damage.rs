//! Stores that must not be used as they are. The node reports why and changes nothing; a torn
//! record is truncated.

use std::fs;
use std::path::{Path, PathBuf};

use crate::world::{World, example, text, until};

/// Starts a node that must end by itself; returns its log.
fn start_failure(world: &mut World, member: &'static str) -> String {
    let log = world.folder(member).join("node.log");
    let log_length = fs::read(&log).unwrap().len();
    world.spawn(member);
    let ended = world.ended(member);
    let output = text(&fs::read(&log).unwrap()[log_length..]);
    assert_eq!(ended.code(), Some(1), "{output}");
    output
}

fn assert_contains(output: &str, wanted: &str) {
    assert!(output.contains(wanted), "{wanted}: {output}");
}

fn log_of(world: &World, member: &str) -> PathBuf {
    world.folder(member).join("data/log/0000000001.log")
}

/// Returns where the last record begins (its magic at a multiple of 8), and one past the last byte
/// that is not zero.
fn last_record(log: &[u8]) -> (usize, usize) {
    let start = (4_096..log.len() - 4).step_by(8).rfind(|at| &log[*at..*at + 4] == b"BRD\x01").unwrap();
    (start, log.iter().rposition(|byte| *byte != 0).unwrap() + 1)
}

fn publish(world: &World) -> String {
    let draft = world.draft("alert.json", &example("stolen-passport.fr.json", |_| ()));
    let published = world.json("ma", "police-hq", &["publish", &draft]);
    published[0]["receipt"]["id"].as_str().unwrap().to_owned()
}

#[test]
fn damaged_store_is_reported_or_repaired() {
    let mut world = World::logging("info");
    let ids: Vec<String> = (0..3).map(|_| publish(&world)).collect();
    let held = |world: &World| {
        let history = world.json("ma", "police-hq", &["history", "--member", "ma"]);
        ids.iter().filter(|id| history.iter().any(|line| line.to_string().contains(*id))).count()
    };
    until("all that is committed is answered for", || world.feeds("ma") == world.feeds("tn"));
    for member in ["ma", "tn"] {
        world.kill(member);
    }
    let path = log_of(&world, "ma");
    let whole = fs::read(&path).unwrap();
    let altered = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        bytes
    };

    // Written by a later version.
    let bytes = altered(&|bytes| bytes[8] = 9);
    assert_contains(
        &start_failure(&mut world, "ma"),
        "the store has version 9, this program supports versions up to 1",
    );
    assert!(fs::read(&path).unwrap() == bytes, "nothing is changed");

    // Two flipped bits in a confirmed commit: the error names the commit. The index database is
    // removed first, so that the whole log is read.
    fs::remove_dir_all(world.folder("ma").join("data/db")).unwrap();
    let bytes = altered(&|bytes| {
        bytes[4_096 + 40] ^= 1;
        bytes[4_096 + 60] ^= 1;
    });
    assert_contains(&start_failure(&mut world, "ma"), "damage: commit 1: ");
    assert!(fs::read(&path).unwrap() == bytes, "nothing is changed");

    // The store of another member.
    let (data, moved) = (world.folder("ma").join("data"), world.folder("ma").join("kept"));
    fs::rename(&data, &moved).unwrap();
    copy(&world.folder("tn").join("data"), &data);
    assert_contains(
        &start_failure(&mut world, "ma"),
        "the store belongs to tn.rabat.example, this node is ma.rabat.example",
    );
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&moved, &data).unwrap();

    // Half a record at the end was never confirmed: it is truncated, and the node continues.
    altered(&|bytes| {
        let (start, end) = last_record(bytes);
        let half = bytes[start..start + (end - start) / 2].to_vec();
        let next = end.next_multiple_of(8);
        bytes[next..next + half.len()].copy_from_slice(&half);
    });
    world.run("ma");
    assert_eq!(held(&world), 3);
    publish(&world);
    assert!(world.log_end("ma").contains("a torn record at the end of the commit log was cut"));

    // An older copy of the own store is served, but its feed is not continued.
    world.stop("ma");
    fs::remove_dir_all(world.folder("ma").join("data/db")).unwrap();
    fs::write(&path, &whole).unwrap();
    // Confirmed commits are not truncated: the loss is reported, until the tail hint
    // (`data/log/end`) is as old as the log.
    assert_contains(&start_failure(&mut world, "ma"), "was confirmed, and commit");
    assert!(fs::read(&path).unwrap() == whole, "nothing is changed");
    fs::remove_file(world.folder("ma").join("data/log/end")).unwrap();
    world.run("ma");
    assert_eq!(held(&world), 3);
    let draft = world.draft("late.json", &example("stolen-passport.fr.json", |_| ()));
    let rejected = world.client("ma", "police-hq", &["publish", &draft, "--timeout", "5"]);
    assert_ne!(rejected.status.code(), Some(0), "{}", text(&rejected.stdout));
    let status = world.json("ma", "operator", &["status"]).remove(0);
    assert!(status["publishing"].as_str().unwrap().starts_with("needs-recovery: "), "{status}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}
