//! The outputs in the operator's guide and in the tutorial are what the program prints.
//!
//! A block that begins with ```` ```text run=NAME ```` has commands, each after `$ `, and below
//! each what it prints. The test brings an exchange into the states that the runbooks describe, runs
//! the commands there, and compares, but for numbers, ids, digests and ages. `show="A|B"` selects
//! the lines that contain one of these texts; others are `…`. With `BARID_WRITE_DOCS=1` blocks that
//! differ are written instead.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::world::{MEMBERS, World, example, program, text, until};

const PAGES: [&str; 2] = ["docs/tutorial.md", "docs/operator.md"];
const FENCE: &str = "```text run=";
/// Stands for lines that are not selected.
const OTHERS: &str = "…";

struct Page {
    path: PathBuf,
    lines: Vec<String>,
}

struct Runbooks {
    pages: Vec<Page>,
    /// Names of the blocks that were run.
    run: BTreeSet<String>,
    /// Blocks with another output than documented.
    wrong: Vec<String>,
}

impl Runbooks {
    fn read() -> Self {
        let page = |name: &str| {
            let path = repository().join(name);
            let lines = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
            Page { path, lines }
        };
        Self { pages: PAGES.map(page).into(), run: BTreeSet::new(), wrong: Vec::new() }
    }

    /// Runs the commands of a block as one of a member's clients, in the member's folder.
    fn run(&mut self, world: &World, member: &str, client: &str, name: &str) {
        let folder = world.folder(member);
        let profile = folder.join("clients").join(client).join("client.toml");
        self.run_in(&folder, &profile, name);
    }

    fn run_in(&mut self, folder: &Path, profile: &Path, name: &str) {
        let place = |page: &Page| page.lines.iter().position(|line| block_name(line) == Some(name));
        let (page, fence) = self.pages.iter().enumerate().find_map(|(n, page)| Some((n, place(page)?))).unwrap();
        let page = &mut self.pages[page];
        let first = &page.lines[fence];
        let indentation = first[..first.len() - first.trim_start().len()].to_owned();
        let patterns = first.split_once("show=\"").map(|(_, rest)| rest.trim_end_matches('"'));
        let patterns: Vec<String> =
            patterns.into_iter().flat_map(|patterns| patterns.split('|')).map(str::to_owned).collect();
        let start = fence + 1;
        let end = start + page.lines[start..].iter().position(|line| line.trim() == "```").unwrap();
        let unindented = |line: &String| line.strip_prefix(&indentation).unwrap_or(line).to_owned();
        let written: Vec<String> = page.lines[start..end].iter().map(unindented).collect();
        let mut body = Vec::new();
        for command in written.iter().filter_map(|line| line.strip_prefix("$ ")) {
            body.push(format!("$ {command}"));
            body.extend(selected(output(folder, profile, command), &patterns));
        }
        assert!(!body.is_empty(), "{name} has no command");
        self.run.insert(name.to_owned());
        if normalized(&written) == normalized(&body) {
            return;
        }
        if writes() {
            let body = body.iter().map(|line| format!("{indentation}{line}").trim_end().to_owned());
            drop(page.lines.splice(start..end, body));
        } else {
            self.wrong.push(format!("{} {name}:\n{}", page.path.display(), body.join("\n")));
        }
    }

    /// Every block was run, and has the output that is documented.
    fn finish(self) {
        let lines = self.pages.iter().flat_map(|page| &page.lines);
        let documented: BTreeSet<String> = lines.filter_map(|line| block_name(line)).map(str::to_owned).collect();
        assert_eq!(self.run, documented);
        if writes() {
            for page in &self.pages {
                fs::write(&page.path, page.lines.join("\n") + "\n").unwrap();
            }
        }
        let wrong = self.wrong.join("\n\n");
        assert!(wrong.is_empty(), "BARID_WRITE_DOCS=1 cargo test --test black_box runbooks writes:\n\n{wrong}");
    }
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn writes() -> bool {
    std::env::var_os("BARID_WRITE_DOCS").is_some()
}

fn block_name(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix(FENCE)?.split(' ').next()
}

/// Returns what a command prints on both outputs. The folder is documented as `/etc/barid`.
fn output(folder: &Path, profile: &Path, command: &str) -> Vec<String> {
    let script = format!("exec 2>&1\nbarid() {{ \"$PROGRAM\" \"$@\"; }}\n{command}");
    let mut shell = Command::new("timeout");
    shell.args(["120", "sh", "-c", &script]).current_dir(folder);
    shell.env("PROGRAM", program()).env("BARID_PROFILE", profile).env("BARID_LANG", "en");
    let printed = text(&shell.output().unwrap().stdout);
    printed.replace(folder.to_str().unwrap(), "/etc/barid").lines().map(str::to_owned).collect()
}

/// Returns the lines that contain one of the patterns, or all lines if there are no patterns.
fn selected(printed: Vec<String>, patterns: &[String]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in printed {
        if patterns.is_empty() || patterns.iter().any(|pattern| line.contains(pattern.as_str())) {
            lines.push(line);
        } else if lines.last().is_none_or(|last| last != OTHERS) {
            lines.push(OTHERS.to_owned());
        }
    }
    lines
}

/// Returns lines for comparison: without numbers, ids, digests and ages, and with single spaces.
fn normalized(lines: &[String]) -> Vec<String> {
    let line = |line: &String| {
        let line = line.split_whitespace().map(stable).collect::<Vec<_>>().join(" ");
        line.replace(" N s ago", "").replace(" N min ago", "")
    };
    lines.iter().map(line).collect()
}

/// Replaces the parts of a token that differ from run to run.
fn stable(token: &str) -> String {
    let part = |part: &str| {
        let bare = part.trim_matches(|c: char| c.is_ascii_punctuation());
        if bare.len() >= 32 && bare.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
            return "ID".to_owned();
        }
        let mut stable = String::new();
        for c in part.chars() {
            if !c.is_ascii_digit() {
                stable.push(c);
            } else if !stable.ends_with('N') {
                stable.push('N');
            }
        }
        stable
    };
    token.split('/').map(part).collect::<Vec<_>>().join("/")
}

