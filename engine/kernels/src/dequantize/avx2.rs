//! Decoding with AVX2: weights are unpacked to bytes, widened to `f32`, then scaled.

use std::arch::x86_64::*;

use super::packed_scales::{scales_mins_k4, scales_q3k};
use super::{PART, bytes_at, scalar};
use crate::DType;

pub(crate) type Part = [__m256; 4];

/// Decodes `src`, whole blocks or any number of floats, into `out`.
///
/// **Panics** if the lengths do not match.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn decode(dtype: DType, src: &[u8], out: &mut [f32]) {
    assert_eq!(dtype.row_bytes(out.len()), Some(src.len()), "bytes of {} values of {dtype}", out.len());
    match dtype {
        DType::F32 => blocks::<128, 1, _>(src, out, |b| move |_| f32s(b)),
        DType::F16 => blocks::<64, 1, _>(src, out, |b| move |_| f16s(b)),
        DType::Bf16 => blocks::<64, 1, _>(src, out, |b| move |_| bf16s(b)),
        DType::Q4_0 => blocks::<18, 1, _>(src, out, |b| move |_| q4_0(b)),
        DType::Q4_1 => blocks::<20, 1, _>(src, out, |b| move |_| q4_1(b)),
        DType::Q5_0 => blocks::<22, 1, _>(src, out, |b| move |_| q5_0(b)),
        DType::Q5_1 => blocks::<24, 1, _>(src, out, |b| move |_| q5_1(b)),
        DType::Q8_0 => blocks::<34, 1, _>(src, out, |b| move |_| q8_0(b)),
        DType::Q2K => blocks::<84, 8, _>(src, out, |b| q2_k(b)),
        DType::Q3K => blocks::<110, 8, _>(src, out, |b| q3_k(b)),
        DType::Q4K => blocks::<144, 8, _>(src, out, |b| q4_k(b)),
        DType::Q5K => blocks::<176, 8, _>(src, out, |b| q5_k(b)),
        DType::Q6K => blocks::<210, 8, _>(src, out, |b| q6_k(b)),
    }
    let whole = out.len() / PART * PART;
    if whole < out.len() {
        scalar::floats(dtype, &src[whole * dtype.block_bytes()..], &mut out[whole..]);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn blocks<'a, const BYTES: usize, const PARTS: usize, P: Fn(usize) -> Part>(
    src: &'a [u8],
    out: &mut [f32],
    decoder: impl Fn(&'a [u8; BYTES]) -> P,
) {
    let parts = out.as_chunks_mut::<PART>().0;
    for (block, out) in src.as_chunks::<BYTES>().0.iter().zip(parts.chunks_exact_mut(PARTS)) {
        let part = decoder(block);
        for (index, out) in out.iter_mut().enumerate() {
            let values = part(index);
            for (value, out) in values.into_iter().zip(out.as_chunks_mut::<8>().0) {
                // SAFETY: `out` is 8 floats; the store is unaligned.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr(), value) }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: a reference to 16 bytes; the load is unaligned.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load32(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: a reference to 32 bytes; the load is unaligned.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn half_at(block: &[u8], offset: usize) -> f32 {
    let bits = u16::from_le_bytes(*bytes_at(block, offset));
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
}

/// Two adjacent half-precision numbers, each in every lane of its vector.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn halves_at(block: &[u8], offset: usize) -> [__m256; 2] {
    let bits = i32::from_le_bytes(*bytes_at(block, offset));
    let both = _mm_cvtph_ps(_mm_cvtsi32_si128(bits));
    [_mm256_broadcastss_ps(both), _mm256_broadcastss_ps(_mm_movehdup_ps(both))]
}

/// Lane `lane` of `values` in every lane.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn lane(values: __m256, lane: usize) -> __m256 {
    _mm256_permutevar8x32_ps(values, _mm256_set1_epi32(lane as i32))
}

/// Two scales per part, 16 signed bytes, times `d`: those of the first four parts, then those of the others.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scales16(bytes: __m128i, d: __m256) -> [__m256; 2] {
    let low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    let high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)));
    [_mm256_mul_ps(d, low), _mm256_mul_ps(d, high)]
}

