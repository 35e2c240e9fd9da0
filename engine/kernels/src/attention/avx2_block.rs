//! One chunk of keys for a block of queries, with AVX2. Heads are whole vectors of eight.

use std::arch::x86_64::*;

use super::avx2::softmax;
use super::blocked::{Block, Chunk, HEAD_DIM_MAX, SCORE_TILE, VECTORS};
use super::kv::{FLOATS, Float};
use super::{CHUNK, HALF, Scores};

/// Elements of a register; a head is a multiple of it.
pub(crate) const LANES: usize = 8;
/// Queries, or outputs, that are summed together: 6 x 2 sums, two keys or values and a factor take 15 of the 16 registers.
const TILE: usize = 6;
/// Registers of keys, half a chunk, or of an output, that are summed together.
const WIDE: usize = 2;

/// Scores a chunk and adds its weighted values to the outputs.
///
/// # Safety
/// As [`Step`](super::blocked::Step).
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn step(block: &mut Block, chunk: &Chunk) {
    assert!(block.num_vectors <= VECTORS && block.head_dim <= HEAD_DIM_MAX, "vectors of a block");
    assert!(block.head_dim.is_multiple_of(LANES), "a head of {} is not whole vectors", block.head_dim);
    assert!(chunk.first_lane + chunk.num <= CHUNK, "keys of a chunk");
    // SAFETY: the caller's promise, and the assertions.
    unsafe {
        match chunk.float {
            Float::F32 => step_of::<{ Float::F32 as usize }>(block, chunk),
            Float::F16 => step_of::<{ Float::F16 as usize }>(block, chunk),
            Float::Bf16 => step_of::<{ Float::Bf16 as usize }>(block, chunk),
        }
    }
}

/// # Safety
/// As `step`, which has asserted the lengths, of elements of format `FLOAT`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn step_of<const FLOAT: usize>(block: &mut Block, chunk: &Chunk) {
    let head_dim = block.head_dim;
    let mut corrections = [1.0; VECTORS];
    for first in (0..block.num_vectors).step_by(TILE) {
        let tile = first..block.num_vectors.min(first + TILE);
        if block.lanes[tile.clone()].iter().all(|(start, end)| start >= end) {
            continue;
        }
        // Queries are packed in tiles of `SCORE_TILE`, a multiple of those here.
        let packed = first / SCORE_TILE * SCORE_TILE;
        let width = SCORE_TILE.min(block.num_vectors - packed);
        let queries = &block.queries[packed * head_dim + first - packed..(packed + width) * head_dim];
        // SAFETY: the caller's promise.
        unsafe {
            score::<FLOAT>(queries.as_ptr().cast(), (head_dim, width), chunk, &mut block.scores[tile.clone()]);
            for vector in tile.clone() {
                corrections[vector] = weights(block, vector);
            }
            let sums = WeighTile {
                out: &block.out[tile.clone()],
                corrections: &corrections[tile.clone()],
                scores: &block.scores[tile],
                chunk,
            };
            weigh::<FLOAT>(&sums, head_dim);
        }
    }
}

/// Turns the scores of a vector into weights, those of keys that it does not see into 0; returns the factor on its output.
#[target_feature(enable = "avx2,fma,f16c")]
fn weights(block: &mut Block, vector: usize) -> f32 {
    let (start, end) = block.lanes[vector];
    let scores = &mut block.scores[vector];
    if start >= end {
        scores.fill(0.0);
        return 1.0;
    }
    if (start, end) != (0, CHUNK as u8) {
        scores[..usize::from(start)].fill(f32::NEG_INFINITY);
        scores[usize::from(end)..].fill(f32::NEG_INFINITY);
    }
    softmax(scores, block.scale, &mut block.softmax[vector])
}

/// Eight elements.
///
/// # Safety
/// `at` points to as many elements of format `FLOAT`, little-endian.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn load<const FLOAT: usize>(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        if FLOAT == Float::F32 as usize {
            _mm256_loadu_ps(at.cast())
        } else if FLOAT == Float::F16 as usize {
            _mm256_cvtph_ps(_mm_loadu_si128(at.cast()))
        } else {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()))))
        }
    }
}

/// Dots the queries of a tile with all keys of a chunk.
///
/// # Safety
/// `queries` points into `head_dim` rows of `width`, all written, with as many left in a row as there are scores; the chunk is of format
/// `FLOAT`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn score<const FLOAT: usize>(queries: *const f32, shape: (usize, usize), chunk: &Chunk, scores: &mut [Scores]) {
    // SAFETY: the caller's promise.
    unsafe {
        match scores.len() {
            0 => {}
            1 => score_rows::<FLOAT, 1>(queries, shape, chunk, scores),
            2 => score_rows::<FLOAT, 2>(queries, shape, chunk, scores),
            3 => score_rows::<FLOAT, 3>(queries, shape, chunk, scores),
            4 => score_rows::<FLOAT, 4>(queries, shape, chunk, scores),
            5 => score_rows::<FLOAT, 5>(queries, shape, chunk, scores),
            _ => score_rows::<FLOAT, TILE>(queries, shape, chunk, scores),
        }
    }
}

