//! Products `out (m, n) = left (m, k) * right (k, n)` for many rows, in any orientation.
//!
//! The left factor is interleaved once, by all threads. Then a task takes some columns of the right factor, packs a block of the
//! depth at a time, passes the tiles of the left factor over each pair of panels, and meanwhile asks memory for the next block of weights.
//! A sum is added up along the depth in order, block by block, whatever the tile, the task and the number of threads.

use std::cell::RefCell;
use std::ops::Range;

use super::left::{Interleaved, Left};
use super::pack::Panels;
use super::table::{PANEL_COLS, TILE_COLS, TILE_ROWS, Tile, TrainingTable};
use super::view::View;
use crate::ahead::Ahead;
use crate::shared::{Place, SharedMut};
use crate::table::Table;
use crate::{Matrix, Pool};

/// Most terms that are added up in registers: two panels of them (32 KiB) and a tile (12 KiB) stay in a first-level cache of 48 KiB,
/// one panel and a tile in one of 32 KiB.
const DEPTH: usize = 256;
/// Terms that are added up in registers where blocks of weights are longer than [`BLOCK`].
const LONG_DEPTH: usize = 256;
/// Blocks of weights that a depth may be cut into: those of all storage types but the ones with blocks of 256.
const BLOCK: usize = 32;
/// Most columns of a task: packed (128 KiB), they stay in a second-level cache of 512 KiB beside tiles and the next weights. A
/// multiple of the 32-column blocks.
const TASK_COLS: usize = 128;
/// Tiles of the left factor between two pairs of panels: [`DEPTH`] terms of them (96 KiB) stay in the second-level cache.
const TILES: usize = 8;
/// Fewest rows of a task where columns alone make too few tasks.
const TASK_ROWS: usize = 48;
/// Most floats of the left factor that are interleaved at a time (4 MiB).
const INTERLEAVED: usize = 1 << 20;
/// Products with at most so many columns read their left factor in place: to interleave it would not pay.
const COLS_IN_PLACE: usize = 64;

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

    /// A block of weights, to ask for; nothing of floats, which are in a cache anyway.
    fn ahead(&self, depth: Range<usize>, cols: Range<usize>) -> Ahead {
        let (weights, rows, cols) = match *self {
            Right::Floats(_) => return Ahead::none(),
            Right::Weights(w) => (w, depth, cols),
            Right::Transposed(w) => (w, cols, depth),
        };
        if rows.is_empty() {
            return Ahead::none();
        }
        let dtype = weights.dtype();
        let offset = |col: usize| col.div_ceil(dtype.block_len()) * dtype.block_bytes();
        let first = weights.row_bytes(rows.start);
        Ahead::rows(&first[offset(cols.start)..offset(cols.end)], first.len(), rows.len())
    }

    fn pack(&self, tables: (&Table, &TrainingTable), depth: Range<usize>, cols: Range<usize>, panels: &mut Panels) {
        match self {
            Right::Floats(view) => panels.pack(tables.1, view, depth, cols),
            Right::Weights(w) => panels.pack_weights(tables, w, depth, cols),
            Right::Transposed(w) => panels.pack_transposed(tables, w, depth, cols),
        }
    }
}

thread_local! {
    /// The packed block of the task that a thread is at.
    static PANELS: RefCell<Panels> = RefCell::default();
    /// The left factor of the product that a thread is at.
    static LEFT: RefCell<Interleaved> = RefCell::default();
}

/// Instruction sets' functions for serving and for training.
type Tables = (&'static Table, &'static TrainingTable);

