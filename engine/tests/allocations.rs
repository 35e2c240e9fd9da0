//! The steady decode state allocates nothing but the text and the token ids that it hands to the reader.
//!
//! A test binary of its own, for its allocator counts what the whole process does.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::alloc::System;

use bespoke_engine::domain::{Event, Generate, Request, SamplingParams};
use bespoke_engine::{Engine, KvDType};
use bespoke_testkit::{TinyDtype, TinyModel};
use futures::{StreamExt, executor::block_on};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What the reader gets to own with each token: a text and a list of token ids.
const OWNED: usize = 2;
/// A slow reader's channel takes memory for every 32 events.
const CHANNEL_EVENTS: usize = 32;

/// Counts the allocations of one request from its rendering to its end.
fn allocations(engine: &Engine, num_tokens: u32, params: SamplingParams) -> usize {
    let region = Region::new(GLOBAL);
    let mut generate = Generate::text("once");
    generate.sampling = params.try_into().unwrap();
    generate.max_new_tokens = num_tokens;
    generate.stop.ignore_end = true;
    let mut events = engine.generate(Request::try_from(generate).unwrap()).unwrap();
    let mut generated = 0;
    while let Some(event) = block_on(events.next()) {
        if let Event::Delta(delta) = event.unwrap() {
            generated += delta.token_ids.len();
        }
    }
    assert_eq!(generated, num_tokens as usize);
    let counted = region.change();
    counted.allocations + counted.reallocations
}

#[test]
fn a_token_costs_its_text_and_its_id() {
    let model = TinyModel { dtype: TinyDtype::Q8_0, head_dim: 32, context_length: 1024, ..TinyModel::default() };
    let folder = model.write_gguf().unwrap();
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let drawn = SamplingParams { temperature: 0.8, top_k: 20, top_p: 0.9, seed: Some(3), ..SamplingParams::default() };
    let penalised = SamplingParams { repetition_penalty: 1.1, ..drawn.clone() };
    for kv_dtype in [KvDType::F32, KvDType::Q8_0] {
        let engine = Engine::builder().model(folder.path()).num_threads(2).kv_dtype(kv_dtype).build().unwrap();
        for params in [&greedy, &drawn, &penalised] {
            // The first ones fill what is kept: caches, scratch, the pages of the blocks.
            for num_tokens in [600, 200] {
                allocations(&engine, num_tokens, params.clone());
            }
            let short = allocations(&engine, 200, params.clone());
            let long = allocations(&engine, 600, params.clone());
            let most = 400 * OWNED + 400 / CHANNEL_EVENTS + OWNED;
            assert!(long - short <= most, "{} allocations for 400 tokens, {kv_dtype}", long - short);
        }
    }
}
