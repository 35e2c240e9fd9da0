//! Activations rounded to bf16: rows of pairs, the even input in the lower half.

use std::ops::Range;

use super::{BLOCK_ROWS, SQUARE, SQUARE_PAIRS, STEP, Square, even, has_rounding, num_pairs, odd, pair};
use crate::ahead::Ahead;
use crate::shared::SharedMut;
use crate::source::{Source, TASK_ELEMENTS};
use crate::table::Table;
use crate::{Buffer, Isa, Pool};

/// Rounded rows, reused from product to product; they grow to the largest shape they have held.
#[derive(Default)]
pub struct Rounded {
    rows: usize,
    cols: usize,
    pairs: Buffer<u32>,
}

impl Rounded {
    /// Holds nothing yet.
    pub fn new() -> Rounded {
        Rounded::default()
    }

    /// Reserves memory for that many rows and columns, so that later use does not allocate; what it held is gone.
    pub fn reserve(&mut self, rows: usize, cols: usize) {
        let len = rows.div_ceil(BLOCK_ROWS) * block_len(cols);
        (self.rows, self.cols) = (0, 0);
        self.pairs.fit(len.max(self.pairs.len()));
    }

    /// Number of rows held.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns held.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// A row in single precision again.
    ///
    /// **Shapes**: `out`: `(cols)`. **Panics** if the row is outside.
    pub(crate) fn widen_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {} into {}", self.rows, out.len());
        for (pair, out) in self.row(row).zip(out.chunks_mut(2)) {
            out.iter_mut().zip([even(pair), odd(pair)]).for_each(|(out, value)| *out = value);
        }
    }

    /// The pairs of a row, those that fill it up among them.
    pub(crate) fn row(&self, row: usize) -> impl Iterator<Item = u32> {
        let start = row / BLOCK_ROWS * block_len(self.cols) + row % BLOCK_ROWS * SQUARE_PAIRS;
        (0..num_pairs(self.cols))
            .map(move |pair| self.pairs[start + pair / SQUARE_PAIRS * SQUARE + pair % SQUARE_PAIRS])
    }

    /// The square of a block of rows that has some columns.
    pub(crate) fn square(&self, block: usize, index: usize) -> &Square {
        let start = block * block_len(self.cols) + index * SQUARE;
        self.pairs[start..start + SQUARE].try_into().expect("invariant: the part is as long as a square")
    }

    /// The squares from those of some rows and pairs on, both at the beginning of a square, and the length of a block.
    pub(crate) fn part(&self, rows: Range<usize>, pairs: Range<usize>) -> (&[u32], usize) {
        let block_len = block_len(self.cols);
        let start = rows.start / BLOCK_ROWS * block_len + pairs.start * BLOCK_ROWS;
        let end = (rows.end - 1) / BLOCK_ROWS * block_len + pairs.end * BLOCK_ROWS;
        (&self.pairs[start..end], block_len)
    }
}

/// Pairs of a block.
fn block_len(cols: usize) -> usize {
    num_pairs(cols) * BLOCK_ROWS
}

/// Rounds `rows` rows.
///
/// **Panics** if a length does not fit.
pub(crate) fn run(
    (isa, table, pool): (Isa, &'static Table, &Pool),
    source: Source<'_>,
    rows: usize,
    out: &mut Rounded,
) {
    let cols = source.cols(rows);
    let rounding = Rounding::new(isa, out, rows, cols);
    let task_rows = TASK_ELEMENTS.div_ceil(cols.max(1)).next_multiple_of(BLOCK_ROWS);
    pool.run(rows.div_ceil(task_rows), |task| {
        for row in task * task_rows..rows.min((task + 1) * task_rows) {
            source.row(table, row * cols..(row + 1) * cols, |first, part| {
                // SAFETY: tasks have disjoint rows.
                unsafe { rounding.write(row, first, part) };
            });
        }
    });
}

/// Rows on their way into [`Rounded`], from several threads.
pub(crate) struct Rounding<'a> {
    isa: Isa,
    blocks: SharedMut<'a, u32>,
    block_len: usize,
}

