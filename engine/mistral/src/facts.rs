//! What a model is, from its files: the dimensions that the engine has to know, for any architecture.

use std::{fs::File, io::BufReader, path::Path};

use bespoke_engine::BackendInfo;
use bespoke_model::{
    ModelSource,
    gguf::{Gguf, optional},
};
use candle_core::quantized::{GgmlDType, gguf_file::Content};
use serde_json::{Map, Value};

use crate::MistralError;

/// The default of `rope`-less models whose file does not say how long a text may be.
const CONTEXT_DEFAULT: u64 = 2048;

/// Reads the facts of an opened model; what it runs on is not known yet.
pub(crate) fn of(source: &ModelSource) -> Result<BackendInfo, MistralError> {
    match source.gguf() {
        Some(gguf) => of_gguf(gguf),
        None => of_folder(source.path()),
    }
}

fn of_gguf(gguf: &Gguf) -> Result<BackendInfo, MistralError> {
    let metadata = gguf.metadata();
    let architecture = metadata.string("general.architecture")?.to_owned();
    let size = |key: &str| optional(metadata.u32(&format!("{architecture}.{key}")));
    let num_tokens = metadata.strings("tokenizer.ggml.tokens")?.len();
    let vocab_size = size("vocab_size")?.map_or(num_tokens, |size| size as usize);
    let context =
        checked(gguf.file(), "context_length", metadata.u32(&format!("{architecture}.context_length"))?.into())?;
    let (dtype, num_parameters) = weights_of(gguf.file())?;
    Ok(BackendInfo {
        architecture,
        dtype,
        num_parameters,
        vocab_size,
        context_tokens_max: context,
        // The tokenizer of a GGUF file names them all.
        end_ids: Vec::new(),
        runs_on: String::new(),
    })
}

/// Returns the type that holds most of the weights, and their number.
fn weights_of(file: &Path) -> Result<(String, u64), MistralError> {
    let failed = |reason: String| MistralError::Load { path: file.to_path_buf(), reason };
    let mut reader = BufReader::new(File::open(file).map_err(|error| failed(error.to_string()))?);
    let content = Content::read(&mut reader).map_err(|error| failed(error.to_string()))?;
    let mut by_type: Vec<(GgmlDType, u64)> = Vec::new();
    for info in content.tensor_infos.values() {
        let count = info.shape.elem_count() as u64;
        match by_type.iter_mut().find(|(dtype, _)| *dtype == info.ggml_dtype) {
            Some((_, sum)) => *sum += count,
            None => by_type.push((info.ggml_dtype, count)),
        }
    }
    let most = by_type.iter().max_by_key(|(_, count)| *count).map(|(dtype, _)| spelled(*dtype));
    Ok((most.unwrap_or_default(), by_type.iter().map(|(_, count)| count).sum()))
}

/// Returns a type's name as everybody but candle spells it: `Q4_K` for `Q4K`.
fn spelled(dtype: GgmlDType) -> String {
    let name = format!("{dtype:?}");
    match name.strip_suffix('K') {
        Some(bits) => format!("{bits}_K"),
        None => name,
    }
}

fn of_folder(folder: &Path) -> Result<BackendInfo, MistralError> {
    let file = folder.join("config.json");
    let fields = read_object(&file)?;
    let wrong = |field: &str, reason: &str| MistralError::Config {
        file: file.clone(),
        field: field.to_owned(),
        reason: reason.to_owned(),
    };
    // Models that also see keep the dimensions of the text model apart.
    let text = fields.get("text_config").and_then(Value::as_object).unwrap_or(&fields);
    let architecture = fields.get("architectures").and_then(|names| names.get(0)).or(fields.get("model_type"));
    let architecture = architecture.and_then(Value::as_str).ok_or_else(|| wrong("architectures", "is absent"))?;
    let size = |field: &str| text.get(field).and_then(Value::as_u64);
    let vocab_size = size("vocab_size").ok_or_else(|| wrong("vocab_size", "is absent"))?;
    let context = size("max_position_embeddings").unwrap_or(CONTEXT_DEFAULT);
    let dtype = text.get("torch_dtype").or(text.get("dtype")).and_then(Value::as_str).unwrap_or("float");
    let mut end_ids = token_ids(text.get("eos_token_id"));
    let generation_file = folder.join("generation_config.json");
    if generation_file.exists() {
        end_ids.extend(token_ids(read_object(&generation_file)?.get("eos_token_id")));
    }
    end_ids.retain(|&id| u64::from(id) < vocab_size);
    Ok(BackendInfo {
        architecture: architecture.to_owned(),
        dtype: dtype.to_owned(),
        num_parameters: 0,
        vocab_size: checked(&file, "vocab_size", vocab_size)?,
        context_tokens_max: checked(&file, "max_position_embeddings", context)?,
        end_ids,
        runs_on: String::new(),
    })
}

/// Returns one id or a list of them.
fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(values)) => values.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// Checks a dimension: at least 2, so that a prompt and an answer have a token each, and a sane number.
fn checked(file: &Path, field: &str, value: u64) -> Result<usize, MistralError> {
    const SIZE_MAX: u64 = 1 << 24;
    if (2..=SIZE_MAX).contains(&value) {
        return Ok(value as usize);
    }
    let reason = format!("{value} is not between 2 and {SIZE_MAX}");
    Err(MistralError::Config { file: file.to_path_buf(), field: field.to_owned(), reason })
}

fn read_object(file: &Path) -> Result<Map<String, Value>, MistralError> {
    let wrong = |reason: String| MistralError::Load { path: file.to_path_buf(), reason };
    let text = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use bespoke_testkit::TinyModel;

    use super::*;

    #[test]
    fn both_forms_of_a_model_have_the_same_dimensions() {
        let tiny = TinyModel::default();
        let (folder, file) = (tiny.write_hf().unwrap(), tiny.write_gguf().unwrap());
        let of = |path: &Path| of(&ModelSource::open(path).unwrap()).unwrap();
        let (folder, file) = (of(folder.path()), of(file.path()));
        assert_eq!((folder.vocab_size, folder.context_tokens_max), (file.vocab_size, file.context_tokens_max));
        assert_eq!((folder.architecture.as_str(), file.architecture.as_str()), ("LlamaForCausalLM", "llama"));
        assert!(file.num_parameters > 0 && !folder.end_ids.is_empty());
    }

    #[test]
    fn types_are_spelled_as_elsewhere() {
        assert_eq!([GgmlDType::Q4K, GgmlDType::Q8_0, GgmlDType::F32].map(spelled), ["Q4_K", "Q8_0", "F32"]);
    }

    #[test]
    fn a_dimension_out_of_range_is_named() {
        let error = checked(Path::new("config.json"), "vocab_size", 1).unwrap_err();
        assert!(error.to_string().contains("`vocab_size`"), "{error}");
    }
}
