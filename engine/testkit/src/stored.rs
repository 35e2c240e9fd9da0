//! Tensors as a file stores them: encoding to bytes, and the values that a reader gets back.

use half::{bf16, f16};

/// Numbers per block of `Q8_0`.
const Q8_0_BLOCK: usize = 32;

/// The number format of the matrices of a tiny model. Vectors are written so that every format holds them exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TinyDtype {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// The upper half of 32-bit floats.
    Bf16,
    /// Blocks of 32 8-bit integers with a 16-bit scale; GGUF only.
    Q8_0,
}

/// A tensor with the values that a file holds after rounding to its number format.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTensor {
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f32>,
}

impl StoredTensor {
    /// Makes a vector whose values are exact in `F32`, `F16` and `Bf16`.
    pub(crate) fn vector(values: Vec<f32>) -> StoredTensor {
        let exact = |value: f32| f16::from_f32(bf16::from_f32(value).to_f32()).to_f32();
        StoredTensor { shape: vec![values.len()], values: values.into_iter().map(exact).collect() }
    }

    /// Makes a matrix whose values are exact in `dtype`.
    pub(crate) fn matrix(rows: usize, cols: usize, values: &[f32], dtype: TinyDtype) -> StoredTensor {
        StoredTensor { shape: vec![rows, cols], values: dtype.decode(&dtype.encode(values)) }
    }

    /// Permutes the rows of a q or k matrix or bias as llama.cpp's converter does: within a head, row `i` of the first and
    /// row `i` of the second half become neighbours.
    ///
    /// **Source**: `LlamaModel.permute` in llama.cpp `convert_hf_to_gguf.py`.
    pub(crate) fn permuted(&self, num_heads: usize) -> StoredTensor {
        let num_rows = self.shape[0];
        let width = self.values.len() / num_rows;
        let head_dim = num_rows / num_heads;
        let mut values = Vec::with_capacity(self.values.len());
        for row in 0..num_rows {
            let (head, place) = (row / head_dim, row % head_dim);
            let from = head * head_dim + (place % 2) * (head_dim / 2) + place / 2;
            values.extend_from_slice(&self.values[from * width..(from + 1) * width]);
        }
        StoredTensor { shape: self.shape.clone(), values }
    }
}

impl TinyDtype {
    pub(crate) fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            TinyDtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            TinyDtype::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
            TinyDtype::Bf16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
            TinyDtype::Q8_0 => values.chunks_exact(Q8_0_BLOCK).flat_map(encode_q8_0).collect(),
        }
    }

    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            TinyDtype::F32 => chunks(bytes).map(f32::from_le_bytes).collect(),
            TinyDtype::F16 => chunks(bytes).map(|bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
            TinyDtype::Bf16 => chunks(bytes).map(|bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
            TinyDtype::Q8_0 => chunks::<{ Q8_0_BLOCK + 2 }>(bytes).flat_map(decode_q8_0).collect(),
        }
    }
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.chunks_exact(N).map(|chunk| chunk.try_into().expect("invariant: chunks are exact"))
}

fn encode_q8_0(block: &[f32]) -> Vec<u8> {
    let largest = block.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let scale = f16::from_f32(largest / 127.0);
    // The reader multiplies by the rounded scale, so encoding what was decoded gives the same bytes.
    let inverse = if scale.to_f32() == 0.0 { 0.0 } else { 1.0 / scale.to_f32() };
    let quantized = block.iter().map(|value| (value * inverse).round().clamp(-127.0, 127.0) as i8 as u8);
    scale.to_le_bytes().into_iter().chain(quantized).collect()
}

fn decode_q8_0(block: [u8; Q8_0_BLOCK + 2]) -> Vec<f32> {
    let [low, high, quantized @ ..] = block;
    let scale = f16::from_le_bytes([low, high]).to_f32();
    quantized.iter().map(|&byte| f32::from(byte as i8) * scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_decoded_is_exact() {
        let values: Vec<f32> = (0..64).map(|i| (i as f32 * 0.37).sin()).collect();
        for dtype in [TinyDtype::F32, TinyDtype::F16, TinyDtype::Bf16, TinyDtype::Q8_0] {
            let once = StoredTensor::matrix(2, 32, &values, dtype);
            assert_eq!(StoredTensor::matrix(2, 32, &once.values, dtype), once, "{dtype:?}");
        }
    }

    #[test]
    fn permuting_interleaves_the_halves_of_each_head() {
        let tensor = StoredTensor { shape: vec![8], values: (0..8).map(|i| i as f32).collect() };
        assert_eq!(tensor.permuted(2).values, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }
}
