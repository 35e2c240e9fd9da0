//! Attention of prompts in tile registers: queries, keys, weights and values rounded to bf16, sums and the softmax in `f32`.
//!
//! As in `blocked.rs` a *vector* is one row's query of one head, and a block takes the rows of one sequence and the query heads of one key head. A
//! step takes two chunks of keys and values at fixed positions, or the one that is seen, and rounds them once for all vectors of the block. What a
//! vector becomes depends on nothing else in its block: a row of a tile register is that of one vector, and keys that it does not see have
//! weight 0, which changes no bit.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::avx512_block::load;
use super::blocked::Chunk;
use super::kv::{FLOATS, Float};
use super::{CHUNK, HALF, Job};
use crate::Buffer;
use crate::across::by_lane;
use crate::bf16::{interleaved, rounded};
use crate::elementwise::avx512::exp2_or_zero;
use crate::tiles::{Configured, LINE, ROWS};

/// Most vectors of a block: their sums and queries (36 KiB for a head of 64) stay in a second-level cache.
pub(crate) const VECTORS: usize = 96;
/// Elements of a head that a tile register multiplies at once; heads are a multiple of it.
pub(crate) const STEP: usize = 32;
/// Tasks per thread where there is enough work, for balance.
const TASKS_PER_THREAD: usize = 4;
/// Chunks of a step.
const CHUNKS: usize = 2;
/// Keys of a step.
const KEYS: usize = CHUNKS * CHUNK;
/// Pairs of a square: 16 rows of 16 pairs, the contents of a tile register.
const SQUARE: usize = ROWS * LANES;
/// Floats, or pairs, of a vector register.
const LANES: usize = 16;

/// Begins at a line of the caches: a row of a tile register that lies in two takes twice as long.
#[repr(C, align(64))]
struct Lines<T>(T);

/// What a block works on; grows once.
struct Room {
    /// Queries: per sixteen vectors a square for each [`STEP`] of the head.
    queries: Buffer<u32>,
    /// Keys of each chunk: per half a square for each [`STEP`] of the head.
    keys: Buffer<u32>,
    /// Values of each chunk: a square for each sixteen elements of the head.
    values: Buffer<u32>,
    /// Scores of sixteen vectors.
    scores: Lines<[[f32; KEYS]; ROWS]>,
    /// Their weights: a square for each chunk.
    weights: Lines<[[u32; SQUARE]; CHUNKS]>,
    /// Unnormalised outputs `(vectors, head_dim)`, once a step has begun them.
    sums: Buffer,
    begun: bool,
    /// The highest score of each vector so far, scaled, as an exponent of two.
    highest: Buffer,
    /// The weights of each vector so far, added up.
    totals: Buffer,
    /// What each vector sees of the chunks.
    lanes: Vec<(usize, usize)>,
    head_dim: usize,
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::new(Room {
        queries: Buffer::default(),
        keys: Buffer::default(),
        values: Buffer::default(),
        scores: Lines([[0.0; KEYS]; ROWS]),
        weights: Lines([[0; SQUARE]; CHUNKS]),
        sums: Buffer::default(),
        begun: false,
        highest: Buffer::default(),
        totals: Buffer::default(),
        lanes: Vec::new(),
        head_dim: 0,
    });
}

