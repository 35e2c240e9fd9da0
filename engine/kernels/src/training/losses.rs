//! Log-probabilities of rows of logits, and their gradients.

use super::table::TrainingTable;
use crate::shared::SharedMut;
use crate::{Isa, Pool};

/// Logits that stay in a first-level cache, whose exponentials are added up in single precision before the sum goes on in double.
const PART: usize = 1024;

/// Rows of logits and the tokens that were to come.
pub struct RowLosses<'a> {
    /// Logits `(targets.len(), vocab)`.
    pub logits: &'a mut [f32],
    /// The token that came after each row.
    pub targets: &'a [u32],
    /// Log-probability of each target.
    pub logprobs: &'a mut [f32],
    /// Whether the gradient of each row's log-probability takes the place of its logits: `onehot(target) - softmax(logits)`.
    pub gradient: bool,
}

impl RowLosses<'_> {
    /// **Panics** if a length does not fit or a target is outside the vocabulary.
    pub(super) fn run(self, isa: Isa, pool: &Pool) {
        let RowLosses { logits, targets, logprobs, gradient } = self;
        let vocab = logits.len() / targets.len().max(1);
        assert!(logits.len() == vocab * targets.len() && logprobs.len() == targets.len(), "rows of logits");
        let table = TrainingTable::of(isa);
        let (logits, logprobs) = (SharedMut::new(logits), SharedMut::new(logprobs));
        pool.run(targets.len(), |row| {
            // SAFETY: tasks have disjoint rows.
            let (logits, logprob) =
                unsafe { (logits.part(row * vocab..(row + 1) * vocab), logprobs.part(row..row + 1)) };
            let target = targets[row] as usize;
            let logit = f64::from(logits[target]);
            let (highest, sum) = exp_sum(table, logits);
            logprob[0] = (logit - f64::from(highest) - sum.ln()) as f32;
            if !gradient {
                return;
            }
            for logits in logits.chunks_mut(PART) {
                // SAFETY: `Kernels` chose the table among those that this processor can run.
                unsafe {
                    (table.exp_sum)(logits, 1.0, highest);
                    (table.scale)(logits, (-1.0 / sum) as f32);
                }
            }
            logits[target] += 1.0;
        });
    }
}

/// The highest logit of a row, and the sum of the exponentials of all, the highest subtracted. Logits stay as they are: to write
/// exponentials back would take longer than to compute them again.
fn exp_sum(table: &TrainingTable, logits: &[f32]) -> (f32, f64) {
    let mut part = [0.0; PART];
    let (mut highest, mut sum) = (f32::MIN, 0.0);
    for logits in logits.chunks(PART) {
        let part = &mut part[..logits.len()];
        part.copy_from_slice(logits);
        // What is not a number is in the sum, though never the highest.
        let highest_before = highest;
        // SAFETY: `Kernels` chose the table among those that this processor can run.
        let part_sum = unsafe {
            highest = (table.max)(part).max(highest);
            (table.exp_sum)(part, 1.0, highest)
        };
        sum = sum * f64::from(highest_before - highest).exp() + f64::from(part_sum);
    }
    (highest, sum)
}
