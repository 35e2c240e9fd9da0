//! Matrix products and attention, each instruction set beside scalar: `cargo bench -p bespoke-benches --bench kernels`.
//!
//! Threads: `BESPOKE_BENCH_THREADS`, 2 by default. Elements per second of a product are multiply-adds, half of FLOP/s.
//! The shapes are those of SmolLM2-135M: attention, feed-forward and output projections.
//! A working set larger than the second-level cache: the benches rotate over copies of the weights.

#![allow(missing_docs, reason = "`criterion_group!` makes an undocumented function")]

use std::hint::black_box;
use std::time::Duration;

use bespoke_kernels::{
    Attention, AttentionRow, Bf16Matrix, Buffer, DType, Direction, Isa, Kernels, KvBuffer, KvDType, KvShape, Matrix,
    PackedMatrix, PackedProduct, Quantized, Roofline, Rounded,
};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// `(rows, cols)` of the weights; Q4_K needs whole blocks of 256 columns, so its columns are rounded up.
const SHAPES: [(usize, usize); 3] = [(576, 1536), (1536, 576), (49152, 576)];
const DTYPES: [DType; 4] = [DType::Q4_1, DType::Q8_0, DType::Q4K, DType::F32];
/// Bytes of weights to rotate over: more than both second-level caches together.
const WORKING_SET: usize = 8 << 20;
/// Bytes of packed weights to rotate over: a whole small model.
const PACKED_SET: usize = 96 << 20;

/// The scalar reference, and what this machine detects.
fn kernels() -> Vec<Kernels> {
    let num_threads = std::env::var("BESPOKE_BENCH_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let mut isas = vec![Isa::Scalar];
    isas.extend(Isa::ALL.into_iter().filter(|&isa| isa != Isa::Scalar && isa.is_available()));
    isas.into_iter().map(|isa| Kernels::with_isa(isa, num_threads).expect("an available instruction set")).collect()
}

/// Small numbers of a fixed pattern.
fn floats(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 1000) as f32 / 1000.0 - 0.5).collect()
}

/// Patterned bytes below 32: as high byte of a half-precision scale they are positive and finite.
fn matrix(dtype: DType, rows: usize, cols: usize) -> Matrix {
    if dtype == DType::F32 {
        return Matrix::from_f32(rows, cols, &floats(rows * cols)).expect("a matching length");
    }
    let len = rows * dtype.row_bytes(cols).expect("whole blocks");
    let data: Vec<u8> = (0..len).map(|i| (i * 31 % 32) as u8).collect();
    Matrix::new(dtype, rows, cols, Bytes::from(data)).expect("a matching length")
}

fn matmul(c: &mut Criterion) {
    let all = kernels();
    for n in [1, 256] {
        for dtype in DTYPES {
            for (rows, cols) in SHAPES {
                let cols = cols.next_multiple_of(dtype.block_len());
                let size = rows * dtype.row_bytes(cols).expect("whole blocks");
                let weights: Vec<Matrix> = (0..WORKING_SET.div_ceil(size)).map(|_| matrix(dtype, rows, cols)).collect();
                let (x, mut out) = (floats(n * cols), vec![0.0; n * rows]);
                let mut group = c.benchmark_group(format!("matmul/n={n}/{dtype}/{rows}x{cols}"));
                group.throughput(Throughput::Elements((n * rows * cols) as u64));
                for kernels in &all {
                    if kernels.isa() == Isa::Scalar && n * rows * cols > 1 << 28 {
                        continue;
                    }
                    let mut turn = weights.iter().cycle();
                    group.bench_function(BenchmarkId::from_parameter(kernels.isa()), |b| {
                        b.iter(|| kernels.matmul(&x, n, turn.next().expect("a cycle"), black_box(&mut out)));
                    });
                }
            }
        }
    }
}

/// `(rows, cols)` of the packed weights: feed-forward and output of SmolLM2-135M, and of Qwen2.5-1.5B.
const PACKED: [(DType, usize, usize); 7] = [
    (DType::Q4_0, 1536, 576),
    (DType::Q4_1, 1536, 576),
    (DType::Q8_0, 49152, 576),
    (DType::Q4K, 8960, 1536),
    (DType::Q4K, 1536, 8960),
    (DType::Q5K, 1536, 8960),
    (DType::Q6K, 1536, 8960),
];

