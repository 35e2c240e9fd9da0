//! Limits of a provider: requests and tokens a minute, as token buckets whose clock is an argument, and the way to wait for
//! them.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A bucket that holds a minute's allowance and fills evenly.
#[derive(Clone, Debug)]
struct Bucket {
    per_minute: f64,
    level: f64,
    /// When `level` was true.
    at: Duration,
}

impl Bucket {
    fn new(per_minute: u64) -> Self {
        let per_minute = per_minute.max(1) as f64;
        Self { per_minute, level: per_minute, at: Duration::ZERO }
    }

    /// Takes an amount and returns how long to wait first. What is larger than the bucket waits for a full one.
    fn take(&mut self, now: Duration, amount: f64) -> Duration {
        let filled = now.saturating_sub(self.at).as_secs_f64() * self.per_minute / 60.0;
        self.level = (self.level + filled).min(self.per_minute);
        self.at = now;
        self.level -= amount.min(self.per_minute);
        // A negative level is a debt to those who wait: who comes next waits longer.
        Duration::from_secs_f64((-self.level).max(0.0) * 60.0 / self.per_minute)
    }
}

/// Both limits of a provider.
#[derive(Debug)]
pub(crate) struct Limits {
    start: Instant,
    requests: Option<Mutex<Bucket>>,
    tokens: Option<Mutex<Bucket>>,
}

impl Limits {
    pub(crate) fn new(requests_per_minute: Option<u64>, tokens_per_minute: Option<u64>) -> Self {
        let bucket = |limit: Option<u64>| limit.map(|limit| Mutex::new(Bucket::new(limit)));
        Self { start: Instant::now(), requests: bucket(requests_per_minute), tokens: bucket(tokens_per_minute) }
    }

    /// Waits until one more request with so many tokens is within the limits.
    pub(crate) async fn wait(&self, num_tokens: u64) {
        let now = self.start.elapsed();
        let take = |bucket: &Option<Mutex<Bucket>>, amount| match bucket {
            Some(bucket) => bucket.lock().unwrap_or_else(PoisonError::into_inner).take(now, amount),
            None => Duration::ZERO,
        };
        let wait = take(&self.requests, 1.0).max(take(&self.tokens, num_tokens as f64));
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_rate_and_no_more() {
        let mut bucket = Bucket::new(60);
        let waits: Vec<u64> = (0..63).map(|_| bucket.take(Duration::ZERO, 1.0).as_secs()).collect();
        assert_eq!(waits[..60], [0; 60]);
        assert_eq!(waits[60..], [1, 2, 3]);
        // After a minute the debt of 3 is paid and 57 are there.
        assert_eq!(bucket.take(Duration::from_secs(60), 57.0), Duration::ZERO);
        assert_eq!(bucket.take(Duration::from_secs(60), 1.0), Duration::from_secs(1));
    }

    #[test]
    fn what_is_larger_than_the_bucket_waits_for_a_full_one() {
        let mut bucket = Bucket::new(60);
        assert_eq!(bucket.take(Duration::ZERO, 1000.0), Duration::ZERO);
        assert_eq!(bucket.take(Duration::ZERO, 1000.0), Duration::from_secs(60));
    }
}
