//! Quantization with AVX2: the reference, compiled again. It is exact or correctly rounded step by step, so the
//! compiler cannot change its bits.

use super::{Sink, scalar};

/// As `scalar::quantize`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn quantize(x: &[f32], first_block: usize, sink: &mut Sink<'_>) {
    scalar::quantize(x, first_block, sink);
}
