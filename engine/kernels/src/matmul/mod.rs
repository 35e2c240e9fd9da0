//! Matrix products: `out (n, rows) = x (n, cols) * w (rows, cols)^T`.
//!
//! Every output is a sum over *panels* of [`PANEL`] columns, added in order; within a panel an instruction set keeps
//! one vector of partial sums per output, walks it along the columns, and adds its lanes up in a fixed tree. Both
//! paths below do exactly that, so an output has the same bits alone and in any batch:
//! - one row of activations: four stored rows are decoded in registers and multiplied at once (`dot4`);
//! - more rows: four stored rows are decoded into a panel of scratch that stays in the first-level cache, and tiles of
//!   a few activation rows pass over it (`tile`).
//!
//! Tasks of the pool are ranges of weight rows.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod scalar;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::dequantize::PART;
use crate::shared::SharedMut;
use crate::table::Table;
use crate::{Matrix, Pool};

/// Columns whose products are summed in one vector before its lanes are added up. Four decoded rows of it (16 KiB) and
/// a tile of six activation rows (24 KiB) fit a 48 KiB first-level cache; every block length divides it.
const PANEL: usize = 1024;
/// Weight rows that are multiplied together.
const GROUP: usize = 4;
/// Distance of decoded rows in the scratch: not a power of two, so that they do not compete for the same cache sets.
const STRIDE: usize = PANEL + 16;
/// Activation rows between two decodings of the same weights: a panel of them (384 KiB) stays in a second-level cache
/// of 1 MiB. A multiple of every tile height.
const ROWS_PER_DECODE: usize = 96;
/// Multiply-adds that are worth a task: a few microseconds, against a fraction of one to hand it out.
const MIN_TASK: usize = 1 << 15;
/// Most weight rows of a task; more would leave threads idle at the end of a product.
const MAX_TASK_ROWS: usize = 128;
/// Tasks per thread where there is enough work, for balance.
const TASKS_PER_THREAD: usize = 8;

/// Bytes of a cache line.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Most activation rows in a tile of any instruction set.
pub(crate) const TILE_MAX: usize = 6;

/// Four decoded weight rows, and activation rows to dot them with.
pub(crate) struct Tile<'a> {
    /// Weight rows of one length.
    pub(crate) weights: [&'a [f32]; GROUP],
    /// Activations; row `i` starts at `i * stride` and is as long as the weights.
    pub(crate) x: &'a [f32],
    /// Distance of activation rows.
    pub(crate) stride: usize,
    /// Number of activation rows, at most [`TILE_MAX`].
    pub(crate) num_rows: usize,
}

/// The sums of a tile: activation rows x four weight rows.
pub(crate) type TileSums = [[f32; GROUP]; TILE_MAX];

impl Tile<'_> {
    /// Asserts that every row lies in its slice; returns the length of the rows.
    #[inline(always)]
    pub(crate) fn checked_len(&self) -> usize {
        let len = self.weights[0].len();
        assert!(self.weights.iter().all(|row| row.len() == len), "weight rows of a tile differ in length");
        assert!(self.num_rows <= TILE_MAX, "a tile of {} rows", self.num_rows);
        if let Some(last) = self.num_rows.checked_sub(1) {
            assert!(last * self.stride + len <= self.x.len(), "activations of a tile are too short");
        }
        len
    }
}

/// One product.
pub(crate) struct Product<'a> {
    pub(crate) table: &'static Table,
    pub(crate) x: &'a [f32],
    pub(crate) num_rows: usize,
    pub(crate) w: &'a Matrix,
    pub(crate) out: SharedMut<'a>,
}

