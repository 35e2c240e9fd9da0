//! Projections of the serving pass: plain matrices and those in bf16 take f32 activations, packed ones quantized activations, or
//! rounded ones of the rows of prompts where [`Model::prompts_differ`].
//!
//! Matrices that share their input are packed all or none, so each function here takes one of two ways.

use bespoke_kernels::{Direction, PackedMatrix, PackedProduct, Quantized, Rounded};

use super::Model;
use crate::{LayerWeights, Linear, weights::Weight};

/// One projection and where its result goes.
pub(super) struct Projection<'a> {
    pub(super) linear: &'a Linear,
    /// **Shapes**: `(T, linear.weight.rows())`.
    pub(super) out: &'a mut [f32],
}

/// The input of a packed product.
#[derive(Default)]
pub(super) struct Activations {
    pub(super) quantized: Quantized,
    /// The rows of prompts, where they are computed so.
    pub(super) rounded: Rounded,
}

/// Room for the input of a projection in either form.
pub(super) struct Scratch<'a> {
    /// **Shapes**: as the input.
    pub(super) plain: &'a mut [f32],
    pub(super) activations: &'a mut Activations,
    /// Rows whose packed products are of integers; those of the rows after them are in bf16.
    pub(super) num_integer_rows: usize,
}

impl<'a> Projection<'a> {
    pub(super) fn new(linear: &'a Linear, out: &'a mut [f32]) -> Self {
        Self { linear, out }
    }

    fn packed(&self) -> &'a PackedMatrix {
        let Weight::Packed(weight) = &self.linear.weight else {
            unreachable!("matrices that share their input are packed all or none");
        };
        weight
    }

    /// The product of the rows before row `end`, or of those from there on.
    fn product(&mut self, accumulate: bool, (side, end): (Side, usize)) -> PackedProduct<'_> {
        let weight = self.packed();
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
            kernels.rms_norm_quantize(answers, norm, eps, &mut scratch.activations.quantized);
            kernels.rms_norm_round(prompts, norm, eps, &mut scratch.activations.rounded);
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
            self.kernels.quantize(answers, num_integer, &mut scratch.activations.quantized);
            self.kernels.round(prompts, num_rows - num_integer, &mut scratch.activations.rounded);
            self.multiply_packed(&scratch, &mut [projection], true);
        } else {
            self.multiply_plain(projection.linear, x, scratch.plain);
            self.kernels.add(projection.out, scratch.plain);
        }
    }

    /// Computes `hidden += down(silu(gate) * up)`, gate and up of `norm(hidden)`, where all three are packed, the first two
    /// without a bias; those of prompts are not written to the projections.
    pub(super) fn feed_forward_packed(
        &self,
        layer: &LayerWeights,
        hidden: &mut [f32],
        mut projections: [Projection<'_>; 2],
        (scratch, gated): (Scratch<'_>, &mut Activations),
    ) {
        let (kernels, eps) = (&self.kernels, self.config.norm_eps);
        let LayerWeights { ffn_norm: norm, down, .. } = layer;
        let (num_integer, inputs) = (scratch.num_integer_rows, &mut *scratch.activations);
        let (answers, prompts) = hidden.split_at(num_integer * norm.len());
        kernels.rms_norm_quantize(answers, norm, eps, &mut inputs.quantized);
        kernels.rms_norm_round(prompts, norm, eps, &mut inputs.rounded);
        self.multiply_quantized(&scratch, &mut projections, false);
        let [gate, up] = &projections;
        let answers = ..num_integer * down.weight.cols();
        kernels.swiglu_quantize(&gate.out[answers], &up.out[answers], num_integer, &mut gated.quantized);
        let weights = [gate, up].map(Projection::packed);
        kernels.matmul_packed_gated_bf16(&scratch.activations.rounded, weights, &mut gated.rounded);
        let scratch = Scratch { activations: gated, ..scratch };
        self.multiply_packed(&scratch, &mut [Projection::new(down, hidden)], true);
    }

    /// Multiplies what the scratch holds.
    fn multiply_packed<const N: usize>(
        &self,
        scratch: &Scratch<'_>,
        projections: &mut [Projection<'_>; N],
        accumulate: bool,
    ) {
        self.multiply_quantized(scratch, projections, accumulate);
        let (end, rounded) = (scratch.num_integer_rows, &scratch.activations.rounded);
        if rounded.rows() > 0 {
            let mut products =
                projections.each_mut().map(|projection| projection.product(accumulate, (Side::After, end)));
            self.kernels.matmul_packed_bf16(rounded, &mut products);
        }
    }

    /// Multiplies the rows that the scratch holds quantized.
    fn multiply_quantized<const N: usize>(
        &self,
        scratch: &Scratch<'_>,
        projections: &mut [Projection<'_>; N],
        accumulate: bool,
    ) {
        let (end, quantized) = (scratch.num_integer_rows, &scratch.activations.quantized);
        if quantized.rows() > 0 {
            let mut products =
                projections.each_mut().map(|projection| projection.product(accumulate, (Side::Before, end)));
            self.kernels.matmul_packed(quantized, &mut products);
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
