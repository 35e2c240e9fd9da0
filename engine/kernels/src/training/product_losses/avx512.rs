//! Exponentials of logits with AVX512-BF16.

use std::arch::x86_64::*;

use super::{BLOCK_ROWS, GROUP, LANES, Lanes, Square, Tile};
use crate::bf16::rounded;
use crate::elementwise::avx512::exp2_or_zero;

/// As `Run::tile`, with sixteen partial sums of a row.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,avx2,fma,f16c")]
pub(super) fn exponentials(
    (tile, shifts): (&Tile, &[f32; BLOCK_ROWS]),
    lanes: &mut [Lanes; BLOCK_ROWS],
    out: &mut Square,
) {
    let rows = tile.as_chunks::<GROUP>().0.iter().zip(shifts).zip(lanes);
    for (((row, shift), lanes), line) in rows.zip(out.as_chunks_mut::<{ GROUP / 2 }>().0) {
        let (shift, to_base) = (_mm512_set1_ps(*shift), _mm512_set1_ps(std::f32::consts::LOG2_E));
        // SAFETY: a row is two vectors; lanes are one each, and so is a line.
        unsafe {
            let low = _mm512_loadu_ps(row.as_ptr());
            let high = _mm512_loadu_ps(row.as_ptr().add(LANES));
            let highest = _mm512_load_ps(lanes.highest.as_ptr());
            _mm512_store_ps(lanes.highest.as_mut_ptr(), _mm512_max_ps(_mm512_max_ps(low, high), highest));
            let low = exp2_or_zero(_mm512_mul_ps(_mm512_sub_ps(low, shift), to_base));
            let high = exp2_or_zero(_mm512_mul_ps(_mm512_sub_ps(high, shift), to_base));
            let sums = _mm512_load_ps(lanes.sums.as_ptr());
            _mm512_store_ps(lanes.sums.as_mut_ptr(), _mm512_add_ps(sums, _mm512_add_ps(low, high)));
            _mm512_storeu_si512(line.as_mut_ptr().cast(), rounded(low, high));
        }
    }
}
