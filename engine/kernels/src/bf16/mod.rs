//! Products in bf16: `out (n, outputs) = x (n, inputs) * w`, both factors rounded to bf16, sums in `f32`.
//!
//! **Layout.** Two neighbouring inputs are a *pair*, 32 bits. A *line* is a pair of sixteen outputs: 64 bytes, what one `vdpbf16ps`
//! or a row of a tile register takes. Thirty-two outputs form a *group*: all lines of its first half, then all of its second.
//! Inputs are filled up with zeros to a multiple of [`STEP`], outputs to a multiple of [`GROUP`]. Weights are packed once, for
//! activations, which go from columns to rows; for gradients, which go from rows to columns, the lines that a task multiplies
//! are turned round first (`turn.rs`). Activations are rounded once for all products that they go into: sixteen rows form a
//! *block*, and sixteen pairs of each, one row after the other, are a *square*, what a tile register takes. A block is its
//! squares in the order of their pairs, the last one filled up with zeros. Rows that fill up the last block mean nothing.
//!
//! **Meaning.** Each output starts at zero, or at what it held where the product is added; pair by pair, the product of the even
//! inputs is added, then that of the odd ones. Scalar and AVX2 do exactly that, fused. `vdpbf16ps` takes the odd inputs first;
//! `tdpbf16ps` adds up even and odd inputs of 16 pairs apart before it adds both; those two flush subnormal numbers to zero. So
//! instruction sets differ in the last bits, but none lets an output depend on the other rows.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod pack;
pub(crate) mod product;
pub(crate) mod round;
mod scalar;
#[cfg(test)]
mod tests;
mod turn;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{interleaved, rounded};
pub use product::Direction;
pub(crate) use product::{run, run_each, run_rounded};
pub use round::Rounded;
pub(crate) use turn::turn;

use crate::ahead::Ahead;
use crate::huge_pages::HugePages;
use crate::shared::Place;
use crate::{Isa, Matrix, Pool};

/// Outputs of a line.
pub(crate) const LANES: usize = 16;
/// Bytes of a line.
const LINE_BYTES: usize = LANES * size_of::<u32>();
/// Pairs of rows, or of columns, that are turned round together.
const PATCH: usize = LANES / 2;
/// Outputs that are computed together.
pub(crate) const GROUP: usize = 2 * LANES;
/// Inputs are filled up to a multiple of this: the depth of a tile register.
pub(crate) const STEP: usize = 32;
/// Activation rows of a block.
pub(crate) const BLOCK_ROWS: usize = 16;
/// Pairs of a row in a square.
const SQUARE_PAIRS: usize = STEP / 2;
/// Pairs of a square.
pub(crate) const SQUARE: usize = BLOCK_ROWS * SQUARE_PAIRS;

/// Sixteen pairs of sixteen rows.
pub(crate) type Square = [u32; SQUARE];

/// Weights `(rows, cols)` rounded to bf16 and packed for [`Kernels::matmul_bf16`](crate::Kernels::matmul_bf16); cheap to clone.
#[derive(Clone)]
pub struct Bf16Matrix {
    rows: usize,
    cols: usize,
    data: Arc<HugePages>,
    /// Where the groups lie in `data`.
    range: Range<usize>,
}

impl Bf16Matrix {
    /// Rounds and packs matrices into one allocation, in parallel; they lie in memory in the order given.
    pub fn pack_all(matrices: &[&Matrix], pool: &Pool) -> Vec<Bf16Matrix> {
        pack::pack_all(matrices, pool)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes in memory.
    pub fn num_bytes(&self) -> usize {
        self.range.len()
    }

    /// Decodes a row of the matrix that was packed, after rounding.
    ///
    /// **Shapes**: `out`: `(cols)`. **Panics**: if `row` or the length of `out` is wrong.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {self:?} into {}", out.len());
        let lines = self.lines(row / GROUP, 0..self.num_pairs())[row % GROUP / LANES];
        for (line, out) in lines.as_chunks::<LANES>().0.iter().zip(out.chunks_mut(2)) {
            let pair = line[row % LANES];
            out.iter_mut().zip([even(pair), odd(pair)]).for_each(|(out, value)| *out = value);
        }
    }

    /// Pairs of a row, filled up.
    fn num_pairs(&self) -> usize {
        num_pairs(self.cols)
    }

    /// The lines of both halves of a group of rows, for some pairs.
    fn lines(&self, group: usize, pairs: Range<usize>) -> [&[u32]; 2] {
        let half_len = self.num_pairs() * LANES;
        [2 * group, 2 * group + 1].map(|half| {
            let start = half * half_len;
            &self.pairs()[start + pairs.start * LANES..start + pairs.end * LANES]
        })
    }

    /// What is read of a group of rows, for some pairs.
    fn ahead(&self, group: usize, pairs: Range<usize>) -> Ahead {
        let half = self.num_pairs() * LINE_BYTES;
        let first = 2 * group * half + pairs.start * LINE_BYTES;
        Ahead::rows(&self.bytes()[first..first + pairs.len() * LINE_BYTES], half, 2)
    }

