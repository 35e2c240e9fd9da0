//! Text to word pieces, by the `tokenizer.json` beside the weights.

use std::path::Path;

use tokenizers::{Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use super::config::config_from_folder;
use crate::ModelError;

/// The longest text that is taken: far more than any encoder sees of it.
const TEXT_BYTES_MAX: usize = 1 << 16;

/// The tokenizer of an encoder. Text that spells a control token stays text.
pub struct EncoderTokenizer {
    tokenizer: Tokenizer,
}

/// The tokens of a text as the encoder sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WordPieces {
    /// Their ids, `[CLS]` first and `[SEP]` last.
    pub ids: Vec<u32>,
    /// Whether the text was too long and its end was cut off.
    pub truncated: bool,
}

impl EncoderTokenizer {
    /// Loads the tokenizer of a folder.
    ///
    /// **Errors**: `Io`, `Malformed`, and those of the configuration, which says how long a text may be.
    pub fn load(folder: &Path) -> Result<EncoderTokenizer, ModelError> {
        let config = config_from_folder(folder)?;
        let file = folder.join("tokenizer.json");
        let bytes = std::fs::read(&file).map_err(|source| ModelError::Io { file: file.clone(), source })?;
        let malformed =
            |error: tokenizers::Error| ModelError::Malformed { file: file.clone(), reason: error.to_string() };
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(malformed)?;
        tokenizer.set_encode_special_tokens(true);
        // What the file says of padding and length is for training; the batch here has no padding.
        tokenizer.with_padding(None);
        let truncation = TruncationParams {
            direction: TruncationDirection::Right,
            max_length: config.tokens_max,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        tokenizer.with_truncation(Some(truncation)).map_err(malformed)?;
        Ok(EncoderTokenizer { tokenizer })
    }

    /// Turns a text into tokens.
    ///
    /// **Errors**: `PromptTooLong`, `Tokenize`.
    pub fn encode(&self, text: &str) -> Result<WordPieces, ModelError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(ModelError::PromptTooLong { bytes: text.len(), limit: TEXT_BYTES_MAX });
        }
        let encoding = self.tokenizer.encode_fast(text, true);
        let encoding = encoding.map_err(|error| ModelError::Tokenize { reason: error.to_string() })?;
        let truncated = !encoding.get_overflowing().is_empty();
        let ids = encoding.get_ids().to_vec();
        if ids.is_empty() {
            return Err(ModelError::Tokenize { reason: "it adds no token to an empty text".to_owned() });
        }
        Ok(WordPieces { ids, truncated })
    }
}
