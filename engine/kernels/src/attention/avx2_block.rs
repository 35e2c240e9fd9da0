//! One chunk of keys for a block of queries, with AVX2. Heads are whole vectors of eight.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::avx2::softmax;
use super::blocked::{Block, Chunk, HEAD_DIM_MAX, SCORE_TILE, VECTORS};
use super::{CHUNK, Scores};

/// Elements of a register; a head is a multiple of it.
pub(crate) const LANES: usize = 8;
/// Queries, or outputs, that are summed together: 6 x 2 sums, two keys or values and a factor take 15 of the 16 registers.
const TILE: usize = 6;
/// Registers of keys, or of an output, that are summed together.
const WIDE: usize = 2;

/// A key that is not there.
static NO_KEY: [f32; HEAD_DIM_MAX] = [0.0; HEAD_DIM_MAX];

/// Scores a chunk and adds its weighted values to the outputs.
///
/// # Safety
/// The outputs of the block are valid for `head_dim` floats each and accessed by nobody else.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn step(block: &mut Block, chunk: &Chunk<'_>) {
    let (head_dim, num) = (block.head_dim, chunk.keys.len());
    assert!(block.num_vectors <= VECTORS && head_dim <= HEAD_DIM_MAX, "vectors of a block");
    assert!(head_dim.is_multiple_of(LANES), "a head of {head_dim} is not whole vectors");
    assert!(chunk.first_lane + num <= CHUNK && chunk.values.len() == num, "keys of a chunk");
    assert!(chunk.keys.iter().chain(chunk.values).all(|row| row.len() == head_dim), "elements of a key or value");
    // Keys `(head_dim, CHUNK)`; a vector each, so that it is aligned.
    let mut turned = [const { MaybeUninit::<__m256>::uninit() }; HEAD_DIM_MAX * CHUNK / LANES];
    let turned = turned.as_mut_ptr().cast::<f32>();
    // SAFETY: `turned` has room for `head_dim` rows, and the keys are as long.
    unsafe { turn(chunk, head_dim, turned) };
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
        // SAFETY: the queries of every vector are written, `turn` has filled `head_dim` rows, the assertions bound the rest.
        unsafe {
            score(queries.as_ptr().cast(), (head_dim, width), turned, &mut block.scores[tile.clone()]);
            for vector in tile.clone() {
                corrections[vector] = weights(block, vector);
            }
            let sums = WeighTile {
                out: &block.out[tile.clone()],
                corrections: &corrections[tile.clone()],
                scores: &block.scores[tile],
                chunk,
            };
            weigh(&sums, head_dim);
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

/// Turns the keys of a chunk; lanes without a key become 0.
///
/// # Safety
/// Every key holds `head_dim` floats, whole vectors, and `out` has room for as many rows of `CHUNK`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn turn(chunk: &Chunk<'_>, head_dim: usize, out: *mut f32) {
    let mut keys = [NO_KEY.as_ptr(); CHUNK];
    for (to, key) in keys[chunk.first_lane..].iter_mut().zip(chunk.keys) {
        *to = key.as_ptr();
    }
    for (eight, first_lane) in keys.as_chunks::<LANES>().0.iter().zip((0..).step_by(LANES)) {
        for at in (0..head_dim).step_by(LANES) {
            // SAFETY: the caller's promise.
            let columns = transpose(eight.map(|key| unsafe { _mm256_loadu_ps(key.add(at)) }));
            for (column, values) in columns.into_iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { _mm256_storeu_ps(out.add((at + column) * CHUNK + first_lane), values) };
            }
        }
    }
}

/// Transposes 8 x 8 floats.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn transpose(rows: [__m256; LANES]) -> [__m256; LANES] {
    // 4 x 4 within each half: `quads[4 i + c]` holds columns c and 4 + c of rows 4 i to 4 i + 3.
    let mut quads = [_mm256_setzero_ps(); LANES];
    for i in 0..2 {
        let [a, b, c, d] = [rows[4 * i], rows[4 * i + 1], rows[4 * i + 2], rows[4 * i + 3]];
        let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        quads[4 * i] = _mm256_shuffle_ps::<0b01_00_01_00>(ab_low, cd_low);
        quads[4 * i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(ab_low, cd_low);
        quads[4 * i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high);
        quads[4 * i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high);
    }
    // Then the halves themselves.
    let mut columns = [_mm256_setzero_ps(); LANES];
    for c in 0..4 {
        columns[c] = _mm256_permute2f128_ps::<0x20>(quads[c], quads[4 + c]);
        columns[4 + c] = _mm256_permute2f128_ps::<0x31>(quads[c], quads[4 + c]);
    }
    columns
}

