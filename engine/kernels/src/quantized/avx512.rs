//! Quantization with AVX-512.

use std::arch::x86_64::*;

use super::{BLOCK, Sink, scale_and_factor};

const LANES: usize = 16;
/// All bits but the sign.
const MAGNITUDE: i32 = i32::MAX;

/// As `scalar::quantize`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(crate) fn quantize(x: &[f32], first_block: usize, sink: &mut Sink<'_>) {
    let (blocks, rest) = x.as_chunks::<BLOCK>();
    assert!(rest.is_empty(), "{} values are not whole blocks", x.len());
    let magnitude = _mm512_set1_epi32(MAGNITUDE);
    for (block, x) in (first_block..).zip(blocks) {
        // SAFETY: `x` is 32 floats, two vectors.
        let (low, high) = unsafe { (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(LANES))) };
        let low_bits = _mm512_and_si512(_mm512_castps_si512(low), magnitude);
        let high_bits = _mm512_and_si512(_mm512_castps_si512(high), magnitude);
        let largest = _mm512_reduce_max_epu32(_mm512_max_epu32(low_bits, high_bits));
        let (scale, factor) = scale_and_factor(largest);
        // Where the factor is 0 every integer is 0, also of what is not finite.
        let finite: __mmask16 = if factor == 0.0 { 0 } else { !0 };
        let factor = _mm512_set1_ps(factor);
        let low = _mm512_maskz_cvtps_epi32(finite, _mm512_mul_ps(low, factor));
        let high = _mm512_maskz_cvtps_epi32(finite, _mm512_mul_ps(high, factor));
        let values = sink.values(block).as_mut_ptr();
        // SAFETY: `values` is 32 bytes, two vectors.
        unsafe {
            _mm_storeu_si128(values.cast(), _mm512_cvtepi32_epi8(low));
            _mm_storeu_si128(values.add(LANES).cast(), _mm512_cvtepi32_epi8(high));
        }
        sink.finish(block, scale, [_mm512_reduce_add_epi32(low), _mm512_reduce_add_epi32(high)]);
    }
}
