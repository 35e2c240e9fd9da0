//! The random numbers of sampling: a pure function of seed, choice and place, so that batching cannot change them.

/// Returns a number in [0, 1) for the token at `index` of a choice.
///
/// The mixing is SplitMix64's finaliser, applied after each input joins; 53 bits become the fraction.
pub(crate) fn uniform(seed: u64, choice: u32, index: u32) -> f64 {
    let stream = mix(seed ^ mix(u64::from(choice).wrapping_add(GOLDEN)));
    let bits = mix(stream.wrapping_add(GOLDEN.wrapping_mul(u64::from(index) + 1)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// 2^64 divided by the golden ratio, odd: the step of SplitMix64.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_even_over_places_choices_and_seeds() {
        let streams: [fn(u32) -> f64; 3] =
            [|i| uniform(7, 0, i), |i| uniform(7, i, 0), |i| uniform(u64::from(i), 0, 0)];
        for stream in streams {
            let mut buckets = [0; 10];
            for index in 0..10_000 {
                let number = stream(index);
                assert!((0.0..1.0).contains(&number));
                buckets[(number * 10.0) as usize] += 1;
            }
            // 1000 expected in each, standard deviation 30.
            assert!(buckets.iter().all(|&count| (850..1150).contains(&count)), "{buckets:?}");
        }
    }
}
