//! Weights that a thread multiplies next, asked for while it multiplies others.
//!
//! A block of weights is some hundred bytes of many rows each: too short and too scattered for the processor to foresee, and
//! read once in a product, so that without this every block is waited for.

use std::ops::Range;

use super::product::Right;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Lines of a block of weights that have not been asked for yet, in order. What they hold is not read.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// The first row of the block.
    start: *const u8,
    /// Bytes from one row of the weights to the next.
    stride: usize,
    lines_per_row: usize,
    /// Those that were handed out.
    taken: usize,
    num: usize,
}

impl Ahead {
    /// Nothing.
    pub(super) fn none() -> Ahead {
        Ahead { start: std::ptr::null(), stride: 0, lines_per_row: 1, taken: 0, num: 0 }
    }

    /// A block of a right factor; nothing if it is no weights, which are the only factor that is not in a cache anyway.
    pub(super) fn of(right: &Right<'_>, depth: Range<usize>, cols: Range<usize>) -> Ahead {
        let (weights, rows, cols) = match *right {
            Right::Floats(_) => return Ahead::none(),
            Right::Weights(w) => (w, depth, cols),
            Right::Transposed(w) => (w, cols, depth),
        };
        if rows.is_empty() || cols.is_empty() {
            return Ahead::none();
        }
        let dtype = weights.dtype();
        let offset = |col: usize| col.div_ceil(dtype.block_len()) * dtype.block_bytes();
        let row = weights.row_bytes(rows.start);
        let (start, end) = (offset(cols.start), offset(cols.end));
        let lines_per_row = (end - start).div_ceil(LINE);
        Ahead {
            start: row[start..end].as_ptr(),
            stride: row.len(),
            lines_per_row,
            taken: 0,
            num: rows.len() * lines_per_row,
        }
    }

    /// Lines that are left.
    pub(super) fn num_lines(&self) -> usize {
        self.num - self.taken
    }

    /// Takes the next lines, at most `num`; whoever multiplies asks for them meanwhile.
    #[inline]
    pub(super) fn take(&mut self, num: usize) -> Lines {
        let num = num.min(self.num_lines());
        let (row, line) = (self.taken / self.lines_per_row, self.taken % self.lines_per_row);
        self.taken += num;
        Lines {
            next: self.start.wrapping_add(row * self.stride + line * LINE),
            left_in_row: self.lines_per_row - line,
            lines_per_row: self.lines_per_row,
            to_next_row: self.stride.wrapping_sub(self.lines_per_row * LINE),
            num,
        }
    }
}

/// Some lines, one after the other.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    next: *const u8,
    left_in_row: usize,
    lines_per_row: usize,
    /// Bytes from the end of a row's lines to the beginning of the next row's; it may wrap.
    to_next_row: usize,
    num: usize,
}

impl Lines {
    /// Asks the second-level cache for the next line, if there is one.
    #[inline(always)]
    pub(super) fn ask(&mut self) {
        if self.num == 0 {
            return;
        }
        prefetch(self.next);
        self.num -= 1;
        self.left_in_row -= 1;
        self.next = self.next.wrapping_add(LINE);
        if self.left_in_row == 0 {
            self.left_in_row = self.lines_per_row;
            self.next = self.next.wrapping_add(self.to_next_row);
        }
    }

    /// Asks for all that are left.
    #[inline]
    pub(super) fn ask_all(&mut self) {
        while self.num > 0 {
            self.ask();
        }
    }
}

#[inline(always)]
#[cfg(target_arch = "x86_64")]
fn prefetch(line: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: SSE is in the baseline of x86-64, and a prefetch of any address reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch(_line: *const u8) {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::Random;
    use crate::{DType, Matrix};

    fn addresses(ahead: &mut Ahead, num: usize) -> Vec<usize> {
        let mut lines = ahead.take(num);
        let addresses = std::iter::from_fn(|| {
            let line = (lines.num > 0).then(|| lines.next.addr());
            lines.ask();
            line
        });
        addresses.collect()
    }

    #[test]
    fn every_line_of_a_block_is_asked_for_once() {
        let w: Matrix = Random(1).matrix(DType::F32, 7, 100);
        // Columns 32 to 80 are three lines of each row.
        let expected: Vec<usize> = (2..6)
            .flat_map(|row| (0..3).map(move |line| (row, line)))
            .map(|(row, line)| w.row_bytes(row).as_ptr().addr() + (32 + 16 * line) * 4)
            .collect();
        for num in [1, 2, 5, 100] {
            for right in [Right::Weights(&w), Right::Transposed(&w)] {
                let mut ahead = match right {
                    Right::Transposed(_) => Ahead::of(&right, 32..80, 2..6),
                    _ => Ahead::of(&right, 2..6, 32..80),
                };
                let mut found = Vec::new();
                while ahead.num_lines() > 0 {
                    found.extend(addresses(&mut ahead, num));
                }
                assert_eq!(found, expected, "{num} at a time");
            }
        }
        assert_eq!(addresses(&mut Ahead::none(), 3), []);
    }
}
