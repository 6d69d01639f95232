//! Who calls, and what the access rules give them.

use std::sync::Arc;

use barid_core::bulletin::header::issuer_of;
use barid_core::bulletin::{BulletinId, kinds};
use barid_core::names::Member;
use tokio::time::Instant;
use tonic::{Code, Extensions, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::Api;
use super::errors::{self, DOMAIN};
use crate::access::{Grant, Role};

/// A verified caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Path of the SPIFFE ID: `focal-point/police-hq`.
    pub path: String,
}

/// Reads the caller that the transport has verified.
pub type Identify = Arc<dyn Fn(&Extensions) -> Option<Identity> + Send + Sync>;

/// A caller with its grant at the time of the call.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) path: String,
    pub(super) grant: Grant,
}

impl Caller {
    /// What `header.issuer` of its bulletins is: no other caller's.
    pub(super) fn issuer(&self) -> String {
        issuer_of(&self.path)
    }

    /// Only focal points read RED and AMBER+STRICT.
    pub(super) fn is_focal_point(&self) -> bool {
        self.grant.has(Role::FocalPoint)
    }

    /// Whether bulletins of this kind and topic are its business: those of its working groups, for focal points and agencies; for operators,
    /// in any working group, what nodes say about the network itself.
    pub(super) fn reads(&self, kind: &str, topic: &str) -> bool {
        let by_node = || kinds::find(kind).is_some_and(|kind| kind.by_nodes);
        self.grant.may_read_in(working_group(topic)) || self.grant.has(Role::Operator) && by_node()
    }

    /// Whether it audits bulletins of this topic.
    pub(super) fn audits(&self, topic: &str) -> bool {
        self.grant.has(Role::Auditor) && self.grant.working_groups.contains(working_group(topic))
    }
}

fn working_group(topic: &str) -> &str {
    topic.split('.').next().unwrap_or_default()
}

impl Api {
    /// A caller with what the rules grant it.
    #[cfg(test)]
    pub(super) fn caller_for_tests(&self, path: &str) -> Caller {
        let grant = self.access.load().grant(path).expect("a grant of the test").clone();
        Caller { path: path.to_owned(), grant }
    }

    /// The caller, if it has one of these roles.
    pub(super) fn caller(
        &self,
        extensions: &Extensions,
        roles: &[Role],
        method: &'static str,
    ) -> Result<Caller, Status> {
        let Some(Identity { path }) = (self.identify)(extensions) else {
            self.refused("", method, "unidentified");
            return Err(Status::unauthenticated("a client certificate of this member is needed"));
        };
        let access = self.access.load();
        self.pace.call(&path, &access.limits(&path), method, Instant::now())?;
        match access.grant(&path) {
            Some(grant) if roles.iter().any(|role| grant.has(*role)) => Ok(Caller { path, grant: grant.clone() }),
            Some(_) => Err(self.denied(&path, method, "ROLE", "the caller's roles do not include this call")),
            None => Err(self.denied(&path, method, "NO_GRANT", "the access rules grant nothing to the caller")),
        }
    }

    /// Looks again at what the rules give a caller whose stream is open: they may have been read anew.
    pub(super) fn renew(&self, caller: &mut Caller, roles: &[Role], method: &'static str) -> Result<(), Status> {
        match self.access.load().grant(&caller.path) {
            Some(grant) if *grant == caller.grant => Ok(()),
            Some(grant) if roles.iter().any(|role| grant.has(*role)) => {
                caller.grant = grant.clone();
                Ok(())
            }
            _ => Err(self.denied(&caller.path, method, "NO_GRANT", "the grant was withdrawn")),
        }
    }

    /// A refusal with its reason, recorded.
    pub(super) fn denied(&self, path: &str, method: &'static str, reason: &'static str, detail: &str) -> Status {
        self.refused(path, method, reason);
        let details = ErrorDetails::with_error_info(reason, DOMAIN, []);
        Status::with_error_details(Code::PermissionDenied, detail, details)
    }

    /// A refusal to publish in the working group of a topic, recorded.
    pub(super) fn denied_topic(&self, path: &str, method: &'static str, topic: &str) -> Status {
        let reason = "WORKING_GROUP";
        self.refused(path, method, reason);
        errors::denied_field(
            reason,
            "the caller does not publish in this working group",
            "header.topic",
            topic,
            "under a working group in which the node's access rules let you publish",
        )
    }

    /// Records that a caller was not given a bulletin, by the bulletin's name.
    pub(super) fn refused_bulletin(
        &self,
        who: &str,
        method: &'static str,
        reason: &'static str,
        (member, id): (&Member, BulletinId),
    ) {
        self.pace.refused_about(who, method, reason, &format!("{member}/{}", id.uuid()), Instant::now());
    }

    /// Records a refusal.
    pub(super) fn refused(&self, who: &str, method: &'static str, reason: &'static str) {
        self.pace.refused(who, method, reason, Instant::now());
    }
}
