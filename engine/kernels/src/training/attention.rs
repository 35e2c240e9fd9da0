//! Causal attention of a ragged batch, and its backward pass.
//!
//! A **tree** is a run of rows with a common start: its segments follow each other, and each sees its *prefix*, an earlier segment,
//! and its own rows up to itself. A plain sequence is a tree of one segment; a preference pair is a prompt with two answers. A task
//! takes one tree and one query head; gradients of keys and values are added up over the heads that share them afterwards, in
//! order. The forward pass keeps the logarithm of each row's sum; the backward pass computes
//! the probabilities again from it, a block of queries at a time, so that queries x keys are never held whole.
//!
//! **Source**: Dao et al., 2022 (FlashAttention), algorithm 4, with whole rows of scores in place of blocks of keys.

use std::cell::RefCell;
use std::ops::Range;

use super::left::Left;
use super::pack::Panels;
use super::product::{Out, multiply};
use super::table::TrainingTable;
use super::view::View;
use crate::ahead::Ahead;
use crate::shared::SharedMut;
use crate::{Buffer, Pool, reduce};

/// Queries of one head that are computed together: whole tiles, and with a thousand keys 192 KiB of scores.
const QUERIES: usize = 48;

/// Some rows of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its rows in the batch.
    pub rows: Range<usize>,
    /// Rows of the same tree that all of its rows see before their own; may be empty.
    pub prefix: Range<usize>,
}

/// Segments with a common start; their rows follow each other in the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// In the order of their rows.
    pub segments: Vec<Segment>,
}

/// The inputs of attention over a batch.
#[derive(Clone, Copy)]
pub struct CausalAttention<'a> {
    /// Queries `(rows, heads, head_dim)`.
    pub q: &'a [f32],
    /// Keys `(rows, kv_heads, head_dim)`.
    pub k: &'a [f32],
    /// Values, as the keys.
    pub v: &'a [f32],
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// How many of the latest positions a row sees, itself included.
    pub window: Option<usize>,
    /// Who sees whom.
    pub trees: &'a [Tree],
}

/// What the backward pass needs beside the inputs: results of the forward pass, and the gradient that comes in.
#[derive(Clone, Copy)]
pub struct Attended<'a> {
    /// Output of the forward pass `(rows, heads, head_dim)`.
    pub out: &'a [f32],
    /// Logarithms of the sums `(rows, heads)`.
    pub log_sums: &'a [f32],
    /// Gradient of the output.
    pub d_out: &'a [f32],
}

impl Tree {
    /// A sequence without branches.
    pub fn sequence(rows: Range<usize>) -> Tree {
        Tree { segments: vec![Segment { prefix: rows.start..rows.start, rows }] }
    }

    /// All rows.
    pub fn rows(&self) -> Range<usize> {
        match (self.segments.first(), self.segments.last()) {
            (Some(first), Some(last)) => first.rows.start..last.rows.end,
            _ => 0..0,
        }
    }
}

/// One tree and one query head.
struct Job<'a> {
    args: &'a CausalAttention<'a>,
    table: &'static TrainingTable,
    head: usize,
}

/// Rows whose gradients of keys or values a task adds up over heads.
const TASK_ROWS: usize = 32;

thread_local! {
    /// Buffers of the task that a thread is at.
    static SCRATCH: RefCell<(Context, Work)> = RefCell::default();
    /// Gradients of keys and values by query head, of the call that a thread is at.
    static BY_HEAD: RefCell<[Buffer; 2]> = RefCell::default();
}

/// The keys and values that a segment sees, gathered and packed as its products need them.
#[derive(Default)]
struct Context {
    k: Buffer,
    v: Buffer,
    k_transposed: Panels,
    v_transposed: Panels,
    k_panels: Panels,
    v_panels: Panels,
}

