//! Decoding with AVX-512. A 4-bit weight indexes a table of its block's sixteen values, held in one register; a 5-bit
//! weight chooses between two such tables by its high bit.

use std::arch::x86_64::*;

use super::packed_scales::{scales_mins_k4, scales_q3k};
use super::{PART, bytes_at, scalar};
use crate::DType;

pub(crate) type Part = [__m512; 2];

/// Decodes `src`, whole blocks or any number of floats, into `out`.
///
/// **Panics** if the lengths do not match.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
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

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
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
            let [low, high] = part(index);
            // SAFETY: `out` is 32 floats, two vectors.
            unsafe {
                _mm512_storeu_ps(out.as_mut_ptr(), low);
                _mm512_storeu_ps(out.as_mut_ptr().add(16), high);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn load16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: a reference to 16 bytes; the load is unaligned.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn load32(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: a reference to 32 bytes; the load is unaligned.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn half_at(block: &[u8], offset: usize) -> f32 {
    let bits = u16::from_le_bytes(*bytes_at(block, offset));
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
}

/// Two adjacent half-precision numbers, the first of them in every lane of the first vector.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn halves_at(block: &[u8], offset: usize) -> [__m512; 2] {
    let bits = i32::from_le_bytes(*bytes_at(block, offset));
    let both = _mm_cvtph_ps(_mm_cvtsi32_si128(bits));
    [_mm512_broadcastss_ps(both), _mm512_broadcastss_ps(_mm_movehdup_ps(both))]
}

/// Lane `lane` of `values` in every lane.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn lane(values: __m512, lane: usize) -> __m512 {
    _mm512_permutexvar_ps(_mm512_set1_epi32(lane as i32), values)
}

/// `first, first + 1, .. first + 15`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn ramp(first: f32) -> __m512 {
    let steps = _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.);
    _mm512_add_ps(steps, _mm512_set1_ps(first))
}

/// Looks 32 nibbles up in a table; the low nibbles come first. The lookup ignores the upper bits of an index.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn lookup(packed: &[u8; 16], table: __m512) -> Part {
    let low = _mm512_cvtepu8_epi32(load16(packed));
    let high = _mm512_srli_epi32::<4>(low);
    [_mm512_permutexvar_ps(low, table), _mm512_permutexvar_ps(high, table)]
}

/// As `lookup`, from `tables[1]` where the weight's bit in `fifth` is set.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn lookup5(packed: &[u8; 16], fifth: &[u8; 4], tables: [__m512; 2]) -> Part {
    let low = _mm512_cvtepu8_epi32(load16(packed));
    let high = _mm512_srli_epi32::<4>(low);
    let fifth = u32::from_le_bytes(*fifth);
    [choose(low, fifth as u16, tables), choose(high, (fifth >> 16) as u16, tables)]
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn choose(index: __m512i, fifth: __mmask16, tables: [__m512; 2]) -> __m512 {
    let values = _mm512_permutexvar_ps(index, tables[0]);
    _mm512_mask_permutexvar_ps(values, fifth, index, tables[1])
}

/// 32 signed bytes times a scale per 16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn scaled(bytes: __m256i, d: [__m512; 2]) -> Part {
    let low = _mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes));
    let high = _mm512_cvtepi8_epi32(_mm256_extracti128_si256::<1>(bytes));
    [_mm512_mul_ps(_mm512_cvtepi32_ps(low), d[0]), _mm512_mul_ps(_mm512_cvtepi32_ps(high), d[1])]
}

