//! Settings of the process, made before anything else.
//!
//! In scope: keeping keys out of core dumps and debuggers, and surviving an early SIGHUP. Out of
//! scope: stopping (`node`).

use std::ffi::OsString;
use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// Global options that take a value.
const WITH_VALUE: [&str; 2] = ["--lang", "--profile"];

/// Returns whether the arguments, without the program's own name, are for `barid node`. They are
/// not parsed, because that takes some milliseconds.
pub(super) fn is_node_command(mut args: impl Iterator<Item = OsString>) -> bool {
    while let Some(arg) = args.next() {
        if WITH_VALUE.iter().any(|option| arg == *option) {
            args.next();
        } else if !arg.as_encoded_bytes().starts_with(b"-") {
            return arg == "node";
        }
    }
    false
}

/// Prevents SIGHUP from ending this process. A starting node reads its files afterwards, so there
/// is nothing to reload.
pub(super) fn survive_hangup() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _inside = runtime.enter();
    // The handler remains for the life of the process, also without a receiver.
    signal(SignalKind::hangup()).map(drop)
}

/// Disables core dumps, and debuggers of the same user: memory contains private keys and bulletins.
pub(super) fn forbid_dumps() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // PR_SET_DUMPABLE suffices on Linux today; the limit also makes the setting visible.
    Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_process_disables_core_dumps_and_ptrace() {
        forbid_dumps().expect("Linux has both");
        let limit = rustix::process::getrlimit(Resource::Core);
        assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
        assert_eq!(rustix::process::dumpable_behavior().expect("known"), DumpableBehavior::NotDumpable);
    }

    #[test]
    fn node_command_is_detected_before_parsing() {
        let is_node = |line: &str| is_node_command(line.split_whitespace().map(OsString::from));
        for line in ["node", "node --bootstrap", "--json node", "--lang fr --profile node node", "--lang=fr node"] {
            assert!(is_node(line), "{line}");
        }
        for line in ["", "publish node", "--profile node status", "--profile node", "nodes", "--node"] {
            assert!(!is_node(line), "{line}");
        }
    }
}
