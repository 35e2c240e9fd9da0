//! The native model as if another library ran it, so that the seam is tested without one. It can be told to go wrong.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use bespoke_engine::{Backend, BackendError, BackendInfo, Bell, Engine, EngineBuilder};
use bespoke_model::{KvCache, LoadOptions, Model, ModelSource, Step, StepRow, Workspace};
use bespoke_testkit::TinyModel;

use crate::support::Tiny;

const BLOCK_TOKENS: usize = 16;
const STEP_TOKENS_MAX: usize = 64;

/// What goes wrong from the next step on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Trouble {
    None,
    /// Logits never come.
    Stuck,
    /// The sequence is lost.
    Sequence,
    /// The library has failed.
    Gone,
    /// A defect of the backend itself.
    Panic,
    /// Fewer logits than there are tokens.
    Short,
}

/// Sets the trouble of a backend.
#[derive(Clone, Default)]
pub(crate) struct Switch(Arc<AtomicU8>);

impl Switch {
    pub(crate) fn set(&self, trouble: Trouble) {
        self.0.store(trouble as u8, Ordering::SeqCst);
    }

    fn is(&self, trouble: Trouble) -> bool {
        self.0.load(Ordering::SeqCst) == trouble as u8
    }
}

struct Loaned {
    model: Model,
    cache: KvCache,
    workspace: Workspace,
    table: Vec<u32>,
    num_tokens: usize,
    logits: Option<Vec<f32>>,
    bell: Option<Bell>,
    switch: Switch,
}

/// Builds an engine on the default tiny model, which is loaned, with a switch for its troubles.
pub(crate) fn loaned(configure: impl FnOnce(EngineBuilder) -> EngineBuilder) -> (Tiny, Switch) {
    let folder = TinyModel::default().write_hf().unwrap();
    let switch = Switch::default();
    let engine = configure(Engine::builder().model(folder.path())).build_on(backend(folder.path(), &switch));
    (Tiny::new(engine.unwrap(), folder), switch)
}

/// Loads a model to be loaned.
pub(crate) fn backend(path: &Path, switch: &Switch) -> Box<dyn Backend> {
    let source = ModelSource::open(path).unwrap();
    let model = Model::from_source(&source, LoadOptions { num_threads: 1, ..LoadOptions::default() }).unwrap();
    let num_blocks = model.config().context_length.div_ceil(BLOCK_TOKENS);
    Box::new(Loaned {
        cache: KvCache::new(model.config(), model.default_kv_dtype(), num_blocks, BLOCK_TOKENS).unwrap(),
        workspace: Workspace::new(&model, STEP_TOKENS_MAX, 1),
        model,
        table: (0..num_blocks as u32).collect(),
        num_tokens: 0,
        logits: None,
        bell: None,
        switch: switch.clone(),
    })
}

impl Loaned {
    fn compute(&mut self, tokens: &[u32]) {
        for chunk in tokens.chunks(STEP_TOKENS_MAX) {
            let place = self.num_tokens as u32..;
            let mut rows: Vec<_> = chunk
                .iter()
                .zip(place)
                .map(|(&token, position)| StepRow { token, position, sequence: 0, wants_logits: false })
                .collect();
            rows.last_mut().unwrap().wants_logits = true;
            let step = Step { rows: &rows, num_answer_rows: 0, block_tables: &[&self.table] };
            self.model.forward(&step, &mut self.cache, &mut self.workspace).unwrap();
            self.num_tokens += chunk.len();
        }
        self.logits = Some(self.workspace.logits_row(0).to_vec());
        self.bell.as_ref().expect("the bell comes first").ring();
    }
}

impl Backend for Loaned {
    fn info(&self) -> BackendInfo {
        let config = self.model.config();
        BackendInfo {
            architecture: "loaned".to_owned(),
            dtype: self.model.dtype().to_string(),
            num_parameters: self.model.num_parameters(),
            vocab_size: config.vocab_size,
            context_tokens_max: config.context_length,
            end_ids: config.eos_token_ids.clone(),
            runs_on: "a loan".to_owned(),
        }
    }

    fn attach(&mut self, bell: Bell) {
        self.bell = Some(bell);
    }

    fn start(&mut self, tokens: &[u32]) -> Result<(), BackendError> {
        assert!(self.logits.is_none() && self.num_tokens == 0, "the sequence before has not ended");
        self.compute(tokens);
        Ok(())
    }

    fn push(&mut self, token: u32) -> Result<(), BackendError> {
        assert!(self.logits.is_none() && self.num_tokens > 0, "the logits before were not taken");
        self.compute(&[token]);
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<Vec<f32>>, BackendError> {
        let trouble = |trouble| self.switch.is(trouble);
        match () {
            () if trouble(Trouble::Stuck) => Ok(None),
            () if trouble(Trouble::Sequence) => Err(BackendError::Sequence("lost".to_owned())),
            () if trouble(Trouble::Gone) => Err(BackendError::Gone("burnt".to_owned())),
            () if trouble(Trouble::Panic) => panic!("a defect that a test asks for"),
            () if trouble(Trouble::Short) => Ok(self.logits.take().map(|logits| logits[1..].to_vec())),
            () => Ok(self.logits.take()),
        }
    }

    fn end(&mut self) {
        (self.num_tokens, self.logits) = (0, None);
    }
}
