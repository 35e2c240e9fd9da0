//! Quantization: which number format a tensor gets, the encoders of the block formats, and the writing of GGUF files.
//!
//! [`Quantization`] is the one vocabulary, used while loading (`weights.rs`) and by [`quantize_model`]. Vocabulary matrices
//! (embeddings and output) take `Q8_0` under every scheme: they decide the logits alone, and 4 bits there cost more quality than
//! in all layers together, which is why llama.cpp keeps the output matrix at 6 or 8 bits too. Norms and biases stay `F32`.

mod export;
mod fit;
mod k_blocks;
mod metadata;
mod output_file;
mod rows;
mod small_blocks;

use std::fmt;

use bespoke_kernels::{DType, Matrix};
use bytes::Bytes;

pub use export::{QuantizeOptions, QuantizeProgress, QuantizeSummary, Replacement, quantize_model};
pub(crate) use rows::Fault;
use rows::{RowOrder, Rows};

/// What the weights of a model are stored in.
#[allow(non_camel_case_types, reason = "`Q4_0` and `Q4_1` are the names of the formats")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quantization {
    /// As the file has them.
    #[default]
    None,
    /// 8 bits and a scale for each 32 weights: 8.5 bits per weight.
    Q8_0,
    /// 4 bits and a scale for each 32 weights: 4.5 bits per weight.
    Q4_0,
    /// 4 bits, a scale and a minimum for each 32 weights: 5 bits per weight.
    Q4_1,
    /// 4 bits in blocks of 256 with searched scales: 4.5 bits per weight.
    Q4K,
    /// 5 bits in blocks of 256 with searched scales: 5.5 bits per weight.
    Q5K,
    /// 6 bits in blocks of 256 with searched scales: 6.6 bits per weight.
    Q6K,
}

/// What a matrix is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Embeddings or output.
    Vocabulary,
    /// A matrix of a layer.
    Projection,
}

impl Quantization {
    /// Every scheme.
    pub const ALL: [Quantization; 7] = [
        Quantization::None,
        Quantization::Q8_0,
        Quantization::Q4_0,
        Quantization::Q4_1,
        Quantization::Q4K,
        Quantization::Q5K,
        Quantization::Q6K,
    ];

    /// Returns the format of the projections whose rows fit it; `None` for the scheme that changes nothing.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Quantization::None => None,
            Quantization::Q8_0 => Some(DType::Q8_0),
            Quantization::Q4_0 => Some(DType::Q4_0),
            Quantization::Q4_1 => Some(DType::Q4_1),
            Quantization::Q4K => Some(DType::Q4K),
            Quantization::Q5K => Some(DType::Q5K),
            Quantization::Q6K => Some(DType::Q6K),
        }
    }

    /// Returns the format that a matrix of this role is meant to have, whatever its rows.
    pub(crate) fn wanted(self, role: Role) -> Option<DType> {
        self.dtype().map(|dtype| match role {
            Role::Vocabulary => DType::Q8_0,
            Role::Projection => dtype,
        })
    }
}

impl fmt::Display for Quantization {
    /// Writes the name as flags spell it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.dtype() {
            None => f.write_str("none"),
            Some(dtype) => f.write_str(&dtype.to_string().to_lowercase()),
        }
    }
}

/// Returns the format whose blocks fit rows of `cols`, the nearest to the wanted one.
///
/// **Source**: llama.cpp `src/llama-quant.cpp`, `tensor_type_fallback`.
pub(crate) fn fitting(wanted: DType, cols: usize) -> DType {
    let fits = |dtype: DType| dtype.row_bytes(cols).is_some();
    let smaller = match wanted {
        DType::Q4K => DType::Q5_0,
        DType::Q5K => DType::Q5_1,
        DType::Q6K => DType::Q8_0,
        other => other,
    };
    match (fits(wanted), fits(smaller)) {
        (true, _) => wanted,
        (false, true) => smaller,
        (false, false) => DType::F16,
    }
}

/// Encodes a matrix in another format; its rows must be whole blocks of it.
pub(crate) fn quantize_matrix(matrix: &Matrix, dtype: DType, num_threads: usize) -> Result<Matrix, Fault> {
    let mut data = Vec::new();
    Rows { matrix, order: RowOrder::Same, dtype, num_threads }.encode(0..matrix.rows(), &mut data)?;
    let quantized = Matrix::new(dtype, matrix.rows(), matrix.cols(), Bytes::from(data));
    Ok(quantized.expect("invariant: `encode` writes whole rows"))
}

/// Encodes a matrix in another format into memory of the caller.
///
/// **Errors**: says which rows do not fit the format, or which weight it cannot hold. **Panics** if `out` has another length.
pub fn encode_matrix(matrix: &Matrix, dtype: DType, num_threads: usize, out: &mut [u8]) -> Result<(), String> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let row_bytes =
        dtype.row_bytes(cols).ok_or_else(|| format!("rows of {cols} weights are not whole blocks of {dtype}"))?;
    assert_eq!(out.len(), rows * row_bytes, "bytes of {rows} rows of {cols} weights");
    let rows_of = Rows { matrix, order: RowOrder::Same, dtype, num_threads };
    rows_of.encode_into(0..rows, out).map_err(|fault| fault.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_flags() {
        let names: Vec<String> = Quantization::ALL.iter().map(Quantization::to_string).collect();
        assert_eq!(names.join(" "), "none q8_0 q4_0 q4_1 q4_k q5_k q6_k");
    }

    #[test]
    fn rows_that_do_not_fit_get_the_neighbour_of_llama_cpp() {
        assert_eq!(fitting(DType::Q4K, 512), DType::Q4K);
        assert_eq!(fitting(DType::Q4K, 576), DType::Q5_0);
        assert_eq!(fitting(DType::Q5K, 576), DType::Q5_1);
        assert_eq!(fitting(DType::Q6K, 576), DType::Q8_0);
        assert_eq!(fitting(DType::Q4_0, 64), DType::Q4_0);
        assert_eq!(fitting(DType::Q4_0, 172), DType::F16);
        assert_eq!(fitting(DType::Q4K, 172), DType::F16);
    }
}
