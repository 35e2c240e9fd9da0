//! The steady decode state allocates nothing.
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

/// The channel takes memory for every 32 events that its reader lags behind.
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
fn a_token_costs_no_allocation() {
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
            let most = 400 / CHANNEL_EVENTS + 1;
            let more = long.saturating_sub(short);
            assert!(more <= most, "{more} allocations for 400 tokens, {kv_dtype}");
        }
    }
}
