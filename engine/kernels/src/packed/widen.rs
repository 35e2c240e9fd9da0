//! Weights of a tile decoded to bf16, in the lines that products in bf16 take: see `bf16/mod.rs`.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::ops::Range;

use super::{Format, TILE, scalar};
use crate::Isa;
use crate::bf16::{LANES, round::round};
#[cfg(target_arch = "x86_64")]
use crate::bf16::{interleaved, rounded};
use crate::quantized::BLOCK;

/// Pairs of a block.
pub(super) const BLOCK_PAIRS: usize = BLOCK / 2;
/// Bytes between the codes in use and those that the caches are asked for.
const AHEAD: usize = 4096;
/// Bytes of a cache line.
const CACHE_LINE: usize = 64;
/// Floats of a line.
const LINE: usize = LANES;

/// Decodes some blocks of a tile: sixteen pairs a block, a line each.
///
/// The weights are those of `PackedMatrix::dequantize_row`, rounded.
///
/// **Panics** if a length does not fit.
pub(super) fn widen(isa: Isa, format: Format, (scales, codes): (&[u8], &[u8]), blocks: Range<usize>, out: &mut [u32]) {
    let num_blocks = codes.len() / format.block_codes();
    assert!(format.tile_bytes(num_blocks) == (scales.len(), codes.len()), "bytes of a tile of {num_blocks} blocks");
    assert!(blocks.end <= num_blocks, "blocks {blocks:?} of {num_blocks}");
    assert_eq!(out.len(), blocks.len() * BLOCK_PAIRS * LINE, "lines of {} blocks", blocks.len());
    #[cfg(target_arch = "x86_64")]
    if crate::bf16::has_rounding(isa) {
        // SAFETY: the instruction set is available and has instructions for bf16; the lengths were asserted.
        return unsafe { widen_avx512(format, (scales, codes), blocks, out) };
    }
    widen_scalar(isa, format, (scales, codes), blocks, out);
}

fn widen_scalar(isa: Isa, format: Format, tile: (&[u8], &[u8]), blocks: Range<usize>, out: &mut [u32]) {
    let mut row = vec![0.0; tile.1.len() / format.block_codes() * BLOCK];
    let mut pairs = vec![0; blocks.len() * BLOCK_PAIRS];
    for lane in 0..TILE {
        scalar::decode_row(format, tile, lane, &mut row);
        round(isa, &row[blocks.start * BLOCK..blocks.end * BLOCK], &mut pairs);
        for (line, pair) in out.as_chunks_mut::<LINE>().0.iter_mut().zip(&pairs) {
            line[lane] = *pair;
        }
    }
}

/// # Safety
/// The processor has the instruction set; the tile has the blocks, and `out` their lines.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
unsafe fn widen_avx512(format: Format, tile: (&[u8], &[u8]), blocks: Range<usize>, out: &mut [u32]) {
    // SAFETY: the caller's promise.
    unsafe {
        match format {
            Format::Q4_0 => kernel::<{ Format::Q4_0 as usize }>(tile, blocks, out),
            Format::Q4_1 => kernel::<{ Format::Q4_1 as usize }>(tile, blocks, out),
            Format::Q5_0 => kernel::<{ Format::Q5_0 as usize }>(tile, blocks, out),
            Format::Q5_1 => kernel::<{ Format::Q5_1 as usize }>(tile, blocks, out),
            Format::Q8_0 => kernel::<{ Format::Q8_0 as usize }>(tile, blocks, out),
            Format::Q3K => kernel::<{ Format::Q3K as usize }>(tile, blocks, out),
            Format::Q4K => kernel::<{ Format::Q4K as usize }>(tile, blocks, out),
            Format::Q5K => kernel::<{ Format::Q5K as usize }>(tile, blocks, out),
            Format::Q6K => kernel::<{ Format::Q6K as usize }>(tile, blocks, out),
        }
    }
}

/// # Safety
/// As [`widen_avx512`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
unsafe fn kernel<const FORMAT: usize>((scales, codes): (&[u8], &[u8]), blocks: Range<usize>, out: &mut [u32]) {
    let format = const { Format::ALL[FORMAT] };
    let mut out = out.as_mut_ptr();
    // Tiles lie one after the other: each block asks for its share of what comes later.
    let lines = (scales.len() + codes.len()).div_ceil(CACHE_LINE * (codes.len() / format.block_codes()));
    for block in blocks {
        // SAFETY: the caller's promise: the tile has the block, and `out` its lines; a prefetch reads nothing.
        unsafe {
            let ahead = codes.as_ptr().wrapping_add(AHEAD + block * format.block_codes());
            for line in 0..lines {
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line * CACHE_LINE).cast());
            }
            let (scales, min) = super::avx512::scales::<FORMAT>(scales.as_ptr(), block);
            let codes = codes.as_ptr().add(block * format.block_codes());
            if const { Format::ALL[FORMAT].bits() == 4 } {
                nibble_lines::<FORMAT>(codes, (scales, min), out);
                out = out.add(BLOCK_PAIRS * LINE);
                continue;
            }
            for step in 0..BLOCK / 8 {
                let codes = super::avx512::weights::<FORMAT, 0>(codes, step);
                step_lines::<FORMAT>(codes, scales[0], min, out.add(2 * step * LINE));
            }
            for step in 0..BLOCK / 8 {
                let codes = super::avx512::weights::<FORMAT, 1>(codes, step);
                step_lines::<FORMAT>(codes, scales[1], min, out.add((2 * step + BLOCK / 4) * LINE));
            }
            out = out.add(BLOCK_PAIRS * LINE);
        }
    }
}

