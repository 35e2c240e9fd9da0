//! The meaning of the training kernels.

use super::table::{PANEL_COLS, TILE_ROWS, Tile};
use crate::shared::Place;

/// Partial sums of a dot product.
const LANES: usize = 16;

/// Each sum is added up along the depth, in order.
///
/// # Safety
/// All rows of the place can be written, and nobody else does.
pub(super) unsafe fn tile(tile: &Tile<'_>, place: Place) {
    tile.check();
    for (index, panel) in [Some(tile.panel), tile.second].into_iter().flatten().enumerate() {
        // SAFETY: the caller's promise, of the columns of this panel.
        unsafe { panel_tile(tile, panel, Place { start: place.start.wrapping_add(index * PANEL_COLS), ..place }) };
    }
}

/// The columns of one panel.
///
/// # Safety
/// As [`tile`].
unsafe fn panel_tile(tile: &Tile<'_>, panel: &[f32], place: Place) {
    for i in 0..tile.num_rows {
        let mut sums = [0.0; PANEL_COLS];
        for (k, panel) in panel.as_chunks::<PANEL_COLS>().0.iter().take(tile.depth).enumerate() {
            let left = tile.left[i * tile.row_stride + k * tile.col_stride];
            for (sum, right) in sums.iter_mut().zip(panel) {
                *sum += left * right;
            }
        }
        // SAFETY: the caller's promise.
        let out = unsafe { &mut *place.start.add(i * place.stride).cast::<[f32; PANEL_COLS]>() };
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = if place.add { *out + sum } else { sum };
        }
    }
}

/// Interleaves rows; those that are missing are left as they are.
pub(super) fn interleave(rows: &[f32], stride: usize, num_rows: usize, out: &mut [f32]) {
    for (k, out) in out.as_chunks_mut::<TILE_ROWS>().0.iter_mut().enumerate() {
        for (i, out) in out.iter_mut().take(num_rows).enumerate() {
            *out = rows[i * stride + k];
        }
    }
}

/// Transposes 16 rows into a panel.
pub(super) fn transpose(rows: &[f32], stride: usize, len: usize, panel: &mut [f32]) {
    assert!(panel.len() >= len * PANEL_COLS && rows.len() >= (PANEL_COLS - 1) * stride + len, "16 rows of {len}");
    for (k, out) in panel.chunks_exact_mut(PANEL_COLS).take(len).enumerate() {
        for (i, out) in out.iter_mut().enumerate() {
            *out = rows[i * stride + k];
        }
    }
}

/// `x = exp(x * scale - shift)`; returns the sum.
pub(super) fn exp_sum(x: &mut [f32], scale: f32, shift: f32) -> f32 {
    let mut sum = 0.0;
    for x in x {
        *x = (*x * scale - shift).exp();
        sum += *x;
    }
    sum
}

/// `x *= factor`.
#[inline(always)]
pub(super) fn scale(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

/// The dot product, in sixteen partial sums.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "factors of a dot product");
    let mut lanes = [0.0; LANES];
    let (a_whole, a_rest) = a.as_chunks::<LANES>();
    let (b_whole, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_whole.iter().zip(b_whole) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += a * b;
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The gradient of softmax: `p (dp - delta)`, times the scale of the scores.
#[inline(always)]
pub(super) fn softmax_backward(p: &mut [f32], dp: &[f32], delta: f32, scale: f32) {
    assert_eq!(p.len(), dp.len(), "probabilities and their gradients");
    for (p, dp) in p.iter_mut().zip(dp) {
        *p = *p * (dp - delta) * scale;
    }
}

/// With `s = sigmoid(gate)`: `d_up = d gate s` and `d_gate = d up s (1 + gate (1 - s))`.
pub(super) fn swiglu_backward(gate: &mut [f32], up: &mut [f32], d_out: &[f32]) {
    assert!(gate.len() == up.len() && gate.len() == d_out.len(), "gate, up and gradient");
    for ((gate, up), d) in gate.iter_mut().zip(up).zip(d_out) {
        let (g, u) = (*gate, *up);
        let s = 1.0 / (1.0 + (-g).exp());
        *up = d * g * s;
        *gate = d * u * s * (1.0 + g * (1.0 - s));
    }
}

/// With `f = 1 / sqrt(mean(x^2) + eps)` and `g = d_out * weight`: `d_x += f g - x f^3 mean(g x)`.
pub(super) fn rms_norm_backward(x: &[f32], weight: &[f32], d_out: &[f32], eps: f32, d_x: &mut [f32]) {
    let square = dot(x, x) / x.len() as f32;
    let mut lanes = [0.0_f32; LANES];
    for (i, ((x, w), d)) in x.iter().zip(weight).zip(d_out).enumerate() {
        lanes[i % LANES] += x * w * d;
    }
    let mean = lanes.iter().sum::<f32>() / x.len() as f32;
    rms_norm_apply((x, weight, d_out), 1.0 / (square + eps).sqrt(), mean, d_x);
}

/// The second half of [`rms_norm_backward`].
#[inline(always)]
pub(super) fn rms_norm_apply((x, weight, d_out): (&[f32], &[f32], &[f32]), factor: f32, mean: f32, d_x: &mut [f32]) {
    let len = x.len();
    assert!(weight.len() == len && d_out.len() == len && d_x.len() == len, "a row of a norm");
    let along = factor * factor * factor * mean;
    for i in 0..len {
        d_x[i] += factor * (d_out[i] * weight[i]) - x[i] * along;
    }
}
