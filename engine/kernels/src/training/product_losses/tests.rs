//! Losses of products against losses in double precision.

use crate::samples::{Random, available_isas};
use crate::{Bf16Matrix, DType, Kernels, ProductLosses, Rounded};

/// What [`ProductLosses`] gives, in double precision.
fn expected(x: &[f32], w: &[Vec<f32>], target: usize) -> (f64, Vec<f64>) {
    let dot = |w: &Vec<f32>| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
    let logits: Vec<f64> = w.iter().map(dot).collect();
    let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - highest).exp()).sum();
    let mut gradient: Vec<f64> = w[target].iter().map(|&w| f64::from(w)).collect();
    for (logit, w) in logits.iter().zip(w) {
        let p = (logit - highest).exp() / sum;
        gradient.iter_mut().zip(w).for_each(|(gradient, w)| *gradient -= p * f64::from(*w));
    }
    (logits[target] - highest - sum.ln(), gradient)
}

/// Runs some rows of `x`, from the first on.
fn run(kernels: &Kernels, (x, w): (&[f32], &Bf16Matrix), targets: &[u32], with_gradient: bool) -> (Vec<f32>, Vec<f32>) {
    let (rows, inputs) = (targets.len(), w.cols());
    let mut rounded = Rounded::new();
    kernels.round(&x[..rows * inputs], rows, &mut rounded);
    let (mut logprobs, mut gradient) = (vec![0.0; rows], vec![f32::NAN; rows * inputs]);
    let to = with_gradient.then_some(&mut gradient[..]);
    kernels.product_losses(ProductLosses { x: &rounded, w, targets, logprobs: &mut logprobs, gradient: to });
    (logprobs, gradient)
}

/// Several parts, one strip, less than a group; rows of several blocks and more than a product takes at once; inputs that end within a
/// group; and in odd rows logits so far from the target's that exponentials relative to it are rough, or no numbers.
#[test]
fn losses_of_products_are_those_in_double_precision() {
    let mut random = Random(61);
    for (rows, vocab, inputs, scale) in [
        (37, 27_000, 40, 1.0),
        (5, 1030, 96, 4.0),
        (300, 300, 33, 1.0),
        (3, 20, 576, 1.0),
        (40, 2100, 64, 15.0),
        (40, 2100, 64, 60.0),
    ] {
        let matrix = random.matrix(DType::Bf16, vocab, inputs);
        let mut x = random.floats(rows * inputs);
        x.chunks_exact_mut(inputs).skip(1).step_by(2).flatten().for_each(|x| *x *= scale);
        let targets: Vec<u32> = (0..rows).map(|row| (row * 7919 % vocab) as u32).collect();
        let mut all_expected = Vec::new();
        for isa in available_isas() {
            let kernels = Kernels::with_isa(isa, 2).unwrap();
            let w = Bf16Matrix::pack_all(&[&matrix], kernels.pool()).pop().unwrap();
            let (logprobs, gradient) = run(&kernels, (&x, &w), &targets, true);
            assert_eq!(logprobs, run(&kernels, (&x, &w), &targets, false).0);
            // On one thread, and in other company, among it rows that all is computed again for.
            for (threads, num) in [(1, rows), (2, 1), (2, 2)] {
                let (logprobs_of, gradient_of) =
                    run(&Kernels::with_isa(isa, threads).unwrap(), (&x, &w), &targets[..num], true);
                assert!(logprobs[..num] == logprobs_of && gradient[..num * inputs] == gradient_of, "{isa}: {num} rows");
            }
            if all_expected.is_empty() {
                let mut decoded = vec![vec![0.0; inputs]; vocab];
                decoded.iter_mut().enumerate().for_each(|(row, out)| w.dequantize_row(row, out));
                let mut rounded = Rounded::new();
                kernels.round(&x, rows, &mut rounded);
                let mut x = vec![0.0; inputs];
                all_expected.extend(targets.iter().enumerate().map(|(row, &target)| {
                    rounded.widen_row(row, &mut x);
                    expected(&x, &decoded, target as usize)
                }));
            }
            for (row, (logprob, expected)) in all_expected.iter().enumerate() {
                let found = f64::from(logprobs[row]);
                let off = (found - logprob).abs();
                assert!(off < 2e-5 * logprob.abs().max(1.0), "{isa}, {vocab}: {found} not {logprob}");
                let longest = expected.iter().fold(0.0_f64, |longest, value| longest.max(value.abs()));
                for (found, expected) in gradient[row * inputs..][..inputs].iter().zip(expected) {
                    let off = (f64::from(*found) - expected).abs();
                    assert!(off < 4e-3 * longest.max(0.1), "{isa}, {vocab}: {found} not {expected}");
                }
            }
        }
    }
}

#[test]
fn a_row_that_is_no_number_is_seen_in_the_loss() {
    let matrix = Random(67).matrix(DType::Bf16, 1100, 32);
    for isa in available_isas() {
        let kernels = Kernels::with_isa(isa, 1).unwrap();
        let w = Bf16Matrix::pack_all(&[&matrix], kernels.pool()).pop().unwrap();
        for wrong in [f32::NAN, f32::INFINITY] {
            let mut x = vec![0.5; 2 * 32];
            x[3] = wrong;
            let (mut rounded, mut logprobs, mut gradient) = (Rounded::new(), [0.0; 2], [0.0; 2 * 32]);
            kernels.round(&x, 2, &mut rounded);
            let (targets, gradient) = (&[7, 9], Some(&mut gradient[..]));
            kernels.product_losses(ProductLosses { x: &rounded, w: &w, targets, logprobs: &mut logprobs, gradient });
            assert!(logprobs[0].is_nan() && logprobs[1].is_finite(), "{isa}: {wrong} gives {logprobs:?}");
        }
    }
}
