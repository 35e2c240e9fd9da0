//! Elementwise kernels: every instruction set against scalar or double precision, and independence of place.

use half::f16;
use proptest::prelude::*;

use crate::samples::{Random, available_isas, bits};
use crate::table::Table;
use crate::{Kernels, Rope, RopeStyle};

/// `sqrt`, two products and a division round once each; the sum of squares is off by `len eps` relative.
fn norm_bound(len: usize) -> f64 {
    (len + 8) as f64 * f64::from(f32::EPSILON)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rms_norm_is_within_the_bound(len in 1_usize..70, rows in 1_usize..4, seed in any::<u64>(), eps in 0.0_f32..0.1) {
        let mut random = Random(seed);
        let (x, weight) = (random.floats(rows * len), random.floats(len));
        for isa in available_isas() {
            let mut out = vec![0.0; x.len()];
            Kernels::with_isa(isa, 1).unwrap().rms_norm(&x, &weight, eps, &mut out);
            for (x, out) in x.chunks(len).zip(out.chunks(len)) {
                let mean = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / len as f64;
                for ((x, weight), out) in x.iter().zip(&weight).zip(out) {
                    let expected = f64::from(*x) / (mean + f64::from(eps)).sqrt() * f64::from(*weight);
                    prop_assert!((f64::from(*out) - expected).abs() <= expected.abs() * norm_bound(len) + 1e-37);
                }
            }
        }
    }

    /// `exp` is good to 2 ulp, the division, or the reciprocal that stands for it, and the product to half of one each or little more.
    #[test]
    fn swiglu_is_within_4_ulp(
        gate in proptest::collection::vec(prop_oneof![-110.0_f32..110.0, -1.0_f32..1.0], 0..40),
        seed in any::<u64>(),
    ) {
        let up = Random(seed).floats(gate.len());
        for isa in available_isas() {
            let mut out = gate.clone();
            Kernels::with_isa(isa, 1).unwrap().swiglu(&mut out, &up);
            for ((gate, up), out) in gate.iter().zip(&up).zip(&out) {
                let gate = f64::from(*gate);
                let expected = gate / (1.0 + (-gate).exp()) * f64::from(*up);
                let error = (f64::from(*out) - expected).abs();
                prop_assert!(error <= expected.abs() * 4.0 * f64::from(f32::EPSILON) + 1e-36, "{} not {}", out, expected);
            }
        }
    }

    #[test]
    fn layer_norm_and_gelu_have_the_bits_of_scalar_and_are_near_double(len in 1_usize..70, seed in any::<u64>()) {
        let mut random = Random(seed);
        let (x, weight, bias) = (random.floats(3 * len), random.floats(len), random.floats(len));
        let found: Vec<(Vec<f32>, Vec<f32>)> = available_isas()
            .into_iter()
            .map(|isa| {
                let kernels = Kernels::with_isa(isa, 1).unwrap();
                let (mut normed, mut gated) = (x.clone(), x.clone());
                kernels.layer_norm(&mut normed, &weight, &bias, 1e-5);
                kernels.gelu(&mut gated);
                (normed, gated)
            })
            .collect();
        for (normed, gated) in &found {
            prop_assert_eq!((bits(normed), bits(gated)), (bits(&found[0].0), bits(&found[0].1)));
        }
        for (x, normed) in x.chunks(len).zip(found[0].0.chunks(len)) {
            let x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
            let mean = x.iter().sum::<f64>() / len as f64;
            let factor = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / len as f64 + 1e-5).sqrt();
            for (((x, weight), bias), out) in x.iter().zip(&weight).zip(&bias).zip(normed) {
                let expected = (x - mean) * factor * f64::from(*weight) + f64::from(*bias);
                // The mean is off by eps times the largest term, which the factor of at most 316 enlarges.
                prop_assert!((f64::from(*out) - expected).abs() <= 1e-3 * (expected.abs() + 1.0), "{} {}", out, expected);
            }
        }
    }

    /// Any bits at all: subnormals, infinities, and what is not a number.
    #[test]
    fn halves_are_the_nearest(x in proptest::collection::vec(any::<u32>(), 0..70)) {
        let x: Vec<f32> = x.into_iter().map(f32::from_bits).collect();
        for isa in available_isas() {
            let mut out = vec![f16::ONE; x.len()];
            // SAFETY: the processor has the instruction set.
            unsafe { (Table::of(isa).halves)(&x, &mut out) };
            for (x, found) in x.iter().zip(out) {
                let expected = f16::from_f32(*x);
                prop_assert!(found == expected || found.is_nan() && expected.is_nan(), "{} became {}", x, found);
            }
        }
    }

    #[test]
    fn add_and_rotate_have_the_bits_of_scalar(pairs in 1_usize..40, seed in any::<u64>(), position in 0_u32..50) {
        let mut random = Random(seed);
        let (x, y) = (random.floats(6 * pairs), random.floats(6 * pairs));
        let inv_freq = random.floats(pairs);
        for style in [RopeStyle::Half, RopeStyle::Interleaved] {
            let rope = Rope::new(style, &inv_freq, 50, 1.25);
            let found: Vec<Vec<u32>> = available_isas()
                .into_iter()
                .map(|isa| {
                    let kernels = Kernels::with_isa(isa, 1).unwrap();
                    let mut out = x.clone();
                    kernels.add(&mut out, &y);
                    kernels.rope(&rope, &[position], 3, &mut out);
                    bits(&out)
                })
                .collect();
            prop_assert!(found.iter().all(|out| *out == found[0]));
        }
    }
}

