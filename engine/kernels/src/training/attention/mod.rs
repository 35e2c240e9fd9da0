//! Causal attention of a ragged batch, and its backward pass.
//!
//! A **tree** is a run of rows with a common start: its segments follow each other, and each sees its *prefix*, an earlier segment,
//! and its own rows up to itself. A plain sequence is a tree of one segment; a preference pair is a prompt with two answers. A task
//! takes one tree and one query head; gradients of keys and values are added up over the heads that share them afterwards, in
//! order. The forward pass keeps the logarithm of each row's sum; the backward pass computes the probabilities again from it, a block
//! of queries at a time, so that queries x keys are never held whole.
//!
//! `exact.rs` computes in single precision. `rounded.rs` rounds the factors of every product to bf16, keys and values in tasks of their
//! own before; sums and softmax are in single precision there too. In both, a value that is not a number reaches all rows of the
//! blocks that are multiplied with it, even those that do not see it: zero times it is none either.
//!
//! **Source**: Dao et al., 2022 (FlashAttention), algorithm 4, with whole rows of scores in place of blocks of keys.

mod exact;
mod rounded;
mod softmax;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ops::Range;

use super::squares::Squares;
use super::table::TrainingTable;
use super::view::View;
use crate::shared::SharedMut;
use crate::{Buffer, Isa, Pool};

/// Some rows of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its rows in the batch, at least one.
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
    /// Whether products round their factors to bf16; otherwise all is single precision.
    pub bf16: bool,
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
    isa: Isa,
    table: &'static TrainingTable,
    head: usize,
    /// Number of the tree's first segment.
    first_segment: usize,
    /// Of all segments, where the products are in bf16.
    contexts: &'a [Squares],
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

/// Rows whose gradients of keys or values a task adds up over heads.
const TASK_ROWS: usize = 32;

