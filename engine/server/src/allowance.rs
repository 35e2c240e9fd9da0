//! An allowance of tokens a minute, as a bucket that refills steadily. Pure: time is an argument.

use std::time::{Duration, Instant};

/// What one caller may still spend. It may be overdrawn: what a request costs is known only while it runs.
#[derive(Debug)]
pub(crate) struct Allowance {
    per_minute: f64,
    left: f64,
    at: Instant,
}

impl Allowance {
    /// Starts with the tokens of a minute.
    pub(crate) fn new(per_minute: u32, now: Instant) -> Self {
        Self { per_minute: f64::from(per_minute), left: f64::from(per_minute), at: now }
    }

    /// Whether there is something left.
    ///
    /// **Errors**: the time until there is.
    pub(crate) fn check(&self, now: Instant) -> Result<(), Duration> {
        let left = self.left_at(now);
        if left > 0.0 {
            return Ok(());
        }
        // One token more than nothing.
        Err(Duration::from_secs_f64((1.0 - left) * 60.0 / self.per_minute))
    }

    /// Takes tokens out.
    pub(crate) fn spend(&mut self, num_tokens: u64, now: Instant) {
        self.left = self.left_at(now) - num_tokens as f64;
        self.at = self.at.max(now);
    }

    /// An instant is monotonic: a clock of the wall that is set changes nothing. One before the last counts as the last.
    fn left_at(&self, now: Instant) -> f64 {
        let minutes = now.saturating_duration_since(self.at).as_secs_f64() / 60.0;
        (self.left + minutes * self.per_minute).min(self.per_minute)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_refills_steadily_and_no_further_than_a_minute() {
        let start = Instant::now();
        let mut allowance = Allowance::new(60, start);
        allowance.spend(60, start);
        assert_eq!(allowance.check(start), Err(Duration::from_secs(1)));
        assert_eq!(allowance.check(start + Duration::from_millis(1500)), Ok(()));
        allowance.spend(30, start);
        assert_eq!(allowance.check(start + Duration::from_secs(30)), Err(Duration::from_secs(1)));
        let hour = start + Duration::from_secs(3600);
        allowance.spend(60, hour);
        assert!(allowance.check(hour).is_err(), "an idle hour saves no more than a minute's tokens");
    }

    #[test]
    fn a_clock_that_goes_back_gives_and_takes_nothing() {
        let start = Instant::now();
        let later = start + Duration::from_secs(10);
        let mut allowance = Allowance::new(60, start);
        allowance.spend(100, later);
        let wait = allowance.check(later);
        assert_eq!(allowance.check(start), wait);
        allowance.spend(0, start);
        assert_eq!(allowance.check(later), wait);
    }

    proptest! {
        #[test]
        fn waiting_as_told_is_enough(per_minute in 1_u32..100_000, spent in 0_u64..10_000_000) {
            let now = Instant::now();
            let mut allowance = Allowance::new(per_minute, now);
            allowance.spend(spent, now);
            if let Err(wait) = allowance.check(now) {
                prop_assert!(allowance.check(now + wait + Duration::from_nanos(1)).is_ok());
            }
        }
    }
}
