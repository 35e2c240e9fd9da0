//! The errors of this crate.

use std::path::PathBuf;

use bespoke_domain::{RenderError, RowError};
use bespoke_kernels::KernelsError;
use bespoke_model::ModelError;
use bespoke_store::StoreError;

/// Why training cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The model cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The kernels could not start.
    #[error(transparent)]
    Kernels(#[from] KernelsError),
    /// The model or data set cannot be fetched.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data set cannot be read.
    #[error(transparent)]
    Rows(#[from] RowError),
    /// A row cannot be rendered.
    #[error("{place}: {source}")]
    Render {
        /// File and line.
        place: String,
        /// What the renderer says.
        source: RenderError,
    },
    /// A setting has a value that cannot be.
    #[error("`{field}` {reason}")]
    Setting {
        /// As in the recipe.
        field: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The base weights do not fit the format asked for.
    #[error("base weights `{tensor}`: {reason}; use --base-dtype f32 or bf16")]
    BaseDtype {
        /// The tensor.
        tensor: String,
        /// What does not fit.
        reason: String,
    },
    /// Rows of a data set are not usable.
    #[error("{num_bad} of {num_rows} rows cannot be used:\n{}\nrepair them, or pass over them with --skip-bad-rows", shown.join("\n"))]
    BadRows {
        /// How many.
        num_bad: usize,
        /// Of how many.
        num_rows: usize,
        /// The first of them with file, line and reason.
        shown: Vec<String>,
    },
    /// A file of a format that is not read.
    #[error("{}: {reason}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error("{action} {}", file.display())]
    Io {
        /// `reading` or `writing`.
        action: &'static str,
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Something of a run cannot be written, as on a full disk.
    #[error(
        "the run cannot be kept; the last checkpoint, of step {checkpoint}, is good: make room and go on from there with --resume"
    )]
    Unsaved {
        /// Step of the last checkpoint.
        checkpoint: u64,
        /// What cannot be written.
        source: Box<TrainError>,
    },
    /// The loss or the gradient is no number any more.
    #[error(
        "step {step}: the {what} is {value}; the last checkpoint, of step {checkpoint}, is good: go on from there with --resume and a lower learning rate"
    )]
    NotANumber {
        /// The optimiser step.
        step: u64,
        /// `loss` or `gradient`.
        what: &'static str,
        /// What it is.
        value: f64,
        /// Step of the last checkpoint.
        checkpoint: u64,
    },
}

impl TrainError {
    pub(crate) fn reading(file: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> TrainError {
        let file = file.into();
        move |source| TrainError::Io { action: "reading", file, source }
    }

    pub(crate) fn writing(file: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> TrainError {
        let file = file.into();
        move |source| TrainError::Io { action: "writing", file, source }
    }

    pub(crate) fn file(file: impl Into<PathBuf>, reason: impl ToString) -> TrainError {
        TrainError::File { file: file.into(), reason: reason.to_string() }
    }
}