impl<'a> Rounding<'a> {
    /// Takes memory for `rows` rows of `cols`, which are written next.
    pub(crate) fn new(isa: Isa, out: &'a mut Rounded, rows: usize, cols: usize) -> Rounding<'a> {
        out.reserve(rows, cols);
        (out.rows, out.cols) = (rows, cols);
        let block_len = block_len(cols);
        Rounding { isa, blocks: SharedMut::new(&mut out.pairs[..rows.div_ceil(BLOCK_ROWS) * block_len]), block_len }
    }

    /// Takes rows that were rounded before, to be replaced square by square.
    pub(crate) fn over(isa: Isa, rows: &'a mut Rounded) -> Rounding<'a> {
        let block_len = block_len(rows.cols);
        let len = rows.rows.div_ceil(BLOCK_ROWS) * block_len;
        Rounding { isa, blocks: SharedMut::new(&mut rows.pairs[..len]), block_len }
    }

    /// The square of a block of rows that has some columns.
    ///
    /// # Safety
    /// Nobody else uses it.
    #[allow(clippy::mut_from_ref, reason = "that squares are disjoint is the caller's contract")]
    pub(crate) unsafe fn square(&self, block: usize, index: usize) -> &mut Square {
        let start = block * self.block_len + index * SQUARE;
        // SAFETY: the caller's promise.
        let square = unsafe { self.blocks.part(start..start + SQUARE) };
        square.try_into().expect("invariant: the part is as long as a square")
    }

    /// What is written of the squares that have some rows, whole blocks, and some columns.
    pub(crate) fn ahead(&self, rows: Range<usize>, index: usize) -> Ahead {
        let start = rows.start / BLOCK_ROWS * self.block_len + index * SQUARE;
        let first = self.blocks.pointer(start..start + SQUARE).cast_const().cast();
        let bytes = [SQUARE, self.block_len].map(|pairs| pairs * size_of::<u32>());
        Ahead::rows_from(first, bytes.into(), rows.len().div_ceil(BLOCK_ROWS))
    }

    /// Rounds a part of a row, from a multiple of [`STEP`] on, as many columns as whole squares have or up to the end of the row.
    ///
    /// # Safety
    /// Nobody else writes these columns of the row.
    pub(crate) unsafe fn write(&self, row: usize, first: usize, part: &[f32]) {
        assert!(first.is_multiple_of(STEP), "column {first}");
        let start = row / BLOCK_ROWS * self.block_len + first / STEP * SQUARE + row % BLOCK_ROWS * SQUARE_PAIRS;
        let num_squares = part.len().div_ceil(STEP);
        if num_squares == 0 {
            return;
        }
        let lines = self.blocks.pointer(start..start + (num_squares - 1) * SQUARE + SQUARE_PAIRS);
        #[cfg(target_arch = "x86_64")]
        if has_rounding(self.isa) {
            // SAFETY: the instruction set has instructions for bf16, and is available; `pointer` asserted that the lines lie in the
            // blocks, and the caller promises that they are used here alone.
            return unsafe { round_lines_avx512(part, lines) };
        }
        for (index, part) in part.chunks(STEP).enumerate() {
            // SAFETY: as above; a row has a line of each square, and others lie in between.
            let line = unsafe { std::slice::from_raw_parts_mut(lines.add(index * SQUARE), SQUARE_PAIRS) };
            round(self.isa, part, line);
        }
    }
}

/// Rounds columns to a line of one square after the other.
///
/// # Safety
/// The processor has AVX512-BF16; a line can be written for each [`STEP`] columns, [`SQUARE`] apart.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
unsafe fn round_lines_avx512(row: &[f32], mut lines: *mut u32) {
    use std::arch::x86_64::*;
    const LANES: usize = STEP / 2;
    let (whole, rest) = row.as_chunks::<STEP>();
    for part in whole {
        // SAFETY: a part is two vectors, a line one; the caller's promise.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(part.as_ptr()), _mm512_loadu_ps(part.as_ptr().add(LANES)));
            _mm512_storeu_si512(lines.cast(), super::rounded(low, high));
        }
        lines = lines.wrapping_add(SQUARE);
    }
    if !rest.is_empty() {
        let lanes = |from: usize| ((1_u32 << rest.len().saturating_sub(from).min(LANES)) - 1) as u16;
        // SAFETY: the masks cover the floats that the rest holds, and a line is a vector.
        unsafe {
            let low = _mm512_maskz_loadu_ps(lanes(0), rest.as_ptr());
            let high = _mm512_maskz_loadu_ps(lanes(LANES), rest.as_ptr().wrapping_add(LANES));
            _mm512_storeu_si512(lines.cast(), super::rounded(low, high));
        }
    }
}

/// Rounds a row; the pairs behind it become zeros.
pub(crate) fn round(isa: Isa, row: &[f32], out: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if has_rounding(isa) {
        // SAFETY: the instruction set has instructions for bf16, and this one is available.
        return unsafe { round_avx512(row, out) };
    }
    #[cfg(target_arch = "x86_64")]
    if isa != Isa::Scalar {
        // SAFETY: every instruction set but the scalar one includes AVX2, and this one is available.
        return unsafe { round_avx2(row, out) };
    }
    let _ = isa;
    round_scalar(row, out);
}

/// Compiled again, for wider vectors.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn round_avx2(row: &[f32], out: &mut [u32]) {
    round_scalar(row, out);
}

