//! Training, op by op and as a whole step, each instruction set beside scalar: `cargo bench -p bespoke-benches --bench training`.
//!
//! Threads: `BESPOKE_BENCH_THREADS`, 2 by default. The shapes are those of SmolLM2-135M and of one row of BeaverTails: 150 tokens.
//! Elements per second of a product are multiply-adds, half of FLOP/s; those of a step are tokens. Weights take turns, so that
//! they come from memory as in a step. Products in bf16 are in the bench `kernels`.

#![allow(missing_docs, reason = "`criterion_group!` makes an undocumented function")]

use std::hint::black_box;
use std::time::Duration;

use bespoke_kernels::{
    Attended, Bf16Matrix, CausalAttention, DType, Direction, Isa, Kernels, LowRank, LowRankGradients, LowRankInputs,
    Mask, Matrix, Product, ProductLosses, Right, Rounded, RowLosses, Tree, View,
};
use bespoke_model::ModelSource;
use bespoke_testkit::TinyModel;
use bespoke_trainer::{Adapted, Base, BaseDtype, Batch, Compute, Lora, LoraShape, Numbers, Pass};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const TOKENS: usize = 150;
const HIDDEN: usize = 576;
const INTERMEDIATE: usize = 1536;
const VOCAB: usize = 49152;
const RANK: usize = 16;
/// Bytes of weights to rotate over: more than both second-level caches together.
const WORKING_SET: usize = 16 << 20;
/// Multiply-adds of a bench that scalar code is spared: they take it longer than all others together.
const SCALAR_MAX: usize = 1 << 28;

fn num_threads() -> usize {
    std::env::var("BESPOKE_BENCH_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(2)
}

/// The scalar reference, and what this machine detects.
fn kernels() -> Vec<Kernels> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    isas.map(|isa| Kernels::with_isa(isa, num_threads()).expect("an available instruction set")).collect()
}

/// Small numbers of a fixed pattern that repeats itself.
fn floats(len: usize) -> Vec<f32> {
    const PERIOD: usize = 1000;
    let pattern: Vec<f32> = (0..PERIOD).map(|i| (i * 7919 % PERIOD) as f32 / PERIOD as f32 - 0.5).collect();
    let mut values = pattern.repeat(len.div_ceil(PERIOD));
    values.truncate(len);
    values
}

/// Such numbers as weights.
fn matrix(dtype: DType, rows: usize, cols: usize) -> Matrix {
    let pattern = floats(cols).into_iter().flat_map(|value| match dtype {
        DType::Bf16 => value.to_le_bytes()[2..].to_vec(),
        _ => value.to_le_bytes().to_vec(),
    });
    let row: Vec<u8> = pattern.collect();
    Matrix::new(dtype, rows, cols, Bytes::from(row.repeat(rows))).expect("a matching length")
}

/// Runs `product` with every instruction set that is fast enough for it.
fn products(c: &mut Criterion, name: &str, macs: usize, mut product: impl FnMut(&Kernels)) {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(macs as u64));
    for kernels in kernels() {
        if kernels.isa() == Isa::Scalar && macs > SCALAR_MAX {
            continue;
        }
        group.bench_function(BenchmarkId::from_parameter(kernels.isa()), |b| b.iter(|| product(&kernels)));
    }
}

