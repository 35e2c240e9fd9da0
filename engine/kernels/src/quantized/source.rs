//! What is quantized: activations as they are, or what a norm or an activation function makes of them.

use super::{BLOCK, Quantized, Sink};
use crate::Pool;
use crate::table::Table;

/// Elements that are made at a time, in the first-level cache.
const CHUNK: usize = 512;
/// Elements that are worth a task: a few microseconds.
const TASK_ELEMENTS: usize = 1 << 13;

/// Rows to be quantized.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Plain { x: &'a [f32] },
    RmsNorm { x: &'a [f32], weight: &'a [f32], eps: f32 },
    SwiGlu { gate: &'a [f32], up: &'a [f32] },
}

/// Quantizes `rows` rows.
///
/// **Panics** if a length does not fit.
pub(crate) fn run(table: &'static Table, pool: &Pool, source: Source<'_>, rows: usize, out: &mut Quantized) {
    let len = match source {
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
    out.resize(rows, cols, table.packed_rows);
    let num_groups = out.num_groups();
    // Whole groups, which lie together in memory; a few rows of one group are not worth a second thread.
    let task_groups = TASK_ELEMENTS.div_ceil((table.packed_rows * cols).max(1));
    let writer = out.writer();
    pool.run(num_groups.div_ceil(task_groups), |task| {
        for group in task * task_groups..num_groups.min((task + 1) * task_groups) {
            for row in writer.group_rows(group) {
                // SAFETY: every group is in one task.
                let mut sink = unsafe { writer.sink(group, row) };
                quantize_row(table, source, row * cols..(row + 1) * cols, &mut sink);
            }
        }
    });
}

fn quantize_row(table: &'static Table, source: Source<'_>, range: std::ops::Range<usize>, sink: &mut Sink<'_>) {
    let mut made = [0.0; CHUNK];
    // SAFETY, for every call of the table: `Kernels` chose it among those that this processor can run.
    match source {
        // SAFETY: as above.
        Source::Plain { x } => unsafe { (table.quantize)(&x[range], 0, sink) },
        Source::RmsNorm { x, weight, eps } => {
            let x = &x[range];
            // SAFETY: as above.
            let factor = unsafe { (table.rms_factor)(x, eps) };
            for (index, (x, weight)) in x.chunks(CHUNK).zip(weight.chunks(CHUNK)).enumerate() {
                let made = &mut made[..x.len()];
                // SAFETY: as above.
                unsafe {
                    (table.rms_scale)(x, weight, factor, made);
                    (table.quantize)(made, index * (CHUNK / BLOCK), sink);
                }
            }
        }
        Source::SwiGlu { gate, up } => {
            for (index, (gate, up)) in gate[range.clone()].chunks(CHUNK).zip(up[range].chunks(CHUNK)).enumerate() {
                let made = &mut made[..gate.len()];
                made.copy_from_slice(gate);
                // SAFETY: as above.
                unsafe {
                    (table.swiglu)(made, up);
                    (table.quantize)(made, index * (CHUNK / BLOCK), sink);
                }
            }
        }
    }
}
