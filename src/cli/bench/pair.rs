//! Two node processes on loopback in a throwaway exchange: A publishes, B follows.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use barid_core::ids::FeedId;
use barid_core::proto;
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::Channel;

use super::failed;
use crate::cli::client::Client;
use crate::cli::{Failure, Profile, tls};
use crate::pki::{self, DevelopMember, DevelopOptions};
use crate::store::disk::{DiskOptions, DiskStore};
use crate::store::{DiskBytes, Store as _};

const EXCHANGE: &str = "bench.example";
/// Longest time for a node to start, stop, link or catch up.
const WAIT_TIMEOUT: Duration = Duration::from_secs(300);
/// Polling interval of conditions: short compared with everything that is measured with it.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// First port of the members that are down. Nothing listens there: the two nodes use other ports.
const UNUSED_PORT: u16 = 33_000;

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The publishing node.
    A,
    /// The following node.
    B,
}

impl Side {
    fn member(self) -> &'static str {
        match self {
            Self::A => "ma",
            Self::B => "tn",
        }
    }
}

/// The two nodes.
pub(super) struct Pair {
    folder: tempfile::TempDir,
    program: PathBuf,
    a: Option<Child>,
    b: Option<Child>,
}

impl Pair {
    /// Creates the exchange without starting a node.
    pub(super) fn make() -> Result<Self, Failure> {
        Self::make_among(0)
    }

    /// Creates an exchange with `others` further members whose nodes never run.
    pub(super) fn make_among(others: u16) -> Result<Self, Failure> {
        let folder = tempfile::tempdir().map_err(|error| failed(&error))?;
        let base = free_ports().ok_or_else(|| Failure::new("bench").cause("no free ports"))?;
        let member = |(side, port): (Side, u16)| {
            Ok(DevelopMember::local(side.member().parse().map_err(|error| failed(&error))?, port))
        };
        let both = [(Side::A, base), (Side::B, base + 2)].into_iter().map(member);
        let down = (0..others).map(|number| {
            let code = format!("x-down-{number}").parse().map_err(|error| failed(&error))?;
            Ok(DevelopMember::local(code, UNUSED_PORT + 2 * number))
        });
        let members = both.chain(down).collect::<Result<_, Failure>>()?;
        let exchange = EXCHANGE.parse().map_err(|error| failed(&error))?;
        let options = DevelopOptions::new(folder.path().to_owned(), exchange, members);
        pki::develop(&options).map_err(|error| failed(&error))?;
        for side in [Side::A, Side::B] {
            let path = folder.path().join(side.member()).join("node.toml");
            let text = fs::read_to_string(&path).map_err(|error| failed(&error))?;
            let text = text.replace("log = \"info\"", "log = \"warn\"");
            let text = text.replace("peer_wait_seconds = 10", "peer_wait_seconds = 1");
            fs::write(&path, text).map_err(|error| failed(&error))?;
        }
        let program = std::env::current_exe().map_err(|error| failed(&error))?;
        Ok(Self { folder, program, a: None, b: None })
    }

    fn node(&mut self, side: Side) -> &mut Option<Child> {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }

    /// Starts a node's process and returns at once.
    pub(super) fn start(&mut self, side: Side) -> Result<(), Failure> {
        let folder = self.home(side);
        let log = File::options().create(true).append(true).open(folder.join("node.log"));
        let node = Command::new(&self.program)
            .args(["node", "--bootstrap", "--exit-on-stdin-eof", "--config"])
            .arg(folder.join("node.toml"))
            // Only this process holds the other end, so the node ends when this process ends, even
            // by kill -9.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log.map_err(|error| failed(&error))?)
            .spawn()
            .map_err(|error| failed(&error))?;
        *self.node(side) = Some(node);
        Ok(())
    }