    /// What is read of a group of columns, for some pairs of rows.
    fn ahead_of_columns(&self, group: usize, pairs: Range<usize>) -> Ahead {
        let half = self.num_pairs() * LINE_BYTES;
        let first = pairs.start / PATCH * half + group * LANES * LINE_BYTES;
        Ahead::rows(&self.bytes()[first..first + LANES * LINE_BYTES], half, pairs.len() / PATCH)
    }

    fn bytes(&self) -> &[u8] {
        &self.data.as_slice()[self.range.clone()]
    }

    fn pairs(&self) -> &[u32] {
        // SAFETY: any four bytes are a `u32`; the range begins at a line of memory that is aligned far better.
        let (before, pairs, _) = unsafe { self.bytes().align_to::<u32>() };
        debug_assert!(before.is_empty(), "invariant: matrices begin at lines");
        pairs
    }
}

impl fmt::Debug for Bf16Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bf16Matrix({} x {})", self.rows, self.cols)
    }
}

/// Pairs of so many inputs, filled up.
pub(crate) fn num_pairs(inputs: usize) -> usize {
    inputs.next_multiple_of(STEP) / 2
}

/// Two inputs, rounded.
pub(crate) fn pair(even: f32, odd: f32) -> u32 {
    round::nearest(even) >> 16 | round::nearest(odd) & 0xFFFF_0000
}

/// The even input of a pair.
fn even(pair: u32) -> f32 {
    f32::from_bits(pair << 16)
}

/// The odd input of a pair.
fn odd(pair: u32) -> f32 {
    f32::from_bits(pair & 0xFFFF_0000)
}

/// Some rows of activations and a group of weights, over some pairs.
pub(crate) struct Part<'a> {
    /// Squares of activations, the first that of the first row and pair; the next block begins `block_len` later.
    pub(crate) x: &'a [u32],
    pub(crate) block_len: usize,
    pub(crate) rows: usize,
    /// The lines of both halves of the group.
    pub(crate) lines: [&'a [u32]; 2],
    /// Pairs of a row, a multiple of 16.
    pub(crate) pairs: usize,
    /// What the caller most likely comes to next, for the caches: weights, or where outputs go.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "a hint for AMX"))]
    pub(crate) next: Ahead,
}

/// Runs what computes parts, with the tile registers configured where the instruction set has them: that takes as long as a small part.
/// Nothing else that configures them runs inside.
pub(crate) fn with_tiles<R>(isa: Isa, run: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    let _configured = (isa == Isa::Amx).then(crate::tiles::Configured::whole);
    let _ = isa;
    run()
}

impl Part<'_> {
    /// Where a row's pairs of its first square begin; those of the next are [`SQUARE`] later.
    #[inline(always)]
    fn row(&self, row: usize) -> usize {
        row / BLOCK_ROWS * self.block_len + row % BLOCK_ROWS * SQUARE_PAIRS
    }

    /// Asserts that every row and line lies in its slice.
    #[inline(always)]
    fn check(&self) {
        assert!(self.pairs > 0 && self.pairs.is_multiple_of(STEP / 2), "{} pairs", self.pairs);
        assert!(self.lines.iter().all(|lines| lines.len() == self.pairs * LANES), "lines of a group");
        if let Some(last) = self.rows.checked_sub(1) {
            let end = last / BLOCK_ROWS * self.block_len + self.pairs * BLOCK_ROWS;
            assert!(end <= self.x.len(), "activations of a part are too short");
        }
    }
}

/// From the pair before `pair` of a row to it.
#[inline(always)]
fn next_pair(pair: usize) -> usize {
    if pair.is_multiple_of(SQUARE_PAIRS) { SQUARE - SQUARE_PAIRS + 1 } else { 1 }
}

/// Computes a part.
///
/// # Safety
/// The processor has the instruction set, and runs within [`with_tiles`]; the place has [`GROUP`] floats for each row of the part, which
/// nobody else uses.
pub(crate) type Multiply = unsafe fn(&Part<'_>, Place);

/// The function of an instruction set that is available.
pub(crate) fn multiply(isa: Isa) -> Multiply {
    match isa {
        Isa::Scalar => scalar::multiply,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if has_avx512_bf16() => avx512::multiply,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 => avx2::multiply,
        #[cfg(target_arch = "x86_64")]
        Isa::Amx => amx::multiply,
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2 | Isa::Avx512 | Isa::Amx => unreachable!("invariant: `{isa}` is never available here"),
    }
}

/// Whether products in bf16 have instructions of their own, which make them faster than those of floats.
pub(crate) fn is_native(isa: Isa) -> bool {
    match isa {
        Isa::Scalar | Isa::Avx2 => false,
        Isa::Avx512 => has_avx512_bf16(),
        Isa::Amx => true,
    }
}

/// Whether rounding has an instruction of its own.
pub(crate) fn has_rounding(isa: Isa) -> bool {
    matches!(isa, Isa::Avx512 | Isa::Amx) && has_avx512_bf16()
}

#[cfg(target_arch = "x86_64")]
fn has_avx512_bf16() -> bool {
    is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512_bf16() -> bool {
    false
}
