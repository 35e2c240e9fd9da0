//! A model without its engine: a few sequences that the caller feeds token by token, each in blocks of its own.
//!
//! `bench` and `perplexity` measure the model itself, so nothing is queued, shared, streamed or taken from a cache here.

use anyhow::{Context, ensure};
use bespoke_model::{KvCache, KvDType, LoadOptions, Model, ModelSource, Step, StepRow, Workspace, argmax};

/// The number of tokens of a KV block, as in the engine.
const BLOCK_TOKENS: usize = 16;

/// A loaded model with sequences that start empty.
pub(crate) struct Lanes {
    model: Model,
    cache: KvCache,
    kv_dtype: KvDType,
    workspace: Workspace,
    /// The blocks of each sequence.
    tables: Vec<Vec<u32>>,
    /// The tokens of each sequence so far.
    lens: Vec<usize>,
    rows: Vec<StepRow>,
}

/// How large the sequences and the steps may become.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneSizes {
    /// The number of sequences.
    pub(crate) num_lanes: usize,
    /// The most tokens of each.
    pub(crate) tokens_max: usize,
    /// The most tokens of one step.
    pub(crate) step_tokens_max: usize,
    /// The most places of one step whose logits are computed.
    pub(crate) step_logits_max: usize,
    /// The format of keys and values; `None` leaves it to the model.
    pub(crate) kv_dtype: Option<KvDType>,
}

impl Lanes {
    /// Loads the model and reserves the cache; its memory is taken as it is first used.
    ///
    /// **Errors**: a wrong model, or sequences longer than its context.
    pub(crate) fn new(source: &ModelSource, num_threads: usize, sizes: LaneSizes) -> anyhow::Result<Self> {
        let model = Model::from_source(source, LoadOptions { num_threads, ..LoadOptions::default() })?;
        let LaneSizes { num_lanes, tokens_max, step_tokens_max, step_logits_max, kv_dtype } = sizes;
        let kv_dtype = kv_dtype.unwrap_or_else(|| model.default_kv_dtype());
        let context_length = model.config().context_length;
        ensure!(
            tokens_max <= context_length,
            "{tokens_max} tokens are more than the model's context of {context_length}"
        );
        let num_blocks = tokens_max.div_ceil(BLOCK_TOKENS);
        let total_blocks = u32::try_from(num_lanes * num_blocks).context("too many sequences")?;
        let mut blocks = 0..total_blocks;
        Ok(Self {
            cache: KvCache::new(model.config(), kv_dtype, num_lanes * num_blocks, BLOCK_TOKENS)?,
            kv_dtype,
            workspace: Workspace::new(&model, step_tokens_max, step_logits_max),
            tables: (0..num_lanes).map(|_| blocks.by_ref().take(num_blocks).collect()).collect(),
            lens: vec![0; num_lanes],
            rows: Vec::with_capacity(step_tokens_max),
            model,
        })
    }

    /// Returns the model.
    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// Returns the format of keys and values.
    pub(crate) fn kv_dtype(&self) -> KvDType {
        self.kv_dtype
    }

    /// Empties every sequence.
    pub(crate) fn clear(&mut self) {
        self.lens.fill(0);
    }

    /// Appends tokens to one sequence in steps as large as they may be, and hands `visit` the logits of each token from
    /// index `logits_from` of `tokens` on, with that index.
    ///
    /// **Errors**: what the model refuses.
    pub(crate) fn feed(
        &mut self,
        lane: usize,
        tokens: &[u32],
        logits_from: usize,
        mut visit: impl FnMut(usize, &[f32]),
    ) -> anyhow::Result<()> {
        let mut start = 0;
        while start < tokens.len() {
            let limit = self.workspace.max_rows().min(tokens.len() - start);
            let end = (start + limit).min(logits_from.max(start) + self.workspace.max_logit_rows());
            self.rows.clear();
            for (index, &token) in tokens.iter().enumerate().take(end).skip(start) {
                self.push(lane, token, index >= logits_from);
            }
            self.forward(0)?;
            for (row, logits) in self.workspace.logits().enumerate() {
                visit(start.max(logits_from) + row, logits);
            }
            start = end;
        }
        Ok(())
    }

    /// Appends one token to each of the first `tokens.len()` sequences in one step, and replaces it by the most likely next.
    ///
    /// **Errors**: what the model refuses.
    pub(crate) fn decode(&mut self, tokens: &mut [u32]) -> anyhow::Result<()> {
        self.rows.clear();
        for (lane, &token) in tokens.iter().enumerate() {
            self.push(lane, token, true);
        }
        self.forward(tokens.len())?;
        for (token, logits) in tokens.iter_mut().zip(self.workspace.logits()) {
            *token = argmax(logits) as u32;
        }
        Ok(())
    }

    fn push(&mut self, lane: usize, token: u32, wants_logits: bool) {
        let position = self.lens[lane] as u32;
        self.rows.push(StepRow { token, position, sequence: lane as u32, wants_logits });
        self.lens[lane] += 1;
    }

    fn forward(&mut self, num_answer_rows: usize) -> anyhow::Result<()> {
        let tables: Vec<&[u32]> = self.tables.iter().map(Vec::as_slice).collect();
        let step = Step { rows: &self.rows, num_answer_rows, block_tables: &tables };
        Ok(self.model.forward(&step, &mut self.cache, &mut self.workspace)?)
    }
}

#[cfg(test)]
mod tests {
    use bespoke_testkit::TinyModel;

    use super::*;

    const SIZES: LaneSizes =
        LaneSizes { num_lanes: 2, tokens_max: 64, step_tokens_max: 8, step_logits_max: 3, kv_dtype: None };

    fn lanes() -> Lanes {
        let folder = TinyModel::default().write_hf().unwrap();
        Lanes::new(&ModelSource::open(folder.path()).unwrap(), 1, SIZES).unwrap()
    }

    #[test]
    fn every_wanted_place_is_visited_once_whatever_the_steps() {
        let tokens: Vec<u32> = (10..50).collect();
        for logits_from in [0, 5, 16, 39, 40] {
            let mut lanes = lanes();
            let mut visited = Vec::new();
            lanes.feed(0, &tokens, logits_from, |index, _| visited.push(index)).unwrap();
            assert_eq!(visited, (logits_from..40).collect::<Vec<_>>());
        }
    }

    #[test]
    fn decoding_together_equals_feeding_alone() {
        let (mut alone, mut together) = (lanes(), lanes());
        let prompt = [20, 21, 22];
        let mut next = 0;
        alone.feed(0, &prompt, 2, |_, logits| next = argmax(logits) as u32).unwrap();
        let mut tokens = [30, 20];
        for token in [21, 22] {
            together.decode(&mut tokens).unwrap();
            tokens[1] = token;
        }
        together.decode(&mut tokens).unwrap();
        assert_eq!(tokens[1], next);
        together.clear();
        together.feed(1, &prompt, 2, |_, logits| assert_eq!(argmax(logits) as u32, next)).unwrap();
    }

    #[test]
    fn more_than_the_context_is_refused() {
        let folder = TinyModel::default().write_hf().unwrap();
        let sizes = LaneSizes { tokens_max: 257, ..SIZES };
        let error = Lanes::new(&ModelSource::open(folder.path()).unwrap(), 1, sizes).err().unwrap();
        assert!(error.to_string().contains("257"), "{error}");
    }
}
