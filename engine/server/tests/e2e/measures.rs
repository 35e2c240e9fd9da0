//! `bench` and `perplexity`, run as processes.

use std::path::Path;

use bespoke_client::{Continuation, Prompt, PromptSpec, Template};
use bespoke_domain::ScoreRequest;
use bespoke_engine::Engine;
use bespoke_testkit::{TinyArchitecture, TinyModel};
use serde_json::Value;

use crate::support::binary;

/// Prose of our own, more than a hundred tokens of the tiny model.
const TEXT: &str = "The old baker woke before the sun and walked to the mill at the end of the lane. He carried two sacks, one \
    of rye and one of wheat, and he told the miller that a good loaf begins with patience. Nobody in the town had ever seen \
    him hurry, and nobody had ever seen him late.\n";

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = binary().args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn bench_measures_prefill_and_each_batch() {
    let model = TinyModel::default().write_gguf().unwrap();
    let path = model.path().to_str().unwrap();
    let arguments = ["bench", "--model", path, "--threads", "1", "--prompt", "40", "--generate", "6", "--repeat", "2"];
    let (code, out, err) = run(&[&arguments[..], &["--warmup", "0", "--batch", "1,3", "--json"]].concat());
    assert_eq!(code, Some(0), "{err}");
    let measured: Value = serde_json::from_str(&out).unwrap();
    for field in ["model", "digest", "dtype", "isa", "version"] {
        assert!(!measured[field].as_str().unwrap().is_empty(), "{field}");
    }
    assert_eq!((&measured["threads"], &measured["prompt_tokens"]), (&1.into(), &40.into()));
    assert!(measured["prefill_tokens_per_s"].as_f64().unwrap() > 0.0);
    let decode = measured["decode"].as_array().unwrap();
    assert_eq!(decode.iter().map(|entry| entry["batch"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3]);
    assert!(decode.iter().all(|entry| entry["tokens_per_s"].as_f64().unwrap() > 0.0));

    let (code, out, err) = run(&arguments);
    assert_eq!(code, Some(0), "{err}");
    for line in ["prefill 40", "decode 6, batch 1", "decode 6, batch 16", "decode 6, batch 32"] {
        assert!(out.contains(line), "{out}");
    }
}

#[test]
fn bench_says_what_is_wrong() {
    let model = TinyModel::default().write_hf().unwrap();
    let path = model.path().to_str().unwrap();
    let (code, _, err) = run(&["bench", "--model", path, "--prompt", "300"]);
    assert!(code != Some(0) && err.contains("300") && err.contains("256"), "{err}");
    let (code, _, err) = run(&["bench", "--model", path, "--batch", "1,0"]);
    assert!(code != Some(0) && err.contains("--batch"), "{err}");
}

/// Returns perplexity and number of scored tokens as the command reports them.
fn perplexity(model: &Path, text: &Path, context: usize) -> (f64, usize) {
    let (model, text, context) = (model.to_str().unwrap(), text.to_str().unwrap(), context.to_string());
    let (code, out, err) =
        run(&["perplexity", model, "--text", text, "--context", &context, "--threads", "1", "--json"]);
    assert_eq!(code, Some(0), "{err}");
    let object: Value = serde_json::from_str(&out).unwrap();
    (object["perplexity"].as_f64().unwrap(), object["num_scored"].as_u64().unwrap() as usize)
}

/// The same by the engine's own scores: of each chunk the tokens after its middle, given what stands before.
fn perplexity_by_scores(model: &Path, context: usize) -> (f64, usize) {
    let engine = Engine::builder().model(model).num_threads(1).build().unwrap();
    let tokenizer = engine.tokenizer();
    let tokens = tokenizer.encode_text(TEXT.trim_end(), true, false).unwrap();
    let adds_bos = tokens.len() > tokenizer.encode_text(TEXT.trim_end(), false, false).unwrap().len();
    let (mut sum, mut count) = (0.0, 0);
    for chunk in tokens.chunks_exact(context) {
        let mut chunk = chunk.to_vec();
        if adds_bos {
            chunk[0] = tokenizer.bos().unwrap();
        }
        let (before, after) = chunk.split_at(context / 2 + 1);
        let spec = PromptSpec { template: Some(Template::None), ..PromptSpec::new(Prompt::Tokens(before.to_vec())) };
        let request = ScoreRequest {
            request_id: None,
            spec,
            continuation: Continuation::Tokens(after.to_vec()),
            top: 0,
            priority: Default::default(),
        };
        let score = futures::executor::block_on(engine.score(request, None)).unwrap();
        sum += score.total_logprob;
        count += score.tokens.len();
    }
    ((-sum / f64::from(count as u32)).exp(), count)
}

#[test]
fn perplexity_equals_that_of_scores() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    std::fs::write(&text, TEXT).unwrap();
    let qwen = TinyModel { architecture: TinyArchitecture::Qwen2, seed: 3, ..TinyModel::default() };
    for model in [TinyModel::default().write_hf().unwrap(), qwen.write_gguf().unwrap()] {
        for context in [16, 33] {
            let (found, num_scored) = perplexity(model.path(), &text, context);
            let (expected, count) = perplexity_by_scores(model.path(), context);
            assert_eq!(num_scored, count);
            assert!((found / expected - 1.0).abs() < 1e-5, "{found} {expected}");
        }
    }
}

#[test]
fn perplexity_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    std::fs::write(&text, TEXT).unwrap();
    let model = TinyModel::default().write_hf().unwrap();
    let (path, text) = (model.path().to_str().unwrap(), text.to_str().unwrap());
    let (code, _, err) = run(&["perplexity", path, "--text", text]);
    assert!(code != Some(0) && err.contains("512") && err.contains("text.txt"), "{err}");
    let (code, _, err) = run(&["perplexity", path, "--text", text, "--context", "3"]);
    assert!(code != Some(0) && err.contains("--context"), "{err}");
    let (code, _, err) = run(&["perplexity", path, "--text", "./no/such/file"]);
    assert!(code != Some(0) && err.contains("no/such/file"), "{err}");
}
