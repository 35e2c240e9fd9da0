//! Seeded inputs for the tests of the kernels.

use bytes::Bytes;
use half::{bf16, f16};

use crate::{DType, Isa, Matrix};

/// A small counter-based generator (SplitMix64), so that inputs need no dependency and no state elsewhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.bits() % limit as u64) as usize
    }

    /// In -1..1.
    pub(crate) fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.bits() as u8).collect()
    }

    /// Any bits in the packed values, small numbers as scales; the data starts at an odd address.
    pub(crate) fn matrix(&mut self, dtype: DType, rows: usize, cols: usize) -> Matrix {
        let len = rows * dtype.row_bytes(cols).unwrap();
        let mut data = self.bytes(len + 1);
        for block in data[1..].chunks_exact_mut(dtype.block_bytes()) {
            match dtype {
                DType::F32 => block.copy_from_slice(&self.float().to_le_bytes()),
                DType::F16 => block.copy_from_slice(&f16::from_f32(self.float()).to_le_bytes()),
                DType::Bf16 => block.copy_from_slice(&bf16::from_f32(self.float()).to_le_bytes()),
                _ => {
                    for &at in scale_offsets(dtype) {
                        block[at..at + 2].copy_from_slice(&f16::from_f32(self.float() / 64.0).to_le_bytes());
                    }
                }
            }
        }
        Matrix::new(dtype, rows, cols, Bytes::from(data).slice(1..)).unwrap()
    }
}

/// Where the half-precision numbers of a block are.
pub(crate) fn scale_offsets(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::F32 | DType::F16 | DType::Bf16 => &[],
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
        DType::Q2K => &[80, 82],
        DType::Q3K => &[108],
        DType::Q6K => &[208],
    }
}

pub(crate) fn available_isas() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
