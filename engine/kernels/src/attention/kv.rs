//! Storage of keys, or values, of one layer: `(num_blocks, kv_heads, block_tokens, head_dim)` floats in a chosen format.
//!
//! Floats are read in place. What is stored smaller is decoded a chunk at a time into the scratch of the reading thread, once for
//! all query heads and rows that look at the chunk; the arithmetic after that is the same.

use std::fmt;
use std::ops::Range;

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::blocked::HEAD_DIM_MAX;
use super::{CHUNK, KvShape};
use crate::DType;
use crate::table::Table;

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

/// The keys, or the values, of one layer.
pub struct KvBuffer {
    shape: KvShape,
    num_blocks: usize,
    data: Data,
}

enum Data {
    Floats(Vec<f32>),
    /// Heads of so many bytes.
    Encoded {
        dtype: DType,
        head_bytes: usize,
        bytes: Vec<u8>,
    },
}

impl KvBuffer {
    /// Reserves blocks. The memory is zeroed lazily by the system: a block costs nothing before its first write.
    ///
    /// **Panics** if the format does not support the heads, or if the size overflows.
    pub fn new(dtype: KvDType, shape: KvShape, num_blocks: usize) -> KvBuffer {
        let head_bytes = dtype.head_bytes(shape.head_dim);
        let head_bytes = head_bytes.unwrap_or_else(|| panic!("heads of {} as {dtype}", shape.head_dim));
        let num_heads =
            num_blocks.checked_mul(shape.block_tokens * shape.kv_heads).expect("invariant: it fits in memory");
        let data = match dtype {
            KvDType::F32 => Data::Floats(vec![0.0; num_heads * shape.head_dim]),
            _ => Data::Encoded { dtype: dtype.dtype(), head_bytes, bytes: vec![0; num_heads * head_bytes] },
        };
        KvBuffer { shape, num_blocks, data }
    }

    /// The layout.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// The number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Writes the heads of one position, place `slot` of a block.
    ///
    /// **Shapes**: `heads` `(kv_heads, head_dim)`. **Panics** if the block or the slot does not exist.
    pub fn write(&mut self, block: usize, slot: usize, heads: &[f32]) {
        let KvShape { block_tokens, kv_heads, head_dim } = self.shape;
        assert!(slot < block_tokens, "slot {slot} of a block of {block_tokens}");
        assert_eq!(heads.len(), kv_heads * head_dim, "elements of {kv_heads} heads of {head_dim}");
        for (head, from) in heads.chunks_exact(head_dim).enumerate() {
            let index = (block * kv_heads + head) * block_tokens + slot;
            match &mut self.data {
                Data::Floats(data) => data[index * head_dim..][..head_dim].copy_from_slice(from),
                Data::Encoded { dtype, head_bytes, bytes } => {
                    encode(*dtype, from, &mut bytes[index * *head_bytes..][..*head_bytes]);
                }
            }
        }
    }

    /// The floats that [`KvBuffer::heads`] needs as scratch.
    pub(super) fn scratch_len(&self) -> usize {
        match self.data {
            Data::Floats(_) => 0,
            Data::Encoded { .. } => CHUNK * self.shape.head_dim,
        }
    }

    /// Finds the heads of some positions, at most a chunk, of a sequence with these blocks.
    pub(super) fn heads<'s>(
        &'s self,
        table: &Table,
        (blocks, kv_head): (&[u32], usize),
        positions: Range<usize>,
        scratch: &'s mut [f32],
    ) -> [&'s [f32]; CHUNK] {
        let head_dim = self.shape.head_dim;
        let mut found: [&[f32]; CHUNK] = [&[]; CHUNK];
        match &self.data {
            Data::Floats(data) => {
                self.for_runs((blocks, kv_head), positions, |lanes, first| {
                    let heads = data[first * head_dim..][..lanes.len() * head_dim].chunks_exact(head_dim);
                    found[lanes].iter_mut().zip(heads).for_each(|(found, head)| *found = head);
                });
            }
            Data::Encoded { dtype, head_bytes, bytes } => {
                self.for_runs((blocks, kv_head), positions, |lanes, first| {
                    let bytes = &bytes[first * head_bytes..][..lanes.len() * head_bytes];
                    let out = &mut scratch[lanes.start * head_dim..lanes.end * head_dim];
                    // SAFETY: `Kernels` chose the table among those that this processor can run.
                    unsafe { (table.decode)(*dtype, bytes, out) };
                });
                found.iter_mut().zip(scratch.chunks_exact(head_dim)).for_each(|(found, head)| *found = head);
            }
        }
        found
    }

    /// Calls `visit` with runs of positions, counted from the first, that lie one after the other, and the index of their first head.
    fn for_runs(
        &self,
        (blocks, kv_head): (&[u32], usize),
        positions: Range<usize>,
        mut visit: impl FnMut(Range<usize>, usize),
    ) {
        let KvShape { block_tokens, kv_heads, .. } = self.shape;
        let mut position = positions.start;
        while position < positions.end {
            let (block, slot) = (position / block_tokens, position % block_tokens);
            let end = positions.end.min(position + block_tokens - slot);
            let lanes = position - positions.start..end - positions.start;
            visit(lanes, (blocks[block] as usize * kv_heads + kv_head) * block_tokens + slot);
            position = end;
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

/// Encodes one head.
fn encode(dtype: DType, head: &[f32], out: &mut [u8]) {
    let blocks = head.chunks(BLOCK);
    match dtype {
        DType::F16 => {
            let mut halves = [f16::ZERO; BLOCK];
            for (block, out) in blocks.zip(out.chunks_mut(2 * BLOCK)) {
                halves[..block.len()].convert_from_f32_slice(block);
                put(out, halves.map(f16::to_le_bytes));
            }
        }
        DType::Bf16 => {
            let mut halves = [bf16::ZERO; BLOCK];
            for (block, out) in blocks.zip(out.chunks_mut(2 * BLOCK)) {
                halves[..block.len()].convert_from_f32_slice(block);
                put(out, halves.map(bf16::to_le_bytes));
            }
        }
        DType::Q8_0 => blocks.zip(out.chunks_exact_mut(2 + BLOCK)).for_each(|(block, out)| encode_q8_0(block, out)),
        _ => unreachable!("invariant: no cache holds {dtype}"),
    }
}

fn put(out: &mut [u8], halves: [[u8; 2]; BLOCK]) {
    out.copy_from_slice(&halves.as_flattened()[..out.len()]);
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
