//! Tests of encoding and decoding with small tokenizers written here.

use bespoke_domain::{Rendered, Span, SpanKind};

use super::testing::{self, build, byte_level, byte_level_metadata, sentencepiece, sentencepiece_metadata};
use super::*;
use crate::gguf::{Array, Value};

fn text(text: &str, trained: bool) -> Span {
    Span { text: text.to_owned(), kind: SpanKind::Text, trained }
}

fn control(text: &str, trained: bool) -> Span {
    Span { text: text.to_owned(), kind: SpanKind::Control, trained }
}

fn rendered(spans: Vec<Span>, add_special: bool) -> Rendered {
    Rendered { spans, add_special }
}

fn pre(name: &str) -> (&'static str, Value) {
    ("tokenizer.ggml.pre", Value::String(name.to_owned()))
}

/// Returns the spelling of each token of a text.
fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode_text(text, false, false).unwrap();
    ids.iter().map(|&id| String::from_utf8_lossy(tokenizer.token_bytes(id).unwrap()).into_owned()).collect()
}

#[test]
fn threads_share_a_tokenizer() {
    fn is_shared<T: Send + Sync + Clone + 'static>() {}
    is_shared::<Tokenizer>();
}

#[test]
fn merges_by_rank_within_words() {
    let tokenizer = byte_level(&["b c", "a b", "Ġ ab"], &[], &[]);
    assert_eq!(pieces(&tokenizer, "abc ab"), ["a", "bc", " ab"]);
    assert_eq!(tokenizer.vocab_size(), 259);
    assert_eq!(tokenizer.token_bytes(258), Some(&b" ab"[..]));
    assert_eq!(tokenizer.token_bytes(259), None);
}

#[test]
fn text_never_becomes_a_control_token() {
    let tokenizer = byte_level(&["< |", "| >"], &[("<|x|>", 3), ("<tool>", 4)], &[]);
    assert_eq!(pieces(&tokenizer, "<|x|><tool>"), ["<|", "x", "|>", "<tool>"]);
    let parsed = tokenizer.encode_text("a<|x|>", false, true).unwrap();
    assert_eq!(parsed, [97, 258]);
    assert_eq!(tokenizer.control_tokens(), ["<|x|>"]);
    assert!(tokenizer.is_control(258) && !tokenizer.is_control(259) && !tokenizer.is_control(u32::MAX));
    // Not even where whole words are looked up.
    assert_eq!(pieces(&byte_level(&[], &[("xyz", 3)], &[pre("llama-bpe")]), "xyz"), ["x", "y", "z"]);
}

#[test]
fn a_control_span_is_one_token() {
    let tokenizer = byte_level(&[], &[("<|x|>", 3)], &[]);
    let prompt = rendered(vec![control("<|x|>", false), text("a", true)], true);
    let encoded = tokenizer.encode(&prompt).unwrap();
    assert_eq!(encoded, Encoded { ids: vec![256, 97], trained: vec![false, true] });
    let unknown = rendered(vec![control("<|y|>", false)], false);
    let error = tokenizer.encode(&unknown).unwrap_err();
    assert_eq!(error.to_string(), "`<|y|>` is not a control token of this tokenizer");
}

#[test]
fn neighbouring_text_spans_are_one_text() {
    let tokenizer = byte_level(&["a b", "Ġ c"], &[("<|x|>", 3)], &[]);
    let spans = vec![text("a", false), text("b ", true), text("c", false), control("<|x|>", true), text("é", true)];
    let encoded = tokenizer.encode(&rendered(spans, false)).unwrap();
    assert_eq!(encoded.ids, [256, 257, 258, 0xc3, 0xa9]);
    // `ab` begins in the first span, ` c` with the space of the second.
    assert_eq!(encoded.trained, [false, true, true, true, true]);
}

#[test]
fn trained_flags_survive_normalization() {
    let tokenizer = byte_level(&[], &[], &[pre("qwen2")]);
    // Two code points become one; then the bytes of the tokens are not those of the text.
    let spans = vec![text("xe\u{301}", false), text("yz", true)];
    let encoded = tokenizer.encode(&rendered(spans, false)).unwrap();
    assert_eq!(encoded.ids, "xéyz".bytes().map(u32::from).collect::<Vec<_>>());
    assert_eq!(encoded.trained, [false, false, false, true, true]);
}

