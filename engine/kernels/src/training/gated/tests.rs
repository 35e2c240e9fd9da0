//! The gate in one kernel with its products, against products, SwiGLU and rounding one after the other.

use crate::samples::{Random, available_isas};
use crate::{Bf16Matrix, DType, Direction, Kernels, Rounded};

/// Rows of several blocks and of one, columns that end within a group, a depth of one part and of two, more rows than a part.
const SHAPES: [(usize, usize, usize, usize); 4] =
    [(37, 70, 96, 45), (3, 33, 32, 20), (300, 40, 64, 33), (20, 50, 1600, 1650)];

fn rounded(kernels: &Kernels, x: &[f32], rows: usize) -> Rounded {
    let mut rounded = Rounded::new();
    kernels.round(x, rows, &mut rounded);
    rounded
}

fn assert_same(found: &Rounded, expected: &Rounded, what: &str) {
    assert_eq!((found.rows(), found.cols()), (expected.rows(), expected.cols()), "{what}");
    (0..found.rows()).for_each(|row| assert!(found.row(row).eq(expected.row(row)), "{what}, row {row}"));
}

/// What rounding has left of floats.
fn widened(rounded: &Rounded) -> Vec<f32> {
    let row = |row: usize| {
        let pairs = rounded.row(row).flat_map(|pair| [pair << 16, pair & 0xFFFF_0000]);
        pairs.take(rounded.cols()).map(f32::from_bits)
    };
    (0..rounded.rows()).flat_map(row).collect()
}

#[test]
fn a_gate_in_one_kernel_is_its_steps_one_after_the_other() {
    let mut random = Random(53);
    for (rows, cols, inputs, outputs) in SHAPES {
        let matrices = [(cols, inputs), (cols, inputs), (outputs, cols)];
        let matrices = matrices.map(|(rows, cols)| random.matrix(DType::Bf16, rows, cols));
        let (x, d_out) = (random.floats(rows * inputs), random.floats(rows * outputs));
        for isa in available_isas() {
            let kernels = Kernels::with_isa(isa, 2).unwrap();
            let weights = Bf16Matrix::pack_all(&matrices.each_ref(), kernels.pool());
            let (x, d_out) = (rounded(&kernels, &x, rows), rounded(&kernels, &d_out, rows));
            let product = |x: &Rounded, w: (usize, Direction)| {
                let mut out = vec![0.0; rows * cols];
                kernels.matmul_rounded(x, (&weights[w.0], w.1), false, &mut out);
                out
            };
            let [gate, up] = [0, 1].map(|index| product(&x, (index, Direction::Forward)));
            let mut wide = gate.clone();
            kernels.swiglu(&mut wide, &up);
            let expected = [&gate, &up, &wide].map(|floats| rounded(&kernels, floats, rows));

            let what = format!("{isa}, {rows} x {cols}");
            let (mut kept, mut out) = ([Rounded::new(), Rounded::new()], Rounded::new());
            kernels.gated_rounded(&x, [&weights[0], &weights[1]], &mut kept, &mut out);
            let mut kept_floats = [Rounded::new(), Rounded::new()];
            let mut out_of_floats = Rounded::new();
            kernels.gate_rounded((&gate, &up), rows, &mut kept_floats, &mut out_of_floats);
            for found in [[&kept[0], &kept[1], &out], [&kept_floats[0], &kept_floats[1], &out_of_floats]] {
                found.into_iter().zip(&expected).for_each(|(found, expected)| assert_same(found, expected, &what));
            }

            let [mut d_gate, mut d_up] = kept.each_ref().map(widened);
            let (mut wide, mut expected) = (d_gate.clone(), vec![0.0; rows * cols]);
            kernels.swiglu(&mut wide, &d_up);
            kernels.gate_kept(&kept, &mut expected);
            assert!(wide == expected, "{what}");
            let d_wide = product(&d_out, (2, Direction::Backward));
            kernels.swiglu_backward(&mut d_gate, &mut d_up, &d_wide);
            kernels.gated_backward(&d_out, &weights[2], &mut kept);
            let mut floats = [vec![0.0; rows * cols], vec![0.0; rows * cols]];
            kernels.gate_backward(&d_wide, &mut kept_floats, floats.each_mut().map(|out| &mut out[..]));
            for (index, exact) in [d_gate, d_up].iter().enumerate() {
                // The last columns of a row are no longer whole vectors in a slice of rows, and may differ in their last bits.
                for (found, exact) in floats[index].iter().zip(exact) {
                    assert!((found - exact).abs() <= 1e-6 * (1.0 + exact.abs()), "{what}: {found} not {exact}");
                }
                let expected = rounded(&kernels, &floats[index], rows);
                assert_same(&kept[index], &expected, &what);
                assert_same(&kept_floats[index], &expected, &what);
            }
        }
    }
}

#[test]
fn a_gate_of_no_rows_is_no_rows() {
    let kernels = Kernels::new(1).unwrap();
    let mut random = Random(3);
    let matrices = [(64, 32), (64, 32), (8, 64)].map(|(rows, cols)| random.matrix(DType::Bf16, rows, cols));
    let weights = Bf16Matrix::pack_all(&matrices.each_ref(), kernels.pool());
    let (x, d_out) = (rounded(&kernels, &[], 0), rounded(&kernels, &[], 0));
    let (mut kept, mut out) = ([rounded(&kernels, &[1.0; 4], 2), Rounded::new()], Rounded::new());
    kernels.gated_rounded(&x, [&weights[0], &weights[1]], &mut kept, &mut out);
    kernels.gated_backward(&d_out, &weights[2], &mut kept);
    for rounded in kept.iter().chain([&out]) {
        assert_eq!((rounded.rows(), rounded.cols()), (0, 64));
    }
}

#[test]
#[should_panic(expected = "what was kept before")]
fn gates_of_another_shape_are_refused() {
    let kernels = Kernels::new(1).unwrap();
    let down = Bf16Matrix::pack_all(&[&Random(1).matrix(DType::Bf16, 8, 64)], kernels.pool()).pop().unwrap();
    let mut kept = [(); 2].map(|()| rounded(&kernels, &[1.0; 2 * 32], 2));
    kernels.gated_backward(&rounded(&kernels, &[1.0; 2 * 8], 2), &down, &mut kept);
}
