//! One chunk of keys for a block of queries, with AVX-512.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::avx512::softmax;
use super::blocked::{Block, Chunk, HEAD_DIM_MAX, SCORE_TILE, VECTORS};
use super::kv::{FLOATS, Float};
use super::{CHUNK, Scores};

const LANES: usize = 16;
/// Vectors whose outputs are summed together: 6 x 4 sums and 4 values take 28 of the 32 registers.
const WEIGH_TILE: usize = 6;
/// Registers of an output that are summed together: a head of 64.
const WIDE: usize = 4;

/// Scores a chunk and adds its weighted values to the outputs.
///
/// # Safety
/// As [`Step`](super::blocked::Step).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn step(block: &mut Block, chunk: &Chunk) {
    assert!(block.num_vectors <= VECTORS && block.head_dim <= HEAD_DIM_MAX, "vectors of a block");
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
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn step_of<const FLOAT: usize>(block: &mut Block, chunk: &Chunk) {
    let head_dim = block.head_dim;
    let scores = &mut block.scores;
    let mut corrections = [1.0; VECTORS];
    for first in (0..block.num_vectors).step_by(SCORE_TILE) {
        let width = SCORE_TILE.min(block.num_vectors - first);
        if block.lanes[first..first + width].iter().all(|(start, end)| start >= end) {
            continue;
        }
        let queries = &block.queries[first * head_dim..(first + width) * head_dim];
        // SAFETY: the caller's promise.
        unsafe { score::<FLOAT>(queries, head_dim, chunk, &mut scores[first..first + width]) };
    }
    for vector in 0..block.num_vectors {
        let (start, end) = block.lanes[vector];
        let scores = &mut scores[vector];
        if start >= end {
            scores.fill(0.0);
            continue;
        }
        if (start, end) != (0, CHUNK as u8) {
            scores[..usize::from(start)].fill(f32::NEG_INFINITY);
            scores[usize::from(end)..].fill(f32::NEG_INFINITY);
        }
        corrections[vector] = softmax(scores, block.scale, &mut block.softmax[vector]);
    }
    for first in (0..block.num_vectors).step_by(WEIGH_TILE) {
        let width = WEIGH_TILE.min(block.num_vectors - first);
        if block.lanes[first..first + width].iter().all(|(start, end)| start >= end) {
            continue;
        }
        let tile = WeighTile {
            out: &block.out[first..first + width],
            corrections: &corrections[first..first + width],
            scores: &scores[first..first + width],
            chunk,
        };
        // SAFETY: the caller's promise.
        unsafe { weigh::<FLOAT>(&tile, head_dim) };
    }
}

/// Sixteen elements.
///
/// # Safety
/// `at` points to as many elements of format `FLOAT`, little-endian.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
#[inline]
pub(super) unsafe fn load<const FLOAT: usize>(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        if FLOAT == Float::F32 as usize {
            _mm512_loadu_ps(at.cast())
        } else if FLOAT == Float::F16 as usize {
            _mm512_cvtph_ps(_mm256_loadu_si256(at.cast()))
        } else {
            upper_halves(_mm256_loadu_si256(at.cast()))
        }
    }
}

/// The elements of a mask; the others are 0.
///
/// # Safety
/// As `load`, for the elements of the mask.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
#[inline]
unsafe fn load_masked<const FLOAT: usize>(mask: __mmask16, at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        if mask == !0 {
            load::<FLOAT>(at)
        } else if FLOAT == Float::F32 as usize {
            _mm512_maskz_loadu_ps(mask, at.cast())
        } else if FLOAT == Float::F16 as usize {
            _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, at.cast()))
        } else {
            upper_halves(_mm256_maskz_loadu_epi16(mask, at.cast()))
        }
    }
}

/// Floats of which only the upper halves are given.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
#[inline]
fn upper_halves(halves: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
}