/// Activations and gradients through frozen weights.
fn frozen(c: &mut Criterion) {
    for (rows, cols) in [(HIDDEN, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE), (VOCAB, HIDDEN)] {
        for dtype in [DType::F32, DType::Bf16] {
            let size = rows * dtype.row_bytes(cols).expect("whole blocks");
            let weights: Vec<Matrix> = (0..WORKING_SET.div_ceil(size)).map(|_| matrix(dtype, rows, cols)).collect();
            let macs = TOKENS * rows * cols;
            let (x, mut out) = (floats(TOKENS * cols), vec![0.0; TOKENS * rows]);
            let mut turn = weights.iter().cycle();
            products(c, &format!("forward/{dtype}/{rows}x{cols}"), macs, |kernels| {
                let right = Right::Transposed(turn.next().expect("a cycle"));
                let left = View::new(&x, TOKENS, cols);
                kernels.product(&Product { left, right, accumulate: false }, black_box(&mut out));
            });
            let (d_out, mut d_x) = (out, vec![0.0; TOKENS * cols]);
            products(c, &format!("d_x/{dtype}/{rows}x{cols}"), macs, |kernels| {
                let right = Right::Weights(turn.next().expect("a cycle"));
                let left = View::new(&d_out, TOKENS, rows);
                kernels.product(&Product { left, right, accumulate: false }, black_box(&mut d_x));
            });
        }
    }
}

/// The four kinds of products with factors.
fn factors(c: &mut Criterion) {
    let (x, a, low) = (floats(TOKENS * HIDDEN), floats(RANK * HIDDEN), floats(TOKENS * RANK));
    let x = View::new(&x, TOKENS, HIDDEN);
    let (a, b) = (View::new(&a, RANK, HIDDEN), View::new(&a, HIDDEN, RANK));
    let low = View::new(&low, TOKENS, RANK);
    for (name, left, right) in [
        ("x A^T", x, a.transposed()),
        ("low B^T", low, b.transposed()),
        ("d^T low", x.transposed(), low),
        ("d_low^T x", low.transposed(), x),
    ] {
        let mut out = vec![0.0; left.rows() * right.cols()];
        products(c, &format!("factors/{name}"), TOKENS * HIDDEN * RANK, |kernels| {
            kernels.product(&Product { left, right: Right::Floats(right), accumulate: true }, black_box(&mut out));
        });
    }
}

/// Factors of one module forward and backward, with dropout: in bf16 as one kernel, against the sum of [`factors`] and [`dropout`].
fn low_rank(c: &mut Criterion) {
    let (x, a, d_out) = (floats(TOKENS * HIDDEN), floats(RANK * HIDDEN), floats(TOKENS * HIDDEN));
    let (mut out, mut d_x, mut low) = (d_out.clone(), d_out.clone(), vec![0.0; TOKENS * RANK]);
    let (mut of_a, mut of_b) = (a.clone(), a.clone());
    let mask = Some(Mask { rate: 0.05, key: 7 });
    products(c, "low_rank", 6 * TOKENS * HIDDEN * RANK, |kernels| {
        let factors = LowRank { a: &a, b: &a, rank: RANK, scale: 2.0, mask };
        kernels.low_rank(&factors, &x, &mut low, black_box(&mut out));
        let inputs = LowRankInputs { x: &x, low: &low, d_out: &d_out };
        let gradients = LowRankGradients { a: &mut of_a, b: &mut of_b };
        kernels.low_rank_backward(&factors, &inputs, Some(black_box(&mut d_x)), gradients);
    });
}

fn attention(c: &mut Criterion) {
    let (heads, kv_heads, head_dim) = (9, 3, 64);
    for tokens in [TOKENS, 512] {
        let [q, d_out] = [(); 2].map(|()| floats(tokens * heads * head_dim));
        let [k, v] = [(); 2].map(|()| floats(tokens * kv_heads * head_dim));
        let trees = [Tree::sequence(0..tokens)];
        let (q, k, v) = (q.as_slice(), k.as_slice(), v.as_slice());
        for bf16 in [false, true] {
            let scale = 0.125;
            let args = CausalAttention { q, k, v, heads, kv_heads, head_dim, scale, window: None, trees: &trees, bf16 };
            let (mut out, mut log_sums) = (vec![0.0; q.len()], vec![0.0; tokens * heads]);
            let mut gradients = [q, k, v].map(|x| vec![0.0; x.len()]);
            let macs = tokens * tokens / 2 * heads * head_dim;
            let name = format!("attention{}/{tokens}", if bf16 { "_bf16" } else { "" });
            products(c, &format!("{name}/forward"), 2 * macs, |kernels| {
                kernels.causal_attention(&args, black_box(&mut out), &mut log_sums);
            });
            products(c, &format!("{name}/backward"), 5 * macs, |kernels| {
                let attended = Attended { out: &out, log_sums: &log_sums, d_out: &d_out };
                let [d_q, d_k, d_v] = &mut gradients;
                kernels.causal_attention_backward(&args, &attended, black_box([d_q, d_k, d_v]));
            });
        }
    }
}

