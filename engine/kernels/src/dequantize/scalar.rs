//! The meaning of every block format, 32 weights at a time.

use std::array::from_fn;

use half::{bf16, f16};

use super::{PART, bytes_at, scale_min_k4, scale_q3k};
use crate::DType;

type Part = [f32; PART];

/// Decodes `src`, whole blocks or any number of floats, into `out`.
///
/// **Panics** if the lengths do not match.
pub(crate) fn decode(dtype: DType, src: &[u8], out: &mut [f32]) {
    assert_eq!(dtype.row_bytes(out.len()), Some(src.len()), "bytes of {} values of {dtype}", out.len());
    match dtype {
        DType::F32 | DType::F16 | DType::Bf16 => floats(dtype, src, out),
        DType::Q4_0 => blocks::<18, 1>(src, out, |b, _| q4_0(b)),
        DType::Q4_1 => blocks::<20, 1>(src, out, |b, _| q4_1(b)),
        DType::Q5_0 => blocks::<22, 1>(src, out, |b, _| q5_0(b)),
        DType::Q5_1 => blocks::<24, 1>(src, out, |b, _| q5_1(b)),
        DType::Q8_0 => blocks::<34, 1>(src, out, |b, _| q8_0(b)),
        DType::Q2K => blocks::<84, 8>(src, out, q2_k),
        DType::Q3K => blocks::<110, 8>(src, out, q3_k),
        DType::Q4K => blocks::<144, 8>(src, out, q4_k),
        DType::Q5K => blocks::<176, 8>(src, out, q5_k),
        DType::Q6K => blocks::<210, 8>(src, out, q6_k),
    }
}

/// Decodes floats one by one; the other instruction sets use it for the last few of a row.
pub(crate) fn floats(dtype: DType, src: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => each(src, out, f32::from_le_bytes),
        DType::F16 => each(src, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
        DType::Bf16 => each(src, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        _ => unreachable!("invariant: {dtype} comes in blocks"),
    }
}

fn each<const N: usize>(src: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    for (bytes, value) in src.as_chunks::<N>().0.iter().zip(out) {
        *value = decode(*bytes);
    }
}

fn blocks<const BYTES: usize, const PARTS: usize>(
    src: &[u8],
    out: &mut [f32],
    part: impl Fn(&[u8; BYTES], usize) -> Part,
) {
    for (block, out) in src.as_chunks::<BYTES>().0.iter().zip(out.chunks_exact_mut(PART * PARTS)) {
        for (index, out) in out.chunks_exact_mut(PART).enumerate() {
            out.copy_from_slice(&part(block, index));
        }
    }
}

fn half_at(block: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes(*bytes_at(block, offset)).to_f32()
}

/// The 4-bit value `i` of 16 bytes: the low nibbles come first.
fn nibble(packed: &[u8], i: usize) -> u8 {
    if i < 16 { packed[i] & 0xF } else { packed[i - 16] >> 4 }
}

/// Bit `i` of a little-endian word, as the fifth bit of a value.
fn fifth_bit(packed: &[u8; 4], i: usize) -> u8 {
    ((u32::from_le_bytes(*packed) >> i & 1) as u8) << 4
}

fn q4_0(b: &[u8; 18]) -> Part {
    let d = half_at(b, 0);
    from_fn(|i| (f32::from(nibble(&b[2..], i)) - 8.0) * d)
}

fn q4_1(b: &[u8; 20]) -> Part {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    from_fn(|i| f32::from(nibble(&b[4..], i)) * d + m)
}

fn q5_0(b: &[u8; 22]) -> Part {
    let d = half_at(b, 0);
    from_fn(|i| (f32::from(nibble(&b[6..], i) | fifth_bit(bytes_at(b, 2), i)) - 16.0) * d)
}

fn q5_1(b: &[u8; 24]) -> Part {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    from_fn(|i| f32::from(nibble(&b[8..], i) | fifth_bit(bytes_at(b, 4), i)) * d + m)
}

fn q8_0(b: &[u8; 34]) -> Part {
    let d = half_at(b, 0);
    from_fn(|i| f32::from(b[2 + i] as i8) * d)
}

/// Block: 16 scales with minimums, 64 bytes of 2-bit values, scale, minimum.
fn q2_k(b: &[u8; 84], part: usize) -> Part {
    let (d, m) = (half_at(b, 80), half_at(b, 82));
    let (half, shift) = (part / 4, 2 * (part % 4));
    from_fn(|i| {
        let scale = b[2 * part + i / 16];
        let q = b[16 + 32 * half + i] >> shift & 3;
        (d * f32::from(scale & 0xF)) * f32::from(q) - m * f32::from(scale >> 4)
    })
}

/// Block: 32 bytes of high bits, 64 bytes of 2-bit values, 12 bytes of scales, scale.
fn q3_k(b: &[u8; 110], part: usize) -> Part {
    let d = half_at(b, 108);
    let (half, shift) = (part / 4, 2 * (part % 4));
    from_fn(|i| {
        let scale = scale_q3k(bytes_at(b, 96), 2 * part + i / 16);
        let high = b[i] >> part & 1;
        let q = i32::from((b[32 + 32 * half + i] >> shift & 3) | high << 2) - 4;
        (d * scale as f32) * q as f32
    })
}

/// Block: scale, minimum, 12 bytes of scales and minimums, 128 bytes of nibbles.
fn q4_k(b: &[u8; 144], part: usize) -> Part {
    let (scale, min) = scale_min_k4(bytes_at(b, 4), part);
    let (d, m) = (half_at(b, 0) * f32::from(scale), half_at(b, 2) * f32::from(min));
    let shift = 4 * (part % 2);
    from_fn(|i| d * f32::from(b[16 + 32 * (part / 2) + i] >> shift & 0xF) - m)
}

/// Block: as `q4_k` with 32 bytes of fifth bits before the nibbles.
fn q5_k(b: &[u8; 176], part: usize) -> Part {
    let (scale, min) = scale_min_k4(bytes_at(b, 4), part);
    let (d, m) = (half_at(b, 0) * f32::from(scale), half_at(b, 2) * f32::from(min));
    let shift = 4 * (part % 2);
    from_fn(|i| {
        let fifth = (b[16 + i] >> part & 1) << 4;
        d * f32::from((b[48 + 32 * (part / 2) + i] >> shift & 0xF) | fifth) - m
    })
}

/// Block: 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales, scale.
fn q6_k(b: &[u8; 210], part: usize) -> Part {
    let d = half_at(b, 208);
    let (half, quarter) = (part / 4, part % 4);
    from_fn(|i| {
        let scale = b[192 + 2 * part + i / 16] as i8;
        let low = b[64 * half + 32 * (quarter % 2) + i] >> (4 * (quarter / 2)) & 0xF;
        let high = b[128 + 32 * half + i] >> (2 * quarter) & 3;
        (d * f32::from(scale)) * (i32::from(low | high << 4) - 32) as f32
    })
}
