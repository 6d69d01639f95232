//! Queues peers' revocation lists to verify, and applied lists to persist.
//!
//! In scope: which list is verified next, and which is persisted when. Takes time as an argument;
//! its only effect is a wake-up. Out of scope: verifying and persisting.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use barid_core::ids::Member;
use barid_core::limits::MESSAGE_BYTES_MAX;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::budgets::table::CRL_BYTES;
use crate::budgets::{Owner, RateLimiter};
use crate::exchange::TREE_HEADS_CRLS_MAX;
use crate::transport::HeldCrl;

/// Least time between two lists of one authority that are persisted and recorded.
pub(super) const PERSIST_EVERY: Duration = Duration::from_secs(60);
/// Most waiting bytes of one member: one frame. Beyond it the newest lists are kept waiting.
const WAITING_BYTES_MAX: usize = MESSAGE_BYTES_MAX;
/// Least cost of a list in bytes: a short list needs a signature check like a long one.
const COST_BYTES_MIN: usize = 16 << 10;

/// See the module.
#[derive(Default)]
pub(super) struct Inbox {
    inner: Mutex<Inner>,
    budget: RateLimiter,
    pub(super) put: Notify,
}

#[derive(Default)]
struct Inner {
    /// Unverified lists by member, the newest last.
    offered: BTreeMap<Member, VecDeque<Bytes>>,
    /// The member whose list was verified last: members take turns.
    last: Option<Member>,
    /// By authority; at most as many as the roster has.
    authorities: BTreeMap<String, Authority>,
}

#[derive(Default)]
struct Authority {
    /// When its list was last persisted, or tried to be.
    persisted_at: Option<Instant>,
    pending: Option<Pending>,
}

/// An applied list that is not persisted yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) from: Member,
    pub(super) list: HeldCrl,
    /// Lists of this authority applied since the last persisted one, including this one.
    pub(super) count: u64,
}

/// The next step.
pub(super) struct Next {
    /// A list to verify.
    pub(super) list: Option<(Member, Bytes)>,
    /// Whether another one may be ready at once.
    pub(super) more: bool,
    /// When the next list of a member over its budget can be verified.
    pub(super) wait_until: Option<Instant>,
}

impl Inbox {
    /// Queues lists of a member. Returns how many waiting ones were dropped for them, the oldest
    /// first.
    pub(super) fn put(&self, from: &Member, crls: Vec<Bytes>) -> usize {
        if crls.is_empty() {
            return 0;
        }
        let mut inner = self.inner.lock();
        let waiting = inner.offered.entry(from.clone()).or_default();
        waiting.extend(crls);
        let mut dropped = 0;
        while waiting.len() > TREE_HEADS_CRLS_MAX || waiting.iter().map(Bytes::len).sum::<usize>() > WAITING_BYTES_MAX {
            waiting.pop_front();
            dropped += 1;
        }
        drop(inner);
        self.put.notify_one();
        dropped
    }

    /// Returns the newest list of the next member that is within its budget.
    pub(super) fn next(&self, now: Instant) -> Next {
        let mut inner = self.inner.lock();
        let Inner { offered, last, .. } = &mut *inner;
        let after = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let members: Vec<Member> =
            offered.range::<Member, _>((after, Bound::Unbounded)).map(|(m, _)| m.clone()).collect();
        let again: Vec<Member> = offered.keys().take_while(|member| !members.contains(member)).cloned().collect();
        let mut wait_until: Option<Instant> = None;
        for member in members.into_iter().chain(again) {
            let Some(newest) = offered.get(&member).and_then(VecDeque::back) else { continue };
            let cost = newest.len().max(COST_BYTES_MIN) as f64;
            let owner = Owner::Member(member.as_str().into());
            if let Err(wait) = self.budget.take(&owner, CRL_BYTES.rate, cost, now) {
                wait_until = wait_until.into_iter().chain([now + wait]).min();
                continue;
            }
            let list = offered.get_mut(&member).and_then(VecDeque::pop_back);
            offered.retain(|_, waiting| !waiting.is_empty());
            *last = Some(member.clone());
            return Next { list: list.map(|list| (member, list)), more: !offered.is_empty(), wait_until };
        }
        Next { list: None, more: false, wait_until }
    }

    /// Queues an applied list to be persisted.
    pub(super) fn set_in_force(&self, from: &Member, list: HeldCrl) {
        let mut inner = self.inner.lock();
        let authority = inner.authorities.entry(list.name.clone()).or_default();
        let count = authority.pending.as_ref().map_or(0, |pending| pending.count) + 1;
        authority.pending = Some(Pending { from: from.clone(), list, count });
    }

    /// Queues a list again that could not be persisted, unless a newer one has been applied.
    pub(super) fn not_persisted(&self, failed: Pending) {
        let mut inner = self.inner.lock();
        let pending = &mut inner.authorities.entry(failed.list.name.clone()).or_default().pending;
        match pending {
            Some(newer) => newer.count += failed.count,
            None => *pending = Some(failed),
        }
    }

