//! Activations rounded to bf16: rows of pairs, the even input in the lower half.

use std::ops::Range;

use super::{BLOCK_ROWS, SQUARE, SQUARE_PAIRS, STEP, has_rounding, num_pairs};
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
    out.reserve(rows, cols);
    (out.rows, out.cols) = (rows, cols);
    let block_len = block_len(cols);
    let blocks = SharedMut::new(&mut out.pairs[..rows.div_ceil(BLOCK_ROWS) * block_len]);
    let task_blocks = TASK_ELEMENTS.div_ceil(cols.max(1) * BLOCK_ROWS);
    let num_blocks = rows.div_ceil(BLOCK_ROWS);
    pool.run(num_blocks.div_ceil(task_blocks), |task| {
        for block in task * task_blocks..num_blocks.min((task + 1) * task_blocks) {
            // SAFETY: tasks have disjoint blocks.
            let out = unsafe { blocks.part(block * block_len..(block + 1) * block_len) };
            for (place, row) in (block * BLOCK_ROWS..rows.min((block + 1) * BLOCK_ROWS)).enumerate() {
                source.row(table, row * cols..(row + 1) * cols, |first, part| {
                    let squares = out[first / STEP * SQUARE..].chunks_exact_mut(SQUARE);
                    for (part, square) in part.chunks(STEP).zip(squares) {
                        round(isa, part, &mut square[place * SQUARE_PAIRS..(place + 1) * SQUARE_PAIRS]);
                    }
                });
            }
        }
    });
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
        *out = nearest(*even) >> 16 | nearest(*odd) & 0xFFFF_0000;
    }
    let filled = whole.len() + rest.len();
    if let [even] = rest {
        out[whole.len()] = nearest(*even) >> 16;
    }
    out[filled..].fill(0);
}

/// The nearest bf16, of two equally near ones the even one, in the upper half; what stays not a number is a quiet one.
#[inline(always)]
fn nearest(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
    if value.is_nan() { bits | 0x0040_0000 } else { rounded }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;
    use crate::samples::available_isas;

    proptest! {
        /// Any bits at all: subnormals, infinities, and what is not a number.
        #[test]
        fn pairs_are_the_nearest_bf16s(row in prop::collection::vec(any::<u32>(), 1..80)) {
            let row: Vec<f32> = row.into_iter().map(f32::from_bits).collect();
            for isa in available_isas() {
                let mut out = vec![u32::MAX; num_pairs(row.len())];
                round(isa, &row, &mut out);
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
