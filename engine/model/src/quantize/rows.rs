//! Encodes the rows of a matrix in another format, in parallel; refuses numbers that no block can hold.

use std::ops::Range;

use bespoke_kernels::{DType, Matrix};
use half::{bf16, f16};

use super::{k_blocks, small_blocks};

/// The greatest weight that every block format can hold: its scales and minimums are halves.
const WEIGHT_MAX: f32 = 65_504.0;

/// In which order the rows of a matrix are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowOrder {
    /// As they are.
    Same,
    /// Within each head, row `i` of the first half goes before row `i` of the second: llama.cpp rotates neighbours where
    /// Hugging Face rotates halves.
    ///
    /// **Source**: `LlamaModel.permute` in llama.cpp `convert_hf_to_gguf.py`.
    Interleaved {
        /// Rows of a head.
        head_dim: usize,
    },
}

/// A matrix and what is to become of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) matrix: &'a Matrix,
    pub(super) order: RowOrder,
    pub(super) dtype: DType,
    pub(super) num_threads: usize,
}

/// A weight that cannot be encoded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fault {
    pub(crate) row: usize,
    pub(crate) col: usize,
    pub(crate) value: f32,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in row {}, column {} cannot be quantized", self.value, self.row, self.col)
    }
}

impl RowOrder {
    /// Returns which row is written at this place.
    pub(super) fn source(self, row: usize) -> usize {
        match self {
            RowOrder::Same => row,
            RowOrder::Interleaved { head_dim } => {
                let (head, place) = (row / head_dim, row % head_dim);
                head * head_dim + (place % 2) * (head_dim / 2) + place / 2
            }
        }
    }
}

impl Rows<'_> {
    /// Appends the encoded rows of a range to `out`; rows that already have the format are copied.
    ///
    /// **Errors**: the first weight that is no number or too large.
    /// **Panics**: if the rows are not whole blocks of the format.
    pub(super) fn encode(&self, range: Range<usize>, out: &mut Vec<u8>) -> Result<(), Fault> {
        let row_bytes =
            self.dtype.row_bytes(self.matrix.cols()).expect("invariant: the caller chose a format that fits");
        let start = out.len();
        out.resize(start + range.len() * row_bytes, 0);
        self.encode_into(range, &mut out[start..])
    }

    /// [`Rows::encode`] into memory that is as long as the encoded rows.
    pub(super) fn encode_into(&self, range: Range<usize>, out: &mut [u8]) -> Result<(), Fault> {
        if out.is_empty() {
            return Ok(());
        }
        let row_bytes = out.len() / range.len();
        let rows_per_thread = range.len().div_ceil(self.num_threads.max(1));
        let parts = out.chunks_mut(rows_per_thread * row_bytes);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (range.start..range.end)
                .step_by(rows_per_thread)
                .zip(parts)
                .map(|(first, part)| scope.spawn(move || self.encode_part(first, part.chunks_exact_mut(row_bytes))))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .fold(Ok(()), Result::and)
        })
    }

    fn encode_part<'b>(&self, first: usize, out: impl Iterator<Item = &'b mut [u8]>) -> Result<(), Fault> {
        let mut values = vec![0.0; self.matrix.cols()];
        for (row, out) in (first..).zip(out) {
            let row = self.order.source(row);
            if self.matrix.dtype() == self.dtype {
                out.copy_from_slice(self.matrix.row_bytes(row));
                continue;
            }
            self.matrix.dequantize_row(row, &mut values);
            let fault = values.iter().position(|value| !self.can_hold(*value));
            if let Some(col) = fault {
                return Err(Fault { row, col, value: values[col] });
            }
            encode_row(self.dtype, &values, out);
        }
        Ok(())
    }

    fn can_hold(&self, value: f32) -> bool {
        match self.dtype {
            DType::F32 | DType::Bf16 => true,
            // Not a number compares as false.
            _ => value.abs() <= WEIGHT_MAX,
        }
    }
}

/// Encodes finite values of at most [`WEIGHT_MAX`].
///
/// **Panics**: for `Q2_K` and `Q3_K`, which nothing asks for.
pub(super) fn encode_row(dtype: DType, values: &[f32], out: &mut [u8]) {
    match dtype {
        DType::F32 => each(values, out, f32::to_le_bytes),
        DType::F16 => each(values, out, |value| f16::from_f32(value).to_le_bytes()),
        DType::Bf16 => each(values, out, |value| bf16::from_f32(value).to_le_bytes()),
        DType::Q4_0 => blocks(values, out, small_blocks::q4_0),
        DType::Q4_1 => blocks(values, out, small_blocks::q4_1),
        DType::Q5_0 => blocks(values, out, small_blocks::q5_0),
        DType::Q5_1 => blocks(values, out, small_blocks::q5_1),
        DType::Q8_0 => blocks(values, out, small_blocks::q8_0),
        DType::Q4K => blocks(values, out, k_blocks::q4_k),
        DType::Q5K => blocks(values, out, k_blocks::q5_k),
        DType::Q6K => blocks(values, out, k_blocks::q6_k),
        DType::Q2K | DType::Q3K => unreachable!("invariant: no scheme has {dtype}"),
    }
}

fn each<const N: usize>(values: &[f32], out: &mut [u8], encode: impl Fn(f32) -> [u8; N]) {
    for (value, out) in values.iter().zip(out.as_chunks_mut::<N>().0) {
        *out = encode(*value);
    }
}

fn blocks<const LEN: usize, const BYTES: usize>(
    values: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[f32; LEN], &mut [u8; BYTES]),
) {
    for (block, out) in values.as_chunks::<LEN>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
        encode(block, out);
    }
}

#[cfg(test)]
mod tests;
