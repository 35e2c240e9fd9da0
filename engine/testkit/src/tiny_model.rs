//! A small model with seeded random weights: its options, its tensors, and where it is written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::random::Random;
use crate::stored::{StoredTensor, TinyDtype};
use crate::{gguf, hugging_face, tokenizer};

/// Deviation of the weights: large enough that each token changes the next one, small enough that attention is not a
/// choice of one position.
const DEVIATION: f32 = 0.2;
/// Embeddings a little larger, and the rows of special tokens much smaller, so that greedy text hardly ever ends by itself.
const EMBEDDING_DEVIATION: f32 = 0.3;
const SPECIAL_SCALE: f32 = 0.05;

/// The model families of a tiny model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TinyArchitecture {
    /// `LlamaForCausalLM`.
    Llama,
    /// `MistralForCausalLM`; its GGUF form is `llama`.
    Mistral,
    /// `Qwen2ForCausalLM`.
    Qwen2,
    /// `Qwen3ForCausalLM`.
    Qwen3,
}

/// The rotary scaling of a tiny model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TinyRope {
    /// None.
    Default,
    /// All frequencies divided by this factor.
    Linear(f64),
    /// As Llama 3.1 with an original context of 64: factor 8, frequency factors 1 and 4.
    Llama3,
}

/// Options of a tiny model; the default is a Llama of two layers in `F32` with untied embeddings.
#[derive(Debug, Clone, PartialEq)]
pub struct TinyModel {
    /// The family; Qwen2 gets biases, Qwen3 head norms.
    pub architecture: TinyArchitecture,
    /// Format of the matrices.
    pub dtype: TinyDtype,
    /// Whether the output matrix is the embedding matrix.
    pub tie_embeddings: bool,
    /// Whether a Llama or Qwen3 has biases on q, k, v and o.
    pub attention_bias: bool,
    /// Rotary scaling.
    pub rope: TinyRope,
    /// Whether `config.json` spells the rotary parameters as transformers 5 does.
    pub transformers5: bool,
    /// Window of a Mistral or Qwen, in tokens; of a Qwen only the last layer has it.
    pub sliding_window: Option<usize>,
    /// Number of safetensors files.
    pub num_shards: usize,
    /// Hidden size; a multiple of 32, as the two below.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Width of a head; `num_heads * head_dim` is a multiple of 32.
    pub head_dim: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Number of query heads.
    pub num_heads: usize,
    /// Number of key and value heads.
    pub num_kv_heads: usize,
    /// Context length, in tokens.
    pub context_length: usize,
    /// Seed of the weights.
    pub seed: u64,
}

impl Default for TinyModel {
    fn default() -> TinyModel {
        TinyModel {
            architecture: TinyArchitecture::Llama,
            dtype: TinyDtype::F32,
            tie_embeddings: false,
            attention_bias: false,
            rope: TinyRope::Default,
            transformers5: false,
            sliding_window: None,
            num_shards: 1,
            hidden_size: 64,
            intermediate_size: 96,
            head_dim: 16,
            num_layers: 2,
            num_heads: 4,
            num_kv_heads: 2,
            context_length: 256,
            seed: 1,
        }
    }
}

/// A written tiny model; it is deleted when this is dropped.
#[derive(Debug)]
pub struct TinyModelDir {
    folder: TempDir,
    path: PathBuf,
}

impl TinyModel {
    /// Rotary base of every tiny model.
    pub const ROPE_THETA: f64 = 10_000.0;
    /// Added to the mean square in its norms.
    pub const NORM_EPS: f64 = 1e-5;

    /// Writes a Hugging Face folder.
    pub fn write_hf(&self) -> Result<TinyModelDir> {
        let folder = tempfile::tempdir().context("making a folder for a tiny model")?;
        hugging_face::write(self, folder.path())?;
        Ok(TinyModelDir::new(folder))
    }

    /// Writes a GGUF file; the path is that of the file.
    pub fn write_gguf(&self) -> Result<TinyModelDir> {
        let folder = tempfile::tempdir().context("making a folder for a tiny model")?;
        let path = folder.path().join("tiny.gguf");
        std::fs::write(&path, gguf::file_bytes(self)).with_context(|| format!("writing {}", path.display()))?;
        Ok(TinyModelDir { folder, path })
    }

