//! Builds a tokenizer from GGUF metadata (`tokenizer.ggml.*`).
//!
//! **Source**: `docs/gguf.md` of the ggml repository and llama.cpp `src/llama-vocab.cpp`; the split patterns are those of the
//! models' own `tokenizer.json`.

use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::added::AddedTokens;
use super::end_of_generation::{end_ids, is_end};
use super::score_merge::ScoreMerge;
use super::text_model::{Pipeline, TextModel};
use super::vocabulary::{Alphabet, TokenKind, Vocabulary, byte_token};
use super::{Affixes, Tables};
use crate::ModelError;
use crate::gguf::{Metadata, optional};

pub(super) const MODEL: &str = "tokenizer.ggml.model";
pub(super) const PRE: &str = "tokenizer.ggml.pre";
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const TYPES: &str = "tokenizer.ggml.token_type";
pub(super) const SCORES: &str = "tokenizer.ggml.scores";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";
pub(super) const BOS: &str = "tokenizer.ggml.bos_token_id";
pub(super) const EOS: &str = "tokenizer.ggml.eos_token_id";
const EOT: &str = "tokenizer.ggml.eot_token_id";
const EOM: &str = "tokenizer.ggml.eom_token_id";
pub(super) const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
pub(super) const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
pub(super) const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
pub(super) const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
pub(super) const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

/// Llama 3's split: words with one leading sign, numbers by three digits, signs with line ends, white space.
pub(super) const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's split: as Llama 3's with single digits.
pub(super) const QWEN2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// `llama_token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenType {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// Which `gpt2` pre-tokenizer the file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PreTokenizer {
    Gpt2,
    Llama3,
    SmolLm,
    Qwen2,
}

/// The tokens of the file with the ids that the keys name.
struct Tokens<'a> {
    texts: &'a [String],
    types: Vec<TokenType>,
    bos: Option<u32>,
    eos: Option<u32>,
    /// End of a turn and of a message.
    eot: Option<u32>,
    eom: Option<u32>,
    unknown: Option<u32>,
}

pub(super) fn load(metadata: &Metadata) -> Result<Tables, ModelError> {
    match metadata.string(MODEL)? {
        "gpt2" => load_byte_level(metadata),
        "llama" => load_sentencepiece(metadata),
        other => Err(refused(metadata, MODEL, format!("`{other}` is not supported (`gpt2` and `llama` are)"))),
    }
}

fn load_byte_level(metadata: &Metadata) -> Result<Tables, ModelError> {
    let pre = PreTokenizer::read(metadata)?;
    let tokens = Tokens::read(metadata, [None, None, None])?;
    let text_model = TextModel::Pipeline(Box::new(Pipeline::new(byte_level(metadata, &tokens, pre)?)?));
    // As llama.cpp: files of Llama 3 that do not say are to have BOS.
    tables(
        metadata,
        &tokens,
        text_model,
        Defaults { alphabet: Alphabet::ByteLevel, add_bos: pre == PreTokenizer::Llama3 },
    )
}

fn load_sentencepiece(metadata: &Metadata) -> Result<Tables, ModelError> {
    // As llama.cpp: bos, eos and unknown of a file that does not say.
    let tokens = Tokens::read(metadata, [Some(1), Some(2), Some(0)])?;
    let text_model = TextModel::Scored(Box::new(score_merge(metadata, &tokens)?));
    tables(metadata, &tokens, text_model, Defaults { alphabet: Alphabet::SentencePiece, add_bos: true })
}

/// What goes for a file of one kind that does not say.
struct Defaults {
    alphabet: Alphabet,
    add_bos: bool,
}

fn tables(
    metadata: &Metadata,
    tokens: &Tokens<'_>,
    text_model: TextModel,
    defaults: Defaults,
) -> Result<Tables, ModelError> {
    let vocabulary = tokens.vocabulary(defaults.alphabet);
    let add_bos = optional(metadata.bool(ADD_BOS))?.unwrap_or(defaults.add_bos);
    let add_eos = optional(metadata.bool(ADD_EOS))?.unwrap_or(false);
    let affixes = Affixes {
        prefix: tokens.bos.filter(|_| add_bos).into_iter().collect(),
        suffix: tokens.eos.filter(|_| add_eos).into_iter().collect(),
    };
    Ok(Tables {
        end_ids: end_ids(&vocabulary, &[tokens.eos, tokens.eot, tokens.eom]),
        vocabulary,
        strips_space: matches!(&text_model, TextModel::Scored(model) if model.add_space_prefix),
        text_model,
        controls: AddedTokens::new(tokens.added(&[TokenType::Control, TokenType::Unknown]))?,
        affixes,
        bos: tokens.bos,
        eos: tokens.eos,
        chat_template: optional(metadata.string(CHAT_TEMPLATE))?.map(str::to_owned),
    })
}

