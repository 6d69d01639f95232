//! The Debian package in a root of its own, without Rust, libraries or other packages: installed,
//! configured, started as its own user, removed and purged.
//!
//! Only on demand: the test needs root, `dpkg` and the package, which `.ci/run` builds first and
//! names in `BARID_DEB`. Without them it reports this and ends.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::world::{example, free_ports, text, until};

/// What the maintainer scripts use. With the libraries of these programs, it is all that is in the
/// root beside the package.
const PROGRAMS: [&str; 7] = ["sh", "chmod", "chown", "mkdir", "rm", "rmdir", "systemd-sysusers"];
/// Files of the package, and their modes.
const FILES: [(&str, u32); 9] = [
    ("usr/bin/barid", 0o755),
    ("usr/lib/systemd/system/barid.service", 0o644),
    ("usr/lib/sysusers.d/barid.conf", 0o644),
    ("usr/share/bash-completion/completions/barid", 0o644),
    ("usr/share/doc/barid/changelog.gz", 0o644),
    ("usr/share/doc/barid/copyright", 0o644),
    ("usr/share/doc/barid/examples/node.toml", 0o644),
    ("usr/share/fish/vendor_completions.d/barid.fish", 0o644),
    ("usr/share/zsh/vendor-completions/_barid", 0o644),
];
/// Folders that the package creates for its user: path, owned by that user, mode.
const FOLDERS: [(&str, bool, u32); 3] =
    [("etc/barid", false, 0o750), ("etc/barid/tls", false, 0o750), ("var/lib/barid", true, 0o700)];
const UNIT: &str = "usr/lib/systemd/system/barid.service";
/// What the unit must restrict.
const HARDENING: [&str; 10] = [
    "CapabilityBoundingSet=",
    "DynamicUser=no",
    "LimitCORE=0",
    "MemoryDenyWriteExecute=yes",
    "NoNewPrivileges=yes",
    "PrivateTmp=yes",
    "ProtectSystem=strict",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
    "StateDirectory=barid",
    "SystemCallFilter=@system-service",
];

#[test]
#[ignore = "needs root, dpkg and the package; `.ci/run` builds it and runs this"]
fn package_installs_serves_as_its_own_user_and_leaves_keys_when_purged() {
    let Ok(package) = std::env::var("BARID_DEB") else {
        return println!("SKIPPED: the package was NOT tested: BARID_DEB does not name it");
    };
    let mut root = match Root::new() {
        Ok(root) => root,
        Err(reason) => return println!("SKIPPED: the package was NOT tested: {reason}"),
    };
    done(&root.dpkg(&["--install", &package]), "install");
    check_files(&root);
    check_unit(&root);
    let version = root.run(&["/usr/bin/barid", "--version"]);
    done(&version, "barid --version");
    assert_eq!(text(&version.stdout).trim(), format!("barid {}", env!("CARGO_PKG_VERSION")));

    root.configure();
    root.start(&["--bootstrap"]);
    let draft = example("stolen-passport.fr.json", |_| ()).to_string();
    fs::write(root.path("srv/alert.json"), draft).unwrap();
    let published = root.json("police-hq", &["publish", "/srv/alert.json"]);
    let id = published[0]["receipt"]["id"].as_str().unwrap().to_owned();
    root.stop();

    // An upgrade changes nothing that the operator or the node wrote.
    done(&root.dpkg(&["--install", &package]), "install again");
    check_folders(&root);
    root.start(&[]);
    root.reload();
    let history = root.json("police-hq", &["history"]);
    assert!(history.len() == 1 && history[0].to_string().contains(&id), "{history:?}");
    root.stop();

    done(&root.dpkg(&["--remove", "barid"]), "remove");
    assert!(!root.path("usr/bin/barid").exists() && !root.path(UNIT).exists());
    done(&root.dpkg(&["--purge", "barid"]), "purge");
    for left in ["etc/barid/node.toml", "etc/barid/tls/node.key", "var/lib/barid/keys/feed.key", "var/lib/barid/data"] {
        assert!(root.path(left).exists(), "{left}");
    }
}

/// Checks the installed files against the list here and the package's own checksums.
fn check_files(root: &Root) {
    for (file, mode) in FILES {
        let metadata = fs::metadata(root.path(file)).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (mode, 0, 0), "{file}");
        assert!(metadata.len() > 0, "{file}");
    }
    let differences = root.dpkg(&["--verify", "barid"]);
    done(&differences, "verify");
    assert_eq!(text(&differences.stdout), "");
    let config = fs::read_to_string(root.path("usr/share/doc/barid/examples/node.toml")).unwrap();
    let config: toml::Table = config.parse().unwrap();
    assert_eq!(config["data"].as_str(), Some("/var/lib/barid/data"));
    assert_eq!(config["keys"].as_str(), Some("/var/lib/barid/keys"));
    assert!(!root.path("etc/barid/node.toml").exists(), "the operator writes it");
    check_folders(root);
}