/// The lines of a block of four-bit codes, each of which is looked up.
///
/// # Safety
/// `codes` points to a block, and `out` has room for its lines.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
#[inline]
unsafe fn nibble_lines<const FORMAT: usize>(codes: *const u8, (scales, min): ([__m512; 2], __m512), out: *mut u32) {
    const STEPS: usize = BLOCK / 8;
    let format = const { Format::ALL[FORMAT] };
    let offset =
        const { if Format::ALL[FORMAT].offset_shift() == 0 { 0 } else { 1 << Format::ALL[FORMAT].offset_shift() } };
    let numbers = std::array::from_fn::<f32, LINE, _>(|code| code as f32 - offset as f32);
    // SAFETY: sixteen floats are a vector.
    let numbers = unsafe { _mm512_loadu_ps(numbers.as_ptr()) };
    // Each row twice, for the two codes of a pair: first those of the lower half of a line, then those of the upper.
    // SAFETY: sixteen integers are a vector.
    let twice = unsafe { [_mm512_loadu_si512(TWICE[0].as_ptr().cast()), _mm512_loadu_si512(TWICE[1].as_ptr().cast())] };
    let (low, high) = (|x| _mm512_permutexvar_ps(twice[0], x), |x| _mm512_permutexvar_ps(twice[1], x));
    let scales = [[low(scales[0]), high(scales[0])], [low(scales[1]), high(scales[1])]];
    let mins = [low(min), high(min)];
    // A look-up takes the lowest four bits of each lane. A code times its scale is exact, so to add the minimum to it rounds once.
    let weights = |codes: __m512i, scale: __m512, min: __m512| {
        let code = _mm512_permutexvar_ps(codes, numbers);
        match format.scales() {
            super::Scales::HalfMin | super::Scales::SuperMin => _mm512_fmadd_ps(code, scale, min),
            super::Scales::Half | super::Scales::SuperHalves => _mm512_mul_ps(code, scale),
        }
    };
    let line = |codes: [__m512i; 2], half: usize, shifts: __m512i| {
        let low = weights(_mm512_srlv_epi32(codes[0], shifts), scales[half][0], mins[0]);
        rounded(low, weights(_mm512_srlv_epi32(codes[1], shifts), scales[half][1], mins[1]))
    };
    // To the even and to the odd code of a pair.
    let shifts = |even: i64, odd: i64| _mm512_set1_epi64(4 * (odd << 32 | even));
    for step in 0..STEPS {
        // SAFETY: the caller's promise: the low nibbles are those of this step, the high ones of that half a block later.
        unsafe {
            let codes = _mm512_loadu_si512(codes.add(step * CACHE_LINE).cast());
            let codes = [_mm512_permutexvar_epi32(twice[0], codes), _mm512_permutexvar_epi32(twice[1], codes)];
            let (low, high) = (out.add(2 * step * LINE), out.add(2 * (STEPS + step) * LINE));
            _mm512_storeu_si512(low.cast(), line(codes, 0, shifts(0, 2)));
            _mm512_storeu_si512(low.add(LINE).cast(), line(codes, 0, shifts(4, 6)));
            _mm512_storeu_si512(high.cast(), line(codes, 1, shifts(1, 3)));
            _mm512_storeu_si512(high.add(LINE).cast(), line(codes, 1, shifts(5, 7)));
        }
    }
}

/// The rows of each half of a line, twice.
#[cfg(target_arch = "x86_64")]
const TWICE: [[i32; LINE]; 2] = {
    let mut halves = [[0; LINE]; 2];
    let mut i = 0;
    while i < LINE {
        (halves[0][i], halves[1][i]) = (i as i32 / 2, (LINE + i) as i32 / 2);
        i += 1;
    }
    halves
};

/// The two lines of a step: four columns of sixteen rows.
///
/// # Safety
/// `out` has room for them.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
#[inline]
unsafe fn step_lines<const FORMAT: usize>(codes: __m512i, scale: __m512, min: __m512, out: *mut u32) {
    let format = const { Format::ALL[FORMAT] };
    let codes = match format.offset_shift() {
        0 => codes,
        shift => _mm512_sub_epi8(codes, _mm512_set1_epi8((1_u8 << shift).cast_signed())),
    };
    // Each column's bytes, with their signs.
    let columns = [
        _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(codes)),
        _mm512_srai_epi32::<24>(_mm512_slli_epi32::<16>(codes)),
        _mm512_srai_epi32::<24>(_mm512_slli_epi32::<8>(codes)),
        _mm512_srai_epi32::<24>(codes),
    ];
    let weights = columns.map(|column| {
        let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(column), scale);
        match format.scales() {
            super::Scales::HalfMin | super::Scales::SuperMin => _mm512_add_ps(scaled, min),
            super::Scales::Half | super::Scales::SuperHalves => scaled,
        }
    });
    // SAFETY: the caller's promise.
    unsafe {
        _mm512_storeu_si512(out.cast(), interleaved(weights[0], weights[1]));
        _mm512_storeu_si512(out.add(LINE).cast(), interleaved(weights[2], weights[3]));
    }
}
