//! Rates: so much of something a second for each owner, a burst at once.
//!
//! In scope: token buckets by owner, bounded in number. Pure: time comes in. Out of scope: which rates there are ([`super::table`]).

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Owner;

/// Owners that are told apart: every certificate that a member's authority may have given out. Those whose bucket is full are forgotten
/// first, and lose nothing by it.
const OWNERS_MAX: usize = 16_384;
/// Whom those are charged to that are too many to tell apart.
const OTHERS: &str = "others";
/// Shortest delay before a retry that is reported.
const RETRY_MIN: Duration = Duration::from_millis(1);

/// Token buckets by owner.
#[derive(Default)]
pub struct RateLimiter {
    buckets: Mutex<HashMap<Owner, TokenBucket>>,
}

/// A rate: `per_second` in the long run, `burst` at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// In the long run.
    pub per_second: f64,
    /// At once, after a pause.
    pub burst: f64,
}

impl RateLimiter {
    /// Takes `amount`, or returns after how long it fits. More than the burst fits when the bucket is full.
    ///
    /// # Errors
    /// The time after which a retry succeeds if nothing else is taken; nothing is taken then.
    pub fn take(&self, owner: &Owner, rate: Rate, amount: f64, now: Instant) -> Result<(), Duration> {
        self.with(owner, rate, now, |bucket| bucket.take(rate, amount, now))
    }

    /// Takes `amount` whatever is left; returns how long to wait before more is taken.
    pub fn spend(&self, owner: &Owner, rate: Rate, amount: f64, now: Instant) -> Duration {
        self.with(owner, rate, now, |bucket| bucket.spend(rate, amount, now))
    }

    fn with<T>(&self, owner: &Owner, rate: Rate, now: Instant, act: impl FnOnce(&mut TokenBucket) -> T) -> T {
        let mut buckets = self.buckets.lock();
        if buckets.len() >= OWNERS_MAX && !buckets.contains_key(owner) {
            buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        // Owners that are too many to tell apart share one bucket.
        let table_full = buckets.len() >= OWNERS_MAX && !buckets.contains_key(owner);
        let owner = if table_full { Owner::Address(OTHERS.into()) } else { owner.clone() };
        act(buckets.entry(owner).or_insert_with(|| TokenBucket::full(rate, now)))
    }
}

/// A token bucket of one owner.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    /// What is left; below zero after [`Self::spend`].
    left: f64,
    at: Instant,
    rate: Rate,
}

impl TokenBucket {
    /// With a burst in it.
    #[must_use]
    pub fn full(rate: Rate, now: Instant) -> Self {
        Self { left: rate.burst, at: now, rate }
    }

    /// Takes `amount`, or returns after how long it fits. More than the burst fits when the bucket is full.
    ///
    /// # Errors
    /// The time after which a retry succeeds if nothing else is taken; nothing is taken then.
    pub fn take(&mut self, rate: Rate, amount: f64, now: Instant) -> Result<(), Duration> {
        self.refill(rate, now);
        let needed = amount.min(rate.burst);
        // Time as a fraction is never quite a whole one.
        if self.left + 1e-6 < needed {
            return Err(delay(needed - self.left, rate.per_second));
        }
        self.left -= amount;
        Ok(())
    }

    /// Takes `amount` whatever is left; returns how long to wait before more is taken.
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

    /// Whether nothing is lost if it is forgotten.
    pub(crate) fn is_full(&self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        passed.mul_add(self.rate.per_second, self.left) >= self.rate.burst
    }
}

/// How long it takes until so much has flowed in.
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