impl CausalAttention<'_> {
    fn check(&self, rows: usize) {
        assert!(self.heads > 0 && self.heads.is_multiple_of(self.kv_heads), "{} heads", self.heads);
        assert_eq!(self.q.len(), rows * self.heads * self.head_dim, "queries of {rows} rows");
        assert_eq!(self.k.len(), rows * self.kv_heads * self.head_dim, "keys of {rows} rows");
        assert_eq!(self.v.len(), self.k.len(), "values of {rows} rows");
        let mut next = 0;
        for segment in self.trees.iter().flat_map(|tree| &tree.segments) {
            assert_eq!(segment.rows.start, next, "segments follow each other");
            next = segment.rows.end;
            assert!(segment.prefix.end <= segment.rows.start, "a prefix stands before its segment");
        }
        assert_eq!(next, rows, "segments cover the rows");
        for tree in self.trees {
            let first = tree.rows().start;
            let inside = |segment: &Segment| segment.prefix.is_empty() || segment.prefix.start >= first;
            assert!(tree.segments.iter().all(inside), "a prefix lies in another tree");
        }
    }

    fn jobs(&self, table: &'static TrainingTable, pool: &Pool, run: impl Fn(&Job<'_>, &Tree) + Sync) {
        pool.run(self.trees.len() * self.heads, |task| {
            let job = Job { args: self, table, head: task % self.heads };
            run(&job, &self.trees[task / self.heads]);
        });
    }

    pub(super) fn forward(&self, table: &'static TrainingTable, pool: &Pool, out: &mut [f32], log_sums: &mut [f32]) {
        let rows = log_sums.len() / self.heads.max(1);
        self.check(rows);
        assert!(out.len() == self.q.len() && log_sums.len() == rows * self.heads, "outputs of {rows} rows");
        let (out, log_sums) = (SharedMut::new(out), SharedMut::new(log_sums));
        self.jobs(table, pool, |job, tree| job.forward(tree, &out, &log_sums));
    }

    pub(super) fn backward(
        &self,
        table: &'static TrainingTable,
        pool: &Pool,
        attended: &Attended<'_>,
        [d_q, d_k, d_v]: [&mut [f32]; 3],
    ) {
        let rows = attended.log_sums.len() / self.heads.max(1);
        self.check(rows);
        assert!(attended.out.len() == self.q.len() && attended.d_out.len() == self.q.len(), "outputs");
        assert!(d_q.len() == self.q.len() && d_k.len() == self.k.len() && d_v.len() == self.v.len(), "gradients");
        let d_q = SharedMut::new(d_q);
        BY_HEAD.with_borrow_mut(|by_head| {
            let [by_head_k, by_head_v] = by_head.each_mut().map(|values| values.fit(self.q.len()));
            let gradients = [&d_q, &SharedMut::new(by_head_k), &SharedMut::new(by_head_v)];
            self.jobs(table, pool, |job, tree| job.backward(tree, attended, gradients));
            self.add_heads(pool, by_head_k, d_k);
            self.add_heads(pool, by_head_v, d_v);
        });
    }

    /// Adds up what the query heads of each key/value head found.
    fn add_heads(&self, pool: &Pool, by_head: &[f32], out: &mut [f32]) {
        let (row_len, out_len) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let rows = out.len() / out_len;
        let out = SharedMut::new(out);
        pool.run(rows.div_ceil(TASK_ROWS), |task| {
            let rows = task * TASK_ROWS..rows.min((task + 1) * TASK_ROWS);
            // SAFETY: tasks have disjoint rows.
            let out = unsafe { out.part(rows.start * out_len..rows.end * out_len) };
            let groups = by_head[rows.start * row_len..].chunks_exact(row_len / self.kv_heads);
            for (out, group) in out.chunks_exact_mut(self.head_dim).zip(groups) {
                let mut heads = group.chunks_exact(self.head_dim);
                out.copy_from_slice(heads.next().expect("invariant: `check` found heads"));
                heads.for_each(|head| out.iter_mut().zip(head).for_each(|(out, head)| *out += head));
            }
        });
    }
}

