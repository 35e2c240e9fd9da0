//! Describes the tokenizer of a Hugging Face folder as GGUF metadata (`tokenizer.ggml.*`), as llama.cpp reads it.
//!
//! Byte-level BPE becomes the model `gpt2` under the name of its way to cut a text; SentencePiece BPE becomes `llama`, whose
//! scores order the merges. Which tokens are control tokens, and what is added around a text, is taken from the loaded tokenizer,
//! so both forms of a model behave alike. What GGUF cannot say is an error.
//!
//! **Source**: `conversion/base.py` of llama.cpp (`get_vocab_base`, `_create_vocab_sentencepiece`) and `src/llama-vocab.cpp`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::folder::{self, TOKENIZER_FILE, TokenizerConfig};
use super::gguf::{LLAMA3_SPLIT, QWEN2_SPLIT};
use super::vocabulary::{SPACE_MARK, TokenKind, byte_token};
use super::{Tables, gguf};
use crate::gguf::Header;
use crate::{ModelConfig, ModelError};

/// `llama_token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The parts of `tokenizer.json` that matter here.
#[derive(Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<AddedJson>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    model: ModelJson,
}

#[derive(Deserialize)]
struct AddedJson {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
struct ModelJson {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: HashMap<String, u32>,
    merges: Vec<MergeJson>,
    #[serde(default)]
    byte_fallback: bool,
}

/// A merge, as one text or as a pair.
#[derive(Deserialize)]
#[serde(untagged)]
enum MergeJson {
    Text(String),
    Pair(String, String),
}

impl MergeJson {
    /// Returns both halves, or the text that has no two.
    fn pair(&self) -> Result<(&str, &str), &str> {
        match self {
            MergeJson::Pair(left, right) => Ok((left, right)),
            MergeJson::Text(text) => text.split_once(' ').ok_or(text),
        }
    }
}

/// A tokenizer on its way from one description to the other.
struct Source<'a> {
    file: PathBuf,
    json: TokenizerJson,
    tables: Tables,
    names: TokenizerConfig,
    config: &'a ModelConfig,
}

/// Writes the keys of the tokenizer of a folder.
///
/// **Errors**: `Config` naming the field of `tokenizer.json` that GGUF cannot describe.
pub(crate) fn write_gguf(dir: &Path, config: &ModelConfig, header: &mut Header) -> Result<(), ModelError> {
    let file = dir.join(TOKENIZER_FILE);
    let text = std::fs::read(&file).map_err(|source| ModelError::Io { file: file.clone(), source })?;
    let json = serde_json::from_slice(&text)
        .map_err(|error| ModelError::Malformed { file: file.clone(), reason: error.to_string() })?;
    Source { file, json, tables: folder::load(dir)?, names: folder::read_config(dir)?, config }.write(header)
}

