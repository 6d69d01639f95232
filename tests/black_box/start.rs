//! The first moments of a node's process.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::world::{World, until};

/// Returns a line of a file in `/proc/PID`: caught signals or limits.
fn status(pid: u32, file: &str, line: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    text.lines().find(|found| found.starts_with(line)).unwrap_or_default().to_owned()
}

#[test]
fn sighup_during_start_does_not_stop_node() {
    let world = World::prepared(&["ma", "tn"], "info", |_, config| config);
    let folder = world.folder("ma");
    let config = fs::read_to_string(folder.join("node.toml")).unwrap();
    // The node waits in the middle of its start until the pipe is written.
    let pipe = folder.join("pipe.toml");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut node = Command::new(env!("CARGO_BIN_EXE_barid"))
        .args(["node", "--bootstrap", "--config", pipe.to_str().unwrap()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = node.id();
    until("the node has a handler for SIGHUP, or has ended", || {
        let caught = status(pid, "status", "SigCgt:");
        let mask = caught.split_whitespace().last().and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
        mask & 1 == 1 || node.try_wait().unwrap().is_some()
    });
    assert!(Command::new("kill").args(["-HUP", &pid.to_string()]).status().unwrap().success());

    // Opening for writing succeeds once the node reads: it has received the signal and still runs.
    let mut writer = fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    assert!(node.try_wait().unwrap().is_none(), "it has ended");
    writer.write_all(config.as_bytes()).unwrap();
    drop(writer);
    until("ma serves", || world.client("ma", "operator", &["health"]).status.success());
    let cores = status(pid, "limits", "Max core file size");
    assert_eq!(cores.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{cores}");
    node.kill().unwrap();
    node.wait().unwrap();
}
