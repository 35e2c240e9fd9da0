//! Factors of low rank beside a frozen matrix where products are in bf16: `out += scale * B A dropout(x)`, and its way back.
//!
//! A task takes some rows the whole way: dropout, rounding, all products. Gradients of the factors are added up over these rows first,
//! then over the tasks in order, so that they do not depend on the number of threads.

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ops::Range;

use super::dropout::{LANES, Mask, Masked};
use super::squares::{LeftSquares, Pairs, Squares, Target};
use super::table::TrainingTable;
use super::view::View;
use crate::bf16::{GROUP, num_pairs, with_tiles};
use crate::shared::SharedMut;
use crate::table::Table;
use crate::{Buffer, Isa, Pool};

/// Most rows of a task: the depth of four steps of a product along the rows. Each task leaves gradients that are added up: with half
/// as many rows to a task a backward pass of 150 took a quarter more time (2 threads, AMX). Batches of up to 256 rows keep two threads busy.
const ROWS_MAX: usize = 128;
/// Most floats that tasks leave before they are added up (8 MiB), unless one task leaves more.
const PARTS_MAX: usize = 1 << 21;
/// Elements of the gradient of `A` that are worth a task.
const TASK_ELEMENTS: usize = 1 << 12;
/// Outputs whose gradients of `B` are worth a task.
const TASK_OUTPUTS: usize = 256;

/// `A`, `B`, and what the first sees of its input.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// `(rank, inputs)`.
    pub a: &'a [f32],
    /// `(outputs, rank)`.
    pub b: &'a [f32],
    /// Rows of `a`.
    pub rank: usize,
    /// What the product of both is multiplied with.
    pub scale: f32,
    /// What is dropped of the input.
    pub mask: Option<Mask>,
}

/// What goes back through the factors.
#[derive(Clone, Copy, Debug)]
pub struct LowRankInputs<'a> {
    /// The input `(rows, inputs)`.
    pub x: &'a [f32],
    /// `scale * A dropout(x)`, which the forward pass has left `(rows, rank)`.
    pub low: &'a [f32],
    /// The gradient of the output `(rows, outputs)`.
    pub d_out: &'a [f32],
}

/// Where gradients of factors are added, in their shapes.
pub struct LowRankGradients<'a> {
    /// Of `A`.
    pub a: &'a mut [f32],
    /// Of `B`.
    pub b: &'a mut [f32],
}

thread_local! {
    /// The factors of the call that a thread has made.
    static FACTORS: RefCell<[Squares; 2]> = RefCell::default();
    /// Gradients that the tasks of a call leave.
    static PARTS: RefCell<Buffer> = RefCell::default();
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What a task works with.
#[derive(Default)]
struct Scratch {
    /// Inputs with their dropout, or gradients without it.
    dropped: Buffer,
    low: Buffer,
    /// Rows of whole groups.
    sums: Buffer,
    left: Squares,
    right: Squares,
}

/// What runs the tasks.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) isa: Isa,
    pub(super) tables: (&'static Table, &'static TrainingTable),
    pub(super) pool: &'a Pool,
}

