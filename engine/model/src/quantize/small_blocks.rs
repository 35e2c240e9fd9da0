//! Encoders of the 32-weight formats, byte for byte those of llama.cpp's reference: a scale from the extremes, then rounding.
//!
//! Every product is rounded before the next sum, as in the `gguf` package; llama.cpp itself may fuse the two, which moves a
//! weight that lies halfway between two levels.
//!
//! **Source**: llama.cpp `ggml/src/ggml-quants.c`, `quantize_row_*_ref`, and `gguf-py/gguf/quants.py`.

use std::array::from_fn;

use half::f16;

/// Weights per block.
pub(super) const BLOCK: usize = 32;

type Block = [f32; BLOCK];
type Levels = [u8; BLOCK];

/// Level that stands for zero in `Q4_0`, and half as many as it has.
const Q4_0_MIDDLE: f32 = 8.0;
/// Level that stands for zero in `Q5_0`.
const Q5_0_MIDDLE: f32 = 16.0;
/// The greatest level of 4 and of 5 bits, and of the 8 signed ones.
const LEVELS_4: f32 = 15.0;
const LEVELS_5: f32 = 31.0;
const LEVELS_8: f32 = 127.0;

pub(super) fn q8_0(block: &Block, out: &mut [u8; 34]) {
    let largest = block.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let scale = largest / LEVELS_8;
    let inverse = inverse(scale);
    put_half(out, 0, scale);
    for (out, value) in out[2..].iter_mut().zip(block) {
        // `round` goes away from zero at the half, as C's `roundf`.
        *out = (value * inverse).round() as i8 as u8;
    }
}

pub(super) fn q4_0(block: &Block, out: &mut [u8; 18]) {
    let (scale, levels) = symmetric(block, Q4_0_MIDDLE);
    put_half(out, 0, scale);
    put_nibbles(out, 2, &levels);
}

pub(super) fn q4_1(block: &Block, out: &mut [u8; 20]) {
    let (scale, min, levels) = affine(block, LEVELS_4);
    put_half(out, 0, scale);
    put_half(out, 2, min);
    put_nibbles(out, 4, &levels);
}

pub(super) fn q5_0(block: &Block, out: &mut [u8; 22]) {
    let (scale, levels) = symmetric(block, Q5_0_MIDDLE);
    put_half(out, 0, scale);
    out[2..6].copy_from_slice(&fifth_bits(&levels));
    put_nibbles(out, 6, &levels);
}

pub(super) fn q5_1(block: &Block, out: &mut [u8; 24]) {
    let (scale, min, levels) = affine(block, LEVELS_5);
    put_half(out, 0, scale);
    put_half(out, 2, min);
    out[4..8].copy_from_slice(&fifth_bits(&levels));
    put_nibbles(out, 8, &levels);
}

/// The weight farthest from zero, the first of equals, gets level 0; `middle` stands for zero.
fn symmetric(block: &Block, middle: f32) -> (f32, Levels) {
    let farthest = block.iter().fold(0.0f32, |farthest, &v| if v.abs() > farthest.abs() { v } else { farthest });
    let scale = farthest / -middle;
    let inverse = inverse(scale);
    let level = |value: f32| (value * inverse + (middle + 0.5)).min(2.0 * middle - 1.0) as u8;
    (scale, from_fn(|i| level(block[i])))
}

/// The smallest weight gets level 0, the greatest `levels`.
fn affine(block: &Block, levels: f32) -> (f32, f32, Levels) {
    let min = block.iter().copied().fold(f32::INFINITY, f32::min);
    let max = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = (max - min) / levels;
    let inverse = inverse(scale);
    let level = |value: f32| ((value - min) * inverse + 0.5).min(levels) as u8;
    (scale, min, from_fn(|i| level(block[i])))
}

/// One over a scale; 0 for a scale of 0, and for one so small that a half cannot hold it and its inverse overflows.
fn inverse(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// Writes a number as a half.
pub(super) fn put_half(out: &mut [u8], at: usize, value: f32) {
    out[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// Writes the low four bits: those of the first 16 weights in the low nibbles.
fn put_nibbles(out: &mut [u8], at: usize, levels: &Levels) {
    let (low, high) = levels.split_at(BLOCK / 2);
    for (out, (low, high)) in out[at..].iter_mut().zip(low.iter().zip(high)) {
        *out = (low & 0xF) | (high << 4);
    }
}

/// Collects the fifth bits, that of the first weight lowest.
fn fifth_bits(levels: &Levels) -> [u8; 4] {
    let bits = levels.iter().enumerate().fold(0u32, |bits, (i, level)| bits | u32::from(level >> 4 & 1) << i);
    bits.to_le_bytes()
}
