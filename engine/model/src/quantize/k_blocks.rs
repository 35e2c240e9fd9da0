//! Encoders of the K formats: blocks of 256 weights whose sub-blocks have integer scales.
//!
//! The search of `fit.rs` gives each sub-block its ideal scale (and minimum). The block's half-precision scale spans them; then
//! every sub-block tries the integers around its ideal, because rounding scale and minimum to 6 bits moves the best levels; and
//! at last the half-precision scale itself is solved for again with all levels fixed, and kept if the block gets better.

use half::f16;

use super::fit::{Affine, Run, nearest};
use super::small_blocks::put_half;

/// Weights per block.
pub(super) const BLOCK: usize = 256;
/// Sub-blocks of `Q4_K` and `Q5_K`, and weights in each.
const NUM_AFFINE: usize = 8;
const AFFINE: usize = 32;
/// Sub-blocks of `Q6_K`, and weights in each.
const NUM_SYMMETRIC: usize = 16;
const SYMMETRIC: usize = 16;
/// The greatest 6-bit scale or minimum.
const SCALE_6_MAX: f32 = 63.0;
/// Levels of `Q6_K` go from `-Q6_HALF` to `Q6_HALF - 1`, its scales from `-Q6_SCALES_HALF` to `Q6_SCALES_HALF - 1`.
const Q6_HALF: f32 = 32.0;
const Q6_SCALES_HALF: f32 = 128.0;
/// Below this a scale counts as 0: no half-precision number is that small, and its inverse stays finite.
const SCALE_MIN: f32 = 1e-30;

pub(super) fn q4_k(x: &[f32; BLOCK], out: &mut [u8; 144]) {
    let block = AffineBlock::search(x, 15.0);
    block.put_head(out);
    put_nibble_pairs(&block.levels, &mut out[16..]);
}

pub(super) fn q5_k(x: &[f32; BLOCK], out: &mut [u8; 176]) {
    let block = AffineBlock::search(x, 31.0);
    block.put_head(out);
    for i in 0..AFFINE {
        out[16 + i] = (0..NUM_AFFINE).fold(0, |bits, part| bits | (block.levels[part][i] as u8 >> 4) << part);
    }
    put_nibble_pairs(&block.levels, &mut out[48..]);
}

pub(super) fn q6_k(x: &[f32; BLOCK], out: &mut [u8; 210]) {
    let block = SymmetricBlock::search(x);
    out.fill(0);
    for (part, levels) in block.levels.iter().enumerate() {
        // Eight sub-blocks make a half of 128; within it the pairs of sub-blocks are quarters of 32.
        let (half, quarter, start) = (part / 8, part % 8 / 2, part % 2 * SYMMETRIC);
        for (i, level) in levels.iter().enumerate() {
            let level = (level + Q6_HALF) as u8;
            out[64 * half + 32 * (quarter % 2) + start + i] |= (level & 0xF) << (4 * (quarter / 2));
            out[128 + 32 * half + start + i] |= (level >> 4) << (2 * quarter);
        }
        out[192 + part] = block.scales[part] as i8 as u8;
    }
    put_half(out, 208, block.d);
}

/// The parts of 32 go in pairs: the first in the low nibbles, the second in the high ones.
fn put_nibble_pairs(levels: &[[f32; AFFINE]; NUM_AFFINE], out: &mut [u8]) {
    for (out, pair) in out.chunks_exact_mut(AFFINE).zip(levels.chunks_exact(2)) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = (pair[0][i] as u8 & 0xF) | (pair[1][i] as u8) << 4;
        }
    }
}

/// The numbers of a `Q4_K` or `Q5_K` block, integers held as floats.
struct AffineBlock {
    d: f32,
    d_min: f32,
    scales: [f32; NUM_AFFINE],
    mins: [f32; NUM_AFFINE],
    levels: [[f32; AFFINE]; NUM_AFFINE],
}

