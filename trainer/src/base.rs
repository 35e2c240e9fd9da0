//! The frozen base model: weights of any model file, in the order of Hugging Face, kept in the format that was asked for.

use bespoke_kernels::{DType, Kernels, Matrix, Rope, RopeStyle};
use bespoke_model::{LayerWeights, Linear, ModelConfig, ModelSource, Weight, Weights, encode_matrix};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::frozen::{Compute, Frozen};
use crate::target::Target;

/// What the base weights are kept in while training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum BaseDtype {
    /// Floats as the file has them; quantized matrices decoded to `f32`.
    #[default]
    Auto,
    /// Single precision: exact.
    F32,
    /// The upper half of a single: half the memory.
    Bf16,
    /// 8 bits and a scale for each 32 weights (`load_in_8bit` of the reference).
    #[value(name = "q8_0")]
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4 bits and a scale for each 32 weights (`load_in_4bit` of the reference).
    #[value(name = "q4_0")]
    #[serde(rename = "q4_0")]
    Q4_0,
}

impl BaseDtype {
    /// The format in which a matrix is kept that is stored as `found`.
    fn kept(self, found: DType) -> DType {
        match self {
            BaseDtype::Auto if found.block_len() == 1 => found,
            BaseDtype::Auto | BaseDtype::F32 => DType::F32,
            BaseDtype::Bf16 => DType::Bf16,
            BaseDtype::Q8_0 => DType::Q8_0,
            BaseDtype::Q4_0 => DType::Q4_0,
        }
    }
}

/// What frozen weights are kept in, and what products with them are computed in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbers {
    /// What they are kept in. Products in bf16 do not look at this: they pack what the file has, and embeddings stay as they are there.
    pub dtype: BaseDtype,
    /// What products are computed in.
    pub compute: Compute,
}

impl From<BaseDtype> for Numbers {
    fn from(dtype: BaseDtype) -> Numbers {
        Numbers { dtype, compute: Compute::F32 }
    }
}

/// The weights of a frozen model and the kernels that run it.
pub struct Base {
    /// Its dimensions.
    pub config: ModelConfig,
    /// `(V, D)`.
    pub embeddings: Matrix,
    /// The layers, first to last.
    pub layers: Vec<BaseLayer>,
    /// `(D)`.
    pub final_norm: Vec<f32>,
    /// `(V, D)`.
    pub output: Frozen,
    /// The rotation of each position.
    pub rope: Rope,
    /// The opposite one, for gradients.
    pub rope_inverse: Rope,
    /// What products with its weights and with factors, and those of attention, are computed in.
    pub compute: Compute,
    /// What runs it.
    pub kernels: Kernels,
}

/// One layer.
pub struct BaseLayer {
    /// `(D)`.
    pub attn_norm: Vec<f32>,
    /// `(D)`.
    pub ffn_norm: Vec<f32>,
    /// Norms of the heads of q and k (Qwen3), `(E)`.
    pub head_norms: Option<[Vec<f32>; 2]>,
    /// By [`Target::index`].
    pub linears: [BaseLinear; 7],
}

/// A frozen linear module.
pub struct BaseLinear {
    /// `(outputs, inputs)`.
    pub weight: Frozen,
    /// `(outputs)`.
    pub bias: Option<Vec<f32>>,
}

impl Base {
    /// Takes the weights of an opened model; `context_limit` bounds the tables of rotations.
    ///
    /// **Errors**: all that loading a model can meet, and a matrix that `dtype` cannot hold.
    pub fn load(
        source: &ModelSource,
        numbers: impl Into<Numbers>,
        num_threads: usize,
        context_limit: usize,
    ) -> Result<Base, TrainError> {
        let Numbers { dtype, compute } = numbers.into();
        let kernels = Kernels::new(num_threads)?;
        let mut config = source.config()?;
        config.context_length = config.context_length.min(context_limit.max(1));
        let weights = Weights::load(source, &config)?;
        let frequencies = config.inverse_frequencies(weights.rope_divisors.as_deref());
        let rope = Rope::new(RopeStyle::Half, &frequencies, config.context_length, 1.0);
        let linears = weights.layers.iter().flat_map(|layer| linears(layer, weights.rope_style, config.head_dim));
        let (mut matrices, biases): (Vec<_>, Vec<_>) = linears.unzip();
        let mut embeddings = plain(&weights.embeddings).clone();
        let mut untied = (!config.tie_embeddings).then(|| plain(&weights.output.weight).clone());
        if compute == Compute::F32 {
            let linears = Target::ALL.iter().map(|target| target.name()).cycle().zip(&mut matrices);
            let others = [("embed_tokens", &mut embeddings)].into_iter().chain(untied.as_mut().map(|w| ("lm_head", w)));
            encode(linears.chain(others), dtype, num_threads)?;
        }
        matrices.push(untied.unwrap_or_else(|| embeddings.clone()));
        let mut frozen = match compute {
            Compute::F32 => matrices.into_iter().map(Frozen::Exact).collect(),
            Compute::Bf16 => Frozen::round_all(&matrices.iter().collect::<Vec<_>>(), &kernels),
        };
        let output = frozen.pop().expect("invariant: the output is the last matrix");
        let mut linears = frozen.into_iter().zip(biases).map(|(weight, bias)| BaseLinear { weight, bias });
        let layers = weights.layers.into_iter().map(|layer| base_layer(layer, &mut linears)).collect();
        // What is not packed is read where it lies, and comes back as it is read.
        source.release();
        Ok(Base {
            embeddings,
            output,
            layers,
            final_norm: weights.final_norm,
            rope_inverse: rope.inverse(),
            rope,
            compute,
            kernels,
            config,
        })
    }
}

