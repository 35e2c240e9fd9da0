//! Text to tokens and back: encodes rendered prompts, decodes ids, and knows the control tokens.
//!
//! One [`Tokenizer`] comes from a Hugging Face folder (`tokenizer/folder.rs`) or from GGUF metadata (`tokenizer/gguf.rs`). Text
//! is encoded as text: only a span that says so becomes a control token. Neighbouring text spans are encoded together, so
//! where a renderer cuts its text never changes the tokens. Streams are decoded by [`crate::Detokenizer`].

mod added;
mod end_of_generation;
mod folder;
mod gguf;
mod score_merge;
mod text_model;
mod to_gguf;
mod to_hugging_face;
mod vocabulary;

use std::path::Path;
use std::sync::Arc;

use bespoke_domain::{Rendered, Span, SpanKind};

use crate::ModelError;
use crate::gguf::Gguf;
use added::AddedTokens;
use text_model::TextModel;
pub(crate) use to_gguf::write_gguf;
pub use to_hugging_face::hugging_face_tokenizer;
use vocabulary::{TokenKind, Vocabulary};

/// A tokenizer; clones share its tables.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    tables: Arc<Tables>,
}

/// The tokens of a prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The token ids.
    pub ids: Vec<u32>,
    /// For each token whether it is trained on: the flag of the span in which its first byte lies, `false` for a token that
    /// the tokenizer added by itself.
    pub trained: Vec<bool>,
}

/// Everything a loader finds out about a tokenizer.
#[derive(Debug)]
struct Tables {
    vocabulary: Vocabulary,
    text_model: TextModel,
    /// The control tokens, for texts in which they are to be found.
    controls: AddedTokens,
    affixes: Affixes,
    bos: Option<u32>,
    eos: Option<u32>,
    end_ids: Vec<u32>,
    chat_template: Option<String>,
    /// Whether encoding puts a space before a text that decoding takes away again.
    strips_space: bool,
}

/// What the tokenizer adds by itself around a prompt.
#[derive(Debug, Default)]
struct Affixes {
    prefix: Vec<u32>,
    suffix: Vec<u32>,
}

impl Tokenizer {
    /// Loads a Hugging Face folder: `tokenizer.json` and, where they exist, `tokenizer_config.json`, `special_tokens_map.json`
    /// and `chat_template.jinja`.
    ///
    /// A text run is encoded as that `tokenizer.json` does: the space that SentencePiece puts before a text goes before each
    /// run after a control token with a `Prepend` normalizer, before the first run of the prompt alone with `Metaspace` of the
    /// scheme `first` (what transformers writes for `legacy=false`).
    ///
    /// **Errors**: `Io` or `Malformed` naming the file; `Config` for a decoder that is neither byte-level nor SentencePiece.
    pub fn from_folder(dir: &Path) -> Result<Tokenizer, ModelError> {
        Ok(Tokenizer { tables: Arc::new(folder::load(dir)?) })
    }

    /// Builds the tokenizer that a GGUF file describes: `tokenizer.ggml.model` is `gpt2` (with `tokenizer.ggml.pre` one of
    /// `llama-bpe`, `smollm`, `qwen2`, `gpt-2`, `default`) or `llama`.
    ///
    /// A `llama` tokenizer puts a space before each text run, after a control token too, as llama.cpp does, unless
    /// `tokenizer.ggml.add_space_prefix` is false. A `qwen2` one composes characters (NFC), as its `tokenizer.json` does and
    /// llama.cpp does not.
    ///
    /// **Errors**: `MetadataMissing`, `MetadataType`, or `Config` naming key and value.
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer, ModelError> {
        Ok(Tokenizer { tables: Arc::new(gguf::load(gguf.metadata())?) })
    }

    /// Returns one more than the greatest token id; a model's logits may be padded beyond it.
    pub fn vocab_size(&self) -> usize {
        self.tables.vocabulary.len()
    }

