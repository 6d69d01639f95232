//! Four nodes in four processes with their clients, in a folder that goes away with them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use barid_core::ids::Member;
use futures::future::{join_all, try_join_all};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::cli::Failure;
use crate::pki::{self, DevelopMember, DevelopOptions};

pub(super) const MEMBERS: [&str; 4] = ["ma", "ly", "tn", "ne"];
/// Longest for one thing to come true.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two looks: a look is a process and a handshake.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Each member has two ports.
const PORTS: u16 = 8;

/// A running exchange.
pub(super) struct Exchange {
    folder: tempfile::TempDir,
    program: PathBuf,
    nodes: Mutex<BTreeMap<&'static str, Child>>,
}

/// What a command said.
pub(super) struct CommandOutput {
    /// Its exit code; `None` if it was killed.
    pub(super) code: Option<i32>,
    /// Its lines for machines.
    pub(super) lines: Vec<Value>,
    /// Why it failed, in its own words.
    pub(super) error: String,
}

impl CommandOutput {
    /// Its first line; null if it said nothing.
    pub(super) fn first(&self) -> &Value {
        self.lines.first().unwrap_or(&Value::Null)
    }
}

pub(super) fn failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new("demo").because(error)
}

impl Exchange {
    /// Makes the exchange in a folder; nothing runs yet.
    pub(super) fn make(base_port: Option<u16>) -> Result<Self, Failure> {
        let base = free_ports(base_port)?;
        let folder = tempfile::Builder::new().prefix("barid-demo-").tempdir().map_err(|error| failed(&error))?;
        let program = std::env::current_exe().map_err(|error| failed(&error))?;
        let member = |(n, code): (u16, &&str)| {
            let code: Member = code.parse().map_err(|error| failed(&error))?;
            Ok(DevelopMember::local(code, base + 2 * n))
        };
        let members = (0..).zip(&MEMBERS).map(member).collect::<Result<_, Failure>>()?;
        let exchange = "rabat.example".parse().map_err(|error| failed(&error))?;
        let options = DevelopOptions::new(folder.path().to_owned(), exchange, members);
        pki::develop(&options).map_err(|error| failed(&error))?;
        Ok(Self { folder, program, nodes: Mutex::default() })
    }

    /// All four nodes, linked.
    pub(super) async fn begin(&self) -> Result<(), Failure> {
        for member in MEMBERS {
            self.run(member)?;
        }
        self.until("all nodes are linked", async || {
            let linked = |status: &CommandOutput| count(status.first(), |peer| peer["linked"] == true) == 3;
            Ok(self.statuses().await?.iter().all(linked))
        })
        .await
    }

    /// Starts a member's node.
    pub(super) fn run(&self, member: &'static str) -> Result<(), Failure> {
        let folder = self.folder.path().join(member);
        let log = File::options().create(true).append(true).open(folder.join("node.log"));
        let node = Command::new(&self.program)
            .args(["node", "--bootstrap", "--exit-on-stdin-eof", "--config"])
            .arg(folder.join("node.toml"))
            // Its other end is ours alone: the node ends when we do, also by kill -9.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log.map_err(|error| failed(&error))?)
            // Ctrl-C in a terminal is for the story, which ends its nodes itself.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(&error))?;
        self.nodes.lock().insert(member, node);
        Ok(())
    }

    /// As a power cut would.
    pub(super) async fn cut(&self, member: &str) -> Result<(), Failure> {
        let node = self.nodes.lock().remove(member);
        match node {
            Some(mut node) => node.kill().await.map_err(|error| failed(&error)),
            None => Ok(()),
        }
    }

    /// Ends all nodes and removes the folder.
    pub(super) async fn end(self) {
        let nodes = std::mem::take(&mut *self.nodes.lock());
        join_all(nodes.into_values().map(async |mut node| node.kill().await)).await;
        // What cannot be removed is in the folder for temporary files.
        let _ = self.folder.close();
    }

