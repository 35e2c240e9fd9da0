//! The training kernels that AVX-512 makes faster than AVX2; the others are those of AVX2.

use std::arch::x86_64::*;

use super::dropout::{self, FACTORS, MIX_STEP, Masked};
use super::scalar;
use super::table::{PANEL_COLS, TILE_ROWS, Tile};
use crate::elementwise::avx512::{exp_or_zero, sigmoid};
use crate::reduce;
use crate::shared::Place;

const LANES: usize = 16;
/// Steps along the depth between two jumps.
const UNROLL: usize = 4;

/// Two panels together: 24 sums, and a broadcast value serves two of them, so that loads do not hold up the multiplications. The
/// bits are those of AVX2.
///
/// # Safety
/// As `scalar::tile`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(super) unsafe fn tile(tile: &Tile<'_>, place: Place) {
    tile.check();
    // SAFETY: the caller's promise.
    unsafe {
        match tile.second {
            Some(second) => panels(tile, [tile.panel, second], place),
            None => panels(tile, [tile.panel], place),
        }
    }
}

/// # Safety
/// `Tile::check` has passed; the panels are those of the tile, whose place it is.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
unsafe fn panels<const P: usize>(tile: &Tile<'_>, panels: [&[f32]; P], place: Place) {
    // SAFETY: `check` asserted that every element of the tile lies in its slice; the place is the caller's promise. Rows that
    // are interleaved get their own code, in which all distances are constants.
    unsafe {
        match (tile.num_rows, tile.row_stride, tile.col_stride) {
            (12, 1, TILE_ROWS) => rows::<12, P, true>(tile, panels, place),
            (11, 1, TILE_ROWS) => rows::<11, P, true>(tile, panels, place),
            (10, 1, TILE_ROWS) => rows::<10, P, true>(tile, panels, place),
            (1, ..) => rows::<1, P, false>(tile, panels, place),
            (2, ..) => rows::<2, P, false>(tile, panels, place),
            (3, ..) => rows::<3, P, false>(tile, panels, place),
            (4, ..) => rows::<4, P, false>(tile, panels, place),
            (5, ..) => rows::<5, P, false>(tile, panels, place),
            (6, ..) => rows::<6, P, false>(tile, panels, place),
            (7, ..) => rows::<7, P, false>(tile, panels, place),
            (8, ..) => rows::<8, P, false>(tile, panels, place),
            (9, ..) => rows::<9, P, false>(tile, panels, place),
            (10, ..) => rows::<10, P, false>(tile, panels, place),
            (11, ..) => rows::<11, P, false>(tile, panels, place),
            _ => rows::<TILE_ROWS, P, false>(tile, panels, place),
        }
    }
}

/// # Safety
/// `Tile::check` has passed, the tile has at least `N` rows, interleaved if `INTERLEAVED`, and so has the place.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
unsafe fn rows<const N: usize, const P: usize, const INTERLEAVED: bool>(
    tile: &Tile<'_>,
    panels: [&[f32]; P],
    place: Place,
) {
    let mut sums = [[_mm512_setzero_ps(); P]; N];
    let (row_stride, col_stride) = if INTERLEAVED { (1, TILE_ROWS) } else { (tile.row_stride, tile.col_stride) };
    let (mut panels, mut left) = (panels.map(<[f32]>::as_ptr), tile.left.as_ptr());
    let mut ahead = tile.ahead;
    for _ in 0..tile.depth / UNROLL {
        ahead.ask();
        for k in 0..UNROLL {
            let panels = panels.map(|panel| panel.wrapping_add(k * PANEL_COLS));
            // SAFETY: `check` asserted `depth` rows of the panels, and the left element `(N - 1, depth - 1)`.
            unsafe { term(left.wrapping_add(k * col_stride), row_stride, panels, &mut sums) };
        }
        panels = panels.map(|panel| panel.wrapping_add(UNROLL * PANEL_COLS));
        left = left.wrapping_add(UNROLL * col_stride);
    }
    for _ in 0..tile.depth % UNROLL {
        // SAFETY: as above.
        unsafe { term(left, row_stride, panels, &mut sums) };
        panels = panels.map(|panel| panel.wrapping_add(PANEL_COLS));
        left = left.wrapping_add(col_stride);
    }
    ahead.ask_all();
    for (i, sums) in sums.into_iter().enumerate() {
        for (panel, sum) in sums.into_iter().enumerate() {
            // SAFETY: the place has `N` rows of `P` vectors.
            unsafe {
                let out = place.start.add(i * place.stride + panel * PANEL_COLS);
                let sum = if place.add { _mm512_add_ps(_mm512_loadu_ps(out), sum) } else { sum };
                _mm512_storeu_ps(out, sum);
            }
        }
    }
}

