//! Storage of keys and values in blocks of slots; which sequence owns which block is the scheduler's knowledge, not ours.

use bespoke_kernels::{KvBuffer, KvDType, KvShape};

use crate::{ModelConfig, ModelError};

/// The keys and values of every layer.
///
/// **Shapes**: for each layer k `(B, K, E, S)` and v `(B, K, S, E)`. The memory is zeroed lazily by the system: a block costs nothing before
/// its first write.
pub struct KvCache {
    shape: KvShape,
    num_blocks: usize,
    /// Keys and values of each layer.
    layers: Vec<(KvBuffer, KvBuffer)>,
}

impl KvCache {
    /// Reserves `num_blocks` blocks of `block_tokens` slots.
    ///
    /// **Errors**: `KvDType` for a format that cannot hold the model's heads. **Panics**: if a size is zero, or if the product of
    /// all sizes does not fit in memory's address range.
    pub fn new(
        config: &ModelConfig,
        dtype: KvDType,
        num_blocks: usize,
        block_tokens: usize,
    ) -> Result<KvCache, ModelError> {
        assert!(num_blocks > 0 && block_tokens > 0, "a cache has at least one block of one slot");
        KvCache::block_bytes(config, dtype, block_tokens)?;
        let shape = KvShape { block_tokens, kv_heads: config.num_kv_heads, head_dim: config.head_dim };
        let layer = |_| (KvBuffer::keys(dtype, shape, num_blocks), KvBuffer::values(dtype, shape, num_blocks));
        let layers = (0..config.num_layers).map(layer).collect();
        Ok(KvCache { shape, num_blocks, layers })
    }

    /// Returns the size of one block over all layers.
    ///
    /// **Units**: bytes. **Errors**: as [`KvCache::new`].
    pub fn block_bytes(config: &ModelConfig, dtype: KvDType, block_tokens: usize) -> Result<usize, ModelError> {
        let head_dim = config.head_dim;
        let head_bytes = dtype.head_bytes(head_dim).ok_or(ModelError::KvDType { dtype, head_dim })?;
        Ok(2 * config.num_layers * config.num_kv_heads * block_tokens * head_bytes)
    }

    /// Returns the number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Returns the number of slots of a block.
    pub fn block_tokens(&self) -> usize {
        self.shape.block_tokens
    }

    /// Says whether the cache was made for this configuration.
    pub(crate) fn fits(&self, config: &ModelConfig) -> bool {
        (self.layers.len(), self.shape.kv_heads, self.shape.head_dim)
            == (config.num_layers, config.num_kv_heads, config.head_dim)
    }

    /// Returns the keys and the values of a layer.
    pub(crate) fn layer(&self, layer: usize) -> (&KvBuffer, &KvBuffer) {
        let (k, v) = &self.layers[layer];
        (k, v)
    }

    /// Returns the keys and the values of a layer, to write to.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> (&mut KvBuffer, &mut KvBuffer) {
        let (k, v) = &mut self.layers[layer];
        (k, v)
    }
}
