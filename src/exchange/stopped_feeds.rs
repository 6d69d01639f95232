//! The feeds that are not followed, because one key signed two trees, until an operator decides.
//!
//! In scope: the set of stopped feeds, the alarm of each, and the evidence that an operator has
//! decided about. Out of scope: detecting and proving equivocation (`equivocation`).

use std::collections::BTreeMap;

use barid_core::follow::{EquivocationClaims, ResolvedForks};
use barid_core::ids::{FeedId, Member};
use parking_lot::Mutex;

use crate::store::{ForkRecord, Store};
use crate::telemetry::alarms::{Alarm, Alarms};

/// Stopped feeds and decisions: at most as many as the roster has feeds.
pub struct StoppedFeeds {
    table: Mutex<ForkTable>,
    alarms: Alarms,
}

#[derive(Default)]
struct ForkTable {
    /// With a description of the evidence.
    stopped: BTreeMap<FeedId, String>,
    /// Trees and entries of the evidence that an operator has decided about.
    decided: BTreeMap<FeedId, ResolvedForks>,
}

impl StoppedFeeds {
    /// Restores the state from the store.
    pub(crate) fn restore(store: &dyn Store, alarms: Alarms) -> Self {
        let feeds = Self { table: Mutex::default(), alarms };
        // Read errors are ignored here; other code reports them.
        let (decided, open): (Vec<_>, Vec<_>) =
            store.forks().unwrap_or_default().into_iter().partition(|fork| fork.resumed);
        for fork in decided {
            feeds.resume(&fork.feed.clone(), &[fork]);
        }
        for fork in open {
            let why = EquivocationClaims::read(&fork.evidence)
                .map_or_else(|error| error.to_string(), |claims| claims.to_string());
            feeds.stop(&fork.feed, &why, None);
        }
        feeds
    }

    /// Returns the stopped feeds, each with a description of the evidence.
    #[must_use]
    pub fn all(&self) -> BTreeMap<FeedId, String> {
        self.table.lock().stopped.clone()
    }

    /// Whether a feed is stopped.
    #[must_use]
    pub fn contains(&self, feed: &FeedId) -> bool {
        self.table.lock().stopped.contains_key(feed)
    }

    /// Stops `feed` because of an equivocation that `by` sent, until an operator decides. Returns
    /// false if it is stopped already.
    pub(crate) fn stop(&self, feed: &FeedId, why: &str, by: Option<&Member>) -> bool {
        let mut table = self.table.lock();
        if table.stopped.contains_key(feed) {
            return false;
        }
        table.stopped.insert(feed.clone(), why.to_owned());
        self.alarms.raise(Alarm::Fork { feed: feed.clone(), why: why.to_owned(), by: by.cloned() });
        true
    }

    /// Records an operator's decision to follow `feed` from the copy held here, knowing this
    /// evidence.
    pub(crate) fn resume(&self, feed: &FeedId, known: &[ForkRecord]) {
        let mut table = self.table.lock();
        let decided = table.decided.entry(feed.clone()).or_default();
        // It was verified when it was persisted.
        known
            .iter()
            .filter_map(|fork| EquivocationClaims::read(&fork.evidence).ok())
            .for_each(|claims| decided.add_evidence(&claims));
        table.stopped.remove(feed);
        self.alarms.clear(|alarm| matches!(alarm, Alarm::Fork { feed: stopped, .. } if stopped == feed));
    }

    /// Returns the evidence on `feed` that an operator has decided about.
    pub(crate) fn decided(&self, feed: &FeedId) -> ResolvedForks {
        self.table.lock().decided.get(feed).cloned().unwrap_or_default()
    }
}
