//! Reads `access.toml`, which grants roles to callers. A caller without a grant is denied.
//!
//! In scope: grants by SPIFFE path, roles, working groups and limits. Out of scope: identifying a
//! caller (`transport`), and the audience of a bulletin (`core`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use barid_core::bulletin::header::{is_issuer, issuer_of};
use barid_core::limits::ISSUER_BYTES_MAX;
use serde::{Deserialize, Serialize};

use crate::files::{self, FileError};

/// Role of a caller.
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

/// The content of `access.toml`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessText {
    /// Limits of all callers, where they differ from [`Limits::DEFAULT`].
    #[serde(default, skip_serializing_if = "LimitsText::is_empty")]
    pub limits: LimitsText,
    /// Grants.
    #[serde(default, rename = "grant")]
    pub grants: Vec<GrantText>,
}

/// One grant.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantText {
    /// Path of the SPIFFE ID, for example `focal-point/police-hq`.
    pub path: String,
    /// Roles.
    pub roles: BTreeSet<Role>,
    /// Working groups in which a focal point publishes, and a focal point or agency reads.
    #[serde(default)]
    pub working_groups: BTreeSet<String>,
    /// Limits of this caller, where they differ from those of all callers.
    #[serde(default, skip_serializing_if = "LimitsText::is_empty")]
    pub limits: LimitsText,
}

/// Limits as written in the file; an absent one is not changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsText {
    /// See [`Limits::calls_per_second`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls_per_second: Option<u32>,
    /// See [`Limits::bulletins_per_second`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bulletins_per_second: Option<u32>,
    /// See [`Limits::subscriptions`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscriptions: Option<u32>,
    /// See [`Limits::subscription_days`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscription_days: Option<u32>,
    /// See [`Limits::streams`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<u32>,
}

/// Limits of one identity, over all its connections. Each is at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls started in a second. The burst is one second's worth.
    pub calls_per_second: u32,
    /// Bulletins submitted in a second, by calls and streams. The burst is one second's worth.
    pub bulletins_per_second: u32,
    /// Named subscriptions stored.
    pub subscriptions: u32,
    /// Days after which a named subscription that was neither opened nor acknowledged is removed.
    pub subscription_days: u32,
    /// Streams open at a time, subscribing and publishing.
    pub streams: u32,
}

impl Limits {
    /// The default limits. They are above what one system of a member needs and above what one
    /// connection can carry: they stop a runaway caller without disturbing a busy one.
    pub const DEFAULT: Self = Self {
        calls_per_second: 50_000,
        bulletins_per_second: 500_000,
        subscriptions: 256,
        subscription_days: 90,
        streams: 256,
    };

    /// Returns these limits, with those of `text` replaced.
    fn overridden_by(self, text: &LimitsText) -> Result<Self, String> {
        let read = |field: &str, value: Option<u32>, before: u32| match value {
            Some(0) => Err(format!("limits.{field}: `0` is not 1 or more; to deny access, remove the grant")),
            value => Ok(value.unwrap_or(before)),
        };
        Ok(Self {
            calls_per_second: read("calls_per_second", text.calls_per_second, self.calls_per_second)?,
            bulletins_per_second: read("bulletins_per_second", text.bulletins_per_second, self.bulletins_per_second)?,
            subscriptions: read("subscriptions", text.subscriptions, self.subscriptions)?,
            subscription_days: read("subscription_days", text.subscription_days, self.subscription_days)?,
            streams: read("streams", text.streams, self.streams)?,
        })
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl LimitsText {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Permissions of one caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Roles.
    pub roles: BTreeSet<Role>,
    /// Working groups.
    pub working_groups: BTreeSet<String>,
    /// Its limits.
    pub limits: Limits,
}

impl Grant {
    /// Whether it has the role.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Whether it may publish in the working group.
    #[must_use]
    pub fn may_publish_in(&self, group: &str) -> bool {
        self.has(Role::FocalPoint) && self.working_groups.contains(group)
    }

    /// Whether it may read in the working group.
    #[must_use]
    pub fn may_read_in(&self, group: &str) -> bool {
        (self.has(Role::FocalPoint) || self.has(Role::Agency)) && self.working_groups.contains(group)
    }
}

/// All grants of a node, by SPIFFE path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    grants: BTreeMap<String, Arc<Grant>>,
    limits: Limits,
}

impl Access {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn load(path: &Path) -> Result<Self, FileError> {
        files::load(path, Self::parse)
    }

