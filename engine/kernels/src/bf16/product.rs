//! The loops around the kernel of an instruction set: which parts, in which order, on which thread.

use std::cell::RefCell;
use std::ops::Range;

use super::round::{self, Rounded};
use super::{Bf16Matrix, GROUP, Multiply, Part, multiply};
use crate::shared::{Place, SharedMut};
use crate::source::Source;
use crate::table::Table;
use crate::{Isa, Pool};

/// Most pairs of a part: the lines of a group take 96 KiB of a second-level cache.
pub(crate) const PAIRS: usize = 768;
/// Most rows between two readings of the same weights: with [`PAIRS`] pairs they take 768 KiB of a second-level cache.
pub(crate) const ROWS: usize = 256;
/// Multiply-adds that are worth a task.
const MIN_TASK: usize = 1 << 17;
/// Tasks per thread where there is enough work, for balance.
const TASKS_PER_THREAD: usize = 6;
/// The same where rows are read part by part, so that each is read for many groups.
const LONG_TASKS_PER_THREAD: usize = 2;

thread_local! {
    /// The activations of the product that a thread is at.
    static ROUNDED: RefCell<Rounded> = RefCell::default();
}

/// Computes `out = x w`, or adds it.
///
/// **Panics** if a length does not fit.
pub(crate) fn run(
    (isa, table, pool): (Isa, &'static Table, &Pool),
    x: &[f32],
    w: &Bf16Matrix,
    accumulate: bool,
    out: &mut [f32],
) {
    let rows = x.len() / w.inputs.max(1);
    assert_eq!(x.len(), rows * w.inputs, "activations for {w:?}");
    if w.inputs == 0 {
        assert!(w.outputs == 0 || out.len().is_multiple_of(w.outputs), "outputs for {w:?}");
        if !accumulate {
            out.fill(0.0);
        }
        return;
    }
    assert_eq!(Some(out.len()), rows.checked_mul(w.outputs), "outputs of {rows} rows for {w:?}");
    if out.is_empty() {
        return;
    }
    ROUNDED.with_borrow_mut(|rounded| {
        round::run((isa, table, pool), Source::Plain { x }, rows, rounded);
        let product = Product { multiply: multiply(isa), x: rounded, w, accumulate, out: SharedMut::new(out) };
        product.run(pool, rows);
    });
}

struct Product<'a> {
    multiply: Multiply,
    x: &'a Rounded,
    w: &'a Bf16Matrix,
    accumulate: bool,
    out: SharedMut<'a>,
}

/// A group and some of its pairs.
type GroupPart = (usize, Range<usize>);

struct Task {
    rows: Range<usize>,
    groups: Range<usize>,
    /// Pairs of a part.
    step: usize,
}

impl Task {
    /// What the task multiplies, in order.
    fn parts(&self, num_pairs: usize) -> impl Iterator<Item = GroupPart> {
        let (groups, step) = (self.groups.clone(), self.step);
        (0..num_pairs)
            .step_by(step)
            .flat_map(move |first| groups.clone().map(move |group| (group, first..num_pairs.min(first + step))))
    }
}

impl Product<'_> {
    fn run(&self, pool: &Pool, rows: usize) {
        let (num_groups, num_pairs) = (self.w.num_groups(), self.w.num_pairs());
        let num_blocks = rows.div_ceil(ROWS);
        let per_thread = if num_pairs > PAIRS { LONG_TASKS_PER_THREAD } else { TASKS_PER_THREAD };
        let balanced = (num_groups * num_blocks).div_ceil(pool.num_threads() * per_thread);
        let enough = MIN_TASK.div_ceil(2 * GROUP * num_pairs * rows.min(ROWS));
        let task_groups = balanced.max(enough).min(num_groups);
        let num_chunks = num_groups.div_ceil(task_groups);
        // Equal parts of the depth, whose number depends on the weights alone.
        let step = num_pairs.div_ceil(num_pairs.div_ceil(PAIRS)).next_multiple_of(super::STEP / 2);
        let task_of = |index: usize| {
            let (block, chunk) = (index / num_chunks, index % num_chunks);
            let rows = block * ROWS..rows.min((block + 1) * ROWS);
            Task { rows, groups: chunk * task_groups..num_groups.min((chunk + 1) * task_groups), step }
        };
        let num_tasks = num_blocks * num_chunks;
        pool.run(num_tasks, |index| {
            let task = task_of(index);
            // Most likely this thread comes to that task next.
            let next = index + pool.num_threads();
            let next = (next < num_tasks).then(|| task_of(next)).and_then(|task| task.parts(num_pairs).next());
            let mut parts = task.parts(num_pairs).peekable();
            while let Some(part) = parts.next() {
                self.part(task.rows.clone(), part, parts.peek().cloned().or(next.clone()));
            }
        });
    }

    fn part(&self, rows: Range<usize>, (group, pairs): GroupPart, next: Option<GroupPart>) {
        let (x, block_len) = self.x.part(rows.clone(), pairs.clone());
        let add = self.accumulate || pairs.start > 0;
        let lines = self.w.lines(group, pairs.clone());
        let next = next.map_or([&[][..]; 2], |(group, pairs)| self.w.lines(group, pairs));
        let part = Part { x, block_len, rows: rows.len(), lines, pairs: pairs.len(), next };
        let outputs = group * GROUP..self.w.outputs.min((group + 1) * GROUP);
        let stride = self.w.outputs;
        let (first, last) = (rows.start * stride, (rows.end - 1) * stride);
        let start = self.out.pointer(first + outputs.start..last + outputs.end);
        let place = Place { start, stride, add };
        // SAFETY: `Kernels` has an instruction set of this processor; tasks have disjoint rows and groups, and `pointer` asserted
        // that they lie in the output.
        unsafe { multiply_to(self.multiply, &part, place, outputs.len()) };
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
