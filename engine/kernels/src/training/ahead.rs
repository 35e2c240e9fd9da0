//! Weights that a thread multiplies next, asked for while it multiplies others.
//!
//! A block of weights is some hundred bytes of many rows each: too short and too scattered for the processor to foresee, and
//! read once in a product, so that without this every block is waited for.

use std::ops::Range;

use super::product::Right;
use crate::Matrix;

/// Bytes of a cache line.
const LINE: usize = 64;

/// The lines of a block of weights that have not been asked for yet.
pub(super) struct Ahead<'a> {
    weights: Option<&'a Matrix>,
    /// Rows after the current one.
    rows: Range<usize>,
    bytes: Range<usize>,
    /// What is left of the current row.
    row: &'a [u8],
}

impl<'a> Ahead<'a> {
    /// Nothing.
    pub(super) fn none() -> Ahead<'a> {
        Ahead { weights: None, rows: 0..0, bytes: 0..0, row: &[] }
    }

    /// A block of a right factor; nothing if it is no weights, which are the only factor that is not in a cache anyway.
    pub(super) fn of(right: &Right<'a>, depth: Range<usize>, cols: Range<usize>) -> Ahead<'a> {
        let (weights, rows, cols) = match *right {
            Right::Floats(_) => return Ahead::none(),
            Right::Weights(w) => (w, depth, cols),
            Right::Transposed(w) => (w, cols, depth),
        };
        let dtype = weights.dtype();
        let offset = |col: usize| col.div_ceil(dtype.block_len()) * dtype.block_bytes();
        Ahead { weights: Some(weights), rows, bytes: offset(cols.start)..offset(cols.end), row: &[] }
    }

    /// Lines of whole rows that are left.
    pub(super) fn num_lines(&self) -> usize {
        self.rows.len() * self.bytes.len().div_ceil(LINE)
    }

    /// Puts the next lines, at most `num`, into the buffer; whoever multiplies asks for them meanwhile.
    #[inline]
    pub(super) fn take<'b>(&mut self, num: usize, lines: &'b mut [*const u8; LINES]) -> &'b [*const u8] {
        let (mut start, mut left, mut taken) = (self.row.as_ptr(), self.row.len(), 0);
        while taken < num.min(LINES) {
            if left == 0 {
                let (Some(weights), Some(row)) = (self.weights, self.rows.next()) else { break };
                self.row = &weights.row_bytes(row)[self.bytes.clone()];
                (start, left) = (self.row.as_ptr(), self.row.len());
            }
            lines[taken] = start;
            taken += 1;
            (start, left) = (start.wrapping_add(LINE), left.saturating_sub(LINE));
        }
        self.row = &self.row[self.row.len() - left..];
        &lines[..taken]
    }
}

/// Most lines that are asked for during one tile: a block of `f32` weights, 256 x 128, by the four pairs of panels of the only tile.
pub(super) const LINES: usize = 512;

/// Asks the second-level cache for a line.
#[inline]
#[cfg(target_arch = "x86_64")]
pub(super) fn ask(line: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: SSE is in the baseline of x86-64, and a prefetch of any address reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
}
