//! Prompt lookup: guesses the next tokens of a sequence from an earlier place that reads the same.

use bespoke_domain::TokenId;

/// The longest run of last tokens that is looked up, and the shortest that is trusted.
const RUN_MAX: usize = 4;
const RUN_MIN: usize = 2;
/// How far back an earlier place is looked for: enough for a long prompt, little enough to cost microseconds.
const WINDOW: usize = 4096;

/// Fills `drafts` with at most `count` tokens that followed the latest earlier place with the same last tokens; the longest
/// run that occurs is taken. Empty where none does.
pub(crate) fn draft(tokens: &[TokenId], count: usize, drafts: &mut Vec<TokenId>) {
    drafts.clear();
    let window = &tokens[tokens.len().saturating_sub(WINDOW)..];
    for run in (RUN_MIN..=RUN_MAX).rev() {
        let Some(earlier) = window.len().checked_sub(run + 1) else { continue };
        let last = &window[window.len() - run..];
        if let Some(start) = (0..=earlier).rev().find(|&start| &window[start..start + run] == last) {
            let follows = &window[start + run..];
            drafts.extend_from_slice(&follows[..follows.len().min(count)]);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafted(tokens: &[TokenId], count: usize) -> Vec<TokenId> {
        let mut drafts = vec![99];
        draft(tokens, count, &mut drafts);
        drafts
    }

    #[test]
    fn what_followed_the_latest_longest_run_is_drafted() {
        assert_eq!(drafted(&[1, 2, 3, 4, 5, 1, 2, 3], 2), [4, 5]);
        assert_eq!(drafted(&[1, 2, 7, 1, 2, 8, 1, 2], 1), [8]);
        assert_eq!(drafted(&[9, 1, 2, 7, 5, 1, 2, 8, 9, 1, 2], 1), [7]);
        assert_eq!(drafted(&[1, 1, 1], 5), [1]);
    }

    #[test]
    fn nothing_is_drafted_without_an_earlier_run() {
        for tokens in [&[1, 2, 3, 4][..], &[1, 2, 1], &[1], &[]] {
            assert!(drafted(tokens, 4).is_empty(), "{tokens:?}");
        }
        assert!(drafted(&[1, 2, 3, 1, 2], 0).is_empty());
    }
}
