//! Attention of a block of query rows at once: the keys of a chunk are read once for all rows of one sequence in the block and all
//! query heads of their key head, and those of a beginning that sequences have in common (a persona, examples) once for all of them in the block.
//!
//! A *vector* here is one row's query of one head. What a vector becomes depends on nothing else in its block: each
//! score is summed along the head in order, each output along the keys in order, chunk by chunk. A key that one vector
//! of the block sees and another does not has weight 0 for the latter, which changes no bit as long as values are
//! finite.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::kv::Float;
use super::{Attention, AttentionRow, CHUNK, HALF, Job, Scores, Scratch, Softmax};

/// Most vectors of a block: with their scores and packed queries (18 KiB for a head of 64) they leave room for a chunk
/// of keys and values in a first-level cache.
pub(crate) const VECTORS: usize = 48;
/// Vectors whose queries are packed, and scored, together.
pub(crate) const SCORE_TILE: usize = 12;
/// The largest head; longer ones take the path of one row.
pub(crate) const HEAD_DIM_MAX: usize = 256;
/// Tasks per thread where there is enough work, for balance.
const TASKS_PER_THREAD: usize = 4;
/// Chunks between the one that is computed and the one that the caches are asked for.
const AHEAD: usize = 2;
/// Chunks in common that are worth being taken together.
const SHARED_MIN: usize = 2;

thread_local! {
    /// The block that a thread is at: too large to be made anew for every few rows.
    static BLOCK: RefCell<Box<Block>> = RefCell::new(Box::new(Block {
        num_vectors: 0,
        head_dim: 0,
        scale: 0.0,
        queries: [const { MaybeUninit::uninit() }; VECTORS * HEAD_DIM_MAX],
        scores: [[0.0; CHUNK]; VECTORS],
        softmax: [Softmax::START; VECTORS],
        shared: [Softmax::START; VECTORS],
        out: [std::ptr::null_mut(); VECTORS],
        lanes: [(0, 0); VECTORS],
    }));
}

/// The state of a block: what the instruction set's function works on.
#[repr(align(64))]
pub(crate) struct Block {
    pub(crate) num_vectors: usize,
    pub(crate) head_dim: usize,
    pub(crate) scale: f32,
    /// Queries: per tile of [`SCORE_TILE`] vectors, the last one narrower, `(head_dim, vectors of the tile)`.
    /// Written as far as there are vectors.
    pub(crate) queries: [MaybeUninit<f32>; VECTORS * HEAD_DIM_MAX],
    /// Those of a chunk, then weights; a step writes them before it reads them.
    pub(crate) scores: [Scores; VECTORS],
    pub(crate) softmax: [Softmax; VECTORS],
    /// Those of all sequences after the chunks that they have in common.
    shared: [Softmax; VECTORS],
    /// Where the outputs are, `head_dim` floats each.
    pub(crate) out: [*mut f32; VECTORS],
    /// What each vector sees of the chunk.
    pub(crate) lanes: [(u8, u8); VECTORS],
}

/// A chunk of keys and values. Keys that no vector of the block sees may be anything.
pub(crate) struct Chunk {
    /// The format of the elements.
    pub(crate) float: Float,
    /// Where the first elements of the keys of each half are, one after the other.
    pub(crate) keys: [*const u8; 2],
    /// Bytes to the next elements of the keys.
    pub(crate) key_stride: usize,
    /// Where the values of the lanes from `first_lane` on are, of which there are `num`.
    pub(crate) values: [*const u8; CHUNK],
    pub(crate) first_lane: usize,
    pub(crate) num: usize,
}

/// Computes one chunk for a block.
///
/// # Safety
/// The processor has the instruction set. The outputs of the block are valid for `head_dim` floats each and accessed by nobody else,
/// its queries are written, and the chunk's pointers are those of as many elements as it says.
pub(crate) type Step = unsafe fn(&mut Block, &Chunk);

/// Chunks that some rows of a block go through together.
struct Stretch {
    rows: Range<usize>,
    kv_head: usize,
    chunks: Range<usize>,
    /// The first of the rows that went through the chunks before, if any did.
    after: Option<usize>,
    /// Whether these are the last chunks of the rows.
    is_last: bool,
}

