//! Tokenizers of folders against the same tokenizers read back from the metadata that is made of them.

use std::path::Path;

use bytes::Bytes;
use serde_json::json;

use super::*;
use crate::gguf::Gguf;
use crate::{ModelSource, Tokenizer};

const TEXTS: [&str; 6] = [
    "Once upon a time, there was 1 little girl.",
    "",
    "  two  spaces",
    "naïve café\n\n日本 🦀",
    "the they theme",
    "a\tb 123 12",
];

fn written(folder: &Path) -> (Tokenizer, Gguf) {
    let config = ModelSource::open(folder).unwrap().config().unwrap();
    let mut header = Header::default();
    write_gguf(folder, &config, &mut header).unwrap();
    let gguf = Gguf::parse(Path::new("written.gguf"), Bytes::from(header.to_bytes())).unwrap();
    (Tokenizer::from_gguf(&gguf).unwrap(), gguf)
}

fn assert_same(folder: &Path) {
    let (before, (after, _)) = (Tokenizer::from_folder(folder).unwrap(), written(folder));
    for text in TEXTS {
        for add_special in [false, true] {
            let ids = before.encode_text(text, add_special, true).unwrap();
            assert_eq!(after.encode_text(text, add_special, true).unwrap(), ids, "{text:?}");
        }
    }
    assert_eq!((before.bos(), before.eos_ids()), (after.bos(), after.eos_ids()));
    assert_eq!(before.control_tokens(), after.control_tokens());
    assert_eq!(before.chat_template(), after.chat_template());
    for id in 0..before.vocab_size() as u32 {
        assert_eq!(before.token_bytes(id), after.token_bytes(id), "token {id}");
    }
}

#[test]
fn byte_level_tokenizers_survive() {
    assert_same(bespoke_testkit::TinyModel::default().write_hf().unwrap().path());
    if let Some(folder) = bespoke_testkit::shared_fixture("lora-tiny") {
        assert_same(&folder);
        assert_eq!(written(&folder).1.metadata().string(gguf::PRE).unwrap(), "gpt-2");
    }
}

#[test]
fn a_sentencepiece_tokenizer_survives() {
    let Some(folder) = bespoke_testkit::shared_fixture("stories260k") else { return };
    assert_same(&folder);
    let metadata = written(&folder).1;
    let metadata = metadata.metadata();
    assert_eq!(metadata.string(gguf::MODEL).unwrap(), "llama");
    assert!(metadata.bool(gguf::ADD_BOS).unwrap() && metadata.bool(gguf::ADD_SPACE_PREFIX).unwrap());
    assert_eq!(metadata.u32(gguf::UNKNOWN).unwrap(), 0);
}

#[test]
fn pre_tokenizers_have_names_or_none() {
    let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": regex});
    let sequence = |first: Value, regex: bool| json!({"type": "Sequence", "pretokenizers": [first, bytes(regex)]});
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let digits = json!({"type": "Digits", "individual_digits": true});
    assert_eq!(pre_name(&bytes(true)), Some("gpt-2"));
    assert_eq!(pre_name(&sequence(digits.clone(), true)), Some("smollm"));
    assert_eq!(pre_name(&sequence(split(LLAMA3_SPLIT), false)), Some("llama-bpe"));
    assert_eq!(pre_name(&sequence(split(QWEN2_SPLIT), false)), Some("qwen2"));
    assert_eq!(pre_name(&sequence(split("x"), false)), None);
    assert_eq!(pre_name(&sequence(digits, false)), None);
    assert_eq!(pre_name(&json!({"type": "ByteLevel", "add_prefix_space": true})), None);
    assert_eq!(pre_name(&json!({"type": "Whitespace"})), None);
    assert_eq!(pre_name(&Value::Null), None);
}

#[test]
fn what_gguf_cannot_say_names_its_field() {
    let model = bespoke_testkit::TinyModel::default().write_hf().unwrap();
    let file = model.path().join(TOKENIZER_FILE);
    let original: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let fault = |change: fn(&mut Value)| {
        let mut json = original.clone();
        change(&mut json);
        std::fs::write(&file, json.to_string()).unwrap();
        let config = ModelSource::open(model.path()).unwrap().config().unwrap();
        match write_gguf(model.path(), &config, &mut Header::default()) {
            Err(ModelError::Config { field, reason, .. }) => (field, reason),
            other => panic!("expected a configuration error, got {other:?}"),
        }
    };
    let (field, reason) = fault(|json| json["pre_tokenizer"]["pretokenizers"][0] = json!({"type": "Whitespace"}));
    assert!(field == "pre_tokenizer" && reason.contains("Whitespace"), "{field}: {reason}");
    assert_eq!(fault(|json| json["normalizer"] = json!({"type": "Lowercase"})).0, "normalizer");
    assert_eq!(fault(|json| json["model"]["vocab"]["far"] = json!(900)).0, "model.vocab");
}

#[test]
fn merges_of_one_union_must_be_neighbours() {
    let Some(folder) = bespoke_testkit::shared_fixture("stories260k") else { return };
    let copy = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer_config.json", "model.safetensors"] {
        std::fs::copy(folder.join(name), copy.path().join(name)).unwrap();
    }
    let mut json: Value = serde_json::from_slice(&std::fs::read(folder.join(TOKENIZER_FILE)).unwrap()).unwrap();
    let merges = json["model"]["merges"].as_array_mut().unwrap();
    // `▁t he` and `▁th e` make the same union.
    merges.swap(7, 20);
    std::fs::write(copy.path().join(TOKENIZER_FILE), json.to_string()).unwrap();
    let config = ModelSource::open(copy.path()).unwrap().config().unwrap();
    let error = write_gguf(copy.path(), &config, &mut Header::default()).unwrap_err().to_string();
    assert!(error.contains("model.merges") && error.contains("▁the"), "{error}");
}