#[test]
fn bos_is_added_but_never_twice() {
    let bos = ("tokenizer.ggml.bos_token_id", Value::Unsigned(256));
    let eos = ("tokenizer.ggml.eos_token_id", Value::Unsigned(257));
    let add = |key: &'static str| (key, Value::Bool(true));
    let added = [("<s>", 3), ("</s>", 3)];
    let plain = byte_level(&[], &added, &[bos.clone(), eos.clone()]);
    assert_eq!(plain.encode_text("a", true, false).unwrap(), [97]);
    let pairs = [bos.clone(), eos, add("tokenizer.ggml.add_bos_token"), add("tokenizer.ggml.add_eos_token")];
    let both = byte_level(&[], &added, &pairs);
    assert_eq!(both.encode_text("a", true, false).unwrap(), [256, 97, 257]);
    assert_eq!(both.encode_text("<s>a", true, true).unwrap(), [256, 97, 257]);
    assert_eq!(both.encode_text("<s>a", true, false).unwrap(), [256, 60, 115, 62, 97, 257]);
    assert_eq!(both.encode_text("", true, false).unwrap(), [256, 257]);
    assert_eq!((both.bos_text(), both.eos_text()), (Some("<s>"), Some("</s>")));
    let llama3 = byte_level(&[], &added, &[bos, pre("llama-bpe")]);
    assert_eq!(llama3.encode_text("a", true, false).unwrap(), [256, 97]);
}

#[test]
fn ends_of_generation() {
    let added = [("<|endoftext|>", 3), ("<|im_start|>", 3), ("<|im_end|>", 4), ("</s>", 1)];
    let tokenizer = byte_level(&[], &added, &[("tokenizer.ggml.eos_token_id", Value::Unsigned(256))]);
    assert_eq!(tokenizer.eos_ids(), [256, 258]);
    assert!(tokenizer.is_control(258), "an end that the file calls user-defined is a control token");
    assert_eq!(tokenizer.bos(), None);
}

#[test]
fn unused_tokens_have_no_bytes() {
    let tokenizer = byte_level(&[], &[("[PAD0]", 5), ("<|x|>", 3)], &[]);
    assert_eq!(tokenizer.token_bytes(256), None);
    assert_eq!(tokenizer.token_bytes(257), Some(&b"<|x|>"[..]));
    assert!(tokenizer.decode(&[256], true).unwrap_err().to_string().contains("256"));
}

#[test]
fn decode_is_lossy_only_for_invalid_bytes() {
    let tokenizer = testing::bytes();
    let ids = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte)).collect::<Vec<_>>();
    assert_eq!(tokenizer.decode(&ids("né🙂".as_bytes()), true).unwrap(), "né🙂");
    assert_eq!(tokenizer.decode(&ids(b"a\xff\xe2\x96b"), true).unwrap(), "a\u{fffd}\u{fffd}b");
    assert_eq!(tokenizer.decode(&[97, testing::CONTROL], true).unwrap(), "a");
    assert_eq!(tokenizer.decode(&[97, testing::CONTROL], false).unwrap(), "a<|end|>");
    let error = tokenizer.decode(&[97, 999], true).unwrap_err();
    assert_eq!(error.to_string(), "token 999 is outside the vocabulary of 257");
}

/// Encodes with merges that show where a pre-tokenizer splits: a pair that stays apart is in two words.
fn words(name: &str, text: &str) -> Vec<String> {
    let merges = ["l l", "' ll", "1 2", "12 3", "3 4", "Ġ Ġ", "ĠĠ Ġ", "Ċ Ċ", "Ġ a", ". Ċ", "h i", "Ġ 5"];
    pieces(&byte_level(&merges[..], &[], &[pre(name)]), text)
}

