//! The inner steps of attention with AVX-512.

use std::arch::x86_64::*;

use super::{Scores, Softmax};
use crate::elementwise::avx512::exp2_or_zero;

const LANES: usize = 16;
/// Vectors accumulated together: a head of 64.
const WIDE: usize = 4;

/// As `scalar::softmax`, but in base two; a weight that would be a subnormal number is zero.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) fn softmax(scores: &mut Scores, scale: f32, softmax: &mut Softmax) -> f32 {
    let [low, high] = [0, LANES].map(|at| {
        // SAFETY: `Scores` is 32 floats, two vectors.
        unsafe { _mm512_loadu_ps(scores.as_ptr().add(at)) }
    });
    let scale = scale * std::f32::consts::LOG2_E;
    let max = softmax.max.max(scale * _mm512_reduce_max_ps(_mm512_max_ps(low, high)));
    let correction = _mm512_cvtss_f32(exp2_or_zero(_mm512_set1_ps(softmax.max - max)));
    // Multiplied first, so that the highest score has a weight of exactly 1.
    let [low, high] = [low, high].map(|scores| {
        let scaled = _mm512_mul_ps(scores, _mm512_set1_ps(scale));
        exp2_or_zero(_mm512_sub_ps(scaled, _mm512_set1_ps(max)))
    });
    // SAFETY: as above.
    unsafe {
        _mm512_storeu_ps(scores.as_mut_ptr(), low);
        _mm512_storeu_ps(scores.as_mut_ptr().add(LANES), high);
    }
    softmax.sum = softmax.sum * correction + _mm512_reduce_add_ps(_mm512_add_ps(low, high));
    softmax.max = max;
    correction
}

/// As `scalar::weigh`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) fn weigh(acc: &mut [f32], correction: f32, weights: &[f32], values: &[&[f32]]) {
    assert_eq!(weights.len(), values.len(), "weights and values");
    assert!(values.iter().all(|value| value.len() == acc.len()), "elements of a value");
    let len = acc.len();
    let mut at = 0;
    // SAFETY: `at` plus the vectors of each call stays within `len`, the length of `acc` and of every value.
    unsafe {
        while at + WIDE * LANES <= len {
            weigh_vectors::<WIDE>(&mut acc[at..], correction, (weights, values), (at, !0));
            at += WIDE * LANES;
        }
        while at + LANES <= len {
            weigh_vectors::<1>(&mut acc[at..], correction, (weights, values), (at, !0));
            at += LANES;
        }
        if at < len {
            weigh_vectors::<1>(&mut acc[at..], correction, (weights, values), (at, (1 << (len - at)) - 1));
        }
    }
}

/// `N` vectors of the result, each cut by the mask, that start at element `at` of the values.
///
/// # Safety
/// `acc`, and every value from `at` on, hold `N` vectors cut by the mask.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
unsafe fn weigh_vectors<const N: usize>(
    acc: &mut [f32],
    correction: f32,
    (weights, values): (&[f32], &[&[f32]]),
    (at, mask): (usize, __mmask16),
) {
    let mut sums = [_mm512_setzero_ps(); N];
    for (i, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let before = unsafe { _mm512_maskz_loadu_ps(mask, acc.as_ptr().add(i * LANES)) };
        *sum = _mm512_mul_ps(before, _mm512_set1_ps(correction));
    }
    // Every other value goes to a second sum: twice as many additions are under way at a time.
    let mut odd_sums = [_mm512_setzero_ps(); N];
    for (weights, values) in weights.chunks(2).zip(values.chunks(2)) {
        for ((weight, value), sums) in weights.iter().zip(values).zip([&mut sums, &mut odd_sums]) {
            let weight = _mm512_set1_ps(*weight);
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let value = unsafe { _mm512_maskz_loadu_ps(mask, value.as_ptr().add(at + i * LANES)) };
                *sum = _mm512_fmadd_ps(weight, value, *sum);
            }
        }
    }
    for (sum, odd_sum) in sums.iter_mut().zip(odd_sums) {
        *sum = _mm512_add_ps(*sum, odd_sum);
    }
    for (i, sum) in sums.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { _mm512_mask_storeu_ps(acc.as_mut_ptr().add(i * LANES), mask, sum) };
    }
}
