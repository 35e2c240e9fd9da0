//! Integer products: against double precision, and bit for bit across instruction sets, batches and threads.

use proptest::prelude::*;

use super::Format;
use crate::quantized::BLOCK;
use crate::samples::{Random, available_isas, bits};
use crate::{DType, Isa, Kernels, Matrix, PackedMatrix, PackedProduct, Quantized};

pub(super) fn packed_dtypes() -> Vec<DType> {
    DType::ALL.into_iter().filter(|dtype| PackedMatrix::supports(*dtype)).collect()
}

pub(super) fn cols_of(dtype: DType, wanted: usize) -> usize {
    wanted.next_multiple_of(dtype.block_len())
}

fn product(kernels: &Kernels, x: &[f32], n: usize, w: &PackedMatrix) -> Vec<f32> {
    let (mut quantized, mut out) = (Quantized::new(), vec![f32::NAN; n * w.rows()]);
    kernels.quantize(x, n, &mut quantized);
    kernels.matmul_packed(&quantized, &mut [PackedProduct::new(w, &mut out)]);
    out
}

pub(super) fn pack(w: &Matrix) -> PackedMatrix {
    PackedMatrix::pack(w, Kernels::new(2).unwrap().pool()).unwrap()
}

/// The product in double precision, and how far off it may be: half a step of every activation, and the rounding of
/// three `f32` operations per block on terms whose size is bounded block by block.
fn reference(x: &[f32], w: &Matrix, row: usize) -> (f64, f64) {
    let mut decoded = vec![0.0; w.cols()];
    w.dequantize_row(row, &mut decoded);
    let (mut sum, mut bound, mut size) = (0.0, 0.0, 0.0);
    for (x, w) in x.chunks(BLOCK).zip(decoded.chunks(BLOCK)) {
        let step = x.iter().fold(0.0, |max: f64, x| max.max(f64::from(x.abs()))) / 127.0;
        for (x, w) in x.iter().zip(w) {
            let (x, w) = (f64::from(*x), f64::from(*w));
            sum += x * w;
            bound += step * 0.5 * w.abs();
        }
        // Scale and minimum are applied apart, and the minimum may be larger than what is left of their sum.
        let largest = w.iter().fold(0.0, |max: f64, w| max.max(f64::from(w.abs())));
        size += 127.0 * step * 2.0 * BLOCK as f64 * largest.max(MIN_SIZE);
    }
    let blocks = (w.cols() / BLOCK + 4) as f64;
    (sum, bound * 1.001 + 4.0 * blocks * f64::from(f32::EPSILON) * size)
}

/// More than any minimum of `Random::matrix`: 1 / 64 times a 6-bit integer.
const MIN_SIZE: f64 = 1.0;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_isa_has_the_bits_of_scalar_within_the_bound(
        dtype in proptest::sample::select(packed_dtypes()),
        (rows, cols) in (1_usize..40, 1_usize..700),
        n in 1_usize..27,
        seed in any::<u64>(),
        scale in prop_oneof![Just(1.0_f32), Just(1e-20), Just(1e20)],
    ) {
        let cols = cols_of(dtype, cols.next_multiple_of(BLOCK));
        let mut random = Random(seed);
        let w = random.matrix(dtype, rows, cols);
        let x: Vec<f32> = random.floats(n * cols).into_iter().map(|x| x * scale).collect();
        let packed = pack(&w);
        let expected = product(&Kernels::with_isa(Isa::Scalar, 1).unwrap(), &x, n, &packed);
        for (x, out) in x.chunks(cols).zip(expected.chunks(rows)) {
            for (row, found) in out.iter().enumerate() {
                let (expected, bound) = reference(x, &w, row);
                let error = (f64::from(*found) - expected).abs();
                prop_assert!(error <= bound, "{}: {} not {}, bound {}", dtype, found, expected, bound);
            }
        }
        for isa in available_isas() {
            let found = product(&Kernels::with_isa(isa, 1).unwrap(), &x, n, &packed);
            prop_assert!(bits(&found) == bits(&expected), "{} on {}", dtype, isa);
        }
    }
}

/// Row `i` of a batch of any size equals the product of row `i` alone, for every format and instruction set.
#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch_and_chunking() {
    let mut random = Random(11);
    for isa in available_isas() {
        let kernels = Kernels::with_isa(isa, 1).unwrap();
        for dtype in packed_dtypes() {
            let (rows, cols) = (1 + random.below(40), cols_of(dtype, 576));
            let w = pack(&random.matrix(dtype, rows, cols));
            let x = random.floats(40 * cols);
            let alone: Vec<u32> = x.chunks(cols).flat_map(|x| bits(&product(&kernels, x, 1, &w))).collect();
            for n in 2..=40 {
                let found: Vec<f32> =
                    x.chunks(n * cols).flat_map(|x| product(&kernels, x, x.len() / cols, &w)).collect();
                assert_eq!(bits(&found), alone, "{dtype} on {isa}, {n} rows at a time");
            }
        }
    }
}

