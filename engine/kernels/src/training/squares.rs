//! Floats rounded to bf16 in squares, as products in bf16 read them, in each of the four ways in which a matrix goes into one.
//!
//! A square is sixteen lines of sixteen pairs (`bf16/mod.rs`). Pairs are of neighbouring columns, for products along the columns,
//! or of neighbouring rows, for products along the rows. Turned round, the lines of a square are its columns.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::view::View;
use crate::ahead::Ahead;
use crate::bf16::product::{ROWS, multiply_to};
use crate::bf16::{self, GROUP, LANES, Part, STEP};
use crate::shared::{Place, SharedMut};
use crate::{Buffer, Isa};

/// Pairs of a square.
pub(super) const SQUARE: usize = LANES * LANES;

/// Which elements of a matrix form a pair, and so along what it is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pairs {
    /// Two neighbours in a row: a left factor as it lies, or the right one transposed if turned.
    Columns,
    /// Two neighbours in a column: a right factor as it lies, or the left one transposed if turned.
    Rows,
}

/// The squares of a matrix. A *block* is sixteen rows where pairs are of columns, otherwise sixteen columns; its squares follow each
/// other along the depth. Blocks are filled up to an even number, squares to their size, with zeros.
#[derive(Default)]
pub(super) struct Squares {
    pairs: Buffer<u32>,
    /// Pairs of a block.
    block_len: usize,
}

impl Squares {
    /// Rounds a view whose columns are neighbours.
    pub(super) fn fill(&mut self, isa: Isa, view: &View<'_>, pairs: Pairs, turned: bool) {
        assert_eq!(view.col_stride, 1, "columns of a view in bf16");
        let (width, depth) = match pairs {
            Pairs::Columns => (view.rows, view.cols),
            Pairs::Rows => (view.cols, view.rows),
        };
        let steps = depth.div_ceil(STEP);
        self.block_len = steps * SQUARE;
        let squares = self.pairs.fit(width.div_ceil(GROUP) * 2 * self.block_len).as_chunks_mut::<SQUARE>().0;
        for (index, square) in squares.iter_mut().enumerate() {
            let at = (index / steps, index % steps);
            #[cfg(target_arch = "x86_64")]
            if bf16::has_rounding(isa) {
                // SAFETY: the instruction set has instructions for bf16, and is available.
                unsafe {
                    match (pairs, turned) {
                        (Pairs::Columns, false) => fill_avx512::<true, false>(view, at, square),
                        (Pairs::Columns, true) => fill_avx512::<true, true>(view, at, square),
                        (Pairs::Rows, false) => fill_avx512::<false, false>(view, at, square),
                        (Pairs::Rows, true) => fill_avx512::<false, true>(view, at, square),
                    }
                }
                continue;
            }
            let _ = isa;
            fill_scalar(view, pairs, at, turned, square);
        }
    }

    /// All squares, as those of a left factor, and the length of a block.
    fn left(&self) -> (&[u32], usize) {
        (&self.pairs, self.block_len)
    }

    /// Thirty-two columns of a right factor, for the first `pairs` of the depth, whole squares.
    pub(super) fn lines(&self, group: usize, pairs: usize) -> [&[u32]; 2] {
        [2 * group, 2 * group + 1].map(|block| &self.pairs[block * self.block_len..][..pairs * LANES])
    }
}

/// The squares of a left factor.
#[derive(Clone, Copy)]
pub(super) struct LeftSquares<'a> {
    pub(super) squares: &'a [u32],
    pub(super) block_len: usize,
    pub(super) rows: usize,
}

/// Where the sums of a product go: rows of some columns.
pub(super) struct Target<'a> {
    pub(super) sums: &'a mut [f32],
    /// Of a row.
    pub(super) stride: usize,
    /// The first column, and how many there are.
    pub(super) first: usize,
    pub(super) width: usize,
    pub(super) add: bool,
}