fn check_folders(root: &Root) {
    let (user, group) = root.user();
    for (folder, owned, mode) in FOLDERS {
        let metadata = fs::metadata(root.path(folder)).unwrap();
        let owner = if owned { user } else { 0 };
        assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (mode, owner, group), "{folder}");
    }
}

/// Checks the unit: what it restricts, and with systemd's own parser, if that is installed.
fn check_unit(root: &Root) {
    let unit = fs::read_to_string(root.path(UNIT)).unwrap();
    for line in HARDENING {
        assert!(unit.lines().any(|other| other == line), "{line}");
    }
    // The program is not installed on this machine, only in the root.
    let copy = root.folder.path().join("barid.service");
    let program = root.path("usr/bin/barid").display().to_string();
    fs::write(&copy, unit.replace("/usr/bin/barid", &program)).unwrap();
    match Command::new("systemd-analyze").arg("verify").arg(&copy).output() {
        Ok(output) => {
            let output = text(&output.stdout) + &text(&output.stderr);
            let findings: Vec<&str> = output.lines().filter(|line| line.contains("barid.service")).collect();
            assert!(findings.is_empty(), "{findings:?}");
        }
        Err(error) => println!("SKIPPED: the unit was NOT verified by systemd-analyze: {error}"),
    }
}

/// A root folder with a shell, a few programs and an empty package database.
struct Root {
    folder: tempfile::TempDir,
    node: Option<Child>,
}

