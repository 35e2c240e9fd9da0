//! A matrix of floats inside a larger slice, read in either orientation.

/// Borrowed floats `(rows, cols)`; element `(i, j)` is at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a> View<'a> {
    /// Views a row-major slice.
    ///
    /// **Panics** if the length is not `rows * cols`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> View<'a> {
        assert_eq!(Some(data.len()), rows.checked_mul(cols), "a view of {rows} x {cols}");
        View { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// Views rows that lie `row_stride` apart, the first at the start of the slice.
    ///
    /// **Panics** if the last row ends after the slice.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> View<'a> {
        let end = rows.checked_sub(1).map_or(0, |last| last * row_stride + cols);
        assert!(end <= data.len() && cols <= row_stride.max(1), "{rows} rows of {cols}, {row_stride} apart");
        View { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transposed matrix, without moving anything.
    pub fn transposed(self) -> View<'a> {
        View {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            data: self.data,
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The slice from element `(row, col)` on.
    pub(super) fn from(&self, row: usize, col: usize) -> &'a [f32] {
        &self.data[row * self.row_stride + col * self.col_stride..]
    }
}
