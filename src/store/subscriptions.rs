//! Named subscriptions as the store records them.
//!
//! In scope: the state of a subscription, and how commits change it. Out of scope: which caller may
//! use which names, and when subscriptions expire (`api`).

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::Commit;

/// Entries that were scanned but not delivered because their roster was not yet held. They are
/// delivered when it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// Offset of the first of them.
    pub from: u64,
    /// The newest roster version with which the entries from there on were checked. Entries that
    /// name a later version are held back.
    pub roster_version: u64,
}

/// The state of a named subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Offset up to which everything was acknowledged.
    pub offset: u64,
    /// Entries held back before that offset.
    pub held: Option<HeldBack>,
    /// Encoded filter, for the API; `None` if recorded by a version that did not record filters.
    pub filter: Option<Bytes>,
    /// Creation time in unix ms; 0 if recorded by a version that did not record it.
    pub created_unix_ms: u64,
    /// Unix time in ms of the commit that recorded it last.
    pub used_unix_ms: u64,
    /// Epoch of the node's own feed when it was last recorded; 0 if recorded by a version that did
    /// not record it.
    pub epoch: u32,
}

/// Precision of the recorded time of use: fine enough for limits of days, and a reader that opens
/// and closes streams without progress causes few commits.
const USED_WITHIN_MS: u64 = 60 * 60 * 1_000;

impl Subscription {
    /// Returns whether a cursor changes the recorded state: progress, another epoch or held-back
    /// entries, or an outdated time of use.
    #[must_use]
    pub fn is_advanced_by(&self, cursor: &CursorRecord, now_unix_ms: u64) -> bool {
        let here = cursor.offset == self.offset;
        cursor.offset > self.offset
            || here && (cursor.held, cursor.epoch) != (self.held, self.epoch)
            || here && now_unix_ms.saturating_sub(self.used_unix_ms) >= USED_WITHIN_MS
    }
}

/// A named subscription that is created, replaced or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionRecord {
    /// Caller and name, such as `focal-point/customs-hq/alerts`.
    pub subscription: String,
    /// Its state from this commit on, used at the commit's time; `None` if it is removed.
    pub state: Option<Subscription>,
}

/// Progress of a named subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CursorRecord {
    /// Caller and name.
    pub subscription: String,
    /// Offset up to which everything was acknowledged.
    pub offset: u64,
    /// Entries held back before that offset.
    pub held: Option<HeldBack>,
    /// See [`Subscription::epoch`]. A record of epoch 0 also creates an unknown name, as in earlier
    /// versions.
    pub epoch: u32,
}

/// All named subscriptions.
#[derive(Debug, Default)]
pub(super) struct Subscriptions(BTreeMap<String, Subscription>);

impl Subscriptions {
    /// Returns the state of a subscription.
    pub(super) fn get(&self, name: &str) -> Option<&Subscription> {
        self.0.get(name)
    }

    /// Returns at most `max` subscriptions with names after `after`, ascending.
    pub(super) fn after(&self, after: &str, max: usize) -> Vec<(String, Subscription)> {
        let names = self.0.range::<str, _>((Bound::Excluded(after), Bound::Unbounded)).take(max);
        names.map(|(name, held)| (name.clone(), held.clone())).collect()
    }

    /// Adds the subscriptions loaded from the index database.
    pub(super) fn load(&mut self, names: Vec<(String, Subscription)>) {
        self.0.extend(names);
    }

    /// Applies a commit; returns the new state of each subscription that it changes.
    pub(super) fn apply(&mut self, commit: &Commit) -> Vec<(String, Option<Subscription>)> {
        let used_unix_ms = commit.time_unix_ms;
        let mut changed = Vec::new();
        for SubscriptionRecord { subscription, state } in &commit.subscriptions {
            let state = state.clone().map(|state| Subscription { used_unix_ms, ..state });
            match &state {
                Some(state) => _ = self.0.insert(subscription.clone(), state.clone()),
                None => _ = self.0.remove(subscription),
            }
            changed.push((subscription.clone(), state));
        }
        for CursorRecord { subscription, offset, held, epoch } in &commit.cursors {
            let before = self.0.get(subscription);
            if before.is_none() && *epoch != 0 {
                continue;
            }
            let (filter, created_unix_ms) =
                before.map(|before| (before.filter.clone(), before.created_unix_ms)).unwrap_or_default();
            let (offset, held, epoch) = (*offset, *held, *epoch);
            let state = Subscription { offset, held, filter, created_unix_ms, used_unix_ms, epoch };
            self.0.insert(subscription.clone(), state.clone());
            changed.push((subscription.clone(), Some(state)));
        }
        changed
    }
}