/// # Safety
/// As `score`, of `N` vectors.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn score_rows<const FLOAT: usize, const N: usize>(
    queries: *const f32,
    (head_dim, width): (usize, usize),
    chunk: &Chunk,
    scores: &mut [Scores],
) {
    let size = const { FLOATS[FLOAT].size() };
    for (keys, first_lane) in chunk.keys.into_iter().zip((0..).step_by(HALF)) {
        let mut sums = [[_mm256_setzero_ps(); WIDE]; N];
        for d in 0..head_dim {
            // SAFETY: the caller's promise.
            let keys: [__m256; WIDE] =
                std::array::from_fn(|i| unsafe { load::<FLOAT>(keys.add(d * chunk.key_stride + i * LANES * size)) });
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let query = _mm256_set1_ps(unsafe { *queries.add(d * width + i) });
                for (sum, key) in sums.iter_mut().zip(keys) {
                    *sum = _mm256_fmadd_ps(query, key, *sum);
                }
            }
        }
        for (scores, sums) in scores.iter_mut().zip(sums) {
            for (i, sum) in sums.into_iter().enumerate() {
                // SAFETY: `Scores` is `CHUNK` floats, whole registers.
                unsafe { _mm256_storeu_ps(scores.as_mut_ptr().add(first_lane + i * LANES), sum) };
            }
        }
    }
}

/// Vectors whose outputs are summed together.
struct WeighTile<'a> {
    out: &'a [*mut f32],
    corrections: &'a [f32],
    scores: &'a [Scores],
    chunk: &'a Chunk,
}

/// `out = out * correction + sum_j weight_j value_j`, in order of `j`.
///
/// # Safety
/// The outputs and the values of the chunk hold `head_dim` floats, whole vectors.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn weigh<const FLOAT: usize>(tile: &WeighTile<'_>, head_dim: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.out.len() {
            0 => {}
            1 => weigh_rows::<FLOAT, 1>(tile, head_dim),
            2 => weigh_rows::<FLOAT, 2>(tile, head_dim),
            3 => weigh_rows::<FLOAT, 3>(tile, head_dim),
            4 => weigh_rows::<FLOAT, 4>(tile, head_dim),
            5 => weigh_rows::<FLOAT, 5>(tile, head_dim),
            _ => weigh_rows::<FLOAT, TILE>(tile, head_dim),
        }
    }
}

/// # Safety
/// As `weigh`, of `N` vectors.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn weigh_rows<const FLOAT: usize, const N: usize>(tile: &WeighTile<'_>, head_dim: usize) {
    let mut at = 0;
    // SAFETY: the caller's promise: `at` plus the registers of each call stays within `head_dim`.
    unsafe {
        while at + WIDE * LANES <= head_dim {
            weigh_registers::<FLOAT, N, WIDE>(tile, at);
            at += WIDE * LANES;
        }
        if at < head_dim {
            weigh_registers::<FLOAT, N, 1>(tile, at);
        }
    }
}

/// # Safety
/// The tile has `N` vectors; outputs and values hold `W` registers from `at` on.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn weigh_registers<const FLOAT: usize, const N: usize, const W: usize>(tile: &WeighTile<'_>, at: usize) {
    let size = const { FLOATS[FLOAT].size() };
    let weights = tile.scores.as_ptr().cast::<f32>().wrapping_add(tile.chunk.first_lane);
    let mut sums = [[_mm256_setzero_ps(); W]; N];
    for (n, sums) in sums.iter_mut().enumerate() {
        let correction = _mm256_set1_ps(tile.corrections[n]);
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *sum = _mm256_mul_ps(unsafe { _mm256_loadu_ps(tile.out[n].add(at + i * LANES)) }, correction);
        }
    }
    for (j, value) in tile.chunk.values[..tile.chunk.num].iter().enumerate() {
        // SAFETY: the caller's promise.
        let value: [__m256; W] = std::array::from_fn(|i| unsafe { load::<FLOAT>(value.add((at + i * LANES) * size)) });
        for (n, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the weights of vector `n` are `CHUNK` floats, of which the chunk's values have `first_lane..`.
            let weight = _mm256_set1_ps(unsafe { *weights.add(n * CHUNK + j) });
            for (sum, value) in sums.iter_mut().zip(value) {
                *sum = _mm256_fmadd_ps(weight, value, *sum);
            }
        }
    }
    for (n, sums) in sums.into_iter().enumerate() {
        for (i, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { _mm256_storeu_ps(tile.out[n].add(at + i * LANES), sum) };
        }
    }
}