/// The two scales of one part.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn of_part(scales: [__m256; 2], part: usize) -> [__m256; 2] {
    let half = scales[part / 4];
    [lane(half, 2 * (part % 4)), lane(half, 2 * (part % 4) + 1)]
}

/// 32 signed bytes as floats.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn widen(bytes: __m256i) -> Part {
    let (low, high) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
    [low, _mm_srli_si128::<8>(low), high, _mm_srli_si128::<8>(high)]
        .map(|bytes| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)))
}

/// `values * d`, a scale per 16.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scaled(values: Part, d: [__m256; 2]) -> Part {
    let [v0, v1, v2, v3] = values;
    [_mm256_mul_ps(v0, d[0]), _mm256_mul_ps(v1, d[0]), _mm256_mul_ps(v2, d[1]), _mm256_mul_ps(v3, d[1])]
}

/// `values + m`, rounded after the product.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn plus(values: Part, m: __m256) -> Part {
    let [v0, v1, v2, v3] = values;
    [_mm256_add_ps(v0, m), _mm256_add_ps(v1, m), _mm256_add_ps(v2, m), _mm256_add_ps(v3, m)]
}

/// `values - m`, a minimum per 16, rounded after the product.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn minus(values: Part, m: [__m256; 2]) -> Part {
    let [v0, v1, v2, v3] = values;
    [_mm256_sub_ps(v0, m[0]), _mm256_sub_ps(v1, m[0]), _mm256_sub_ps(v2, m[1]), _mm256_sub_ps(v3, m[1])]
}

/// `bytes >> shift & mask`, byte by byte; the bits that cross a byte are masked off.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn field(bytes: __m256i, shift: usize, mask: i8) -> __m256i {
    let shifted = _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(shift as i32));
    _mm256_and_si256(shifted, _mm256_set1_epi8(mask))
}

/// 32 nibbles as bytes, the low ones first.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn nibbles(packed: &[u8; 16]) -> __m256i {
    let packed = load16(packed);
    let both = _mm256_set_m128i(_mm_srli_epi16::<4>(packed), packed);
    _mm256_and_si256(both, _mm256_set1_epi8(0xF))
}

