//! The serving pass: one ragged step of rows from several sequences, on plain slices and a preallocated workspace.
//!
//! Follow [`Model::forward`]: the step is checked, each row's embedding goes through the layers, and the rows that want
//! logits go through the output matrix. The keys and values of all rows are written before a layer attends, so the rows of
//! one prefill chunk see each other. A row's result does not depend on the other rows of its step, bit for bit; it may depend on
//! whether its token is one of a prompt or of an answer.

mod projection;
mod step;
mod workspace;

use std::path::Path;

use bespoke_kernels::{Attention, AttentionRow, DType, Kernels, KvDType, NewRows, Rope};

use crate::{KvCache, LayerWeights, Linear, ModelConfig, ModelError, ModelSource, Quantization, Weight, Weights};

use projection::{Projection, Scratch};
pub use step::{Step, StepRow};
pub use workspace::Workspace;
use workspace::recycle;

/// A loaded model: configuration, weights and the kernels that run it.
pub struct Model {
    name: String,
    digest: String,
    config: ModelConfig,
    weights: Weights,
    rope: Rope,
    kernels: Kernels,
    prompts_differ: bool,
}

/// How a model is loaded.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// Threads that share each matrix product, the caller included.
    pub num_threads: usize,
    /// Upper limit of the context length, in tokens.
    pub context_limit: Option<usize>,
    /// What the matrices are quantized to while they are loaded; only those of floats can be.
    pub quantization: Quantization,
}

impl Default for LoadOptions {
    /// One thread, the model's own context, weights as they are stored.
    fn default() -> LoadOptions {
        LoadOptions { num_threads: 1, context_limit: None, quantization: Quantization::None }
    }
}

impl Model {
    /// Opens and loads a Hugging Face folder, a `.gguf` file, or a folder that holds exactly one `.gguf` file.
    ///
    /// **Errors**: every variant of [`ModelError`] that does not speak of a step.
    pub fn load(path: &Path, options: LoadOptions) -> Result<Model, ModelError> {
        Model::from_source(&ModelSource::open(path)?, options)
    }

    /// Loads an opened model.
    ///
    /// **Errors**: as [`Model::load`].
    pub fn from_source(source: &ModelSource, options: LoadOptions) -> Result<Model, ModelError> {
        let mut config = source.config()?;
        if let Some(limit) = options.context_limit {
            config.context_length = config.context_length.min(limit.max(1));
        }
        let mut weights = Weights::load_with(source, &config, options)?;
        let frequencies = config.inverse_frequencies(weights.rope_divisors.as_deref());
        // No supported scaling has an attention factor.
        let rope = Rope::new(weights.rope_style, &frequencies, config.context_length, 1.0);
        let kernels = Kernels::new(options.num_threads)?;
        weights.pack(config.tie_embeddings, &kernels);
        let prompts_differ = kernels.has_tiles() && weights.has_packed();
        Ok(Model { name: source.name(), digest: source.digest()?, config, weights, rope, kernels, prompts_differ })
    }

    /// Returns the configuration, its context length already limited.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns the weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Returns the digest that [`ModelSource::digest`] defines.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns the name the model gives itself, else that of its folder or file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the number format that holds most of the parameters.
    pub fn dtype(&self) -> DType {
        self.weights.main_dtype(&self.config)
    }

    /// Returns the format that keys and values are kept in unless another is asked for: half precision where the weights are
    /// quantized, so that it is not what costs accuracy, single precision where they are floats.
    pub fn default_kv_dtype(&self) -> KvDType {
        let is_quantized = self.dtype().block_len() > 1;
        if is_quantized && KvDType::F16.supports(self.config.head_dim) { KvDType::F16 } else { KvDType::F32 }
    }

    /// Whether the tokens of prompts are computed with other products than those of answers, so that keys and values of the same token
    /// differ in their last digits: quantized weights are decoded to bf16 and multiplied in tile registers, where there are any, and so
    /// are queries, keys and values. Logits are computed alike for both.
    ///
    /// Which way a row takes depends on nothing but [`Step::num_answer_rows`].
    pub fn prompts_differ(&self) -> bool {
        self.prompts_differ
    }

    /// Returns the name of the instruction set that the kernels use.
    pub fn isa(&self) -> String {
        self.kernels.isa().to_string()
    }

    /// Counts the parameters, tied embeddings once.
    pub fn num_parameters(&self) -> u64 {
        self.weights.num_parameters(&self.config)
    }

