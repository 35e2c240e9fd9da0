//! The tokenizer of the tiny models: byte-level BPE with a few merges, in both file forms.

use serde_json::{Value, json};

/// Id of `<|endoftext|>`.
pub const END_OF_TEXT_ID: u32 = 0;
/// Id of `<|im_start|>`, the BOS token.
pub const BOS_ID: u32 = 1;
/// Id of `<|im_end|>`, the EOS token.
pub const EOS_ID: u32 = 2;
/// The special tokens in the order of their ids.
pub const SPECIAL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Number of tokens: special ones, bytes, merges.
pub const VOCAB_SIZE: usize = SPECIAL_TOKENS.len() + 256 + MERGES.len();

/// The chat template: ChatML.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + \
     message['content'] + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}\
     {% endif %}";

/// Frequent pairs of English, in rank order; `Ġ` is the byte-level space.
const MERGES: [(&str, &str); 41] = [
    ("Ġ", "t"),
    ("h", "e"),
    ("Ġ", "a"),
    ("i", "n"),
    ("r", "e"),
    ("o", "n"),
    ("Ġt", "he"),
    ("e", "r"),
    ("Ġ", "s"),
    ("a", "t"),
    ("o", "u"),
    ("Ġ", "w"),
    ("e", "n"),
    ("Ġ", "o"),
    ("i", "s"),
    ("i", "t"),
    ("Ġ", "m"),
    ("e", "s"),
    ("o", "r"),
    ("a", "n"),
    ("Ġ", "c"),
    ("in", "g"),
    ("Ġ", "p"),
    ("Ġ", "f"),
    ("e", "d"),
    ("Ġa", "n"),
    ("Ġan", "d"),
    ("l", "l"),
    ("Ġ", "b"),
    ("Ġt", "o"),
    ("Ġo", "f"),
    ("a", "r"),
    ("Ġ", "in"),
    ("Ġ", "h"),
    ("o", "m"),
    ("i", "c"),
    ("Ġ", "is"),
    ("Ġ", "y"),
    ("Ġy", "ou"),
    ("s", "t"),
    ("Ġ", "d"),
];

/// Returns every token as the files spell it, in the order of the ids.
pub(crate) fn tokens() -> Vec<String> {
    let special = SPECIAL_TOKENS.iter().map(ToString::to_string);
    let bytes = (0..=u8::MAX).map(|byte| byte_char(byte).to_string());
    special.chain(bytes).chain(MERGES.iter().map(|(left, right)| format!("{left}{right}"))).collect()
}

/// Returns the merges as GGUF spells them.
pub(crate) fn merges() -> Vec<String> {
    MERGES.iter().map(|(left, right)| format!("{left} {right}")).collect()
}

/// Returns `tokenizer.json`.
pub(crate) fn tokenizer_json() -> Value {
    let added = SPECIAL_TOKENS.iter().enumerate().map(|(id, content)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true})
    });
    let vocab: serde_json::Map<String, Value> =
        tokens().into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    let byte_level = |add_prefix_space: bool| json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level(false)],
        },
        "post_processor": null,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges(),
        },
    })
}

/// Returns `tokenizer_config.json`.
pub(crate) fn tokenizer_config_json(context_length: usize) -> Value {
    json!({
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": false,
        "bos_token": SPECIAL_TOKENS[BOS_ID as usize],
        "eos_token": SPECIAL_TOKENS[EOS_ID as usize],
        "pad_token": SPECIAL_TOKENS[END_OF_TEXT_ID as usize],
        "unk_token": SPECIAL_TOKENS[END_OF_TEXT_ID as usize],
        "model_max_length": context_length,
        "chat_template": CHAT_TEMPLATE,
    })
}

/// Maps a byte to the printable character that stands for it.
///
/// **Source**: `bytes_to_unicode` in GPT-2's `encoder.py`.
fn byte_char(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let num_before = (0..byte).filter(|&other| !printable(other)).count() as u32;
    char::from_u32(256 + num_before).expect("invariant: 256 and the few after it are characters")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn tokens_are_distinct_and_merges_join_known_ones() {
        let tokens = tokens();
        assert_eq!(tokens.len(), VOCAB_SIZE);
        let known: HashSet<&String> = tokens.iter().collect();
        assert_eq!(known.len(), VOCAB_SIZE);
        for (left, right) in MERGES {
            assert!(known.contains(&left.to_owned()) && known.contains(&right.to_owned()), "{left} {right}");
        }
        assert_eq!(byte_char(b' '), 'Ġ');
        assert_eq!(byte_char(b'\n'), 'Ċ');
    }
}
