//! Reductions over the logits of one row.

/// Lanes that compare independently, so that the compiler can use vectors.
const LANES: usize = 32;
/// Values whose largest is found before their places are looked at.
const RUN: usize = 512;

/// `ln(sum(exp(x)))`, with the largest value subtracted first; negative infinity for an empty slice, NaN if any
/// value is NaN.
pub fn log_sum_exp(values: &[f32]) -> f32 {
    let max = max(values);
    if max.is_infinite() {
        // All are negative infinity, or the sum is infinite; unless a NaN is among them.
        return if values.iter().any(|value| value.is_nan()) { f32::NAN } else { max };
    }
    let sum: f64 = values.iter().map(|value| f64::from((value - max).exp())).sum();
    max + sum.ln() as f32
}

/// Index of the first largest value; NaN never wins, and a slice without numbers gives 0.
pub fn argmax(values: &[f32]) -> usize {
    // The largest of a run without its place, then its place in the one run that has it.
    let mut best = (f32::NEG_INFINITY, 0);
    for (run, start) in values.chunks(RUN).zip((0..).step_by(RUN)) {
        let max = max(run);
        if max > best.0 {
            best = (max, start);
        }
    }
    let (max, start) = best;
    values[start..].iter().position(|&value| value == max).map_or(0, |place| start + place)
}

/// The largest number, negative infinity if there is none.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &value| if value > max { value } else { max })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn log_sum_exp_is_stable_and_total() {
        assert!((log_sum_exp(&[1.0, 2.0, 3.0]) - 3.407_606).abs() < 1e-6);
        assert!((log_sum_exp(&[1000.0, 1000.0]) - (1000.0 + 2_f32.ln())).abs() < 1e-4);
        assert_eq!(log_sum_exp(&[-1e30, 5.0]), 5.0);
        assert_eq!(log_sum_exp(&[]), f32::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY; 3]), f32::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[1.0, f32::INFINITY]), f32::INFINITY);
        assert!(log_sum_exp(&[1.0, f32::NAN]).is_nan() && log_sum_exp(&[f32::NAN]).is_nan());
    }

    proptest! {
        /// Equals, infinities and what is not a number among them, in more than one run.
        #[test]
        fn argmax_is_the_first_of_equals(
            values in proptest::collection::vec(prop_oneof![-9_i8..9, Just(i8::MIN), Just(i8::MAX)], 1..1200),
            highest in -9_i8..9,
        ) {
            let value = |value: i8| match value {
                i8::MIN => f32::NAN,
                i8::MAX => f32::NEG_INFINITY,
                value => f32::from(value.min(highest)),
            };
            let values: Vec<f32> = values.into_iter().map(value).collect();
            let mut expected = (f32::NEG_INFINITY, 0);
            for (place, &value) in values.iter().enumerate() {
                if value > expected.0 {
                    expected = (value, place);
                }
            }
            prop_assert!(argmax(&values) == expected.1 || expected.0 == f32::NEG_INFINITY);
        }
    }

    #[test]
    fn argmax_is_the_first_largest_number() {
        let mut values = vec![0.5; 100];
        assert_eq!(argmax(&values), 0);
        values[37] = 2.0;
        values[99] = 2.0;
        values[3] = f32::NAN;
        assert_eq!(argmax(&values), 37);
        assert_eq!(argmax(&[f32::NAN, -1.0, -1.0]), 1);
        assert_eq!(argmax(&[f32::NEG_INFINITY, f32::NEG_INFINITY]), 0);
        assert_eq!(argmax(&[f32::NAN]), 0);
        assert_eq!(argmax(&[]), 0);
    }
}
