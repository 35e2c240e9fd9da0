//! Writes a tiny model as a Hugging Face folder.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::stored::{StoredTensor, TinyDtype};
use crate::tiny_model::{TinyArchitecture, TinyModel, TinyRope};
use crate::tokenizer;

pub(crate) fn write(model: &TinyModel, folder: &Path) -> Result<()> {
    let json_files = [
        ("config.json", config_json(model)),
        ("generation_config.json", generation_config_json()),
        ("tokenizer.json", tokenizer::tokenizer_json()),
        ("tokenizer_config.json", tokenizer::tokenizer_config_json(model.context_length)),
    ];
    for (name, json) in json_files {
        write_json(&folder.join(name), &json)?;
    }
    let tensors = model.tensors();
    if model.num_shards <= 1 {
        return write_shard(&folder.join("model.safetensors"), tensors.iter(), model.dtype);
    }
    let mut weight_map = BTreeMap::new();
    for shard in 0..model.num_shards {
        let name = format!("model-{:05}-of-{:05}.safetensors", shard + 1, model.num_shards);
        let part: Vec<_> = tensors.iter().skip(shard).step_by(model.num_shards).collect();
        weight_map.extend(part.iter().map(|(tensor, _)| ((*tensor).clone(), name.clone())));
        write_shard(&folder.join(&name), part.into_iter(), model.dtype)?;
    }
    let index = json!({"metadata": {"total_size": 0}, "weight_map": weight_map});
    write_json(&folder.join("model.safetensors.index.json"), &index)
}

pub(crate) fn write_json(path: &Path, json: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(json).context("a `Value` is always JSON")?;
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

pub(crate) fn write_shard<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a String, &'a StoredTensor)>,
    dtype: TinyDtype,
) -> Result<()> {
    let kind = match dtype {
        TinyDtype::F32 => Dtype::F32,
        TinyDtype::F16 => Dtype::F16,
        TinyDtype::Bf16 => Dtype::BF16,
        TinyDtype::Q8_0 => anyhow::bail!("safetensors cannot hold Q8_0"),
    };
    let encoded: Vec<_> = tensors.map(|(name, tensor)| (name, &tensor.shape, dtype.encode(&tensor.values))).collect();
    let views = encoded
        .iter()
        .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(kind, shape.to_vec(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    let bytes = safetensors::serialize(views, None)?;
    std::fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}

fn generation_config_json() -> Value {
    json!({
        "bos_token_id": tokenizer::BOS_ID,
        "eos_token_id": [tokenizer::EOS_ID, tokenizer::END_OF_TEXT_ID],
    })
}

fn config_json(model: &TinyModel) -> Value {
    let (class, model_type) = match model.architecture {
        TinyArchitecture::Llama => ("LlamaForCausalLM", "llama"),
        TinyArchitecture::Mistral => ("MistralForCausalLM", "mistral"),
        TinyArchitecture::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        TinyArchitecture::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
    };
    let mut config = json!({
        "architectures": [class],
        "model_type": model_type,
        "vocab_size": tokenizer::VOCAB_SIZE,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": TinyModel::NORM_EPS,
        "max_position_embeddings": model.context_length,
        "tie_word_embeddings": model.tie_embeddings,
        "bos_token_id": tokenizer::BOS_ID,
        "eos_token_id": tokenizer::EOS_ID,
        "attention_bias": model.attention_bias,
        "sliding_window": model.sliding_window,
        "use_sliding_window": model.sliding_window.is_some(),
        "max_window_layers": model.num_layers - 1,
    });
    let mut rope = match model.rope {
        TinyRope::Default => json!({"rope_type": "default"}),
        TinyRope::Linear(factor) => json!({"rope_type": "linear", "factor": factor}),
        TinyRope::Llama3 => {
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64})
        }
    };
    if model.transformers5 {
        rope["rope_theta"] = json!(TinyModel::ROPE_THETA);
        config["rope_parameters"] = rope;
    } else {
        config["rope_theta"] = json!(TinyModel::ROPE_THETA);
        config["rope_scaling"] = if model.rope == TinyRope::Default { Value::Null } else { rope };
    }
    config
}
