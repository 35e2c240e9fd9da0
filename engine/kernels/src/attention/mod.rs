//! Attention of ragged rows over a paged KV cache.
//!
//! Keys are visited in chunks of [`CHUNK`] at fixed absolute positions, with an online softmax: each chunk, in tile registers each
//! two, rescales what came before by `exp(old max - new max)`, with AVX-512 by a power of two of scores in base two. A row's result depends on its own query, keys and values and on
//! nothing else: not on the block size, the block numbers, or which other rows and heads are computed with it. How keys
//! and values are stored is `kv.rs`.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2_block;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512_block;
pub(crate) mod blocked;
mod kv;
pub(crate) mod scalar;
pub(crate) mod store;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;

use std::cell::Cell;
use std::ops::Range;

pub use kv::{KvBuffer, KvDType};
pub use store::{KvSlot, NewRows};

use crate::matmul::{TILE_MAX, Tile, TileSums};
use crate::shared::SharedMut;
use crate::table::Table;
use crate::{Buffer, Pool};

/// Keys of a chunk: two AVX-512 vectors, and 16 KiB of keys and values for a head of 64.
pub(crate) const CHUNK: usize = 32;
/// Half a chunk: keys that lie one after the other where blocks are multiples of it.
pub(crate) const HALF: usize = CHUNK / 2;
/// Keys that are dotted together, as weight rows of a tile.
const GROUP: usize = 4;
/// Tasks per thread below which the heads of a group are separate tasks.
const MIN_TASKS_PER_THREAD: usize = 4;

/// Shape of one layer's keys, and of its values. How a block's heads lie in memory is a matter of [`KvBuffer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Token positions in a block.
    pub block_tokens: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl KvShape {
    /// Elements of one block.
    pub fn block_len(&self) -> usize {
        self.block_tokens * self.kv_heads * self.head_dim
    }
}

/// What one query row sees.
#[derive(Clone, Copy, Debug)]
pub struct AttentionRow<'a> {
    /// Block table of its sequence: position `p` is in block `blocks[p / block_tokens]`.
    pub blocks: &'a [u32],
    /// First visible key position; above 0 in a sliding window.
    pub start: usize,
    /// One past the last visible key position. A row that sees nothing gets zeros.
    pub end: usize,
}

/// Arguments of [`Kernels::attention`](crate::Kernels::attention).
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Queries `(rows, heads, head_dim)`.
    pub q: &'a [f32],
    /// Keys of the layer.
    pub k: &'a KvBuffer,
    /// Values of the layer, in the same layout.
    pub v: &'a KvBuffer,
    /// Query heads, a multiple of the key heads.
    pub heads: usize,
    /// Factor on every score, above 0: usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// What each row sees.
    pub rows: &'a [AttentionRow<'a>],
}

/// Scores of a chunk, then its unnormalised weights; lane `i` is position `i` of the chunk.
pub(crate) type Scores = [f32; CHUNK];

/// The running softmax of one row and head.
#[derive(Clone, Copy)]
pub(crate) struct Softmax {
    pub(crate) max: f32,
    pub(crate) sum: f32,
}

impl Softmax {
    pub(crate) const START: Softmax = Softmax { max: f32::NEG_INFINITY, sum: 0.0 };
}

/// One call, checked.
pub(crate) struct Job<'a> {
    table: &'static Table,
    args: Attention<'a>,
    shape: KvShape,
    out: SharedMut<'a>,
    /// Query heads per key head.
    group: usize,
}

thread_local! {
    /// Decoded keys and values of a chunk; grows once.
    static SCRATCH: Cell<Buffer> = Cell::default();
}

/// Room for the decoded keys and values of a chunk, the thread's own, given back when dropped.
struct Scratch(Buffer);

impl Scratch {
    fn take(len: usize) -> Scratch {
        let mut room = SCRATCH.take();
        room.fit(len);
        Scratch(room)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SCRATCH.set(std::mem::take(&mut self.0));
    }
}

