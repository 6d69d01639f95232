//! Callers: identity, grant, and admission of calls.
//!
//! In scope: reading the verified identity, matching grant and role with the method, choosing
//! budgets, and recording denied calls. Out of scope: verifying certificates (`transport`), parsing
//! the access rules (`access`).

use std::collections::BTreeSet;
use std::sync::Arc;

use barid_core::bulletin::header::issuer_of;
use barid_core::bulletin::{BulletinId, FieldError, Rule, kinds};
use barid_core::ids::Member;
use tokio::time::Instant;
use tonic::{Code, Extensions, Status};

use super::Api;
use super::errors;
use super::methods::{self, Method, Purpose};
use crate::access::{Grant, Role};
use crate::budgets::{Class, Owner, table};
use crate::calls::{Admission, Call, Report, Terms, over_budget, status_with_reason};

/// A verified caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Path of the SPIFFE ID: `focal-point/police-hq`.
    pub path: Arc<str>,
}

/// Reads the identity that the transport verified.
pub type Identify = Arc<dyn Fn(&Extensions) -> Option<Identity> + Send + Sync>;

/// A caller with its grant at the time of the call.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) path: Arc<str>,
    pub(super) grant: Arc<Grant>,
}

/// The caller that was admitted by the headers of a call.
#[derive(Clone)]
struct Admitted(Caller);

impl Admission for Api {
    fn admit(&self, path: &str, extensions: &mut Extensions) -> Result<Terms, Status> {
        let Some(method) = methods::at(path) else {
            return Err(Status::unimplemented("this method is not served here"));
        };
        let (caller, terms) = self.admitted(extensions, method)?;
        extensions.insert(Admitted(caller));
        Ok(terms)
    }
}

impl Caller {
    /// Returns the `header.issuer` of its bulletins. It differs from that of every other caller.
    pub(super) fn issuer(&self) -> String {
        issuer_of(&self.path)
    }

    /// Only focal points read RED and AMBER+STRICT.
    pub(super) fn is_focal_point(&self) -> bool {
        self.grant.has(Role::FocalPoint)
    }

    /// Returns whether the caller may read bulletins of this kind and topic. Focal points and
    /// agencies read those of their working groups. Operators read what nodes publish about the
    /// network itself, in any working group.
    pub(super) fn reads(&self, kind: &str, topic: &str) -> bool {
        let by_node = || kinds::find(kind).is_some_and(|kind| kind.node_only);
        self.grant.may_read_in(working_group(topic)) || self.grant.has(Role::Operator) && by_node()
    }

    /// Returns whether the caller audits bulletins of this topic.
    pub(super) fn audits(&self, topic: &str) -> bool {
        self.grant.has(Role::Auditor) && self.grant.working_groups.contains(working_group(topic))
    }
}

fn working_group(topic: &str) -> &str {
    topic.split('.').next().unwrap_or_default()
}

impl Api {
    /// Returns a caller with its grant.
    #[cfg(test)]
    pub(super) fn caller_for_tests(&self, path: &str) -> Caller {
        let grant = self.access.load().grant(path).expect("a grant of the test").clone();
        Caller { path: path.into(), grant }
    }

    /// Begins a call of `method`: returns its caller and its charges. A call over HTTP/2 was
    /// admitted by its headers. A call from inside the program is admitted here, on the same terms.
    pub(super) fn begin(&self, extensions: &Extensions, method: &'static Method) -> Result<(Caller, Call), Status> {
        if let (Some(Admitted(caller)), Some(call)) = (extensions.get::<Admitted>(), extensions.get::<Call>()) {
            return Ok((caller.clone(), call.clone()));
        }
        let (caller, terms) = self.admitted(extensions, method)?;
        Ok((caller, Call::direct(terms)))
    }

    /// Admits a call by its headers: checks identity, rate, grant, role and the number of
    /// concurrent calls.
    fn admitted(&self, extensions: &Extensions, method: &'static Method) -> Result<(Caller, Terms), Status> {
        let Some(Identity { path }) = (self.identify)(extensions) else {
            self.record_denied("", method.name, "unidentified");
            return Err(Status::unauthenticated("a client certificate of this member is required"));
        };
        let access = self.access.load();
        let limits = access.limits(&path);
        self.call_limiter.call(&path, &limits, method.name, Instant::now())?;
        let grant = match (access.grant(&path), method.roles) {
            (Some(grant), Some(roles)) if roles.iter().any(|role| grant.has(*role)) => Arc::clone(grant),
            (Some(grant), None) => Arc::clone(grant),
            (None, None) => Arc::new(Grant { roles: BTreeSet::new(), working_groups: BTreeSet::new(), limits }),
            (Some(_), Some(_)) => {
                return Err(self.denied(&path, method.name, "ROLE", "the caller's roles do not include this call"));
            }
            (None, Some(_)) => {
                return Err(self.denied(
                    &path,
                    method.name,
                    "NO_GRANT",
                    "the access rules grant nothing to the caller",
                ));
            }
        };
        let terms = self.terms(&path, &grant, method)?;
        Ok((Caller { path, grant }, terms))
    }

