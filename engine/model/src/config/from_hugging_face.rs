//! Reads `config.json` and `generation_config.json`, as transformers 4 and 5 write them.
//!
//! **Source**: `configuration_llama.py`, `configuration_mistral.py`, `configuration_qwen2.py` and `configuration_qwen3.py` of
//! transformers 4.57 and 5.

use std::path::{Path, PathBuf};

use super::json::{JsonObject, read_object};
use super::{Architecture, ModelConfig, RopeScaling};
use crate::ModelError;

/// Defaults of the configuration classes, which a file may leave out.
const ROPE_THETA_DEFAULT: f64 = 10_000.0;
const QWEN3_HEAD_DIM_DEFAULT: usize = 128;
const QWEN_MAX_WINDOW_LAYERS_DEFAULT: usize = 28;

/// Reads the configuration of a Hugging Face folder.
pub(crate) fn config_from_folder(folder: &Path) -> Result<ModelConfig, ModelError> {
    let file = folder.join("config.json");
    let fields = read_object(&file)?.ok_or_else(|| ModelError::NotAModel {
        path: folder.to_path_buf(),
        reason: "the folder has neither `config.json` nor a `.gguf` file".to_owned(),
    })?;
    let json = JsonObject::new(&file, &fields);
    let mut config = read_config(&json, &file)?;
    let generation_file = folder.join("generation_config.json");
    if let Some(fields) = read_object(&generation_file)? {
        let json = JsonObject::new(&generation_file, &fields);
        config.eos_token_ids.extend(json.token_ids("eos_token_id")?);
        config.bos_token_id = config.bos_token_id.or(json.token_ids("bos_token_id")?.first().copied());
    }
    config.eos_token_ids.sort_unstable();
    config.eos_token_ids.dedup();
    config.check(&file)
}

fn read_config(json: &JsonObject<'_>, file: &Path) -> Result<ModelConfig, ModelError> {
    let architecture = read_architecture(json, file)?;
    refuse_variants(json)?;
    let size = |field: &str| json.required(field, json.usize(field)?);
    let hidden_size = size("hidden_size")?;
    let num_layers = size("num_hidden_layers")?;
    let num_heads = size("num_attention_heads")?;
    let bias = json.bool("attention_bias")?.unwrap_or(false);
    let (rope_theta, rope_scaling) = read_rope(json)?;
    Ok(ModelConfig {
        architecture,
        vocab_size: size("vocab_size")?,
        hidden_size,
        intermediate_size: size("intermediate_size")?,
        num_layers,
        num_heads,
        num_kv_heads: json.usize("num_key_value_heads")?.unwrap_or(num_heads),
        head_dim: match (json.usize("head_dim")?, architecture) {
            (Some(head_dim), _) => head_dim,
            (None, Architecture::Qwen3) => QWEN3_HEAD_DIM_DEFAULT,
            (None, _) => hidden_size.checked_div(num_heads).unwrap_or(0),
        },
        norm_eps: json.required("rms_norm_eps", json.f64("rms_norm_eps")?)? as f32,
        rope_theta,
        rope_scaling,
        context_length: size("max_position_embeddings")?,
        tie_embeddings: json.bool("tie_word_embeddings")?.unwrap_or(false),
        // Qwen2 always has them and has no such field; Mistral never has.
        qkv_bias: match architecture {
            Architecture::Qwen2 => true,
            Architecture::Mistral => false,
            Architecture::Llama | Architecture::Qwen3 => bias,
        },
        output_bias: matches!(architecture, Architecture::Llama | Architecture::Qwen3) && bias,
        qk_norm: architecture == Architecture::Qwen3,
        layer_windows: read_windows(json, architecture, num_layers)?,
        bos_token_id: json.token_ids("bos_token_id")?.first().copied(),
        eos_token_ids: json.token_ids("eos_token_id")?,
    })
}

fn read_architecture(json: &JsonObject<'_>, file: &Path) -> Result<Architecture, ModelError> {
    let name = match json.strings("architectures")?.and_then(|names| names.first().copied()) {
        Some(name) => name,
        None => json.required("model_type", json.str("model_type")?)?,
    };
    match name {
        "LlamaForCausalLM" | "llama" => Ok(Architecture::Llama),
        "MistralForCausalLM" | "mistral" => Ok(Architecture::Mistral),
        "Qwen2ForCausalLM" | "qwen2" => Ok(Architecture::Qwen2),
        "Qwen3ForCausalLM" | "qwen3" => Ok(Architecture::Qwen3),
        other => Err(ModelError::UnsupportedArchitecture { file: PathBuf::from(file), architecture: other.to_owned() }),
    }
}

