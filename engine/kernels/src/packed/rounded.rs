//! Products of rounded activations with packed weights: weights are decoded to bf16 group by group, once for all rows. Gate and up of
//! a feed-forward block go on to the rounded input of the next product, so that floats of the block's width are never written.
//!
//! An output starts at zero, or at what it held where the product is added, then takes its inputs as `bf16/mod.rs` says, then the
//! bias. The cut into parts depends on the weights alone.

use std::cell::RefCell;
use std::ops::Range;

use arrayvec::ArrayVec;

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
/// Tasks per thread where groups are computed together.
const TASKS_PER_THREAD: usize = 3;
/// Most groups of weights that are decoded before they are multiplied: their lines take 384 KiB of a second-level cache.
const TOGETHER: usize = 4;
/// Pairs of activations, 1 MiB, that stay in a second-level cache from one group of weights to the next.
const X_PAIRS: usize = 1 << 18;
/// Sums of a block of rows and a group of outputs.
const TILE: usize = BLOCK_ROWS * GROUP;

/// What a thread needs to compute groups; grows once.
#[derive(Default)]
struct Room {
    /// The decoded lines of a part of each group.
    lines: Buffer<u32>,
    /// The sums of groups of gate and of up, in turn.
    sums: Buffer,
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

/// A group of outputs that is computed for all rows.
struct Target<'a> {
    weight: &'a PackedMatrix,
    /// Which of the groups of the weights.
    group: usize,
    place: Place,
    /// Outputs: a group, or fewer in the last one.
    width: usize,
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
    run.groups(pool, (num_groups, 1), |groups, room| {
        // SAFETY: `groups` runs this within `with_tiles`, and no group twice.
        unsafe { run.products(&products, groups, &mut room.lines) };
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
    run.groups(pool, (cols.div_ceil(GROUP), 2), |groups, room| {
        // SAFETY: `groups` runs this within `with_tiles`, and no group twice.
        unsafe { run.gated(weights, groups, &out, room) };
    });
}

impl Run<'_> {
    /// Calls `compute` for runs of groups, with room; one takes as long as so many products.
    ///
    /// Activations that fit into a second-level cache are there for each group. More of them are read once for some groups, so that
    /// their weights are decoded together.
    fn groups(&self, pool: &Pool, (num, products): (usize, usize), compute: impl Fn(Range<usize>, &mut Room) + Sync) {
        let x_pairs = self.x.rows() * num_pairs(self.x.cols());
        let together = match x_pairs <= X_PAIRS {
            true => 1,
            false => (num / (TASKS_PER_THREAD * pool.num_threads())).clamp(1, TOGETHER / products),
        };
        let task_groups = MIN_TASK.div_ceil((GROUP * products * self.x.cols() * self.x.rows()).max(1)).max(together);
        pool.run(num.div_ceil(task_groups), |task| {
            ROOM.with_borrow_mut(|room| {
                let end = num.min((task + 1) * task_groups);
                with_tiles(self.isa, || {
                    for first in (task * task_groups..end).step_by(together) {
                        compute(first..end.min(first + together), room);
                    }
                });
            });
        });
    }

    /// Computes groups of products.
    ///
    /// # Safety
    /// It runs within [`with_tiles`], and nobody else uses the outputs of the groups.
    unsafe fn products(&self, products: &[Option<WidenedProduct<'_>>], groups: Range<usize>, lines: &mut Buffer<u32>) {
        let rows = self.x.rows();
        let outputs = |group: usize| {
            let product = products.iter().flatten().find(|product| product.groups.contains(&group));
            let product = product.expect("invariant: every group is one of a product");
            let first = (group - product.groups.start) * GROUP;
            (product, first..product.weight.rows().min(first + GROUP))
        };
        let targets: ArrayVec<Target<'_>, TOGETHER> = groups
            .clone()
            .map(|group| {
                let (product, outputs) = outputs(group);
                let stride = product.weight.rows();
                let start = product.out.pointer(outputs.start..(rows - 1) * stride + outputs.end);
                let place = Place { start, stride, add: product.accumulate };
                Target { weight: product.weight, group: outputs.start / GROUP, place, width: outputs.len() }
            })
            .collect();
        let done = |target: usize, rows: Range<usize>| {
            let (product, outputs) = outputs(groups.start + target);
            let Some(bias) = product.bias else { return };
            for start in rows.map(|row| row * product.weight.rows()) {
                // SAFETY: the caller's promise.
                let out = unsafe { product.out.part(start + outputs.start..start + outputs.end) };
                // SAFETY: `Kernels` chose the table among those that this processor can run.
                unsafe { (self.table.add)(out, &bias[outputs.clone()]) };
            }
        };
        // SAFETY: the caller's promise, and `pointer` asserted that the outputs of all rows lie in those of the product.
        unsafe { self.compute(&targets, lines, |_, _| Ahead::none(), done) };
    }

    /// Computes groups of gate and of up in a buffer of the thread, and rounds what becomes of them.
    ///
    /// # Safety
    /// It runs within [`with_tiles`], and nobody else uses the squares of the groups.
    unsafe fn gated(&self, weights: [&PackedMatrix; 2], groups: Range<usize>, out: &Rounding<'_>, room: &mut Room) {
        let num_sums = self.x.rows() * GROUP;
        let start = room.sums.fit(2 * groups.len() * num_sums).as_mut_ptr();
        let sums = |target: usize| start.wrapping_add(target * num_sums);
        let targets: ArrayVec<Target<'_>, TOGETHER> = (0..2 * groups.len())
            .map(|target| {
                let place = Place { start: sums(target), stride: GROUP, add: false };
                Target { weight: weights[target % 2], group: groups.start + target / 2, place, width: GROUP }
            })
            .collect();
        let ahead = |target: usize, rows: Range<usize>| match target % 2 {
            0 => Ahead::none(),
            _ => out.ahead(rows, groups.start + target / 2),
        };
        let done = |target: usize, rows: Range<usize>| {
            if target.is_multiple_of(2) {
                return;
            }
            let [gate, up] = [target - 1, target].map(|target| {
                // SAFETY: the buffer has sums for each row and target, and those of this target's rows are in use here alone.
                unsafe { std::slice::from_raw_parts_mut(sums(target).add(rows.start * GROUP), rows.len() * GROUP) }
            });
            let first = rows.start / BLOCK_ROWS;
            for (block, (gate, up)) in gate.chunks_mut(TILE).zip(up.chunks(TILE)).enumerate() {
                // SAFETY: `Kernels` chose the table among those that this processor can run.
                unsafe { (self.table.swiglu)(gate, up) };
                // SAFETY: the caller's promise.
                let square = unsafe { out.square(first + block, groups.start + target / 2) };
                round(self.isa, gate, &mut square[..gate.len() / 2]);
            }
        };
        // SAFETY: the sums have a group for each row and target; the rest is the caller's promise.
        unsafe { self.compute(&targets, &mut room.lines, ahead, done) };
    }

    /// Computes groups for all rows, up to [`ROWS`] at a time. With the last part of some rows the caches are asked for what `ahead` gives
    /// for a target and them, and `done` is called after it.
    ///
    /// # Safety
    /// As [`multiply_to`], for all targets and rows.
    unsafe fn compute(
        &self,
        targets: &[Target<'_>],
        lines: &mut Buffer<u32>,
        ahead: impl Fn(usize, Range<usize>) -> Ahead,
        done: impl Fn(usize, Range<usize>),
    ) {
        let num_pairs = num_pairs(self.x.cols());
        // Equal parts.
        let step = num_pairs.div_ceil(num_pairs.div_ceil(PAIRS)).next_multiple_of(BLOCK_PAIRS);
        let lines = lines.fit(TOGETHER * 2 * PAIRS * LANES);
        for first in (0..num_pairs).step_by(step) {
            let pairs = first..num_pairs.min(first + step);
            let is_last = pairs.end == num_pairs;
            let half = pairs.len() * LANES;
            for (target, lines) in targets.iter().zip(lines.chunks_exact_mut(2 * half)) {
                let (upper, lower) = lines.split_at_mut(half);
                self.decode(target.weight, 2 * target.group, &pairs, upper);
                self.decode(target.weight, 2 * target.group + 1, &pairs, lower);
            }
            for row in (0..self.x.rows()).step_by(ROWS) {
                let rows = row..self.x.rows().min(row + ROWS);
                let (x, block_len) = self.x.part(rows.clone(), pairs.clone());
                for (index, (target, lines)) in targets.iter().zip(lines.chunks_exact(2 * half)).enumerate() {
                    let next = if is_last { ahead(index, rows.clone()) } else { Ahead::none() };
                    let lines = lines.split_at(half).into();
                    let part = Part { x, block_len, rows: rows.len(), lines, pairs: pairs.len(), next };
                    let place = Place { add: target.place.add || first > 0, ..target.place };
                    // SAFETY: `Kernels` has an instruction set of this processor; the rest is the caller's promise.
                    unsafe { multiply_to(self.multiply, &part, place.at_row(row), target.width) };
                    if is_last {
                        done(index, rows.clone());
                    }
                }
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
