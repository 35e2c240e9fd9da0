//! The left factor of a product, as tiles read it: where it lies, or interleaved.

use std::ops::Range;

use super::table::{TILE_ROWS, Tile, TrainingTable};
use super::view::View;
use crate::ahead::Lines;
use crate::shared::SharedMut;
use crate::{Buffer, Pool};

/// Tiles that a task interleaves.
const TASK_TILES: usize = 2;

/// The rows of a left factor, cut into tiles of nearly equal height, so that none is too low to keep the processor busy.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    data: &'a [f32],
    row_stride: usize,
    col_stride: usize,
    depth: usize,
    /// Floats from tile to tile where they are interleaved.
    tile_stride: Option<usize>,
    heights: Heights,
}

/// How rows are cut into tiles: the first `num_higher` have one row more than the others.
#[derive(Clone, Copy)]
struct Heights {
    num_tiles: usize,
    height: usize,
    num_higher: usize,
}

impl Heights {
    fn of(rows: usize) -> Heights {
        let num_tiles = rows.div_ceil(TILE_ROWS).max(1);
        Heights { num_tiles, height: rows / num_tiles, num_higher: rows % num_tiles }
    }

    /// The rows of a tile.
    #[inline(always)]
    fn rows(&self, index: usize) -> Range<usize> {
        let start = index * self.height + index.min(self.num_higher);
        start..start + self.height + usize::from(index < self.num_higher)
    }
}

impl<'a> Left<'a> {
    /// Reads a view in place.
    pub(super) fn lying(view: &View<'a>) -> Left<'a> {
        Left {
            data: view.data,
            row_stride: view.row_stride,
            col_stride: view.col_stride,
            depth: view.cols,
            tile_stride: None,
            heights: Heights::of(view.rows),
        }
    }

    pub(super) fn num_tiles(&self) -> usize {
        self.heights.num_tiles
    }

    /// The first row of a tile, and the tile beside one panel or two.
    #[inline(always)]
    pub(super) fn tile(
        &self,
        index: usize,
        (panel, second): (&'a [f32], Option<&'a [f32]>),
        ahead: Lines,
    ) -> (usize, Tile<'a>) {
        let rows = self.heights.rows(index);
        let at = self.tile_stride.map_or(rows.start * self.row_stride, |stride| index * stride);
        let tile = Tile {
            left: &self.data[at..],
            row_stride: self.row_stride,
            col_stride: self.col_stride,
            num_rows: rows.len(),
            panel,
            second,
            depth: self.depth,
            ahead,
        };
        (rows.start, tile)
    }
}

/// Interleaved blocks of a left factor, `step` terms of the depth each.
#[derive(Default)]
pub(super) struct Interleaved {
    data: Buffer,
    rows: usize,
    depth: usize,
    step: usize,
}

impl Interleaved {
    /// Interleaves a view.
    pub(super) fn fill(&mut self, table: &TrainingTable, pool: &Pool, view: &View<'_>, step: usize) {
        (self.rows, self.depth, self.step) = (view.rows, view.cols, step);
        let heights = Heights::of(view.rows);
        let num_tiles = heights.num_tiles;
        let len = num_tiles * TILE_ROWS * view.cols;
        let data = SharedMut::new(self.data.fit(len));
        pool.run(num_tiles.div_ceil(TASK_TILES), |task| {
            for first in (0..view.cols).step_by(step) {
                let depth = step.min(view.cols - first);
                for index in task * TASK_TILES..num_tiles.min((task + 1) * TASK_TILES) {
                    let at = TILE_ROWS * (num_tiles * first + index * depth);
                    // SAFETY: tasks have disjoint tiles.
                    let out = unsafe { data.part(at..at + TILE_ROWS * depth) };
                    interleave(table, view, (heights.rows(index), first), out);
                }
            }
        });
    }

    /// The block that begins at a term of the depth.
    pub(super) fn block(&self, first: usize) -> Left<'_> {
        let depth = self.step.min(self.depth - first);
        let heights = Heights::of(self.rows);
        let padded_rows = heights.num_tiles * TILE_ROWS;
        let data = &self.data[padded_rows * first..padded_rows * (first + depth)];
        Left { data, row_stride: 1, col_stride: TILE_ROWS, depth, tile_stride: Some(TILE_ROWS * depth), heights }
    }
}

/// Interleaves one tile of a block.
fn interleave(table: &TrainingTable, view: &View<'_>, (rows, first): (Range<usize>, usize), out: &mut [f32]) {
    let from = view.from(rows.start, first);
    if view.col_stride == 1 {
        // SAFETY: `Kernels` chose the table among those that this processor can run.
        unsafe { (table.interleave)(from, view.row_stride, rows.len(), out) };
        return;
    }
    for (k, out) in out.as_chunks_mut::<TILE_ROWS>().0.iter_mut().enumerate() {
        let from = &from[k * view.col_stride..];
        if view.row_stride == 1 && rows.len() == TILE_ROWS {
            out.copy_from_slice(&from[..TILE_ROWS]);
        } else {
            (0..rows.len()).for_each(|i| out[i] = from[i * view.row_stride]);
        }
    }
}
