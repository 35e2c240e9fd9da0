//! Products of quantized activations with packed weights, several matrices in one parallel region.

use std::ops::Range;

use super::{GROUP_MAX, PackedMatrix, Sums, TILE};
use crate::Pool;
use crate::quantized::{Group, Quantized};
use crate::shared::{Place, SharedMut};
use crate::table::Table;

/// Most matrices of one call: query, key and value, or gate and up.
pub(super) const PRODUCTS_MAX: usize = 4;
/// Multiply-adds that are worth a task: some microseconds at the speed of one row, against a fraction to hand it out.
const MIN_TASK: usize = 1 << 16;
/// Most bytes of weights in a task: with the activations of a group they stay in a second-level cache of 1 MiB while
/// the groups pass over them.
const TASK_BYTES: usize = 256 << 10;
/// Tasks per thread where there is enough work, for balance.
const TASKS_PER_THREAD: usize = 6;

/// One of the products of [`Kernels::matmul_packed`](crate::Kernels::matmul_packed): `out = x weight^T + bias`.
pub struct PackedProduct<'a> {
    /// Weights `(rows, cols)`.
    pub weight: &'a PackedMatrix,
    /// Added to every row of the output `(rows)`.
    pub bias: Option<&'a [f32]>,
    /// Whether the result is added to what `out` holds, a residual, instead of replacing it.
    pub accumulate: bool,
    /// Outputs `(n, rows)`.
    pub out: &'a mut [f32],
}

impl<'a> PackedProduct<'a> {
    /// `out = x weight^T`.
    pub fn new(weight: &'a PackedMatrix, out: &'a mut [f32]) -> PackedProduct<'a> {
        PackedProduct { weight, bias: None, accumulate: false, out }
    }

    /// Asserts that bias and outputs are as long as activations `(rows, cols)` and the weights say.
    pub(super) fn check(&self, rows: usize, cols: usize) {
        let PackedProduct { weight, bias, out, .. } = self;
        assert_eq!(weight.cols(), cols, "activations for {weight:?}");
        assert_eq!(Some(out.len()), rows.checked_mul(weight.rows()), "outputs of {rows} rows for {weight:?}");
        assert!(bias.is_none_or(|bias| bias.len() == weight.rows()), "bias of {weight:?}");
    }
}

/// A product that tasks share.
struct Part<'a> {
    weight: &'a PackedMatrix,
    bias: Option<&'a [f32]>,
    accumulate: bool,
    out: SharedMut<'a>,
    /// Its tiles among those of all products.
    tiles: Range<usize>,
}

/// Computes all products of one call.
///
/// **Panics** if a length does not fit.
pub(crate) fn run(table: &'static Table, pool: &Pool, x: &Quantized, products: &mut [PackedProduct<'_>]) {
    assert!(products.len() <= PRODUCTS_MAX, "{} products in one call", products.len());
    if x.rows() == 0 {
        return;
    }
    let (mut num_tiles, mut num_bytes) = (0, 0);
    let mut products = products.iter_mut();
    let parts: [Option<Part<'_>>; PRODUCTS_MAX] = std::array::from_fn(|_| {
        let product = products.next()?;
        product.check(x.rows(), x.cols());
        let PackedProduct { weight, bias, accumulate, out } = product;
        let tiles = num_tiles..num_tiles + weight.num_tiles();
        (num_tiles, num_bytes) = (tiles.end, num_bytes + weight.num_bytes());
        Some(Part { weight, bias: *bias, accumulate: *accumulate, out: SharedMut::new(out), tiles })
    });
    let enough = MIN_TASK.div_ceil((TILE * x.cols() * x.rows()).max(1));
    let fitting = (TASK_BYTES * num_tiles / num_bytes.max(1)).max(1);
    let balanced = num_tiles.div_ceil(pool.num_threads() * TASKS_PER_THREAD);
    let task_tiles = balanced.min(fitting).max(enough);
    pool.run(num_tiles.div_ceil(task_tiles.max(1)), |task| {
        let tiles = task * task_tiles..num_tiles.min((task + 1) * task_tiles);
        // Every tile overwrites the sums of its rows.
        let mut sums: Sums = [[0.0; TILE]; GROUP_MAX];
        for part in parts.iter().flatten() {
            let tiles = tiles.start.max(part.tiles.start)..tiles.end.min(part.tiles.end);
            for index in 0..x.num_groups() {
                let group = (&x.group(index), x.group_rows(index));
                for tile in tiles.clone() {
                    part.tile(table, &group, tile - part.tiles.start, &mut sums);
                }
            }
        }
    });
}

impl Part<'_> {
    /// Computes the outputs of a tile for a group of activation rows.
    fn tile(&self, table: &'static Table, (group, rows): &(&Group<'_>, Range<usize>), tile: usize, sums: &mut Sums) {
        let job = self.weight.tile_job(tile, group, rows.start == 0);
        // SAFETY: `Kernels` chose the table among those that this processor can run.
        unsafe { (table.packed_tile)(&job, sums) };
        let stride = self.weight.rows();
        let outputs = tile * TILE..stride.min((tile + 1) * TILE);
        let sums = &mut sums[..rows.len()];
        if let Some(bias) = self.bias {
            sums.iter_mut()
                .for_each(|sums| sums.iter_mut().zip(&bias[outputs.clone()]).for_each(|(sum, bias)| *sum += bias));
        }
        let start = self.out.pointer(rows.start * stride + outputs.start..(rows.end - 1) * stride + outputs.end);
        let place = Place { start, stride, add: self.accumulate };
        // SAFETY: outputs are addressed by weight row, and every tile is in one task; `pointer` asserted that they lie in the output.
        unsafe {
            match outputs.len() {
                TILE => (table.packed_put)(sums, place),
                width => put(sums, place, width),
            }
        }
    }
}

/// Puts the first `width` sums of each row into their place, or adds them.
///
/// # Safety
/// The place has that many floats in as many rows, and nobody else uses them.
#[inline(always)]
pub(super) unsafe fn put(sums: &[[f32; TILE]], place: Place, width: usize) {
    for (row, sums) in sums.iter().enumerate() {
        // SAFETY: the caller's promise.
        let out = unsafe { std::slice::from_raw_parts_mut(place.start.add(row * place.stride), width) };
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = if place.add { *out + sum } else { *sum };
        }
    }
}
