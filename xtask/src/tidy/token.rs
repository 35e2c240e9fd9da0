//! Rust source as a flat list of tokens with their lines: groups are opened into their delimiters, comments are gone.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// One identifier, literal, punctuation character or delimiter.
pub(super) struct Token {
    pub(super) text: String,
    pub(super) line: usize,
}

/// Lexes a whole file; the error says where it is not Rust.
pub(super) fn tokens_of(text: &str) -> Result<Vec<Token>, (usize, String)> {
    let stream: TokenStream =
        text.parse().map_err(|error: proc_macro2::LexError| (error.span().start().line, error.to_string()))?;
    let mut tokens = Vec::new();
    flatten(stream, &mut tokens);
    Ok(tokens)
}

/// Whether `tokens` go on at `start` with exactly the words of `pattern`.
pub(super) fn matches_at(tokens: &[Token], start: usize, pattern: &[&str]) -> bool {
    let window = tokens.get(start..start + pattern.len());
    window.is_some_and(|window| window.iter().zip(pattern).all(|(token, word)| token.text == *word))
}

/// The index of the delimiter that closes the one at `open`.
pub(super) fn closing_index(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0usize;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index;
        }
    }
    unreachable!("invariant: the lexer yields balanced groups")
}

fn flatten(stream: TokenStream, tokens: &mut Vec<Token>) {
    for tree in stream {
        let line = tree.span().start().line;
        let TokenTree::Group(group) = tree else {
            tokens.push(Token { text: tree.to_string(), line });
            continue;
        };
        let (open, close) = match group.delimiter() {
            Delimiter::Parenthesis => ("(", ")"),
            Delimiter::Bracket => ("[", "]"),
            Delimiter::Brace => ("{", "}"),
            // Only macros make these, never the text of a file.
            Delimiter::None => ("", ""),
        };
        tokens.push(Token { text: open.to_owned(), line });
        flatten(group.stream(), tokens);
        tokens.push(Token { text: close.to_owned(), line: group.span_close().start().line });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_stay_whole_and_comments_vanish() {
        let tokens = tokens_of("// unsafe\nlet a = \"unsafe {\";\nf(b)").unwrap();
        let texts: Vec<&str> = tokens.iter().map(|token| token.text.as_str()).collect();
        assert_eq!(texts, ["let", "a", "=", "\"unsafe {\"", ";", "f", "(", "b", ")"]);
        assert_eq!(tokens[5].line, 3);
    }

    #[test]
    fn closing_delimiters_are_found() {
        let tokens = tokens_of("f(a, [b(c)]) + (d)").unwrap();
        assert_eq!(closing_index(&tokens, 1), tokens.len() - 5);
    }

    #[test]
    fn text_that_is_not_rust_is_an_error() {
        assert!(tokens_of("fn f( {").is_err());
    }
}