/// The matrices and biases of a layer, in the order of Hugging Face.
fn linears(layer: &LayerWeights, style: RopeStyle, head_dim: usize) -> [(Matrix, Option<Vec<f32>>); 7] {
    let linears = [&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down];
    std::array::from_fn(|index| hugging_face_order(linears[index], Target::ALL[index], style, head_dim))
}

/// A layer, with the next seven linear modules.
fn base_layer(layer: LayerWeights, linears: &mut impl Iterator<Item = BaseLinear>) -> BaseLayer {
    let linears = std::array::from_fn(|_| linears.next().expect("invariant: seven modules a layer"));
    let head_norms = layer.q_norm.zip(layer.k_norm).map(|(q, k)| [q, k]);
    BaseLayer { attn_norm: layer.attn_norm, ffn_norm: layer.ffn_norm, head_norms, linears }
}

/// Brings named matrices into the format in which they are kept; those that have it already stay where they are.
fn encode<'a>(
    matrices: impl Iterator<Item = (&'static str, &'a mut Matrix)>,
    dtype: BaseDtype,
    num_threads: usize,
) -> Result<(), TrainError> {
    let others = matrices.filter(|(_, matrix)| dtype.kept(matrix.dtype()) != matrix.dtype());
    let others: Vec<(&str, &mut Matrix)> = others.collect();
    let fault = |name: &str, reason| TrainError::BaseDtype { tensor: name.to_owned(), reason };
    let mut shapes = Vec::with_capacity(others.len());
    for (name, matrix) in &others {
        let (wanted, cols) = (dtype.kept(matrix.dtype()), matrix.cols());
        if wanted.row_bytes(cols).is_none() {
            return Err(fault(name, format!("rows of {cols} weights are not whole blocks of {wanted}")));
        }
        shapes.push((wanted, matrix.rows(), cols));
    }
    let encoded = Matrix::on_huge_pages(&shapes, |index, out| {
        let (name, matrix) = &others[index];
        encode_matrix(matrix, shapes[index].0, num_threads, out).map_err(|reason| fault(name, reason))
    })?;
    for ((_, place), encoded) in others.into_iter().zip(encoded) {
        *place = encoded;
    }
    Ok(())
}

/// The matrix of a model that was only opened.
pub(crate) fn plain(weight: &Weight) -> &Matrix {
    match weight {
        Weight::Plain(matrix) => matrix,
        Weight::Packed(_) | Weight::Bf16(_) => {
            unreachable!("invariant: weights are packed only when a serving model is built")
        }
    }
}

/// A module's matrix and bias with the rows in the order of Hugging Face: GGUF files of Llama have those of q and k interleaved.
pub(crate) fn hugging_face_order(
    linear: &Linear,
    target: Target,
    style: RopeStyle,
    head_dim: usize,
) -> (Matrix, Option<Vec<f32>>) {
    let matrix = plain(&linear.weight);
    if style == RopeStyle::Half || !matches!(target, Target::Q | Target::K) {
        return (matrix.clone(), linear.bias.clone());
    }
    let stored = |row: usize| {
        let (head, place, half) = (row / head_dim, row % head_dim, head_dim / 2);
        head * head_dim + if place < half { 2 * place } else { 2 * (place - half) + 1 }
    };
    let bytes = (0..matrix.rows()).map(|row| matrix.row_bytes(stored(row))).collect::<Vec<_>>().concat();
    let ordered = Matrix::new(matrix.dtype(), matrix.rows(), matrix.cols(), bytes.into())
        .expect("invariant: rows in another order have the same shape");
    let bias = linear.bias.as_ref().map(|bias| (0..bias.len()).map(|row| bias[stored(row)]).collect());
    (ordered, bias)
}
