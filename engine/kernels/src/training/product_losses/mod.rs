//! Losses of rows whose logits are products in bf16: log-probabilities and their gradients, while logits stay in the caches.
//!
//! The vocabulary is cut into parts, a part into strips, a strip into groups of outputs. Logits of a group become exponentials as soon as
//! they are computed, and those of a strip, rounded, are multiplied with the weights that made them, which are still in the caches.
//! What a part gives is added up in the end, part by part, so that a result does not depend on the number of threads.
//!
//! **Meaning.** With logits `l = x w^T`, a row's log-probability of its target `t` is `l_t - ln(sum_v exp(l_v))`, and the gradient of that by
//! the row is `w_t - sum_v p_v w_v` with the probabilities `p`. Exponentials are relative to a shift, for which the logit of the target
//! serves: the highest logit is known only after all of them. Floats have room for exponentials of far higher logits, and of far lower
//! ones; where a row's highest logit is farther away than [`NEAR`], all is computed again with that as the shift, which changes no bit of the
//! other rows.
//!
//! **Bounds.** Exponentials are rounded to bf16 before they are multiplied, and added up before: of each `p_v` the gradient has a share of
//! up to 2^-9 more or less. A log-probability that is nearly zero is right to about 1e-6, and may be as much above it.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ops::Range;

use super::table::TrainingTable;
use crate::ahead::Ahead;
use crate::bf16::product::{Factors, ROWS, multiply_to};
use crate::bf16::round::round;
use crate::bf16::{BLOCK_ROWS, GROUP, LANES, Part, SQUARE, Square, has_rounding, multiply, turn, with_tiles};
use crate::shared::{Place, SharedMut};
use crate::table::Table;
use crate::{Bf16Matrix, Buffer, Direction, Isa, Pool, Rounded};

/// Groups of a strip: exponentials of 256 rows take a quarter of a MiB.
const STRIP_GROUPS: usize = 16;
/// Most parts of a vocabulary: so many that two threads of unequal speed end at about the same time (the 96 strips of 49 152 tokens are
/// four a part), so few that adding them up takes little. More threads than parts gain nothing. Each part takes `rows * inputs` floats: all
/// of them 14 MB for 256 rows of 576.
const PARTS: usize = 24;
/// Farthest from the shift that the highest logit of a row may be: exponentials of it and their sums are normal numbers.
const NEAR: f32 = 50.0;

/// Logits of sixteen rows and a group of outputs.
const TILE: usize = BLOCK_ROWS * GROUP;

type Tile = [f32; TILE];

/// Rows, the weights that make logits of them, and the tokens that were to come.
pub struct ProductLosses<'a> {
    /// Rounded rows `(targets.len(), inputs)`.
    pub x: &'a Rounded,
    /// Weights `(vocab, inputs)`.
    pub w: &'a Bf16Matrix,
    /// The token that came after each row.
    pub targets: &'a [u32],
    /// Log-probability of each target.
    pub logprobs: &'a mut [f32],
    /// Where wanted, the gradient of each row's log-probability by the row `(targets.len(), inputs)`.
    pub gradient: Option<&'a mut [f32]>,
}

/// What computes them.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) isa: Isa,
    pub(super) tables: (&'static Table, &'static TrainingTable),
    pub(super) pool: &'a Pool,
}

/// What a row has come to in a part.
#[derive(Clone, Copy)]
struct Row {
    /// Of exponentials.
    sum: f64,
    highest: f32,
    /// That of the target, if the part has it.
    logit: Option<f32>,
}

impl Row {
    const NONE: Row = Row { sum: 0.0, highest: f32::NEG_INFINITY, logit: None };

    fn add(&mut self, other: &Row) {
        self.sum += other.sum;
        self.highest = self.highest.max(other.highest);
        self.logit = self.logit.or(other.logit);
    }
}

/// What a row has come to in a strip, in the lanes of a vector.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Lanes {
    sums: [f32; LANES],
    highest: [f32; LANES],
}

