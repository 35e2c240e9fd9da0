//! What must not depend on how a request is run: company, chunks, threads, choices, and how it is read.

use crate::support::{Outcome, collect, greedy, run, seeded, start, tiny_of};
use bespoke_engine::domain::{Continuation, Prompt, ScoreRequest};
use bespoke_testkit::TinyDtype;
use futures::executor::block_on;

const PROMPTS: [&str; 6] =
    ["one", "two two", "three three three", "4444 4444 4444 4444", "five", "a longer prompt, number six"];

/// Every test for weights as floats and in blocks: where there are tile registers, prompts of the latter are computed in bf16.
macro_rules! each_dtype {
    ($($name:ident),* $(,)?) => {
        mod floats { $(#[test] fn $name() { super::$name(bespoke_testkit::TinyDtype::F32); })* }
        mod blocks { $(#[test] fn $name() { super::$name(bespoke_testkit::TinyDtype::Q8_0); })* }
    };
}

each_dtype!(
    batched_equals_alone,
    chunked_prefill_equals_whole,
    threads_do_not_matter,
    choices_are_independent_of_their_number,
    a_seed_repeats_and_another_differs,
    prompt_logprobs_score_and_sampled_logprobs_agree,
    the_text_is_that_of_the_tokens,
    a_warm_cache_equals_a_cold_one,
    speculation_changes_nothing_but_the_number_of_steps,
    preempted_equals_alone,
    a_later_turn_equals_itself_cold,
);

fn batched_equals_alone(dtype: TinyDtype) {
    let tiny = tiny_of(dtype, |builder| builder);
    for seed in [None, Some(1), Some(2)] {
        let generate = |prompt| seed.map_or_else(|| greedy(prompt, 24), |seed| seeded(prompt, 24, seed));
        let alone: Vec<_> = PROMPTS.map(|prompt| run(&tiny.engine, generate(prompt)).ids(0)).into();
        let together: Vec<_> = PROMPTS.map(|prompt| start(&tiny.engine, generate(prompt))).into();
        let batched: Vec<_> = together.into_iter().map(|stream| collect(stream).unwrap().ids(0)).collect();
        assert_eq!(alone, batched);
        assert!(alone.iter().any(|ids| ids != &alone[0]), "the model answers everything alike: the test shows nothing");
    }
}

fn chunked_prefill_equals_whole(dtype: TinyDtype) {
    let prompt = "a prompt that is far longer than the smallest step ".repeat(3);
    let whole = tiny_of(dtype, |builder| builder.step_tokens_max(256));
    let want = run(&whole.engine, greedy(&prompt, 16)).ids(0);
    for step_tokens in [1, 3, 16, 17] {
        let chunked = tiny_of(dtype, |builder| builder.sequences_max(1).step_tokens_max(step_tokens));
        assert_eq!(run(&chunked.engine, greedy(&prompt, 16)).ids(0), want, "{step_tokens} tokens a step");
    }
}

fn threads_do_not_matter(dtype: TinyDtype) {
    let one = tiny_of(dtype, |builder| builder.num_threads(1));
    let three = tiny_of(dtype, |builder| builder.num_threads(3));
    for prompt in PROMPTS {
        assert_eq!(run(&one.engine, seeded(prompt, 24, 3)).ids(0), run(&three.engine, seeded(prompt, 24, 3)).ids(0));
    }
}

fn choices_are_independent_of_their_number(dtype: TinyDtype) {
    let tiny = tiny_of(dtype, |builder| builder);
    let choices = |n: u32| {
        let mut generate = seeded("tell me", 16, 9);
        generate.n = n;
        run(&tiny.engine, generate)
    };
    let (one, four) = (choices(1), choices(4));
    assert_eq!(one.ids(0), four.ids(0));
    assert_ne!(four.ids(0), four.ids(1));
    assert_eq!(four.finished.choices.len(), 4);
    assert_eq!(four.finished.usage.generated_tokens, 64);
}

fn a_seed_repeats_and_another_differs(dtype: TinyDtype) {
    let tiny = tiny_of(dtype, |builder| builder);
    let ids = |seed| run(&tiny.engine, seeded("tell me", 24, seed)).ids(0);
    assert_eq!(ids(5), ids(5));
    assert_ne!(ids(5), ids(6));
    // A seed that the engine has chosen repeats its answer too.
    let mut unseeded = seeded("tell me", 24, 0);
    let mut params = (*unseeded.sampling).clone();
    params.seed = None;
    unseeded.sampling = params.try_into().unwrap();
    let chosen = run(&tiny.engine, unseeded);
    assert_eq!(chosen.ids(0), ids(chosen.started.seed));
}

fn prompt_logprobs_score_and_sampled_logprobs_agree(dtype: TinyDtype) {
    let tiny = tiny_of(dtype, |builder| builder.sequences_max(4).step_tokens_max(8));
    let mut generate = greedy("what is it", 12);
    generate.logprobs.sampled = true;
    generate.logprobs.top = 2;
    let spec = generate.spec.clone();
    let sampled = run(&tiny.engine, generate);
    let sampled_logprobs: Vec<_> = sampled.deltas.iter().flat_map(|delta| delta.logprobs.clone()).collect();
    let score = ScoreRequest {
        request_id: None,
        spec: spec.clone(),
        continuation: Continuation::Tokens(sampled.ids(0)),
        top: 2,
        priority: Default::default(),
    };
    let score = block_on(tiny.engine.score(score, None)).unwrap();
    assert_eq!(score.tokens, sampled_logprobs);
    assert_eq!(score.prompt_tokens, sampled.started.prompt_tokens);
    for token in &score.tokens {
        assert_eq!(
            (token.token, token.logprob),
            (token.top[0].token, Some(token.top[0].logprob)),
            "greedy takes the best"
        );
    }

    if dtype != TinyDtype::F32 {
        // As a prompt, the same tokens may be computed in another precision.
        return;
    }
    let prompt = tiny.engine.render(&spec, None).unwrap().token_ids;
    let whole: Vec<_> = prompt.iter().copied().chain(sampled.ids(0)).collect();
    let mut generate = greedy("", 1);
    generate.spec.prompt = Prompt::Tokens(whole.clone());
    generate.logprobs.prompt = true;
    generate.logprobs.top = 2;
    let echoed = run(&tiny.engine, generate).deltas[0].prompt_logprobs.clone();
    assert_eq!(echoed.iter().map(|token| token.token).collect::<Vec<_>>(), whole);
    assert_eq!(echoed[0].logprob, None);
    assert_eq!(echoed[prompt.len()..], score.tokens[..]);
}

fn the_text_is_that_of_the_tokens(dtype: TinyDtype) {
    let tiny = tiny_of(dtype, |builder| builder);
    for seed in 0..20 {
        let Outcome { deltas, .. } = &run(&tiny.engine, seeded("text", 40, seed));
        let ids: Vec<_> = deltas.iter().flat_map(|delta| delta.token_ids.iter().copied()).collect();
        let text: String = deltas.iter().map(|delta| delta.text.as_str()).collect();
        assert_eq!(text, tiny.engine.tokenizer().decode(&ids, true).unwrap());
    }
}

fn a_warm_cache_equals_a_cold_one(dtype: TinyDtype) {
    let tiny = tiny_of(dtype, |builder| builder);
    let shared = "a beginning that all of these prompts have in common, ";
    for seed in [None, Some(4)] {
        for end in ["first", "second", "third"] {
            let prompt = format!("{shared}{end}");
            let warm = seed.map_or_else(|| greedy(&prompt, 24), |seed| seeded(&prompt, 24, seed));
            let mut cold = warm.clone();
            cold.spec.prefix_cache.off = true;
            let (cold, warm) = (run(&tiny.engine, cold), run(&tiny.engine, warm));
            assert_eq!(cold.ids(0), warm.ids(0));
            assert_eq!(cold.started.cached_tokens, 0);
        }
        let again = run(&tiny.engine, greedy(&format!("{shared}first"), 24));
        assert!(again.started.cached_tokens >= 16, "nothing was shared");
        assert_eq!(again.started.cached_tokens, again.finished.usage.cached_tokens);
    }
    let mut salted = greedy(&format!("{shared}first"), 1);
    salted.spec.prefix_cache.salt = "tenant".into();
    assert_eq!(run(&tiny.engine, salted).started.cached_tokens, 0);
}

/// The next turn finds what is its own beginning, and what it finds changes nothing.
fn a_later_turn_equals_itself_cold(dtype: TinyDtype) {
    let tiny = tiny_of(dtype, |builder| builder);
    let first = greedy("a question that is longer than a block", 40);
    let prompt = tiny.engine.render(&first.spec, None).unwrap().token_ids;
    let answer = run(&tiny.engine, first).ids(0);
    let mut warm = greedy("", 24);
    warm.spec.prompt = Prompt::Tokens(prompt.iter().copied().chain(answer).chain(prompt.iter().copied()).collect());
    let mut cold = warm.clone();
    cold.spec.prefix_cache.off = true;
    let (warm, cold) = (run(&tiny.engine, warm), run(&tiny.engine, cold));
    assert!(warm.started.cached_tokens >= 16 && cold.started.cached_tokens == 0);
    assert_eq!(warm.ids(0), cold.ids(0));
}

fn speculation_changes_nothing_but_the_number_of_steps(dtype: TinyDtype) {
    // Smaller steps than some prompts, of which one token is left over.
    let tiny = tiny_of(dtype, |builder| builder.sequences_max(4).step_tokens_max(14));
    let mut accepted = 0;
    for (index, prompt) in ["abc abc abc abc", "one two one two one", "xyxyxyxyxy"].into_iter().enumerate() {
        for generate in [greedy(prompt, 60), seeded(prompt, 60, index as u64)] {
            let plain = run(&tiny.engine, generate.clone());
            for draft_tokens_max in [1, 4, 16] {
                let mut drafted = generate.clone();
                drafted.draft_tokens_max = draft_tokens_max;
                drafted.logprobs.sampled = true;
                let drafted = run(&tiny.engine, drafted);
                assert_eq!(plain.ids(0), drafted.ids(0), "{prompt:?} with {draft_tokens_max} drafts");
                assert_eq!(plain.text(0), drafted.text(0));
                let usage = drafted.finished.usage;
                assert!(usage.accepted_tokens <= usage.drafted_tokens);
                accepted += usage.accepted_tokens;
            }
        }
    }
    assert!(accepted > 0, "no draft was ever right: the test shows nothing");
    assert_eq!(tiny.engine.totals().accepted_tokens, u64::from(accepted));
}

fn preempted_equals_alone(dtype: TinyDtype) {
    let roomy = tiny_of(dtype, |builder| builder);
    let tight = tiny_of(dtype, |builder| builder.kv_tokens(160));
    let alone: Vec<_> = PROMPTS.map(|prompt| run(&roomy.engine, seeded(prompt, 60, 8)).ids(0)).into();
    let together: Vec<_> = PROMPTS.map(|prompt| start(&tight.engine, seeded(prompt, 60, 8))).into();
    let preempted: Vec<_> = together.into_iter().map(|stream| collect(stream).unwrap().ids(0)).collect();
    assert_eq!(alone, preempted);
    assert!(tight.engine.load().num_preempted > 0, "memory was never short: the test shows nothing");
}
