//! Integer products with AVX-512 VNNI: sixteen rows of weights in a vector, activations broadcast from memory.

use std::arch::x86_64::*;

use super::{Format, SUPER, Scales, Sums, TILE, TileJob};
use crate::shared::Place;

/// Activation rows of a group: twelve integer and twelve float sums leave eight registers for weights and scales.
pub(crate) const GROUP_ROWS: usize = 12;
/// Bytes of a vector.
const VECTOR: usize = 64;
/// Steps of half a block.
const HALF_STEPS: usize = 4;
/// Bytes between the scales and codes in use and those that the caches are asked for.
const AHEAD: usize = 4096;

/// As `scalar::tile`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn put(sums: &[[f32; TILE]], place: Place) {
    for (row, sums) in sums.iter().enumerate() {
        // SAFETY: the caller's promise; a row of sums is a vector.
        unsafe {
            let out = place.start.add(row * place.stride);
            let sums = _mm512_loadu_ps(sums.as_ptr());
            _mm512_storeu_ps(out, if place.add { _mm512_add_ps(_mm512_loadu_ps(out), sums) } else { sums });
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn rows<const FORMAT: usize>(job: &TileJob<'_>, sums: &mut Sums) {
    // SAFETY: `tile` has checked the lengths, and that there are that many rows.
    unsafe {
        match job.group.rows {
            0 => {}
            1 => kernel::<FORMAT, 1>(job, sums),
            2 => kernel::<FORMAT, 2>(job, sums),
            3 => kernel::<FORMAT, 3>(job, sums),
            4 => kernel::<FORMAT, 4>(job, sums),
            5 => kernel::<FORMAT, 5>(job, sums),
            6 => kernel::<FORMAT, 6>(job, sums),
            7 => kernel::<FORMAT, 7>(job, sums),
            8 => kernel::<FORMAT, 8>(job, sums),
            9 => kernel::<FORMAT, 9>(job, sums),
            10 => kernel::<FORMAT, 10>(job, sums),
            11 => kernel::<FORMAT, 11>(job, sums),
            rows => {
                assert_eq!(rows, GROUP_ROWS, "rows of a group");
                kernel::<FORMAT, 12>(job, sums);
            }
        }
    }
}

/// # Safety
/// The job is as long as it says, and its group has `N` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn kernel<const FORMAT: usize, const N: usize>(job: &TileJob<'_>, sums: &mut Sums) {
    let format = const { Format::ALL[FORMAT] };
    let (mut codes, mut x) = (job.codes.as_ptr(), job.group.values.as_ptr().cast::<i8>());
    let mut at = 0;
    let mut acc = [_mm512_setzero_ps(); N];
    // Tiles lie one after the other, scales first; each block asks for its share of what comes `AHEAD` bytes later.
    let mut ahead = job.scales.as_ptr().wrapping_add(AHEAD);
    let lines = if job.fetch { (job.scales.len() + job.codes.len()).div_ceil(VECTOR * job.blocks.max(1)) } else { 0 };
    for block in 0..job.blocks {
        // SAFETY: the caller's promise: `codes`, `x` and `at` are those of block `block`.
        unsafe {
            let (scales, min) = scales::<FORMAT>(job.scales.as_ptr(), block);
            for _ in 0..lines {
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                ahead = ahead.wrapping_add(VECTOR);
            }
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
                    let sum = _mm512_set1_ps(*job.group.meta.scaled_sums.as_ptr().add(at + i));
                    *acc = _mm512_fmadd_ps(min, sum, *acc);
                }
            }
        }
        codes = codes.wrapping_add(format.block_codes());
        x = x.wrapping_add(N * 32);
        at += N;
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        // SAFETY: sixteen floats are a vector.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), acc) };
    }
}

/// `acc = fma(dots * d, scale, acc)`.
///
/// # Safety
/// `d` points to `N` floats.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
#[inline]
pub(super) unsafe fn add<const N: usize>(acc: &mut [__m512; N], dots: &[__m512i; N], scale: __m512, d: *const f32) {
    for (i, (acc, dot)) in acc.iter_mut().zip(dots).enumerate() {
        // SAFETY: the caller's promise.
        let d = _mm512_set1_ps(unsafe { *d.add(i) });
        *acc = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(*dot), d), scale, *acc);
    }
}

/// What the integer sums start with: minus the offset times the sum of the activations.
///
/// # Safety
/// `at` is that of a block of the job, whose group has `N` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
#[inline]
pub(super) unsafe fn offsets<const FORMAT: usize, const N: usize>(
    job: &TileJob<'_>,
    at: usize,
    half: usize,
) -> [__m512i; N] {
    let format = const { Format::ALL[FORMAT] };
    let mut dots = [_mm512_setzero_si512(); N];
    let meta = &job.group.meta;
    for (i, dot) in dots.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let sum = match format.scales() {
                Scales::SuperHalves => (*meta.negative_half_sums.as_ptr().add(at + i))[half],
                _ => *meta.negative_sums.as_ptr().add(at + i),
            };
            let sum = _mm512_set1_epi32(sum);
            *dot = match format.offset_shift() {
                2 => _mm512_slli_epi32::<2>(sum),
                3 => _mm512_slli_epi32::<3>(sum),
                4 => _mm512_slli_epi32::<4>(sum),
                5 => _mm512_slli_epi32::<5>(sum),
                7 => _mm512_slli_epi32::<7>(sum),
                _ => _mm512_setzero_si512(),
            };
        }
    }
    dots
}

