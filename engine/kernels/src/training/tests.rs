//! Training kernels: every instruction set against double precision, gradients against finite differences in double precision,
//! and the same bits on any number of threads.

use proptest::prelude::*;

use super::{Mask, Product, Right, RowLosses, View, mix};
use crate::samples::{Random, available_isas, bits};
use crate::{DType, Kernels, Matrix, Rounded};

fn product(kernels: &Kernels, left: View<'_>, right: Right<'_>, cols: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; left.rows() * cols];
    kernels.product(&Product { left, right, accumulate: false }, &mut out);
    out
}

/// The product of row-major `(m, k)` and `(k, n)` in double precision.
fn reference(left: &[f32], right: &[f32], (rows, depth, cols): (usize, usize, usize)) -> Vec<f64> {
    let term = |i: usize, j: usize, k: usize| f64::from(left[i * depth + k]) * f64::from(right[k * cols + j]);
    (0..rows * cols).map(|at| (0..depth).map(|k| term(at / cols, at % cols, k)).sum()).collect()
}

fn transposed(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|at| values[at % rows * cols + at / rows]).collect()
}

fn decoded(w: &Matrix) -> Vec<f32> {
    let mut values = vec![0.0; w.rows() * w.cols()];
    values.chunks_exact_mut(w.cols()).enumerate().for_each(|(row, out)| w.dequantize_row(row, out));
    values
}

pub(super) fn assert_near(found: &[f32], expected: &[f64], bound: f64, what: &str) {
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*found) - expected).abs() <= bound, "{what} at {at}: {found} not {expected}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Terms are below 1 (weights of block formats below 2), so `depth * eps * 4` bounds the error of a sum in any order.
    #[test]
    fn products_of_floats_are_near_double_precision(
        (rows, depth, cols) in (1_usize..20, prop_oneof![1_usize..40, 250_usize..262], 1_usize..70),
        seed in any::<u64>(),
    ) {
        let mut random = Random(seed);
        let (left, right) = (random.floats(rows * depth), random.floats(depth * cols));
        let expected = reference(&left, &right, (rows, depth, cols));
        let (left_t, right_t) = (transposed(&left, rows, depth), transposed(&right, depth, cols));
        let bound = depth as f64 * f64::from(f32::EPSILON) * 4.0;
        for isa in available_isas() {
            let kernels = Kernels::with_isa(isa, 2).unwrap();
            for left in [View::new(&left, rows, depth), View::new(&left_t, depth, rows).transposed()] {
                for right in [View::new(&right, depth, cols), View::new(&right_t, cols, depth).transposed()] {
                    assert_near(&product(&kernels, left, Right::Floats(right), cols), &expected, bound, "floats");
                }
            }
        }
    }

    #[test]
    fn products_with_weights_are_near_double_precision(
        dtype in prop::sample::select(vec![DType::F32, DType::F16, DType::Bf16, DType::Q8_0, DType::Q4_0, DType::Q4_1]),
        (rows, w_rows, w_blocks) in (1_usize..20, prop_oneof![1_usize..40, 250_usize..300], 1_usize..10),
        seed in any::<u64>(),
    ) {
        let mut random = Random(seed);
        let w_cols = w_blocks * 32;
        let w = random.matrix(dtype, w_rows, w_cols);
        let values = decoded(&w);
        let (x, d) = (random.floats(rows * w_cols), random.floats(rows * w_rows));
        let forward = reference(&x, &transposed(&values, w_rows, w_cols), (rows, w_cols, w_rows));
        let backward = reference(&d, &values, (rows, w_rows, w_cols));
        let bound = w_rows.max(w_cols) as f64 * f64::from(f32::EPSILON) * 8.0;
        for isa in available_isas() {
            let kernels = Kernels::with_isa(isa, 2).unwrap();
            let found = product(&kernels, View::new(&x, rows, w_cols), Right::Transposed(&w), w_rows);
            assert_near(&found, &forward, bound, "forward");
            let found = product(&kernels, View::new(&d, rows, w_rows), Right::Weights(&w), w_cols);
            assert_near(&found, &backward, bound, "backward");
        }
    }
}