/// Refuses what the families can be configured to do and the serving pass does not.
fn refuse_variants(json: &JsonObject<'_>) -> Result<(), ModelError> {
    if json.bool("mlp_bias")?.unwrap_or(false) {
        return Err(json.error("mlp_bias", "biases in the feed-forward block are not supported".to_owned()));
    }
    let activation = json.str("hidden_act")?.unwrap_or("silu");
    if activation != "silu" {
        return Err(json.error("hidden_act", format!("activation `{activation}` is not supported")));
    }
    if json.get("quantization_config").is_some() {
        return Err(json.error("quantization_config", "quantized safetensors are not supported".to_owned()));
    }
    if json.f64("partial_rotary_factor")?.unwrap_or(1.0) != 1.0 {
        return Err(json.error("partial_rotary_factor", "partial rotation is not supported".to_owned()));
    }
    Ok(())
}

/// Reads the rotary base and scaling: transformers 5 keeps both in `rope_parameters`, 4 has `rope_theta` and `rope_scaling`.
fn read_rope(json: &JsonObject<'_>) -> Result<(f64, RopeScaling), ModelError> {
    let theta_outside = json.f64("rope_theta")?.unwrap_or(ROPE_THETA_DEFAULT);
    let parameters = match json.object("rope_parameters")? {
        Some(parameters) => parameters,
        None => match json.object("rope_scaling")? {
            Some(scaling) => scaling,
            None => return Ok((theta_outside, RopeScaling::None)),
        },
    };
    if parameters.values().any(serde_json::Value::is_object) {
        return Err(json.error("rope_parameters", "parameters by layer type are not supported".to_owned()));
    }
    if parameters.f64("partial_rotary_factor")?.unwrap_or(1.0) != 1.0 {
        return Err(parameters.error("partial_rotary_factor", "partial rotation is not supported".to_owned()));
    }
    let theta = parameters.f64("rope_theta")?.unwrap_or(theta_outside);
    let kind = match parameters.str("rope_type")? {
        Some(kind) => kind,
        None => parameters.str("type")?.unwrap_or("default"),
    };
    let number = |field: &str| parameters.required(field, parameters.f64(field)?);
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_context_length: number("original_max_position_embeddings")?,
        },
        other => return Err(parameters.error("rope_type", format!("rope scaling `{other}` is not supported"))),
    };
    Ok((theta, scaling))
}