/// Builds what the model's `tokenizer.json` describes, control tokens in the vocabulary, so that all keep their ids.
pub(super) fn byte_level_of(metadata: &Metadata) -> Result<tokenizers::Tokenizer, ModelError> {
    let mut tokens = Tokens::read(metadata, [None, None, None])?;
    for kind in tokens.types.iter_mut().filter(|kind| matches!(kind, TokenType::Control | TokenType::Unknown)) {
        *kind = TokenType::Unused;
    }
    byte_level(metadata, &tokens, PreTokenizer::read(metadata)?)
}

/// Builds what the model's `tokenizer.json` describes, without its control tokens.
fn byte_level(
    metadata: &Metadata,
    tokens: &Tokens<'_>,
    pre: PreTokenizer,
) -> Result<tokenizers::Tokenizer, ModelError> {
    let vocab: Vocab = tokens.text_tokens().map(|(id, text)| (text.to_owned(), id)).collect();
    let mut merges: Merges = Vec::new();
    for merge in metadata.strings(MERGES)? {
        let pair =
            merge.split_once(' ').ok_or_else(|| refused(metadata, MERGES, format!("`{merge}` is not a pair")))?;
        merges.push((pair.0.to_owned(), pair.1.to_owned()));
    }
    let bpe = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(pre == PreTokenizer::Llama3).build();
    let bpe = bpe.map_err(|error| refused(metadata, MERGES, error.to_string()))?;
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    if pre == PreTokenizer::Qwen2 {
        tokenizer.with_normalizer(Some(NFC));
    }
    let pre_tokenizer = pre.build().map_err(|error| refused(metadata, PRE, error.to_string()))?;
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    let user_defined = tokens.added(&[TokenType::UserDefined]);
    let user_defined: Vec<AddedToken> = user_defined.into_iter().map(|(token, _)| token.special(false)).collect();
    tokenizer.add_tokens(&user_defined);
    Ok(tokenizer)
}

fn score_merge(metadata: &Metadata, tokens: &Tokens<'_>) -> Result<ScoreMerge, ModelError> {
    let scores = metadata.f32s(SCORES)?;
    if scores.len() != tokens.texts.len() {
        let reason = format!("{} scores for {} tokens", scores.len(), tokens.texts.len());
        return Err(refused(metadata, SCORES, reason));
    }
    if let Some(id) = scores.iter().position(|score| score.is_nan()) {
        return Err(refused(metadata, SCORES, format!("the score of token {id} is NaN")));
    }
    // Adding 0 makes 0 of -0, which the merge would order below it.
    let pieces: HashMap<String, (u32, f32)> =
        tokens.text_tokens().map(|(id, text)| (text.to_owned(), (id, scores[id as usize] + 0.0))).collect();
    let mut byte_ids = vec![None; 256];
    for (id, text, _) in tokens.iter().filter(|&(_, _, kind)| kind == TokenType::Byte) {
        let byte = byte_token(text);
        let byte = byte.ok_or_else(|| refused(metadata, TOKENS, format!("byte token {id} is spelled `{text}`")))?;
        byte_ids[usize::from(byte)] = Some(id);
    }
    Ok(ScoreMerge {
        piece_bytes_max: pieces.keys().map(String::len).max().unwrap_or(0),
        pieces,
        byte_ids,
        unknown: tokens.unknown,
        add_space_prefix: optional(metadata.bool(ADD_SPACE_PREFIX))?.unwrap_or(true),
        added: AddedTokens::new(tokens.added(&[TokenType::UserDefined]))?,
    })
}

