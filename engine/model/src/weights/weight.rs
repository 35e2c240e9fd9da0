//! One matrix in the form in which it is multiplied.

use bespoke_kernels::{Bf16Matrix, DType, Kernels, Matrix, PackedMatrix};

use super::{LayerWeights, Weights};

/// A matrix of weights.
#[derive(Debug, Clone)]
pub enum Weight {
    /// As the file has it; multiplied with f32 activations.
    Plain(Matrix),
    /// Packed for integer products with quantized activations.
    Packed(PackedMatrix),
    /// Of type `Bf16`, packed for products with rounded activations.
    Bf16(Bf16Matrix),
}

impl Weight {
    /// Returns the type of the file.
    pub fn dtype(&self) -> DType {
        match self {
            Weight::Plain(matrix) => matrix.dtype(),
            Weight::Packed(packed) => packed.dtype(),
            Weight::Bf16(_) => DType::Bf16,
        }
    }

    /// Returns the number of outputs.
    pub fn rows(&self) -> usize {
        match self {
            Weight::Plain(matrix) => matrix.rows(),
            Weight::Packed(packed) => packed.rows(),
            Weight::Bf16(packed) => packed.rows(),
        }
    }

    /// Returns the number of inputs.
    pub fn cols(&self) -> usize {
        match self {
            Weight::Plain(matrix) => matrix.cols(),
            Weight::Packed(packed) => packed.cols(),
            Weight::Bf16(packed) => packed.cols(),
        }
    }

    /// Decodes one row.
    ///
    /// **Shapes**: `out`: `(cols)`.
    /// **Panics**: if `row` or the length of `out` is wrong.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        match self {
            Weight::Plain(matrix) => matrix.dequantize_row(row, out),
            Weight::Packed(packed) => packed.dequantize_row(row, out),
            Weight::Bf16(packed) => packed.dequantize_row(row, out),
        }
    }

    /// Returns the matrix if it is as the file has it.
    pub(crate) fn plain(&self) -> Option<&Matrix> {
        match self {
            Weight::Plain(matrix) => Some(matrix),
            Weight::Packed(_) | Weight::Bf16(_) => None,
        }
    }
}

impl Weights {
    /// Packs every quantized matrix, and those in bf16 where the processor has instructions for them, in the order in which a
    /// step reads them. Quantized matrices that share their input are packed all or not at all. Embeddings are then the output
    /// matrix where they are tied to it, else a copy, so that nothing of the file stays in memory.
    pub(crate) fn pack(&mut self, tie_embeddings: bool, kernels: &Kernels) {
        let any = self.pack_quantized(kernels) | (kernels.has_bf16() && self.pack_bf16(kernels));
        if any {
            self.embeddings = match (tie_embeddings, &self.embeddings) {
                (false, Weight::Plain(matrix)) => Weight::Plain(detached(matrix)),
                _ => self.output.weight.clone(),
            };
        }
    }

    /// Says whether any matrix of a layer is packed for integer products.
    pub(crate) fn has_packed(&self) -> bool {
        let linears = self.layers.iter().flat_map(LayerWeights::linears);
        linears.into_iter().any(|linear| matches!(linear.weight, Weight::Packed(_)))
    }

    /// Says whether there were any.
    fn pack_quantized(&mut self, kernels: &Kernels) -> bool {
        let mut groups: Vec<Vec<&mut Weight>> = self.layers.iter_mut().flat_map(LayerWeights::groups).collect();
        groups.push(vec![&mut self.output.weight]);
        let packs = |weight: &&mut Weight| PackedMatrix::supports(weight.dtype());
        let groups = groups.into_iter().filter(|group| group.iter().all(packs));
        let mut weights: Vec<&mut Weight> = groups.flatten().collect();
        let matrices: Vec<Matrix> = weights.iter().filter_map(|weight| weight.plain().cloned()).collect();
        let packed = PackedMatrix::pack_all(&matrices.iter().collect::<Vec<_>>(), kernels.pool());
        let mut any = false;
        for (weight, packed) in weights.iter_mut().zip(packed) {
            if let Some(packed) = packed {
                **weight = Weight::Packed(packed);
                any = true;
            }
        }
        any
    }

    /// Says whether there were any.
    pub(crate) fn pack_bf16(&mut self, kernels: &Kernels) -> bool {
        let layers = self.layers.iter_mut().flat_map(LayerWeights::groups).flatten();
        let weights = layers.chain([&mut self.output.weight]);
        let mut weights: Vec<&mut Weight> = weights.filter(|weight| weight.dtype() == DType::Bf16).collect();
        let matrices: Vec<Matrix> = weights.iter().filter_map(|weight| weight.plain().cloned()).collect();
        let packed = Bf16Matrix::pack_all(&matrices.iter().collect::<Vec<_>>(), kernels.pool());
        weights.iter_mut().zip(packed).for_each(|(weight, packed)| **weight = Weight::Bf16(packed));
        !weights.is_empty()
    }
}

/// Copies a matrix out of the memory map of its file.
fn detached(matrix: &Matrix) -> Matrix {
    let bytes: Vec<u8> = (0..matrix.rows()).flat_map(|row| matrix.row_bytes(row)).copied().collect();
    Matrix::new(matrix.dtype(), matrix.rows(), matrix.cols(), bytes.into())
        .expect("invariant: a copy has the shape of its original")
}

impl LayerWeights {
    /// Returns the matrices in groups that share their input.
    fn groups(&mut self) -> [Vec<&mut Weight>; 4] {
        [
            vec![&mut self.q.weight, &mut self.k.weight, &mut self.v.weight],
            vec![&mut self.o.weight],
            vec![&mut self.gate.weight, &mut self.up.weight],
            vec![&mut self.down.weight],
        ]
    }
}
