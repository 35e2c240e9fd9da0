//! The errors of the engine; each variant is something a caller does differently.

use std::time::Duration;

use bespoke_domain::{Invalid, PersonaId, RenderError};
use bespoke_model::ModelError;

/// Where a request was when its deadline came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for a place or for KV blocks.
    Queue,
    /// Computing the prompt.
    Prefill,
    /// Generating.
    Decode,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Queue => "queue",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        })
    }
}

/// Why a request was refused or ended early, or an engine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A field of the request is wrong.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Prompt and persona cannot be rendered.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {prompt_tokens} tokens, at most {limit} fit")]
    ContextTooLong {
        /// The tokens of the rendered prompt; for a text far too long to count, a lower bound.
        prompt_tokens: usize,
        /// The most that fit with one token of an answer.
        limit: usize,
    },
    /// No persona is kept under this id.
    #[error("no persona has the id `{}`", .0.as_str())]
    UnknownPersona(PersonaId),
    /// The request asks for the system persona and none is configured.
    #[error("no system persona is configured")]
    NoSystemPersona,
    /// Too many requests wait already.
    #[error("{limit} requests wait already")]
    QueueFull {
        /// The most that may wait.
        limit: usize,
        /// When trying again makes sense.
        retry_after: Duration,
    },
    /// The engine takes no more requests, or was stopped before this one ended.
    #[error("the engine is stopping")]
    Stopping,
    /// The deadline came.
    #[error("the deadline came in the stage {0}")]
    DeadlineExceeded(Stage),
    /// The reader of the stream has made no room for longer than this.
    #[error("the stream was not read for {0:?}")]
    Stalled(Duration),
    /// An option of the builder is wrong.
    #[error("the option `{option}` {reason}")]
    Option {
        /// The name of the option.
        option: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A model file is wrong.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A defect of the engine; the request is lost, the message says where.
    #[error("internal error: {0}")]
    Internal(String),
}