/// 32 bits as the fifth bits of bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn fifth_bits(packed: &[u8; 4]) -> __m256i {
    let word = _mm256_set1_epi32(i32::from_le_bytes(*packed));
    // Every byte gets the byte that holds its bit, and then keeps only that bit.
    let source = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let bit = _mm256_set1_epi64x(i64::from_le_bytes([1, 2, 4, 8, 16, 32, 64, 128]));
    let masked = _mm256_and_si256(_mm256_shuffle_epi8(word, source), bit);
    _mm256_and_si256(_mm256_cmpeq_epi8(masked, bit), _mm256_set1_epi8(16))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn f32s(b: &[u8; 128]) -> Part {
    let start = b.as_ptr().cast::<f32>();
    // SAFETY: a reference to 128 bytes, four vectors; the loads are unaligned.
    [0, 8, 16, 24].map(|at| unsafe { _mm256_loadu_ps(start.add(at)) })
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn f16s(b: &[u8; 64]) -> Part {
    [0, 16, 32, 48].map(|at| _mm256_cvtph_ps(load16(bytes_at(b, at))))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn bf16s(b: &[u8; 64]) -> Part {
    [0, 16, 32, 48].map(|at| {
        let words = _mm256_cvtepu16_epi32(load16(bytes_at(b, at)));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
    })
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn q4_0(b: &[u8; 18]) -> Part {
    let [d, _] = halves_at(b, 0);
    let q = _mm256_sub_epi8(nibbles(bytes_at(b, 2)), _mm256_set1_epi8(8));
    scaled(widen(q), [d, d])
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn q4_1(b: &[u8; 20]) -> Part {
    let [d, m] = halves_at(b, 0);
    plus(scaled(widen(nibbles(bytes_at(b, 4))), [d, d]), m)
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn q5_0(b: &[u8; 22]) -> Part {
    let [d, _] = halves_at(b, 0);
    let q = _mm256_or_si256(nibbles(bytes_at(b, 6)), fifth_bits(bytes_at(b, 2)));
    scaled(widen(_mm256_sub_epi8(q, _mm256_set1_epi8(16))), [d, d])
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn q5_1(b: &[u8; 24]) -> Part {
    let [d, m] = halves_at(b, 0);
    let q = _mm256_or_si256(nibbles(bytes_at(b, 8)), fifth_bits(bytes_at(b, 4)));
    plus(scaled(widen(q), [d, d]), m)
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn q8_0(b: &[u8; 34]) -> Part {
    let [d, _] = halves_at(b, 0);
    scaled(widen(load32(bytes_at(b, 2))), [d, d])
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn q2_k(b: &[u8; 84]) -> impl Fn(usize) -> Part {
    let [d, m] = halves_at(b, 80);
    let packed = load16(bytes_at(b, 0));
    let low_bits = _mm_set1_epi8(0xF);
    let scales = scales16(_mm_and_si128(packed, low_bits), d);
    let mins = scales16(_mm_and_si128(_mm_srli_epi16::<4>(packed), low_bits), m);
    move |part| {
        let q = field(load32(bytes_at(b, 16 + 32 * (part / 4))), 2 * (part % 4), 3);
        minus(scaled(widen(q), of_part(scales, part)), of_part(mins, part))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn q3_k(b: &[u8; 110]) -> impl Fn(usize) -> Part {
    let [low, high] = scales_q3k(bytes_at(b, 96));
    let packed = _mm_sub_epi8(_mm_set_epi64x(high as i64, low as i64), _mm_set1_epi8(32));
    let scales = scales16(packed, _mm256_set1_ps(half_at(b, 108)));
    move |part| {
        let low = field(load32(bytes_at(b, 32 + 32 * (part / 4))), 2 * (part % 4), 3);
        let high = field(load32(bytes_at(b, 0)), part, 1);
        let q = _mm256_or_si256(low, _mm256_slli_epi16::<2>(high));
        scaled(widen(_mm256_sub_epi8(q, _mm256_set1_epi8(4))), of_part(scales, part))
    }
}

/// Scales and minimums of the formats `Q4_K` and `Q5_K`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scales_k4(b: &[u8]) -> [__m256; 2] {
    let [d, m] = halves_at(b, 0);
    let [scales, mins] = scales_mins_k4(bytes_at(b, 4));
    let [scales, mins] = [_mm_set_epi64x(0, scales as i64), _mm_set_epi64x(0, mins as i64)];
    let scales = _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(scales)));
    [scales, _mm256_mul_ps(m, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(mins)))]
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn q4_k(b: &[u8; 144]) -> impl Fn(usize) -> Part {
    let [scales, mins] = scales_k4(b);
    move |part| {
        let (d, m) = (lane(scales, part), lane(mins, part));
        let q = field(load32(bytes_at(b, 16 + 32 * (part / 2))), 4 * (part % 2), 0xF);
        minus(scaled(widen(q), [d, d]), [m, m])
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn q5_k(b: &[u8; 176]) -> impl Fn(usize) -> Part {
    let [scales, mins] = scales_k4(b);
    move |part| {
        let (d, m) = (lane(scales, part), lane(mins, part));
        let low = field(load32(bytes_at(b, 48 + 32 * (part / 2))), 4 * (part % 2), 0xF);
        let high = field(load32(bytes_at(b, 16)), part, 1);
        let q = _mm256_or_si256(low, _mm256_slli_epi16::<4>(high));
        minus(scaled(widen(q), [d, d]), [m, m])
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn q6_k(b: &[u8; 210]) -> impl Fn(usize) -> Part {
    let scales = scales16(load16(bytes_at(b, 192)), _mm256_set1_ps(half_at(b, 208)));
    move |part| {
        let (half, quarter) = (part / 4, part % 4);
        let low = field(load32(bytes_at(b, 64 * half + 32 * (quarter % 2))), 4 * (quarter / 2), 0xF);
        let high = field(load32(bytes_at(b, 128 + 32 * half)), 2 * quarter, 3);
        let q = _mm256_or_si256(low, _mm256_slli_epi16::<4>(high));
        scaled(widen(_mm256_sub_epi8(q, _mm256_set1_epi8(32))), of_part(scales, part))
    }
}
