//! Gemma 3 from GGUF: mistral.rs reads that family from Hugging Face folders alone, so the file becomes such a folder.
//!
//! **Source**: `Gemma3Model` in llama.cpp `convert_hf_to_gguf.py`, which this undoes: names, and the one that it adds to the
//! weights of norms.

use std::{collections::HashMap, fs::File, io::BufReader};

use bespoke_model::gguf::{Gguf, optional};
use candle_core::{DType, Device, Tensor, quantized::gguf_file::Content};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::MistralError;

/// The architecture as GGUF files spell it.
pub(crate) const ARCHITECTURE: &str = "gemma3";

/// Every sixth layer sees the whole text. **Source**: `sliding_window_pattern` of `Gemma3TextConfig`; GGUF does not hold it.
const SLIDING_WINDOW_PATTERN: u32 = 6;
/// **Source**: `rope_local_base_freq` of `Gemma3TextConfig`; GGUF does not hold it.
const ROPE_LOCAL_BASE: f64 = 10_000.0;
/// The number of layers of the 27B model, whose queries are scaled by the width of a head that it does not have.
/// **Source**: `llama-model.cpp` of llama.cpp.
const NUM_LAYERS_27B: u32 = 62;
/// `LLAMA_TOKEN_TYPE_CONTROL`; these and `LLAMA_TOKEN_TYPE_USER_DEFINED` are the tokens found before any merge.
const CONTROL: i32 = 3;
/// See [`CONTROL`].
const USER_DEFINED: i32 = 4;

/// Writes the folder, dequantized to f16; it is deleted when the value is dropped.
pub(crate) fn convert(gguf: &Gguf) -> Result<TempDir, MistralError> {
    let failed = |reason: String| MistralError::Convert { path: gguf.file().to_path_buf(), reason };
    let folder = tempfile::tempdir().map_err(|error| failed(error.to_string()))?;
    let tensors = tensors(gguf).map_err(|error| failed(error.to_string()))?;
    let config = config(gguf, tensors.contains_key("lm_head.weight"))?;
    let weights = folder.path().join("model.safetensors");
    candle_core::safetensors::save(&tensors, weights).map_err(|error| failed(error.to_string()))?;
    let (tokenizer, tokenizer_config) = tokenizer(gguf)?;
    let files = [("config.json", config), ("tokenizer.json", tokenizer), ("tokenizer_config.json", tokenizer_config)];
    for (name, json) in files {
        std::fs::write(folder.path().join(name), json.to_string()).map_err(|error| failed(error.to_string()))?;
    }
    Ok(folder)
}

fn tensors(gguf: &Gguf) -> candle_core::Result<HashMap<String, Tensor>> {
    let mut reader = BufReader::new(File::open(gguf.file())?);
    let content = Content::read(&mut reader)?;
    let mut tensors = HashMap::new();
    for name in content.tensor_infos.keys() {
        let Some(theirs) = name_of(name) else { candle_core::bail!("`{name}` is no tensor of Gemma 3") };
        let tensor = content.tensor(&mut reader, name, &Device::Cpu)?.dequantize(&Device::Cpu)?;
        let tensor = if name.ends_with("norm.weight") { (tensor - 1.0)? } else { tensor.to_dtype(DType::F16)? };
        tensors.insert(theirs, tensor);
    }
    Ok(tensors)
}

/// Returns the name that a tensor has in a Hugging Face folder.
fn name_of(name: &str) -> Option<String> {
    let whole = match name {
        "token_embd.weight" => "model.embed_tokens.weight",
        "output_norm.weight" => "model.norm.weight",
        "output.weight" => "lm_head.weight",
        _ => "",
    };
    if !whole.is_empty() {
        return Some(whole.to_owned());
    }
    let (layer, part) = name.strip_prefix("blk.")?.strip_suffix(".weight")?.split_once('.')?;
    let part = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "post_attention_norm" => "post_attention_layernorm",
        "ffn_norm" => "pre_feedforward_layernorm",
        "post_ffw_norm" => "post_feedforward_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.weight"))
}

