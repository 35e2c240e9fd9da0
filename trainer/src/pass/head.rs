//! The head: hidden states of the rows that predict become log-probabilities and their unit gradients, some rows at a time. In bf16 their
//! logits never leave the caches; in single precision those of [`ROWS`] rows are held.

use bespoke_kernels::{Buffer, ProductLosses, RowLosses};

use super::Pass;
use crate::batch::Batch;
use crate::frozen::{Rows, backward};
use crate::target::Target;

/// Rows at a time: in single precision their logits take 50 MB for a vocabulary of 49 152, in bf16 what is made of them stays in a
/// second-level cache.
const ROWS: usize = 256;

/// What the head leaves for its backward pass.
#[derive(Default)]
pub(super) struct Kept {
    /// Rows before the final norm, one for each prediction `(S, D)`.
    x: Buffer,
    normed: Buffer,
    /// Gradient of each log-probability by the normed row `(S, D)`.
    unit: Buffer,
    /// Of products in single precision.
    logits: Buffer,
    gathered: Buffer,
}

impl Pass<'_> {
    /// Scores the predictions from the rows in `work.x`.
    pub(super) fn score(&mut self, batch: &Batch, gradient: bool) -> Vec<f32> {
        let (base, config) = (self.base, &self.base.config);
        let (kernels, width, vocab) = (&base.kernels, config.hidden_size, config.vocab_size);
        let num = batch.scored.len();
        let kept = &mut self.head;
        let x = kept.x.fit(num * width);
        for (scored, x) in batch.scored.iter().zip(x.chunks_exact_mut(width)) {
            x.copy_from_slice(&self.work.x[scored.row * width..(scored.row + 1) * width]);
        }
        let normed = kept.normed.fit(num * width);
        kernels.rms_norm(&kept.x, &base.final_norm, config.norm_eps, normed);
        let unit = kept.unit.fit(if gradient { num * width } else { 0 });
        let mut logprobs = vec![0.0; num];
        for first in (0..num).step_by(ROWS) {
            let rows = first..num.min(first + ROWS);
            let input = &normed[rows.start * width..rows.end * width];
            let targets: Vec<u32> = batch.scored[rows.clone()].iter().map(|scored| scored.target).collect();
            let logprobs = &mut logprobs[rows.clone()];
            let unit = gradient.then(|| &mut unit[rows.start * width..rows.end * width]);
            let prepared = base.output.prepare(kernels, input, width, &mut self.work.rounded);
            if let Some(w) = base.output.packed() {
                let x = prepared.rounded();
                kernels.product_losses(ProductLosses { x, w, targets: &targets, logprobs, gradient: unit });
                continue;
            }
            let logits = kept.logits.fit(rows.len() * vocab);
            base.output.forward(kernels, prepared, logits);
            kernels.row_losses(RowLosses { logits, targets: &targets, logprobs, gradient });
            if let Some(unit) = unit {
                backward(kernels, &[(&base.output, Rows::exact(logits))], unit);
            }
        }
        logprobs
    }

    /// Writes to `work.x`, and prepared to `work.gradient`, the gradient of the last layer's rows: each prediction's unit gradient times
    /// its factor.
    pub(super) fn score_backward(&mut self, batch: &Batch, factors: &[f32]) {
        let (base, config) = (self.base, &self.base.config);
        let width = config.hidden_size;
        let kept = &mut self.head;
        for (unit, factor) in kept.unit.chunks_exact_mut(width).zip(factors) {
            unit.iter_mut().for_each(|unit| *unit *= factor);
        }
        let gathered = kept.gathered.fit(kept.unit.len());
        gathered.fill(0.0);
        base.kernels.rms_norm_backward((&kept.x, &base.final_norm, config.norm_eps), &kept.unit, gathered, None);
        let d_x = self.work.x.fit(batch.num_rows() * width);
        d_x.fill(0.0);
        for (scored, from) in batch.scored.iter().zip(gathered.chunks_exact(width)) {
            let row = &mut d_x[scored.row * width..(scored.row + 1) * width];
            row.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
        if let Some(last) = base.layers.last() {
            last.linears[Target::Down.index()].weight.prepare(&base.kernels, d_x, width, &mut self.work.gradient);
        }
    }
}
