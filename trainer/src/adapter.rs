//! Adapters on disk in the form of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

use std::path::Path;

use bespoke_model::ModelConfig;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::TrainError;
use crate::files;
use crate::lora::{Factors, Lora, LoraShape};

/// The configuration file.
pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
/// The file of the factors.
pub(crate) const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// The parts of `adapter_config.json` that matter here.
#[derive(Deserialize)]
struct PeftConfig {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    bias: Option<String>,
    target_modules: Value,
    #[serde(default)]
    modules_to_save: Option<Value>,
    #[serde(default)]
    rank_pattern: serde_json::Map<String, Value>,
    #[serde(default)]
    alpha_pattern: serde_json::Map<String, Value>,
}

/// PEFT's name of one factor.
fn tensor_name(factors: &Factors, which: &str) -> String {
    format!("base_model.model.model.layers.{}.{}.lora_{which}.weight", factors.layer, factors.target.path())
}

/// Names, shapes and values of all factors.
fn tensors(lora: &Lora) -> Vec<(String, [usize; 2], &[f32])> {
    let r = lora.rank();
    let mut all = Vec::new();
    for factors in lora.factors() {
        let (a, b) = (&lora.values[factors.a.clone()], &lora.values[factors.b.clone()]);
        all.push((tensor_name(factors, "A"), [r, a.len() / r], a));
        all.push((tensor_name(factors, "B"), [b.len() / r, r], b));
    }
    all
}

/// The bytes of `adapter_model.safetensors`.
pub(crate) fn weights_bytes(lora: &Lora) -> Result<Vec<u8>, TrainError> {
    let encoded: Vec<(String, [usize; 2], Vec<u8>)> =
        tensors(lora).into_iter().map(|(name, shape, values)| (name, shape, files::le_bytes(values))).collect();
    let views = encoded.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes);
        (name.as_str(), view.expect("invariant: four bytes a value"))
    });
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    safetensors::serialize(views, metadata).map_err(|error| TrainError::file(WEIGHTS_FILE, error))
}

/// Writes an adapter that PEFT loads.
///
/// **Errors**: `Io`.
pub fn write_adapter(lora: &Lora, dropout: f32, base_model: &str, folder: &Path) -> Result<(), TrainError> {
    std::fs::create_dir_all(folder).map_err(TrainError::writing(folder))?;
    let shape = lora.shape();
    let config = json!({
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": shape.alpha,
        "lora_dropout": dropout,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": shape.r,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": shape.target_modules,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": shape.rslora,
    });
    files::write_json(&folder.join(CONFIG_FILE), &config)?;
    files::write_atomic(&folder.join(WEIGHTS_FILE), &weights_bytes(lora)?)
}

/// Reads an adapter of PEFT for a model.
///
/// **Errors**: `Io`, or `File` naming the key or tensor that does not fit.
pub fn read_adapter(config: &ModelConfig, folder: &Path) -> Result<Lora, TrainError> {
    let file = folder.join(CONFIG_FILE);
    let text = std::fs::read(&file).map_err(TrainError::reading(&file))?;
    let peft: PeftConfig = serde_json::from_slice(&text).map_err(|error| TrainError::file(&file, error))?;
    let unsupported = [
        ("peft_type", peft.peft_type != "LORA"),
        ("use_dora", peft.use_dora),
        ("fan_in_fan_out", peft.fan_in_fan_out),
        ("bias", peft.bias.is_some_and(|bias| bias != "none")),
        ("modules_to_save", peft.modules_to_save.is_some_and(|modules| !modules.is_null())),
        ("rank_pattern", !peft.rank_pattern.is_empty()),
        ("alpha_pattern", !peft.alpha_pattern.is_empty()),
        ("r", peft.r == 0),
    ];
    if let Some((key, _)) = unsupported.into_iter().find(|(_, is)| *is) {
        return Err(TrainError::file(&file, format!("`{key}` has a value that is not supported here")));
    }
    let target_modules = match peft.target_modules {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => return Err(TrainError::file(&file, "`target_modules` is neither a name nor a list of names")),
    };
    let shape = LoraShape { r: peft.r, alpha: peft.lora_alpha, rslora: peft.use_rslora, target_modules };
    let mut lora = Lora::new(config, shape, 0)
        .map_err(|name| TrainError::file(&file, format!("`target_modules` has `{name}`, which is no module here")))?;
    read_weights(&mut lora, &folder.join(WEIGHTS_FILE))?;
    Ok(lora)
}

/// Reads the factors of an adapter whose shape is known.
pub(crate) fn read_weights(lora: &mut Lora, file: &Path) -> Result<(), TrainError> {
    let bytes = std::fs::read(file).map_err(TrainError::reading(file))?;
    let stored = SafeTensors::deserialize(&bytes).map_err(|error| TrainError::file(file, error))?;
    let r = lora.rank();
    let num_expected = 2 * lora.factors().len();
    if stored.len() != num_expected {
        return Err(TrainError::file(file, format!("has {} tensors, expected {num_expected}", stored.len())));
    }
    for factors in lora.factors().to_vec() {
        for (which, range) in [("A", factors.a.clone()), ("B", factors.b.clone())] {
            let name = tensor_name(&factors, which);
            let tensor = stored.tensor(&name).map_err(|error| TrainError::file(file, format!("`{name}`: {error}")))?;
            let expected = if which == "A" { [r, range.len() / r] } else { [range.len() / r, r] };
            if tensor.shape() != expected {
                let reason = format!("`{name}` has shape {:?}, expected {expected:?}", tensor.shape());
                return Err(TrainError::file(file, reason));
            }
            let values =
                files::floats(&tensor).map_err(|reason| TrainError::file(file, format!("`{name}` {reason}")))?;
            lora.values[range].copy_from_slice(&values);
        }
    }
    Ok(())
}
