//! One decode step of a tiny model, from rows to logits: `cargo bench -p bespoke-benches --bench step`.
//!
//! Threads: `BESPOKE_BENCH_THREADS`, 2 by default; `BESPOKE_KERNELS=scalar` gives the reference line. Elements per second are
//! tokens. The model has 10 MB of weights, more than the second-level cache; what a step costs beside its matrix products
//! shows here. `bespoke-engine bench` measures real models.

#![allow(missing_docs, reason = "`criterion_group!` makes an undocumented function")]

use std::hint::black_box;

use bespoke_model::{KvCache, KvDType, LoadOptions, Model, Step, StepRow, Workspace};
use bespoke_testkit::TinyModel;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const BLOCK_TOKENS: usize = 16;
/// Tokens that each sequence has before the measured one.
const DEPTH: usize = 127;

fn model() -> Model {
    let tiny = TinyModel {
        hidden_size: 256,
        intermediate_size: 768,
        head_dim: 32,
        num_layers: 3,
        num_heads: 8,
        num_kv_heads: 4,
        ..TinyModel::default()
    };
    let folder = tiny.write_hf().expect("a folder for the model");
    let num_threads = std::env::var("BESPOKE_BENCH_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    Model::load(folder.path(), LoadOptions { num_threads, ..LoadOptions::default() }).expect("a model that loads")
}

fn decode(c: &mut Criterion) {
    let model = model();
    let mut group = c.benchmark_group("step/decode");
    for batch in [1, 16] {
        let blocks_each = (DEPTH + 1).div_ceil(BLOCK_TOKENS);
        let blocks: Vec<u32> = (0..(batch * blocks_each) as u32).collect();
        let tables: Vec<&[u32]> = blocks.chunks(blocks_each).collect();
        let mut cache =
            KvCache::new(model.config(), KvDType::F32, blocks.len(), BLOCK_TOKENS).expect("floats fit any head");
        let mut workspace = Workspace::new(&model, batch, batch);
        let rows_at = |position: usize| -> Vec<StepRow> {
            let row = |sequence: u32| StepRow { token: 40, position: position as u32, sequence, wants_logits: true };
            (0..batch as u32).map(row).collect()
        };
        for position in 0..DEPTH {
            let step = Step { rows: &rows_at(position), num_answer_rows: batch, block_tables: &tables };
            model.forward(&step, &mut cache, &mut workspace).expect("a step that fits");
        }
        let rows = rows_at(DEPTH);
        let step = Step { rows: &rows, num_answer_rows: rows.len(), block_tables: &tables };
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(BenchmarkId::from_parameter(batch), |b| {
            b.iter(|| model.forward(black_box(&step), &mut cache, &mut workspace).expect("a step that fits"));
        });
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