impl<'a> Job<'a> {
    /// Computes every row and head in blocks.
    pub(super) fn run_blocked(&self, step: Step, pool: &crate::Pool) {
        let (num_rows, kv_heads) = (self.args.rows.len(), self.shape.kv_heads);
        let balanced = num_rows * kv_heads / (TASKS_PER_THREAD * pool.num_threads());
        let block_rows = (VECTORS / self.group).min(balanced).max(1);
        let num_blocks = num_rows.div_ceil(block_rows) * kv_heads;
        // Blocks of one row each, as in decoding, are too little for a task where there are many.
        let task_blocks = (balanced / block_rows).max(1);
        let num_tasks = num_blocks.div_ceil(task_blocks);
        pool.run(num_tasks, |task| {
            // The last rows of a prompt see the most, so they come first.
            let task = num_tasks - 1 - task;
            let blocks = task * task_blocks..num_blocks.min((task + 1) * task_blocks);
            let stretches = blocks.flat_map(|block| {
                let first = block / kv_heads * block_rows;
                self.stretches(first..num_rows.min(first + block_rows), block % kv_heads)
            });
            let mut stretches = stretches.peekable();
            if let Some(first) = stretches.peek() {
                self.ask(first, 0..AHEAD);
            }
            BLOCK.with_borrow_mut(|block| {
                while let Some(stretch) = stretches.next() {
                    self.compute(block, step, &stretch, stretches.peek());
                }
            });
        });
    }

    /// The stretches of rows: for sequences that begin alike those chunks, then the others of each sequence.
    fn stretches(&self, rows: Range<usize>, kv_head: usize) -> impl Iterator<Item = Stretch> {
        let (mut rest, mut together, mut shared) = (rows, 0..0, None);
        std::iter::from_fn(move || {
            if together.is_empty() {
                let (rows, chunks) = self.alike(rest.clone())?;
                (rest.start, together, shared) = (rows.end, rows.clone(), None);
                if !chunks.is_empty() {
                    shared = Some((rows.start, chunks.end));
                    return Some(Stretch { rows, kv_head, chunks, after: None, is_last: false });
                }
            }
            let rows = self.runs(together.clone()).next()?;
            together.start = rows.end;
            let seen = self.seen(rows.clone()).map_or(0..0, |(_, seen)| seen);
            let first = shared.map_or(seen.start / CHUNK, |(_, end)| end);
            let chunks = first..seen.end.div_ceil(CHUNK);
            Some(Stretch { rows, kv_head, chunks, after: shared.map(|(first, _)| first), is_last: true })
        })
    }

    /// The first of some rows that see enough chunks in common with those after them, and these chunks; of none, the rows of a sequence.
    fn alike(&self, rows: Range<usize>) -> Option<(Range<usize>, Range<usize>)> {
        let mut runs = self.runs(rows);
        let mut alike = runs.next()?;
        let AttentionRow { blocks, start, .. } = self.args.rows[alike.start];
        let first = start / CHUNK;
        // The chunks from the first on that all of these rows see whole.
        let seen_by_all = |rows: &Range<usize>| {
            let rows = &self.args.rows[rows.clone()];
            let begin_there = rows.iter().all(|row| row.start == start);
            let end = rows.iter().map(|row| row.end / CHUNK).min().unwrap_or(0);
            if begin_there { first..end.max(first) } else { first..first }
        };
        let mut chunks = seen_by_all(&alike);
        let mut num = 1;
        for run in runs {
            let same = blocks.iter().zip(self.args.rows[run.start].blocks).take_while(|(a, b)| a == b).count();
            let end = chunks.end.min(seen_by_all(&run).end).min(same * self.shape.block_tokens / CHUNK);
            // What few have in common is not given up for what many have.
            if end < first + SHARED_MIN.max(chunks.len() / 2) {
                break;
            }
            (alike.end, chunks.end, num) = (run.end, end, num + 1);
        }
        Some((alike, if num > 1 { chunks } else { first..first }))
    }

    /// Cuts rows where the sequence changes.
    pub(super) fn runs(&self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let (mut start, end) = (rows.start, rows.end);
        std::iter::from_fn(move || {
            let blocks = self.args.rows.get(start..end)?.first()?.blocks.as_ptr();
            let same = |row: &&AttentionRow<'_>| row.blocks.as_ptr() == blocks;
            let run = start..start + self.args.rows[start..end].iter().take_while(same).count();
            start = run.end;
            Some(run)
        })
    }