#[test]
fn a_product_has_the_same_bits_on_any_number_of_threads_and_in_any_batch() {
    let mut random = Random(3);
    let (rows, cols) = (331, 576);
    let w = random.matrix(DType::Bf16, 203, cols);
    let x = random.floats(rows * cols);
    for isa in available_isas() {
        let run = |threads: usize, rows: usize| {
            let kernels = Kernels::with_isa(isa, threads).unwrap();
            bits(&product(&kernels, View::new(&x[..rows * cols], rows, cols), Right::Transposed(&w), 203))
        };
        let all = run(1, rows);
        assert!(all == run(2, rows) && all == run(3, rows), "{isa}");
        assert_eq!(all[..7 * 203], run(2, 7), "{isa}");
    }
}

/// So deep that the left factor is interleaved in several parts, which for fewer rows are others.
#[test]
fn a_deep_product_has_the_same_bits_in_any_batch() {
    let mut random = Random(9);
    let (rows, depth, cols) = (300, 7100, 72);
    let (x, right) = (random.floats(rows * depth), random.floats(depth * cols));
    for isa in available_isas() {
        let run = |rows: usize| {
            let kernels = Kernels::with_isa(isa, 2).unwrap();
            let left = View::new(&x[..rows * depth], rows, depth);
            product(&kernels, left, Right::Floats(View::new(&right, depth, cols)), cols)
        };
        let few = run(5);
        assert_eq!(bits(&run(rows)[..5 * cols]), bits(&few), "{isa}");
        let expected = reference(&x[..5 * depth], &right, (5, depth, cols));
        assert_near(&few, &expected, depth as f64 * f64::from(f32::EPSILON), "deep");
    }
}

/// Weights whose bytes do not begin where a float may are decoded row by row, to the same products.
#[test]
fn weights_may_lie_anywhere() {
    let mut random = Random(13);
    let (rows, w_rows, w_cols) = (7, 40, 96);
    let values = random.floats(w_rows * w_cols);
    let aligned = Matrix::from_f32(w_rows, w_cols, &values).unwrap();
    let bytes: Vec<u8> = [0].into_iter().chain(values.iter().flat_map(|value| value.to_le_bytes())).collect();
    let odd = Matrix::new(DType::F32, w_rows, w_cols, bytes::Bytes::from(bytes).slice(1..)).unwrap();
    let (x, d) = (random.floats(rows * w_cols), random.floats(rows * w_rows));
    for isa in available_isas() {
        let kernels = Kernels::with_isa(isa, 2).unwrap();
        let [of_aligned, of_odd] = [&aligned, &odd].map(|w| {
            let (x, d) = (View::new(&x, rows, w_cols), View::new(&d, rows, w_rows));
            let forward = product(&kernels, x, Right::Transposed(w), w_rows);
            (bits(&forward), bits(&product(&kernels, d, Right::Weights(w), w_cols)))
        });
        assert!(of_aligned == of_odd, "{isa}");
    }
}

#[test]
fn a_product_is_added_where_asked() {
    let kernels = Kernels::new(2).unwrap();
    let mut out = [1.0, 2.0];
    let (left, right) = (View::new(&[3.0], 1, 1), Right::Floats(View::new(&[4.0, 5.0], 1, 2)));
    kernels.product(&Product { left, right, accumulate: true }, &mut out);
    assert_eq!(out, [13.0, 17.0]);
    kernels.product(&Product { left, right, accumulate: false }, &mut out);
    assert_eq!(out, [12.0, 15.0]);
}