impl Product<'_> {
    /// **Panics** if the factors do not fit each other or `out` is not `(m, n)`.
    pub(super) fn run(&self, tables: Tables, pool: &Pool, out: &mut [f32]) {
        let (rows, depth, cols) = (self.left.rows, self.left.cols, self.right.cols());
        assert_eq!(depth, self.right.depth(), "depths of the factors of a product");
        assert_eq!(Some(out.len()), rows.checked_mul(cols), "output of {rows} x {cols}");
        if let Right::Weights(w) = self.right {
            assert!(w.dtype().block_len() <= BLOCK, "{} has blocks longer than a task may cut", w.dtype());
        }
        if depth == 0 && !self.accumulate {
            out.fill(0.0);
        }
        if out.is_empty() || depth == 0 {
            return;
        }
        let step = self.depth_step();
        let out = SharedMut::new(out);
        let out = Out { floats: &out, start: 0, stride: cols, add: self.accumulate };
        if cols <= COLS_IN_PLACE {
            let left = |terms: Range<usize>| Left::lying(&block(&self.left, 0..rows, terms));
            return self.tasks(tables, pool, (&left, 0..depth), &out);
        }
        LEFT.with_borrow_mut(|interleaved| {
            let steps_at_once = (INTERLEAVED / (rows * step)).max(1);
            for first in (0..depth).step_by(step * steps_at_once) {
                let terms = first..depth.min(first + step * steps_at_once);
                interleaved.fill(tables.1, pool, &block(&self.left, 0..rows, terms.clone()), step);
                let left = |part: Range<usize>| interleaved.block(part.start - first);
                self.tasks(tables, pool, (&left, terms), &out);
            }
        });
    }

    /// Terms of a block of the depth: depends on depth and storage type alone, so that sums do not depend on the batch.
    fn depth_step(&self) -> usize {
        let block_len = match self.right {
            Right::Floats(_) => 1,
            Right::Weights(w) | Right::Transposed(w) => w.dtype().block_len(),
        };
        if block_len > BLOCK {
            return LONG_DEPTH;
        }
        let depth = self.left.cols;
        depth.div_ceil(depth.div_ceil(DEPTH)).next_multiple_of(BLOCK)
    }

    /// Multiplies some terms of the depth.
    fn tasks<'a>(
        &self,
        tables: Tables,
        pool: &Pool,
        (left, terms): (&(impl Fn(Range<usize>) -> Left<'a> + Sync), Range<usize>),
        out: &Out<'_>,
    ) {
        let (rows, cols, threads) = (self.left.rows, out.stride, pool.num_threads());
        let num_col_tasks = cols.div_ceil(TASK_COLS).next_multiple_of(threads);
        let task_cols = cols.div_ceil(num_col_tasks).next_multiple_of(BLOCK).min(TASK_COLS);
        let num_col_tasks = cols.div_ceil(task_cols);
        let task_tiles = if num_col_tasks >= threads {
            rows.div_ceil(TILE_ROWS)
        } else {
            rows.div_ceil(TILE_ROWS).div_ceil(threads).max(TASK_ROWS / TILE_ROWS)
        };
        let num_row_tasks = rows.div_ceil(TILE_ROWS).div_ceil(task_tiles);
        let columns = |task: usize| {
            let col = task % num_col_tasks * task_cols;
            col..cols.min(col + task_cols)
        };
        pool.run(num_col_tasks * num_row_tasks, |task| {
            let tile = task / num_col_tasks * task_tiles;
            // Most likely this thread comes to that task next.
            let next = task + threads;
            let part = Part {
                tiles: tile..rows.div_ceil(TILE_ROWS).min(tile + task_tiles),
                cols: columns(task),
                next: (next < num_col_tasks * num_row_tasks).then(|| columns(next)),
            };
            PANELS.with_borrow_mut(|panels| self.part(tables, (left, terms.clone()), (&part, panels), out));
        });
    }

    fn part<'a>(
        &self,
        tables: Tables,
        (left, terms): (&impl Fn(Range<usize>) -> Left<'a>, Range<usize>),
        (part, panels): (&Part, &mut Panels),
        out: &Out<'_>,
    ) {
        let step = self.depth_step();
        let block_from = |first: usize| first..terms.end.min(first + step);
        for first in terms.clone().step_by(step) {
            let depth = block_from(first);
            self.right.pack(tables, depth.clone(), part.cols.clone(), panels);
            let mut ahead = match &part.next {
                _ if depth.end < terms.end => self.right.ahead(block_from(depth.end), part.cols.clone()),
                Some(next) => self.right.ahead(block_from(terms.start), next.clone()),
                None => Ahead::none(),
            };
            let out = Out {
                floats: out.floats,
                start: out.start + part.cols.start,
                add: out.add || first > 0,
                stride: out.stride,
            };
            let right = (&*panels, part.cols.len());
            // SAFETY: tasks have disjoint tiles and columns.
            unsafe { multiply(tables.1, (&left(depth), part.tiles.clone()), right, &out, &mut ahead) };
        }
    }
}

