//! Integer products with AVX2: eight rows of weights in a vector, two vectors to a tile. Products are summed in 16 bits as long as
//! that cannot overflow, which saves the widening of most of them.

use std::arch::x86_64::*;

use super::{Format, SUPER, Scales, Sums, TILE, TileJob, product};
use crate::shared::Place;

/// Activation rows of a group: their integer sums take eight of sixteen registers, the float sums stay in the first-level cache.
pub(crate) const GROUP_ROWS: usize = 4;
/// Bytes between the vectors of a tile; one here is half of that.
const VECTOR: usize = 64;
/// Vectors of eight rows in a tile.
const HALVES: usize = 2;
const LANES: usize = 8;
/// Steps of half a block.
const HALF_STEPS: usize = 4;

/// As `scalar::tile`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn tile(job: &TileJob<'_>, sums: &mut Sums) {
    job.check();
    match job.format {
        Format::Q4_0 => rows::<{ Format::Q4_0 as usize }>(job, sums),
        Format::Q4_1 => rows::<{ Format::Q4_1 as usize }>(job, sums),
        Format::Q5_0 => rows::<{ Format::Q5_0 as usize }>(job, sums),
        Format::Q5_1 => rows::<{ Format::Q5_1 as usize }>(job, sums),
        Format::Q8_0 => rows::<{ Format::Q8_0 as usize }>(job, sums),
        Format::Q3K => rows::<{ Format::Q3K as usize }>(job, sums),
        Format::Q4K => rows::<{ Format::Q4K as usize }>(job, sums),
        Format::Q5K => rows::<{ Format::Q5K as usize }>(job, sums),
        Format::Q6K => rows::<{ Format::Q6K as usize }>(job, sums),
    }
}

/// As `product::put`, of whole tiles.
///
/// # Safety
/// As `product::put`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn put(sums: &[[f32; TILE]], place: Place) {
    // SAFETY: the caller's promise.
    unsafe { product::put(sums, place, TILE) };
}

#[target_feature(enable = "avx2,fma,f16c")]
fn rows<const FORMAT: usize>(job: &TileJob<'_>, sums: &mut Sums) {
    // SAFETY: `tile` has checked the lengths, and a group of this instruction set has at most four rows.
    unsafe {
        match job.group.rows {
            0 => {}
            1 => kernel::<FORMAT, 1>(job, sums),
            2 => kernel::<FORMAT, 2>(job, sums),
            3 => kernel::<FORMAT, 3>(job, sums),
            rows => {
                assert_eq!(rows, GROUP_ROWS, "rows of a group");
                kernel::<FORMAT, 4>(job, sums);
            }
        }
    }
}

/// # Safety
/// The job is as long as it says, and its group has `N` rows.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn kernel<const FORMAT: usize, const N: usize>(job: &TileJob<'_>, sums: &mut Sums) {
    let format = const { Format::ALL[FORMAT] };
    let (mut codes, mut x) = (job.codes.as_ptr(), job.group.values.as_ptr().cast::<i8>());
    let mut at = 0;
    let mut acc = [[_mm256_setzero_ps(); HALVES]; N];
    for block in 0..job.blocks {
        // SAFETY: the caller's promise: `codes`, `x` and `at` are those of block `block`.
        unsafe {
            let of_half = [0, LANES].map(|first_lane| scales::<FORMAT>(job.scales.as_ptr(), block, first_lane));
            let mut dots = [[_mm256_setzero_si256(); HALVES]; N];
            let mut pairs = [[_mm256_setzero_si256(); HALVES]; N];
            steps::<FORMAT, 0, N>(codes, x, &mut pairs, &mut dots);
            if matches!(format.scales(), Scales::SuperHalves) {
                take_offset::<FORMAT, N>(job, (at, 0), &mut dots);
                add::<N>(&mut acc, &dots, of_half.map(|(scales, _)| scales[0]), job.group.meta.scales.as_ptr().add(at));
                dots = [[_mm256_setzero_si256(); HALVES]; N];
            }
            steps::<FORMAT, 1, N>(codes, x, &mut pairs, &mut dots);
            take_offset::<FORMAT, N>(job, (at, 1), &mut dots);
            add::<N>(&mut acc, &dots, of_half.map(|(scales, _)| scales[1]), job.group.meta.scales.as_ptr().add(at));
            if matches!(format.scales(), Scales::HalfMin | Scales::SuperMin) {
                for (i, acc) in acc.iter_mut().enumerate() {
                    let sum = _mm256_set1_ps(*job.group.meta.scaled_sums.as_ptr().add(at + i));
                    for (acc, (_, min)) in acc.iter_mut().zip(of_half) {
                        *acc = _mm256_fmadd_ps(min, sum, *acc);
                    }
                }
            }
        }
        codes = codes.wrapping_add(format.block_codes());
        x = x.wrapping_add(N * 32);
        at += N;
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        for (sums, acc) in sums.as_chunks_mut::<LANES>().0.iter_mut().zip(acc) {
            // SAFETY: eight floats are a vector.
            unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), acc) };
        }
    }
}