impl Source<'_> {
    fn write(&self, header: &mut Header) -> Result<(), ModelError> {
        if self.json.model.kind.as_deref().is_some_and(|kind| kind != "BPE") {
            return Err(self.unsupported("model.type", &Value::from(self.json.model.kind.clone())));
        }
        let tokens = self.tokens()?;
        match pre_name(&self.json.pre_tokenizer) {
            Some(pre) => self.write_byte_level(pre, header)?,
            None if self.json.model.byte_fallback => self.write_sentencepiece(&tokens, header)?,
            None => return Err(self.unsupported("pre_tokenizer", &self.json.pre_tokenizer)),
        }
        header.strings(gguf::TOKENS, tokens.iter().map(|(text, _)| text.as_str()));
        header.i32s(gguf::TYPES, &tokens.iter().map(|(_, kind)| *kind).collect::<Vec<_>>());
        let tables = &self.tables;
        let bos = tables.bos.or(self.config.bos_token_id);
        let eos = tables.eos.or(self.config.eos_token_ids.first().copied());
        let id = |token: &Option<folder::TokenText>| {
            let spelling = token.as_ref()?.spelling();
            tokens.iter().position(|(text, _)| text == spelling).map(|id| id as u32)
        };
        let unknown = id(&self.names.unk_token);
        let ids = [(gguf::BOS, bos), (gguf::EOS, eos), (gguf::UNKNOWN, unknown)];
        for (key, id) in ids.into_iter().chain([("tokenizer.ggml.padding_token_id", id(&self.names.pad_token))]) {
            id.into_iter().for_each(|id| header.u32(key, id));
        }
        header.bool(gguf::ADD_BOS, bos.is_some_and(|id| tables.affixes.prefix.contains(&id)));
        header.bool(gguf::ADD_EOS, eos.is_some_and(|id| tables.affixes.suffix.contains(&id)));
        if let Some(template) = &tables.chat_template {
            header.string(gguf::CHAT_TEMPLATE, template);
        }
        Ok(())
    }

    fn write_byte_level(&self, pre: &str, header: &mut Header) -> Result<(), ModelError> {
        let composes = self.json.normalizer.get("type").and_then(Value::as_str) == Some("NFC");
        let is_implied = composes && pre == "qwen2";
        if !(self.json.normalizer.is_null() || is_implied) {
            return Err(self.unsupported("normalizer", &self.json.normalizer));
        }
        header.string(gguf::MODEL, "gpt2");
        header.string(gguf::PRE, pre);
        let merges = self.merges()?;
        let merges: Vec<String> = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        header.strings(gguf::MERGES, merges.iter().map(String::as_str));
        Ok(())
    }

    fn write_sentencepiece(&self, tokens: &[(String, i32)], header: &mut Header) -> Result<(), ModelError> {
        let add_space_prefix = self.space_prefix()?;
        header.string(gguf::MODEL, "llama");
        header.string(gguf::PRE, "default");
        header.bool(gguf::ADD_SPACE_PREFIX, add_space_prefix);
        header.f32s(gguf::SCORES, &self.scores(tokens)?);
        Ok(())
    }

    /// Lists spelling and type of every row of the embeddings; rows without a token get a name of their own.
    fn tokens(&self) -> Result<Vec<(String, i32)>, ModelError> {
        let vocab_size = self.config.vocab_size;
        let mut tokens: Vec<(String, i32)> = (0..vocab_size).map(|id| (format!("[PAD{id}]"), UNUSED)).collect();
        let is_sentencepiece = self.json.model.byte_fallback;
        let unknown = self.names.unk_token.as_ref().map(folder::TokenText::spelling);
        let added = self.json.added_tokens.iter().map(|token| (token.content.as_str(), token.id, true));
        let listed = self.json.model.vocab.iter().map(|(text, &id)| (text.as_str(), id, false));
        for (text, id, is_added) in listed.chain(added) {
            let token = tokens.get_mut(id as usize).ok_or_else(|| ModelError::Config {
                file: self.file.clone(),
                field: "model.vocab".to_owned(),
                reason: format!("token {id} is outside the {vocab_size} rows of the embeddings"),
            })?;
            let kind = match self.tables.vocabulary.kind(id) {
                TokenKind::Control if is_sentencepiece && Some(text) == unknown => UNKNOWN,
                TokenKind::Control => CONTROL,
                _ if is_added => USER_DEFINED,
                _ if is_sentencepiece && byte_token(text).is_some() => BYTE,
                _ => NORMAL,
            };
            *token = (text.to_owned(), kind);
        }
        Ok(tokens)
    }

    fn merges(&self) -> Result<Vec<(&str, &str)>, ModelError> {
        let unsplit = |text: &str| self.unsupported("model.merges", &Value::from(text));
        self.json.model.merges.iter().map(|merge| merge.pair().map_err(unsplit)).collect()
    }

    /// Makes scores of the ranks of merges: llama.cpp merges the pair whose union has the highest score, so a union gets the
    /// rank of its merges, negated, which needs them to be neighbours. What no merge makes comes after all of them.
    fn scores(&self, tokens: &[(String, i32)]) -> Result<Vec<f32>, ModelError> {
        let merges = self.merges()?;
        let mut rank_of: HashMap<String, usize> = HashMap::new();
        let mut last = String::new();
        for (rank, (left, right)) in merges.iter().enumerate() {
            let union = format!("{left}{right}");
            if union != last && rank_of.insert(union.clone(), rank).is_some() {
                let reason = format!("the merges that make `{union}` are not neighbours, which scores cannot express");
                return Err(ModelError::Config { file: self.file.clone(), field: "model.merges".to_owned(), reason });
            }
            last = union;
        }
        let score = |(text, kind): &(String, i32)| match (*kind, rank_of.get(text)) {
            (NORMAL | USER_DEFINED, Some(&rank)) => -(rank as f32),
            (NORMAL | USER_DEFINED, None) => -(merges.len() as f32),
            _ => 0.0,
        };
        Ok(tokens.iter().map(score).collect())
    }

    /// Says whether a space goes before a text; refuses what a `llama` tokenizer does not do to a text.
    fn space_prefix(&self) -> Result<bool, ModelError> {
        let mark = SPACE_MARK.to_string();
        let text = |json: &Value, pointer: &str| json.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let mut adds_space = false;
        for step in steps(&self.json.normalizer, "normalizers") {
            match text(step, "/type").as_deref() {
                Some("Prepend") if text(step, "/prepend").as_ref() == Some(&mark) => adds_space = true,
                Some("Replace")
                    if text(step, "/pattern/String").as_deref() == Some(" ")
                        && text(step, "/content").as_ref() == Some(&mark) => {}
                _ => return Err(self.unsupported("normalizer", step)),
            }
        }
        for step in steps(&self.json.pre_tokenizer, "pretokenizers") {
            let splits = step.get("split").and_then(Value::as_bool).unwrap_or(true);
            let is_ours = text(step, "/type").as_deref() == Some("Metaspace")
                && text(step, "/replacement").as_ref() == Some(&mark)
                && !splits;
            if !is_ours {
                return Err(self.unsupported("pre_tokenizer", step));
            }
            adds_space |= text(step, "/prepend_scheme").as_deref() != Some("never");
        }
        Ok(adds_space)
    }

    fn unsupported(&self, field: &str, found: &Value) -> ModelError {
        let reason = format!("GGUF has no name for `{found}`");
        ModelError::Config { file: self.file.clone(), field: field.to_owned(), reason }
    }
}

