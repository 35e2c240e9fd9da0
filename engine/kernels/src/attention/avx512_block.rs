//! One chunk of keys for a block of queries, with AVX-512.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::avx512::softmax;
use super::blocked::{Block, Chunk, HEAD_DIM_MAX, SCORE_TILE, VECTORS};
use super::{CHUNK, Scores};

const LANES: usize = 16;
/// Vectors whose outputs are summed together: 6 x 4 sums and 4 values take 28 of the 32 registers.
const WEIGH_TILE: usize = 6;
/// Registers of an output that are summed together: a head of 64.
const WIDE: usize = 4;

/// A key that is not there.
static NO_KEY: [f32; HEAD_DIM_MAX] = [0.0; HEAD_DIM_MAX];

/// Scores a chunk and adds its weighted values to the outputs.
///
/// # Safety
/// The outputs of the block are valid for `head_dim` floats each and accessed by nobody else.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn step(block: &mut Block, chunk: &Chunk<'_>) {
    let (head_dim, num) = (block.head_dim, chunk.keys.len());
    assert!(block.num_vectors <= VECTORS && head_dim <= HEAD_DIM_MAX, "vectors of a block");
    assert!(chunk.first_lane + num <= CHUNK && chunk.values.len() == num, "keys of a chunk");
    assert!(chunk.keys.iter().chain(chunk.values).all(|row| row.len() == head_dim), "elements of a key or value");
    // Keys `(head_dim, CHUNK)`; a vector each, so that it is aligned.
    let mut turned = [const { MaybeUninit::<__m512>::uninit() }; HEAD_DIM_MAX * CHUNK / LANES];
    let turned = turned.as_mut_ptr().cast::<f32>();
    let scores = &mut block.scores;
    let mut corrections = [1.0; VECTORS];
    // SAFETY: `turn` fills the first `head_dim` rows, which `score` reads; the assertions above bound the rest.
    unsafe { turn(chunk, head_dim, turned) };
    for first in (0..block.num_vectors).step_by(SCORE_TILE) {
        let width = SCORE_TILE.min(block.num_vectors - first);
        if block.lanes[first..first + width].iter().all(|(start, end)| start >= end) {
            continue;
        }
        let queries = &block.queries[first * head_dim..(first + width) * head_dim];
        // SAFETY: the queries of every vector are written; `turned` as above.
        unsafe { score(queries, head_dim, turned, &mut scores[first..first + width]) };
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
        // SAFETY: the caller's promise, and the assertions above.
        unsafe { weigh(&tile, head_dim) };
    }
}

/// Turns the keys of a chunk; lanes without a key become 0.
///
/// # Safety
/// Every key holds `head_dim` floats, and `out` has room for as many rows of `CHUNK`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn turn(chunk: &Chunk<'_>, head_dim: usize, out: *mut f32) {
    let mut keys = [NO_KEY.as_ptr(); CHUNK];
    for (to, key) in keys[chunk.first_lane..].iter_mut().zip(chunk.keys) {
        *to = key.as_ptr();
    }
    for first_lane in [0, LANES] {
        for at in (0..head_dim).step_by(LANES) {
            let left = head_dim - at;
            let mask: __mmask16 = if left < LANES { (1 << left) - 1 } else { !0 };
            let mut rows = [_mm512_setzero_ps(); LANES];
            for (key, row) in keys[first_lane..].iter().zip(&mut rows) {
                // SAFETY: the caller's promise; the mask ends with the key.
                *row = unsafe { _mm512_maskz_loadu_ps(mask, key.add(at)) };
            }
            let columns = transpose(rows);
            for (column, values) in columns.iter().take(left).enumerate() {
                // SAFETY: the caller's promise.
                unsafe { _mm512_storeu_ps(out.add((at + column) * CHUNK + first_lane), *values) };
            }
        }
    }
}

