//! Causal attention of a ragged batch, and its backward pass.
//!
//! A **tree** is a run of rows with a common start: its segments follow each other, and each sees its *prefix*, an earlier segment,
//! and its own rows up to itself. A plain sequence is a tree of one segment; a preference pair is a prompt with two answers. A task
//! takes one tree and one key/value head. The forward pass keeps the logarithm of each row's sum; the backward pass computes
//! the probabilities again from it, a block of queries at a time, so that queries x keys are never held whole.
//!
//! **Source**: Dao et al., 2022 (FlashAttention), algorithm 4, with whole rows of scores in place of blocks of keys.

use std::ops::Range;

use super::pack::Panels;
use super::product::multiply;
use super::table::{PANEL_COLS, TrainingTable};
use super::view::View;
use crate::shared::SharedMut;
use crate::{Pool, reduce};

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

/// One tree and one key/value head.
struct Job<'a> {
    args: &'a CausalAttention<'a>,
    table: &'static TrainingTable,
    kv_head: usize,
}

/// The keys and values that a segment sees, gathered and packed as its products need them.
#[derive(Default)]
struct Context {
    k: Vec<f32>,
    v: Vec<f32>,
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
        pool.run(self.trees.len() * self.kv_heads, |task| {
            let job = Job { args: self, table, kv_head: task % self.kv_heads };
            run(&job, &self.trees[task / self.kv_heads]);
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
        let gradients = [SharedMut::new(d_q), SharedMut::new(d_k), SharedMut::new(d_v)];
        self.jobs(table, pool, |job, tree| job.backward(tree, attended, &gradients));
    }
}

impl Job<'_> {
    fn context(&self, segment: &Segment, context: &mut Context, backward: bool) -> usize {
        let (args, len) = (self.args, self.args.head_dim);
        let stride = args.kv_heads * len;
        let rows = || segment.prefix.clone().chain(segment.rows.clone());
        for (from, to) in [(args.k, &mut context.k), (args.v, &mut context.v)] {
            to.clear();
            rows().for_each(|row| to.extend_from_slice(&from[row * stride + self.kv_head * len..][..len]));
        }
        let num = context.k.len() / len;
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

    /// The query heads that read this key/value head.
    fn query_heads(&self) -> Range<usize> {
        let group = self.args.heads / self.args.kv_heads;
        self.kv_head * group..(self.kv_head + 1) * group
    }

    /// Which places of its context row `row` of a segment sees.
    fn visible(&self, prefix: usize, row: usize) -> Range<usize> {
        let end = prefix + row + 1;
        self.args.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// Rows of one head in a tensor `(rows, heads, head_dim)`.
    fn head<'a>(&self, data: &'a [f32], rows: &Range<usize>, head: usize) -> View<'a> {
        let (len, stride) = (self.args.head_dim, self.args.heads * self.args.head_dim);
        View::strided(&data[rows.start * stride + head * len..], rows.len(), len, stride)
    }

    fn forward(&self, tree: &Tree, out: &SharedMut<'_>, log_sums: &SharedMut<'_>) {
        let (mut context, mut scores) = (Context::default(), Vec::new());
        for segment in &tree.segments {
            let num = self.context(segment, &mut context, false);
            for first in (0..segment.rows.len()).step_by(QUERIES) {
                let last = segment.rows.len().min(first + QUERIES);
                let rows = segment.rows.start + first..segment.rows.start + last;
                for head in self.query_heads() {
                    let block = Block { rows: rows.clone(), first, prefix: segment.prefix.len(), head };
                    scores.resize(QUERIES * num.next_multiple_of(PANEL_COLS), 0.0);
                    self.forward_block(&block, &context, &mut scores, (out, log_sums));
                }
            }
        }
    }

