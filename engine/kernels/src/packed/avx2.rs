//! Integer products with AVX2: eight rows of weights in a vector, a tile in two halves.

use std::arch::x86_64::*;

use super::{Format, SUPER, Scales, Sums, TILE, TileJob};

/// Activation rows of a group: four integer and four float sums leave eight registers.
pub(crate) const GROUP_ROWS: usize = 4;
/// Bytes between the vectors of a tile; one here is half of that.
const VECTOR: usize = 64;
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

#[target_feature(enable = "avx2,fma,f16c")]
fn rows<const FORMAT: usize>(job: &TileJob<'_>, sums: &mut Sums) {
    for first_lane in [0, LANES] {
        // SAFETY: `tile` has checked the lengths, and a group of this instruction set has at most four rows.
        unsafe {
            match job.group.rows {
                0 => {}
                1 => kernel::<FORMAT, 1>(job, first_lane, sums),
                2 => kernel::<FORMAT, 2>(job, first_lane, sums),
                3 => kernel::<FORMAT, 3>(job, first_lane, sums),
                rows => {
                    assert_eq!(rows, GROUP_ROWS, "rows of a group");
                    kernel::<FORMAT, 4>(job, first_lane, sums);
                }
            }
        }
    }
}

/// # Safety
/// The job is as long as it says, its group has `N` rows, and `first_lane` is 0 or 8.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn kernel<const FORMAT: usize, const N: usize>(job: &TileJob<'_>, first_lane: usize, sums: &mut Sums) {
    let format = const { Format::ALL[FORMAT] };
    let (mut codes, mut x) = (job.codes.as_ptr().wrapping_add(4 * first_lane), job.group.values.as_ptr().cast::<i8>());
    let mut at = 0;
    let mut acc = [_mm256_setzero_ps(); N];
    for block in 0..job.blocks {
        // SAFETY: the caller's promise: `codes`, `x` and `at` are those of block `block`.
        unsafe {
            let (scales, min) = scales::<FORMAT>(job.scales.as_ptr(), block, first_lane);
            let mut dots = offsets::<FORMAT, N>(job, at, 0);
            half::<FORMAT, 0, N>(codes, x, &mut dots);
            if matches!(format.scales(), Scales::SuperHalves) {
                add::<N>(&mut acc, &dots, scales[0], job.group.meta.scales.as_ptr().add(at));
                dots = offsets::<FORMAT, N>(job, at, 1);
            }
            half::<FORMAT, 1, N>(codes, x, &mut dots);
            add::<N>(&mut acc, &dots, scales[1], job.group.meta.scales.as_ptr().add(at));
            if matches!(format.scales(), Scales::HalfMin | Scales::SuperMin) {
                for (i, acc) in acc.iter_mut().enumerate() {
                    let sum = _mm256_set1_ps(*job.group.meta.scaled_sums.as_ptr().add(at + i));
                    *acc = _mm256_fmadd_ps(min, sum, *acc);
                }
            }
        }
        codes = codes.wrapping_add(format.block_codes());
        x = x.wrapping_add(N * 32);
        at += N;
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        // SAFETY: eight of the sixteen floats are a vector.
        unsafe { _mm256_storeu_ps(sums[first_lane..first_lane + LANES].as_mut_ptr(), acc) };
    }
}

/// `acc = fma(dots * d, scale, acc)`.
///
/// # Safety
/// `d` points to `N` floats.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn add<const N: usize>(acc: &mut [__m256; N], dots: &[__m256i; N], scale: __m256, d: *const f32) {
    for (i, (acc, dot)) in acc.iter_mut().zip(dots).enumerate() {
        // SAFETY: the caller's promise.
        let d = _mm256_set1_ps(unsafe { *d.add(i) });
        *acc = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(*dot), d), scale, *acc);
    }
}

/// What the integer sums start with: minus the offset times the sum of the activations. Codes of 8 bits are made
/// signed instead.
///
/// # Safety
/// `at` is that of a block of the job, whose group has `N` rows.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn offsets<const FORMAT: usize, const N: usize>(job: &TileJob<'_>, at: usize, half: usize) -> [__m256i; N] {
    let format = const { Format::ALL[FORMAT] };
    let mut dots = [_mm256_setzero_si256(); N];
    if format.offset_shift() == 0 || format.bits() == 8 {
        return dots;
    }
    let meta = &job.group.meta;
    for (i, dot) in dots.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let sum = unsafe {
            match format.scales() {
                Scales::SuperHalves => (*meta.negative_half_sums.as_ptr().add(at + i))[half],
                _ => *meta.negative_sums.as_ptr().add(at + i),
            }
        };
        *dot = _mm256_set1_epi32(sum << format.offset_shift());
    }
    dots
}

/// Adds half a block: four steps.
///
/// # Safety
/// `codes` and `x` point to a block, the latter of `N` rows.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn half<const FORMAT: usize, const HALF: usize, const N: usize>(
    codes: *const u8,
    x: *const i8,
    dots: &mut [__m256i; N],
) {
    let format = const { Format::ALL[FORMAT] };
    let ones = _mm256_set1_epi16(1);
    for step in 0..HALF_STEPS {
        // SAFETY: the caller's promise.
        let weights = unsafe { weights::<FORMAT, HALF>(codes, step) };
        for (i, dot) in dots.iter_mut().enumerate() {
            // SAFETY: the caller's promise: a row of a block is 32 bytes.
            let x = unsafe { x.add(i * 32 + (HALF * HALF_STEPS + step) * 4).cast::<i32>().read_unaligned() };
            let x = _mm256_set1_epi32(x);
            // Two products in 16 bits, without saturation: see the bounds of this module.
            let pairs = if format.bits() == 8 {
                _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights))
            } else {
                _mm256_maddubs_epi16(weights, x)
            };
            *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(pairs, ones));
        }
    }
}

/// The codes of a step, a byte each; those of 8 bits less their offset.
///
/// # Safety
/// `codes` points to a block.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn weights<const FORMAT: usize, const HALF: usize>(codes: *const u8, step: usize) -> __m256i {
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