impl Job<'_> {
    fn context(&self, segment: &Segment, context: &mut Context, backward: bool) -> usize {
        let (args, len) = (self.args, self.args.head_dim);
        let (stride, kv_head) = (args.kv_heads * len, self.head / (args.heads / args.kv_heads));
        let rows = || segment.prefix.clone().chain(segment.rows.clone());
        let num = rows().count();
        for (from, to) in [(args.k, &mut context.k), (args.v, &mut context.v)] {
            let to = to.fit(num * len).chunks_exact_mut(len);
            rows().zip(to).for_each(|(row, to)| to.copy_from_slice(&from[row * stride + kv_head * len..][..len]));
        }
        let (k, v) = (View::new(&context.k, num, len), View::new(&context.v, num, len));
        context.k_transposed.pack(self.table, &k.transposed(), 0..len, 0..num);
        if backward {
            context.v_transposed.pack(self.table, &v.transposed(), 0..len, 0..num);
            context.k_panels.pack(self.table, &k, 0..num, 0..len);
        } else {
            context.v_panels.pack(self.table, &v, 0..num, 0..len);
        }
        num
    }

    /// Which places of its context row `row` of a segment sees.
    fn visible(&self, prefix: usize, row: usize) -> Range<usize> {
        let end = prefix + row + 1;
        self.args.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// Rows of the head in a tensor `(rows, heads, head_dim)`.
    fn rows_of<'a>(&self, data: &'a [f32], rows: &Range<usize>) -> View<'a> {
        let (len, stride) = (self.args.head_dim, self.args.heads * self.args.head_dim);
        View::strided(&data[rows.start * stride + self.head * len..], rows.len(), len, stride)
    }

    /// Where the head's part of a row begins in such a tensor.
    fn place(&self, row: usize) -> usize {
        (row * self.args.heads + self.head) * self.args.head_dim
    }

    /// The head's part of a row.
    ///
    /// # Safety
    /// Nobody else uses it at the same time.
    #[allow(clippy::mut_from_ref, reason = "as of `SharedMut::part`")]
    unsafe fn part<'a>(&self, data: &'a SharedMut<'_>, row: usize) -> &'a mut [f32] {
        let at = self.place(row);
        // SAFETY: the caller's promise.
        unsafe { data.part(at..at + self.args.head_dim) }
    }

    /// The queries of a segment, some at a time.
    fn blocks(segment: &Segment) -> impl Iterator<Item = Block> {
        let (rows, prefix) = (segment.rows.clone(), segment.prefix.len());
        (0..rows.len()).step_by(QUERIES).map(move |first| {
            let last = rows.len().min(first + QUERIES);
            Block { rows: rows.start + first..rows.start + last, first, prefix }
        })
    }

    fn forward(&self, tree: &Tree, out: &SharedMut<'_>, log_sums: &SharedMut<'_>) {
        SCRATCH.with_borrow_mut(|(context, work)| {
            for segment in &tree.segments {
                let num = self.context(segment, context, false);
                work.p.fit(QUERIES * num);
                Job::blocks(segment)
                    .for_each(|block| self.forward_block(&block, context, &mut work.p, (out, log_sums)));
            }
        });
    }

    fn forward_block(
        &self,
        block: &Block,
        context: &Context,
        scores: &mut [f32],
        (out, log_sums): (&SharedMut<'_>, &SharedMut<'_>),
    ) {
        let (args, end) = (self.args, block.end());
        product(self.table, &self.rows_of(args.q, &block.rows), (&context.k_transposed, end), scores, false);
        let mut sums = [0.0; QUERIES];
        for (i, scores) in scores.chunks_exact_mut(end).take(block.rows.len()).enumerate() {
            let visible = self.visible(block.prefix, block.first + i);
            scores[..visible.start].fill(0.0);
            scores[visible.end..].fill(0.0);
            let scores = &mut scores[visible];
            let max = reduce::max(scores) * args.scale;
            // SAFETY: `Kernels` chose the table among those that this processor can run.
            sums[i] = unsafe { (self.table.exp_sum)(scores, args.scale, max) };
            let at = (block.rows.start + i) * args.heads + self.head;
            // SAFETY: tasks have disjoint rows or heads.
            let log_sum = unsafe { log_sums.part(at..at + 1) };
            log_sum[0] = max + sums[i].ln();
        }
        let p = View::new(&scores[..block.rows.len() * end], block.rows.len(), end);
        // SAFETY: as above.
        unsafe { self.write_head(&p, &context.v_panels, block, out) };
        for (row, sum) in block.rows.clone().zip(sums) {
            // SAFETY: as above.
            unsafe { (self.table.scale)(self.part(out, row), 1.0 / sum) };
        }
    }

    /// Writes a product to the rows of a block, in a tensor `(rows, heads, head_dim)`.
    ///
    /// # Safety
    /// Nobody else uses these rows of this head.
    unsafe fn write_head(&self, left: &View<'_>, panels: &Panels, block: &Block, out: &SharedMut<'_>) {
        let (args, len) = (self.args, self.args.head_dim);
        let out = Out { floats: out, start: self.place(block.rows.start), stride: args.heads * len, add: false };
        let left = Left::lying(left);
        // SAFETY: the caller's promise.
        unsafe { multiply(self.table, (&left, 0..left.num_tiles()), (panels, len), &out, &mut Ahead::none()) };
    }

    fn backward(&self, tree: &Tree, attended: &Attended<'_>, [d_q, d_k, d_v]: [&SharedMut<'_>; 3]) {
        let len = self.args.head_dim;
        for (row, gradient) in tree.rows().flat_map(|row| [(row, d_k), (row, d_v)]) {
            // SAFETY: tasks have disjoint rows or heads.
            unsafe { self.part(gradient, row) }.fill(0.0);
        }
        SCRATCH.with_borrow_mut(|(context, work)| {
            for segment in &tree.segments {
                let num = self.context(segment, context, true);
                work.begin(num, len);
                Job::blocks(segment).for_each(|block| self.backward_block(&block, (context, attended), work, d_q));
                for (place, row) in segment.prefix.clone().chain(segment.rows.clone()).enumerate() {
                    for (from, to) in [(&work.d_k, d_k), (&work.d_v, d_v)] {
                        let from = &from[place * len..(place + 1) * len];
                        // SAFETY: as above.
                        unsafe { self.part(to, row) }.iter_mut().zip(from).for_each(|(to, from)| *to += from);
                    }
                }
            }
        });
    }

    fn backward_block(
        &self,
        block: &Block,
        (context, attended): (&Context, &Attended<'_>),
        work: &mut Work,
        d_q: &SharedMut<'_>,
    ) {
        let (args, len, end) = (self.args, self.args.head_dim, block.end());
        let q = self.rows_of(args.q, &block.rows);
        let d_out = self.rows_of(attended.d_out, &block.rows);
        let out = self.rows_of(attended.out, &block.rows);
        let Work { p, d_p, d_k, d_v, panels } = work;
        product(self.table, &q, (&context.k_transposed, end), p, false);
        product(self.table, &d_out, (&context.v_transposed, end), d_p, false);
        let num_rows = block.rows.len();
        for i in 0..num_rows {
            let visible = self.visible(block.prefix, block.first + i);
            let p = &mut p[i * end..(i + 1) * end];
            p[..visible.start].fill(0.0);
            p[visible.end..].fill(0.0);
            let log_sum = attended.log_sums[(block.rows.start + i) * args.heads + self.head];
            // SAFETY: `Kernels` chose the table among those that this processor can run.
            unsafe { (self.table.exp_sum)(&mut p[visible], args.scale, log_sum) };
        }
        panels.pack(self.table, &d_out, 0..num_rows, 0..len);
        let probabilities = View::new(&p[..num_rows * end], num_rows, end);
        product(self.table, &probabilities.transposed(), (panels, len), d_v, true);
        for i in 0..num_rows {
            let range = i * end..(i + 1) * end;
            // SAFETY: as above.
            unsafe {
                let delta = (self.table.dot)(&d_out.from(i, 0)[..len], &out.from(i, 0)[..len]);
                (self.table.softmax_backward)(&mut p[range.clone()], &d_p[range], delta, args.scale);
            }
        }
        let d_scores = View::new(&p[..num_rows * end], num_rows, end);
        panels.pack(self.table, &q, 0..num_rows, 0..len);
        product(self.table, &d_scores.transposed(), (panels, len), d_k, true);
        // SAFETY: tasks have disjoint rows or heads.
        unsafe { self.write_head(&d_scores, &context.k_panels, block, d_q) };
    }
}

