//! Quantizes rows on all threads.

use super::{BLOCK, Quantized};
use crate::Pool;
use crate::source::Source;
use crate::table::Table;

/// Elements that are worth a task: some microseconds, several times what it takes to hand it out.
const TASK_ELEMENTS: usize = 1 << 12;

/// Quantizes `rows` rows.
///
/// **Panics** if a length does not fit.
pub(crate) fn run(table: &'static Table, pool: &Pool, source: Source<'_>, rows: usize, out: &mut Quantized) {
    let cols = source.cols(rows);
    out.resize(rows, cols, table.packed_rows);
    if rows == 0 {
        return;
    }
    let num_groups = out.num_groups();
    // Equal tasks, as many for each thread.
    let num_tasks = (rows * cols / TASK_ELEMENTS).next_multiple_of(pool.num_threads());
    let task_rows = if rows * cols <= TASK_ELEMENTS { rows } else { rows.div_ceil(num_tasks) };
    let writer = out.writer();
    pool.run(rows.div_ceil(task_rows), |task| {
        let rows = task * task_rows..rows.min((task + 1) * task_rows);
        for group in 0..num_groups {
            let of_group = writer.group_rows(group);
            for row in rows.start.max(of_group.start)..rows.end.min(of_group.end) {
                // SAFETY: every row is in one group and one task.
                let mut sink = unsafe { writer.sink(group, row) };
                source.row(table, row * cols..(row + 1) * cols, |first, part| {
                    // SAFETY: `Kernels` chose the table among those that this processor can run.
                    unsafe { (table.quantize)(part, first / BLOCK, &mut sink) };
                });
            }
        }
    });
}
