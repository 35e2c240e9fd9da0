//! Arbitrary valid values of the domain.

use std::time::Duration;

use bespoke_domain::{
    Choice, Continuation, Delta, Event, FinishReason, Finished, Generate, Logprobs, MatchedStop, Message, Persona,
    PersonaId, PersonaSource, PrefixCache, Priority, Prompt, PromptSpec, Request, RequestId, Role, Sampling,
    SamplingParams, Score, ScoreRequest, Span, SpanKind, Started, Stop, Template, Timings, TokenId, TokenLogprob,
    TopLogprob, Usage,
};
use bespoke_proto::{Generated, GeneratedText, RenderedPrompt, TIME_LIMIT_MS_MAX};
use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
};

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), ".{0,20}", "(?s).{1,20}"]
}

fn ids() -> impl Strategy<Value = Vec<TokenId>> {
    vec(any::<TokenId>(), 1..6)
}

fn message() -> impl Strategy<Value = Message> {
    let role = prop::sample::select(vec![Role::System, Role::User, Role::Assistant]);
    (role, text()).prop_map(|(role, content)| Message { role, content })
}

fn template() -> impl Strategy<Value = Template> {
    prop::sample::select(vec![Template::Paper, Template::Chat, Template::None])
}

fn persona() -> impl Strategy<Value = Persona> {
    " ?[a-zé]{1,20} ?".prop_filter_map("blank", |text| Persona::new(text).ok())
}

fn persona_source() -> impl Strategy<Value = PersonaSource> {
    prop_oneof![
        Just(PersonaSource::None),
        Just(PersonaSource::System),
        persona().prop_map(PersonaSource::Text),
        ".{1,20}".prop_filter_map("id", |id| PersonaId::new(id).ok().map(PersonaSource::Id)),
    ]
}

fn spec() -> impl Strategy<Value = PromptSpec> {
    let prompt = prop_oneof![text().prop_map(Prompt::Text), vec(message(), 1..4).prop_map(Prompt::Messages)];
    let cache = (any::<bool>(), ".{0,40}").prop_map(|(off, salt)| PrefixCache { off, salt });
    let spoken = (prompt, persona_source(), option::of(template()), any::<bool>(), text(), cache);
    let spoken = spoken.prop_map(|(prompt, persona, template, in_prompt, response_prefix, prefix_cache)| PromptSpec {
        persona_in_prompt: in_prompt && template == Some(Template::Paper),
        prompt,
        persona,
        template,
        response_prefix,
        prefix_cache,
    });
    let tokens = (ids(), option::of(Just(Template::None)))
        .prop_map(|(ids, template)| PromptSpec { template, ..PromptSpec::new(Prompt::Tokens(ids)) });
    prop_oneof![4 => spoken, 1 => tokens]
}

fn sampling() -> impl Strategy<Value = Sampling> {
    let shape = (0.0..=100.0_f32, any::<u32>(), 0.001..=1.0_f32, 0.0..=1.0_f32);
    let penalties = (0.001..=10.0_f32, -2.0..=2.0_f32, -2.0..=2.0_f32);
    let bias = btree_map(any::<TokenId>(), -100.0..=100.0_f32, 0..4);
    (shape, penalties, bias, option::of(any::<u64>())).prop_map(|(shape, penalties, logit_bias, seed)| {
        let (temperature, top_k, top_p, min_p) = shape;
        let (repetition_penalty, frequency_penalty, presence_penalty) = penalties;
        let params = SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            logit_bias,
            seed,
        };
        Sampling::try_from(params).expect("invariant: the strategy keeps to the ranges")
    })
}

fn stop() -> impl Strategy<Value = Stop> {
    (vec(".{1,9}", 0..4), vec(any::<TokenId>(), 0..4), any::<bool>()).prop_map(|(strings, tokens, ignore_end)| Stop {
        strings,
        tokens,
        ignore_end,
    })
}

fn request_id() -> impl Strategy<Value = RequestId> {
    "[!-~]{1,128}".prop_map(|id| RequestId::new(id).expect("invariant: printable ASCII"))
}

fn priority() -> impl Strategy<Value = Priority> {
    (-100..=100).prop_map(|priority| Priority::new(priority).expect("invariant: in range"))
}

pub(crate) fn request() -> impl Strategy<Value = Request> {
    let lengths = (1..=u32::MAX).prop_flat_map(|max| (Just(max), 0..=max));
    let logprobs = (any::<bool>(), 0..=Request::TOP_LOGPROBS_MAX, any::<bool>())
        .prop_map(|(sampled, top, prompt)| Logprobs { sampled, top, prompt });
    let limit = option::of((1..=TIME_LIMIT_MS_MAX).prop_map(|ms| Duration::from_millis(ms.into())));
    let rest = (any::<bool>(), 1..=Request::N_MAX, priority(), limit, 0..=Request::DRAFT_TOKENS_MAX);
    let parts = (option::of(request_id()), spec(), sampling(), lengths, stop(), logprobs, rest);
    parts.prop_map(|(request_id, spec, sampling, (max_new_tokens, min_new_tokens), stop, logprobs, rest)| {
        let (echo, n, priority, time_limit, draft_tokens_max) = rest;
        let generate = Generate {
            request_id,
            spec,
            sampling,
            max_new_tokens,
            min_new_tokens,
            stop,
            logprobs,
            echo,
            n,
            priority,
            time_limit,
            draft_tokens_max,
        };
        Request::try_from(generate).expect("invariant: the strategy keeps to the rules")
    })
}

