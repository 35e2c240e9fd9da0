//! Attention of a block of query rows at once: the keys of a chunk are read, and turned so that a vector holds sixteen
//! keys, once for all rows of one sequence in the block and all query heads of their key head.
//!
//! A *vector* here is one row's query of one head. What a vector becomes depends on nothing else in its block: each
//! score is summed along the head in order, each output along the keys in order, chunk by chunk. A key that one vector
//! of the block sees and another does not has weight 0 for the latter, which changes no bit as long as values are
//! finite.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::{AttentionRow, CHUNK, Job, Scores, Softmax};

/// Most vectors of a block: with their scores and packed queries (18 KiB for a head of 64) they leave room for a chunk
/// of keys and values in a first-level cache.
pub(crate) const VECTORS: usize = 48;
/// Vectors whose queries are packed, and scored, together.
pub(crate) const SCORE_TILE: usize = 12;
/// The largest head; longer ones take the path of one row.
pub(crate) const HEAD_DIM_MAX: usize = 256;
/// Tasks per thread where there is enough work, for balance.
const TASKS_PER_THREAD: usize = 4;

/// The state of a block: what the instruction set's function works on.
#[repr(align(64))]
pub(crate) struct Block {
    pub(crate) num_vectors: usize,
    pub(crate) head_dim: usize,
    pub(crate) scale: f32,
    /// Queries: per tile of [`SCORE_TILE`] vectors, the last one narrower, `(head_dim, vectors of the tile)`.
    /// Written as far as there are vectors.
    pub(crate) queries: [MaybeUninit<f32>; VECTORS * HEAD_DIM_MAX],
    pub(crate) scores: [Scores; VECTORS],
    pub(crate) softmax: [Softmax; VECTORS],
    /// Where the outputs are, `head_dim` floats each.
    pub(crate) out: [*mut f32; VECTORS],
    /// What each vector sees of the chunk.
    pub(crate) lanes: [(u8, u8); VECTORS],
}

/// A chunk of keys and values, of which the lanes from `first_lane` on are there.
pub(crate) struct Chunk<'a> {
    pub(crate) keys: &'a [&'a [f32]],
    pub(crate) values: &'a [&'a [f32]],
    pub(crate) first_lane: usize,
}

impl<'a> Job<'a> {
    /// Computes every row and head in blocks.
    pub(super) fn run_blocked(&self, step: unsafe fn(&mut Block, &Chunk<'_>), pool: &crate::Pool) {
        let (num_rows, kv_heads) = (self.args.rows.len(), self.shape.kv_heads);
        let balanced = num_rows * kv_heads / (TASKS_PER_THREAD * pool.num_threads());
        let task_rows = (VECTORS / self.group).min(balanced).max(1);
        let num_tasks = num_rows.div_ceil(task_rows) * kv_heads;
        pool.run(num_tasks, |task| {
            // The last rows of a prompt see the most, so they come first.
            let task = num_tasks - 1 - task;
            let (rows, kv_head) = (task / kv_heads * task_rows, task % kv_heads);
            let end = num_rows.min(rows + task_rows);
            let mut start = rows;
            while start < end {
                let blocks = self.args.rows[start].blocks.as_ptr();
                let same = |row: &&AttentionRow<'_>| row.blocks.as_ptr() == blocks;
                let run = start..start + self.args.rows[start..end].iter().take_while(same).count();
                self.block(step, run.clone(), kv_head);
                start = run.end;
            }
        });
    }

    /// Rows of one sequence, and the query heads of one key head.
    fn block(&self, step: unsafe fn(&mut Block, &Chunk<'_>), rows: Range<usize>, kv_head: usize) {
        let mut block = self.new_block(rows.clone(), kv_head);
        let seen = || rows.clone().zip(&self.args.rows[rows.clone()]).filter(|(_, row)| row.start < row.end);
        let Some((last, AttentionRow { end, .. })) = seen().max_by_key(|(_, row)| row.end) else { return };
        let start = seen().map(|(_, row)| row.start).min().unwrap_or(0);
        let mut scratch = self.scratch();
        let mut chunk = start / CHUNK * CHUNK;
        while chunk < *end {
            let positions = start.max(chunk)..(*end).min(chunk + CHUNK);
            let (first_lane, num) = (positions.start - chunk, positions.len());
            for (row, lanes) in self.args.rows[rows.clone()].iter().zip(block.lanes.chunks_exact_mut(self.group)) {
                let lane = |position: usize| position.clamp(chunk, chunk + CHUNK) - chunk;
                lanes.fill((lane(row.start) as u8, lane(row.end) as u8));
            }
            let (keys, values) = self.find(last, kv_head, positions, &mut scratch);
            let chunk_data = Chunk { keys: &keys[..num], values: &values[..num], first_lane };
            // SAFETY: `Kernels` chose the table that `step` is from among those that this processor can run, and the
            // outputs of the block are parts of `out` that no other task has.
            unsafe { step(&mut block, &chunk_data) };
            chunk += CHUNK;
        }
        let head_dim = self.shape.head_dim;
        for vector in 0..block.num_vectors {
            if block.softmax[vector].sum == 0.0 {
                // It saw nothing; a sum of weights has a term of 1 otherwise.
                continue;
            }
            let at = self.first_element(rows.start, kv_head, vector);
            // SAFETY: every row and head is in exactly one task.
            let out = unsafe { self.out.part(at..at + head_dim) };
            out.iter_mut().for_each(|value| *value /= block.softmax[vector].sum);
        }
    }

    /// A block with its queries packed and its outputs zero.
    fn new_block(&self, rows: Range<usize>, kv_head: usize) -> Block {
        let head_dim = self.shape.head_dim;
        let num_vectors = rows.len() * self.group;
        assert!(num_vectors <= VECTORS && head_dim <= HEAD_DIM_MAX, "a block of {num_vectors} x {head_dim}");
        let mut block = Block {
            num_vectors,
            head_dim,
            scale: self.args.scale,
            queries: [const { MaybeUninit::uninit() }; VECTORS * HEAD_DIM_MAX],
            scores: [[0.0; CHUNK]; VECTORS],
            softmax: [Softmax::START; VECTORS],
            out: [std::ptr::null_mut(); VECTORS],
            lanes: [(0, 0); VECTORS],
        };
        for vector in 0..num_vectors {
            let (tile, place) = (vector / SCORE_TILE, vector % SCORE_TILE);
            let width = SCORE_TILE.min(num_vectors - tile * SCORE_TILE);
            let at = self.first_element(rows.start, kv_head, vector);
            let queries = &mut block.queries[tile * SCORE_TILE * head_dim + place..];
            for (to, from) in queries.iter_mut().step_by(width).zip(&self.args.q[at..at + head_dim]) {
                to.write(*from);
            }
            // SAFETY: every row and head is in exactly one task.
            let out = unsafe { self.out.part(at..at + head_dim) };
            out.fill(0.0);
            block.out[vector] = out.as_mut_ptr();
        }
        block
    }

    /// Where the query and the output of a vector of a block start.
    fn first_element(&self, first_row: usize, kv_head: usize, vector: usize) -> usize {
        let (row, head) = (first_row + vector / self.group, kv_head * self.group + vector % self.group);
        (row * self.args.heads + head) * self.shape.head_dim
    }
}
