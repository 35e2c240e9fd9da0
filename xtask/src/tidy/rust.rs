//! Rules about Rust code: lengths, module docs, `unsafe`, unfinished code, unbounded channels, silenced lints and tests.

use std::ops::Range;

use super::Violation;
use super::path::is_banned;
use super::token::{Token, closing_index, matches_at, tokens_of};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;
/// The one crate whose purpose is `unsafe` code.
const UNSAFE_CRATE: &str = "engine/kernels/";

/// Token sequences that may not stand anywhere, with what to do instead.
const BANNED_SEQUENCES: [(&[&str], &str); 5] = [
    (&["todo", "!"], "unfinished code: finish it or file an issue"),
    (&["unimplemented", "!"], "unfinished code: finish it, or say why it cannot happen"),
    (&["unbounded_channel"], "an unbounded channel: every queue has a limit"),
    (&["mpsc", ":", ":", "unbounded"], "an unbounded channel: every queue has a limit"),
    (&["#", "[", "ignore"], "an ignored test: repair it or delete it"),
];

/// Checks one Rust file.
pub(super) fn check(path: &str, text: &str) -> Vec<Violation> {
    let mut violations = check_file_shape(path, text);
    let tokens = match tokens_of(text) {
        Ok(tokens) => tokens,
        Err((line, message)) => {
            violations.push(Violation::new(path, line, format!("is not Rust: {message}")));
            return violations;
        }
    };
    let mut report = |line: usize, message: String| violations.push(Violation::new(path, line, message));
    long_functions(&tokens, &mut report);
    banned_sequences(&tokens, &mut report);
    unbounded_std_channels(&tokens, &mut report);
    unreasoned_lint_levels(&tokens, &mut report);
    banned_modules(&tokens, &mut report);
    if !path.starts_with(UNSAFE_CRATE) {
        unsafe_code(&tokens, &mut report);
    }
    violations
}

fn check_file_shape(path: &str, text: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    if !text.starts_with("//!") {
        violations.push(Violation::new(path, 1, "starts without `//!`: say its purpose and its place in the flow"));
    }
    let num_lines = text.lines().count();
    if num_lines > FILE_LINES_MAX {
        let message = format!("has {num_lines} lines, limit {FILE_LINES_MAX}: a file is one noun");
        violations.push(Violation::new(path, FILE_LINES_MAX + 1, message));
    }
    violations
}

/// Counts from `fn` to the closing brace, comments too: the limit is what a reader can hold. Macro bodies count as code.
fn long_functions(tokens: &[Token], report: &mut impl FnMut(usize, String)) {
    for start in 0..tokens.len() {
        let Some(name) = tokens.get(start + 1).filter(|name| is_identifier(&name.text)) else { continue };
        if tokens[start].text != "fn" {
            continue;
        }
        let Some(end) = end_of_item(tokens, start) else { continue };
        let num_lines = tokens[end].line - tokens[start].line + 1;
        if num_lines > FUNCTION_LINES_MAX {
            let message = format!("function `{}` has {num_lines} lines, limit {FUNCTION_LINES_MAX}", name.text);
            report(tokens[start].line, message);
        }
    }
}

fn banned_sequences(tokens: &[Token], report: &mut impl FnMut(usize, String)) {
    for start in 0..tokens.len() {
        for (sequence, message) in BANNED_SEQUENCES {
            if matches_at(tokens, start, sequence) {
                report(tokens[start].line, format!("`{}`: {message}", sequence.concat()));
            }
        }
    }
}

/// `mpsc::channel()` without a capacity is std's; tokio's takes one, and `oneshot::channel()` holds a single value.
fn unbounded_std_channels(tokens: &[Token], report: &mut impl FnMut(usize, String)) {
    for index in 0..tokens.len() {
        let is_call = matches_at(tokens, after_turbofish(tokens, index + 1), &["(", ")"]);
        if tokens[index].text != "channel" || !is_call {
            continue;
        }
        let before = |distance: usize| index.checked_sub(distance).map_or("", |place| tokens[place].text.as_str());
        let is_std = match before(1) {
            ":" => before(3) == "mpsc",
            "fn" | "." => false,
            _ => true,
        };
        if is_std {
            report(tokens[index].line, "`channel()`: an unbounded channel: use `mpsc::sync_channel`".to_owned());
        }
    }
}

