//! The pass of the encoder: texts after each other without padding, on plain slices and a preallocated workspace.

use bespoke_kernels::{Attention, AttentionRow, Kernels, KvBuffer, KvDType, KvShape};

use super::weights::{Affine, EncoderLayer, Norm};
use super::{Encoder, EncoderConfig};
use crate::ModelError;

/// Keys of a text are kept in blocks of so many: little is wasted at its end.
const BLOCK_TOKENS: usize = 16;

/// Buffers for steps of up to `rows_max` tokens and `texts_max` texts.
pub struct EncoderWorkspace {
    rows_max: usize,
    texts_max: usize,
    width: usize,
    /// **Shapes**: `(T, D)`, as all up to `heads`.
    hidden: Vec<f32>,
    projected: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    heads: Vec<f32>,
    /// **Shapes**: `(T, F)`.
    wide: Vec<f32>,
    /// Keys and values of the layer that is computed; the next one overwrites them.
    keys: KvBuffer,
    values: KvBuffer,
    /// The numbers of all blocks, of which each text has a range.
    blocks: Vec<u32>,
}

impl EncoderWorkspace {
    /// Allocates the buffers; a step has room for one text of full length at least.
    pub fn new(config: &EncoderConfig, rows_max: usize, texts_max: usize) -> EncoderWorkspace {
        let rows_max = rows_max.max(config.tokens_max);
        let buffer = |width: usize| vec![0.0; rows_max * width];
        let shape = KvShape { block_tokens: BLOCK_TOKENS, kv_heads: config.num_heads, head_dim: config.head_dim() };
        let num_blocks = rows_max.div_ceil(BLOCK_TOKENS) + texts_max;
        let width = config.hidden_size;
        EncoderWorkspace {
            rows_max,
            texts_max,
            width,
            hidden: buffer(width),
            projected: buffer(width),
            q: buffer(width),
            k: buffer(width),
            v: buffer(width),
            heads: buffer(width),
            wide: buffer(config.intermediate_size),
            keys: KvBuffer::keys(KvDType::F32, shape, num_blocks),
            values: KvBuffer::values(KvDType::F32, shape, num_blocks),
            blocks: (0..num_blocks as u32).collect(),
        }
    }

    /// Returns the number of tokens that a step may have.
    pub fn rows_max(&self) -> usize {
        self.rows_max
    }

    /// Returns the number of texts that a step may have.
    pub fn texts_max(&self) -> usize {
        self.texts_max
    }
}

/// A text of a step: its tokens and its first block.
struct Placed<'t> {
    ids: &'t [u32],
    block: usize,
}

