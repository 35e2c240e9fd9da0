//! The inner steps of attention with AVX2.

use std::arch::x86_64::*;

use super::{Scores, Softmax};
use crate::elementwise::avx2::{add_lanes, exp, max_lane};

const LANES: usize = 8;
/// Vectors accumulated together: a head of 64.
const WIDE: usize = 8;

/// As `scalar::softmax`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn softmax(scores: &mut Scores, scale: f32, softmax: &mut Softmax) -> f32 {
    let vectors = [0, 8, 16, 24].map(|at| {
        // SAFETY: `Scores` is 32 floats, four vectors.
        let scores = unsafe { _mm256_loadu_ps(scores.as_ptr().add(at)) };
        _mm256_mul_ps(scores, _mm256_set1_ps(scale))
    });
    let [a, b, c, d] = vectors;
    let max = softmax.max.max(max_lane(_mm256_max_ps(_mm256_max_ps(a, b), _mm256_max_ps(c, d))));
    let correction = _mm256_cvtss_f32(exp(_mm256_set1_ps(softmax.max - max)));
    let weights = vectors.map(|vector| exp(_mm256_sub_ps(vector, _mm256_set1_ps(max))));
    for (out, weights) in scores.as_chunks_mut::<LANES>().0.iter_mut().zip(weights) {
        // SAFETY: `out` is 8 floats.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), weights) };
    }
    let [a, b, c, d] = weights;
    let sum = add_lanes(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d)));
    softmax.sum = softmax.sum * correction + sum;
    softmax.max = max;
    correction
}

/// As `scalar::weigh`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn weigh(acc: &mut [f32], correction: f32, weights: &[f32], values: &[&[f32]]) {
    assert_eq!(weights.len(), values.len(), "weights and values");
    assert!(values.iter().all(|value| value.len() == acc.len()), "elements of a value");
    let len = acc.len();
    let mut at = 0;
    // SAFETY: `at` plus the vectors of each call stays within `len`, the length of `acc` and of every value.
    unsafe {
        while at + WIDE * LANES <= len {
            weigh_vectors::<WIDE>(&mut acc[at..], correction, (weights, values), at);
            at += WIDE * LANES;
        }
        while at + LANES <= len {
            weigh_vectors::<1>(&mut acc[at..], correction, (weights, values), at);
            at += LANES;
        }
    }
    for (i, acc) in acc.iter_mut().enumerate().skip(at) {
        let terms = weights.iter().zip(values);
        *acc = terms.fold(*acc * correction, |sum, (weight, value)| weight.mul_add(value[i], sum));
    }
}

/// `N` vectors of the result, that start at element `at` of the values.
///
/// # Safety
/// `acc`, and every value from `at` on, hold `N` vectors.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn weigh_vectors<const N: usize>(
    acc: &mut [f32],
    correction: f32,
    (weights, values): (&[f32], &[&[f32]]),
    at: usize,
) {
    let mut sums = [_mm256_setzero_ps(); N];
    for (i, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let before = unsafe { _mm256_loadu_ps(acc.as_ptr().add(i * LANES)) };
        *sum = _mm256_mul_ps(before, _mm256_set1_ps(correction));
    }
    for (weight, value) in weights.iter().zip(values) {
        let weight = _mm256_set1_ps(*weight);
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let value = unsafe { _mm256_loadu_ps(value.as_ptr().add(at + i * LANES)) };
            *sum = _mm256_fmadd_ps(weight, value, *sum);
        }
    }
    for (i, sum) in sums.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(acc.as_mut_ptr().add(i * LANES), sum) };
    }
}
