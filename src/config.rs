//! Reads `node.toml`, the configuration of one node.
//!
//! In scope: the file. Unknown keys are rejected; paths are relative to the file's folder. Out of
//! scope: the files it names.
//!
//! ```toml
#![doc = include_str!("node.example.toml")]
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use barid_core::bulletin::TopicFilter;
use barid_core::ids::{ExchangeName, FeedId, Member};
use serde::{Deserialize, Serialize};

use crate::files::{self, FileError};
use crate::transport::Compress;

/// The content of `node.toml`. The example explains each key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeText {
    /// Member code.
    pub member: String,
    /// Exchange name.
    pub exchange: String,
    /// Epoch at the first start. Once there is a high-water mark, its epoch is used if it is later.
    #[serde(default = "default_epoch")]
    pub epoch: u32,
    /// Folder of the store.
    pub data: PathBuf,
    /// Folder of `feed.key`, `mirror.key`, `custody.key` and the high-water mark; not inside
    /// `data`.
    pub keys: PathBuf,
    /// Note of the roster that is trusted from the start.
    pub roster: PathBuf,
    /// Access rules.
    pub access: PathBuf,
    /// PEM chain of the node's certificate.
    pub certificate: PathBuf,
    /// PEM private key of the certificate.
    pub private_key: PathBuf,
    /// PEM or DER revocation lists, read on start and on reload.
    #[serde(default)]
    pub crls: Vec<PathBuf>,
    /// Address of the listener for peers; if absent, this node only dials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_exchange: Option<String>,
    /// Address of the listener for this member's own people and systems.
    pub listen_api: String,
    /// `host:port` by member, in place of the roster's endpoint.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub endpoints: BTreeMap<String, String>,
    /// Topics whose content is requested from peers; empty: all.
    #[serde(default)]
    pub topics: Vec<String>,
    /// Whether members that joined the exchange or a working group later receive the earlier
    /// bulletins that they may now read.
    #[serde(default)]
    pub backfill_new_members: bool,
    /// Whether links that this node dials are compressed.
    #[serde(default)]
    pub compress: Compress,
    /// Days after a revocation list's nextUpdate during which peers are still accepted.
    #[serde(default = "default_crl_grace_days")]
    pub crl_grace_days: u32,
    /// Seconds to wait after a start for a peer's tree heads before publishing without them.
    #[serde(default = "default_peer_wait_seconds")]
    pub peer_wait_seconds: u32,
    /// Free MiB on the disk reserved for urgent entries of this member and for notes. Below twice
    /// this much only own entries are committed.
    #[serde(default = "default_min_free_disk_mib")]
    pub min_free_disk_mib: u64,
    /// Share of the free disk space that the content of one other member may take in a day, in
    /// percent. Beyond it only digests are stored, and the content is fetched later.
    #[serde(default = "default_member_share_percent")]
    pub member_share_percent: u8,
    /// MiB of memory for all budgets together (`docs/limits.md`). If their bounds exceed it, they
    /// shrink in proportion.
    #[serde(default = "default_memory_mib")]
    pub memory_mib: u64,
    /// Log filter as in `RUST_LOG`.
    #[serde(default = "info")]
    pub log: String,
    /// Log as JSON lines.
    #[serde(default)]
    pub log_json: bool,
    /// Metrics for a monitoring system; if absent, they are off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsText>,
}

/// The table `[metrics]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsText {
    /// Address of the listener, plain HTTP.
    pub listen: String,
    /// Whether it may listen on an address that other machines can reach. Anyone who can connect
    /// reads the metrics.
    #[serde(default)]
    pub allow_non_loopback: bool,
    /// Further host names that requests may use.
    #[serde(default)]
    pub hosts: Vec<String>,
}

fn default_epoch() -> u32 {
    1
}

fn default_peer_wait_seconds() -> u32 {
    10
}

fn default_crl_grace_days() -> u32 {
    30
}

fn default_min_free_disk_mib() -> u64 {
    512
}

fn default_member_share_percent() -> u8 {
    barid_core::quota::SHARE_PERCENT
}

/// Least memory: it holds one full page and one full batch for each of a few callers and peers.
const MEMORY_MIB_MIN: u64 = 256;

fn default_memory_mib() -> u64 {
    2_048
}

fn info() -> String {
    "info".into()
}

/// A configuration that was read and checked. Its paths are complete.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The node's feed: member, exchange and epoch.
    pub feed: FeedId,
    /// Endpoints that replace those of the roster.
    pub endpoints: BTreeMap<Member, String>,
    /// Topics whose content is requested; empty: all.
    pub topics: Vec<TopicFilter>,
    /// The other settings, with complete paths.
    pub text: NodeText,
}

