//! The buffers of the serving pass, made once for the largest step.

use bespoke_kernels::{AttentionRow, Buffer, KvSlot};

use super::projection::Activations;
use super::{Model, Step};
use crate::{ModelConfig, ModelError};

/// The columns that share a scale in quantized activations.
const QUANTIZED_BLOCK: usize = 32;

/// Buffers for steps of up to `max_rows` rows, of which up to `max_logit_rows` want logits.
pub struct Workspace {
    max_rows: usize,
    max_logit_rows: usize,
    num_rows: usize,
    widths: Widths,
    /// **Shapes**: `(T, D)`.
    pub(super) hidden: Buffer,
    normed: Buffer,
    projected: Buffer,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    heads: Buffer,
    gate: Buffer,
    up: Buffer,
    positions: Vec<u32>,
    slots: Vec<KvSlot>,
    /// Kept only for its capacity.
    visible: Vec<AttentionRow<'static>>,
    /// Indices of the rows that want logits.
    wanted: Vec<usize>,
    gathered: Buffer,
    logits_normed: Buffer,
    logits: Buffer,
    activations: Activations,
    /// What the gates of a feed-forward block let through.
    gated: Activations,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Widths {
    hidden: usize,
    query: usize,
    kv: usize,
    intermediate: usize,
    vocab: usize,
}

/// The buffers cut to the rows of the step.
pub(super) struct WorkspaceRows<'a> {
    /// **Shapes**: `(T, D)`, as `normed` and `projected`.
    pub(super) hidden: &'a mut [f32],
    pub(super) normed: &'a mut [f32],
    pub(super) projected: &'a mut [f32],
    /// **Shapes**: `(T, H * E)`, as `heads`.
    pub(super) q: &'a mut [f32],
    /// **Shapes**: `(T, K * E)`, as `v`.
    pub(super) k: &'a mut [f32],
    pub(super) v: &'a mut [f32],
    pub(super) heads: &'a mut [f32],
    /// **Shapes**: `(T, F)`, as `up`.
    pub(super) gate: &'a mut [f32],
    pub(super) up: &'a mut [f32],
    pub(super) positions: &'a [u32],
    pub(super) slots: &'a [KvSlot],
    pub(super) visible: &'a mut Vec<AttentionRow<'static>>,
    pub(super) activations: &'a mut Activations,
    pub(super) gated: &'a mut Activations,
}

/// The buffers of the rows that want logits.
pub(super) struct LogitRows<'a> {
    /// Their hidden states.
    pub(super) gathered: &'a [f32],
    pub(super) normed: &'a mut [f32],
    pub(super) logits: &'a mut [f32],
    pub(super) activations: &'a mut Activations,
}

impl Workspace {
    /// Allocates the buffers.
    pub fn new(model: &Model, max_rows: usize, max_logit_rows: usize) -> Workspace {
        let widths = Widths::of(model.config());
        let buffer = |width: usize| Buffer::zeroed(max_rows * width);
        let activations = |rows: usize, width: usize| {
            let mut activations = Activations::default();
            activations.quantized.reserve(rows, width.next_multiple_of(QUANTIZED_BLOCK));
            if model.prompts_differ() {
                activations.rounded.reserve(max_rows, width);
            }
            activations
        };
        // Where a layer's matrices are not packed all alike, the input of its last one is among these too.
        let widest = widths.hidden.max(widths.query).max(widths.intermediate);
        Workspace {
            max_rows,
            max_logit_rows,
            num_rows: 0,
            widths,
            hidden: buffer(widths.hidden),
            normed: buffer(widths.hidden),
            projected: buffer(widths.hidden),
            q: buffer(widths.query),
            k: buffer(widths.kv),
            v: buffer(widths.kv),
            heads: buffer(widths.query),
            gate: buffer(widths.intermediate),
            up: buffer(widths.intermediate),
            positions: Vec::with_capacity(max_rows),
            slots: Vec::with_capacity(max_rows),
            visible: Vec::with_capacity(max_rows),
            wanted: Vec::with_capacity(max_logit_rows),
            gathered: Buffer::zeroed(max_logit_rows * widths.hidden),
            logits_normed: Buffer::zeroed(max_logit_rows * widths.hidden),
            logits: Buffer::zeroed(max_logit_rows * widths.vocab),
            activations: activations(max_rows.max(max_logit_rows), widest),
            gated: activations(max_rows, widths.intermediate),
        }
    }

    /// Returns the number of rows a step may have.
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Returns the number of rows of a step that may want logits.
    pub fn max_logit_rows(&self) -> usize {
        self.max_logit_rows
    }

    /// Returns the logits of the last step, one slice for each row that wanted them, in the order of the rows.
    ///
    /// **Shapes**: each `(V)`.
    pub fn logits(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.logits[..self.wanted.len() * self.widths.vocab].chunks_exact(self.widths.vocab)
    }

