//! Activations rounded to bf16: rows of pairs, the even input in the lower half.

use std::ops::Range;

use super::num_pairs;
use crate::shared::SharedMut;
use crate::{Isa, Pool};

/// Pairs of a cache line.
const LINE: usize = 16;
/// Activations that are worth a task.
const TASK: usize = 1 << 14;

/// Rounded rows. Buffers grow to the largest product and stay.
#[derive(Default)]
pub(super) struct Rounded {
    pairs: Vec<u32>,
    /// Pairs from one row to the next: an odd number of cache lines, so that rows do not compete for the same cache sets.
    stride: usize,
}

impl Rounded {
    /// Rounds `n` rows of `inputs` activations.
    pub(super) fn fill(&mut self, isa: Isa, pool: &Pool, x: &[f32], inputs: usize) {
        let rows = x.len() / inputs;
        self.stride = ((num_pairs(inputs) / LINE) | 1) * LINE;
        let len = rows * self.stride;
        if self.pairs.len() < len {
            self.pairs.resize(len, 0);
        }
        let (stride, pairs) = (self.stride, SharedMut::new(&mut self.pairs[..len]));
        let task_rows = TASK.div_ceil(inputs);
        pool.run(rows.div_ceil(task_rows), |task| {
            for row in task * task_rows..rows.min((task + 1) * task_rows) {
                // SAFETY: tasks have disjoint rows.
                let out = unsafe { pairs.part(row * stride..(row + 1) * stride) };
                round(isa, &x[row * inputs..(row + 1) * inputs], out);
            }
        });
    }

    /// Some pairs of the rows from `row` on, and their stride.
    pub(super) fn rows(&self, rows: Range<usize>, pairs: Range<usize>) -> (&[u32], usize) {
        let start = rows.start * self.stride + pairs.start;
        let end = (rows.end - 1) * self.stride + pairs.end;
        (&self.pairs[start..end], self.stride)
    }
}

/// Rounds a row; the pairs behind it become zeros.
pub(super) fn round(isa: Isa, row: &[f32], out: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if isa != Isa::Scalar {
        // SAFETY: every instruction set but the scalar one includes AVX2, and this one is available.
        return unsafe { round_avx2(row, out) };
    }
    let _ = isa;
    round_scalar(row, out);
}

/// Compiled again, for wider vectors.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn round_avx2(row: &[f32], out: &mut [u32]) {
    round_scalar(row, out);
}

#[inline(always)]
fn round_scalar(row: &[f32], out: &mut [u32]) {
    let (whole, rest) = row.as_chunks::<2>();
    for (out, [even, odd]) in out.iter_mut().zip(whole) {
        *out = nearest(*even) >> 16 | nearest(*odd) & 0xFFFF_0000;
    }
    let filled = whole.len() + rest.len();
    if let [even] = rest {
        out[whole.len()] = nearest(*even) >> 16;
    }
    out[filled..].fill(0);
}

/// The nearest bf16, of two equally near ones the even one, in the upper half; what stays not a number is a quiet one.
#[inline(always)]
fn nearest(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
    if value.is_nan() { bits | 0x0040_0000 } else { rounded }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;
    use crate::samples::available_isas;

    proptest! {
        /// Any bits at all: subnormals, infinities, and what is not a number.
        #[test]
        fn pairs_are_the_nearest_bf16s(row in prop::collection::vec(any::<u32>(), 1..80)) {
            let row: Vec<f32> = row.into_iter().map(f32::from_bits).collect();
            for isa in available_isas() {
                let mut out = vec![u32::MAX; num_pairs(row.len())];
                round(isa, &row, &mut out);
                for (at, &value) in row.iter().enumerate() {
                    let found = bf16::from_bits((out[at / 2] >> (16 * (at % 2))) as u16);
                    let expected = bf16::from_f32(value);
                    prop_assert!(found == expected || found.is_nan() && expected.is_nan(), "{value}: {found}");
                }
                prop_assert!(out[row.len().div_ceil(2)..].iter().all(|&pair| pair == 0));
                prop_assert!(row.len().is_multiple_of(2) || out[row.len() / 2] >> 16 == 0);
            }
        }
    }
}
