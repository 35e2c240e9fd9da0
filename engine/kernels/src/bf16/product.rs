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
/// Bytes of activations that stay in a second-level cache beside weights and outputs.
const ACTIVATIONS: usize = 1 << 20;
/// Multiply-adds that are worth a task.
const MIN_TASK: usize = 1 << 17;
/// Tasks per thread where there is enough work: cores differ in speed by two while others use their hyper-threads, and with sixteen tasks
/// the slower one's last took some percent of a product of 175 x 576 x 1536.
const TASKS_PER_THREAD: usize = 48;

/// Computes `x w^T` for several matrices, whose groups are shared out together. For rows that stay in a second-level cache: a group goes
/// through the whole depth at once, where [`run_rounded`] cuts that of more rows.
///
/// **Panics** if a length does not fit.
pub(crate) fn run_each(isa: Isa, pool: &Pool, x: &Rounded, outputs: &mut [(&Bf16Matrix, &mut [f32])]) {
    let factors: Vec<[Factors<'_>; 1]> =
        outputs.iter().map(|&(w, _)| [Factors { isa, x, w, direction: Direction::Forward }]).collect();
    let mut products = Vec::with_capacity(factors.len());
    for (factors, (_, out)) in factors.iter().zip(outputs) {
        check(factors, out);
        if factors[0].num_pairs() == 0 {
            out.fill(0.0);
        } else if !out.is_empty() {
            products.push(Product { factors, accumulate: false, out: SharedMut::new(out) });
        }
    }
    let Some(first) = products.first() else { return };
    let num_groups = products.iter().map(|product| product.factors[0].num_groups()).sum();
    let pairs = first.factors[0].num_pairs();
    in_groups((isa, pool), (num_groups, 2 * GROUP * pairs * x.rows()), |group, next| {
        let of = |mut group: usize| {
            for product in &products {
                let Some(behind) = group.checked_sub(product.factors[0].num_groups()) else {
                    return Some((product, group));
                };
                group = behind;
            }
            None
        };
        let (product, group) = of(group).expect("invariant: groups are counted");
        let next = of(next).map_or(Ahead::none(), |(product, group)| product.factors[0].ahead(group));
        product.group(group, next);
    });
}

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
        run_rounded(pool, &[Factors { isa, x: rounded, w, direction }], accumulate, out);
    });
}