    /// Stops a node and waits until it has ended.
    pub(super) fn stop(&mut self, side: Side) -> Result<(), Failure> {
        let Some(mut node) = self.node(side).take() else { return Ok(()) };
        let pid = i32::try_from(node.id()).ok().and_then(Pid::from_raw);
        pid.map(|pid| kill_process(pid, Signal::TERM));
        let begun = Instant::now();
        while node.try_wait().map_err(|error| failed(&error))?.is_none() {
            if begun.elapsed() > WAIT_TIMEOUT {
                let _ = node.kill();
                let _ = node.wait();
                return Err(Failure::new("bench").cause("a node did not stop after SIGTERM"));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Returns the process id of a node, or 0 if it is not running.
    pub(super) fn pid(&self, side: Side) -> u32 {
        match side {
            Side::A => self.a.as_ref(),
            Side::B => self.b.as_ref(),
        }
        .map_or(0, Child::id)
    }

    /// Opens a new connection as one of a member's clients.
    pub(super) fn connect(&self, side: Side, client: &str) -> Result<Channel, Failure> {
        tls::channel(&self.profile(side, client)?)
    }

    /// Opens a connection as the node's operator.
    pub(super) fn operator(&self, side: Side) -> Result<Client, Failure> {
        Client::open(&self.profile(side, "operator")?)
    }

    /// Waits until a node's status satisfies a condition.
    pub(super) async fn until(
        &self,
        side: Side,
        what: &str,
        wanted: impl Fn(&proto::GetStatusResponse) -> bool,
    ) -> Result<Instant, Failure> {
        let operator = self.operator(side)?;
        let begun = Instant::now();
        loop {
            if let Ok(status) = operator.status().await
                && wanted(&status)
            {
                return Ok(Instant::now());
            }
            if begun.elapsed() > WAIT_TIMEOUT {
                let cause = format!("node {} has not reached: {what}{}", side.member(), self.log_tail(side));
                return Err(Failure::new("bench").cause(cause));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Starts both nodes and waits until they are linked and publish.
    pub(super) async fn start_both(&mut self) -> Result<(), Failure> {
        for side in [Side::A, Side::B] {
            if self.pid(side) == 0 {
                self.start(side)?;
            }
        }
        for side in [Side::A, Side::B] {
            let linked = |status: &proto::GetStatusResponse| status.peers.iter().all(|peer| peer.linked);
            self.until(side, "linked", |status| linked(status) && status.publishing == "yes").await?;
        }
        Ok(())
    }

    /// Waits until both index databases have applied everything and B holds all entries of A.
    pub(super) async fn caught_up(&self) -> Result<Instant, Failure> {
        let mut held = 0;
        if self.pid(Side::A) != 0 {
            self.until(Side::A, "index drained", |status| status.index_lag_commits == 0).await?;
            held = self.operator(Side::A)?.status().await?.own.unwrap_or_default().size;
        }
        if self.pid(Side::B) != 0 {
            self.until(Side::B, "caught up", |status| followed(status) >= held && status.index_lag_commits == 0)
                .await?;
        }
        Ok(Instant::now())
    }

    /// Returns the bytes on disk of a stopped node.
    pub(super) fn disk_bytes(&self, side: Side) -> Result<DiskBytes, Failure> {
        let feed: FeedId = format!("{}.{EXCHANGE}/feed/1", side.member()).parse().map_err(|error| failed(&error))?;
        let options = DiskOptions::new(feed.member, feed.exchange);
        let store = DiskStore::open(&self.home(side).join("data"), &options).map_err(|error| failed(&error))?;
        Ok(store.disk_bytes())
    }

    fn profile(&self, side: Side, client: &str) -> Result<Profile, Failure> {
        Profile::read(&self.home(side).join("clients").join(client).join("client.toml"))
    }

    fn home(&self, side: Side) -> PathBuf {
        self.folder.path().join(side.member())
    }

    fn log_tail(&self, side: Side) -> String {
        let log = fs::read_to_string(self.home(side).join("node.log")).unwrap_or_default();
        log.lines().last().map(|line| format!("; its log ends: {line}")).unwrap_or_default()
    }
}

/// Returns the number of entries that B holds of A's feed.
pub(super) fn followed(status: &proto::GetStatusResponse) -> u64 {
    status.peers.first().and_then(|peer| peer.feed.as_ref()).map_or(0, |feed| feed.size)
}

impl Drop for Pair {
    fn drop(&mut self) {
        for node in [&mut self.a, &mut self.b].into_iter().flatten() {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

fn free_ports() -> Option<u16> {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    (30_000..32_000_u16).step_by(4).find(|base| (0..4).all(|n| free(base + n)))
}
