//! Seeded random numbers, so that every server gets the same prompts at the same times.

/// A generator of random numbers. **Source**: SplitMix64 of Steele, Lea and Flood (OOPSLA 2014).
pub(crate) struct Random(u64);

impl Random {
    /// Starts a stream; streams of one seed with different numbers are independent.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        Self(seed ^ stream.wrapping_mul(0xD6E8_FEB8_6659_FD93))
    }

    /// Returns 64 random bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// Returns the time to the next of events that come independently of each other, on average `rate` of them a second.
    ///
    /// **Units**: seconds.
    pub(crate) fn exponential(&mut self, rate: f64) -> f64 {
        // 53 bits fill a double's mantissa; the number is below 1, so the logarithm is finite.
        let uniform = (self.bits() >> 11) as f64 / (1u64 << 53) as f64;
        -(1.0 - uniform).ln() / rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ() {
        let draw = |seed, stream| Random::new(seed, stream).bits();
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
    }

    #[test]
    fn gaps_have_the_mean_of_their_rate() {
        let mut random = Random::new(5, 0);
        let total: f64 = (0..10_000).map(|_| random.exponential(4.0)).sum();
        assert!((total / 10_000.0 - 0.25).abs() < 0.01);
    }
}
