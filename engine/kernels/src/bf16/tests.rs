//! Products in bf16: every instruction set against double precision, and the same bits in any batch and on any number of threads.

use half::bf16;
use proptest::prelude::*;

use super::{Bf16Matrix, Direction, Rounded, product};
use crate::samples::{Random, available_isas, bits};
use crate::table::Table;
use crate::{DType, Isa, Kernels, Matrix, Pool};

fn pack(matrix: &Matrix) -> Bf16Matrix {
    let pool = Pool::new(2).unwrap();
    // Not the first of the allocation.
    Bf16Matrix::pack_all(&[matrix, matrix], &pool).pop().unwrap()
}

/// The product of the rounded factors in double precision.
fn reference(x: &[f32], matrix: &Matrix, direction: Direction, out: &[f32]) -> Vec<f64> {
    let mut decoded = vec![0.0; matrix.rows() * matrix.cols()];
    decoded.chunks_exact_mut(matrix.cols()).enumerate().for_each(|(row, out)| matrix.dequantize_row(row, out));
    let (inputs, outputs) = match direction {
        Direction::Forward => (matrix.cols(), matrix.rows()),
        Direction::Backward => (matrix.rows(), matrix.cols()),
    };
    let rounded = |value: f32| f64::from(bf16::from_f32(value).to_f32());
    let weight = |input: usize, output: usize| match direction {
        Direction::Forward => rounded(decoded[output * inputs + input]),
        Direction::Backward => rounded(decoded[input * outputs + output]),
    };
    let sum = |(at, out): (usize, &f32)| {
        let (row, output) = (at / outputs, at % outputs);
        (0..inputs).fold(f64::from(*out), |sum, input| sum + rounded(x[row * inputs + input]) * weight(input, output))
    };
    out.iter().enumerate().map(sum).collect()
}

fn assert_near(found: &[f32], expected: &[f64], inputs: usize, what: &str) {
    // Terms are below 1, or below 2 of block formats.
    let bound = (inputs + 1) as f64 * f64::from(f32::EPSILON) * 4.0;
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*found) - expected).abs() <= bound, "{what} at {at}: {found} not {expected}");
    }
}

