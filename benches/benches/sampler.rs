//! The sampler on the logits of one place: `cargo bench -p bespoke-benches --bench sampler`.
//!
//! The vocabulary is that of SmolLM2 (49152). The logits rotate over more memory than the second-level cache holds, for in a
//! step they come from the output matrix. Elements per second are logits.

#![allow(missing_docs, reason = "`criterion_group!` makes an undocumented function")]

use std::hint::black_box;

use bespoke_domain::{Sampling, SamplingParams};
use bespoke_engine::probe::SamplerProbe;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const VOCAB_SIZE: usize = 49152;
/// 32 rows of 192 KiB: as many as a full step has, 6 MiB.
const NUM_ROWS: usize = 32;

/// Logits as a model's are: most of them near each other, few far above.
fn logits(row: usize) -> Vec<f32> {
    let hash = |token: usize| ((token * NUM_ROWS + row) as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11;
    let uniform = |token| (hash(token) as f64 + 0.5) / (1u64 << 53) as f64;
    // A logistic distribution: its tail is as long as that of a model sure of a few tokens.
    (0..VOCAB_SIZE).map(|token| (uniform(token) / (1.0 - uniform(token))).ln() as f32 * 1.5).collect()
}

fn sampler(c: &mut Criterion) {
    let base = SamplingParams::default();
    let cases = [
        ("greedy", SamplingParams { temperature: 0.0, ..base.clone() }),
        ("temperature", SamplingParams { temperature: 0.7, ..base.clone() }),
        ("top_k=40", SamplingParams { temperature: 0.7, top_k: 40, ..base.clone() }),
        ("top_p=0.9", SamplingParams { temperature: 0.7, top_p: 0.9, ..base.clone() }),
        ("top_k=40,top_p=0.9", SamplingParams { temperature: 0.7, top_k: 40, top_p: 0.9, ..base.clone() }),
        ("min_p=0.05", SamplingParams { temperature: 0.7, min_p: 0.05, ..base }),
    ];
    let rows: Vec<Vec<f32>> = (0..NUM_ROWS).map(logits).collect();
    let mut group = c.benchmark_group("sampler");
    group.throughput(Throughput::Elements(VOCAB_SIZE as u64));
    for (name, params) in cases {
        let params = Sampling::try_from(params).expect("parameters in range");
        let (mut probe, mut turn) = (SamplerProbe::default(), rows.iter().cycle());
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| probe.sample(&params, turn.next().expect("a cycle"), black_box(0.37)));
        });
    }
}

criterion_group!(benches, sampler);
criterion_main!(benches);
