//! Requests that do not simply run to their ends: cancelled, late, slow, too many, too long, wrong.

use std::time::{Duration, Instant};

use bespoke_engine::{
    Engine, EngineError, Event, Stage,
    domain::{
        FinishReason, Generate, Persona, PersonaId, PersonaSource, Priority, Prompt, PromptSpec, RenderError, Request,
        Sampling, SamplingParams, Template,
    },
};
use futures::{FutureExt, StreamExt, executor::block_on};

use crate::support::{collect, eventually, greedy, run, seeded, slow, start, tiny};

fn is_idle(engine: &Engine) -> bool {
    let load = engine.load();
    engine.is_idle() && load.num_waiting + load.num_running + load.num_blocks_in_use == 0
}

#[test]
fn after_a_thousand_cancels_no_block_is_in_use() {
    let tiny = tiny(|builder| builder.queue_max(2000).kv_tokens(1024));
    let mut streams = Vec::new();
    for index in 0..1000u64 {
        // A fixed scramble of the index decides when each request is dropped: queued, in its prompt, in its answer.
        let scramble = index.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let mut generate = seeded(&"prompt ".repeat(1 + (scramble % 9) as usize), 50, index);
        generate.n = 1 + (scramble % 3) as u32;
        let mut stream = start(&tiny.engine, generate);
        for _ in 0..scramble % 5 {
            let _ = stream.next().now_or_never();
        }
        streams.push(stream);
        if scramble % 2 == 0 {
            let _ = streams.swap_remove((scramble / 2) as usize % streams.len());
        }
    }
    drop(streams);
    eventually("an idle engine", || is_idle(&tiny.engine));
    assert_eq!(run(&tiny.engine, greedy("still alive", 4)).ids(0).len(), 4);
}

#[test]
fn a_stalled_reader_does_not_slow_the_others() {
    let tiny = tiny(|builder| builder.sequences_max(2));
    let mut stalled = start(&tiny.engine, greedy("slow", 200));
    assert!(matches!(block_on(stalled.next()), Some(Ok(Event::Started(_)))));
    for _ in 0..5 {
        assert_eq!(run(&tiny.engine, greedy("fast", 150)).ids(0).len(), 150);
    }
    assert_eq!(tiny.engine.load().num_running, 1, "the stalled request is still there");
    let mut tokens = 0;
    block_on(async {
        while let Some(event) = stalled.next().await {
            if let Event::Delta(delta) = event.unwrap() {
                tokens += delta.token_ids.len();
            }
        }
    });
    assert_eq!(tokens, 200);
    eventually("an idle engine", || is_idle(&tiny.engine));
}

#[test]
fn a_full_queue_refuses_at_once_and_says_when_to_try_again() {
    let tiny = slow(|builder| builder.queue_max(2));
    let running = start(&tiny.engine, greedy("first", 200));
    eventually("the first to run", || tiny.engine.load().num_running == 1);
    let waiting: Vec<_> = (0..2).map(|_| start(&tiny.engine, greedy("next", 1))).collect();
    let refused = tiny.engine.generate(Request::try_from(greedy("more", 1)).unwrap());
    assert!(
        matches!(refused, Err(EngineError::QueueFull { limit: 2, retry_after }) if retry_after > Duration::ZERO),
        "{refused:?}"
    );
    drop(running);
    for stream in waiting {
        collect(stream).unwrap();
    }
    eventually("an idle engine", || is_idle(&tiny.engine));
}

/// Starts a long request and reads it on a thread of its own, so that an engine of one sequence has no place.
fn occupy(engine: &Engine) -> std::thread::JoinHandle<()> {
    let stream = start(engine, greedy("busy", 100));
    eventually("the busy one to run", || engine.load().num_running == 1);
    std::thread::spawn(move || drop(collect(stream).unwrap()))
}

