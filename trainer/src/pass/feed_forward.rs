//! The feed-forward block, forward and backward.
//!
//! In bf16, and where no module of the block has factors or a bias, products and gate are one kernel, and floats of the block's width
//! are never written to memory.

use bespoke_kernels::{Bf16Matrix, Buffer, Kernels, Rounded};

use super::linear::{Buffers, Inputs, Module};
use super::{Adapted, Kept, Pass};
use crate::base::Base;
use crate::frozen::{Compute, RowBuffers, Rows, backward};
use crate::target::Target;

/// Gate and up of a block `(T, F)`, from its forward to its backward pass, in which they become their gradients.
#[derive(Default)]
pub(super) struct Gated {
    /// Where products are in single precision.
    floats: [Buffer; 2],
    /// Where they are in bf16.
    rounded: [Rounded; 2],
}

/// The modules of a block.
struct Block<'a> {
    kernels: &'a Kernels,
    compute: Compute,
    /// Elements in a row of gate and up.
    width: usize,
    gate: Module<'a>,
    up: Module<'a>,
    down: Module<'a>,
}

impl<'a> Block<'a> {
    fn of(base: &'a Base, layer: usize, adapted: Option<Adapted<'a>>) -> Block<'a> {
        let linears = &base.layers[layer].linears;
        let module = |target: Target| Module::new(&base.kernels, &linears[target.index()], adapted, (layer, target));
        Block {
            kernels: &base.kernels,
            compute: base.compute,
            width: base.config.intermediate_size,
            gate: module(Target::Gate),
            up: module(Target::Up),
            down: module(Target::Down),
        }
    }

    /// Whether gate and up, or their gradients, are needed as they are.
    fn gates_adapted(&self) -> bool {
        self.gate.adapted.is_some() || self.up.adapted.is_some()
    }

    /// The weights of gate, up and down, where one kernel goes through the gate and the products beside it.
    fn fused(&self) -> Option<[&'a Bf16Matrix; 3]> {
        let is_plain = |module: &Module<'_>| module.adapted.is_none() && module.linear.bias.is_none();
        if self.down.adapted.is_some() || !is_plain(&self.gate) || !is_plain(&self.up) {
            return None;
        }
        let weight = |module: &Module<'a>| module.linear.weight.packed();
        Some([weight(&self.gate)?, weight(&self.up)?, weight(&self.down)?])
    }

    /// From the norm to the input of down.
    fn gated<'b>(&self, x: Rows<'_>, kept: &mut Kept, buffers: Gating<'b>, dropped: &mut Buffer) -> Rows<'b> {
        let Gating { gated, wide, wide_rounded } = buffers;
        if let Some([gate, up, _]) = self.fused() {
            self.kernels.gated_rounded(x.rounded(), [gate, up], &mut kept.gated.rounded, wide_rounded);
            return Rows::packed(wide_rounded, None);
        }
        let gated = match self.compute {
            Compute::F32 => &mut kept.gated.floats,
            Compute::Bf16 => gated,
        };
        let len = kept.middle.len() / self.gate.linear.weight.inputs() * self.width;
        for (out, (module, target)) in gated.iter_mut().zip([(&self.gate, Target::Gate), (&self.up, Target::Up)]) {
            module.forward(x, out.fit(len), &mut kept.low[target.index()], dropped);
        }
        let [gate, up] = &*gated;
        match self.compute {
            Compute::F32 => {
                self.kernels.swiglu_into(gate, up, wide.fit(len));
                Rows::exact(wide)
            }
            Compute::Bf16 => {
                self.kernels.gate_rounded((gate, up), len / self.width, &mut kept.gated.rounded, wide_rounded);
                let floats = self.down.adapted.is_some().then(|| {
                    self.kernels.swiglu_into(gate, up, wide.fit(len));
                    &**wide
                });
                Rows::packed(wide_rounded, floats)
            }
        }
    }

    /// From the gradient of the block to those of gate and up, which take the place of what was kept.
    fn gated_backward<'b>(
        &self,
        d_out: Rows<'_>,
        (kept, low): (&'b mut Gated, &[f32]),
        (wide, d_wide, gated): (&mut Buffer, &mut Buffer, &'b mut [Buffer; 2]),
        (gradients, buffers): (&mut [f32], Buffers<'_>),
    ) -> [Rows<'b>; 2] {
        if let Some([_, _, down]) = self.fused() {
            self.kernels.gated_backward(d_out.rounded(), down, &mut kept.rounded);
            return kept.rounded.each_ref().map(|rounded| Rows::packed(rounded, None));
        }
        let len = match self.compute {
            Compute::F32 => kept.floats[0].len(),
            Compute::Bf16 => kept.rounded[0].rows() * self.width,
        };
        let (wide, d_wide) = (wide.fit(len), d_wide.fit(len));
        if self.down.adapted.is_some() {
            match self.compute {
                Compute::F32 => self.kernels.swiglu_into(&kept.floats[0], &kept.floats[1], wide),
                Compute::Bf16 => self.kernels.gate_kept(&kept.rounded, wide),
            }
        }
        let inputs = Inputs { x: wide, low, d_out };
        backward(self.kernels, &[(&self.down.linear.weight, d_out)], d_wide);
        self.down.backward(&inputs, Some(&mut *d_wide), gradients, buffers);
        match self.compute {
            Compute::F32 => {
                let [gate, up] = &mut kept.floats;
                self.kernels.swiglu_backward(gate, up, d_wide);
                kept.floats.each_ref().map(|gradient| Rows::exact(gradient))
            }
            Compute::Bf16 => {
                self.kernels.gate_backward(d_wide, &mut kept.rounded, gated.each_mut().map(|out| out.fit(len)));
                let [gate, up] = &kept.rounded;
                [Rows::packed(gate, Some(&gated[0])), Rows::packed(up, Some(&gated[1]))]
            }
        }
    }
}

/// Where gate and up, and what goes to down, are made.
struct Gating<'a> {
    gated: &'a mut [Buffer; 2],
    wide: &'a mut Buffer,
    wide_rounded: &'a mut Rounded,
}

