//! The configuration of an encoder, from `config.json` and the files of sentence-transformers beside it.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::ModelError;

/// Bounds that no real encoder exceeds; they keep products of dimensions far from overflow.
const WIDTH_MAX: usize = 1 << 16;
const VOCAB_SIZE_MAX: usize = 1 << 24;
const NUM_LAYERS_MAX: usize = 1 << 10;
const POSITIONS_MAX: usize = 1 << 16;

/// The checked configuration of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// Number of word pieces.
    pub vocab_size: usize,
    /// Length of the vectors.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Number of heads.
    pub num_heads: usize,
    /// Added to the variance in norms.
    pub norm_eps: f32,
    /// Positions that have an embedding.
    pub num_positions: usize,
    /// Kinds of text that have an embedding, of which the first is used.
    pub num_types: usize,
    /// The longest text in tokens, `[CLS]` and `[SEP]` counted; longer ones are cut.
    pub tokens_max: usize,
    pub(super) pooling: Pooling,
}

impl EncoderConfig {
    /// Returns the width of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads
    }
}

/// What makes one vector of those of a text's places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooling {
    /// Their mean.
    Mean,
    /// The one of `[CLS]`.
    FirstToken,
}

/// `config.json` of a BERT.
#[derive(Deserialize)]
struct BertFile {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default = "bert_eps")]
    layer_norm_eps: f32,
    hidden_act: String,
    #[serde(default)]
    position_embedding_type: Option<String>,
}

/// **Source**: defaults of `BertConfig` in transformers.
fn two() -> usize {
    2
}

fn bert_eps() -> f32 {
    1e-12
}

/// `sentence_bert_config.json`.
#[derive(Default, Deserialize)]
struct SentenceFile {
    #[serde(default)]
    max_seq_length: Option<usize>,
}

/// `1_Pooling/config.json`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct PoolingFile {
    pooling_mode_cls_token: bool,
    pooling_mode_mean_tokens: bool,
    pooling_mode_max_tokens: bool,
    pooling_mode_mean_sqrt_len_tokens: bool,
    pooling_mode_weightedmean_tokens: bool,
    pooling_mode_lasttoken: bool,
}

/// Reads and checks the configuration.
///
/// **Errors**: `Io`, `Malformed`, `UnsupportedArchitecture`, `Config`.
pub(super) fn config_from_folder(folder: &Path) -> Result<EncoderConfig, ModelError> {
    let path = folder.join("config.json");
    let missing = || ModelError::NotAModel { path: folder.to_path_buf(), reason: "it has no `config.json`".to_owned() };
    let file: BertFile = read(&path)?.ok_or_else(missing)?;
    check(&path, &file)?;
    let sentence: SentenceFile = read(&folder.join("sentence_bert_config.json"))?.unwrap_or_default();
    Ok(EncoderConfig {
        vocab_size: file.vocab_size,
        hidden_size: file.hidden_size,
        intermediate_size: file.intermediate_size,
        num_layers: file.num_hidden_layers,
        num_heads: file.num_attention_heads,
        norm_eps: file.layer_norm_eps,
        num_positions: file.max_position_embeddings,
        num_types: file.type_vocab_size,
        // Two places are those of [CLS] and [SEP].
        tokens_max: sentence.max_seq_length.unwrap_or(usize::MAX).clamp(3, file.max_position_embeddings),
        pooling: pooling(&folder.join("1_Pooling").join("config.json"))?,
    })
}

fn check(path: &Path, file: &BertFile) -> Result<(), ModelError> {
    if file.model_type != "bert" {
        let architecture = file.model_type.clone();
        return Err(ModelError::UnsupportedArchitecture { file: path.to_path_buf(), architecture });
    }
    let sizes = [
        ("vocab_size", file.vocab_size, 1, VOCAB_SIZE_MAX),
        ("hidden_size", file.hidden_size, 1, WIDTH_MAX),
        ("intermediate_size", file.intermediate_size, 1, WIDTH_MAX),
        ("num_hidden_layers", file.num_hidden_layers, 1, NUM_LAYERS_MAX),
        ("num_attention_heads", file.num_attention_heads, 1, file.hidden_size),
        ("max_position_embeddings", file.max_position_embeddings, 3, POSITIONS_MAX),
        ("type_vocab_size", file.type_vocab_size, 1, VOCAB_SIZE_MAX),
    ];
    for (field, value, min, max) in sizes {
        if !(min..=max).contains(&value) {
            return Err(wrong(path, field, format!("{value} is not in {min}..={max}")));
        }
    }
    if !file.hidden_size.is_multiple_of(file.num_attention_heads) {
        let reason = format!("{} heads do not divide hidden_size {}", file.num_attention_heads, file.hidden_size);
        return Err(wrong(path, "num_attention_heads", reason));
    }
    if !(file.layer_norm_eps >= 0.0 && file.layer_norm_eps.is_finite()) {
        return Err(wrong(path, "layer_norm_eps", format!("{} cannot be added to a variance", file.layer_norm_eps)));
    }
    if file.hidden_act != "gelu" {
        return Err(wrong(path, "hidden_act", format!("`{}` is not supported, only `gelu`", file.hidden_act)));
    }
    match file.position_embedding_type.as_deref() {
        None | Some("absolute") => Ok(()),
        Some(other) => {
            Err(wrong(path, "position_embedding_type", format!("`{other}` is not supported, only `absolute`")))
        }
    }
}

/// Reads how to pool; the mean where nothing is said.
fn pooling(path: &Path) -> Result<Pooling, ModelError> {
    let Some(file) = read::<PoolingFile>(path)? else { return Ok(Pooling::Mean) };
    let others = [
        file.pooling_mode_max_tokens,
        file.pooling_mode_mean_sqrt_len_tokens,
        file.pooling_mode_weightedmean_tokens,
        file.pooling_mode_lasttoken,
    ];
    match (file.pooling_mode_mean_tokens, file.pooling_mode_cls_token, others.contains(&true)) {
        (true, false, false) => Ok(Pooling::Mean),
        (false, true, false) => Ok(Pooling::FirstToken),
        _ => Err(wrong(path, "pooling_mode", "only the mean or the first token alone is supported".to_owned())),
    }
}

fn wrong(path: &Path, field: &str, reason: String) -> ModelError {
    ModelError::Config { file: path.to_path_buf(), field: field.to_owned(), reason }
}

/// Reads a JSON file; `None` where there is none.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ModelError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ModelError::Io { file: path.to_path_buf(), source }),
    };
    let malformed =
        |error: serde_json::Error| ModelError::Malformed { file: path.to_path_buf(), reason: error.to_string() };
    serde_json::from_slice(&bytes).map(Some).map_err(malformed)
}