#[test]
fn splits_of_the_known_models() {
    // Llama 3: three digits at most, contractions in any case, a sign takes the line end that follows.
    assert_eq!(words("llama-bpe", "1234"), ["123", "4"]);
    assert_eq!(words("llama-bpe", "hi.\n"), ["hi", ".\n"]);
    assert_eq!(words("llama3", "   a"), ["  ", " a"]);
    assert_eq!(words("llama-v3", " 5"), [" ", "5"]);
    // Qwen 2: single digits.
    assert_eq!(words("qwen2", "1234"), ["1", "2", "3", "4"]);
    assert_eq!(words("qwen2", "hi.\n"), ["hi", ".\n"]);
    assert_eq!(words("qwen2", "I'll"), ["I", "'ll"]);
    // SmolLM: single digits, else GPT-2.
    assert_eq!(words("smollm", " 12"), [" ", "1", "2"]);
    assert_eq!(words("smollm", "hi.\n\n"), ["hi", ".", "\n\n"]);
    // GPT-2: numbers with a leading space.
    assert_eq!(words("default", " 5 12"), [" 5", " ", "12"]);
    assert_eq!(words("gpt-2", "   a"), ["  ", " a"]);
}

#[test]
fn llama3_takes_whole_words_from_the_vocabulary() {
    // No merge makes `xyz`, but Llama 3 looks words up first.
    let added = [("xyz", 1)];
    assert_eq!(pieces(&byte_level(&[], &added, &[pre("llama-bpe")]), "xyz"), ["xyz"]);
    assert_eq!(pieces(&byte_level(&[], &added, &[pre("qwen2")]), "xyz"), ["x", "y", "z"]);
}

#[test]
fn score_merge_takes_the_best_union_then_the_leftmost() {
    let tokenizer = sentencepiece(true);
    // `bc` (-1) goes before `ab` (-2); then `a`+`bc` is `abc`.
    assert_eq!(pieces(&tokenizer, "abc"), [" ", "abc"]);
    assert_eq!(pieces(&tokenizer, "abab"), [" ", "ab", "ab"]);
    assert_eq!(pieces(&tokenizer, "a"), [" a"]);
    assert_eq!(pieces(&tokenizer, "   a"), ["  ", " ", " a"]);
    assert_eq!(pieces(&tokenizer, "é"), [" ", "\u{fffd}", "\u{fffd}"]);
    assert_eq!(tokenizer.decode(&tokenizer.encode_text(" aé\n", true, false).unwrap(), true).unwrap(), " aé\n");
}

#[test]
fn sentencepiece_puts_a_space_before_each_run() {
    let prompt =
        rendered(vec![control("<s>", false), text("a", false), control("</s>", false), text("b<tool>b", false)], true);
    let ids = |tokenizer: &Tokenizer| tokenizer.encode(&prompt).unwrap().ids;
    let id = |text: &str| 259 + testing::PIECES.iter().position(|(piece, _)| *piece == text).unwrap() as u32;
    let (space, tool) = (id("▁"), 268);
    assert_eq!(ids(&sentencepiece(true)), [1, id("▁a"), 2, space, id("b"), tool, space, id("b")]);
    assert_eq!(ids(&sentencepiece(false)), [1, id("a"), 2, id("b"), tool, id("b")]);
    assert_eq!(sentencepiece(true).encode_text("", true, false).unwrap(), [1]);
}

#[test]
fn sentencepiece_trained_flags() {
    let spans = vec![text("a ", false), text("ab", true), text(" <tool>é", false), text("é", true)];
    let encoded = sentencepiece(true).encode(&rendered(spans, true)).unwrap();
    // bos | ▁a | ▁ | ab | ▁ | tool | ▁ | two bytes | two bytes; the space before `ab` is in the first span.
    assert_eq!(encoded.trained, [false, false, false, true, false, false, false, false, false, true, true]);
}

