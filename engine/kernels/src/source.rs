//! What a product takes as its activations: rows as they are, or what a norm or an activation function makes of them.

use std::ops::Range;

use crate::table::Table;

/// Elements that are made at a time, in the first-level cache.
const CHUNK: usize = 512;
/// Elements that are worth a task: a few microseconds.
pub(crate) const TASK_ELEMENTS: usize = 1 << 13;

/// Rows of activations.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Plain { x: &'a [f32] },
    RmsNorm { x: &'a [f32], weight: &'a [f32], eps: f32 },
    SwiGlu { gate: &'a [f32], up: &'a [f32] },
}

impl Source<'_> {
    /// Columns of `rows` rows.
    ///
    /// **Panics** if a length does not fit.
    pub(crate) fn cols(&self, rows: usize) -> usize {
        let len = match self {
            Source::Plain { x } => x.len(),
            Source::RmsNorm { x, weight, .. } => {
                assert_eq!(x.len(), rows * weight.len(), "rows of a norm");
                x.len()
            }
            Source::SwiGlu { gate, up } => {
                assert_eq!(gate.len(), up.len(), "gate and up");
                gate.len()
            }
        };
        let cols = len / rows.max(1);
        assert_eq!(len, rows * cols, "activations of {rows} rows");
        cols
    }

    /// Makes a row, whose elements are `range`, and hands it over part by part, with the column that a part begins at: a multiple of
    /// [`CHUNK`].
    pub(crate) fn row(&self, table: &'static Table, range: Range<usize>, mut take: impl FnMut(usize, &[f32])) {
        match *self {
            Source::Plain { x } => take(0, &x[range]),
            Source::RmsNorm { x, weight, eps } => {
                let mut made = [0.0; CHUNK];
                let x = &x[range];
                // SAFETY: `Kernels` chose the table among those that this processor can run.
                let factor = unsafe { (table.rms_factor)(x, eps) };
                for (index, (x, weight)) in x.chunks(CHUNK).zip(weight.chunks(CHUNK)).enumerate() {
                    let made = &mut made[..x.len()];
                    // SAFETY: as above.
                    unsafe { (table.rms_scale)(x, weight, factor, made) };
                    take(index * CHUNK, made);
                }
            }
            Source::SwiGlu { gate, up } => {
                let mut made = [0.0; CHUNK];
                for (index, (gate, up)) in gate[range.clone()].chunks(CHUNK).zip(up[range].chunks(CHUNK)).enumerate() {
                    let made = &mut made[..gate.len()];
                    made.copy_from_slice(gate);
                    // SAFETY: as above.
                    unsafe { (table.swiglu)(made, up) };
                    take(index * CHUNK, made);
                }
            }
        }
    }
}
