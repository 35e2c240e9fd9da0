//! Projections of the serving pass: plain matrices and those in bf16 take f32 activations, packed ones quantized activations.
//!
//! Matrices that share their input are packed all or none, so each function here takes one of two ways.

use bespoke_kernels::{PackedProduct, Quantized};

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
}

impl<'a> Projection<'a> {
    pub(super) fn new(linear: &'a Linear, out: &'a mut [f32]) -> Self {
        Self { linear, out }
    }

    fn product(&mut self, accumulate: bool) -> Option<PackedProduct<'_>> {
        match &self.linear.weight {
            Weight::Plain(_) | Weight::Bf16(_) => None,
            Weight::Packed(weight) => {
                let bias = self.linear.bias.as_deref();
                Some(PackedProduct { weight, bias, accumulate, out: &mut *self.out })
            }
        }
    }
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
            kernels.rms_norm_quantize(hidden, norm, eps, scratch.quantized);
            self.multiply_packed(scratch.quantized, &mut projections, false);
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
            self.kernels.quantize(x, num_rows, scratch.quantized);
            self.multiply_packed(scratch.quantized, &mut [projection], true);
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
            let num_rows = gate.len() / projection.linear.weight.cols();
            self.kernels.swiglu_quantize(gate, up, num_rows, scratch.quantized);
            self.multiply_packed(scratch.quantized, &mut [projection], true);
        } else {
            self.kernels.swiglu(gate, up);
            self.multiply_plain(projection.linear, gate, scratch.plain);
            self.kernels.add(projection.out, scratch.plain);
        }
    }

    fn multiply_packed<const N: usize>(&self, x: &Quantized, projections: &mut [Projection<'_>; N], accumulate: bool) {
        let products = projections.each_mut().map(|projection| projection.product(accumulate));
        let mut products =
            products.map(|product| product.expect("invariant: matrices that share their input are packed all or none"));
        self.kernels.matmul_packed(x, &mut products);
    }

    fn multiply_plain(&self, linear: &Linear, x: &[f32], out: &mut [f32]) {
        match &linear.weight {
            Weight::Plain(weight) => self.kernels.matmul(x, x.len() / weight.cols(), weight, out),
            Weight::Bf16(weight) => self.kernels.matmul_bf16(x, weight, false, out),
            Weight::Packed(_) => unreachable!("matrices that share their input are packed all or none"),
        }
        if let Some(bias) = &linear.bias {
            self.kernels.add_bias(out, bias);
        }
    }
}
