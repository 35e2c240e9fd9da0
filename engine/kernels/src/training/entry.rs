//! The entry points of training on [`Kernels`]: assert lengths, split the work over the pool.

use super::attention::Attended;
use super::dropout::{LANES, Masked};
use super::gated::{Floats, Gate};
use super::low_rank::{self, LowRank, LowRankGradients, LowRankInputs};
use super::product_losses::{self, ProductLosses};
use super::table::TrainingTable;
use super::{CausalAttention, Mask, Product, RowLosses};
use crate::bf16::product::Factors;
use crate::bf16::round::{Rounded, Rounding};
use crate::shared::SharedMut;
use crate::table::Table;
use crate::{Bf16Matrix, Direction, Kernels, bf16};

/// Elements that are worth a task: a few microseconds.
const TASK_ELEMENTS: usize = 1 << 13;

impl Kernels {
    fn training(&self) -> &'static TrainingTable {
        TrainingTable::of(self.isa())
    }

    /// Computes `out = left right`, or adds it.
    ///
    /// **Shapes**: `out` `(m, n)`. **Panics** if a length does not fit, or weights with blocks of 256 are multiplied as stored.
    pub fn product(&self, product: &Product<'_>, out: &mut [f32]) {
        product.run((Table::of(self.isa()), self.training()), self.pool(), out);
    }

    /// Causal softmax attention of a whole ragged batch; `log_sums` is kept for the backward pass.
    ///
    /// **Shapes**: `out` as the queries, `log_sums` `(rows, heads)`. **Panics** if a length does not fit or the trees do not
    /// cover the rows.
    pub fn causal_attention(&self, args: &CausalAttention<'_>, out: &mut [f32], log_sums: &mut [f32]) {
        args.forward(self.isa(), self.pool(), out, log_sums);
    }

    /// The gradients of queries, keys and values, which are overwritten.
    ///
    /// **Panics** as [`Kernels::causal_attention`].
    pub fn causal_attention_backward(
        &self,
        args: &CausalAttention<'_>,
        attended: &Attended<'_>,
        gradients: [&mut [f32]; 3],
    ) {
        args.backward(self.isa(), self.pool(), attended, gradients);
    }

    /// Adds to `d_x` the gradient that goes through [`Kernels::rms_norm`], and rounds the sum where asked.
    ///
    /// **Shapes**: `x`, `d_out`, `d_x` `(rows, weight.len())`. **Panics** if a length does not fit.
    pub fn rms_norm_backward(
        &self,
        (x, weight, eps): (&[f32], &[f32], f32),
        d_out: &[f32],
        d_x: &mut [f32],
        rounded: Option<&mut Rounded>,
    ) {
        assert!(x.len() == d_out.len() && x.len() == d_x.len(), "rows of a norm");
        let len = weight.len();
        assert!(len > 0 && x.len().is_multiple_of(len), "{} elements in rows of {len}", x.len());
        let (table, rows, task_rows) = (self.training(), x.len() / len, TASK_ELEMENTS.div_ceil(len));
        let rounding = rounded.map(|rounded| Rounding::new(self.isa(), rounded, rows, len));
        let d_x = SharedMut::new(d_x);
        self.pool().run(rows.div_ceil(task_rows), |task| {
            for row in task * task_rows..rows.min((task + 1) * task_rows) {
                let range = row * len..(row + 1) * len;
                // SAFETY: tasks have disjoint rows; the table is one that this processor can run.
                unsafe {
                    let d_x = d_x.part(range.clone());
                    (table.rms_norm_backward)(&x[range.clone()], weight, &d_out[range], eps, d_x);
                    if let Some(rounding) = &rounding {
                        rounding.write(row, 0, d_x);
                    }
                }
            }
        });
    }

    /// `out = silu(gate) * up`, with the bits of [`Kernels::swiglu`].
    ///
    /// **Panics** if the lengths differ.
    pub fn swiglu_into(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gate.len() == up.len() && gate.len() == out.len(), "gate, up and output");
        let (table, total) = (Table::of(self.isa()), out.len());
        let out = SharedMut::new(out);
        self.pool().run(total.div_ceil(TASK_ELEMENTS), |task| {
            let range = task * TASK_ELEMENTS..total.min((task + 1) * TASK_ELEMENTS);
            // SAFETY: tasks have disjoint ranges; the table is one that this processor can run.
            unsafe {
                let out = out.part(range.clone());
                out.copy_from_slice(&gate[range.clone()]);
                (table.swiglu)(out, &up[range]);
            }
        });
    }

    /// Replaces gate and up by their gradients.
    ///
    /// **Panics** if the lengths differ.
    pub fn swiglu_backward(&self, gate: &mut [f32], up: &mut [f32], d_out: &[f32]) {
        assert!(gate.len() == up.len() && gate.len() == d_out.len(), "gate, up and gradient");
        let (table, total) = (self.training(), d_out.len());
        let (gate, up) = (SharedMut::new(gate), SharedMut::new(up));
        self.pool().run(total.div_ceil(TASK_ELEMENTS), |task| {
            let range = task * TASK_ELEMENTS..total.min((task + 1) * TASK_ELEMENTS);
            // SAFETY: as in `swiglu_into`.
            unsafe { (table.swiglu_backward)(gate.part(range.clone()), up.part(range.clone()), &d_out[range]) };
        });
    }

    /// A feed-forward block up to its gate, in bf16: `out = silu(gate) * up` rounded, where gate and up are the products of `x` with both
    /// weights, in single precision; rounded, they are kept.
    ///
    /// **Shapes**: `x` `(rows, inputs)`, weights `(cols, inputs)`, `kept`, `out` `(rows, cols)`. **Panics** if one does not fit.
    pub fn gated_rounded(&self, x: &Rounded, weights: [&Bf16Matrix; 2], kept: &mut [Rounded; 2], out: &mut Rounded) {
        self.gate().forward(x, weights, kept, out);
    }

    /// [`Kernels::gated_rounded`] of gate and up that are there.
    ///
    /// **Shapes**: `gate`, `up` `(rows, cols)`. **Panics** if a length does not fit.
    pub fn gate_rounded(&self, (gate, up): (&[f32], &[f32]), rows: usize, kept: &mut [Rounded; 2], out: &mut Rounded) {
        self.gate().keep(&Floats { gate, up, rows }, kept, out);
    }

    /// `out = silu(gate) * up` of gate and up that were kept.
    ///
    /// **Shapes**: `out` `(rows, cols)`. **Panics** if a length does not fit.
    pub fn gate_kept(&self, kept: &[Rounded; 2], out: &mut [f32]) {
        self.gate().kept(kept, out);
    }

    /// The way back of [`Kernels::gated_rounded`], from the gradient of the whole block: gate and up that were kept become their
    /// gradients.
    ///
    /// **Shapes**: `d_out` `(rows, outputs)`, `down` `(outputs, cols)`. **Panics** if one does not fit.
    pub fn gated_backward(&self, d_out: &Rounded, down: &Bf16Matrix, kept: &mut [Rounded; 2]) {
        self.gate().backward(d_out, down, kept);
    }

    /// [`Kernels::gated_backward`] from the gradient behind the gate; the gradients of gate and up go to `floats` too.
    ///
    /// **Shapes**: `d_out`, `floats` `(rows, cols)`. **Panics** if a length does not fit.
    pub fn gate_backward(&self, d_out: &[f32], kept: &mut [Rounded; 2], floats: [&mut [f32]; 2]) {
        self.gate().keep_backward(d_out, kept, floats);
    }

    fn gate(&self) -> Gate<'_> {
        Gate { isa: self.isa(), tables: (Table::of(self.isa()), self.training()), pool: self.pool() }
    }

    /// `out = dropout(x)`, or adds it.
    ///
    /// **Panics** if the lengths differ.
    pub fn dropout(&self, mask: &Mask, x: &[f32], add: bool, out: &mut [f32]) {
        const { assert!(TASK_ELEMENTS.is_multiple_of(LANES), "a task begins with the first bits of a mixed number") };
        assert_eq!(x.len(), out.len(), "input and output of a dropout");
        let (table, total) = (self.training(), x.len());
        let out = SharedMut::new(out);
        self.pool().run(total.div_ceil(TASK_ELEMENTS), |task| {
            let range = task * TASK_ELEMENTS..total.min((task + 1) * TASK_ELEMENTS);
            let masked = Masked { mask, first: range.start, x: &x[range.clone()], add };
            // SAFETY: as in `swiglu_into`.
            unsafe { (table.dropout)(&masked, out.part(range)) };
        });
    }

    /// The sum of `x w` over several `x` and `w`, in this order: products of [`Kernels::matmul_rounded`], backwards.
    ///
    /// **Shapes**: `x` `(rows, outputs)` of its `w` `(outputs, inputs)`, `out` `(rows, inputs)`. **Panics** if there are no terms, or a
    /// length does not fit.
    pub fn sum_backward(&self, terms: &[(&Rounded, &Bf16Matrix)], out: &mut [f32]) {
        let direction = Direction::Backward;
        let factors: Vec<Factors<'_>> =
            terms.iter().map(|&(x, w)| Factors { isa: self.isa(), x, w, direction }).collect();
        bf16::run_rounded(self.pool(), &factors, false, out);
    }

    /// Adds to `out` what factors of low rank make of `x`, in bf16; `low` is kept for the backward pass.
    ///
    /// **Shapes**: `x` `(rows, inputs)`, `low` `(rows, rank)`, `out` `(rows, outputs)`. **Panics** if a length does not fit.
    pub fn low_rank(&self, factors: &LowRank<'_>, x: &[f32], low: &mut [f32], out: &mut [f32]) {
        factors.forward(self.low_rank_run(), x, low, out);
    }

    /// Adds the gradients of the factors of [`Kernels::low_rank`], and where it is wanted that of the input.
    ///
    /// **Shapes**: `d_x` as `x`. **Panics** if a length does not fit.
    pub fn low_rank_backward(
        &self,
        factors: &LowRank<'_>,
        inputs: &LowRankInputs<'_>,
        d_x: Option<&mut [f32]>,
        gradients: LowRankGradients<'_>,
    ) {
        factors.backward(self.low_rank_run(), inputs, d_x, gradients);
    }

    fn low_rank_run(&self) -> low_rank::Run<'_> {
        low_rank::Run { isa: self.isa(), tables: (Table::of(self.isa()), self.training()), pool: self.pool() }
    }

    /// Log-probabilities of the targets, and their gradients.
    ///
    /// **Panics** if a length does not fit or a target is outside the vocabulary.
    pub fn row_losses(&self, losses: RowLosses<'_>) {
        losses.run(self.isa(), self.pool());
    }

    /// Log-probabilities of the targets of rows whose logits are a product in bf16, and their gradients by the rows.
    ///
    /// **Panics** if a shape does not fit, there are no inputs, or a target is outside the vocabulary.
    pub fn product_losses(&self, losses: ProductLosses<'_>) {
        let tables = (Table::of(self.isa()), self.training());
        losses.run(product_losses::Run { isa: self.isa(), tables, pool: self.pool() });
    }
}
