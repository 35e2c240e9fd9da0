//! Elementwise kernels with AVX-512.

use std::arch::x86_64::*;

use half::f16;

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
    // Four sums do not wait for each other.
    let (fours, rest) = x.as_chunks::<{ 4 * LANES }>();
    let mut sums = [_mm512_setzero_ps(); 4];
    let mut add = |i: usize, part: &[f32]| {
        let x = load_first(part);
        sums[i] = _mm512_fmadd_ps(x, x, sums[i]);
    };
    for four in fours {
        four.as_chunks::<LANES>().0.iter().enumerate().for_each(|(i, part)| add(i, part));
    }
    rest.chunks(LANES).enumerate().for_each(|(i, part)| add(i, part));
    let sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
    1.0 / (_mm512_reduce_add_ps(sum) / x.len() as f32 + eps).sqrt()
}

/// As `scalar::swiglu`. An element has the same bits wherever in the slices it is.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) fn swiglu(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up");
    let ((gates, gate), (ups, up)) = (gate.as_chunks_mut::<LANES>(), up.as_chunks::<LANES>());
    for (gate, up) in gates.iter_mut().zip(ups) {
        let value = gated(load(gate), load(up));
        // SAFETY: sixteen floats are a vector.
        unsafe { _mm512_storeu_ps(gate.as_mut_ptr(), value) };
    }
    let value = gated(load_first(gate), load_first(up));
    // SAFETY: the mask covers the floats that are left.
    unsafe { _mm512_mask_storeu_ps(gate.as_mut_ptr(), first_lanes(gate.len()), value) };
}

/// `silu(gate) * up`, to within 4 ulp.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn gated(gate: __m512, up: __m512) -> __m512 {
    _mm512_mul_ps(_mm512_mul_ps(gate, sigmoid(gate)), up)
}

/// `1 / (1 + exp(-x))` to within 3 ulp.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn sigmoid(x: __m512) -> __m512 {
    /// Up to here the exponential and the reciprocal of the denominator are normal numbers.
    const LARGEST: f32 = 87.0;
    let one = _mm512_set1_ps(1.0);
    // `exp(-x)` as a power of two, of an exponent in two parts.
    let n = _mm512_roundscale_ps::<0>(_mm512_mul_ps(x, _mm512_set1_ps(-std::f32::consts::LOG2_E)));
    let r = _mm512_fmsub_ps(x, _mm512_set1_ps(-std::f32::consts::LOG2_E), n);
    let r = _mm512_fmadd_ps(x, _mm512_set1_ps(-LOG2_E_REST), r);
    let denominator = _mm512_add_ps(one, _mm512_scalef_ps(exp2_of_rest(r), n));
    // An estimate and a step of Newton's method take a third of the time of a division.
    let estimate = _mm512_rcp14_ps(denominator);
    let error = _mm512_fnmadd_ps(denominator, estimate, one);
    let value = _mm512_fmadd_ps(estimate, error, estimate);
    let beyond = _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(_mm512_abs_ps(x), _mm512_set1_ps(LARGEST));
    if beyond == 0 {
        return value;
    }
    let denominator = _mm512_add_ps(one, exp(_mm512_sub_ps(_mm512_setzero_ps(), x)));
    _mm512_mask_div_ps(value, beyond, one, denominator)
}

/// What `LOG2_E` of single precision lacks.
const LOG2_E_REST: f32 = (std::f64::consts::LOG2_E - std::f32::consts::LOG2_E as f64) as f32;

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

/// As `scalar::rotate`, with the same bits.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) fn rotate(style: RopeStyle, cos: &[f32], sin: &[f32], head: &mut [f32]) {
    assert!(cos.len() == sin.len() && head.len() == 2 * cos.len(), "a head and its angles");
    let whole = match style {
        RopeStyle::Half => 0,
        RopeStyle::Interleaved => cos.len() / LANES * LANES,
    };
    let (pairs, rest) = head.split_at_mut(2 * whole);
    let (cosines, sines) = (cos.as_chunks::<LANES>().0, sin.as_chunks::<LANES>().0);
    for ((pairs, cos), sin) in pairs.as_chunks_mut::<{ 2 * LANES }>().0.iter_mut().zip(cosines).zip(sines) {
        let (cos, sin) = (load(cos), load(sin));
        // SAFETY: sixteen pairs are two vectors, sixteen integers are one.
        unsafe {
            let [even, odd, low, high] = INTERLEAVE.each_ref().map(|lanes| _mm512_loadu_si512(lanes.as_ptr().cast()));
            let halves = [_mm512_loadu_ps(pairs.as_ptr()), _mm512_loadu_ps(pairs.as_ptr().add(LANES))];
            let a = _mm512_permutex2var_ps(halves[0], even, halves[1]);
            let b = _mm512_permutex2var_ps(halves[0], odd, halves[1]);
            let first = _mm512_sub_ps(_mm512_mul_ps(a, cos), _mm512_mul_ps(b, sin));
            let second = _mm512_add_ps(_mm512_mul_ps(b, cos), _mm512_mul_ps(a, sin));
            _mm512_storeu_ps(pairs.as_mut_ptr(), _mm512_permutex2var_ps(first, low, second));
            _mm512_storeu_ps(pairs.as_mut_ptr().add(LANES), _mm512_permutex2var_ps(first, high, second));
        }
    }
    scalar::rotate(style, &cos[whole..], &sin[whole..], rest);
}

