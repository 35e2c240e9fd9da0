//! The functions of one instruction set for training, as `crate::table` for serving.

use super::dropout::{self, Masked};
use super::scalar;
use crate::Isa;
use crate::ahead::Lines;
use crate::shared::Place;

/// Rows of the left factor that are multiplied together.
pub(super) const TILE_ROWS: usize = 12;
/// Columns of the right factor that are packed together: the width of a panel.
pub(super) const PANEL_COLS: usize = 16;

type RmsNormBackward = unsafe fn(&[f32], &[f32], &[f32], f32, &mut [f32]);

/// Columns of a tile: a panel, or two beside each other.
pub(super) const TILE_COLS: usize = 2 * PANEL_COLS;

/// Up to [`TILE_ROWS`] rows of the left factor and one panel of the right one, or two.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    /// The left factor; element `(i, k)` is at `i * row_stride + k * col_stride`.
    pub(super) left: &'a [f32],
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
    /// 1 to [`TILE_ROWS`].
    pub(super) num_rows: usize,
    /// `(depth, PANEL_COLS)`.
    pub(super) panel: &'a [f32],
    /// The panel beside it, of the same shape.
    pub(super) second: Option<&'a [f32]>,
    pub(super) depth: usize,
    /// Lines of memory to ask the caches for: AVX-512 does it meanwhile, AVX2 before.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "a hint for instruction sets of x86-64"))]
    pub(super) ahead: Lines,
}

impl Tile<'_> {
    /// Asserts that every element lies in its slice.
    #[inline(always)]
    pub(super) fn check(&self) {
        assert!((1..=TILE_ROWS).contains(&self.num_rows), "a tile of {} rows", self.num_rows);
        let panels = [Some(self.panel), self.second];
        let fits = |panel: &[f32]| panel.len() >= self.depth * PANEL_COLS;
        assert!(panels.into_iter().flatten().all(fits), "a panel is shorter than its depth");
        if let Some(last) = self.depth.checked_sub(1) {
            let end = (self.num_rows - 1) * self.row_stride + last * self.col_stride;
            assert!(end < self.left.len(), "the left factor of a tile is too short");
        }
    }
}

/// One function per kernel. Every function is unsafe to call for one reason: the processor must have the instruction set.
/// `tile` has a second one: all rows of its place can be written, and nobody else does.
pub(super) struct TrainingTable {
    /// Puts the sums of a tile into their place, rows of [`PANEL_COLS`] floats for each panel: each is added up along the depth, in order.
    pub(super) tile: unsafe fn(&Tile<'_>, Place),
    /// Interleaves up to [`TILE_ROWS`] rows of `len` floats (`stride` apart) as `(len, TILE_ROWS)`: `(rows, stride, num_rows, out)`.
    pub(super) interleave: unsafe fn(&[f32], usize, usize, &mut [f32]),
    /// Transposes 16 rows of `len` floats (`stride` apart) into a panel `(len, 16)`.
    pub(super) transpose: unsafe fn(&[f32], usize, usize, &mut [f32]),
    /// The largest number, negative infinity if there is none.
    pub(super) max: unsafe fn(&[f32]) -> f32,
    /// `x = exp(x * scale - shift)`; returns the sum.
    pub(super) exp_sum: unsafe fn(&mut [f32], f32, f32) -> f32,
    /// `x *= factor`.
    pub(super) scale: unsafe fn(&mut [f32], f32),
    /// The dot product.
    pub(super) dot: unsafe fn(&[f32], &[f32]) -> f32,
    /// `p = p * (dp - delta) * scale`.
    pub(super) softmax_backward: unsafe fn(&mut [f32], &[f32], f32, f32),
    /// From `d_out` to `d_gate` (over `gate`) and `d_up` (over `up`).
    pub(super) swiglu_backward: unsafe fn(&mut [f32], &mut [f32], &[f32]),
    /// Writes or adds elements that go through a dropout.
    pub(super) dropout: unsafe fn(&Masked<'_>, &mut [f32]),
    /// Adds the gradient of one row's norm: `(x, weight, d_out, eps, d_x)`.
    pub(super) rms_norm_backward: RmsNormBackward,
}

impl TrainingTable {
    /// The table of `isa`, which the caller has found available.
    pub(super) fn of(isa: Isa) -> &'static TrainingTable {
        match isa {
            Isa::Scalar => &SCALAR,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &AVX2,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => &AVX512,
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 | Isa::Amx => unreachable!("invariant: `{isa}` is never available here"),
        }
    }
}

static SCALAR: TrainingTable = TrainingTable {
    tile: scalar::tile,
    interleave: scalar::interleave,
    transpose: scalar::transpose,
    max: crate::reduce::max,
    exp_sum: scalar::exp_sum,
    scale: scalar::scale,
    dot: scalar::dot,
    softmax_backward: scalar::softmax_backward,
    swiglu_backward: scalar::swiglu_backward,
    dropout: dropout::scalar,
    rms_norm_backward: scalar::rms_norm_backward,
};

#[cfg(target_arch = "x86_64")]
static AVX2: TrainingTable = TrainingTable {
    tile: super::avx2::tile,
    interleave: super::avx2::interleave,
    transpose: super::avx2::transpose,
    max: super::avx2::max,
    exp_sum: super::avx2::exp_sum,
    scale: super::avx2::scale,
    dot: super::avx2::dot,
    softmax_backward: super::avx2::softmax_backward,
    swiglu_backward: super::avx2::swiglu_backward,
    dropout: super::avx2::dropout,
    rms_norm_backward: super::avx2::rms_norm_backward,
};

#[cfg(target_arch = "x86_64")]
static AVX512: TrainingTable = TrainingTable {
    tile: super::avx512::tile,
    max: super::avx512::max,
    exp_sum: super::avx512::exp_sum,
    scale: super::avx512::scale,
    swiglu_backward: super::avx512::swiglu_backward,
    dropout: super::avx512::dropout,
    rms_norm_backward: super::avx512::rms_norm_backward,
    ..AVX2
};
