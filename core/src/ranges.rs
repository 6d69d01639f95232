//! Sets of indexes as ranges: ascending, neither overlapping nor adjacent.
//!
//! In scope: adding a range, and finding the missing parts of one. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// End of each range by its start.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds the indexes of a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        while let Some((held_start, held_end)) = self.ranges.range(..=end).next_back().map(|(s, e)| (*s, *e))
            && held_end >= start
        {
            self.ranges.remove(&held_start);
            (start, end) = (start.min(held_start), end.max(held_end));
        }
        self.ranges.insert(start, end);
    }

    /// Returns the parts of `range` that are not in the set, ascending.
    #[must_use]
    pub fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut next = range.start;
        let before = self.ranges.range(..=range.start).next_back();
        let inside = self.ranges.range(range.start.saturating_add(1)..range.end.max(range.start.saturating_add(1)));
        for (start, end) in before.into_iter().chain(inside) {
            if *start > next {
                missing.push(next..*start);
            }
            next = next.max(*end);
        }
        if next < range.end {
            missing.push(next..range.end);
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn range_set_equals_the_set_of_its_indexes(
            added in proptest::collection::vec((0_u64..60, 0_u64..12), 0..20),
            queried in (0_u64..70, 0_u64..30),
        ) {
            let (mut set, mut indexes) = (RangeSet::default(), BTreeSet::new());
            for (start, len) in added {
                set.insert(start..start + len);
                indexes.extend(start..start + len);
            }
            let queried = queried.0..queried.0 + queried.1;
            let missing: Vec<u64> = set.missing(queried.clone()).into_iter().flatten().collect();
            prop_assert_eq!(missing, queried.filter(|index| !indexes.contains(index)).collect::<Vec<_>>());
            let touching = set.ranges.iter().zip(set.ranges.iter().skip(1)).any(|((_, end), (start, _))| end >= start);
            prop_assert!(!touching && set.ranges.iter().all(|(start, end)| start < end));
        }
    }
}
