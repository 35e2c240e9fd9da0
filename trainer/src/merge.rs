//! The merged model: base weights plus the adapter's change, as a complete folder of the Hugging Face form.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use bespoke_kernels::Matrix;
use bespoke_model::{ModelConfig, ModelSource, Weights};
use clap::ValueEnum;
use half::{bf16, f16};
use safetensors::{Dtype, View};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::base::{hugging_face_order, plain};
use crate::folder::write_folder;
use crate::lora::{Factors, Lora};
use crate::target::Target;
use crate::{TrainError, files};

/// Largest file of weights, in bytes.
const SHARD_BYTES: usize = 5_000_000_000;

/// What merged weights are stored in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum MergedDtype {
    /// As the base if it has floats, else `f32`.
    #[default]
    Auto,
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}

/// One tensor that is computed when it is written.
struct Merged<'a> {
    matrix: Cow<'a, Matrix>,
    change: Option<(&'a Lora, &'a Factors)>,
    shape: Vec<usize>,
    dtype: Dtype,
}

impl View for &Merged<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let (rows, cols) = (self.matrix.rows(), self.matrix.cols());
        let mut values = vec![0.0; rows * cols];
        for (row, out) in values.chunks_exact_mut(cols.max(1)).enumerate() {
            self.matrix.dequantize_row(row, out);
        }
        if let Some((lora, factors)) = self.change {
            lora.add_to(factors, &mut values);
        }
        Cow::Owned(match self.dtype {
            Dtype::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
            _ => files::le_bytes(&values),
        })
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * if self.dtype == Dtype::F32 { 4 } else { 2 }
    }
}

/// Writes base and adapter as one model: weights, configuration, tokenizer and chat template.
///
/// The folder appears under its name only when it is whole; one that is there already is replaced if it is a merged model.
///
/// **Errors**: `Io`, a model that cannot be read, or one that the Hugging Face form cannot describe.
pub fn merge(source: &ModelSource, lora: &Lora, dtype: MergedDtype, output: &Path) -> Result<(), TrainError> {
    merge_shards(source, lora, dtype, (output, SHARD_BYTES))
}

fn merge_shards(
    source: &ModelSource,
    lora: &Lora,
    dtype: MergedDtype,
    (output, shard_bytes): (&Path, usize),
) -> Result<(), TrainError> {
    let config = source.config()?;
    let weights = Weights::load(source, &config)?;
    let stored = weights.main_dtype(&config);
    let dtype = match dtype {
        MergedDtype::F32 => Dtype::F32,
        MergedDtype::F16 => Dtype::F16,
        MergedDtype::Bf16 => Dtype::BF16,
        MergedDtype::Auto => match stored {
            bespoke_kernels::DType::F16 => Dtype::F16,
            bespoke_kernels::DType::Bf16 => Dtype::BF16,
            _ => Dtype::F32,
        },
    };
    if output.exists() && !output.join("config.json").exists() {
        return Err(TrainError::file(output, "exists and is no model folder: name another output"));
    }
    let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(TrainError::writing(parent))?;
    let staged = tempfile::Builder::new().prefix(".merged-").tempdir_in(parent).map_err(TrainError::writing(parent))?;
    let tensors = tensors(&weights, &config, lora, dtype)?;
    write_shards(&tensors, staged.path(), shard_bytes)?;
    write_folder(source, &config, dtype, staged.path())?;
    if output.exists() {
        std::fs::remove_dir_all(output).map_err(TrainError::writing(output))?;
    }
    let staged = staged.keep();
    std::fs::rename(&staged, output).map_err(TrainError::writing(output))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Temporary folders are private to their owner; a file system without permissions keeps its own.
        let _ = std::fs::set_permissions(output, std::fs::Permissions::from_mode(0o755));
    }
    Ok(())
}

