//! Rate limits: an amount per second for each owner, with a burst.
//!
//! In scope: token buckets by owner, bounded in number. Pure: time is an argument. Out of scope:
//! the rates themselves ([`super::table`]).

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Owner;

/// Owners with a bucket of their own: every certificate that a member's authority may have issued.
/// Full buckets are evicted first; their owners lose nothing.
const OWNERS_MAX: usize = 16_384;
/// Owner of the shared bucket for owners beyond [`OWNERS_MAX`].
const OTHERS: &str = "others";
/// Shortest retry delay that is returned.
const RETRY_MIN: Duration = Duration::from_millis(1);

/// Token buckets by owner.
#[derive(Default)]
pub struct RateLimiter {
    buckets: Mutex<HashMap<Owner, TokenBucket>>,
}

/// A rate: `per_second` in the long run, `burst` at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Amount per second in the long run.
    pub per_second: f64,
    /// Amount at once, after a pause.
    pub burst: f64,
}

impl RateLimiter {
    /// Takes `amount`, or returns the delay until it fits. An amount above the burst fits when the
    /// bucket is full.
    ///
    /// # Errors
    /// The delay after which a retry succeeds if nothing else is taken. Nothing is taken now.
    pub fn take(&self, owner: &Owner, rate: Rate, amount: f64, now: Instant) -> Result<(), Duration> {
        self.with(owner, rate, now, |bucket| bucket.take(rate, amount, now))
    }

    /// Takes `amount` even if less is left. Returns how long to wait before taking more.
    pub fn spend(&self, owner: &Owner, rate: Rate, amount: f64, now: Instant) -> Duration {
        self.with(owner, rate, now, |bucket| bucket.spend(rate, amount, now))
    }

    fn with<T>(&self, owner: &Owner, rate: Rate, now: Instant, act: impl FnOnce(&mut TokenBucket) -> T) -> T {
        let mut buckets = self.buckets.lock();
        if buckets.len() >= OWNERS_MAX && !buckets.contains_key(owner) {
            buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        // Owners beyond the limit share one bucket.
        let table_full = buckets.len() >= OWNERS_MAX && !buckets.contains_key(owner);
        let owner = if table_full { Owner::Address(OTHERS.into()) } else { owner.clone() };
        act(buckets.entry(owner).or_insert_with(|| TokenBucket::full(rate, now)))
    }
}

/// A token bucket of one owner.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    /// Tokens left. Negative after [`Self::spend`] of more.
    left: f64,
    at: Instant,
    rate: Rate,
}

impl TokenBucket {
    /// Creates a full bucket.
    #[must_use]
    pub fn full(rate: Rate, now: Instant) -> Self {
        Self { left: rate.burst, at: now, rate }
    }

    /// Takes `amount`, or returns the delay until it fits. An amount above the burst fits when the
    /// bucket is full.
    ///
    /// # Errors
    /// The delay after which a retry succeeds if nothing else is taken. Nothing is taken now.
    pub fn take(&mut self, rate: Rate, amount: f64, now: Instant) -> Result<(), Duration> {
        self.refill(rate, now);
        let needed = amount.min(rate.burst);
        // Tolerates rounding of fractional seconds.
        if self.left + 1e-6 < needed {
            return Err(delay(needed - self.left, rate.per_second));
        }
        self.left -= amount;
        Ok(())
    }

    /// Takes `amount` even if less is left. Returns how long to wait before taking more.
    pub fn spend(&mut self, rate: Rate, amount: f64, now: Instant) -> Duration {
        self.refill(rate, now);
        self.left -= amount;
        if self.left < 0.0 { delay(-self.left, rate.per_second) } else { Duration::ZERO }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = passed.mul_add(rate.per_second, self.left).min(rate.burst);
        self.at = self.at.max(now);
        self.rate = rate;
    }

    /// Returns whether the bucket is full, so that evicting it loses nothing.
    pub(crate) fn is_full(&self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        passed.mul_add(self.rate.per_second, self.left) >= self.rate.burst
    }
}

/// Returns how long it takes to refill the lacking amount.
fn delay(lacking: f64, per_second: f64) -> Duration {
    Duration::try_from_secs_f64(lacking / per_second).unwrap_or(Duration::MAX).max(RETRY_MIN)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEN: Rate = Rate { per_second: 10.0, burst: 20.0 };

    fn owner(name: &str) -> Owner {
        Owner::Identity(name.into())
    }

    #[test]
    fn rate_limiter_allows_a_burst_then_the_rate_per_owner() {
        let (limiter, begun) = (RateLimiter::default(), Instant::now());
        limiter.take(&owner("one"), TEN, 20.0, begun).unwrap();
        assert_eq!(limiter.take(&owner("one"), TEN, 1.0, begun), Err(Duration::from_millis(100)));
        limiter.take(&owner("two"), TEN, 1.0, begun).unwrap();
        limiter.take(&owner("one"), TEN, 1.0, begun + Duration::from_millis(100)).unwrap();
        assert!(limiter.take(&owner("one"), TEN, 1.0, begun + Duration::from_millis(100)).is_err());
    }

    #[test]
    fn charge_above_the_burst_delays_the_next_one() {
        let (limiter, begun) = (RateLimiter::default(), Instant::now());
        limiter.take(&owner("one"), TEN, 30.0, begun).unwrap();
        assert_eq!(limiter.take(&owner("one"), TEN, 1.0, begun), Err(Duration::from_millis(1_100)));
        assert_eq!(limiter.spend(&owner("two"), TEN, 50.0, begun), Duration::from_secs(3));
    }

    #[test]
    fn idle_owners_are_evicted_and_overspent_owners_are_not() {
        let (limiter, begun) = (RateLimiter::default(), Instant::now());
        limiter.spend(&owner("busy"), TEN, 1e9, begun);
        for n in 0..2 * OWNERS_MAX {
            limiter.take(&owner(&n.to_string()), TEN, 1.0, begun + Duration::from_millis(n as u64)).unwrap();
        }
        let buckets = limiter.buckets.lock();
        assert!(buckets.len() <= OWNERS_MAX + 1 && buckets.contains_key(&owner("busy")), "{}", buckets.len());
    }
}
