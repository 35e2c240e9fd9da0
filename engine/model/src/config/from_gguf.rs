//! Reads the configuration from the metadata of a GGUF file.
//!
//! **Source**: `docs/gguf.md` of the ggml repository, and `llama-model.cpp` of llama.cpp for the defaults.

use super::{Architecture, ModelConfig, RopeScaling};
use crate::ModelError;
use crate::gguf::{Gguf, Metadata, optional};

/// llama.cpp's default of `rope.freq_base`.
const ROPE_THETA_DEFAULT: f32 = 10_000.0;
/// `LLAMA_TOKEN_TYPE_CONTROL`.
const TOKEN_TYPE_CONTROL: i32 = 3;
/// Control tokens that end a turn whatever the file declares: a GGUF file has room for one `eos`, chat models often have two.
const END_OF_TURN_TOKENS: [&str; 8] =
    ["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>", "</s>"];

/// Reads the configuration of a GGUF file.
pub(crate) fn config_from_gguf(gguf: &Gguf) -> Result<ModelConfig, ModelError> {
    let metadata = gguf.metadata();
    let name = metadata.string("general.architecture")?;
    let architecture = match name {
        "llama" => Architecture::Llama,
        "qwen2" => Architecture::Qwen2,
        "qwen3" => Architecture::Qwen3,
        other => {
            let (file, architecture) = (gguf.file().to_path_buf(), other.to_owned());
            return Err(ModelError::UnsupportedArchitecture { file, architecture });
        }
    };
    let keys = Keys { metadata, architecture: name };
    refuse_variants(gguf, &keys)?;
    let hidden_size = keys.size("embedding_length")?;
    let num_heads = keys.size("attention.head_count")?;
    let num_layers = keys.size("block_count")?;
    let key_length = keys.optional_size("attention.key_length")?;
    let head_dim = key_length.unwrap_or_else(|| hidden_size.checked_div(num_heads).unwrap_or(0));
    for key in ["attention.value_length", "rope.dimension_count"] {
        let length = keys.optional_size(key)?.unwrap_or(head_dim);
        if length != head_dim {
            return Err(keys.error(key, format!("{length} differs from the head dimension {head_dim}")));
        }
    }
    let window = keys.optional_size("attention.sliding_window")?.filter(|&window| window > 0);
    let config = ModelConfig {
        architecture,
        vocab_size: vocab_size(gguf)?,
        hidden_size,
        intermediate_size: keys.size("feed_forward_length")?,
        num_layers,
        num_heads,
        num_kv_heads: keys.optional_size("attention.head_count_kv")?.unwrap_or(num_heads),
        head_dim,
        norm_eps: metadata.f32(&keys.full("attention.layer_norm_rms_epsilon"))?,
        rope_theta: f64::from(optional(metadata.f32(&keys.full("rope.freq_base")))?.unwrap_or(ROPE_THETA_DEFAULT)),
        rope_scaling: read_scaling(&keys)?,
        context_length: keys.size("context_length")?,
        tie_embeddings: !gguf.has_tensor("output.weight"),
        qkv_bias: gguf.has_tensor("blk.0.attn_q.bias"),
        output_bias: gguf.has_tensor("blk.0.attn_output.bias"),
        qk_norm: architecture == Architecture::Qwen3,
        layer_windows: vec![window; num_layers.min(super::NUM_LAYERS_MAX)],
        bos_token_id: optional(metadata.u32("tokenizer.ggml.bos_token_id"))?,
        eos_token_ids: read_eos_ids(metadata)?,
    };
    config.check(gguf.file())
}

/// The keys that begin with the name of the architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn size(&self, key: &str) -> Result<usize, ModelError> {
        // Every target has at least 32 bits.
        Ok(self.metadata.u32(&self.full(key))? as usize)
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        optional(self.size(key))
    }

    fn error(&self, key: &str, reason: String) -> ModelError {
        ModelError::Config { file: self.metadata.file().to_path_buf(), field: self.full(key), reason }
    }
}

/// Refuses what files of these architectures can hold and the serving pass does not do.
fn refuse_variants(gguf: &Gguf, keys: &Keys<'_>) -> Result<(), ModelError> {
    let num_experts = keys.optional_size("expert_count")?.unwrap_or(0);
    if num_experts > 0 {
        return Err(keys.error("expert_count", format!("mixtures of {num_experts} experts are not supported")));
    }
    let num_parts = optional(gguf.metadata().u32("split.count"))?.unwrap_or(1);
    if num_parts > 1 {
        let (file, field) = (gguf.file().to_path_buf(), "split.count".to_owned());
        let reason = format!("a model in {num_parts} parts must be joined first");
        return Err(ModelError::Config { file, field, reason });
    }
    for tensor in ["blk.0.ffn_gate.bias", "blk.0.ffn_up.bias", "blk.0.ffn_down.bias"] {
        if gguf.has_tensor(tensor) {
            let (file, field) = (gguf.file().to_path_buf(), tensor.to_owned());
            let reason = "biases in the feed-forward block are not supported".to_owned();
            return Err(ModelError::Config { file, field, reason });
        }
    }
    Ok(())
}

/// Takes the size of the vocabulary from the embedding, which the token list must match.
fn vocab_size(gguf: &Gguf) -> Result<usize, ModelError> {
    const EMBEDDING: &str = "token_embd.weight";
    let shape = gguf
        .tensor_shape(EMBEDDING)
        .ok_or_else(|| ModelError::MissingTensor { file: gguf.file().to_path_buf(), tensor: EMBEDDING.to_owned() })?;
    let rows = shape[0];
    if let Some(tokens) = optional(gguf.metadata().strings("tokenizer.ggml.tokens"))?
        && tokens.len() != rows
    {
        return Err(ModelError::Config {
            file: gguf.file().to_path_buf(),
            field: "tokenizer.ggml.tokens".to_owned(),
            reason: format!("{} tokens for {rows} rows of `{EMBEDDING}`", tokens.len()),
        });
    }
    Ok(rows)
}

fn read_scaling(keys: &Keys<'_>) -> Result<RopeScaling, ModelError> {
    let metadata = keys.metadata;
    // As llama.cpp: the type defaults to linear, and without a factor nothing is scaled.
    let kind = optional(metadata.string(&keys.full("rope.scaling.type")))?.unwrap_or("linear");
    let factor = match optional(metadata.f32(&keys.full("rope.scaling.factor")))? {
        Some(factor) => factor,
        None => optional(metadata.f32(&keys.full("rope.scale_linear")))?.unwrap_or(0.0),
    };
    match kind {
        "none" => Ok(RopeScaling::None),
        "linear" if factor == 0.0 || factor == 1.0 => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: f64::from(factor) }),
        other => Err(keys.error("rope.scaling.type", format!("rope scaling `{other}` is not supported"))),
    }
}

fn read_eos_ids(metadata: &Metadata) -> Result<Vec<u32>, ModelError> {
    let mut ids = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        ids.extend(optional(metadata.u32(&format!("tokenizer.ggml.{key}")))?);
    }
    let tokens = optional(metadata.strings("tokenizer.ggml.tokens"))?.unwrap_or_default();
    let types = optional(metadata.i32s("tokenizer.ggml.token_type"))?.unwrap_or_default();
    for (id, (token, kind)) in (0u32..).zip(tokens.iter().zip(types)) {
        if kind == TOKEN_TYPE_CONTROL && END_OF_TURN_TOKENS.contains(&token.as_str()) {
            ids.push(id);
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