impl Pass<'_> {
    /// From `kept.middle` to `work.x`.
    pub(super) fn feed_forward(&mut self, layer: usize, adapted: Option<Adapted<'_>>, kept: &mut Kept) {
        let (base, config, weights) = (self.base, &self.base.config, &self.base.layers[layer]);
        let block = Block::of(base, layer, adapted);
        let work = &mut self.work;
        let keeps_floats = block.gates_adapted();
        let buffers = RowBuffers { floats: &mut work.normed, rounded: &mut work.rounded, keeps_floats };
        let norm = (&*kept.middle, &*weights.ffn_norm, config.norm_eps);
        let input = block.gate.linear.weight.prepare_norm(block.kernels, norm, buffers);
        let buffers = Gating { gated: &mut work.gated, wide: &mut work.wide, wide_rounded: &mut work.wide_rounded };
        let input = block.gated(input, kept, buffers, &mut work.dropped);
        let out = work.normed.fit(kept.middle.len());
        block.down.forward(input, out, &mut kept.low[Target::Down.index()], &mut work.dropped);
        block.kernels.add(out, &kept.middle);
        std::mem::swap(&mut work.normed, &mut work.x);
    }

    /// Gate and up of the layer become their gradients: nobody reads them afterwards.
    pub(super) fn feed_forward_backward(
        &mut self,
        layer: usize,
        kept: &mut Kept,
        adapted: Adapted<'_>,
        gradients: &mut [f32],
    ) {
        let (base, config, weights) = (self.base, &self.base.config, &self.base.layers[layer]);
        let block = Block::of(base, layer, Some(adapted));
        let work = &mut self.work;
        let d_out = block.down.linear.weight.rows(&work.x, &work.gradient);
        let buffers = Buffers { dropped: &mut work.dropped, d_low: &mut work.d_low };
        let places = (&mut work.wide, &mut work.d_wide, &mut work.gated);
        let normed = work.normed.fit(work.x.len());
        if block.gates_adapted() {
            block.kernels.rms_norm(&kept.middle, &weights.ffn_norm, config.norm_eps, normed);
        }
        let d_normed = work.d_normed.fit(work.x.len());
        let low = |target: Target| &*kept.low[target.index()];
        let d_outs = block.gated_backward(d_out, (&mut kept.gated, low(Target::Down)), places, (gradients, buffers));
        let modules = [(&block.gate, Target::Gate), (&block.up, Target::Up)];
        let terms = [0, 1].map(|index| (&modules[index].0.linear.weight, d_outs[index]));
        backward(block.kernels, &terms, d_normed);
        for ((module, target), d_out) in modules.into_iter().zip(d_outs) {
            let inputs = Inputs { x: normed, low: low(target), d_out };
            let buffers = Buffers { dropped: &mut work.dropped, d_low: &mut work.d_low };
            module.backward(&inputs, Some(&mut *d_normed), gradients, buffers);
        }
        let norm = (&*kept.middle, &*weights.ffn_norm, config.norm_eps);
        let sum = (&mut *work.x, &mut work.gradient);
        let o = &weights.linears[Target::O.index()].weight;
        o.prepare_norm_backward(block.kernels, norm, d_normed, sum);
    }
}
