//! The seam to a model that another library runs: tokens go in, logits come out, one sequence at a time.
//!
//! Nothing else crosses it. Rendering, the queue, sampling, seeds, log-probabilities, stops, text and events are the engine's
//! own, so a request means the same whichever library computes its logits.

use std::sync::Arc;

use bespoke_domain::TokenId;

use crate::outlet::Doorbell;

/// A model that another library runs. [`crate::EngineBuilder::build_on`] makes an engine of it.
///
/// The engine's thread calls it and never waits in it: [`Backend::poll`] looks whether logits are there, and whoever computes
/// them rings the [`Bell`] when they are.
pub trait Backend: Send {
    /// Returns what the model is.
    fn info(&self) -> BackendInfo;

    /// Takes the bell. Called once, before all else.
    fn attach(&mut self, bell: Bell);

    /// Begins a sequence with the tokens known so far, at least one; the one before has ended.
    ///
    /// **Errors**: a library that does not take it.
    fn start(&mut self, tokens: &[TokenId]) -> Result<(), BackendError>;

    /// Goes on with one more token, once the logits after the one before have been taken.
    ///
    /// **Errors**: as [`Backend::start`].
    fn push(&mut self, token: TokenId) -> Result<(), BackendError>;

    /// Takes the logits after the last token, if they are there. **Shapes**: (vocabulary), or longer where the matrix is padded.
    ///
    /// **Errors**: a sequence that is lost, a library that has failed.
    fn poll(&mut self) -> Result<Option<Vec<f32>>, BackendError>;

    /// Ends the sequence, at whatever point. What is being computed for it may go on for a while, but nothing of it is seen.
    fn end(&mut self);
}

/// What a backend's model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendInfo {
    /// The architecture as the model's files spell it.
    pub architecture: String,
    /// The type of most of its weights, as far as it is known.
    pub dtype: String,
    /// The number of its weights; 0 where it is not known.
    pub num_parameters: u64,
    /// The size of its vocabulary.
    pub vocab_size: usize,
    /// The most tokens of prompt and answer together.
    pub context_tokens_max: usize,
    /// The tokens with which it ends an answer, beside those that its tokenizer names.
    pub end_ids: Vec<TokenId>,
    /// The library and what it computes on, such as `mistral.rs cpu`.
    pub runs_on: String,
}

/// Why a backend could not go on.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// This sequence is lost; others may start.
    #[error("{0}")]
    Sequence(String),
    /// The library has failed; nothing more can start.
    #[error("{0}")]
    Gone(String),
}

/// Wakes the engine's thread.
#[derive(Clone, Debug)]
pub struct Bell(Arc<Doorbell>);

impl Bell {
    pub(crate) fn new(doorbell: Arc<Doorbell>) -> Self {
        Self(doorbell)
    }

    /// Wakes the thread if it sleeps, else its next sleep ends at once.
    pub fn ring(&self) {
        self.0.ring();
    }
}