/// Central differences of `loss` at `x`.
fn slopes(x: &[f32], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let moved = |at: usize, by: f64| {
        let mut x = x.clone();
        x[at] += by;
        loss(&x)
    };
    (0..x.len()).map(|at| (moved(at, STEP) - moved(at, -STEP)) / (2.0 * STEP)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any bits, and lengths around vectors and around a task of 8,192 elements.
    #[test]
    fn a_dropout_has_the_same_bits_on_every_instruction_set(
        x in prop::collection::vec(any::<u32>(), 1..100),
        tasks in 0..3_usize,
        rate in prop_oneof![Just(0.0_f32), Just(1.0 - f32::EPSILON), 0.0..1.0_f32],
        key in any::<u64>(),
    ) {
        let x: Vec<f32> = x.iter().cycle().take(x.len() + tasks * 8150).map(|&bits| f32::from_bits(bits)).collect();
        let before = Random(17).floats(x.len());
        let mask = Mask { rate, key };
        let limit = (f64::from(rate) * 65536.0).round().min(65535.0) as u64;
        let keep = 65536.0 / (65536 - limit) as f32;
        let dropped = |at: usize| (mix(key ^ (at / 4) as u64) >> (at % 4 * 16)) & 0xFFFF < limit;
        // What is not a number has no bits that are sure.
        let same = |found: f32, expected: f32| found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
        for isa in available_isas() {
            let kernels = Kernels::with_isa(isa, 2).unwrap();
            let (mut written, mut added) = (vec![f32::NAN; x.len()], before.clone());
            kernels.dropout(&mask, &x, false, &mut written);
            kernels.dropout(&mask, &x, true, &mut added);
            for at in 0..x.len() {
                let expected = if dropped(at) { 0.0 } else { x[at] * keep };
                prop_assert!(same(written[at], expected), "{isa} at {at}: {} not {expected}", written[at]);
                prop_assert!(same(added[at], before[at] + expected), "{isa} at {at}: {}", added[at]);
            }
        }
    }
}

#[test]
fn a_dropout_drops_its_share() {
    let (len, mask) = (1 << 14, Mask { rate: 0.3, key: 5 });
    let mut out = vec![0.0; len];
    Kernels::new(1).unwrap().dropout(&mask, &vec![1.0; len], false, &mut out);
    let share = out.iter().filter(|&&x| x == 0.0).count() as f64 / len as f64;
    assert!((share - 0.3).abs() < 0.02, "{share}");
}

#[test]
fn elementwise_gradients_match_finite_differences() {
    let mut random = Random(5);
    const EPS: f64 = 1e-5;
    for (isa, len) in available_isas().into_iter().flat_map(|isa| [(isa, 7), (isa, 37)]) {
        let kernels = Kernels::with_isa(isa, 2).unwrap();
        let [x, up, weight, d_out] = [0; 4].map(|_| random.floats(len));
        let weighted = |out: f64, at: usize| out * f64::from(d_out[at]);
        let norm_loss = |x: &[f64]| {
            let factor = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / len as f64 + EPS).sqrt();
            (0..len).map(|at| weighted(x[at] * factor * f64::from(weight[at]), at)).sum()
        };
        let mut d_x = vec![0.5; len];
        let (mut gradient, mut rounded_alone) = (Rounded::new(), Rounded::new());
        kernels.rms_norm_backward((&x, &weight, EPS as f32), &d_out, &mut d_x, Some(&mut gradient));
        kernels.round(&d_x, 1, &mut rounded_alone);
        assert!(gradient.row(0).eq(rounded_alone.row(0)), "{isa}");
        let expected: Vec<f64> = slopes(&x, norm_loss).into_iter().map(|d| d + 0.5).collect();
        assert_near(&d_x, &expected, 1e-5, "norm");

        let silu = |x: f64| x / (1.0 + (-x).exp());
        let mut out = vec![0.0; len];
        kernels.swiglu_into(&x, &up, &mut out);
        let expected: Vec<f64> = (0..len).map(|at| silu(f64::from(x[at])) * f64::from(up[at])).collect();
        assert_near(&out, &expected, 1e-6, "swiglu");
        let (mut d_gate, mut d_up) = (x.clone(), up.clone());
        kernels.swiglu_backward(&mut d_gate, &mut d_up, &d_out);
        let by_gate = |g: &[f64]| (0..len).map(|at| weighted(silu(g[at]) * f64::from(up[at]), at)).sum();
        assert_near(&d_gate, &slopes(&x, by_gate), 1e-5, "gate");
        let by_up = |u: &[f64]| (0..len).map(|at| weighted(silu(f64::from(x[at])) * u[at], at)).sum();
        assert_near(&d_up, &slopes(&up, by_up), 1e-5, "up");
    }
}

