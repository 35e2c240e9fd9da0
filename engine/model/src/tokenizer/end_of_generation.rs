//! Which control tokens end a generation.

use super::vocabulary::Vocabulary;

/// Spellings that llama.cpp takes as the end of a generation wherever the vocabulary has them: ends of a turn, a message
/// or a text.
///
/// **Source**: llama.cpp `src/llama-vocab.cpp`, `special_eog_ids`.
const ENDS: [&str; 20] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<｜end▁of▁sentence｜>",
];

/// Paddings and separators of code infilling, after which llama.cpp stops too; of each group the vocabulary has at most one.
///
/// **Source**: llama.cpp `src/llama-vocab.cpp`, `special_fim_pad_id`, `special_fim_rep_id`, `special_fim_sep_id`.
const INFILL_ENDS: [&str; 11] = [
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// Says whether a spelling is that of an end.
pub(super) fn is_end(spelling: &str) -> bool {
    ENDS.contains(&spelling)
}

/// Lists the end tokens: `named` (the ids that the files name: eos, eot, eom) in their order, then the control tokens with
/// a known spelling by rising id.
///
/// Two differences from llama.cpp: a token that is not a control token ends nothing, whatever its spelling (`</s>` is plain
/// text in some vocabularies); the reverse rule by which Harmony's `<|end|>` closes a message only is kept.
pub(super) fn end_ids(vocabulary: &Vocabulary, named: &[Option<u32>]) -> Vec<u32> {
    let mut ids: Vec<u32> = Vec::new();
    for &id in named.iter().flatten() {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    let has = |spelling: &str| vocabulary.control(spelling).is_some();
    let end_is_inner = has("<|call|>") && has("<|return|>") || has("<|calls|>") && has("<|flush|>");
    let mut known: Vec<u32> = ENDS
        .iter()
        .chain(&INFILL_ENDS)
        .filter(|&&spelling| !(end_is_inner && spelling == "<|end|>"))
        .filter_map(|spelling| vocabulary.control(spelling))
        .filter(|id| !ids.contains(id))
        .collect();
    known.sort_unstable();
    ids.extend(known);
    ids
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary::TokenKind;
    use super::*;

    fn vocabulary(tokens: &[(&str, TokenKind)]) -> Vocabulary {
        let mut vocabulary = Vocabulary::default();
        for (spelling, kind) in tokens {
            vocabulary.push(spelling.as_bytes(), *kind);
        }
        vocabulary
    }

    #[test]
    fn named_first_then_known_spellings() {
        use TokenKind::{Control, Text};
        let tokens = [("<|endoftext|>", Control), ("<|im_start|>", Control), ("<|im_end|>", Control), ("</s>", Text)];
        assert_eq!(end_ids(&vocabulary(&tokens), &[Some(2), None, Some(2)]), [2, 0]);
        assert_eq!(end_ids(&vocabulary(&tokens), &[Some(1)]), [1, 0, 2]);
    }

    #[test]
    fn harmony_end_closes_a_message_only() {
        use TokenKind::Control;
        let tokens = [("<|return|>", Control), ("<|end|>", Control), ("<|call|>", Control)];
        assert_eq!(end_ids(&vocabulary(&tokens), &[None]), [0, 2]);
        assert_eq!(end_ids(&vocabulary(&tokens[..2]), &[None]), [0, 1]);
    }
}
