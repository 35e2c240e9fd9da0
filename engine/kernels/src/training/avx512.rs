//! The training kernels that AVX-512 makes faster than AVX2; the others are those of AVX2.

use std::arch::x86_64::*;

use super::table::{PANEL_COLS, TILE_ROWS, Tile};
use crate::elementwise::avx512::exp;
use crate::shared::Place;

const LANES: usize = 16;
/// Steps along the depth between two jumps.
const UNROLL: usize = 4;

/// Twelve sums keep both units busy; the left factor is broadcast from memory. The bits are those of AVX2.
///
/// # Safety
/// As `scalar::tile`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(super) unsafe fn tile(tile: &Tile<'_>, place: Place) {
    tile.check();
    // SAFETY: `check` asserted that every element of the tile lies in its slice; the place is the caller's promise. Rows that
    // are interleaved get their own code, in which all distances are constants.
    unsafe {
        match (tile.num_rows, tile.row_stride, tile.col_stride) {
            (12, 1, TILE_ROWS) => rows::<12, true>(tile, place),
            (11, 1, TILE_ROWS) => rows::<11, true>(tile, place),
            (10, 1, TILE_ROWS) => rows::<10, true>(tile, place),
            (1, ..) => rows::<1, false>(tile, place),
            (2, ..) => rows::<2, false>(tile, place),
            (3, ..) => rows::<3, false>(tile, place),
            (4, ..) => rows::<4, false>(tile, place),
            (5, ..) => rows::<5, false>(tile, place),
            (6, ..) => rows::<6, false>(tile, place),
            (7, ..) => rows::<7, false>(tile, place),
            (8, ..) => rows::<8, false>(tile, place),
            (9, ..) => rows::<9, false>(tile, place),
            (10, ..) => rows::<10, false>(tile, place),
            (11, ..) => rows::<11, false>(tile, place),
            _ => rows::<TILE_ROWS, false>(tile, place),
        }
    }
}

/// # Safety
/// `Tile::check` has passed, the tile has at least `N` rows, interleaved if `INTERLEAVED`, and so has the place.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
unsafe fn rows<const N: usize, const INTERLEAVED: bool>(tile: &Tile<'_>, place: Place) {
    let mut sums = [_mm512_setzero_ps(); N];
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
    for (i, sum) in sums.into_iter().enumerate() {
        // SAFETY: the place has `N` rows of a vector.
        unsafe {
            let out = place.start.add(i * place.stride);
            let sum = if place.add { _mm512_add_ps(_mm512_loadu_ps(out), sum) } else { sum };
            _mm512_storeu_ps(out, sum);
        }
    }
}

/// Adds one column of the left factor times one line of the panel.
///
/// # Safety
/// `N` floats from `left` on, `row_stride` apart, and [`PANEL_COLS`] from `panel` on can be read.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
unsafe fn term<const N: usize>(left: *const f32, row_stride: usize, panel: *const f32, sums: &mut [__m512; N]) {
    const { assert!(PANEL_COLS == LANES, "a line of a panel is a vector") };
    // SAFETY: the caller's promise.
    let right = unsafe { _mm512_loadu_ps(panel) };
    for (i, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let value = _mm512_set1_ps(unsafe { *left.add(i * row_stride) });
        *sum = _mm512_fmadd_ps(value, right, *sum);
    }
}

/// As `scalar::exp_sum`, with sixteen partial sums.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn exp_sum(x: &mut [f32], scale: f32, shift: f32) -> f32 {
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    let (scales, shifts) = (_mm512_set1_ps(scale), _mm512_set1_ps(shift));
    let mut sums = _mm512_setzero_ps();
    for x in whole {
        let value = exp(_mm512_fmsub_ps(load(x), scales, shifts));
        sums = _mm512_add_ps(sums, value);
        store(value, x);
    }
    let mut last = [f32::NEG_INFINITY; LANES];
    for (last, x) in last.iter_mut().zip(rest.iter()) {
        *last = x.mul_add(scale, -shift);
    }
    let value = exp(load(&last));
    store(value, &mut last);
    rest.copy_from_slice(&last[..rest.len()]);
    _mm512_reduce_add_ps(_mm512_add_ps(sums, value))
}

/// As `scalar::swiglu`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len(), "gate, up and output");
    let whole = gate.len() / LANES * LANES;
    for ((gate, up), out) in
        gate.as_chunks::<LANES>().0.iter().zip(up.as_chunks::<LANES>().0).zip(out.as_chunks_mut::<LANES>().0)
    {
        let gate = load(gate);
        store(_mm512_mul_ps(_mm512_mul_ps(gate, sigmoid(gate)), load(up)), out);
    }
    super::scalar::swiglu(&gate[whole..], &up[whole..], &mut out[whole..]);
}

/// As `scalar::swiglu_backward`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn swiglu_backward(gate: &mut [f32], up: &mut [f32], d_out: &[f32]) {
    assert!(gate.len() == up.len() && gate.len() == d_out.len(), "gate, up and gradient");
    let whole = gate.len() / LANES * LANES;
    let one = _mm512_set1_ps(1.0);
    for ((gate, up), d) in
        gate.as_chunks_mut::<LANES>().0.iter_mut().zip(up.as_chunks_mut::<LANES>().0).zip(d_out.as_chunks::<LANES>().0)
    {
        let (g, u, d) = (load(gate), load(up), load(d));
        let s = sigmoid(g);
        let d_s = _mm512_mul_ps(d, s);
        store(_mm512_mul_ps(d_s, g), up);
        let slope = _mm512_fmadd_ps(g, _mm512_sub_ps(one, s), one);
        store(_mm512_mul_ps(_mm512_mul_ps(d_s, u), slope), gate);
    }
    super::scalar::swiglu_backward(&mut gate[whole..], &mut up[whole..], &d_out[whole..]);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
#[inline]
fn sigmoid(x: __m512) -> __m512 {
    let one = _mm512_set1_ps(1.0);
    _mm512_div_ps(one, _mm512_add_ps(one, exp(_mm512_sub_ps(_mm512_setzero_ps(), x))))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn load(x: &[f32; LANES]) -> __m512 {
    // SAFETY: a reference to 16 floats; the load is unaligned.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn store(value: __m512, out: &mut [f32; LANES]) {
    // SAFETY: a reference to 16 floats; the store is unaligned.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), value) }
}