impl LowRank<'_> {
    fn inputs(&self) -> usize {
        self.a.len() / self.rank.max(1)
    }

    fn outputs(&self) -> usize {
        self.b.len() / self.rank.max(1)
    }

    /// Rows of `x`.
    ///
    /// **Panics** if a length does not fit.
    fn check(&self, x: &[f32], low: &[f32], out: &[f32]) -> usize {
        let (inputs, outputs) = (self.inputs(), self.outputs());
        assert!(
            self.a.len() == self.rank * inputs && self.b.len() == self.rank * outputs,
            "factors of rank {}",
            self.rank
        );
        let rows = x.len() / inputs.max(1);
        assert_eq!((x.len(), low.len(), out.len()), (rows * inputs, rows * self.rank, rows * outputs), "{rows} rows");
        rows
    }

    /// Adds to `out`, and leaves `scale * A dropout(x)`.
    pub(super) fn forward(&self, run: Run<'_>, x: &[f32], low: &mut [f32], out: &mut [f32]) {
        let rows = self.check(x, low, out);
        let (rank, inputs, outputs) = (self.rank, self.inputs(), self.outputs());
        let (low, out) = (SharedMut::new(low), SharedMut::new(out));
        self.with_factors(run.isa, Pairs::Columns, |[a, b]| {
            run.tasks(rows, 0..num_tasks(rows), |_, rows, scratch| {
                let Scratch { dropped, low: _, sums, left, .. } = scratch;
                // SAFETY: tasks have disjoint rows.
                let (low, out) = unsafe { (low.part(of(&rows, rank)), out.part(of(&rows, outputs))) };
                let x = self.drop(run, &rows, &x[of(&rows, inputs)], dropped);
                left.fill(run.isa, &View::new(x, rows.len(), inputs), Pairs::Columns, false);
                self.narrow(run.isa, LeftSquares::of(left, rows.len()), (a, inputs), (sums, low));
                left.fill(run.isa, &View::new(low, rows.len(), rank), Pairs::Columns, false);
                multiply(run.isa, LeftSquares::of(left, rows.len()), (b, rank), (out, outputs, true));
            });
        });
    }

    /// Adds the gradients of the factors, and where it is wanted that of the input.
    pub(super) fn backward(
        &self,
        run: Run<'_>,
        inputs_of: &LowRankInputs<'_>,
        d_x: Option<&mut [f32]>,
        gradients: LowRankGradients<'_>,
    ) {
        let &LowRankInputs { x, low, d_out } = inputs_of;
        let rows = self.check(x, low, d_out);
        let (inputs, outputs) = (self.inputs(), self.outputs());
        assert_eq!((gradients.a.len(), gradients.b.len()), (self.a.len(), self.b.len()), "gradients of factors");
        if let Some(d_x) = &d_x {
            assert_eq!(d_x.len(), x.len(), "gradient of {rows} rows");
        }
        let LowRankGradients { a, b } = gradients;
        let (d_x, part_len) = (d_x.map(SharedMut::new), self.a.len() + self.b.len());
        let at_once = (PARTS_MAX / part_len.max(1)).max(1);
        let task = |(factors, parts): ([&Squares; 2], &SharedMut<'_>),
                    index: usize,
                    rows: Range<usize>,
                    scratch: &mut Scratch| {
            // SAFETY: tasks have disjoint rows, and parts of their own.
            let (part, d_x) = unsafe {
                let d_x = d_x.as_ref().map(|d_x| d_x.part(of(&rows, inputs)));
                (parts.part(index * part_len..(index + 1) * part_len), d_x)
            };
            let inputs_of = LowRankInputs {
                x: &x[of(&rows, inputs)],
                low: &low[of(&rows, self.rank)],
                d_out: &d_out[of(&rows, outputs)],
            };
            self.rows_backward(run, (&rows, factors, scratch), &inputs_of, (d_x, part));
        };
        PARTS.with_borrow_mut(|parts| {
            self.with_factors(run.isa, Pairs::Rows, |factors| {
                let num_tasks = num_tasks(rows);
                for first in (0..num_tasks).step_by(at_once) {
                    let tasks = first..num_tasks.min(first + at_once);
                    let parts = parts.fit(tasks.len() * part_len);
                    let shared = SharedMut::new(parts);
                    run.tasks(rows, tasks, |index, rows, scratch| task((factors, &shared), index, rows, scratch));
                    add_parts(run, self.rank, [&mut *a, &mut *b], parts);
                }
            });
        });
    }

    /// The way back of some rows; `part` takes their gradients of both factors, that of `B` transposed.
    fn rows_backward(
        &self,
        run: Run<'_>,
        (rows, [a, b], scratch): (&Range<usize>, [&Squares; 2], &mut Scratch),
        inputs_of: &LowRankInputs<'_>,
        (d_x, part): (Option<&mut [f32]>, &mut [f32]),
    ) {
        let &LowRankInputs { x, low, d_out } = inputs_of;
        let (isa, rank, inputs, outputs) = (run.isa, self.rank, self.inputs(), self.outputs());
        let Scratch { dropped, low: d_low, sums, left, right } = scratch;
        let num_rows = rows.len();
        let d_out = View::new(d_out, num_rows, outputs);
        left.fill(isa, &d_out, Pairs::Columns, false);
        let d_low = d_low.fit(num_rows * rank);
        self.narrow(isa, LeftSquares::of(left, num_rows), (b, outputs), (sums, d_low));

        let (part_a, part_b) = part.split_at_mut(self.a.len());
        left.fill(isa, &View::new(low, num_rows, rank), Pairs::Rows, true);
        right.fill(isa, &d_out, Pairs::Rows, false);
        multiply(isa, LeftSquares::of(left, rank), (right, num_rows), (part_b, outputs, false));

        let d_low = View::new(d_low, num_rows, rank);
        left.fill(isa, &d_low, Pairs::Rows, true);
        let x = self.drop(run, rows, x, dropped);
        right.fill(isa, &View::new(x, num_rows, inputs), Pairs::Rows, false);
        multiply(isa, LeftSquares::of(left, rank), (right, num_rows), (part_a, inputs, false));

        let Some(d_x) = d_x else { return };
        left.fill(isa, &d_low, Pairs::Columns, false);
        let through = LeftSquares::of(left, num_rows);
        let Some(mask) = &self.mask else { return multiply(isa, through, (a, rank), (d_x, inputs, true)) };
        let dropped = dropped.fit(num_rows * inputs);
        multiply(isa, through, (a, rank), (dropped, inputs, false));
        let masked = Masked { mask, first: rows.start * inputs, x: dropped, add: true };
        // SAFETY: the table is one that this processor can run.
        unsafe { (run.tables.1.dropout)(&masked, d_x) };
    }

    /// Lends both factors, rounded: with pairs of columns as right factors transposed, with pairs of rows as they lie.
    fn with_factors(&self, isa: Isa, pairs: Pairs, run: impl FnOnce([&Squares; 2])) {
        FACTORS.with_borrow_mut(|factors| {
            let views = [View::new(self.a, self.rank, self.inputs()), View::new(self.b, self.outputs(), self.rank)];
            for (squares, view) in factors.iter_mut().zip(views) {
                squares.fill(isa, &view, pairs, pairs == Pairs::Columns);
            }
            run(factors.each_ref());
        });
    }

    /// What `A` sees of some rows.
    fn drop<'b>(&self, run: Run<'_>, rows: &Range<usize>, x: &'b [f32], dropped: &'b mut Buffer) -> &'b [f32] {
        let Some(mask) = &self.mask else { return x };
        let dropped = dropped.fit(x.len());
        let masked = Masked { mask, first: rows.start * self.inputs(), x, add: false };
        // SAFETY: the table is one that this processor can run.
        unsafe { (run.tables.1.dropout)(&masked, dropped) };
        dropped
    }

    /// A product with as many columns as the rank, scaled.
    fn narrow(
        &self,
        isa: Isa,
        left: LeftSquares<'_>,
        right: (&Squares, usize),
        (sums, out): (&mut Buffer, &mut [f32]),
    ) {
        let stride = padded(self.rank);
        let sums = sums.fit(left.rows * stride);
        multiply(isa, left, right, (sums, stride, false));
        copy_columns(sums, self.rank, out, self.scale);
    }
}

