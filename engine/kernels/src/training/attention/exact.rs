//! Attention in single precision.

use std::cell::RefCell;

use super::{Attended, Block, Job, Segment};
use crate::ahead::Ahead;
use crate::shared::SharedMut;
use crate::training::left::Left;
use crate::training::pack::Panels;
use crate::training::product::{Out, multiply};
use crate::training::table::TrainingTable;
use crate::training::view::View;
use crate::{Buffer, reduce};

/// Queries of one head that are computed together: whole tiles, and with a thousand keys 192 KiB of scores.
const QUERIES: usize = 48;

thread_local! {
    /// Buffers of the task that a thread is at.
    static SCRATCH: RefCell<(Context, Work)> = RefCell::default();
}

/// The keys and values that a segment sees, packed as its products need them.
#[derive(Default)]
struct Context {
    k_and_v: [Buffer; 2],
    k_transposed: Panels,
    v_transposed: Panels,
    k_panels: Panels,
    v_panels: Panels,
}

/// Buffers of a block.
#[derive(Default)]
struct Work {
    p: Buffer,
    d_p: Buffer,
    panels: Panels,
}

impl Job<'_> {
    fn pack(&self, segment: &Segment, context: &mut Context, backward: bool) -> usize {
        let len = self.args.head_dim;
        let (args, at, [k, v]) = (self.args, (segment, self.kv_head()), &mut context.k_and_v);
        let (k, v) = (args.places(args.k, at, k), args.places(args.v, at, v));
        let num = k.rows;
        context.k_transposed.pack(self.table, &k.transposed(), 0..len, 0..num);
        if backward {
            context.v_transposed.pack(self.table, &v.transposed(), 0..len, 0..num);
            context.k_panels.pack(self.table, &k, 0..num, 0..len);
        } else {
            context.v_panels.pack(self.table, &v, 0..num, 0..len);
        }
        num
    }

    pub(super) fn forward_exact(&self, segment: &Segment, out: &SharedMut<'_>, log_sums: &SharedMut<'_>) {
        SCRATCH.with_borrow_mut(|(context, work)| {
            let num = self.pack(segment, context, false);
            work.p.fit(QUERIES * num);
            Job::blocks(segment, QUERIES)
                .for_each(|block| self.forward_block(&block, context, &mut work.p, (out, log_sums)));
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

    /// Adds the gradients of keys and values to `sums`.
    pub(super) fn backward_exact(
        &self,
        segment: &Segment,
        attended: &Attended<'_>,
        d_q: &SharedMut<'_>,
        mut sums: [&mut [f32]; 2],
    ) {
        SCRATCH.with_borrow_mut(|(context, work)| {
            let num = self.pack(segment, context, true);
            work.p.fit(QUERIES * num);
            work.d_p.fit(QUERIES * num);
            for block in Job::blocks(segment, QUERIES) {
                self.backward_block(&block, (context, attended), work, (d_q, &mut sums));
            }
        });
    }

    fn backward_block(
        &self,
        block: &Block,
        (context, attended): (&Context, &Attended<'_>),
        work: &mut Work,
        (d_q, [d_k, d_v]): (&SharedMut<'_>, &mut [&mut [f32]; 2]),
    ) {
        let (args, len, end) = (self.args, self.args.head_dim, block.end());
        let q = self.rows_of(args.q, &block.rows);
        let d_out = self.rows_of(attended.d_out, &block.rows);
        let out = self.rows_of(attended.out, &block.rows);
        let Work { p, d_p, panels } = work;
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

/// Writes or adds a product with `cols` packed columns to rows of so many.
fn product(table: &TrainingTable, left: &View<'_>, (panels, cols): (&Panels, usize), out: &mut [f32], add: bool) {
    let (left, out) = (Left::lying(left), SharedMut::new(out));
    let out = Out { floats: &out, start: 0, stride: cols, add };
    // SAFETY: `out` is borrowed mutably here alone.
    unsafe { multiply(table, (&left, 0..left.num_tiles()), (panels, cols), &out, &mut Ahead::none()) };
}