impl Encoder {
    /// Runs all layers and returns the last hidden states. **Shapes**: `(T, D)`.
    pub(super) fn forward<'w>(
        &self,
        texts: &[&[u32]],
        workspace: &'w mut EncoderWorkspace,
    ) -> Result<&'w [f32], ModelError> {
        assert_eq!(workspace.width, self.config.hidden_size, "the workspace was made for another configuration");
        let placed = self.place(texts, workspace)?;
        let num_rows: usize = texts.iter().map(|text| text.len()).sum();
        self.look_up(texts, workspace);
        let EncoderWorkspace { hidden, projected, q, k, v, heads, wide, keys, values, blocks, .. } = workspace;
        let width = self.config.hidden_size;
        let hidden = &mut hidden[..num_rows * width];
        let projected = &mut projected[..num_rows * width];
        let (q, k, v) = (&mut q[..num_rows * width], &mut k[..num_rows * width], &mut v[..num_rows * width]);
        let heads = &mut heads[..num_rows * width];
        let wide = &mut wide[..num_rows * self.config.intermediate_size];
        normalise(&self.kernels, hidden, &self.weights.norm, self.config.norm_eps);
        let blocks: &[u32] = blocks;
        let visible: Vec<AttentionRow<'_>> = placed
            .iter()
            .flat_map(|text| {
                let blocks = &blocks[text.block..][..text.ids.len().div_ceil(BLOCK_TOKENS)];
                std::iter::repeat_n(AttentionRow { blocks, start: 0, end: text.ids.len() }, text.ids.len())
            })
            .collect();
        let scale = 1.0 / (self.config.head_dim() as f32).sqrt();
        for layer in &self.weights.layers {
            self.apply(&layer.q, hidden, q);
            self.apply(&layer.k, hidden, k);
            self.apply(&layer.v, hidden, v);
            keep(&placed, width, k, keys);
            keep(&placed, width, v, values);
            let attention = Attention { q, k: keys, v: values, heads: self.config.num_heads, scale, rows: &visible };
            self.kernels.attention(attention, heads);
            self.apply(&layer.o, heads, projected);
            self.add_and_normalise(hidden, projected, &layer.attention_norm);
            self.feed_forward(layer, hidden, wide, projected);
        }
        Ok(hidden)
    }

    /// Checks a step and gives each text its blocks.
    fn place<'t>(&self, texts: &[&'t [u32]], workspace: &EncoderWorkspace) -> Result<Vec<Placed<'t>>, ModelError> {
        let too_large = |rows, found, limit| ModelError::StepTooLarge { rows, found, limit };
        if texts.len() > workspace.texts_max {
            return Err(too_large("texts", texts.len(), workspace.texts_max));
        }
        let num_rows: usize = texts.iter().map(|text| text.len()).sum();
        if num_rows > workspace.rows_max {
            return Err(too_large("rows", num_rows, workspace.rows_max));
        }
        let mut block = 0;
        let mut placed = Vec::with_capacity(texts.len());
        for &ids in texts {
            assert!(!ids.is_empty(), "a text without a token");
            if ids.len() > self.config.num_positions {
                let (position, context_length) = (ids.len() as u32 - 1, self.config.num_positions);
                return Err(ModelError::PositionOutOfRange { position, context_length });
            }
            if let Some(&token) = ids.iter().find(|&&id| id as usize >= self.config.vocab_size) {
                return Err(ModelError::TokenOutOfRange { token, vocab_size: self.config.vocab_size });
            }
            placed.push(Placed { ids, block });
            block += ids.len().div_ceil(BLOCK_TOKENS);
        }
        Ok(placed)
    }

    /// Writes the sum of the three embeddings of each token to the hidden states.
    fn look_up(&self, texts: &[&[u32]], workspace: &mut EncoderWorkspace) {
        let width = self.config.hidden_size;
        let weights = &self.weights;
        let rows = texts.iter().flat_map(|text| text.iter().enumerate());
        let position = &mut workspace.projected[..width];
        for ((place, &id), hidden) in rows.zip(workspace.hidden.chunks_exact_mut(width)) {
            weights.words.dequantize_row(id as usize, hidden);
            weights.positions.dequantize_row(place, position);
            for ((hidden, position), kind) in hidden.iter_mut().zip(position.iter()).zip(&weights.kind) {
                *hidden += position + kind;
            }
        }
    }

    fn feed_forward(&self, layer: &EncoderLayer, hidden: &mut [f32], wide: &mut [f32], projected: &mut [f32]) {
        self.apply(&layer.up, hidden, wide);
        self.kernels.gelu(wide);
        self.apply(&layer.down, wide, projected);
        self.add_and_normalise(hidden, projected, &layer.output_norm);
    }

    /// `out = x weight^T + bias`.
    fn apply(&self, affine: &Affine, x: &[f32], out: &mut [f32]) {
        self.kernels.matmul(x, x.len() / affine.weight.cols(), &affine.weight, out);
        self.kernels.add_bias(out, &affine.bias);
    }

    fn add_and_normalise(&self, hidden: &mut [f32], projected: &[f32], norm: &Norm) {
        self.kernels.add(hidden, projected);
        normalise(&self.kernels, hidden, norm, self.config.norm_eps);
    }
}

fn normalise(kernels: &Kernels, hidden: &mut [f32], norm: &Norm, eps: f32) {
    kernels.layer_norm(hidden, &norm.weight, &norm.bias, eps);
}

/// Writes keys or values of all texts to their blocks.
fn keep(placed: &[Placed<'_>], width: usize, rows: &[f32], buffer: &mut KvBuffer) {
    let places = placed
        .iter()
        .flat_map(|text| (0..text.ids.len()).map(|place| (text.block + place / BLOCK_TOKENS, place % BLOCK_TOKENS)));
    for ((block, slot), row) in places.zip(rows.chunks_exact(width)) {
        buffer.write(block, slot, row);
    }
}
