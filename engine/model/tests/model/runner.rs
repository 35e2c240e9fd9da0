//! Runs token lists through a model, in the chunks and the company that a test asks for.

use std::path::Path;

use bespoke_kernels::Kernels;
use bespoke_model::{KvCache, KvDType, LoadOptions, Model, ModelError, Step, StepRow, Workspace};
use bespoke_testkit::{TinyDtype, TinyModel};

/// Slots per block: small and odd, so that rows cross blocks at every place.
pub(crate) const BLOCK_TOKENS: usize = 5;
const NUM_BLOCKS: usize = 240;
const MAX_ROWS: usize = 256;

pub(crate) struct Runner {
    pub(crate) model: Model,
    pub(crate) cache: KvCache,
    pub(crate) workspace: Workspace,
    /// Whether tokens are run as those of an answer.
    pub(crate) answers: bool,
}

pub(crate) fn load(path: &Path) -> Result<Model, ModelError> {
    Model::load(path, LoadOptions { num_threads: 2, ..LoadOptions::default() })
}

impl Runner {
    pub(crate) fn new(path: &Path) -> Runner {
        Runner::of(load(path).unwrap())
    }

    pub(crate) fn of(model: Model) -> Runner {
        Runner::with_kv(model, KvDType::F32)
    }

    pub(crate) fn with_kv(model: Model, dtype: KvDType) -> Runner {
        let cache = KvCache::new(model.config(), dtype, NUM_BLOCKS, BLOCK_TOKENS).unwrap();
        let workspace = Workspace::new(&model, MAX_ROWS, MAX_ROWS);
        Runner { model, cache, workspace, answers: false }
    }

    /// Runs one step over `(tokens, first position, table)` of each sequence; all rows want logits.
    pub(crate) fn step(&mut self, parts: &[(&[u32], u32, &[u32])]) -> Vec<Vec<f32>> {
        let mut rows = Vec::new();
        for (sequence, (tokens, start, _)) in (0u32..).zip(parts) {
            for (&token, position) in tokens.iter().zip(*start..) {
                rows.push(StepRow { token, position, sequence, wants_logits: true });
            }
        }
        let tables: Vec<&[u32]> = parts.iter().map(|(_, _, table)| *table).collect();
        let num_answer_rows = if self.answers { rows.len() } else { 0 };
        let step = Step { rows: &rows, num_answer_rows, block_tables: &tables };
        self.model.forward(&step, &mut self.cache, &mut self.workspace).unwrap();
        self.workspace.logits().map(<[f32]>::to_vec).collect()
    }

    /// Returns the logits after every token, the tokens being fed in chunks of the given sizes.
    pub(crate) fn logits(&mut self, tokens: &[u32], chunks: impl IntoIterator<Item = usize>) -> Vec<Vec<f32>> {
        let table = table(tokens.len(), 0);
        let (mut start, mut logits) = (0, Vec::new());
        for chunk in chunks {
            let end = (start + chunk).min(tokens.len());
            if start < end {
                logits.extend(self.step(&[(&tokens[start..end], start as u32, &table)]));
            }
            start = end;
        }
        assert_eq!(start, tokens.len(), "the chunks cover the tokens");
        logits
    }
}

/// A table of blocks that are neither neighbours nor in order; tables of different `lane`s (0..4) share no block.
pub(crate) fn table(num_tokens: usize, lane: u32) -> Vec<u32> {
    const LANES: u32 = 4;
    let per_lane = NUM_BLOCKS as u32 / LANES;
    (0..num_tokens.div_ceil(BLOCK_TOKENS) as u32).map(|block| (block * 7 % per_lane) * LANES + lane).collect()
}

/// Tokens that look random and include special ones.
pub(crate) fn tokens(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32).map(|i| (i * 37 + seed * 101 + i * i * 3) % bespoke_testkit::VOCAB_SIZE as u32).collect()
}

/// Whether products with the model's weights round activations to bf16.
pub(crate) fn rounds_activations(tiny: &TinyModel) -> bool {
    tiny.dtype == TinyDtype::Bf16 && Kernels::new(1).unwrap().has_bf16()
}
