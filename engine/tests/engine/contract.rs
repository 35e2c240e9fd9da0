//! What holds on every backend: the native one, and those that `EngineBuilder::build_on` takes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bespoke_engine::{
    Engine, EngineBuilder, EngineError, Event, Stage,
    domain::{
        Continuation, FinishReason, Generate, Priority, Prompt, Request, Sampling, SamplingParams, ScoreRequest,
        TokenLogprob,
    },
};
use futures::{StreamExt, executor::block_on};

use crate::support::{Outcome, Tiny, collect, eventually, greedy, run, seeded, start};

/// Makes an engine on the default tiny model.
pub(crate) type Make<'a> = &'a dyn Fn(fn(EngineBuilder) -> EngineBuilder) -> Tiny;

/// How far log-probabilities may be apart that were computed with the prompt as a whole and token by token.
const LOGPROB_ERROR_MAX: f32 = 1e-3;

const PROMPTS: [&str; 5] = ["one", "two two", "three three three", "4444 4444 4444", "a longer prompt, number five"];

type Clause = fn(Make<'_>);

const CLAUSES: [(&str, Clause); 12] = [
    ("the text is that of the tokens", the_text_is_that_of_the_tokens),
    ("answers repeat", answers_repeat),
    ("company changes nothing", company_changes_nothing),
    ("choices are independent", choices_are_independent),
    ("lengths are kept", lengths_are_kept),
    ("stops end an answer", stops_end_an_answer),
    ("parameters hold", parameters_hold),
    ("log-probabilities agree", logprobs_agree),
    ("cancelled requests leave", cancelled_requests_leave),
    ("deadlines and limits hold", deadlines_and_limits_hold),
    ("the queue is bounded and ordered", the_queue_is_bounded_and_ordered),
    ("stalled readers stop nobody", stalled_readers_stop_nobody),
];

/// Checks every clause.
pub(crate) fn check(make: Make<'_>) {
    for (name, clause) in CLAUSES {
        eprintln!("{name}");
        clause(make);
    }
}

fn the_text_is_that_of_the_tokens(make: Make<'_>) {
    let tiny = make(|builder| builder);
    for seed in 0..4 {
        let mut generate = seeded("text", 40, seed);
        let outcome = run(&tiny.engine, generate.clone());
        assert_eq!(outcome.text(0), tiny.engine.tokenizer().decode(&outcome.ids(0), true).unwrap());
        assert_eq!((outcome.ids(0).len(), outcome.finished.usage.generated_tokens), (40, 40));
        generate.echo = true;
        assert_eq!(run(&tiny.engine, generate).text(0), format!("text{}", outcome.text(0)));
    }
}

fn answers_repeat(make: Make<'_>) {
    let tiny = make(|builder| builder);
    let ids = |generate| run(&tiny.engine, generate).ids(0);
    for prompt in PROMPTS {
        assert_eq!(ids(greedy(prompt, 24)), ids(greedy(prompt, 24)), "greedy");
        assert_eq!(ids(seeded(prompt, 24, 5)), ids(seeded(prompt, 24, 5)), "a seed");
        assert_ne!(ids(seeded(prompt, 24, 5)), ids(seeded(prompt, 24, 6)), "another seed");
    }
    assert_ne!(ids(greedy(PROMPTS[0], 24)), ids(greedy(PROMPTS[1], 24)), "the model answers everything alike");
}

/// Requests that run together get the text that each gets alone.
fn company_changes_nothing(make: Make<'_>) {
    let tiny = make(|builder| builder);
    for seed in [None, Some(1)] {
        let generate = |prompt| seed.map_or_else(|| greedy(prompt, 24), |seed| seeded(prompt, 24, seed));
        let alone: Vec<_> = PROMPTS.map(|prompt| run(&tiny.engine, generate(prompt)).ids(0)).into();
        let together: Vec<_> = PROMPTS.map(|prompt| start(&tiny.engine, generate(prompt))).into();
        let together: Vec<_> = together.into_iter().map(|stream| collect(stream).unwrap().ids(0)).collect();
        assert_eq!(alone, together);
    }
}

fn choices_are_independent(make: Make<'_>) {
    let tiny = make(|builder| builder);
    let choices = |n| run(&tiny.engine, Generate { n, ..seeded("tell me", 16, 9) });
    let (one, three) = (choices(1), choices(3));
    assert_eq!(one.ids(0), three.ids(0));
    assert_ne!(three.ids(0), three.ids(1));
    assert_eq!((three.finished.choices.len(), three.finished.usage.generated_tokens), (3, 48));
}

fn lengths_are_kept(make: Make<'_>) {
    let tiny = make(|builder| builder.context_tokens_max(64));
    assert_eq!(tiny.engine.model_info().context_tokens_max, 64);
    let refused = tiny.engine.generate(Request::try_from(greedy(&"word ".repeat(64), 1)).unwrap());
    assert!(matches!(refused, Err(EngineError::ContextTooLong { limit: 63, .. })), "{refused:?}");
    for (num_prompt, wanted, num_new) in [(60, 1000, 4), (63, 1000, 1), (10, 7, 7)] {
        let mut generate = greedy("", wanted);
        generate.spec.prompt = Prompt::Tokens(vec![5; num_prompt]);
        let outcome = run(&tiny.engine, generate);
        assert_eq!(outcome.ids(0).len(), num_new);
        assert_eq!(outcome.finished.choices[0].reason, FinishReason::Length);
        assert_eq!(outcome.finished.usage.prompt_tokens as usize, num_prompt);
    }
}

fn stops_end_an_answer(make: Make<'_>) {
    let tiny = make(|builder| builder);
    let whole = run(&tiny.engine, greedy("stop", 40));
    let text = whole.text(0);
    let from = text.char_indices().nth(text.chars().count() / 2).unwrap().0;
    let stop: String = text[from..].chars().take(3).collect();
    let mut generate = greedy("stop", 40);
    generate.stop.strings = vec!["never to be found".into(), stop.clone()];
    let stopped = run(&tiny.engine, generate.clone());
    assert_eq!(stopped.text(0), text[..text.find(&stop).unwrap()]);
    assert_eq!(stopped.finished.choices[0].reason, FinishReason::Stop);
    generate.min_new_tokens = 40;
    assert_eq!(run(&tiny.engine, generate).finished.choices[0].reason, FinishReason::Length);

    let mut generate = greedy("stop", 40);
    let token = whole.ids(0)[7];
    generate.stop.tokens = vec![token];
    let at = whole.ids(0).iter().position(|&id| id == token).unwrap();
    assert_eq!(run(&tiny.engine, generate.clone()).ids(0), whole.ids(0)[..=at]);
    generate.min_new_tokens = 20;
    let later = run(&tiny.engine, generate.clone()).ids(0);
    assert!(later.iter().take(20).all(|&id| id != token) && later.len() > 20);
    generate.min_new_tokens = 0;
    // An end token of the model ends too, and is told apart.
    let end = tiny.engine.model_info().end_ids[0];
    generate.stop.ignore_end = false;
    generate.stop.tokens.clear();
    generate.sampling = with_bias(end, 100.0);
    let ended = run(&tiny.engine, generate);
    assert_eq!((ended.ids(0), ended.finished.choices[0].reason), (vec![end], FinishReason::EndOfText));
}

/// Greedy with one token's logit changed.
fn with_bias(token: u32, bias: f32) -> Sampling {
    let logit_bias = BTreeMap::from([(token, bias)]).into_iter().collect();
    Sampling::try_from(SamplingParams { temperature: 0.0, logit_bias, ..Default::default() }).unwrap()
}

fn parameters_hold(make: Make<'_>) {
    let tiny = make(|builder| builder);
    let plain = run(&tiny.engine, greedy("bias", 8)).ids(0);
    let forbidden = Generate { sampling: with_bias(plain[0], -100.0), ..greedy("bias", 8) };
    assert!(!run(&tiny.engine, forbidden).ids(0).contains(&plain[0]));
    let forced = Generate { sampling: with_bias(plain[0], 100.0), ..greedy("bias", 8) };
    assert_eq!(run(&tiny.engine, forced).ids(0), vec![plain[0]; 8]);
    let params = SamplingParams { temperature: 0.0, repetition_penalty: 10.0, ..Default::default() };
    let penalised = Generate { sampling: Sampling::try_from(params).unwrap(), ..greedy("bias", 24) };
    let mut once = run(&tiny.engine, penalised).ids(0);
    once.sort_unstable();
    once.dedup();
    let mut often = run(&tiny.engine, greedy("bias", 24)).ids(0);
    often.sort_unstable();
    often.dedup();
    assert!(once.len() >= often.len(), "{} and {} different tokens", once.len(), often.len());
    // Drafts are a matter of speed.
    let drafted = Generate { draft_tokens_max: 4, ..greedy("bias", 8) };
    assert_eq!(run(&tiny.engine, drafted).ids(0), plain);
}

fn logprobs_agree(make: Make<'_>) {
    let tiny = make(|builder| builder);
    let mut generate = greedy("what is it", 12);
    (generate.logprobs.sampled, generate.logprobs.top) = (true, 2);
    let spec = generate.spec.clone();
    let sampled = run(&tiny.engine, generate);
    let sampled_logprobs: Vec<_> = sampled.deltas.iter().flat_map(|delta| delta.logprobs.clone()).collect();
    for token in &sampled_logprobs {
        assert_eq!(
            (token.token, token.logprob),
            (token.top[0].token, Some(token.top[0].logprob)),
            "greedy is the best"
        );
    }
    let continuation = Continuation::Tokens(sampled.ids(0));
    let score =
        ScoreRequest { request_id: None, spec: spec.clone(), continuation, top: 2, priority: Priority::default() };
    let score = block_on(tiny.engine.score(score, None)).unwrap();
    assert_close(&score.tokens, &sampled_logprobs);

    let prompt = tiny.engine.render(&spec, None).unwrap().token_ids;
    let whole: Vec<_> = prompt.iter().copied().chain(sampled.ids(0)).collect();
    let mut generate = greedy("", 1);
    generate.spec.prompt = Prompt::Tokens(whole.clone());
    (generate.logprobs.prompt, generate.logprobs.top) = (true, 2);
    let echoed = run(&tiny.engine, generate).deltas[0].prompt_logprobs.clone();
    assert_eq!(echoed.iter().map(|token| token.token).collect::<Vec<_>>(), whole);
    assert_eq!(echoed[0].logprob, None);
    assert_close(&echoed[prompt.len()..], &score.tokens);
}

fn assert_close(left: &[TokenLogprob], right: &[TokenLogprob]) {
    assert_eq!(left.len(), right.len());
    for (left, right) in left.iter().zip(right) {
        assert_eq!(left.token, right.token);
        let error = (left.logprob.unwrap() - right.logprob.unwrap()).abs();
        assert!(error <= LOGPROB_ERROR_MAX, "{left:?} and {right:?}");
    }
}

fn is_idle(engine: &Engine) -> bool {
    let load = engine.load();
    engine.is_idle() && load.num_waiting + load.num_running + load.num_blocks_in_use == 0
}

fn cancelled_requests_leave(make: Make<'_>) {
    let tiny = make(|builder| builder);
    for num_events in [0, 1, 2, 5] {
        let mut streams: Vec<_> = (0..4).map(|seed| start(&tiny.engine, seeded("cancel", 200, seed))).collect();
        for _ in 0..num_events {
            block_on(streams[0].next()).unwrap().unwrap();
        }
        drop(streams);
        eventually("an idle engine", || is_idle(&tiny.engine));
    }
    assert_eq!(run(&tiny.engine, greedy("still alive", 4)).ids(0).len(), 4);
}

/// Checks what `work` finds while the engine is busy with a long request. On a loaded machine that request may be over, or parked
/// since nobody read it, before the work is done, so `check` has several tries to hold.
fn while_busy<T: std::fmt::Debug>(engine: &Engine, work: impl Fn() -> T, check: impl Fn(&T) -> bool) {
    let mut found = None;
    for _ in 0..20 {
        let stream = start(engine, Generate { n: 8, ..greedy("busy", 100) });
        let busy = std::thread::spawn(move || drop(collect(stream).unwrap()));
        eventually("the busy one to run", || engine.load().num_running > 0 || busy.is_finished());
        let done = work();
        busy.join().unwrap();
        if check(&done) {
            return;
        }
        found = Some(done);
    }
    panic!("while the engine is busy: {found:?}");
}

fn deadlines_and_limits_hold(make: Make<'_>) {
    let tiny = make(|builder| builder.sequences_max(1));
    let request = |tokens| Request::try_from(greedy("late", tokens)).unwrap();
    let passed = tiny.engine.generate_until(request(1), Some(Instant::now()));
    assert!(matches!(passed, Err(EngineError::DeadlineExceeded(Stage::Queue))), "{passed:?}");
    let mut short = greedy("short of time", 200);
    short.time_limit = Some(Duration::from_millis(2));
    while_busy(
        &tiny.engine,
        || {
            let soon = Some(Instant::now() + Duration::from_millis(2));
            let late = tiny.engine.generate_until(request(1), soon).and_then(collect);
            (late, collect(start(&tiny.engine, short.clone())).unwrap())
        },
        |(late, queued)| {
            matches!(late, Err(EngineError::DeadlineExceeded(Stage::Queue)))
                && (queued.finished.choices[0].reason, queued.ids(0).len()) == (FinishReason::TimeLimit, 0)
        },
    );

    // The reader stalls, so the request cannot end by itself before its deadline.
    let soon = Some(Instant::now() + Duration::from_millis(500));
    let decoding = tiny.engine.generate_until(request(200), soon).unwrap();
    short.time_limit = Some(Duration::from_millis(500));
    let limited = start(&tiny.engine, short);
    eventually("an idle engine", || is_idle(&tiny.engine));
    let error = collect(decoding).unwrap_err();
    assert!(matches!(error, EngineError::DeadlineExceeded(Stage::Decode)), "{error}");
    let limited = collect(limited).unwrap();
    assert_eq!(limited.finished.choices[0].reason, FinishReason::TimeLimit);
    assert!(limited.ids(0).len() < 200);
}

fn the_queue_is_bounded_and_ordered(make: Make<'_>) {
    let tiny = make(|builder| builder.sequences_max(1).queue_max(2));
    let queue = |outcome: Outcome| outcome.finished.timings.queue;
    while_busy(
        &tiny.engine,
        || {
            let low = start(&tiny.engine, greedy("low", 1));
            let high = start(&tiny.engine, Generate { priority: Priority::new(5).unwrap(), ..greedy("high", 1) });
            let refused = tiny.engine.generate(Request::try_from(greedy("more", 1)).unwrap()).map(drop);
            (queue(collect(low).unwrap()), queue(collect(high).unwrap()), refused)
        },
        |(low, high, refused)| {
            matches!(refused, Err(EngineError::QueueFull { limit: 2, retry_after }) if *retry_after > Duration::ZERO)
                && low > high
        },
    );
}

fn stalled_readers_stop_nobody(make: Make<'_>) {
    let tiny = make(|builder| builder.sequences_max(1));
    let mut stalled = start(&tiny.engine, seeded("slow", 200, 3));
    assert!(matches!(block_on(stalled.next()), Some(Ok(Event::Started(_)))));
    for _ in 0..2 {
        assert_eq!(run(&tiny.engine, greedy("fast", 150)).ids(0).len(), 150);
    }
    let mut ids = Vec::new();
    block_on(async {
        while let Some(event) = stalled.next().await {
            if let Event::Delta(delta) = event.unwrap() {
                ids.extend(delta.token_ids);
            }
        }
    });
    assert_eq!(ids, run(&tiny.engine, seeded("slow", 200, 3)).ids(0), "what was computed again is the same");
    tiny.engine.close();
    let refused = tiny.engine.generate(Request::try_from(greedy("closed", 1)).unwrap());
    assert!(matches!(refused, Err(EngineError::Stopping)));
    eventually("an idle engine", || is_idle(&tiny.engine));
}
