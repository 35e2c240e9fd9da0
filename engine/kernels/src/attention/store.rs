//! New rows enter the cache: queries and keys are rotated to their positions, keys and values written, in one parallel region.

use super::KvBuffer;
use super::kv::Writer;
use crate::shared::SharedMut;
use crate::table::Table;
use crate::{Pool, Rope};

/// Elements that are worth a task: a few microseconds.
const TASK_ELEMENTS: usize = 1 << 13;

/// The place of one position in a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSlot {
    /// The block.
    pub block: usize,
    /// Its place in the block, below [`KvShape::block_tokens`](crate::KvShape::block_tokens).
    pub slot: usize,
}

/// Rows that enter a cache.
pub struct NewRows<'a> {
    /// Queries `(rows, heads, head_dim)`, which are rotated in place.
    pub q: &'a mut [f32],
    /// Keys `(rows, kv_heads, head_dim)`, which are rotated in place.
    pub k: &'a mut [f32],
    /// Values `(rows, kv_heads, head_dim)`.
    pub v: &'a [f32],
    /// The position of each row.
    pub positions: &'a [u32],
    /// Where each row's key and value go.
    pub slots: &'a [KvSlot],
}

/// One call, checked.
struct Job<'a> {
    table: &'static Table,
    rope: &'a Rope,
    q: SharedMut<'a>,
    k: SharedMut<'a>,
    v: &'a [f32],
    positions: &'a [u32],
    slots: &'a [KvSlot],
    keys: Writer<'a>,
    values: Writer<'a>,
    /// Key heads.
    kv_heads: usize,
    /// Elements of the queries of a row.
    q_len: usize,
}

/// Rotates and writes rows.
///
/// **Panics** if a length, a position or a slot does not fit.
pub(crate) fn run(
    (table, pool): (&'static Table, &Pool),
    rope: &Rope,
    rows: NewRows<'_>,
    keys: &mut KvBuffer,
    values: &mut KvBuffer,
) {
    let NewRows { q, k, v, positions, slots } = rows;
    let (num_rows, shape) = (positions.len(), keys.shape());
    assert_eq!((shape, keys.num_blocks()), (values.shape(), values.num_blocks()), "keys and values");
    assert_eq!(shape.head_dim, rope.head_dim(), "elements of a head");
    let kv_len = num_rows * shape.kv_heads * shape.head_dim;
    assert_eq!(
        (k.len(), v.len(), slots.len()),
        (kv_len, kv_len, num_rows),
        "keys, values and slots of {num_rows} rows"
    );
    if num_rows == 0 {
        return;
    }
    assert!(q.len().is_multiple_of(num_rows * shape.head_dim), "{} elements of {num_rows} rows of queries", q.len());
    let fits = |slot: &KvSlot| slot.block < keys.num_blocks() && slot.slot < shape.block_tokens;
    assert!(slots.iter().all(fits), "a slot of {slots:?} is outside {} blocks", keys.num_blocks());
    let (total, q_len) = (q.len() + 2 * kv_len, q.len() / num_rows);
    let (q, k, kv_heads) = (SharedMut::new(q), SharedMut::new(k), shape.kv_heads);
    let (keys, values) = (keys.writer(table), values.writer(table));
    let job = Job { table, rope, q, k, v, positions, slots, keys, values, kv_heads, q_len };
    let q_rows = TASK_ELEMENTS.div_ceil(q_len.max(1));
    let num_tasks = num_rows.div_ceil(q_rows) + 2 * kv_heads;
    let task = |task: usize| match task {
        _ if task < kv_heads => job.key_head(task),
        _ if task < 2 * kv_heads => job.value_head(task - kv_heads),
        _ => job.queries((task - 2 * kv_heads) * q_rows, q_rows),
    };
    // A few rows, as in decoding alone, are done sooner than another thread has begun.
    if total <= TASK_ELEMENTS { (0..num_tasks).for_each(task) } else { pool.run(num_tasks, task) }
}

impl Job<'_> {
    fn rotate(&self, position: u32, head: &mut [f32]) {
        let (cos, sin) = self.rope.at(position);
        // SAFETY: `Kernels` chose the table among those that this processor can run.
        unsafe { (self.table.rotate)(self.rope.style(), cos, sin, head) };
    }

    fn queries(&self, first_row: usize, num_rows: usize) {
        let rows = first_row..self.positions.len().min(first_row + num_rows);
        // SAFETY: tasks have disjoint rows.
        let q = unsafe { self.q.part(rows.start * self.q_len..rows.end * self.q_len) };
        for (row, &position) in q.chunks_exact_mut(self.q_len.max(1)).zip(&self.positions[rows]) {
            row.chunks_exact_mut(self.rope.head_dim()).for_each(|head| self.rotate(position, head));
        }
    }

    fn key_head(&self, head: usize) {
        let head_dim = self.rope.head_dim();
        for (row, (&position, &slot)) in self.positions.iter().zip(self.slots).enumerate() {
            let at = (row * self.kv_heads + head) * head_dim;
            // SAFETY: tasks have different heads.
            let key = unsafe { self.k.part(at..at + head_dim) };
            self.rotate(position, key);
            // SAFETY: as above.
            unsafe { self.keys.write(slot, head, key) };
        }
    }

    fn value_head(&self, head: usize) {
        let head_dim = self.rope.head_dim();
        for (row, &slot) in self.slots.iter().enumerate() {
            let at = (row * self.kv_heads + head) * head_dim;
            // SAFETY: tasks have different heads.
            unsafe { self.values.write(slot, head, &self.v[at..at + head_dim]) };
        }
    }
}
