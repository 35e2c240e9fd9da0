//! Storage of keys and values in blocks of slots; which sequence owns which block is the scheduler's knowledge, not ours.

use bespoke_kernels::KvShape;

use crate::ModelConfig;

/// The keys and values of every layer.
///
/// **Shapes**: for each layer k and v `(B, K, S, E)`. The memory is zeroed lazily by the system: a block costs nothing before
/// its first write.
pub struct KvCache {
    num_blocks: usize,
    block_tokens: usize,
    num_kv_heads: usize,
    head_dim: usize,
    layers: Vec<LayerCache>,
}

struct LayerCache {
    k: Vec<f32>,
    v: Vec<f32>,
}

impl KvCache {
    /// Reserves `num_blocks` blocks of `block_tokens` slots.
    ///
    /// **Panics**: if a size is zero, or if the product of all sizes does not fit in memory's address range.
    pub fn new(config: &ModelConfig, num_blocks: usize, block_tokens: usize) -> KvCache {
        assert!(num_blocks > 0 && block_tokens > 0, "a cache has at least one block of one slot");
        let len = config.kv_size().checked_mul(block_tokens).and_then(|size| size.checked_mul(num_blocks));
        let len = len.expect("invariant: the scheduler asks for a cache that fits in memory");
        // `vec![0.0; n]` asks for zeroed pages, which Linux commits at the first write.
        let layer = |_| LayerCache { k: vec![0.0; len], v: vec![0.0; len] };
        KvCache {
            num_blocks,
            block_tokens,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            layers: (0..config.num_layers).map(layer).collect(),
        }
    }

    /// Returns the size of one block over all layers.
    ///
    /// **Units**: bytes.
    pub fn block_bytes(config: &ModelConfig, block_tokens: usize) -> usize {
        2 * config.num_layers * config.kv_size() * block_tokens * size_of::<f32>()
    }

    /// Returns the number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Returns the number of slots of a block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Returns the shape that the attention kernel needs.
    pub(crate) fn shape(&self) -> KvShape {
        KvShape { block_tokens: self.block_tokens, kv_heads: self.num_kv_heads, head_dim: self.head_dim }
    }

    /// Says whether the cache was made for this configuration.
    pub(crate) fn fits(&self, config: &ModelConfig) -> bool {
        (self.layers.len(), self.num_kv_heads, self.head_dim)
            == (config.num_layers, config.num_kv_heads, config.head_dim)
    }

    /// Returns the keys and the values of a layer.
    pub(crate) fn layer(&self, layer: usize) -> (&[f32], &[f32]) {
        let layer = &self.layers[layer];
        (&layer.k, &layer.v)
    }

    /// Writes the key and the value of one row.
    ///
    /// **Shapes**: `k` and `v` are `(K, E)`. **Panics**: if the layer, block or slot does not exist.
    pub(crate) fn write(&mut self, layer: usize, slot: KvSlot, k: &[f32], v: &[f32]) {
        assert!(slot.slot < self.block_tokens, "slot {} of a block of {}", slot.slot, self.block_tokens);
        let layer = &mut self.layers[layer];
        for head in 0..self.num_kv_heads {
            let start = ((slot.block * self.num_kv_heads + head) * self.block_tokens + slot.slot) * self.head_dim;
            let (row, place) = (head * self.head_dim..(head + 1) * self.head_dim, start..start + self.head_dim);
            layer.k[place.clone()].copy_from_slice(&k[row.clone()]);
            layer.v[place].copy_from_slice(&v[row]);
        }
    }
}

/// The place of one position of one sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KvSlot {
    pub(crate) block: usize,
    pub(crate) slot: usize,
}
