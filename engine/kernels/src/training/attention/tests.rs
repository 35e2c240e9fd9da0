//! Attention over trees: outputs and gradients against double precision, bf16 against single precision, and the same bits in any batch.

use super::{Attended, CausalAttention, Segment, Tree};
use crate::samples::{Random, available_isas, bits};
use crate::training::tests::assert_near;
use crate::{Isa, Kernels};

/// A prompt with two answers, a plain sequence longer than a block of queries, and a lone row.
fn trees() -> Vec<Tree> {
    let segment = |rows, prefix| Segment { rows, prefix };
    let pair = Tree { segments: vec![segment(0..5, 0..0), segment(5..9, 0..5), segment(9..16, 0..5)] };
    vec![pair, Tree::sequence(16..75), Tree::sequence(75..76)]
}

const ROWS: usize = 76;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 6;
const SCALE: f32 = 0.4;

fn context(row: usize, window: Option<usize>) -> Vec<usize> {
    let trees = trees();
    let segment = trees.iter().flat_map(|tree| &tree.segments).find(|s| s.rows.contains(&row)).unwrap();
    let seen: Vec<usize> = segment.prefix.clone().chain(segment.rows.start..row + 1).collect();
    seen[window.map_or(0, |window| seen.len().saturating_sub(window))..].to_vec()
}

/// Attention of one row and head in double precision.
fn naive(q: &[f64], k: &[f64], v: &[f64], (row, head, window): (usize, usize, Option<usize>)) -> Vec<f64> {
    let kv_head = head / (HEADS / KV_HEADS);
    let q = &q[(row * HEADS + head) * HEAD_DIM..][..HEAD_DIM];
    let at = |row: usize| (row * KV_HEADS + kv_head) * HEAD_DIM;
    let seen = context(row, window);
    let score = |&row: &usize| q.iter().zip(&k[at(row)..]).map(|(a, b)| a * b).sum::<f64>() * f64::from(SCALE);
    let weights: Vec<f64> = seen.iter().map(|row| score(row).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..HEAD_DIM).map(|i| seen.iter().zip(&weights).map(|(&row, w)| w * v[at(row) + i]).sum::<f64>() / total).collect()
}

#[test]
fn attention_and_its_gradient_match_double_precision() {
    for isa in available_isas() {
        for window in [None, Some(3)] {
            check_attention(isa, window, false, 1e-5);
        }
    }
}

/// Factors rounded to bf16 are off by up to 1/512 of themselves, terms of a score or a gradient by twice that, and there are as many as a
/// head has elements, or as a row sees.
#[test]
fn attention_in_bf16_and_its_gradient_are_near_double_precision() {
    for isa in available_isas() {
        for window in [None, Some(3)] {
            check_attention(isa, window, true, 0.02);
        }
    }
}

/// Compares outputs, and a gradient of each seventh input with a central difference.
fn check_attention(isa: Isa, window: Option<usize>, bf16: bool, bound: f64) {
    let mut random = Random(11);
    let lens = [ROWS * HEADS * HEAD_DIM, ROWS * KV_HEADS * HEAD_DIM, ROWS * KV_HEADS * HEAD_DIM];
    let inputs = lens.map(|len| random.floats(len));
    let wide = inputs.clone().map(|x| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>());
    let d_out = random.floats(lens[0]);
    let trees = trees();
    let row_out = |x: &[Vec<f64>; 3], row: usize| -> Vec<f64> {
        (0..HEADS).flat_map(|head| naive(&x[0], &x[1], &x[2], (row, head, window))).collect()
    };
    let loss = |x: &[Vec<f64>; 3]| -> f64 {
        let out = (0..ROWS).flat_map(|row| row_out(x, row));
        out.zip(&d_out).map(|(out, d)| out * f64::from(*d)).sum()
    };
    let [q, k, v] = &inputs;
    let (out, found) = attend(isa, 2, &arguments([q, k, v], (window, bf16), (HEAD_DIM, &trees)), &d_out);
    let expected: Vec<f64> = (0..ROWS).flat_map(|row| row_out(&wide, row)).collect();
    assert_near(&out, &expected, bound, "output");
    const STEP: f64 = 1e-5;
    for input in 0..3 {
        for at in (0..lens[input]).step_by(7) {
            let moved = |by: f64| {
                let mut x = wide.clone();
                x[input][at] += by;
                loss(&x)
            };
            let expected = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            let error = (f64::from(found[input][at]) - expected).abs();
            assert!(error < 2.0 * bound, "{isa}, input {input} at {at}: {} not {expected}", found[input][at]);
        }
    }
}

