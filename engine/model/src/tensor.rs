//! One tensor as a file holds it: number format, shape and bytes, before its shape is checked against the configuration.

use std::path::PathBuf;

use bespoke_kernels::DType;
use bytes::Bytes;

/// A tensor whose bytes share the file's memory map.
#[derive(Debug)]
pub(crate) struct Tensor {
    /// The file that holds it, for errors.
    pub(crate) file: PathBuf,
    pub(crate) dtype: DType,
    /// Outermost dimension first.
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Bytes,
}

/// A mapped weight file, as the model digest sees it.
pub(crate) struct WeightFile {
    pub(crate) bytes: Bytes,
    /// Where the header (names, shapes, formats, metadata) ends and the tensor data starts.
    pub(crate) data_start: usize,
}
