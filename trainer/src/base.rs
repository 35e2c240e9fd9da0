//! The frozen base model: weights of any model file, in the order of Hugging Face, kept in the format that was asked for.

use std::cell::Cell;

use bespoke_kernels::{DType, Kernels, Matrix, Rope, RopeStyle};
use bespoke_model::{Linear, ModelConfig, ModelSource, Weight, Weights, encode_matrix};
use serde::{Deserialize, Serialize};

use crate::TrainError;
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
    pub output: Matrix,
    /// The rotation of each position.
    pub rope: Rope,
    /// The opposite one, for gradients.
    pub rope_inverse: Rope,
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
    pub weight: Matrix,
    /// `(outputs)`.
    pub bias: Option<Vec<f32>>,
}

impl Base {
    /// Takes the weights of an opened model; `context_limit` bounds the tables of rotations.
    ///
    /// **Errors**: all that loading a model can meet, and a matrix that `dtype` cannot hold.
    pub fn load(
        source: &ModelSource,
        dtype: BaseDtype,
        num_threads: usize,
        context_limit: usize,
    ) -> Result<Base, TrainError> {
        let mut config = source.config()?;
        config.context_length = config.context_length.min(context_limit.max(1));
        let weights = Weights::load(source, &config)?;
        let frequencies = config.inverse_frequencies(weights.rope_divisors.as_deref());
        let rope = Rope::new(RopeStyle::Half, &frequencies, config.context_length, 1.0);
        let (head_dim, style) = (config.head_dim, weights.rope_style);
        let keeper = Keeper { dtype, num_threads, head_dim, style, encoded: Cell::new(false) };
        let mut embeddings = keeper.keep("embed_tokens", &weights.embeddings)?;
        let untied = (!config.tie_embeddings).then(|| keeper.keep("lm_head", plain(&weights.output)));
        let mut untied = untied.transpose()?;
        let layers = weights.layers.into_iter().map(|layer| keeper.layer(layer));
        let mut layers = layers.collect::<Result<Vec<_>, _>>()?;
        if keeper.encoded.get() {
            let linears = layers.iter_mut().flat_map(|layer| &mut layer.linears).map(|linear| &mut linear.weight);
            on_huge_pages(linears.chain([&mut embeddings]).chain(&mut untied).collect());
        }
        let output = untied.unwrap_or_else(|| embeddings.clone());
        Ok(Base {
            embeddings,
            output,
            layers,
            final_norm: weights.final_norm,
            rope_inverse: rope.inverse(),
            rope,
            kernels: Kernels::new(num_threads)?,
            config,
        })
    }
}

/// Moves matrices, in the order of a pass, into huge pages.
fn on_huge_pages(mut matrices: Vec<&mut Matrix>) {
    let nothing = || Matrix::from_f32(0, 0, &[]).expect("invariant: no rows of no weights are a matrix");
    let taken = matrices.iter_mut().map(|matrix| std::mem::replace(*matrix, nothing())).collect();
    for (place, moved) in matrices.into_iter().zip(Matrix::on_huge_pages(taken)) {
        *place = moved;
    }
}

/// Brings matrices into the order and format in which they are kept.
struct Keeper {
    dtype: BaseDtype,
    num_threads: usize,
    head_dim: usize,
    style: RopeStyle,
    /// Whether some matrix has got another format, and with it memory of its own.
    encoded: Cell<bool>,
}

impl Keeper {
    fn layer(&self, layer: bespoke_model::LayerWeights) -> Result<BaseLayer, TrainError> {
        let linears = [layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down];
        let mut kept = Vec::with_capacity(linears.len());
        for (target, linear) in Target::ALL.into_iter().zip(linears) {
            let ordered = hugging_face_order(&linear, target, self.style, self.head_dim);
            let weight = self.keep(target.name(), &ordered.0)?;
            kept.push(BaseLinear { weight, bias: ordered.1 });
        }
        let linears = kept.try_into().unwrap_or_else(|_| unreachable!("invariant: seven modules went in"));
        let head_norms = layer.q_norm.zip(layer.k_norm).map(|(q, k)| [q, k]);
        Ok(BaseLayer { attn_norm: layer.attn_norm, ffn_norm: layer.ffn_norm, head_norms, linears })
    }

    fn keep(&self, name: &str, matrix: &Matrix) -> Result<Matrix, TrainError> {
        let found = matrix.dtype();
        let wanted = match self.dtype {
            BaseDtype::Auto if found.block_len() == 1 => found,
            BaseDtype::Auto | BaseDtype::F32 => DType::F32,
            BaseDtype::Bf16 => DType::Bf16,
            BaseDtype::Q8_0 => DType::Q8_0,
            BaseDtype::Q4_0 => DType::Q4_0,
        };
        if wanted == found {
            return Ok(matrix.clone());
        }
        self.encoded.set(true);
        encode_matrix(matrix, wanted, self.num_threads)
            .map_err(|reason| TrainError::BaseDtype { tensor: name.to_owned(), reason })
    }
}

/// The matrix of a model that was only opened.
pub(crate) fn plain(linear: &Linear) -> &Matrix {
    match &linear.weight {
        Weight::Plain(matrix) => matrix,
        Weight::Packed(_) => unreachable!("invariant: weights are packed only when a serving model is built"),
    }
}

/// A module's matrix and bias with the rows in the order of Hugging Face: GGUF files of Llama have those of q and k interleaved.
pub(crate) fn hugging_face_order(
    linear: &Linear,
    target: Target,
    style: RopeStyle,
    head_dim: usize,
) -> (Matrix, Option<Vec<f32>>) {
    let matrix = plain(linear);
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