/// Transposes 16 x 16 floats.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
#[inline]
fn transpose(rows: [__m512; LANES]) -> [__m512; LANES] {
    let zero = _mm512_setzero_ps();
    // 4 x 4 within each quarter: `quads[4 i + c]` holds columns c, 4 + c, 8 + c, 12 + c of rows 4 i to 4 i + 3.
    let mut quads = [zero; LANES];
    for i in 0..4 {
        let [a, b, c, d] = [rows[4 * i], rows[4 * i + 1], rows[4 * i + 2], rows[4 * i + 3]];
        let ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
        let ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
        let cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
        let cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
        quads[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
        quads[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
        quads[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
        quads[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
    }
    // Then the quarters themselves.
    let mut columns = [zero; LANES];
    for c in 0..4 {
        let even_ab = _mm512_shuffle_f32x4::<0x88>(quads[c], quads[4 + c]);
        let odd_ab = _mm512_shuffle_f32x4::<0xDD>(quads[c], quads[4 + c]);
        let even_cd = _mm512_shuffle_f32x4::<0x88>(quads[8 + c], quads[12 + c]);
        let odd_cd = _mm512_shuffle_f32x4::<0xDD>(quads[8 + c], quads[12 + c]);
        columns[c] = _mm512_shuffle_f32x4::<0x88>(even_ab, even_cd);
        columns[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd_ab, odd_cd);
        columns[8 + c] = _mm512_shuffle_f32x4::<0xDD>(even_ab, even_cd);
        columns[12 + c] = _mm512_shuffle_f32x4::<0xDD>(odd_ab, odd_cd);
    }
    columns
}

/// Dots the queries of a tile with all keys of a chunk.
///
/// # Safety
/// `queries` holds `head_dim` rows as wide as the tile, all written, `turned` as many of `CHUNK`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn score(queries: &[MaybeUninit<f32>], head_dim: usize, turned: *const f32, scores: &mut [Scores]) {
    assert!(queries.len() >= head_dim * scores.len(), "queries of a tile");
    // SAFETY: the caller's promise, and the assertion.
    unsafe {
        match scores.len() {
            0 => {}
            1 => score_rows::<1>(queries, head_dim, turned, scores),
            2 => score_rows::<2>(queries, head_dim, turned, scores),
            3 => score_rows::<3>(queries, head_dim, turned, scores),
            4 => score_rows::<4>(queries, head_dim, turned, scores),
            5 => score_rows::<5>(queries, head_dim, turned, scores),
            6 => score_rows::<6>(queries, head_dim, turned, scores),
            7 => score_rows::<7>(queries, head_dim, turned, scores),
            8 => score_rows::<8>(queries, head_dim, turned, scores),
            9 => score_rows::<9>(queries, head_dim, turned, scores),
            10 => score_rows::<10>(queries, head_dim, turned, scores),
            11 => score_rows::<11>(queries, head_dim, turned, scores),
            _ => score_rows::<12>(queries, head_dim, turned, scores),
        }
    }
}

/// # Safety
/// As `score`, of `N` vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn score_rows<const N: usize>(
    queries: &[MaybeUninit<f32>],
    head_dim: usize,
    turned: *const f32,
    scores: &mut [Scores],
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; N];
    let queries = queries.as_ptr().cast::<f32>();
    for d in 0..head_dim {
        // SAFETY: the caller's promise.
        let keys = unsafe { [_mm512_loadu_ps(turned.add(d * CHUNK)), _mm512_loadu_ps(turned.add(d * CHUNK + LANES))] };
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
    chunk: &'a Chunk<'a>,
}

/// `out = out * correction + sum_j weight_j value_j`, in order of `j`.
///
/// # Safety
/// The outputs and the values of the chunk hold `head_dim` floats.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
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
            _ => weigh_rows::<WEIGH_TILE>(tile, head_dim),
        }
    }
}

/// # Safety
/// As `weigh`, of `N` vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn weigh_rows<const N: usize>(tile: &WeighTile<'_>, head_dim: usize) {
    let mut at = 0;
    // SAFETY: the caller's promise: `at` plus the registers of each call, cut by the mask, stays within `head_dim`.
    unsafe {
        while at + WIDE * LANES <= head_dim {
            weigh_registers::<N, WIDE>(tile, at, !0);
            at += WIDE * LANES;
        }
        while at + LANES <= head_dim {
            weigh_registers::<N, 1>(tile, at, !0);
            at += LANES;
        }
        if at < head_dim {
            weigh_registers::<N, 1>(tile, at, (1 << (head_dim - at)) - 1);
        }
    }
}

/// # Safety
/// The tile has `N` vectors; outputs and values hold `W` registers from `at` on, cut by the mask.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
#[inline]
unsafe fn weigh_registers<const N: usize, const W: usize>(tile: &WeighTile<'_>, at: usize, mask: __mmask16) {
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
    for (lane, value) in (tile.chunk.first_lane..).zip(tile.chunk.values) {
        let mut values = [_mm512_setzero_ps(); W];
        for (w, part) in values.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *part = unsafe { _mm512_maskz_loadu_ps(mask, value.as_ptr().add(at + w * LANES)) };
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