impl<'a> Target<'a> {
    /// Overwrites all columns.
    pub(super) fn new(sums: &'a mut [f32], stride: usize) -> Target<'a> {
        Target { sums, stride, first: 0, width: stride, add: false }
    }

    /// The columns of a group.
    pub(super) fn group(sums: &'a mut [f32], stride: usize, group: usize) -> Target<'a> {
        let first = group * GROUP;
        Target { sums, stride, first, width: GROUP.min(stride - first), add: false }
    }
}

impl<'a> LeftSquares<'a> {
    pub(super) fn of(squares: &'a Squares, rows: usize) -> LeftSquares<'a> {
        let (squares, block_len) = squares.left();
        LeftSquares { squares, block_len, rows }
    }

    /// Multiplies all rows with up to thirty-two columns, given for as much of the depth as they are long.
    ///
    /// # Safety
    /// It runs within [`with_tiles`](bf16::with_tiles).
    pub(super) unsafe fn product(&self, isa: Isa, lines: [&[u32]; 2], target: Target<'_>) {
        let pairs = lines[0].len() / LANES;
        let (stride, add) = (target.stride, target.add);
        let sums = SharedMut::new(target.sums);
        for first in (0..self.rows).step_by(ROWS) {
            let rows = ROWS.min(self.rows - first);
            let x = &self.squares[first / LANES * self.block_len..];
            let part = Part { x, block_len: self.block_len, rows, lines, pairs, next: Ahead::none() };
            let at = first * stride + target.first;
            let start = sums.pointer(at..at + (rows - 1) * stride + target.width);
            // SAFETY: `Kernels` has an instruction set of this processor; the rows lie in the sums, which are borrowed mutably; the
            // tile registers are the caller's promise.
            unsafe { multiply_to(bf16::multiply(isa), &part, Place { start, stride, add }, target.width) };
        }
    }
}

/// Turns sixteen rows of thirty-two columns round, each column times its factor.
///
/// **Shapes**: `columns` `(16, 32)`, `out` `(32, 16)`.
pub(super) fn turn_columns(isa: Isa, columns: &[f32], factors: &[f32; GROUP], out: &mut [[f32; LANES]]) {
    assert!(columns.len() == LANES * GROUP && out.len() == GROUP, "sixteen rows of thirty-two columns");
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::Avx512 | Isa::Amx) {
        // SAFETY: the instruction set is available.
        return unsafe { turn_columns_avx512(columns, factors, out) };
    }
    let _ = isa;
    for (col, (out, factor)) in out.iter_mut().zip(factors).enumerate() {
        for (row, out) in out.iter_mut().enumerate() {
            *out = columns[row * GROUP + col] * factor;
        }
    }
}

/// # Safety
/// The processor has AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn turn_columns_avx512(columns: &[f32], factors: &[f32; GROUP], out: &mut [[f32; LANES]]) {
    for (first, out) in [0, LANES].into_iter().zip(out.chunks_exact_mut(LANES)) {
        let mut rows = [_mm512_setzero_si512(); LANES];
        // SAFETY: half a row, and half the factors, are a vector.
        let factors = unsafe { _mm512_loadu_ps(factors[first..first + LANES].as_ptr()) };
        for (row, columns) in rows.iter_mut().zip(columns.as_chunks::<GROUP>().0) {
            // SAFETY: as above.
            let columns = unsafe { _mm512_loadu_ps(columns[first..first + LANES].as_ptr()) };
            *row = _mm512_castps_si512(_mm512_mul_ps(columns, factors));
        }
        for (row, out) in transposed(rows).into_iter().zip(out) {
            // SAFETY: sixteen floats are a vector.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_castsi512_ps(row)) };
        }
    }
}

/// One square: block `at.0`, step `at.1`.
fn fill_scalar(view: &View<'_>, pairs: Pairs, at: (usize, usize), turned: bool, out: &mut [u32; SQUARE]) {
    let element = |row: usize, col: usize| match row < view.rows && col < view.cols {
        true => view.from(row, col)[0],
        false => 0.0,
    };
    for (i, out) in out.iter_mut().enumerate() {
        let (line, place) = if turned { (i % LANES, i / LANES) } else { (i / LANES, i % LANES) };
        let [even, odd] = match pairs {
            Pairs::Columns => [0, 1].map(|odd| element(at.0 * LANES + line, at.1 * STEP + 2 * place + odd)),
            Pairs::Rows => [0, 1].map(|odd| element(at.1 * STEP + 2 * line + odd, at.0 * LANES + place)),
        };
        *out = bf16::pair(even, odd);
    }
}

/// # Safety
/// The processor has AVX512-BF16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
unsafe fn fill_avx512<const COLUMNS: bool, const TURNED: bool>(
    view: &View<'_>,
    at: (usize, usize),
    out: &mut [u32; SQUARE],
) {
    let (row, col, rows, cols) = match COLUMNS {
        true => (at.0 * LANES, at.1 * STEP, LANES, STEP),
        false => (at.1 * STEP, at.0 * LANES, STEP, LANES),
    };
    let whole = row + rows <= view.rows && col + cols <= view.cols;
    let mut lines = [_mm512_setzero_si512(); LANES];
    if whole {
        let from = &view.from(row, col)[..(rows - 1) * view.row_stride + cols];
        let (mut start, stride) = (from.as_ptr(), view.row_stride);
        for line in &mut lines {
            // SAFETY: the rows and columns of the square lie in the slice.
            unsafe {
                let first = _mm512_loadu_ps(start);
                *line = match COLUMNS {
                    true => bf16::rounded(first, _mm512_loadu_ps(start.add(LANES))),
                    false => bf16::interleaved(first, _mm512_loadu_ps(start.add(stride))),
                };
            }
            start = start.wrapping_add(if COLUMNS { stride } else { 2 * stride });
        }
    } else {
        for (i, line) in lines.iter_mut().enumerate() {
            *line = match COLUMNS {
                true => bf16::rounded(floats(view, row + i, col), floats(view, row + i, col + LANES)),
                false => bf16::interleaved(floats(view, row + 2 * i, col), floats(view, row + 2 * i + 1, col)),
            };
        }
    }
    let lines = if TURNED { transposed(lines) } else { lines };
    for (line, out) in lines.into_iter().zip(out.as_chunks_mut::<LANES>().0) {
        // SAFETY: sixteen pairs are a vector.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), line) };
    }
}

/// Sixteen floats of a row; zeros outside of the view.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn floats(view: &View<'_>, row: usize, col: usize) -> __m512 {
    if row >= view.rows || col >= view.cols {
        return _mm512_setzero_ps();
    }
    let num = (view.cols - col).min(LANES);
    let from = &view.from(row, col)[..num];
    // SAFETY: the mask covers the floats that `from` holds.
    unsafe { _mm512_maskz_loadu_ps(((1_u32 << num) - 1) as u16, from.as_ptr()) }
}

