//! Products of rounded activations with packed weights: the bits of weights packed in bf16, in any batch.

use proptest::prelude::*;

use super::super::tests::{cols_of, pack, packed_dtypes};
use super::*;
use crate::Kernels;
use crate::bf16::{Bf16Matrix, Direction};
use crate::samples::{Random, available_isas, bits};

fn product(
    kernels: &Kernels,
    (x, n): (&[f32], usize),
    w: &PackedMatrix,
    bias: Option<&[f32]>,
    out: Option<&[f32]>,
) -> Vec<f32> {
    let mut rounded = Rounded::new();
    let mut found = out.map_or_else(|| vec![f32::NAN; n * w.rows()], <[f32]>::to_vec);
    kernels.round(x, n, &mut rounded);
    let product = PackedProduct { weight: w, bias, accumulate: out.is_some(), out: &mut found };
    kernels.matmul_packed_bf16(&rounded, &mut [product]);
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Decoded on the way or packed as bf16 before: the same bits, on every instruction set.
    #[test]
    fn the_bits_are_those_of_weights_packed_in_bf16(
        dtype in proptest::sample::select(packed_dtypes()),
        (rows, cols) in (1_usize..80, prop_oneof![1_usize..700, 2040_usize..2100]),
        n in prop_oneof![1_usize..70, Just(300)],
        seed in any::<u64>(),
        (add, with_bias) in any::<(bool, bool)>(),
    ) {
        let cols = cols_of(dtype, cols.next_multiple_of(32));
        let mut random = Random(seed);
        let w = random.matrix(dtype, rows, cols);
        let (x, before, bias) = (random.floats(n * cols), random.floats(n * rows), random.floats(rows));
        let (packed, before, bias) = (pack(&w), add.then_some(&before[..]), with_bias.then_some(&bias[..]));
        for isa in available_isas() {
            let kernels = Kernels::with_isa(isa, 2).unwrap();
            let found = product(&kernels, (&x, n), &packed, bias, before);
            let plain = Bf16Matrix::pack_all(&[&w], kernels.pool()).pop().unwrap();
            let mut expected = before.map_or_else(|| vec![0.0; n * rows], <[f32]>::to_vec);
            kernels.matmul_bf16(&x, (&plain, Direction::Forward), add, &mut expected);
            if let Some(bias) = bias {
                kernels.add_bias(&mut expected, bias);
            }
            prop_assert!(bits(&found) == bits(&expected), "{} on {}", dtype, isa);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Gate and up computed apart, gated and rounded: the same bits, on every instruction set.
    #[test]
    fn a_gate_has_the_bits_of_its_steps(
        dtype in proptest::sample::select(packed_dtypes()),
        (rows, cols) in (1_usize..80, prop_oneof![1_usize..700, 2040_usize..2100]),
        n in prop_oneof![0_usize..70, Just(300)],
        seed in any::<u64>(),
    ) {
        let cols = cols_of(dtype, cols.next_multiple_of(32));
        let mut random = Random(seed);
        let weights = [(); 2].map(|()| pack(&random.matrix(dtype, rows, cols)));
        let x = random.floats(n * cols);
        for isa in available_isas() {
            let kernels = Kernels::with_isa(isa, 2).unwrap();
            let [mut gate, up] = weights.each_ref().map(|w| product(&kernels, (&x, n), w, None, None));
            kernels.swiglu(&mut gate, &up);
            let [mut rounded, mut expected, mut found] = [(); 3].map(|()| Rounded::new());
            // What it held before may have been larger.
            kernels.round(&vec![f32::NAN; 2 * (n + 9) * (rows + 33)], n + 9, &mut found);
            kernels.round(&gate, n, &mut expected);
            kernels.round(&x, n, &mut rounded);
            kernels.matmul_packed_gated_bf16(&rounded, weights.each_ref(), &mut found);
            prop_assert_eq!((found.rows(), found.cols()), (n, rows));
            for row in 0..n {
                let pairs = |rounded: &Rounded| rounded.row(row).collect::<Vec<_>>();
                prop_assert!(pairs(&found) == pairs(&expected), "{} on {}, row {}", dtype, isa, row);
            }
        }
    }
}

/// Activations that leave a second-level cache: some groups are computed together, also of different products.
#[test]
fn groups_together_have_the_bits_of_groups_apart() {
    let (n, cols, few) = (260, 2048, 130);
    assert!(n * cols / 2 > X_PAIRS && few * cols / 2 <= X_PAIRS);
    let mut random = Random(11);
    let weights = [161, 70, 100, 161].map(|rows| pack(&random.matrix(crate::DType::Q4_1, rows, cols)));
    assert!(weights[..3].iter().map(|w| w.rows().div_ceil(GROUP)).sum::<usize>() >= TOGETHER * TASKS_PER_THREAD);
    let x = random.floats(n * cols);
    for isa in available_isas() {
        let kernels = Kernels::with_isa(isa, 1).unwrap();
        let compute = |x: &[f32]| {
            let (rows, mut rounded, mut gated) = (x.len() / cols, Rounded::new(), Rounded::new());
            kernels.round(x, rows, &mut rounded);
            let mut outs = [0, 1, 2].map(|i| vec![0.5; rows * weights[i].rows()]);
            let bias = vec![0.25; 70];
            let mut products = weights.iter().zip(&mut outs).map(|(weight, out)| PackedProduct::new(weight, out));
            let mut products: [PackedProduct<'_>; 3] = std::array::from_fn(|_| products.next().unwrap());
            (products[0].accumulate, products[1].bias) = (true, Some(&bias[..]));
            kernels.matmul_packed_bf16(&rounded, &mut products);
            kernels.matmul_packed_gated_bf16(&rounded, [&weights[0], &weights[3]], &mut gated);
            let gated: Vec<u32> = (0..rows).flat_map(|row| gated.row(row).collect::<Vec<_>>()).collect();
            let [a, b, c] = outs.map(|out| bits(&out));
            [a, b, c, gated]
        };
        let (together, apart) = (compute(&x), x.chunks(few * cols).map(compute).collect::<Vec<_>>());
        for (i, together) in together.iter().enumerate() {
            let apart: Vec<u32> = apart.iter().flat_map(|parts| parts[i].clone()).collect();
            assert!(*together == apart, "product {i} on {isa}");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_in_any_batch_and_beside_other_products() {
    let mut random = Random(5);
    for isa in available_isas() {
        let kernels = Kernels::with_isa(isa, 2).unwrap();
        for dtype in packed_dtypes() {
            let (rows, cols) = (70, cols_of(dtype, 576));
            let w = pack(&random.matrix(dtype, rows, cols));
            let x = random.floats(50 * cols);
            let alone: Vec<u32> =
                x.chunks(cols).flat_map(|x| bits(&product(&kernels, (x, 1), &w, None, None))).collect();
            for n in [2, 15, 16, 17, 32, 33, 50] {
                let rows = x.chunks(n * cols);
                let found: Vec<f32> =
                    rows.flat_map(|x| product(&kernels, (x, x.len() / cols), &w, None, None)).collect();
                assert_eq!(bits(&found), alone, "{dtype} on {isa}, {n} rows at a time");
            }
            let (mut rounded, mut outs) = (Rounded::new(), [vec![0.0; 50 * rows], vec![0.0; 50 * rows]]);
            kernels.round(&x, 50, &mut rounded);
            let [a, b] = &mut outs;
            kernels.matmul_packed_bf16(&rounded, &mut [PackedProduct::new(&w, a), PackedProduct::new(&w, b)]);
            outs.iter().for_each(|out| assert_eq!(bits(out), alone, "{dtype} on {isa}, two products"));
        }
    }
}
