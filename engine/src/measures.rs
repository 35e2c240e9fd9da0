//! How long things take and how much is done: counters that the engine's thread adds to without a lock.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The upper ends of buckets for times of requests, in microseconds: 1 ms to 2 minutes, each about twice the last.
const REQUEST_BOUNDS_US: [u64; 18] = [
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    20_000_000,
    30_000_000,
    45_000_000,
    60_000_000,
    120_000_000,
];
/// The same for steps and gaps between tokens: 0.25 ms to 10 s.
const STEP_BOUNDS_US: [u64; 18] = [
    250, 500, 1_000, 2_500, 5_000, 7_500, 10_000, 15_000, 25_000, 50_000, 75_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// What an engine has measured since it was built.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measures {
    /// From the arrival of a request to its admission.
    pub queue: Distribution,
    /// From the arrival of a request to its first token.
    pub first_token: Distribution,
    /// Between the tokens of a sequence; not while its reader is slow.
    pub next_token: Distribution,
    /// A step: forward pass, sampling and delivery.
    pub step: Distribution,
    /// Tokens that went through the model, with those that were drafted or computed again.
    pub step_tokens: u64,
    /// Tokens of answers, counted as they are generated.
    pub generated_tokens: u64,
}

/// How many times fell into which bucket.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// The upper end of each bucket and the times in it alone, without those in smaller ones; the last end is infinite.
    pub buckets: Vec<(f64, u64)>,
    /// The sum of the times. **Units**: seconds.
    pub sum_s: f64,
}

impl Distribution {
    /// Returns the number of times.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

/// The counters behind [`Measures`].
#[derive(Debug)]
pub(crate) struct Meters {
    pub(crate) queue: Histogram,
    pub(crate) first_token: Histogram,
    pub(crate) next_token: Histogram,
    pub(crate) step: Histogram,
    pub(crate) step_tokens: AtomicU64,
    pub(crate) generated_tokens: AtomicU64,
}

impl Default for Meters {
    fn default() -> Self {
        Self {
            queue: Histogram::new(&REQUEST_BOUNDS_US),
            first_token: Histogram::new(&REQUEST_BOUNDS_US),
            next_token: Histogram::new(&STEP_BOUNDS_US),
            step: Histogram::new(&STEP_BOUNDS_US),
            step_tokens: AtomicU64::new(0),
            generated_tokens: AtomicU64::new(0),
        }
    }
}

impl Meters {
    pub(crate) fn read(&self) -> Measures {
        Measures {
            queue: self.queue.read(),
            first_token: self.first_token.read(),
            next_token: self.next_token.read(),
            step: self.step.read(),
            step_tokens: self.step_tokens.load(Ordering::Relaxed),
            generated_tokens: self.generated_tokens.load(Ordering::Relaxed),
        }
    }
}

/// Counts times by buckets.
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds_us: &'static [u64],
    /// One more than there are bounds.
    counts: Vec<AtomicU64>,
    sum_us: AtomicU64,
}

impl Histogram {
    fn new(bounds_us: &'static [u64]) -> Self {
        let counts = (0..=bounds_us.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds_us, counts, sum_us: AtomicU64::new(0) }
    }

    pub(crate) fn note(&self, time: Duration) {
        self.note_many(time, 1);
    }

    /// Notes a time so many times.
    pub(crate) fn note_many(&self, time: Duration, count: u64) {
        let time_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = self.bounds_us.partition_point(|&bound| bound < time_us);
        self.counts[bucket].fetch_add(count, Ordering::Relaxed);
        self.sum_us.fetch_add(time_us.saturating_mul(count), Ordering::Relaxed);
    }

    /// Reads while others may note: a time may be in its bucket and not yet in the sum.
    fn read(&self) -> Distribution {
        let bounds = self.bounds_us.iter().map(|&bound| bound as f64 / 1e6).chain([f64::INFINITY]);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        Distribution { buckets: bounds.zip(counts).collect(), sum_s: self.sum_us.load(Ordering::Relaxed) as f64 / 1e6 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_falls_into_the_bucket_whose_end_it_does_not_pass() {
        let histogram = Histogram::new(&[10, 20]);
        for time_us in [0, 10, 11, 20, 21, 1_000_000] {
            histogram.note(Duration::from_micros(time_us));
        }
        histogram.note_many(Duration::from_micros(5), 3);
        let read = histogram.read();
        assert_eq!(read.buckets, [(10e-6, 5), (20e-6, 2), (f64::INFINITY, 2)]);
        assert_eq!(read.count(), 9);
        assert!((read.sum_s - 1.000_077).abs() < 1e-9);
    }

    #[test]
    fn bounds_rise() {
        for bounds in [REQUEST_BOUNDS_US, STEP_BOUNDS_US] {
            assert!(bounds.is_sorted_by(|a, b| a < b));
        }
    }
}