/// Adds one column of the left factor times one line of each panel.
///
/// # Safety
/// `N` floats from `left` on, `row_stride` apart, and [`PANEL_COLS`] from each of `panels` on can be read.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
unsafe fn term<const N: usize, const P: usize>(
    left: *const f32,
    row_stride: usize,
    panels: [*const f32; P],
    sums: &mut [[__m512; P]; N],
) {
    const { assert!(PANEL_COLS == LANES, "a line of a panel is a vector") };
    // SAFETY: the caller's promise.
    let right = panels.map(|panel| unsafe { _mm512_loadu_ps(panel) });
    for (i, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let value = _mm512_set1_ps(unsafe { *left.add(i * row_stride) });
        for (sum, right) in sums.iter_mut().zip(right) {
            *sum = _mm512_fmadd_ps(value, right, *sum);
        }
    }
}

/// As `reduce::max`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(super) fn max(values: &[f32]) -> f32 {
    reduce::max(values)
}

/// As `scalar::scale`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(super) fn scale(x: &mut [f32], factor: f32) {
    scalar::scale(x, factor);
}

/// As `scalar::exp_sum`, with sixteen partial sums; what would be a subnormal number is zero.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn exp_sum(x: &mut [f32], scale: f32, shift: f32) -> f32 {
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    let (scales, shifts) = (_mm512_set1_ps(scale), _mm512_set1_ps(shift));
    let mut sums = _mm512_setzero_ps();
    for x in whole {
        let value = exp_or_zero(_mm512_fmsub_ps(load(x), scales, shifts));
        sums = _mm512_add_ps(sums, value);
        store(value, x);
    }
    let mut last = [f32::NEG_INFINITY; LANES];
    for (last, x) in last.iter_mut().zip(rest.iter()) {
        *last = x.mul_add(scale, -shift);
    }
    let value = exp_or_zero(load(&last));
    store(value, &mut last);
    rest.copy_from_slice(&last[..rest.len()]);
    _mm512_reduce_add_ps(_mm512_add_ps(sums, value))
}

/// As `scalar::swiglu_backward`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn swiglu_backward(gate: &mut [f32], up: &mut [f32], d_out: &[f32]) {
    assert!(gate.len() == up.len() && gate.len() == d_out.len(), "gate, up and gradient");
    let whole = gate.len() / LANES * LANES;
    for ((gate, up), d) in
        gate.as_chunks_mut::<LANES>().0.iter_mut().zip(up.as_chunks_mut::<LANES>().0).zip(d_out.as_chunks::<LANES>().0)
    {
        let [d_gate, d_up] = gated_backward([load(gate), load(up)], load(d));
        store(d_gate, gate);
        store(d_up, up);
    }
    scalar::swiglu_backward(&mut gate[whole..], &mut up[whole..], &d_out[whole..]);
}

