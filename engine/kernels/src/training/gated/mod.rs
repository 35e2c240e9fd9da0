//! The gate of a feed-forward block where products are in bf16: gate and up are kept rounded for the backward pass, in which they
//! become their gradients.
//!
//! Products before and after the gate leave their sums in a buffer of one group of outputs, which stays in the caches of the thread; from
//! there they go, sixteen rows and a group at a time, through the gate to squares. What modules with factors have computed takes
//! the same way from rows of floats. Forward the gate takes sums as they are; backward it takes gate and up as they were kept.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ops::Range;

use super::table::TrainingTable;
use crate::bf16::product::Factors;
use crate::bf16::round::{Rounding, round};
use crate::bf16::{BLOCK_ROWS, GROUP, Square, has_rounding, num_pairs};
use crate::shared::SharedMut;
use crate::table::Table;
use crate::{Bf16Matrix, Buffer, DType, Direction, Isa, Pool, Rounded};

/// Sums of sixteen rows and a group of outputs.
const TILE: usize = BLOCK_ROWS * GROUP;

type Tile = [f32; TILE];

/// Pairs of a line of a square.
const LINE: usize = GROUP / 2;

thread_local! {
    /// Sums of the groups that a thread is at.
    static SUMS: RefCell<[Buffer; 2]> = RefCell::default();
}

/// What computes a gate.
#[derive(Clone, Copy)]
pub(super) struct Gate<'a> {
    pub(super) isa: Isa,
    pub(super) tables: (&'static Table, &'static TrainingTable),
    pub(super) pool: &'a Pool,
}

/// Gate and up as rows of floats `(rows, cols)`.
pub(super) struct Floats<'a> {
    pub(super) gate: &'a [f32],
    pub(super) up: &'a [f32],
    pub(super) rows: usize,
}

