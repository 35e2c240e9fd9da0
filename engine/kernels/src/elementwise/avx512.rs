//! Elementwise kernels with AVX-512.

use std::arch::x86_64::*;

use super::scalar;
use crate::RopeStyle;

const LANES: usize = 16;

/// As `scalar::rms_norm`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    rms_scale(x, weight, rms_factor(x, eps), out);
}

/// As `scalar::rms_scale`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) fn rms_scale(x: &[f32], weight: &[f32], factor: f32, out: &mut [f32]) {
    scalar::rms_scale(x, weight, factor, out);
}

/// As `scalar::rms_factor`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) fn rms_factor(x: &[f32], eps: f32) -> f32 {
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut sum = load_first(rest);
    sum = _mm512_mul_ps(sum, sum);
    for chunk in whole {
        let x = load_first(chunk);
        sum = _mm512_fmadd_ps(x, x, sum);
    }
    1.0 / (_mm512_reduce_add_ps(sum) / x.len() as f32 + eps).sqrt()
}

/// As `scalar::swiglu`. An element has the same bits wherever in the slices it is.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) fn swiglu(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up");
    for (gate, up) in gate.chunks_mut(LANES).zip(up.chunks(LANES)) {
        let value = gated(load_first(gate), load_first(up));
        // SAFETY: the mask covers the floats that the chunk holds.
        unsafe { _mm512_mask_storeu_ps(gate.as_mut_ptr(), first_lanes(gate.len()), value) };
    }
}

/// `silu(gate) * up`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn gated(gate: __m512, up: __m512) -> __m512 {
    let denominator = _mm512_add_ps(_mm512_set1_ps(1.0), exp(_mm512_sub_ps(_mm512_setzero_ps(), gate)));
    _mm512_mul_ps(_mm512_div_ps(gate, denominator), up)
}

/// As `scalar::add`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    scalar::add(x, y);
}

/// As `scalar::layer_norm`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    scalar::layer_norm(x, weight, bias, eps);
}

/// As `scalar::gelu`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) fn gelu(x: &mut [f32]) {
    scalar::gelu(x);
}

/// As `scalar::rotate`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) fn rotate(style: RopeStyle, cos: &[f32], sin: &[f32], head: &mut [f32]) {
    scalar::rotate(style, cos, sin, head);
}

/// `exp(x)` to within 2 ulp for every float: 0 and infinity beyond the range, NaN for NaN.
///
/// **Source**: Cephes `expf`: `x = n ln 2 + r` with `ln 2` in two parts, a polynomial in `r`, then a scaling by `2^n`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn exp(x: __m512) -> __m512 {
    let (p, n) = exp_parts(x);
    _mm512_scalef_ps(p, n)
}

/// As [`exp`], but zero instead of a subnormal number: those take some hundred cycles. For a softmax, whose masked scores are
/// negative infinity.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn exp_or_zero(x: __m512) -> __m512 {
    /// The logarithm of the smallest normal number, rounded up.
    const SMALLEST: f32 = -87.336_54;
    let (p, n) = exp_parts(x);
    // What is not a number is not less, and stays so.
    _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(SMALLEST)), p, n)
}

/// `p` and `n` with `exp(x) = p * 2^n`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn exp_parts(x: __m512) -> (__m512, __m512) {
    // Beyond these bounds the result is 0 or infinity; the operand order lets NaN through.
    let x = _mm512_max_ps(_mm512_set1_ps(-105.0), _mm512_min_ps(_mm512_set1_ps(89.0), x));
    let n = _mm512_roundscale_ps::<0>(_mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)));
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693_359_4), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.121_944_4e-4), r);
    let mut p = _mm512_set1_ps(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    }
    (_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0))), n)
}

/// The first floats of a vector, at most all of them, the rest zero.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn load_first(x: &[f32]) -> __m512 {
    // SAFETY: the mask covers the floats that `x` holds.
    unsafe { _mm512_maskz_loadu_ps(first_lanes(x.len()), x.as_ptr()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn first_lanes(num: usize) -> __mmask16 {
    if num < LANES { (1 << num) - 1 } else { !0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    /// Both exponentials of sixteen floats.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn both(x: [f32; 16]) -> [[f32; 16]; 2] {
        // SAFETY: sixteen floats are a vector.
        let x = unsafe { _mm512_loadu_ps(x.as_ptr()) };
        [exp(x), exp_or_zero(x)].map(|values| {
            let mut out = [0.0; 16];
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) };
            out
        })
    }

    #[test]
    fn an_exponential_is_zero_where_it_would_be_subnormal_and_the_same_elsewhere() {
        if !Isa::Avx512.is_available() {
            println!("skipped: no AVX-512");
            return;
        }
        let mut zeros = 0;
        for step in 0..2000 {
            let x: [f32; 16] = std::array::from_fn(|lane| -110.0 + (step * 16 + lane) as f32 * 0.005);
            // SAFETY: AVX-512 is available.
            let [exact, found] = unsafe { both(x) };
            for ((x, exact), found) in x.into_iter().zip(exact).zip(found) {
                let expected = if exact.is_normal() { exact } else { 0.0 };
                assert_eq!(found.to_bits(), expected.to_bits(), "exp({x}) is {exact}");
                zeros += usize::from(found == 0.0);
            }
        }
        assert!((4000..5000).contains(&zeros), "{zeros} zeros");
        let special = [f32::NEG_INFINITY, 0.0, f32::INFINITY, f32::NAN];
        // SAFETY: AVX-512 is available.
        let [_, found] = unsafe { both(std::array::from_fn(|lane| special[lane % 4])) };
        assert!(found[..3] == [0.0, 1.0, f32::INFINITY] && found[3].is_nan(), "{found:?}");
    }
}