/// Dots the queries of a tile with all keys of a chunk.
///
/// # Safety
/// `queries` points into `head_dim` rows of `width`, all written, with as many left in a row as there are scores; `turned` holds as many
/// rows of `CHUNK`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn score(queries: *const f32, shape: (usize, usize), turned: *const f32, scores: &mut [Scores]) {
    // SAFETY: the caller's promise.
    unsafe {
        match scores.len() {
            0 => {}
            1 => score_rows::<1>(queries, shape, turned, scores),
            2 => score_rows::<2>(queries, shape, turned, scores),
            3 => score_rows::<3>(queries, shape, turned, scores),
            4 => score_rows::<4>(queries, shape, turned, scores),
            5 => score_rows::<5>(queries, shape, turned, scores),
            _ => score_rows::<TILE>(queries, shape, turned, scores),
        }
    }
}

/// # Safety
/// As `score`, of `N` vectors.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn score_rows<const N: usize>(
    queries: *const f32,
    (head_dim, width): (usize, usize),
    turned: *const f32,
    scores: &mut [Scores],
) {
    for first_lane in (0..CHUNK).step_by(WIDE * LANES) {
        let mut sums = [[_mm256_setzero_ps(); WIDE]; N];
        for d in 0..head_dim {
            // SAFETY: the caller's promise.
            let keys: [__m256; WIDE] =
                std::array::from_fn(|i| unsafe { _mm256_loadu_ps(turned.add(d * CHUNK + first_lane + i * LANES)) });
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
    chunk: &'a Chunk<'a>,
}

/// `out = out * correction + sum_j weight_j value_j`, in order of `j`.
///
/// # Safety
/// The outputs and the values of the chunk hold `head_dim` floats, whole vectors.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn weigh(tile: &WeighTile<'_>, head_dim: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.out.len() {
            0 => {}
            1 => weigh_rows::<1>(tile, head_dim),
            2 => weigh_rows::<2>(tile, head_dim),
            3 => weigh_rows::<3>(tile, head_dim),
            4 => weigh_rows::<4>(tile, head_dim),
            5 => weigh_rows::<5>(tile, head_dim),
            _ => weigh_rows::<TILE>(tile, head_dim),
        }
    }
}

/// # Safety
/// As `weigh`, of `N` vectors.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn weigh_rows<const N: usize>(tile: &WeighTile<'_>, head_dim: usize) {
    let mut at = 0;
    // SAFETY: the caller's promise: `at` plus the registers of each call stays within `head_dim`.
    unsafe {
        while at + WIDE * LANES <= head_dim {
            weigh_registers::<N, WIDE>(tile, at);
            at += WIDE * LANES;
        }
        if at < head_dim {
            weigh_registers::<N, 1>(tile, at);
        }
    }
}

/// # Safety
/// The tile has `N` vectors; outputs and values hold `W` registers from `at` on.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn weigh_registers<const N: usize, const W: usize>(tile: &WeighTile<'_>, at: usize) {
    let weights = tile.scores.as_ptr().cast::<f32>().wrapping_add(tile.chunk.first_lane);
    let mut sums = [[_mm256_setzero_ps(); W]; N];
    for (n, sums) in sums.iter_mut().enumerate() {
        let correction = _mm256_set1_ps(tile.corrections[n]);
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *sum = _mm256_mul_ps(unsafe { _mm256_loadu_ps(tile.out[n].add(at + i * LANES)) }, correction);
        }
    }
    for (j, value) in tile.chunk.values.iter().enumerate() {
        // SAFETY: the caller's promise.
        let value: [__m256; W] =
            std::array::from_fn(|i| unsafe { _mm256_loadu_ps(value.as_ptr().add(at + i * LANES)) });
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