    /// Waits until a node ends by itself, which none should.
    pub(super) async fn first_to_end(&self) -> Failure {
        loop {
            if let Err(failure) = self.alive() {
                return failure;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// One command as one of a member's people.
    pub(super) async fn run_client(&self, member: &str, client: &str, args: &[&str]) -> Result<CommandOutput, Failure> {
        self.run_command(&[&["--profile", &self.profile(member, client)], args].concat()).await
    }

    /// As [`Exchange::run_client`], for what must succeed.
    pub(super) async fn run_client_ok(
        &self,
        member: &str,
        client: &str,
        args: &[&str],
    ) -> Result<CommandOutput, Failure> {
        let output = self.run_client(member, client, args).await?;
        if output.code == Some(0) {
            return Ok(output);
        }
        self.alive()?;
        let code = output.code.map_or("-".to_owned(), |code| code.to_string());
        Err(Failure::new("demo").cause(format!("{member}/{client}: {}: {code}: {}", args.join(" "), output.error)))
    }

    /// One command without a profile: somebody who is nobody's client.
    pub(super) async fn run_command(&self, args: &[&str]) -> Result<CommandOutput, Failure> {
        let output = Command::new(&self.program)
            .arg("--json")
            .args(args)
            .env_remove("BARID_PROFILE")
            .env("BARID_LANG", "en")
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| failed(&error))?;
        let lines = |bytes: &[u8]| -> Vec<Value> {
            String::from_utf8_lossy(bytes).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
        };
        let error = lines(&output.stderr).into_iter().next().unwrap_or_default();
        let error = [&error["error"]["message"], &error["error"]["why"]].map(|part| part.as_str().unwrap_or_default());
        Ok(CommandOutput {
            code: output.status.code(),
            lines: lines(&output.stdout),
            error: error.join(" ").trim().to_owned(),
        })
    }

    /// What every running node says of itself, in the order of [`MEMBERS`]; nothing from one that does not answer.
    pub(super) async fn statuses(&self) -> Result<Vec<CommandOutput>, Failure> {
        let running: Vec<&str> = MEMBERS.into_iter().filter(|member| self.nodes.lock().contains_key(member)).collect();
        try_join_all(running.into_iter().map(|member| self.run_client(member, "operator", &["status"]))).await
    }

    /// Waits until every member's copy of every feed has the same size and root.
    pub(super) async fn equal(&self) -> Result<(), Failure> {
        self.until("all feeds are equal everywhere", async || {
            let feeds: Vec<Vec<String>> = self.statuses().await?.iter().map(|output| roots(output.first())).collect();
            Ok(feeds.first().is_some_and(|first| first.len() == MEMBERS.len())
                && feeds.iter().all(|one| *one == feeds[0]))
        })
        .await
    }

    /// Waits for something to come true; a node that ends meanwhile, or too long a wait, is a failure.
    pub(super) async fn until(
        &self,
        what: &str,
        come_true: impl AsyncFn() -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let start = Instant::now();
        while !come_true().await? {
            self.alive()?;
            if start.elapsed() > WAIT_TIMEOUT {
                let cause = format!("timeout after {} s while waiting until {what}", WAIT_TIMEOUT.as_secs());
                return Err(Failure::new("demo").cause(cause));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    fn alive(&self) -> Result<(), Failure> {
        for (member, node) in self.nodes.lock().iter_mut() {
            if let Ok(Some(status)) = node.try_wait() {
                let log = fs::read(self.folder.path().join(member).join("node.log")).unwrap_or_default();
                let log = String::from_utf8_lossy(&log);
                let last: Vec<&str> = log.lines().rev().filter(|line| !line.trim().is_empty()).take(3).collect();
                let last: Vec<&str> = last.into_iter().rev().map(str::trim).collect();
                let cause = format!("{status}: {}", last.join(" | "));
                return Err(Failure::new("demo-node").with("member", member).cause(cause));
            }
        }
        Ok(())
    }

    /// Writes a file into the folder.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<String, Failure> {
        fs::write(self.folder.path().join(name), bytes).map_err(|error| failed(&error))?;
        Ok(self.path(name))
    }

    /// Reads a file of the folder.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>, Failure> {
        fs::read(self.folder.path().join(name)).map_err(|error| failed(&error))
    }

    /// A path in the folder.
    pub(super) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Where a client's profile is.
    pub(super) fn profile(&self, member: &str, client: &str) -> String {
        let path: &Path = &self.folder.path().join(member).join("clients").join(client).join("client.toml");
        path.display().to_string()
    }

    /// This program.
    pub(super) fn program(&self) -> String {
        self.program.display().to_string()
    }
}

/// Peers in a status that fulfil something.
fn count(status: &Value, fulfils: impl Fn(&Value) -> bool) -> usize {
    status["peers"].as_array().map_or(0, |peers| peers.iter().filter(|peer| fulfils(peer)).count())
}

/// Origin, size and root of every feed with entries.
fn roots(status: &Value) -> Vec<String> {
    let peers = status["peers"].as_array().map_or(&[][..], Vec::as_slice);
    let feeds = peers.iter().map(|peer| &peer["feed"]).chain([&status["own"]]).filter(|feed| feed["size"].is_string());
    let mut roots: Vec<_> = feeds.map(|feed| format!("{} {} {}", feed["feed"], feed["size"], feed["root"])).collect();
    roots.sort();
    roots
}

/// The first of eight neighbouring ports that nobody uses: the chosen one, or one that differs from process to process, so that two
/// demonstrations do not meet.
fn free_ports(chosen: Option<u16>) -> Result<u16, Failure> {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let all_free = |base: u16| base.checked_add(PORTS - 1).is_some() && (0..PORTS).all(|n| free(base + n));
    if let Some(base) = chosen {
        let port_in_use = (0..PORTS).filter_map(|n| base.checked_add(n)).find(|port| !free(*port));
        let port = port_in_use.unwrap_or(base);
        let failure = || Failure::usage("demo-ports").with("port", &port.to_string()).with("base", &base.to_string());
        return all_free(base).then_some(base).ok_or_else(failure);
    }
    let bases = 20_000..30_000_u16;
    let steps = bases.len() / 16;
    let first = std::process::id() as usize % steps;
    let mut found = bases.clone().step_by(16).cycle().skip(first).take(steps);
    let none =
        || Failure::new("demo-ports").with("port", &bases.start.to_string()).with("base", &bases.start.to_string());
    found.find(|base| all_free(*base)).ok_or_else(none)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::Exit;

    #[test]
    fn port_in_use_is_reported() {
        let port_in_use = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = port_in_use.local_addr().unwrap().port();
        let failure = free_ports(Some(port)).unwrap_err();
        assert_eq!((failure.id(), failure.exit_code()), ("demo-ports", Exit::Usage));
        assert_eq!(free_ports(Some(u16::MAX)).unwrap_err().id(), "demo-ports");
        assert!(free_ports(None).is_ok());
    }
}
