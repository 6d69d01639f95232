//! The table of API methods: allowed roles, message sizes and budgets. The services and admission
//! both use it.

use barid_core::limits::{ENVELOPE_BYTES_MAX, MESSAGE_BYTES_MAX, ROSTER_BYTES_MAX};

use crate::access::Role;

/// One method.
#[derive(Debug)]
pub(super) struct Method {
    /// Name in audit records: "FocalPoint.Publish".
    pub(super) name: &'static str,
    /// Roles that may call it. `None`: any caller with a certificate of this member.
    pub(super) roles: Option<&'static [Role]>,
    /// Whether the request is a single message.
    pub(super) one_request: bool,
    /// Largest size of one request in bytes.
    pub(super) request_bytes_max: usize,
    /// Bytes of the response, charged before the call is handled. 0: each message is charged on its
    /// own.
    pub(super) response_bytes: u64,
    /// Which budgets the call is charged to.
    pub(super) purpose: Purpose,
}

/// Which reserves a call may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// No reserve.
    Read,
    /// The publishing reserve.
    Publish,
    /// The operators' budgets, if the caller is an operator.
    Operate,
    /// Calls that need no grant. They have a small budget, with a reserve for callers that have a
    /// grant.
    Open,
}

/// Roles that read bulletins. [`super::caller::Caller::reads`] decides which bulletins each role
/// reads.
pub(super) const READERS: &[Role] = &[Role::FocalPoint, Role::Agency, Role::Operator];
const PUBLISHERS: &[Role] = &[Role::FocalPoint];
const OPERATORS: &[Role] = &[Role::Operator];
const ANY_ROLE: &[Role] = &[Role::Operator, Role::Auditor, Role::FocalPoint, Role::Agency];

const KIB: usize = 1 << 10;
/// A filter of the largest size, a name and a page token.
const QUERY_BYTES_MAX: usize = 64 * KIB;
/// A receipt with its proof and checkpoint, and a hundred members that store the bulletin.
const RECEIPT_BYTES: u64 = 8 << 10;
/// One bulletin and the fields around it.
const DELIVERY_BYTES: u64 = (ENVELOPE_BYTES_MAX + 64 * KIB) as u64;
/// A hundred peers, each with a thousand ranges of missing entries.
const STATUS_BYTES: u64 = 2 << 20;

const READ: Method = Method {
    name: "",
    roles: Some(READERS),
    one_request: true,
    request_bytes_max: QUERY_BYTES_MAX,
    response_bytes: DELIVERY_BYTES,
    purpose: Purpose::Read,
};
const OPERATE: Method = Method { roles: Some(OPERATORS), response_bytes: 64 << 10, purpose: Purpose::Operate, ..READ };
/// Health and reflection: small requests, and a file of descriptors as the response.
const OPEN: Method =
    Method { roles: None, request_bytes_max: 4 * KIB, response_bytes: 64 << 10, purpose: Purpose::Open, ..READ };

pub(super) static PUBLISH: Method = Method {
    name: "FocalPoint.Publish",
    roles: Some(PUBLISHERS),
    one_request: true,
    request_bytes_max: MESSAGE_BYTES_MAX,
    response_bytes: RECEIPT_BYTES,
    purpose: Purpose::Publish,
};
pub(super) static PUBLISH_STREAM: Method = Method {
    name: "FocalPoint.PublishStream",
    roles: Some(PUBLISHERS),
    one_request: false,
    request_bytes_max: MESSAGE_BYTES_MAX,
    response_bytes: 0,
    purpose: Purpose::Publish,
};
pub(super) static GET: Method = Method { name: "FocalPoint.Get", ..READ };
pub(super) static SUBSCRIBE: Method = Method { name: "FocalPoint.Subscribe", response_bytes: 0, ..READ };
pub(super) static ACKNOWLEDGE: Method = Method { name: "FocalPoint.Acknowledge", response_bytes: 1 << 10, ..READ };
/// 256 subscriptions, each with its filter.
pub(super) static LIST_SUBSCRIPTIONS: Method =
    Method { name: "FocalPoint.ListSubscriptions", response_bytes: (MESSAGE_BYTES_MAX / 2) as u64, ..READ };
pub(super) static DELETE_SUBSCRIPTION: Method =
    Method { name: "FocalPoint.DeleteSubscription", response_bytes: 1 << 10, ..READ };