/// The even and the odd lanes of two vectors, and the first and the second half of both in turn; lanes of the second count on.
const INTERLEAVE: [[i32; LANES]; 4] = {
    let mut lanes = [[0; LANES]; 4];
    let mut i = 0;
    while i < LANES {
        let (pair, second) = (i as i32 / 2, i as i32 % 2 * LANES as i32);
        (lanes[0][i], lanes[1][i]) = (2 * i as i32, 2 * i as i32 + 1);
        (lanes[2][i], lanes[3][i]) = (pair + second, pair + LANES as i32 / 2 + second);
        i += 1;
    }
    lanes
};

/// Converts to half precision.
///
/// **Panics** if the lengths differ.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) fn halves(x: &[f32], out: &mut [f16]) {
    assert_eq!(x.len(), out.len(), "halves");
    let ((x, x_rest), (out, out_rest)) = (x.as_chunks::<LANES>(), out.as_chunks_mut::<LANES>());
    for (x, out) in x.iter().zip(out) {
        // SAFETY: sixteen halves are half a vector.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(load(x))) };
    }
    scalar::halves(x_rest, out_rest);
}

/// `2^x` to within 4 ulp, but zero instead of a subnormal number, and zero for negative infinity: for a softmax in base two.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
pub(crate) fn exp2_or_zero(x: __m512) -> __m512 {
    let n = _mm512_roundscale_ps::<0>(x);
    let p = exp2_of_rest(_mm512_sub_ps(x, n));
    // What is not a number is not less, and stays so.
    _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(-126.0)), p, n)
}

/// `2^r` for `|r| <= 1/2`: the best polynomial of its degree in relative error (1e-7) of those that begin as the series does.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn exp2_of_rest(r: __m512) -> __m512 {
    let mut p = _mm512_set1_ps(1.330_060_5e-3);
    for c in [9.669_691e-3, 5.550_558_5e-2, 0.240_222_83, std::f32::consts::LN_2, 1.0] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    }
    p
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

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline]
fn load(x: &[f32; LANES]) -> __m512 {
    // SAFETY: sixteen floats are a vector; the load is unaligned.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
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

    /// Powers of two of sixteen floats.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn powers(x: [f32; 16]) -> [f32; 16] {
        let mut out = [0.0; 16];
        // SAFETY: sixteen floats are a vector.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), exp2_or_zero(load(&x))) };
        out
    }

    #[test]
    fn a_power_of_two_is_near_and_zero_where_it_would_be_subnormal() {
        if !Isa::Avx512.is_available() {
            println!("skipped: no AVX-512");
            return;
        }
        for step in 0..2000 {
            let x: [f32; 16] = std::array::from_fn(|lane| -130.0 + (step * 16 + lane) as f32 * 0.0041);
            // SAFETY: AVX-512 is available.
            for (x, found) in x.into_iter().zip(unsafe { powers(x) }) {
                let expected = if x < -126.0 { 0.0 } else { f64::from(x).exp2() };
                let error = (f64::from(found) - expected).abs();
                assert!(error <= 4.0 * f64::from(f32::EPSILON) * expected, "2^{x} is {found}, not {expected}");
            }
        }
        let special = [f32::NEG_INFINITY, 0.0, 1.0, f32::NAN];
        // SAFETY: AVX-512 is available.
        let found = unsafe { powers(std::array::from_fn(|lane| special[lane % 4])) };
        assert!(found[..3] == [0.0, 1.0, 2.0] && found[3].is_nan(), "{found:?}");
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