    /// Runs one step: writes keys and values of its rows to the cache, and the wanted logits to the workspace.
    ///
    /// A row at position `p` sees the positions `0..=p` of its sequence, or the latest of them where the layer has a window;
    /// those before the step must already be in the cache.
    ///
    /// **Errors**: `StepTooLarge`, `TokenOutOfRange`, `PositionOutOfRange`, `BlockTable`; the cache is then unchanged.
    /// **Panics**: if the cache or the workspace was made for another configuration, or there are fewer rows than rows of answers.
    pub fn forward(&self, step: &Step<'_>, cache: &mut KvCache, workspace: &mut Workspace) -> Result<(), ModelError> {
        assert!(cache.fits(&self.config), "the cache was made for another configuration");
        assert!(workspace.fits(&self.config), "the workspace was made for another configuration");
        assert!(step.num_answer_rows <= step.rows.len(), "{} rows of answers", step.num_answer_rows);
        step.check(&self.config, cache)?;
        workspace.begin(step, cache.block_tokens())?;
        if step.rows.is_empty() {
            return Ok(());
        }
        let hidden_size = self.config.hidden_size;
        for (row, hidden) in step.rows.iter().zip(workspace.hidden.chunks_exact_mut(hidden_size)) {
            self.weights.embeddings.dequantize_row(row.token as usize, hidden);
        }
        for (layer, weights) in self.weights.layers.iter().enumerate() {
            self.attend(step, layer, cache, workspace);
            self.feed_forward(step, weights, workspace);
        }
        self.compute_logits(workspace);
        Ok(())
    }

    /// Adds the attention block of one layer to the hidden states.
    fn attend(&self, step: &Step<'_>, layer: usize, cache: &mut KvCache, workspace: &mut Workspace) {
        let (config, kernels, weights) = (&self.config, &self.kernels, &self.weights.layers[layer]);
        let num_integer_rows = self.num_integer_rows(step);
        let w = workspace.rows();
        let projections =
            [Projection::new(&weights.q, w.q), Projection::new(&weights.k, w.k), Projection::new(&weights.v, w.v)];
        let scratch = Scratch { plain: w.normed, activations: w.activations, num_integer_rows };
        self.project_normed(w.hidden, &weights.attn_norm, scratch, projections);
        self.normalise_heads(weights, w.q, w.k, w.heads);
        let (keys, values) = cache.layer_mut(layer);
        let rows = NewRows { q: w.q, k: w.k, v: w.v, positions: w.positions, slots: w.slots };
        kernels.store(&self.rope, rows, keys, values);

        let window = config.layer_windows[layer];
        let mut visible: Vec<AttentionRow<'_>> = recycle(std::mem::take(w.visible));
        visible.extend(step.rows.iter().map(|row| {
            let end = row.position as usize + 1;
            let start = window.map_or(0, |window| end.saturating_sub(window));
            AttentionRow { blocks: step.block_tables[row.sequence as usize], start, end }
        }));
        let (k, v) = cache.layer(layer);
        let scale = 1.0 / (config.head_dim as f32).sqrt();
        let (answers, prompts) = visible.split_at(num_integer_rows);
        let (q, prompts_q) = w.q.split_at(num_integer_rows * config.query_size());
        let (heads, prompts_heads) = w.heads.split_at_mut(q.len());
        let attention = Attention { q, k, v, heads: config.num_heads, scale, rows: answers };
        kernels.attention(attention, heads);
        kernels.attention_bf16(Attention { q: prompts_q, rows: prompts, ..attention }, prompts_heads);
        *w.visible = recycle(visible);

        let scratch = Scratch { plain: w.projected, activations: w.activations, num_integer_rows };
        self.project_add(w.heads, step.rows.len(), scratch, Projection::new(&weights.o, w.hidden));
    }

    /// Rows of a step whose packed products are of integers.
    fn num_integer_rows(&self, step: &Step<'_>) -> usize {
        if self.prompts_differ() { step.num_answer_rows } else { step.rows.len() }
    }

    /// Normalises each head of q and k (Qwen3); `scratch` is at least as wide as q.
    fn normalise_heads(&self, weights: &LayerWeights, q: &mut [f32], k: &mut [f32], scratch: &mut [f32]) {
        for (heads, norm) in [(q, &weights.q_norm), (k, &weights.k_norm)] {
            if let Some(norm) = norm {
                let scratch = &mut scratch[..heads.len()];
                scratch.copy_from_slice(heads);
                self.kernels.rms_norm(scratch, norm, self.config.norm_eps, heads);
            }
        }
    }