impl Root {
    /// Creates the root, or returns why that is not possible.
    fn new() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("this is not root".into());
        }
        let root = Self { folder: tempfile::tempdir().unwrap(), node: None };
        let database = ["info", "triggers", "updates"].map(|name| format!("var/lib/dpkg/{name}"));
        for folder in ["bin", "dev", "etc", "run", "srv", "tmp"].into_iter().chain(database.iter().map(String::as_str))
        {
            fs::create_dir_all(root.path(folder)).unwrap();
        }
        fs::write(root.path("var/lib/dpkg/status"), "").unwrap();
        fs::write(root.path("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        fs::write(root.path("etc/group"), "root:x:0:\n").unwrap();
        // A file suffices for what scripts discard; devices may not be permitted here.
        fs::write(root.path("dev/null"), "").unwrap();
        // A statically linked program reads its random numbers from these.
        for (name, minor) in [("random", "8"), ("urandom", "9")] {
            let made = Command::new("mknod").arg(root.path("dev").join(name)).args(["c", "1", minor]).output();
            let made = made.map_err(|error| format!("mknod: {error}"))?;
            if !made.status.success() {
                return Err(format!("a device cannot be created: {}", text(&made.stderr)));
            }
        }
        for program in PROGRAMS {
            root.copy_program(program)?;
        }
        // Whatever the umask of this process is.
        done(&Command::new("chmod").args(["-R", "go=u-w"]).arg(root.path("")).output().unwrap(), "chmod");
        let probe = root.run(&["/bin/mkdir", "-p", "/tmp"]);
        if !probe.status.success() {
            return Err(format!("a program cannot run in a root of its own: {}", text(&probe.stderr)));
        }
        let dpkg = Command::new("dpkg").arg("--version").output().map_err(|error| format!("dpkg: {error}"))?;
        if dpkg.status.success() { Ok(root) } else { Err("dpkg does not run".into()) }
    }

    /// Copies a program of this machine and its libraries into the root.
    fn copy_program(&self, name: &str) -> Result<(), String> {
        let candidates = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].map(|folder| Path::new(folder).join(name));
        let program = candidates.into_iter().find(|path| path.exists());
        let program = program.ok_or_else(|| format!("`{name}` is not installed"))?;
        fs::copy(&program, self.path("bin").join(name)).unwrap();
        let libraries = Command::new("ldd").arg(&program).output().map_err(|error| format!("ldd: {error}"))?;
        for library in text(&libraries.stdout).split_whitespace().filter(|part| part.starts_with('/')) {
            let copy = self.path(library);
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(library, copy).unwrap();
        }
        Ok(())
    }

    /// Returns the path outside of a path inside.
    fn path(&self, inside: &str) -> PathBuf {
        self.folder.path().join("root").join(inside.trim_start_matches('/'))
    }

    /// Runs a program in the root, as root.
    fn run(&self, command: &[&str]) -> Output {
        Command::new("chroot").arg(self.path("")).args(command).env("BARID_LANG", "en").output().unwrap()
    }

    /// Runs this machine's `dpkg` for the root. Scripts of the package run in the root.
    fn dpkg(&self, args: &[&str]) -> Output {
        let root = format!("--root={}", self.path("").display());
        let mut dpkg = Command::new("dpkg");
        // A machine for containers may leave documents out.
        dpkg.args([root.as_str(), "--path-include=/*", "--force-depends", "--log=/dev/null"]).args(args);
        dpkg.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output().unwrap()
    }

    /// Returns the user and the group that the package created.
    fn user(&self) -> (u32, u32) {
        let users = fs::read_to_string(self.path("etc/passwd")).unwrap();
        let line = users.lines().find(|line| line.starts_with("barid:")).unwrap().to_owned();
        let fields: Vec<&str> = line.split(':').collect();
        assert_eq!(fields[6], "/usr/sbin/nologin");
        (fields[2].parse().unwrap(), fields[3].parse().unwrap())
    }

    /// Creates an exchange of one member, and puts its files where the operator's guide has them.
    fn configure(&self) {
        let port = free_ports().to_string();
        let init = ["exchange", "init", "--dir", "/srv/exchange", "--members", "ma", "--base-port", &port];
        done(&self.run(&[&["/usr/bin/barid"], &init[..]].concat()), "exchange init");
        let (user, group) = self.user();
        let (from, config, keys) =
            (self.path("srv/exchange/ma"), self.path("etc/barid"), self.path("var/lib/barid/keys"));
        let node = fs::read_to_string(from.join("node.toml")).unwrap();
        let node = node.replace("\"data\"", "\"/var/lib/barid/data\"").replace("\"keys\"", "\"/var/lib/barid/keys\"");
        fs::write(from.join("node.toml"), node.replace("peer_wait_seconds = 10", "peer_wait_seconds = 1")).unwrap();
        for file in ["node.toml", "roster.note", "access.toml", "tls/node.pem", "tls/node.key", "tls/ca.crl"] {
            let copy = config.join(file);
            fs::copy(from.join(file), &copy).unwrap();
            give(&copy, 0, group, 0o640);
        }
        fs::create_dir(&keys).unwrap();
        give(&keys, user, group, 0o700);
        for key in ["feed.key", "mirror.key", "custody.key"] {
            let copy = keys.join(key);
            fs::copy(from.join("keys").join(key), &copy).unwrap();
            give(&copy, user, group, 0o600);
        }
    }

    /// Starts the node as the unit does: its command, as its user.
    fn start(&mut self, more: &[&str]) {
        let unit = fs::read_to_string(self.path(UNIT)).unwrap();
        let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        let user = format!("--userspec={}:{}", value("User="), value("Group="));
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let mut node = Command::new("chroot");
        node.arg(user).arg(self.path("")).args(value("ExecStart=").split(' ')).args(more);
        node.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.node = Some(node.spawn().unwrap());
        until("the node serves", || {
            let ended = self.node.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", fs::read_to_string(self.log()).unwrap());
            self.barid("operator", &["health"]).status.success()
        });
        let process = self.node.as_ref().unwrap().id();
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let ids = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().to_owned();
        let (user, group) = self.user();
        for (key, id) in [("Uid:", user), ("Gid:", group)] {
            assert!(ids(key).split_whitespace().all(|other| other == id.to_string()), "{key} {}", ids(key));
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.node.as_ref().unwrap()), signal).unwrap();
    }

    /// Sends the signal of the unit's `ExecReload`.
    fn reload(&self) {
        let unit = fs::read_to_string(self.path(UNIT)).unwrap();
        assert!(unit.contains("\nExecReload=/bin/kill -HUP $MAINPID\n"));
        self.signal(Signal::HUP);
        until("the node has reloaded", || fs::read_to_string(self.log()).unwrap().contains(" event=\"reloaded\" "));
    }

    /// Stops the node as systemd does.
    fn stop(&mut self) {
        self.signal(Signal::TERM);
        let mut node = self.node.take().unwrap();
        let mut status = None;
        until("the node has ended", || {
            status = node.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(status.unwrap().code(), Some(0), "{}", fs::read_to_string(self.log()).unwrap());
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("node.log")
    }

    /// Runs one command as one of the member's clients.
    fn barid(&self, client: &str, args: &[&str]) -> Output {
        let profile = format!("/srv/exchange/ma/clients/{client}/client.toml");
        self.run(&[&["/usr/bin/barid", "--json", "--profile", &profile], args].concat())
    }

    /// As [`Self::barid`], but the command must succeed; returns its JSON lines.
    fn json(&self, client: &str, args: &[&str]) -> Vec<Value> {
        let output = self.barid(client, args);
        done(&output, &args.join(" "));
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if let Some(mut node) = self.node.take() {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

fn give(path: &Path, user: u32, group: u32, mode: u32) {
    chown(path, Some(user), Some(group)).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn done(output: &Output, what: &str) {
    assert!(output.status.success(), "{what}: {}{}", text(&output.stdout), text(&output.stderr));
}
