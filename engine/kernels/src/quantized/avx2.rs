//! Quantization with AVX2.

use std::arch::x86_64::*;

use super::{BLOCK, Sink, scale_and_factor};

const LANES: usize = 8;
/// All bits but the sign.
const MAGNITUDE: i32 = i32::MAX;

/// As `scalar::quantize`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn quantize(x: &[f32], first_block: usize, sink: &mut Sink<'_>) {
    let (blocks, rest) = x.as_chunks::<BLOCK>();
    assert!(rest.is_empty(), "{} values are not whole blocks", x.len());
    for (block, x) in (first_block..).zip(blocks) {
        // SAFETY: `x` is 32 floats, four vectors.
        let x = [0, 1, 2, 3].map(|vector| unsafe { _mm256_loadu_ps(x.as_ptr().add(vector * LANES)) });
        let (scale, factor) = scale_and_factor(largest_bits(x));
        // Where the factor is 0 every integer is 0, also of what is not finite.
        let finite = _mm256_set1_epi32(if factor == 0.0 { 0 } else { !0 });
        let factor = _mm256_set1_ps(factor);
        let [a, b, c, d] = x.map(|x| _mm256_and_si256(_mm256_cvtps_epi32(_mm256_mul_ps(x, factor)), finite));
        // Packing works on halves of vectors, so its result is put back in order.
        let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        // SAFETY: the values of a block are 32 bytes, one vector.
        unsafe { _mm256_storeu_si256(sink.values(block).as_mut_ptr().cast(), bytes) };
        sink.finish(block, scale, [add_lanes(_mm256_add_epi32(a, b)), add_lanes(_mm256_add_epi32(c, d))]);
    }
}

/// The largest magnitude, as the bits of a float.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn largest_bits(x: [__m256; 4]) -> u32 {
    let [a, b, c, d] = x.map(|x| _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(MAGNITUDE)));
    let largest = _mm256_max_epu32(_mm256_max_epu32(a, b), _mm256_max_epu32(c, d));
    let largest = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256::<1>(largest));
    let largest = _mm_max_epu32(largest, _mm_shuffle_epi32::<0b0100_1110>(largest));
    let largest = _mm_max_epu32(largest, _mm_shuffle_epi32::<0b1011_0001>(largest));
    _mm_cvtsi128_si32(largest).cast_unsigned()
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_lanes(x: __m256i) -> i32 {
    let sum = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b0100_1110>(sum));
    _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32::<0b1011_0001>(sum)))
}
