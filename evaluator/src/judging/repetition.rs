//! Repetition: answers that say the same thing again and again, which the paper filters out.

use std::collections::HashSet;

/// Words of the pieces that are counted: four in a row hardly ever come twice in prose by chance.
const PIECE_WORDS: usize = 4;
/// Shorter answers are never flagged.
const WORDS_MIN: usize = 16;
/// An answer is repetitive where more than this share of its pieces stood before.
const SHARE_MAX: f64 = 0.3;

/// Returns the share of four-word pieces that stood in the text before, 0 to 1.
pub fn repetition(text: &str) -> f64 {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower.split_whitespace().collect();
    let num_pieces = (words.len() + 1).saturating_sub(PIECE_WORDS);
    if num_pieces == 0 {
        return 0.0;
    }
    let distinct: HashSet<&[&str]> = words.windows(PIECE_WORDS).collect();
    1.0 - distinct.len() as f64 / num_pieces as f64
}

/// Whether an answer is so repetitive that it is left out where asked for.
pub fn is_repetitive(text: &str) -> bool {
    text.split_whitespace().count() >= WORDS_MIN && repetition(text) > SHARE_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_by_hand() {
        // Seven pieces, of which "a b c d" comes twice.
        assert!((repetition("a b c d e A b c d x") - 1.0 / 7.0).abs() < 1e-12);
        assert_eq!((repetition("one two"), repetition("")), (0.0, 0.0));
    }

    #[test]
    fn loops_are_flagged_and_prose_is_not() {
        assert!(is_repetitive(&"I do not know what to say. ".repeat(6)));
        assert!(!is_repetitive("no no no no no no"));
        assert!(!is_repetitive(
            "Cook the rice in twice as much water, cover the pot, wait until the water is gone, and let it rest a while."
        ));
    }
}