    /// Returns the bytes of the GGUF file.
    pub fn gguf_bytes(&self) -> Vec<u8> {
        gguf::file_bytes(self)
    }

    /// Returns every tensor under its Hugging Face name, with the values that its file holds.
    pub fn tensors(&self) -> BTreeMap<String, StoredTensor> {
        let mut random = Random::new(self.seed);
        let mut tensors = BTreeMap::new();
        let (hidden, vocab) = (self.hidden_size, tokenizer::VOCAB_SIZE);
        let mut vocabulary_matrix = |name: &str, random: &mut Random| {
            let mut values = random.normals(vocab * hidden, EMBEDDING_DEVIATION);
            let num_special = tokenizer::SPECIAL_TOKENS.len() * hidden;
            values[..num_special].iter_mut().for_each(|value| *value *= SPECIAL_SCALE);
            tensors.insert(name.to_owned(), StoredTensor::matrix(vocab, hidden, &values, self.dtype));
        };
        vocabulary_matrix("model.embed_tokens.weight", &mut random);
        if !self.tie_embeddings {
            vocabulary_matrix("lm_head.weight", &mut random);
        }
        tensors.insert("model.norm.weight".to_owned(), norm(hidden, &mut random));
        for layer in 0..self.num_layers {
            for (name, tensor) in self.layer_tensors(&mut random) {
                tensors.insert(format!("model.layers.{layer}.{name}"), tensor);
            }
        }
        tensors
    }

    /// Says whether q, k and v have biases.
    pub fn qkv_bias(&self) -> bool {
        match self.architecture {
            TinyArchitecture::Qwen2 => true,
            TinyArchitecture::Mistral => false,
            TinyArchitecture::Llama | TinyArchitecture::Qwen3 => self.attention_bias,
        }
    }

    /// Says whether the attention output has a bias.
    pub fn output_bias(&self) -> bool {
        matches!(self.architecture, TinyArchitecture::Llama | TinyArchitecture::Qwen3) && self.attention_bias
    }

    /// Returns the window of a layer.
    pub fn window(&self, layer: usize) -> Option<usize> {
        match self.architecture {
            TinyArchitecture::Llama => None,
            TinyArchitecture::Mistral => self.sliding_window,
            TinyArchitecture::Qwen2 | TinyArchitecture::Qwen3 => {
                self.sliding_window.filter(|_| layer + 1 == self.num_layers)
            }
        }
    }

    fn layer_tensors(&self, random: &mut Random) -> Vec<(String, StoredTensor)> {
        let (hidden, intermediate) = (self.hidden_size, self.intermediate_size);
        let (query, kv) = (self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim);
        let linears = [
            ("self_attn.q_proj", query, hidden, self.qkv_bias()),
            ("self_attn.k_proj", kv, hidden, self.qkv_bias()),
            ("self_attn.v_proj", kv, hidden, self.qkv_bias()),
            ("self_attn.o_proj", hidden, query, self.output_bias()),
            ("mlp.gate_proj", intermediate, hidden, false),
            ("mlp.up_proj", intermediate, hidden, false),
            ("mlp.down_proj", hidden, intermediate, false),
        ];
        let mut tensors = Vec::new();
        for (name, rows, cols, has_bias) in linears {
            let values = random.normals(rows * cols, DEVIATION);
            tensors.push((format!("{name}.weight"), StoredTensor::matrix(rows, cols, &values, self.dtype)));
            if has_bias {
                tensors.push((format!("{name}.bias"), StoredTensor::vector(random.normals(rows, DEVIATION))));
            }
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((format!("{name}.weight"), norm(hidden, random)));
        }
        if self.architecture == TinyArchitecture::Qwen3 {
            for name in ["self_attn.q_norm", "self_attn.k_norm"] {
                tensors.push((format!("{name}.weight"), norm(self.head_dim, random)));
            }
        }
        tensors
    }
}

fn norm(len: usize, random: &mut Random) -> StoredTensor {
    StoredTensor::vector(random.normals(len, DEVIATION).into_iter().map(|value| 1.0 + value).collect())
}

impl TinyModelDir {
    /// Takes a folder whose path is that of the model.
    pub(crate) fn new(folder: TempDir) -> TinyModelDir {
        TinyModelDir { path: folder.path().to_path_buf(), folder }
    }

    /// Returns the folder of a Hugging Face model, the file of a GGUF model.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the folder that is deleted in the end.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}
