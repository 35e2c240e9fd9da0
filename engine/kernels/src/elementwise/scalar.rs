//! The meaning of the elementwise kernels. `add`, `rotate`, `rms_scale`, `layer_norm` and `gelu` are compiled again, from here,
//! for every instruction set (`rotate` of interleaved pairs not for AVX-512): they neither reassociate nor fuse, so the compiler
//! vectorises them without changing a bit.

use half::f16;

use crate::RopeStyle;

/// `out = x / sqrt(mean(x^2) + eps) * weight`.
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    rms_scale(x, weight, rms_factor(x, eps), out);
}

/// `1 / sqrt(mean(x^2) + eps)`.
pub(crate) fn rms_factor(x: &[f32], eps: f32) -> f32 {
    let sum: f32 = x.iter().map(|x| x * x).sum();
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

/// `out = x * factor * weight`.
#[inline(always)]
pub(crate) fn rms_scale(x: &[f32], weight: &[f32], factor: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "a row, its weight and its output differ in length");
    for ((x, weight), out) in x.iter().zip(weight).zip(out) {
        *out = x * factor * weight;
    }
}

/// `gate = gate / (1 + exp(-gate)) * up`.
pub(crate) fn swiglu(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up");
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + (-*gate).exp()) * up;
    }
}

/// `x += y`.
#[inline(always)]
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "terms of a sum");
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// `x = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias`, the variance being that of the whole row.
#[inline(always)]
pub(crate) fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    assert!(x.len() == weight.len() && x.len() == bias.len(), "a row, its weight and its bias differ in length");
    let len = x.len() as f32;
    let mean = sum(x, |x| x) / len;
    let factor = 1.0 / (sum(x, |x| (x - mean) * (x - mean)) / len + eps).sqrt();
    for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
        *x = (*x - mean) * factor * weight + bias;
    }
}

/// Adds up the terms of a row in as many lanes as a vector has, always in the same order.
#[inline(always)]
fn sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; 8];
    let (whole, rest) = x.as_chunks::<8>();
    for chunk in whole {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += term(*x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += term(*x);
    }
    lanes.iter().sum()
}

/// `x = x / 2 (1 + erf(x / sqrt(2)))`.
#[inline(always)]
pub(crate) fn gelu(x: &mut [f32]) {
    for x in x {
        *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
    }
}

/// Where erf is 1 but for 3e-8.
const ERF_END: f32 = 3.95;
/// `erf(x) = x P(x^2) / Q(x^2)` up to [`ERF_END`], lowest power first: fitted to the least relative error, 2e-8 before rounding.
#[expect(clippy::approx_constant, reason = "fitted with the others; near 2 / sqrt(pi), but not it")]
const ERF_P: [f32; 6] = [1.128_379_1, 0.191_548_8, 0.052_875_206, 0.003_808_085_8, 2.846_843_6e-4, 2.025_898_3e-6];
const ERF_Q: [f32; 6] = [1.0, 0.503_088_36, 0.114_558_96, 0.015_054_939, 0.001_170_704_3, 3.783_152_4e-5];

/// The error function to within 5e-7.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-ERF_END, ERF_END);
    let square = x * x;
    let polynomial = |c: &[f32; 6]| c.iter().rev().fold(0.0, |sum, c| sum * square + c);
    (x * polynomial(&ERF_P) / polynomial(&ERF_Q)).clamp(-1.0, 1.0)
}

/// Converts to half precision, ties to even.
pub(crate) fn halves(x: &[f32], out: &mut [f16]) {
    assert_eq!(x.len(), out.len(), "halves");
    out.iter_mut().zip(x).for_each(|(out, x)| *out = f16::from_f32(*x));
}

/// Rotates the pairs of one head.
#[inline(always)]
pub(crate) fn rotate(style: RopeStyle, cos: &[f32], sin: &[f32], head: &mut [f32]) {
    assert!(cos.len() == sin.len() && head.len() == 2 * cos.len(), "a head and its angles");
    match style {
        RopeStyle::Half => {
            let (first, second) = head.split_at_mut(cos.len());
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
        RopeStyle::Interleaved => {
            for (([a, b], cos), sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}
