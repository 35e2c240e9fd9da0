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
    let (num_groups, num_threads) = (out.num_groups(), pool.num_threads());
    let enough = (rows * cols).div_ceil(TASK_ELEMENTS).max(1);
    // Tasks as equal as can be, and as many for each thread where there is one for each.
    let num_tasks = if enough > num_threads { enough.next_multiple_of(num_threads) } else { enough }.min(rows);
    let writer = out.writer();
    pool.run(num_tasks, |task| {
        let rows = task * rows / num_tasks..(task + 1) * rows / num_tasks;
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
