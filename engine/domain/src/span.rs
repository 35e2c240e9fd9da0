//! Rendered text in spans: what the renderer returns and the tokenizer encodes.

/// What a span's text means to the tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// Plain text; it stays text even where it spells a control token.
    Text,
    /// Exactly one control token, looked up by its spelling.
    Control,
}

/// One piece of a rendered prompt.
#[derive(Clone, PartialEq, Eq)]
pub struct Span {
    /// The text, never empty.
    pub text: String,
    /// Whether the text is plain or one control token.
    pub kind: SpanKind,
    /// Whether training on the completion alone counts the loss of this span.
    pub trained: bool,
}

/// Hides the text: prompts are not logged.
impl std::fmt::Debug for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Span({:?}, {} bytes, trained: {})", self.kind, self.text.len(), self.trained)
    }
}

/// A rendered prompt, ready for the tokenizer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The pieces in order.
    pub spans: Vec<Span>,
    /// Whether the tokenizer adds what it adds by itself (usually BOS). A chat template spells its own, so there it is false.
    pub add_special: bool,
}

impl Rendered {
    /// Returns the whole text, control tokens spelled out.
    pub fn text(&self) -> String {
        self.spans.iter().map(|span| span.text.as_str()).collect()
    }

    pub(crate) fn push(&mut self, text: &str, kind: SpanKind, trained: bool) {
        if text.is_empty() {
            return;
        }
        match self.spans.last_mut() {
            Some(last) if kind == SpanKind::Text && last.kind == kind && last.trained == trained => {
                last.text.push_str(text)
            }
            _ => self.spans.push(Span { text: text.to_owned(), kind, trained }),
        }
    }
}
