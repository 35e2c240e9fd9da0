//! Arbitrary wire messages, most of them wrong: any enum number, any float, absent parts.

use bespoke_proto::{
    Choice, Continuation, Delta, Finished, GenerateStreamRequest, GenerateStreamResponse, GenerationParams,
    LogprobsParams, MatchedStop, Message, MessageList, NoPersona, PersonaSource, PrefixCache, PromptSpec,
    SamplingParams, ScoreRequest, Started, StopParams, SystemPersona, Timings, TokenIdList, TokenLogprob, TopLogprob,
    Usage, continuation, generate_stream_response::Event, matched_stop::Matched, persona_source::Source,
    prompt_spec::Prompt,
};
use proptest::{
    collection::{btree_map, vec},
    num::{f32, f64},
    option,
    prelude::*,
};

/// The number of an enum: mostly one that exists, so that the fields behind it are reached.
fn number() -> impl Strategy<Value = i32> {
    prop_oneof![8 => 1..=3, 1 => -1..=9, 1 => any::<i32>()]
}

/// Small numbers, which are mostly in range, and any.
fn count() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0..=20_u32, 1 => any::<u32>()]
}

fn float() -> impl Strategy<Value = f32> {
    prop_oneof![4 => 0.0..=1.0_f32, 1 => f32::ANY]
}

fn ids() -> impl Strategy<Value = TokenIdList> {
    vec(any::<u32>(), 0..70).prop_map(|ids| TokenIdList { ids })
}

fn spec() -> impl Strategy<Value = PromptSpec> {
    let message = (number(), ".{0,9}").prop_map(|(role, content)| Message { role, content });
    let prompt = prop_oneof![
        4 => ".{0,20}".prop_map(Prompt::Text),
        2 => vec(message, 0..3).prop_map(|messages| Prompt::Messages(MessageList { messages })),
        1 => ids().prop_map(Prompt::TokenIds),
    ];
    let source = prop_oneof![
        Just(Source::None(NoPersona {})),
        Just(Source::System(SystemPersona {})),
        "[ a]{0,3}".prop_map(Source::Text),
        ".{0,130}".prop_map(Source::Id),
    ];
    let persona = option::of(option::weighted(0.9, source).prop_map(|source| PersonaSource { source }));
    let cache = option::of((any::<bool>(), ".{0,300}").prop_map(|(off, salt)| PrefixCache { off, salt }));
    (option::weighted(0.9, prompt), persona, number(), any::<bool>(), ".{0,9}", cache).prop_map(
        |(prompt, persona, template, persona_in_prompt, response_prefix, prefix_cache)| PromptSpec {
            prefix_cache,
            prompt,
            persona,
            template,
            persona_in_prompt,
            response_prefix,
        },
    )
}

fn sampling() -> impl Strategy<Value = SamplingParams> {
    let shape = (option::of(float()), any::<u32>(), option::of(float()), float());
    let penalties = (option::of(float()), float(), float());
    (shape, penalties, btree_map(any::<u32>(), float(), 0..4), option::of(any::<u64>())).prop_map(
        |(shape, penalties, logit_bias, seed)| SamplingParams {
            temperature: shape.0,
            top_k: shape.1,
            top_p: shape.2,
            min_p: shape.3,
            repetition_penalty: penalties.0,
            frequency_penalty: penalties.1,
            presence_penalty: penalties.2,
            logit_bias,
            seed,
        },
    )
}

