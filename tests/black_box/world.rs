//! A development exchange in a temporary folder, with one process for each member.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Deadline of any condition: the machine may be busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Longest pause between two evaluations of a condition. Most conditions run the program, and the
/// nodes need the processors, too.
const POLL_PAUSE_MAX: Duration = Duration::from_millis(100);

pub(crate) const MEMBERS: [&str; 4] = ["ma", "ly", "tn", "ne"];

/// All system calls that can change files or make them durable.
const RECORDED_CALLS: &str = "trace=?open,?openat,?openat2,?creat,?close,?dup,?dup2,?dup3,?fcntl,?lseek,?write,?pwrite64,?writev,?pwritev,?pwritev2,\
    ?truncate,?ftruncate,?fallocate,?copy_file_range,?sendfile,?fsync,?fdatasync,?sync,?syncfs,?sync_file_range,?rename,\
    ?renameat,?renameat2,?unlink,?unlinkat,?rmdir,?mkdir,?mkdirat,?link,?linkat,?symlink,?symlinkat,?chdir,?fchdir,\
    ?io_uring_setup";

pub(crate) struct World {
    folder: tempfile::TempDir,
    nodes: BTreeMap<&'static str, Child>,
    /// Traces of the nodes' system calls, by member, if they are recorded.
    traces: Option<BTreeMap<&'static str, Vec<PathBuf>>>,
    /// The command, with its arguments, that runs each member's programs; most have none.
    by: BTreeMap<&'static str, Vec<String>>,
}

impl World {
    /// Starts all four nodes, each in a process of its own, with all log levels.
    pub(crate) fn start() -> Self {
        Self::logging("trace")
    }

    /// Starts all four nodes with this log level.
    pub(crate) fn logging(level: &str) -> Self {
        Self::configured(level, |_, config| config)
    }

    /// Starts all four nodes; `change` edits each member's `node.toml`.
    pub(crate) fn configured(level: &str, change: impl Fn(&str, String) -> String) -> Self {
        Self::run_by(level, change, BTreeMap::new())
    }

    /// As [`Self::configured`], with each member's programs run by another command: for example in
    /// a network namespace.
    pub(crate) fn run_by(
        level: &str,
        change: impl Fn(&str, String) -> String,
        by: BTreeMap<&'static str, Vec<String>>,
    ) -> Self {
        let mut world = Self::prepared(&MEMBERS, level, change);
        world.by = by;
        for member in MEMBERS {
            world.run(member);
        }
        world
    }

