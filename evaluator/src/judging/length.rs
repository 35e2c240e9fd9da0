//! The length-controlled win rate: what the win rate would be if both responses were equally long.
//!
//! A logistic regression `P(win) = sigmoid(skill + length * tanh(d / deviation))` on `d`, the difference of the lengths in
//! words, a tie being half a win. With `d = 0` what is left is `sigmoid(skill)`. The idea is that of AlpacaEval 2, without
//! its terms for the difficulty of each prompt. A small ridge on `length` keeps the fit finite where length alone separates wins
//! from losses; `skill` has an even smaller one for the case that everything is won.

use serde::{Deserialize, Serialize};

/// A fit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LengthControlled {
    /// The win rate at equal lengths.
    pub win_rate: f64,
    /// How much the log-odds of a win change for a response that is much longer; positive favours length.
    pub length_effect: f64,
}

/// Penalty of the length's coefficient: that of one pseudo-observation with a normal prior of variance 10.
const RIDGE_LENGTH: f64 = 0.1;
/// Penalty of the intercept: with it 100 of 100 wins give 0.9996 and not infinity.
const RIDGE_SKILL: f64 = 1e-3;
/// Newton's method on this convex function needs some 6 steps; more only where everything is won.
const NUM_STEPS_MAX: usize = 100;

/// Fits the wins (1, 0.5 or 0) to the differences in length, in words. `None` without pairs.
pub fn length_controlled(pairs: &[(f64, f64)]) -> Option<LengthControlled> {
    if pairs.is_empty() {
        return None;
    }
    let square_mean = pairs.iter().map(|(_, d)| d * d).sum::<f64>() / pairs.len() as f64;
    let deviation = if square_mean > 0.0 { square_mean.sqrt() } else { 1.0 };
    let points: Vec<(f64, f64)> = pairs.iter().map(|(win, d)| (*win, (d / deviation).tanh())).collect();
    let (mut skill, mut length) = (0.0, 0.0);
    for _ in 0..NUM_STEPS_MAX {
        let (mut g0, mut g1) = (-RIDGE_SKILL * skill, -RIDGE_LENGTH * length);
        let (mut h00, mut h01, mut h11) = (RIDGE_SKILL, 0.0, RIDGE_LENGTH);
        for (win, x) in &points {
            let p = sigmoid(skill + length * x);
            let weight = p * (1.0 - p);
            g0 += win - p;
            g1 += (win - p) * x;
            h00 += weight;
            h01 += weight * x;
            h11 += weight * x * x;
        }
        let determinant = h00 * h11 - h01 * h01;
        let step = ((g0 * h11 - g1 * h01) / determinant, (g1 * h00 - g0 * h01) / determinant);
        // A step of more than 1 in log-odds is shortened, so that flat regions are not overshot.
        let scale = 1.0 / f64::max(1.0, step.0.abs().max(step.1.abs()));
        skill += scale * step.0;
        length += scale * step.1;
        if step.0.abs().max(step.1.abs()) < 1e-10 {
            break;
        }
    }
    Some(LengthControlled { win_rate: sigmoid(skill), length_effect: length })
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_length_it_is_the_win_rate() {
        let pairs: Vec<(f64, f64)> = (0..100).map(|i| (if i < 75 { 1.0 } else { 0.0 }, 0.0)).collect();
        let fit = length_controlled(&pairs).unwrap();
        assert!((fit.win_rate - 0.75).abs() < 1e-4 && fit.length_effect.abs() < 1e-9, "{fit:?}");
    }

    #[test]
    fn a_win_rate_that_is_all_length_becomes_even() {
        // Of the longer responses 55 win and 11 lose, of the shorter ones 10 and 50: odds of 5 and 1/5, so no skill.
        let mut pairs = vec![(1.0, 40.0); 50];
        pairs.extend([(0.0, 40.0); 10]);
        pairs.extend([(1.0, -40.0); 10]);
        pairs.extend([(0.0, -40.0); 50]);
        pairs.extend([(1.0, 40.0); 5]);
        pairs.extend([(0.0, 40.0); 1]);
        let fit = length_controlled(&pairs).unwrap();
        assert!((fit.win_rate - 0.5).abs() < 0.01 && fit.length_effect > 1.5, "{fit:?}");
    }

    #[test]
    fn extremes_stay_finite() {
        let fit = length_controlled(&[(1.0, 5.0); 30]).unwrap();
        assert!(fit.win_rate > 0.9 && fit.win_rate <= 1.0 && fit.length_effect.is_finite());
        assert_eq!(length_controlled(&[]), None);
    }
}