impl Gate<'_> {
    /// Multiplies `x` with both weights and goes through the gate to `out`; gate and up are kept.
    ///
    /// **Panics** if a shape does not fit.
    pub(super) fn forward(&self, x: &Rounded, weights: [&Bf16Matrix; 2], kept: &mut [Rounded; 2], out: &mut Rounded) {
        let [gate, up] = weights.map(|w| Factors { isa: self.isa, x, w, direction: Direction::Forward });
        for w in weights {
            let inputs = if x.rows() == 0 { w.cols() } else { x.cols() };
            assert_eq!((w.rows(), w.cols()), (weights[0].rows(), inputs), "rows of {} for {w:?}", x.cols());
        }
        let (rows, cols) = (x.rows(), gate.outputs());
        let kept = kept.each_mut().map(|kept| Rounding::new(self.isa, kept, rows, cols));
        let out = Rounding::new(self.isa, out, rows, cols);
        if rows == 0 {
            return;
        }
        gate.groups(self.pool, num_pairs(x.cols()), |group, next| {
            with_sums(rows, |sums| {
                // SAFETY: `groups` runs this within `with_tiles`.
                unsafe {
                    gate.group(group, up.ahead(group), &mut sums[0][..rows * GROUP]);
                    up.group(group, gate.ahead(next), &mut sums[1][..rows * GROUP]);
                }
                for (block, [gate, up]) in tiles(sums) {
                    // SAFETY: tasks have disjoint groups.
                    unsafe { self.tile_forward([gate, up], (&kept, &out), (block, group)) };
                }
            });
        });
    }

    /// [`Gate::forward`] from the sums on.
    ///
    /// **Panics** if a shape does not fit.
    pub(super) fn keep(&self, floats: &Floats<'_>, kept: &mut [Rounded; 2], out: &mut Rounded) {
        let (rows, cols) = (floats.rows, floats.gate.len() / floats.rows.max(1));
        assert!(floats.gate.len() == rows * cols && floats.up.len() == rows * cols, "gate and up of {rows} rows");
        let kept = kept.each_mut().map(|kept| Rounding::new(self.isa, kept, rows, cols));
        let out = Rounding::new(self.isa, out, rows, cols);
        self.squares(rows, cols, |place, block, cols_of| {
            let mut pair = [[0.0; TILE]; 2];
            for (tile, x) in pair.iter_mut().zip([floats.gate, floats.up]) {
                lines(block.clone(), cols, cols_of.clone())
                    .zip(tile.as_chunks_mut::<GROUP>().0)
                    .for_each(|(line, tile)| tile[..cols_of.len()].copy_from_slice(&x[line]));
            }
            // SAFETY: tasks have disjoint squares.
            unsafe { self.tile_forward(pair.each_ref(), (&kept, &out), place) };
        });
    }

    /// Multiplies the gradient of the block with the weights of down, and goes back through the gate: what was kept becomes the gradients.
    ///
    /// **Panics** if a shape does not fit.
    pub(super) fn backward(&self, d_out: &Rounded, down: &Bf16Matrix, kept: &mut [Rounded; 2]) {
        let down = Factors { isa: self.isa, x: d_out, w: down, direction: Direction::Backward };
        let rows = d_out.rows();
        if rows == 0 {
            return;
        }
        assert_eq!(d_out.cols(), down.w.rows(), "gradient for {:?}", down.w);
        for kept in &*kept {
            assert_eq!((kept.rows(), kept.cols()), (rows, down.outputs()), "what was kept before {:?}", down.w);
        }
        let kept = kept.each_mut().map(|kept| Rounding::over(self.isa, kept));
        down.groups(self.pool, num_pairs(d_out.cols()), |group, next| {
            with_sums(rows, |sums| {
                // SAFETY: `groups` runs this within `with_tiles`.
                unsafe { down.group(group, down.ahead(next), &mut sums[0][..rows * GROUP]) };
                for (block, [d_out, _]) in tiles(sums) {
                    // SAFETY: tasks have disjoint groups.
                    let squares = kept.each_ref().map(|kept| unsafe { kept.square(block, group) });
                    #[cfg(target_arch = "x86_64")]
                    if has_rounding(self.isa) {
                        // SAFETY: the instruction set, which is available, has AVX512-BF16.
                        unsafe { avx512::backward(d_out, squares) };
                        continue;
                    }
                    self.tile_backward(d_out, squares);
                }
            });
        });
    }

    /// [`Gate::backward`] from the product on; the gradients go to rows of floats too.
    ///
    /// **Panics** if a shape does not fit.
    pub(super) fn keep_backward(&self, d_out: &[f32], kept: &mut [Rounded; 2], floats: [&mut [f32]; 2]) {
        let (rows, cols) = (kept[0].rows(), kept[0].cols());
        for kept in &*kept {
            assert_eq!((kept.rows(), kept.cols()), (rows, cols), "gate and up");
        }
        for len in [d_out.len(), floats[0].len(), floats[1].len()] {
            assert_eq!(len, rows * cols, "gradients of {rows} rows of {cols}");
        }
        let kept = kept.each_mut().map(|kept| Rounding::over(self.isa, kept));
        let floats = floats.map(SharedMut::new);
        self.squares(rows, cols, |place, block, cols_of| {
            let mut d_tile = [0.0; TILE];
            let ranges = || lines(block.clone(), cols, cols_of.clone());
            for (line, tile) in ranges().zip(d_tile.as_chunks_mut::<GROUP>().0) {
                tile[..cols_of.len()].copy_from_slice(&d_out[line]);
            }
            // SAFETY: tasks have disjoint squares.
            let squares = kept.each_ref().map(|kept| unsafe { kept.square(place.0, place.1) });
            let gradients = self.tile_backward(&d_tile, squares);
            for (gradient, out) in gradients.iter().zip(&floats) {
                for (line, tile) in ranges().zip(gradient.as_chunks::<GROUP>().0) {
                    // SAFETY: as above.
                    unsafe { out.part(line) }.copy_from_slice(&tile[..cols_of.len()]);
                }
            }
        });
    }

    /// `silu(gate) * up` of what was kept, as rows of floats.
    ///
    /// **Panics** if a shape does not fit.
    pub(super) fn kept(&self, kept: &[Rounded; 2], out: &mut [f32]) {
        let (rows, cols) = (kept[0].rows(), kept[0].cols());
        assert_eq!(out.len(), rows * cols, "output of {rows} rows of {cols}");
        assert_eq!((kept[1].rows(), kept[1].cols()), (rows, cols), "gate and up");
        let out = SharedMut::new(out);
        self.squares(rows, cols, |(block, group), rows, cols_of| {
            let [mut gate, up] = kept.each_ref().map(|kept| self.widen(kept.square(block, group)));
            // SAFETY: the tables are those that this processor can run.
            unsafe { (self.tables.0.swiglu)(&mut gate, &up) };
            for (line, tile) in lines(rows, cols, cols_of.clone()).zip(gate.as_chunks::<GROUP>().0) {
                // SAFETY: tasks have disjoint squares.
                unsafe { out.part(line) }.copy_from_slice(&tile[..cols_of.len()]);
            }
        });
    }

    /// Calls `run` with each square of rows: its block and group, its rows and its columns.
    fn squares(&self, rows: usize, cols: usize, run: impl Fn((usize, usize), Range<usize>, Range<usize>) + Sync) {
        self.pool.run(rows.div_ceil(BLOCK_ROWS), |block| {
            for group in 0..cols.div_ceil(GROUP) {
                let cols = group * GROUP..cols.min((group + 1) * GROUP);
                run((block, group), block * BLOCK_ROWS..rows.min((block + 1) * BLOCK_ROWS), cols);
            }
        });
    }

    /// # Safety
    /// Nobody else uses the squares.
    unsafe fn tile_forward(
        &self,
        [gate, up]: [&Tile; 2],
        (kept, out): (&[Rounding<'_>; 2], &Rounding<'_>),
        (block, group): (usize, usize),
    ) {
        // SAFETY: the caller's promise.
        let squares = unsafe { [kept[0].square(block, group), kept[1].square(block, group), out.square(block, group)] };
        #[cfg(target_arch = "x86_64")]
        if has_rounding(self.isa) {
            // SAFETY: the instruction set, which is available, has AVX512-BF16.
            return unsafe { avx512::forward([gate, up], squares) };
        }
        let mut gated = *gate;
        // SAFETY: the tables are those that this processor can run.
        unsafe { (self.tables.0.swiglu)(&mut gated, up) };
        for (floats, square) in [gate, up, &gated].into_iter().zip(squares) {
            round(self.isa, floats, square);
        }
    }

    /// What was kept becomes its gradients, which are returned as they are.
    fn tile_backward(&self, d_out: &Tile, kept: [&mut Square; 2]) -> [Tile; 2] {
        let [mut gate, mut up] = kept.each_ref().map(|square| self.widen(square));
        // SAFETY: the tables are those that this processor can run.
        unsafe { (self.tables.1.swiglu_backward)(&mut gate, &mut up, d_out) };
        for (square, gradient) in kept.into_iter().zip([&gate, &up]) {
            round(self.isa, gradient, square);
        }
        [gate, up]
    }

    fn widen(&self, square: &Square) -> Tile {
        let mut tile = [0.0; TILE];
        // SAFETY: the tables are those that this processor can run.
        unsafe { (self.tables.0.decode)(DType::Bf16, bytemuck::cast_slice(&square[..]), &mut tile) };
        tile
    }
}

/// Lends the calling thread's buffers: a group of whole blocks each.
fn with_sums(rows: usize, run: impl FnOnce(&mut [&mut [f32]; 2])) {
    SUMS.with_borrow_mut(|sums| {
        let len = rows.div_ceil(BLOCK_ROWS) * TILE;
        run(&mut sums.each_mut().map(|sums| sums.fit(len)));
    });
}

/// The tiles of both buffers, with their blocks.
fn tiles<'a>(sums: &'a [&mut [f32]; 2]) -> impl Iterator<Item = (usize, [&'a Tile; 2])> {
    let [first, second] = sums.each_ref().map(|sums| sums.as_chunks::<TILE>().0);
    first.iter().zip(second).map(|(first, second)| [first, second]).enumerate()
}

/// Where some columns of rows of `cols` lie.
fn lines(rows: Range<usize>, cols: usize, cols_of: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    rows.map(move |row| row * cols + cols_of.start..row * cols + cols_of.end)
}
