//! Named subscriptions as the store records them.
//!
//! In scope: what stands under a name, and how commits change it. Out of scope: who may have which names, and when they expire (`api`).

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::Commit;

/// Entries that were looked at and could not be judged, since their roster had not come: they are delivered when it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// Offset of the first of them.
    pub from: u64,
    /// The newest roster version by which the entries from there on were judged: those that name a later one are held back.
    pub roster_version: u64,
}

/// What stands under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Offset up to which everything was acknowledged.
    pub offset: u64,
    /// What was held back before it.
    pub held: Option<HeldBack>,
    /// Encoded filter, for the API; `None`: recorded by a version that did not record filters.
    pub filter: Option<Bytes>,
    /// Unix ms; 0: recorded by a version that did not record it.
    pub created_unix_ms: u64,
    /// Unix ms of the commit that recorded it last.
    pub used_unix_ms: u64,
    /// Epoch of the node's own feed when it was recorded last; 0: recorded by a version that did not record it.
    pub epoch: u32,
}

/// How exactly it is recorded when a subscription was used: often enough for limits of days, and a reader that opens and closes streams
/// without progress costs no commits.
const USED_WITHIN_MS: u64 = 60 * 60 * 1_000;

impl Subscription {
    /// Whether a cursor says something that is not recorded: progress, another epoch, or that the subscription is still used.
    #[must_use]
    pub fn is_advanced_by(&self, cursor: &CursorRecord, now_unix_ms: u64) -> bool {
        let here = cursor.offset == self.offset;
        cursor.offset > self.offset
            || here && (cursor.held, cursor.epoch) != (self.held, self.epoch)
            || here && now_unix_ms.saturating_sub(self.used_unix_ms) >= USED_WITHIN_MS
    }
}

/// A name that is given, given anew, or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionRecord {
    /// Caller and name: `focal-point/customs-hq/alerts`.
    pub subscription: String,
    /// What stands under it from this commit on, used at the commit's time; `None`: nothing.
    pub state: Option<Subscription>,
}

/// Progress of a named subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CursorRecord {
    /// Caller and name.
    pub subscription: String,
    /// Offset up to which everything was taken.
    pub offset: u64,
    /// What was held back before it.
    pub held: Option<HeldBack>,
    /// See [`Subscription::epoch`]. A record of epoch 0 also gives the name where it is unknown, as earlier versions did.
    pub epoch: u32,
}

/// All names.
#[derive(Debug, Default)]
pub(super) struct Subscriptions(BTreeMap<String, Subscription>);

impl Subscriptions {
    /// What stands under a name.
    pub(super) fn get(&self, name: &str) -> Option<&Subscription> {
        self.0.get(name)
    }

    /// At most `max` names after `after`, ascending.
    pub(super) fn after(&self, after: &str, max: usize) -> Vec<(String, Subscription)> {
        let names = self.0.range::<str, _>((Bound::Excluded(after), Bound::Unbounded)).take(max);
        names.map(|(name, held)| (name.clone(), held.clone())).collect()
    }

    /// What was read of the view.
    pub(super) fn load(&mut self, names: Vec<(String, Subscription)>) {
        self.0.extend(names);
    }

    /// Applies a commit; returns what stands under each name that it changes.
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
