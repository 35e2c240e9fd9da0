//! How fast prompts are computed, so that no step keeps others waiting for long.

use std::time::Duration;

/// The longest that a step beside others should take: so long may their next tokens, a cancel or a deadline wait for it.
const STEP_TIME: Duration = Duration::from_millis(400);
/// The tokens of a step where no rate is known yet.
const TOKENS_UNKNOWN: usize = 256;
/// The tokens of a step that are always worth it: with fewer, most of the time goes to decoding the weights.
const TOKENS_MIN: usize = 64;

/// The rate at which steps compute the tokens of prompts, as far as it is known.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    tokens_per_s: Option<f64>,
}

impl Pace {
    /// Notes that a step with so many tokens of prompts took so long. The latest step counts as much as all before it; those with few
    /// tokens tell nothing about larger ones.
    pub(crate) fn note(&mut self, tokens: usize, took: Duration) {
        if tokens >= TOKENS_MIN && !took.is_zero() {
            let rate = tokens as f64 / took.as_secs_f64();
            self.tokens_per_s = Some(self.tokens_per_s.map_or(rate, |before| f64::midpoint(before, rate)));
        }
    }

    /// The most tokens of prompts in the next step.
    pub(crate) fn prompt_tokens(&self) -> usize {
        match self.tokens_per_s {
            None => TOKENS_UNKNOWN,
            Some(rate) => ((rate * STEP_TIME.as_secs_f64()) as usize).max(TOKENS_MIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_takes_what_fits_its_time_and_no_less_than_is_worth_it() {
        let mut pace = Pace::default();
        assert_eq!(pace.prompt_tokens(), 256, "nothing is known yet");
        pace.note(200, Duration::from_millis(50));
        assert_eq!(pace.prompt_tokens(), 1600);
        pace.note(1600, Duration::from_millis(800));
        assert_eq!(pace.prompt_tokens(), 1200, "the mean of 4,000 and 2,000 a second");
        pace.note(16, Duration::from_millis(25));
        pace.note(500, Duration::ZERO);
        assert_eq!(pace.prompt_tokens(), 1200, "small steps tell nothing");
        (0..20).for_each(|_| pace.note(64, Duration::from_secs(3)));
        assert_eq!(pace.prompt_tokens(), 64);
    }
}
