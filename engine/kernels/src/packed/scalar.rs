//! The meaning of the integer products.

use half::f16;

use super::{Format, SUPER, Scales, Sums, TILE, TileJob, product};
use crate::dequantize::bytes_at;
use crate::quantized::BLOCK;
use crate::shared::Place;

/// Activation rows of a group.
pub(crate) const GROUP_ROWS: usize = 4;
/// Bytes of a vector of codes.
const VECTOR: usize = 64;

/// Multiplies a tile with a group of activations.
pub(crate) fn tile(job: &TileJob<'_>, sums: &mut Sums) {
    job.check();
    sums[..job.group.rows].fill([0.0; TILE]);
    for (block, codes) in job.codes.chunks_exact(job.format.block_codes()).enumerate() {
        for row in 0..TILE {
            let weights = weights_of(job.format, codes, row);
            let (scales, min) = scales_of(job.format, job.scales, block, row);
            for (i, sums) in sums[..job.group.rows].iter_mut().enumerate() {
                let at = block * job.group.rows + i;
                let (x, d) = (&job.group.values[at], job.group.meta.scales[at]);
                let dot = |start: usize, end: usize| -> i32 {
                    weights[start..end].iter().zip(&x[start..end]).map(|(w, x)| w * i32::from(*x)).sum()
                };
                let acc = &mut sums[row];
                if job.format.scales() == Scales::SuperHalves {
                    *acc = (dot(0, BLOCK / 2) as f32 * d).mul_add(scales[0], *acc);
                    *acc = (dot(BLOCK / 2, BLOCK) as f32 * d).mul_add(scales[1], *acc);
                } else {
                    *acc = (dot(0, BLOCK) as f32 * d).mul_add(scales[0], *acc);
                }
                if let Some(min) = min {
                    *acc = min.mul_add(job.group.meta.scaled_sums[at], *acc);
                }
            }
        }
    }
}

/// As `product::put`, of whole tiles.
///
/// # Safety
/// As `product::put`.
pub(crate) unsafe fn put(sums: &[[f32; TILE]], place: Place) {
    // SAFETY: the caller's promise.
    unsafe { product::put(sums, place, TILE) };
}

/// Decodes a row of a tile: scale times code, then plus the minimum where there is one.
pub(super) fn decode_row(format: Format, (scales, codes): (&[u8], &[u8]), row: usize, out: &mut [f32]) {
    let blocks = out.chunks_exact_mut(BLOCK).zip(codes.chunks_exact(format.block_codes()));
    for (block, (out, codes)) in blocks.enumerate() {
        let (scales, min) = scales_of(format, scales, block, row);
        for (col, (out, weight)) in out.iter_mut().zip(weights_of(format, codes, row)).enumerate() {
            let scaled = weight as f32 * scales[col / (BLOCK / 2)];
            *out = min.map_or(scaled, |min| scaled + min);
        }
    }
}

/// The codes of a row of a block, less their offset.
fn weights_of(format: Format, codes: &[u8], row: usize) -> [i32; BLOCK] {
    let offset = match format.offset_shift() {
        0 => 0,
        shift => 1 << shift,
    };
    std::array::from_fn(|col| code_of(format, codes, row, col) - offset)
}

/// One code of a block.
pub(crate) fn code_of(format: Format, codes: &[u8], row: usize, col: usize) -> i32 {
    let (step, byte) = (col / 4, row * 4 + col % 4);
    let at = |vector: usize| i32::from(codes[vector * VECTOR + byte]);
    let low = || at(step % 4) >> (4 * (step / 4)) & 0xF;
    match format.bits() {
        4 => low(),
        5 => low() | (at(4) >> step & 1) << 4,
        6 => low() | (at(4 + step / 4) >> (2 * (step % 4)) & 3) << 4,
        _ => at(step),
    }
}

/// The scales of a row of a block, the second that of the later half where there is one, and its minimum.
fn scales_of(format: Format, scales: &[u8], block: usize, row: usize) -> ([f32; 2], Option<f32>) {
    let half_at = |at: usize| f16::from_le_bytes(*bytes_at(scales, at + 2 * row)).to_f32();
    match format.scales() {
        Scales::Half => ([half_at(block * 2 * TILE); 2], None),
        Scales::HalfMin => ([half_at(block * 4 * TILE); 2], Some(half_at(block * 4 * TILE + 2 * TILE))),
        Scales::SuperMin => {
            let start = block / SUPER * (4 * TILE + SUPER * 2 * TILE);
            let at = start + 4 * TILE + block % SUPER * 2 * TILE + row;
            let scale = half_at(start) * f32::from(scales[at]);
            ([scale; 2], Some(half_at(start + 2 * TILE) * f32::from(scales[at + TILE])))
        }
        Scales::SuperHalves => {
            let start = block / SUPER * (2 * TILE + SUPER * 2 * TILE);
            let at = start + 2 * TILE + block % SUPER * 2 * TILE + row;
            let scale = |at: usize| half_at(start) * f32::from(scales[at] as i8);
            ([scale(at), scale(at + TILE)], None)
        }
    }
}
