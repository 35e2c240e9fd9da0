//! Loads a tokenizer from a Hugging Face folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{AddedToken, DecoderWrapper, ModelWrapper};

use super::added::AddedTokens;
use super::end_of_generation::end_ids;
use super::text_model::{Pipeline, TextModel};
use super::vocabulary::{Alphabet, TokenKind, Vocabulary};
use super::{Affixes, Tables};
use crate::ModelError;

pub(super) const TOKENIZER_FILE: &str = "tokenizer.json";
const CONFIG_FILE: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";
const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";

/// Classes of transformers that add BOS unless their configuration says otherwise.
const BOS_CLASSES: [&str; 6] = [
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "CodeLlamaTokenizer",
    "CodeLlamaTokenizerFast",
    "GemmaTokenizer",
    "GemmaTokenizerFast",
];

/// The parts of `tokenizer_config.json` and `special_tokens_map.json` that matter here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TokenizerConfig {
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
    pub(super) unk_token: Option<TokenText>,
    pub(super) pad_token: Option<TokenText>,
    additional_special_tokens: Option<Vec<TokenText>>,
    added_tokens_decoder: HashMap<String, AddedEntry>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    tokenizer_class: Option<String>,
    chat_template: Option<ChatTemplate>,
}

/// A token, spelled or as an object with its spelling.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum TokenText {
    Spelling(String),
    Object { content: String },
}

#[derive(Debug, Deserialize)]
struct AddedEntry {
    content: String,
    #[serde(default)]
    special: bool,
}

/// One template, or several by name.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ChatTemplate {
    Source(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

pub(super) fn load(dir: &Path) -> Result<Tables, ModelError> {
    let file = dir.join(TOKENIZER_FILE);
    let bytes = std::fs::read(&file).map_err(|source| ModelError::Io { file: file.clone(), source })?;
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes)
        .map_err(|error| ModelError::Malformed { file: file.clone(), reason: error.to_string() })?;
    let config = read_config(dir)?;
    let (alphabet, strips_space) = decoding(&file, &tokenizer)?;
    mark_special(&mut tokenizer, &config);
    let bos = named_token(dir, &tokenizer, "bos_token", config.bos_token.as_ref())?;
    let eos = named_token(dir, &tokenizer, "eos_token", config.eos_token.as_ref())?;
    let affixes = affixes(&file, &mut tokenizer, &config, bos, eos)?;
    let added = tokenizer.get_added_tokens_decoder();
    let controls = added.into_iter().filter(|(_, token)| token.special).map(|(id, token)| (token, id)).collect();
    let vocabulary = vocabulary(&file, &tokenizer, alphabet)?;
    Ok(Tables {
        end_ids: end_ids(&vocabulary, &[eos]),
        vocabulary,
        text_model: TextModel::Pipeline(Box::new(Pipeline::new(without_dropout(tokenizer))?)),
        controls: AddedTokens::new(controls)?,
        affixes,
        bos,
        eos,
        chat_template: chat_template(dir, config.chat_template)?,
        strips_space,
    })
}

pub(super) fn read_config(dir: &Path) -> Result<TokenizerConfig, ModelError> {
    let mut config: TokenizerConfig = read_json(dir.join(CONFIG_FILE))?.unwrap_or_default();
    let map: TokenizerConfig = read_json(dir.join(SPECIAL_TOKENS_FILE))?.unwrap_or_default();
    config.bos_token = config.bos_token.or(map.bos_token);
    config.eos_token = config.eos_token.or(map.eos_token);
    config.unk_token = config.unk_token.or(map.unk_token);
    config.pad_token = config.pad_token.or(map.pad_token);
    config.additional_special_tokens = config.additional_special_tokens.or(map.additional_special_tokens);
    Ok(config)
}

fn read_json<T: DeserializeOwned>(file: PathBuf) -> Result<Option<T>, ModelError> {
    let Some(text) = read_optional(&file)? else { return Ok(None) };
    match serde_json::from_str(&text) {
        Ok(value) => Ok(Some(value)),
        Err(error) => Err(ModelError::Malformed { file, reason: error.to_string() }),
    }
}