/// Keys and values of some positions, a row each.
type Found<'s> = ([&'s [f32]; CHUNK], [&'s [f32]; CHUNK]);

impl<'a> Job<'a> {
    /// **Panics** if a length, a block number or a range does not fit.
    pub(crate) fn new(table: &'static Table, args: Attention<'a>, out: &'a mut [f32]) -> Job<'a> {
        let shape = args.k.shape();
        let KvShape { block_tokens, kv_heads, head_dim } = shape;
        assert!(block_tokens > 0 && kv_heads > 0 && head_dim > 0, "an empty {shape:?}");
        assert!(args.heads.is_multiple_of(kv_heads), "{} heads over {kv_heads} key heads", args.heads);
        assert!(args.scale > 0.0 && args.scale.is_finite(), "scale {}", args.scale);
        assert_eq!(args.q.len(), args.rows.len() * args.heads * head_dim, "queries");
        assert_eq!(out.len(), args.q.len(), "output of attention");
        assert_eq!((shape, args.k.num_blocks()), (args.v.shape(), args.v.num_blocks()), "keys and values");
        assert!(args.k.holds_keys() && !args.v.holds_keys(), "keys in the place of values");
        let num_blocks = args.k.num_blocks();
        for row in args.rows.iter().filter(|row| row.start < row.end) {
            let seen = &row.blocks[row.start / block_tokens..row.end.div_ceil(block_tokens)];
            let known = |&block: &u32| (block as usize) < num_blocks;
            assert!(seen.iter().all(known), "a block of {seen:?} is not among {num_blocks}");
        }
        Job { table, args, shape, out: SharedMut::new(out), group: args.heads / kv_heads }
    }

    /// Computes every row and head in tile registers, where heads fit them, or as [`Job::run`].
    ///
    /// # Safety
    /// The processor has AMX and AVX512-BF16.
    #[cfg(target_arch = "x86_64")]
    pub(crate) unsafe fn run_bf16(&self, pool: &Pool) {
        match self.fits_tiles() {
            // SAFETY: the caller's promise.
            true => unsafe { self.run_tiles(pool) },
            false => self.run(pool),
        }
    }

    /// Computes every row and head.
    pub(crate) fn run(&self, pool: &Pool) {
        let fits = self.shape.head_dim <= blocked::HEAD_DIM_MAX && (1..=blocked::VECTORS).contains(&self.group);
        let whole = |&(_, lanes): &(_, usize)| self.shape.head_dim.is_multiple_of(lanes);
        if let Some((step, _)) = self.table.attend.filter(|_| fits).filter(whole) {
            return self.run_blocked(step, pool);
        }
        let kv_heads = self.shape.kv_heads;
        let num_groups = self.args.rows.len() * kv_heads;
        let few = num_groups < MIN_TASKS_PER_THREAD * pool.num_threads();
        let task_heads = if few { 1 } else { self.group.clamp(1, TILE_MAX) };
        let tasks_per_group = self.group.div_ceil(task_heads);
        pool.run(num_groups * tasks_per_group, |task| {
            let (group, part) = (task / tasks_per_group, task % tasks_per_group);
            let (row, kv_head) = (group / kv_heads, group % kv_heads);
            let heads = part * task_heads..self.group.min((part + 1) * task_heads);
            self.heads(row, kv_head, heads);
        });
    }

    /// A few query heads, at most a tile, of one row and key head.
    fn heads(&self, row: usize, kv_head: usize, heads: Range<usize>) {
        let head_dim = self.shape.head_dim;
        let first = (row * self.args.heads + kv_head * self.group + heads.start) * head_dim;
        let elements = first..first + heads.len() * head_dim;
        let q = &self.args.q[elements.clone()];
        // SAFETY: every row and head is in exactly one task.
        let out = unsafe { self.out.part(elements) };
        out.fill(0.0);
        let AttentionRow { start, end, .. } = self.args.rows[row];
        if start >= end {
            return;
        }
        let mut softmax = [Softmax::START; TILE_MAX];
        let mut scores = [[0.0; CHUNK]; TILE_MAX];
        let mut scratch = self.scratch();
        let mut chunk = start / CHUNK * CHUNK;
        while chunk < end {
            let positions = start.max(chunk)..end.min(chunk + CHUNK);
            let lanes = positions.start - chunk..positions.end - chunk;
            let (keys, values) = self.find(row, kv_head, positions, &mut scratch);
            self.score(q, &keys[..lanes.len()], lanes.start, &mut scores);
            for ((out, scores), softmax) in out.chunks_exact_mut(head_dim).zip(&mut scores).zip(&mut softmax) {
                // SAFETY: `Kernels` chose the table among those that this processor can run.
                let correction = unsafe { (self.table.softmax)(scores, self.args.scale, softmax) };
                // SAFETY: as above.
                unsafe { (self.table.weigh)(out, correction, &scores[lanes.clone()], &values[..lanes.len()]) };
            }
            chunk += CHUNK;
        }
        for (out, softmax) in out.chunks_exact_mut(head_dim).zip(&softmax) {
            out.iter_mut().for_each(|value| *value /= softmax.sum);
        }
    }

    /// Room for turned keys, keys and values of a chunk.
    fn scratch(&self) -> Scratch {
        Scratch::take(3 * self.chunk_len())
    }

    fn chunk_len(&self) -> usize {
        CHUNK * self.shape.head_dim
    }

    /// Finds the keys and values of some positions, at most a chunk.
    fn find<'s>(&self, row: usize, kv_head: usize, positions: Range<usize>, scratch: &'s mut Scratch) -> Found<'s> {
        let (place, head_dim) = ((self.args.rows[row].blocks, kv_head), self.shape.head_dim);
        let (turned, rows) = scratch.0.split_at_mut(self.chunk_len());
        let (keys, values) = rows.split_at_mut(self.chunk_len());
        self.args.k.decode_turned(place, positions.clone(), 0, turned);
        for (lane, key) in keys.chunks_exact_mut(head_dim).take(positions.len()).enumerate() {
            key.iter_mut().zip(turned[lane..].iter().step_by(CHUNK)).for_each(|(to, from)| *to = *from);
        }
        self.args.v.decode_straight(self.table, place, positions, values);
        let rows = |rows: &'s [f32]| {
            let mut found: [&[f32]; CHUNK] = [&[]; CHUNK];
            found.iter_mut().zip(rows.chunks_exact(head_dim)).for_each(|(found, row)| *found = row);
            found
        };
        (rows(keys), rows(values))
    }

    /// Dots some query heads with the keys of a chunk, which fill the lanes from `first_lane` on; the other lanes get
    /// negative infinity.
    fn score(&self, q: &[f32], keys: &[&[f32]], first_lane: usize, scores: &mut [Scores; TILE_MAX]) {
        let head_dim = self.shape.head_dim;
        if keys.len() < CHUNK {
            scores.fill([f32::NEG_INFINITY; CHUNK]);
        }
        let mut sums = TileSums::default();
        for first_head in (0..q.len() / head_dim).step_by(self.table.tile_rows) {
            let x = &q[first_head * head_dim..];
            let num_rows = self.table.tile_rows.min(x.len() / head_dim);
            for first_key in (0..keys.len()).step_by(GROUP) {
                let num_keys = GROUP.min(keys.len() - first_key);
                let weights = std::array::from_fn(|i| keys[first_key + i.min(num_keys - 1)]);
                // SAFETY: as in `heads`, the processor can run the table.
                unsafe { (self.table.tile)(&Tile { weights, x, stride: head_dim, num_rows }, &mut sums) };
                for (scores, sums) in scores[first_head..].iter_mut().zip(&sums[..num_rows]) {
                    let at = first_lane + first_key;
                    scores[at..at + num_keys].copy_from_slice(&sums[..num_keys]);
                }
            }
        }
    }
}
