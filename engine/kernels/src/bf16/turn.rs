//! Lines of a matrix turned round: gradients go through it from rows to columns, so that pairs are of rows, and lanes are columns.
//!
//! Eight lines, the pairs of sixteen columns by sixteen rows, become eight lines of sixteen columns: a *patch*.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::ops::Range;

use super::{Bf16Matrix, LANES, PATCH};
use crate::Isa;

/// Turns the columns of a group, for some pairs of rows that begin and end with a patch.
///
/// **Shapes**: each half of `out`: `(pairs, 16)`. **Panics** if a length does not fit.
pub(crate) fn turn(isa: Isa, w: &Bf16Matrix, group: usize, pairs: Range<usize>, out: &mut [&mut [u32]; 2]) {
    assert!(pairs.start.is_multiple_of(PATCH) && pairs.end.is_multiple_of(PATCH), "pairs {pairs:?} of rows");
    assert!(out.iter().all(|half| half.len() == pairs.len() * LANES), "lines of {} pairs", pairs.len());
    let half_len = w.num_pairs() * LANES;
    for (index, row) in (pairs.start / PATCH..pairs.end / PATCH).enumerate() {
        let (patches, _) = w.pairs()[row * half_len..][..half_len].as_chunks::<{ PATCH * LANES }>();
        let halves = patches[2 * group..].iter().zip(out.iter_mut());
        for (patch, out) in halves {
            let out = &mut out.as_chunks_mut().0[index];
            #[cfg(target_arch = "x86_64")]
            if matches!(isa, Isa::Avx512 | Isa::Amx) {
                // SAFETY: the instruction set is available.
                unsafe { turn_avx512(patch, out) };
                continue;
            }
            let _ = isa;
            turn_scalar(patch, out);
        }
    }
}

fn turn_scalar(patch: &[u32; PATCH * LANES], out: &mut [u32; PATCH * LANES]) {
    for (pair, line) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        for (col, out) in line.iter_mut().enumerate() {
            let shift = col % 2 * 16;
            let element = |row: usize| patch[col / 2 * LANES + row] >> shift & 0xFFFF;
            *out = element(2 * pair) | element(2 * pair + 1) << 16;
        }
    }
}

/// In each line the two rows of a pair come together, for one column after the other; then two by two columns of a pair of rows are
/// one of eight elements of 64 bits, and eight lines of eight are transposed.
///
/// # Safety
/// The processor has AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn turn_avx512(patch: &[u32; PATCH * LANES], out: &mut [u32; PATCH * LANES]) {
    /// Of rows 0 and 1, both columns of a pair: the words of column 0, then of column 1; and so on.
    const BY_COLUMN: [u16; 2 * LANES] = {
        let mut words = [0; 2 * LANES];
        let mut i = 0;
        while i < 2 * LANES {
            words[i] = (i / 4 * 4 + i % 2 * 2 + i / 2 % 2) as u16;
            i += 1;
        }
        words
    };
    // SAFETY: the indices, and each line, are a vector.
    unsafe {
        let by_column = _mm512_loadu_si512(BY_COLUMN.as_ptr().cast());
        let a: [__m512i; PATCH] = std::array::from_fn(|line| {
            let line = _mm512_loadu_si512(patch.as_ptr().add(line * LANES).cast());
            _mm512_permutexvar_epi16(by_column, line)
        });
        // Pairs of lines, then of pairs, then of fours.
        let b: [__m512i; PATCH] = std::array::from_fn(|i| match i % 2 {
            0 => _mm512_unpacklo_epi64(a[i], a[i + 1]),
            _ => _mm512_unpackhi_epi64(a[i - 1], a[i]),
        });
        let c: [__m512i; PATCH] = std::array::from_fn(|i| match i % 4 {
            0 | 1 => _mm512_shuffle_i64x2::<0b10_00_10_00>(b[i], b[i + 2]),
            _ => _mm512_shuffle_i64x2::<0b11_01_11_01>(b[i - 2], b[i]),
        });
        for i in 0..PATCH {
            let line = match i {
                0..4 => _mm512_shuffle_i64x2::<0b10_00_10_00>(c[i], c[i + 4]),
                _ => _mm512_shuffle_i64x2::<0b11_01_11_01>(c[i - 4], c[i]),
            };
            _mm512_storeu_si512(out.as_mut_ptr().add(i * LANES).cast(), line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{Random, available_isas};
    use crate::{DType, Pool};

    #[test]
    fn pairs_of_rows_are_those_of_the_matrix() {
        let pool = Pool::new(1).unwrap();
        let (rows, cols) = (70, 45);
        let matrix = Random(11).matrix(DType::Bf16, rows, cols);
        let w = Bf16Matrix::pack_all(&[&matrix], &pool).pop().unwrap();
        let mut decoded = vec![0.0; rows * cols];
        decoded.chunks_exact_mut(cols).enumerate().for_each(|(row, out)| matrix.dequantize_row(row, out));
        let bits = |row: usize, col: usize| match row < rows && col < cols {
            true => decoded[row * cols + col].to_bits() >> 16,
            false => 0,
        };
        for isa in available_isas() {
            for (group, pairs) in [(0, 0..48), (0, 8..40), (1, 32..48), (1, 0..16)] {
                let mut lines = vec![u32::MAX; 2 * pairs.len() * LANES];
                let (upper, lower) = lines.split_at_mut(pairs.len() * LANES);
                turn(isa, &w, group, pairs.clone(), &mut [upper, lower]);
                let found = lines.as_chunks::<LANES>().0.iter().enumerate();
                for (at, line) in found {
                    let (half, pair) = (2 * group + at / pairs.len(), pairs.start + at % pairs.len());
                    for (lane, &found) in line.iter().enumerate() {
                        let col = half * LANES + lane;
                        let expected = bits(2 * pair, col) | bits(2 * pair + 1, col) << 16;
                        assert_eq!(found, expected, "{isa}, pair {pair}, column {col}");
                    }
                }
            }
        }
    }
}
