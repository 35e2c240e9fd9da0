//! The softmax with AVX512-BF16: keys that all queries of a block see need no masks.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{Factors, Known, Queries, Seen, Softmax};
use crate::bf16::{self, GROUP, LANES};
use crate::elementwise::avx512::exp2_or_zero;

impl Seen {
    /// The pairs of keys that all queries see.
    fn by_all(&self) -> Range<usize> {
        let start = self.starts.iter().max().map_or(0, |&start| start as usize);
        let end = self.ends.iter().min().map_or(0, |&end| end as usize);
        start.div_ceil(2)..end / 2
    }
}

/// Both halves of what there is for each query.
#[target_feature(enable = "avx512f")]
#[inline]
fn halves(values: &Queries) -> [__m512; 2] {
    // SAFETY: each half is sixteen floats.
    [0, LANES].map(|at| unsafe { _mm512_loadu_ps(values[at..at + LANES].as_ptr()) })
}

#[target_feature(enable = "avx512f")]
#[inline]
fn to_queries(halves: [__m512; 2]) -> Queries {
    let mut out = [0.0; GROUP];
    for (half, out) in halves.into_iter().zip(out.as_chunks_mut::<LANES>().0) {
        // SAFETY: sixteen floats have room for a vector.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), half) };
    }
    out
}

/// [`Seen`] in vectors.
#[derive(Clone, Copy)]
struct Bounds {
    starts: [__m512i; 2],
    ends: [__m512i; 2],
}

impl Bounds {
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn of(seen: &Seen) -> Bounds {
        let [starts, ends] = [&seen.starts, &seen.ends].map(|bounds| {
            // SAFETY: each half is sixteen numbers.
            [0, LANES].map(|at| unsafe { _mm512_loadu_si512(bounds[at..at + LANES].as_ptr().cast()) })
        });
        Bounds { starts, ends }
    }

    /// Which queries of a half see a key.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn mask(&self, half: usize, key: usize) -> __mmask16 {
        let key = _mm512_set1_epi32(key as i32);
        _mm512_cmple_epi32_mask(self.starts[half], key) & _mm512_cmpgt_epi32_mask(self.ends[half], key)
    }
}

/// The same, where all queries see all keys.
#[derive(Clone, Copy)]
struct Everything;

/// Says which queries see a key.
trait See: Copy {
    /// # Safety
    /// The processor has AVX-512.
    unsafe fn see(&self, half: usize, key: usize) -> __mmask16;
}

impl See for Everything {
    #[inline(always)]
    unsafe fn see(&self, _half: usize, _key: usize) -> __mmask16 {
        !0
    }
}

impl See for Bounds {
    #[inline(always)]
    unsafe fn see(&self, half: usize, key: usize) -> __mmask16 {
        // SAFETY: the caller's promise.
        unsafe { self.mask(half, key) }
    }
}

/// As `super::weigh_plain`, with zero for exponentials that would be subnormal.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
pub(super) fn weigh((scores, scale): (&[Queries], f32), seen: &Seen, mut lines: [&mut [u32]; 2]) -> Softmax {
    let (bounds, scale, pairs) = (Bounds::of(seen), _mm512_set1_ps(scale), scores.len() / 2);
    let by_all = seen.by_all();
    let (before, after) = (0..by_all.start.min(pairs), by_all.end.max(by_all.start).min(pairs)..pairs);
    let by_all = before.end..after.start;
    let mut highest = [_mm512_set1_ps(f32::NEG_INFINITY); 2];
    let mut sums = [_mm512_setzero_ps(); 2];
    // SAFETY: the processor has the instruction set.
    unsafe {
        find_highest(scores, before.clone(), bounds, &mut highest);
        find_highest(scores, by_all.clone(), Everything, &mut highest);
        find_highest(scores, after.clone(), bounds, &mut highest);
        let base = base_of(scale);
        let shifts = highest.map(|highest| _mm512_mul_ps(highest, base));
        highest = highest.map(|highest| _mm512_mul_ps(highest, scale));
        let mut weigh = Weigh { scale: base, highest: shifts, sums: &mut sums, lines: &mut lines };
        weigh.pairs(scores, before, bounds);
        weigh.pairs(scores, by_all, Everything);
        weigh.pairs(scores, after, bounds);
    }
    Softmax { highest: to_queries(highest), sums: to_queries(sums) }
}

/// The highest scores that are seen, not scaled.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn find_highest(scores: &[Queries], pairs: Range<usize>, see: impl See, highest: &mut [__m512; 2]) {
    for (at, scores) in scores[2 * pairs.start..2 * pairs.end].iter().enumerate() {
        for (half, (highest, scores)) in highest.iter_mut().zip(halves(scores)).enumerate() {
            // SAFETY: the caller's promise.
            let sees = unsafe { see.see(half, 2 * pairs.start + at) };
            // Of a number and what is none, the second operand is taken.
            *highest = _mm512_mask_max_ps(*highest, sees, scores, *highest);
        }
    }
}

