//! What a process does about itself before it does anything else.
//!
//! In scope: keys stay out of core dumps and debuggers; a signal that comes early does not end a node. Out of scope: stopping (`node`).

use std::ffi::OsString;
use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// Options of every command that take a value.
const WITH_VALUE: [&str; 2] = ["--lang", "--profile"];

/// Whether these arguments, without the program's own name, ask for a node. They are not parsed yet: that takes some milliseconds.
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

/// From here on SIGHUP does not end this process. A node that is starting reads its files afterwards, so there is nothing to reload.
pub(super) fn survive_hangup() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _inside = runtime.enter();
    // The handler stays for the life of the process, also when nobody listens.
    signal(SignalKind::hangup()).map(drop)
}

/// No core dumps, and no debugger of the same user: memory holds private keys and bulletins.
pub(super) fn forbid_dumps() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // PR_SET_DUMPABLE suffices on Linux today; the limit says the same to whoever looks.
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
