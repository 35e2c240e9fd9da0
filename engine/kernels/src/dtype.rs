//! Storage types of weights: plain floats, and the block formats of GGUF files.

use std::fmt;

/// Columns in a block of the 32-column formats.
const SMALL_BLOCK: usize = 32;
/// Columns in a block of the K formats.
const K_BLOCK: usize = 256;

/// Storage type of a weight matrix.
///
/// **Source**: llama.cpp, `ggml/src/ggml-common.h`; the block layouts are its, byte for byte, little endian.
#[allow(non_camel_case_types, reason = "`Q4_0` and `Q4_1` are the names of the formats")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// 4 bits, scale.
    Q4_0,
    /// 4 bits, scale and minimum.
    Q4_1,
    /// 5 bits, scale.
    Q5_0,
    /// 5 bits, scale and minimum.
    Q5_1,
    /// 8 bits, scale.
    Q8_0,
    /// 2 bits, 4-bit scales and minimums per 16.
    Q2K,
    /// 3 bits, 6-bit scales per 16.
    Q3K,
    /// 4 bits, 6-bit scales and minimums per 32.
    Q4K,
    /// 5 bits, 6-bit scales and minimums per 32.
    Q5K,
    /// 6 bits, 8-bit scales per 16.
    Q6K,
}

impl DType {
    /// Every storage type.
    pub const ALL: [DType; 13] = [
        DType::F32,
        DType::F16,
        DType::Bf16,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q8_0,
        DType::Q2K,
        DType::Q3K,
        DType::Q4K,
        DType::Q5K,
        DType::Q6K,
    ];

    /// Columns per block; 1 for the floats.
    pub fn block_len(self) -> usize {
        match self {
            DType::F32 | DType::F16 | DType::Bf16 => 1,
            DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::Q8_0 => SMALL_BLOCK,
            DType::Q2K | DType::Q3K | DType::Q4K | DType::Q5K | DType::Q6K => K_BLOCK,
        }
    }

    /// Bytes per block: its scales, then its packed values.
    pub fn block_bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
            DType::Q4_0 => 2 + 16,
            DType::Q4_1 => 2 + 2 + 16,
            DType::Q5_0 => 2 + 4 + 16,
            DType::Q5_1 => 2 + 2 + 4 + 16,
            DType::Q8_0 => 2 + 32,
            DType::Q2K => 16 + 64 + 2 + 2,
            DType::Q3K => 32 + 64 + 12 + 2,
            DType::Q4K => 2 + 2 + 12 + 128,
            DType::Q5K => 2 + 2 + 12 + 32 + 128,
            DType::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// Bytes of a row of `cols` columns; `None` where they are not whole blocks or the size overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if cols.is_multiple_of(self.block_len()) {
            (cols / self.block_len()).checked_mul(self.block_bytes())
        } else {
            None
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::Bf16 => "BF16",
            DType::Q4_0 => "Q4_0",
            DType::Q4_1 => "Q4_1",
            DType::Q5_0 => "Q5_0",
            DType::Q5_1 => "Q5_1",
            DType::Q8_0 => "Q8_0",
            DType::Q2K => "Q2_K",
            DType::Q3K => "Q3_K",
            DType::Q4K => "Q4_K",
            DType::Q5K => "Q5_K",
            DType::Q6K => "Q6_K",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_whole_blocks_or_nothing() {
        assert_eq!(DType::F16.row_bytes(7), Some(14));
        assert_eq!(DType::Q4_1.row_bytes(64), Some(40));
        assert_eq!(DType::Q4_1.row_bytes(65), None);
        assert_eq!(DType::Q6K.row_bytes(512), Some(420));
        assert_eq!(DType::Q6K.row_bytes(576), None);
        assert_eq!(DType::F32.row_bytes(usize::MAX), None);
    }

    #[test]
    fn names_are_those_of_gguf() {
        let names: Vec<String> = DType::ALL.iter().map(DType::to_string).collect();
        let expected = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K";
        assert_eq!(names.join(" "), expected);
    }
}
