//! Planning of steps in which all sequences decode: `cargo bench -p bespoke-benches --bench scheduler`.
//!
//! Elements per second are planned tokens. The working set is the scheduler's own and fits in the second-level cache.

#![allow(missing_docs, reason = "`criterion_group!` makes an undocumented function")]

use bespoke_engine::probe::SchedulerProbe;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const PROMPT_TOKENS: usize = 200;
/// Steps of one measurement: an answer.
const STEPS: usize = 64;

fn scheduler(c: &mut Criterion) {
    let mut group = c.benchmark_group("scheduler/decode");
    for num_sequences in [1, 16, 32, 256] {
        group.throughput(Throughput::Elements((num_sequences * STEPS) as u64));
        group.bench_function(BenchmarkId::from_parameter(num_sequences), |b| {
            b.iter_batched(
                || SchedulerProbe::decoding(num_sequences, PROMPT_TOKENS, 2 * STEPS),
                |mut probe| {
                    let planned: usize = (0..STEPS).map(|_| probe.turn()).sum();
                    assert_eq!(planned, num_sequences * STEPS);
                    probe
                },
                BatchSize::LargeInput,
            );
        });
    }
}

criterion_group!(benches, scheduler);
criterion_main!(benches);
