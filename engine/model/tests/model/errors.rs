//! Broken files and impossible steps: each gets the error that names what is wrong.

use std::path::Path;

use bespoke_model::{KvCache, KvDType, Model, ModelError, Step, StepRow, Workspace};
use bespoke_testkit::{TinyDtype, TinyModel, TinyModelDir, VOCAB_SIZE};
use serde_json::Value;

use crate::runner::load;

fn load_error(path: &Path) -> ModelError {
    match load(path) {
        Ok(_) => panic!("`{}` loads", path.display()),
        Err(error) => error,
    }
}

/// Writes a folder, changes one of its JSON files, and returns the error of loading it.
fn hf_error(tiny: &TinyModel, file: &str, change: impl FnOnce(&mut Value)) -> ModelError {
    let written = tiny.write_hf().unwrap();
    let path = written.path().join(file);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(&path, json.to_string()).unwrap();
    load_error(written.path())
}

/// Writes a GGUF file with the first occurrence of some bytes replaced, and returns the error of loading it.
fn gguf_error(tiny: &TinyModel, from: &[u8], to: &[u8]) -> ModelError {
    assert_eq!(from.len(), to.len());
    let written = tiny.write_gguf().unwrap();
    let mut bytes = std::fs::read(written.path()).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    std::fs::write(written.path(), bytes).unwrap();
    load_error(written.path())
}

fn cut(path: &Path, num_bytes: usize) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() - num_bytes]).unwrap();
}

#[test]
fn paths_that_are_no_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(load_error(&folder.path().join("absent")), ModelError::Io { .. }));
    assert!(matches!(load_error(folder.path()), ModelError::NotAModel { .. }));
    let tiny = TinyModel::default();
    std::fs::write(folder.path().join("a.gguf"), tiny.gguf_bytes()).unwrap();
    assert!(load(folder.path()).is_ok(), "a folder with one file is that file");
    std::fs::write(folder.path().join("b.gguf"), tiny.gguf_bytes()).unwrap();
    assert!(load_error(folder.path()).to_string().contains("2 `.gguf` files"));
    let written = tiny.write_hf().unwrap();
    std::fs::remove_file(written.path().join("config.json")).unwrap();
    assert!(matches!(load_error(written.path()), ModelError::NotAModel { .. }));
    std::fs::write(written.path().join("config.json"), "{").unwrap();
    assert!(matches!(load_error(written.path()), ModelError::Malformed { file, .. } if file.ends_with("config.json")));
}