/// `acc = fma(dots * d, scale, acc)`.
///
/// # Safety
/// `d` points to `N` floats.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn add<const N: usize>(
    acc: &mut [[__m256; HALVES]; N],
    dots: &[[__m256i; HALVES]; N],
    scales: [__m256; HALVES],
    d: *const f32,
) {
    for (i, (acc, dots)) in acc.iter_mut().zip(dots).enumerate() {
        // SAFETY: the caller's promise.
        let d = _mm256_set1_ps(unsafe { *d.add(i) });
        for ((acc, dot), scale) in acc.iter_mut().zip(dots).zip(scales) {
            *acc = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(*dot), d), scale, *acc);
        }
    }
}

/// Takes the offset times the sum of the activations off the integer sums. Codes of 8 bits are made signed instead.
///
/// # Safety
/// `at` is that of a block of the job, whose group has `N` rows.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn take_offset<const FORMAT: usize, const N: usize>(
    job: &TileJob<'_>,
    (at, half): (usize, usize),
    dots: &mut [[__m256i; HALVES]; N],
) {
    let format = const { Format::ALL[FORMAT] };
    if format.offset_shift() == 0 || format.bits() == 8 {
        return;
    }
    let meta = &job.group.meta;
    for (i, dots) in dots.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let sum = unsafe {
            match format.scales() {
                Scales::SuperHalves => (*meta.negative_half_sums.as_ptr().add(at + i))[half],
                _ => *meta.negative_sums.as_ptr().add(at + i),
            }
        };
        let offset = _mm256_set1_epi32(sum << format.offset_shift());
        dots.iter_mut().for_each(|dot| *dot = _mm256_add_epi32(*dot, offset));
    }
}

/// The steps whose products are summed in 16 bits: as many as cannot overflow, within what shares a scale.
///
/// A step adds two products of a code and an activation of at most 127: with codes of 4 bits eight steps sum to at most
/// `8 * 2 * 15 * 127 = 30,480`, of 5 bits four to `31,496`, of 6 bits two to `32,004`; 8 bits leave no room.
const fn steps_in_16_bits(format: Format) -> usize {
    match (format.bits(), format.scales()) {
        (4, Scales::SuperHalves) | (5, _) => 4,
        (4, _) => 8,
        (6, _) => 2,
        _ => 1,
    }
}

/// Adds half a block: four steps. `pairs` holds sums in 16 bits until there is no room for another.
///
/// # Safety
/// `codes` and `x` point to a block, the latter of `N` rows.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn steps<const FORMAT: usize, const HALF: usize, const N: usize>(
    codes: *const u8,
    x: *const i8,
    pairs: &mut [[__m256i; HALVES]; N],
    dots: &mut [[__m256i; HALVES]; N],
) {
    let format = const { Format::ALL[FORMAT] };
    let ones = _mm256_set1_epi16(1);
    for step in 0..HALF_STEPS {
        // SAFETY: the caller's promise.
        let weights = unsafe {
            [weights::<FORMAT, HALF>(codes, step), weights::<FORMAT, HALF>(codes.add(VECTOR / HALVES), step)]
        };
        for (i, (pairs, dots)) in pairs.iter_mut().zip(dots.iter_mut()).enumerate() {
            // SAFETY: the caller's promise: a row of a block is 32 bytes.
            let x = unsafe { x.add(i * 32 + (HALF * HALF_STEPS + step) * 4).cast::<i32>().read_unaligned() };
            let x = _mm256_set1_epi32(x);
            for ((pairs, dot), weights) in pairs.iter_mut().zip(dots).zip(weights) {
                if format.bits() == 8 {
                    // Without saturation: see the bounds of this module.
                    let products = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
                    *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(products, ones));
                    continue;
                }
                *pairs = _mm256_add_epi16(*pairs, _mm256_maddubs_epi16(weights, x));
                if (HALF * HALF_STEPS + step + 1).is_multiple_of(steps_in_16_bits(format)) {
                    *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(*pairs, ones));
                    *pairs = _mm256_setzero_si256();
                }
            }
        }
    }
}

