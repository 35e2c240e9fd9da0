//! The tokens of a tokenizer as raw bytes: what decoding and the detokenizer read.

use std::collections::HashMap;

/// What a token stands for when it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// No token has this id, or one that the model never uses; it decodes to nothing.
    Absent,
    /// Its bytes are part of the text.
    Text,
    /// Its bytes are its spelling, which is not part of the text.
    Control,
}

/// How the spelling of a text token in a vocabulary file stands for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// GPT-2's: each character is one byte.
    ByteLevel,
    /// SentencePiece's: `▁` is a space, `<0xAB>` is one byte.
    SentencePiece,
}

/// SentencePiece's stand-in for a space.
pub(super) const SPACE_MARK: char = '\u{2581}';

/// All tokens, by id, in one allocation.
#[derive(Debug, Default)]
pub(super) struct Vocabulary {
    bytes: Vec<u8>,
    /// Where the bytes of each token end in `bytes`; they start where the previous ones end.
    ends: Vec<usize>,
    kinds: Vec<TokenKind>,
    controls: HashMap<String, u32>,
    control_spellings: Vec<String>,
    token_bytes_max: usize,
}

impl Vocabulary {
    /// Appends the token of the next id.
    pub(super) fn push(&mut self, bytes: &[u8], kind: TokenKind) {
        if let (TokenKind::Control, Ok(spelling)) = (kind, std::str::from_utf8(bytes)) {
            // A spelling that occurs twice means its first token, as in a search by spelling.
            if !self.controls.contains_key(spelling) {
                self.controls.insert(spelling.to_owned(), self.kinds.len() as u32);
                self.control_spellings.push(spelling.to_owned());
            }
        }
        self.token_bytes_max = self.token_bytes_max.max(bytes.len());
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
        self.kinds.push(kind);
    }

    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    pub(super) fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Absent)
    }

    pub(super) fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        if self.kind(id) == TokenKind::Absent {
            return None;
        }
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        Some(&self.bytes[start..self.ends[id]])
    }

    pub(super) fn token_bytes_max(&self) -> usize {
        self.token_bytes_max
    }

    pub(super) fn control(&self, spelling: &str) -> Option<u32> {
        self.controls.get(spelling).copied()
    }

    pub(super) fn control_spellings(&self) -> &[String] {
        &self.control_spellings
    }
}

impl Alphabet {
    /// Returns the bytes that a text token's spelling stands for.
    pub(super) fn bytes_of(self, spelling: &str) -> Vec<u8> {
        match self {
            // As Hugging Face's decoder: one character outside the alphabet makes the whole spelling literal.
            Alphabet::ByteLevel => spelling
                .chars()
                .map(byte_of_char)
                .collect::<Option<Vec<u8>>>()
                .unwrap_or_else(|| spelling.as_bytes().to_vec()),
            Alphabet::SentencePiece => match byte_token(spelling) {
                Some(byte) => vec![byte],
                None => spelling.replace(SPACE_MARK, " ").into_bytes(),
            },
        }
    }
}

/// Returns the byte of a SentencePiece byte token such as `<0x0A>`.
pub(super) fn byte_token(spelling: &str) -> Option<u8> {
    let digits = spelling.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// Inverts GPT-2's `bytes_to_unicode`: printable Latin-1 is itself, the 68 other bytes follow from U+0100 on in rising order.
fn byte_of_char(char: char) -> Option<u8> {
    match u32::from(char) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character() {
        let mut bytes: Vec<u8> = (0..0x200).filter_map(char::from_u32).filter_map(byte_of_char).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(Alphabet::ByteLevel.bytes_of("ĠaĊ"), b" a\n");
        assert_eq!(Alphabet::ByteLevel.bytes_of("Ã©"), "é".as_bytes());
        assert_eq!(Alphabet::ByteLevel.bytes_of("a b"), b"a b");
    }

    #[test]
    fn sentencepiece_spellings() {
        assert_eq!(Alphabet::SentencePiece.bytes_of("<0x0A>"), b"\n");
        assert_eq!(Alphabet::SentencePiece.bytes_of("<0x+A>"), b"<0x+A>");
        assert_eq!(Alphabet::SentencePiece.bytes_of("▁▁a"), b"  a");
    }

    #[test]
    fn ids_outside_the_table_are_absent() {
        let mut vocabulary = Vocabulary::default();
        vocabulary.push(b"<s>", TokenKind::Control);
        vocabulary.push(b"", TokenKind::Absent);
        vocabulary.push(b"ab", TokenKind::Text);
        assert_eq!(vocabulary.token_bytes(0), Some(&b"<s>"[..]));
        assert_eq!(vocabulary.token_bytes(1), None);
        assert_eq!(vocabulary.token_bytes(2), Some(&b"ab"[..]));
        assert_eq!(vocabulary.token_bytes(u32::MAX), None);
        assert_eq!(vocabulary.control("<s>"), Some(0));
    }
}