/// Returns the members of a `Sequence`, or the one step itself.
fn steps<'a>(json: &'a Value, members: &str) -> Vec<&'a Value> {
    match json.get(members).and_then(Value::as_array) {
        Some(steps) => steps.iter().collect(),
        None if json.is_null() => Vec::new(),
        None => vec![json],
    }
}

/// Returns llama.cpp's name for a byte-level pre-tokenizer, if it has one that this crate knows too.
fn pre_name(json: &Value) -> Option<&'static str> {
    let steps = steps(json, "pretokenizers");
    let (bytes, before) = steps.split_last()?;
    let flag = |json: &Value, key: &str, absent: bool| json.get(key).and_then(Value::as_bool).unwrap_or(absent);
    let is = |json: &Value, kind: &str| json.get("type").and_then(Value::as_str) == Some(kind);
    if !is(bytes, "ByteLevel") || flag(bytes, "add_prefix_space", true) {
        return None;
    }
    match (before, flag(bytes, "use_regex", true)) {
        ([], true) => Some("gpt-2"),
        ([digits], true) if is(digits, "Digits") && flag(digits, "individual_digits", false) => Some("smollm"),
        ([split], false) if is(split, "Split") && !flag(split, "invert", false) => {
            let isolates = split.get("behavior").and_then(Value::as_str) == Some("Isolated");
            match split.pointer("/pattern/Regex").and_then(Value::as_str).filter(|_| isolates) {
                Some(LLAMA3_SPLIT) => Some("llama-bpe"),
                Some(QWEN2_SPLIT) => Some("qwen2"),
                _ => None,
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