impl Product<'_> {
    /// Computes the product; the lengths of `x` and `out` have been asserted.
    pub(crate) fn run(&self, pool: &Pool) {
        let (rows, cols) = (self.w.rows(), self.w.cols());
        let enough = MIN_TASK.div_ceil((cols * self.num_rows).max(1));
        let balanced = rows.div_ceil(pool.num_threads() * TASKS_PER_THREAD);
        let task_rows = balanced.max(enough).min(MAX_TASK_ROWS.max(enough)).next_multiple_of(GROUP);
        let in_registers = self.num_rows == 1 && cols.is_multiple_of(PART);
        pool.run(rows.div_ceil(task_rows), |task| {
            let rows = task * task_rows..rows.min((task + 1) * task_rows);
            if in_registers { self.single(rows) } else { self.batch(rows) }
        });
    }

    /// One activation row against some weight rows.
    fn single(&self, rows: Range<usize>) {
        let ahead = self.panel_bytes(0, self.w.cols()).len() * GROUP;
        for first in rows.clone().step_by(GROUP) {
            let (stored, num) = self.group(first, rows.end);
            let mut sums = [0.0; GROUP];
            for (panel, x) in self.x.chunks(PANEL).enumerate() {
                let bytes = self.panel_bytes(panel * PANEL, x.len());
                let weights = stored.map(|row| &row[bytes.clone()]);
                // SAFETY: `Kernels` chose the table among those that this processor can run.
                let dots = unsafe { (self.table.dot4)(self.w.dtype(), weights, ahead, x) };
                sums = std::array::from_fn(|i| if panel == 0 { dots[i] } else { sums[i] + dots[i] });
            }
            // SAFETY: outputs are addressed by weight row, and tasks have disjoint ranges of those.
            let out = unsafe { self.out.part(first..first + num) };
            out.copy_from_slice(&sums[..num]);
        }
    }

    /// All activation rows against some weight rows.
    fn batch(&self, rows: Range<usize>) {
        let cols = self.w.cols();
        let mut scratch = Scratch([0.0; GROUP * STRIDE]);
        for block in (0..self.num_rows).step_by(ROWS_PER_DECODE) {
            let x_rows = block..self.num_rows.min(block + ROWS_PER_DECODE);
            for panel in (0..cols.max(1)).step_by(PANEL) {
                let cols = panel..cols.min(panel + PANEL);
                for first in rows.clone().step_by(GROUP) {
                    let num = self.decode(first..rows.end, cols.clone(), &mut scratch);
                    self.prefetch(first + GROUP, self.panel_bytes(cols.start, cols.len()));
                    self.multiply(&scratch, x_rows.clone(), cols.clone(), first..first + num);
                }
            }
        }
    }

    /// Decodes the first rows of `rows`, at most a group, into the scratch; returns how many there are.
    fn decode(&self, rows: Range<usize>, cols: Range<usize>, scratch: &mut Scratch) -> usize {
        let (stored, num) = self.group(rows.start, rows.end);
        let bytes = self.panel_bytes(cols.start, cols.len());
        for (row, out) in stored[..num].iter().zip(scratch.0.chunks_exact_mut(STRIDE)) {
            // SAFETY: as in `single`, the processor can run the table.
            unsafe { (self.table.decode)(self.w.dtype(), &row[bytes.clone()], &mut out[..cols.len()]) }
        }
        num
    }

    /// Multiplies decoded weights with a block of activation rows and adds the sums to the outputs.
    fn multiply(&self, scratch: &Scratch, x_rows: Range<usize>, cols: Range<usize>, rows: Range<usize>) {
        let stride = self.w.cols();
        let weights = std::array::from_fn(|i| &scratch.0[i * STRIDE..][..cols.len()]);
        let mut sums = TileSums::default();
        for first in x_rows.clone().step_by(self.table.tile_rows) {
            let num_rows = self.table.tile_rows.min(x_rows.end - first);
            let tile = Tile { weights, x: &self.x[first * stride + cols.start..], stride, num_rows };
            // SAFETY: as in `single`, the processor can run the table.
            unsafe { (self.table.tile)(&tile, &mut sums) };
            for (i, sums) in sums[..num_rows].iter().enumerate() {
                let at = (first + i) * self.w.rows();
                // SAFETY: as in `single`, tasks have disjoint ranges of weight rows.
                let out = unsafe { self.out.part(at + rows.start..at + rows.end) };
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = if cols.start == 0 { *sum } else { *out + sum };
                }
            }
        }
    }

    /// The stored bytes of a group of rows, the last repeated where fewer than a group remain, and how many do.
    fn group(&self, first: usize, end: usize) -> ([&[u8]; GROUP], usize) {
        (std::array::from_fn(|i| self.w.row_bytes((first + i).min(end - 1))), GROUP.min(end - first))
    }

    /// Asks for some bytes of the group of rows from `first` on, which is next. Rows are too short, and four at a time
    /// too scattered, for the processor to foresee them.
    fn prefetch(&self, first: usize, bytes: Range<usize>) {
        if first + GROUP <= self.w.rows() {
            for i in 0..GROUP {
                prefetch(&self.w.row_bytes(first + i)[bytes.clone()]);
            }
        }
    }

    /// Where `len` columns from `first_col` lie in the bytes of a row.
    fn panel_bytes(&self, first_col: usize, len: usize) -> Range<usize> {
        let dtype = self.w.dtype();
        let offset = |col| col / dtype.block_len() * dtype.block_bytes();
        offset(first_col)..offset(first_col + len)
    }
}

/// Asks the first-level cache for some bytes.
fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(LINE) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is in the baseline of x86-64, and a prefetch reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// Decoded rows, on the stack of the thread that uses them.
#[repr(align(64))]
struct Scratch([f32; GROUP * STRIDE]);