fn params() -> impl Strategy<Value = GenerationParams> {
    let stop = (vec(".{0,9}", 0..20), ids(), any::<bool>()).prop_map(|(strings, ids, ignore_end)| StopParams {
        strings,
        token_ids: ids.ids,
        ignore_end,
    });
    let logprobs = (any::<bool>(), count(), any::<bool>()).prop_map(|(sampled, top, prompt)| LogprobsParams {
        sampled,
        top,
        prompt,
    });
    let rest = (any::<bool>(), option::of(count()), option::of(count()), count());
    let parts = (option::of(sampling()), option::of(count()), count(), option::of(stop), option::of(logprobs), rest);
    parts.prop_map(
        |(sampling, max_new_tokens, min_new_tokens, stop, logprobs, (echo, n, time_limit_ms, draft_tokens_max))| {
            GenerationParams {
                sampling,
                max_new_tokens,
                min_new_tokens,
                stop,
                logprobs,
                echo,
                n,
                time_limit_ms,
                draft_tokens_max,
            }
        },
    )
}

pub(crate) fn generate() -> impl Strategy<Value = GenerateStreamRequest> {
    let priority = prop_oneof![4 => -101..=101, 1 => any::<i32>()];
    (option::weighted(0.9, spec()), option::of(params()), "[!-~]{0,4} ?", priority)
        .prop_map(|(spec, params, request_id, priority)| GenerateStreamRequest { spec, params, request_id, priority })
}

pub(crate) fn score() -> impl Strategy<Value = ScoreRequest> {
    let member = prop_oneof![
        ".{0,9}".prop_map(continuation::Continuation::Text),
        ids().prop_map(continuation::Continuation::TokenIds),
    ];
    let continuation = option::weighted(0.9, member).prop_map(|continuation| Continuation { continuation });
    (generate(), option::weighted(0.9, continuation), count()).prop_map(|(generate, continuation, top_logprobs)| {
        let GenerateStreamRequest { spec, request_id, priority, .. } = generate;
        ScoreRequest { spec, continuation, top_logprobs, request_id, priority }
    })
}

fn logprobs() -> impl Strategy<Value = Vec<TokenLogprob>> {
    let logprob = || prop_oneof![4 => -9.0..=0.0_f32, 1 => f32::ANY];
    let top =
        (any::<u32>(), logprob()).prop_map(|(token_id, logprob)| TopLogprob { token_id, piece: vec![0xFF], logprob });
    let entry = (any::<u32>(), option::of(logprob()), vec(top, 0..3))
        .prop_map(|(token_id, logprob, top)| TokenLogprob { token_id, piece: vec![], logprob, top });
    vec(entry, 0..3)
}

pub(crate) fn event() -> impl Strategy<Value = GenerateStreamResponse> {
    let started = ("[!-~]{0,4} ?", option::of("[ a]{0,2}"), any::<u64>()).prop_map(|(request_id, persona, seed)| {
        Event::Started(Started { request_id, persona, seed, ..Started::default() })
    });
    let delta = (any::<u32>(), logprobs(), logprobs()).prop_map(|(choice, logprobs, prompt_logprobs)| {
        Event::Delta(Delta { choice, logprobs, prompt_logprobs, ..Delta::default() })
    });
    let matched = prop_oneof![".{0,4}".prop_map(Matched::Text), any::<u32>().prop_map(Matched::TokenId)];
    let stop = option::weighted(0.9, matched).prop_map(|matched| MatchedStop { matched });
    let choice = (number(), option::of(stop)).prop_map(|(reason, matched_stop)| Choice {
        reason,
        matched_stop,
        ..Choice::default()
    });
    let time_ms = || prop_oneof![4 => 0.0..=1e6_f64, 1 => f64::ANY];
    let timings = (time_ms(), time_ms(), time_ms()).prop_map(|(queue_ms, prefill_ms, decode_ms)| Timings {
        queue_ms,
        prefill_ms,
        decode_ms,
    });
    let usage = option::weighted(0.9, Just(Usage::default()));
    let finished = (vec(choice, 0..3), usage, option::weighted(0.9, timings))
        .prop_map(|(choices, usage, timings)| Event::Finished(Finished { choices, usage, timings }));
    option::weighted(0.95, prop_oneof![started, delta, finished]).prop_map(|event| GenerateStreamResponse { event })
}