impl<'a> Tokens<'a> {
    /// Reads the arrays and ids; `absent` are bos, eos and unknown for a file that names none.
    fn read(metadata: &'a Metadata, absent: [Option<u32>; 3]) -> Result<Tokens<'a>, ModelError> {
        let texts = metadata.strings(TOKENS)?;
        if texts.is_empty() || u32::try_from(texts.len()).is_err() {
            return Err(refused(metadata, TOKENS, format!("{} tokens", texts.len())));
        }
        let id = |key: &str, absent: Option<u32>| match optional(metadata.u32(key))? {
            Some(id) if id as usize >= texts.len() => {
                Err(refused(metadata, key, format!("{id} is outside the vocabulary of {}", texts.len())))
            }
            Some(id) => Ok(Some(id)),
            None => Ok(absent.filter(|&id| (id as usize) < texts.len())),
        };
        let [bos, eos, unknown] = absent;
        let mut tokens = Tokens {
            texts,
            types: token_types(metadata, texts)?,
            bos: id(BOS, bos)?,
            eos: id(EOS, eos)?,
            eot: id(EOT, None)?,
            eom: id(EOM, None)?,
            unknown: id(UNKNOWN, unknown)?,
        };
        tokens.mark_controls();
        Ok(tokens)
    }

    /// Makes control tokens of the named ones and of ends that the file calls user-defined, as llama.cpp does: text must not
    /// turn into them.
    fn mark_controls(&mut self) {
        for id in [self.bos, self.eos, self.eot, self.eom].into_iter().flatten() {
            self.types[id as usize] = TokenType::Control;
        }
        for (text, kind) in self.texts.iter().zip(&mut self.types) {
            if *kind == TokenType::UserDefined && is_end(text) {
                *kind = TokenType::Control;
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = (u32, &'a str, TokenType)> {
        (0..).zip(self.texts).zip(&self.types).map(|((id, text), &kind)| (id, text.as_str(), kind))
    }

    /// Lists the tokens that text may become by merging.
    fn text_tokens(&self) -> impl Iterator<Item = (u32, &'a str)> {
        self.iter()
            .filter(|(_, _, kind)| matches!(kind, TokenType::Normal | TokenType::UserDefined | TokenType::Unused))
            .map(|(id, text, _)| (id, text))
    }

    fn added(&self, types: &[TokenType]) -> Vec<(AddedToken, u32)> {
        self.iter()
            .filter(|(_, _, kind)| types.contains(kind))
            .map(|(id, text, _)| (AddedToken::from(text, true), id))
            .collect()
    }

    fn vocabulary(&self, alphabet: Alphabet) -> Vocabulary {
        let mut vocabulary = Vocabulary::default();
        for (_, text, kind) in self.iter() {
            match kind {
                TokenType::Normal | TokenType::Byte => vocabulary.push(&alphabet.bytes_of(text), TokenKind::Text),
                TokenType::UserDefined => vocabulary.push(text.as_bytes(), TokenKind::Text),
                TokenType::Control | TokenType::Unknown => vocabulary.push(text.as_bytes(), TokenKind::Control),
                TokenType::Unused => vocabulary.push(b"", TokenKind::Absent),
            }
        }
        vocabulary
    }
}

/// Reads the token types; a file without them has normal tokens, and byte tokens by their spelling.
fn token_types(metadata: &Metadata, texts: &[String]) -> Result<Vec<TokenType>, ModelError> {
    let Some(types) = optional(metadata.i32s(TYPES))? else {
        let by_spelling = |text: &String| if byte_token(text).is_some() { TokenType::Byte } else { TokenType::Normal };
        return Ok(texts.iter().map(by_spelling).collect());
    };
    if types.len() != texts.len() {
        return Err(refused(metadata, TYPES, format!("{} types for {} tokens", types.len(), texts.len())));
    }
    let convert = |(id, number)| {
        TokenType::of(number)
            .ok_or_else(|| refused(metadata, TYPES, format!("token {id} has the unknown type {number}")))
    };
    types.into_iter().enumerate().map(convert).collect()
}

impl TokenType {
    fn of(number: i32) -> Option<TokenType> {
        Some(match number {
            // 0 is `undefined`, which writers use for tokens they know nothing about.
            0 | 1 => TokenType::Normal,
            2 => TokenType::Unknown,
            3 => TokenType::Control,
            4 => TokenType::UserDefined,
            5 => TokenType::Unused,
            6 => TokenType::Byte,
            _ => return None,
        })
    }
}

impl PreTokenizer {
    fn read(metadata: &Metadata) -> Result<PreTokenizer, ModelError> {
        match optional(metadata.string(PRE))? {
            None | Some("default" | "gpt-2") => Ok(PreTokenizer::Gpt2),
            Some("llama-bpe" | "llama3" | "llama-v3") => Ok(PreTokenizer::Llama3),
            Some("smollm") => Ok(PreTokenizer::SmolLm),
            Some("qwen2") => Ok(PreTokenizer::Qwen2),
            Some(other) => Err(refused(metadata, PRE, format!("`{other}` is not supported"))),
        }
    }

    fn build(self) -> Result<Sequence, tokenizers::Error> {
        let split = |pattern: &str| -> Result<PreTokenizerWrapper, tokenizers::Error> {
            let pattern = SplitPattern::Regex(pattern.to_owned());
            Ok(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into())
        };
        // `ByteLevel` brings the GPT-2 pattern itself.
        let bytes = |use_regex: bool| PreTokenizerWrapper::from(ByteLevel::new(false, false, use_regex));
        Ok(Sequence::new(match self {
            PreTokenizer::Gpt2 => vec![bytes(true)],
            PreTokenizer::SmolLm => vec![Digits::new(true).into(), bytes(true)],
            PreTokenizer::Llama3 => vec![split(LLAMA3_SPLIT)?, bytes(false)],
            PreTokenizer::Qwen2 => vec![split(QWEN2_SPLIT)?, bytes(false)],
        }))
    }
}

fn refused(metadata: &Metadata, key: &str, reason: String) -> ModelError {
    ModelError::Config { file: metadata.file().to_path_buf(), field: key.to_owned(), reason }
}
