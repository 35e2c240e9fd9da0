//! The weights of a model, taken from either kind of file under one set of names, every shape checked.

mod names;
mod weight;

use std::collections::HashMap;

use bespoke_kernels::{DType, Matrix, RopeStyle};

use crate::quantize::{Role, fitting, quantize_matrix};
use crate::tensor::Tensor;
use crate::{LoadOptions, ModelConfig, ModelError, ModelSource};
pub(crate) use names::{Names, Part};
pub use weight::Weight;

/// All weights of a model; matrices share the memory map of their file.
#[derive(Debug, Clone)]
pub struct Weights {
    /// **Shapes**: `(V, D)`.
    pub embeddings: Weight,
    /// The layers, first to last.
    pub layers: Vec<LayerWeights>,
    /// Weight of the norm before the output. **Shapes**: `(D)`.
    pub final_norm: Vec<f32>,
    /// Maps hidden states to logits, without a bias; of `embeddings` where they are tied. **Shapes**: `(V, D)`.
    pub output: Linear,
    /// Which components of a head of q and k are rotated together: GGUF files of Llama have them interleaved.
    pub rope_style: RopeStyle,
    /// Divisors of the rotary frequencies, which some GGUF files have as a tensor. **Shapes**: `(E / 2)`.
    pub rope_divisors: Option<Vec<f32>>,
}

/// The weights of one layer.
#[derive(Debug, Clone)]
pub struct LayerWeights {
    /// Weight of the norm before attention. **Shapes**: `(D)`.
    pub attn_norm: Vec<f32>,
    /// Queries. **Shapes**: `(H * E, D)`.
    pub q: Linear,
    /// Keys. **Shapes**: `(K * E, D)`.
    pub k: Linear,
    /// Values. **Shapes**: `(K * E, D)`.
    pub v: Linear,
    /// Attention output. **Shapes**: `(D, H * E)`.
    pub o: Linear,
    /// Weight of the norm of each query head (Qwen3). **Shapes**: `(E)`.
    pub q_norm: Option<Vec<f32>>,
    /// Weight of the norm of each key head (Qwen3). **Shapes**: `(E)`.
    pub k_norm: Option<Vec<f32>>,
    /// Weight of the norm before the feed-forward block. **Shapes**: `(D)`.
    pub ffn_norm: Vec<f32>,
    /// Gate of the feed-forward block. **Shapes**: `(F, D)`.
    pub gate: Linear,
    /// Its other input. **Shapes**: `(F, D)`.
    pub up: Linear,
    /// Its output. **Shapes**: `(D, F)`.
    pub down: Linear,
}

/// A matrix that maps `cols` inputs to `rows` outputs, and what is added to them.
#[derive(Debug, Clone)]
pub struct Linear {
    /// The matrix.
    pub weight: Weight,
    /// **Shapes**: `(weight.rows())`.
    pub bias: Option<Vec<f32>>,
}

impl Weights {
    /// Takes the weights that `config` calls for from an opened model, as they are stored.
    ///
    /// **Errors**: `MissingTensor`, `TensorShape`, `TensorType`.
    pub fn load(source: &ModelSource, config: &ModelConfig) -> Result<Weights, ModelError> {
        Weights::load_with(source, config, LoadOptions::default())
    }

    /// Takes the weights and quantizes the matrices as the options say; norms and biases stay as they are.
    ///
    /// **Errors**: as [`Weights::load`]; `AlreadyQuantized`, `TensorValue`.
    pub(crate) fn load_with(
        source: &ModelSource,
        config: &ModelConfig,
        options: LoadOptions,
    ) -> Result<Weights, ModelError> {
        let loader = Loader { source, config, names: Names::of(source.files()), options };
        let names = loader.names;
        let (vocab_size, hidden_size) = (config.vocab_size, config.hidden_size);
        let embeddings = loader.matrix(names.embeddings(), [vocab_size, hidden_size], Role::Vocabulary)?;
        let output = match config.tie_embeddings {
            true => embeddings.clone(),
            false => loader.matrix(names.output(), [vocab_size, hidden_size], Role::Vocabulary)?,
        };
        Ok(Weights {
            embeddings: Weight::Plain(embeddings),
            layers: (0..config.num_layers).map(|layer| loader.layer(layer)).collect::<Result<_, _>>()?,
            final_norm: loader.vector(names.final_norm(), hidden_size)?,
            output: Linear { weight: Weight::Plain(output), bias: None },
            rope_style: names.rope_style(config.architecture),
            rope_divisors: loader.rope_divisors()?,
        })
    }

    /// Counts the parameters, tied embeddings once.
    pub fn num_parameters(&self, config: &ModelConfig) -> u64 {
        let vectors = |layer: &LayerWeights| {
            let norms = [Some(&layer.attn_norm), Some(&layer.ffn_norm), layer.q_norm.as_ref(), layer.k_norm.as_ref()];
            let biases = layer.linears().map(|linear| linear.bias.as_ref());
            norms.into_iter().chain(biases).flatten().map(|vector| vector.len() as u64).sum::<u64>()
        };
        let matrices: u64 = self.matrices(config).map(|(_, num)| num).sum();
        matrices + self.layers.iter().map(vectors).sum::<u64>() + self.final_norm.len() as u64
    }

