//! Weights that a thread multiplies next, or places that it writes next, asked for while it multiplies others.
//!
//! A block of weights is some hundred bytes of many rows each: too short and too scattered for the processor to foresee, and
//! read once in a product, so that without this every block is waited for. So are outputs.

/// Bytes of a cache line.
const LINE: usize = 64;

/// Lines of a block of weights that have not been asked for yet, in order. What they hold is not read.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
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
    pub(crate) fn none() -> Ahead {
        Ahead { start: std::ptr::null(), stride: 0, lines_per_row: 1, taken: 0, num: 0 }
    }

    /// The lines of rows, the first of which is given, that lie `stride` bytes apart.
    pub(crate) fn rows(first: &[u8], stride: usize, num_rows: usize) -> Ahead {
        Ahead::rows_from(first.as_ptr(), (first.len(), stride), num_rows)
    }

    /// As [`Ahead::rows`], of which the first begins somewhere and is so long; for what others may write.
    pub(crate) fn rows_from(start: *const u8, (len, stride): (usize, usize), num_rows: usize) -> Ahead {
        let lines_per_row = len.div_ceil(LINE).max(1);
        let num = if len == 0 { 0 } else { num_rows * lines_per_row };
        Ahead { start, stride, lines_per_row, taken: 0, num }
    }

    /// Lines that are left.
    pub(crate) fn num_lines(&self) -> usize {
        self.num - self.taken
    }

    /// Takes the next lines, at most `num`; whoever multiplies asks for them meanwhile.
    #[inline]
    pub(crate) fn take(&mut self, num: usize) -> Lines {
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
pub(crate) struct Lines {
    next: *const u8,
    left_in_row: usize,
    lines_per_row: usize,
    /// Bytes from the end of a row's lines to the beginning of the next row's; it may wrap.
    to_next_row: usize,
    num: usize,
}

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "a hint for instruction sets of x86-64"))]
impl Lines {
    /// Asks the second-level cache for the next line, if there is one.
    #[inline(always)]
    pub(crate) fn ask(&mut self) {
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
    pub(crate) fn ask_all(&mut self) {
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
    fn every_line_of_every_row_is_asked_for_once() {
        let bytes = [0; 2000];
        // Three lines, the last of them short, of each of four rows.
        let first = &bytes[128..128 + 2 * LINE + 8];
        let lines = (0..4).flat_map(|row| (0..3).map(move |line| row * 400 + line * LINE));
        let expected: Vec<usize> = lines.map(|at| first.as_ptr().addr() + at).collect();
        for num in [1, 2, 5, 100] {
            let (mut ahead, mut found) = (Ahead::rows(first, 400, 4), Vec::new());
            while ahead.num_lines() > 0 {
                found.extend(addresses(&mut ahead, num));
            }
            assert_eq!(found, expected, "{num} at a time");
        }
        for mut nothing in [Ahead::none(), Ahead::rows(&[], 400, 4), Ahead::rows(first, 400, 0)] {
            assert_eq!(addresses(&mut nothing, 3), []);
        }
    }
}