/// Quantized activations times packed weights, and packing itself.
fn packed(c: &mut Criterion) {
    let all = kernels();
    for (dtype, rows, cols) in PACKED {
        let one = matrix(dtype, rows, cols);
        let size = rows * dtype.row_bytes(cols).expect("whole blocks");
        let copies: Vec<&Matrix> = std::iter::repeat_n(&one, PACKED_SET.div_ceil(size)).collect();
        let pool = all.last().expect("at least scalar").pool();
        let mut group = c.benchmark_group(format!("pack/{dtype}/{rows}x{cols}"));
        group.throughput(Throughput::Bytes((size * copies.len()) as u64));
        group.bench_function("all", |b| b.iter(|| PackedMatrix::pack_all(&copies, pool)));
        group.finish();
        let weights: Vec<PackedMatrix> = PackedMatrix::pack_all(&copies, pool).into_iter().flatten().collect();
        for n in [1, 8, 16, 32, 256] {
            let (x, mut out) = (floats(n * cols), vec![0.0; n * rows]);
            let mut group = c.benchmark_group(format!("packed/n={n}/{dtype}/{rows}x{cols}"));
            group.throughput(Throughput::Elements((n * rows * cols) as u64));
            for kernels in &all {
                if kernels.isa() == Isa::Scalar && n * rows * cols > 1 << 24 {
                    continue;
                }
                let mut quantized = Quantized::new();
                kernels.quantize(&x, n, &mut quantized);
                let mut turn = weights.iter().cycle();
                group.bench_function(BenchmarkId::from_parameter(kernels.isa()), |b| {
                    b.iter(|| {
                        let product = PackedProduct::new(turn.next().expect("a cycle"), black_box(&mut out));
                        kernels.matmul_packed(&quantized, &mut [product]);
                    });
                });
                if !kernels.has_tiles() {
                    continue;
                }
                let mut rounded = Rounded::new();
                kernels.round(&x, n, &mut rounded);
                group.bench_function(BenchmarkId::from_parameter(format!("{}-bf16", kernels.isa())), |b| {
                    b.iter(|| {
                        let product = PackedProduct::new(turn.next().expect("a cycle"), black_box(&mut out));
                        kernels.matmul_packed_bf16(&rounded, &mut [product]);
                    });
                });
            }
        }
    }
}

/// Gate and up of a prompt: in one go, and step by step.
fn gate(c: &mut Criterion) {
    let kernels = kernels().pop().expect("at least scalar");
    let (rows, cols) = (1536, 576);
    let one = matrix(DType::Q4_1, rows, cols);
    let copies = vec![&one; 2 * PACKED_SET.div_ceil(2 * rows * cols)];
    let weights: Vec<PackedMatrix> = PackedMatrix::pack_all(&copies, kernels.pool()).into_iter().flatten().collect();
    for n in [16, 64, 512] {
        let (mut rounded, mut out) = (Rounded::new(), Rounded::new());
        kernels.round(&floats(n * cols), n, &mut rounded);
        let [mut gate, mut up] = [(); 2].map(|()| Buffer::zeroed(n * rows));
        let mut group = c.benchmark_group(format!("gate/n={n}/{}/{rows}x{cols}", one.dtype()));
        group.throughput(Throughput::Elements((2 * n * rows * cols) as u64));
        let mut turn = weights.as_chunks::<2>().0.iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(format!("{}-bf16", kernels.isa())), |b| {
            b.iter(|| {
                let weights = turn.next().expect("a cycle").each_ref();
                kernels.matmul_packed_gated_bf16(&rounded, weights, black_box(&mut out));
            });
        });
        group.bench_function(BenchmarkId::from_parameter(format!("{}-bf16-apart", kernels.isa())), |b| {
            b.iter(|| {
                let [first, second] = turn.next().expect("a cycle");
                let products = &mut [PackedProduct::new(first, &mut gate), PackedProduct::new(second, &mut up)];
                kernels.matmul_packed_bf16(&rounded, products);
                kernels.swiglu(&mut gate, &up);
                kernels.round(&gate, n, black_box(&mut out));
            });
        });
    }
}

/// Activations of serving and of a training row, and gradients, through weights in bf16.
fn bf16(c: &mut Criterion) {
    let all = kernels();
    for (rows, cols) in SHAPES {
        let one = matrix(DType::Bf16, rows, cols);
        for direction in [Direction::Forward, Direction::Backward] {
            let copies: Vec<_> = std::iter::repeat_n(&one, PACKED_SET.div_ceil(2 * rows * cols)).collect();
            let weights = Bf16Matrix::pack_all(&copies, all.last().expect("at least scalar").pool());
            let (inputs, outputs) = match direction {
                Direction::Forward => (cols, rows),
                Direction::Backward => (rows, cols),
            };
            for n in [1, 16, 150] {
                let (x, mut out) = (floats(n * inputs), vec![0.0; n * outputs]);
                let mut group = c.benchmark_group(format!("bf16/{direction:?}/n={n}/{rows}x{cols}"));
                group.throughput(Throughput::Elements((n * rows * cols) as u64));
                for kernels in &all {
                    if kernels.isa() == Isa::Scalar && n * rows * cols > 1 << 24 {
                        continue;
                    }
                    let mut turn = weights.iter().cycle();
                    group.bench_function(BenchmarkId::from_parameter(kernels.isa()), |b| {
                        b.iter(|| {
                            let w = (turn.next().expect("a cycle"), direction);
                            kernels.matmul_bf16(&x, w, false, black_box(&mut out));
                        });
                    });
                }
            }
        }
    }
}