impl Lanes {
    const NONE: Lanes = Lanes { sums: [0.0; LANES], highest: [f32::NEG_INFINITY; LANES] };
}

/// Buffers of a thread.
#[derive(Default)]
struct Work {
    /// Logits of a group `(rows, GROUP)`, whole blocks.
    logits: Buffer,
    /// Exponentials of a strip: the squares of a block, one after the other, then those of the next.
    exponentials: Buffer<u32>,
    /// Weights of a strip, turned round for a group of inputs.
    turned: Buffer<u32>,
    lanes: Vec<Lanes>,
    /// A row, and the weights of its target.
    rows: [Buffer; 2],
}

thread_local! {
    /// Of all parts, of the call that a thread has made.
    static SUMS: RefCell<Buffer> = RefCell::default();
    static WORK: RefCell<Work> = RefCell::default();
}

impl ProductLosses<'_> {
    /// **Panics** if a shape does not fit, there are no inputs, or a target is outside the vocabulary.
    pub(super) fn run(self, run: Run<'_>) {
        let ProductLosses { x, w, targets, logprobs, gradient } = self;
        let rows = targets.len();
        assert!(x.rows() == rows && logprobs.len() == rows, "rows that predict");
        assert!(rows == 0 || x.cols() == w.cols() && w.cols() > 0, "rows of {} for {w:?}", x.cols());
        assert!(targets.iter().all(|&target| (target as usize) < w.rows()), "a target outside the vocabulary");
        assert!(gradient.as_ref().is_none_or(|gradient| gradient.len() == rows * w.cols()), "gradients of rows");
        if rows == 0 {
            return;
        }
        let factors = Factors { isa: run.isa, x, w, direction: Direction::Forward };
        let shape = Shape::of(w);
        let mut shifts = vec![0.0; rows.next_multiple_of(BLOCK_ROWS)];
        run.logits_of_targets(x, w, targets, &mut shifts[..rows]);
        SUMS.with_borrow_mut(|sums| {
            let sums = sums.fit(if gradient.is_some() { shape.num_parts * rows * w.cols() } else { 0 });
            let mut totals = run.parts(&factors, &shape, (targets, &shifts), sums);
            let mut is_any_far = false;
            for (shift, row) in shifts.iter_mut().zip(&totals) {
                if (row.highest - *shift).abs() > NEAR || shift.is_nan() {
                    (*shift, is_any_far) = (row.highest, true);
                }
            }
            if is_any_far {
                totals = run.parts(&factors, &shape, (targets, &shifts), sums);
            }
            for ((logprob, row), shift) in logprobs.iter_mut().zip(&totals).zip(&shifts) {
                let logit = row.logit.expect("invariant: some part has the target");
                *logprob = (f64::from(logit) - f64::from(*shift) - row.sum.ln()) as f32;
            }
            if let Some(gradient) = gradient {
                run.gradients(w, targets, (sums, &totals), gradient);
            }
        });
    }
}

/// How a vocabulary is cut.
struct Shape {
    num_groups: usize,
    part_groups: usize,
    num_parts: usize,
}

impl Shape {
    fn of(w: &Bf16Matrix) -> Shape {
        let num_groups = w.rows().div_ceil(GROUP);
        let num_strips = num_groups.div_ceil(STRIP_GROUPS);
        let part_groups = num_strips.div_ceil(PARTS) * STRIP_GROUPS;
        Shape { num_groups, part_groups, num_parts: num_groups.div_ceil(part_groups) }
    }
}