fn arguments<'a>(
    [q, k, v]: [&'a [f32]; 3],
    (window, bf16): (Option<usize>, bool),
    (head_dim, trees): (usize, &'a [Tree]),
) -> CausalAttention<'a> {
    let (heads, kv_heads) = (HEADS, KV_HEADS);
    CausalAttention { q, k, v, heads, kv_heads, head_dim, scale: SCALE, window, trees, bf16 }
}

/// Outputs, and gradients of queries, keys and values.
fn attend(isa: Isa, threads: usize, args: &CausalAttention<'_>, d_out: &[f32]) -> (Vec<f32>, [Vec<f32>; 3]) {
    let kernels = Kernels::with_isa(isa, threads).unwrap();
    let mut out = vec![f32::NAN; args.q.len()];
    let mut log_sums = vec![f32::NAN; args.q.len() / args.head_dim];
    kernels.causal_attention(args, &mut out, &mut log_sums);
    let mut gradients = [args.q, args.k, args.v].map(|x| vec![f32::NAN; x.len()]);
    let [d_q, d_k, d_v] = &mut gradients;
    kernels.causal_attention_backward(args, &Attended { out: &out, log_sums: &log_sums, d_out }, [d_q, d_k, d_v]);
    (out, gradients)
}

/// A sequence that takes several parts of a product, alone and behind another one.
#[test]
fn attention_has_the_same_bits_on_any_number_of_threads_and_in_any_batch() {
    let mut random = Random(29);
    let (rows, before) = (300, 21);
    let row_lens = [HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM];
    let inputs = row_lens.map(|len| random.floats((before + rows) * len));
    let d_out = random.floats((before + rows) * row_lens[0]);
    let all = |values: &(Vec<f32>, [Vec<f32>; 3]), first: usize| {
        let tensors = [&values.0, &values.1[0], &values.1[1], &values.1[2]];
        let lens = [row_lens[0], row_lens[0], row_lens[1], row_lens[2]];
        tensors.into_iter().zip(lens).flat_map(|(x, len)| bits(&x[first * len..])).collect::<Vec<u32>>()
    };
    for (isa, bf16) in available_isas().into_iter().flat_map(|isa| [(isa, false), (isa, true)]) {
        let run = |threads: usize, first: usize| {
            let trees = match first {
                0 => vec![Tree::sequence(0..before), Tree::sequence(before..before + rows)],
                _ => vec![Tree::sequence(0..rows)],
            };
            let [q, k, v] = [0, 1, 2].map(|i| &inputs[i][first * row_lens[i]..]);
            attend(isa, threads, &arguments([q, k, v], (None, bf16), (HEAD_DIM, &trees)), &d_out[first * row_lens[0]..])
        };
        let together = run(1, 0);
        assert!(all(&together, 0) == all(&run(3, 0), 0), "{isa}, bf16: {bf16}");
        assert!(all(&together, before) == all(&run(2, before), 0), "{isa}, bf16: {bf16}");
    }
}

/// Heads of several squares, and of half a square or half a group more.
#[test]
fn attention_in_bf16_is_near_single_precision_for_wide_heads() {
    let mut random = Random(41);
    let trees = trees();
    for head_dim in [64, 80, 128] {
        let [q, k, v, d_out] = [HEADS, KV_HEADS, KV_HEADS, HEADS].map(|heads| random.floats(ROWS * heads * head_dim));
        for isa in available_isas() {
            let run = |bf16| attend(isa, 2, &arguments([&q, &k, &v], (None, bf16), (head_dim, &trees)), &d_out);
            let ((exact, exact_gradients), (out, gradients)) = (run(false), run(true));
            let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
            assert_near(&out, &wide(&exact), 0.04, "output");
            for (found, expected) in gradients.iter().zip(&exact_gradients) {
                assert_near(found, &wide(expected), 0.15, "gradient");
                let error: f32 = found.iter().zip(expected).map(|(a, b)| (a - b).powi(2)).sum();
                let size: f32 = expected.iter().map(|x| x * x).sum();
                assert!(error < 2e-4 * size, "{isa}, heads of {head_dim}: {error} of {size}");
            }
        }
    }
}