fn read_optional(file: &Path) -> Result<Option<String>, ModelError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ModelError::Io { file: file.to_path_buf(), source }),
    }
}

/// Reads from the decoder how spellings stand for bytes, and whether decoding takes away one space at the start.
fn decoding(file: &Path, tokenizer: &tokenizers::Tokenizer) -> Result<(Alphabet, bool), ModelError> {
    let unsupported = |found: String| ModelError::Config {
        file: file.to_path_buf(),
        field: "decoder".to_owned(),
        reason: format!("`{found}` is neither byte-level nor SentencePiece"),
    };
    let decoder = tokenizer.get_decoder().ok_or_else(|| unsupported("null".to_owned()))?;
    let steps = match decoder {
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders(),
        single => std::slice::from_ref(single),
    };
    let mut alphabet = None;
    let mut strips_space = false;
    for step in steps {
        match step {
            DecoderWrapper::ByteLevel(_) => alphabet = Some(Alphabet::ByteLevel),
            DecoderWrapper::Metaspace(metaspace) => {
                alphabet = Some(Alphabet::SentencePiece);
                strips_space = metaspace.prepend_scheme != PrependScheme::Never;
            }
            DecoderWrapper::Replace(_) | DecoderWrapper::ByteFallback(_) => alphabet = Some(Alphabet::SentencePiece),
            DecoderWrapper::Fuse(_) => {}
            DecoderWrapper::Strip(strip) if strip.content == ' ' && strip.stop == 0 => strips_space = strip.start > 0,
            other => return Err(unsupported(decoder_name(other))),
        }
    }
    alphabet.map(|alphabet| (alphabet, strips_space)).ok_or_else(|| unsupported(decoder_name(decoder)))
}

/// Returns the `type` of a decoder as `tokenizer.json` has it.
fn decoder_name(decoder: &DecoderWrapper) -> String {
    let json = serde_json::to_value(decoder).unwrap_or_default();
    json.get("type").and_then(|name| name.as_str()).unwrap_or("unknown").to_owned()
}

/// Makes control tokens of the tokens that the configuration calls special but `tokenizer.json` does not, as transformers does.
fn mark_special(tokenizer: &mut tokenizers::Tokenizer, config: &TokenizerConfig) {
    let named = [&config.bos_token, &config.eos_token, &config.unk_token, &config.pad_token];
    let named =
        named.into_iter().flatten().chain(config.additional_special_tokens.iter().flatten()).map(TokenText::spelling);
    let listed = config.added_tokens_decoder.values().filter(|entry| entry.special).map(|entry| entry.content.as_str());
    let known = tokenizer.get_added_tokens_decoder();
    let tokens: Vec<AddedToken> = named
        .chain(listed)
        .filter_map(|spelling| Some((spelling, tokenizer.token_to_id(spelling)?)))
        .filter(|(_, id)| known.get(id).is_none_or(|token| !token.special))
        .map(|(spelling, _)| AddedToken::from(spelling, true))
        .collect();
    tokenizer.add_special_tokens(&tokens);
}

fn named_token(
    dir: &Path,
    tokenizer: &tokenizers::Tokenizer,
    field: &str,
    token: Option<&TokenText>,
) -> Result<Option<u32>, ModelError> {
    let Some(spelling) = token.map(TokenText::spelling) else { return Ok(None) };
    let id = tokenizer.token_to_id(spelling).ok_or_else(|| ModelError::Config {
        file: dir.join(CONFIG_FILE),
        field: field.to_owned(),
        reason: format!("`{spelling}` is not in `{TOKENIZER_FILE}`"),
    })?;
    Ok(Some(id))
}