/// Transposes sixteen lines: by two and two rows, by fours, then by quarters of vectors.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn transposed(rows: [__m512i; LANES]) -> [__m512i; LANES] {
    let mut twos = rows;
    for i in (0..LANES).step_by(2) {
        twos[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        twos[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    let mut fours = twos;
    for i in (0..LANES).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(twos[i], twos[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(twos[i], twos[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(twos[i + 1], twos[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(twos[i + 1], twos[i + 3]);
    }
    // Of each four rows column `c` of every quarter; quarter `q` of them is column `4 q + c`.
    let mut columns = rows;
    for c in 0..4 {
        let even = _mm512_shuffle_i32x4::<0x88>(fours[c], fours[4 + c]);
        let odd = _mm512_shuffle_i32x4::<0xDD>(fours[c], fours[4 + c]);
        let even_below = _mm512_shuffle_i32x4::<0x88>(fours[8 + c], fours[12 + c]);
        let odd_below = _mm512_shuffle_i32x4::<0xDD>(fours[8 + c], fours[12 + c]);
        columns[c] = _mm512_shuffle_i32x4::<0x88>(even, even_below);
        columns[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd, odd_below);
        columns[8 + c] = _mm512_shuffle_i32x4::<0xDD>(even, even_below);
        columns[12 + c] = _mm512_shuffle_i32x4::<0xDD>(odd, odd_below);
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{Random, available_isas};

    #[test]
    fn columns_are_turned_round_and_multiplied() {
        let mut random = Random(43);
        let (columns, factors) = (random.floats(LANES * GROUP), random.floats(GROUP).try_into().unwrap());
        for isa in available_isas() {
            let mut out = [[f32::NAN; LANES]; GROUP];
            turn_columns(isa, &columns, &factors, &mut out);
            for (col, out) in out.iter().enumerate() {
                for (row, &out) in out.iter().enumerate() {
                    assert_eq!(out, columns[row * GROUP + col] * factors[col], "{isa}, row {row}, column {col}");
                }
            }
        }
    }

    #[test]
    fn squares_are_those_of_the_matrix_on_every_instruction_set() {
        let mut random = Random(23);
        for (rows, cols) in [(1, 1), (16, 32), (33, 64), (70, 45)] {
            let stride = cols + 3;
            let data = random.floats(rows * stride);
            let view = View::strided(&data, rows, cols, stride);
            for (pairs, turned) in [Pairs::Columns, Pairs::Rows].into_iter().flat_map(|p| [(p, false), (p, true)]) {
                for isa in available_isas() {
                    let mut squares = Squares::default();
                    squares.fill(isa, &view, pairs, turned);
                    let (found, block_len) = squares.left();
                    assert_eq!(block_len % SQUARE, 0);
                    for (at, &found) in found.iter().enumerate() {
                        let (block, step, line, place) =
                            (at / block_len, at % block_len / SQUARE, at % SQUARE / LANES, at % LANES);
                        let (line, place) = if turned { (place, line) } else { (line, place) };
                        let element = |odd: usize| {
                            let (row, col) = match pairs {
                                Pairs::Columns => (block * LANES + line, step * STEP + 2 * place + odd),
                                Pairs::Rows => (step * STEP + 2 * line + odd, block * LANES + place),
                            };
                            let value = if row < rows && col < cols { data[row * stride + col] } else { 0.0 };
                            half::bf16::from_f32(value).to_bits()
                        };
                        let expected = u32::from(element(0)) | u32::from(element(1)) << 16;
                        assert_eq!(found, expected, "{isa}, {pairs:?}, {turned}, {at} of {rows} x {cols}");
                    }
                }
            }
        }
    }
}
