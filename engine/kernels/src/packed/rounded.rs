//! Products of rounded activations with packed weights: weights are decoded to bf16 group by group, for all rows at once. Gate and up of
//! a feed-forward block go on to the rounded input of the next product, so that floats of the block's width are never written.
//!
//! An output starts at zero, or at what it held where the product is added, then takes its inputs as `bf16/mod.rs` says, then the
//! bias. The cut into parts depends on the weights alone.

use std::cell::RefCell;
use std::ops::Range;

use super::product::PRODUCTS_MAX;
use super::widen::{BLOCK_PAIRS, widen};
use super::{PackedMatrix, PackedProduct};
use crate::ahead::Ahead;
use crate::bf16::product::{PAIRS, ROWS, multiply_to};
use crate::bf16::round::{Rounding, round};
use crate::bf16::{BLOCK_ROWS, GROUP, LANES, Multiply, Part, Rounded, multiply, num_pairs, with_tiles};
use crate::shared::{Place, SharedMut};
use crate::table::Table;
use crate::{Buffer, Isa, Pool};

/// Multiply-adds that are worth a task.
const MIN_TASK: usize = 1 << 17;
/// Sums of a block of rows and a group of outputs.
const TILE: usize = BLOCK_ROWS * GROUP;

/// What a thread needs to compute a group; grows once.
#[derive(Default)]
struct Room {
    /// The decoded lines of a part.
    lines: Buffer<u32>,
    /// The sums of a group of gate and of one of up.
    sums: [Buffer; 2],
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// A product that tasks share.
struct WidenedProduct<'a> {
    weight: &'a PackedMatrix,
    bias: Option<&'a [f32]>,
    accumulate: bool,
    out: SharedMut<'a>,
    /// Its groups of outputs among those of all products.
    groups: Range<usize>,
}

/// What all tasks need.
struct Run<'a> {
    isa: Isa,
    table: &'static Table,
    multiply: Multiply,
    x: &'a Rounded,
}

