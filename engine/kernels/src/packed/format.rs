//! What distinguishes the packed formats.

use super::{SUPER, TILE};
use crate::DType;

/// Bytes of a cache line: the alignment of the parts of a tile.
const LINE: usize = 64;

/// How the scales of a tile are stored. Each entry is repeated for the sixteen rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scales {
    /// Per block: a half-precision scale.
    Half,
    /// Per block: a half-precision scale and minimum.
    HalfMin,
    /// Per superblock: a half-precision scale and (negative) minimum; then per block an unsigned byte of each.
    SuperMin,
    /// Per superblock: a half-precision scale; then per 16 columns a signed byte.
    SuperHalves,
}

/// A packed format: bits of a code, the offset that makes it unsigned, and its scales.
#[allow(non_camel_case_types, reason = "`Q4_0` and `Q4_1` are the names of the formats")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl Format {
    /// Every format, in the order of the enum: kernels are generic over the index.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const ALL: [Format; 9] = [
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q3K,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
    ];

    pub(crate) fn of(dtype: DType) -> Option<Format> {
        match dtype {
            DType::F32 | DType::F16 | DType::Bf16 | DType::Q2K => None,
            DType::Q4_0 => Some(Format::Q4_0),
            DType::Q4_1 => Some(Format::Q4_1),
            DType::Q5_0 => Some(Format::Q5_0),
            DType::Q5_1 => Some(Format::Q5_1),
            DType::Q8_0 => Some(Format::Q8_0),
            DType::Q3K => Some(Format::Q3K),
            DType::Q4K => Some(Format::Q4K),
            DType::Q5K => Some(Format::Q5K),
            DType::Q6K => Some(Format::Q6K),
        }
    }

    /// Bits of a code; `Q3_K` takes the four of the next format up.
    #[inline(always)]
    pub(crate) const fn bits(self) -> u32 {
        match self {
            Format::Q4_0 | Format::Q4_1 | Format::Q3K | Format::Q4K => 4,
            Format::Q5_0 | Format::Q5_1 | Format::Q5K => 5,
            Format::Q6K => 6,
            Format::Q8_0 => 8,
        }
    }

    /// The binary logarithm of the offset; 0 where there is none.
    #[inline(always)]
    pub(crate) const fn offset_shift(self) -> u32 {
        match self {
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => 0,
            Format::Q3K => 2,
            Format::Q4_0 => 3,
            Format::Q5_0 => 4,
            Format::Q6K => 5,
            Format::Q8_0 => 7,
        }
    }

    #[inline(always)]
    pub(crate) const fn scales(self) -> Scales {
        match self {
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => Scales::Half,
            Format::Q4_1 | Format::Q5_1 => Scales::HalfMin,
            Format::Q4K | Format::Q5K => Scales::SuperMin,
            Format::Q3K | Format::Q6K => Scales::SuperHalves,
        }
    }

    /// Bytes of the codes of a block of a tile.
    #[inline(always)]
    pub(crate) const fn block_codes(self) -> usize {
        self.bits() as usize * LINE
    }

    /// Bytes of the scales and of the codes of a tile of `blocks` blocks.
    #[inline(always)]
    pub(crate) fn tile_bytes(self, blocks: usize) -> (usize, usize) {
        let scales = match self.scales() {
            Scales::Half => blocks * 2 * TILE,
            Scales::HalfMin => blocks * 4 * TILE,
            Scales::SuperMin => blocks / SUPER * (4 * TILE + SUPER * 2 * TILE),
            Scales::SuperHalves => blocks / SUPER * (2 * TILE + SUPER * 2 * TILE),
        };
        (scales.next_multiple_of(LINE), blocks * self.block_codes())
    }
}
