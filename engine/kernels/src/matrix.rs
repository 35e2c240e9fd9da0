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

    /// Makes matrices in one run of huge pages, where a product over many of them spends less time on the addresses of their rows;
    /// `fill` is given the number of each and its zeroed bytes.
    ///
    /// **Errors**: those of `fill`. **Panics** if a shape is not whole blocks.
    pub fn on_huge_pages<E>(
        shapes: &[(DType, usize, usize)],
        mut fill: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<Vec<Matrix>, E> {
        /// Where a matrix may begin: at a cache line.
        const ALIGNMENT: usize = 64;
        let mut end = 0_usize;
        let ranges = shapes.iter().map(|&(dtype, rows, cols)| {
            let len = dtype.row_bytes(cols).and_then(|row| row.checked_mul(rows)).expect("rows of whole blocks");
            let start = end.next_multiple_of(ALIGNMENT);
            end = start + len;
            start..end
        });
        let ranges: Vec<_> = ranges.collect();
        let mut pages = HugePages::zeroed(end);
        for (index, range) in ranges.iter().enumerate() {
            fill(index, &mut pages.as_mut_slice()[range.clone()])?;
        }
        let data = Bytes::from_owner(pages);
        let matrix = |(&(dtype, rows, cols), range)| Matrix::new(dtype, rows, cols, data.slice(range));
        let matrices = shapes.iter().zip(ranges).map(matrix).collect::<Result<_, _>>();
        Ok(matrices.expect("invariant: the ranges have the lengths of the shapes"))
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
        let table = Table::of(Isa::with_widest_vectors());
        // SAFETY: the instruction set is one that this processor has.
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
    fn matrices_on_huge_pages_are_filled_apart() {
        let shapes = [(DType::F32, 2, 3), (DType::F32, 0, 4), (DType::Bf16, 5, 1), (DType::Q8_0, 1, 32)];
        let fill = |index: usize, bytes: &mut [u8]| {
            assert!(bytes.iter().all(|&byte| byte == 0));
            bytes.fill(index as u8 + 1);
            if bytes.len() == 34 { Err("full") } else { Ok(()) }
        };
        assert_eq!(Matrix::on_huge_pages(&shapes, fill).unwrap_err(), "full");
        let matrices = Matrix::on_huge_pages(&shapes[..3], fill).unwrap();
        assert_eq!((matrices[0].row_bytes(1), matrices[2].row_bytes(4)), ([1; 12].as_slice(), [3; 2].as_slice()));
        assert_eq!((matrices[1].rows(), matrices[1].cols()), (0, 4));
    }

    #[test]
    fn a_matrix_may_have_no_rows() {
        assert_eq!(Matrix::new(DType::Q6K, 0, 256, Bytes::new()).unwrap().rows(), 0);
    }
}
