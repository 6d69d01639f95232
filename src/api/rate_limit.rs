//! Rate limits of callers, and audit records of calls over them.
//!
//! In scope: calls and bulletins per second and open streams of an identity, over all its
//! connections. Pure: limits and time are arguments. Out of scope: where the limits are configured
//! (`access`), and bounds of connections (`transport`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;

use super::errors;
use crate::access::Limits;
use crate::budgets::table::SUBSCRIPTION_BYTES;
use crate::budgets::{Owner, Rate, RateLimiter, TokenBucket};
use crate::telemetry::{AuditEvent, AuditLimiter, INDIVIDUAL_RECORDS_MAX};

/// Identities with an account: every certificate that a member's authority may have issued. Idle
/// accounts are evicted first. They lose nothing, because their buckets are full.
const IDENTITIES_MAX: usize = 16_384;
/// Bytes of an acknowledgement in the log.
const ACKNOWLEDGEMENT_BYTES: f64 = 104.0;
/// Retry delay of a caller with too many streams. It has to close one.
const STREAMS_RETRY: Duration = Duration::from_secs(1);

/// Recent use by each identity. All connections share it.
#[derive(Default)]
pub struct CallLimiter {
    accounts: Mutex<HashMap<String, Account, RandomState>>,
    /// Open streams by method.
    open: Mutex<BTreeMap<&'static str, u64>>,
    /// Bytes that named subscriptions add to the log.
    durable: RateLimiter,
    audit_limiter: AuditLimiter,
}

struct Account {
    calls: TokenBucket,
    bulletins: TokenBucket,
    streams: u32,
}

/// A rate of `per_second` with a burst of one second.
fn rate(per_second: u32) -> Rate {
    Rate { per_second: per_second.into(), burst: per_second.into() }
}

/// Permission for one open stream. Dropping it returns the permission.
pub(super) struct OpenStream {
    call_limiter: Arc<CallLimiter>,
    path: String,
    method: &'static str,
}

impl CallLimiter {
    /// Takes one call from the caller's rate.
    pub(super) fn call(&self, path: &str, limits: &Limits, method: &'static str, now: Instant) -> Result<(), Status> {
        let taken = self.with(path, limits, now, |account| account.calls.take(rate(limits.calls_per_second), 1.0, now));
        taken.map_err(|after| self.too_fast(path, method, "calls", limits.calls_per_second, after, now))
    }

    /// Takes one bulletin of a single call from the caller's rate.
    pub(super) fn bulletin(
        &self,
        path: &str,
        limits: &Limits,
        method: &'static str,
        now: Instant,
    ) -> Result<(), Status> {
        let taken =
            self.with(path, limits, now, |account| account.bulletins.take(rate(limits.bulletins_per_second), 1.0, now));
        taken.map_err(|after| self.too_fast(path, method, "bulletins", limits.bulletins_per_second, after, now))
    }

    /// Takes `count` bulletins of a stream from the caller's rate. Returns how long the stream must
    /// not be read.
    pub(super) fn bulletins(&self, path: &str, limits: &Limits, count: usize, now: Instant) -> Duration {
        let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        self.with(path, limits, now, |account| account.bulletins.spend(rate(limits.bulletins_per_second), count, now))
    }

    /// Opens a stream, unless the caller has as many open as it may.
    pub(super) fn open(
        self: &Arc<Self>,
        path: &str,
        limits: &Limits,
        method: &'static str,
        now: Instant,
    ) -> Result<OpenStream, Status> {
        let room = self.with(path, limits, now, |account| {
            let room = account.streams < limits.streams;
            account.streams += u32::from(room);
            room
        });
        if room {
            *self.open.lock().entry(method).or_default() += 1;
            return Ok(OpenStream { call_limiter: Arc::clone(self), path: path.to_owned(), method });
        }
        let message = format!("the caller has {} open streams, its limit", limits.streams);
        self.record_once(path, method, "STREAMS", &message, now);
        Err(errors::exhausted("STREAMS", message, Some(STREAMS_RETRY)))
    }

