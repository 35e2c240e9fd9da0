//! Verdicts: what a judge's answer says, read strictly and from the answer alone.

use serde::{Deserialize, Serialize};

/// One of the two responses as they stood before the judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

impl Side {
    /// Returns the other side, which is the same response when the order is turned round.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// What a judge said about a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// This response is better.
    Prefers(Side),
    /// The answer holds no verdict, or more than one.
    Unparsable,
}

/// The marker before a verdict. **Source**: Prometheus 2 output format.
const MARKER: &str = "[RESULT]";

/// Reads the verdict of a relative grading: `[RESULT] A` or `[RESULT] B`, also as `(A)` or `A.`, and alone where nothing else
/// is said.
///
/// Text may stand before the marker, none after the letter. Two markers must agree.
pub fn parse_relative(answer: &str) -> Verdict {
    let read = |text: &str| match bare(text) {
        "A" => Some(Side::A),
        "B" => Some(Side::B),
        _ => None,
    };
    parse(answer, read).map_or(Verdict::Unparsable, Verdict::Prefers)
}

/// Reads the score of an absolute grading: `[RESULT] 1` to `[RESULT] 5`.
pub fn parse_absolute(answer: &str) -> Option<u8> {
    parse(answer, |text| bare(text).parse().ok().filter(|score| (1..=5).contains(score)))
}

fn parse<T: PartialEq>(answer: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
    let mut verdict = None;
    let mut parts = answer.split(MARKER);
    let before = parts.next()?;
    let behind: Vec<&str> = parts.collect();
    let Some((last, earlier)) = behind.split_last() else { return read(before) };
    for part in earlier {
        // An earlier marker counts by the first word behind it.
        let said = read(part.split_whitespace().next()?)?;
        if verdict.as_ref().is_some_and(|verdict| *verdict != said) {
            return None;
        }
        verdict = Some(said);
    }
    let said = read(last)?;
    verdict.is_none_or(|verdict| verdict == said).then_some(said)
}

/// Takes off what judges put around a verdict: white space, one pair of brackets, emphasis, a full stop.
fn bare(text: &str) -> &str {
    text.trim()
        .trim_matches(['*', '.', ':', '"', '\''])
        .trim()
        .trim_start_matches(['(', '['])
        .trim_end_matches([')', ']'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_in_the_forms_that_judges_use() {
        for answer in ["[RESULT] A", "A is clear. [RESULT] A", "x [RESULT] (A).", "A", " **A** ", "f [RESULT] A\n"] {
            assert_eq!(parse_relative(answer), Verdict::Prefers(Side::A), "{answer}");
        }
        assert_eq!(parse_relative("[RESULT] B [RESULT] B"), Verdict::Prefers(Side::B));
        assert_eq!((parse_absolute("good [RESULT] 4"), parse_absolute("[RESULT] [5]")), (Some(4), Some(5)));
    }

    #[test]
    fn what_is_not_a_verdict_is_unparsable() {
        for answer in ["", "A or B", "Response A is better", "[RESULT]", "[RESULT] C", "[RESULT] A [RESULT] B"] {
            assert_eq!(parse_relative(answer), Verdict::Unparsable, "{answer}");
        }
        assert_eq!(parse_relative("[RESULT] A because B is worse"), Verdict::Unparsable);
        assert_eq!(
            (parse_absolute("[RESULT] 6"), parse_absolute("[RESULT] 3.5"), parse_absolute("0")),
            (None, None, None)
        );
    }
}
