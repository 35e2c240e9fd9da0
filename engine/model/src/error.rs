//! What can go wrong between a model file and a step: one enum for the crate, each variant naming file and item.

use std::path::PathBuf;

use bespoke_kernels::{DType, KernelsError, KvDType};
use thiserror::Error;

/// States why a model could not be loaded, or why a step was refused.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The operating system refused to open, read or map a file.
    #[error("`{file}`: {source}")]
    Io {
        /// The file or folder.
        file: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A path holds nothing that is a model, or more than one.
    #[error("`{path}` is not a model: {reason}")]
    NotAModel {
        /// The path that was given.
        path: PathBuf,
        /// What is absent or ambiguous.
        reason: String,
    },
    /// A file's header does not follow its format.
    #[error("`{file}` is malformed: {reason}")]
    Malformed {
        /// The file.
        file: PathBuf,
        /// The rule that it breaks.
        reason: String,
    },
    /// A file ends before the item it announces.
    #[error("`{file}` is truncated: {item} needs bytes up to {needed}, the file has {available}")]
    Truncated {
        /// The file.
        file: PathBuf,
        /// The header field or tensor that is cut.
        item: String,
        /// Offset just after the item, in bytes.
        needed: u64,
        /// Size of the file, in bytes.
        available: u64,
    },
    /// A GGUF file lacks a metadata key that the model needs.
    #[error("`{file}` has no metadata key `{key}`")]
    MetadataMissing {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
    },
    /// A GGUF metadata value has another type than the key calls for.
    #[error("`{file}`: metadata key `{key}` is {found}, expected {expected}")]
    MetadataType {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// The type the key calls for.
        expected: &'static str,
        /// The type, and where it matters the value, in the file.
        found: String,
    },
    /// The model belongs to a family that has no serving pass here.
    #[error("`{file}`: architecture `{architecture}` is not supported")]
    UnsupportedArchitecture {
        /// The file that names the architecture.
        file: PathBuf,
        /// The architecture as the file spells it.
        architecture: String,
    },
    /// The KV cache cannot have this format for this model.
    #[error("keys and values of {head_dim} elements a head cannot be kept as {dtype}")]
    KvDType {
        /// The format.
        dtype: KvDType,
        /// Elements of a head.
        head_dim: usize,
    },
    /// A field of the configuration is absent, impossible or asks for something that is not implemented.
    #[error("`{file}`: field `{field}`: {reason}")]
    Config {
        /// The file.
        file: PathBuf,
        /// The field or metadata key.
        field: String,
        /// The value and what is wrong with it.
        reason: String,
    },
    /// A tensor that the architecture needs is absent.
    #[error("`{file}` has no tensor `{tensor}`")]
    MissingTensor {
        /// The file, or the index of a sharded model.
        file: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another shape than the configuration calls for.
    #[error("`{file}`: tensor `{tensor}` has shape {found:?}, expected {expected:?}")]
    TensorShape {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Shape by the configuration, outermost dimension first.
        expected: Vec<usize>,
        /// Shape in the file, outermost dimension first.
        found: Vec<usize>,
    },
    /// A tensor is stored in a number format that has no kernel here.
    #[error("`{file}`: tensor `{tensor}` has the unsupported type `{found}`")]
    TensorType {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type as the format names it.
        found: String,
    },
    /// A tensor holds a weight that no block format can.
    #[error("`{file}`: tensor `{tensor}`: {reason}")]
    TensorValue {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The weight and its place.
        reason: String,
    },
    /// Quantization while loading was asked for, but a matrix is quantized already.
    #[error("`{file}`: tensor `{tensor}` is quantized already, as {found}: load it with quantization `none`")]
    AlreadyQuantized {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its format.
        found: DType,
    },
    /// A file is to be written whose name is taken.
    #[error("`{file}` exists already")]
    OutputExists {
        /// The file.
        file: PathBuf,
    },
    /// The caller wanted no more of it.
    #[error("interrupted")]
    Interrupted,
    /// The kernels refused a matrix or could not start.
    #[error(transparent)]
    Kernels(#[from] KernelsError),
    /// A step holds more rows than the workspace was made for.
    #[error("step has {found} {rows}, the workspace holds {limit}")]
    StepTooLarge {
        /// Which rows are too many: `rows` or `logit rows`.
        rows: &'static str,
        /// How many the step has.
        found: usize,
        /// How many the workspace holds.
        limit: usize,
    },
    /// A row's token is not in the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab_size}")]
    TokenOutOfRange {
        /// The token id.
        token: u32,
        /// Number of tokens the model knows.
        vocab_size: usize,
    },
    /// A row's position lies beyond the context of the model.
    #[error("position {position} is outside the context of {context_length}")]
    PositionOutOfRange {
        /// The position.
        position: u32,
        /// Number of positions.
        context_length: usize,
    },
    /// A row names a sequence without a block table, or its table is too short or names a block the cache lacks.
    #[error("block table of sequence {sequence}: {reason}")]
    BlockTable {
        /// Index into the step's tables.
        sequence: u32,
        /// What is wrong with the table.
        reason: String,
    },
    /// A prompt names a control token that the tokenizer does not have.
    #[error("`{spelling}` is not a control token of this tokenizer")]
    UnknownControlToken {
        /// The token as the prompt spells it.
        spelling: String,
    },
    /// A text is too long to be tokenized.
    #[error("text of {bytes} bytes, the tokenizer takes {limit} at most")]
    PromptTooLong {
        /// Length of the text, in bytes.
        bytes: usize,
        /// The longest text, in bytes.
        limit: usize,
    },
    /// The tokenizer could not turn a text into tokens.
    #[error("tokenizer: {reason}")]
    Tokenize {
        /// What it says.
        reason: String,
    },
}
