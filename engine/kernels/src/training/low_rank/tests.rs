//! Factors of low rank in bf16 against the same products one after the other in double precision.

use crate::samples::{Random, available_isas};
use crate::{Kernels, LowRank, LowRankGradients, LowRankInputs, Mask};

/// Rows, inputs, outputs, rank: whole squares and none, one task and many, one group of the rank and several, more than a part has rows.
const SHAPES: [(usize, usize, usize, usize); 6] =
    [(70, 64, 96, 16), (3, 20, 33, 5), (33, 45, 32, 40), (1, 32, 7, 1), (200, 16, 8, 270), (300, 24, 40, 3)];

/// What the passes leave: output, `low`, gradients of the input and of both factors.
struct Found {
    out: Vec<f32>,
    low: Vec<f32>,
    d_x: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
}

/// Values to begin with, so that sums are seen to be added.
const BEFORE: f32 = 0.25;

fn run(kernels: &Kernels, factors: &LowRank<'_>, x: &[f32], d_out: &[f32], goes_on: bool) -> Found {
    let rows = x.len() * factors.rank / factors.a.len();
    let filled = |len: usize| vec![BEFORE; len];
    let [mut out, mut low, mut d_x] = [d_out.len(), rows * factors.rank, x.len()].map(filled);
    let [mut a, mut b] = [factors.a.len(), factors.b.len()].map(filled);
    kernels.low_rank(factors, x, &mut low, &mut out);
    let inputs = LowRankInputs { x, low: &low, d_out };
    let gradients = LowRankGradients { a: &mut a, b: &mut b };
    kernels.low_rank_backward(factors, &inputs, goes_on.then_some(&mut d_x[..]), gradients);
    Found { out, low, d_x, a, b }
}

/// `left (m, k) * right (k, n)`, both given by their elements.
fn product(
    (m, k, n): (usize, usize, usize),
    left: impl Fn(usize, usize) -> f64,
    right: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let element = |at: usize| (0..k).map(|k| left(at / n, k) * right(k, at % n)).sum();
    (0..m * n).map(element).collect()
}

/// Near by the size of the terms: each factor of a product is rounded to 8 bits, and some are products of such.
fn assert_near(found: &[f32], expected: &[f64], before: f32, what: &str) {
    let size = (expected.iter().map(|x| x * x).sum::<f64>() / expected.len() as f64).sqrt();
    for (found, expected) in found.iter().zip(expected) {
        let expected = expected + f64::from(before);
        assert!((f64::from(*found) - expected).abs() <= 0.03 * (size + 0.01), "{what}: {found} not {expected}");
    }
}

#[test]
fn low_rank_factors_are_the_products_they_stand_for() {
    let mut random = Random(59);
    for (rows, inputs, outputs, rank) in SHAPES {
        let [x, a, b, d_out] =
            [rows * inputs, rank * inputs, outputs * rank, rows * outputs].map(|len| random.floats(len));
        for (isa, mask) in available_isas()
            .into_iter()
            .flat_map(|isa| [None, Some(Mask { rate: 0.3, key: 5 })].map(|mask| (isa, mask)))
        {
            let kernels = Kernels::with_isa(isa, 2).unwrap();
            let what = format!("{isa}, {rows} x {inputs} x {outputs}, rank {rank}, {mask:?}");
            let factors = LowRank { a: &a, b: &b, rank, scale: 2.0, mask };
            let found = run(&kernels, &factors, &x, &d_out, true);

            let mut ones = vec![1.0; x.len()];
            if let Some(mask) = &mask {
                let x = ones.clone();
                kernels.dropout(mask, &x, false, &mut ones);
            }
            let x = |row: usize, col: usize| f64::from(x[row * inputs + col] * ones[row * inputs + col]);
            let [a, b, d_out] = [(&a, inputs), (&b, rank), (&d_out, outputs)]
                .map(|(values, cols)| move |row: usize, col: usize| f64::from(values[row * cols + col]));
            let low: Vec<f64> = product((rows, inputs, rank), x, |k, r| 2.0 * a(r, k));
            assert_near(&found.low, &low, 0.0, &what);
            let low = |row: usize, r: usize| low[row * rank + r];
            assert_near(&found.out, &product((rows, rank, outputs), low, |r, col| b(col, r)), BEFORE, &what);
            assert_near(&found.b, &product((outputs, rows, rank), |col, row| d_out(row, col), low), BEFORE, &what);
            let d_low = product((rows, outputs, rank), d_out, |col, r| 2.0 * b(col, r));
            let d_low = |row: usize, r: usize| d_low[row * rank + r];
            assert_near(&found.a, &product((rank, rows, inputs), |r, row| d_low(row, r), x), BEFORE, &what);
            let mut d_x = product((rows, rank, inputs), d_low, a);
            d_x.iter_mut().zip(&ones).for_each(|(d_x, one)| *d_x *= f64::from(*one));
            assert_near(&found.d_x, &d_x, BEFORE, &what);
        }
    }
}

#[test]
fn low_rank_gradients_do_not_depend_on_threads_or_on_what_else_is_wanted() {
    let mut random = Random(61);
    let (rows, inputs, outputs, rank) = (170, 64, 96, 16);
    let [x, a, b, d_out] = [rows * inputs, rank * inputs, outputs * rank, rows * outputs].map(|len| random.floats(len));
    let factors = LowRank { a: &a, b: &b, rank, scale: 0.5, mask: Some(Mask { rate: 0.1, key: 3 }) };
    for isa in available_isas() {
        let [one, two] = [1, 2].map(|threads| Kernels::with_isa(isa, threads).unwrap());
        let (alone, both) = (run(&one, &factors, &x, &d_out, true), run(&two, &factors, &x, &d_out, false));
        assert!(alone.a == both.a && alone.b == both.b && alone.out == both.out && alone.low == both.low, "{isa}");
        assert!(both.d_x.iter().all(|&d_x| d_x == BEFORE), "{isa}");
    }
}

#[test]
#[should_panic(expected = "2 rows")]
fn low_rank_factors_refuse_rows_of_another_length() {
    let factors = LowRank { a: &[1.0; 32], b: &[1.0; 16], rank: 1, scale: 1.0, mask: None };
    Kernels::new(1).unwrap().low_rank(&factors, &[1.0; 64], &mut [0.0; 2], &mut [0.0; 31]);
}
