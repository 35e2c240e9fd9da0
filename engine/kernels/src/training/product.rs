//! Products `out (m, n) = left (m, k) * right (k, n)` for many rows, in any orientation.
//!
//! A task takes some columns of the right factor, packs up to [`DEPTH`] of its rows at a time, and passes tiles of six rows of
//! the left factor over each panel. A sum is added up along the depth in order, [`DEPTH`] terms at a time, whatever the
//! tile, the task and the number of threads.

use std::cell::RefCell;
use std::ops::Range;

use super::pack::Panels;
use super::table::{PANEL_COLS, TILE_ROWS, Tile, TrainingTable};
use super::view::View;
use crate::shared::SharedMut;
use crate::table::Table;
use crate::{Matrix, Pool};

/// Terms that are added up in registers: a panel of them (16 KiB) stays in a first-level cache of 32 KiB. Whole blocks of
/// every storage type.
const DEPTH: usize = 256;
/// Most columns of a task: packed (128 KiB), they stay in a second-level cache of 512 KiB beside the rows. A multiple of
/// the 32-column blocks.
const TASK_COLS: usize = 128;
/// Rows of the left factor between two panels; [`DEPTH`] columns of them (96 KiB) stay in the second-level cache.
const ROWS: usize = 96;
/// Most rows of a task where columns alone make too few tasks.
const TASK_ROWS: usize = 192;

/// The right factor `(k, n)`.
#[derive(Clone, Copy, Debug)]
pub enum Right<'a> {
    /// Floats as they lie.
    Floats(View<'a>),
    /// Weights as they are stored: gradients go through a layer this way.
    Weights(&'a Matrix),
    /// Weights transposed: activations go through a layer this way.
    Transposed(&'a Matrix),
}

/// One product.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// The left factor `(m, k)`.
    pub left: View<'a>,
    /// The right factor `(k, n)`.
    pub right: Right<'a>,
    /// Whether the product is added to the output instead of overwriting it.
    pub accumulate: bool,
}

impl Right<'_> {
    fn depth(&self) -> usize {
        match self {
            Right::Floats(view) => view.rows,
            Right::Weights(w) => w.rows(),
            Right::Transposed(w) => w.cols(),
        }
    }

    fn cols(&self) -> usize {
        match self {
            Right::Floats(view) => view.cols,
            Right::Weights(w) => w.cols(),
            Right::Transposed(w) => w.rows(),
        }
    }

    fn pack(&self, tables: (&Table, &TrainingTable), depth: Range<usize>, cols: Range<usize>, panels: &mut Panels) {
        match self {
            Right::Floats(view) => panels.pack(tables.1, view, depth, cols),
            Right::Weights(w) => panels.pack_weights(tables.0, w, depth, cols),
            Right::Transposed(w) => panels.pack_transposed(tables, w, depth, cols),
        }
    }
}

thread_local! {
    /// The packed block of the task that a thread is at.
    static PANELS: RefCell<(Panels, Vec<f32>)> = RefCell::default();
}

/// Distance of copied rows of the left factor: not a power of two, so that they do not compete for the same cache sets as rows
/// that lie a vocabulary apart do.
const LEFT_STRIDE: usize = DEPTH + 16;

