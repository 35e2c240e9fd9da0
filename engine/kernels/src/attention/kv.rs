//! Storage of keys, or values, of one layer in a chosen format.
//!
//! The head of a block is `(block_tokens, head_dim)` of values, as they are added up, and `(head_dim, block_tokens)` of keys, so
//! that a vector holds one element of many keys and none has to be turned. Floats of 32 and 16 bits are read in place where the
//! blocks are whole vectors; all else is decoded a chunk at a time into the scratch of the reading thread, once for all query heads
//! and rows that look at the chunk. The arithmetic after that is the same.

use std::fmt;
use std::ops::Range;

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::blocked::HEAD_DIM_MAX;
use super::{CHUNK, HALF, KvShape, KvSlot};
use crate::shared::SharedMut;
use crate::table::Table;
use crate::{DType, Isa, prefetch};

/// Elements encoded at a time, and to a scale of the 8-bit format.
const BLOCK: usize = 32;
/// The largest 8-bit value.
const Q8_MAX: f32 = 127.0;
/// Adding and taking away 1.5 times 2^23 rounds a float of less than 2^22 to an integer, ties to even.
const ROUND: f32 = 12_582_912.0;

/// The format of keys and values in a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum KvDType {
    /// IEEE single precision: what the model computes, exactly.
    #[default]
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// 8-bit integers, of which 32 share a half precision scale: 8.5 bits an element. **Source**: as [`DType::Q8_0`].
    Q8_0,
}

impl KvDType {
    /// Every format.
    pub const ALL: [KvDType; 4] = [KvDType::F32, KvDType::F16, KvDType::Bf16, KvDType::Q8_0];

    /// Whether heads of this length can be stored: 8-bit integers come in blocks of 32, and all but `F32` need heads of at most 256.
    pub fn supports(self, head_dim: usize) -> bool {
        self == KvDType::F32 || (head_dim <= HEAD_DIM_MAX && self.dtype().row_bytes(head_dim).is_some())
    }

    /// Bytes of one head, `None` where it cannot be stored.
    pub fn head_bytes(self, head_dim: usize) -> Option<usize> {
        self.dtype().row_bytes(head_dim).filter(|_| self.supports(head_dim))
    }

    /// The format of an element that stands alone.
    fn float(self) -> Option<Float> {
        match self {
            KvDType::F32 => Some(Float::F32),
            KvDType::F16 => Some(Float::F16),
            KvDType::Bf16 => Some(Float::Bf16),
            KvDType::Q8_0 => None,
        }
    }

    fn dtype(self) -> DType {
        match self {
            KvDType::F32 => DType::F32,
            KvDType::F16 => DType::F16,
            KvDType::Bf16 => DType::Bf16,
            KvDType::Q8_0 => DType::Q8_0,
        }
    }
}

impl fmt::Display for KvDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.dtype().fmt(f)
    }
}

/// How the elements of a block's head lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Keys: `(head_dim, block_tokens)`.
    Turned,
    /// Values: `(block_tokens, head_dim)`.
    Straight,
}

/// The keys, or the values, of one layer.
pub struct KvBuffer {
    shape: KvShape,
    num_blocks: usize,
    order: Order,
    dtype: KvDType,
    /// Per block and head its elements. Turned heads of 8-bit integers have their scales, `(head_dim / 32, block_tokens)`, first;
    /// straight ones are blocks of `Q8_0`.
    bytes: Vec<u8>,
}

impl KvBuffer {
    /// Reserves blocks of keys. The memory is zeroed lazily by the system: a block costs nothing before its first write.
    ///
    /// **Panics** if the format does not support the heads, or if the size overflows.
    pub fn keys(dtype: KvDType, shape: KvShape, num_blocks: usize) -> KvBuffer {
        KvBuffer::new(Order::Turned, dtype, shape, num_blocks)
    }

    /// Reserves blocks of values, as [`KvBuffer::keys`].
    pub fn values(dtype: KvDType, shape: KvShape, num_blocks: usize) -> KvBuffer {
        KvBuffer::new(Order::Straight, dtype, shape, num_blocks)
    }

    fn new(order: Order, dtype: KvDType, shape: KvShape, num_blocks: usize) -> KvBuffer {
        let head_bytes = dtype.head_bytes(shape.head_dim);
        let head_bytes = head_bytes.unwrap_or_else(|| panic!("heads of {} as {dtype}", shape.head_dim));
        let len =
            [shape.block_tokens, shape.kv_heads, head_bytes].iter().try_fold(num_blocks, |len, n| len.checked_mul(*n));
        let bytes = vec![0; len.expect("invariant: it fits in memory")];
        KvBuffer { shape, num_blocks, order, dtype, bytes }
    }

