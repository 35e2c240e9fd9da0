//! Packed weights: multiplied with quantized activations in integers, or decoded to bf16 and multiplied with rounded ones
//! (`rounded.rs`, `widen.rs`).
//!
//! **Layout.** Sixteen rows form a *tile*, the last one padded with zeros. A tile holds the scales of all its blocks,
//! then the codes of all its blocks of 32 columns, each part at a multiple of 64 bytes. A code is the stored integer
//! made unsigned. Of a block, *step* `g` is columns `4g..4g+4`: a vector of 64 bytes, four columns of each row, which
//! one `vpdpbusd` adds into the sixteen sums of an activation row. Four-bit codes keep step `g` in the low and step
//! `g + 4` in the high nibbles of vector `g`; a fifth bit, or the bits above the fourth of a 6-bit code, follow in one
//! or two vectors. So codes and scales take the bits they take in the file.
//!
//! **Meaning.** With `c` the codes, `o` the offset of the format and `q`, `d` an activation block ([`crate::Quantized`]):
//! the integer `s = sum((c - o) q)` is exact; then, block by block in order, each output is
//! `acc = fma(s * d, scale, acc)`, and with a minimum `acc = fma(min, d * sum(q), acc)` after it. Formats with a scale
//! per 16 columns do the first step for each half. Scalar, AVX2, AVX-512 and AMX give the same bits, at any number of rows.
//!
//! **Bounds.** `|q| <= 127` and `c <= 255`, so 32 products sum to at most `32 * 255 * 127 = 1,036,320`, and with an
//! offset of 128 times the sum of the integers to less than `2^21`: nothing overflows 32 bits, and every `s` is
//! below `2^24`, so exact in `f32`. `vpdpbusd` adds four products in 32 bits without saturation. AVX2's `vpmaddubsw`
//! saturates at 32,767: codes of up to 6 bits give at most `2 * 63 * 127 = 16,002`; 8-bit codes are made signed again
//! and multiplied as `|c| * sign(q, c)`, at most `2 * 128 * 127 = 32,512`.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod format;
mod pack;
mod product;
mod rounded;
pub(crate) mod scalar;
#[cfg(test)]
mod tests;
mod widen;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

pub(crate) use format::{Format, Scales};
pub use product::PackedProduct;
pub(crate) use product::run;
pub(crate) use rounded::{run_gated, run_rounded};

use crate::huge_pages::HugePages;
use crate::quantized::{BLOCK, Group};
use crate::{DType, Matrix, Pool};

/// Rows of a tile.
pub(crate) const TILE: usize = 16;
/// Blocks of a superblock: the 256 columns of the K formats.
pub(crate) const SUPER: usize = 8;
/// Most activation rows of a group, for every instruction set.
pub(crate) const GROUP_MAX: usize = 16;
/// Sums of a group: activation rows x the rows of a tile.
pub(crate) type Sums = [[f32; TILE]; GROUP_MAX];

/// Weights packed for integer products; cheap to clone.
#[derive(Clone)]
pub struct PackedMatrix {
    dtype: DType,
    format: Format,
    rows: usize,
    cols: usize,
    data: Arc<HugePages>,
    /// Where the tiles lie in `data`.
    range: Range<usize>,
}

/// The weights of a tile, and the activations to multiply them with.
pub(crate) struct TileJob<'a> {
    pub(crate) format: Format,
    /// Scales of the blocks.
    pub(crate) scales: &'a [u8],
    /// Codes of the blocks.
    pub(crate) codes: &'a [u8],
    pub(crate) blocks: usize,
    pub(crate) group: &'a Group<'a>,
    /// Whether the codes are not in a cache yet.
    pub(crate) fetch: bool,
}

impl PackedMatrix {
    /// Whether a matrix can be packed: `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`, `Q3_K`, `Q4_K`, `Q5_K` and `Q6_K`. The floats and
    /// `Q2_K` stay as they are, for [`Kernels::matmul`](crate::Kernels::matmul).
    pub fn supports(dtype: DType) -> bool {
        Format::of(dtype).is_some()
    }

    /// Packs matrices into one allocation, in parallel; `None` where [`PackedMatrix::supports`] says no.
    ///
    /// The matrices lie in memory in the order given: best that in which a step uses them.
    pub fn pack_all(matrices: &[&Matrix], pool: &Pool) -> Vec<Option<PackedMatrix>> {
        pack::pack_all(matrices, pool)
    }

    /// Packs one matrix.
    pub fn pack(matrix: &Matrix, pool: &Pool) -> Option<PackedMatrix> {
        pack::pack_all(&[matrix], pool).pop().flatten()
    }

    /// The storage type that was packed.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of rows: the outputs of a product.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns: the inputs of a product.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes in memory.
    pub fn num_bytes(&self) -> usize {
        self.range.len()
    }

    /// Decodes one row, as [`Matrix::dequantize_row`] decodes the matrix that was packed.
    ///
    /// **Shapes**: `out`: `(cols)`.
    /// **Panics**: if `row` or the length of `out` is wrong.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {self:?} into {} values", out.len());
        let (scales, codes) = self.tile(row / TILE);
        scalar::decode_row(self.format, (scales, codes), row % TILE, out);
    }

    pub(crate) fn num_tiles(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// A tile and a group of activations, which is the `first` one that the tile is multiplied with or not.
    #[inline]
    pub(crate) fn tile_job<'a>(&'a self, tile: usize, group: &'a Group<'a>, first: bool) -> TileJob<'a> {
        let (scales, codes) = self.tile(tile);
        TileJob { format: self.format, scales, codes, blocks: self.cols / BLOCK, group, fetch: first }
    }

    /// The scales and the codes of a tile.
    #[inline(always)]
    fn tile(&self, tile: usize) -> (&[u8], &[u8]) {
        let (scales_len, codes_len) = self.format.tile_bytes(self.cols / BLOCK);
        let start = self.range.start + tile * (scales_len + codes_len);
        self.data.as_slice()[start..start + scales_len + codes_len].split_at(scales_len)
    }
}

impl TileJob<'_> {
    /// Asserts that the scales, codes and activations are as long as the tile and the group say.
    #[inline(always)]
    pub(crate) fn check(&self) {
        let (scales_len, codes_len) = self.format.tile_bytes(self.blocks);
        assert!(self.scales.len() == scales_len && self.codes.len() == codes_len, "bytes of a tile");
        let (group, len) = (self.group, self.group.rows * self.blocks);
        assert!(group.rows <= GROUP_MAX && group.values.len() == len, "activations of a group");
        let meta = &group.meta;
        assert!(meta.scales.len() == len && meta.scaled_sums.len() == len, "scales of a group");
        assert!(meta.negative_sums.len() == len && meta.negative_half_sums.len() == len, "sums of a group");
    }
}

impl fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedMatrix({} x {}, {})", self.rows, self.cols, self.dtype)
    }
}