/// The input of an adapter through its dropout; elements are those of the input.
fn dropout(c: &mut Criterion) {
    let (x, mut out) = (floats(TOKENS * HIDDEN), vec![0.0; TOKENS * HIDDEN]);
    products(c, "dropout", x.len(), |kernels| {
        kernels.dropout(&Mask { rate: 0.05, key: 7 }, &x, false, black_box(&mut out));
    });
}

/// A feed-forward block in bf16 from its norm to the input of its last product and back, in one kernel and step by step.
fn gated(c: &mut Criterion) {
    let shapes = [(INTERMEDIATE, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)];
    let matrices = shapes.map(|(rows, cols)| matrix(DType::Bf16, rows, cols));
    let matrices: Vec<&Matrix> = (0..WORKING_SET / (2 * INTERMEDIATE * HIDDEN)).map(|i| &matrices[i % 3]).collect();
    let macs = TOKENS * INTERMEDIATE * HIDDEN;
    let (x, wide) = (floats(TOKENS * HIDDEN), TOKENS * INTERMEDIATE);
    for kernels in kernels().into_iter().filter(|kernels| kernels.isa() != Isa::Scalar) {
        let weights = Bf16Matrix::pack_all(&matrices, kernels.pool());
        let mut turn = weights.chunks_exact(3).cycle();
        let (mut rounded, mut kept, mut out) = (Rounded::new(), [(); 2].map(|()| Rounded::new()), Rounded::new());
        let [mut gate, mut up, mut d_wide] = [(); 3].map(|()| vec![0.0; wide]);
        kernels.round(&x, TOKENS, &mut rounded);
        let mut group = c.benchmark_group("gated");
        group.throughput(Throughput::Elements(3 * macs as u64));
        group.bench_function(BenchmarkId::new("one kernel", kernels.isa()), |b| {
            b.iter(|| {
                let weights = turn.next().expect("a cycle");
                kernels.gated_rounded(&rounded, [&weights[0], &weights[1]], &mut kept, black_box(&mut out));
                kernels.gated_backward(&rounded, &weights[2], black_box(&mut kept));
            });
        });
        group.bench_function(BenchmarkId::new("step by step", kernels.isa()), |b| {
            b.iter(|| {
                let weights = turn.next().expect("a cycle");
                kernels.matmul_rounded(&rounded, (&weights[0], Direction::Forward), false, &mut gate);
                kernels.matmul_rounded(&rounded, (&weights[1], Direction::Forward), false, &mut up);
                kernels.gate_rounded((&gate, &up), TOKENS, &mut kept, black_box(&mut out));
                kernels.matmul_rounded(&rounded, (&weights[2], Direction::Backward), false, &mut d_wide);
                kernels.gate_backward(&d_wide, &mut kept, black_box([&mut gate, &mut up]));
            });
        });
    }
}

/// Cross-entropy over logits with its gradient; elements are logits.
fn cross_entropy(c: &mut Criterion) {
    let fresh = floats(TOKENS * VOCAB);
    let targets: Vec<u32> = (0..TOKENS as u32).collect();
    let (mut logits, mut logprobs) = (fresh.clone(), vec![0.0; TOKENS]);
    let mut group = c.benchmark_group("row_losses");
    group.throughput(Throughput::Elements(fresh.len() as u64));
    for kernels in kernels() {
        group.bench_function(BenchmarkId::from_parameter(kernels.isa()), |b| {
            b.iter(|| {
                let (logits, logprobs) = (black_box(&mut logits), &mut logprobs);
                kernels.row_losses(RowLosses { logits, targets: &targets, logprobs, gradient: true });
            });
        });
    }
}