/// The index behind the turbofish at `start`, or `start` where there is none.
fn after_turbofish(tokens: &[Token], start: usize) -> usize {
    if !matches_at(tokens, start, &[":", ":", "<"]) {
        return start;
    }
    let mut depth = 0usize;
    for index in start + 2..tokens.len() {
        match tokens[index].text.as_str() {
            "<" => depth += 1,
            // The `>` of `->` closes nothing.
            ">" if tokens[index - 1].text != "-" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index + 1;
        }
    }
    tokens.len()
}

/// `allow` and `expect` need a reason, wherever they stand in an attribute (`cfg_attr` too).
fn unreasoned_lint_levels(tokens: &[Token], report: &mut impl FnMut(usize, String)) {
    for attribute in attributes(tokens) {
        for index in attribute {
            let level = tokens[index].text.as_str();
            if !matches!(level, "allow" | "expect") || !matches_at(tokens, index + 1, &["("]) {
                continue;
            }
            let arguments = &tokens[index..closing_index(tokens, index + 1)];
            if !arguments.iter().any(|token| token.text == "reason") {
                report(tokens[index].line, format!("`{level}` without a reason: `#[expect(.., reason = \"..\")]`"));
            }
        }
    }
}

fn banned_modules(tokens: &[Token], report: &mut impl FnMut(usize, String)) {
    for pair in tokens.windows(2) {
        if pair[0].text == "mod" && is_banned(&pair[1].text) {
            report(pair[1].line, format!("the module name `{}` says nothing: name the noun inside", pair[1].text));
        }
    }
}

/// Outside the kernels, `unsafe` stands only in an item or statement under `#[expect(unsafe_code, reason = "..")]`.
fn unsafe_code(tokens: &[Token], report: &mut impl FnMut(usize, String)) {
    let excused: Vec<Range<usize>> = attributes(tokens)
        .filter(|attribute| {
            let is_outer = matches_at(tokens, attribute.start, &["#", "["]);
            let has = |word: &str| tokens[attribute.clone()].iter().any(|token| token.text == word);
            is_outer && has("expect") && has("unsafe_code") && has("reason")
        })
        .map(|attribute| attribute.start..end_of_item(tokens, attribute.end).unwrap_or(attribute.end))
        .collect();
    for (index, token) in tokens.iter().enumerate() {
        if token.text == "unsafe" && !excused.iter().any(|range| range.contains(&index)) {
            report(
                token.line,
                "`unsafe` outside `engine/kernels`: one function under `#[expect(unsafe_code, ..)]`".into(),
            );
        }
    }
}

/// The token ranges of all attributes, from `#` to `]`, inner ones (`#!`) too.
fn attributes(tokens: &[Token]) -> impl Iterator<Item = Range<usize>> {
    (0..tokens.len()).filter_map(|start| {
        let is_inner = matches_at(tokens, start, &["#", "!", "["]);
        let open = start + if is_inner { 2 } else { 1 };
        let is_attribute = is_inner || matches_at(tokens, start, &["#", "["]);
        is_attribute.then(|| start..closing_index(tokens, open) + 1)
    })
}

