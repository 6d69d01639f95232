//! The set of bulletins already shown, so that none is shown twice after a reset.
//!
//! In scope: entries by feed and index, compactly and in bounded memory. Out of scope: saving it
//! (`progress`).

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

/// Largest number of ranges: some megabytes at most. A reader of one working group among many has a
/// range for each gap. If there are more, those with the lowest indexes are forgotten: these
/// bulletins would be shown again after a reset, but none is left out.
const RANGES_MAX: usize = 65_536;
/// Number of newest entries whose digests are stored. For these, another digest at a known index is
/// a different bulletin: the member signed two, or an operator accepted another entry at the index
/// of a priority entry that was shown first.
const DIGESTS_MAX: usize = 16_384;

/// The set of entries that were shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Seen {
    /// By feed, from first index to one past the last; ranges neither overlap nor touch.
    feeds: BTreeMap<String, BTreeMap<u64, u64>>,
    #[serde(skip)]
    digests: Digests,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Digests {
    held: BTreeMap<(String, u64), Vec<u8>>,
    order: VecDeque<(String, u64)>,
}

impl Seen {
    /// Adds an entry; returns false if it was known.
    pub(super) fn insert(&mut self, feed: &str, index: u64, digest: &[u8]) -> bool {
        let known = self.contains(feed, index);
        let key = (feed.to_owned(), index);
        let another = self.digests.held.get(&key).is_some_and(|held| held != digest);
        if !known {
            self.add(feed, index);
        }
        if !known || another {
            self.remember(key, digest);
        }
        !known || another
    }

    fn contains(&self, feed: &str, index: u64) -> bool {
        let before = self.feeds.get(feed).and_then(|ranges| ranges.range(..=index).next_back());
        before.is_some_and(|(_, end)| index < *end)
    }

    fn add(&mut self, feed: &str, index: u64) {
        // Indexes are below 2^63.
        let (mut start, mut end) = (index, index.saturating_add(1));
        let ranges = self.feeds.entry(feed.to_owned()).or_default();
        if let Some((before, _)) = ranges.range(..index).next_back().filter(|(_, end)| **end == index) {
            start = *before;
        }
        if let Some(after) = ranges.remove(&end) {
            end = after;
        }
        ranges.insert(start, end);
        while self.ranges() > RANGES_MAX {
            let most = self.feeds.values_mut().max_by_key(|ranges| ranges.len());
            _ = most.and_then(BTreeMap::pop_first);
        }
    }

    fn ranges(&self) -> usize {
        self.feeds.values().map(BTreeMap::len).sum()
    }

    fn remember(&mut self, key: (String, u64), digest: &[u8]) {
        if self.digests.held.insert(key.clone(), digest.to_vec()).is_none() {
            self.digests.order.push_back(key);
        }
        while self.digests.order.len() > DIGESTS_MAX {
            if let Some(oldest) = self.digests.order.pop_front() {
                self.digests.held.remove(&oldest);
            }
        }
    }

    /// Returns whether parsed ranges have the form in which they are written.
    pub(super) fn is_well_formed(&self) -> bool {
        let fits = |ranges: &BTreeMap<u64, u64>| {
            let mut last = None;
            ranges.iter().all(|(start, end)| {
                let after = last.is_none_or(|last| last < *start);
                last = Some(*end);
                start < end && after
            })
        };
        self.feeds.values().all(fits) && self.ranges() <= RANGES_MAX
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn entry_is_new_once_in_any_order() {
        let (mut seen, mut model) = (Seen::default(), BTreeSet::new());
        let mut random = 7_u64;
        for _ in 0..5_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (feed, index) = (if random >> 60 == 0 { "ly" } else { "tn" }, random >> 33 & 511);
            assert_eq!(seen.insert(feed, index, &index.to_be_bytes()), model.insert((feed, index)), "{feed} {index}");
            assert!(seen.is_well_formed());
        }
        let text = serde_json::to_string(&seen).unwrap();
        let mut read: Seen = serde_json::from_str(&text).unwrap();
        assert!(read.is_well_formed());
        assert!(model.iter().all(|(feed, index)| !read.insert(feed, *index, &[])));
    }

    #[test]
    fn other_entry_at_seen_index_is_new() {
        let mut seen = Seen::default();
        assert!(seen.insert("tn", 4, &[1]) && !seen.insert("tn", 4, &[1]));
        assert!(seen.insert("tn", 4, &[2]) && !seen.insert("tn", 4, &[2]));
    }

    #[test]
    fn seen_set_is_bounded_and_evicted_entry_is_new() {
        let mut seen = Seen::default();
        for index in 0..=RANGES_MAX as u64 {
            assert!(seen.insert("tn", 2 * index, &[]));
        }
        assert_eq!((seen.ranges(), seen.digests.held.len()), (RANGES_MAX, DIGESTS_MAX));
        assert!(!seen.insert("tn", 2, &[]), "the second is remembered");
        assert!(seen.insert("tn", 0, &[]), "the first is not");
    }

    #[test]
    fn invalid_ranges_are_rejected() {
        for text in ["{\"tn\":{\"5\":5}}", "{\"tn\":{\"0\":4,\"4\":6}}", "{\"tn\":{\"0\":4,\"2\":6}}"] {
            assert!(!serde_json::from_str::<Seen>(text).unwrap().is_well_formed(), "{text}");
        }
    }
}