/// The head in bf16, from rows to their gradients, in one kernel and step by step; elements are logits.
fn head(c: &mut Criterion) {
    let (matrix, x) = (matrix(DType::Bf16, VOCAB, HIDDEN), floats(TOKENS * HIDDEN));
    let targets: Vec<u32> = (0..TOKENS as u32).collect();
    for kernels in kernels().into_iter().filter(|kernels| kernels.isa() != Isa::Scalar) {
        let w = Bf16Matrix::pack_all(&[&matrix], kernels.pool()).pop().expect("one matrix");
        let [mut rounded, mut d_logits] = [(); 2].map(|()| Rounded::new());
        kernels.round(&x, TOKENS, &mut rounded);
        let (mut logits, mut logprobs, mut d_x) = (vec![0.0; TOKENS * VOCAB], vec![0.0; TOKENS], x.clone());
        let mut group = c.benchmark_group("head");
        group.throughput(Throughput::Elements(logits.len() as u64));
        group.bench_function(BenchmarkId::new("one kernel", kernels.isa()), |b| {
            b.iter(|| {
                let (x, logprobs, gradient) = (&rounded, &mut logprobs[..], Some(black_box(&mut d_x[..])));
                kernels.product_losses(ProductLosses { x, w: &w, targets: &targets, logprobs, gradient });
            });
        });
        group.bench_function(BenchmarkId::new("step by step", kernels.isa()), |b| {
            b.iter(|| {
                kernels.matmul_rounded(&rounded, (&w, Direction::Forward), false, &mut logits);
                let (logits, logprobs) = (&mut logits, &mut logprobs);
                kernels.row_losses(RowLosses { logits, targets: &targets, logprobs, gradient: true });
                kernels.round(logits, TOKENS, &mut d_logits);
                kernels.matmul_rounded(&d_logits, (&w, Direction::Backward), false, black_box(&mut d_x));
            });
        });
    }
}

/// Forward and backward pass of a tiny model with factors on all modules; `KERNELS=scalar` gives the scalar line.
fn step(c: &mut Criterion) {
    let folder = TinyModel::default().write_hf().expect("a tiny model");
    let source = ModelSource::open(folder.path()).expect("a model");
    let mut group = c.benchmark_group("step");
    for (name, dtype, compute, checkpointing) in [
        ("f32", BaseDtype::F32, Compute::F32, false),
        ("bf16 base", BaseDtype::Bf16, Compute::F32, false),
        ("bf16 products", BaseDtype::Auto, Compute::Bf16, false),
        ("f32, checkpointing", BaseDtype::F32, Compute::F32, true),
    ] {
        let numbers = Numbers { dtype, compute };
        let base = Base::load(&source, numbers, num_threads(), TOKENS).expect("a base");
        let shape = LoraShape { r: RANK, alpha: 32.0, rslora: false, target_modules: vec!["all-linear".to_owned()] };
        let lora = Lora::new(&base.config, shape, 1).expect("an adapter");
        let vocab = base.config.vocab_size as u32;
        let mut batch = Batch::default();
        let tokens: Vec<u32> = (0..TOKENS as u32).map(|i| i * 7 % vocab).collect();
        batch.push_sequence(&tokens, &[true; TOKENS]);
        let mut pass = Pass::new(&base, checkpointing);
        let mut gradients = vec![0.0; lora.values.len()];
        group.throughput(Throughput::Elements(TOKENS as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let logprobs = pass.forward(&batch, Some(Adapted::plain(&lora)));
                pass.backward(&batch, Adapted::plain(&lora), &logprobs, black_box(&mut gradients));
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300));
    targets = frozen, factors, low_rank, attention, gated, dropout, cross_entropy, head, step
}
criterion_main!(benches);
