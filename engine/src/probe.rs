//! What the criterion benches reach of the inner parts: the scheduler and the sampler alone. Nothing else uses it.

use bespoke_domain::{Sampling, TokenId};

use crate::{
    block_pool::{BLOCK_TOKENS, Prefix},
    sampler::{History, Place, Sampler},
    scheduler::{Budget, Needs, PROMPT_TOKENS_MIN, Plan, Scheduler, SequenceKey},
};

/// A scheduler whose sequences have had their prompts and decode.
pub struct SchedulerProbe {
    scheduler: Scheduler,
    plan: Plan,
}

/// The tokens of a step, beside those of the sequences that decode.
const STEP_TOKENS: usize = 256;

impl SchedulerProbe {
    /// Takes in so many sequences with room for `new_tokens` each, and plans until all of them decode.
    pub fn decoding(num_sequences: usize, prompt_tokens: usize, new_tokens: usize) -> Self {
        // The first ones write while the prompts of the others are computed, a token a turn; beside many that write, a turn computes
        // the least.
        let turns = num_sequences * (prompt_tokens.div_ceil(PROMPT_TOKENS_MIN) + 1);
        let tokens_max = prompt_tokens + new_tokens + turns;
        let budget = Budget {
            sequences_max: num_sequences,
            step_tokens_max: STEP_TOKENS + num_sequences,
            step_logits_max: num_sequences,
            shares_answers: true,
        };
        let num_blocks = num_sequences * tokens_max.div_ceil(BLOCK_TOKENS);
        let mut probe = Self { scheduler: Scheduler::new(budget, num_blocks), plan: Plan::default() };
        for request in 0..num_sequences as u64 {
            let tokens = (0..prompt_tokens as u32).map(|place| place + request as u32).collect();
            let logits_from = prompt_tokens - 1;
            let needs = Needs {
                num_prompt: prompt_tokens,
                tokens,
                tokens_max,
                logits_from,
                priority: 0,
                root: Some(Prefix::root("")),
            };
            probe.scheduler.enqueue(SequenceKey { request, choice: 0 }, needs);
        }
        while probe.turn() < num_sequences {}
        probe
    }

    /// Plans a step, takes it as computed, and appends a token where logits were wanted. Returns how many that were.
    pub fn turn(&mut self) -> usize {
        self.scheduler.plan(&mut self.plan, STEP_TOKENS);
        for chunk in &self.plan.chunks {
            self.scheduler.commit(chunk, chunk.places.end);
            if !chunk.logits.is_empty() {
                self.scheduler.append(chunk.key, chunk.places.end as TokenId);
            }
        }
        self.plan.chunks.iter().filter(|chunk| !chunk.logits.is_empty()).count()
    }
}

/// A sampler with its scratch space, for sequences without a history.
#[derive(Default)]
pub struct SamplerProbe {
    sampler: Sampler,
    history: History,
}

impl SamplerProbe {
    /// Takes one token. `uniform` is a random number in [0, 1).
    pub fn sample(&mut self, params: &Sampling, logits: &[f32], uniform: f64) -> TokenId {
        let place = Place { logits, history: &self.history, forbidden: &[], uniform };
        self.sampler.sample(params, &place)
    }
}
