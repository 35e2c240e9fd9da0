//! An engine whose logits another library computes: the same contract as the native one, and what only it can meet.

use std::time::{Duration, Instant};

use bespoke_engine::{
    Engine, EngineBuilder, EngineError, KvDType, Quantization, Stage,
    domain::{Generate, Request},
};

use bespoke_testkit::TinyModel;

use crate::{
    contract,
    loaned::{Switch, Trouble, backend, loaned},
    support::{Outcome, Tiny, collect, eventually, greedy, run, seeded, start, tiny},
};

#[test]
fn native_keeps_the_contract() {
    contract::check(&|configure| tiny(configure));
}

#[test]
fn a_loaned_model_keeps_the_contract() {
    contract::check(&|configure| loaned(configure).0);
}

#[test]
fn a_loaned_model_answers_as_at_home() {
    let (home, (away, _)) = (tiny(|builder| builder), loaned(|builder| builder));
    let all = |mut generate: Generate| {
        generate.logprobs.sampled = true;
        generate.logprobs.prompt = true;
        generate.logprobs.top = 3;
        generate.n = 2;
        generate
    };
    for prompt in ["one", "two two", "a longer prompt that takes more than one block of the cache"] {
        for generate in [all(greedy(prompt, 20)), all(seeded(prompt, 20, 7))] {
            let (home, away) = (run(&home.engine, generate.clone()), run(&away.engine, generate));
            for choice in 0..2 {
                let deltas = |outcome: &Outcome| -> Vec<_> {
                    outcome.deltas.iter().filter(|delta| delta.choice == choice).cloned().collect()
                };
                assert_eq!(deltas(&home), deltas(&away));
            }
            assert_eq!(home.finished.choices, away.finished.choices);
            assert_eq!(home.finished.usage.generated_tokens, away.finished.usage.generated_tokens);
        }
    }
}

#[test]
fn a_stuck_backend_holds_no_request_beyond_its_deadline() {
    let (tiny, switch) = loaned(|builder| builder);
    switch.set(Trouble::Stuck);
    let request = Request::try_from(greedy("late", 8)).unwrap();
    let soon = Some(Instant::now() + Duration::from_millis(50));
    let error = collect(tiny.engine.generate_until(request, soon).unwrap()).unwrap_err();
    assert!(matches!(error, EngineError::DeadlineExceeded(Stage::Prefill)), "{error}");
    let dropped = start(&tiny.engine, greedy("gone", 8));
    eventually("it to run", || tiny.engine.load().num_running == 1);
    drop(dropped);
    eventually("an idle engine", || tiny.engine.is_idle());
    switch.set(Trouble::None);
    assert_eq!(run(&tiny.engine, greedy("alive", 8)).ids(0).len(), 8);
}

#[test]
fn a_lost_sequence_costs_its_request_alone() {
    for trouble in [Trouble::Sequence, Trouble::Short] {
        let (tiny, switch) = loaned(|builder| builder);
        switch.set(trouble);
        let error = collect(start(&tiny.engine, greedy("lost", 8))).unwrap_err();
        assert!(matches!(error, EngineError::Internal(_)), "{error}");
        switch.set(Trouble::None);
        assert!(!tiny.engine.has_failed());
        assert_eq!(run(&tiny.engine, greedy("alive", 8)).ids(0).len(), 8);
    }
}

#[test]
fn a_backend_that_fails_fails_the_engine() {
    for trouble in [Trouble::Gone, Trouble::Panic] {
        let (Tiny { engine, .. }, switch) = loaned(|builder| builder);
        switch.set(Trouble::Stuck);
        let streams: Vec<_> = (0..3).map(|_| start(&engine, greedy("doomed", 8))).collect();
        switch.set(trouble);
        for stream in streams {
            let error = collect(stream).unwrap_err();
            assert!(matches!(error, EngineError::Internal(_) | EngineError::Stopping), "{error}");
        }
        eventually("the engine to fail", || engine.has_failed());
        let refused = engine.generate(Request::try_from(greedy("late", 1)).unwrap());
        assert!(matches!(refused, Err(EngineError::Stopping)), "{refused:?}");
    }
}

#[test]
fn options_of_the_native_backend_are_refused() {
    let option = |configure: fn(EngineBuilder) -> EngineBuilder| {
        let folder = TinyModel::default().write_hf().unwrap();
        let builder = configure(Engine::builder().model(folder.path()));
        match builder.build_on(backend(folder.path(), &Switch::default())) {
            Err(EngineError::Option { option, .. }) => option,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(option(|builder| builder.num_threads(1)), "num_threads");
    assert_eq!(option(|builder| builder.kv_tokens(64)), "kv_tokens");
    assert_eq!(option(|builder| builder.kv_dtype(KvDType::F16)), "kv_dtype");
    assert_eq!(option(|builder| builder.quantization(Quantization::Q8_0)), "quantization");
}
