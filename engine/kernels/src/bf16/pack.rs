//! Packing: from the rows of a file, whatever their format, to groups of lines.

use std::ops::Range;
use std::sync::Arc;

use super::round::round;
use super::{Bf16Matrix, GROUP, LANES, num_pairs};
use crate::huge_pages::HugePages;
use crate::shared::SharedMut;
use crate::{Isa, Matrix, Pool};

pub(super) fn pack_all(matrices: &[&Matrix], pool: &Pool) -> Vec<Bf16Matrix> {
    let mut end = 0;
    let ranges = matrices.iter().map(|matrix| {
        let start = end;
        end = start + matrix.rows().next_multiple_of(GROUP) * num_pairs(matrix.cols()) * size_of::<u32>();
        start..end
    });
    let ranges: Vec<Range<usize>> = ranges.collect();
    let mut data = HugePages::zeroed(end);
    for (matrix, range) in matrices.iter().zip(&ranges) {
        // SAFETY: any four bytes are a `u32`; every range begins at a line of memory that is aligned far better.
        let (_, out, _) = unsafe { data.as_mut_slice()[range.clone()].align_to_mut::<u32>() };
        pack(matrix, out, pool);
    }
    let data = Arc::new(data);
    let packed = |(matrix, range): (&&Matrix, _)| {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        Bf16Matrix { rows, cols, data: Arc::clone(&data), range }
    };
    matrices.iter().zip(ranges).map(packed).collect()
}

/// A row of the matrix is a lane of half a group.
fn pack(matrix: &Matrix, out: &mut [u32], pool: &Pool) {
    let (isa, cols) = (Isa::with_widest_vectors(), matrix.cols());
    let half_len = num_pairs(cols) * LANES;
    let out = SharedMut::new(out);
    pool.run(matrix.rows().div_ceil(LANES), |half| {
        // SAFETY: every half is packed by one task.
        let out = unsafe { out.part(half * half_len..(half + 1) * half_len) };
        let (mut row, mut pairs) = (vec![0.0; cols], vec![0; num_pairs(cols)]);
        for lane in 0..LANES.min(matrix.rows() - half * LANES) {
            matrix.dequantize_row(half * LANES + lane, &mut row);
            round(isa, &row, &mut pairs);
            for (line, pair) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(&pairs) {
                line[lane] = *pair;
            }
        }
    });
}
