//! Quantization: its error bound, equal bits on every instruction set, and fused equals apart.

use proptest::prelude::*;

use super::{BLOCK, Quantized};
use crate::Kernels;
use crate::samples::{Random, available_isas, bits};

/// Bits of the scale and of the scaled sum, the sums, the integers.
type Found = (u32, u32, i32, [i32; 2], [i8; BLOCK]);

/// What a row became, block by block: scale, sums and integers.
fn row(quantized: &Quantized, index: usize) -> Vec<Found> {
    let group = (0..quantized.num_groups()).find(|&group| quantized.group_rows(group).contains(&index)).unwrap();
    let place = index - quantized.group_rows(group).start;
    let group = quantized.group(group);
    (0..quantized.cols() / BLOCK)
        .map(|block| {
            let (at, meta) = (block * group.rows + place, &group.meta);
            let floats = (meta.scales[at].to_bits(), meta.scaled_sums[at].to_bits());
            (floats.0, floats.1, meta.negative_sums[at], meta.negative_half_sums[at], group.values[at])
        })
        .collect()
}

fn all(quantized: &Quantized) -> Vec<Vec<Found>> {
    (0..quantized.rows()).map(|index| row(quantized, index)).collect()
}

proptest! {
    #[test]
    fn a_value_is_within_half_a_step_and_every_isa_has_the_same_bits(
        (n, blocks) in (1_usize..30, 1_usize..6),
        seed in any::<u64>(),
        exponent in -36_i32..38,
    ) {
        let cols = blocks * BLOCK;
        let scale = 10_f32.powi(exponent);
        let x: Vec<f32> = Random(seed).floats(n * cols).into_iter().map(|x| x * scale).collect();
        let mut expected = None;
        for isa in available_isas() {
            let mut quantized = Quantized::new();
            Kernels::with_isa(isa, 1).unwrap().quantize(&x, n, &mut quantized);
            let rows = all(&quantized);
            for (x, row) in x.chunks(cols).zip(&rows) {
                for (x, (scale, _, negative_sum, half_sums, values)) in x.chunks(BLOCK).zip(row) {
                    let step = f64::from(f32::from_bits(*scale));
                    for (x, value) in x.iter().zip(values) {
                        let error = (f64::from(*x) - step * f64::from(*value)).abs();
                        prop_assert!(error <= 0.500_05 * step + 1e-35, "{} became {} x {}", x, value, step);
                    }
                    let sum: i32 = values.iter().map(|&value| i32::from(value)).sum();
                    prop_assert!(*negative_sum == -sum && half_sums[0] + half_sums[1] == -sum);
                }
            }
            prop_assert!(expected.get_or_insert_with(|| rows.clone()) == &rows, "{}", isa);
        }
    }
}

#[test]
fn fused_has_the_bits_of_apart_on_any_number_of_threads() {
    let (n, cols) = (45, 1088);
    let mut random = Random(21);
    let (x, y, weight) = (random.floats(n * cols), random.floats(n * cols), random.floats(cols));
    for isa in available_isas() {
        let one = Kernels::with_isa(isa, 1).unwrap();
        let quantized = |values: &[f32]| {
            let mut quantized = Quantized::new();
            one.quantize(values, n, &mut quantized);
            all(&quantized)
        };
        let (mut normed, mut gated) = (vec![0.0; x.len()], x.clone());
        one.rms_norm(&x, &weight, 1e-5, &mut normed);
        one.swiglu(&mut gated, &y);
        let (normed, gated) = (quantized(&normed), quantized(&gated));
        let mut fused = Quantized::new();
        for num_threads in 1..=3 {
            let kernels = Kernels::with_isa(isa, num_threads).unwrap();
            kernels.rms_norm_quantize(&x, &weight, 1e-5, &mut fused);
            assert!(all(&fused) == normed, "norm on {isa}, {num_threads} threads");
            kernels.swiglu_quantize(&x, &y, n, &mut fused);
            assert!(all(&fused) == gated, "swiglu on {isa}, {num_threads} threads");
        }
    }
}

#[test]
fn a_tie_goes_to_even_and_reserved_memory_is_kept() {
    for isa in available_isas() {
        let mut quantized = Quantized::new();
        quantized.reserve(3, 64);
        assert_eq!((quantized.rows(), quantized.cols()), (0, 0));
        let mut x = [0.0; BLOCK];
        x[..6].copy_from_slice(&[127.0, 0.5, 1.5, 2.5, -0.5, -127.0]);
        Kernels::with_isa(isa, 1).unwrap().quantize(&x, 1, &mut quantized);
        let (scale, _, _, _, values) = row(&quantized, 0)[0];
        assert_eq!((f32::from_bits(scale), &values[..6]), (1.0, &[127, 0, 2, 2, 0, -127][..]), "{isa}");
        assert_eq!(bits(&[1.0]), [scale]);
    }
}
