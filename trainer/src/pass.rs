//! The training pass: a whole forward and backward pass over plain slices, the base frozen, gradients for the adapter alone.
//!
//! Shape letters are those of `engine/model/src/lib.rs`; `S` is the number of predictions that count. [`Pass::forward`] keeps what the
//! backward pass needs: the rows between the blocks, q, k, v, the output of attention, gate and up (rounded where products are in
//! bf16). Norms, SwiGLU and probabilities are computed again. With checkpointing only the rows between the layers are kept, and each
//! layer runs twice.
//!
//! The head is fused: hidden states become log-probabilities *and* their unit gradients in chunks, so tokens x vocabulary is never
//! held. A loss only scales the unit gradients ([`Pass::backward`] takes one factor for each prediction), whatever its kind.

mod backward;
mod feed_forward;
mod forward;
mod head;
mod linear;

use bespoke_kernels::{Buffer, CausalAttention, Rounded};

use crate::base::Base;
use crate::batch::Batch;
use crate::frozen::Compute;
use crate::lora::Lora;
use crate::random::Dropout;

/// Runs batches through a frozen model with an adapter. Buffers grow to the largest batch and stay.
pub struct Pass<'a> {
    base: &'a Base,
    checkpointing: bool,
    layers: Vec<Kept>,
    head: head::Kept,
    work: Work,
}

/// What a layer leaves for its backward pass.
#[derive(Default)]
struct Kept {
    /// Rows before the layer `(T, D)`.
    x: Buffer,
    /// Rows between attention and feed-forward block `(T, D)`.
    middle: Buffer,
    /// `(T, H, E)`, rotated.
    q: Buffer,
    /// `(T, K, E)`, rotated.
    k: Buffer,
    v: Buffer,
    /// q and k before the norms of their heads (Qwen3).
    raw: [Buffer; 2],
    /// Output of attention `(T, H, E)`.
    heads: Buffer,
    /// `(T, H)`.
    log_sums: Buffer,
    gated: feed_forward::Gated,
    /// `scale A x` of each module that has factors, by `Target::index`: `(T, r)`.
    low: [Buffer; 7],
}

/// Buffers that live within one call.
#[derive(Default)]
struct Work {
    /// Rows on their way, or their gradient `(T, D)`.
    x: Buffer,
    normed: Buffer,
    d_normed: Buffer,
    wide: Buffer,
    d_wide: Buffer,
    d_heads: Buffer,
    d_q: Buffer,
    d_k: Buffer,
    d_v: Buffer,
    /// Inputs of factors with dropout, and gradients on their way back.
    dropped: Buffer,
    d_low: Buffer,
    /// Inputs of frozen matrices, where these are in bf16.
    rounded: Rounded,
    /// Gradients of q, k and v, rounded.
    rounded_qkv: [Rounded; 3],
    /// `x` rounded, while it is a gradient.
    gradient: Rounded,
    /// Gate and up, or their gradients, where they are kept rounded but needed as they are `(T, F)`.
    gated: [Buffer; 2],
    /// The input of the last product of a layer, where products are in bf16.
    wide_rounded: Rounded,
}

/// An adapter in use, and what is dropped of its inputs.
#[derive(Clone, Copy)]
pub struct Adapted<'a> {
    /// The adapter.
    pub lora: &'a Lora,
    /// `None` for evaluation.
    pub dropout: Option<Dropout>,
}

impl<'a> Adapted<'a> {
    /// The adapter without dropout.
    pub fn plain(lora: &'a Lora) -> Adapted<'a> {
        Adapted { lora, dropout: None }
    }
}

impl<'a> Pass<'a> {
    /// Prepares a pass over a model.
    pub fn new(base: &'a Base, checkpointing: bool) -> Pass<'a> {
        let num_kept = if checkpointing { 1 } else { base.layers.len() };
        let layers = (0..num_kept.max(1)).map(|_| Kept::default()).collect();
        Pass { base, checkpointing, layers, head: head::Kept::default(), work: Work::default() }
    }

    /// The model.
    pub fn base(&self) -> &'a Base {
        self.base
    }

    fn attention<'b>(&self, kept: &'b Kept, batch: &'b Batch, layer: usize) -> CausalAttention<'b> {
        let config = &self.base.config;
        CausalAttention {
            q: &kept.q,
            k: &kept.k,
            v: &kept.v,
            heads: config.num_heads,
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            scale: 1.0 / (config.head_dim as f32).sqrt(),
            window: config.layer_windows[layer],
            trees: &batch.trees,
            bf16: self.base.compute == Compute::Bf16,
        }
    }
}
