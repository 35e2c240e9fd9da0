//! The weights of an encoder under the names of transformers' `BertModel`, every shape checked.

use bespoke_kernels::Matrix;

use super::EncoderConfig;
use crate::tensor::Tensor;
use crate::{ModelError, ModelSource};

/// All weights; matrices share the memory map of their file.
pub(super) struct EncoderWeights {
    /// **Shapes**: `(V, D)`.
    pub(super) words: Matrix,
    /// **Shapes**: `(P, D)` for `P` positions.
    pub(super) positions: Matrix,
    /// Of the first kind of text. **Shapes**: `(D)`.
    pub(super) kind: Vec<f32>,
    pub(super) norm: Norm,
    pub(super) layers: Vec<EncoderLayer>,
}

/// The weights of one layer.
pub(super) struct EncoderLayer {
    /// **Shapes**: `(D, D)`, as the three after it.
    pub(super) q: Affine,
    pub(super) k: Affine,
    pub(super) v: Affine,
    pub(super) o: Affine,
    pub(super) attention_norm: Norm,
    /// **Shapes**: `(F, D)`.
    pub(super) up: Affine,
    /// **Shapes**: `(D, F)`.
    pub(super) down: Affine,
    pub(super) output_norm: Norm,
}

/// A matrix and what is added to its outputs.
pub(super) struct Affine {
    pub(super) weight: Matrix,
    pub(super) bias: Vec<f32>,
}

/// Weight and bias of a layer norm. **Shapes**: `(D)`.
pub(super) struct Norm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

impl EncoderWeights {
    /// Takes the weights that `config` calls for.
    ///
    /// **Errors**: `MissingTensor`, `TensorShape`, `TensorType`.
    pub(super) fn load(source: &ModelSource, config: &EncoderConfig) -> Result<EncoderWeights, ModelError> {
        let loader = Loader::new(source);
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let mut kind = vec![0.0; hidden];
        loader
            .matrix("embeddings.token_type_embeddings.weight", [config.num_types, hidden])?
            .dequantize_row(0, &mut kind);
        let layer = |index: usize| {
            let name = |rest: &str| format!("encoder.layer.{index}.{rest}");
            Ok(EncoderLayer {
                q: loader.affine(&name("attention.self.query"), [hidden, hidden])?,
                k: loader.affine(&name("attention.self.key"), [hidden, hidden])?,
                v: loader.affine(&name("attention.self.value"), [hidden, hidden])?,
                o: loader.affine(&name("attention.output.dense"), [hidden, hidden])?,
                attention_norm: loader.norm(&name("attention.output.LayerNorm"), hidden)?,
                up: loader.affine(&name("intermediate.dense"), [wide, hidden])?,
                down: loader.affine(&name("output.dense"), [hidden, wide])?,
                output_norm: loader.norm(&name("output.LayerNorm"), hidden)?,
            })
        };
        Ok(EncoderWeights {
            words: loader.matrix("embeddings.word_embeddings.weight", [config.vocab_size, hidden])?,
            positions: loader.matrix("embeddings.position_embeddings.weight", [config.num_positions, hidden])?,
            kind,
            norm: loader.norm("embeddings.LayerNorm", hidden)?,
            layers: (0..config.num_layers).map(layer).collect::<Result<_, ModelError>>()?,
        })
    }
}

struct Loader<'a> {
    source: &'a ModelSource,
    /// Put before every name: models with a head on top have their encoder under `bert.`.
    prefix: &'static str,
}

impl Loader<'_> {
    fn new(source: &ModelSource) -> Loader<'_> {
        const FIRST: &str = "embeddings.word_embeddings.weight";
        let plain = source.tensor(FIRST);
        let prefix = if plain.is_err() && source.tensor(&format!("bert.{FIRST}")).is_ok() { "bert." } else { "" };
        Loader { source, prefix }
    }

    fn affine(&self, name: &str, shape: [usize; 2]) -> Result<Affine, ModelError> {
        let weight = self.matrix(&format!("{name}.weight"), shape)?;
        Ok(Affine { weight, bias: self.vector(&format!("{name}.bias"), shape[0])? })
    }

    fn norm(&self, name: &str, len: usize) -> Result<Norm, ModelError> {
        let part = |part: &str| self.vector(&format!("{name}.{part}"), len);
        Ok(Norm { weight: part("weight")?, bias: part("bias")? })
    }

    fn matrix(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<Matrix, ModelError> {
        let tensor = self.tensor(name, &[rows, cols])?;
        Ok(Matrix::new(tensor.dtype, rows, cols, tensor.data)?)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let tensor = self.tensor(name, &[len])?;
        let mut values = vec![0.0; len];
        Matrix::new(tensor.dtype, 1, len, tensor.data)?.dequantize_row(0, &mut values);
        Ok(values)
    }

    fn tensor(&self, name: &str, expected: &[usize]) -> Result<Tensor, ModelError> {
        let name = format!("{}{name}", self.prefix);
        let tensor = self.source.tensor(&name)?;
        if tensor.shape == expected {
            return Ok(tensor);
        }
        let Tensor { file, shape: found, .. } = tensor;
        Err(ModelError::TensorShape { file, tensor: name, expected: expected.to_vec(), found })
    }
}
