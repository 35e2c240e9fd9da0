//! The meaning of the two inner steps of attention.

use super::{Scores, Softmax};

/// Scales the scores, moves the running softmax on by them and turns them into unnormalised weights; returns the
/// factor on what was accumulated before. Lanes without a key hold negative infinity and get weight 0.
pub(crate) fn softmax(scores: &mut Scores, scale: f32, softmax: &mut Softmax) -> f32 {
    scores.iter_mut().for_each(|score| *score *= scale);
    let max = scores.iter().copied().fold(softmax.max, f32::max);
    let correction = (softmax.max - max).exp();
    scores.iter_mut().for_each(|score| *score = (*score - max).exp());
    softmax.sum = softmax.sum * correction + scores.iter().sum::<f32>();
    softmax.max = max;
    correction
}

/// `acc = acc * correction + sum_j weights[j] * values[j]`, in order of `j`.
pub(crate) fn weigh(acc: &mut [f32], correction: f32, weights: &[f32], values: &[&[f32]]) {
    assert_eq!(weights.len(), values.len(), "weights and values");
    acc.iter_mut().for_each(|acc| *acc *= correction);
    for (weight, value) in weights.iter().zip(values) {
        assert_eq!(value.len(), acc.len(), "elements of a value");
        for (acc, value) in acc.iter_mut().zip(*value) {
            *acc += weight * value;
        }
    }
}
