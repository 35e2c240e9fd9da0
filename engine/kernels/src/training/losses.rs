//! Log-probabilities of rows of logits, and their gradients.

use super::table::TrainingTable;
use crate::bf16::round::{Rounded, Rounding};
use crate::shared::SharedMut;
use crate::{Isa, Pool, reduce};

/// Logits that stay in a first-level cache, whose exponentials are added up in single precision before the sum goes on in double. A
/// multiple of the columns of a square.
const PART: usize = 1024;

/// Rows of logits and the tokens that were to come.
pub struct RowLosses<'a> {
    /// Logits `(targets.len(), vocab)`; what they hold afterwards means nothing, unless the gradient is left there.
    pub logits: &'a mut [f32],
    /// The token that came after each row.
    pub targets: &'a [u32],
    /// Log-probability of each target.
    pub logprobs: &'a mut [f32],
    /// Where the gradient goes.
    pub gradient: LogitGradient<'a>,
}

/// Where the gradient of each row's log-probability by its logits goes: `onehot(target) - softmax(logits)`.
pub enum LogitGradient<'a> {
    /// It is not wanted.
    None,
    /// Over the logits.
    InPlace,
    /// Rounded to bf16, as rows of a product.
    Rounded(&'a mut Rounded),
}

/// Exponentials of one part of a row, added up.
struct PartSum {
    highest: f32,
    sum: f32,
}

impl RowLosses<'_> {
    /// **Panics** if a length does not fit or a target is outside the vocabulary.
    pub(super) fn run(self, isa: Isa, pool: &Pool) {
        let RowLosses { logits, targets, logprobs, gradient } = self;
        let vocab = logits.len() / targets.len().max(1);
        assert!(logits.len() == vocab * targets.len() && logprobs.len() == targets.len(), "rows of logits");
        let table = TrainingTable::of(isa);
        let (in_place, rounding) = match gradient {
            LogitGradient::None => (false, None),
            LogitGradient::InPlace => (true, None),
            LogitGradient::Rounded(out) => (false, Some(Rounding::new(isa, out, targets.len(), vocab))),
        };
        let (logits, logprobs) = (SharedMut::new(logits), SharedMut::new(logprobs));
        pool.run(targets.len(), |row| {
            // SAFETY: tasks have disjoint rows.
            let (logits, logprob) =
                unsafe { (logits.part(row * vocab..(row + 1) * vocab), logprobs.part(row..row + 1)) };
            let target = targets[row] as usize;
            let logit = f64::from(logits[target]);
            let parts = exponentials(table, logits);
            // What is not a number is in a sum, though never the highest.
            let highest = parts.iter().map(|part| part.highest).fold(f32::NEG_INFINITY, f32::max);
            let weight = |part: &PartSum| f64::from(part.highest - highest).exp();
            let sum: f64 = parts.iter().map(|part| f64::from(part.sum) * weight(part)).sum();
            logprob[0] = (logit - f64::from(highest) - sum.ln()) as f32;
            if !in_place && rounding.is_none() {
                return;
            }
            for (index, (logits, part)) in logits.chunks_mut(PART).zip(&parts).enumerate() {
                // SAFETY: `Kernels` chose the table among those that this processor can run.
                unsafe { (table.scale)(logits, (-weight(part) / sum) as f32) };
                if target / PART == index {
                    logits[target % PART] += 1.0;
                }
                if let Some(rounding) = &rounding {
                    // SAFETY: tasks have disjoint rows.
                    unsafe { rounding.write(row, index * PART, logits) };
                }
            }
        });
    }
}

/// Replaces the logits of each part by exponentials, its highest logit subtracted.
fn exponentials(table: &TrainingTable, logits: &mut [f32]) -> Vec<PartSum> {
    let part_sum = |part: &mut [f32]| {
        // Where nothing is above negative infinity nothing is subtracted, which leaves zeros.
        let highest = reduce::max(part).max(f32::MIN);
        // SAFETY: `Kernels` chose the table among those that this processor can run.
        PartSum { highest, sum: unsafe { (table.exp_sum)(part, 1.0, highest) } }
    };
    logits.chunks_mut(PART).map(part_sum).collect()
}
