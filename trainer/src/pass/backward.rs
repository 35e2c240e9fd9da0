//! The backward pass: from one factor for each prediction to the gradients of the adapter.

use bespoke_kernels::Attended;

use super::linear::{Buffers, Inputs, Module};
use super::{Adapted, Kept, Pass};
use crate::batch::Batch;
use crate::frozen::{Rows, backward};
use crate::target::Target;

impl Pass<'_> {
    /// Adds to `gradients` the gradient of `sum(factors * logprobs)` by the adapter's values; [`Pass::forward`] ran last, with
    /// the same batch and adapter.
    ///
    /// **Panics** if `factors` is not one number for each prediction, or `gradients` not one for each value.
    pub fn backward(&mut self, batch: &Batch, adapted: Adapted<'_>, factors: &[f32], gradients: &mut [f32]) {
        assert_eq!(factors.len(), batch.scored.len(), "factors of predictions");
        assert_eq!(gradients.len(), adapted.lora.values.len(), "gradients of the adapter");
        self.score_backward(batch, factors);
        for layer in (0..self.base.layers.len()).rev() {
            let mut kept = self.kept(layer, batch, adapted);
            self.feed_forward_backward(layer, &mut kept, adapted, gradients);
            self.attend_backward(layer, batch, (&kept, adapted), gradients);
            let place = if self.checkpointing { self.base.layers.len() } else { layer };
            self.layers[place] = kept;
        }
    }

    /// What the layer has kept; with checkpointing it runs again, and the gradient waits beside.
    fn kept(&mut self, layer: usize, batch: &Batch, adapted: Adapted<'_>) -> Kept {
        if !self.checkpointing {
            return std::mem::take(&mut self.layers[layer]);
        }
        let last = self.base.layers.len();
        let mut kept = std::mem::take(&mut self.layers[last]);
        let gradient = std::mem::replace(&mut self.work.x, std::mem::take(&mut self.layers[layer].x));
        self.layer(layer, batch, Some(adapted), &mut kept);
        self.layers[layer].x = std::mem::replace(&mut self.work.x, gradient);
        kept
    }

    fn attend_backward(
        &mut self,
        layer: usize,
        batch: &Batch,
        (kept, adapted): (&Kept, Adapted<'_>),
        gradients: &mut [f32],
    ) {
        let (base, config, weights) = (self.base, &self.base.config, &self.base.layers[layer]);
        let kernels = &base.kernels;
        let module =
            |target: Target| Module::new(kernels, &weights.linears[target.index()], Some(adapted), (layer, target));
        let args = self.attention(kept, batch, layer);
        let work = &mut self.work;
        let d_heads = work.d_heads.fit(kept.heads.len());
        let o = module(Target::O);
        let d_out = o.linear.weight.rows(&work.x, &work.gradient);
        let inputs = Inputs { x: &kept.heads, low: &kept.low[Target::O.index()], d_out };
        let buffers = Buffers { dropped: &mut work.dropped, d_low: &mut work.d_low };
        backward(kernels, &[(&o.linear.weight, d_out)], d_heads);
        o.backward(&inputs, Some(d_heads), gradients, buffers);
        let attended = Attended { out: &kept.heads, log_sums: &kept.log_sums, d_out: d_heads };
        let (d_q, d_k) = (work.d_q.fit(kept.q.len()), work.d_k.fit(kept.k.len()));
        let d_v = work.d_v.fit(kept.v.len());
        kernels.causal_attention_backward(&args, &attended, [d_q, d_k, d_v]);
        kernels.rope(&base.rope_inverse, &batch.positions, config.num_heads, d_q);
        kernels.rope(&base.rope_inverse, &batch.positions, config.num_kv_heads, d_k);
        if let Some(norms) = &weights.head_norms {
            for ((raw, d), norm) in kept.raw.iter().zip([&mut work.d_q, &mut work.d_k]).zip(norms) {
                let d_raw = work.wide.fit(d.len());
                d_raw.fill(0.0);
                kernels.rms_norm_backward((raw, norm, config.norm_eps), d, d_raw, None);
                d.copy_from_slice(d_raw);
            }
        }
        let normed = work.normed.fit(work.x.len());
        kernels.rms_norm(&kept.x, &weights.attn_norm, config.norm_eps, normed);
        let d_normed = work.d_normed.fit(work.x.len());
        // Below the first layer nothing is trained, so nothing there needs a gradient.
        let goes_on = layer > 0;
        let modules = [Target::Q, Target::K, Target::V].map(|target| (target, module(target)));
        let floats = [&*work.d_q, &*work.d_k, &*work.d_v];
        let mut d_outs =
            floats.into_iter().zip(&mut work.rounded_qkv).zip(&modules).map(|((d_out, rounded), (_, module))| {
                let w = &module.linear.weight;
                match goes_on {
                    true => (w, w.prepare(kernels, d_out, w.outputs(), rounded)),
                    false => (w, Rows::exact(d_out)),
                }
            });
        let d_outs: [_; 3] = std::array::from_fn(|_| d_outs.next().expect("invariant: there are three"));
        if goes_on {
            backward(kernels, &d_outs, d_normed);
        }
        for ((target, module), (_, d_out)) in modules.iter().zip(d_outs) {
            let inputs = Inputs { x: normed, low: &kept.low[target.index()], d_out };
            let buffers = Buffers { dropped: &mut work.dropped, d_low: &mut work.d_low };
            module.backward(&inputs, goes_on.then_some(&mut *d_normed), gradients, buffers);
        }
        if goes_on {
            let norm = (&*kept.x, &*weights.attn_norm, config.norm_eps);
            let sum = (&mut *work.x, &mut work.gradient);
            module(Target::Down).linear.weight.prepare_norm_backward(kernels, norm, d_normed, sum);
        }
    }
}
