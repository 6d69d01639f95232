//! Feeds that are not followed, since one key signed two trees of them, until an operator decides.
//!
//! In scope: which they are, the alarm of each, and what an operator knew when deciding. Out of scope: finding and proving it (`equivocation`).

use std::collections::BTreeMap;

use barid_core::follow::{EquivocationClaims, ResolvedForks};
use barid_core::ids::{FeedId, Member};
use parking_lot::Mutex;

use crate::store::{ForkRecord, Store};
use crate::telemetry::alarms::{Alarm, Alarms};

/// The feeds, and the decisions: as many as the roster has feeds.
pub struct StoppedFeeds {
    table: Mutex<ForkTable>,
    alarms: Alarms,
}

#[derive(Default)]
struct ForkTable {
    /// With what was seen.
    stopped: BTreeMap<FeedId, String>,
    /// What evidence of two trees showed that an operator has decided about.
    decided: BTreeMap<FeedId, ResolvedForks>,
}

impl StoppedFeeds {
    /// As the store remembers.
    pub(crate) fn restore(store: &dyn Store, alarms: Alarms) -> Self {
        let feeds = Self { table: Mutex::default(), alarms };
        // A store that cannot be read says so to whoever needs it.
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

    /// Those that are not followed, with what was seen.
    #[must_use]
    pub fn all(&self) -> BTreeMap<FeedId, String> {
        self.table.lock().stopped.clone()
    }

    /// Whether a feed is not followed.
    #[must_use]
    pub fn contains(&self, feed: &FeedId) -> bool {
        self.table.lock().stopped.contains_key(feed)
    }

    /// Two trees of `feed` were seen, shown by this member: it is not followed until an operator decides. False if that was known.
    pub(crate) fn stop(&self, feed: &FeedId, why: &str, by: Option<&Member>) -> bool {
        let mut table = self.table.lock();
        if table.stopped.contains_key(feed) {
            return false;
        }
        table.stopped.insert(feed.clone(), why.to_owned());
        self.alarms.raise(Alarm::Fork { feed: feed.clone(), why: why.to_owned(), by: by.cloned() });
        true
    }

    /// An operator has decided that `feed` is followed as it is held here, knowing this evidence.
    pub(crate) fn resume(&self, feed: &FeedId, known: &[ForkRecord]) {
        let mut table = self.table.lock();
        let decided = table.decided.entry(feed.clone()).or_default();
        // It was verified when it was kept.
        known
            .iter()
            .filter_map(|fork| EquivocationClaims::read(&fork.evidence).ok())
            .for_each(|claims| decided.add_evidence(&claims));
        table.stopped.remove(feed);
        self.alarms.clear(|alarm| matches!(alarm, Alarm::Fork { feed: stopped, .. } if stopped == feed));
    }

    /// What was known of `feed` when an operator last decided about it.
    pub(crate) fn decided(&self, feed: &FeedId) -> ResolvedForks {
        self.table.lock().decided.get(feed).cloned().unwrap_or_default()
    }
}