#[test]
fn a_row_decodes_as_before_it_was_packed() {
    let mut random = Random(13);
    for dtype in packed_dtypes() {
        let (rows, cols) = (37, cols_of(dtype, 320));
        let w = random.matrix(dtype, rows, cols);
        let packed = pack(&w);
        let (mut expected, mut found) = (vec![0.0; cols], vec![f32::NAN; cols]);
        for row in 0..rows {
            w.dequantize_row(row, &mut expected);
            packed.dequantize_row(row, &mut found);
            assert_eq!(bits(&found), bits(&expected), "{dtype}, row {row}");
        }
    }
}

/// Several matrices at once, on any number of threads, with bias and residual, equal the plain products.
#[test]
fn products_together_have_the_bits_of_products_apart_on_any_number_of_threads() {
    let mut random = Random(12);
    for isa in available_isas() {
        for dtype in [DType::Q4_1, DType::Q8_0, DType::Q4K, DType::Q6K] {
            let (n, cols) = (29, cols_of(dtype, 320));
            let matrices = [192, 7, 333].map(|rows| random.matrix(dtype, rows, cols));
            let x = random.floats(n * cols);
            let bias = random.floats(333);
            let residual = random.floats(n * 333);
            let one = Kernels::with_isa(isa, 1).unwrap();
            let refs: Vec<&Matrix> = matrices.iter().collect();
            let packed: Vec<PackedMatrix> =
                PackedMatrix::pack_all(&refs, one.pool()).into_iter().map(Option::unwrap).collect();
            let mut expected: Vec<Vec<f32>> = packed.iter().map(|w| product(&one, &x, n, w)).collect();
            one.add_bias(&mut expected[2], &bias);
            one.add(&mut expected[2], &residual);
            for num_threads in 1..=3 {
                let kernels = Kernels::with_isa(isa, num_threads).unwrap();
                let mut quantized = Quantized::new();
                kernels.quantize(&x, n, &mut quantized);
                let (mut a, mut b, mut c) = (vec![0.0; n * 192], vec![0.0; n * 7], residual.clone());
                let last = PackedProduct { weight: &packed[2], bias: Some(&bias), accumulate: true, out: &mut c };
                let first = PackedProduct::new(&packed[0], &mut a);
                kernels.matmul_packed(&quantized, &mut [first, PackedProduct::new(&packed[1], &mut b), last]);
                let found = [a, b, c].map(|out| bits(&out));
                assert!(found.iter().eq(expected.iter().map(|out| bits(out)).collect::<Vec<_>>().iter()), "{isa}");
            }
        }
    }
}

/// Codes and activations of the largest magnitude, where sums and saturation are at their worst.
#[test]
fn extreme_codes_and_activations_do_not_overflow() {
    for dtype in packed_dtypes() {
        for byte in [0x00, 0x80, 0x7F, 0xFF] {
            let (rows, cols) = (17, 512);
            let mut data = vec![byte; rows * dtype.row_bytes(cols).unwrap()];
            for block in data.chunks_exact_mut(dtype.block_bytes()) {
                for &at in crate::samples::scale_offsets(dtype) {
                    block[at..at + 2].copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
                }
            }
            let w = Matrix::new(dtype, rows, cols, data.into()).unwrap();
            let packed = pack(&w);
            for x in [vec![1.0; cols], vec![-1.0; cols]] {
                let (expected, _) = reference(&x, &w, 3);
                for isa in available_isas() {
                    let found = product(&Kernels::with_isa(isa, 1).unwrap(), &x, 1, &packed);
                    assert!(found.iter().all(|found| f64::from(*found) == expected), "{dtype} on {isa}: {found:?}");
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_packed_is_none_and_codes_keep_their_bits() {
    let pool = crate::Pool::new(1).unwrap();
    let mut random = Random(13);
    for dtype in DType::ALL {
        let matrix = random.matrix(dtype, 32, 512);
        let packed = PackedMatrix::pack(&matrix, &pool);
        assert_eq!(packed.is_some(), Format::of(dtype).is_some(), "{dtype}");
        let grown = |packed: PackedMatrix| packed.num_bytes() as f64 / (32 * dtype.row_bytes(512).unwrap()) as f64;
        let limit = if dtype == DType::Q3K { 1.4 } else { 1.03 };
        assert!(packed.is_none_or(|packed| grown(packed) < limit), "{dtype} grew");
    }
}

#[test]
fn empty_shapes_and_values_that_are_not_finite() {
    let mut random = Random(14);
    for isa in available_isas() {
        let kernels = Kernels::with_isa(isa, 2).unwrap();
        let no_rows = pack(&Matrix::new(DType::Q4_0, 0, 32, bytes::Bytes::new()).unwrap());
        assert!(product(&kernels, &[1.0; 32], 1, &no_rows).is_empty());
        let w = pack(&random.matrix(DType::Q8_0, 3, 64));
        assert!(product(&kernels, &[], 0, &w).is_empty());
        assert_eq!(product(&kernels, &[1e-36; 64], 1, &w), [0.0; 3], "too small to count");
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = [1.0; 64];
            x[40] = bad;
            assert!(product(&kernels, &x, 1, &w).iter().all(|out| out.is_nan()), "{bad} on {isa}");
        }
    }
}

#[test]
#[should_panic(expected = "activations for")]
fn other_columns_panic() {
    let w = pack(&Random(15).matrix(DType::Q4_0, 3, 64));
    product(&Kernels::new(1).unwrap(), &[1.0; 32], 1, &w);
}