/// Reads which layers see only the latest positions.
fn read_windows(
    json: &JsonObject<'_>,
    architecture: Architecture,
    num_layers: usize,
) -> Result<Vec<Option<usize>>, ModelError> {
    if num_layers > super::NUM_LAYERS_MAX {
        // The vector is not built; `check` refuses the number of layers.
        return Ok(Vec::new());
    }
    let has_window = match architecture {
        Architecture::Llama => false,
        Architecture::Mistral => true,
        Architecture::Qwen2 | Architecture::Qwen3 => json.bool("use_sliding_window")?.unwrap_or(false),
    };
    let Some(window) = json.usize("sliding_window")?.filter(|_| has_window) else {
        return Ok(vec![None; num_layers]);
    };
    if let Some(types) = json.strings("layer_types")? {
        if types.len() != num_layers {
            return Err(json.error("layer_types", format!("{} entries for {num_layers} layers", types.len())));
        }
        return types
            .into_iter()
            .map(|kind| match kind {
                "full_attention" => Ok(None),
                "sliding_attention" => Ok(Some(window)),
                other => Err(json.error("layer_types", format!("layers of type `{other}` are not supported"))),
            })
            .collect();
    }
    let first_sliding = match architecture {
        Architecture::Mistral | Architecture::Llama => 0,
        Architecture::Qwen2 | Architecture::Qwen3 => {
            json.usize("max_window_layers")?.unwrap_or(QWEN_MAX_WINDOW_LAYERS_DEFAULT)
        }
    };
    Ok((0..num_layers).map(|layer| (layer >= first_sliding).then_some(window)).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn base() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 4, "vocab_size": 100, "rms_norm_eps": 1e-6, "max_position_embeddings": 128,
            "hidden_act": "silu", "eos_token_id": 7
        })
    }

    fn read(changes: Value) -> Result<ModelConfig, ModelError> {
        let folder = tempfile::tempdir().unwrap();
        let mut config = base();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        std::fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [9, 7], "bos_token_id": 3}"#)
            .unwrap();
        config_from_folder(folder.path())
    }

    fn fault(changes: Value) -> (String, String) {
        match read(changes) {
            Err(ModelError::Config { field, reason, .. }) => (field, reason),
            other => panic!("expected a configuration error, got {other:?}"),
        }
    }

    #[test]
    fn absent_fields_get_the_defaults_of_the_class() {
        let config = read(json!({})).unwrap();
        assert_eq!((config.num_kv_heads, config.head_dim, config.rope_theta), (4, 16, 10_000.0));
        assert_eq!((config.bos_token_id, config.eos_token_ids), (Some(3), vec![7, 9]));
        assert!(!config.tie_embeddings && !config.qkv_bias);
        let qwen3 = read(json!({"architectures": ["Qwen3ForCausalLM"]})).unwrap();
        assert_eq!((qwen3.head_dim, qwen3.qk_norm, qwen3.qkv_bias), (128, true, false));
        let qwen2 = read(json!({"architectures": null, "model_type": "qwen2"})).unwrap();
        assert!(qwen2.qkv_bias && !qwen2.output_bias);
    }

    #[test]
    fn both_spellings_of_rope_are_read() {
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64});
        let old = read(json!({"rope_theta": 5e5, "rope_scaling": llama3})).unwrap();
        let mut inside = llama3.clone();
        inside["rope_theta"] = json!(5e5);
        let new = read(json!({"rope_parameters": inside})).unwrap();
        assert_eq!(old.rope_theta, 5e5);
        assert_eq!((old.rope_theta, old.rope_scaling), (new.rope_theta, new.rope_scaling));
        let linear = read(json!({"rope_scaling": {"type": "linear", "factor": 2}})).unwrap();
        assert_eq!(linear.rope_scaling, RopeScaling::Linear { factor: 2.0 });
        assert_eq!(read(json!({"rope_scaling": null})).unwrap().rope_scaling, RopeScaling::None);
    }

    #[test]
    fn windows_follow_the_family() {
        let window = |changes: Value| read(changes).unwrap().layer_windows;
        assert_eq!(window(json!({"sliding_window": 8})), vec![None; 3]);
        assert_eq!(window(json!({"architectures": ["MistralForCausalLM"], "sliding_window": 8})), vec![Some(8); 3]);
        let qwen = |more: Value| {
            let mut fields = json!({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 8});
            fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            window(fields)
        };
        assert_eq!(qwen(json!({"use_sliding_window": false})), vec![None; 3]);
        assert_eq!(qwen(json!({"use_sliding_window": true, "max_window_layers": 2})), vec![None, None, Some(8)]);
        let types = ["full_attention", "sliding_attention", "full_attention"];
        assert_eq!(qwen(json!({"use_sliding_window": true, "layer_types": types})), vec![None, Some(8), None]);
    }

    #[test]
    fn unsupported_variants_name_their_field() {
        assert_eq!(fault(json!({"mlp_bias": true})).0, "mlp_bias");
        assert!(fault(json!({"hidden_act": "gelu"})).1.contains("gelu"));
        assert_eq!(fault(json!({"quantization_config": {}})).0, "quantization_config");
        let (field, reason) = fault(json!({"rope_scaling": {"rope_type": "yarn", "factor": 4}}));
        assert_eq!((field.as_str(), reason.contains("yarn")), ("rope_scaling.rope_type", true));
        assert_eq!(fault(json!({"rope_parameters": {"rope_type": "linear"}})).0, "rope_parameters.factor");
        assert_eq!(fault(json!({"hidden_size": "64"})).0, "hidden_size");
        assert_eq!(fault(json!({"hidden_size": null})).0, "hidden_size");
        assert_eq!(fault(json!({"num_attention_heads": 0})).0, "num_attention_heads");
        assert_eq!(fault(json!({"num_hidden_layers": 1u64 << 40})).0, "num_hidden_layers");
    }

    #[test]
    fn unknown_architectures_are_named() {
        match read(json!({"architectures": ["GPT2LMHeadModel"]})) {
            Err(ModelError::UnsupportedArchitecture { architecture, .. }) => {
                assert_eq!(architecture, "GPT2LMHeadModel")
            }
            other => panic!("expected an architecture error, got {other:?}"),
        }
    }
}
