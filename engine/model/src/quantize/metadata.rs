//! The metadata of a written GGUF file: copied from a GGUF source, made from `config.json` and `tokenizer.json` else.
//!
//! **Source**: `docs/gguf.md` of the ggml repository, `conversion/llama.py` and `conversion/qwen.py` of llama.cpp.

use bespoke_kernels::DType;

use super::Quantization;
use crate::gguf::{Gguf, Header};
use crate::{Architecture, ModelConfig, ModelError, ModelSource, RopeScaling, tokenizer};

/// `GGML_QNT_VERSION`.
const QUANTIZATION_VERSION: u32 = 2;
/// What is written anew, or is true of the source's file alone.
const OWN_KEYS: [&str; 3] = ["general.alignment", "general.file_type", "general.quantization_version"];
/// Beginnings of keys that are true of the source's file alone: how it was split, which data its quantization used.
const OWN_PREFIXES: [&str; 2] = ["split.", "quantize."];

/// Writes all keys.
pub(super) fn write(
    source: &ModelSource,
    config: &ModelConfig,
    file_type: u32,
    header: &mut Header,
) -> Result<(), ModelError> {
    match source.gguf() {
        Some(gguf) => copy(gguf, header),
        None => {
            write_config(source, config, header)?;
            tokenizer::write_gguf(source.path(), config, header)?;
        }
    }
    header.u32("general.file_type", file_type);
    header.u32("general.quantization_version", QUANTIZATION_VERSION);
    Ok(())
}

/// Returns the `llama_ftype` of a scheme; that of an unquantized file follows from the format of most of its weights.
pub(super) fn file_type(quantization: Quantization, main_dtype: DType) -> u32 {
    match (quantization, main_dtype) {
        (Quantization::None, DType::F16) => 1,
        (Quantization::None, DType::Bf16) => 32,
        (Quantization::None, _) => 0,
        (Quantization::Q4_0, _) => 2,
        (Quantization::Q4_1, _) => 3,
        (Quantization::Q8_0, _) => 7,
        // Of the K types the ones that llama.cpp calls small: all projections have one format.
        (Quantization::Q4K, _) => 14,
        (Quantization::Q5K, _) => 16,
        (Quantization::Q6K, _) => 18,
    }
}

fn copy(gguf: &Gguf, header: &mut Header) {
    let is_own = |key: &str| OWN_KEYS.contains(&key) || OWN_PREFIXES.iter().any(|prefix| key.starts_with(prefix));
    for (_, pair) in gguf.raw_pairs().filter(|(key, _)| !is_own(key)) {
        header.raw(pair);
    }
}

fn write_config(source: &ModelSource, config: &ModelConfig, header: &mut Header) -> Result<(), ModelError> {
    let architecture = match config.architecture {
        Architecture::Llama | Architecture::Mistral => "llama",
        Architecture::Qwen2 => "qwen2",
        Architecture::Qwen3 => "qwen3",
    };
    header.string("general.architecture", architecture);
    header.string("general.type", "model");
    header.string("general.name", &source.name());
    let sizes = [
        ("vocab_size", config.vocab_size),
        ("context_length", config.context_length),
        ("embedding_length", config.hidden_size),
        ("block_count", config.num_layers),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_heads),
        ("attention.head_count_kv", config.num_kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
    ];
    let full = |key: &str| format!("{architecture}.{key}");
    for (key, size) in sizes {
        // The bounds of the configuration lie far below 2^32.
        header.u32(&full(key), size as u32);
    }
    header.f32(&full("attention.layer_norm_rms_epsilon"), config.norm_eps);
    header.f32(&full("rope.freq_base"), config.rope_theta as f32);
    match config.rope_scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            header.string(&full("rope.scaling.type"), "linear");
            header.f32(&full("rope.scaling.factor"), factor as f32);
        }
        // It becomes the tensor `rope_freqs.weight`.
        RopeScaling::Llama3 { .. } => {}
    }
    if let Some(window) = window(source, config)? {
        header.u32(&full("attention.sliding_window"), window as u32);
    }
    Ok(())
}

/// Returns the window of all layers; a GGUF file of these families cannot say that only some have one.
fn window(source: &ModelSource, config: &ModelConfig) -> Result<Option<usize>, ModelError> {
    let first = config.layer_windows.first().copied().flatten();
    if config.layer_windows.iter().any(|&window| window != first) {
        return Err(ModelError::Config {
            file: source.path().join("config.json"),
            field: "sliding_window".to_owned(),
            reason: "a GGUF file cannot say that only some layers have a window".to_owned(),
        });
    }
    Ok(first)
}