/// Some queries of one head.
struct Block {
    rows: Range<usize>,
    /// Place of the first row in its segment.
    first: usize,
    /// Length of the segment's prefix.
    prefix: usize,
}

impl Block {
    /// How many places of the context the last row sees.
    fn end(&self) -> usize {
        self.prefix + self.first + self.rows.len()
    }
}

/// Buffers of the backward pass of a segment.
#[derive(Default)]
struct Work {
    p: Buffer,
    d_p: Buffer,
    d_k: Buffer,
    d_v: Buffer,
    panels: Panels,
}

impl Work {
    fn begin(&mut self, num: usize, len: usize) {
        self.p.fit(QUERIES * num);
        self.d_p.fit(QUERIES * num);
        for sums in [&mut self.d_k, &mut self.d_v] {
            sums.fit(num * len).fill(0.0);
        }
    }
}

/// Writes or adds a product with `cols` packed columns to rows of so many.
fn product(table: &TrainingTable, left: &View<'_>, (panels, cols): (&Panels, usize), out: &mut [f32], add: bool) {
    let (left, out) = (Left::lying(left), SharedMut::new(out));
    let out = Out { floats: &out, start: 0, stride: cols, add };
    // SAFETY: `out` is borrowed mutably here alone.
    unsafe { multiply(table, (&left, 0..left.num_tiles()), (panels, cols), &out, &mut Ahead::none()) };
}
