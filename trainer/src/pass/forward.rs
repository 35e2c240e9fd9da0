//! The forward pass.

use super::linear::Module;
use super::{Adapted, Kept, Pass};
use crate::batch::Batch;
use crate::frozen::{RowBuffers, forward_each};
use crate::target::Target;

impl Pass<'_> {
    /// Computes the log-probability of every prediction that counts, and keeps what [`Pass::backward`] needs.
    pub fn forward(&mut self, batch: &Batch, adapted: Option<Adapted<'_>>) -> Vec<f32> {
        self.run(batch, adapted, true)
    }

    /// Computes the log-probabilities alone.
    pub fn logprobs(&mut self, batch: &Batch, adapted: Option<Adapted<'_>>) -> Vec<f32> {
        self.run(batch, adapted, false)
    }

    fn run(&mut self, batch: &Batch, adapted: Option<Adapted<'_>>, gradient: bool) -> Vec<f32> {
        self.embed(batch);
        let num_layers = self.base.layers.len();
        let keeps_all = gradient && !self.checkpointing;
        if gradient && self.checkpointing {
            self.layers.resize_with(num_layers + 1, Kept::default);
        }
        for layer in 0..num_layers {
            // Without a backward pass, and with checkpointing, layers share the last place.
            let place = if keeps_all { layer } else { self.layers.len() - 1 };
            let mut kept = std::mem::take(&mut self.layers[place]);
            if gradient && self.checkpointing {
                self.layers[layer].x.copy_from(&self.work.x);
            }
            self.layer(layer, batch, adapted, &mut kept);
            self.layers[place] = kept;
        }
        self.score(batch, gradient)
    }

    /// Writes the embeddings of the tokens to `work.x`.
    fn embed(&mut self, batch: &Batch) {
        let hidden_size = self.base.config.hidden_size;
        let x = self.work.x.fit(batch.num_rows() * hidden_size);
        for (&token, row) in batch.tokens.iter().zip(x.chunks_exact_mut(hidden_size)) {
            self.base.embeddings.dequantize_row(token as usize, row);
        }
    }

    /// Runs one layer over `work.x`, which becomes `kept.x`.
    pub(super) fn layer(&mut self, layer: usize, batch: &Batch, adapted: Option<Adapted<'_>>, kept: &mut Kept) {
        std::mem::swap(&mut kept.x, &mut self.work.x);
        self.attend(layer, batch, adapted, kept);
        self.feed_forward(layer, adapted, kept);
    }

    /// From `kept.x` to `kept.middle`.
    fn attend(&mut self, layer: usize, batch: &Batch, adapted: Option<Adapted<'_>>, kept: &mut Kept) {
        let (base, config) = (self.base, &self.base.config);
        let (kernels, weights, rows) = (&base.kernels, &base.layers[layer], batch.num_rows());
        let module = |target: Target| Module::new(kernels, &weights.linears[target.index()], adapted, (layer, target));
        let work = &mut self.work;
        let keeps_floats = [Target::Q, Target::K, Target::V].into_iter().any(|target| module(target).adapted.is_some());
        let buffers = RowBuffers { floats: &mut work.normed, rounded: &mut work.rounded, keeps_floats };
        let norm = (&*kept.x, &*weights.attn_norm, config.norm_eps);
        let input = module(Target::Q).linear.weight.prepare_norm(kernels, norm, buffers);
        let targets = [Target::Q, Target::K, Target::V];
        let weight = |target: Target| &weights.linears[target.index()].weight;
        let mut outputs = [&mut kept.q, &mut kept.k, &mut kept.v];
        for (out, target) in outputs.iter_mut().zip(targets) {
            out.fit(rows * weight(target).outputs());
        }
        let [q, k, v] = outputs.each_mut().map(|out| &mut out[..]);
        forward_each(kernels, input, [(weight(Target::Q), q), (weight(Target::K), k), (weight(Target::V), v)]);
        for (out, target) in outputs.into_iter().zip(targets) {
            module(target).add(input, out, &mut kept.low[target.index()], &mut work.dropped);
        }
        if let Some(norms) = &weights.head_norms {
            for ((raw, heads), norm) in kept.raw.iter_mut().zip([&mut kept.q, &mut kept.k]).zip(norms) {
                raw.copy_from(heads);
                kernels.rms_norm(raw, norm, config.norm_eps, heads);
            }
        }
        kernels.rope(&base.rope, &batch.positions, config.num_heads, &mut kept.q);
        kernels.rope(&base.rope, &batch.positions, config.num_kv_heads, &mut kept.k);
        let mut heads = std::mem::take(&mut kept.heads);
        let mut log_sums = std::mem::take(&mut kept.log_sums);
        heads.fit(rows * config.query_size());
        log_sums.fit(rows * config.num_heads);
        kernels.causal_attention(&self.attention(kept, batch, layer), &mut heads, &mut log_sums);
        (kept.heads, kept.log_sums) = (heads, log_sums);
        let work = &mut self.work;
        let out = work.normed.fit(rows * config.hidden_size);
        let o = module(Target::O);
        let input = o.linear.weight.prepare(kernels, &kept.heads, config.query_size(), &mut work.rounded);
        o.forward(input, out, &mut kept.low[Target::O.index()], &mut work.dropped);
        kernels.add(out, &kept.x);
        std::mem::swap(&mut work.normed, &mut kept.middle);
    }
}