/// Computes the sum of products, or adds it.
///
/// **Panics** if there are no factors, or a length does not fit.
pub(crate) fn run_rounded(pool: &Pool, factors: &[Factors<'_>], accumulate: bool, out: &mut [f32]) {
    check(factors, out);
    if factors.iter().all(|factors| factors.num_pairs() == 0) && !accumulate {
        out.fill(0.0);
    }
    if !out.is_empty() {
        Product { factors, accumulate, out: SharedMut::new(out) }.run(pool);
    }
}

/// **Panics** if there are no factors, or a length does not fit.
fn check(factors: &[Factors<'_>], out: &[f32]) {
    let first = factors.first().expect("a sum has terms");
    let (rows, outputs) = (first.x.rows(), first.outputs());
    assert_eq!(Some(out.len()), rows.checked_mul(outputs), "outputs of {rows} rows for {:?}", first.w);
    for Factors { x, w, direction, .. } in factors {
        let (inputs, its_outputs) = direction.shape(w);
        assert!(x.rows() == 0 || x.cols() == inputs, "{} activations in a row for {w:?}", x.cols());
        assert_eq!((x.rows(), its_outputs), (rows, outputs), "terms of a sum");
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

/// A group of outputs and some of its pairs.
type GroupPart = (usize, Range<usize>);

/// Activations and the weights that multiply them.
#[derive(Clone, Copy)]
pub(crate) struct Factors<'a> {
    pub(crate) isa: Isa,
    pub(crate) x: &'a Rounded,
    pub(crate) w: &'a Bf16Matrix,
    pub(crate) direction: Direction,
}

impl Factors<'_> {
    pub(crate) fn outputs(&self) -> usize {
        self.direction.shape(self.w).1
    }

    fn num_groups(&self) -> usize {
        self.outputs().div_ceil(GROUP)
    }

    fn num_pairs(&self) -> usize {
        num_pairs(self.direction.shape(self.w).0)
    }

    /// Pairs of a part: parts are equal, and their number depends on the weights alone.
    fn part_pairs(&self) -> usize {
        let num_pairs = self.num_pairs();
        num_pairs.div_ceil(num_pairs.div_ceil(PAIRS).max(1)).next_multiple_of(super::STEP / 2)
    }

    /// The part that begins with a pair; nothing behind the last.
    fn part_from(&self, first: usize) -> Range<usize> {
        let end = self.num_pairs();
        first.min(end)..end.min(first + self.part_pairs())
    }

    /// Runs groups in tasks, with the group that comes next; behind the end those begin again, counted on.
    pub(crate) fn groups(&self, pool: &Pool, pairs: usize, run: impl Fn(usize, usize) + Sync) {
        in_groups((self.isa, pool), (self.num_groups(), 2 * GROUP * pairs * self.x.rows()), run);
    }

    /// What is read first of a group; nothing where there is none.
    pub(crate) fn ahead(&self, group: usize) -> Ahead {
        self.ahead_of((group, self.part_from(0)))
    }

    fn ahead_of(&self, (group, pairs): GroupPart) -> Ahead {
        match self.direction {
            _ if pairs.is_empty() || group >= self.num_groups() => Ahead::none(),
            Direction::Forward => self.w.ahead(group, pairs),
            Direction::Backward => self.w.ahead_of_columns(group, pairs),
        }
    }

    /// Computes a group of outputs for all rows; `next` is read after it.
    ///
    /// **Shapes**: `sums` `(rows, GROUP)`. **Panics** if that does not fit, or there are no inputs.
    ///
    /// # Safety
    /// It runs within [`with_tiles`], as what [`Factors::groups`] runs does.
    pub(crate) unsafe fn group(&self, group: usize, next: Ahead, sums: &mut [f32]) {
        assert_eq!(sums.len(), self.x.rows() * GROUP, "sums of a group");
        for first in (0..self.num_pairs()).step_by(self.part_pairs()) {
            let after = self.part_from(first + self.part_pairs());
            let next = if after.is_empty() { next } else { self.ahead_of((group, after)) };
            let place = Place { start: sums.as_mut_ptr(), stride: GROUP, add: first > 0 };
            // SAFETY: the sums have a group of floats for each row, and are borrowed; the tile registers are the caller's promise.
            unsafe { self.part((group, self.part_from(first)), next, (place, GROUP)) };
        }
    }

    /// Multiplies all rows with a part.
    ///
    /// # Safety
    /// As [`multiply_to`], for all rows.
    unsafe fn part(&self, (group, pairs): GroupPart, next: Ahead, place: (Place, usize)) {
        match self.direction {
            // SAFETY: the caller's promise.
            Direction::Forward => unsafe { self.rows(self.w.lines(group, pairs.clone()), pairs, next, place) },
            Direction::Backward => TURNED.with_borrow_mut(|turned| {
                let (upper, lower) = turned.fit(2 * pairs.len() * LANES).split_at_mut(pairs.len() * LANES);
                let mut halves = [upper, lower];
                turn(self.isa, self.w, group, pairs.clone(), &mut halves);
                // SAFETY: the caller's promise.
                unsafe { self.rows(halves.map(|half| &*half), pairs, next, place) };
            }),
        }
    }

    /// # Safety
    /// As [`Factors::part`].
    unsafe fn rows(&self, lines: [&[u32]; 2], pairs: Range<usize>, mut next: Ahead, (place, width): (Place, usize)) {
        for first in (0..self.x.rows()).step_by(ROWS) {
            let rows = first..self.x.rows().min(first + ROWS);
            let (x, block_len) = self.x.part(rows.clone(), pairs.clone());
            let part = Part { x, block_len, rows: rows.len(), lines, pairs: pairs.len(), next };
            // Once is enough.
            next = Ahead::none();
            // SAFETY: `Kernels` has an instruction set of this processor; the rest is the caller's promise.
            unsafe { multiply_to(multiply(self.isa), &part, place.at_row(first), width) };
        }
    }
}

/// Runs groups in tasks, as [`Factors::groups`]; `work` is the multiply-adds of one.
fn in_groups((isa, pool): (Isa, &Pool), (num_groups, work): (usize, usize), run: impl Fn(usize, usize) + Sync) {
    let balanced = num_groups.div_ceil(pool.num_threads() * TASKS_PER_THREAD);
    let enough = MIN_TASK.div_ceil(work.max(1));
    let task_groups = balanced.max(enough).min(num_groups);
    let num_tasks = num_groups.div_ceil(task_groups);
    pool.run(num_tasks, |task| {
        // Most likely this thread comes to that task next.
        let next = task + pool.num_threads();
        let next = if next < num_tasks { next * task_groups } else { num_groups + (next - num_tasks) * task_groups };
        let groups = task * task_groups..num_groups.min((task + 1) * task_groups);
        with_tiles(isa, || {
            groups.clone().for_each(|group| run(group, if group + 1 < groups.end { group + 1 } else { next }));
        });
    });
}

/// A sum of products.
struct Product<'a> {
    factors: &'a [Factors<'a>],
    accumulate: bool,
    out: SharedMut<'a>,
}