/// Computes all products of one call.
///
/// **Panics** if a length does not fit.
pub(crate) fn run_rounded(
    (isa, table, pool): (Isa, &'static Table, &Pool),
    x: &Rounded,
    products: &mut [PackedProduct<'_>],
) {
    assert!(products.len() <= PRODUCTS_MAX, "{} products in one call", products.len());
    if x.rows() == 0 {
        return;
    }
    let mut num_groups = 0;
    let mut products = products.iter_mut();
    let products: [Option<WidenedProduct<'_>>; PRODUCTS_MAX] = std::array::from_fn(|_| {
        let product = products.next()?;
        product.check(x.rows(), x.cols());
        let PackedProduct { weight, bias, accumulate, out } = product;
        let groups = num_groups..num_groups + weight.rows().div_ceil(GROUP);
        num_groups = groups.end;
        Some(WidenedProduct { weight, bias: *bias, accumulate: *accumulate, out: SharedMut::new(out), groups })
    });
    let run = Run { isa, table, multiply: multiply(isa), x };
    run.groups(pool, (num_groups, 1), |group, room| {
        let product = products.iter().flatten().find(|product| product.groups.contains(&group));
        let product = product.expect("invariant: every group is one of a product");
        // SAFETY: `groups` runs this within `with_tiles`, and no group twice.
        unsafe { run.product(product, group - product.groups.start, &mut room.lines) };
    });
}

/// Computes `silu(x gate^T) * (x up^T)`, rounded.
///
/// **Panics** if a length does not fit.
pub(crate) fn run_gated(
    (isa, table, pool): (Isa, &'static Table, &Pool),
    x: &Rounded,
    weights: [&PackedMatrix; 2],
    out: &mut Rounded,
) {
    let (rows, cols) = (x.rows(), weights[0].rows());
    for weight in weights {
        let inputs = if rows == 0 { weight.cols() } else { x.cols() };
        assert_eq!((weight.rows(), weight.cols()), (cols, inputs), "gate and up of {weight:?}");
    }
    let out = Rounding::new(isa, out, rows, cols);
    if rows == 0 {
        return;
    }
    let run = Run { isa, table, multiply: multiply(isa), x };
    run.groups(pool, (cols.div_ceil(GROUP), 2), |group, room| {
        // SAFETY: `groups` runs this within `with_tiles`, and no group twice.
        unsafe { run.gated(weights, group, &out, room) };
    });
}

impl Run<'_> {
    /// Calls `compute` for each group, with room; one takes as long as so many products.
    fn groups(&self, pool: &Pool, (num, products): (usize, usize), compute: impl Fn(usize, &mut Room) + Sync) {
        let task_groups = MIN_TASK.div_ceil((GROUP * products * self.x.cols() * self.x.rows()).max(1));
        pool.run(num.div_ceil(task_groups), |task| {
            ROOM.with_borrow_mut(|room| {
                with_tiles(self.isa, || {
                    (task * task_groups..num.min((task + 1) * task_groups)).for_each(|group| compute(group, room));
                });
            });
        });
    }

    /// Computes a group of a product.
    ///
    /// # Safety
    /// It runs within [`with_tiles`], and nobody else uses the outputs of the group.
    unsafe fn product(&self, product: &WidenedProduct<'_>, group: usize, lines: &mut Buffer<u32>) {
        let (weight, rows) = (product.weight, self.x.rows());
        let (stride, outputs) = (weight.rows(), group * GROUP..weight.rows().min((group + 1) * GROUP));
        let start = product.out.pointer(outputs.start..(rows - 1) * stride + outputs.end);
        let place = Place { start, stride, add: product.accumulate };
        // SAFETY: the caller's promise, and `pointer` asserted that the outputs of all rows lie in those of the product.
        unsafe { self.group((weight, group), lines, (place, outputs.len()), |_| Ahead::none()) };
        let Some(bias) = product.bias else { return };
        for row in 0..rows {
            // SAFETY: the caller's promise.
            let out = unsafe { product.out.part(row * stride + outputs.start..row * stride + outputs.end) };
            // SAFETY: `Kernels` chose the table among those that this processor can run.
            unsafe { (self.table.add)(out, &bias[outputs.clone()]) };
        }
    }

    /// Computes a group of gate and of up in a buffer of the thread, and rounds what becomes of them.
    ///
    /// # Safety
    /// It runs within [`with_tiles`], and nobody else uses the squares of the group.
    unsafe fn gated(&self, weights: [&PackedMatrix; 2], group: usize, out: &Rounding<'_>, room: &mut Room) {
        let Room { lines, sums } = room;
        let [gate, up] = sums.each_mut().map(|sums| sums.fit(self.x.rows() * GROUP));
        let place = |sums: &mut [f32]| (Place { start: sums.as_mut_ptr(), stride: GROUP, add: false }, GROUP);
        // SAFETY: the sums have a group for each row, and are borrowed; the rest is the caller's promise.
        unsafe {
            self.group((weights[0], group), lines, place(gate), |_| Ahead::none());
            self.group((weights[1], group), lines, place(up), |rows| out.ahead(rows, group));
        }
        for (block, (gate, up)) in gate.chunks_mut(TILE).zip(up.chunks(TILE)).enumerate() {
            // SAFETY: `Kernels` chose the table among those that this processor can run.
            unsafe { (self.table.swiglu)(gate, up) };
            // SAFETY: the caller's promise.
            let square = unsafe { out.square(block, group) };
            round(self.isa, gate, &mut square[..gate.len() / 2]);
        }
    }

    /// Computes a group of outputs for all rows; the caches are asked for what `ahead` gives for some rows while those are multiplied.
    ///
    /// # Safety
    /// As [`multiply_to`], for all rows.
    unsafe fn group(
        &self,
        (weight, group): (&PackedMatrix, usize),
        lines: &mut Buffer<u32>,
        (place, width): (Place, usize),
        ahead: impl Fn(Range<usize>) -> Ahead,
    ) {
        let num_pairs = num_pairs(weight.cols());
        // Equal parts.
        let step = num_pairs.div_ceil(num_pairs.div_ceil(PAIRS)).next_multiple_of(BLOCK_PAIRS);
        let lines = lines.fit(2 * PAIRS * LANES);
        for first in (0..num_pairs).step_by(step) {
            let pairs = first..num_pairs.min(first + step);
            let (upper, lower) = lines[..2 * pairs.len() * LANES].split_at_mut(pairs.len() * LANES);
            self.decode(weight, 2 * group, &pairs, upper);
            self.decode(weight, 2 * group + 1, &pairs, lower);
            let place = Place { add: place.add || first > 0, ..place };
            for row in (0..self.x.rows()).step_by(ROWS) {
                let rows = row..self.x.rows().min(row + ROWS);
                let next = if pairs.end == num_pairs { ahead(rows.clone()) } else { Ahead::none() };
                let (x, block_len) = self.x.part(rows.clone(), pairs.clone());
                let part = Part { x, block_len, rows: rows.len(), lines: [upper, lower], pairs: pairs.len(), next };
                // SAFETY: `Kernels` has an instruction set of this processor; the rest is the caller's promise.
                unsafe { multiply_to(self.multiply, &part, place.at_row(row), width) };
            }
        }
    }

    /// Decodes some pairs of a tile; zeros where there is none.
    fn decode(&self, weight: &PackedMatrix, tile: usize, pairs: &Range<usize>, out: &mut [u32]) {
        if tile >= weight.num_tiles() {
            return out.fill(0);
        }
        let blocks = pairs.start / BLOCK_PAIRS..pairs.end / BLOCK_PAIRS;
        widen(self.isa, weight.format, weight.tile(tile), blocks, out);
    }
}

#[cfg(test)]
mod tests;
