//! The paired sign test: are wins and losses as likely as each other?

/// Returns the two-sided exact p-value of `wins` against `losses`, ties left out. 1 where there is neither.
pub fn sign_test(wins: u64, losses: u64) -> f64 {
    let n = wins + losses;
    let fewer = wins.min(losses);
    // log of C(n, k) / 2^n, from k = 0 up; the tail is summed as numbers, small ones first.
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = log_term.exp();
    for k in 1..=fewer {
        log_term += ((n - k + 1) as f64 / k as f64).ln();
        tail += log_term.exp();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_values_by_hand() {
        // 9 of 10: 2 (1 + 10) / 1024.
        assert!((sign_test(9, 1) - 22.0 / 1024.0).abs() < 1e-12);
        assert!((sign_test(1, 9) - 22.0 / 1024.0).abs() < 1e-12);
        // 3 of 3: 2 / 8.
        assert!((sign_test(3, 0) - 0.25).abs() < 1e-12);
        assert_eq!((sign_test(5, 5), sign_test(0, 0)), (1.0, 1.0));
        assert!(sign_test(3000, 2000) < 1e-40);
    }
}