/// Rows of several squares and blocks, columns of several parts.
#[test]
fn gradients_that_are_rounded_where_they_are_made_are_the_same_rounded() {
    let (mut random, rows, cols) = (Random(47), 37, 1104);
    let [x, d_out, before] = [(); 3].map(|()| random.floats(rows * cols));
    let weight = random.floats(cols);
    for isa in available_isas() {
        let kernels = Kernels::with_isa(isa, 2).unwrap();
        let same = |found: &Rounded, exact: &[f32]| {
            let mut expected = Rounded::new();
            kernels.round(exact, rows, &mut expected);
            assert_eq!((found.rows(), found.cols()), (rows, cols));
            (0..rows).for_each(|row| assert!(found.row(row).eq(expected.row(row)), "{isa}, row {row}"));
        };
        let (mut d_x, mut rounded) = (before.clone(), Rounded::new());
        kernels.rms_norm_backward((&x, &weight, 1e-5), &d_out, &mut d_x, Some(&mut rounded));
        same(&rounded, &d_x);
    }
}

#[test]
fn a_logit_that_is_no_number_is_seen_in_the_loss() {
    for isa in available_isas() {
        let kernels = Kernels::with_isa(isa, 1).unwrap();
        for wrong in [f32::NAN, f32::INFINITY] {
            for at in [0, 1500] {
                let (mut logits, mut logprobs) = (vec![0.0; 2100], [0.0]);
                logits[at] = wrong;
                let (logits_of, logprobs_of) = (&mut logits, &mut logprobs);
                let losses = RowLosses { logits: logits_of, targets: &[7], logprobs: logprobs_of, gradient: true };
                kernels.row_losses(losses);
                assert!(logprobs[0].is_nan(), "{isa}: {wrong} at {at} gives {}", logprobs[0]);
            }
        }
    }
}

#[test]
fn losses_of_rows_and_their_gradients() {
    let mut random = Random(7);
    let (vocab, targets) = (2100, [1500_u32, 2099]);
    let mut logits: Vec<f32> = random.floats(2 * vocab).into_iter().map(|x| x * 4.0).collect();
    // A vocabulary may be filled up with what never comes; it may take a whole part.
    logits[vocab + 1000..vocab + 2060].fill(f32::NEG_INFINITY);
    // So may the first part of a row.
    logits[..1100].fill(f32::NEG_INFINITY);
    let log_prob = |x: &[f64], target: u32| x[target as usize] - x.iter().map(|x| x.exp()).sum::<f64>().ln();
    for isa in available_isas() {
        let kernels = Kernels::with_isa(isa, 2).unwrap();
        let run = |gradient: bool| {
            let (mut left, mut logprobs) = (logits.clone(), [0.0; 2]);
            kernels.row_losses(RowLosses { logits: &mut left, targets: &targets, logprobs: &mut logprobs, gradient });
            (left, logprobs)
        };
        let (gradient, logprobs) = run(true);
        assert_eq!(logprobs, run(false).1);
        for (row, &target) in targets.iter().enumerate() {
            let range = row * vocab..row * vocab + vocab;
            let wide: Vec<f64> = logits[range.clone()].iter().map(|&x| f64::from(x)).collect();
            let expected = log_prob(&wide, target);
            assert!((f64::from(logprobs[row]) - expected).abs() < 2e-6, "{} not {expected}", logprobs[row]);
            let total: f64 = wide.iter().map(|x| x.exp()).sum();
            let softmax = |at: usize| f64::from(u8::from(at == target as usize)) - wide[at].exp() / total;
            let expected: Vec<f64> = (0..vocab).map(softmax).collect();
            assert_near(&gradient[range], &expected, 1e-6, "gradient");
        }
    }
}
