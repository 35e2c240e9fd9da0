//! The command line, run as processes.

use bespoke_testkit::{TinyModel, shared_fixture};
use serde_json::Value;

use crate::support::binary;

pub(crate) fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = binary().args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn try_tells_the_golden_story_as_json() {
    let Some(folder) = shared_fixture("stories260k") else {
        println!("skipped: shared/fixtures/stories260k is absent");
        return;
    };
    let golden: Value = serde_json::from_slice(&std::fs::read(folder.join("golden_greedy.json")).unwrap()).unwrap();
    let ids = golden["ids"].as_array().unwrap();
    let tokens = (ids.len() - 1).to_string();
    let model = folder.to_str().unwrap();
    let arguments = ["try", "", "--model", model, "--template", "none", "--temperature", "0", "--json"];
    let (code, out, err) = run(&[&arguments[..], &["--max-new-tokens", &tokens]].concat());
    assert_eq!(code, Some(0), "{err}");
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(answer["token_ids"].as_array().unwrap()[..], ids[1..]);
    assert_eq!(answer["text"], golden["text"]);
    assert_eq!(answer["usage"]["generated_tokens"].as_u64().unwrap() as usize, ids.len() - 1);
    assert_eq!(answer["finish_reason"], "length");
    assert!(answer["timings"]["decode_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn try_streams_text_and_a_seed_repeats_it() {
    let model = TinyModel::default().write_hf().unwrap();
    let path = model.path().to_str().unwrap();
    let arguments = ["try", "hi", "--model", path, "--persona", "The user is shy.", "--max-new-tokens", "12", "--seed"];
    let with_seed = |seed: &str| run(&[&arguments[..], &[seed]].concat());
    let (code, out, err) = with_seed("5");
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("tokens/s") && err.contains("seed 5"), "{err}");
    assert_eq!(out, with_seed("5").1);
    assert_ne!(out, with_seed("6").1);
}

#[test]
fn what_is_wrong_is_said_and_the_exit_code_is_not_zero() {
    let (code, _, err) = run(&["try", "hi", "--model", "./no/such/model"]);
    assert!(code != Some(0) && err.contains("no/such/model"), "{err}");
    let model = TinyModel::default().write_hf().unwrap();
    let path = model.path().to_str().unwrap();
    let (code, _, err) = run(&["try", "hi", "--model", path, "--temperature", "-1"]);
    assert!(code != Some(0) && err.contains("temperature"), "{err}");
    let (code, _, err) = run(&["try", "hi", "--model", path, "--template", "none", "--persona", "The user is shy."]);
    assert!(code != Some(0) && err.contains("persona"), "{err}");
    let (code, _, err) = run(&["serve", "--model", path, "--listen", "127.0.0.1:0", "--queue-max", "0"]);
    assert!(code != Some(0) && err.contains("queue_max"), "{err}");
    let (code, _, err) = run(&["serve", "--config", "./no/such/file.toml"]);
    assert!(code != Some(0) && err.contains("no/such/file.toml"), "{err}");
}

#[test]
fn models_lists_the_cache_and_the_catalogue() {
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().to_str().unwrap();
    let (code, out, err) = run(&["models", "--cache", folder]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("smollm2-135m-instruct"), "{out}");
    let (_, out, _) = run(&["models", "--cache", folder, "--json"]);
    let listing: Value = serde_json::from_str(&out).unwrap();
    assert!(listing["cached"].as_array().unwrap().is_empty());
    assert!(listing["catalogue"].as_array().unwrap().len() >= 4);
}

#[test]
fn every_command_has_help() {
    for command in ["serve", "try", "pull", "models", "quantize", "token", "top", "bench", "perplexity"] {
        let (code, out, _) = run(&[command, "--help"]);
        assert!(code == Some(0) && out.contains("Usage:"), "{command}");
    }
}
