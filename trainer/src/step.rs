//! One optimiser step, and one evaluation: losses over pieces of examples, with their gradients where wanted.

use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::example::Example;
use crate::items::{batch_of, pieces};
use crate::lora::Lora;
use crate::loss::{Answer, PairLoss, Preference};
use crate::pass::{Adapted, Pass};
use crate::random::Dropout;

/// What is optimised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// The mean negative log-probability of the tokens that count.
    Likelihood,
    /// The mean preference loss of pairs.
    Preference(Preference),
}

/// Means over the examples of a step or an evaluation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Means {
    /// The loss.
    pub loss: f64,
    /// What the loss is a mean over: predictions that count, or pairs.
    #[serde(default)]
    pub num_terms: usize,
    /// Tokens of all sequences, shared prompts counted for both answers.
    pub num_tokens: usize,
    /// Of preference losses alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preference: Option<PreferenceMeans>,
}

/// What DPO reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PreferenceMeans {
    /// Reward of chosen answers.
    pub reward_chosen: f64,
    /// Reward of rejected answers.
    pub reward_rejected: f64,
    /// Their difference.
    pub margin: f64,
    /// Share of pairs whose chosen answer has the higher reward.
    pub accuracy: f64,
}

/// An example with what the reference thinks of its answers (zeros for sequences).
#[derive(Clone, Copy)]
pub struct Item<'a> {
    /// The example.
    pub example: &'a Example,
    /// Log-probabilities of chosen and rejected under the reference.
    pub reference: [f64; 2],
}

/// How examples go through the model.
#[derive(Clone, Copy, Debug)]
pub struct StepSettings<'a> {
    /// What is optimised.
    pub objective: Objective,
    /// Most rows at once.
    pub batch_tokens: usize,
    /// Share of dropped inputs, and the seed and step of the masks; `None` for evaluation.
    pub dropout: Option<(f32, u64, u64)>,
    /// Looked at before each piece.
    pub stop: &'a AtomicBool,
}

/// Computes the loss of some items; with `gradients` adds its gradient there. Where `stop` is set before the last piece, the work is
/// left and `None` given.
pub fn run_items(
    pass: &mut Pass<'_>,
    lora: &Lora,
    items: &[Item<'_>],
    settings: &StepSettings<'_>,
    mut gradients: Option<&mut [f32]>,
) -> Option<Means> {
    let examples: Vec<&Example> = items.iter().map(|item| item.example).collect();
    let pieces = pieces(&examples, settings.batch_tokens);
    let batches: Vec<Batch> = pieces.iter().map(|piece| batch_of(&examples[piece.clone()])).collect();
    let num_scored: usize = batches.iter().map(|batch| batch.scored.len()).sum();
    let mut sums = Sums { num_scored, num_items: items.len(), ..Sums::default() };
    for (index, (piece, batch)) in pieces.into_iter().zip(&batches).enumerate() {
        if settings.stop.load(Ordering::Relaxed) {
            return None;
        }
        let dropout = settings.dropout.map(|(rate, seed, step)| Dropout::new(rate, seed, step, index as u64));
        let adapted = Adapted { lora, dropout: dropout.filter(|dropout| dropout.rate > 0.0) };
        let logprobs = match gradients {
            Some(_) => pass.forward(batch, Some(adapted)),
            None => pass.logprobs(batch, Some(adapted)),
        };
        let factors = sums.add(batch, &logprobs, &items[piece], settings.objective);
        if let Some(gradients) = &mut gradients {
            pass.backward(batch, adapted, &factors, gradients);
        }
    }
    Some(sums.means(settings.objective))
}

/// Computes the log-probability of each answer under the base alone.
pub(crate) fn reference_logprobs(pass: &mut Pass<'_>, examples: &[&Example]) -> Vec<f64> {
    let batch = batch_of(examples);
    let logprobs = pass.logprobs(&batch, None);
    batch.sum_by_item(&logprobs)
}

#[derive(Default)]
struct Sums {
    num_scored: usize,
    num_items: usize,
    loss: f64,
    num_tokens: usize,
    rewards: [f64; 2],
    num_right: usize,
}

impl Sums {
    /// Adds a batch; returns the slope of the mean loss by each log-probability.
    fn add(&mut self, batch: &Batch, logprobs: &[f32], items: &[Item<'_>], objective: Objective) -> Vec<f32> {
        self.num_tokens += batch.num_tokens;
        match objective {
            Objective::Likelihood => {
                self.loss -= logprobs.iter().map(|&x| f64::from(x)).sum::<f64>();
                vec![-1.0 / self.num_scored as f32; logprobs.len()]
            }
            Objective::Preference(preference) => {
                let sums = batch.sum_by_item(logprobs);
                let mut lens = vec![0; batch.num_items];
                batch.scored.iter().for_each(|scored| lens[scored.item] += 1);
                let judge = |(index, item): (usize, &Item<'_>)| {
                    let answer = |side: usize| Answer {
                        logprob: sums[2 * index + side],
                        reference: item.reference[side],
                        num_tokens: lens[2 * index + side],
                    };
                    preference.judge(answer(0), answer(1))
                };
                let judged: Vec<PairLoss> = items.iter().enumerate().map(judge).collect();
                for pair in &judged {
                    self.loss += pair.loss;
                    self.rewards[0] += pair.rewards[0];
                    self.rewards[1] += pair.rewards[1];
                    self.num_right += usize::from(pair.rewards[0] > pair.rewards[1]);
                }
                let slope = |item: usize| judged[item / 2].slopes[item % 2] / self.num_items as f64;
                batch.scored.iter().map(|scored| slope(scored.item) as f32).collect()
            }
        }
    }

    fn means(&self, objective: Objective) -> Means {
        let num = self.num_items.max(1) as f64;
        match objective {
            Objective::Likelihood => {
                let loss = self.loss / self.num_scored.max(1) as f64;
                Means { loss, num_terms: self.num_scored, num_tokens: self.num_tokens, preference: None }
            }
            Objective::Preference(_) => {
                let [chosen, rejected] = self.rewards.map(|reward| reward / num);
                let preference = PreferenceMeans {
                    reward_chosen: chosen,
                    reward_rejected: rejected,
                    margin: chosen - rejected,
                    accuracy: self.num_right as f64 / num,
                };
                Means {
                    loss: self.loss / num,
                    num_terms: self.num_items,
                    num_tokens: self.num_tokens,
                    preference: Some(preference),
                }
            }
        }
    }
}