/// A prefix and answers of several blocks, windows that end within the prefix and within a block.
#[test]
fn attention_in_bf16_sees_what_single_precision_sees() {
    let mut random = Random(53);
    let segment = |rows, prefix| Segment { rows, prefix };
    let trees = [Tree { segments: vec![segment(0..37, 0..0), segment(37..107, 0..37), segment(107..150, 0..37)] }];
    let (rows, head_dim) = (150, 32);
    let [q, k, v, d_out] = [HEADS, KV_HEADS, KV_HEADS, HEADS].map(|heads| random.floats(rows * heads * head_dim));
    for (isa, window) in available_isas().into_iter().flat_map(|isa| [None, Some(39), Some(40)].map(|w| (isa, w))) {
        let run = |bf16| attend(isa, 2, &arguments([&q, &k, &v], (window, bf16), (head_dim, &trees)), &d_out);
        let ((exact, exact_gradients), (out, gradients)) = (run(false), run(true));
        let tensors = [(&out, &exact)].into_iter().chain(gradients.iter().zip(&exact_gradients));
        for (index, (found, expected)) in tensors.enumerate() {
            // One key too many or too few changes a row by some hundredths of its size.
            let rows = found.chunks_exact(head_dim).zip(expected.chunks_exact(head_dim));
            for (row, (found, expected)) in rows.enumerate() {
                let error: f32 = found.iter().zip(expected).map(|(a, b)| (a - b).powi(2)).sum();
                let size: f32 = expected.iter().map(|x| x * x).sum();
                assert!(
                    error <= 4e-4 * size.max(0.2),
                    "{isa}, {window:?}, tensor {index}, row {row}: {error} of {size}"
                );
            }
        }
    }
}

/// In the forward pass.
#[test]
fn a_key_that_is_not_a_number_is_seen_by_later_rows_alone() {
    let mut random = Random(37);
    let (rows, bad) = (70, 40);
    let [q, mut k, v] = [HEADS, KV_HEADS, KV_HEADS].map(|heads| random.floats(rows * heads * HEAD_DIM));
    k[bad * KV_HEADS * HEAD_DIM..(bad + 1) * KV_HEADS * HEAD_DIM].fill(f32::NAN);
    let d_out = random.floats(rows * HEADS * HEAD_DIM);
    let trees = [Tree::sequence(0..rows)];
    for (isa, bf16) in available_isas().into_iter().flat_map(|isa| [(isa, false), (isa, true)]) {
        let (out, _) = attend(isa, 2, &arguments([&q, &k, &v], (None, bf16), (HEAD_DIM, &trees)), &d_out);
        for (row, out) in out.chunks_exact(HEADS * HEAD_DIM).enumerate() {
            let numbers = out.iter().filter(|out| !out.is_nan()).count();
            assert_eq!(numbers, if row < bad { out.len() } else { 0 }, "{isa}, bf16: {bf16}, row {row}");
        }
    }
}

/// Tile instructions run on the processor where it has them, else in an emulator.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn tile_registers_attend() {
    if !Isa::Avx512.is_available() || !crate::bf16::has_rounding(Isa::Avx512) {
        println!("skipped: no AVX512-BF16");
        return;
    }
    let mut random = Random(59);
    let (trees, head_dim) = (trees(), 48);
    let [q, k, v, d_out] = [HEADS, KV_HEADS, KV_HEADS, HEADS].map(|heads| random.floats(ROWS * heads * head_dim));
    let args = arguments([&q, &k, &v], (None, true), (head_dim, &trees));
    let (expected, expected_gradients) = attend(Isa::Avx512, 1, &args, &d_out);
    let (emulator, pool) = (crate::tile_emulator::TileEmulator::install(), crate::Pool::new(1).unwrap());
    let (mut out, mut log_sums) = (vec![f32::NAN; q.len()], vec![f32::NAN; ROWS * HEADS]);
    let mut gradients = [&q, &k, &v].map(|x| vec![f32::NAN; x.len()]);
    emulator.run(|| args.forward(Isa::Amx, &pool, &mut out, &mut log_sums));
    let [d_q, d_k, d_v] = &mut gradients;
    let attended = Attended { out: &out, log_sums: &log_sums, d_out: &d_out };
    emulator.run(|| args.backward(Isa::Amx, &pool, &attended, [d_q, d_k, d_v]));
    // Both round the same factors; their sums go another way, which a rounding in between can make visible.
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    assert_near(&out, &wide(&expected), 5e-3, "output");
    for (found, expected) in gradients.iter().zip(&expected_gradients) {
        assert_near(found, &wide(expected), 3e-2, "gradient");
    }
}
