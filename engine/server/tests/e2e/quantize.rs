//! `quantize` as a process, and what becomes of its files.

use std::path::Path;

use bespoke_testkit::{TinyModel, shared_fixture};
use serde_json::Value;

use crate::command_line::run;

/// Writes `output` and returns what was said.
fn quantize(model: &Path, output: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    run(&[&["quantize", model.to_str().unwrap(), output.to_str().unwrap()], arguments].concat())
}

/// Returns greedy tokens.
fn greedy(model: &Path, arguments: &[&str]) -> Vec<Value> {
    let model = model.to_str().unwrap();
    let fixed = ["try", "Once upon a time", "--model", model, "--template", "none", "--temperature", "0", "--json"];
    let (code, out, err) = run(&[&fixed[..], &["--max-new-tokens", "24"], arguments].concat());
    assert_eq!(code, Some(0), "{err}");
    let answer: Value = serde_json::from_str(&out).unwrap();
    answer["token_ids"].as_array().unwrap().clone()
}

/// Counts the equal tokens at the start.
fn num_same(a: &[Value], b: &[Value]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[test]
fn an_f32_copy_tells_the_same() {
    let tiny = TinyModel::default().write_hf().unwrap();
    for model in
        [Some(tiny.path().to_owned()), shared_fixture("stories260k"), shared_fixture("lora-tiny")].into_iter().flatten()
    {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy.gguf");
        let (code, out, err) = quantize(&model, &copy, &["--quantization", "none"]);
        assert_eq!(code, Some(0), "{err}");
        assert!(out.contains("F32") && out.contains("copy.gguf"), "{out}");
        assert_eq!(greedy(&copy, &[]), greedy(&model, &[]), "{}", model.display());
    }
}

#[test]
fn a_quantized_file_tells_nearly_the_same() {
    let model = TinyModel::default().write_hf().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("q8.gguf");
    let (code, out, err) = quantize(model.path(), &file, &["--quantization", "q8_0", "--num-threads", "1"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("Q8_0"), "{out}");
    let exact = greedy(model.path(), &[]);
    // A random model has near ties everywhere, so that one flipped token is to be expected.
    assert!(num_same(&exact, &greedy(&file, &[])) >= 4);
    assert!(num_same(&exact, &greedy(model.path(), &["--quantization", "q8_0"])) >= 4);
    let (code, _, err) = run(&["try", "hi", "--model", file.to_str().unwrap(), "--quantization", "q4_0"]);
    assert!(code != Some(0) && err.contains("token_embd.weight") && err.contains("quantized already"), "{err}");
}

#[test]
fn an_existing_file_is_kept_without_force() {
    let model = TinyModel::default().write_hf().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("taken.gguf");
    std::fs::write(&file, "mine").unwrap();
    let (code, _, err) = quantize(model.path(), &file, &["--quantization", "q4_k"]);
    assert!(code != Some(0) && err.contains("taken.gguf") && err.contains("--force"), "{err}");
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    let (code, out, err) = quantize(model.path(), &file, &["--quantization", "q4_k", "--force"]);
    assert_eq!(code, Some(0), "{err}");
    // The rows of the tiny model are no multiple of 256.
    assert!(out.contains("Q5_0") && err.contains("blk.0.attn_q.weight"), "{out}{err}");
    assert_eq!(greedy(&file, &[]).len(), 24);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn wrong_schemes_are_named() {
    let (code, _, err) = run(&["quantize", "a", "b.gguf", "--quantization", "q3_k"]);
    assert!(code != Some(0) && err.contains("q3_k") && err.contains("q4_k"), "{err}");
    let (code, _, err) = run(&["quantize", "a", "b.gguf"]);
    assert!(code != Some(0) && err.contains("--quantization"), "{err}");
}
