//! Histogram of the sync durations of the commit log.
//!
//! In scope: counting durations into fixed buckets. Out of scope: exporting them as metrics
//! (`app::metrics`).

use std::time::Duration;

/// Upper bounds of the buckets in microseconds, from a disk with a power-loss-protected cache to a
/// failing one.
pub const FSYNC_BOUNDS_MICROS: [u64; 14] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000];

/// Durations of syncs since the store was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsyncHistogram {
    /// Syncs per bucket: those that took longer than the bound before and at most the bound at the
    /// same place. The last bucket is above all bounds.
    pub counts: [u64; FSYNC_BOUNDS_MICROS.len() + 1],
    /// Sum of all durations, in microseconds.
    pub sum_micros: u64,
}

impl FsyncHistogram {
    pub(super) fn add(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let place = FSYNC_BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
        }
        self.sum_micros = self.sum_micros.saturating_add(micros);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_counts_in_first_bucket_that_holds_it() {
        let mut times = FsyncHistogram::default();
        for micros in [0, 100, 101, 2_500_000, 2_500_001] {
            times.add(Duration::from_micros(micros));
        }
        assert_eq!((times.counts[0], times.counts[1], times.counts[13], times.counts[14]), (2, 1, 1, 1));
        assert_eq!(times.sum_micros, 5_000_202);
    }
}