impl Run<'_> {
    /// The logit of each row's target, nearly.
    fn logits_of_targets(&self, x: &Rounded, w: &Bf16Matrix, targets: &[u32], out: &mut [f32]) {
        let out = SharedMut::new(out);
        self.pool.run(targets.len(), |row| {
            WORK.with_borrow_mut(|work| {
                let [x_row, target] = work.rows.each_mut().map(|row| row.fit(w.cols()));
                x.widen_row(row, x_row);
                w.dequantize_row(targets[row] as usize, target);
                // SAFETY: tasks have disjoint rows; the table is one that this processor can run.
                unsafe { out.part(row..row + 1)[0] = (self.tables.1.dot)(x_row, target) };
            });
        });
    }

    /// Goes through all parts; `sums` `(parts, rows, inputs)` are of exponentials times weights, where wanted.
    fn parts(&self, factors: &Factors<'_>, shape: &Shape, rows: (&[u32], &[f32]), sums: &mut [f32]) -> Vec<Row> {
        let num_rows = factors.x.rows();
        let mut states = vec![Row::NONE; shape.num_parts * num_rows];
        let sums_len = sums.len() / shape.num_parts;
        let (shared, sums) = (SharedMut::new(&mut states), SharedMut::new(sums));
        self.pool.run(shape.num_parts, |part| {
            let groups = part * shape.part_groups..shape.num_groups.min((part + 1) * shape.part_groups);
            // SAFETY: tasks have disjoint parts.
            let (states, sums) = unsafe {
                (shared.part(part * num_rows..(part + 1) * num_rows), sums.part(part * sums_len..(part + 1) * sums_len))
            };
            WORK.with_borrow_mut(|work| {
                with_tiles(self.isa, || {
                    for first in groups.clone().step_by(STRIP_GROUPS) {
                        let strip = first..groups.end.min(first + STRIP_GROUPS);
                        // SAFETY: this is within `with_tiles`.
                        unsafe { self.exponentials(factors, strip.clone(), rows, (states, work)) };
                        if !sums.is_empty() {
                            // SAFETY: as above.
                            unsafe { self.add_weights(factors, &strip, (first > groups.start, work), sums) };
                        }
                    }
                });
            });
        });
        let mut totals = vec![Row::NONE; num_rows];
        for states in states.chunks_exact(num_rows) {
            totals.iter_mut().zip(states).for_each(|(total, row)| total.add(row));
        }
        totals
    }

    /// Exponentials of a strip.
    ///
    /// # Safety
    /// It runs within [`with_tiles`].
    unsafe fn exponentials(
        &self,
        factors: &Factors<'_>,
        strip: Range<usize>,
        (targets, shifts): (&[u32], &[f32]),
        (states, work): (&mut [Row], &mut Work),
    ) {
        let (rows, num_blocks) = (targets.len(), targets.len().div_ceil(BLOCK_ROWS));
        let logits = work.logits.fit(num_blocks * TILE);
        let block_len = strip.len() * SQUARE;
        let exponentials = work.exponentials.fit(num_blocks * block_len);
        work.lanes.clear();
        work.lanes.resize(num_blocks * BLOCK_ROWS, Lanes::NONE);
        for (index, group) in strip.clone().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { factors.group(group, factors.ahead(group + 1), &mut logits[..rows * GROUP]) };
            let outputs = group * GROUP..factors.outputs().min((group + 1) * GROUP);
            for ((row, state), target) in logits.chunks_exact_mut(GROUP).zip(&mut *states).zip(targets) {
                if outputs.len() < GROUP {
                    row[outputs.len()..].fill(f32::NEG_INFINITY);
                }
                if outputs.contains(&(*target as usize)) {
                    state.logit = Some(row[*target as usize - outputs.start]);
                }
            }
            let tiles = logits.as_chunks_mut::<TILE>().0.iter_mut().zip(shifts.as_chunks::<BLOCK_ROWS>().0);
            let lanes = work.lanes.as_chunks_mut::<BLOCK_ROWS>().0;
            for (((tile, shifts), lanes), block) in tiles.zip(lanes).zip(exponentials.chunks_exact_mut(block_len)) {
                self.tile((tile, shifts), lanes, &mut block.as_chunks_mut::<SQUARE>().0[index]);
            }
        }
        for (state, lanes) in states.iter_mut().zip(&work.lanes) {
            state.sum += lanes.sums.iter().map(|&sum| f64::from(sum)).sum::<f64>();
            state.highest = lanes.highest.iter().fold(state.highest, |highest, &lane| highest.max(lane));
        }
    }

    /// Logits of sixteen rows become exponentials, rounded.
    fn tile(&self, (tile, shifts): (&mut Tile, &[f32; BLOCK_ROWS]), lanes: &mut [Lanes; BLOCK_ROWS], out: &mut Square) {
        #[cfg(target_arch = "x86_64")]
        if has_rounding(self.isa) {
            // SAFETY: the instruction set, which is available, has AVX512-BF16.
            return unsafe { avx512::exponentials((tile, shifts), lanes, out) };
        }
        for (((row, shift), lanes), line) in tile
            .as_chunks_mut::<GROUP>()
            .0
            .iter_mut()
            .zip(shifts)
            .zip(lanes)
            .zip(out.as_chunks_mut::<{ GROUP / 2 }>().0)
        {
            // SAFETY: the tables are those that this processor can run.
            unsafe {
                lanes.highest[0] = lanes.highest[0].max((self.tables.1.max)(row));
                lanes.sums[0] += (self.tables.1.exp_sum)(row, 1.0, *shift);
            }
            round(self.isa, row, line);
        }
    }

    /// Adds exponentials of a strip times its weights, or starts with them.
    ///
    /// # Safety
    /// As [`Run::exponentials`], which ran before.
    unsafe fn add_weights(
        &self,
        factors: &Factors<'_>,
        strip: &Range<usize>,
        (add, work): (bool, &mut Work),
        sums: &mut [f32],
    ) {
        let (rows, inputs) = (factors.x.rows(), factors.w.cols());
        assert_eq!(sums.len(), rows * inputs, "sums of {rows} rows");
        let (pairs, block_len) = (strip.start * GROUP / 2..strip.end * GROUP / 2, strip.len() * SQUARE);
        let turned = work.turned.fit(2 * pairs.len() * LANES);
        let (upper, lower) = turned.split_at_mut(pairs.len() * LANES);
        for group in 0..inputs.div_ceil(GROUP) {
            turn(self.isa, factors.w, group, pairs.clone(), &mut [&mut *upper, &mut *lower]);
            let columns = group * GROUP..inputs.min((group + 1) * GROUP);
            let place = Place { start: sums[columns.start..].as_mut_ptr(), stride: inputs, add };
            for first in (0..rows).step_by(ROWS) {
                let x = &work.exponentials[first / BLOCK_ROWS * block_len..];
                let (rows, lines) = (ROWS.min(rows - first), [&*upper, &*lower]);
                let part = Part { x, block_len, rows, lines, pairs: pairs.len(), next: Ahead::none() };
                // SAFETY: the sums have `inputs` floats for each row, and are borrowed; the rest is the caller's promise.
                unsafe { multiply_to(multiply(self.isa), &part, place.at_row(first), columns.len()) };
            }
        }
    }

    /// `w_t` less the sums of all parts over the row's total.
    fn gradients(&self, w: &Bf16Matrix, targets: &[u32], (sums, totals): (&[f32], &[Row]), out: &mut [f32]) {
        let (rows, inputs) = (targets.len(), w.cols());
        let out = SharedMut::new(out);
        self.pool.run(rows, |row| {
            // SAFETY: tasks have disjoint rows.
            let out = unsafe { out.part(row * inputs..(row + 1) * inputs) };
            out.fill(0.0);
            WORK.with_borrow_mut(|work| {
                let target = work.rows[0].fit(inputs);
                w.dequantize_row(targets[row] as usize, target);
                // SAFETY: the tables are those that this processor can run.
                unsafe {
                    for sums in sums.chunks_exact(rows * inputs) {
                        (self.tables.0.add)(out, &sums[row * inputs..(row + 1) * inputs]);
                    }
                    (self.tables.1.scale)(out, (-1.0 / totals[row].sum) as f32);
                    (self.tables.0.add)(out, target);
                }
            });
        });
    }
}
