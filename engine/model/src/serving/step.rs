//! What one step consists of, and the checks that make it safe to run.

use crate::{KvCache, ModelConfig, ModelError};

/// One row of a step: a token of a sequence at a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepRow {
    /// The token id.
    pub token: u32,
    /// Its position in the sequence, from 0.
    pub position: u32,
    /// Index into the block tables of the step.
    pub sequence: u32,
    /// Whether the logits after this row are wanted.
    pub wants_logits: bool,
}

/// One ragged step: rows of several sequences after each other, without padding.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The rows; those of one sequence need not be neighbours. Those of answers come before those of prompts.
    pub rows: &'a [StepRow],
    /// How many of the rows are tokens of answers: generated, drafted, or such computed again. The others are tokens of prompts, which
    /// may be computed in another precision ([`Model::prompts_differ`](crate::Model::prompts_differ)).
    pub num_answer_rows: usize,
    /// For each sequence the ids of its KV blocks: position `p` is slot `p % S` of block `p / S`.
    pub block_tables: &'a [&'a [u32]],
}

impl Step<'_> {
    /// Checks tokens, positions and tables against the model and the cache.
    pub(super) fn check(&self, config: &ModelConfig, cache: &KvCache) -> Result<(), ModelError> {
        for (sequence, table) in (0u32..).zip(self.block_tables) {
            if let Some(block) = table.iter().find(|&&block| block as usize >= cache.num_blocks()) {
                let reason = format!("block {block} is outside the cache of {}", cache.num_blocks());
                return Err(ModelError::BlockTable { sequence, reason });
            }
        }
        for &StepRow { token, position, sequence, .. } in self.rows {
            let (vocab_size, context_length) = (config.vocab_size, config.context_length);
            if token as usize >= vocab_size {
                return Err(ModelError::TokenOutOfRange { token, vocab_size });
            }
            if position as usize >= context_length {
                return Err(ModelError::PositionOutOfRange { position, context_length });
            }
            let Some(table) = self.block_tables.get(sequence as usize) else {
                let reason = format!("the step has {} tables", self.block_tables.len());
                return Err(ModelError::BlockTable { sequence, reason });
            };
            if position as usize / cache.block_tokens() >= table.len() {
                let reason = format!("position {position} lies after its {} blocks", table.len());
                return Err(ModelError::BlockTable { sequence, reason });
            }
        }
        Ok(())
    }
}