/// What an element becomes does not depend on the length of the slice, its place in it, or the threads.
#[test]
fn every_row_has_the_same_bits_alone_and_in_any_batch() {
    let (rows, len) = (700, 58);
    let mut random = Random(4);
    let (x, y, weight) = (random.floats(rows * len), random.floats(rows * len), random.floats(len));
    let rope = Rope::new(RopeStyle::Half, &random.floats(len / 2), rows, 1.0);
    let positions: Vec<u32> = (0..rows as u32).collect();
    for isa in available_isas() {
        let run = |kernels: &Kernels, range: std::ops::Range<usize>| {
            let (x, y) = (&x[range.start * len..range.end * len], &y[range.start * len..range.end * len]);
            let mut out = vec![0.0; x.len()];
            kernels.rms_norm(x, &weight, 1e-5, &mut out);
            kernels.swiglu(&mut out, y);
            kernels.add_bias(&mut out, &weight);
            kernels.rope(&rope, &positions[range], 1, &mut out);
            kernels.add(&mut out, y);
            bits(&out)
        };
        let one = Kernels::with_isa(isa, 1).unwrap();
        let alone: Vec<u32> = (0..rows).flat_map(|row| run(&one, row..row + 1)).collect();
        for num_threads in [1, 2, 3] {
            assert_eq!(run(&Kernels::with_isa(isa, num_threads).unwrap(), 0..rows), alone, "{isa}, {num_threads}");
        }
    }
}

/// **Source**: values of `x / 2 (1 + erf(x / sqrt(2)))` in 30 digits, rounded.
#[test]
fn gelu_at_known_points() {
    let known = [
        (-6.0_f32, -5.919e-9_f32),
        (-2.0, -0.045_500_264),
        (-1.0, -0.158_655_25),
        (-0.1, -0.046_017_216),
        (0.0, 0.0),
        (0.5, 0.345_731_23),
        (1.0, 0.841_344_8),
        (3.0, 2.995_950_3),
        (100.0, 100.0),
    ];
    let mut x = known.map(|(x, _)| x);
    Kernels::new(1).unwrap().gelu(&mut x);
    for (found, (x, expected)) in x.iter().zip(known) {
        assert!((found - expected).abs() <= 5e-7 * x.abs(), "gelu({x}) is {found}, not {expected}");
    }
    let mut odd = [f32::NAN, f32::MAX, f32::MIN];
    Kernels::new(1).unwrap().gelu(&mut odd);
    assert!(odd[0].is_nan() && odd[1].is_finite() && odd[1] > 0.999 * f32::MAX, "{odd:?}");
    assert!(odd[2].abs() <= 5e-7 * f32::MAX, "{odd:?}");
}

#[test]
fn rotation_turns_pairs_by_position_times_frequency() {
    let x: Vec<f32> = vec![1.0, 2.0, 3.0, 4.0];
    let turn = |(a, b): (f32, f32), angle: f32| (a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin());
    let near = |found: &[f32], expected: [f32; 4]| {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} not {expected:?}");
    };
    let kernels = Kernels::new(1).unwrap();
    let mut half = x.clone();
    kernels.rope(&Rope::new(RopeStyle::Half, &[0.5, 0.1], 8, 1.0), &[3], 1, &mut half);
    let ((a, c), (b, d)) = (turn((1.0, 3.0), 1.5), turn((2.0, 4.0), 0.3));
    near(&half, [a, b, c, d]);
    let mut interleaved = x.clone();
    kernels.rope(&Rope::new(RopeStyle::Interleaved, &[0.5, 0.1], 8, 2.0), &[3], 1, &mut interleaved);
    let ((a, b), (c, d)) = (turn((1.0, 2.0), 1.5), turn((3.0, 4.0), 0.3));
    near(&interleaved, [a, b, c, d].map(|value| 2.0 * value));
}

#[test]
#[should_panic(expected = "position 8 of 8")]
fn a_position_beyond_the_tables_panics() {
    let rope = Rope::new(RopeStyle::Half, &[1.0], 8, 1.0);
    Kernels::new(1).unwrap().rope(&rope, &[8], 1, &mut [0.0; 2]);
}

/// The vector exponential over its whole range, seen through `swiglu`: `gate = -t`, `up = -1 / t` gives `1 / (1 + e^t)`.
#[test]
fn swiglu_handles_extremes() {
    for isa in available_isas() {
        let mut gate = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, -0.0, 200.0, -200.0, f32::MAX, f32::MIN];
        // SAFETY: the processor has the instruction set.
        unsafe { (Table::of(isa).swiglu)(&mut gate, &[1.0; 9]) };
        assert_eq!(gate[0], f32::INFINITY, "{isa}");
        assert!(gate[1].is_nan() && gate[2].is_nan(), "{isa}: infinity over infinity, and NaN");
        assert_eq!(gate[3..], [0.0, 0.0, 200.0, 0.0, f32::MAX, 0.0], "{isa}");
    }
}