fn status(world: &World, member: &str) -> Value {
    world.json(member, "operator", &["status"]).remove(0)
}

fn edit(path: &Path, from: &str, to: &str) {
    let before = fs::read_to_string(path).unwrap();
    assert!(before.contains(from), "{} lacks {from}", path.display());
    fs::write(path, before.replace(from, to)).unwrap();
}

/// Flips two bits of the first entry in a log of one segment.
fn damage(path: &Path) {
    let kind = b"travel-document-alert";
    let mut log = fs::read(path).unwrap();
    let at = log.windows(kind.len()).position(|bytes| bytes == kind).unwrap();
    log[at + 200] ^= 1;
    log[at + 230] ^= 1;
    fs::write(path, log).unwrap();
}

#[test]
fn runbooks_print_what_is_documented() {
    let mut runbooks = Runbooks::read();
    let mut world = World::configured("error", |_, config| config);
    until("all are linked", || world.linked(&MEMBERS));
    for member in ["ma", "ne"] {
        symlink(repository().join("examples"), world.folder(member).join("examples")).unwrap();
    }

    // A new exchange, and its first bulletin.
    runbooks.run(&world, "ma", "operator", "first-cert-check");
    runbooks.run(&world, "ma", "operator", "first-status");
    runbooks.run(&world, "ma", "police-hq", "first-publish");
    runbooks.run(&world, "tn", "police-hq", "first-history");
    until("all have cosigned", || {
        let status = status(&world, "ma");
        let peers = status["peers"].as_array().unwrap();
        peers.iter().all(|peer| peer["cosignedSize"] == "1" && peer["custodySize"] == "1")
    });
    for name in ["status", "forks", "clock", "cert-check"] {
        runbooks.run(&world, "ma", "operator", name);
    }
    let profile = world.folder("ma").join("clients/operator/client.toml");
    for name in ["first-evidence", "verify-fork"] {
        runbooks.run_in(repository(), &profile, name);
    }

    // Niamey's disk is full, and a file that it reads again is no TOML.
    let niamey = world.folder("ne");
    world.stop("ne");
    edit(&niamey.join("node.toml"), "min_free_disk_mib = 512", "min_free_disk_mib = 100000000");
    world.run("ne");
    until("the disk is full", || status(&world, "ne")["publishing"].as_str().unwrap().starts_with("disk-full"));
    runbooks.run(&world, "ne", "operator", "disk-full");
    runbooks.run(&world, "ne", "police-hq", "disk-full-publisher");
    let mut access = File::options().append(true).open(niamey.join("access.toml")).unwrap();
    access.write_all(b"border post\n").unwrap();
    world.hang_up("ne");
    until("the reload is rejected", || status(&world, "ne")["alarms"].to_string().contains("reload"));
    runbooks.run(&world, "ne", "operator", "reload-rejected");

    // Tunis is down.
    let alert = world.draft("alert.json", &example("stolen-passport.fr.json", |_| ()));
    world.json("tn", "police-hq", &["publish", &alert, "--wait-for", "ma,ly", "--timeout", "60"]);
    world.stop("tn");
    until("the link is down", || status(&world, "ma")["peers"].to_string().contains("Connection refused"));
    runbooks.run(&world, "ma", "operator", "peer-down");

    // Its node does not start, for one reason after the other.
    let tunis = world.folder("tn");
    let key = tunis.join("keys/feed.key");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    runbooks.run(&world, "tn", "operator", "start-rights");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    let (right, wrong) = ("member_share_percent = 25", "member_share_percent = 0");
    edit(&tunis.join("node.toml"), right, wrong);
    runbooks.run(&world, "tn", "operator", "start-config");
    edit(&tunis.join("node.toml"), wrong, right);
    let (data, away) = (tunis.join("data"), tunis.join("away"));
    fs::rename(&data, &away).unwrap();
    runbooks.run(&world, "tn", "operator", "store-missing");
    fs::rename(&away, &data).unwrap();
    // Without the index database the whole log is read.
    fs::remove_dir_all(data.join("db")).unwrap();
    damage(&data.join("log/0000000001.log"));
    runbooks.run(&world, "tn", "operator", "damaged");

    // Its disk is lost.
    fs::remove_dir_all(&data).unwrap();
    world.run_without_store("tn");
    until("the peers have sent the lost entry back", || status(&world, "tn")["own"]["size"] == "1");
    runbooks.run(&world, "tn", "operator", "needs-recovery");
    world.stop("tn");
    runbooks.run(&world, "tn", "operator", "recover");
    world.run("tn");
    until("it publishes", || status(&world, "tn")["publishing"] == "yes");
    runbooks.run(&world, "tn", "operator", "recovered");

    runbooks.finish();
}