/// The codes of a step, a byte each; those of 8 bits less their offset.
///
/// # Safety
/// `codes` points to a block.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) unsafe fn weights<const FORMAT: usize, const HALF: usize>(codes: *const u8, step: usize) -> __m256i {
    let format = const { Format::ALL[FORMAT] };
    // SAFETY: the caller's promise; a block has as many vectors as a code has bits.
    let vector = |index: usize| unsafe { _mm256_loadu_si256(codes.add(index * VECTOR).cast()) };
    if format.bits() == 8 {
        return _mm256_xor_si256(vector(HALF * HALF_STEPS + step), _mm256_set1_epi8(i8::MIN));
    }
    let packed = vector(step);
    let low = _mm256_and_si256(if HALF == 0 { packed } else { _mm256_srli_epi16::<4>(packed) }, _mm256_set1_epi8(0xF));
    // The bits above the fourth, moved there from where the step has them.
    let (bits, place, mask) = match format.bits() {
        5 => (vector(4), HALF * HALF_STEPS + step, 0x10),
        6 => (vector(4 + HALF), 2 * step, 0x30),
        _ => return low,
    };
    let bits = match place {
        0 => _mm256_slli_epi16::<4>(bits),
        1 => _mm256_slli_epi16::<3>(bits),
        2 => _mm256_slli_epi16::<2>(bits),
        3 => _mm256_slli_epi16::<1>(bits),
        4 => bits,
        5 => _mm256_srli_epi16::<1>(bits),
        6 => _mm256_srli_epi16::<2>(bits),
        _ => _mm256_srli_epi16::<3>(bits),
    };
    _mm256_or_si256(low, _mm256_and_si256(bits, _mm256_set1_epi8(mask)))
}

/// The scales of a block, of its halves where they have their own, and its minimums.
///
/// # Safety
/// `scales` points to the scales of a tile that has this block.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn scales<const FORMAT: usize>(scales: *const u8, block: usize, first_lane: usize) -> ([__m256; 2], __m256) {
    let format = const { Format::ALL[FORMAT] };
    let zero = _mm256_setzero_ps();
    // SAFETY: the caller's promise, here and below; the layout is that of `Scales`.
    let halves = |at: usize| unsafe { _mm256_cvtph_ps(_mm_loadu_si128(scales.add(at + 2 * first_lane).cast())) };
    // SAFETY: as above.
    let bytes = |at: usize| unsafe { _mm_loadl_epi64(scales.add(at + first_lane).cast()) };
    match format.scales() {
        Scales::Half => ([halves(block * 2 * TILE); 2], zero),
        Scales::HalfMin => ([halves(block * 4 * TILE); 2], halves(block * 4 * TILE + 2 * TILE)),
        Scales::SuperMin => {
            let start = block / SUPER * (4 * TILE + SUPER * 2 * TILE);
            let at = start + 4 * TILE + block % SUPER * 2 * TILE;
            let scale = _mm256_mul_ps(halves(start), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes(at))));
            let min = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes(at + TILE)));
            ([scale; 2], _mm256_mul_ps(halves(start + 2 * TILE), min))
        }
        Scales::SuperHalves => {
            let start = block / SUPER * (2 * TILE + SUPER * 2 * TILE);
            let at = start + 2 * TILE + block % SUPER * 2 * TILE;
            let d = halves(start);
            let first = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes(at)));
            let second = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes(at + TILE)));
            ([_mm256_mul_ps(d, first), _mm256_mul_ps(d, second)], zero)
        }
    }
}