/// The gradients of gate and up.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
#[inline]
pub(super) fn gated_backward([gate, up]: [__m512; 2], d_out: __m512) -> [__m512; 2] {
    let (one, s) = (_mm512_set1_ps(1.0), sigmoid(gate));
    let d_s = _mm512_mul_ps(d_out, s);
    let slope = _mm512_fmadd_ps(gate, _mm512_sub_ps(one, s), one);
    [_mm512_mul_ps(_mm512_mul_ps(d_s, up), slope), _mm512_mul_ps(d_s, gate)]
}

/// As `scalar::rms_norm_backward`, with sixteen partial sums.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn rms_norm_backward(x: &[f32], weight: &[f32], d_out: &[f32], eps: f32, d_x: &mut [f32]) {
    let len = x.len();
    assert!(weight.len() == len && d_out.len() == len && d_x.len() == len, "a row of a norm");
    let whole = len / LANES * LANES;
    let (mut squares, mut products) = (_mm512_setzero_ps(), _mm512_setzero_ps());
    for ((x, w), d) in
        x.as_chunks::<LANES>().0.iter().zip(weight.as_chunks::<LANES>().0).zip(d_out.as_chunks::<LANES>().0)
    {
        let x = load(x);
        squares = _mm512_fmadd_ps(x, x, squares);
        products = _mm512_fmadd_ps(x, _mm512_mul_ps(load(w), load(d)), products);
    }
    let (mut square, mut product) = (_mm512_reduce_add_ps(squares), _mm512_reduce_add_ps(products));
    for i in whole..len {
        square += x[i] * x[i];
        product += x[i] * weight[i] * d_out[i];
    }
    let factor = 1.0 / (square / len as f32 + eps).sqrt();
    scalar::rms_norm_apply((x, weight, d_out), factor, product / len as f32, d_x);
}

/// As `dropout::scalar`: one mask of 32 bits for eight mixed numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn dropout(masked: &Masked<'_>, out: &mut [f32]) {
    const TWO: usize = 2 * LANES;
    let Masked { mask, first, x, add } = *masked;
    let limits = _mm512_set1_epi16(mask.limit().cast_signed());
    let (key, keep) = (_mm512_set1_epi64(mask.key.cast_signed()), _mm512_set1_ps(mask.keep()));
    let whole = x.len().min(out.len()) / TWO * TWO;
    let chunks = x[..whole].as_chunks::<LANES>().0.as_chunks::<2>().0;
    let mut places = _mm512_add_epi64(
        _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0),
        _mm512_set1_epi64((first / dropout::LANES).cast_signed() as i64),
    );
    for (x, out) in chunks.iter().zip(out[..whole].as_chunks_mut::<LANES>().0.as_chunks_mut::<2>().0) {
        let kept = _mm512_cmpge_epu16_mask(mix(_mm512_xor_si512(key, places)), limits);
        places = _mm512_add_epi64(places, _mm512_set1_epi64((TWO / dropout::LANES) as i64));
        for (half, (x, out)) in x.iter().zip(out).enumerate() {
            let value = _mm512_maskz_mul_ps((kept >> (half * LANES)) as u16, load(x), keep);
            store(if add { _mm512_add_ps(load(out), value) } else { value }, out);
        }
    }
    let rest = Masked { mask, first: first + whole, x: &x[whole..], add };
    dropout::scalar(&rest, &mut out[whole..]);
}

/// As `dropout::mix`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
#[inline]
fn mix(value: __m512i) -> __m512i {
    let factor = |index: usize| _mm512_set1_epi64(FACTORS[index].cast_signed());
    let z = _mm512_add_epi64(value, _mm512_set1_epi64(MIX_STEP.cast_signed()));
    let z = _mm512_mullo_epi64(_mm512_xor_si512(z, _mm512_srli_epi64::<30>(z)), factor(0));
    let z = _mm512_mullo_epi64(_mm512_xor_si512(z, _mm512_srli_epi64::<27>(z)), factor(1));
    _mm512_xor_si512(z, _mm512_srli_epi64::<31>(z))
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