    /// Adds the feed-forward block of one layer to the hidden states.
    fn feed_forward(&self, step: &Step<'_>, weights: &LayerWeights, workspace: &mut Workspace) {
        let num_integer_rows = self.num_integer_rows(step);
        let w = workspace.rows();
        let scratch = Scratch { plain: w.normed, activations: w.activations, num_integer_rows };
        let LayerWeights { ffn_norm, gate, up, down, .. } = weights;
        let projections = [Projection::new(gate, w.gate), Projection::new(up, w.up)];
        let is_packed = |linear: &Linear| matches!(linear.weight, Weight::Packed(_));
        if [gate, up, down].into_iter().all(is_packed) && gate.bias.is_none() && up.bias.is_none() {
            return self.feed_forward_packed(weights, w.hidden, projections, (scratch, w.gated));
        }
        self.project_normed(w.hidden, ffn_norm, scratch, projections);
        self.kernels.swiglu(w.gate, w.up);
        let scratch = Scratch { plain: w.projected, activations: w.activations, num_integer_rows };
        self.project_add(w.gate, step.rows.len(), scratch, Projection::new(down, w.hidden));
    }

    /// Takes the rows that want logits through the final norm and the output matrix.
    fn compute_logits(&self, workspace: &mut Workspace) {
        let w = workspace.logit_rows(self.config.hidden_size, self.config.vocab_size);
        if w.gathered.is_empty() {
            return;
        }
        let num_integer_rows = w.gathered.len() / self.config.hidden_size;
        let scratch = Scratch { plain: w.normed, activations: w.activations, num_integer_rows };
        let projection = Projection::new(&self.weights.output, w.logits);
        self.project_normed(w.gathered, &self.weights.final_norm, scratch, [projection]);
    }
}

#[cfg(test)]
mod tests {
    use bespoke_testkit::{TinyDtype, TinyModel};

    use super::*;

    fn logits(model: &Model) -> Vec<f32> {
        let mut cache = KvCache::new(model.config(), KvDType::F32, 4, 16).unwrap();
        let mut workspace = Workspace::new(model, 40, 40);
        let row = |position| StepRow { token: position * 7 + 5, position, sequence: 0, wants_logits: true };
        let rows: Vec<StepRow> = (0..40).map(row).collect();
        model
            .forward(
                &Step { rows: &rows, num_answer_rows: 20, block_tables: &[&[2, 0, 3, 1]] },
                &mut cache,
                &mut workspace,
            )
            .unwrap();
        workspace.logits().flatten().copied().collect()
    }

    /// On every processor, what is done by itself where there are instructions for bf16. The logits' deviation is 2.5; the
    /// largest difference found is 0.13.
    #[test]
    fn weights_packed_for_products_in_bf16_compute_nearly_the_same() {
        for tie_embeddings in [false, true] {
            let tiny = TinyModel { dtype: TinyDtype::Bf16, tie_embeddings, ..TinyModel::default() };
            let folder = tiny.write_hf().unwrap();
            let mut model = Model::load(folder.path(), LoadOptions::default()).unwrap();
            let exact = logits(&model);
            let kernels = model.kernels.clone();
            if !kernels.has_bf16() {
                assert!(model.weights.pack_bf16(&kernels));
            }
            let rounded = logits(&model);
            let differences = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs());
            let largest = differences.fold(0.0, f32::max);
            assert!(largest < 0.3 && (largest > 0.0) != kernels.has_bf16(), "{largest}");
        }
    }

    /// Gate and up packed and `down` not, and the other way round: no farther off than a model that is packed whole.
    #[test]
    fn layers_of_which_only_some_matrices_are_packed_compute_nearly_the_same() {
        let folder = TinyModel::default().write_hf().unwrap();
        let quantized = LoadOptions { quantization: Quantization::Q8_0, ..LoadOptions::default() };
        let [mut packed, mut plain] =
            [quantized, LoadOptions::default()].map(|options| Model::load(folder.path(), options).unwrap());
        let exact = logits(&plain);
        let differences = |found: Vec<f32>| exact.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let whole = differences(logits(&packed));
        for (packed, plain) in packed.weights.layers.iter_mut().zip(&mut plain.weights.layers) {
            assert!(matches!(packed.down.weight, Weight::Packed(_)) && matches!(plain.down.weight, Weight::Plain(_)));
            std::mem::swap(&mut packed.down, &mut plain.down);
        }
        plain.prompts_differ = packed.prompts_differ;
        for mixed in [packed, plain] {
            let largest = differences(logits(&mixed));
            assert!(largest > 0.0 && largest < whole, "{largest}, of a model packed whole {whole}");
        }
    }
}
