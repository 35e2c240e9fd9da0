//! The gate with AVX512-BF16: what `Gate` does step by step goes through registers here, with the same bits.

use std::arch::x86_64::*;

use super::{GROUP, LINE, Square, Tile};
use crate::bf16::rounded;
use crate::elementwise::avx512::gated;
use crate::training::avx512::gated_backward;

const LANES: usize = 16;

/// As `Gate::tile_forward`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,avx2,fma,f16c")]
pub(super) fn forward([gate, up]: [&Tile; 2], [kept_gate, kept_up, out]: [&mut Square; 3]) {
    let lines = gate.as_chunks().0.iter().zip(up.as_chunks().0);
    let kept = kept_gate.as_chunks_mut().0.iter_mut().zip(kept_up.as_chunks_mut().0);
    for (((gate, up), kept), out) in lines.zip(kept).zip(out.as_chunks_mut().0) {
        let (gate, up) = (load(gate), load(up));
        store(gate, kept.0);
        store(up, kept.1);
        store([gated(gate[0], up[0]), gated(gate[1], up[1])], out);
    }
}

/// As `Gate::tile_backward`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,avx2,fma,f16c")]
pub(super) fn backward(d_out: &Tile, [gate, up]: [&mut Square; 2]) {
    let kept = gate.as_chunks_mut().0.iter_mut().zip(up.as_chunks_mut().0);
    for (d_out, (gate_line, up_line)) in d_out.as_chunks().0.iter().zip(kept) {
        let (gate, up, d_out) = (widen(gate_line), widen(up_line), load(d_out));
        let [low, high] = [0, 1].map(|half| gated_backward([gate[half], up[half]], d_out[half]));
        store([low[0], high[0]], gate_line);
        store([low[1], high[1]], up_line);
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(line: &[f32; GROUP]) -> [__m512; 2] {
    // SAFETY: a line is two vectors.
    unsafe { [_mm512_loadu_ps(line.as_ptr()), _mm512_loadu_ps(line.as_ptr().add(LANES))] }
}

/// A line in single precision.
#[target_feature(enable = "avx512f")]
#[inline]
fn widen(line: &[u32; LINE]) -> [__m512; 2] {
    [0, LINE / 2].map(|from| {
        // SAFETY: half of a line is half a vector.
        let words = unsafe { _mm256_loadu_si256(line.as_ptr().add(from).cast()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(words)))
    })
}

#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn store([low, high]: [__m512; 2], line: &mut [u32; LINE]) {
    // SAFETY: a line is a vector.
    unsafe { _mm512_storeu_si512(line.as_mut_ptr().cast(), rounded(low, high)) };
}