/// A page ends at this size. One bulletin always fits.
pub(super) static HISTORY: Method = Method { name: "FocalPoint.History", ..READ };
pub(super) static EXPORT_EVIDENCE: Method = Method {
    name: "Audit.ExportEvidence",
    roles: Some(&[Role::Auditor, Role::FocalPoint, Role::Agency]),
    // A bulletin with some hundred proofs and notes. A larger file is charged once its size is
    // known.
    response_bytes: 2 * DELIVERY_BYTES,
    ..READ
};
pub(super) static GET_STATUS: Method =
    Method { name: "Operator.GetStatus", roles: Some(ANY_ROLE), response_bytes: STATUS_BYTES, ..OPERATE };
pub(super) static GET_ROSTER: Method = Method {
    name: "Operator.GetRoster",
    roles: Some(ANY_ROLE),
    response_bytes: (ROSTER_BYTES_MAX + 64 * KIB) as u64,
    ..OPERATE
};
pub(super) static RELOAD: Method = Method { name: "Operator.Reload", ..OPERATE };
pub(super) static GET_FORKS: Method = Method {
    name: "Operator.GetForks",
    roles: Some(&[Role::Operator, Role::Auditor]),
    response_bytes: MESSAGE_BYTES_MAX as u64,
    ..OPERATE
};
pub(super) static RESUME_FEED: Method = Method { name: "Operator.ResumeFeed", ..OPERATE };
static HEALTH_CHECK: Method = Method { name: "grpc.health.v1.Health.Check", response_bytes: 1 << 10, ..OPEN };
static HEALTH_WATCH: Method = Method { name: "grpc.health.v1.Health.Watch", response_bytes: 1 << 10, ..OPEN };
static REFLECTION: Method =
    Method { name: "grpc.reflection.v1.ServerReflection.ServerReflectionInfo", one_request: false, ..OPEN };
static REFLECTION_ALPHA: Method =
    Method { name: "grpc.reflection.v1alpha.ServerReflection.ServerReflectionInfo", one_request: false, ..OPEN };

/// All methods.
pub(super) static METHODS: [&Method; 18] = [
    &PUBLISH,
    &PUBLISH_STREAM,
    &GET,
    &SUBSCRIBE,
    &ACKNOWLEDGE,
    &LIST_SUBSCRIPTIONS,
    &DELETE_SUBSCRIPTION,
    &HISTORY,
    &EXPORT_EVIDENCE,
    &GET_STATUS,
    &GET_ROSTER,
    &RELOAD,
    &GET_FORKS,
    &RESUME_FEED,
    &HEALTH_CHECK,
    &HEALTH_WATCH,
    &REFLECTION,
    &REFLECTION_ALPHA,
];

/// Returns the method at a request path: "/barid.v1.FocalPoint/Publish".
pub(super) fn at(path: &str) -> Option<&'static Method> {
    let path = path.strip_prefix('/')?;
    let (service, method) = path.strip_prefix("barid.v1.").unwrap_or(path).split_once('/')?;
    METHODS
        .into_iter()
        .find(|known| known.name.strip_prefix(service).and_then(|rest| rest.strip_prefix('.')) == Some(method))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn method_table_lists_every_described_method() {
        let sets = [
            super::super::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let mut count = 0;
        for set in sets {
            for file in FileDescriptorSet::decode(set).unwrap().file {
                for service in &file.service {
                    for described in &service.method {
                        let path = format!("/{}.{}/{}", file.package(), service.name(), described.name());
                        let method = at(&path).unwrap_or_else(|| panic!("{path} is not in src/api/methods.rs"));
                        assert_eq!(method.one_request, !described.client_streaming(), "{path}");
                        count += 1;
                    }
                }
            }
        }
        assert_eq!(count, METHODS.len(), "and no other method is listed");
    }

    #[test]
    fn malformed_method_path_is_unknown() {
        for path in [
            "",
            "/",
            "Publish",
            "/FocalPoint",
            "/barid.v1.FocalPoint",
            "/barid.v1.FocalPoint/",
            "/barid.v1.FocalPoint/Publish/",
            "/barid.v1.FocalPoint.Publish/",
            "/barid.v1./Publish",
        ] {
            assert!(at(path).is_none(), "{path}");
        }
        assert!(at("/barid.v1.FocalPoint/Publish").is_some());
    }
}
