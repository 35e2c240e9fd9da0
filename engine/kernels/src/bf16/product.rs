//! The loops around the kernel of an instruction set: which parts, in which order, on which thread.

use std::cell::RefCell;
use std::ops::Range;

use super::round::{self, Rounded};
use super::turn::turn;
use super::{Bf16Matrix, GROUP, LANES, Multiply, Part, multiply, num_pairs, with_tiles};
use crate::ahead::Ahead;
use crate::shared::{Place, SharedMut};
use crate::source::Source;
use crate::table::Table;
use crate::{Buffer, Isa, Pool};

/// Most pairs of a part: the lines of a group take 96 KiB of a second-level cache.
pub(crate) const PAIRS: usize = 768;
/// Most rows between two readings of the same weights: with [`PAIRS`] pairs they take 768 KiB of a second-level cache.
pub(crate) const ROWS: usize = 256;
/// Multiply-adds that are worth a task.
const MIN_TASK: usize = 1 << 17;
/// Tasks per thread where there is enough work, for balance.
const TASKS_PER_THREAD: usize = 16;

/// Which way rows go through a matrix `(rows, cols)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `x w^T`: from columns to rows, as activations go.
    Forward,
    /// `x w`: from rows to columns, as gradients go.
    Backward,
}

thread_local! {
    /// The activations of the product that a thread is at.
    static ROUNDED: RefCell<Rounded> = RefCell::default();
    /// Lines that were turned round for the part that a thread is at.
    static TURNED: RefCell<Buffer<u32>> = RefCell::default();
}

/// Computes `out = x w^T`, or backwards `x w`, or adds it, for activations that are not rounded yet.
///
/// **Panics** if a length does not fit.
pub(crate) fn run(
    (isa, table, pool): (Isa, &'static Table, &Pool),
    x: &[f32],
    (w, direction): (&Bf16Matrix, Direction),
    accumulate: bool,
    out: &mut [f32],
) {
    let (inputs, _) = direction.shape(w);
    let rows = x.len() / inputs.max(1);
    assert_eq!(x.len(), rows * inputs, "activations for {w:?}");
    if inputs == 0 {
        if !accumulate {
            out.fill(0.0);
        }
        return;
    }
    ROUNDED.with_borrow_mut(|rounded| {
        round::run((isa, table, pool), Source::Plain { x }, rows, rounded);
        run_rounded((isa, pool), rounded, (w, direction), accumulate, out);
    });
}

/// Computes `out = x w^T`, or backwards `x w`, or adds it.
///
/// **Panics** if a length does not fit.
pub(crate) fn run_rounded(
    (isa, pool): (Isa, &Pool),
    x: &Rounded,
    (w, direction): (&Bf16Matrix, Direction),
    accumulate: bool,
    out: &mut [f32],
) {
    let (inputs, outputs) = direction.shape(w);
    assert!(x.rows() == 0 || x.cols() == inputs, "{} activations in a row for {w:?}", x.cols());
    assert_eq!(Some(out.len()), x.rows().checked_mul(outputs), "outputs of {} rows for {w:?}", x.rows());
    if inputs == 0 && !accumulate {
        out.fill(0.0);
    }
    if !out.is_empty() && inputs > 0 {
        let out = SharedMut::new(out);
        Product { isa, x, w, direction, outputs, accumulate, out }.run(pool, num_pairs(inputs));
    }
}

impl Direction {
    /// Inputs and outputs of a product.
    fn shape(self, w: &Bf16Matrix) -> (usize, usize) {
        match self {
            Direction::Forward => (w.cols, w.rows),
            Direction::Backward => (w.rows, w.cols),
        }
    }
}

struct Product<'a> {
    isa: Isa,
    x: &'a Rounded,
    w: &'a Bf16Matrix,
    direction: Direction,
    outputs: usize,
    accumulate: bool,
    out: SharedMut<'a>,
}

/// A group of outputs and some of its pairs.
type GroupPart = (usize, Range<usize>);