    /// Returns the logits of the `index`-th row that wanted them. **Shapes**: `(V)`.
    ///
    /// **Panics**: if fewer rows wanted logits.
    pub fn logits_row(&self, index: usize) -> &[f32] {
        assert!(index < self.wanted.len(), "only {} rows wanted logits", self.wanted.len());
        &self.logits[index * self.widths.vocab..(index + 1) * self.widths.vocab]
    }

    /// As [`Workspace::logits`], for a sampler that works in place.
    pub fn logits_mut(&mut self) -> impl ExactSizeIterator<Item = &mut [f32]> {
        self.logits[..self.wanted.len() * self.widths.vocab].chunks_exact_mut(self.widths.vocab)
    }

    pub(super) fn fits(&self, config: &ModelConfig) -> bool {
        self.widths == Widths::of(config)
    }

    /// Takes over the rows of a checked step.
    pub(super) fn begin(&mut self, step: &Step<'_>, block_tokens: usize) -> Result<(), ModelError> {
        let num_wanted = step.rows.iter().filter(|row| row.wants_logits).count();
        for (rows, found, limit) in
            [("rows", step.rows.len(), self.max_rows), ("logit rows", num_wanted, self.max_logit_rows)]
        {
            if found > limit {
                return Err(ModelError::StepTooLarge { rows, found, limit });
            }
        }
        self.num_rows = step.rows.len();
        self.positions.clear();
        self.positions.extend(step.rows.iter().map(|row| row.position));
        self.slots.clear();
        self.slots.extend(step.rows.iter().map(|row| {
            let position = row.position as usize;
            let block = step.block_tables[row.sequence as usize][position / block_tokens];
            KvSlot { block: block as usize, slot: position % block_tokens }
        }));
        self.wanted.clear();
        self.wanted.extend(step.rows.iter().enumerate().filter(|(_, row)| row.wants_logits).map(|(index, _)| index));
        Ok(())
    }

    pub(super) fn rows(&mut self) -> WorkspaceRows<'_> {
        let (rows, widths) = (self.num_rows, self.widths);
        WorkspaceRows {
            hidden: &mut self.hidden[..rows * widths.hidden],
            normed: &mut self.normed[..rows * widths.hidden],
            projected: &mut self.projected[..rows * widths.hidden],
            q: &mut self.q[..rows * widths.query],
            k: &mut self.k[..rows * widths.kv],
            v: &mut self.v[..rows * widths.kv],
            heads: &mut self.heads[..rows * widths.query],
            gate: &mut self.gate[..rows * widths.intermediate],
            up: &mut self.up[..rows * widths.intermediate],
            positions: &self.positions,
            slots: &self.slots,
            visible: &mut self.visible,
            activations: &mut self.activations,
            gated: &mut self.gated,
        }
    }

    /// Gathers the hidden states of the rows that want logits.
    pub(super) fn logit_rows(&mut self, hidden_size: usize, vocab_size: usize) -> LogitRows<'_> {
        let num_wanted = self.wanted.len();
        for (&row, gathered) in self.wanted.iter().zip(self.gathered.chunks_exact_mut(hidden_size)) {
            gathered.copy_from_slice(&self.hidden[row * hidden_size..(row + 1) * hidden_size]);
        }
        LogitRows {
            gathered: &self.gathered[..num_wanted * hidden_size],
            normed: &mut self.logits_normed[..num_wanted * hidden_size],
            logits: &mut self.logits[..num_wanted * vocab_size],
            activations: &mut self.activations,
        }
    }
}

impl Widths {
    fn of(config: &ModelConfig) -> Widths {
        Widths {
            hidden: config.hidden_size,
            query: config.query_size(),
            kv: config.kv_size(),
            intermediate: config.intermediate_size,
            vocab: config.vocab_size,
        }
    }
}

/// Empties a vector and gives its memory to one with another lifetime: collecting in place keeps the allocation.
pub(super) fn recycle<'b>(mut rows: Vec<AttentionRow<'_>>) -> Vec<AttentionRow<'b>> {
    rows.clear();
    rows.into_iter().map(|row| AttentionRow { blocks: &[], start: row.start, end: row.end }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recycling_keeps_the_allocation() {
        let block = [0u32];
        let mut rows = Vec::with_capacity(100);
        rows.push(AttentionRow { blocks: &block, start: 0, end: 1 });
        let place = rows.as_ptr() as usize;
        let recycled: Vec<AttentionRow<'static>> = recycle(rows);
        assert!(recycled.is_empty());
        assert_eq!((recycled.capacity(), recycled.as_ptr() as usize), (100, place));
    }
}
