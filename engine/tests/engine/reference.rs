//! The engine against golden values of the shared fixtures; skipped where they are absent.

use bespoke_engine::{
    Engine,
    domain::{Continuation, Prompt, PromptSpec, ScoreRequest},
};
use bespoke_testkit::shared_fixture;
use futures::executor::block_on;
use serde_json::Value;

use crate::support::{greedy, run};

fn read(path: &std::path::Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn stories_are_told_to_the_last_token() {
    let Some(folder) = shared_fixture("stories260k") else {
        println!("skipped: shared/fixtures/stories260k is absent");
        return;
    };
    let golden = read(&folder.join("golden_greedy.json"));
    let want = ids(&golden["ids"]);
    let engine = Engine::builder().model(&folder).num_threads(2).build().unwrap();
    let told = run(&engine, greedy("", want.len() as u32 - 1));
    assert_eq!(told.ids(0), want[1..]);
    assert_eq!(told.text(0), golden["text"].as_str().unwrap());
}

#[test]
fn log_probabilities_equal_pytorchs() {
    let Some(folder) = shared_fixture("lora-tiny") else {
        println!("skipped: shared/fixtures/lora-tiny is absent");
        return;
    };
    let expected = read(&folder.join("expected_f32.json"));
    let inputs = read(&folder.join("inputs.json"));
    let engine = Engine::builder().model(&folder).num_threads(2).build().unwrap();
    for (sequence, base) in inputs["sequences"].as_array().unwrap().iter().zip(expected["base"].as_array().unwrap()) {
        let ids = ids(&sequence["input_ids"]);
        let want: Vec<f64> =
            base["next_token_logprob"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
        let request = ScoreRequest {
            request_id: None,
            spec: PromptSpec::new(Prompt::Tokens(ids[..1].to_vec())),
            continuation: Continuation::Tokens(ids[1..].to_vec()),
            top: 0,
            priority: Default::default(),
        };
        let score = block_on(engine.score(request, None)).unwrap();
        assert_eq!(score.tokens.len(), want.len());
        for (token, want) in score.tokens.iter().zip(&want) {
            let got = f64::from(token.logprob.unwrap());
            assert!((got - want).abs() < 1e-4, "{got} is not {want}");
        }
        let total: f64 = want.iter().sum();
        assert!((score.total_logprob - total).abs() < 1e-3);
    }
}
