//! Bootstrap confidence intervals, clustered: whole prompts are drawn, for rows of one prompt are not independent.

use fastrand::Rng;
use serde::{Deserialize, Serialize};

/// A confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// Confidence of every interval here.
const CONFIDENCE: f64 = 0.95;

/// Returns the 95 % percentile interval of a statistic over clusters drawn with replacement.
///
/// Draws on which the statistic has no value are passed over; `None` where no draw has one.
pub fn bootstrap<T>(
    clusters: &[T],
    num_draws: usize,
    seed: u64,
    statistic: impl Fn(&mut dyn Iterator<Item = &T>) -> Option<f64>,
) -> Option<Interval> {
    if clusters.is_empty() {
        return None;
    }
    let mut random = Rng::with_seed(seed);
    let mut values: Vec<f64> = Vec::with_capacity(num_draws);
    for _ in 0..num_draws {
        let mut drawn = (0..clusters.len()).map(|_| &clusters[random.usize(..clusters.len())]);
        values.extend(statistic(&mut drawn));
    }
    values.sort_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    Some(Interval { low: quantile(&values, tail)?, high: quantile(&values, 1.0 - tail)? })
}

/// The quantile of sorted values, linear between neighbours.
fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let place = q * sorted.len().checked_sub(1)? as f64;
    let below = sorted[place.floor() as usize];
    let above = sorted[place.ceil() as usize];
    Some(below + (above - below) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(values: &mut dyn Iterator<Item = &f64>) -> Option<f64> {
        let values: Vec<f64> = values.copied().collect();
        Some(values.iter().sum::<f64>() / values.len() as f64)
    }

    #[test]
    fn quantiles_by_hand() {
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.25), Some(2.0));
        assert_eq!(quantile(&[0.0, 10.0], 0.025), Some(0.25));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn the_interval_of_a_mean_is_near_the_normal_one() {
        // 100 values, half 0 and half 1: standard error 0.05, so the interval is about 0.5 +- 0.098.
        let values: Vec<f64> = (0..100).map(|i| f64::from(i % 2)).collect();
        let interval = bootstrap(&values, 2000, 7, mean).unwrap();
        assert!((interval.low - 0.402).abs() < 0.02 && (interval.high - 0.598).abs() < 0.02, "{interval:?}");
        assert_eq!(bootstrap(&values, 2000, 7, mean), Some(interval));
        assert_ne!(bootstrap(&values, 50, 8, mean), bootstrap(&values, 50, 9, mean));
    }

    #[test]
    fn one_cluster_has_no_spread_and_none_has_no_interval() {
        assert_eq!(bootstrap(&[3.0], 10, 1, mean), Some(Interval { low: 3.0, high: 3.0 }));
        assert_eq!(bootstrap(&[], 10, 1, mean), None);
        assert_eq!(bootstrap(&[1.0], 10, 1, |_| None), None);
    }
}