thread_local! {
    /// Gradients of keys and values `(heads, rows, head_dim)`, of the call that a thread is at.
    static BY_HEAD: RefCell<[Buffer; 2]> = RefCell::default();
    /// Gradients of the keys and values that a segment with a prefix sees.
    static BY_PLACE: RefCell<[Buffer; 2]> = RefCell::default();
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
            assert!(!segment.rows.is_empty(), "a segment has rows");
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

    fn jobs(&self, (isa, pool): (Isa, &Pool), contexts: &[Squares], run: impl Fn(&Job<'_>, &Tree) + Sync) {
        let table = TrainingTable::of(isa);
        pool.run(self.trees.len() * self.heads, |task| {
            let (tree, head) = (task / self.heads, task % self.heads);
            let first_segment = self.trees[..tree].iter().map(|tree| tree.segments.len()).sum();
            run(&Job { args: self, isa, table, head, first_segment, contexts }, &self.trees[tree]);
        });
    }

    pub(super) fn forward(&self, isa: Isa, pool: &Pool, out: &mut [f32], log_sums: &mut [f32]) {
        let rows = log_sums.len() / self.heads.max(1);
        self.check(rows);
        assert!(out.len() == self.q.len() && log_sums.len() == rows * self.heads, "outputs of {rows} rows");
        let (out, log_sums) = (SharedMut::new(out), SharedMut::new(log_sums));
        self.with_contexts((isa, pool), &rounded::FORWARD, |contexts| {
            self.jobs((isa, pool), contexts, |job, tree| job.forward(tree, &out, &log_sums));
        });
    }

    pub(super) fn backward(&self, isa: Isa, pool: &Pool, attended: &Attended<'_>, [d_q, d_k, d_v]: [&mut [f32]; 3]) {
        let rows = attended.log_sums.len() / self.heads.max(1);
        self.check(rows);
        assert!(attended.out.len() == self.q.len() && attended.d_out.len() == self.q.len(), "outputs");
        assert!(d_q.len() == self.q.len() && d_k.len() == self.k.len() && d_v.len() == self.v.len(), "gradients");
        let d_q = SharedMut::new(d_q);
        BY_HEAD.with_borrow_mut(|by_head| {
            let [by_head_k, by_head_v] = by_head.each_mut().map(|values| values.fit(self.q.len()));
            let gradients = [&d_q, &SharedMut::new(by_head_k), &SharedMut::new(by_head_v)];
            self.with_contexts((isa, pool), &rounded::BACKWARD, |contexts| {
                self.jobs((isa, pool), contexts, |job, tree| job.backward(tree, attended, gradients));
            });
            self.add_heads(pool, by_head_k, d_k);
            self.add_heads(pool, by_head_v, d_v);
        });
    }

    /// The rows of keys or values that a segment sees, in order; brought together in the buffer where they lie apart.
    fn places<'a>(&self, from: &'a [f32], (segment, kv_head): (&Segment, usize), to: &'a mut Buffer) -> View<'a> {
        let (len, stride, first) = (self.head_dim, self.kv_heads * self.head_dim, kv_head * self.head_dim);
        if segment.prefix.is_empty() {
            return View::strided(&from[segment.rows.start * stride + first..], segment.rows.len(), len, stride);
        }
        let rows = || segment.prefix.clone().chain(segment.rows.clone());
        let num = rows().count();
        let places = to.fit(num * len).chunks_exact_mut(len);
        rows().zip(places).for_each(|(row, to)| to.copy_from_slice(&from[row * stride + first..][..len]));
        View::new(to, num, len)
    }

    /// Adds up what the query heads of each key/value head found: `by_head` is `(heads, rows, head_dim)`.
    fn add_heads(&self, pool: &Pool, by_head: &[f32], out: &mut [f32]) {
        let (len, out_len) = (self.head_dim, self.kv_heads * self.head_dim);
        let (num_rows, group) = (out.len() / out_len, self.heads / self.kv_heads);
        let out = SharedMut::new(out);
        pool.run(num_rows.div_ceil(TASK_ROWS), |task| {
            let rows = task * TASK_ROWS..num_rows.min((task + 1) * TASK_ROWS);
            // SAFETY: tasks have disjoint rows.
            let out = unsafe { out.part(rows.start * out_len..rows.end * out_len) };
            for (row, out) in rows.zip(out.chunks_exact_mut(out_len)) {
                for (kv_head, out) in out.chunks_exact_mut(len).enumerate() {
                    let mut heads = (kv_head * group..(kv_head + 1) * group)
                        .map(|head| &by_head[(head * num_rows + row) * len..][..len]);
                    out.copy_from_slice(heads.next().expect("invariant: `check` found heads"));
                    heads.for_each(|head| out.iter_mut().zip(head).for_each(|(out, head)| *out += head));
                }
            }
        });
    }
}

impl Job<'_> {
    fn forward(&self, tree: &Tree, out: &SharedMut<'_>, log_sums: &SharedMut<'_>) {
        for (index, segment) in tree.segments.iter().enumerate() {
            match self.args.bf16 {
                true => self.forward_rounded((index, segment), out, log_sums),
                false => self.forward_exact(segment, out, log_sums),
            }
        }
    }

    fn backward(&self, tree: &Tree, attended: &Attended<'_>, [d_q, d_k, d_v]: [&SharedMut<'_>; 3]) {
        let (len, num_rows) = (self.args.head_dim, attended.log_sums.len() / self.args.heads);
        for (index, segment) in tree.segments.iter().enumerate() {
            let own = self.head * num_rows + segment.rows.start..self.head * num_rows + segment.rows.end;
            // SAFETY: tasks have disjoint heads or rows.
            let [own_k, own_v] =
                unsafe { [d_k.part(own.start * len..own.end * len), d_v.part(own.start * len..own.end * len)] };
            if segment.prefix.is_empty() {
                self.backward_segment((index, segment), attended, d_q, [own_k, own_v]);
                continue;
            }
            BY_PLACE.with_borrow_mut(|by_place| {
                let num = segment.prefix.len() + segment.rows.len();
                let [by_place_k, by_place_v] = by_place.each_mut().map(|sums| sums.fit(num * len));
                self.backward_segment((index, segment), attended, d_q, [by_place_k, by_place_v]);
                let prefix = self.head * num_rows + segment.prefix.start..self.head * num_rows + segment.prefix.end;
                for ((from, own), all) in by_place.iter().zip([own_k, own_v]).zip([d_k, d_v]) {
                    let (of_prefix, of_own) = from.split_at(segment.prefix.len() * len);
                    own.copy_from_slice(of_own);
                    // SAFETY: as above; a prefix ends before its segment.
                    let before = unsafe { all.part(prefix.start * len..prefix.end * len) };
                    before.iter_mut().zip(of_prefix).for_each(|(sum, term)| *sum += term);
                }
            });
        }
    }

    /// Writes gradients of the keys and values that the segment sees to `sums`.
    fn backward_segment(
        &self,
        (index, segment): (usize, &Segment),
        attended: &Attended<'_>,
        d_q: &SharedMut<'_>,
        mut sums: [&mut [f32]; 2],
    ) {
        sums.iter_mut().for_each(|sums| sums.fill(0.0));
        match self.args.bf16 {
            true => self.backward_rounded((index, segment), attended, d_q, sums),
            false => self.backward_exact(segment, attended, d_q, sums),
        }
    }

    /// The head of keys and values that the job's head reads.
    fn kv_head(&self) -> usize {
        self.head / (self.args.heads / self.args.kv_heads)
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
    fn blocks(segment: &Segment, num_queries: usize) -> impl Iterator<Item = Block> {
        let (rows, prefix) = (segment.rows.clone(), segment.prefix.len());
        (0..rows.len()).step_by(num_queries).map(move |first| {
            let last = rows.len().min(first + num_queries);
            Block { rows: rows.start + first..rows.start + last, first, prefix }
        })
    }
}
