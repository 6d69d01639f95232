//! Statistics, and process measurements from the kernel.

use rustix::param::clock_ticks_per_second;

use crate::store::bench::status_mib;

/// Returns the median: the middle value, or the upper of the two middle values.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Returns the user and system CPU time of a process in seconds (proc(5), fields 14 and 15 of
/// stat), or 0 if it cannot be read.
pub(super) fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|text| text.parse::<u64>().ok()).sum();
    ticks as f64 / clock_ticks_per_second() as f64
}

/// Returns the resident memory of a process in MiB, or 0 if it cannot be read.
pub(super) fn resident_mib(pid: u32) -> f64 {
    status_mib(pid, "VmRSS:")
}

/// Returns the peak resident memory of a process in MiB, or 0 if it cannot be read.
pub(super) fn resident_peak_mib(pid: u32) -> f64 {
    status_mib(pid, "VmHWM:")
}

/// Returns the bytes that crossed the loopback interface, TCP and IP headers included, or 0 if they
/// cannot be read.
pub(super) fn loopback_bytes() -> u64 {
    let devices = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let line = devices.lines().find_map(|line| line.trim_start().strip_prefix("lo:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::bench::percentile;

    #[test]
    fn percentiles_are_observed_values() {
        let mut times: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut times, 50), Duration::from_millis(50));
        assert_eq!(percentile(&mut times, 99), Duration::from_millis(99));
        assert_eq!(percentile(&mut [], 99), Duration::ZERO);
        assert!((median(&mut [3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
    }

    #[test]
    fn resident_memory_is_nonzero() {
        // In this order, because other tests of the process allocate memory meanwhile.
        let now = resident_mib(std::process::id());
        assert!(now > 1.0 && resident_peak_mib(std::process::id()) >= now);
    }
}
