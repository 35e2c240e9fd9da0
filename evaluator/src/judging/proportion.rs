//! Proportions: Wilson's interval, and the standard error of a mean over clusters.

use super::Interval;

/// The 97.5 % quantile of the normal distribution, for intervals of 95 %.
const Z: f64 = 1.959_963_984_540_054;

/// Returns Wilson's 95 % score interval of a proportion; `None` for 0 of 0.
///
/// `hits` may be fractional, as where a tie counts half.
pub fn wilson(hits: f64, total: f64) -> Option<Interval> {
    if total <= 0.0 {
        return None;
    }
    let p = hits / total;
    let z2 = Z * Z / total;
    let centre = (p + z2 / 2.0) / (1.0 + z2);
    let half = Z / (1.0 + z2) * (p * (1.0 - p) / total + z2 / (4.0 * total)).sqrt();
    Some(Interval { low: (centre - half).max(0.0), high: (centre + half).min(1.0) })
}

/// Returns the standard error of the mean over all values, whose clusters are independent and whose members need not be.
///
/// **Source**: the linearised variance of a ratio of cluster sums. `None` for fewer than two clusters.
pub fn clustered_standard_error(clusters: &[Vec<f64>]) -> Option<f64> {
    let num_values: usize = clusters.iter().map(Vec::len).sum();
    let num_clusters = clusters.iter().filter(|cluster| !cluster.is_empty()).count() as f64;
    if num_clusters < 2.0 {
        return None;
    }
    let mean = clusters.iter().flatten().sum::<f64>() / num_values as f64;
    let residuals = clusters.iter().map(|cluster| cluster.iter().map(|value| value - mean).sum::<f64>());
    let square_sum: f64 = residuals.map(|residual| residual * residual).sum();
    Some((square_sum * num_clusters / (num_clusters - 1.0)).sqrt() / num_values as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_by_hand() {
        // 8 of 10: centre (0.8 + 0.19207) / 1.38415 = 0.71674, half width 0.22660.
        let interval = wilson(8.0, 10.0).unwrap();
        assert!((interval.low - 0.4902).abs() < 1e-4 && (interval.high - 0.9433).abs() < 1e-4, "{interval:?}");
        assert_eq!(wilson(0.0, 5.0).unwrap().low, 0.0);
        assert_eq!(wilson(5.0, 5.0).unwrap().high, 1.0);
        assert_eq!(wilson(0.0, 0.0), None);
    }

    #[test]
    fn clusters_of_one_give_the_usual_standard_error() {
        // Values 0, 0, 1, 1: variance 1/3, standard error sqrt(1/12).
        let single = [vec![0.0], vec![0.0], vec![1.0], vec![1.0]];
        assert!((clustered_standard_error(&single).unwrap() - (1.0f64 / 12.0).sqrt()).abs() < 1e-12);
        // The same values twice in each cluster bring no more certainty.
        let double = [vec![0.0; 2], vec![0.0; 2], vec![1.0; 2], vec![1.0; 2]];
        assert!((clustered_standard_error(&double).unwrap() - (1.0f64 / 12.0).sqrt()).abs() < 1e-12);
        assert_eq!(clustered_standard_error(&[vec![1.0, 0.0]]), None);
    }
}