    /// The layout.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// The number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Whether it holds keys, not values.
    pub(super) fn holds_keys(&self) -> bool {
        self.order == Order::Turned
    }

    /// Writes the heads of one position, place `slot` of a block.
    ///
    /// **Shapes**: `heads` `(kv_heads, head_dim)`. **Panics** if the block or the slot does not exist.
    pub fn write(&mut self, block: usize, slot: usize, heads: &[f32]) {
        let KvShape { block_tokens, kv_heads, head_dim } = self.shape;
        assert!(slot < block_tokens, "slot {slot} of a block of {block_tokens}");
        assert_eq!(heads.len(), kv_heads * head_dim, "elements of {kv_heads} heads of {head_dim}");
        let writer = self.writer(Table::of(Isa::Scalar));
        for (index, head) in heads.chunks_exact(head_dim).enumerate() {
            // SAFETY: nobody else has a part of this buffer, which is borrowed mutably.
            unsafe { writer.write(KvSlot { block, slot }, index, head) };
        }
    }

    /// Lets several threads write.
    pub(super) fn writer(&mut self, table: &'static Table) -> Writer<'_> {
        let head_bytes = self.head_bytes();
        let KvBuffer { shape, order, dtype, ref mut bytes, .. } = *self;
        Writer { table, shape, order, dtype, head_bytes, bytes: SharedMut::new(bytes) }
    }

    /// Whether another buffer holds the same.
    #[cfg(test)]
    pub(super) fn has_the_bytes_of(&self, other: &KvBuffer) -> bool {
        self.bytes == other.bytes
    }

    fn head_bytes(&self) -> usize {
        self.dtype.head_bytes(self.shape.head_dim).expect("invariant: the format supports the heads")
    }

    /// The format of the elements where a chunk can be read in place.
    pub(super) fn in_place(&self) -> Option<Float> {
        let whole = self.shape.block_tokens.is_multiple_of(HALF);
        self.dtype.float().filter(|_| whole || self.order == Order::Straight)
    }

    /// Where the elements of keys `from` and `from + HALF` begin, and the bytes from one element to the next. A half of which no
    /// position is among `seen` begins where the other does.
    pub(super) fn keys_in_place(
        &self,
        (blocks, kv_head): (&[u32], usize),
        from: usize,
        seen: &Range<usize>,
    ) -> ([*const u8; 2], usize) {
        let KvShape { block_tokens, kv_heads, .. } = self.shape;
        let size = self.dtype.float().expect("invariant: only floats are read in place").size();
        let half = |first: usize| {
            let block = blocks[first / block_tokens] as usize;
            let place = (block * kv_heads + kv_head) * block_tokens * self.head_bytes();
            self.bytes[place..].as_ptr().wrapping_add(first % block_tokens * size)
        };
        let halves = match (seen.start < from + HALF, seen.end > from + HALF) {
            (true, true) => [half(from), half(from + HALF)],
            (true, false) => [half(from); 2],
            _ => [half(from + HALF); 2],
        };
        (halves, block_tokens * size)
    }

    /// Finds the values of some positions, at most a chunk, in place.
    pub(super) fn values_in_place(&self, place: (&[u32], usize), positions: Range<usize>) -> [*const u8; CHUNK] {
        let (len, mut found) = (self.head_bytes(), [std::ptr::null(); CHUNK]);
        self.for_runs(place, positions, |lanes, block, slot| {
            let heads = self.bytes[block * self.shape.block_tokens * len..][slot * len..][..lanes.len() * len]
                .chunks_exact(len);
            found[lanes].iter_mut().zip(heads).for_each(|(found, head)| *found = head.as_ptr());
        });
        found
    }

    /// Decodes some positions, at most a chunk, to rows of `head_dim`, from the first position on.
    pub(super) fn decode_straight(
        &self,
        table: &Table,
        place: (&[u32], usize),
        positions: Range<usize>,
        out: &mut [f32],
    ) {
        let (len, head_dim) = (self.head_bytes(), self.shape.head_dim);
        self.for_runs(place, positions, |lanes, block, slot| {
            let bytes = &self.bytes[block * self.shape.block_tokens * len..][slot * len..][..lanes.len() * len];
            let out = &mut out[lanes.start * head_dim..lanes.end * head_dim];
            match self.dtype {
                KvDType::F32 => Float::F32.decode(bytes, out),
                // SAFETY: `Kernels` chose the table among those that this processor can run.
                _ => unsafe { (table.decode)(self.dtype.dtype(), bytes, out) },
            }
        });
    }

    /// Decodes some positions, at most a chunk, to columns of `(head_dim, CHUNK)`, from column `first_lane` on.
    pub(super) fn decode_turned(
        &self,
        place: (&[u32], usize),
        positions: Range<usize>,
        first_lane: usize,
        out: &mut [f32],
    ) {
        let KvShape { block_tokens, head_dim, .. } = self.shape;
        let len = block_tokens * self.head_bytes();
        self.for_runs(place, positions, |lanes, block, slot| {
            let head = &self.bytes[block * len..(block + 1) * len];
            let lanes = first_lane + lanes.start..first_lane + lanes.end;
            let columns = out.chunks_exact_mut(CHUNK).take(head_dim).map(|row| &mut row[lanes.clone()]);
            match self.dtype.float() {
                Some(float) => columns.zip(head.chunks_exact(block_tokens * float.size())).for_each(|(out, row)| {
                    float.decode(&row[slot * float.size()..][..out.len() * float.size()], out);
                }),
                None => {
                    let (scales, codes) = head.split_at(2 * head_dim / BLOCK * block_tokens);
                    let mut floats = [0.0; CHUNK];
                    for (d, (out, codes)) in columns.zip(codes.chunks_exact(block_tokens)).enumerate() {
                        if d.is_multiple_of(BLOCK) {
                            let scales = &scales[2 * (d / BLOCK * block_tokens + slot)..][..2 * out.len()];
                            Float::F16.decode(scales, &mut floats[..out.len()]);
                        }
                        let scaled =
                            codes[slot..].iter().zip(&floats).map(|(code, scale)| f32::from(*code as i8) * scale);
                        out.iter_mut().zip(scaled).for_each(|(out, value)| *out = value);
                    }
                }
            }
        });
    }

    /// Asks for the heads of some positions, which are read soon.
    pub(super) fn prefetch(&self, place: (&[u32], usize), positions: Range<usize>) {
        let (len, block_tokens) = (self.head_bytes(), self.shape.block_tokens);
        self.for_runs(place, positions, |lanes, block, slot| {
            let head = &self.bytes[block * block_tokens * len..][..block_tokens * len];
            match self.order {
                // Rows of a chunk in long blocks lie apart: they are left to the processor.
                Order::Turned if block_tokens > CHUNK => {}
                Order::Turned => prefetch::for_reading(head),
                Order::Straight => prefetch::for_reading(&head[slot * len..][..lanes.len() * len]),
            }
        });
    }

    /// Calls `visit` with runs of positions, counted from the first, the index of their block's head, and their first slot there.
    fn for_runs(
        &self,
        (blocks, kv_head): (&[u32], usize),
        positions: Range<usize>,
        mut visit: impl FnMut(Range<usize>, usize, usize),
    ) {
        let KvShape { block_tokens, kv_heads, .. } = self.shape;
        let mut position = positions.start;
        while position < positions.end {
            let (block, slot) = (position / block_tokens, position % block_tokens);
            let end = positions.end.min(position + block_tokens - slot);
            let lanes = position - positions.start..end - positions.start;
            visit(lanes, blocks[block] as usize * kv_heads + kv_head, slot);
            position = end;
        }
    }
}

/// A buffer of which threads write different heads.
pub(super) struct Writer<'a> {
    table: &'static Table,
    shape: KvShape,
    order: Order,
    dtype: KvDType,
    head_bytes: usize,
    bytes: SharedMut<'a, u8>,
}

