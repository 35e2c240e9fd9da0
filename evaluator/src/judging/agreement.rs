//! Agreement between judges: Cohen's kappa for two, Krippendorff's alpha for any number with gaps.

use std::collections::BTreeMap;

/// Returns Cohen's kappa of two judges who labelled the same items; `None` without items or where chance alone agrees fully.
pub fn cohen_kappa<L: Ord>(pairs: &[(L, L)]) -> Option<f64> {
    let n = pairs.len() as f64;
    let observed = pairs.iter().filter(|(a, b)| a == b).count() as f64 / n;
    let mut shares: BTreeMap<&L, (f64, f64)> = BTreeMap::new();
    for (a, b) in pairs {
        shares.entry(a).or_default().0 += 1.0 / n;
        shares.entry(b).or_default().1 += 1.0 / n;
    }
    let chance: f64 = shares.values().map(|(a, b)| a * b).sum();
    (!pairs.is_empty() && chance < 1.0).then(|| (observed - chance) / (1.0 - chance))
}

/// Returns Krippendorff's alpha for nominal labels; each item has one label for each judge, `None` where a judge gave none.
///
/// **Source**: Krippendorff, Content Analysis, through the coincidence matrix: 1 - (n - 1) disagreement / expected
/// disagreement. `None` where fewer than two labels can be paired, or all are equal.
pub fn krippendorff_alpha<L: Ord>(items: &[Vec<Option<L>>]) -> Option<f64> {
    let mut totals: BTreeMap<&L, f64> = BTreeMap::new();
    let mut disagreement = 0.0;
    for item in items {
        let labels: Vec<&L> = item.iter().flatten().collect();
        if labels.len() < 2 {
            continue;
        }
        let differing = labels.iter().flat_map(|a| labels.iter().filter(move |b| a != *b)).count();
        disagreement += differing as f64 / (labels.len() - 1) as f64;
        labels.iter().for_each(|label| *totals.entry(label).or_default() += 1.0);
    }
    let n: f64 = totals.values().sum();
    let expected = n * n - totals.values().map(|total| total * total).sum::<f64>();
    (expected > 0.0).then(|| 1.0 - (n - 1.0) * disagreement / expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kappa_by_hand() {
        // 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
        let pairs: Vec<(bool, bool)> = [(true, true, 20), (true, false, 5), (false, true, 10), (false, false, 15)]
            .into_iter()
            .flat_map(|(a, b, n)| std::iter::repeat_n((a, b), n))
            .collect();
        assert!((cohen_kappa(&pairs).unwrap() - 0.4).abs() < 1e-12);
        assert_eq!(cohen_kappa(&[(1, 1), (2, 2)]), Some(1.0));
        assert_eq!((cohen_kappa(&[(1, 1)]), cohen_kappa::<u8>(&[])), (None, None));
    }

    #[test]
    fn alpha_by_hand() {
        // Two judges, ten items, the labels of Krippendorff's first example (binary data): alpha 0.095.
        let first = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0];
        let second = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0];
        let items: Vec<Vec<Option<i32>>> = first.iter().zip(second).map(|(a, b)| vec![Some(*a), Some(b)]).collect();
        assert!((krippendorff_alpha(&items).unwrap() - 0.0952).abs() < 1e-3);
        let gaps = [vec![Some(1), None, Some(1)], vec![None, Some(2), Some(2)], vec![Some(1), None, None]];
        assert_eq!(krippendorff_alpha(&gaps), Some(1.0));
        assert_eq!(krippendorff_alpha(&[vec![Some(1), Some(1)]]), None);
    }
}