/// Finds out what the post-processor adds; an explicit `add_bos_token` or `add_eos_token` has the last word.
fn affixes(
    file: &Path,
    tokenizer: &mut tokenizers::Tokenizer,
    config: &TokenizerConfig,
    bos: Option<u32>,
    eos: Option<u32>,
) -> Result<Affixes, ModelError> {
    let malformed =
        |error: tokenizers::Error| ModelError::Malformed { file: file.to_path_buf(), reason: error.to_string() };
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(malformed)?;
    let probe = tokenizer.encode_fast("a", true).map_err(malformed)?;
    let (ids, added) = (probe.get_ids(), probe.get_special_tokens_mask());
    let num_before = added.iter().take_while(|&&mask| mask == 1).count();
    let num_after = added[num_before..].iter().rev().take_while(|&&mask| mask == 1).count();
    let mut affixes = Affixes { prefix: ids[..num_before].to_vec(), suffix: ids[ids.len() - num_after..].to_vec() };
    let is_bos_class = config.tokenizer_class.as_deref().is_some_and(|class| BOS_CLASSES.contains(&class));
    if let (Some(bos), Some(add)) = (bos, config.add_bos_token.or(is_bos_class.then_some(true))) {
        affixes.prefix.retain(|&id| id != bos);
        affixes.prefix.splice(0..0, add.then_some(bos));
    }
    if let (Some(eos), Some(add)) = (eos, config.add_eos_token) {
        affixes.suffix.retain(|&id| id != eos);
        affixes.suffix.extend(add.then_some(eos));
    }
    Ok(affixes)
}

/// Lists the tokens by id; ids without a token stay absent.
fn vocabulary(file: &Path, tokenizer: &tokenizers::Tokenizer, alphabet: Alphabet) -> Result<Vocabulary, ModelError> {
    let added = tokenizer.get_added_tokens_decoder();
    let mut tokens: Vec<(u32, String)> = tokenizer.get_vocab(true).into_iter().map(|(text, id)| (id, text)).collect();
    tokens.sort_unstable();
    let last = tokens.last().map_or(0, |(id, _)| *id as usize);
    // A table as long as its greatest id is only sound for a vocabulary that is nearly dense.
    if last > 2 * tokens.len() + (1 << 16) {
        let reason = format!("token id {last} in a vocabulary of {} tokens", tokens.len());
        return Err(ModelError::Malformed { file: file.to_path_buf(), reason });
    }
    let mut vocabulary = Vocabulary::default();
    for (id, spelling) in tokens {
        while vocabulary.len() < id as usize {
            vocabulary.push(b"", TokenKind::Absent);
        }
        // Two spellings of one id: the first stays.
        if vocabulary.len() > id as usize {
            continue;
        }
        match added.get(&id) {
            Some(token) if token.special => vocabulary.push(token.content.as_bytes(), TokenKind::Control),
            Some(token) => vocabulary.push(token.content.as_bytes(), TokenKind::Text),
            None => vocabulary.push(&alphabet.bytes_of(&spelling), TokenKind::Text),
        }
    }
    Ok(vocabulary)
}

/// Switches off the random skipping of merges, which is for training.
fn without_dropout(mut tokenizer: tokenizers::Tokenizer) -> tokenizers::Tokenizer {
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
        && bpe.dropout.is_some()
    {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        tokenizer.with_model(bpe);
    }
    tokenizer
}

/// `chat_template.jinja` goes before the configuration; of several named templates the one called `default` is meant.
fn chat_template(dir: &Path, configured: Option<ChatTemplate>) -> Result<Option<String>, ModelError> {
    if let Some(source) = read_optional(&dir.join(CHAT_TEMPLATE_FILE))? {
        return Ok(Some(source));
    }
    Ok(match configured {
        Some(ChatTemplate::Source(source)) => Some(source),
        Some(ChatTemplate::Named(templates)) => {
            templates.into_iter().find(|named| named.name == "default").map(|named| named.template)
        }
        None => None,
    })
}

impl TokenText {
    pub(super) fn spelling(&self) -> &str {
        match self {
            TokenText::Spelling(spelling) | TokenText::Object { content: spelling } => spelling,
        }
    }
}