    /// Returns the number format that holds most of the parameters.
    pub fn main_dtype(&self, config: &ModelConfig) -> DType {
        let mut num_by_dtype: HashMap<DType, u64> = HashMap::new();
        for (dtype, num) in self.matrices(config) {
            *num_by_dtype.entry(dtype).or_default() += num;
        }
        let most = num_by_dtype.into_iter().max_by_key(|(_, num)| *num);
        most.map_or(self.embeddings.dtype(), |(dtype, _)| dtype)
    }

    /// Returns type and number of elements of each matrix.
    fn matrices(&self, config: &ModelConfig) -> impl Iterator<Item = (DType, u64)> {
        let output = (!config.tie_embeddings).then_some(&self.output);
        let linears = output.into_iter().chain(self.layers.iter().flat_map(LayerWeights::linears));
        let size = |rows: usize, cols: usize| rows as u64 * cols as u64;
        let embeddings = (self.embeddings.dtype(), size(self.embeddings.rows(), self.embeddings.cols()));
        let sizes = linears.map(move |Linear { weight, .. }| (weight.dtype(), size(weight.rows(), weight.cols())));
        std::iter::once(embeddings).chain(sizes)
    }
}

impl LayerWeights {
    pub(crate) fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }
}

struct Loader<'a> {
    source: &'a ModelSource,
    config: &'a ModelConfig,
    names: Names,
    options: LoadOptions,
}

impl Loader<'_> {
    fn layer(&self, layer: usize) -> Result<LayerWeights, ModelError> {
        let config = self.config;
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let (query, kv) = (config.query_size(), config.kv_size());
        let norm = |part, len| self.vector(&self.names.layer_weight(layer, part), len);
        let linear = |part, rows, cols, has_bias: bool| {
            let name = self.names.layer_weight(layer, part);
            let weight = Weight::Plain(self.matrix(&name, [rows, cols], Role::Projection)?);
            let bias = has_bias.then(|| self.vector(&self.names.layer_bias(layer, part), rows)).transpose()?;
            Ok::<Linear, ModelError>(Linear { weight, bias })
        };
        let head_norm = |part| config.qk_norm.then(|| norm(part, config.head_dim)).transpose();
        Ok(LayerWeights {
            attn_norm: norm(Part::AttnNorm, hidden)?,
            q: linear(Part::Q, query, hidden, config.qkv_bias)?,
            k: linear(Part::K, kv, hidden, config.qkv_bias)?,
            v: linear(Part::V, kv, hidden, config.qkv_bias)?,
            o: linear(Part::O, hidden, query, config.output_bias)?,
            q_norm: head_norm(Part::QNorm)?,
            k_norm: head_norm(Part::KNorm)?,
            ffn_norm: norm(Part::FfnNorm, hidden)?,
            gate: linear(Part::Gate, intermediate, hidden, false)?,
            up: linear(Part::Up, intermediate, hidden, false)?,
            down: linear(Part::Down, hidden, intermediate, false)?,
        })
    }

    fn rope_divisors(&self) -> Result<Option<Vec<f32>>, ModelError> {
        const NAME: &str = "rope_freqs.weight";
        if !self.source.gguf().is_some_and(|gguf| gguf.has_tensor(NAME)) {
            return Ok(None);
        }
        let divisors = self.vector(NAME, self.config.head_dim / 2)?;
        if let Some(divisor) = divisors.iter().find(|divisor| !(divisor.is_finite() && **divisor > 0.0)) {
            return Err(ModelError::Config {
                file: self.source.path().to_path_buf(),
                field: NAME.to_owned(),
                reason: format!("{divisor} cannot divide a frequency"),
            });
        }
        Ok(Some(divisors))
    }

    fn matrix(&self, name: &str, [rows, cols]: [usize; 2], role: Role) -> Result<Matrix, ModelError> {
        let tensor = self.tensor(name, &[rows, cols])?;
        let (file, dtype) = (tensor.file, tensor.dtype);
        let matrix = Matrix::new(dtype, rows, cols, tensor.data)?;
        let Some(wanted) = self.options.quantization.wanted(role) else { return Ok(matrix) };
        if dtype.block_len() > 1 {
            return Err(ModelError::AlreadyQuantized { file, tensor: name.to_owned(), found: dtype });
        }
        quantize_matrix(&matrix, fitting(wanted, cols), self.options.num_threads)
            .map_err(|fault| ModelError::TensorValue { file, tensor: name.to_owned(), reason: fault.to_string() })
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let tensor = self.tensor(name, &[len])?;
        let mut values = vec![0.0; len];
        Matrix::new(tensor.dtype, 1, len, tensor.data)?.dequantize_row(0, &mut values);
        Ok(values)
    }

    fn tensor(&self, name: &str, expected: &[usize]) -> Result<Tensor, ModelError> {
        let tensor = self.source.tensor(name)?;
        if tensor.shape != expected {
            return Err(ModelError::TensorShape {
                file: tensor.file,
                tensor: name.to_owned(),
                expected: expected.to_vec(),
                found: tensor.shape,
            });
        }
        Ok(tensor)
    }
}
