//! Products with AVX2: one vector of eight partial sums per output.

use std::arch::x86_64::*;

use super::{GROUP, Tile, TileSums};
use crate::DType;
use crate::dequantize::{PART, avx2 as block};

/// Activation rows per tile: 3 x 4 sums, 3 activations and a weight take all 16 registers.
pub(crate) const TILE_ROWS: usize = 3;
const LANES: usize = 8;

/// Dots four stored rows with one activation row; what comes next in memory is `ahead` bytes on.
///
/// **Panics** if the rows are not as long as `x`, or `x` is not whole parts.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot4(dtype: DType, weights: [&[u8]; GROUP], ahead: usize, x: &[f32]) -> [f32; GROUP] {
    match dtype {
        DType::F32 => dot_blocks::<128, 1, _>(weights, ahead, x, |b| move |_| block::f32s(b)),
        DType::F16 => dot_blocks::<64, 1, _>(weights, ahead, x, |b| move |_| block::f16s(b)),
        DType::Bf16 => dot_blocks::<64, 1, _>(weights, ahead, x, |b| move |_| block::bf16s(b)),
        DType::Q4_0 => dot_blocks::<18, 1, _>(weights, ahead, x, |b| move |_| block::q4_0(b)),
        DType::Q4_1 => dot_blocks::<20, 1, _>(weights, ahead, x, |b| move |_| block::q4_1(b)),
        DType::Q5_0 => dot_blocks::<22, 1, _>(weights, ahead, x, |b| move |_| block::q5_0(b)),
        DType::Q5_1 => dot_blocks::<24, 1, _>(weights, ahead, x, |b| move |_| block::q5_1(b)),
        DType::Q8_0 => dot_blocks::<34, 1, _>(weights, ahead, x, |b| move |_| block::q8_0(b)),
        DType::Q2K => dot_blocks::<84, 8, _>(weights, ahead, x, |b| block::q2_k(b)),
        DType::Q3K => dot_blocks::<110, 8, _>(weights, ahead, x, |b| block::q3_k(b)),
        DType::Q4K => dot_blocks::<144, 8, _>(weights, ahead, x, |b| block::q4_k(b)),
        DType::Q5K => dot_blocks::<176, 8, _>(weights, ahead, x, |b| block::q5_k(b)),
        DType::Q6K => dot_blocks::<210, 8, _>(weights, ahead, x, |b| block::q6_k(b)),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn dot_blocks<'a, const BYTES: usize, const PARTS: usize, P: Fn(usize) -> block::Part>(
    weights: [&'a [u8]; GROUP],
    ahead: usize,
    x: &[f32],
    decoder: impl Fn(&'a [u8; BYTES]) -> P,
) -> [f32; GROUP] {
    // Written out, like all that is below: a closure with these target features is not inlined into `array::map`.
    let [row0, row1, row2, row3] = weights;
    let (row0, row1) = (row0.as_chunks::<BYTES>().0, row1.as_chunks::<BYTES>().0);
    let (row2, row3) = (row2.as_chunks::<BYTES>().0, row3.as_chunks::<BYTES>().0);
    let x_parts = x.as_chunks::<PART>().0;
    assert!(x.len().is_multiple_of(PART * PARTS), "{} activations are not whole blocks", x.len());
    for row in [row0, row1, row2, row3] {
        assert_eq!(row.len() * PARTS, x_parts.len(), "weights and activations differ in length");
    }
    let mut sums = [_mm256_setzero_ps(); GROUP];
    for (at, x_parts) in x_parts.chunks_exact(PARTS).enumerate() {
        let blocks = [&row0[at], &row1[at], &row2[at], &row3[at]];
        let parts = [decoder(blocks[0]), decoder(blocks[1]), decoder(blocks[2]), decoder(blocks[3])];
        for (index, x) in x_parts.iter().enumerate() {
            // SAFETY: `x` is 32 floats, four vectors; the loads are unaligned.
            let x = [0, 8, 16, 24].map(|at| unsafe { _mm256_loadu_ps(x.as_ptr().add(at)) });
            for ((block, part), sum) in blocks.iter().zip(&parts).zip(&mut sums) {
                prefetch(*block, index * BYTES / PARTS, ahead);
                for (weight, x) in part(index).into_iter().zip(x) {
                    *sum = _mm256_fmadd_ps(weight, x, *sum);
                }
            }
        }
    }
    add_lanes(sums)
}

/// Asks for the line that is `ahead` bytes after byte `at` of a block.
#[inline(always)]
fn prefetch(block: &[u8], at: usize, ahead: usize) {
    let address = block.as_ptr().wrapping_add(at + ahead);
    // SAFETY: SSE is in the baseline of x86-64, and a prefetch of any address reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
}

/// Dots four decoded rows with each activation row.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn tile(tile: &Tile<'_>, sums: &mut TileSums) {
    let len = tile.checked_len();
    // SAFETY: `checked_len` asserted that every row of the tile holds `len` floats.
    unsafe {
        match tile.num_rows {
            0 => {}
            1 => rows::<1>(tile, len, sums),
            2 => rows::<2>(tile, len, sums),
            3 => rows::<3>(tile, len, sums),
            4 => rows::<4>(tile, len, sums),
            5 => rows::<5>(tile, len, sums),
            _ => rows::<6>(tile, len, sums),
        }
    }
}

/// # Safety
/// The four weight rows and the first `N` activation rows hold `len` floats.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn rows<const N: usize>(tile: &Tile<'_>, len: usize, out: &mut TileSums) {
    let weights = tile.weights.map(<[f32]>::as_ptr);
    let x: [*const f32; N] = std::array::from_fn(|i| tile.x.as_ptr().wrapping_add(i * tile.stride));
    let mut sums = [[_mm256_setzero_ps(); GROUP]; N];
    let whole = len / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        // SAFETY: `at + 8 <= len`, which every row holds.
        let x = x.map(|row| unsafe { _mm256_loadu_ps(row.add(at)) });
        for (i, row) in weights.iter().enumerate() {
            // SAFETY: as above.
            let weight = unsafe { _mm256_loadu_ps(row.add(at)) };
            for (sums, x) in sums.iter_mut().zip(x) {
                sums[i] = _mm256_fmadd_ps(weight, x, sums[i]);
            }
        }
    }
    if whole < len {
        let mask = first_lanes(len - whole);
        // SAFETY: the mask keeps the loads below `len`.
        let x = x.map(|row| unsafe { _mm256_maskload_ps(row.add(whole), mask) });
        for (i, row) in weights.iter().enumerate() {
            // SAFETY: as above.
            let weight = unsafe { _mm256_maskload_ps(row.add(whole), mask) };
            for (sums, x) in sums.iter_mut().zip(x) {
                sums[i] = _mm256_fmadd_ps(weight, x, sums[i]);
            }
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        *out = add_lanes(sums);
    }
}

/// A mask of the first `num` lanes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn first_lanes(num: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(num as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

/// Adds up the lanes of four vectors, each in the same order.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_lanes(sums: [__m256; GROUP]) -> [f32; GROUP] {
    let [a, b, c, d] = sums;
    let ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
    let low = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
    let high = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
    let halves = _mm256_add_ps(low, high);
    let total = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
    let mut out = [0.0; GROUP];
    // SAFETY: `out` is four floats.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), total) };
    out
}
