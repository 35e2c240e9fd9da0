//! Packing: the right factor of a product in panels of 16 columns, so that a tile reads it line by line.

use std::ops::Range;

use super::table::{PANEL_COLS, TrainingTable};
use super::view::View;
use crate::table::Table;
use crate::{Buffer, Matrix};

/// A packed block of the right factor; panel `p` holds columns `16 p ..` as `(depth, 16)`, filled up with zeros.
#[derive(Default)]
pub(super) struct Panels {
    data: Buffer,
    depth: usize,
    /// Decoded weights on their way into panels.
    decoded: Buffer,
}

impl Panels {
    /// One panel.
    pub(super) fn panel(&self, index: usize) -> &[f32] {
        &self.data[index * self.depth * PANEL_COLS..(index + 1) * self.depth * PANEL_COLS]
    }

    fn begin(&mut self, depth: usize, cols: usize) {
        self.depth = depth;
        self.data.fit(cols.next_multiple_of(PANEL_COLS) * depth);
    }

    fn panel_mut(&mut self, index: usize) -> &mut [f32] {
        let len = self.depth * PANEL_COLS;
        &mut self.data[index * len..(index + 1) * len]
    }

    /// Packs `depth` rows and `cols` columns of a view.
    pub(super) fn pack(&mut self, table: &TrainingTable, view: &View<'_>, depth: Range<usize>, cols: Range<usize>) {
        self.begin(depth.len(), cols.len());
        for (index, first) in cols.clone().step_by(PANEL_COLS).enumerate() {
            let num_cols = PANEL_COLS.min(cols.end - first);
            let panel = self.panel_mut(index);
            if depth.is_empty() {
                continue;
            }
            if view.row_stride == 1 && num_cols == PANEL_COLS {
                // SAFETY: `Kernels` chose the table among those that this processor can run.
                unsafe { (table.transpose)(view.from(depth.start, first), view.col_stride, depth.len(), panel) };
                continue;
            }
            for (k, line) in depth.clone().zip(panel.as_chunks_mut::<PANEL_COLS>().0) {
                let from = view.from(k, first);
                if view.col_stride == 1 && num_cols == PANEL_COLS {
                    line.copy_from_slice(&from[..PANEL_COLS]);
                    continue;
                }
                if view.col_stride == 1 {
                    line[..num_cols].copy_from_slice(&from[..num_cols]);
                } else {
                    (0..num_cols).for_each(|i| line[i] = from[i * view.col_stride]);
                }
                line[num_cols..].fill(0.0);
            }
        }
    }

    /// Packs `w^T`: rows of the weights become columns.
    pub(super) fn pack_transposed(
        &mut self,
        (table, training): (&Table, &TrainingTable),
        w: &Matrix,
        depth: Range<usize>,
        rows: Range<usize>,
    ) {
        if let Some(floats) = w.floats() {
            return self.pack(training, &View::new(floats, w.rows(), w.cols()).transposed(), depth, rows);
        }
        self.begin(depth.len(), rows.len());
        let mut decoded = std::mem::take(&mut self.decoded);
        decoded.fit(PANEL_COLS * depth.len());
        for (index, first) in rows.clone().step_by(PANEL_COLS).enumerate() {
            let num_rows = PANEL_COLS.min(rows.end - first);
            for (i, out) in decoded.chunks_exact_mut(depth.len().max(1)).enumerate() {
                if i < num_rows {
                    decode(table, w, first + i, depth.clone(), out);
                } else {
                    out.fill(0.0);
                }
            }
            let panel = self.panel_mut(index);
            // SAFETY: `Kernels` chose the table among those that this processor can run.
            unsafe { (training.transpose)(&decoded, depth.len(), depth.len(), panel) };
        }
        self.decoded = decoded;
    }

    /// Packs `w` as it is: its rows are the depth.
    pub(super) fn pack_weights(
        &mut self,
        (table, training): (&Table, &TrainingTable),
        w: &Matrix,
        depth: Range<usize>,
        cols: Range<usize>,
    ) {
        if let Some(floats) = w.floats() {
            return self.pack(training, &View::new(floats, w.rows(), w.cols()), depth, cols);
        }
        self.begin(depth.len(), cols.len());
        let mut decoded = std::mem::take(&mut self.decoded);
        decoded.fit(cols.len().next_multiple_of(PANEL_COLS));
        decoded[cols.len()..].fill(0.0);
        let stride = self.depth * PANEL_COLS;
        for (line, row) in depth.enumerate() {
            decode(table, w, row, cols.clone(), &mut decoded[..cols.len()]);
            for (index, values) in decoded.chunks_exact(PANEL_COLS).enumerate() {
                self.data[index * stride + line * PANEL_COLS..][..PANEL_COLS].copy_from_slice(values);
            }
        }
        self.decoded = decoded;
    }
}

/// Decodes some columns of a row; they start and end at whole blocks.
fn decode(table: &Table, w: &Matrix, row: usize, cols: Range<usize>, out: &mut [f32]) {
    let dtype = w.dtype();
    let offset = |col: usize| col.div_ceil(dtype.block_len()) * dtype.block_bytes();
    let stored = &w.row_bytes(row)[offset(cols.start)..offset(cols.end)];
    // SAFETY: `Kernels` chose the table among those that this processor can run.
    unsafe { (table.decode)(dtype, stored, out) };
}