impl NodeConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn load(path: &Path) -> Result<Self, FileError> {
        files::load(path, |text| Self::parse(text, path.parent().unwrap_or(Path::new("."))))
    }

    fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        reject_renamed(text)?;
        let mut read: NodeText = toml::from_str(text).map_err(|error| error.to_string())?;
        let member: Member = read.member.parse().map_err(|error| format!("member: {error}"))?;
        let exchange: ExchangeName = read.exchange.parse().map_err(|error| format!("exchange: {error}"))?;
        if read.epoch == 0 {
            return Err("epoch: `0` is not 1 or more".into());
        }
        if read.memory_mib < MEMORY_MIB_MIN {
            return Err(format!("memory_mib: `{}` is not {MEMORY_MIB_MIN} or more", read.memory_mib));
        }
        if !(1..=100).contains(&read.member_share_percent) {
            return Err(format!("member_share_percent: `{}` is not from 1 to 100", read.member_share_percent));
        }
        crate::telemetry::filter(&read.log).map_err(|error| format!("log: {error}"))?;
        let endpoints = read
            .endpoints
            .iter()
            .map(|(code, endpoint)| {
                Ok((code.parse().map_err(|error| format!("endpoints: {error}"))?, endpoint.clone()))
            })
            .collect::<Result<_, String>>()?;
        let topics = read
            .topics
            .iter()
            .map(|topic| topic.parse().map_err(|error| format!("topics: {error}")))
            .collect::<Result<_, String>>()?;
        let paths = [&mut read.data, &mut read.keys, &mut read.roster, &mut read.access, &mut read.certificate];
        for path in paths.into_iter().chain([&mut read.private_key]).chain(&mut read.crls) {
            *path = folder.join(&*path);
        }
        if read.keys.starts_with(&read.data) {
            return Err("keys: the folder is inside `data`; a backup of one must not contain the other".into());
        }
        Ok(Self { feed: FeedId::new(member, exchange, read.epoch), endpoints, topics, text: read })
    }
}

/// Keys of `node.toml` by their former names.
const RENAMED: [(&str, &str); 4] = [
    ("lone_start_seconds", "peer_wait_seconds"),
    ("share_history", "backfill_new_members"),
    ("reserve_mib", "min_free_disk_mib"),
    ("metrics.beyond_loopback", "metrics.allow_non_loopback"),
];

/// Names the new key if the text has a renamed one.
fn reject_renamed(text: &str) -> Result<(), String> {
    // Text that is not TOML is rejected by its own error.
    let Ok(table) = text.parse::<toml::Table>() else { return Ok(()) };
    let has = |key: &str| match key.split_once('.') {
        Some((section, key)) => table.get(section).is_some_and(|section| section.get(key).is_some()),
        None => table.contains_key(key),
    };
    match RENAMED.iter().find(|(old, _)| has(old)) {
        Some((old, new)) => Err(format!("`{old}` is now named `{new}`")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn example_is_a_valid_configuration() {
        let config = NodeConfig::parse(include_str!("node.example.toml"), Path::new("/etc/barid")).unwrap();
        assert_eq!(config.feed.to_string(), "ma.rabat.example/feed/1");
        assert_eq!(config.text.data, Path::new("/etc/barid/data"));
        assert_eq!(config.text.crl_grace_days, 30);
    }

    #[test]
    fn renamed_keys_are_rejected_with_their_new_names() {
        let example = include_str!("node.example.toml");
        for (old, new) in RENAMED {
            assert!(example.contains(new.rsplit('.').next().unwrap()), "{new}");
            let text = match old.split_once('.') {
                Some((section, key)) => example.replace(&format!("[{section}]"), &format!("[{section}]\n{key} = true")),
                None => format!("{old} = 1\n{example}"),
            };
            let error = NodeConfig::parse(&text, Path::new("/")).unwrap_err();
            assert_eq!(error, format!("`{old}` is now named `{new}`"));
        }
    }

    #[test]
    fn config_rejects_unknown_keys_bad_filters_and_keys_inside_data() {
        let example = include_str!("node.example.toml");
        let unknown = format!("colour = \"red\"\n{example}");
        assert!(NodeConfig::parse(&unknown, Path::new("/")).unwrap_err().contains("colour"));
        for bad_filter in ["loud", "loud,,", "info,barid"] {
            let example = example.replace("log = \"info\"", &format!("log = \"{bad_filter}\""));
            assert!(NodeConfig::parse(&example, Path::new("/")).unwrap_err().starts_with("log:"), "{bad_filter}");
        }
        let inside = example.replace("keys = \"keys\"", "keys = \"data/keys\"");
        assert!(NodeConfig::parse(&inside, Path::new("/")).unwrap_err().starts_with("keys:"));
    }
}