    /// What some rows see together, and the row that sees the last of it.
    pub(super) fn seen(&self, rows: Range<usize>) -> Option<(usize, Range<usize>)> {
        let seen = || rows.clone().zip(&self.args.rows[rows.clone()]).filter(|(_, row)| row.start < row.end);
        let (last, AttentionRow { end, .. }) = seen().max_by_key(|(_, row)| row.end)?;
        let start = seen().map(|(_, row)| row.start).min().unwrap_or(0);
        Some((last, start..*end))
    }

    /// Takes rows through the chunks of a stretch; `next` is the one after it.
    fn compute(&self, block: &mut Block, step: Step, stretch: &Stretch, next: Option<&Stretch>) {
        let Stretch { ref rows, kv_head, ref chunks, after, is_last } = *stretch;
        let (head_dim, num_vectors) = (self.shape.head_dim, rows.len() * self.group);
        assert!(num_vectors <= VECTORS && head_dim <= HEAD_DIM_MAX, "a block of {num_vectors} x {head_dim}");
        (block.num_vectors, block.head_dim, block.scale) = (num_vectors, head_dim, self.args.scale);
        match after {
            None => block.softmax[..num_vectors].fill(Softmax::START),
            Some(first) => {
                let from = (rows.start - first) * self.group;
                block.softmax[..num_vectors].copy_from_slice(&block.shared[from..from + num_vectors]);
            }
        }
        self.begin(block, rows.start, kv_head, after.is_none());
        let Some((last, seen)) = self.seen(rows.clone()) else { return };
        let mut scratch = self.scratch();
        if let Some(next) = next {
            // What so few chunks leave no time to ask for.
            self.ask(next, 0..AHEAD.saturating_sub(chunks.len()));
        }
        for index in chunks.clone() {
            match (index + AHEAD).checked_sub(chunks.end) {
                None => self.ask(stretch, index + AHEAD - chunks.start..index + AHEAD - chunks.start + 1),
                Some(ahead) => next.into_iter().for_each(|next| self.ask(next, ahead..ahead + 1)),
            }
            let chunk = index * CHUNK;
            let positions = seen.start.max(chunk)..seen.end.min(chunk + CHUNK);
            for (row, lanes) in self.args.rows[rows.clone()].iter().zip(block.lanes.chunks_exact_mut(self.group)) {
                let lane = |position: usize| position.clamp(chunk, chunk + CHUNK) - chunk;
                lanes.fill((lane(row.start) as u8, lane(row.end) as u8));
            }
            let chunk = self.chunk(last, kv_head, (chunk, positions), &mut scratch);
            // SAFETY: `Kernels` chose the table that `step` is from among those that this processor can run, and the
            // outputs of the block are parts of `out` that no other task has.
            unsafe { step(block, &chunk) };
        }
        if !is_last {
            block.shared[..num_vectors].copy_from_slice(&block.softmax[..num_vectors]);
            return;
        }
        for vector in 0..num_vectors {
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

    /// The keys and values of some positions of the chunk from position `first` on.
    pub(super) fn chunk(
        &self,
        row: usize,
        kv_head: usize,
        (first, positions): (usize, Range<usize>),
        scratch: &mut Scratch,
    ) -> Chunk {
        let (Attention { k, v, .. }, place) = (self.args, (self.args.rows[row].blocks, kv_head));
        let (first_lane, num) = (positions.start - first, positions.len());
        if let (Some(float), Some(other)) = (k.in_place(), v.in_place())
            && float == other
        {
            let (keys, key_stride) = k.keys_in_place(place, first, &positions);
            return Chunk { float, keys, key_stride, values: v.values_in_place(place, positions), first_lane, num };
        }
        let (turned, values) = scratch.0.split_at_mut(self.chunk_len());
        k.decode_turned(place, positions.clone(), first_lane, turned);
        v.decode_straight(self.table, place, positions, values);
        let mut rows = values.chunks_exact(self.shape.head_dim);
        Chunk {
            float: Float::F32,
            keys: [0, HALF].map(|lane| turned[lane..].as_ptr().cast()),
            key_stride: CHUNK * size_of::<f32>(),
            values: std::array::from_fn(|_| {
                rows.next().expect("invariant: the scratch has room for a chunk").as_ptr().cast()
            }),
            first_lane,
            num,
        }
    }

    /// Packs the queries of a block, and zeroes its outputs where nothing was added to them yet.
    fn begin(&self, block: &mut Block, first_row: usize, kv_head: usize, is_first: bool) {
        let head_dim = block.head_dim;
        for vector in 0..block.num_vectors {
            let (tile, place) = (vector / SCORE_TILE, vector % SCORE_TILE);
            let width = SCORE_TILE.min(block.num_vectors - tile * SCORE_TILE);
            let at = self.first_element(first_row, kv_head, vector);
            let queries = &mut block.queries[tile * SCORE_TILE * head_dim + place..];
            for (to, from) in queries.iter_mut().step_by(width).zip(&self.args.q[at..at + head_dim]) {
                to.write(*from);
            }
            // SAFETY: every row and head is in exactly one task.
            let out = unsafe { self.out.part(at..at + head_dim) };
            if is_first {
                out.fill(0.0);
            }
            block.out[vector] = out.as_mut_ptr();
        }
    }

    /// Asks for the keys and values of some of the chunks of a stretch, counted from its first.
    fn ask(&self, stretch: &Stretch, chunks: Range<usize>) {
        let first = stretch.chunks.start;
        let chunks = first + chunks.start..stretch.chunks.end.min(first + chunks.end);
        self.prefetch(&stretch.rows, stretch.kv_head, chunks);
    }

    /// Asks for the keys and values of some chunks, as far as rows see them that have these chunks in common.
    pub(super) fn prefetch(&self, rows: &Range<usize>, kv_head: usize, chunks: Range<usize>) {
        let Some((last, seen)) = self.seen(rows.clone()) else { return };
        let positions = seen.start.max(chunks.start * CHUNK)..seen.end.min(chunks.end * CHUNK);
        let place = (self.args.rows[last].blocks, kv_head);
        self.args.k.prefetch(place, positions.clone());
        self.args.v.prefetch(place, positions);
    }

    /// Where the query and the output of a vector of a block start.
    pub(super) fn first_element(&self, first_row: usize, kv_head: usize, vector: usize) -> usize {
        let (row, head) = (first_row + vector / self.group, kv_head * self.group + vector % self.group);
        (row * self.args.heads + head) * self.shape.head_dim
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Table;
    use crate::{Isa, KvBuffer, KvDType, KvShape};

    /// What sequences see of 16 positions a block: rows and chunks of each stretch, and whether it is the last of its rows.
    fn stretches(tables: &[(&[u32], usize)]) -> Vec<(Range<usize>, Range<usize>, bool)> {
        let shape = KvShape { block_tokens: 16, kv_heads: 1, head_dim: 2 };
        let (k, v) = (KvBuffer::keys(KvDType::F32, shape, 100), KvBuffer::values(KvDType::F32, shape, 100));
        let rows: Vec<AttentionRow<'_>> =
            tables.iter().map(|&(blocks, end)| AttentionRow { blocks, start: 0, end }).collect();
        let (q, mut out) = (vec![0.0; 2 * rows.len()], vec![0.0; 2 * rows.len()]);
        let args = Attention { q: &q, k: &k, v: &v, heads: 1, scale: 1.0, rows: &rows };
        let job = Job::new(Table::of(Isa::Scalar), args, &mut out);
        job.stretches(0..rows.len(), 0).map(|stretch| (stretch.rows, stretch.chunks, stretch.is_last)).collect()
    }

    #[test]
    fn sequences_that_begin_alike_go_through_that_together() {
        let [a, b, c] = [[0, 1, 2, 3, 4, 10], [0, 1, 2, 3, 5, 11], [0, 1, 2, 12, 13, 14]];
        // The third has too little in common: a chunk.
        let found = stretches(&[(&a, 90), (&b, 64), (&c, 96)]);
        assert_eq!(found, [(0..2, 0..2, false), (0..1, 2..3, true), (1..2, 2..2, true), (2..3, 0..3, true)]);
        // Two rows of one sequence are one run; a row sees only part of what tables have in common.
        let found = stretches(&[(&a, 89), (&a, 90), (&b, 63)]);
        assert_eq!(found, [(0..2, 0..3, true), (2..3, 0..2, true)]);
        assert_eq!(stretches(&[(&a, 0), (&b, 64)]), [(0..1, 0..0, true), (1..2, 0..2, true)]);
    }
}
