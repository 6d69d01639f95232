//! An exchange of four node processes with their clients, in a temporary folder.

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
/// Longest wait for one condition.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
/// Polling interval: each poll is a process and a handshake.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Number of ports: two for each member.
const PORTS: u16 = 8;

/// A running exchange.
pub(super) struct Exchange {
    folder: tempfile::TempDir,
    program: PathBuf,
    nodes: Mutex<BTreeMap<&'static str, Child>>,
}

/// Result of a command.
pub(super) struct CommandOutput {
    /// Exit code; `None` if it was killed.
    pub(super) code: Option<i32>,
    /// JSON output, one value a line.
    pub(super) lines: Vec<Value>,
    /// Error output.
    pub(super) error: String,
}

impl CommandOutput {
    /// Returns the first line of output, or null if there is none.
    pub(super) fn first(&self) -> &Value {
        self.lines.first().unwrap_or(&Value::Null)
    }
}

pub(super) fn failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new("demo").because(error)
}

impl Exchange {
    /// Creates the exchange in a temporary folder; nothing runs yet.
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

    /// Starts all four nodes and waits until they are linked.
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
            // Only this process holds the other end, so the node ends when this process ends, even
            // by kill -9.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log.map_err(|error| failed(&error))?)
            // Ctrl-C in a terminal is for the demo only; it stops its nodes itself.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(&error))?;
        self.nodes.lock().insert(member, node);
        Ok(())
    }

    /// Kills a node, as a power failure would.
    pub(super) async fn cut(&self, member: &str) -> Result<(), Failure> {
        let node = self.nodes.lock().remove(member);
        match node {
            Some(mut node) => node.kill().await.map_err(|error| failed(&error)),
            None => Ok(()),
        }
    }

    /// Stops all nodes and removes the folder.
    pub(super) async fn end(self) {
        let nodes = std::mem::take(&mut *self.nodes.lock());
        join_all(nodes.into_values().map(async |mut node| node.kill().await)).await;
        // What cannot be removed remains in the system's temporary folder.
        let _ = self.folder.close();
    }

    /// Waits until a node ends by itself, which is a failure.
    pub(super) async fn first_to_end(&self) -> Failure {
        loop {
            if let Err(failure) = self.alive() {
                return failure;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Runs one command as one of a member's clients.
    pub(super) async fn run_client(&self, member: &str, client: &str, args: &[&str]) -> Result<CommandOutput, Failure> {
        self.run_command(&[&["--profile", &self.profile(member, client)], args].concat()).await
    }

    /// As [`Exchange::run_client`], but a command that fails is a failure.
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

    /// Runs one command without a profile.
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

    /// Returns the status output of every running node, in the order of [`MEMBERS`]; it is empty
    /// for a node that does not answer.
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

    /// Waits until a condition is true. It is a failure if a node ends or the wait is too long.
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

    /// Writes a file into the folder and returns its path.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<String, Failure> {
        fs::write(self.folder.path().join(name), bytes).map_err(|error| failed(&error))?;
        Ok(self.path(name))
    }

    /// Reads a file from the folder.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>, Failure> {
        fs::read(self.folder.path().join(name)).map_err(|error| failed(&error))
    }

    /// Returns a path in the folder.
    pub(super) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Returns the path of a client's profile.
    pub(super) fn profile(&self, member: &str, client: &str) -> String {
        let path: &Path = &self.folder.path().join(member).join("clients").join(client).join("client.toml");
        path.display().to_string()
    }

    /// Returns the path of this program.
    pub(super) fn program(&self) -> String {
        self.program.display().to_string()
    }
}

/// Counts the peers in a status that satisfy a condition.
fn count(status: &Value, fulfils: impl Fn(&Value) -> bool) -> usize {
    status["peers"].as_array().map_or(0, |peers| peers.iter().filter(|peer| fulfils(peer)).count())
}

/// Returns origin, size and root of every feed with entries.
fn roots(status: &Value) -> Vec<String> {
    let peers = status["peers"].as_array().map_or(&[][..], Vec::as_slice);
    let feeds = peers.iter().map(|peer| &peer["feed"]).chain([&status["own"]]).filter(|feed| feed["size"].is_string());
    let mut roots: Vec<_> = feeds.map(|feed| format!("{} {} {}", feed["feed"], feed["size"], feed["root"])).collect();
    roots.sort();
    roots
}

/// Returns the first of eight consecutive free ports. Without a chosen one, the search starts at a
/// port that depends on the process, so that two demos do not collide.
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
