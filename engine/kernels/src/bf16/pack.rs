//! Packing: from the rows of a file, whatever their format, to groups of lines.

use std::ops::Range;
use std::sync::Arc;

use super::round::round;
use super::{Bf16Matrix, GROUP, LANES, num_pairs};
use crate::huge_pages::HugePages;
use crate::shared::SharedMut;
use crate::{Isa, Matrix, Pool};

/// Pairs that a task of the backward direction packs: sixteen lines, or a block of a tile register.
const TASK_PAIRS: usize = 16;

/// Which way activations, or gradients, go through a matrix `(rows, cols)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `x w^T`: from columns to rows, as activations go.
    Forward,
    /// `x w`: from rows to columns, as gradients go.
    Backward,
}

impl Direction {
    /// Inputs and outputs of a product with a matrix.
    fn shape(self, matrix: &Matrix) -> (usize, usize) {
        match self {
            Direction::Forward => (matrix.cols(), matrix.rows()),
            Direction::Backward => (matrix.rows(), matrix.cols()),
        }
    }
}

pub(super) fn pack_all(matrices: &[(&Matrix, Direction)], pool: &Pool) -> Vec<Bf16Matrix> {
    let mut end = 0;
    let ranges = matrices.iter().map(|(matrix, direction)| {
        let (inputs, outputs) = direction.shape(matrix);
        let start = end;
        end = start + outputs.next_multiple_of(GROUP) * num_pairs(inputs) * size_of::<u32>();
        start..end
    });
    let ranges: Vec<Range<usize>> = ranges.collect();
    let mut data = HugePages::zeroed(end);
    for ((matrix, direction), range) in matrices.iter().zip(&ranges) {
        // SAFETY: any four bytes are a `u32`; every range begins at a line of memory that is aligned far better.
        let (_, out, _) = unsafe { data.as_mut_slice()[range.clone()].align_to_mut::<u32>() };
        match direction {
            Direction::Forward => pack_forward(matrix, out, pool),
            Direction::Backward => pack_backward(matrix, out, pool),
        }
    }
    let data = Arc::new(data);
    let packed = |((matrix, direction), range): (&(&Matrix, Direction), _)| {
        let (inputs, outputs) = direction.shape(matrix);
        Bf16Matrix { inputs, outputs, data: Arc::clone(&data), range }
    };
    matrices.iter().zip(ranges).map(packed).collect()
}

/// A row of the matrix is a lane of half a group.
fn pack_forward(matrix: &Matrix, out: &mut [u32], pool: &Pool) {
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

/// Two rows of the matrix are a line of each half.
fn pack_backward(matrix: &Matrix, out: &mut [u32], pool: &Pool) {
    let (isa, cols) = (Isa::with_widest_vectors(), matrix.cols());
    let half_len = num_pairs(matrix.rows()) * LANES;
    let out = SharedMut::new(out);
    pool.run(matrix.rows().div_ceil(2 * TASK_PAIRS), |task| {
        let mut rows = [vec![0.0; cols], vec![0.0; cols]];
        let mut row = vec![0.0; 2 * cols];
        let mut pairs = vec![0; cols];
        for pair in task * TASK_PAIRS..matrix.rows().div_ceil(2).min((task + 1) * TASK_PAIRS) {
            for (i, values) in rows.iter_mut().enumerate() {
                match 2 * pair + i {
                    index if index < matrix.rows() => matrix.dequantize_row(index, values),
                    _ => values.fill(0.0),
                }
            }
            for (row, (even, odd)) in row.as_chunks_mut::<2>().0.iter_mut().zip(rows[0].iter().zip(&rows[1])) {
                *row = [*even, *odd];
            }
            round(isa, &row, &mut pairs);
            for (half, pairs) in pairs.chunks(LANES).enumerate() {
                let at = half * half_len + pair * LANES;
                // SAFETY: every line is packed by one task.
                unsafe { out.part(at..at + pairs.len()) }.copy_from_slice(pairs);
            }
        }
    });
}