#[test]
fn a_deadline_ends_each_stage() {
    let tiny = slow(|builder| builder);
    let request = |tokens| Request::try_from(greedy("late", tokens)).unwrap();
    let passed = tiny.engine.generate_until(request(1), Some(Instant::now()));
    assert!(matches!(passed, Err(EngineError::DeadlineExceeded(Stage::Queue))), "{passed:?}");

    let busy = occupy(&tiny.engine);
    let soon = Some(Instant::now() + Duration::from_millis(20));
    let error = collect(tiny.engine.generate_until(request(1), soon).unwrap()).unwrap_err();
    assert!(matches!(error, EngineError::DeadlineExceeded(Stage::Queue)), "{error}");
    busy.join().unwrap();

    // The reader stalls, so the request cannot end by itself before its deadline.
    let soon = Some(Instant::now() + Duration::from_millis(100));
    let decoding = tiny.engine.generate_until(request(200), soon).unwrap();
    eventually("an idle engine", || is_idle(&tiny.engine));
    let error = collect(decoding).unwrap_err();
    assert!(matches!(error, EngineError::DeadlineExceeded(Stage::Decode)), "{error}");
}

#[test]
fn a_time_limit_ends_an_answer_softly() {
    let tiny = slow(|builder| builder);
    let busy = occupy(&tiny.engine);
    let mut generate = greedy("short of time", 200);
    generate.time_limit = Some(Duration::from_millis(20));
    let queued = collect(start(&tiny.engine, generate.clone())).unwrap();
    assert_eq!(queued.finished.choices[0].reason, FinishReason::TimeLimit);
    assert!(queued.ids(0).is_empty());
    busy.join().unwrap();

    let stalled = start(&tiny.engine, generate);
    eventually("an idle engine", || is_idle(&tiny.engine));
    let ended = collect(stalled).unwrap();
    assert_eq!(ended.finished.choices[0].reason, FinishReason::TimeLimit);
    assert!(!ended.ids(0).is_empty() && ended.ids(0).len() < 200);
}

#[test]
fn stalled_readers_hold_neither_places_nor_memory() {
    let tiny = tiny(|builder| builder.sequences_max(2).kv_tokens(512));
    let stalled: Vec<_> = (0..4).map(|_| start(&tiny.engine, greedy("slow", 200))).collect();
    for _ in 0..5 {
        assert_eq!(run(&tiny.engine, greedy("fast", 150)).ids(0).len(), 150);
    }
    let want = run(&tiny.engine, greedy("slow", 200)).ids(0);
    for stream in stalled {
        assert_eq!(collect(stream).unwrap().ids(0), want);
    }
    eventually("an idle engine", || is_idle(&tiny.engine));
}

#[test]
fn higher_priority_leaves_the_queue_first() {
    let tiny = slow(|builder| builder);
    let blocker = start(&tiny.engine, greedy("blocker", 200));
    eventually("the blocker to run", || tiny.engine.load().num_running == 1);
    let low = start(&tiny.engine, greedy("low", 1));
    let mut urgent = greedy("high", 1);
    urgent.priority = Priority::new(5).unwrap();
    let high = start(&tiny.engine, urgent);
    drop(blocker);
    let (low, high) = (collect(low).unwrap(), collect(high).unwrap());
    assert!(low.finished.timings.queue > high.finished.timings.queue);
}

#[test]
fn the_context_bounds_prompt_and_answer() {
    let tiny = tiny(|builder| builder.context_tokens_max(64));
    assert_eq!(tiny.engine.model_info().context_tokens_max, 64);
    let long = "word ".repeat(64);
    let refused = tiny.engine.generate(Request::try_from(greedy(&long, 1)).unwrap());
    assert!(matches!(refused, Err(EngineError::ContextTooLong { limit: 63, .. })), "{refused:?}");
    let hopeless = "x".repeat(1 << 20);
    let refused = tiny.engine.generate(Request::try_from(greedy(&hopeless, 1)).unwrap());
    assert!(matches!(refused, Err(EngineError::ContextTooLong { limit: 63, .. })), "{refused:?}");

    let mut ids = greedy("", 1000);
    ids.spec.prompt = Prompt::Tokens(vec![5; 60]);
    let full = run(&tiny.engine, ids.clone());
    assert_eq!(full.ids(0).len(), 4);
    assert_eq!(full.finished.choices[0].reason, FinishReason::Length);
    ids.spec.prompt = Prompt::Tokens(vec![5; 63]);
    assert_eq!(run(&tiny.engine, ids).ids(0).len(), 1);
}