impl Job<'_> {
    /// Whether heads can be computed so.
    pub(super) fn fits_tiles(&self) -> bool {
        self.shape.head_dim.is_multiple_of(STEP) && self.group <= VECTORS
    }

    /// Computes every row and head.
    ///
    /// # Safety
    /// The processor has AMX and AVX512-BF16.
    pub(super) unsafe fn run_tiles(&self, pool: &crate::Pool) {
        let (num_rows, kv_heads) = (self.args.rows.len(), self.shape.kv_heads);
        let balanced = num_rows * kv_heads / (TASKS_PER_THREAD * pool.num_threads());
        let block_rows = (VECTORS / self.group).min(balanced).max(1);
        let num_tasks = num_rows.div_ceil(block_rows) * kv_heads;
        pool.run(num_tasks, |task| {
            // The last rows of a prompt see the most, so they come first.
            let task = num_tasks - 1 - task;
            let (first, kv_head) = (task / kv_heads * block_rows, task % kv_heads);
            ROOM.with_borrow_mut(|room| {
                for rows in self.runs(first..num_rows.min(first + block_rows)) {
                    // SAFETY: the caller's promise.
                    unsafe { self.tile_block(room, rows, kv_head) };
                }
            });
        });
    }

    /// Rows of one sequence, and the query heads of one key head.
    ///
    /// # Safety
    /// As [`Job::run_tiles`].
    unsafe fn tile_block(&self, room: &mut Room, rows: Range<usize>, kv_head: usize) {
        let head_dim = self.shape.head_dim;
        let num_vectors = rows.len() * self.group;
        room.begin(num_vectors, head_dim);
        for vector in 0..num_vectors {
            let at = self.first_element(rows.start, kv_head, vector);
            // SAFETY: the caller's promise.
            unsafe { room.round_query(vector, &self.args.q[at..at + head_dim]) };
        }
        if let Some((last, seen)) = self.seen(rows.clone()) {
            let mut scratch = self.scratch();
            let seen_chunks = seen.start / CHUNK..seen.end.div_ceil(CHUNK);
            self.prefetch(&rows, kv_head, seen_chunks.start..seen_chunks.start + CHUNKS);
            for step in seen.start / KEYS..seen.end.div_ceil(KEYS) {
                let chunks = seen_chunks.start.max(CHUNKS * step)..seen_chunks.end.min(CHUNKS * (step + 1));
                self.prefetch(&rows, kv_head, chunks.end..chunks.end + CHUNKS);
                let keys = chunks.start * CHUNK..chunks.end * CHUNK;
                let lane = |position: usize| position.clamp(keys.start, keys.end) - keys.start;
                for (row, lanes) in self.args.rows[rows.clone()].iter().zip(room.lanes.chunks_exact_mut(self.group)) {
                    lanes.fill((lane(row.start), lane(row.end)));
                }
                for (index, chunk) in chunks.clone().enumerate() {
                    let first = chunk * CHUNK;
                    let positions = seen.start.max(first)..seen.end.min(first + CHUNK);
                    let chunk = self.chunk(last, kv_head, (first, positions), &mut scratch);
                    // SAFETY: the caller's promise; the chunk's pointers are those of as many elements as it says.
                    unsafe { room.take_chunk(index, &chunk) };
                }
                // SAFETY: the caller's promise.
                unsafe { room.step(chunks.len(), self.args.scale) };
            }
        }
        for vector in 0..num_vectors {
            let at = self.first_element(rows.start, kv_head, vector);
            // SAFETY: every row and head is in exactly one task, and the rest is the caller's promise.
            unsafe { room.finish(vector, self.out.part(at..at + head_dim)) };
        }
    }
}

impl Room {
    /// Takes a shape, whole tile registers.
    fn begin(&mut self, num_vectors: usize, head_dim: usize) {
        assert!(num_vectors <= VECTORS && head_dim.is_multiple_of(STEP), "a block of {num_vectors} x {head_dim}");
        let padded = num_vectors.next_multiple_of(ROWS);
        let last = num_vectors / ROWS * ROWS;
        self.queries.fit(padded * head_dim / 2)[last * head_dim / 2..].fill(0);
        self.keys.fit(CHUNKS * CHUNK / 2 * head_dim);
        self.values.fit(CHUNKS * CHUNK / 2 * head_dim);
        self.sums.fit(padded * head_dim);
        self.begun = false;
        self.highest.fit(padded).fill(f32::NEG_INFINITY);
        self.totals.fit(padded).fill(0.0);
        self.lanes.resize(num_vectors, (0, 0));
        self.head_dim = head_dim;
    }