    /// Parses the text of a file.
    ///
    /// # Errors
    /// Says where and why, if the text is not TOML, has unknown keys or roles, grants one path
    /// twice, or lets a path publish that cannot be an issuer.
    pub fn parse(text: &str) -> Result<Self, String> {
        let read: AccessText = toml::from_str(text).map_err(|error| error.to_string())?;
        let everybody = Limits::DEFAULT.overridden_by(&read.limits)?;
        let mut grants = BTreeMap::new();
        for GrantText { path, roles, working_groups, limits } in read.grants {
            if path == "node" || path.starts_with('/') || path.is_empty() {
                return Err(format!(
                    "grant.path: `{path}` is not the path of a person or system, such as `agency/border-post`"
                ));
            }
            if roles.contains(&Role::FocalPoint) && !(is_issuer(&path) && is_issuer(&issuer_of(&path))) {
                return Err(format!(
                    "grant.path: `{path}` cannot publish: the path of a SPIFFE ID has segments of letters, digits, `-`, `.` and `_`, and an issuer \
                     at most {ISSUER_BYTES_MAX} bytes"
                ));
            }
            let limits = everybody.overridden_by(&limits).map_err(|error| format!("grant `{path}`: {error}"))?;
            if grants.insert(path.clone(), Arc::new(Grant { roles, working_groups, limits })).is_some() {
                return Err(format!("grant.path: `{path}` is granted twice"));
            }
        }
        Ok(Self { grants, limits: everybody })
    }

    /// Returns the limits of the caller with this SPIFFE path. Callers without a grant get the
    /// limits of all callers, which bound how often they are denied.
    #[must_use]
    pub fn limits(&self, path: &str) -> Limits {
        self.grants.get(path).map_or(self.limits, |grant| grant.limits)
    }

    /// Returns the grant of the caller with this SPIFFE path; `None` if it is denied everything.
    #[must_use]
    pub fn grant(&self, path: &str) -> Option<&Arc<Grant>> {
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
    fn access_is_denied_unless_granted() {
        let access = Access::parse(TEXT).unwrap();
        assert!(access.grant("focal-point/other").is_none());
        let police = access.grant("focal-point/police-hq").unwrap();
        assert!(police.may_publish_in("security") && !police.may_publish_in("customs") && !police.has(Role::Operator));
        let post = access.grant("agency/border-post").unwrap();
        assert!(post.may_read_in("security") && !post.may_publish_in("security"));
    }

    #[test]
    fn limits_of_a_grant_override_the_common_ones() {
        assert_eq!(Access::parse(TEXT).unwrap().limits("focal-point/police-hq"), Limits::DEFAULT);
        let text = format!("[limits]\ncalls_per_second = 100\nstreams = 4\n{TEXT}limits = {{ streams = 9 }}\n");
        let access = Access::parse(&text).unwrap();
        let limits = Limits { calls_per_second: 100, streams: 4, ..Limits::DEFAULT };
        assert_eq!(access.limits("focal-point/police-hq"), limits);
        assert_eq!(access.limits("nobody"), limits);
        assert_eq!(access.limits("agency/border-post"), Limits { streams: 9, ..limits });
        let error = Access::parse(&text.replace("streams = 9", "streams = 0")).unwrap_err();
        assert!(error.contains("agency/border-post") && error.contains("limits.streams"), "{error}");
        assert!(Access::parse(&text.replace("streams = 4", "steams = 4")).is_err());
    }

    #[test]
    fn publishing_path_must_be_a_valid_issuer() {
        let with = |path: &str| Access::parse(&TEXT.replace("focal-point/police-hq", path));
        for good in
            ["focal-point/north/customs-hq", "customs-hq", "agency/x", "focal-point/node", "focal-point/Customs_HQ.1"]
        {
            assert!(with(good).is_ok(), "{good}");
        }
        let long = format!("focal-point/{}", "x".repeat(ISSUER_BYTES_MAX + 1));
        for bad in
            ["focal-point/", "focal-point//x", "focal-point/x/", "focal-point/a b", "focal-point/../x", long.as_str()]
        {
            assert!(with(bad).unwrap_err().contains("cannot publish"), "{bad}");
        }
        let reader = TEXT.replace("agency/border-post", &format!("agency/{}", "x".repeat(ISSUER_BYTES_MAX)));
        assert!(Access::parse(&reader).is_ok(), "a reading role signs nothing");
    }

    #[test]
    fn access_rejects_unknown_keys_unknown_roles_and_duplicate_grants() {
        assert!(Access::parse(&TEXT.replace("roles", "rolls")).is_err());
        assert!(Access::parse(&TEXT.replace("\"agency\"", "\"king\"")).is_err());
        assert!(Access::parse(&format!("{TEXT}{TEXT}")).unwrap_err().contains("twice"));
    }
}
