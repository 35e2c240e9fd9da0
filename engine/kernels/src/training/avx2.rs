//! The training kernels with AVX2. Simple loops are compiled again from `scalar`; they neither reassociate nor fuse.

use std::arch::x86_64::*;

use super::dropout::{self, Masked};
use super::scalar;
use super::table::{PANEL_COLS, TILE_ROWS, Tile};
use crate::elementwise::avx2::{add_lanes, exp};
use crate::reduce;
use crate::shared::Place;

const LANES: usize = 8;

/// Steps along the depth between two jumps.
const UNROLL: usize = 4;

/// Rows that are multiplied together, half a tile: twelve sums, two vectors of the panel and two broadcast values take all 16
/// registers.
const ROWS: usize = TILE_ROWS / 2;

/// # Safety
/// As `scalar::tile`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn tile(tile: &Tile<'_>, place: Place) {
    tile.check();
    let mut ahead = tile.ahead;
    ahead.ask_all();
    let tile = &Tile { ahead, ..*tile };
    if let Some(second) = tile.second {
        let columns =
            |panel, at| (Tile { panel, second: None, ..*tile }, Place { start: place.start.wrapping_add(at), ..place });
        for (tile, place) in [columns(tile.panel, 0), columns(second, PANEL_COLS)] {
            // SAFETY: the caller's promise, of the columns of one panel.
            unsafe { self::tile(&tile, place) };
        }
        return;
    }
    // SAFETY: as `half_tile`.
    unsafe {
        if tile.num_rows <= ROWS {
            return half_tile(tile, place);
        }
        // Halves of nearly equal height.
        let upper = tile.num_rows.div_ceil(2);
        half_tile(&Tile { num_rows: upper, ..*tile }, place);
        let left = &tile.left[upper * tile.row_stride..];
        let lower = Tile { left, num_rows: tile.num_rows - upper, ..*tile };
        half_tile(&lower, Place { start: place.start.add(upper * place.stride), ..place });
    }
}

/// # Safety
/// `Tile::check` has passed, and the place is that of the tile, which has at most [`ROWS`] rows.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn half_tile(tile: &Tile<'_>, place: Place) {
    // SAFETY: `check` asserted that every element of the tile lies in its slice; the place is the caller's promise. Rows that
    // are interleaved get their own code, in which all distances are constants.
    unsafe {
        match (tile.num_rows, tile.row_stride, tile.col_stride) {
            (ROWS, 1, TILE_ROWS) => rows::<ROWS, true>(tile, place),
            (1, ..) => rows::<1, false>(tile, place),
            (2, ..) => rows::<2, false>(tile, place),
            (3, ..) => rows::<3, false>(tile, place),
            (4, ..) => rows::<4, false>(tile, place),
            (5, ..) => rows::<5, false>(tile, place),
            _ => rows::<ROWS, false>(tile, place),
        }
    }
}

/// # Safety
/// `Tile::check` has passed, the tile has at least `N` rows, interleaved if `INTERLEAVED`, and so has the place.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn rows<const N: usize, const INTERLEAVED: bool>(tile: &Tile<'_>, place: Place) {
    let mut sums = [[_mm256_setzero_ps(); 2]; N];
    let (row_stride, col_stride) = if INTERLEAVED { (1, TILE_ROWS) } else { (tile.row_stride, tile.col_stride) };
    let (mut panel, mut left) = (tile.panel.as_ptr(), tile.left.as_ptr());
    for _ in 0..tile.depth / UNROLL {
        for k in 0..UNROLL {
            // SAFETY: `check` asserted `depth` rows of the panel, and the left element `(N - 1, depth - 1)`.
            unsafe {
                term(left.wrapping_add(k * col_stride), row_stride, panel.wrapping_add(k * PANEL_COLS), &mut sums)
            };
        }
        panel = panel.wrapping_add(UNROLL * PANEL_COLS);
        left = left.wrapping_add(UNROLL * col_stride);
    }
    for _ in 0..tile.depth % UNROLL {
        // SAFETY: as above.
        unsafe { term(left, row_stride, panel, &mut sums) };
        panel = panel.wrapping_add(PANEL_COLS);
        left = left.wrapping_add(col_stride);
    }
    for (i, sums) in sums.into_iter().enumerate() {
        for (half, sum) in sums.into_iter().enumerate() {
            // SAFETY: the place has `N` rows of two vectors.
            unsafe {
                let out = place.start.add(i * place.stride + half * LANES);
                let sum = if place.add { _mm256_add_ps(_mm256_loadu_ps(out), sum) } else { sum };
                _mm256_storeu_ps(out, sum);
            }
        }
    }
}

