//! Quantization with AVX-512, sixteen blocks at a time: what is found across the lanes of one is found for all at once.

use std::arch::x86_64::*;

use super::{BLOCK, INFINITE, QUANT_MAX, SMALLEST, Sink};
use crate::across::by_lane;

const LANES: usize = 16;
/// All bits but the sign.
const MAGNITUDE: i32 = i32::MAX;

/// As `scalar::quantize`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(crate) fn quantize(x: &[f32], first_block: usize, sink: &mut Sink<'_>) {
    let (blocks, rest) = x.as_chunks::<BLOCK>();
    assert!(rest.is_empty(), "{} values are not whole blocks", x.len());
    for (first, blocks) in (first_block..).step_by(LANES).zip(blocks.chunks(LANES)) {
        let [scales, factors] = scales_and_factors(blocks);
        let mut halves = [[_mm512_setzero_si512(); LANES]; 2];
        for (i, x) in blocks.iter().enumerate() {
            let factor = _mm512_set1_ps(factors[i]);
            // Where the factor is 0 every integer is 0, also of what is not finite.
            let finite: __mmask16 = if factors[i] == 0.0 { 0 } else { !0 };
            let values = load(x).map(|x| _mm512_maskz_cvtps_epi32(finite, _mm512_mul_ps(x, factor)));
            let out = sink.values(first + i).as_mut_ptr();
            // SAFETY: the values of a block are 32 bytes, two vectors.
            unsafe {
                _mm_storeu_si128(out.cast(), _mm512_cvtepi32_epi8(values[0]));
                _mm_storeu_si128(out.add(LANES).cast(), _mm512_cvtepi32_epi8(values[1]));
            }
            (halves[0][i], halves[1][i]) = (values[0], values[1]);
        }
        let sums = halves.map(|halves| {
            let add = |a, b| _mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b));
            let sums = by_lane(halves.map(|half| _mm512_castsi512_ps(half)), |a, b| _mm512_castsi512_ps(add(a, b)));
            let mut out = [0; LANES];
            // SAFETY: sixteen integers are a vector.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_castps_si512(sums)) };
            out
        });
        for i in 0..blocks.len() {
            sink.finish(first + i, scales[i], [sums[0][i], sums[1][i]]);
        }
    }
}

/// As `super::scale_and_factor`, of up to sixteen blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
#[inline]
fn scales_and_factors(blocks: &[[f32; BLOCK]]) -> [[f32; LANES]; 2] {
    let max = |a, b| _mm512_max_epu32(_mm512_castps_si512(a), _mm512_castps_si512(b));
    let mut largest = [_mm512_setzero_ps(); LANES];
    for (largest, x) in largest.iter_mut().zip(blocks) {
        let magnitude = _mm512_set1_epi32(MAGNITUDE);
        let [low, high] = load(x).map(|x| _mm512_and_si512(_mm512_castps_si512(x), magnitude));
        *largest = _mm512_castsi512_ps(_mm512_max_epu32(low, high));
    }
    let largest = by_lane(largest, |a, b| _mm512_castsi512_ps(max(a, b)));
    let (bits, steps) = (_mm512_castps_si512(largest), _mm512_set1_ps(QUANT_MAX));
    let large = _mm512_cmpge_epu32_mask(bits, _mm512_set1_epi32(SMALLEST.cast_signed()));
    let infinite = _mm512_cmpge_epu32_mask(bits, _mm512_set1_epi32(INFINITE.cast_signed()));
    let scales = _mm512_maskz_div_ps(large, largest, steps);
    let scales = _mm512_mask_mov_ps(scales, infinite, _mm512_set1_ps(f32::NAN));
    let factors = _mm512_maskz_div_ps(large & !infinite, steps, largest);
    [scales, factors].map(|values| {
        let mut out = [0.0; LANES];
        // SAFETY: sixteen floats are a vector.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) };
        out
    })
}

/// The two vectors of a block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
#[inline]
fn load(x: &[f32; BLOCK]) -> [__m512; 2] {
    // SAFETY: 32 floats are two vectors.
    unsafe { [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(LANES))] }
}