#[test]
fn wrong_metadata_is_refused_by_key() {
    let with = |key: &str, value: Value| {
        let mut map = sentencepiece_metadata(true);
        map.insert(format!("tokenizer.ggml.{key}"), value);
        build(map).unwrap_err().to_string()
    };
    let ints = |values: &[i64]| Value::Array(Array::Signed(values.to_vec()));
    let cases = [
        (with("model", Value::String("bert".to_owned())), "field `tokenizer.ggml.model`: `bert` is not supported"),
        (with("scores", Value::Array(Array::Floats(vec![0.0]))), "`tokenizer.ggml.scores`: 1 scores for 269 tokens"),
        (with("scores", Value::Array(Array::Floats(vec![f64::NAN; 269]))), "the score of token 0 is NaN"),
        (with("token_type", ints(&[1, 1])), "`tokenizer.ggml.token_type`: 2 types for 269 tokens"),
        (with("token_type", ints(&[9; 269])), "token 0 has the unknown type 9"),
        (with("token_type", ints(&[6; 269])), "byte token 0 is spelled `<unk>`"),
        (with("bos_token_id", Value::Unsigned(269)), "`tokenizer.ggml.bos_token_id`: 269 is outside"),
        (with("tokens", Value::Array(Array::Strings(Vec::new()))), "`tokenizer.ggml.tokens`: 0 tokens"),
    ];
    for (error, expected) in cases {
        assert!(error.starts_with("`test.gguf`: ") && error.contains(expected), "{error}");
    }
    let with = |pairs: &[(&str, Value)], merges: &[&str]| {
        let mut map = byte_level_metadata(&[], &[], pairs);
        if !merges.is_empty() {
            let merges = merges.iter().map(|merge| (*merge).to_owned()).collect();
            map.insert("tokenizer.ggml.merges".to_owned(), Value::Array(Array::Strings(merges)));
        }
        build(map).unwrap_err().to_string()
    };
    assert!(with(&[pre("tekken")], &[]).contains("`tokenizer.ggml.pre`: `tekken` is not supported"));
    assert!(with(&[], &["ab"]).contains("`tokenizer.ggml.merges`: `ab` is not a pair"));
    assert!(with(&[], &["a xx"]).contains("`tokenizer.ggml.merges`: "));
}

#[test]
fn files_without_types_still_have_their_controls() {
    let mut map = sentencepiece_metadata(true);
    map.remove("tokenizer.ggml.token_type");
    let tokenizer = build(map).unwrap();
    assert_eq!(tokenizer.control_tokens(), ["<s>", "</s>"]);
    assert_eq!(tokenizer.token_bytes(13), Some(&b"\n"[..]));
    assert_eq!((tokenizer.bos(), tokenizer.eos_ids()), (Some(1), &[2][..]));
}

#[test]
fn a_megabyte_of_anything_is_encoded_in_linear_time() {
    const MEGABYTE: usize = 1 << 20;
    let mut state = 1u32;
    let random: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(MEGABYTE)
    .collect();
    let texts = [
        "a".repeat(MEGABYTE),
        " ".repeat(MEGABYTE) + "a",
        "\n".repeat(MEGABYTE),
        "🙂".repeat(MEGABYTE / 4),
        "a 1\n".repeat(MEGABYTE / 4),
        String::from_utf8_lossy(&random).into_owned(),
    ];
    let merges = ["a a", "aa aa", "aaaa aaaa", "Ġ Ġ", "ĠĠ ĠĠ", "Ċ Ċ", "ð Ł"];
    let byte_level = byte_level(&merges, &[("<|x|>", 3)], &[pre("llama-bpe")]);
    for (name, tokenizer) in [("llama-bpe", &byte_level), ("llama", &sentencepiece(true))] {
        for text in &texts {
            let clock = std::time::Instant::now();
            let ids = tokenizer.encode_text(text, false, true).unwrap();
            assert!(&tokenizer.decode(&ids, false).unwrap() == text);
            let seconds = clock.elapsed().as_secs_f32();
            // Quadratic time would be minutes; the bound leaves room for a busy machine.
            assert!(seconds < 20.0, "{name} takes {seconds} s for {:?}...", text.chars().next());
            println!("{name}: {seconds:.2} s, {} tokens", ids.len());
        }
    }
    let long = " ".repeat(9 << 20);
    let error = byte_level.encode_text(&long, false, false).unwrap_err();
    assert_eq!(error.to_string(), "text of 9437184 bytes, the tokenizer takes 8388608 at most");
    assert!(byte_level.encode_text(&long[..8 << 20], false, false).is_ok());
}