/// Dots the queries of a tile with all keys of a chunk.
///
/// # Safety
/// `queries` holds `head_dim` rows as wide as the tile, all written; the chunk is of format `FLOAT`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn score<const FLOAT: usize>(
    queries: &[MaybeUninit<f32>],
    head_dim: usize,
    chunk: &Chunk,
    scores: &mut [Scores],
) {
    assert!(queries.len() >= head_dim * scores.len(), "queries of a tile");
    // SAFETY: the caller's promise, and the assertion.
    unsafe {
        match scores.len() {
            0 => {}
            1 => score_rows::<FLOAT, 1>(queries, head_dim, chunk, scores),
            2 => score_rows::<FLOAT, 2>(queries, head_dim, chunk, scores),
            3 => score_rows::<FLOAT, 3>(queries, head_dim, chunk, scores),
            4 => score_rows::<FLOAT, 4>(queries, head_dim, chunk, scores),
            5 => score_rows::<FLOAT, 5>(queries, head_dim, chunk, scores),
            6 => score_rows::<FLOAT, 6>(queries, head_dim, chunk, scores),
            7 => score_rows::<FLOAT, 7>(queries, head_dim, chunk, scores),
            8 => score_rows::<FLOAT, 8>(queries, head_dim, chunk, scores),
            9 => score_rows::<FLOAT, 9>(queries, head_dim, chunk, scores),
            10 => score_rows::<FLOAT, 10>(queries, head_dim, chunk, scores),
            11 => score_rows::<FLOAT, 11>(queries, head_dim, chunk, scores),
            _ => score_rows::<FLOAT, 12>(queries, head_dim, chunk, scores),
        }
    }
}

/// # Safety
/// As `score`, of `N` vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn score_rows<const FLOAT: usize, const N: usize>(
    queries: &[MaybeUninit<f32>],
    head_dim: usize,
    chunk: &Chunk,
    scores: &mut [Scores],
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; N];
    let queries = queries.as_ptr().cast::<f32>();
    for d in 0..head_dim {
        // SAFETY: the caller's promise.
        let keys = chunk.keys.map(|keys| unsafe { load::<FLOAT>(keys.add(d * chunk.key_stride)) });
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let query = _mm512_set1_ps(unsafe { *queries.add(d * N + i) });
            sums[0] = _mm512_fmadd_ps(query, keys[0], sums[0]);
            sums[1] = _mm512_fmadd_ps(query, keys[1], sums[1]);
        }
    }
    for (scores, sums) in scores.iter_mut().zip(sums) {
        // SAFETY: `Scores` is 32 floats, two vectors.
        unsafe {
            _mm512_storeu_ps(scores.as_mut_ptr(), sums[0]);
            _mm512_storeu_ps(scores.as_mut_ptr().add(LANES), sums[1]);
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
/// The outputs and the values of the chunk hold `head_dim` floats.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
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
            _ => weigh_rows::<FLOAT, WEIGH_TILE>(tile, head_dim),
        }
    }
}

/// # Safety
/// As `weigh`, of `N` vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn weigh_rows<const FLOAT: usize, const N: usize>(tile: &WeighTile<'_>, head_dim: usize) {
    let mut at = 0;
    // SAFETY: the caller's promise: `at` plus the registers of each call, cut by the mask, stays within `head_dim`.
    unsafe {
        while at + WIDE * LANES <= head_dim {
            weigh_registers::<FLOAT, N, WIDE>(tile, at, !0);
            at += WIDE * LANES;
        }
        while at + LANES <= head_dim {
            weigh_registers::<FLOAT, N, 1>(tile, at, !0);
            at += LANES;
        }
        if at < head_dim {
            weigh_registers::<FLOAT, N, 1>(tile, at, (1 << (head_dim - at)) - 1);
        }
    }
}

/// # Safety
/// The tile has `N` vectors; outputs and values hold `W` registers from `at` on, cut by the mask.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
#[inline]
unsafe fn weigh_registers<const FLOAT: usize, const N: usize, const W: usize>(
    tile: &WeighTile<'_>,
    at: usize,
    mask: __mmask16,
) {
    let size = const { FLOATS[FLOAT].size() };
    let weights = tile.scores.as_ptr().cast::<f32>();
    let mut sums = [[_mm512_setzero_ps(); W]; N];
    for (i, sums) in sums.iter_mut().enumerate() {
        let correction = _mm512_set1_ps(tile.corrections[i]);
        for (w, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let before = unsafe { _mm512_maskz_loadu_ps(mask, tile.out[i].add(at + w * LANES)) };
            *sum = _mm512_mul_ps(before, correction);
        }
    }
    for (lane, value) in (tile.chunk.first_lane..).zip(&tile.chunk.values[..tile.chunk.num]) {
        let mut values = [_mm512_setzero_ps(); W];
        for (w, part) in values.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *part = unsafe { load_masked::<FLOAT>(mask, value.add((at + w * LANES) * size)) };
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the scores of `N` vectors lie one after the other, and `lane` is below `CHUNK`.
            let weight = _mm512_set1_ps(unsafe { *weights.add(i * CHUNK + lane) });
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = _mm512_fmadd_ps(weight, value, *sum);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        for (w, sum) in sums.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { _mm512_mask_storeu_ps(tile.out[i].add(at + w * LANES), mask, *sum) };
        }
    }
}
