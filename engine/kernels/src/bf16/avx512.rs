//! Products in bf16 with `vdpbf16ps` of AVX512-BF16: Intel since 2023, AMD since 2022.

use std::arch::x86_64::*;

use super::{LANES, Part, SQUARE_PAIRS, next_pair};
use crate::shared::Place;

/// Rows together, half a block: sixteen sums keep both units of a processor busy.
const ROWS: usize = 8;
/// Bytes between the lines in use and those that the first-level cache is asked for.
const AHEAD: usize = 2048;

/// # Safety
/// As [`super::Multiply`].
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx512dq,avx2,fma")]
pub(super) unsafe fn multiply(part: &Part<'_>, place: Place) {
    part.check();
    let mut row = 0;
    // SAFETY: `check` has passed; the rows stay below those of the part; the rest is the caller's promise.
    unsafe {
        while row + ROWS <= part.rows {
            rows::<ROWS>(part, row, place);
            row += ROWS;
        }
        match part.rows - row {
            0 => {}
            1 => rows::<1>(part, row, place),
            2 => rows::<2>(part, row, place),
            3 => rows::<3>(part, row, place),
            4 => rows::<4>(part, row, place),
            5 => rows::<5>(part, row, place),
            6 => rows::<6>(part, row, place),
            _ => rows::<7>(part, row, place),
        }
    }
}

/// # Safety
/// `Part::check` has passed, the part has `N` rows from `row` on, and so has the place.
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx512dq,avx2,fma")]
#[inline]
unsafe fn rows<const N: usize>(part: &Part<'_>, row: usize, place: Place) {
    let mut lines = part.lines.map(<[u32]>::as_ptr);
    let mut x = part.x.as_ptr().wrapping_add(part.row(row));
    let out = |i: usize, half: usize| place.start.wrapping_add((row + i) * place.stride + half * LANES);
    let mut sums = [[_mm512_setzero_ps(); 2]; N];
    // SAFETY: the caller's promise: pairs, lines and outputs of `N` rows are there; a prefetch reads nothing.
    unsafe {
        if place.add {
            for (i, sums) in sums.iter_mut().enumerate() {
                *sums = [_mm512_loadu_ps(out(i, 0)), _mm512_loadu_ps(out(i, 1))];
            }
        }
        for pair in 1..=part.pairs {
            let a = pairs(_mm512_loadu_si512(lines[0].cast()));
            let b = pairs(_mm512_loadu_si512(lines[1].cast()));
            if row == 0 {
                _mm_prefetch::<_MM_HINT_T0>(lines[0].wrapping_byte_add(AHEAD).cast());
                _mm_prefetch::<_MM_HINT_T0>(lines[1].wrapping_byte_add(AHEAD).cast());
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = pairs(_mm512_set1_epi32((*x.add(i * SQUARE_PAIRS)).cast_signed()));
                sums[0] = _mm512_dpbf16_ps(sums[0], a, x);
                sums[1] = _mm512_dpbf16_ps(sums[1], b, x);
            }
            lines = lines.map(|line| line.wrapping_add(LANES));
            x = x.wrapping_add(next_pair(pair));
        }
        for (i, sums) in sums.into_iter().enumerate() {
            _mm512_storeu_ps(out(i, 0), sums[0]);
            _mm512_storeu_ps(out(i, 1), sums[1]);
        }
    }
}

/// Sixteen pairs.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both are any 512 bits.
    unsafe { std::mem::transmute(bits) }
}

/// Thirty-two neighbouring elements, rounded: sixteen pairs.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
pub(crate) fn rounded(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both are any 512 bits.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

/// The even and the odd elements of sixteen pairs, rounded.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
pub(crate) fn interleaved(even: __m512, odd: __m512) -> __m512i {
    /// Of thirty-two words, the first and the second half in turn.
    const IN_TURN: [u16; 2 * LANES] = {
        let mut words = [0; 2 * LANES];
        let mut i = 0;
        while i < LANES {
            (words[2 * i], words[2 * i + 1]) = (i as u16, (LANES + i) as u16);
            i += 1;
        }
        words
    };
    // SAFETY: the indices are a vector.
    let in_turn = unsafe { _mm512_loadu_si512(IN_TURN.as_ptr().cast()) };
    _mm512_permutexvar_epi16(in_turn, rounded(even, odd))
}