/// A factor of exponents in base two.
#[target_feature(enable = "avx512f")]
#[inline]
fn base_of(factor: __m512) -> __m512 {
    _mm512_mul_ps(factor, _mm512_set1_ps(std::f32::consts::LOG2_E))
}

/// What a block of scores becomes.
struct Weigh<'a, 'b> {
    /// As the highest scores, in base two.
    scale: __m512,
    highest: [__m512; 2],
    sums: &'a mut [__m512; 2],
    lines: &'a mut [&'b mut [u32]; 2],
}

impl Weigh<'_, '_> {
    /// # Safety
    /// The processor has AVX512-BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    #[inline]
    unsafe fn pairs(&mut self, scores: &[Queries], pairs: Range<usize>, see: impl See) {
        for pair in pairs {
            let scores = [halves(&scores[2 * pair]), halves(&scores[2 * pair + 1])];
            for (half, (sum, lines)) in self.sums.iter_mut().zip(self.lines.iter_mut()).enumerate() {
                let mut weights = [_mm512_setzero_ps(); 2];
                for (odd, (weight, scores)) in weights.iter_mut().zip(scores).enumerate() {
                    let x = _mm512_fmsub_ps(scores[half], self.scale, self.highest[half]);
                    // SAFETY: the caller's promise.
                    let sees = unsafe { see.see(half, 2 * pair + odd) };
                    *weight = _mm512_maskz_mov_ps(sees, exp2_or_zero(x));
                }
                *sum = _mm512_add_ps(_mm512_add_ps(*sum, weights[0]), weights[1]);
                store(bf16::interleaved(weights[0], weights[1]), &mut lines[pair * LANES..]);
            }
        }
    }
}

/// As `super::differentiate_plain`, with zero for exponentials that would be subnormal.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
pub(super) fn differentiate((scores, d_p): (&[Queries], &[Queries]), known: &Known, out: Factors<'_>) {
    let (bounds, pairs) = (Bounds::of(&known.seen), scores.len() / 2);
    let by_all = known.seen.by_all();
    let (before, after) = (0..by_all.start.min(pairs), by_all.end.max(by_all.start).min(pairs)..pairs);
    let by_all = before.end..after.start;
    let (log_sums, deltas) = (halves(&known.log_sums), halves(&known.deltas));
    let (scale, log_sums) = (_mm512_set1_ps(known.scale), log_sums.map(|log_sums| base_of(log_sums)));
    let mut differentiate = Differentiate { scale, to_base: base_of(scale), log_sums, deltas, out };
    // SAFETY: the processor has the instruction set.
    unsafe {
        differentiate.pairs((scores, d_p), before, bounds);
        differentiate.pairs((scores, d_p), by_all, Everything);
        differentiate.pairs((scores, d_p), after, bounds);
    }
}

/// What a block of scores and gradients of probabilities becomes.
struct Differentiate<'a> {
    scale: __m512,
    /// The scale, and the logarithms of sums, in base two.
    to_base: __m512,
    log_sums: [__m512; 2],
    deltas: [__m512; 2],
    out: Factors<'a>,
}

impl Differentiate<'_> {
    /// # Safety
    /// The processor has AVX512-BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    #[inline]
    unsafe fn pairs(&mut self, (scores, d_p): (&[Queries], &[Queries]), pairs: Range<usize>, see: impl See) {
        for pair in pairs {
            let mut d_scores = [[_mm512_setzero_ps(); 2]; 2];
            for (odd, d_scores) in d_scores.iter_mut().enumerate() {
                let key = 2 * pair + odd;
                let (scores, d_p) = (halves(&scores[key]), halves(&d_p[key]));
                let mut p = [_mm512_setzero_ps(); 2];
                for half in 0..2 {
                    // SAFETY: the caller's promise.
                    let sees = unsafe { see.see(half, key) };
                    let x = _mm512_fmsub_ps(scores[half], self.to_base, self.log_sums[half]);
                    p[half] = _mm512_maskz_mov_ps(sees, exp2_or_zero(x));
                    let d = _mm512_mul_ps(_mm512_sub_ps(d_p[half], self.deltas[half]), self.scale);
                    d_scores[half] = _mm512_maskz_mul_ps(sees, p[half], d);
                }
                store(bf16::rounded(p[0], p[1]), &mut self.out.p[key * LANES..]);
                store(bf16::rounded(d_scores[0], d_scores[1]), &mut self.out.d_scores[key * LANES..]);
            }
            for (half, lines) in self.out.d_lines.iter_mut().enumerate() {
                let line = bf16::interleaved(d_scores[0][half], d_scores[1][half]);
                store(line, &mut lines[pair * LANES..]);
            }
        }
    }
}

/// Writes sixteen pairs.
#[target_feature(enable = "avx512f")]
#[inline]
fn store(pairs: __m512i, out: &mut [u32]) {
    // SAFETY: sixteen pairs are a vector.
    unsafe { _mm512_storeu_si512(out[..LANES].as_mut_ptr().cast(), pairs) };
}
