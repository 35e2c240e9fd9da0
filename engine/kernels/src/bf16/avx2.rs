//! Products in bf16 with AVX2: pairs are widened to floats in registers.

use std::arch::x86_64::*;

use super::{LANES, Part, SQUARE_PAIRS, next_pair};
use crate::shared::Place;

/// Rows together, of one block: eight sums, four vectors of weights and a pair of activations take 14 of 16 registers.
const ROWS: usize = 4;
/// Floats of a vector.
const VECTOR: usize = 8;

/// # Safety
/// As [`super::Multiply`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply(part: &Part<'_>, place: Place) {
    part.check();
    for half in 0..2 {
        let mut row = 0;
        // SAFETY: `check` has passed; the rows stay below those of the part; the rest is the caller's promise.
        unsafe {
            while row + ROWS <= part.rows {
                rows::<ROWS>(part, half, row, place);
                row += ROWS;
            }
            match part.rows - row {
                0 => {}
                1 => rows::<1>(part, half, row, place),
                2 => rows::<2>(part, half, row, place),
                _ => rows::<3>(part, half, row, place),
            }
        }
    }
}

/// # Safety
/// `Part::check` has passed, the part has `N` rows from `row` on, and so has the place.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn rows<const N: usize>(part: &Part<'_>, half: usize, row: usize, place: Place) {
    let (mut line, mut x) = (part.lines[half].as_ptr(), part.x.as_ptr().wrapping_add(part.row(row)));
    let out =
        |i: usize, vector: usize| place.start.wrapping_add((row + i) * place.stride + half * LANES + vector * VECTOR);
    let mut sums = [[_mm256_setzero_ps(); 2]; N];
    // SAFETY: the caller's promise: pairs, lines and outputs of `N` rows are there.
    unsafe {
        if place.add {
            for (i, sums) in sums.iter_mut().enumerate() {
                *sums = [_mm256_loadu_ps(out(i, 0)), _mm256_loadu_ps(out(i, 1))];
            }
        }
        for pair in 1..=part.pairs {
            let (a, b) = (_mm256_loadu_si256(line.cast()), _mm256_loadu_si256(line.add(VECTOR).cast()));
            let (a, b) = ([even(a), odd(a)], [even(b), odd(b)]);
            for (i, sums) in sums.iter_mut().enumerate() {
                let pair = _mm256_set1_epi32((*x.add(i * SQUARE_PAIRS)).cast_signed());
                let (x_even, x_odd) = (even(pair), odd(pair));
                sums[0] = _mm256_fmadd_ps(a[1], x_odd, _mm256_fmadd_ps(a[0], x_even, sums[0]));
                sums[1] = _mm256_fmadd_ps(b[1], x_odd, _mm256_fmadd_ps(b[0], x_even, sums[1]));
            }
            line = line.wrapping_add(LANES);
            x = x.wrapping_add(next_pair(pair));
        }
        for (i, sums) in sums.into_iter().enumerate() {
            _mm256_storeu_ps(out(i, 0), sums[0]);
            _mm256_storeu_ps(out(i, 1), sums[1]);
        }
    }
}

/// The even inputs of eight pairs.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn even(pairs: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs))
}

/// The odd inputs of eight pairs.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn odd(pairs: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(0xFFFF_0000_u32.cast_signed())))
}
