//! Products: every instruction set against double precision, and batch invariance bit for bit.

use proptest::prelude::*;

use super::PANEL;
use crate::samples::{Random, available_isas, bits};
use crate::{DType, Kernels, Matrix};

fn product(kernels: &Kernels, x: &[f32], n: usize, w: &Matrix) -> Vec<f32> {
    let mut out = vec![f32::NAN; n * w.rows()];
    kernels.matmul(x, n, w, &mut out);
    out
}

/// The product in double precision, and the sum of the absolute values of its terms.
fn reference(x: &[f32], w: &Matrix, row: usize) -> (f64, f64) {
    let mut decoded = vec![0.0; w.cols()];
    w.dequantize_row(row, &mut decoded);
    let terms = x.iter().zip(&decoded).map(|(x, w)| f64::from(*x) * f64::from(*w));
    terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
}

/// A sum of `k` products in any order is off by at most `k eps` times the sum of their absolute values, to first order
/// (Higham, section 3.1); twice that leaves room for the higher orders.
fn bound(cols: usize, size: f64) -> f64 {
    2.0 * (cols + 1) as f64 * f64::from(f32::EPSILON) * size + f64::from(f32::MIN_POSITIVE)
}

fn cols_of(dtype: DType, wanted: usize) -> usize {
    wanted.next_multiple_of(dtype.block_len())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_isa_is_within_the_bound_of_double_precision(
        dtype in proptest::sample::select(DType::ALL.to_vec()),
        (rows, cols) in (1_usize..12, prop_oneof![1_usize..100, PANEL - 2..PANEL + 3, Just(2 * PANEL + 33)]),
        n in 1_usize..9,
        (seed, shift) in (any::<u64>(), 0_usize..3),
        scale in prop_oneof![Just(1.0_f32), Just(1e-30), Just(1e25)],
    ) {
        let cols = cols_of(dtype, cols);
        let mut random = Random(seed);
        let w = random.matrix(dtype, rows, cols);
        let x: Vec<f32> = random.floats(shift + n * cols).into_iter().map(|x| x * scale).collect();
        for isa in available_isas() {
            let kernels = Kernels::with_isa(isa, 1).unwrap();
            let out = product(&kernels, &x[shift..], n, &w);
            for (i, x) in x[shift..].chunks_exact(cols).enumerate() {
                for (j, &found) in out[i * rows..(i + 1) * rows].iter().enumerate() {
                    let (expected, size) = reference(x, &w, j);
                    let error = (f64::from(found) - expected).abs();
                    prop_assert!(error <= bound(cols, size), "{} on {}: {} not {}", dtype, isa, found, expected);
                }
            }
        }
    }
}

/// Row `i` of a batch of any size equals the product of row `i` alone, for every instruction set and storage type.
#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    let mut random = Random(1);
    for isa in available_isas() {
        let kernels = Kernels::with_isa(isa, 1).unwrap();
        for dtype in DType::ALL {
            for cols in [cols_of(dtype, 45), cols_of(dtype, 160), cols_of(dtype, PANEL + 70)] {
                let rows = 1 + random.below(11);
                let w = random.matrix(dtype, rows, cols);
                let x = random.floats(13 * cols);
                let alone: Vec<u32> = x.chunks_exact(cols).flat_map(|x| bits(&product(&kernels, x, 1, &w))).collect();
                for n in 2..=13 {
                    let first = random.below(14 - n);
                    let found = product(&kernels, &x[first * cols..(first + n) * cols], n, &w);
                    assert_eq!(bits(&found), alone[first * rows..(first + n) * rows], "{dtype} on {isa}, {n} rows");
                }
            }
        }
    }
}

/// More rows than one decoding serves, and more weight rows than one task takes.
#[test]
fn a_large_batch_has_the_bits_of_its_chunks_on_any_number_of_threads() {
    let mut random = Random(2);
    let (rows, n) = (331, 205);
    for isa in available_isas() {
        for dtype in [DType::Q4_1, DType::Q6K, DType::F16] {
            let cols = cols_of(dtype, 288);
            let w = random.matrix(dtype, rows, cols);
            let x = random.floats(n * cols);
            let one = Kernels::with_isa(isa, 1).unwrap();
            let expected = bits(&product(&one, &x, n, &w));
            let chunked: Vec<u32> =
                x.chunks(29 * cols).flat_map(|x| bits(&product(&one, x, x.len() / cols, &w))).collect();
            assert_eq!(chunked, expected, "{dtype} on {isa}");
            for num_threads in [2, 3] {
                let kernels = Kernels::with_isa(isa, num_threads).unwrap();
                assert_eq!(bits(&product(&kernels, &x, n, &w)), expected, "{dtype} on {isa}, {num_threads} threads");
            }
        }
    }
}

#[test]
fn one_row_has_the_same_bits_on_any_number_of_threads() {
    let mut random = Random(3);
    for isa in available_isas() {
        for dtype in DType::ALL {
            let w = random.matrix(dtype, 403, cols_of(dtype, 512));
            let x = random.floats(w.cols());
            let found: Vec<Vec<u32>> = (1..=3)
                .map(|num_threads| bits(&product(&Kernels::with_isa(isa, num_threads).unwrap(), &x, 1, &w)))
                .collect();
            assert!(found[0] == found[1] && found[0] == found[2], "{dtype} on {isa}");
        }
    }
}

#[test]
fn empty_shapes_are_empty_or_zero() {
    for isa in available_isas() {
        let kernels = Kernels::with_isa(isa, 2).unwrap();
        let no_cols = Matrix::from_f32(3, 0, &[]).unwrap();
        assert_eq!(product(&kernels, &[], 1, &no_cols), [0.0; 3]);
        assert_eq!(product(&kernels, &[], 2, &no_cols), [0.0; 6]);
        let no_rows = Matrix::from_f32(0, 3, &[]).unwrap();
        assert!(product(&kernels, &[1.0, 2.0, 3.0], 1, &no_rows).is_empty());
        let some = Matrix::from_f32(2, 2, &[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert!(product(&kernels, &[], 0, &some).is_empty());
        assert_eq!(product(&kernels, &[1.0, 10.0], 1, &some), [21.0, 43.0]);
    }
}

#[test]
#[should_panic(expected = "activations of 2 rows")]
fn a_wrong_length_panics_before_any_work() {
    let w = Matrix::from_f32(1, 2, &[1.0, 2.0]).unwrap();
    Kernels::new(1).unwrap().matmul(&[1.0, 2.0, 3.0], 2, &w, &mut [0.0; 2]);
}