fn config(gguf: &Gguf, has_output: bool) -> Result<Value, MistralError> {
    let metadata = gguf.metadata();
    let key = |key: &str| format!("{ARCHITECTURE}.{key}");
    let size = |name: &str| metadata.u32(&key(name));
    let (num_layers, num_heads) = (size("block_count")?, size("attention.head_count")?);
    let (hidden_size, head_dim) = (size("embedding_length")?, size("attention.key_length")?);
    let query_scalar =
        if num_layers == NUM_LAYERS_27B { hidden_size.checked_div(num_heads).unwrap_or(head_dim) } else { head_dim };
    let factor = optional(metadata.f32(&key("rope.scaling.factor")))?.filter(|&factor| factor != 0.0 && factor != 1.0);
    Ok(json!({
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": metadata.strings("tokenizer.ggml.tokens")?.len(),
        "hidden_size": hidden_size,
        "intermediate_size": size("feed_forward_length")?,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": size("attention.head_count_kv")?,
        "head_dim": head_dim,
        "query_pre_attn_scalar": query_scalar,
        "rms_norm_eps": metadata.f32(&key("attention.layer_norm_rms_epsilon"))?,
        "rope_theta": metadata.f32(&key("rope.freq_base"))?,
        "rope_local_base_freq": ROPE_LOCAL_BASE,
        "rope_scaling": factor.map(|factor| json!({"rope_type": "linear", "factor": factor})),
        "sliding_window": size("attention.sliding_window")?,
        "sliding_window_pattern": SLIDING_WINDOW_PATTERN,
        "max_position_embeddings": size("context_length")?,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": !has_output,
    }))
}

/// Describes the tokens. mistral.rs wants a tokenizer but is given ids, so the merges, which GGUF does not hold, are not missed.
fn tokenizer(gguf: &Gguf) -> Result<(Value, Value), MistralError> {
    let metadata = gguf.metadata();
    let tokens = metadata.strings("tokenizer.ggml.tokens")?;
    let kinds = metadata.i32s("tokenizer.ggml.token_type")?;
    let vocab: serde_json::Map<_, _> =
        tokens.iter().zip(0u32..).map(|(token, id)| (token.clone(), json!(id))).collect();
    let added = tokens.iter().zip(kinds).zip(0u32..).filter(|((_, kind), _)| [CONTROL, USER_DEFINED].contains(kind));
    let added: Vec<_> = added
        .map(|((token, kind), id)| {
            json!({"id": id, "content": token, "special": kind == CONTROL, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false})
        })
        .collect();
    let spelling = |key: &str| -> Result<Value, MistralError> {
        let id = optional(metadata.u32(&format!("tokenizer.ggml.{key}")))?;
        Ok(id.and_then(|id| tokens.get(id as usize)).map_or(Value::Null, |token| json!(token)))
    };
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]},
        "model": {"type": "BPE", "unk_token": spelling("unknown_token_id")?, "fuse_unk": true, "byte_fallback": true,
            "vocab": vocab, "merges": []},
    });
    let config = json!({"bos_token": spelling("bos_token_id")?, "eos_token": spelling("eos_token_id")?});
    Ok((tokenizer, config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_get_the_names_of_the_folder() {
        let name = |name| name_of(name).unwrap_or_default();
        assert_eq!(name("token_embd.weight"), "model.embed_tokens.weight");
        assert_eq!(name("blk.17.attn_q.weight"), "model.layers.17.self_attn.q_proj.weight");
        // A layer of Gemma has four norms.
        assert_eq!(name("blk.0.ffn_norm.weight"), "model.layers.0.pre_feedforward_layernorm.weight");
        assert_eq!(name("blk.0.post_ffw_norm.weight"), "model.layers.0.post_feedforward_layernorm.weight");
        assert_eq!(name("blk.0.attn_q.bias"), "");
        assert_eq!(name("rope_freqs.weight"), "");
    }
}
