//! Attention with the factors of every product rounded to bf16; sums, softmax and gradients of scores are in single precision.
//!
//! Scores are computed transposed, a row for each key and a column for each query of a block: the softmax then goes along the columns,
//! and what it leaves, rounded, lies as the next products read it. Turned round are queries, keys, values and outputs, which are shorter.

use std::cell::RefCell;

use super::softmax::{self, Factors, Known, Queries, Seen};
use super::{Attended, Block, CausalAttention, Job, Segment};
use crate::bf16::{self, GROUP, LANES, STEP};
use crate::shared::SharedMut;
use crate::training::squares::{LeftSquares, Pairs, Squares, Target, turn_columns};
use crate::{Buffer, Isa, Pool, prefetch};

/// Queries of one head that are computed together: the columns of a product.
const QUERIES: usize = GROUP;

/// One way in which keys or values go into products.
pub(super) struct Form {
    of_values: bool,
    pairs: Pairs,
    turned: bool,
}

/// Left factors of scores, and of outputs.
pub(super) const FORWARD: [Form; 2] = [
    Form { of_values: false, pairs: Pairs::Columns, turned: false },
    Form { of_values: true, pairs: Pairs::Rows, turned: true },
];
/// Left factors of scores, of gradients of probabilities, and of gradients of queries.
pub(super) const BACKWARD: [Form; 3] = [
    Form { of_values: false, pairs: Pairs::Columns, turned: false },
    Form { of_values: true, pairs: Pairs::Columns, turned: false },
    Form { of_values: false, pairs: Pairs::Rows, turned: true },
];

thread_local! {
    /// Of the call that a thread is at: by segment, head of keys, and form.
    static CONTEXTS: RefCell<Vec<Squares>> = RefCell::default();
    /// Keys or values of the task that a thread is at.
    static PLACES: RefCell<Buffer> = RefCell::default();
    /// Buffers of the task that a thread is at.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl CausalAttention<'_> {
    /// Rounds what each segment sees, once for all query heads that read it; nothing where attention is exact.
    pub(super) fn with_contexts<const N: usize>(
        &self,
        (isa, pool): (Isa, &Pool),
        forms: &[Form; N],
        run: impl FnOnce(&[Squares]),
    ) {
        if !self.bf16 {
            return run(&[]);
        }
        let segments: Vec<&Segment> = self.trees.iter().flat_map(|tree| &tree.segments).collect();
        let num = segments.len() * self.kv_heads * N;
        CONTEXTS.with_borrow_mut(|contexts| {
            contexts.resize_with(num.max(contexts.len()), Squares::default);
            let shared = SharedMut::new(&mut contexts[..num]);
            pool.run(num, |task| {
                let (context, Form { of_values, pairs, turned }) = (task / N, &forms[task % N]);
                let at = (segments[context / self.kv_heads], context % self.kv_heads);
                PLACES.with_borrow_mut(|places| {
                    let view = self.places(if *of_values { self.v } else { self.k }, at, places);
                    // SAFETY: tasks have disjoint squares.
                    unsafe { &mut shared.part(task..task + 1)[0] }.fill(isa, &view, *pairs, *turned);
                });
            });
            run(&contexts[..num]);
        });
    }
}

/// What is computed of a block.
#[derive(Default)]
struct Scratch {
    /// Right factors: queries and gradients of outputs.
    q_turned: Squares,
    d_out_turned: Squares,
    q_pairs: Squares,
    d_out_pairs: Squares,
    /// `(keys, QUERIES)`.
    scores: Buffer,
    d_p: Buffer,
    /// What the softmax leaves.
    p: Buffer<u32>,
    d_scores: Buffer<u32>,
    lines: Buffer<u32>,
    /// Outputs or gradients of queries `(head_dim, QUERIES)`.
    turned: Buffer,
}

impl Scratch {
    /// Takes memory for the blocks of a segment.
    fn fit(&mut self, segment: &Segment, head_dim: usize) {
        let filled = (segment.prefix.len() + segment.rows.len()).next_multiple_of(STEP);
        self.scores.fit(filled * QUERIES);
        self.d_p.fit(filled * QUERIES);
        self.p.fit(filled * LANES);
        self.d_scores.fit(filled * LANES);
        self.lines.fit(filled * LANES);
        self.turned.fit(head_dim.next_multiple_of(LANES) * QUERIES);
    }
}

