//! What can go wrong before a kernel runs. A running kernel cannot fail; wrong lengths there are bugs and panic.

use crate::{DType, Isa};

/// Why a matrix, a pool or an instruction set was refused.
#[derive(Debug, thiserror::Error)]
pub enum KernelsError {
    /// The override names no instruction set.
    #[error("unknown instruction set `{value}` in `BESPOKE_KERNELS`, expected `scalar`, `avx2`, `avx512` or `amx`")]
    UnknownIsa {
        /// What was given.
        value: String,
    },
    /// This processor does not have the instruction set.
    #[error("instruction set `{isa}` is not available on this processor")]
    IsaUnavailable {
        /// What was asked for.
        isa: Isa,
    },
    /// The rows of a matrix do not split into whole blocks, or its size overflows.
    #[error("a matrix of {rows} x {cols} cannot be stored as `{dtype}`, whose blocks hold {} columns", dtype.block_len())]
    Shape {
        /// The storage type.
        dtype: DType,
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
    },
    /// The data is longer or shorter than the shape says.
    #[error("a matrix of {rows} x {cols} in `{dtype}` takes {expected} bytes, found {found}")]
    Length {
        /// The storage type.
        dtype: DType,
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
        /// Bytes that the shape takes.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// A pool needs at least the calling thread.
    #[error("a pool needs at least one thread")]
    NoThreads,
    /// The operating system refused a thread.
    #[error("cannot start kernel thread {index}")]
    Spawn {
        /// Which thread, the caller being 0.
        index: usize,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}