impl AffineBlock {
    fn search(x: &[f32; BLOCK], top: f32) -> AffineBlock {
        let runs: [Run<'_, AFFINE>; NUM_AFFINE] = std::array::from_fn(|part| Run::new(part_of(x, part)));
        let ideal = runs.each_ref().map(|run| run.fit_affine(top));
        let largest = |of: fn(&Affine) -> f32| ideal.iter().map(of).fold(0.0, f32::max);
        let d = half(largest(|affine| affine.scale) / SCALE_6_MAX);
        let d_min = half(largest(|affine| affine.min) / SCALE_6_MAX);
        let (mut best, error) = AffineBlock::with_scales(&runs, &ideal, [d, d_min], top);
        let [d, d_min] = best.solve(&runs).map(half);
        // The solution must span the ideals as before: far smaller ones would only clip.
        if [d, d_min] != [best.d, best.d_min] && d > 0.0 && d_min >= 0.0 && d.is_finite() && d_min.is_finite() {
            let (again, error_again) = AffineBlock::with_scales(&runs, &ideal, [d, d_min], top);
            if error_again < error {
                best = again;
            }
        }
        best
    }

    /// Chooses integers and levels for given half-precision scales; returns the block with its error.
    fn with_scales(
        runs: &[Run<'_, AFFINE>; NUM_AFFINE],
        ideal: &[Affine; NUM_AFFINE],
        [d, d_min]: [f32; 2],
        top: f32,
    ) -> (AffineBlock, f32) {
        let mut block = AffineBlock { d, d_min, scales: [0.0; 8], mins: [0.0; 8], levels: [[0.0; AFFINE]; NUM_AFFINE] };
        let mut total = 0.0;
        for (part, (run, ideal)) in runs.iter().zip(ideal).enumerate() {
            let mut least = f32::INFINITY;
            for scale in around(ideal.scale, d, 0.0, SCALE_6_MAX) {
                for min in around(ideal.min, d_min, 0.0, SCALE_6_MAX) {
                    let (step, offset) = (d * scale, d_min * min);
                    let inverse = if step > SCALE_MIN { 1.0 / step } else { 0.0 };
                    let levels = run.levels(inverse, offset, 0.0, top);
                    let error = run.error(&levels, step, -offset);
                    if error < least {
                        least = error;
                        (block.scales[part], block.mins[part], block.levels[part]) = (scale, min, levels);
                    }
                }
            }
            total += least;
        }
        (block, total)
    }

    /// Least squares for both half-precision scales with everything else fixed: `x = d * (scale * level) - d_min * min`.
    fn solve(&self, runs: &[Run<'_, AFFINE>; NUM_AFFINE]) -> [f32; 2] {
        let [mut aa, mut ab, mut bb, mut ax, mut bx] = [0.0f64; 5];
        for (part, run) in runs.iter().enumerate() {
            let (scale, b) = (f64::from(self.scales[part]), -f64::from(self.mins[part]));
            for ((&x, &count), &level) in run.x.iter().zip(&run.counts).zip(&self.levels[part]) {
                let (x, count, a) = (f64::from(x), f64::from(count), scale * f64::from(level));
                aa += count * a * a;
                ab += count * a * b;
                bb += count * b * b;
                ax += count * a * x;
                bx += count * b * x;
            }
        }
        let determinant = aa * bb - ab * ab;
        if determinant <= 0.0 {
            return [if aa > 0.0 { (ax / aa) as f32 } else { self.d }, self.d_min];
        }
        [((ax * bb - bx * ab) / determinant) as f32, ((bx * aa - ax * ab) / determinant) as f32]
    }

    /// Writes the scales and minimums: 6 bits each, those of the later four parts split.
    fn put_head(&self, out: &mut [u8]) {
        put_half(out, 0, self.d);
        put_half(out, 2, self.d_min);
        let (scales, mins) = (self.scales.map(|v| v as u8), self.mins.map(|v| v as u8));
        for part in 0..4 {
            out[4 + part] = scales[part] | (scales[part + 4] >> 4) << 6;
            out[8 + part] = mins[part] | (mins[part + 4] >> 4) << 6;
            out[12 + part] = (scales[part + 4] & 0xF) | (mins[part + 4] & 0xF) << 4;
        }
    }
}

/// The numbers of a `Q6_K` block, integers held as floats.
struct SymmetricBlock {
    d: f32,
    scales: [f32; NUM_SYMMETRIC],
    levels: [[f32; SYMMETRIC]; NUM_SYMMETRIC],
}

impl SymmetricBlock {
    fn search(x: &[f32; BLOCK]) -> SymmetricBlock {
        let runs: [Run<'_, SYMMETRIC>; NUM_SYMMETRIC] = std::array::from_fn(|part| Run::new(part_of(x, part)));
        let ideal = runs.each_ref().map(|run| run.fit_symmetric(Q6_HALF));
        let largest =
            ideal.iter().fold(0.0f32, |largest, &scale| if scale.abs() > largest.abs() { scale } else { largest });
        // The largest scale gets the integer of which there is one more.
        let (mut best, error) = SymmetricBlock::with_scale(&runs, &ideal, half(-largest / Q6_SCALES_HALF));
        let d = half(best.solve(&runs));
        if d != best.d && d != 0.0 && d.is_finite() {
            let (again, error_again) = SymmetricBlock::with_scale(&runs, &ideal, d);
            if error_again < error {
                best = again;
            }
        }
        best
    }

    fn with_scale(
        runs: &[Run<'_, SYMMETRIC>; NUM_SYMMETRIC],
        ideal: &[f32; NUM_SYMMETRIC],
        d: f32,
    ) -> (SymmetricBlock, f32) {
        let mut block = SymmetricBlock { d, scales: [0.0; NUM_SYMMETRIC], levels: [[0.0; SYMMETRIC]; NUM_SYMMETRIC] };
        let mut total = 0.0;
        for (part, (run, &ideal)) in runs.iter().zip(ideal).enumerate() {
            let mut least = f32::INFINITY;
            for scale in around(ideal, d, -Q6_SCALES_HALF, Q6_SCALES_HALF - 1.0) {
                let step = d * scale;
                let inverse = if step.abs() > SCALE_MIN { 1.0 / step } else { 0.0 };
                let levels = run.levels(inverse, 0.0, -Q6_HALF, Q6_HALF - 1.0);
                let error = run.error(&levels, step, 0.0);
                if error < least {
                    least = error;
                    (block.scales[part], block.levels[part]) = (scale, levels);
                }
            }
            total += least;
        }
        (block, total)
    }

    fn solve(&self, runs: &[Run<'_, SYMMETRIC>; NUM_SYMMETRIC]) -> f32 {
        let [mut aa, mut ax] = [0.0f32; 2];
        for (part, run) in runs.iter().enumerate() {
            let [wll, wlx] = run.moments(&self.levels[part]);
            aa += wll * self.scales[part] * self.scales[part];
            ax += wlx * self.scales[part];
        }
        if aa > 0.0 { ax / aa } else { self.d }
    }
}

/// The three integers nearest to `ideal / d` that lie between `low` and `high`; 0 alone where `d` is 0.
fn around(ideal: f32, d: f32, low: f32, high: f32) -> impl Iterator<Item = f32> {
    let middle = if d == 0.0 { 0.0 } else { nearest((ideal / d).clamp(low, high)) };
    let others = [middle - 1.0, middle + 1.0].into_iter().filter(move |&v| d != 0.0 && v >= low && v <= high);
    std::iter::once(middle).chain(others)
}

fn part_of<const N: usize>(x: &[f32; BLOCK], part: usize) -> &[f32; N] {
    &x.as_chunks::<N>().0[part]
}

/// Rounds to half precision, as a reader will get it.
fn half(value: f32) -> f32 {
    f16::from_f32(value).to_f32()
}