/// All tensors under the names of Hugging Face.
fn tensors<'a>(
    weights: &'a Weights,
    config: &ModelConfig,
    lora: &'a Lora,
    dtype: Dtype,
) -> Result<BTreeMap<String, Merged<'a>>, TrainError> {
    let mut all = BTreeMap::new();
    let mut matrix = |name: String, matrix: Cow<'a, Matrix>, change: Option<(&'a Lora, &'a Factors)>| {
        let shape = vec![matrix.rows(), matrix.cols()];
        all.insert(name, Merged { matrix, change, shape, dtype });
    };
    matrix("model.embed_tokens.weight".to_owned(), Cow::Borrowed(plain(&weights.embeddings)), None);
    if !config.tie_embeddings {
        matrix("lm_head.weight".to_owned(), Cow::Borrowed(plain(&weights.output.weight)), None);
    }
    let mut vectors = vec![("model.norm.weight".to_owned(), weights.final_norm.clone())];
    for (layer, stored) in weights.layers.iter().enumerate() {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        vectors.push((name("input_layernorm.weight"), stored.attn_norm.clone()));
        vectors.push((name("post_attention_layernorm.weight"), stored.ffn_norm.clone()));
        for (part, norm) in [("self_attn.q_norm.weight", &stored.q_norm), ("self_attn.k_norm.weight", &stored.k_norm)] {
            vectors.extend(norm.clone().map(|norm| (name(part), norm)));
        }
        let linears = [&stored.q, &stored.k, &stored.v, &stored.o, &stored.gate, &stored.up, &stored.down];
        for (target, linear) in Target::ALL.into_iter().zip(linears) {
            let (ordered, bias) = hugging_face_order(linear, target, weights.rope_style, config.head_dim);
            let change = lora.of(layer, target).map(|factors| (lora, factors));
            matrix(name(&format!("{}.weight", target.path())), Cow::Owned(ordered), change);
            vectors.extend(bias.map(|bias| (name(&format!("{}.bias", target.path())), bias)));
        }
    }
    for (name, values) in vectors {
        let matrix = Matrix::from_f32(1, values.len(), &values)?;
        all.insert(name, Merged { matrix: Cow::Owned(matrix), change: None, shape: vec![values.len()], dtype });
    }
    Ok(all)
}

/// Writes the tensors into as few files as their limit allows, with an index where there are several.
fn write_shards(tensors: &BTreeMap<String, Merged<'_>>, folder: &Path, limit: usize) -> Result<(), TrainError> {
    let mut shards: Vec<Vec<(&String, &Merged<'_>)>> = vec![Vec::new()];
    let mut bytes = 0;
    for (name, tensor) in tensors {
        if bytes > 0 && bytes + tensor.data_len() > limit {
            shards.push(Vec::new());
            bytes = 0;
        }
        bytes += tensor.data_len();
        shards.last_mut().expect("invariant: there is a first shard").push((name, tensor));
    }
    let mut weight_map = BTreeMap::new();
    let num = shards.len();
    for (index, shard) in shards.into_iter().enumerate() {
        let name = match num {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{num:05}.safetensors", index + 1),
        };
        let path = folder.join(&name);
        weight_map.extend(shard.iter().map(|(tensor, _)| ((*tensor).clone(), name.clone())));
        let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
        safetensors::serialize_to_file(shard, metadata, &path).map_err(|error| TrainError::file(&path, error))?;
        let written = std::fs::File::open(&path).and_then(|file| file.sync_all());
        written.map_err(TrainError::writing(&path))?;
    }
    if num > 1 {
        let total: usize = tensors.values().map(|tensor| tensor.data_len()).sum();
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        files::write_json(&folder.join("model.safetensors.index.json"), &index)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bespoke_testkit::TinyModel;

    use super::*;
    use crate::lora::LoraShape;

    #[test]
    fn a_large_model_is_sharded_and_loads() {
        let dir = TinyModel::default().write_hf().unwrap();
        let source = ModelSource::open(dir.path()).unwrap();
        let shape = LoraShape { r: 2, alpha: 4.0, rslora: false, target_modules: vec!["all-linear".to_owned()] };
        let lora = Lora::new(&source.config().unwrap(), shape, 1).unwrap();
        let output = tempfile::tempdir().unwrap();
        let merged = output.path().join("merged");
        for _ in 0..2 {
            merge_shards(&source, &lora, MergedDtype::Bf16, (&merged, 100_000)).unwrap();
        }
        assert!(
            merged.join("model-00002-of-00003.safetensors").exists()
                || merged.join("model-00002-of-00004.safetensors").exists()
        );
        let reopened = ModelSource::open(&merged).unwrap();
        let config = reopened.config().unwrap();
        assert_eq!(config, source.config().unwrap());
        let weights = Weights::load(&reopened, &config).unwrap();
        assert_eq!(weights.main_dtype(&config), bespoke_kernels::DType::Bf16);
        let error = merge(&source, &lora, MergedDtype::Auto, output.path()).unwrap_err().to_string();
        assert!(error.contains("is no model folder"), "{error}");
    }
}
