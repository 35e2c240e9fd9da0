//! Projections of the serving pass: plain matrices and those in bf16 take f32 activations, packed ones quantized activations, or
//! rounded ones of the rows of prompts where [`Model::prompts_differ`].
//!
//! Matrices that share their input are packed all or none, so each function here takes one of two ways.

use bespoke_kernels::{Direction, PackedProduct, Quantized, Rounded};

use super::Model;
use crate::{Linear, weights::Weight};

/// One projection and where its result goes.
pub(super) struct Projection<'a> {
    pub(super) linear: &'a Linear,
    /// **Shapes**: `(T, linear.weight.rows())`.
    pub(super) out: &'a mut [f32],
}

/// Room for the input of a projection in either form.
pub(super) struct Scratch<'a> {
    /// **Shapes**: as the input.
    pub(super) plain: &'a mut [f32],
    pub(super) quantized: &'a mut Quantized,
    pub(super) rounded: &'a mut Rounded,
    /// Rows whose packed products are of integers; those of the rows after them are in bf16.
    pub(super) num_integer_rows: usize,
}

impl<'a> Projection<'a> {
    pub(super) fn new(linear: &'a Linear, out: &'a mut [f32]) -> Self {
        Self { linear, out }
    }

    /// The product of the rows before row `end`, or of those from there on.
    fn product(&mut self, accumulate: bool, (side, end): (Side, usize)) -> PackedProduct<'_> {
        let Weight::Packed(weight) = &self.linear.weight else {
            unreachable!("matrices that share their input are packed all or none");
        };
        let (before, after) = self.out.split_at_mut(end * weight.rows());
        let out = match side {
            Side::Before => before,
            Side::After => after,
        };
        PackedProduct { weight, bias: self.linear.bias.as_deref(), accumulate, out }
    }
}

/// Rows before or after the first whose products are in bf16.
#[derive(Clone, Copy)]
enum Side {
    Before,
    After,
}

impl Model {
    /// Computes each `out = norm(hidden) weight^T + bias`.
    pub(super) fn project_normed<const N: usize>(
        &self,
        hidden: &[f32],
        norm: &[f32],
        scratch: Scratch<'_>,
        mut projections: [Projection<'_>; N],
    ) {
        let (kernels, eps) = (&self.kernels, self.config.norm_eps);
        if matches!(projections[0].linear.weight, Weight::Packed(_)) {
            let (answers, prompts) = hidden.split_at(scratch.num_integer_rows * norm.len());
            kernels.rms_norm_quantize(answers, norm, eps, scratch.quantized);
            kernels.rms_norm_round(prompts, norm, eps, scratch.rounded);
            self.multiply_packed(&scratch, &mut projections, false);
        } else {
            kernels.rms_norm(hidden, norm, eps, scratch.plain);
            for projection in projections {
                self.multiply_plain(projection.linear, scratch.plain, projection.out);
            }
        }
    }

    /// Computes `out += x weight^T + bias`; `num_rows` rows.
    pub(super) fn project_add(&self, x: &[f32], num_rows: usize, scratch: Scratch<'_>, projection: Projection<'_>) {
        if matches!(projection.linear.weight, Weight::Packed(_)) {
            let num_integer = scratch.num_integer_rows;
            let (answers, prompts) = x.split_at(num_integer * projection.linear.weight.cols());
            self.kernels.quantize(answers, num_integer, scratch.quantized);
            self.kernels.round(prompts, num_rows - num_integer, scratch.rounded);
            self.multiply_packed(&scratch, &mut [projection], true);
        } else {
            self.multiply_plain(projection.linear, x, scratch.plain);
            self.kernels.add(projection.out, scratch.plain);
        }
    }

    /// Computes `out += (silu(gate) * up) weight^T + bias`; `gate` is overwritten.
    pub(super) fn project_swiglu_add(
        &self,
        gate: &mut [f32],
        up: &[f32],
        scratch: Scratch<'_>,
        projection: Projection<'_>,
    ) {
        if matches!(projection.linear.weight, Weight::Packed(_)) {
            let (cols, num_integer) = (projection.linear.weight.cols(), scratch.num_integer_rows);
            let num_rounded = gate.len() / cols - num_integer;
            let (answers, prompts) = gate.split_at(num_integer * cols);
            let (answers_up, prompts_up) = up.split_at(num_integer * cols);
            self.kernels.swiglu_quantize(answers, answers_up, num_integer, scratch.quantized);
            self.kernels.swiglu_round(prompts, prompts_up, num_rounded, scratch.rounded);
            self.multiply_packed(&scratch, &mut [projection], true);
        } else {
            self.kernels.swiglu(gate, up);
            self.multiply_plain(projection.linear, gate, scratch.plain);
            self.kernels.add(projection.out, scratch.plain);
        }
    }

    /// Multiplies what the scratch holds.
    fn multiply_packed<const N: usize>(
        &self,
        scratch: &Scratch<'_>,
        projections: &mut [Projection<'_>; N],
        accumulate: bool,
    ) {
        let end = scratch.num_integer_rows;
        if scratch.quantized.rows() > 0 {
            let mut products =
                projections.each_mut().map(|projection| projection.product(accumulate, (Side::Before, end)));
            self.kernels.matmul_packed(scratch.quantized, &mut products);
        }
        if scratch.rounded.rows() > 0 {
            let mut products =
                projections.each_mut().map(|projection| projection.product(accumulate, (Side::After, end)));
            self.kernels.matmul_packed_bf16(scratch.rounded, &mut products);
        }
    }

    fn multiply_plain(&self, linear: &Linear, x: &[f32], out: &mut [f32]) {
        match &linear.weight {
            Weight::Plain(weight) => self.kernels.matmul(x, x.len() / weight.cols(), weight, out),
            Weight::Bf16(weight) => self.kernels.matmul_bf16(x, (weight, Direction::Forward), false, out),
            Weight::Packed(_) => unreachable!("matrices that share their input are packed all or none"),
        }
        if let Some(bias) = &linear.bias {
            self.kernels.add_bias(out, bias);
        }
    }
}
