//! The errors of this crate.

use std::path::PathBuf;

/// A value from outside that breaks a stated rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {reason}")]
pub struct Invalid {
    /// The path of the field in the request, such as `sampling.top_p`.
    pub field: String,
    /// What is wrong and what would be right, such as "is 1.5, must be in 0..=1".
    pub reason: String,
}

impl Invalid {
    /// Names the `field` and what is wrong with it.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }

    /// Returns the same error with `parent.` before the field.
    pub fn within(self, parent: &str) -> Self {
        Self { field: format!("{parent}.{}", self.field), reason: self.reason }
    }
}

/// A prompt that cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The parts of the request do not go together.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The model has no chat template.
    #[error("`template` is chat, but the model has no chat template; use paper or none")]
    NoChatTemplate,
    /// The model's chat template refused the messages or has an error.
    #[error("the model's chat template failed: {0}")]
    ChatTemplate(String),
}

/// A data set file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// The file cannot be opened or read.
    #[error("cannot read {}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A line is not a row.
    #[error("{}:{line}: {reason}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}
