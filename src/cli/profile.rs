//! `client.toml`: the node to call, and the client's identity.
//!
//! In scope: the file and its location. Out of scope: connecting (`client`). Paths are relative to
//! the file's own folder.

use std::path::{Path, PathBuf};

use barid_core::ids::{ExchangeName, Member};
use barid_core::roster::{MemberEntry, Roster};
use serde::{Deserialize, Serialize};

use super::failure::Failure;
use super::messages::{Messages, clean};
use crate::files::{self, Guard};

/// Name of a profile. Without `--profile` and `BARID_PROFILE` it is searched in the current folder,
/// then in the user's configuration folder.
const FILE_NAME: &str = "client.toml";

/// Contents of `client.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileText {
    /// Exchange name: `rabat.example`.
    pub exchange: String,
    /// Member that runs the node: `ma`.
    pub member: String,
    /// The node's API listener, `host:port`.
    pub endpoint: String,
    /// PEM certificate chain of the focal point, agency, operator or auditor.
    pub certificate: PathBuf,
    /// PEM private key of that certificate (PKCS #8).
    pub key: PathBuf,
    /// PEM certificates of the member's own authority, which must have signed the node's
    /// certificate.
    pub ca: PathBuf,
    /// Newest roster note on this machine: names of members, and trust for `verify`. Optional.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roster: Option<PathBuf>,
}

/// A parsed profile with valid values; paths are resolved.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Exchange.
    pub exchange: ExchangeName,
    /// Member that runs the node.
    pub member: Member,
    /// `host:port` of its API listener.
    pub endpoint: String,
    /// PEM certificate chain.
    pub certificate: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
    /// PEM authority certificates.
    pub ca: PathBuf,
    /// Roster note, if given.
    pub roster: Option<PathBuf>,
}

impl Profile {
    /// Reads `chosen`, or else `client.toml` in the current folder or the user's configuration
    /// folder.
    ///
    /// # Errors
    /// Returns an error if there is none or it cannot be used.
    pub fn find(chosen: Option<&Path>) -> Result<Self, Failure> {
        let path = match chosen {
            Some(path) => path.to_owned(),
            None => candidates().into_iter().find(|path| path.is_file()).ok_or_else(|| Failure::usage("no-profile"))?,
        };
        Self::read(&path)
    }

    /// Reads one file.
    ///
    /// # Errors
    /// Returns an error if the file cannot be used.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = files::read_text(path, Guard::Public)
            .map_err(|error| Failure::usage("file-unreadable").path(path).because(&error))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::from_text(&text, folder).map_err(|cause| Failure::usage("profile-unusable").path(path).cause(cause))
    }

    fn from_text(text: &str, folder: &Path) -> Result<Self, String> {
        let read: ProfileText = toml::from_str(text).map_err(|error| error.to_string())?;
        let endpoint = read.endpoint.trim_start_matches("https://").trim_end_matches('/').to_owned();
        if !endpoint.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
            return Err(format!("endpoint: `{}` is not `host:port`", read.endpoint));
        }
        Ok(Self {
            exchange: read.exchange.parse().map_err(|error| format!("exchange: {error}"))?,
            member: read.member.parse().map_err(|error| format!("member: {error}"))?,
            endpoint,
            certificate: folder.join(read.certificate),
            key: folder.join(read.key),
            ca: folder.join(read.ca),
            roster: read.roster.map(|path| folder.join(path)),
        })
    }

    /// Returns the directory of members from the profile's roster. It is used for names only, never
    /// for trust.
    #[must_use]
    pub fn directory(&self) -> Directory {
        let note = self.roster.as_ref().and_then(|path| std::fs::read(path).ok());
        let roster = note.and_then(|note| Roster::read(&note).ok()).map(|(roster, _)| roster);
        Directory { own: self.member.clone(), roster }
    }
}

/// Names of members, for display.
#[derive(Clone, Debug)]
pub struct Directory {
    own: Member,
    roster: Option<Roster>,
}

impl Directory {
    /// Creates a directory without a roster, with codes only.
    #[must_use]
    pub fn of(own: Member) -> Self {
        Self { own, roster: None }
    }

    /// Creates a directory with the names of a roster.
    #[must_use]
    pub fn with_roster(own: Member, roster: Roster) -> Self {
        Self { own, roster: Some(roster) }
    }

    /// Returns `ne (Niger)`, or the code alone if no roster names it. Control characters are
    /// escaped; bidirectional isolates are not added.
    #[must_use]
    pub fn name(&self, code: &str, messages: &Messages) -> String {
        let member: Option<Member> = code.parse().ok();
        match member.as_ref().and_then(|member| self.roster.as_ref()?.member(member)) {
            Some(MemberEntry { names, .. }) => {
                let name = messages.pick(&names.ar, &names.fr, &names.en);
                clean(&format!("{code} ({name})"))
            }
            None => clean(code),
        }
    }

    /// Returns all members that can have published; this member first.
    #[must_use]
    pub fn publishers(&self) -> Vec<Member> {
        let others = self.roster.iter().flat_map(|roster| roster.entries().map(|entry| entry.code.clone()));
        std::iter::once(self.own.clone()).chain(others.filter(|member| *member != self.own)).collect()
    }
}

fn candidates() -> Vec<PathBuf> {
    let configuration = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    std::iter::once(PathBuf::from(FILE_NAME))
        .chain(configuration.map(|path| path.join("barid").join(FILE_NAME)))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const EXAMPLE: &str = r#"
exchange = "rabat.example"
member = "ne"
endpoint = "https://node.ne.rabat.example:7443"
certificate = "police-niamey.pem"
key = "police-niamey.key"
ca = "ca.pem"
roster = "../roster.note"
"#;

    #[test]
    fn profile_paths_are_relative_to_profile() {
        let profile = Profile::from_text(EXAMPLE, Path::new("/etc/barid")).unwrap();
        assert_eq!(profile.endpoint, "node.ne.rabat.example:7443");
        assert_eq!(profile.ca, Path::new("/etc/barid/ca.pem"));
        assert_eq!(profile.roster, Some(PathBuf::from("/etc/barid/../roster.note")));
        let written = toml::to_string(&toml::from_str::<ProfileText>(EXAMPLE).unwrap()).unwrap();
        assert!(Profile::from_text(&written, Path::new(".")).is_ok());
    }

    #[test]
    fn documented_profile_parses() {
        let page = include_str!("../../docs/command-line.md");
        let example = page.split("```toml").nth(1).unwrap().split("```").next().unwrap();
        let profile = Profile::from_text(example, Path::new("/etc/barid")).unwrap();
        assert_eq!(profile.member.as_str(), "ne");
        for key in ["exchange", "member", "endpoint", "certificate", "key", "ca", "roster"] {
            assert!(example.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key} is not documented");
        }
    }

    #[test]
    fn invalid_profile_is_rejected() {
        for (from, to, named) in [
            ("roster =", "rooster =", "rooster"),
            (":7443", "", "endpoint"),
            ("\"ne\"", "\"NE\"", "member"),
            ("rabat.example\"\nm", "rabat\"\nm", "exchange"),
        ] {
            let error = Profile::from_text(&EXAMPLE.replacen(from, to, 1), Path::new(".")).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