    /// Returns the token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.tables.bos
    }

    /// Returns the tokens that end a generation: the file's eos, eot and eom, then every other control token that llama.cpp
    /// takes as an end by its spelling, such as `<|im_end|>`, `<|eot_id|>` or `<|endoftext|>`.
    pub fn eos_ids(&self) -> &[u32] {
        &self.tables.end_ids
    }

    /// Returns the Jinja source of the model's chat template.
    pub fn chat_template(&self) -> Option<&str> {
        self.tables.chat_template.as_deref()
    }

    /// Returns the spelling of the token that begins a text.
    pub fn bos_text(&self) -> Option<&str> {
        self.spelling(self.tables.bos?)
    }

    /// Returns the spelling of the token that ends a text or turn by the model's own files.
    pub fn eos_text(&self) -> Option<&str> {
        self.spelling(self.tables.eos?)
    }

    /// Returns the spellings of all control tokens, by rising id.
    pub fn control_tokens(&self) -> &[String] {
        self.tables.vocabulary.control_spellings()
    }

    /// Says whether a token is a control token.
    pub fn is_control(&self, id: u32) -> bool {
        self.tables.vocabulary.kind(id) == TokenKind::Control
    }

    /// Returns the bytes of a token, which need not be whole characters; a control token gives its spelling. `None` for an id
    /// that no token has.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.tables.vocabulary.token_bytes(id)
    }

    /// Returns the length of the longest token, in bytes: a text of `n` bytes has at least `n` divided by it tokens.
    pub fn token_bytes_max(&self) -> usize {
        self.tables.vocabulary.token_bytes_max()
    }

    /// Encodes a rendered prompt.
    ///
    /// With `add_special` the tokenizer adds what it adds by itself, but no second BOS before a prompt that spells one.
    ///
    /// **Errors**: `UnknownControlToken`; `PromptTooLong` for a text run above 8 MiB; `Tokenize` if the text model fails.
    pub fn encode(&self, rendered: &Rendered) -> Result<Encoded, ModelError> {
        let tables = &*self.tables;
        let mut encoded = Encoded::default();
        let mut rest = rendered.spans.as_slice();
        while let Some(first) = rest.first() {
            let num_spans = match first.kind {
                SpanKind::Control => 1,
                SpanKind::Text => rest.iter().take_while(|span| span.kind == SpanKind::Text).count(),
            };
            let (run, after) = rest.split_at(num_spans);
            rest = after;
            match first.kind {
                SpanKind::Control => {
                    let id = tables.vocabulary.control(&first.text);
                    let id = id.ok_or_else(|| ModelError::UnknownControlToken { spelling: first.text.clone() })?;
                    encoded.ids.push(id);
                    encoded.trained.push(first.trained);
                }
                SpanKind::Text => self.encode_run(run, &mut encoded)?,
            }
        }
        if rendered.add_special {
            tables.affixes.add(&mut encoded, tables.bos);
        }
        Ok(encoded)
    }

    /// Encodes a text; with `parse_control` a control token spelled in it becomes that token.
    ///
    /// **Errors**: as [`Tokenizer::encode`].
    pub fn encode_text(&self, text: &str, add_special: bool, parse_control: bool) -> Result<Vec<u32>, ModelError> {
        let span = |text: &str, kind| Span { text: text.to_owned(), kind, trained: false };
        let spans = if parse_control {
            let pieces = self.tables.controls.split(text).into_iter();
            // A control token may have swallowed the white space around it.
            pieces
                .map(|piece| span(piece.id.and_then(|id| self.spelling(id)).unwrap_or(piece.text), piece.kind()))
                .collect()
        } else {
            vec![span(text, SpanKind::Text)]
        };
        Ok(self.encode(&Rendered { spans, add_special })?.ids)
    }

    /// Encodes text that goes on where other text ended: no BOS, no control tokens, and no space put before it.
    ///
    /// **Errors**: as [`Tokenizer::encode_text`].
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        if !self.strips_space() {
            return self.encode_text(text, false, false);
        }
        // The space goes before a line break, which no token joins with what follows; both are then cut off.
        let mut ids = self.encode_text(&format!("\n{text}"), false, false)?;
        let mut bytes = Vec::new();
        for (index, &id) in ids.iter().enumerate() {
            bytes.extend_from_slice(self.token_bytes(id).unwrap_or_default());
            if bytes.ends_with(b"\n") {
                return Ok(ids.split_off(index + 1));
            }
        }
        self.encode_text(text, false, false)
    }

    /// Decodes ids to text; the one space that encoding put before a text is taken away. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// **Errors**: `TokenOutOfRange` for an id that no token has.
    pub fn decode(&self, ids: &[u32], skip_control: bool) -> Result<String, ModelError> {
        let mut bytes = Vec::new();
        for &id in ids {
            let token = self.token_bytes(id);
            let token = token.ok_or(ModelError::TokenOutOfRange { token: id, vocab_size: self.vocab_size() })?;
            if !(skip_control && self.is_control(id)) {
                bytes.extend_from_slice(token);
            }
        }
        let text = bytes.strip_prefix(b" ").filter(|_| self.strips_space()).unwrap_or(&bytes);
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// Says whether decoding takes away one space at the start of a text.
    pub(crate) fn strips_space(&self) -> bool {
        self.tables.strips_space
    }

    fn spelling(&self, id: u32) -> Option<&str> {
        std::str::from_utf8(self.token_bytes(id)?).ok()
    }

    /// Encodes neighbouring text spans as one text.
    fn encode_run(&self, run: &[Span], encoded: &mut Encoded) -> Result<(), ModelError> {
        let text: String = run.iter().map(|span| span.text.as_str()).collect();
        let at_start = encoded.ids.is_empty();
        let tables = &*self.tables;
        let Some(first) = run.first() else { return Ok(()) };
        if run.iter().all(|span| span.trained == first.trained) {
            tables.text_model.encode(&text, at_start, &mut encoded.ids)?;
            encoded.trained.resize(encoded.ids.len(), first.trained);
            return Ok(());
        }
        let starts = tables.text_model.encode_with_starts(&text, at_start, &tables.vocabulary, &mut encoded.ids)?;
        let mut spans = run.iter();
        let mut trained = false;
        let mut end = 0;
        for start in starts {
            while start >= end {
                let Some(span) = spans.next() else { break };
                end += span.text.len();
                trained = span.trained;
            }
            encoded.trained.push(trained);
        }
        Ok(())
    }
}

impl Affixes {
    fn add(&self, encoded: &mut Encoded, bos: Option<u32>) {
        let spelled = bos.is_some() && encoded.ids.first().copied() == bos;
        let prefix: Vec<u32> = self.prefix.iter().copied().filter(|&id| !(spelled && Some(id) == bos)).collect();
        encoded.trained.splice(0..0, prefix.iter().map(|_| false));
        encoded.ids.splice(0..0, prefix);
        encoded.ids.extend_from_slice(&self.suffix);
        encoded.trained.resize(encoded.ids.len(), false);
    }
}

#[cfg(test)]
mod folder_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