impl Product<'_> {
    /// Goes through the depth part by part, so that the activations of a part stay in the second-level caches for all groups.
    fn run(&self, pool: &Pool, num_pairs: usize) {
        // Equal parts, whose number depends on the weights alone.
        let step = num_pairs.div_ceil(num_pairs.div_ceil(PAIRS)).next_multiple_of(super::STEP / 2);
        for first in (0..num_pairs).step_by(step) {
            let pairs = |first: usize| first..num_pairs.min(first + step);
            self.groups(pool, pairs(first), pairs(first + step));
        }
    }

    /// Multiplies some pairs of all groups; `after` are the pairs that follow, if there are some.
    fn groups(&self, pool: &Pool, pairs: Range<usize>, after: Range<usize>) {
        let num_groups = self.outputs.div_ceil(GROUP);
        let balanced = num_groups.div_ceil(pool.num_threads() * TASKS_PER_THREAD);
        let enough = MIN_TASK.div_ceil(2 * GROUP * pairs.len() * self.x.rows());
        let task_groups = balanced.max(enough).min(num_groups);
        let num_tasks = num_groups.div_ceil(task_groups);
        pool.run(num_tasks, |task| {
            let groups = task * task_groups..num_groups.min((task + 1) * task_groups);
            // Most likely this thread comes to that task next.
            let next = task + pool.num_threads();
            let next = match next < num_tasks {
                true => (next * task_groups, pairs.clone()),
                false => ((next - num_tasks) * task_groups, after.clone()),
            };
            with_tiles(self.isa, || {
                for group in groups.clone() {
                    let in_task = (group + 1 < groups.end).then(|| (group + 1, pairs.clone()));
                    self.part((group, pairs.clone()), in_task.unwrap_or_else(|| next.clone()));
                }
            });
        });
    }

    /// Multiplies all rows with a part.
    fn part(&self, (group, pairs): GroupPart, next: GroupPart) {
        // Behind the end nothing follows.
        let follows = !next.1.is_empty() && next.0 < self.outputs.div_ceil(GROUP);
        match self.direction {
            Direction::Forward => {
                let next = if follows { self.w.ahead(next.0, next.1) } else { Ahead::none() };
                self.rows((group, pairs.clone()), self.w.lines(group, pairs), next);
            }
            Direction::Backward => TURNED.with_borrow_mut(|turned| {
                let (upper, lower) = turned.fit(2 * pairs.len() * LANES).split_at_mut(pairs.len() * LANES);
                let mut halves = [upper, lower];
                turn(self.isa, self.w, group, pairs.clone(), &mut halves);
                let next = if follows { self.w.ahead_of_columns(next.0, next.1) } else { Ahead::none() };
                self.rows((group, pairs), halves.map(|half| &*half), next);
            }),
        }
    }

    fn rows(&self, (group, pairs): GroupPart, lines: [&[u32]; 2], mut next: Ahead) {
        let add = self.accumulate || pairs.start > 0;
        let outputs = group * GROUP..self.outputs.min((group + 1) * GROUP);
        let (stride, num_rows) = (self.outputs, self.x.rows());
        for first in (0..num_rows).step_by(ROWS) {
            let rows = first..num_rows.min(first + ROWS);
            let (x, block_len) = self.x.part(rows.clone(), pairs.clone());
            let part = Part { x, block_len, rows: rows.len(), lines, pairs: pairs.len(), next };
            // Once is enough.
            next = Ahead::none();
            let (from, to) = (rows.start * stride, (rows.end - 1) * stride);
            let start = self.out.pointer(from + outputs.start..to + outputs.end);
            let place = Place { start, stride, add };
            // SAFETY: `Kernels` has an instruction set of this processor; tasks have disjoint groups, and `pointer` asserted that they
            // lie in the output.
            unsafe { multiply_to(multiply(self.isa), &part, place, outputs.len()) };
        }
    }
}

/// Computes a part of up to [`ROWS`] rows whose place has `width` outputs: a group or fewer.
///
/// # Safety
/// As `Multiply`, with `width` floats in a row of the place.
pub(crate) unsafe fn multiply_to(multiply: Multiply, part: &Part<'_>, place: Place, width: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match width {
            GROUP => multiply(part, place),
            _ => narrow(multiply, part, place, width),
        }
    }
}

/// A part whose place has fewer outputs than a group.
///
/// # Safety
/// As `Multiply`, with `width` floats in a row of the place.
unsafe fn narrow(multiply: Multiply, part: &Part<'_>, place: Place, width: usize) {
    assert!(part.rows <= ROWS, "{} rows of a part", part.rows);
    let mut sums = [0.0; ROWS * GROUP];
    let rows = |i: usize| {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(place.start.add(i * place.stride), width) }
    };
    for (i, sums) in sums.as_chunks_mut::<GROUP>().0.iter_mut().enumerate().take(part.rows) {
        sums[..width].copy_from_slice(rows(i));
    }
    // SAFETY: the sums have `ROWS` rows of a group; the rest is the caller's promise.
    unsafe { multiply(part, Place { start: sums.as_mut_ptr(), stride: GROUP, add: place.add }) };
    for (i, sums) in sums.as_chunks::<GROUP>().0.iter().enumerate().take(part.rows) {
        rows(i).copy_from_slice(&sums[..width]);
    }
}
