//! `access.toml`: certificates say who, this file says what. Deny by default.
//!
//! In scope: grants by SPIFFE path, roles and working groups. Out of scope: who a caller is (`transport`), and the audience of a
//! bulletin (`core`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What a caller may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Publishes and reads.
    FocalPoint,
    /// Reads, but neither RED nor AMBER+STRICT.
    Agency,
    /// Runs the node.
    Operator,
    /// Exports evidence.
    Auditor,
}

/// The text of `access.toml`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessText {
    /// Grants.
    #[serde(default, rename = "grant")]
    pub grants: Vec<GrantText>,
}

/// One grant.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantText {
    /// Path of the SPIFFE ID: `focal-point/police-hq`.
    pub path: String,
    /// Roles.
    pub roles: BTreeSet<Role>,
    /// Working groups in which a focal point publishes, and a focal point or agency reads.
    #[serde(default)]
    pub working_groups: BTreeSet<String>,
}

/// What one caller may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Roles.
    pub roles: BTreeSet<Role>,
    /// Working groups.
    pub working_groups: BTreeSet<String>,
}

impl Grant {
    /// Whether it has a role.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Whether it publishes in a working group.
    #[must_use]
    pub fn may_publish_in(&self, group: &str) -> bool {
        self.has(Role::FocalPoint) && self.working_groups.contains(group)
    }

    /// Whether it reads in a working group.
    #[must_use]
    pub fn may_read_in(&self, group: &str) -> bool {
        (self.has(Role::FocalPoint) || self.has(Role::Agency)) && self.working_groups.contains(group)
    }
}

/// All grants of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    grants: BTreeMap<String, Grant>,
}

/// Why access rules cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The file cannot be read.
    #[error("{path} cannot be read")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The text is not what is expected.
    #[error("{path}: {reason}")]
    Text {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
}

impl Access {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`AccessError`].
    pub fn load(path: &Path) -> Result<Self, AccessError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| AccessError::File { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|reason| AccessError::Text { path: path.to_owned(), reason })
    }

    /// Reads a text. The error says where and why.
    ///
    /// # Errors
    /// If it is not TOML, has unknown keys or roles, or grants one path twice.
    pub fn parse(text: &str) -> Result<Self, String> {
        let read: AccessText = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut grants = BTreeMap::new();
        for GrantText { path, roles, working_groups } in read.grants {
            if path == "node" || path.starts_with('/') || path.is_empty() {
                return Err(format!(
                    "grant.path: `{path}` is not the path of a person or system, such as `agency/border-post`"
                ));
            }
            if grants.insert(path.clone(), Grant { roles, working_groups }).is_some() {
                return Err(format!("grant.path: `{path}` is granted twice"));
            }
        }
        Ok(Self { grants })
    }

    /// What the caller with this SPIFFE path may do; `None`: nothing.
    #[must_use]
    pub fn grant(&self, path: &str) -> Option<&Grant> {
        self.grants.get(path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEXT: &str = "[[grant]]\npath = \"focal-point/police-hq\"\nroles = [\"focal-point\"]\nworking_groups = [\"security\"]\n\
                        [[grant]]\npath = \"agency/border-post\"\nroles = [\"agency\"]\nworking_groups = [\"security\"]\n";

    #[test]
    fn nothing_is_allowed_that_is_not_granted() {
        let access = Access::parse(TEXT).unwrap();
        assert!(access.grant("focal-point/other").is_none());
        let police = access.grant("focal-point/police-hq").unwrap();
        assert!(police.may_publish_in("security") && !police.may_publish_in("customs") && !police.has(Role::Operator));
        let post = access.grant("agency/border-post").unwrap();
        assert!(post.may_read_in("security") && !post.may_publish_in("security"));
    }

    #[test]
    fn unknown_keys_unknown_roles_and_double_grants_are_refused() {
        assert!(Access::parse(&TEXT.replace("roles", "rolls")).is_err());
        assert!(Access::parse(&TEXT.replace("\"agency\"", "\"king\"")).is_err());
        assert!(Access::parse(&format!("{TEXT}{TEXT}")).unwrap_err().contains("twice"));
    }
}
