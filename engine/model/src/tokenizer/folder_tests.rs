//! Tests of Hugging Face folders: small ones written here, and the shared fixtures where they exist.

use std::path::Path;

use bespoke_domain::{Rendered, Span, SpanKind};
use bespoke_testkit::shared_fixture;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// Writes a folder; returns it with the outcome of loading it.
fn load(files: &[(&str, &Value)]) -> (TempDir, Result<Tokenizer, ModelError>) {
    let dir = TempDir::new().unwrap();
    for (name, content) in files {
        std::fs::write(dir.path().join(name), content.to_string()).unwrap();
    }
    let tokenizer = Tokenizer::from_folder(dir.path());
    (dir, tokenizer)
}

fn special(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "special": true,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
}

/// A SentencePiece-like `tokenizer.json`: `<unk>`, `<s>`, `</s>`, then five pieces.
fn sentencepiece(pre_tokenizer: Value, normalizer: Value, post_processor: Value) -> Value {
    json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": post_processor,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "b": 5, "▁a": 6, "▁▁": 7,
                "<0xC3>": 8, "<0xA9>": 9},
            "merges": ["▁ a", "▁ ▁"]}
    })
}

fn metaspace(scheme: &str) -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false})
}

fn prepend() -> Value {
    json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]})
}

fn template(single: &[&str]) -> Value {
    let piece = |name: &&str| match *name {
        "$A" => json!({"Sequence": {"id": "A", "type_id": 0}}),
        token => json!({"SpecialToken": {"id": token, "type_id": 0}}),
    };
    json!({"type": "TemplateProcessing", "single": single.iter().map(piece).collect::<Vec<_>>(),
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
            "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}})
}

fn prompt(spans: &[(&str, SpanKind, bool)]) -> Rendered {
    let span = |&(text, kind, trained): &(&str, _, _)| Span { text: str::to_owned(text), kind, trained };
    Rendered { spans: spans.iter().map(span).collect(), add_special: true }
}

#[test]
fn a_space_goes_before_the_runs_that_the_file_says() {
    let turn = prompt(&[
        ("<s>", SpanKind::Control, false),
        ("a", SpanKind::Text, false),
        ("</s>", SpanKind::Control, false),
        ("a", SpanKind::Text, false),
    ]);
    let text =
        prompt(&[("a", SpanKind::Text, false), ("</s>", SpanKind::Control, false), ("a", SpanKind::Text, false)]);
    let ids =
        |json: &Value, prompt: &Rendered| load(&[("tokenizer.json", json)]).1.unwrap().encode(prompt).unwrap().ids;
    let none = Value::Null;
    let legacy = sentencepiece(none.clone(), prepend(), none.clone());
    assert_eq!((ids(&legacy, &turn), ids(&legacy, &text)), (vec![1, 6, 2, 6], vec![6, 2, 6]));
    let first = sentencepiece(metaspace("first"), none.clone(), none.clone());
    assert_eq!((ids(&first, &turn), ids(&first, &text)), (vec![1, 4, 2, 4], vec![6, 2, 4]));
    let always = sentencepiece(metaspace("always"), none.clone(), none.clone());
    assert_eq!(ids(&always, &turn), [1, 6, 2, 6]);
    let never = sentencepiece(json!({"type": "Sequence", "pretokenizers": [metaspace("never")]}), none.clone(), none);
    assert_eq!(ids(&never, &text), [4, 2, 4]);
}

#[test]
fn trained_flags_follow_the_first_byte() {
    let json = sentencepiece(Value::Null, prepend(), Value::Null);
    let tokenizer = load(&[("tokenizer.json", &json)]).1.unwrap();
    let kind = SpanKind::Text;
    // ▁a | ▁a | b | ▁ | two bytes: the space of the second `▁a` begins the second span.
    let encoded = tokenizer
        .encode(&prompt(&[("a", kind, false), (" ab", kind, true), (" ", kind, false), ("é", kind, true)]))
        .unwrap();
    assert_eq!(encoded.ids, [6, 6, 5, 3, 8, 9]);
    assert_eq!(encoded.trained, [false, true, true, false, true, true]);
    assert_eq!(tokenizer.decode(&encoded.ids, true).unwrap(), "a ab é", "and nothing is truncated");
}

#[test]
fn bos_and_eos_by_template_class_and_option() {
    let plain = sentencepiece(Value::Null, prepend(), Value::Null);
    let both = sentencepiece(Value::Null, prepend(), template(&["<s>", "$A", "</s>"]));
    let ids = |json: &Value, config: Value| {
        let mut config = config;
        config["bos_token"] = json!("<s>");
        config["eos_token"] = json!({"content": "</s>", "lstrip": false});
        let tokenizer = load(&[("tokenizer.json", json), ("tokenizer_config.json", &config)]).1.unwrap();
        assert_eq!(
            (tokenizer.bos_text(), tokenizer.eos_text(), tokenizer.eos_ids()),
            (Some("<s>"), Some("</s>"), &[2][..])
        );
        let spelled = tokenizer.encode_text("<s>a", true, true).unwrap();
        assert_eq!(spelled.iter().filter(|&&id| id == 1).count(), 1);
        tokenizer.encode_text("a", true, false).unwrap()
    };
    assert_eq!(ids(&plain, json!({})), [6]);
    assert_eq!(ids(&plain, json!({"tokenizer_class": "LlamaTokenizer"})), [1, 6]);
    assert_eq!(ids(&plain, json!({"add_bos_token": true, "add_eos_token": true})), [1, 6, 2]);
    assert_eq!(ids(&both, json!({})), [1, 6, 2]);
    assert_eq!(ids(&both, json!({"tokenizer_class": "LlamaTokenizerFast", "add_eos_token": false})), [1, 6]);
    assert_eq!(ids(&both, json!({"add_bos_token": false})), [6, 2]);
}

#[test]
fn names_and_templates_come_from_the_files_beside() {
    let json = sentencepiece(Value::Null, prepend(), Value::Null);
    let map = json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "additional_special_tokens": ["b"]});
    let config = json!({"bos_token": null, "chat_template": [
        {"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]});
    let files = [("tokenizer.json", &json), ("tokenizer_config.json", &config), ("special_tokens_map.json", &map)];
    let (dir, tokenizer) = load(&files);
    let tokenizer = tokenizer.unwrap();
    assert_eq!((tokenizer.bos_text(), tokenizer.chat_template()), (Some("<s>"), Some("D")));
    assert_eq!(tokenizer.control_tokens(), ["<unk>", "<s>", "</s>", "b"]);
    assert_eq!(tokenizer.encode_text("ab", false, true).unwrap(), [6, 5]);
    std::fs::write(dir.path().join("chat_template.jinja"), "J").unwrap();
    assert_eq!(Tokenizer::from_folder(dir.path()).unwrap().chat_template(), Some("J"));
    let config = json!({"added_tokens_decoder": {"5": {"content": "b", "special": true}}, "chat_template": "S"});
    let tokenizer = load(&[("tokenizer.json", &json), ("tokenizer_config.json", &config)]).1.unwrap();
    assert!(tokenizer.is_control(5) && tokenizer.chat_template() == Some("S") && tokenizer.bos().is_none());
}

#[test]
fn wrong_files_are_named() {
    let good = sentencepiece(Value::Null, prepend(), Value::Null);
    let error = |files: &[(&str, &Value)]| load(files).1.unwrap_err().to_string();
    assert!(error(&[]).contains("tokenizer.json`: "));
    assert!(error(&[("tokenizer.json", &json!({"model": 1}))]).contains("tokenizer.json` is malformed: "));
    let config = json!({"bos_token": 1});
    assert!(
        error(&[("tokenizer.json", &good), ("tokenizer_config.json", &config)])
            .contains("tokenizer_config.json` is malformed: ")
    );
    let config = json!({"eos_token": "<eos>"});
    let message = error(&[("tokenizer.json", &good), ("tokenizer_config.json", &config)]);
    assert!(
        message.ends_with("tokenizer_config.json`: field `eos_token`: `<eos>` is not in `tokenizer.json`"),
        "{message}"
    );
    for (decoder, name) in [
        (json!({"type": "WordPiece", "prefix": "##", "cleanup": true}), "WordPiece"),
        (json!({"type": "Fuse"}), "Fuse"),
        (Value::Null, "null"),
    ] {
        let mut json = good.clone();
        json["decoder"] = decoder;
        let message = error(&[("tokenizer.json", &json)]);
        assert!(
            message.ends_with(&format!("field `decoder`: `{name}` is neither byte-level nor SentencePiece")),
            "{message}"
        );
    }
    let mut sparse = good;
    sparse["model"]["vocab"]["z"] = json!(4_000_000_000u32);
    assert!(error(&[("tokenizer.json", &sparse)]).contains("token id 4000000000 in a vocabulary of 11 tokens"));
}

fn read_json(file: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn stories260k_decodes_its_golden_text() {
    let Some(dir) = shared_fixture("stories260k") else { return };
    let tokenizer = Tokenizer::from_folder(&dir).unwrap();
    let golden = read_json(&dir.join("golden_greedy.json"));
    let (ids, text) = (ids(&golden["ids"]), golden["text"].as_str().unwrap());
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    let options =
        crate::DetokenizerOptions { skip_control: true, at_text_start: true, ..crate::DetokenizerOptions::default() };
    let mut stream = crate::Detokenizer::new(&tokenizer, options);
    let streamed: String = ids.iter().map(|&id| stream.push(id).text).collect();
    assert_eq!(streamed + &stream.finish(), text);
    assert_eq!(tokenizer.encode_text(text, true, false).unwrap(), ids);
    assert_eq!(tokenizer.encode_text("", true, false).unwrap(), [tokenizer.bos().unwrap()]);
}

#[test]
fn lora_tiny_encodes_its_texts() {
    let Some(dir) = shared_fixture("lora-tiny") else { return };
    let tokenizer = Tokenizer::from_folder(&dir).unwrap();
    assert_eq!((tokenizer.bos_text(), tokenizer.eos_ids()), (Some("<|im_start|>"), &[2, 0][..]));
    assert_eq!(tokenizer.chat_template().unwrap(), std::fs::read_to_string(dir.join("chat_template.jinja")).unwrap());
    let inputs = read_json(&dir.join("inputs.json"));
    for sequence in inputs["sequences"].as_array().unwrap() {
        let (text, ids) = (sequence["text"].as_str().unwrap(), ids(&sequence["input_ids"]));
        let ids = ids.strip_suffix(&[2]).unwrap_or(&ids);
        assert_eq!(tokenizer.encode_text(text, true, false).unwrap(), ids);
        assert_eq!(tokenizer.decode(ids, true).unwrap(), text);
    }
}

/// Ids by the PyPI package tokenizers 0.23.3, `encode_special_tokens` true and false.
#[test]
fn fixtures_encode_as_hugging_face_does() {
    let golden: [(&str, &str, &[u32], &[u32]); 2] = [
        (
            "stories260k",
            "  Lily's café 🙂\n<s>the end",
            &[
                410, 410, 317, 439, 419, 280, 412, 431, 485, 410, 243, 162, 156, 133, 13, 504, 419, 505, 413, 260, 344,
                264,
            ],
            &[410, 410, 317, 439, 419, 280, 412, 431, 485, 410, 243, 162, 156, 133, 13, 1, 265, 344, 264],
        ),
        (
            "lora-tiny",
            "  Lily's café 🙂\n<|im_end|>the 1234",
            &[
                223, 223, 46, 365, 91, 9, 85, 270, 67, 72, 130, 105, 223, 175, 256, 250, 227, 201, 30, 94, 75, 79, 65,
                71, 271, 94, 32, 86, 265, 223, 19, 20, 21, 22,
            ],
            &[
                223, 223, 46, 365, 91, 9, 85, 270, 67, 72, 130, 105, 223, 175, 256, 250, 227, 201, 2, 86, 265, 223, 19,
                20, 21, 22,
            ],
        ),
    ];
    for (name, text, plain, parsed) in golden {
        let Some(dir) = shared_fixture(name) else { return };
        let tokenizer = Tokenizer::from_folder(&dir).unwrap();
        assert_eq!(tokenizer.encode_text(text, false, false).unwrap(), plain);
        assert_eq!(tokenizer.encode_text(text, false, true).unwrap(), parsed);
        assert_eq!(tokenizer.decode(plain, true).unwrap(), text);
    }
}
