//! Block formats: how stored weights become `f32`.
//!
//! Each instruction set has one function per format that takes a block and returns its decoder: a closure that holds
//! the block's scales and decodes one *part*, 32 consecutive weights, at a time. The products in `matmul` use the same functions, so a weight has the same bits wherever it is decoded; and because
//! every function multiplies and then adds, rounding twice as llama.cpp's reference does, also on every instruction
//! set.
//!
//! **Source**: llama.cpp, `ggml/src/ggml-quants.c`, functions `dequantize_row_*`.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
mod packed_scales;
pub(crate) mod scalar;
#[cfg(test)]
mod tests;

/// Weights per part.
pub(crate) const PART: usize = 32;

/// The `N` bytes of a block that start at `offset`.
#[inline(always)]
pub(crate) fn bytes_at<const N: usize>(block: &[u8], offset: usize) -> &[u8; N] {
    block[offset..].first_chunk::<N>().expect("invariant: the field lies in the block")
}

/// Scale and minimum of part `part` in the 12 packed bytes of `Q4_K` and `Q5_K`: 6 bits each, those of the later four
/// parts split into low nibbles and the top bits of the first eight bytes.
#[inline(always)]
pub(crate) fn scale_min_k4(packed: &[u8; 12], part: usize) -> (u8, u8) {
    if part < 4 {
        (packed[part] & 63, packed[part + 4] & 63)
    } else {
        let scale = (packed[part + 4] & 0xF) | ((packed[part - 4] >> 6) << 4);
        let min = (packed[part + 4] >> 4) | ((packed[part] >> 6) << 4);
        (scale, min)
    }
}

/// Signed scale of 16 weights in the 12 packed bytes of `Q3_K`: four low bits in the first eight bytes, two high bits
/// in the last four, stored with an offset of 32.
#[inline(always)]
pub(crate) fn scale_q3k(packed: &[u8; 12], index: usize) -> i32 {
    let low = if index < 8 { packed[index] & 0xF } else { packed[index - 8] >> 4 };
    let high = (packed[8 + index % 4] >> (2 * (index / 4))) & 3;
    i32::from(low | (high << 4)) - 32
}