/// `bytes >> shift & mask`, byte by byte; the bits that cross a byte are masked off.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn field(bytes: __m256i, shift: usize, mask: i8) -> __m256i {
    let shifted = _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(shift as i32));
    _mm256_and_si256(shifted, _mm256_set1_epi8(mask))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn f32s(b: &[u8; 128]) -> Part {
    let start = b.as_ptr().cast::<f32>();
    // SAFETY: a reference to 128 bytes, two vectors; the loads are unaligned.
    unsafe { [_mm512_loadu_ps(start), _mm512_loadu_ps(start.add(16))] }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn f16s(b: &[u8; 64]) -> Part {
    [_mm512_cvtph_ps(load32(bytes_at(b, 0))), _mm512_cvtph_ps(load32(bytes_at(b, 32)))]
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn bf16s(b: &[u8; 64]) -> Part {
    let low = _mm512_cvtepu16_epi32(load32(bytes_at(b, 0)));
    let high = _mm512_cvtepu16_epi32(load32(bytes_at(b, 32)));
    [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(low)), _mm512_castsi512_ps(_mm512_slli_epi32::<16>(high))]
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn q4_0(b: &[u8; 18]) -> Part {
    let [d, _] = halves_at(b, 0);
    lookup(bytes_at(b, 2), _mm512_mul_ps(ramp(-8.0), d))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn q4_1(b: &[u8; 20]) -> Part {
    let [d, m] = halves_at(b, 0);
    lookup(bytes_at(b, 4), _mm512_add_ps(_mm512_mul_ps(ramp(0.0), d), m))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn q5_0(b: &[u8; 22]) -> Part {
    let [d, _] = halves_at(b, 0);
    lookup5(bytes_at(b, 6), bytes_at(b, 2), [_mm512_mul_ps(ramp(-16.0), d), _mm512_mul_ps(ramp(0.0), d)])
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn q5_1(b: &[u8; 24]) -> Part {
    let [d, m] = halves_at(b, 0);
    let low = _mm512_add_ps(_mm512_mul_ps(ramp(0.0), d), m);
    let high = _mm512_add_ps(_mm512_mul_ps(ramp(16.0), d), m);
    lookup5(bytes_at(b, 8), bytes_at(b, 4), [low, high])
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn q8_0(b: &[u8; 34]) -> Part {
    let [d, _] = halves_at(b, 0);
    scaled(load32(bytes_at(b, 2)), [d, d])
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn q2_k(b: &[u8; 84]) -> impl Fn(usize) -> Part {
    let [d, m] = halves_at(b, 80);
    let packed = _mm512_cvtepu8_epi32(load16(bytes_at(b, 0)));
    let scales = _mm512_cvtepi32_ps(_mm512_and_si512(packed, _mm512_set1_epi32(0xF)));
    let scales = _mm512_mul_ps(d, scales);
    let mins = _mm512_mul_ps(m, _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(packed)));
    move |part| {
        let q = field(load32(bytes_at(b, 16 + 32 * (part / 4))), 2 * (part % 4), 3);
        let [low, high] = scaled(q, [lane(scales, 2 * part), lane(scales, 2 * part + 1)]);
        [_mm512_sub_ps(low, lane(mins, 2 * part)), _mm512_sub_ps(high, lane(mins, 2 * part + 1))]
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn q3_k(b: &[u8; 110]) -> impl Fn(usize) -> Part {
    let [low, high] = scales_q3k(bytes_at(b, 96));
    let packed = _mm512_cvtepi8_epi32(_mm_set_epi64x(high as i64, low as i64));
    let scales = _mm512_cvtepi32_ps(_mm512_sub_epi32(packed, _mm512_set1_epi32(32)));
    let scales = _mm512_mul_ps(_mm512_set1_ps(half_at(b, 108)), scales);
    move |part| {
        let low = field(load32(bytes_at(b, 32 + 32 * (part / 4))), 2 * (part % 4), 3);
        let high = field(load32(bytes_at(b, 0)), part, 1);
        let q = _mm256_or_si256(low, _mm256_slli_epi16::<2>(high));
        let q = _mm256_sub_epi8(q, _mm256_set1_epi8(4));
        scaled(q, [lane(scales, 2 * part), lane(scales, 2 * part + 1)])
    }
}

/// Scales in the lower eight lanes and minimums in the upper eight of the formats `Q4_K` and `Q5_K`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn scales_k4(b: &[u8]) -> __m512 {
    let [d, m] = halves_at(b, 0);
    let [scales, mins] = scales_mins_k4(bytes_at(b, 4));
    let packed = _mm512_cvtepu8_epi32(_mm_set_epi64x(mins as i64, scales as i64));
    _mm512_mul_ps(_mm512_mask_blend_ps(0xFF00, d, m), _mm512_cvtepi32_ps(packed))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn q4_k(b: &[u8; 144]) -> impl Fn(usize) -> Part {
    let scales = scales_k4(b);
    move |part| {
        let table = _mm512_sub_ps(_mm512_mul_ps(ramp(0.0), lane(scales, part)), lane(scales, part + 8));
        let shift = _mm_cvtsi32_si128(4 * (part % 2) as i32);
        let low = _mm512_cvtepu8_epi32(load16(bytes_at(b, 16 + 32 * (part / 2))));
        let high = _mm512_cvtepu8_epi32(load16(bytes_at(b, 32 + 32 * (part / 2))));
        let (low, high) = (_mm512_srl_epi32(low, shift), _mm512_srl_epi32(high, shift));
        [_mm512_permutexvar_ps(low, table), _mm512_permutexvar_ps(high, table)]
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn q5_k(b: &[u8; 176]) -> impl Fn(usize) -> Part {
    let scales = scales_k4(b);
    move |part| {
        let (d, m) = (lane(scales, part), lane(scales, part + 8));
        let tables = [_mm512_sub_ps(_mm512_mul_ps(ramp(0.0), d), m), _mm512_sub_ps(_mm512_mul_ps(ramp(16.0), d), m)];
        let shift = _mm_cvtsi32_si128(4 * (part % 2) as i32);
        let low = _mm512_cvtepu8_epi32(load16(bytes_at(b, 48 + 32 * (part / 2))));
        let high = _mm512_cvtepu8_epi32(load16(bytes_at(b, 64 + 32 * (part / 2))));
        let fifth = _mm256_test_epi8_mask(load32(bytes_at(b, 16)), _mm256_set1_epi8((1_u8 << part) as i8));
        let low = choose(_mm512_srl_epi32(low, shift), fifth as u16, tables);
        let high = choose(_mm512_srl_epi32(high, shift), (fifth >> 16) as u16, tables);
        [low, high]
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn q6_k(b: &[u8; 210]) -> impl Fn(usize) -> Part {
    let scales = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(bytes_at(b, 192))));
    let scales = _mm512_mul_ps(_mm512_set1_ps(half_at(b, 208)), scales);
    move |part| {
        let (half, quarter) = (part / 4, part % 4);
        let low = field(load32(bytes_at(b, 64 * half + 32 * (quarter % 2))), 4 * (quarter / 2), 0xF);
        let high = field(load32(bytes_at(b, 128 + 32 * half)), 2 * quarter, 3);
        let q = _mm256_or_si256(low, _mm256_slli_epi16::<4>(high));
        let q = _mm256_sub_epi8(q, _mm256_set1_epi8(32));
        scaled(q, [lane(scales, 2 * part), lane(scales, 2 * part + 1)])
    }
}
