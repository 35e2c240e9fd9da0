//! A frozen linear module with its factors: `y = W x + b + scale B A dropout(x)`, and its gradients.

use bespoke_kernels::{Buffer, Kernels, Product, Right, View};

use super::Adapted;
use crate::base::BaseLinear;
use crate::frozen::Rows;
use crate::lora::{Factors, Lora};
use crate::random::Dropout;
use crate::target::Target;

/// One module in one pass.
pub(super) struct Module<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) linear: &'a BaseLinear,
    /// Its factors, where it has some.
    pub(super) adapted: Option<(Adapted<'a>, &'a Factors)>,
}

/// What the backward pass of a module reads.
pub(super) struct Inputs<'a> {
    /// Its input.
    pub(super) x: &'a [f32],
    /// `scale A x` of the forward pass.
    pub(super) low: &'a [f32],
    /// The gradient of its output, as it is too where the module has factors.
    pub(super) d_out: Rows<'a>,
}

/// Buffers of a module's backward pass.
pub(super) struct Buffers<'a> {
    pub(super) dropped: &'a mut Buffer,
    pub(super) d_low: &'a mut Buffer,
}

impl<'a> Module<'a> {
    pub(super) fn new(
        kernels: &'a Kernels,
        linear: &'a BaseLinear,
        adapted: Option<Adapted<'a>>,
        (layer, target): (usize, Target),
    ) -> Module<'a> {
        let adapted = adapted.and_then(|adapted| Some((adapted, adapted.lora.of(layer, target)?)));
        Module { kernels, linear, adapted }
    }

    /// Computes the module; `low` is left for the backward pass.
    pub(super) fn forward(&self, x: Rows<'_>, out: &mut [f32], low: &mut Buffer, dropped: &mut Buffer) {
        let (w, inputs) = (&self.linear.weight, self.linear.weight.inputs());
        w.forward(self.kernels, x, out);
        if let Some(bias) = &self.linear.bias {
            self.kernels.add_bias(out, bias);
        }
        let Some((Adapted { lora, dropout }, factors)) = self.adapted else { return };
        let x = x.floats();
        let rows = x.len() / inputs;
        let (r, scale) = (lora.rank(), lora.scale());
        let a = View::new(&lora.values[factors.a.clone()], r, inputs);
        let b = View::new(&lora.values[factors.b.clone()], w.outputs(), r);
        let view = match dropout {
            Some(dropout) => View::new(self.drop_rows(dropout, factors, x, dropped), rows, inputs),
            None => View::new(x, rows, inputs),
        };
        let low = low.fit(rows * r);
        self.kernels.product(&floats(view, a.transposed(), false), low);
        low.iter_mut().for_each(|low| *low *= scale);
        self.kernels.product(&floats(View::new(low, rows, r), b.transposed(), true), out);
    }

    /// Adds the gradients of the factors to `gradients`, and where `d_x` is wanted adds or writes the gradient of the input.
    pub(super) fn backward(
        &self,
        inputs: &Inputs<'_>,
        d_x: Option<(&mut [f32], bool)>,
        gradients: &mut [f32],
        buffers: Buffers<'_>,
    ) {
        let w = &self.linear.weight;
        let d_low = self.adapted.map(|(Adapted { lora, dropout }, factors)| {
            let rows = inputs.d_out.floats().len() / w.outputs();
            let d_out = View::new(inputs.d_out.floats(), rows, w.outputs());
            let (r, b) = (lora.rank(), View::new(&lora.values[factors.b.clone()], w.outputs(), lora.rank()));
            let low = View::new(inputs.low, rows, r);
            self.kernels.product(&floats(d_out.transposed(), low, true), &mut gradients[factors.b.clone()]);
            let d_low = buffers.d_low.fit(rows * r);
            self.kernels.product(&floats(d_out, b, false), d_low);
            d_low.iter_mut().for_each(|d| *d *= lora.scale());
            let x = match dropout {
                Some(dropout) => self.drop_rows(dropout, factors, inputs.x, buffers.dropped),
                None => inputs.x,
            };
            let d_low_view = View::new(d_low, rows, r).transposed();
            let x = View::new(x, rows, w.inputs());
            self.kernels.product(&floats(d_low_view, x, true), &mut gradients[factors.a.clone()]);
            (lora, dropout, factors, &*d_low)
        });
        let Some((d_x, accumulate)) = d_x else { return };
        w.backward(self.kernels, inputs.d_out, accumulate, d_x);
        if let Some((lora, dropout, factors, d_low)) = d_low {
            self.through_factors(
                (lora, dropout, factors),
                View::new(d_low, d_low.len() / lora.rank(), lora.rank()),
                d_x,
                buffers.dropped,
            );
        }
    }

    /// What the factors see of the input.
    fn drop_rows<'b>(&self, dropout: Dropout, factors: &Factors, x: &[f32], buffer: &'b mut Buffer) -> &'b [f32] {
        let dropped = buffer.fit(x.len());
        self.kernels.dropout(&dropout.mask(module(factors)), x, false, dropped);
        dropped
    }

    /// Adds the gradient of the input that goes through the factors.
    fn through_factors(
        &self,
        (lora, dropout, factors): (&Lora, Option<Dropout>, &Factors),
        d_low: View<'_>,
        d_x: &mut [f32],
        buffer: &mut Buffer,
    ) {
        let a = View::new(&lora.values[factors.a.clone()], lora.rank(), self.linear.weight.inputs());
        match dropout {
            None => self.kernels.product(&floats(d_low, a, true), d_x),
            Some(dropout) => {
                let through = buffer.fit(d_x.len());
                self.kernels.product(&floats(d_low, a, false), through);
                self.kernels.dropout(&dropout.mask(module(factors)), through, true, d_x);
            }
        }
    }
}

fn floats<'a>(left: View<'a>, right: View<'a>, accumulate: bool) -> Product<'a> {
    Product { left, right: Right::Floats(right), accumulate }
}

/// Tells the masks of modules apart.
fn module(factors: &Factors) -> u64 {
    (factors.layer * Target::ALL.len() + factors.target.index()) as u64
}
