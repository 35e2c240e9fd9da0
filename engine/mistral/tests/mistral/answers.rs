//! The same tiny model on mistral.rs and on the native backend.

use bespoke_engine::{Engine, EngineBuilder, EngineError, domain::Generate};
use bespoke_mistral::{Mistral, MistralError};
use bespoke_testkit::{TinyModel, TinyModelDir};

use crate::{
    contract,
    support::{Outcome, Tiny, collect, greedy, run, seeded, start, tiny},
};

fn on_mistral(folder: TinyModelDir, configure: impl FnOnce(EngineBuilder) -> EngineBuilder) -> Tiny {
    let backend = Mistral::load(folder.path()).unwrap();
    let builder = configure(Engine::builder().model(folder.path()));
    Tiny::new(builder.build_on(Box::new(backend)).unwrap(), folder)
}

fn borrowed(configure: impl FnOnce(EngineBuilder) -> EngineBuilder) -> Tiny {
    on_mistral(TinyModel::default().write_hf().unwrap(), configure)
}

#[test]
fn mistral_keeps_the_contract() {
    contract::check(&|configure| borrowed(configure));
}

/// mistral.rs gives every sequence of a batch but the last the text of another: so there must never be a batch.
#[test]
fn requests_that_run_together_never_get_each_others_text() {
    let tiny = borrowed(|builder| builder);
    let prompts: Vec<String> = (0..12).map(|index| format!("{index} {}", "x".repeat(index % 3))).collect();
    let alone: Vec<_> = prompts.iter().map(|prompt| run(&tiny.engine, greedy(prompt, 20)).ids(0)).collect();
    assert!(alone.iter().any(|ids| ids != &alone[0]), "the model answers everything alike: the test shows nothing");
    for _ in 0..3 {
        let streams: Vec<_> = prompts.iter().map(|prompt| start(&tiny.engine, greedy(prompt, 20))).collect();
        // Some leave early, so that others start while mistral.rs still computes for one that is gone.
        let dropped: Vec<_> = prompts.iter().map(|prompt| start(&tiny.engine, greedy(prompt, 200))).collect();
        drop(dropped);
        let together: Vec<_> = streams.into_iter().map(|stream| collect(stream).unwrap().ids(0)).collect();
        assert_eq!(alone, together);
    }
}

#[test]
fn both_backends_answer_alike() {
    let (native, borrowed) = (tiny(|builder| builder), borrowed(|builder| builder));
    for prompt in ["one", "two two", "a longer prompt that takes more than one block of the cache"] {
        for mut generate in [greedy(prompt, 16), seeded(prompt, 16, 7)] {
            (generate.logprobs.sampled, generate.logprobs.top) = (true, 2);
            let (native, borrowed) = (run(&native.engine, generate.clone()), run(&borrowed.engine, generate));
            assert_eq!(native.ids(0), borrowed.ids(0));
            for (native, borrowed) in logprobs(&native).zip(logprobs(&borrowed)) {
                assert!((native - borrowed).abs() < 1e-3, "{native} and {borrowed}");
            }
        }
    }
}

fn logprobs(outcome: &Outcome) -> impl Iterator<Item = f32> {
    outcome.deltas.iter().flat_map(|delta| delta.logprobs.iter().filter_map(|token| token.logprob))
}

#[test]
fn gguf_files_run_too() {
    let native = TinyModel::default().write_gguf().unwrap();
    let native_engine = Engine::builder().model(native.path()).num_threads(1).build().unwrap();
    let borrowed = on_mistral(TinyModel::default().write_gguf().unwrap(), |builder| builder);
    assert_eq!(borrowed.engine.model_info().digest, native_engine.model_info().digest);
    assert_eq!(borrowed.engine.model_info().end_ids, native_engine.model_info().end_ids);
    let ids = |engine: &Engine| run(engine, greedy("tell me", 16)).ids(0);
    assert_eq!(ids(&borrowed.engine), ids(&native_engine));
}

#[test]
fn an_engine_can_be_dropped_while_it_answers() {
    for _ in 0..2 {
        let Tiny { engine, .. } = borrowed(|builder| builder);
        let stream = start(&engine, Generate { n: 8, ..greedy("busy", 200) });
        engine.stop();
        assert!(matches!(collect(stream), Err(EngineError::Stopping)));
    }
}

#[test]
fn what_cannot_be_loaded_is_an_error() {
    let absent = Mistral::load("no/such/model".as_ref());
    assert!(matches!(absent, Err(MistralError::Model(_))), "no file, no model");
    let folder = TinyModel::default().write_hf().unwrap();
    let config = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("LlamaForCausalLM", "NobodyForCausalLM")).unwrap();
    let unknown = Mistral::load(folder.path()).err().unwrap();
    assert!(matches!(unknown, MistralError::Load { .. }), "{unknown}");
    std::fs::write(&config, text.replace("\"vocab_size\"", "\"vocab\"")).unwrap();
    let lacking = Mistral::load(folder.path()).err().unwrap();
    assert!(lacking.to_string().contains("`vocab_size`"), "{lacking}");
    std::fs::write(folder.path().join("model.safetensors"), b"nothing").unwrap();
    assert!(Mistral::load(folder.path()).is_err());
}