/// Adds half a block: four steps.
///
/// # Safety
/// `codes` and `x` point to a block, the latter of `N` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
#[inline]
unsafe fn half<const FORMAT: usize, const HALF: usize, const N: usize>(
    codes: *const u8,
    x: *const i8,
    dots: &mut [__m512i; N],
) {
    for step in 0..HALF_STEPS {
        // SAFETY: the caller's promise.
        let weights = unsafe { weights::<FORMAT, HALF>(codes, step) };
        for (i, dot) in dots.iter_mut().enumerate() {
            // SAFETY: the caller's promise: a row of a block is 32 bytes.
            let x = unsafe { x.add(i * 32 + (HALF * HALF_STEPS + step) * 4).cast::<i32>().read_unaligned() };
            *dot = _mm512_dpbusd_epi32(*dot, weights, _mm512_set1_epi32(x));
        }
    }
}

/// The codes of a step, a byte each.
///
/// # Safety
/// `codes` points to a block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
#[inline]
pub(super) unsafe fn weights<const FORMAT: usize, const HALF: usize>(codes: *const u8, step: usize) -> __m512i {
    let format = const { Format::ALL[FORMAT] };
    // SAFETY: the caller's promise; a block has as many vectors as a code has bits.
    let vector = |index: usize| unsafe { _mm512_loadu_si512(codes.add(index * VECTOR).cast()) };
    if format.bits() == 8 {
        return vector(HALF * HALF_STEPS + step);
    }
    let packed = vector(step);
    let low = _mm512_and_si512(if HALF == 0 { packed } else { _mm512_srli_epi16::<4>(packed) }, _mm512_set1_epi8(0xF));
    match format.bits() {
        5 => {
            let bits = vector(4);
            // Bit `HALF * 4 + step` goes to bit 4.
            let bits = match HALF * HALF_STEPS + step {
                0 => _mm512_slli_epi16::<4>(bits),
                1 => _mm512_slli_epi16::<3>(bits),
                2 => _mm512_slli_epi16::<2>(bits),
                3 => _mm512_slli_epi16::<1>(bits),
                4 => bits,
                5 => _mm512_srli_epi16::<1>(bits),
                6 => _mm512_srli_epi16::<2>(bits),
                _ => _mm512_srli_epi16::<3>(bits),
            };
            _mm512_ternarylogic_epi32::<OR_MASKED>(low, bits, _mm512_set1_epi8(0x10))
        }
        6 => {
            let bits = vector(4 + HALF);
            let bits = match step {
                0 => _mm512_slli_epi16::<4>(bits),
                1 => _mm512_slli_epi16::<2>(bits),
                2 => bits,
                _ => _mm512_srli_epi16::<2>(bits),
            };
            _mm512_ternarylogic_epi32::<OR_MASKED>(low, bits, _mm512_set1_epi8(0x30))
        }
        _ => low,
    }
}

/// `a | (b & c)` as a truth table.
const OR_MASKED: i32 = 0xF8;

/// The scales of a block, of its halves where they have their own, and its minimums.
///
/// # Safety
/// `scales` points to the scales of a tile that has this block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
#[inline]
pub(super) unsafe fn scales<const FORMAT: usize>(scales: *const u8, block: usize) -> ([__m512; 2], __m512) {
    let format = const { Format::ALL[FORMAT] };
    let zero = _mm512_setzero_ps();
    // SAFETY: the caller's promise, here and in the next two; the layout is that of `Scales`.
    let halves = |at: usize| unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(scales.add(at).cast())) };
    // SAFETY: as above.
    let bytes = |at: usize| unsafe { _mm_loadu_si128(scales.add(at).cast()) };
    match format.scales() {
        Scales::Half => ([halves(block * 2 * TILE); 2], zero),
        Scales::HalfMin => ([halves(block * 4 * TILE); 2], halves(block * 4 * TILE + 2 * TILE)),
        Scales::SuperMin => {
            let start = block / SUPER * (4 * TILE + SUPER * 2 * TILE);
            let at = start + 4 * TILE + block % SUPER * 2 * TILE;
            let scale = _mm512_mul_ps(halves(start), _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes(at))));
            let min = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes(at + TILE)));
            ([scale; 2], _mm512_mul_ps(halves(start + 2 * TILE), min))
        }
        Scales::SuperHalves => {
            let start = block / SUPER * (2 * TILE + SUPER * 2 * TILE);
            let at = start + 2 * TILE + block % SUPER * 2 * TILE;
            let d = halves(start);
            let first = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes(at)));
            let second = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes(at + TILE)));
            ([_mm512_mul_ps(d, first), _mm512_mul_ps(d, second)], zero)
        }
    }
}