pub(crate) fn score_request() -> impl Strategy<Value = ScoreRequest> {
    let continuation = prop_oneof![".{1,20}".prop_map(Continuation::Text), ids().prop_map(Continuation::Tokens)];
    (option::of(request_id()), spec(), continuation, 0..=20_u32, priority()).prop_map(
        |(request_id, spec, continuation, top, priority)| ScoreRequest {
            request_id,
            spec,
            continuation,
            top,
            priority,
        },
    )
}

fn logprob() -> impl Strategy<Value = f32> {
    prop_oneof![9 => -1e30..=0.0_f32, 1 => Just(f32::NEG_INFINITY)]
}

fn logprobs() -> impl Strategy<Value = Vec<TokenLogprob>> {
    let bytes = || vec(any::<u8>(), 0..5);
    let top =
        (any::<TokenId>(), bytes(), logprob()).prop_map(|(token, bytes, logprob)| TopLogprob { token, bytes, logprob });
    let entry = (any::<TokenId>(), bytes(), option::of(logprob()), vec(top, 0..3))
        .prop_map(|(token, bytes, logprob, top)| TokenLogprob { token, bytes, logprob, top });
    vec(entry, 0..4)
}

fn started() -> impl Strategy<Value = Started> {
    let counts = (any::<u32>(), any::<u32>(), any::<u64>());
    (request_id(), text(), text(), option::of(persona()), counts).prop_map(
        |(request_id, model_digest, template_hash, persona, (prompt_tokens, cached_tokens, seed))| Started {
            request_id,
            model_digest,
            template_hash,
            persona,
            prompt_tokens,
            cached_tokens,
            seed,
        },
    )
}

fn delta() -> impl Strategy<Value = Delta> {
    (any::<u32>(), text(), vec(any::<TokenId>(), 0..5), logprobs(), logprobs()).prop_map(
        |(choice, text, token_ids, logprobs, prompt_logprobs)| Delta {
            choice,
            text: text.into(),
            token_ids: token_ids.into(),
            logprobs,
            prompt_logprobs,
        },
    )
}

fn choice() -> impl Strategy<Value = Choice> {
    let reasons = [FinishReason::EndOfText, FinishReason::Stop, FinishReason::Length, FinishReason::TimeLimit];
    let stop = prop_oneof![text().prop_map(MatchedStop::String), any::<TokenId>().prop_map(MatchedStop::Token)];
    (any::<u32>(), prop::sample::select(reasons.to_vec()), option::of(stop), any::<u32>()).prop_map(
        |(choice, reason, matched_stop, generated_tokens)| Choice { choice, reason, matched_stop, generated_tokens },
    )
}

fn usage() -> impl Strategy<Value = Usage> {
    any::<[u32; 5]>().prop_map(|[prompt_tokens, cached_tokens, generated_tokens, drafted_tokens, accepted_tokens]| {
        Usage { drafted_tokens, accepted_tokens, prompt_tokens, cached_tokens, generated_tokens }
    })
}

fn timings() -> impl Strategy<Value = Timings> {
    // To 26 days, the longest time that is read from the wire.
    let time = || (0..=1_u64 << 51).prop_map(Duration::from_nanos);
    (time(), time(), time()).prop_map(|(queue, prefill, decode)| Timings { queue, prefill, decode })
}

pub(crate) fn event() -> impl Strategy<Value = Event> {
    let finished = (vec(choice(), 0..4), usage(), timings())
        .prop_map(|(choices, usage, timings)| Event::Finished(Finished { choices, usage, timings }));
    prop_oneof![started().prop_map(Event::Started), delta().prop_map(Event::Delta), finished]
}

pub(crate) fn generated() -> impl Strategy<Value = Generated> {
    let choice = (delta(), choice()).prop_map(|(delta, end)| GeneratedText {
        text: delta.text.into(),
        token_ids: delta.token_ids.into_vec(),
        logprobs: delta.logprobs,
        end,
    });
    (started(), vec(choice, 0..3), usage(), timings(), logprobs()).prop_map(
        |(started, choices, usage, timings, prompt_logprobs)| Generated {
            started,
            choices,
            usage,
            timings,
            prompt_logprobs,
        },
    )
}

pub(crate) fn score() -> impl Strategy<Value = Score> {
    (logprobs(), -1e30..=0.0_f64, any::<u32>()).prop_map(|(tokens, total_logprob, prompt_tokens)| Score {
        tokens,
        total_logprob,
        prompt_tokens,
    })
}

pub(crate) fn rendered_prompt() -> impl Strategy<Value = RenderedPrompt> {
    let kind = prop::sample::select(vec![SpanKind::Text, SpanKind::Control]);
    let span = (".{1,9}", kind, any::<bool>()).prop_map(|(text, kind, trained)| Span { text, kind, trained });
    (vec(span, 0..4), vec(any::<(TokenId, bool)>(), 0..6), template(), option::of(persona()), text()).prop_map(
        |(spans, tokens, template, persona, template_hash)| RenderedPrompt {
            spans,
            tokens,
            template,
            persona,
            template_hash,
        },
    )
}
