//! Tests that a node starts, or fails to start, with given files.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyUsagePurpose};
use time::{Duration, OffsetDateTime};

use super::*;
use crate::pki::{Authority, DevelopMember, DevelopOptions, develop};

/// Longest wait for a condition: the machine may be busy.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);

/// The folder of a member that listens on any free port.
struct NodeFolder(tempfile::TempDir);

impl NodeFolder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The other member, needed for a quorum, is never reached.
        let members = [("ma", 7400), ("tn", 1)];
        let members = members.map(|(code, port)| DevelopMember::local(code.parse().unwrap(), port)).to_vec();
        let exchange = "rabat.example".parse().unwrap();
        develop(&DevelopOptions::new(folder.path().to_owned(), exchange, members)).unwrap();
        let home = Self(folder);
        let config = fs::read_to_string(home.path("node.toml")).unwrap();
        let config =
            config.replace("\"127.0.0.1:7400\"", "\"127.0.0.1:0\"").replace("\"127.0.0.1:7401\"", "\"127.0.0.1:0\"");
        fs::write(home.path("node.toml"), config.replace("peer_wait_seconds = 10", "peer_wait_seconds = 0")).unwrap();
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("ma").join(name)
    }

    fn chmod(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Writes the node's next certificate, changed before its authority signs it.
    fn certify(&self, change: impl FnOnce(&mut CertificateParams)) {
        let read = |name: &str| fs::read_to_string(self.path(name)).unwrap();
        let authority = Authority::load("ma.rabat.example", &read("tls/ca.pem"), &read("offline/ca.key")).unwrap();
        let issued = authority.issue_changed("node", change).unwrap();
        fs::write(self.path("tls/node.pem"), issued.certificate).unwrap();
        fs::write(self.path("tls/node.key"), issued.key).unwrap();
    }

    /// Starts the node, and stops it as soon as it serves. Returns why it did not start.
    async fn start(&self) -> Result<(), String> {
        let text = |error: &dyn std::error::Error| {
            let sources = std::iter::successors(error.source(), |error| error.source());
            sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
        };
        let config = NodeConfig::load(&self.path("node.toml")).map_err(|error| text(&error))?;
        let flags = StartFlags { bootstrap: true, accept_data_loss: false };
        let deadline = std::time::Instant::now() + DEADLINE;
        loop {
            let started = run(&config, flags, std::future::ready(()), |_| ()).await;
            match started.map_err(|error| text(&error)) {
                // Threads of the previous, failed start are still ending.
                Err(why) if why.contains("has the store open") && std::time::Instant::now() < deadline => {
                    tokio::task::yield_now().await;
                }
                started => return started.map(drop),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_start_requires_private_keys_and_protected_config() {
    let home = NodeFolder::new();
    home.start().await.unwrap();
    let cases = [
        ("keys/feed.key", 0o644, 0o600, "chmod 600"),
        ("keys/mirror.key", 0o640, 0o600, "chmod 600"),
        ("keys/custody.key", 0o660, 0o600, "chmod 600"),
        ("tls/node.key", 0o604, 0o600, "chmod 600"),
        ("keys", 0o755, 0o700, "chmod 700"),
        ("access.toml", 0o664, 0o644, "chmod go-w"),
        ("roster.note", 0o666, 0o644, "chmod go-w"),
        ("node.toml", 0o622, 0o644, "chmod go-w"),
    ];
    for (name, open, closed, command) in cases {
        home.chmod(name, open);
        let why = home.start().await.unwrap_err();
        let path = home.path(name).display().to_string();
        assert!(why.contains(&format!("`{command} {path}`")), "{name}: {why}");
        home.chmod(name, closed);
        home.start().await.unwrap_or_else(|why| panic!("{name}: {why}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_with_a_certificate_no_peer_accepts_does_not_start() {
    let home = NodeFolder::new();
    let now = OffsetDateTime::now_utc();
    let span = move |from: i64, to: i64| {
        move |params: &mut CertificateParams| {
            (params.not_before, params.not_after) = (now + Duration::days(from), now + Duration::days(to));
        }
    };
    home.certify(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert!(home.start().await.unwrap_err().contains("does not have clientAuth"));
    home.certify(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    assert!(home.start().await.unwrap_err().contains("does not have serverAuth"));
    home.certify(|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign));
    assert!(home.start().await.unwrap_err().contains("keyCertSign"));
    home.certify(span(-9, -1));
    assert!(home.start().await.unwrap_err().contains("expired"));
    // A temporary rejection is an alarm; once the clock is right the node continues.
    home.certify(span(1, 9));
    home.start().await.unwrap();
    home.certify(|_| ());
    home.start().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_may_begin_with_a_byte_order_mark() {
    let home = NodeFolder::new();
    let files = [
        "node.toml",
        "access.toml",
        "roster.note",
        "tls/node.pem",
        "tls/node.key",
        "keys/feed.key",
        "keys/mirror.key",
        "keys/custody.key",
    ];
    for name in files {
        let text = fs::read_to_string(home.path(name)).unwrap();
        fs::write(home.path(name), format!("\u{feff}{text}")).unwrap();
    }
    home.start().await.unwrap();
}