    /// Returns the status for a caller that has as many named subscriptions as it may.
    pub(super) fn too_many_names(&self, path: &str, limits: &Limits, method: &'static str, now: Instant) -> Status {
        let message = format!(
            "the caller has {} named subscriptions, its limit; use or delete one of them",
            limits.subscriptions
        );
        self.record_once(path, method, "SUBSCRIPTIONS", &message, now);
        errors::exhausted("SUBSCRIPTIONS", message, None)
    }

    /// Takes the bytes of a named subscription's record from the caller's rate.
    pub(super) fn name_bytes(
        &self,
        path: &str,
        bytes: usize,
        method: &'static str,
        now: Instant,
    ) -> Result<(), Status> {
        let owner = Owner::Identity(path.into());
        let taken = self.durable.take(&owner, SUBSCRIPTION_BYTES.rate, bytes as f64, now);
        taken.map_err(|after| {
            let message = "named subscriptions are created, changed or removed too often";
            self.record_once(path, method, "RATE", message, now);
            errors::exhausted("RATE", message.to_owned(), Some(after))
        })
    }

    /// Takes the bytes of an acknowledgement from the caller's rate. Returns how long it must wait.
    pub(super) fn acknowledgement(&self, path: &str, now: Instant) -> Duration {
        let owner = Owner::Identity(path.into());
        self.durable.spend(&owner, SUBSCRIPTION_BYTES.rate, ACKNOWLEDGEMENT_BYTES, now)
    }

    /// Records a denied call. After the first few of one caller and reason, only their number is
    /// recorded.
    pub(super) fn record_denied(&self, actor: &str, method: &'static str, reason: &'static str, now: Instant) {
        self.record_denied_with(actor, method, reason, "", now);
    }

    /// Like [`Self::record_denied`], with the resource that was asked for.
    pub(super) fn record_denied_with(
        &self,
        actor: &str,
        method: &'static str,
        reason: &'static str,
        about: &str,
        now: Instant,
    ) {
        let event = AuditEvent { event: "call-denied", reason, actor: &actor, resource: &method, detail: &about };
        self.audit_limiter.record(actor, INDIVIDUAL_RECORDS_MAX, &event, now);
    }

    /// Records why a call was ended: one record for each identity, reason and interval.
    pub(super) fn ended(&self, actor: &str, method: &'static str, reason: &'static str, now: Instant) {
        self.record_once(actor, method, reason, "", now);
    }

    /// Returns the number of open streams of all callers.
    #[must_use]
    pub fn open_streams(&self) -> u64 {
        self.accounts.lock().values().map(|account| u64::from(account.streams)).sum()
    }

    /// Returns the number of open streams by method.
    #[must_use]
    pub fn streams_by_method(&self) -> BTreeMap<&'static str, u64> {
        self.open.lock().clone()
    }

    /// Returns the limiter with the calls that were only counted, so that their number is recorded
    /// in time.
    #[must_use]
    pub fn audit_limiter(&self) -> &AuditLimiter {
        &self.audit_limiter
    }

    fn too_fast(
        &self,
        path: &str,
        method: &'static str,
        what: &str,
        per_second: u32,
        after: Duration,
        now: Instant,
    ) -> Status {
        let message = format!("more than {per_second} {what} a second");
        self.record_once(path, method, "RATE", &message, now);
        errors::exhausted("RATE", message, Some(after))
    }

    /// Writes one record for each identity and interval. A caller that runs into a limit does so
    /// thousands of times.
    fn record_once(&self, actor: &str, method: &'static str, reason: &'static str, detail: &str, now: Instant) {
        let event = AuditEvent { event: "call-denied", reason, actor: &actor, resource: &method, detail: &detail };
        self.audit_limiter.record(actor, 1, &event, now);
    }

    fn with<T>(&self, path: &str, limits: &Limits, now: Instant, act: impl FnOnce(&mut Account) -> T) -> T {
        let mut accounts = self.accounts.lock();
        if accounts.len() >= IDENTITIES_MAX && !accounts.contains_key(path) {
            accounts.retain(|_, account| !account.is_idle(now));
        }
        // The path is allocated only the first time.
        match accounts.get_mut(path) {
            Some(account) => act(account),
            None => act(accounts.entry(path.to_owned()).or_insert_with(|| Account::new(limits, now))),
        }
    }
}