#[test]
fn folders_name_the_tensor_or_field() {
    let tiny = TinyModel::default();
    match hf_error(&tiny, "config.json", |json| json["num_hidden_layers"] = 3.into()) {
        ModelError::MissingTensor { file, tensor } => {
            assert!(file.ends_with("model.safetensors"));
            assert_eq!(tensor, "model.layers.2.input_layernorm.weight");
        }
        other => panic!("{other}"),
    }
    match hf_error(&tiny, "config.json", |json| json["intermediate_size"] = 128.into()) {
        ModelError::TensorShape { tensor, expected, found, .. } => {
            assert_eq!(tensor, "model.layers.0.mlp.gate_proj.weight");
            assert_eq!((expected, found), (vec![128, 64], vec![96, 64]));
        }
        other => panic!("{other}"),
    }
    match hf_error(&tiny, "config.json", |json| json["architectures"] = vec!["BertModel"].into()) {
        ModelError::UnsupportedArchitecture { architecture, .. } => assert_eq!(architecture, "BertModel"),
        other => panic!("{other}"),
    }
    match hf_error(&tiny, "generation_config.json", |json| json["eos_token_id"] = "two".into()) {
        ModelError::Config { file, field, .. } => {
            assert!(file.ends_with("generation_config.json"));
            assert_eq!(field, "eos_token_id");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn truncated_safetensors_name_the_tensor() {
    let written = TinyModel::default().write_hf().unwrap();
    cut(&written.path().join("model.safetensors"), 1);
    match load_error(written.path()) {
        ModelError::Truncated { file, item, needed, available } => {
            assert!(file.ends_with("model.safetensors") && item.starts_with("tensor `"), "{item}");
            assert_eq!(needed, available + 1);
        }
        other => panic!("{other}"),
    }
}

#[test]
fn integer_safetensors_name_the_type() {
    let written = TinyModel::default().write_hf().unwrap();
    let path = written.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    while let Some(at) = bytes.windows(5).position(|window| window == b"\"F32\"") {
        bytes[at + 1] = b'I';
    }
    std::fs::write(&path, bytes).unwrap();
    match load_error(written.path()) {
        ModelError::TensorType { tensor, found, .. } => {
            assert_eq!((tensor.as_str(), found.as_str()), ("model.embed_tokens.weight", "I32"));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn an_index_is_held_against_its_shards() {
    const INDEX: &str = "model.safetensors.index.json";
    const NORM: &str = "model.norm.weight";
    let tiny = TinyModel { num_shards: 2, ..TinyModel::default() };
    match hf_error(&tiny, INDEX, |json| json["weight_map"][NORM] = "absent.safetensors".into()) {
        ModelError::Io { file, .. } => assert!(file.ends_with("absent.safetensors")),
        other => panic!("{other}"),
    }
    match hf_error(&tiny, INDEX, |json| json["weight_map"]["ghost"] = "model-00001-of-00002.safetensors".into()) {
        ModelError::MissingTensor { file, tensor } => {
            assert!(file.ends_with("model-00001-of-00002.safetensors"));
            assert_eq!(tensor, "ghost");
        }
        other => panic!("{other}"),
    }
    let unlisted = hf_error(&tiny, INDEX, |json| drop(json["weight_map"].as_object_mut().unwrap().remove(NORM)));
    assert!(matches!(unlisted, ModelError::MissingTensor { file, tensor } if file.ends_with(INDEX) && tensor == NORM));
    let outside = hf_error(&tiny, INDEX, |json| json["weight_map"][NORM] = "../model.safetensors".into());
    assert!(matches!(outside, ModelError::Malformed { .. }));
}

#[test]
fn gguf_files_name_the_tensor_or_key() {
    let tiny = TinyModel::default();
    match gguf_error(&tiny, b"blk.1.ffn_down.weight", b"blk.1.ffn_dawn.weight") {
        ModelError::MissingTensor { tensor, .. } => assert_eq!(tensor, "blk.1.ffn_down.weight"),
        other => panic!("{other}"),
    }
    match gguf_error(&tiny, b"llama.block_count", b"llama.block_coast") {
        ModelError::MetadataMissing { key, .. } => assert_eq!(key, "llama.block_count"),
        other => panic!("{other}"),
    }
    match gguf_error(&tiny, b"llama.block_count\x04", b"llama.block_count\x06") {
        ModelError::MetadataType { key, .. } => assert_eq!(key, "llama.block_count"),
        other => panic!("{other}"),
    }
    match gguf_error(&tiny, b"llama", b"mamba") {
        ModelError::UnsupportedArchitecture { architecture, .. } => assert_eq!(architecture, "mamba"),
        other => panic!("{other}"),
    }
    // The norm's table line: name, one dimension of 64, type 0 (`F32`).
    let line = |type_id: u8| [&b"output_norm.weight\x01\0\0\0\x40\0\0\0\0\0\0\0"[..], &[type_id]].concat();
    match gguf_error(&tiny, &line(0), &line(20)) {
        ModelError::TensorType { tensor, found, .. } => {
            assert_eq!((tensor.as_str(), found.as_str()), ("output_norm.weight", "IQ4_NL"));
        }
        other => panic!("{other}"),
    }
    assert!(matches!(gguf_error(&tiny, &line(0), &line(12)), ModelError::Malformed { .. }));
    assert!(matches!(gguf_error(&tiny, b"GGUF", b"GGML"), ModelError::Malformed { .. }));
    assert!(matches!(gguf_error(&tiny, b"GGUF\x03", b"GGUF\x01"), ModelError::Malformed { .. }));
}

#[test]
fn truncated_gguf_names_the_tensor() {
    let written: TinyModelDir = TinyModel { dtype: TinyDtype::Q8_0, ..TinyModel::default() }.write_gguf().unwrap();
    cut(written.path(), 1);
    match load_error(written.path()) {
        ModelError::Truncated { item, needed, available, .. } => {
            assert!(item.starts_with("tensor `"), "{item}");
            assert_eq!(needed, available + 1);
        }
        other => panic!("{other}"),
    }
}

#[test]
fn impossible_steps_are_refused() {
    let model: Model = load(TinyModel::default().write_hf().unwrap().path()).unwrap();
    let mut cache = KvCache::new(model.config(), KvDType::F32, 4, 8).unwrap();
    let mut workspace = Workspace::new(&model, 3, 1);
    let mut error = |rows: &[StepRow], block_tables: &[&[u32]]| {
        model.forward(&Step { rows, num_answer_rows: 0, block_tables }, &mut cache, &mut workspace).unwrap_err()
    };
    let row = StepRow { token: 5, position: 0, sequence: 0, wants_logits: false };
    let wanted = StepRow { wants_logits: true, ..row };
    let far = error(&[StepRow { token: VOCAB_SIZE as u32, ..row }], &[&[0]]);
    assert!(matches!(far, ModelError::TokenOutOfRange { vocab_size: VOCAB_SIZE, .. }));
    let far = error(&[StepRow { position: 256, ..row }], &[&[0; 40]]);
    assert!(matches!(far, ModelError::PositionOutOfRange { position: 256, context_length: 256 }));
    let far = error(&[StepRow { sequence: 1, ..row }], &[&[0]]);
    assert!(matches!(far, ModelError::BlockTable { sequence: 1, .. }));
    let far = error(&[StepRow { position: 8, ..row }], &[&[0]]);
    assert!(matches!(far, ModelError::BlockTable { sequence: 0, .. }));
    assert!(matches!(error(&[row], &[&[4]]), ModelError::BlockTable { sequence: 0, .. }));
    let large = error(&[row; 4], &[&[0]]);
    assert!(matches!(large, ModelError::StepTooLarge { rows: "rows", found: 4, limit: 3 }));
    let large = error(&[wanted; 2], &[&[0]]);
    assert!(matches!(large, ModelError::StepTooLarge { rows: "logit rows", found: 2, limit: 1 }));
}
