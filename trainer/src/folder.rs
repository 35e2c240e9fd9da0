//! What a model folder of the Hugging Face form has besides weights: configuration, tokenizer, chat template.

use std::path::Path;

use bespoke_model::{Architecture, ModelConfig, ModelSource, RopeScaling, Weights, hugging_face_tokenizer};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::{TrainError, files};

/// Files that go along unchanged.
const COPIED: [&str; 9] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

/// Writes them for a source of either kind.
pub(crate) fn write_folder(
    source: &ModelSource,
    config: &ModelConfig,
    dtype: Dtype,
    folder: &Path,
) -> Result<(), TrainError> {
    let dtype = match dtype {
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        _ => "float32",
    };
    let Some(gguf) = source.gguf() else { return copy(source.path(), dtype, folder) };
    files::write_json(&folder.join("config.json"), &config_json(source, config, dtype)?)?;
    let ends = &config.eos_token_ids;
    let generation = json!({"bos_token_id": config.bos_token_id, "eos_token_id": ends});
    files::write_json(&folder.join("generation_config.json"), &generation)?;
    for (name, text) in hugging_face_tokenizer(gguf)? {
        files::write_atomic(&folder.join(name), text.as_bytes())?;
    }
    Ok(())
}

/// Copies the files of a folder; its configuration gets the type of the new weights.
fn copy(from: &Path, dtype: &str, folder: &Path) -> Result<(), TrainError> {
    let file = from.join("config.json");
    let text = std::fs::read(&file).map_err(TrainError::reading(&file))?;
    let mut config: Value = serde_json::from_slice(&text).map_err(|error| TrainError::file(&file, error))?;
    for key in ["dtype", "torch_dtype"] {
        if config.get(key).is_some() || key == "dtype" {
            config[key] = json!(dtype);
        }
    }
    files::write_json(&folder.join("config.json"), &config)?;
    for name in COPIED {
        let file = from.join(name);
        if file.exists() {
            let bytes = std::fs::read(&file).map_err(TrainError::reading(&file))?;
            files::write_atomic(&folder.join(name), &bytes)?;
        }
    }
    Ok(())
}

/// The configuration of a GGUF file as transformers writes it, rotary base in both places.
fn config_json(source: &ModelSource, config: &ModelConfig, dtype: &str) -> Result<Value, TrainError> {
    if Weights::load(source, config)?.rope_divisors.is_some() {
        let reason =
            "has rotary frequencies as a tensor, which no config.json describes; train from its Hugging Face form";
        return Err(TrainError::file(source.path(), reason));
    }
    let (class, model_type) = match config.architecture {
        Architecture::Llama => ("LlamaForCausalLM", "llama"),
        Architecture::Mistral => ("MistralForCausalLM", "mistral"),
        Architecture::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Architecture::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
    };
    let mut rope = match config.rope_scaling {
        RopeScaling::None => json!({"rope_type": "default"}),
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_length } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original_context_length as u64,
        }),
    };
    rope["rope_theta"] = json!(config.rope_theta);
    // The last end token of a chat model's list is for whole texts; transformers takes one here and all in generation_config.
    let mut value = json!({
        "architectures": [class],
        "attention_bias": config.output_bias,
        "attention_dropout": 0.0,
        "bos_token_id": config.bos_token_id,
        "dtype": dtype,
        "eos_token_id": config.eos_token_ids.first(),
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.context_length,
        "model_type": model_type,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings,
        "vocab_size": config.vocab_size,
    });
    if let Some(window) = config.layer_windows.iter().flatten().next() {
        value["sliding_window"] = json!(window);
        if model_type.starts_with("qwen") {
            value["use_sliding_window"] = json!(true);
            let full = config.layer_windows.iter().take_while(|window| window.is_none()).count();
            value["max_window_layers"] = json!(full);
        }
    }
    Ok(value)
}