    /// Returns the budgets of a call. Operators' calls and publishing have reserves that no other
    /// call can use up. Calls that need no grant have a reserve for callers with a grant, but only
    /// for the number of calls: their bytes must not use the reserves of publishing. A publish
    /// stream holds its call for long, even if it is idle, so the reserve of calls is for single
    /// calls only.
    fn terms(&self, path: &Arc<str>, grant: &Grant, method: &'static Method) -> Result<Terms, Status> {
        let of = |spec| self.budgets.of(spec);
        let api = (of(&table::API_CALLS), of(&table::API_REQUEST_BYTES), of(&table::API_RESPONSE_BYTES));
        let (budgets, class) = match method.purpose {
            Purpose::Operate if grant.has(Role::Operator) => {
                let bytes = of(&table::OPERATOR_BYTES);
                ((of(&table::OPERATOR_CALLS), bytes, bytes), Class::Ordinary)
            }
            Purpose::Open => ((of(&table::OPEN_CALLS), api.1, api.2), Class::Ordinary),
            Purpose::Publish => (api, Class::Reserved),
            Purpose::Read | Purpose::Operate => (api, Class::Ordinary),
        };
        let (calls, requests, responses) = budgets;
        let owner = Owner::Identity(Arc::clone(path));
        let report: Report = {
            let (call_limiter, path) = (Arc::clone(&self.call_limiter), Arc::clone(path));
            Arc::new(move |reason| call_limiter.ended(&path, method.name, reason, Instant::now()))
        };
        let granted = !grant.roles.is_empty();
        let place = match method.purpose {
            Purpose::Open if granted => Class::Reserved,
            _ if method.one_request => class,
            _ => Class::Ordinary,
        };
        let call = calls.try_charge(&owner, place, 1).map_err(|error| {
            report("BUDGET");
            over_budget(&error)
        })?;
        Ok(Terms {
            owner,
            class,
            call,
            requests: requests.clone(),
            responses: responses.clone(),
            request_bytes_max: method.request_bytes_max,
            one_request: method.one_request,
            response_bytes: method.response_bytes,
            report,
        })
    }

    /// Reads the caller's grant again while its stream is open, because the access rules may have
    /// been reloaded.
    pub(super) fn renew(&self, caller: &mut Caller, method: &'static Method) -> Result<(), Status> {
        let may = |grant: &Grant| method.roles.is_none_or(|roles| roles.iter().any(|role| grant.has(*role)));
        match self.access.load().grant(&caller.path) {
            Some(grant) if Arc::ptr_eq(grant, &caller.grant) => Ok(()),
            Some(grant) if may(grant) => {
                caller.grant = Arc::clone(grant);
                Ok(())
            }
            _ => Err(self.denied(&caller.path, method.name, "NO_GRANT", "the grant was withdrawn")),
        }
    }

    /// Returns `PERMISSION_DENIED` with its reason, and records it.
    pub(super) fn denied(&self, path: &str, method: &'static str, reason: &'static str, detail: &str) -> Status {
        self.record_denied(path, method, reason);
        status_with_reason(Code::PermissionDenied, detail, reason, [], None)
    }

    /// Returns `PERMISSION_DENIED` for publishing in a topic's working group, and records it.
    pub(super) fn denied_topic(&self, path: &str, method: &'static str, topic: &str) -> Status {
        let reason = "WORKING_GROUP";
        self.record_denied(path, method, reason);
        errors::denied_field(
            reason,
            "the caller does not publish in this working group",
            FieldError::new("header.topic", topic, Rule::TopicGranted),
        )
    }

    /// Records that a bulletin was not visible to a caller, by the bulletin's member and id.
    pub(super) fn record_denied_bulletin(
        &self,
        actor: &str,
        method: &'static str,
        reason: &'static str,
        (member, id): (&Member, BulletinId),
    ) {
        self.call_limiter.record_denied_with(actor, method, reason, &format!("{member}/{}", id.uuid()), Instant::now());
    }

    /// Records a denied call.
    pub(super) fn record_denied(&self, actor: &str, method: &'static str, reason: &'static str) {
        self.call_limiter.record_denied(actor, method, reason, Instant::now());
    }
}
