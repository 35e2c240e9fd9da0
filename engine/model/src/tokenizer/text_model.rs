//! The part of a tokenizer that turns plain text into tokens: the `tokenizers` crate, or our SentencePiece merge.

use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{Encoding, PreTokenizerWrapper};

use super::score_merge::ScoreMerge;
use super::vocabulary::Vocabulary;
use crate::ModelError;

/// Longest text run, in bytes. The regex engine gives up, and its binding panics, after 10^7 steps back in one match
/// (`DEFAULT_RETRY_LIMIT_IN_MATCH`), which takes a run of white space of about as many bytes.
const TEXT_BYTES_MAX: usize = 8 << 20;

/// Encodes plain text.
#[derive(Debug)]
pub(super) enum TextModel {
    /// What `tokenizer.json` describes, or its like built from GGUF metadata.
    Pipeline(Box<Pipeline>),
    /// SentencePiece BPE by scores.
    Scored(Box<ScoreMerge>),
}

/// A tokenizer of the `tokenizers` crate that finds no control tokens and adds none.
#[derive(Debug)]
pub(super) struct Pipeline {
    start: tokenizers::Tokenizer,
    /// For a text run that does not begin the prompt, where that makes a difference.
    inner: Option<tokenizers::Tokenizer>,
}

impl TextModel {
    /// Encodes a text run, appending to `ids`; `at_start` says that nothing stands before it in the prompt.
    pub(super) fn encode(&self, text: &str, at_start: bool, ids: &mut Vec<u32>) -> Result<(), ModelError> {
        check_length(text)?;
        match self {
            TextModel::Scored(model) => model.encode(text, ids, &mut Vec::new()),
            TextModel::Pipeline(model) => {
                let encoding = model.of(at_start).encode_fast(text, false).map_err(failed)?;
                ids.extend_from_slice(encoding.get_ids());
            }
        }
        Ok(())
    }

    /// Encodes a text run like [`TextModel::encode`] and returns where the first byte of each new token lies in it.
    pub(super) fn encode_with_starts(
        &self,
        text: &str,
        at_start: bool,
        vocabulary: &Vocabulary,
        ids: &mut Vec<u32>,
    ) -> Result<Vec<usize>, ModelError> {
        check_length(text)?;
        match self {
            TextModel::Scored(model) => {
                let mut starts = Vec::new();
                model.encode(text, ids, &mut starts);
                Ok(starts)
            }
            TextModel::Pipeline(model) => {
                let encoding = model.of(at_start).encode(text, false).map_err(failed)?;
                ids.extend_from_slice(encoding.get_ids());
                Ok(starts(text, &encoding, vocabulary))
            }
        }
    }
}

impl Pipeline {
    /// Wraps a tokenizer, whatever it was set up to do besides encoding plain text.
    pub(super) fn new(mut tokenizer: tokenizers::Tokenizer) -> Result<Pipeline, ModelError> {
        tokenizer.set_encode_special_tokens(true);
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(failed)?;
        tokenizer.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        tokenizer.with_decoder(None::<tokenizers::DecoderWrapper>);
        let mut pre_tokenizer = tokenizer.get_pre_tokenizer().cloned();
        let inner = pre_tokenizer.as_mut().is_some_and(drop_first_prefix).then(|| {
            let mut inner = tokenizer.clone();
            inner.with_pre_tokenizer(pre_tokenizer);
            inner
        });
        Ok(Pipeline { start: tokenizer, inner })
    }

    fn of(&self, at_start: bool) -> &tokenizers::Tokenizer {
        match &self.inner {
            Some(inner) if !at_start => inner,
            _ => &self.start,
        }
    }
}

/// Turns `Metaspace` of the scheme `first` into `never`; says whether there was one.
fn drop_first_prefix(pre_tokenizer: &mut PreTokenizerWrapper) -> bool {
    match pre_tokenizer {
        PreTokenizerWrapper::Metaspace(metaspace) if metaspace.prepend_scheme == PrependScheme::First => {
            metaspace.prepend_scheme = PrependScheme::Never;
            true
        }
        // Not `any`: each of them is to be changed.
        PreTokenizerWrapper::Sequence(sequence) => {
            sequence.as_mut().iter_mut().filter_map(|p| drop_first_prefix(p).then_some(())).count() > 0
        }
        _ => false,
    }
}

/// Finds where tokens start in the text that they were made from.
///
/// The crate's offsets are wrong by one character where a normalizer replaced a space. So the tokens' bytes are laid along the
/// text; only where they do not fit (the text was normalized, or has unknown characters) the crate's offsets are taken.
fn starts(text: &str, encoding: &Encoding, vocabulary: &Vocabulary) -> Vec<usize> {
    let text = text.as_bytes();
    let mut starts = Vec::with_capacity(encoding.len());
    let mut at = 0;
    for &id in encoding.get_ids() {
        let bytes = vocabulary.token_bytes(id).unwrap_or_default();
        starts.push(at);
        // A space that is not in the text was put before it.
        let rest = &text[at..];
        let fitting =
            [Some(bytes), bytes.strip_prefix(b" ")].into_iter().flatten().find(|bytes| rest.starts_with(bytes));
        match fitting {
            Some(bytes) => at += bytes.len(),
            None => break,
        }
    }
    if at == text.len() && starts.len() == encoding.len() {
        return starts;
    }
    encoding.get_offsets().iter().map(|&(start, _)| start).collect()
}

fn check_length(text: &str) -> Result<(), ModelError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(ModelError::PromptTooLong { bytes: text.len(), limit: TEXT_BYTES_MAX });
    }
    Ok(())
}

fn failed(error: tokenizers::Error) -> ModelError {
    ModelError::Tokenize { reason: error.to_string() }
}
