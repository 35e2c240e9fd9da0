//! The meaning of quantization.

use super::{BLOCK, Sink, scale_and_factor};

/// Quantizes whole blocks; the first is block `first_block` of its row.
#[inline(always)]
pub(crate) fn quantize(x: &[f32], first_block: usize, sink: &mut Sink<'_>) {
    let (blocks, rest) = x.as_chunks::<BLOCK>();
    assert!(rest.is_empty(), "{} values are not whole blocks", x.len());
    for (block, x) in (first_block..).zip(blocks) {
        let largest = x.iter().map(|x| x.abs().to_bits()).fold(0, u32::max);
        let (scale, factor) = scale_and_factor(largest);
        let values = sink.values(block);
        for (value, x) in values.iter_mut().zip(x) {
            // A value that is not finite becomes 0: its scale is NaN.
            *value = (x * factor).round_ties_even() as i8;
        }
        let sum = |half: &[i8]| half.iter().map(|&value| i32::from(value)).sum();
        let half_sums = [sum(&values[..BLOCK / 2]), sum(&values[BLOCK / 2..])];
        sink.finish(block, scale, half_sums);
    }
}
