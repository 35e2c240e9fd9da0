//! The meaning of the elementwise kernels. `add`, `rotate` and `rms_scale` are compiled again, from here, for every instruction
//! set: they neither reassociate nor fuse, so the compiler vectorises them without changing a bit.

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
