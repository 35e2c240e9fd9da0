//! Elementwise kernels with AVX2.

use std::arch::x86_64::*;

use half::f16;

use super::scalar;
use crate::RopeStyle;

const LANES: usize = 8;

/// As `scalar::rms_norm`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    rms_scale(x, weight, rms_factor(x, eps), out);
}

/// As `scalar::rms_scale`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn rms_scale(x: &[f32], weight: &[f32], factor: f32, out: &mut [f32]) {
    scalar::rms_scale(x, weight, factor, out);
}

/// As `scalar::rms_factor`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn rms_factor(x: &[f32], eps: f32) -> f32 {
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut sum = load(&padded(rest));
    sum = _mm256_mul_ps(sum, sum);
    for chunk in whole {
        let x = load(chunk);
        sum = _mm256_fmadd_ps(x, x, sum);
    }
    1.0 / (add_lanes(sum) / x.len() as f32 + eps).sqrt()
}

/// As `scalar::swiglu`. An element has the same bits wherever in the slices it is.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn swiglu(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up");
    let (gate, gate_rest) = gate.as_chunks_mut::<LANES>();
    let (up, up_rest) = up.as_chunks::<LANES>();
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = swiglu_vector(gate, up);
    }
    let rest = swiglu_vector(&padded(gate_rest), &padded(up_rest));
    gate_rest.copy_from_slice(&rest[..gate_rest.len()]);
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn swiglu_vector(gate: &[f32; LANES], up: &[f32; LANES]) -> [f32; LANES] {
    let x = load(gate);
    let denominator = _mm256_add_ps(_mm256_set1_ps(1.0), exp(_mm256_sub_ps(_mm256_setzero_ps(), x)));
    let value = _mm256_mul_ps(_mm256_div_ps(x, denominator), load(up));
    let mut out = [0.0; LANES];
    // SAFETY: `out` is 8 floats.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), value) };
    out
}

/// As `scalar::add`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    scalar::add(x, y);
}

/// As `scalar::layer_norm`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    scalar::layer_norm(x, weight, bias, eps);
}

/// As `scalar::gelu`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn gelu(x: &mut [f32]) {
    scalar::gelu(x);
}

/// As `scalar::rotate`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn rotate(style: RopeStyle, cos: &[f32], sin: &[f32], head: &mut [f32]) {
    scalar::rotate(style, cos, sin, head);
}

/// As `scalar::halves`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn halves(x: &[f32], out: &mut [f16]) {
    assert_eq!(x.len(), out.len(), "halves");
    let ((x, x_rest), (out, out_rest)) = (x.as_chunks::<LANES>(), out.as_chunks_mut::<LANES>());
    for (x, out) in x.iter().zip(out) {
        // SAFETY: eight floats are a vector, and eight halves are half of one.
        unsafe {
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(x.as_ptr()));
            _mm_storeu_si128(out.as_mut_ptr().cast(), halves);
        }
    }
    scalar::halves(x_rest, out_rest);
}

/// `exp(x)` to within 2 ulp for every float: 0 and infinity beyond the range, NaN for NaN.
///
/// **Source**: Cephes `expf`: `x = n ln 2 + r` with `ln 2` in two parts, a polynomial in `r`, then a scaling by `2^n`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn exp(x: __m256) -> __m256 {
    // Beyond these bounds the result is 0 or infinity; the operand order lets NaN through.
    let x = _mm256_max_ps(_mm256_set1_ps(-105.0), _mm256_min_ps(_mm256_set1_ps(89.0), x));
    let n = _mm256_round_ps::<0>(_mm256_mul_ps(x, _mm256_set1_ps(std::f32::consts::LOG2_E)));
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693_359_4), x);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.121_944_4e-4), r);
    let mut p = _mm256_set1_ps(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
    }
    let p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0)));
    // 2^n as the product of two powers, each of which is a normal float for every n in -152..=129.
    let n = _mm256_cvtps_epi32(n);
    let half = _mm256_srai_epi32::<1>(n);
    _mm256_mul_ps(_mm256_mul_ps(p, power_of_two(half)), power_of_two(_mm256_sub_epi32(n, half)))
}

/// `2^n` for `n` in -126..=127.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn power_of_two(n: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))))
}

/// Adds up the lanes, always in the same order.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn add_lanes(x: __m256) -> f32 {
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}

/// The largest lane.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn max_lane(x: __m256) -> f32 {
    let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load(x: &[f32; LANES]) -> __m256 {
    // SAFETY: a reference to 8 floats; the load is unaligned.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

/// The last few floats of a slice, filled up with zeros.
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut all = [0.0; LANES];
    all[..rest.len()].copy_from_slice(rest);
    all
}
