//! The demo, as run by a user who has just cloned the project.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::world::{MEMBERS, text, until};

/// Returns the demo's command, with a temporary folder of its own.
fn demo(args: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_barid"));
    command.args(args).env("TMPDIR", folder).env("BARID_LANG", "en").env_remove("BARID_PROFILE");
    command
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

/// Returns the processes of nodes whose exchange is in this folder.
fn nodes(folder: &Path) -> Vec<PathBuf> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let under = |path: &PathBuf| {
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let line = text(&line);
        line.contains("\0node\0") && line.contains(folder.to_str().unwrap())
    };
    processes.filter(under).collect()
}

fn interrupt(demo: &Child) {
    kill_process(Pid::from_child(demo), Signal::INT).unwrap();
}

#[test]
fn demo_passes_every_check() {
    let folder = tempfile::tempdir().unwrap();
    let output = demo(&["--json", "demo"], folder.path()).output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let steps: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count_of = |id: &str| steps.iter().filter(|step| step["step"] == id).count();
    for (id, times) in [
        ("demo-alert-stored", 1),
        ("demo-ack-seen", 1),
        ("demo-published", 3),
        ("demo-visibility-row", 5),
        ("demo-equal", 1),
        ("demo-receipt", 5),
        ("demo-proof-witnessed", 1),
        ("demo-proof-rejected", 1),
        ("demo-caught-up", 1),
        ("demo-passed", 1),
    ] {
        assert_eq!(count_of(id), times, "{id}: {steps:?}");
    }
    let secret = steps.iter().find(|step| step["tlp"] == "TLP:RED").unwrap();
    let visibilities: BTreeMap<String, String> = serde_json::from_value(secret["visibilities"].clone()).unwrap();
    assert_eq!(MEMBERS.map(|member| visibilities[member].as_str()), ["own", "digest", "content", "digest"]);
    assert!(is_empty(folder.path()) && nodes(folder.path()).is_empty());
}

#[test]
fn interrupted_demo_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut running =
        demo(&["--json", "demo"], folder.path()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until("the nodes run", || nodes(folder.path()).len() == MEMBERS.len());
    interrupt(&running);
    until("it has ended", || running.try_wait().unwrap().is_some());
    let ended = running.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(text(&ended.stderr).contains("demo-stopped"), "{}", text(&ended.stderr));
    assert!(is_empty(folder.path()) && nodes(folder.path()).is_empty());
}

#[test]
fn killed_demo_stops_its_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let mut running =
        demo(&["demo", "--keep"], folder.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the nodes run", || nodes(folder.path()).len() == MEMBERS.len());
    running.kill().unwrap();
    running.wait().unwrap();
    until("the nodes have ended, too", || nodes(folder.path()).is_empty());
}

#[test]
fn demo_runs_until_interrupted_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let mut running = demo(&["demo", "--keep"], folder.path()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut commands = lines.by_ref().filter(|line| line.contains(" --profile "));
    let (watch, publish, status) = (commands.next().unwrap(), commands.next().unwrap(), commands.next().unwrap());
    assert!(watch.contains(" watch "), "{watch}");
    for line in [publish, status] {
        let used = Command::new("sh").args(["-c", &line]).env("BARID_LANG", "en").output().unwrap();
        assert!(used.status.success(), "{line}: {}", text(&used.stderr));
    }
    let watched = format!("{watch} --from 0 --count 3 --for 20");
    let watched = Command::new("sh").args(["-c", &watched]).env("BARID_LANG", "en").output().unwrap();
    assert!(watched.status.success() && text(&watched.stdout).contains("EXERCISE"), "{}", text(&watched.stdout));
    assert!(lines.by_ref().any(|line| line.contains("node.log")));
    interrupt(&running);
    until("it has ended", || running.try_wait().unwrap().is_some());
    assert_eq!(running.wait().unwrap().code(), Some(0));
    assert!(lines.any(|line| line.contains("stopped")));
    assert!(is_empty(folder.path()) && nodes(folder.path()).is_empty());
}

#[test]
fn demo_reports_dead_node_and_port_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let rejected = demo(&["--json", "demo", "--base-port", &port], folder.path()).output().unwrap();
    assert_eq!(rejected.status.code(), Some(2));
    assert!(text(&rejected.stderr).contains(&format!("{port} is taken")), "{}", text(&rejected.stderr));

    let running =
        demo(&["demo", "--keep"], folder.path()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until("the nodes run", || nodes(folder.path()).len() == MEMBERS.len());
    let libya = nodes(folder.path())
        .into_iter()
        .find(|path| text(&std::fs::read(path.join("cmdline")).unwrap()).contains("/ly/"));
    let pid = libya.unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let ended = running.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(text(&ended.stderr).contains("The node of ly has ended"), "{}", text(&ended.stderr));
    assert!(is_empty(folder.path()) && nodes(folder.path()).is_empty());
}
