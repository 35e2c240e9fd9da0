//! The sampler: turns the logits of one place into one token. Pure: the random number is an argument.
//!
//! Order: logit bias, end tokens forbidden, repetition, frequency and presence penalty, temperature, `min_p`, `top_k`,
//! `top_p`, draw. Equal logits are ordered by token id, so a result never depends on the sorting algorithm.

use std::collections::HashMap;

use bespoke_domain::{Sampling, TokenId};
use bespoke_model::argmax;

/// What the penalties need to know about a sequence.
#[derive(Default)]
pub(crate) struct History {
    /// How often the answer holds each token; 0 for tokens that only the prompt holds.
    counts: HashMap<TokenId, u32>,
    is_on: bool,
}

impl History {
    /// Starts with a prompt, with room for the answer. Where nothing is penalised, nothing is noted.
    pub(crate) fn of_prompt(params: &Sampling, prompt: &[TokenId], max_new_tokens: u32) -> Self {
        if !penalises(params) {
            return Self::default();
        }
        let mut counts = HashMap::with_capacity(prompt.len() + max_new_tokens as usize);
        counts.extend(prompt.iter().map(|&token| (token, 0)));
        Self { counts, is_on: true }
    }

    pub(crate) fn push(&mut self, token: TokenId) {
        if self.is_on {
            *self.counts.entry(token).or_default() += 1;
        }
    }
}

/// One place to sample.
pub(crate) struct Place<'a> {
    /// The logits of the model, (vocabulary).
    pub(crate) logits: &'a [f32],
    /// The tokens of the sequence, for the penalties.
    pub(crate) history: &'a History,
    /// Tokens that must not be taken here.
    pub(crate) forbidden: &'a [TokenId],
    /// A random number in [0, 1).
    pub(crate) uniform: f64,
}

/// The scratch space of sampling, reused from place to place.
#[derive(Default)]
pub(crate) struct Sampler {
    logits: Vec<f32>,
    candidates: Vec<(f32, TokenId)>,
}

/// How many candidates `top_p` sorts at first; it takes eight times as many while they do not hold enough probability.
const FIRST_SORTED: usize = 256;

impl Sampler {
    pub(crate) fn sample(&mut self, params: &Sampling, place: &Place<'_>) -> TokenId {
        if params.is_greedy() && !changes_logits(params) && place.forbidden.is_empty() {
            return argmax(place.logits) as TokenId;
        }
        self.logits.clear();
        self.logits.extend_from_slice(place.logits);
        change_logits(&mut self.logits, params, place);
        if params.is_greedy() {
            return argmax(&self.logits) as TokenId;
        }
        // The largest logit becomes 0 first, so that no temperature can make it overflow.
        let max = self.logits[argmax(&self.logits)];
        self.logits.iter_mut().for_each(|logit| *logit = (*logit - max) / params.temperature);
        self.draw(params, place.uniform)
    }

    fn draw(&mut self, params: &Sampling, uniform: f64) -> TokenId {
        let best = argmax(&self.logits);
        let (max, best) = (self.logits[best], best as TokenId);
        if !max.is_finite() {
            return best;
        }
        // `min_p` compares probabilities, whose common divisor cancels out: p / p_max = exp(logit - max).
        let floor = if params.min_p > 0.0 { max + params.min_p.ln() } else { f32::NEG_INFINITY };
        self.candidates.clear();
        let all = self.logits.iter().zip(0..).map(|(&logit, token)| (logit, token));
        self.candidates.extend(all.filter(|&(logit, _)| logit >= floor && logit > f32::NEG_INFINITY));
        if params.top_k > 0 && (params.top_k as usize) < self.candidates.len() {
            keep_top(&mut self.candidates, params.top_k as usize);
        }
        if params.top_p < 1.0 {
            let cut = nucleus(&mut self.candidates, max, f64::from(params.top_p));
            self.candidates.truncate(cut);
        }
        let total: f64 = self.candidates.iter().map(|&(logit, _)| weight(logit, max)).sum();
        let mut left = uniform * total;
        for &(logit, token) in &self.candidates {
            left -= weight(logit, max);
            if left < 0.0 {
                return token;
            }
        }
        // Rounding can leave a remainder; the last candidate has it.
        self.candidates.last().map_or(best, |&(_, token)| token)
    }
}