    /// Returns when something must be persisted next.
    pub(super) fn next_persist(&self) -> Option<Instant> {
        let inner = self.inner.lock();
        let pending = inner.authorities.values().filter(|authority| authority.pending.is_some());
        let now = Instant::now();
        pending.map(|authority| authority.persisted_at.map_or(now, |at| at + PERSIST_EVERY)).min()
    }

    /// Takes the lists to persist at `now`.
    pub(super) fn take_pending(&self, now: Instant) -> Vec<Pending> {
        let mut inner = self.inner.lock();
        let ready = inner
            .authorities
            .values_mut()
            .filter(|authority| authority.persisted_at.is_none_or(|at| at + PERSIST_EVERY <= now));
        ready
            .filter_map(|authority| {
                let pending = authority.pending.take()?;
                authority.persisted_at = Some(now);
                Some(pending)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn member(code: &str) -> Member {
        code.parse().unwrap()
    }

    fn list(authority: &str, n: u8) -> HeldCrl {
        let der = vec![n].into();
        HeldCrl { name: authority.into(), trust_domain: authority.into(), der, this_update: 0, next_update: 0 }
    }

    #[tokio::test(start_paused = true)]
    async fn newest_crl_of_a_flood_is_verified_within_a_second() {
        let (inbox, tn) = (Inbox::default(), member("tn"));
        let (mut verified, mut dropped) = (0, 0);
        // 291 lists of 0.9 MB in 10 s, each verified as soon as the budget permits.
        for n in 0..=290_u32 {
            dropped += inbox.put(&tn, vec![[n.to_be_bytes().as_slice(), &vec![0; 900_000]].concat().into()]);
            while inbox.next(Instant::now()).list.is_some() {
                verified += 1;
            }
            tokio::time::advance(Duration::from_millis(34)).await;
        }
        assert!(verified < 30, "{verified}: some 10 s of the rate, and the burst");
        assert_eq!(verified + dropped + inbox.inner.lock().offered.values().map(VecDeque::len).sum::<usize>(), 291);
        let wait = inbox.next(Instant::now()).wait_until.unwrap() - Instant::now();
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
        tokio::time::advance(wait).await;
        let (_, newest) = inbox.next(Instant::now()).list.unwrap();
        assert_eq!(newest[..4], 290_u32.to_be_bytes());
    }

    #[tokio::test(start_paused = true)]
    async fn short_crls_are_rate_limited_and_members_take_turns() {
        let inbox = Inbox::default();
        let mut verified = 0;
        for n in 0..5_000_u32 {
            inbox.put(&member("tn"), vec![n.to_be_bytes().to_vec().into()]);
            verified += usize::from(inbox.next(Instant::now()).list.is_some());
        }
        assert!(verified <= 600, "{verified}");
        inbox.put(&member("ly"), vec![Bytes::from_static(b"a list")]);
        let (from, _) = inbox.next(Instant::now()).list.unwrap();
        assert_eq!(from, member("ly"), "whatever other peers send");
        for code in ["dz", "eg"] {
            inbox.put(&member(code), vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")]);
        }
        let turns: Vec<_> = (0..4).filter_map(|_| Some(inbox.next(Instant::now()).list?.0.to_string())).collect();
        assert_eq!(turns, ["dz", "eg", "dz", "eg"]);
    }

    #[tokio::test(start_paused = true)]
    async fn newest_crl_of_an_authority_is_persisted_once_a_minute() {
        let (inbox, tn) = (Inbox::default(), member("tn"));
        inbox.set_in_force(&tn, list("tn.rabat.example/1", 0));
        let begun = Instant::now();
        assert_eq!(inbox.next_persist(), Some(begun), "the first is verified at once");
        assert_eq!(inbox.take_pending(begun)[0].count, 1);
        for n in 1..=200 {
            inbox.set_in_force(&tn, list("tn.rabat.example/1", n));
        }
        assert!(inbox.take_pending(Instant::now()).is_empty());
        inbox.set_in_force(&tn, list("ly.rabat.example/1", 1));
        assert_eq!(inbox.take_pending(Instant::now()).len(), 1, "it does not delay another authority");
        assert_eq!(inbox.next_persist(), Some(begun + PERSIST_EVERY));
        tokio::time::advance(PERSIST_EVERY).await;
        let pending = inbox.take_pending(Instant::now()).remove(0);
        assert_eq!((pending.count, pending.list.der.as_ref()), (200, [200].as_slice()));
        // The disk was full: the list is returned again, with any newer one.
        inbox.set_in_force(&tn, list("tn.rabat.example/1", 201));
        inbox.not_persisted(pending);
        tokio::time::advance(PERSIST_EVERY).await;
        let pending = inbox.take_pending(Instant::now()).remove(0);
        assert_eq!((pending.count, pending.list.der.as_ref()), (201, [201].as_slice()));
        assert!(inbox.take_pending(Instant::now() + PERSIST_EVERY).is_empty());
    }
}