impl Run<'_> {
    /// Runs some of the tasks of all rows: `task` gets the place among them, and its rows.
    fn tasks(&self, rows: usize, tasks: Range<usize>, task: impl Fn(usize, Range<usize>, &mut Scratch) + Sync) {
        let task_rows = task_rows(rows);
        self.pool.run(tasks.len(), |index| {
            let first = (tasks.start + index) * task_rows;
            SCRATCH.with_borrow_mut(|scratch| {
                with_tiles(self.isa, || task(index, first..rows.min(first + task_rows), scratch));
            });
        });
    }
}

/// Rows of a task: about as many for all, and mostly an even number of tasks, which two threads share equally. The first elements of a
/// task are at a place that dropout can begin with.
fn task_rows(rows: usize) -> usize {
    let num_tasks = rows.div_ceil(ROWS_MAX).next_multiple_of(2);
    rows.div_ceil(num_tasks.max(1)).next_multiple_of(LANES).max(LANES)
}

fn num_tasks(rows: usize) -> usize {
    rows.div_ceil(task_rows(rows))
}

/// Adds the parts of all tasks to the gradients, in order.
fn add_parts(run: Run<'_>, rank: usize, [a, b]: [&mut [f32]; 2], parts: &[f32]) {
    let (a_len, part_len) = (a.len(), a.len() + b.len());
    let outputs = b.len() / rank.max(1);
    let (a, b) = (SharedMut::new(a), SharedMut::new(b));
    let sum = |sum: &mut [f32], first: usize| {
        for part in parts.chunks_exact(part_len) {
            // SAFETY: the table is one that this processor can run.
            unsafe { (run.tables.0.add)(sum, &part[first..first + sum.len()]) };
        }
    };
    let (a_tasks, b_tasks) = (a_len.div_ceil(TASK_ELEMENTS), outputs.div_ceil(TASK_OUTPUTS));
    run.pool.run(a_tasks + b_tasks, |task| {
        let Some(task) = task.checked_sub(a_tasks) else {
            let range = task * TASK_ELEMENTS..a_len.min((task + 1) * TASK_ELEMENTS);
            // SAFETY: tasks have disjoint ranges.
            return sum(unsafe { a.part(range.clone()) }, range.start);
        };
        let range = task * TASK_OUTPUTS..outputs.min((task + 1) * TASK_OUTPUTS);
        // SAFETY: as above.
        let b = unsafe { b.part(of(&range, rank)) };
        for r in 0..rank {
            let mut row = [0.0; TASK_OUTPUTS];
            let row = &mut row[..range.len()];
            sum(row, a_len + r * outputs + range.start);
            b[r..].iter_mut().step_by(rank).zip(row).for_each(|(b, row)| *b += *row);
        }
    });
}

/// Where some rows of `cols` lie.
fn of(rows: &Range<usize>, cols: usize) -> Range<usize> {
    rows.start * cols..rows.end * cols
}

/// Columns of whole groups.
fn padded(cols: usize) -> usize {
    cols.next_multiple_of(GROUP)
}

/// Multiplies all columns of a right factor whose depth is given; `out` is rows of `cols`.
fn multiply(
    isa: Isa,
    left: LeftSquares<'_>,
    (right, depth): (&Squares, usize),
    (out, cols, add): (&mut [f32], usize, bool),
) {
    for group in 0..cols.div_ceil(GROUP) {
        let target = Target { add, ..Target::group(out, cols, group) };
        // SAFETY: every task runs within `with_tiles`.
        unsafe { left.product(isa, right.lines(group, num_pairs(depth)), target) };
    }
}

/// Copies the first columns of rows of whole groups, each times a factor.
fn copy_columns(sums: &[f32], cols: usize, out: &mut [f32], factor: f32) {
    for (out, sums) in out.chunks_exact_mut(cols).zip(sums.chunks_exact(padded(cols))) {
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * factor);
    }
}
