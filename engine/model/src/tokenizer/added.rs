//! Finds added tokens (control or user-defined) spelled out in a text, in time linear in the text.

use bespoke_domain::SpanKind;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, AddedVocabulary, NormalizerWrapper, OffsetReferential, OffsetType};

use crate::ModelError;

/// A set of tokens to look for; the leftmost match wins, then the longest.
#[derive(Debug)]
pub(super) struct AddedTokens {
    /// `None` when there is nothing to look for.
    matcher: Option<AddedVocabulary>,
}

/// A part of a text: one added token, or what lies between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    /// The part, with the white space around a token that the token swallows.
    pub(super) text: &'a str,
    /// Where the part starts, in bytes.
    pub(super) start: usize,
    /// The token, or `None` for plain text.
    pub(super) id: Option<u32>,
}

impl AddedTokens {
    /// Prepares the search for these tokens.
    pub(super) fn new(tokens: Vec<(AddedToken, u32)>) -> Result<AddedTokens, ModelError> {
        let tokens: Vec<(AddedToken, u32)> =
            tokens.into_iter().filter(|(token, _)| !token.content.is_empty()).collect();
        if tokens.is_empty() {
            return Ok(AddedTokens { matcher: None });
        }
        // The crate takes the ids of added tokens from a model: this one knows nothing else.
        let ids: Vocab = tokens.iter().map(|(token, id)| (token.content.clone(), *id)).collect();
        let model = BPE::builder().vocab_and_merges(ids, Vec::new()).cache_capacity(0).build();
        let model = model.map_err(|error| ModelError::Tokenize { reason: error.to_string() })?;
        let tokens: Vec<AddedToken> = tokens.into_iter().map(|(token, _)| token.normalized(false)).collect();
        let mut matcher = AddedVocabulary::new();
        matcher.add_tokens(&tokens, &model, None::<&NormalizerWrapper>);
        Ok(AddedTokens { matcher: Some(matcher) })
    }

    /// Cuts a text at the added tokens in it; the parts are never empty and together are the text.
    pub(super) fn split<'a>(&self, text: &'a str) -> Vec<Piece<'a>> {
        if text.is_empty() {
            return Vec::new();
        }
        let Some(matcher) = &self.matcher else { return vec![Piece { text, start: 0, id: None }] };
        let cut = matcher.extract_and_normalize(None::<&NormalizerWrapper>, text);
        cut.get_splits(OffsetReferential::Original, OffsetType::Byte)
            .into_iter()
            .map(|(_, (start, end), tokens)| {
                let id = tokens.as_ref().and_then(|tokens| tokens.first()).map(|token| token.id);
                Piece { text: &text[start..end], start, id }
            })
            .collect()
    }
}

impl Piece<'_> {
    /// Tells what the part is in the vocabulary of the renderer.
    pub(super) fn kind(&self) -> SpanKind {
        if self.id.is_some() { SpanKind::Control } else { SpanKind::Text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(added: &AddedTokens, text: &str) -> Vec<(String, usize, Option<u32>)> {
        added.split(text).into_iter().map(|piece| (piece.text.to_owned(), piece.start, piece.id)).collect()
    }

    #[test]
    fn leftmost_then_longest() {
        let token = |text: &str| AddedToken::from(text, true);
        let tokens = vec![(token("<a>"), 7), (token("<a>b"), 3), (token("c"), 9), (token(""), 1)];
        let added = AddedTokens::new(tokens).unwrap();
        let expected = [("é", 0, None), ("<a>b", 2, Some(3)), ("<a>", 6, Some(7)), ("x", 9, None), ("c", 10, Some(9))];
        assert_eq!(parts(&added, "é<a>b<a>xc"), expected.map(|(text, start, id)| (text.to_owned(), start, id)));
        assert!(added.split("").is_empty());
        let none = AddedTokens::new(Vec::new()).unwrap();
        assert_eq!(parts(&none, "<a>"), [("<a>".to_owned(), 0, None)]);
    }

    #[test]
    fn a_token_may_swallow_white_space() {
        let added = AddedTokens::new(vec![(AddedToken::from("<e>", true).rstrip(true), 5)]).unwrap();
        let expected = [("a ", 0, None), ("<e> \n", 2, Some(5)), ("b", 7, None)];
        assert_eq!(parts(&added, "a <e> \nb"), expected.map(|(text, start, id)| (text.to_owned(), start, id)));
    }
}
