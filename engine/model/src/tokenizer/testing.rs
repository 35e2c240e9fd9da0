//! Small tokenizers for tests, built from metadata as a GGUF file has it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Tokenizer, gguf};
use crate::ModelError;
use crate::gguf::{Array, Metadata, Value};

/// The control token of [`bytes`]; the tokens before it are the 256 bytes.
pub(crate) const CONTROL: u32 = 256;

/// Returns the id of a byte in the tokenizer of [`bytes`].
pub(crate) fn byte_id(byte: u8) -> u32 {
    u32::from(byte)
}

/// A byte-level tokenizer without merges: id = byte, then `<|end|>`.
pub(crate) fn bytes() -> Tokenizer {
    byte_level(&[], &[("<|end|>", 3)], &[])
}

/// A byte-level tokenizer: the bytes, then the results of `merges`, then `added` with their types; plus `pairs`.
pub(crate) fn byte_level(merges: &[&str], added: &[(&str, i32)], pairs: &[(&str, Value)]) -> Tokenizer {
    build(byte_level_metadata(merges, added, pairs)).unwrap()
}

pub(crate) fn byte_level_metadata(
    merges: &[&str],
    added: &[(&str, i32)],
    pairs: &[(&str, Value)],
) -> HashMap<String, Value> {
    let mut tokens: Vec<String> = (0..=255).map(|byte| char_of_byte(byte).to_string()).collect();
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let mut types = vec![1; tokens.len()];
    tokens.extend(added.iter().map(|(text, _)| (*text).to_owned()));
    types.extend(added.iter().map(|(_, kind)| i64::from(*kind)));
    let merges = merges.iter().map(|merge| (*merge).to_owned()).collect();
    let mut map = HashMap::from([
        ("tokenizer.ggml.model".to_owned(), Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.tokens".to_owned(), Value::Array(Array::Strings(tokens))),
        ("tokenizer.ggml.token_type".to_owned(), Value::Array(Array::Signed(types))),
        ("tokenizer.ggml.merges".to_owned(), Value::Array(Array::Strings(merges))),
    ]);
    map.extend(pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    map
}

/// A SentencePiece tokenizer: unk, bos, eos, the bytes from id 3 on, then [`PIECES`] from id 259 on, then `<tool>`.
pub(crate) fn sentencepiece(add_space_prefix: bool) -> Tokenizer {
    build(sentencepiece_metadata(add_space_prefix)).unwrap()
}

/// The pieces of [`sentencepiece`] with their scores.
pub(crate) const PIECES: [(&str, f64); 9] = [
    ("▁", -8.0),
    ("a", -7.0),
    ("b", -7.0),
    ("c", -7.0),
    ("ab", -2.0),
    ("bc", -1.0),
    ("abc", -3.0),
    ("▁a", -4.0),
    ("▁▁", -5.0),
];

pub(crate) fn sentencepiece_metadata(add_space_prefix: bool) -> HashMap<String, Value> {
    let mut rows: Vec<(String, f64, i64)> =
        [("<unk>", 2), ("<s>", 3), ("</s>", 3)].iter().map(|(text, kind)| ((*text).to_owned(), 0.0, *kind)).collect();
    rows.extend((0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
    rows.extend(PIECES.iter().map(|(text, score)| ((*text).to_owned(), *score, 1)));
    rows.push(("<tool>".to_owned(), 0.0, 4));
    HashMap::from([
        ("tokenizer.ggml.model".to_owned(), Value::String("llama".to_owned())),
        (
            "tokenizer.ggml.tokens".to_owned(),
            Value::Array(Array::Strings(rows.iter().map(|row| row.0.clone()).collect())),
        ),
        ("tokenizer.ggml.scores".to_owned(), Value::Array(Array::Floats(rows.iter().map(|row| row.1).collect()))),
        ("tokenizer.ggml.token_type".to_owned(), Value::Array(Array::Signed(rows.iter().map(|row| row.2).collect()))),
        ("tokenizer.ggml.add_space_prefix".to_owned(), Value::Bool(add_space_prefix)),
    ])
}

/// Builds a tokenizer from metadata.
pub(crate) fn build(pairs: HashMap<String, Value>) -> Result<Tokenizer, ModelError> {
    let metadata = Metadata::new(PathBuf::from("test.gguf"), pairs);
    Ok(Tokenizer { tables: Arc::new(gguf::load(&metadata)?) })
}

/// GPT-2's `bytes_to_unicode`, written as in its source.
pub(crate) fn char_of_byte(byte: u8) -> char {
    let is_itself = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if is_itself(byte) {
        return char::from(byte);
    }
    let num_before = (0..byte).filter(|&other| !is_itself(other)).count();
    char::from_u32(0x100 + num_before as u32).unwrap()
}
