//! A frozen linear module with its factors: `y = W x + b + scale B A dropout(x)`, and its gradients.

use bespoke_kernels::{Buffer, Kernels, LowRank, LowRankGradients, LowRankInputs, Product, Right, View};

use super::Adapted;
use crate::base::BaseLinear;
use crate::frozen::Rows;
use crate::lora::Factors;
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
        self.linear.weight.forward(self.kernels, x, out);
        self.add(x, out, low, dropped);
    }

    /// Adds what the module has beside its product.
    pub(super) fn add(&self, x: Rows<'_>, out: &mut [f32], low: &mut Buffer, dropped: &mut Buffer) {
        let (w, inputs) = (&self.linear.weight, self.linear.weight.inputs());
        if let Some(bias) = &self.linear.bias {
            self.kernels.add_bias(out, bias);
        }
        let Some((adapted, factors)) = self.adapted else { return };
        let (lora, x) = (adapted.lora, x.floats());
        let (rows, r) = (x.len() / inputs, lora.rank());
        let low = low.fit(rows * r);
        if w.packed().is_some() {
            return self.kernels.low_rank(&low_rank(adapted, factors), x, low, out);
        }
        let a = View::new(&lora.values[factors.a.clone()], r, inputs);
        let b = View::new(&lora.values[factors.b.clone()], w.outputs(), r);
        let view = match adapted.dropout {
            Some(dropout) => View::new(self.drop_rows(dropout, factors, x, dropped), rows, inputs),
            None => View::new(x, rows, inputs),
        };
        self.kernels.product(&floats(view, a.transposed(), false), low);
        low.iter_mut().for_each(|low| *low *= lora.scale());
        self.kernels.product(&floats(View::new(low, rows, r), b.transposed(), true), out);
    }

    /// Adds the gradients of the factors to `gradients`, and where it is wanted what goes through them to the gradient of the input.
    pub(super) fn backward(
        &self,
        inputs: &Inputs<'_>,
        d_x: Option<&mut [f32]>,
        gradients: &mut [f32],
        buffers: Buffers<'_>,
    ) {
        let Some((adapted, factors)) = self.adapted else { return };
        if self.linear.weight.packed().is_some() {
            let [a, b] = gradients
                .get_disjoint_mut([factors.a.clone(), factors.b.clone()])
                .expect("invariant: an adapter's factors lie apart");
            let inputs = LowRankInputs { x: inputs.x, low: inputs.low, d_out: inputs.d_out.floats() };
            let gradients = LowRankGradients { a, b };
            return self.kernels.low_rank_backward(&low_rank(adapted, factors), &inputs, d_x, gradients);
        }
        self.factors_backward((adapted, factors), inputs, d_x, (gradients, buffers));
    }

    /// The way back through the factors in single precision.
    fn factors_backward(
        &self,
        (Adapted { lora, dropout }, factors): (Adapted<'_>, &Factors),
        inputs: &Inputs<'_>,
        d_x: Option<&mut [f32]>,
        (gradients, buffers): (&mut [f32], Buffers<'_>),
    ) {
        let w = &self.linear.weight;
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
        let d_low = View::new(d_low, rows, r);
        let x = View::new(x, rows, w.inputs());
        self.kernels.product(&floats(d_low.transposed(), x, true), &mut gradients[factors.a.clone()]);
        let Some(d_x) = d_x else { return };
        let a = View::new(&lora.values[factors.a.clone()], r, w.inputs());
        match dropout {
            None => self.kernels.product(&floats(d_low, a, true), d_x),
            Some(dropout) => {
                let through = buffers.dropped.fit(d_x.len());
                self.kernels.product(&floats(d_low, a, false), through);
                self.kernels.dropout(&dropout.mask(module(factors)), through, true, d_x);
            }
        }
    }

    /// What the factors see of the input.
    fn drop_rows<'b>(&self, dropout: Dropout, factors: &Factors, x: &[f32], buffer: &'b mut Buffer) -> &'b [f32] {
        let dropped = buffer.fit(x.len());
        self.kernels.dropout(&dropout.mask(module(factors)), x, false, dropped);
        dropped
    }
}

/// The factors as the kernels in bf16 take them.
fn low_rank<'a>(Adapted { lora, dropout }: Adapted<'a>, factors: &Factors) -> LowRank<'a> {
    LowRank {
        a: &lora.values[factors.a.clone()],
        b: &lora.values[factors.b.clone()],
        rank: lora.rank(),
        scale: lora.scale(),
        mask: dropout.map(|dropout| dropout.mask(module(factors))),
    }
}

fn floats<'a>(left: View<'a>, right: View<'a>, accumulate: bool) -> Product<'a> {
    Product { left, right: Right::Floats(right), accumulate }
}

/// Tells the masks of modules apart.
fn module(factors: &Factors) -> u64 {
    (factors.layer * Target::ALL.len() + factors.target.index()) as u64
}
