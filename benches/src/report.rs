//! What a run was like, for people and as JSON.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::Serialize;

use crate::{
    load::LoadOptions,
    target::{Answer, Failure},
};

/// The sum of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was asked for.
    #[serde(flatten)]
    pub options: LoadOptions,
    /// Requests that ended as they should.
    pub num_finished: usize,
    /// Failed requests by code.
    pub errors: BTreeMap<String, usize>,
    /// Tokens of a prompt as the server counts them, on average.
    pub prompt_tokens_mean: f64,
    /// Share of the prompts' tokens that the server had in its cache.
    pub cached_share: f64,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Tokens of all answers.
    pub output_tokens: u64,
    /// Tokens of all answers over the time of the run.
    pub output_tokens_per_s: f64,
    /// Time from the start of a request to its first token.
    pub ttft_ms: Milliseconds,
    /// Time between messages that carry tokens.
    pub inter_token_ms: Milliseconds,
}

/// Percentiles of times, by the nearest rank; 0 where nothing was measured. **Units**: milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Milliseconds {
    /// Half are not above this.
    pub p50: f64,
    /// 99 of 100 are not above this.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Report {
    pub(crate) fn new(options: &LoadOptions, results: &[Result<Answer, Failure>], time: Duration) -> Self {
        let answers: Vec<&Answer> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
        let mut errors = BTreeMap::new();
        for failure in results.iter().filter_map(|result| result.as_ref().err()) {
            *errors.entry(failure.code.clone()).or_default() += 1;
        }
        let sum = |of: fn(&Answer) -> u32| answers.iter().map(|answer| u64::from(of(answer))).sum::<u64>();
        let prompt_tokens = sum(|answer| answer.prompt_tokens) as f64;
        let output_tokens = sum(|answer| answer.generated_tokens);
        let seconds = time.as_secs_f64();
        Self {
            options: options.clone(),
            num_finished: answers.len(),
            errors,
            prompt_tokens_mean: prompt_tokens / answers.len().max(1) as f64,
            cached_share: sum(|answer| answer.cached_tokens) as f64 / prompt_tokens.max(1.0),
            seconds,
            output_tokens,
            output_tokens_per_s: output_tokens as f64 / seconds.max(f64::EPSILON),
            ttft_ms: Milliseconds::of(answers.iter().map(|answer| answer.first)),
            inter_token_ms: Milliseconds::of(answers.iter().flat_map(|answer| answer.gaps.iter().copied())),
        }
    }
}

impl Milliseconds {
    pub(crate) fn of(times: impl Iterator<Item = Duration>) -> Self {
        let mut times: Vec<Duration> = times.collect();
        times.sort_unstable();
        let at = |percent| percentile(&times, percent).as_secs_f64() * 1e3;
        Self { p50: at(50), p99: at(99), max: at(100) }
    }
}

/// Returns the smallest time that at least `percent` of 100 are not above; zero of none. `sorted` is sorted.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed: usize = self.errors.values().sum();
        let row = |f: &mut fmt::Formatter<'_>, name: &str, times: &Milliseconds| {
            let Milliseconds { p50, p99, max } = times;
            writeln!(f, "{name:<18} p50 {p50:>9.1} ms   p99 {p99:>9.1} ms   max {max:>9.1} ms")
        };
        writeln!(f, "{:<18} {} finished, {failed} failed", "requests", self.num_finished)?;
        for (code, count) in &self.errors {
            writeln!(f, "{:<18} {count} x {code}", "")?;
        }
        let share = self.cached_share * 100.0;
        writeln!(f, "{:<18} {:.1} tokens, {share:.1} % from the cache", "prompts", self.prompt_tokens_mean)?;
        let (tokens, seconds) = (self.output_tokens, self.seconds);
        writeln!(f, "{:<18} {tokens} tokens in {seconds:.2} s: {:.1} tokens/s", "output", self.output_tokens_per_s)?;
        row(f, "first token", &self.ttft_ms)?;
        row(f, "inter-token", &self.inter_token_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(milliseconds: &[u64]) -> Vec<Duration> {
        milliseconds.iter().copied().map(Duration::from_millis).collect()
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let hundred = times(&(1..=100).collect::<Vec<_>>());
        assert_eq!(percentile(&hundred, 50), Duration::from_millis(50));
        assert_eq!(percentile(&hundred, 99), Duration::from_millis(99));
        assert_eq!(percentile(&hundred, 100), Duration::from_millis(100));
        assert_eq!(percentile(&hundred, 0), Duration::from_millis(1));
        let four = times(&[1, 2, 3, 4]);
        assert_eq!(percentile(&four, 50), Duration::from_millis(2));
        assert_eq!(percentile(&four, 51), Duration::from_millis(3));
        assert_eq!(percentile(&four, 99), Duration::from_millis(4));
        assert_eq!(percentile(&times(&[7]), 50), Duration::from_millis(7));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }

    #[test]
    fn a_report_counts_answers_and_failures() {
        let answer = Answer {
            first: Duration::from_millis(10),
            gaps: times(&[1, 3]),
            generated_tokens: 3,
            prompt_tokens: 8,
            cached_tokens: 4,
        };
        let failure = Failure { code: "ResourceExhausted".to_owned(), message: String::new() };
        let results = [Ok(answer.clone()), Err(failure.clone()), Ok(answer), Err(failure)];
        let report = Report::new(&LoadOptions::default(), &results, Duration::from_secs(2));
        assert_eq!((report.num_finished, report.errors["ResourceExhausted"]), (2, 2));
        assert_eq!((report.output_tokens, report.output_tokens_per_s), (6, 3.0));
        assert_eq!((report.prompt_tokens_mean, report.cached_share), (8.0, 0.5));
        assert_eq!((report.ttft_ms.p50, report.inter_token_ms.p50, report.inter_token_ms.p99), (10.0, 1.0, 3.0));
        let text = report.to_string();
        assert!(text.contains("2 x ResourceExhausted") && text.contains("3.0 tokens/s"), "{text}");
    }
}