/// With the instruction for it, which flushes subnormal numbers to zero, as the products do.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
fn round_avx512(row: &[f32], out: &mut [u32]) {
    use std::arch::x86_64::*;
    const LANES: usize = 16;
    let (vectors, rest) = row.as_chunks::<LANES>();
    let (whole, out_rest) = out.split_at_mut(vectors.len() * LANES / 2);
    for (out, vector) in whole.as_chunks_mut::<{ LANES / 2 }>().0.iter_mut().zip(vectors) {
        // SAFETY: sixteen floats are a vector, and eight pairs half of one.
        unsafe {
            let halves = _mm512_cvtneps_pbh(_mm512_loadu_ps(vector.as_ptr()));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), std::mem::transmute::<__m256bh, __m256i>(halves));
        }
    }
    round_scalar(rest, out_rest);
}

#[inline(always)]
fn round_scalar(row: &[f32], out: &mut [u32]) {
    let (whole, rest) = row.as_chunks::<2>();
    for (out, [even, odd]) in out.iter_mut().zip(whole) {
        *out = pair(*even, *odd);
    }
    let filled = whole.len() + rest.len();
    if let [even] = rest {
        out[whole.len()] = nearest(*even) >> 16;
    }
    out[filled..].fill(0);
}

/// The nearest bf16, of two equally near ones the even one, in the upper half; what stays not a number is a quiet one.
#[inline(always)]
pub(super) fn nearest(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
    if value.is_nan() { bits | 0x0040_0000 } else { rounded }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;
    use crate::Kernels;
    use crate::samples::available_isas;

    proptest! {
        /// Any bits at all: subnormals, infinities, and what is not a number.
        #[test]
        fn pairs_are_the_nearest_bf16s(row in prop::collection::vec(any::<u32>(), 1..80)) {
            let row: Vec<f32> = row.into_iter().map(f32::from_bits).collect();
            for isa in available_isas() {
                let mut out = vec![u32::MAX; num_pairs(row.len())];
                round(isa, &row, &mut out);
                let mut squares = Rounded::new();
                Kernels::with_isa(isa, 1).unwrap().round(&row, 1, &mut squares);
                for out in [out, squares.row(0).collect()] {
                    for (at, &value) in row.iter().enumerate() {
                        let found = bf16::from_bits((out[at / 2] >> (16 * (at % 2))) as u16);
                        let flushed = has_rounding(isa) && value.is_subnormal() && found == bf16::from_f32(0.0);
                        let expected = if flushed { found } else { bf16::from_f32(value) };
                        prop_assert!(found == expected || found.is_nan() && expected.is_nan(), "{value}: {found}");
                    }
                    prop_assert!(out[row.len().div_ceil(2)..].iter().all(|&pair| pair == 0));
                    prop_assert!(row.len().is_multiple_of(2) || out[row.len() / 2] >> 16 == 0);
                }
            }
        }
    }
}
