//! Sixteen vectors combined across their lanes at once, with AVX-512: one vector at a time takes as many steps for each.

use std::arch::x86_64::*;

/// Floats of a vector, and vectors that are combined at once.
const LANES: usize = 16;

/// Combines the elements of each vector: lane `i` holds those of vector `i`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn by_lane(vectors: [__m512; LANES], combine: impl Fn(__m512, __m512) -> __m512) -> __m512 {
    // Neighbours share the lanes of a vector, then fours, then eights, then all.
    let twos: [__m512; LANES / 2] = std::array::from_fn(|i| {
        let (a, b) = (vectors[2 * i], vectors[2 * i + 1]);
        combine(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b))
    });
    let fours: [__m512; LANES / 4] = std::array::from_fn(|i| {
        let (a, b) = (_mm512_castps_pd(twos[2 * i]), _mm512_castps_pd(twos[2 * i + 1]));
        let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
        combine(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
    });
    let quarters = |a, b| {
        let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
        combine(even, _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b))
    };
    quarters(quarters(fours[0], fours[1]), quarters(fours[2], fours[3]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::samples::Random;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn largest_and_sums(vectors: &[[f32; LANES]; LANES]) -> [[f32; LANES]; 2] {
        // SAFETY: sixteen floats are a vector.
        let vectors: [__m512; LANES] = std::array::from_fn(|i| unsafe { _mm512_loadu_ps(vectors[i].as_ptr()) });
        let largest = by_lane(vectors, |a, b| _mm512_max_ps(a, b));
        [largest, by_lane(vectors, |a, b| _mm512_add_ps(a, b))].map(|lanes| {
            let mut out = [0.0; LANES];
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), lanes) };
            out
        })
    }

    #[test]
    fn a_lane_combines_a_vector() {
        if !Isa::Avx512.is_available() {
            println!("skipped: no AVX-512");
            return;
        }
        let mut random = Random(31);
        let vectors: [[f32; LANES]; LANES] = std::array::from_fn(|_| random.floats(LANES).try_into().unwrap());
        // SAFETY: AVX-512 is available.
        let [largest, sums] = unsafe { largest_and_sums(&vectors) };
        for (i, vector) in vectors.iter().enumerate() {
            assert_eq!(largest[i], vector.iter().copied().fold(f32::NEG_INFINITY, f32::max), "vector {i}");
            assert!((sums[i] - vector.iter().sum::<f32>()).abs() < 1e-5, "vector {i}");
        }
    }
}