impl Writer<'_> {
    /// Writes one head of one position, `(head_dim)`.
    ///
    /// **Panics** if the slot does not exist.
    ///
    /// # Safety
    /// No other thread reads or writes this head of any block at the same time.
    pub(super) unsafe fn write(&self, KvSlot { block, slot }: KvSlot, index: usize, head: &[f32]) {
        let KvShape { block_tokens, kv_heads, .. } = self.shape;
        let (len, place) = (self.head_bytes, (block * kv_heads + index) * block_tokens * self.head_bytes);
        match self.order {
            Order::Straight => {
                let place = place + slot * len;
                // SAFETY: the caller's promise.
                encode((self.table, self.dtype), head, unsafe { self.bytes.part(place..place + len) });
            }
            Order::Turned => {
                // SAFETY: the caller's promise.
                let out = unsafe { self.bytes.part(place..place + block_tokens * len) };
                write_turned((self.table, self.dtype), head, (block_tokens, slot), out);
            }
        }
    }
}

/// The format of elements that are read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float {
    F32,
    F16,
    Bf16,
}

/// Every format, in the order of the enum: kernels are generic over the index.
pub(crate) const FLOATS: [Float; 3] = [Float::F32, Float::F16, Float::Bf16];

impl Float {
    /// Bytes of an element.
    pub(crate) const fn size(self) -> usize {
        match self {
            Float::F32 => 4,
            Float::F16 | Float::Bf16 => 2,
        }
    }

    fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Float::F32 => {
                let floats = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                out.iter_mut().zip(floats).for_each(|(out, float)| *out = float);
            }
            Float::F16 => {
                let halves = bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32());
                out.iter_mut().zip(halves).for_each(|(out, half)| *out = half);
            }
            Float::Bf16 => {
                let halves = bytes.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32());
                out.iter_mut().zip(halves).for_each(|(out, half)| *out = half);
            }
        }
    }
}

impl fmt::Debug for KvBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvBuffer")
            .field("shape", &self.shape)
            .field("num_blocks", &self.num_blocks)
            .finish_non_exhaustive()
    }
}

/// Encodes one head and puts its elements in column `slot` of `(head_dim, block_tokens)`.
fn write_turned((table, dtype): (&Table, KvDType), head: &[f32], (block_tokens, slot): (usize, usize), out: &mut [u8]) {
    let mut room = [0; BLOCK * size_of::<f32>()];
    for (index, block) in head.chunks(BLOCK).enumerate() {
        let place = index * BLOCK * block_tokens + slot;
        match dtype.float() {
            Some(float) => {
                let size = float.size();
                let encoded = &mut room[..block.len() * size];
                encode((table, dtype), block, encoded);
                let (out, step) = (&mut out[place * size..], block_tokens * size);
                match float {
                    Float::F32 => scatter::<4>(encoded, out, step),
                    Float::F16 | Float::Bf16 => scatter::<2>(encoded, out, step),
                }
            }
            None => {
                let encoded = &mut room[..2 + BLOCK];
                encode_q8_0(block, encoded);
                let (scales, codes) = out.split_at_mut(2 * head.len() / BLOCK * block_tokens);
                scales[2 * (index * block_tokens + slot)..][..2].copy_from_slice(&encoded[..2]);
                let columns = codes[place..].iter_mut().step_by(block_tokens);
                columns.zip(&encoded[2..]).for_each(|(out, code)| *out = *code);
            }
        }
    }
}

/// Puts elements of `SIZE` bytes `step` bytes apart.
fn scatter<const SIZE: usize>(elements: &[u8], out: &mut [u8], step: usize) {
    for (element, out) in elements.as_chunks::<SIZE>().0.iter().zip(out.chunks_mut(step)) {
        *out.first_chunk_mut().expect("invariant: every element has its place") = *element;
    }
}

/// Encodes one head.
fn encode((table, dtype): (&Table, KvDType), head: &[f32], out: &mut [u8]) {
    let blocks = head.chunks(BLOCK);
    match dtype {
        KvDType::F32 => {
            out.as_chunks_mut().0.iter_mut().zip(head).for_each(|(out, value)| *out = value.to_le_bytes());
        }
        KvDType::F16 => {
            let mut halves = [f16::ZERO; BLOCK];
            for (block, out) in blocks.zip(out.chunks_mut(2 * BLOCK)) {
                // SAFETY: `Kernels` chose the table among those that this processor can run.
                unsafe { (table.halves)(block, &mut halves[..block.len()]) };
                put(out, halves.map(f16::to_le_bytes));
            }
        }
        KvDType::Bf16 => {
            let mut halves = [bf16::ZERO; BLOCK];
            for (block, out) in blocks.zip(out.chunks_mut(2 * BLOCK)) {
                halves[..block.len()].convert_from_f32_slice(block);
                put(out, halves.map(bf16::to_le_bytes));
            }
        }
        KvDType::Q8_0 => blocks.zip(out.chunks_exact_mut(2 + BLOCK)).for_each(|(block, out)| encode_q8_0(block, out)),
    }
}

fn put(out: &mut [u8], halves: [[u8; 2]; BLOCK]) {
    match <&mut [u8; 2 * BLOCK]>::try_from(&mut *out) {
        // A copy of known length is one instruction.
        Ok(out) => out.copy_from_slice(halves.as_flattened()),
        Err(_) => out.copy_from_slice(&halves.as_flattened()[..out.len()]),
    }
}

fn encode_q8_0(block: &[f32], out: &mut [u8]) {
    let largest = block.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let scale = f16::from_f32(largest / Q8_MAX);
    // The rounded scale may be a little too small for the largest value, or 0 for tiny ones.
    let factor = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
    let (to_scale, to_values) = out.split_at_mut(2);
    to_scale.copy_from_slice(&scale.to_le_bytes());
    for (value, out) in block.iter().zip(to_values) {
        *out = ((value * factor).clamp(-Q8_MAX, Q8_MAX) + ROUND - ROUND) as i8 as u8;
    }
}