/// Returns the `count` most likely tokens with their logits, most likely first.
pub(crate) fn top(logits: &[f32], count: usize) -> Vec<(f32, TokenId)> {
    let mut candidates: Vec<_> = logits.iter().copied().zip(0..).filter(|(logit, _)| !logit.is_nan()).collect();
    keep_top(&mut candidates, count);
    candidates
}

fn changes_logits(params: &Sampling) -> bool {
    !params.logit_bias.is_empty() || penalises(params)
}

fn penalises(params: &Sampling) -> bool {
    params.repetition_penalty != 1.0 || params.frequency_penalty != 0.0 || params.presence_penalty != 0.0
}

fn change_logits(logits: &mut [f32], params: &Sampling, place: &Place<'_>) {
    for (&token, &bias) in &params.logit_bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    for &token in place.forbidden {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    for (&token, &count) in &place.history.counts {
        let Some(logit) = logits.get_mut(token as usize) else { continue };
        let penalty = params.repetition_penalty;
        *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        if count > 0 {
            *logit -= params.frequency_penalty * count as f32 + params.presence_penalty;
        }
    }
}

fn by_likelihood(a: &(f32, TokenId), b: &(f32, TokenId)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Keeps the `count` most likely candidates, sorted.
fn keep_top(candidates: &mut Vec<(f32, TokenId)>, count: usize) {
    if count == 0 {
        candidates.clear();
    } else if count < candidates.len() {
        candidates.select_nth_unstable_by(count - 1, by_likelihood);
        candidates.truncate(count);
    }
    candidates.sort_unstable_by(by_likelihood);
}

/// Sorts the most likely candidates to the front and returns how many of them hold the probability `top_p`, at least one.
fn nucleus(candidates: &mut [(f32, TokenId)], max: f32, top_p: f64) -> usize {
    let total: f64 = candidates.iter().map(|&(logit, _)| weight(logit, max)).sum();
    let (mut sorted, mut sum) = (0, 0.0);
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let count = (FIRST_SORTED.max(sorted * 7)).min(rest.len());
        if count < rest.len() {
            rest.select_nth_unstable_by(count - 1, by_likelihood);
        }
        rest[..count].sort_unstable_by(by_likelihood);
        for (index, &(logit, _)) in rest[..count].iter().enumerate() {
            sum += weight(logit, max);
            if sum >= top_p * total {
                return sorted + index + 1;
            }
        }
        sorted += count;
    }
    candidates.len()
}

fn weight(logit: f32, max: f32) -> f64 {
    f64::from(logit - max).exp()
}

#[cfg(test)]
mod tests {
    use bespoke_domain::SamplingParams;
    use proptest::prelude::*;

    use super::*;

    fn sample_at(params: SamplingParams, logits: &[f32], forbidden: &[TokenId], uniform: f64) -> TokenId {
        let params: Sampling = params.try_into().unwrap();
        let history = History::of_prompt(&params, &[], 8);
        let place = Place { logits, history: &history, forbidden, uniform };
        Sampler::default().sample(&params, &place)
    }

    /// Returns every token that some random number draws.
    fn reachable(params: &SamplingParams, logits: &[f32]) -> Vec<TokenId> {
        let mut tokens: Vec<_> =
            (0..1000).map(|i| sample_at(params.clone(), logits, &[], f64::from(i) / 1000.0)).collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 3.0, -4.0];

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let greedy = || SamplingParams { temperature: 0.0, ..Default::default() };
        assert_eq!(sample_at(greedy(), &LOGITS, &[], 0.9), 1);
        assert_eq!(sample_at(greedy(), &LOGITS, &[1], 0.9), 3);
        let bias = SamplingParams { logit_bias: [(4, 50.0)].into(), ..greedy() };
        assert_eq!(sample_at(bias, &LOGITS, &[], 0.9), 4);
    }

    #[test]
    fn a_tiny_temperature_is_greedy() {
        for temperature in [1e-45, 1e-38, 1e-20, 1e-6] {
            let params = SamplingParams { temperature, top_p: 0.9, ..Default::default() };
            assert_eq!(reachable(&params, &[1.0, 3.0, 2.0]), [1], "{temperature}");
        }
    }

    #[test]
    fn each_filter_keeps_what_it_says() {
        let base = SamplingParams::default();
        assert_eq!(reachable(&SamplingParams { top_k: 1, ..base.clone() }, &LOGITS), [1]);
        assert_eq!(reachable(&SamplingParams { top_k: 2, ..base.clone() }, &LOGITS), [1, 3]);
        assert_eq!(reachable(&SamplingParams { top_p: 0.3, ..base.clone() }, &LOGITS), [1]);
        assert_eq!(reachable(&SamplingParams { top_p: 0.75, ..base.clone() }, &LOGITS), [1, 3]);
        assert_eq!(reachable(&SamplingParams { min_p: 0.3, ..base.clone() }, &LOGITS), [1, 2, 3]);
        assert_eq!(reachable(&base, &LOGITS), [0, 1, 2, 3]);
    }

    #[test]
    fn penalties_count_prompt_and_answer_as_stated() {
        let greedy = |change: fn(&mut SamplingParams)| {
            let mut params = SamplingParams { temperature: 0.0, ..Default::default() };
            change(&mut params);
            let params: Sampling = params.try_into().unwrap();
            let mut history = History::of_prompt(&params, &[1], 2);
            history.push(3);
            history.push(3);
            let place = Place { logits: &LOGITS, history: &history, forbidden: &[], uniform: 0.0 };
            Sampler::default().sample(&params, &place)
        };
        assert_eq!(greedy(|p| p.repetition_penalty = 2.0), 2);
        assert_eq!(greedy(|p| p.frequency_penalty = 0.1), 1);
        assert_eq!(greedy(|p| p.presence_penalty = -0.1), 3);
    }

    #[test]
    fn the_draw_follows_the_probabilities() {
        let logits = [0.0, (3.0f32).ln()];
        let threes =
            (0..1000).filter(|i| sample_at(SamplingParams::default(), &logits, &[], f64::from(*i) / 1000.0) == 1);
        assert_eq!(threes.count(), 750);
    }

    #[test]
    fn logits_without_a_finite_one_do_no_harm() {
        assert_eq!(sample_at(SamplingParams::default(), &[f32::NAN; 3], &[], 0.5), 0);
        assert_eq!(sample_at(SamplingParams::default(), &[f32::NEG_INFINITY; 3], &[], 0.5), 0);
    }

    proptest! {
        #[test]
        fn the_nucleus_equals_a_full_sort(logits in prop::collection::vec(-5.0f32..5.0, 1..3000), top_p in 0.01f64..1.0) {
            let mut candidates: Vec<_> = logits.iter().copied().zip(0..).collect();
            let mut sorted = candidates.clone();
            sorted.sort_unstable_by(by_likelihood);
            let cut = nucleus(&mut candidates, 5.0, top_p);
            let whole = sorted.len();
            let total: f64 = candidates.iter().map(|&(logit, _)| weight(logit, 5.0)).sum();
            prop_assert_eq!(&candidates[..cut], &sorted[..cut]);
            let mass = |n: usize| sorted[..n].iter().map(|&(logit, _)| weight(logit, 5.0)).sum::<f64>();
            prop_assert!(mass(cut) >= top_p * total || cut == whole);
            prop_assert!(cut == 1 || mass(cut - 1) < top_p * total);
        }
    }
}
