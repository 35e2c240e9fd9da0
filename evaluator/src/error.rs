//! The errors of a call to a model: what the batch does next depends on the variant.

use std::time::Duration;

/// A call that gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Trying again may help: the model is busy, the line broke, or the answer made no sense.
    #[error("{reason}")]
    Transient {
        /// What happened.
        reason: String,
        /// When trying again makes sense, where the model's server says so.
        retry_after: Option<Duration>,
    },
    /// This one request is refused, now and always; others may pass.
    #[error("the request is refused: {reason}")]
    Rejected {
        /// What the server says.
        reason: String,
    },
    /// No request will pass: a wrong key, an unknown model, a wrong address, a budget that is used up.
    #[error("{reason}")]
    Fatal {
        /// What is wrong and how to put it right.
        reason: String,
    },
}

impl CallError {
    /// Describes a failure that may pass.
    pub(crate) fn transient(reason: impl Into<String>) -> Self {
        Self::Transient { reason: reason.into(), retry_after: None }
    }

    /// Describes a failure that will not pass.
    pub(crate) fn fatal(reason: impl Into<String>) -> Self {
        Self::Fatal { reason: reason.into() }
    }

    /// Returns when trying again makes sense, where the server says so.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Transient { retry_after, .. } => *retry_after,
            Self::Rejected { .. } | Self::Fatal { .. } => None,
        }
    }
}