impl Job<'_> {
    pub(super) fn forward_rounded(
        &self,
        (index, segment): (usize, &Segment),
        out: &SharedMut<'_>,
        log_sums: &SharedMut<'_>,
    ) {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.fit(segment, self.args.head_dim);
            bf16::with_tiles(self.isa, || {
                for block in Job::blocks(segment, QUERIES) {
                    self.forward_rounded_block(&block, self.context(index), (scratch, out, log_sums));
                }
            });
        });
    }

    /// Adds the gradients of keys and values to `sums`.
    pub(super) fn backward_rounded(
        &self,
        (index, segment): (usize, &Segment),
        attended: &Attended<'_>,
        d_q: &SharedMut<'_>,
        mut sums: [&mut [f32]; 2],
    ) {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.fit(segment, self.args.head_dim);
            bf16::with_tiles(self.isa, || {
                for block in Job::blocks(segment, QUERIES) {
                    self.backward_rounded_block(&block, (self.context(index), attended), (scratch, d_q, &mut sums));
                }
            });
        });
    }

    /// What a segment of the tree sees, in each form.
    fn context<const N: usize>(&self, index: usize) -> &[Squares; N] {
        let context = (self.first_segment + index) * self.args.kv_heads + self.kv_head();
        &self.contexts.as_chunks().0[context]
    }

    /// Asks the caches for the rows of a block that are written in the end.
    fn prefetch(&self, block: &Block, out: &SharedMut<'_>) {
        for row in block.rows.clone() {
            // SAFETY: tasks have disjoint rows or heads.
            prefetch::for_writing(unsafe { self.part(out, row) });
        }
    }

    /// What each query of a block sees.
    fn seen(&self, block: &Block) -> Seen {
        let mut seen = Seen { starts: [0; QUERIES], ends: [0; QUERIES] };
        for i in 0..QUERIES {
            // What fills up the block sees what the last row sees, and its zeros add nothing.
            let visible = self.visible(block.prefix, block.first + i.min(block.rows.len() - 1));
            (seen.starts[i], seen.ends[i]) = (visible.start as i32, visible.end as i32);
        }
        seen
    }

    fn forward_rounded_block(
        &self,
        block: &Block,
        [k_rows, v_turned]: &[Squares; 2],
        (scratch, out, log_sums): (&mut Scratch, &SharedMut<'_>, &SharedMut<'_>),
    ) {
        let (args, end) = (self.args, block.end());
        let (keys, head_pairs) = (end.next_multiple_of(STEP), bf16::num_pairs(args.head_dim));
        self.prefetch(block, out);
        scratch.q_turned.fill(self.isa, &self.rows_of(args.q, &block.rows), Pairs::Columns, true);
        let k = LeftSquares::of(k_rows, keys);
        // SAFETY: jobs run within `with_tiles`.
        unsafe {
            k.product(self.isa, scratch.q_turned.lines(0, head_pairs), Target::new(&mut scratch.scores, QUERIES))
        };
        let (upper, lower) = scratch.lines[..keys * LANES].split_at_mut(keys / 2 * LANES);
        let scores = &scratch.scores.as_chunks::<QUERIES>().0[..keys];
        let softmax =
            softmax::weigh((self.isa, self.table), (scores, args.scale), &self.seen(block), [&mut *upper, &mut *lower]);
        for (i, row) in block.rows.clone().enumerate() {
            let at = row * args.heads + self.head;
            // SAFETY: tasks have disjoint rows or heads.
            let log_sum = unsafe { log_sums.part(at..at + 1) };
            log_sum[0] = softmax.highest[i] + softmax.sums[i].ln();
        }
        let v = LeftSquares::of(v_turned, args.head_dim);
        // SAFETY: jobs run within `with_tiles`.
        unsafe { v.product(self.isa, [upper, lower], Target::new(&mut scratch.turned, QUERIES)) };
        self.write_turned(block, &softmax.sums.map(|sum| 1.0 / sum), &scratch.turned, out);
    }

    fn backward_rounded_block(
        &self,
        block: &Block,
        ([k_rows, v_rows, k_turned], attended): (&[Squares; 3], &Attended<'_>),
        (scratch, d_q, [d_k, d_v]): (&mut Scratch, &SharedMut<'_>, &mut [&mut [f32]; 2]),
    ) {
        let (args, isa, len, end) = (self.args, self.isa, self.args.head_dim, block.end());
        let (keys, head_pairs) = (end.next_multiple_of(STEP), bf16::num_pairs(args.head_dim));
        self.prefetch(block, d_q);
        for row in block.rows.clone() {
            prefetch::for_reading(&attended.out[self.place(row)..][..len]);
        }
        let (q, d_out) = (self.rows_of(args.q, &block.rows), self.rows_of(attended.d_out, &block.rows));
        scratch.q_turned.fill(isa, &q, Pairs::Columns, true);
        scratch.d_out_turned.fill(isa, &d_out, Pairs::Columns, true);
        scratch.q_pairs.fill(isa, &q, Pairs::Rows, false);
        scratch.d_out_pairs.fill(isa, &d_out, Pairs::Rows, false);
        let lines = scratch.q_turned.lines(0, head_pairs);
        // SAFETY: jobs run within `with_tiles`.
        unsafe { LeftSquares::of(k_rows, keys).product(isa, lines, Target::new(&mut scratch.scores, QUERIES)) };
        let lines = scratch.d_out_turned.lines(0, head_pairs);
        // SAFETY: jobs run within `with_tiles`.
        unsafe { LeftSquares::of(v_rows, keys).product(isa, lines, Target::new(&mut scratch.d_p, QUERIES)) };

        let [scores, d_p] = [&scratch.scores, &scratch.d_p].map(|values| &values.as_chunks::<QUERIES>().0[..keys]);
        let (p, d_scores) = (&mut scratch.p[..keys * LANES], &mut scratch.d_scores[..keys * LANES]);
        let (upper, lower) = scratch.lines[..keys * LANES].split_at_mut(keys / 2 * LANES);
        let factors = Factors { p, d_scores, d_lines: [&mut *upper, &mut *lower] };
        softmax::differentiate((isa, self.table), (scores, d_p), &self.known(block, attended), factors);

        // Of one square for each sixteen keys.
        let left = |squares| LeftSquares { squares, block_len: LANES * LANES, rows: end };
        for group in 0..len.div_ceil(GROUP) {
            let target = |sums| Target { add: true, ..Target::group(sums, len, group) };
            // SAFETY: jobs run within `with_tiles`.
            unsafe {
                left(&*p).product(isa, scratch.d_out_pairs.lines(group, STEP / 2), target(d_v));
                left(&*d_scores).product(isa, scratch.q_pairs.lines(group, STEP / 2), target(d_k));
            }
        }
        // SAFETY: jobs run within `with_tiles`.
        unsafe {
            LeftSquares::of(k_turned, len).product(isa, [upper, lower], Target::new(&mut scratch.turned, QUERIES))
        };
        self.write_turned(block, &[1.0; QUERIES], &scratch.turned, d_q);
    }

    fn known(&self, block: &Block, attended: &Attended<'_>) -> Known {
        let (args, len) = (self.args, self.args.head_dim);
        let mut known =
            Known { seen: self.seen(block), log_sums: [0.0; QUERIES], deltas: [0.0; QUERIES], scale: args.scale };
        for (i, row) in block.rows.clone().enumerate() {
            known.log_sums[i] = attended.log_sums[row * args.heads + self.head];
            let [d_out, out] = [attended.d_out, attended.out].map(|rows| &rows[self.place(row)..][..len]);
            // SAFETY: `Kernels` chose the table among those that this processor can run.
            known.deltas[i] = unsafe { (self.table.dot)(d_out, out) };
        }
        known
    }

    /// Writes the columns of a product, each times its factor, to the rows of a block in a tensor `(rows, heads, head_dim)`.
    fn write_turned(&self, block: &Block, factors: &Queries, turned: &[f32], out: &SharedMut<'_>) {
        let mut rows = [[0.0; LANES]; QUERIES];
        for (index, columns) in turned.chunks_exact(LANES * QUERIES).enumerate() {
            turn_columns(self.isa, columns, factors, &mut rows);
            for (row, values) in block.rows.clone().zip(&rows) {
                // SAFETY: tasks have disjoint rows or heads.
                let out = &mut unsafe { self.part(out, row) }[index * LANES..];
                match out.first_chunk_mut() {
                    Some(out) => *out = *values,
                    None => out.copy_from_slice(&values[..out.len()]),
                }
            }
        }
    }
}