impl Product<'_> {
    /// **Panics** if the factors do not fit each other or `out` is not `(m, n)`.
    pub(super) fn run(&self, tables: (&'static Table, &'static TrainingTable), pool: &Pool, out: &mut [f32]) {
        let (rows, depth, cols) = (self.left.rows, self.left.cols, self.right.cols());
        assert_eq!(depth, self.right.depth(), "depths of the factors of a product");
        assert_eq!(Some(out.len()), rows.checked_mul(cols), "output of {rows} x {cols}");
        if let Right::Weights(w) = self.right {
            assert!(w.dtype().block_len() <= TASK_COLS, "{} has blocks longer than a task", w.dtype());
        }
        if depth == 0 && !self.accumulate {
            out.fill(0.0);
        }
        if out.is_empty() || depth == 0 {
            return;
        }
        let threads = pool.num_threads();
        let num_col_tasks = cols.div_ceil(TASK_COLS).next_multiple_of(threads);
        let task_cols = cols.div_ceil(num_col_tasks).next_multiple_of(2 * PANEL_COLS).min(TASK_COLS);
        let num_col_tasks = cols.div_ceil(task_cols);
        let task_rows = if num_col_tasks >= threads { rows } else { TASK_ROWS };
        let out = SharedMut::new(out);
        pool.run(num_col_tasks * rows.div_ceil(task_rows), |task| {
            let (col, row) = (task % num_col_tasks * task_cols, task / num_col_tasks * task_rows);
            let (rows, cols) = (row..rows.min(row + task_rows), col..cols.min(col + task_cols));
            PANELS.with_borrow_mut(|scratch| self.part(tables, (rows, cols), scratch, &out));
        });
    }

    fn part(
        &self,
        tables: (&Table, &TrainingTable),
        (rows, cols): (Range<usize>, Range<usize>),
        (panels, copied): &mut (Panels, Vec<f32>),
        out: &SharedMut<'_>,
    ) {
        let (depth, width) = (self.left.cols, self.right.cols());
        for first in (0..depth).step_by(DEPTH) {
            let terms = first..depth.min(first + DEPTH);
            self.right.pack(tables, terms.clone(), cols.clone(), panels);
            let left = gathered(block(&self.left, rows.clone(), terms), copied);
            let overwrite = first == 0 && !self.accumulate;
            multiply(tables.1, &left, (panels, cols.len()), |row, col, sums| {
                let at = (rows.start + row) * width + cols.start + col;
                // SAFETY: tasks have disjoint ranges of rows and columns.
                let out = unsafe { out.part(at..at + sums.len()) };
                if overwrite {
                    out.copy_from_slice(sums);
                } else {
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                }
            });
        }
    }
}

/// Copies a block whose rows lie far apart, so that its tiles stay in the caches; others are taken as they are.
fn gathered<'a>(left: View<'a>, copied: &'a mut Vec<f32>) -> View<'a> {
    if left.col_stride != 1 || left.row_stride <= LEFT_STRIDE {
        return left;
    }
    copied.resize(left.rows * LEFT_STRIDE, 0.0);
    for (row, out) in copied.chunks_exact_mut(LEFT_STRIDE).enumerate() {
        out[..left.cols].copy_from_slice(&left.from(row, 0)[..left.cols]);
    }
    View::strided(copied, left.rows, left.cols, LEFT_STRIDE)
}

/// Cuts a block out of a view.
pub(super) fn block<'a>(view: &View<'a>, rows: Range<usize>, cols: Range<usize>) -> View<'a> {
    View { data: view.from(rows.start, cols.start), rows: rows.len(), cols: cols.len(), ..*view }
}

/// Multiplies all rows of `left` with the first `cols` packed columns; the depth is that of `left`, which may be less than that
/// of the panels. `put` gets row, first column and the sums from there on.
#[inline(always)]
pub(super) fn multiply(
    table: &TrainingTable,
    left: &View<'_>,
    (panels, cols): (&Panels, usize),
    mut put: impl FnMut(usize, usize, &[f32]),
) {
    let mut sums = [0.0; TILE_ROWS * PANEL_COLS];
    for first in (0..left.rows).step_by(ROWS) {
        let rows = first..left.rows.min(first + ROWS);
        for (index, col) in (0..cols).step_by(PANEL_COLS).enumerate() {
            let (panel, num_cols) = (panels.panel(index), PANEL_COLS.min(cols - col));
            for row in rows.clone().step_by(TILE_ROWS) {
                let num_rows = TILE_ROWS.min(rows.end - row);
                let tile = Tile {
                    left: left.from(row, 0),
                    row_stride: left.row_stride,
                    col_stride: left.col_stride,
                    num_rows,
                    panel,
                    depth: left.cols,
                };
                // SAFETY: `Kernels` chose the table among those that this processor can run.
                unsafe { (table.tile)(&tile, &mut sums) };
                for (i, sums) in sums.as_chunks::<PANEL_COLS>().0[..num_rows].iter().enumerate() {
                    put(row + i, col, &sums[..num_cols]);
                }
            }
        }
    }
}
