//! A weight matrix: a shape, a storage type, and bytes that may be a memory map.

use std::fmt;

use bytes::Bytes;

use crate::huge_pages::HugePages;
use crate::table::Table;
use crate::{DType, Isa, KernelsError};

/// Row-major weights `(rows, cols)` in the block layouts of GGUF; cheap to clone, alignment not required.
#[derive(Clone)]
pub struct Matrix {
    dtype: DType,
    rows: usize,
    cols: usize,
    bytes_per_row: usize,
    data: Bytes,
}

impl Matrix {
    /// Wraps `data` as a matrix.
    ///
    /// **Errors**: `cols` is not whole blocks, the size overflows, or `data` has another length.
    pub fn new(dtype: DType, rows: usize, cols: usize, data: Bytes) -> Result<Matrix, KernelsError> {
        let shape_error = || KernelsError::Shape { dtype, rows, cols };
        let bytes_per_row = dtype.row_bytes(cols).ok_or_else(shape_error)?;
        let expected = rows.checked_mul(bytes_per_row).ok_or_else(shape_error)?;
        if data.len() != expected {
            return Err(KernelsError::Length { dtype, rows, cols, expected, found: data.len() });
        }
        Ok(Matrix { dtype, rows, cols, bytes_per_row, data })
    }

    /// Copies `values` into a matrix of type `F32`.
    ///
    /// **Errors**: as [`Matrix::new`].
    pub fn from_f32(rows: usize, cols: usize, values: &[f32]) -> Result<Matrix, KernelsError> {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Matrix::new(DType::F32, rows, cols, Bytes::from(data))
    }

    /// Copies matrices into huge pages, where a product over many of them spends less time on the addresses of their rows; each one
    /// is given up as soon as it is copied.
    pub fn on_huge_pages(matrices: Vec<Matrix>) -> Vec<Matrix> {
        /// Where a matrix may begin: at a cache line.
        const ALIGNMENT: usize = 64;
        let place = |len: usize| len.next_multiple_of(ALIGNMENT);
        let mut pages = HugePages::zeroed(matrices.iter().map(|matrix| place(matrix.data.len())).sum());
        let (mut at, mut shapes) = (0, Vec::with_capacity(matrices.len()));
        for matrix in matrices {
            let len = matrix.data.len();
            pages.as_mut_slice()[at..at + len].copy_from_slice(&matrix.data);
            shapes.push((at..at + len, Matrix { data: Bytes::new(), ..matrix }));
            at += place(len);
        }
        let data = Bytes::from_owner(pages);
        shapes.into_iter().map(|(range, matrix)| Matrix { data: data.slice(range), ..matrix }).collect()
    }

    /// The storage type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of rows: the outputs of a matrix product.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns: the inputs of a matrix product.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The stored bytes of one row.
    ///
    /// **Panics** if `row` is out of range.
    pub fn row_bytes(&self, row: usize) -> &[u8] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        &self.data[row * self.bytes_per_row..(row + 1) * self.bytes_per_row]
    }

    /// All weights, row by row, where they are stored as `f32` that this processor can read in place.
    pub(crate) fn floats(&self) -> Option<&[f32]> {
        if self.dtype != DType::F32 || cfg!(target_endian = "big") {
            return None;
        }
        // SAFETY: every four bytes are a float.
        let (before, floats, after) = unsafe { self.data.align_to::<f32>() };
        (before.is_empty() && after.is_empty()).then_some(floats)
    }

    /// Decodes one row into `out` `(cols)`; the bits are the same on every instruction set.
    ///
    /// **Panics** if `row` is out of range or `out` has another length.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "output of a decoded row");
        let table = Table::of(Isa::fastest());
        // SAFETY: `Isa::fastest` returns an instruction set that this processor has.
        unsafe { (table.decode)(self.dtype, self.row_bytes(row), out) }
    }
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix({} x {}, {})", self.rows, self.cols, self.dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_lengths_are_errors() {
        let short = Matrix::new(DType::Q4_0, 2, 32, Bytes::from(vec![0; 35])).unwrap_err();
        assert!(matches!(short, KernelsError::Length { expected: 36, found: 35, .. }), "{short}");
        let ragged = Matrix::new(DType::Q4_0, 2, 33, Bytes::from(vec![0; 36])).unwrap_err();
        assert!(matches!(ragged, KernelsError::Shape { cols: 33, .. }), "{ragged}");
        let huge = Matrix::new(DType::F32, usize::MAX, 2, Bytes::new()).unwrap_err();
        assert!(matches!(huge, KernelsError::Shape { .. }), "{huge}");
    }

    #[test]
    fn floats_come_back_as_they_went_in() {
        let values = [1.5, -2.25, f32::MIN_POSITIVE, 0.0, 3e38, -7.0];
        let matrix = Matrix::from_f32(2, 3, &values).unwrap();
        let mut row = [0.0; 3];
        matrix.dequantize_row(1, &mut row);
        assert_eq!(row, values[3..]);
        assert_eq!(matrix.row_bytes(0).len(), 12);
    }

    #[test]
    fn matrices_on_huge_pages_are_the_same() {
        let matrices = [(2, 3), (0, 4), (5, 1)].map(|(rows, cols)| {
            let values: Vec<f32> = (0..rows * cols).map(|i| i as f32 + rows as f32).collect();
            Matrix::from_f32(rows, cols, &values).unwrap()
        });
        let moved = Matrix::on_huge_pages(matrices.to_vec());
        for (matrix, moved) in matrices.iter().zip(&moved) {
            assert_eq!((matrix.rows(), matrix.cols(), matrix.floats()), (moved.rows(), moved.cols(), moved.floats()));
        }
    }

    #[test]
    fn a_matrix_may_have_no_rows() {
        assert_eq!(Matrix::new(DType::Q6K, 0, 256, Bytes::new()).unwrap().rows(), 0);
    }
}