    /// Creates an exchange of these members; `change` edits each one's `node.toml`. No node runs
    /// yet.
    pub(crate) fn prepared(members: &[&str], level: &str, change: impl Fn(&str, String) -> String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (port, codes) = (free_ports().to_string(), members.join(","));
        let dir = folder.path().to_str().unwrap();
        let made = barid(&["exchange", "init", "--dir", dir, "--base-port", &port, "--members", &codes]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        let world = Self { folder, nodes: BTreeMap::new(), traces: None, by: BTreeMap::new() };
        for member in members {
            let path = world.folder(member).join("node.toml");
            let config = change(member, fs::read_to_string(&path).unwrap());
            fs::write(
                &path,
                config
                    .replace("log = \"info\"", &format!("log = \"{level}\""))
                    .replace("peer_wait_seconds = 10", "peer_wait_seconds = 1"),
            )
            .unwrap();
        }
        world
    }

    /// Starts further nodes under `strace`, which records all calls that change or sync files.
    pub(crate) fn record(&mut self) {
        self.traces = Some(BTreeMap::new());
    }

    /// Starts further nodes without `strace`.
    pub(crate) fn record_no_more(&mut self) {
        self.traces = None;
    }

    /// Returns the traces of a member's nodes, in the order of their starts.
    pub(crate) fn traces(&self, member: &str) -> Vec<PathBuf> {
        self.traces.as_ref().and_then(|traces| traces.get(member)).cloned().unwrap_or_default()
    }

    pub(crate) fn folder(&self, member: &str) -> PathBuf {
        self.folder.path().join(member)
    }

    /// Returns the initial roster of all members.
    pub(crate) fn roster(&self) -> PathBuf {
        self.folder.path().join("roster.note")
    }

    pub(crate) fn run(&mut self, member: &'static str) {
        self.spawn(member);
        self.serves(member);
    }

    /// As [`Self::run`], with a store that is known to be lost.
    pub(crate) fn run_without_store(&mut self, member: &'static str) {
        self.spawn_with(member, &["--accept-data-loss"]);
        self.serves(member);
    }

    fn serves(&mut self, member: &'static str) {
        until(&format!("{member} serves"), || {
            let ended = self.nodes.get_mut(member).unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{member} has ended: {}", self.log_end(member));
            self.client(member, "operator", &["health"]).status.success()
        });
    }

    /// Starts a node and does not wait until it serves.
    pub(crate) fn spawn(&mut self, member: &'static str) {
        self.spawn_with(member, &[]);
    }

    fn spawn_with(&mut self, member: &'static str, declared: &[&str]) {
        let folder = self.folder(member);
        let log = File::options().create(true).append(true).open(folder.join("node.log")).unwrap();
        let mut command = match &mut self.traces {
            None => self.program(member),
            Some(traces) => {
                let paths = traces.entry(member).or_default();
                let path = folder.with_file_name(format!("{member}.{}.strace", paths.len()));
                let mut strace = Command::new("strace");
                // With `-D` the node, not strace, is the child of this process.
                strace.args(["-D", "-f", "--seccomp-bpf", "-v", "-s", "8388608"]);
                strace.args(["--absolute-timestamps=format:unix,precision:ns", "--syscall-times=ns"]);
                strace.args(["-e", RECORDED_CALLS, "-o"]).arg(&path).arg(program());
                paths.push(path);
                strace
            }
        };
        let node = command
            .args(["node", "--bootstrap", "--config"])
            .arg(folder.join("node.toml"))
            .args(declared)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.nodes.insert(member, node);
    }

    /// Returns the id of a node's process.
    pub(crate) fn process(&self, member: &str) -> u32 {
        self.nodes[member].id()
    }

    /// Waits until a node has ended by itself.
    pub(crate) fn ended(&mut self, member: &str) -> ExitStatus {
        let mut node = self.nodes.remove(member).unwrap();
        let mut status = None;
        until(&format!("{member} has ended"), || {
            status = node.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Returns the last 4,000 bytes of a node's log.
    pub(crate) fn log_end(&self, member: &str) -> String {
        let log = fs::read(self.folder(member).join("node.log")).unwrap_or_default();
        text(&log[log.len().saturating_sub(4_000)..])
    }

    /// Returns whether the node's process still runs.
    pub(crate) fn runs(&mut self, member: &str) -> bool {
        self.nodes.get_mut(member).unwrap().try_wait().unwrap().is_none()
    }

    /// Sends SIGHUP: the node reloads its files.
    pub(crate) fn hang_up(&self, member: &str) {
        let node = rustix::process::Pid::from_child(&self.nodes[member]);
        rustix::process::kill_process(node, rustix::process::Signal::HUP).unwrap();
    }

    /// Sends SIGTERM: the node stops in order.
    pub(crate) fn terminate(&self, member: &str) {
        let node = rustix::process::Pid::from_child(&self.nodes[member]);
        rustix::process::kill_process(node, rustix::process::Signal::TERM).unwrap();
    }

    /// Returns a node's audit records that contain all these patterns.
    pub(crate) fn records(&self, member: &str, patterns: &[&str]) -> Vec<String> {
        let log = text(&fs::read(self.folder(member).join("node.log")).unwrap());
        let audit = log.lines().filter(|line| line.contains(" barid::audit: "));
        audit.filter(|line| patterns.iter().all(|pattern| line.contains(pattern))).map(str::to_owned).collect()
    }

    /// Returns whether each of these members has a link to each other of them.
    pub(crate) fn linked(&self, members: &[&str]) -> bool {
        members.iter().all(|member| {
            let status = self.json(member, "operator", &["status"]).remove(0);
            let linked = |other: &&&str| {
                let peers = status["peers"].as_array().unwrap();
                peers.iter().any(|peer| peer["member"] == ***other && peer["linked"] == true)
            };
            members.iter().filter(|other| *other != member).all(|other| linked(&other))
        })
    }

    /// Sends SIGTERM, and waits until the node has ended with success.
    pub(crate) fn stop(&mut self, member: &str) {
        self.terminate(member);
        let ended = self.ended(member);
        assert!(ended.success(), "{}", self.log_end(member));
    }

    /// Kills a node, as a power failure would.
    pub(crate) fn kill(&mut self, member: &str) {
        let mut node = self.nodes.remove(member).unwrap();
        node.kill().unwrap();
        node.wait().unwrap();
    }

    /// Runs one command as one of a member's clients.
    pub(crate) fn client(&self, member: &str, name: &str, args: &[&str]) -> Output {
        let profile = self.folder(member).join("clients").join(name).join("client.toml");
        let mut all = vec!["--json", "--profile", profile.to_str().unwrap()];
        all.extend(args);
        self.program(member).args(&all).env("BARID_LANG", "en").output().unwrap()
    }

    /// Returns the program's command, as a member runs it.
    fn program(&self, member: &str) -> Command {
        let program = program();
        match self.by.get(member).and_then(|by| by.split_first()) {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        }
    }

    /// As [`Self::client`], but the command must succeed; returns its JSON lines.
    pub(crate) fn json(&self, member: &str, name: &str, args: &[&str]) -> Vec<Value> {
        let output = self.client(member, name, args);
        assert!(output.status.success(), "{args:?} at {member}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Returns size and root of every feed with entries as one member holds it, by origin.
    pub(crate) fn feeds(&self, member: &str) -> BTreeMap<String, (String, String)> {
        let status = self.json(member, "operator", &["status"]).remove(0);
        let peers = status["peers"].as_array().cloned().unwrap_or_default();
        let feeds = peers.iter().map(|peer| peer["feed"].clone()).chain([status["own"].clone()]);
        let field = |feed: &Value, name: &str| feed[name].as_str().unwrap_or_default().to_owned();
        feeds
            .filter(|feed| feed["size"].as_str().is_some_and(|size| size != "0"))
            .map(|feed| (field(&feed, "feed"), (field(&feed, "size"), field(&feed, "root"))))
            .collect()
    }

    /// Writes a draft into the exchange's folder.
    pub(crate) fn draft(&self, name: &str, draft: &Value) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, draft.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for node in self.nodes.values_mut() {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

/// Returns an example of the project, with changes.
pub(crate) fn example(name: &str, change: impl Fn(&mut Value)) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/bulletins").join(name);
    let mut draft = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut draft);
    draft
}

/// Returns a file in a folder that contains these bytes, if there is one.
pub(crate) fn holds(folder: &Path, wanted: &[u8]) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let found = if path.is_dir() {
            holds(&path, wanted)
        } else {
            let bytes = fs::read(&path).unwrap();
            bytes.windows(wanted.len()).any(|window| window == wanted).then_some(path)
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Returns the program under test; `BARID_BIN` names another build of it.
pub(crate) fn program() -> String {
    std::env::var("BARID_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_barid").to_owned())
}

pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    until_within(DEADLINE, what, condition);
}

/// As [`until`], with another deadline. After each evaluation it pauses for as long as that took.
pub(crate) fn until_within(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    loop {
        let begun = Instant::now();
        if condition() {
            return;
        }
        assert!(start.elapsed() < deadline, "timeout: {what}");
        std::thread::sleep(begun.elapsed().min(POLL_PAUSE_MAX));
    }
}

pub(crate) fn barid(args: &[&str]) -> Output {
    Command::new(program()).args(args).env("BARID_LANG", "en").output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the first of the free ports for five members.
pub(crate) fn free_ports() -> u16 {
    /// Number of worlds of this process: two that start at once must not choose the same ports.
    static WORLDS: AtomicU32 = AtomicU32::new(0);
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let place = std::process::id() + 137 * WORLDS.fetch_add(1, Ordering::Relaxed);
    let start = 10_000 + u16::try_from(place % 400).unwrap() * 50;
    (0..400_u16)
        .map(|n| 10_000 + (start - 10_000 + n * 50) % 20_000)
        .find(|base| (0..5).all(|n| free(base + n * 10) && free(base + n * 10 + 1)))
        .unwrap()
}
