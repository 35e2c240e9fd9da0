//! The server and the command line with mistral.rs as the backend. A program without it has no such tests.

use std::path::Path;

use bespoke_client::Generate;
use bespoke_engine::Engine;
use bespoke_server::BackendName;
use bespoke_testkit::{TinyModel, TinyModelDir};
use serde_json::Value;

use crate::{
    command_line::run,
    support::{Running, answer, events, greedy, request},
};

/// Starts a server whose model mistral.rs runs.
async fn on_mistral() -> Running {
    let model = TinyModel::default().write_hf().unwrap();
    let path = model.path().to_owned();
    let engine = move |config: &bespoke_server::Config| {
        let builder = Engine::builder().queue_max(config.queue_max);
        BackendName::Mistralrs.build(builder, &path).unwrap()
    };
    Running::over(Some(model), |_| {}, |builder| builder, engine).await
}

fn try_it(model: &Path, backend: &str) -> (Option<i32>, String, String) {
    let model = model.to_str().unwrap();
    let arguments = ["try", "tell me", "--model", model, "--template", "none", "--temperature", "0", "--json"];
    run(&[&arguments[..], &["--max-new-tokens", "16", "--backend", backend]].concat())
}

fn ids(out: &str) -> Value {
    serde_json::from_str::<Value>(out).unwrap()["token_ids"].clone()
}

#[test]
fn try_answers_alike_on_both_backends() {
    let model = TinyModel::default().write_hf().unwrap();
    let (code, native, err) = try_it(model.path(), "native");
    assert_eq!(code, Some(0), "{err}");
    let (code, borrowed, err) = try_it(model.path(), "mistralrs");
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(ids(&native), ids(&borrowed));
}

/// A model of a family that the native model lacks: Gemma is Llama with other norms and another activation.
fn tiny_gemma() -> TinyModelDir {
    let model = TinyModel { tie_embeddings: true, ..TinyModel::default() }.write_hf().unwrap();
    let file = model.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config["architectures"] = serde_json::json!(["GemmaForCausalLM"]);
    config["model_type"] = "gemma".into();
    config["hidden_act"] = "gelu_pytorch_tanh".into();
    std::fs::write(&file, config.to_string()).unwrap();
    model
}

#[test]
fn auto_takes_what_has_the_architecture() {
    let gemma = tiny_gemma();
    let (code, out, err) = try_it(gemma.path(), "auto");
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(ids(&out).as_array().unwrap().len(), 16);
    let (code, _, err) = try_it(gemma.path(), "native");
    assert!(code != Some(0) && err.contains("GemmaForCausalLM"), "{err}");
    let engine = BackendName::Auto.build(Engine::builder(), TinyModel::default().write_hf().unwrap().path()).unwrap();
    assert!(!engine.model_info().isa.contains("mistral.rs"));
}

#[test]
fn what_only_the_native_backend_can_be_told_is_refused() {
    let model = TinyModel::default().write_hf().unwrap();
    let path = model.path().to_str().unwrap();
    let (code, _, err) =
        run(&["serve", "--backend", "mistralrs", "--model", path, "--listen", "127.0.0.1:0", "--num-threads", "1"]);
    assert!(code != Some(0) && err.contains("num_threads"), "{err}");
}

#[tokio::test]
async fn a_stream_is_the_whole_answer_and_company_changes_nothing() {
    let running = on_mistral().await;
    let info = running.client.server_info().await.unwrap();
    assert_eq!(info.kernels, "mistral.rs cpu");
    let prompts = ["one", "two two", "three three three"];
    let mut alone = Vec::new();
    for prompt in prompts {
        let whole = running.client.generate(&request(greedy(prompt, 16))).await.unwrap();
        let streamed = answer(&events(&running.client, greedy(prompt, 16)).await);
        assert_eq!((&whole.choices[0].text, &whole.choices[0].token_ids), (&streamed.0, &streamed.1));
        alone.push(streamed);
    }
    let together = prompts.map(|prompt| events(&running.client, greedy(prompt, 16)));
    let together = futures::future::join_all(together).await;
    assert_eq!(alone, together.iter().map(|events| answer(events)).collect::<Vec<_>>());
    running.idle().await;
}

#[tokio::test]
async fn a_caller_who_leaves_frees_the_place() {
    let running = on_mistral().await;
    let stream = running.client.generate_stream(&request(Generate { n: 16, ..greedy("long", 200) })).await.unwrap();
    running.runs(1).await;
    drop(stream);
    running.idle().await;
    assert_eq!(answer(&events(&running.client, greedy("next", 4)).await).1.len(), 4);
}