fn quantize(c: &mut Criterion) {
    let cols = 576;
    for n in [1, 256] {
        let (x, weight) = (floats(n * cols), floats(cols));
        let mut group = c.benchmark_group(format!("rms_norm_quantize/n={n}/{cols}"));
        group.throughput(Throughput::Elements((n * cols) as u64));
        for kernels in &kernels() {
            let mut quantized = Quantized::new();
            group.bench_function(BenchmarkId::from_parameter(kernels.isa()), |b| {
                b.iter(|| kernels.rms_norm_quantize(black_box(&x), &weight, 1e-5, &mut quantized));
            });
        }
    }
}

/// Prints what the machine can do at most; 100 MiB of packed weights are read at the speed of memory or of a large
/// third-level cache.
#[allow(clippy::print_stdout, reason = "a bench reports on standard output")]
fn roofline(_: &mut Criterion) {
    let roofline = Roofline::measure(&kernels().pop().expect("at least scalar"));
    let macs = roofline.integer_macs_per_s.map_or("none".to_owned(), |macs| format!("{:.0} GMAC/s", macs / 1e9));
    println!("roofline: read {:.1} GB/s with huge pages, 8-bit integers {macs}", roofline.read_bytes_per_s / 1e9);
}

fn attention(c: &mut Criterion) {
    let shape = KvShape { block_tokens: 16, kv_heads: 3, head_dim: 64 };
    let (heads, keys) = (9, 512);
    let blocks: Vec<u32> = (0..(keys / shape.block_tokens) as u32).rev().collect();
    for (num_rows, dtype) in [1, 64, 512].into_iter().flat_map(|rows| KvDType::ALL.map(|dtype| (rows, dtype))) {
        let makes: [fn(KvDType, KvShape, usize) -> KvBuffer; 2] = [KvBuffer::keys, KvBuffer::values];
        let [k, v] = makes.map(|make| {
            let mut buffer = make(dtype, shape, blocks.len());
            let row = floats(shape.kv_heads * shape.head_dim);
            (0..keys).for_each(|place| buffer.write(place / shape.block_tokens, place % shape.block_tokens, &row));
            buffer
        });
        let rows = vec![AttentionRow { blocks: &blocks, start: 0, end: keys }; num_rows];
        let q = floats(num_rows * heads * shape.head_dim);
        let mut out = vec![0.0; q.len()];
        let mut group = c.benchmark_group(format!("attention/rows={num_rows}/keys={keys}/{dtype}"));
        // Two products per query, key and element.
        group.throughput(Throughput::Elements((2 * q.len() * keys) as u64));
        for kernels in &kernels() {
            let args = Attention { q: &q, k: &k, v: &v, heads, scale: 0.125, rows: &rows };
            group.bench_function(BenchmarkId::from_parameter(kernels.isa()), |b| {
                b.iter(|| kernels.attention(args, black_box(&mut out)));
            });
            if kernels.has_tiles() {
                group.bench_function(BenchmarkId::from_parameter(format!("{}-bf16", kernels.isa())), |b| {
                    b.iter(|| kernels.attention_bf16(args, black_box(&mut out)));
                });
            }
        }
    }
}

/// Answers of sixteen sequences, all of whose keys are their own or three quarters of which are those of all.
fn shared_prefix(c: &mut Criterion) {
    let shape = KvShape { block_tokens: 16, kv_heads: 3, head_dim: 64 };
    let (heads, num_rows, num_blocks) = (9, 16, 32);
    let makes: [fn(KvDType, KvShape, usize) -> KvBuffer; 2] = [KvBuffer::keys, KvBuffer::values];
    let [k, v] = makes.map(|make| {
        let mut buffer = make(KvDType::F16, shape, num_rows * num_blocks);
        let row = floats(shape.kv_heads * shape.head_dim);
        (0..num_rows * num_blocks * 16).for_each(|place| buffer.write(place / 16, place % 16, &row));
        buffer
    });
    let q = floats(num_rows * heads * shape.head_dim);
    let mut out = vec![0.0; q.len()];
    for (name, num_shared) in [("none", 0), ("three quarters", num_blocks * 3 / 4)] {
        let table = |row: usize| -> Vec<u32> {
            (0..num_blocks).map(|i| if i < num_shared { i } else { row * num_blocks + i } as u32).collect()
        };
        let tables: Vec<Vec<u32>> = (0..num_rows).map(table).collect();
        let rows: Vec<AttentionRow<'_>> =
            tables.iter().map(|blocks| AttentionRow { blocks, start: 0, end: num_blocks * 16 }).collect();
        let mut group = c.benchmark_group(format!("shared prefix/{name}"));
        group.throughput(Throughput::Elements((2 * q.len() * num_blocks * 16) as u64));
        for kernels in &kernels() {
            let args = Attention { q: &q, k: &k, v: &v, heads, scale: 0.125, rows: &rows };
            group.bench_function(BenchmarkId::from_parameter(kernels.isa()), |b| {
                b.iter(|| kernels.attention(args, black_box(&mut out)));
            });
        }
    }
}

fn pool(c: &mut Criterion) {
    let kernels = kernels().pop().expect("at least scalar");
    c.bench_function("pool/empty run", |b| b.iter(|| kernels.pool().run(2, |task| _ = black_box(task))));
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300));
    targets = roofline, pool, quantize, packed, gate, bf16, attention, shared_prefix, matmul
}
criterion_main!(benches);
