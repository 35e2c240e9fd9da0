//! Products of rounded activations with packed weights: weights are decoded to bf16 group by group, for all rows at once.
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
use crate::bf16::{GROUP, LANES, Multiply, Part, Rounded, multiply, num_pairs, with_tiles};
use crate::shared::{Place, SharedMut};
use crate::table::Table;
use crate::{Buffer, Isa, Pool};

/// Multiply-adds that are worth a task.
const MIN_TASK: usize = 1 << 17;

thread_local! {
    /// The decoded lines of a part; grows once.
    static LINES: RefCell<Buffer<u32>> = RefCell::default();
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
    let task_groups = MIN_TASK.div_ceil((GROUP * x.cols() * x.rows()).max(1));
    pool.run(num_groups.div_ceil(task_groups), |task| {
        LINES.with_borrow_mut(|lines| {
            with_tiles(isa, || {
                for group in task * task_groups..num_groups.min((task + 1) * task_groups) {
                    let product = products.iter().flatten().find(|product| product.groups.contains(&group));
                    let product = product.expect("invariant: every group is one of a product");
                    run.group(product, group - product.groups.start, lines);
                }
            });
        });
    });
}

impl Run<'_> {
    /// Computes a group of outputs for all rows.
    fn group(&self, product: &WidenedProduct<'_>, group: usize, lines: &mut Buffer<u32>) {
        let (weight, num_rows) = (product.weight, self.x.rows());
        let outputs = group * GROUP..weight.rows().min((group + 1) * GROUP);
        let num_pairs = num_pairs(weight.cols());
        // Equal parts.
        let step = num_pairs.div_ceil(num_pairs.div_ceil(PAIRS)).next_multiple_of(BLOCK_PAIRS);
        let lines = lines.fit(2 * PAIRS * LANES);
        for first in (0..num_pairs).step_by(step) {
            let pairs = first..num_pairs.min(first + step);
            let (upper, lower) = lines[..2 * pairs.len() * LANES].split_at_mut(pairs.len() * LANES);
            self.decode(weight, 2 * group, &pairs, upper);
            self.decode(weight, 2 * group + 1, &pairs, lower);
            let add = product.accumulate || first > 0;
            for row in (0..num_rows).step_by(ROWS) {
                let rows = row..num_rows.min(row + ROWS);
                let (x, block_len) = self.x.part(rows.clone(), pairs.clone());
                let lines = [&*upper, &*lower];
                let part = Part { x, block_len, rows: rows.len(), lines, pairs: pairs.len(), next: Ahead::none() };
                let stride = weight.rows();
                let (first, last) = (rows.start * stride, (rows.end - 1) * stride);
                let start = product.out.pointer(first + outputs.start..last + outputs.end);
                // SAFETY: `Kernels` has an instruction set of this processor; tasks have disjoint groups, and `pointer` asserted that
                // they lie in the output.
                unsafe { multiply_to(self.multiply, &part, Place { start, stride, add }, outputs.len()) };
            }
        }
        let Some(bias) = product.bias else { return };
        for row in 0..num_rows {
            // SAFETY: every group of outputs is in one task.
            let out =
                unsafe { product.out.part(row * weight.rows() + outputs.start..row * weight.rows() + outputs.end) };
            // SAFETY: `Kernels` chose the table among those that this processor can run.
            unsafe { (self.table.add)(out, &bias[outputs.clone()]) };
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