/// Adds one column of the left factor times one line of the panel.
///
/// # Safety
/// `N` floats from `left` on, `row_stride` apart, and [`PANEL_COLS`] from `panel` on can be read.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn term<const N: usize>(left: *const f32, row_stride: usize, panel: *const f32, sums: &mut [[__m256; 2]; N]) {
    // SAFETY: the caller's promise.
    let right = unsafe { [_mm256_loadu_ps(panel), _mm256_loadu_ps(panel.add(LANES))] };
    for (i, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let value = unsafe { _mm256_broadcast_ss(&*left.add(i * row_stride)) };
        sums[0] = _mm256_fmadd_ps(value, right[0], sums[0]);
        sums[1] = _mm256_fmadd_ps(value, right[1], sums[1]);
    }
}

/// As `scalar::interleave`, in squares of eight rows: the first eight, and the last eight, which overlap.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn interleave(rows: &[f32], stride: usize, num_rows: usize, out: &mut [f32]) {
    if !(LANES..=TILE_ROWS).contains(&num_rows) {
        return scalar::interleave(rows, stride, num_rows, out);
    }
    let len = out.len() / TILE_ROWS;
    let whole = len / LANES * LANES;
    assert!(rows.len() >= (num_rows - 1) * stride + len, "{num_rows} rows of {len}");
    for at in (0..whole).step_by(LANES) {
        for first in [0, num_rows - LANES] {
            let from = rows.as_ptr().wrapping_add(first * stride + at);
            // SAFETY: eight rows of eight floats from row `first` and column `at` on lie in `rows` by the assertion; eight floats from
            // place `first` on lie within [`TILE_ROWS`].
            unsafe {
                let lines = transposed([0, 1, 2, 3, 4, 5, 6, 7].map(|i| _mm256_loadu_ps(from.add(i * stride))));
                for (k, line) in lines.into_iter().enumerate() {
                    _mm256_storeu_ps(out.as_mut_ptr().add((at + k) * TILE_ROWS + first), line);
                }
            }
        }
    }
    for (k, out) in out.as_chunks_mut::<TILE_ROWS>().0.iter_mut().enumerate().skip(whole) {
        (0..num_rows).for_each(|i| out[i] = rows[i * stride + k]);
    }
}

/// As `scalar::transpose`, in squares of eight.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn transpose(rows: &[f32], stride: usize, len: usize, panel: &mut [f32]) {
    assert!(panel.len() >= len * PANEL_COLS && rows.len() >= (PANEL_COLS - 1) * stride + len, "16 rows of {len}");
    let whole = len / LANES * LANES;
    for half in [0, LANES] {
        for at in (0..whole).step_by(LANES) {
            let from = rows.as_ptr().wrapping_add(half * stride + at);
            let to = panel.as_mut_ptr().wrapping_add(at * PANEL_COLS + half);
            // SAFETY: eight rows of eight floats from row `half` and column `at` on lie in `rows`, eight lines of the
            // panel from line `at` on lie in `panel`, by the assertion.
            unsafe { square(from, stride, to) };
        }
    }
    for k in whole..len {
        for i in 0..PANEL_COLS {
            panel[k * PANEL_COLS + i] = rows[i * stride + k];
        }
    }
}

/// Transposes a square of eight.
///
/// # Safety
/// Eight rows of eight floats can be read from `from`, `stride` apart, and written to `to`, [`PANEL_COLS`] apart.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn square(from: *const f32, stride: usize, to: *mut f32) {
    // SAFETY: the caller's promise.
    let lines = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| unsafe { _mm256_loadu_ps(from.add(i * stride)) });
    for (i, line) in transposed(lines).into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(to.add(i * PANEL_COLS), line) };
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn transposed(r: [__m256; LANES]) -> [__m256; LANES] {
    let (a0, a1) = (_mm256_unpacklo_ps(r[0], r[1]), _mm256_unpackhi_ps(r[0], r[1]));
    let (a2, a3) = (_mm256_unpacklo_ps(r[2], r[3]), _mm256_unpackhi_ps(r[2], r[3]));
    let (a4, a5) = (_mm256_unpacklo_ps(r[4], r[5]), _mm256_unpackhi_ps(r[4], r[5]));
    let (a6, a7) = (_mm256_unpacklo_ps(r[6], r[7]), _mm256_unpackhi_ps(r[6], r[7]));
    let (b0, b1) = (_mm256_shuffle_ps::<0x44>(a0, a2), _mm256_shuffle_ps::<0xEE>(a0, a2));
    let (b2, b3) = (_mm256_shuffle_ps::<0x44>(a1, a3), _mm256_shuffle_ps::<0xEE>(a1, a3));
    let (b4, b5) = (_mm256_shuffle_ps::<0x44>(a4, a6), _mm256_shuffle_ps::<0xEE>(a4, a6));
    let (b6, b7) = (_mm256_shuffle_ps::<0x44>(a5, a7), _mm256_shuffle_ps::<0xEE>(a5, a7));
    [
        _mm256_permute2f128_ps::<0x20>(b0, b4),
        _mm256_permute2f128_ps::<0x20>(b1, b5),
        _mm256_permute2f128_ps::<0x20>(b2, b6),
        _mm256_permute2f128_ps::<0x20>(b3, b7),
        _mm256_permute2f128_ps::<0x31>(b0, b4),
        _mm256_permute2f128_ps::<0x31>(b1, b5),
        _mm256_permute2f128_ps::<0x31>(b2, b6),
        _mm256_permute2f128_ps::<0x31>(b3, b7),
    ]
}