impl Account {
    fn new(limits: &Limits, now: Instant) -> Self {
        let full = |per_second| TokenBucket::full(rate(per_second), now);
        Self { calls: full(limits.calls_per_second), bulletins: full(limits.bulletins_per_second), streams: 0 }
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.streams == 0 && self.calls.is_full(now) && self.bulletins.is_full(now)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        if let Some(open) = self.call_limiter.open.lock().get_mut(self.method) {
            *open = open.saturating_sub(1);
        }
        if let Some(account) = self.call_limiter.accounts.lock().get_mut(&self.path) {
            account.streams = account.streams.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tonic::Code;
    use tonic_types::StatusExt;

    use super::*;
    use crate::telemetry::captured::CapturedRecords;

    const LIMITS: Limits =
        Limits { calls_per_second: 10, bulletins_per_second: 20, subscriptions: 2, subscription_days: 90, streams: 2 };
    const CALL: &str = "FocalPoint.Get";

    #[test]
    fn rate_limited_caller_gets_retry_info_and_one_record() {
        let (captured, call_limiter, begun) = (CapturedRecords::start(), CallLimiter::default(), Instant::now());
        for _ in 0..10 {
            call_limiter.call("agency/one", &LIMITS, CALL, begun).unwrap();
        }
        for _ in 0..1_000 {
            let status = call_limiter.call("agency/one", &LIMITS, CALL, begun).unwrap_err();
            assert_eq!(status.code(), Code::ResourceExhausted);
            let retry = status.get_error_details().retry_info().unwrap().retry_delay.unwrap();
            assert_eq!(retry, Duration::from_millis(100));
        }
        assert_eq!(captured.take(), ["call-denied rate agency/one FocalPoint.Get"]);
        call_limiter.call("agency/two", &LIMITS, CALL, begun).unwrap();
        call_limiter.call("agency/one", &LIMITS, CALL, begun + Duration::from_millis(100)).unwrap();
        assert!(call_limiter.call("agency/one", &LIMITS, CALL, begun + Duration::from_millis(100)).is_err());
        call_limiter.audit_limiter().summarize_all();
        assert_eq!(
            captured.take(),
            ["call-denied rate agency/one FocalPoint.Get"],
            "the remaining denials are one counter"
        );
    }

    #[test]
    fn publish_stream_is_read_at_the_callers_rate() {
        let (call_limiter, begun) = (CallLimiter::default(), Instant::now());
        assert_eq!(call_limiter.bulletins("one", &LIMITS, 20, begun), Duration::ZERO);
        assert_eq!(call_limiter.bulletins("one", &LIMITS, 40, begun), Duration::from_secs(2));
        assert!(call_limiter.bulletin("one", &LIMITS, CALL, begun + Duration::from_secs(2)).is_err());
        call_limiter.bulletin("one", &LIMITS, CALL, begun + Duration::from_millis(2_050)).unwrap();
    }

    #[test]
    fn open_streams_are_counted_until_they_are_dropped() {
        let (call_limiter, now) = (Arc::new(CallLimiter::default()), Instant::now());
        let open = |path| call_limiter.open(path, &LIMITS, "FocalPoint.Subscribe", now);
        let (first, _second) = (open("one").unwrap(), open("one").unwrap());
        let Err(status) = open("one") else { panic!("not rejected") };
        assert_eq!(status.code(), Code::ResourceExhausted);
        let _other = open("two").unwrap();
        drop(first);
        let _third = open("one").unwrap();
        assert!(open("one").is_err());
    }

    #[test]
    fn idle_accounts_are_evicted_and_indebted_accounts_are_not() {
        let (call_limiter, begun) = (Arc::new(CallLimiter::default()), Instant::now());
        let _open = call_limiter.open("reader", &LIMITS, CALL, begun).unwrap();
        call_limiter.bulletins("writer", &LIMITS, 1_000, begun);
        for n in 0..2 * IDENTITIES_MAX {
            let now = begun + Duration::from_millis(n as u64);
            call_limiter.call(&format!("agency/{n}"), &LIMITS, CALL, now).unwrap();
        }
        let accounts = call_limiter.accounts.lock();
        assert!(accounts.len() <= IDENTITIES_MAX && accounts.contains_key("reader"), "{}", accounts.len());
    }
}