#[test]
fn personas_come_from_text_id_and_system() {
    let persona = |text| Persona::new(text).unwrap();
    let tiny = tiny(|builder| {
        let id = PersonaId::new("novice").unwrap();
        builder.system_persona(persona("The user is calm.")).personas([(id, persona("The user is a novice."))])
    });
    let text = |source| {
        let spec = PromptSpec {
            persona: source,
            template: Some(Template::Paper),
            ..PromptSpec::new(Prompt::Text("Why?".to_owned()))
        };
        tiny.engine.render(&spec, None).map(|prompt| prompt.rendered.text())
    };
    let with = |persona: &str| format!("Prompt: Why?\nPersona: {persona}\nResponse:");
    assert_eq!(text(PersonaSource::System).unwrap(), with("The user is calm."));
    assert_eq!(text(PersonaSource::Id(PersonaId::new("novice").unwrap())).unwrap(), with("The user is a novice."));
    assert_eq!(text(PersonaSource::Text(persona("The user is old."))).unwrap(), with("The user is old."));
    assert_eq!(text(PersonaSource::None).unwrap(), "Prompt: Why?\nResponse:");
    let unknown = text(PersonaSource::Id(PersonaId::new("absent").unwrap()));
    assert!(matches!(unknown, Err(EngineError::UnknownPersona(_))));
}

#[test]
fn wrong_requests_name_their_field() {
    let tiny = tiny(|builder| builder);
    let field = |generate: Generate| match tiny.engine.generate(Request::try_from(generate).unwrap()) {
        Err(EngineError::Invalid(invalid)) => invalid.field,
        other => panic!("{other:?}"),
    };
    let mut generate = greedy("", 1);
    generate.spec.prompt = Prompt::Tokens(vec![0, 1_000_000]);
    assert_eq!(field(generate), "prompt.token_ids[1]");
    let mut generate = greedy("x", 1);
    generate.stop.tokens = vec![1_000_000];
    assert_eq!(field(generate), "stop.tokens[0]");
    let params = SamplingParams { logit_bias: [(1_000_000, 1.0)].into(), ..Default::default() };
    let generate = Generate { sampling: Sampling::try_from(params).unwrap(), ..greedy("x", 1) };
    assert_eq!(field(generate), "sampling.logit_bias[1000000]");
    let mut generate = greedy("x", 1);
    generate.spec.persona = PersonaSource::System;
    let refused = tiny.engine.generate(Request::try_from(generate.clone()).unwrap());
    assert!(matches!(refused, Err(EngineError::NoSystemPersona)));
    generate.spec.persona = PersonaSource::Text(Persona::new("The user is calm.").unwrap());
    let refused = tiny.engine.generate(Request::try_from(generate).unwrap());
    assert!(matches!(refused, Err(EngineError::Render(RenderError::Invalid(invalid))) if invalid.field == "persona"));
}

#[test]
fn closing_lets_requests_end_and_stopping_ends_them() {
    let tiny = tiny(|builder| builder);
    let running = start(&tiny.engine, greedy("first", 20));
    let stalled = start(&tiny.engine, greedy("second", 200));
    tiny.engine.close();
    let refused = tiny.engine.generate(Request::try_from(greedy("third", 1)).unwrap());
    assert!(matches!(refused, Err(EngineError::Stopping)));
    assert_eq!(collect(running).unwrap().ids(0).len(), 20);
    tiny.engine.stop();
    assert!(matches!(collect(stalled), Err(EngineError::Stopping)));
    eventually("an idle engine", || is_idle(&tiny.engine));
}

#[test]
fn wrong_options_and_models_are_named() {
    let missing = Engine::builder().model("no/such/model").build().unwrap_err();
    assert!(missing.to_string().contains("no/such/model"), "{missing}");
    let none = Engine::builder().build().unwrap_err();
    assert!(matches!(none, EngineError::Option { option: "model", .. }), "{none}");
    let narrow = Engine::builder().model("x").sequences_max(64).step_tokens_max(8).build().unwrap_err();
    assert!(matches!(narrow, EngineError::Option { option: "step_tokens_max", .. }), "{narrow}");
}