/// As `scalar::exp_sum`, with eight partial sums.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn exp_sum(x: &mut [f32], scale: f32, shift: f32) -> f32 {
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    let (scales, shifts) = (_mm256_set1_ps(scale), _mm256_set1_ps(shift));
    let mut sums = _mm256_setzero_ps();
    for x in whole {
        let value = exp(_mm256_fmsub_ps(load(x), scales, shifts));
        sums = _mm256_add_ps(sums, value);
        store(value, x);
    }
    let mut last = [f32::NEG_INFINITY; LANES];
    for (last, x) in last.iter_mut().zip(rest.iter()) {
        *last = x.mul_add(scale, -shift);
    }
    let value = exp(load(&last));
    store(value, &mut last);
    rest.copy_from_slice(&last[..rest.len()]);
    add_lanes(_mm256_add_ps(sums, value))
}

/// As `reduce::max`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn max(values: &[f32]) -> f32 {
    reduce::max(values)
}

/// As `scalar::scale`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn scale(x: &mut [f32], factor: f32) {
    scalar::scale(x, factor);
}

/// As `scalar::dot`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    scalar::dot(a, b)
}

/// As `scalar::softmax_backward`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn softmax_backward(p: &mut [f32], dp: &[f32], delta: f32, scale: f32) {
    scalar::softmax_backward(p, dp, delta, scale);
}

/// As `scalar::swiglu_backward`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn swiglu_backward(gate: &mut [f32], up: &mut [f32], d_out: &[f32]) {
    assert!(gate.len() == up.len() && gate.len() == d_out.len(), "gate, up and gradient");
    let whole = gate.len() / LANES * LANES;
    let one = _mm256_set1_ps(1.0);
    for ((gate, up), d) in
        gate.as_chunks_mut::<LANES>().0.iter_mut().zip(up.as_chunks_mut::<LANES>().0).zip(d_out.as_chunks::<LANES>().0)
    {
        let (g, u, d) = (load(gate), load(up), load(d));
        let s = sigmoid(g);
        let d_s = _mm256_mul_ps(d, s);
        store(_mm256_mul_ps(d_s, g), up);
        let slope = _mm256_fmadd_ps(g, _mm256_sub_ps(one, s), one);
        store(_mm256_mul_ps(_mm256_mul_ps(d_s, u), slope), gate);
    }
    scalar::swiglu_backward(&mut gate[whole..], &mut up[whole..], &d_out[whole..]);
}

/// As `dropout::scalar`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dropout(masked: &Masked<'_>, out: &mut [f32]) {
    dropout::scalar(masked, out);
}

/// As `scalar::rms_norm_backward`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn rms_norm_backward(x: &[f32], weight: &[f32], d_out: &[f32], eps: f32, d_x: &mut [f32]) {
    let len = x.len();
    assert!(weight.len() == len && d_out.len() == len && d_x.len() == len, "a row of a norm");
    let whole = len / LANES * LANES;
    let (mut squares, mut products) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for ((x, w), d) in
        x.as_chunks::<LANES>().0.iter().zip(weight.as_chunks::<LANES>().0).zip(d_out.as_chunks::<LANES>().0)
    {
        let x = load(x);
        squares = _mm256_fmadd_ps(x, x, squares);
        products = _mm256_fmadd_ps(x, _mm256_mul_ps(load(w), load(d)), products);
    }
    let (mut square, mut product) = (add_lanes(squares), add_lanes(products));
    for i in whole..len {
        square += x[i] * x[i];
        product += x[i] * weight[i] * d_out[i];
    }
    let factor = 1.0 / (square / len as f32 + eps).sqrt();
    scalar::rms_norm_apply((x, weight, d_out), factor, product / len as f32, d_x);
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sigmoid(x: __m256) -> __m256 {
    let one = _mm256_set1_ps(1.0);
    _mm256_div_ps(one, _mm256_add_ps(one, exp(_mm256_sub_ps(_mm256_setzero_ps(), x))))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load(x: &[f32; LANES]) -> __m256 {
    // SAFETY: a reference to 8 floats; the load is unaligned.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn store(value: __m256, out: &mut [f32; LANES]) {
    // SAFETY: a reference to 8 floats; the store is unaligned.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), value) }
}
