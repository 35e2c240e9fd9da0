//! Quantizes rows on all threads.

use super::{BLOCK, Quantized};
use crate::Pool;
use crate::source::{Source, TASK_ELEMENTS};
use crate::table::Table;

/// Quantizes `rows` rows.
///
/// **Panics** if a length does not fit.
pub(crate) fn run(table: &'static Table, pool: &Pool, source: Source<'_>, rows: usize, out: &mut Quantized) {
    let cols = source.cols(rows);
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
                source.row(table, row * cols..(row + 1) * cols, |first, part| {
                    // SAFETY: `Kernels` chose the table among those that this processor can run.
                    unsafe { (table.quantize)(part, first / BLOCK, &mut sink) };
                });
            }
        }
    });
}