/// Any shape: rows over several blocks of registers, inputs over several parts, outputs that end within a group.
fn shapes() -> impl Strategy<Value = (usize, usize, usize)> {
    (1_usize..40, prop_oneof![1_usize..70, 1530_usize..1620], prop_oneof![1_usize..70, Just(96)])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn products_are_near_double_precision((rows, inputs, outputs) in shapes(), seed in any::<u64>(), add in any::<bool>()) {
        let mut random = Random(seed);
        let (x, before) = (random.floats(rows * inputs), random.floats(rows * outputs));
        for direction in [Direction::Forward, Direction::Backward] {
            let matrix = match direction {
                Direction::Forward => random.matrix(DType::F32, outputs, inputs),
                Direction::Backward => random.matrix(DType::F32, inputs, outputs),
            };
            let packed = pack(&matrix);
            prop_assert_eq!((packed.rows(), packed.cols()), (matrix.rows(), matrix.cols()));
            let start = if add { before.clone() } else { vec![0.0; rows * outputs] };
            let expected = reference(&x, &matrix, direction, &start);
            let mut by_definition = None;
            for isa in available_isas() {
                let kernels = Kernels::with_isa(isa, 2).unwrap();
                let mut out = if add { before.clone() } else { vec![f32::NAN; rows * outputs] };
                kernels.matmul_bf16(&x, (&packed, direction), add, &mut out);
                assert_near(&out, &expected, inputs, &format!("{isa}, {direction:?}"));
                if !kernels.has_bf16() {
                    prop_assert_eq!(by_definition.get_or_insert(bits(&out)), &bits(&out));
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_on_any_number_of_threads_and_in_any_batch() {
    let mut random = Random(3);
    // More than one block of rows, more than one part of inputs, more than one group of outputs.
    let (rows, inputs, outputs) = (270, 1632, 35);
    let x = random.floats(rows * inputs);
    let forward = pack(&random.matrix(DType::Bf16, outputs, inputs));
    let backward = pack(&random.matrix(DType::Bf16, inputs, outputs));
    for (w, direction) in [(forward, Direction::Forward), (backward, Direction::Backward)] {
        for isa in available_isas() {
            let run = |threads: usize, from: usize, to: usize| {
                let (x, mut out) = (&x[from * inputs..to * inputs], vec![f32::NAN; (to - from) * outputs]);
                Kernels::with_isa(isa, threads).unwrap().matmul_bf16(x, (&w, direction), false, &mut out);
                bits(&out)
            };
            let all = run(1, 0, rows);
            assert!(all == run(2, 0, rows) && all == run(3, 0, rows), "{isa}, {direction:?}");
            for (from, to) in [(0, 1), (5, 12), (17, 50), (255, 270)] {
                let expected = &all[from * outputs..to * outputs];
                assert_eq!(expected, run(2, from, to), "{isa}, {direction:?}, rows {from} to {to}");
            }
        }
    }
}

#[test]
fn rounded_rows_go_through_several_matrices_and_nothing_is_left_of_earlier_ones() {
    let mut random = Random(8);
    let (rows, cols) = (20, 70);
    let large = pack(&random.matrix(DType::F32, 200, 200));
    let matrices = [(40, cols, Direction::Forward), (33, cols, Direction::Forward), (cols, 50, Direction::Backward)];
    let matrices = matrices.map(|(w_rows, w_cols, direction)| (random.matrix(DType::F32, w_rows, w_cols), direction));
    let x = random.floats(rows * cols);
    for isa in available_isas() {
        let (kernels, mut rounded) = (Kernels::with_isa(isa, 2).unwrap(), Rounded::new());
        kernels.round(&vec![f32::NAN; 300 * 200], 300, &mut rounded);
        for direction in [Direction::Forward, Direction::Backward] {
            kernels.matmul_rounded(&rounded, (&large, direction), false, &mut vec![0.0; 300 * 200]);
        }
        kernels.round(&x, rows, &mut rounded);
        for (matrix, direction) in &matrices {
            let outputs = if *direction == Direction::Forward { matrix.rows() } else { matrix.cols() };
            let start = vec![1.0; rows * outputs];
            let (expected, mut found) = (reference(&x, matrix, *direction, &start), start);
            kernels.matmul_rounded(&rounded, (&pack(matrix), *direction), true, &mut found);
            assert_near(&found, &expected, cols, &format!("{isa}, {direction:?}"));
        }
    }
}

#[test]
fn quantized_weights_are_decoded_and_rounded() {
    let mut random = Random(4);
    let x = random.floats(3 * 64);
    for dtype in [DType::Q4_1, DType::Q8_0, DType::F16, DType::Bf16] {
        let matrix = random.matrix(dtype, 37, 64);
        let mut out = vec![0.0; 3 * 37];
        Kernels::with_isa(Isa::Scalar, 1).unwrap().matmul_bf16(
            &x,
            (&pack(&matrix), Direction::Forward),
            false,
            &mut out,
        );
        assert_near(&out, &reference(&x, &matrix, Direction::Forward, &[0.0; 3 * 37]), 64, "decoded");
    }
}

#[test]
fn rows_come_back_rounded() {
    let mut random = Random(7);
    let matrix = random.matrix(DType::F32, 67, 33);
    let packed = pack(&matrix);
    let (mut expected, mut found) = ([0.0; 33], [f32::NAN; 33]);
    for row in [0, 15, 16, 40, 66] {
        matrix.dequantize_row(row, &mut expected);
        packed.dequantize_row(row, &mut found);
        assert_eq!(found, expected.map(|value| bf16::from_f32(value).to_f32()), "row {row}");
    }
}

#[test]
fn empty_products() {
    let kernels = Kernels::new(2).unwrap();
    let no_outputs = pack(&Matrix::new(DType::F32, 0, 5, bytes::Bytes::new()).unwrap());
    kernels.matmul_bf16(&[1.0; 10], (&no_outputs, Direction::Forward), false, &mut []);
    let w = pack(&Random(5).matrix(DType::F32, 3, 5));
    kernels.matmul_bf16(&[], (&w, Direction::Forward), false, &mut []);
    let no_inputs = pack(&Matrix::new(DType::F32, 0, 5, bytes::Bytes::new()).unwrap());
    let mut out = [7.0; 10];
    kernels.matmul_bf16(&[], (&no_inputs, Direction::Backward), true, &mut out);
    assert_eq!(out, [7.0; 10]);
    kernels.matmul_bf16(&[], (&no_inputs, Direction::Backward), false, &mut out);
    assert_eq!(out, [0.0; 10]);
    let mut no_cols = Rounded::new();
    kernels.round(&[], 2, &mut no_cols);
    out.fill(7.0);
    kernels.matmul_rounded(&no_cols, (&no_inputs, Direction::Backward), true, &mut out);
    assert_eq!(out, [7.0; 10]);
    kernels.matmul_rounded(&no_cols, (&no_inputs, Direction::Backward), false, &mut out);
    assert_eq!(out, [0.0; 10]);
}

#[test]
#[should_panic(expected = "activations for")]
fn other_inputs_panic() {
    let w = pack(&Random(6).matrix(DType::F32, 3, 5));
    Kernels::new(1).unwrap().matmul_bf16(&[1.0; 7], (&w, Direction::Forward), false, &mut [0.0; 3]);
}

/// Tile instructions run on the processor where it has them, else in an emulator.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn tile_registers_multiply_rows_of_any_number() {
    if !Isa::Avx2.is_available() {
        println!("skipped: no AVX2");
        return;
    }
    let (emulator, mut random) = (crate::tile_emulator::TileEmulator::install(), Random(21));
    let pool = Pool::new(1).unwrap();
    for (rows, inputs, outputs) in
        [(1, 64, 32), (16, 40, 33), (17, 1056, 70), (32, 32, 64), (70, 64, 32), (3, 1700, 40)]
    {
        let matrix = random.matrix(DType::F32, outputs, inputs);
        let packed = pack(&matrix);
        let (x, before) = (random.floats(rows * inputs), random.floats(rows * outputs));
        for add in [false, true] {
            let start = if add { before.clone() } else { vec![0.0; rows * outputs] };
            let mut out = before.clone();
            emulator.run(|| {
                product::run((Isa::Amx, Table::of(Isa::Avx2), &pool), &x, (&packed, Direction::Forward), add, &mut out)
            });
            let expected = reference(&x, &matrix, Direction::Forward, &start);
            assert_near(&out, &expected, inputs, &format!("{rows} x {inputs} x {outputs}"));
        }
    }
}

/// Terms that are multiplied together and such that are not, as many activations as a cache takes.
#[test]
fn a_sum_of_products_is_its_terms_added_one_by_one() {
    let mut random = Random(67);
    for (rows, outputs, inputs) in [(37, 70, [50, 20, 64]), (300, 33, [900, 40, 1600])] {
        let matrices = inputs.map(|inputs| random.matrix(DType::Bf16, inputs, outputs));
        let x = inputs.map(|inputs| random.floats(rows * inputs));
        for isa in available_isas() {
            let kernels = Kernels::with_isa(isa, 2).unwrap();
            let weights = Bf16Matrix::pack_all(&matrices.each_ref(), kernels.pool());
            let rounded = x.each_ref().map(|x| {
                let mut rounded = Rounded::new();
                kernels.round(x, rows, &mut rounded);
                rounded
            });
            let (mut expected, mut found) = (vec![f32::NAN; rows * outputs], vec![f32::NAN; rows * outputs]);
            for (index, (x, w)) in rounded.iter().zip(&weights).enumerate() {
                kernels.matmul_rounded(x, (w, Direction::Backward), index > 0, &mut expected);
            }
            let terms: Vec<_> = rounded.iter().zip(&weights).collect();
            kernels.sum_backward(&terms, &mut found);
            assert!(found == expected, "{isa}, {rows} x {outputs}");
        }
    }
}

/// Depths of one part and of two, outputs that end within a group, and no inputs at all.
#[test]
fn several_products_at_once_are_each_alone() {
    let mut random = Random(71);
    for (rows, inputs) in [(37, 70), (3, 1600), (5, 0)] {
        let matrices = [64, 33, 5].map(|outputs| random.matrix(DType::F32, outputs, inputs));
        let x = random.floats(rows * inputs);
        for isa in available_isas() {
            let kernels = Kernels::with_isa(isa, 2).unwrap();
            let weights = matrices.each_ref().map(pack);
            let mut rounded = Rounded::new();
            kernels.round(&x, rows, &mut rounded);
            let mut outputs = weights.each_ref().map(|w| (w, vec![f32::NAN; rows * w.rows()]));
            let mut borrowed = outputs.each_mut().map(|(w, out)| (&**w, &mut out[..]));
            kernels.matmul_rounded_each(&rounded, &mut borrowed);
            for (w, found) in &outputs {
                let mut expected = vec![f32::NAN; found.len()];
                kernels.matmul_rounded(&rounded, (w, Direction::Forward), false, &mut expected);
                assert_eq!(bits(found), bits(&expected), "{isa}, {inputs} inputs, {w:?}");
            }
        }
    }
}
