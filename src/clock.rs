//! The time of day by this machine's clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Since 1970-01-01; zero by a clock that is set before.
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Seconds since 1970-01-01 UTC.
#[must_use]
pub fn unix_seconds() -> u64 {
    since_epoch().as_secs()
}

/// Milliseconds since 1970-01-01 UTC.
#[must_use]
pub fn unix_ms() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}