impl Product<'_> {
    /// Goes through the depth of all products a few parts at a time, so that the activations of these stay in the second-level caches for
    /// all groups, and the outputs of a group for these parts.
    fn run(&self, pool: &Pool) {
        let pairs_max = ACTIVATIONS / (self.factors[0].x.rows() * size_of::<u32>());
        let (mut done, total) = (0, self.parts().count());
        while done < total {
            let mut pairs = 0;
            let fits = |(_, part): &(&Factors<'_>, Range<usize>)| {
                pairs += part.len();
                pairs <= pairs_max
            };
            let num = self.parts().skip(done).take_while(fits).count().max(1);
            self.groups(pool, done..done + num);
            done += num;
        }
    }

    /// Computes a group of the first product; `next` is read after it.
    fn group(&self, group: usize, next: Ahead) {
        let factors = &self.factors[0];
        for first in (0..factors.num_pairs()).step_by(factors.part_pairs()) {
            let after = factors.part_from(first + factors.part_pairs());
            let next = if after.is_empty() { next } else { factors.ahead_of((group, after)) };
            self.part(factors, (group, factors.part_from(first)), next, self.accumulate || first > 0);
        }
    }

    /// Parts of all products.
    fn parts(&self) -> impl Iterator<Item = (&Factors<'_>, Range<usize>)> {
        self.factors.iter().flat_map(|factors| {
            let firsts = (0..factors.num_pairs()).step_by(factors.part_pairs().max(1));
            firsts.map(move |first| (factors, factors.part_from(first)))
        })
    }

    /// Multiplies some parts of all groups.
    fn groups(&self, pool: &Pool, range: Range<usize>) {
        let first = &self.factors[0];
        let pairs = self.parts().skip(range.start).take(range.len()).map(|(_, pairs)| pairs.len()).sum();
        first.groups(pool, pairs, |group, next| {
            for (index, (factors, pairs)) in (range.clone()).zip(self.parts().skip(range.start)) {
                let (part, group_of_next) = match (index + 1 < range.end, next.checked_sub(first.num_groups())) {
                    (true, _) => (index + 1, group),
                    (false, None) => (range.start, next),
                    (false, Some(next)) => (range.end, next),
                };
                let next = self.parts().nth(part);
                let next = next.map_or(Ahead::none(), |(factors, pairs)| factors.ahead_of((group_of_next, pairs)));
                self.part(factors, (group, pairs), next, self.accumulate || index > 0);
            }
        });
    }

    fn part(&self, factors: &Factors<'_>, (group, pairs): GroupPart, next: Ahead, add: bool) {
        let (stride, rows) = (factors.outputs(), factors.x.rows());
        let outputs = group * GROUP..stride.min((group + 1) * GROUP);
        let start = self.out.pointer(outputs.start..(rows - 1) * stride + outputs.end);
        let place = Place { start, stride, add };
        // SAFETY: tasks have disjoint groups, run within `with_tiles`, and `pointer` asserted that they lie in the output.
        unsafe { factors.part((group, pairs), next, (place, outputs.len())) };
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