/// The index of the `}` or `;` that ends the item or statement at `start`; attributes before it are passed over.
fn end_of_item(tokens: &[Token], start: usize) -> Option<usize> {
    let mut index = start;
    while index < tokens.len() {
        match tokens[index].text.as_str() {
            "{" => return Some(closing_index(tokens, index)),
            "(" | "[" => index = closing_index(tokens, index),
            ";" => return Some(index),
            _ => {}
        }
        index += 1;
    }
    None
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages about `code`, a file with its module doc, in a crate that may not be unsafe.
    fn messages(code: &str) -> Vec<String> {
        let violations = check("engine/src/a.rs", &format!("//! A file.\n{code}"));
        violations.into_iter().map(|violation| violation.to_string()).collect()
    }

    #[track_caller]
    fn assert_one(code: &str, part: &str) {
        let messages = messages(code);
        assert!(messages.len() == 1 && messages[0].contains(part), "{code}: {messages:?}");
    }

    #[track_caller]
    fn assert_none(code: &str) {
        let messages = messages(code);
        assert!(messages.is_empty(), "{code}: {messages:?}");
    }

    #[test]
    fn a_file_starts_with_its_purpose() {
        assert_eq!(check("a.rs", "fn f() {}\n").len(), 1);
        assert_none("fn f() {}\n");
    }

    #[test]
    fn file_length() {
        assert_none(&"\n".repeat(FILE_LINES_MAX - 1));
        assert_one(&"\n".repeat(FILE_LINES_MAX), "has 501 lines");
    }

    #[test]
    fn function_length_in_code_and_in_macros() {
        let function = |num_lines: usize| format!("fn long(a: [u8; 4]) {{{}}}\n", "\n".repeat(num_lines - 1));
        assert_none(&function(FUNCTION_LINES_MAX));
        assert_one(&function(FUNCTION_LINES_MAX + 1), "a.rs:2: function `long` has 71 lines");
        assert_one(&format!("proptest! {{ {} }}", function(FUNCTION_LINES_MAX + 1)), "function `long` has 71 lines");
        assert_none(&format!("trait T {{ fn short(&self); }} type F = fn(u8); {}", function(FUNCTION_LINES_MAX)));
    }

    #[test]
    fn unfinished_code() {
        assert_one("fn f() { todo!() }", "`todo!`");
        assert_one("fn f() { m! { unimplemented!(\"x\") } }", "`unimplemented!`");
        assert_none("fn todo() { let s = \"todo!\"; todo() } // todo!()");
    }

    #[test]
    fn unbounded_channels() {
        assert_one("fn f() { tokio::sync::mpsc::unbounded_channel::<u8>() }", "unbounded");
        assert_one("fn f() { futures::channel::mpsc::unbounded() }", "unbounded");
        assert_one("fn f() { std::sync::mpsc::channel() }", "sync_channel");
        assert_one("fn f() { mpsc::channel::<Result<(), fn(u8) -> u8>>() }", "sync_channel");
        assert_one("fn f() { let (a, b) = channel(); }", "sync_channel");
        assert_none("fn f() { mpsc::channel::<()>(8); oneshot::channel(); client.channel(); sync_channel(1) }");
        assert_none("fn channel() -> u8 { 1 }");
    }

    #[test]
    fn lint_levels_have_reasons() {
        assert_one("#[allow(dead_code)] fn f() {}", "`allow` without a reason");
        assert_one("#![expect(dead_code)]", "`expect` without a reason");
        assert_one("#[cfg_attr(test, allow(dead_code))] fn f() {}", "`allow` without a reason");
        assert_none("#[expect(dead_code, reason = \"shown\")] fn f() { x.expect(\"invariant: y\"); }");
    }

    #[test]
    fn tests_are_not_ignored() {
        assert_one("#[test] #[ignore] fn f() {}", "ignored test");
        assert_one("#[test] #[ignore = \"slow\"] fn f() {}", "ignored test");
        assert_none("fn ignore() {}");
    }

    #[test]
    fn modules_are_named_by_their_noun() {
        assert_one("mod helpers { }", "`helpers`");
        assert_none("mod scheduler; fn f() { helpers(); }");
    }

    #[test]
    fn unsafe_stands_in_the_kernels_or_is_excused() {
        assert_one("fn f() { unsafe { g() } }", "`unsafe` outside");
        assert_one("unsafe impl Send for A {}", "`unsafe` outside");
        assert_one("fn f() { m!(unsafe { g() }) }", "`unsafe` outside");
        assert_one("#[expect(unsafe_code, reason = \"map\")] fn f() { unsafe {} } fn g() { unsafe {} }", "outside");
        assert_none("#[expect(unsafe_code, reason = \"map\")] #[inline] fn f() -> [u8; 2] { unsafe {} }");
        assert_none("fn f() { #[expect(unsafe_code, reason = \"map\")] let m = unsafe { map() }; }");
        assert!(check("engine/kernels/src/a.rs", "//! A.\nfn f() { unsafe { g() } }").is_empty());
    }

    #[test]
    fn text_that_is_not_rust_is_reported_not_skipped() {
        assert_one("fn f( {", "is not Rust");
    }
}