    fn forward_block(
        &self,
        block: &Block,
        context: &Context,
        scores: &mut [f32],
        (out, log_sums): (&SharedMut<'_>, &SharedMut<'_>),
    ) {
        let (args, len, head) = (self.args, self.args.head_dim, block.head);
        let end = block.end();
        self.scores(&self.head(args.q, &block.rows, head), &context.k_transposed, end, scores);
        let mut sums = [0.0; QUERIES];
        for (i, scores) in scores.chunks_exact_mut(end).take(block.rows.len()).enumerate() {
            let visible = self.visible(block.prefix, block.first + i);
            scores[..visible.start].fill(0.0);
            scores[visible.end..].fill(0.0);
            let scores = &mut scores[visible];
            let max = reduce::max(scores) * args.scale;
            // SAFETY: `Kernels` chose the table among those that this processor can run.
            sums[i] = unsafe { (self.table.exp_sum)(scores, args.scale, max) };
            let at = (block.rows.start + i) * args.heads + head;
            // SAFETY: tasks have disjoint rows or heads.
            let log_sum = unsafe { log_sums.part(at..at + 1) };
            log_sum[0] = max + sums[i].ln();
        }
        let p = View::new(&scores[..block.rows.len() * end], block.rows.len(), end);
        multiply(self.table, &p, (&context.v_panels, len), |row, col, values| {
            let at = ((block.rows.start + row) * args.heads + head) * len + col;
            // SAFETY: as above.
            let out = unsafe { out.part(at..at + values.len()) };
            let factor = 1.0 / sums[row];
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value * factor);
        });
    }

    /// Products of a block of rows with `end` columns of panels, into rows of `end`.
    fn scores(&self, left: &View<'_>, panels: &Panels, end: usize, scores: &mut [f32]) {
        multiply(self.table, left, (panels, end), |row, col, values| {
            scores[row * end + col..][..values.len()].copy_from_slice(values);
        });
    }

    fn backward(&self, tree: &Tree, attended: &Attended<'_>, [d_q, d_k, d_v]: &[SharedMut<'_>; 3]) {
        let (len, start) = (self.args.head_dim, tree.rows().start);
        let mut context = Context::default();
        let mut work = Work::default();
        let mut tree_k = vec![0.0; tree.rows().len() * len];
        let mut tree_v = tree_k.clone();
        for segment in &tree.segments {
            let num = self.context(segment, &mut context, true);
            work.begin(num, len);
            for first in (0..segment.rows.len()).step_by(QUERIES) {
                let last = segment.rows.len().min(first + QUERIES);
                let rows = segment.rows.start + first..segment.rows.start + last;
                for head in self.query_heads() {
                    let block = Block { rows: rows.clone(), first, prefix: segment.prefix.len(), head };
                    self.backward_block(&block, (&context, attended), &mut work, d_q);
                }
            }
            for (place, row) in segment.prefix.clone().chain(segment.rows.clone()).enumerate() {
                for (from, to) in [(&work.d_k, &mut tree_k), (&work.d_v, &mut tree_v)] {
                    let to = &mut to[(row - start) * len..][..len];
                    to.iter_mut().zip(&from[place * len..]).for_each(|(to, from)| *to += from);
                }
            }
        }
        for (from, to) in [(&tree_k, d_k), (&tree_v, d_v)] {
            for (row, from) in tree.rows().zip(from.chunks_exact(len)) {
                let at = (row * self.args.kv_heads + self.kv_head) * len;
                // SAFETY: tasks have disjoint rows or heads.
                unsafe { to.part(at..at + len) }.copy_from_slice(from);
            }
        }
    }

    fn backward_block(
        &self,
        block: &Block,
        (context, attended): (&Context, &Attended<'_>),
        work: &mut Work,
        d_q: &SharedMut<'_>,
    ) {
        let (args, len, head, end) = (self.args, self.args.head_dim, block.head, block.end());
        let q = self.head(args.q, &block.rows, head);
        let d_out = self.head(attended.d_out, &block.rows, head);
        let out = self.head(attended.out, &block.rows, head);
        let Work { p, d_p, d_k, d_v, panels } = work;
        self.scores(&q, &context.k_transposed, end, p);
        self.scores(&d_out, &context.v_transposed, end, d_p);
        let num_rows = block.rows.len();
        for i in 0..num_rows {
            let visible = self.visible(block.prefix, block.first + i);
            let p = &mut p[i * end..(i + 1) * end];
            p[..visible.start].fill(0.0);
            p[visible.end..].fill(0.0);
            let log_sum = attended.log_sums[(block.rows.start + i) * args.heads + head];
            // SAFETY: `Kernels` chose the table among those that this processor can run.
            unsafe { (self.table.exp_sum)(&mut p[visible], args.scale, log_sum) };
        }
        panels.pack(self.table, &d_out, 0..num_rows, 0..len);
        add_product(self.table, &View::new(&p[..num_rows * end], num_rows, end).transposed(), (panels, len), d_v);
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
        add_product(self.table, &d_scores.transposed(), (panels, len), d_k);
        multiply(self.table, &d_scores, (&context.k_panels, len), |row, col, values| {
            let at = ((block.rows.start + row) * args.heads + head) * len + col;
            // SAFETY: tasks have disjoint rows or heads.
            unsafe { d_q.part(at..at + values.len()) }.copy_from_slice(values);
        });
    }
}

/// Some queries of one head.
struct Block {
    rows: Range<usize>,
    /// Place of the first row in its segment.
    first: usize,
    /// Length of the segment's prefix.
    prefix: usize,
    head: usize,
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
    p: Vec<f32>,
    d_p: Vec<f32>,
    d_k: Vec<f32>,
    d_v: Vec<f32>,
    panels: Panels,
}

impl Work {
    fn begin(&mut self, num: usize, len: usize) {
        self.p.resize(QUERIES * num, 0.0);
        self.d_p.resize(QUERIES * num, 0.0);
        for sums in [&mut self.d_k, &mut self.d_v] {
            sums.clear();
            sums.resize(num * len, 0.0);
        }
    }
}

fn add_product(table: &TrainingTable, left: &View<'_>, (panels, cols): (&Panels, usize), out: &mut [f32]) {
    multiply(table, left, (panels, cols), |row, col, values| {
        let out = &mut out[row * cols + col..][..values.len()];
        out.iter_mut().zip(values).for_each(|(out, value)| *out += value);
    });
}
