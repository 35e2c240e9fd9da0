//! The errors of loading a model with mistral.rs.

use std::path::PathBuf;

use bespoke_model::ModelError;

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum MistralError {
    /// Its files are wrong.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Its configuration lacks a field or has one that makes no sense.
    #[error("`{file}`: field `{field}`: {reason}")]
    Config {
        /// The file.
        file: PathBuf,
        /// The field or metadata key.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// mistral.rs refused it.
    #[error("mistral.rs cannot load `{path}`: {reason}")]
    Load {
        /// The file or folder.
        path: PathBuf,
        /// What mistral.rs says.
        reason: String,
    },
    /// A file could not be written while a model was converted.
    #[error("cannot convert `{path}` for mistral.rs: {reason}")]
    Convert {
        /// The file.
        path: PathBuf,
        /// What failed.
        reason: String,
    },
}