/// What a task multiplies.
struct Part {
    tiles: Range<usize>,
    cols: Range<usize>,
    /// Columns of the task after it.
    next: Option<Range<usize>>,
}

/// Where a product goes: rows in a slice.
pub(super) struct Out<'a> {
    pub(super) floats: &'a SharedMut<'a>,
    /// The first element.
    pub(super) start: usize,
    /// Floats from one row to the next.
    pub(super) stride: usize,
    /// Whether the product is added to what is there.
    pub(super) add: bool,
}

/// Cuts a block out of a view.
pub(super) fn block<'a>(view: &View<'a>, rows: Range<usize>, cols: Range<usize>) -> View<'a> {
    View { data: view.from(rows.start, cols.start), rows: rows.len(), cols: cols.len(), ..*view }
}

/// Multiplies some tiles of `left` with the first `cols` packed columns; the depth is that of `left`, which may be less than that
/// of the panels.
///
/// **Panics** if the rows end outside of the slice of `out`.
///
/// # Safety
/// Nobody else uses these rows and columns of `out`.
pub(super) unsafe fn multiply(
    table: &TrainingTable,
    (left, tiles): (&Left<'_>, Range<usize>),
    (panels, cols): (&Panels, usize),
    out: &Out<'_>,
    ahead: &mut Ahead,
) {
    let num_lines = ahead.num_lines().div_ceil((tiles.len() * cols.div_ceil(TILE_COLS)).max(1));
    for first in tiles.clone().step_by(TILES) {
        let tiles = first..tiles.end.min(first + TILES);
        for col in (0..cols).step_by(TILE_COLS) {
            let num_cols = TILE_COLS.min(cols - col);
            let index = col / PANEL_COLS;
            let pair = (panels.panel(index), (num_cols > PANEL_COLS).then(|| panels.panel(index + 1)));
            for tile in tiles.clone() {
                let (row, tile) = left.tile(tile, pair, ahead.take(num_lines));
                let at = out.start + row * out.stride + col;
                let end = at + (tile.num_rows - 1) * out.stride + num_cols;
                let place = Place { start: out.floats.pointer(at..end), stride: out.stride, add: out.add };
                // SAFETY: `Kernels` chose the table among those that this processor can run. `pointer` asserted that the rows
                // lie in the slice, and the caller promises that they are used here alone.
                unsafe {
                    if num_cols.is_multiple_of(PANEL_COLS) {
                        (table.tile)(&tile, place);
                    } else {
                        narrow_tile(table, &tile, place, num_cols);
                    }
                }
            }
        }
    }
}

/// A tile whose place has fewer columns.
///
/// # Safety
/// As `TrainingTable::tile`, with rows of `num_cols`.
unsafe fn narrow_tile(table: &TrainingTable, tile: &Tile<'_>, place: Place, num_cols: usize) {
    let mut sums = [0.0; TILE_ROWS * TILE_COLS];
    // SAFETY: the sums have `TILE_ROWS` rows of `TILE_COLS`; the rest is the caller's promise.
    unsafe {
        (table.tile)(tile, Place { start: sums.as_mut_ptr(), stride: TILE_COLS, add: false });
        for (i, sums) in sums.as_chunks::<TILE_COLS>().0.iter().take(tile.num_rows).enumerate() {
            let out = std::slice::from_raw_parts_mut(place.start.add(i * place.stride), num_cols);
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = if place.add { *out + sum } else { *sum };
            }
        }
    }
}