    /// # Safety
    /// The processor has AVX512-BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    unsafe fn round_query(&mut self, vector: usize, query: &[f32]) {
        let start = vector / ROWS * query.len() / STEP * SQUARE + vector % ROWS * LANES;
        for (step, part) in query.as_chunks::<STEP>().0.iter().enumerate() {
            let out = &mut self.queries[start + step * SQUARE..][..LANES];
            // SAFETY: a part is two vectors of floats, and sixteen pairs are one.
            unsafe {
                let (low, high) = (_mm512_loadu_ps(part.as_ptr()), _mm512_loadu_ps(part.as_ptr().add(LANES)));
                _mm512_storeu_si512(out.as_mut_ptr().cast(), rounded(low, high));
            }
        }
    }

    /// Takes the keys and values of a chunk of the next step.
    ///
    /// # Safety
    /// The processor has AVX512-BF16; the chunk's pointers are those of as many elements as it says.
    unsafe fn take_chunk(&mut self, index: usize, chunk: &Chunk) {
        assert!(index < CHUNKS && chunk.first_lane + chunk.num <= CHUNK, "keys of a chunk");
        // SAFETY: the caller's promise.
        unsafe {
            match chunk.float {
                Float::F32 => self.round_chunk::<{ Float::F32 as usize }>(index, chunk),
                Float::F16 => self.round_chunk::<{ Float::F16 as usize }>(index, chunk),
                Float::Bf16 => self.round_chunk::<{ Float::Bf16 as usize }>(index, chunk),
            }
        }
    }

    /// Scores the chunks that were taken and adds their weighted values to the sums, sixteen vectors at a time.
    ///
    /// # Safety
    /// The processor has AMX and AVX512-BF16.
    unsafe fn step(&mut self, num_chunks: usize, scale: f32) {
        let _configured = Configured::whole();
        for block in 0..self.lanes.len().div_ceil(ROWS) {
            // SAFETY: the caller's promise.
            unsafe {
                self.score(block, num_chunks);
                match num_chunks {
                    1 => self.weigh::<{ CHUNK / LANES }>(block, scale),
                    _ => self.weigh::<{ KEYS / LANES }>(block, scale),
                }
                self.add(block, num_chunks);
            }
        }
        self.begun = true;
    }

    /// Writes the output of a vector; that of one which saw nothing is zero.
    ///
    /// # Safety
    /// The processor has AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn finish(&self, vector: usize, out: &mut [f32]) {
        let total = self.totals[vector];
        if total == 0.0 {
            return out.fill(0.0);
        }
        let (factor, sums) = (1.0 / total, &self.sums[vector * out.len()..][..out.len()]);
        out.iter_mut().zip(sums).for_each(|(out, value)| *out = value * factor);
    }

    /// The pairs of the keys, or of the values, of a chunk.
    fn chunk_len(&self) -> usize {
        CHUNK / 2 * self.head_dim
    }

    /// Rounds the keys and values of a chunk to the right factors of the products; values of other lanes are zeros.
    ///
    /// # Safety
    /// The processor has AVX512-BF16; the chunk is of format `FLOAT`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,avx2,fma,f16c")]
    unsafe fn round_chunk<const FLOAT: usize>(&mut self, index: usize, chunk: &Chunk) {
        let size = const { FLOATS[FLOAT].size() };
        let (head_dim, pairs) = (self.head_dim, index * self.chunk_len()..(index + 1) * self.chunk_len());
        let (halves, _) = self.keys[pairs.clone()].as_chunks_mut::<LANES>();
        for (keys, lines) in chunk.keys.iter().zip(halves.chunks_exact_mut(head_dim / 2)) {
            for (pair, line) in lines.iter_mut().enumerate() {
                let key = keys.wrapping_add(2 * pair * chunk.key_stride);
                // SAFETY: the caller's promise: rows of sixteen keys, one for each element of the head.
                unsafe {
                    let (even, odd) = (load::<FLOAT>(key), load::<FLOAT>(key.add(chunk.key_stride)));
                    _mm512_storeu_si512(line.as_mut_ptr().cast(), interleaved(even, odd));
                }
            }
        }
        let value = |lane: usize| {
            let index = lane.checked_sub(chunk.first_lane)?;
            (index < chunk.num).then(|| chunk.values[index])
        };
        for pair in 0..HALF {
            let (even, odd) = (value(2 * pair), value(2 * pair + 1));
            for (group, square) in self.values[pairs.clone()].as_chunks_mut::<SQUARE>().0.iter_mut().enumerate() {
                let part = |value: Option<*const u8>| match value {
                    // SAFETY: the caller's promise: a value has `head_dim` elements.
                    Some(value) => unsafe { load::<FLOAT>(value.add(group * LANES * size)) },
                    None => _mm512_setzero_ps(),
                };
                // SAFETY: a square has sixteen lines.
                unsafe {
                    let line = square.as_mut_ptr().add(pair * LANES);
                    _mm512_storeu_si512(line.cast(), interleaved(part(even), part(odd)));
                }
            }
        }
    }

    /// Dots the queries of a block with every key.
    ///
    /// # Safety
    /// The tile registers are configured to be whole.
    unsafe fn score(&mut self, block: usize, num_chunks: usize) {
        let steps = self.head_dim / STEP;
        let queries = &self.queries[block * steps * SQUARE..(block + 1) * steps * SQUARE];
        for (index, keys) in self.keys.chunks_exact(2 * steps * SQUARE).take(num_chunks).enumerate() {
            let (first, second) = keys.split_at(steps * SQUARE);
            let out = self.scores.0.as_flattened_mut()[index * CHUNK..].as_mut_ptr();
            // SAFETY: squares of as many steps lie in each slice, and sixteen rows of scores in the last.
            unsafe {
                asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem));
                for step in 0..steps {
                    asm!(
                        "tileloadd tmm2, [{queries} + {line}]",
                        "tileloadd tmm3, [{first} + {line}]",
                        "tdpbf16ps tmm0, tmm2, tmm3",
                        "tileloadd tmm3, [{second} + {line}]",
                        "tdpbf16ps tmm1, tmm2, tmm3",
                        queries = in(reg) queries.as_ptr().add(step * SQUARE),
                        first = in(reg) first.as_ptr().add(step * SQUARE),
                        second = in(reg) second.as_ptr().add(step * SQUARE),
                        line = in(reg) LINE,
                        options(nostack, readonly),
                    );
                }
                asm!("tilestored [{out} + {stride}], tmm0", "tilestored [{out} + {stride} + 64], tmm1",
                    out = in(reg) out, stride = in(reg) KEYS * size_of::<f32>(), options(nostack));
            }
        }
    }

    /// Turns the scores of a block into rounded weights, and corrects its sums so far: sixteen vectors, a lane each, whose scores
    /// take `V` vector registers.
    ///
    /// # Safety
    /// The processor has AVX512-BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,avx2,fma,f16c")]
    unsafe fn weigh<const V: usize>(&mut self, block: usize, scale: f32) {
        let lanes = &self.lanes[block * ROWS..self.lanes.len().min((block + 1) * ROWS)];
        let highest = &mut self.highest.as_chunks_mut::<ROWS>().0[block];
        let totals = &mut self.totals.as_chunks_mut::<ROWS>().0[block];
        let mut parts = [_mm512_set1_ps(f32::NEG_INFINITY); ROWS];
        for (i, &(start, end)) in lanes.iter().enumerate().filter(|(_, (start, end))| start < end) {
            let scores = &mut self.scores.0[i];
            if (start, end) != (0, V * LANES) {
                scores[..start].fill(f32::NEG_INFINITY);
                scores[end..].fill(f32::NEG_INFINITY);
            }
            parts[i] = combined(registers::<V>(scores), |a, b| _mm512_max_ps(a, b));
        }
        // Weights are powers of two.
        let scale = _mm512_set1_ps(scale * std::f32::consts::LOG2_E);
        let before = from_array(highest);
        let after = _mm512_max_ps(before, _mm512_mul_ps(scale, by_lane(parts, |a, b| _mm512_max_ps(a, b))));
        *highest = to_array(after);
        // What has seen nothing yet has nothing to correct.
        let seen = _mm512_cmpneq_ps_mask(after, _mm512_set1_ps(f32::NEG_INFINITY));
        let corrections = _mm512_mask_mov_ps(_mm512_set1_ps(1.0), seen, exp2_or_zero(_mm512_sub_ps(before, after)));
        parts = [_mm512_setzero_ps(); ROWS];
        for (i, part) in parts.iter_mut().enumerate() {
            let sees = lanes.get(i).is_some_and(|(start, end)| start < end);
            let mut weights = [_mm512_setzero_ps(); V];
            if sees {
                let max = _mm512_set1_ps(highest[i]);
                // Multiplied first, so that the highest score has a weight of exactly 1.
                weights = registers::<V>(&self.scores.0[i])
                    .map(|scores| exp2_or_zero(_mm512_sub_ps(_mm512_mul_ps(scores, scale), max)));
                *part = combined(weights, |a, b| _mm512_add_ps(a, b));
            }
            for (square, [low, high]) in self.weights.0.iter_mut().zip(weights.as_chunks().0) {
                // SAFETY: sixteen pairs are a vector.
                unsafe { _mm512_storeu_si512(square[i * LANES..].as_mut_ptr().cast(), rounded(*low, *high)) };
            }
        }
        let sum = by_lane(parts, |a, b| _mm512_add_ps(a, b));
        *totals = to_array(_mm512_fmadd_ps(from_array(totals), corrections, sum));
        let sums = self.sums.chunks_exact_mut(self.head_dim).skip(block * ROWS);
        for (correction, sums) in to_array(corrections).iter().zip(sums) {
            if self.begun && *correction != 1.0 {
                sums.iter_mut().for_each(|sum| *sum *= correction);
            }
        }
    }

    /// Adds the weighted values to the sums of a block.
    ///
    /// # Safety
    /// The tile registers are configured to be whole.
    unsafe fn add(&mut self, block: usize, num_chunks: usize) {
        let (head_dim, chunk_len) = (self.head_dim, self.chunk_len());
        let sums = &mut self.sums[block * ROWS * head_dim..(block + 1) * ROWS * head_dim];
        for group in 0..head_dim / LANES {
            // SAFETY: a square of weights and one of values for each chunk, and sixteen columns of sums.
            unsafe {
                let (sums, stride) = (sums.as_mut_ptr().add(group * LANES), head_dim * size_of::<f32>());
                match self.begun {
                    true => asm!("tileloadd tmm0, [{sums} + {stride}]", sums = in(reg) sums, stride = in(reg) stride,
                        options(nostack, readonly)),
                    false => asm!("tilezero tmm0", options(nostack, nomem)),
                }
                for (index, weights) in self.weights.0.iter().enumerate().take(num_chunks) {
                    asm!(
                        "tileloadd tmm2, [{weights} + {line}]",
                        "tileloadd tmm3, [{values} + {line}]",
                        "tdpbf16ps tmm0, tmm2, tmm3",
                        weights = in(reg) weights.as_ptr(),
                        values = in(reg) self.values[index * chunk_len + group * SQUARE..].as_ptr(),
                        line = in(reg) LINE,
                        options(nostack, readonly),
                    );
                }
                asm!("tilestored [{sums} + {stride}], tmm0", sums = in(reg) sums, stride = in(reg) stride,
                    options(nostack));
            }
        }
    }
}

/// The first scores of a vector.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn registers<const V: usize>(scores: &[f32; KEYS]) -> [__m512; V] {
    let (registers, _) = scores.as_chunks::<LANES>();
    std::array::from_fn(|i| from_array(&registers[i]))
}

/// Combines vectors, chunk by chunk: another one that changes nothing leaves every bit.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn combined<const V: usize>(vectors: [__m512; V], combine: impl Fn(__m512, __m512) -> __m512) -> __m512 {
    let chunks = vectors.as_chunks::<{ CHUNK / LANES }>().0.iter();
    let chunks = chunks.map(|[low, high]| combine(*low, *high));
    chunks.reduce(&combine).expect("a step has a chunk")
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn from_array(x: &[f32; LANES]) -> __m512 {
    // SAFETY: a reference to 16 floats; the load is unaligned.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn to_array(x: __m512) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    // SAFETY: 16 floats have room for a vector; the store is unaligned.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), x) };
    out
}
