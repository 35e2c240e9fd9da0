//! One matrix in the form in which it is multiplied.

use bespoke_kernels::{DType, Matrix, PackedMatrix, Pool};

use super::{LayerWeights, Weights};

/// A matrix of weights.
#[derive(Debug, Clone)]
pub enum Weight {
    /// As the file has it; multiplied with f32 activations.
    Plain(Matrix),
    /// Packed for integer products with quantized activations.
    Packed(PackedMatrix),
}

impl Weight {
    /// Returns the type of the file.
    pub fn dtype(&self) -> DType {
        match self {
            Weight::Plain(matrix) => matrix.dtype(),
            Weight::Packed(packed) => packed.dtype(),
        }
    }

    /// Returns the number of outputs.
    pub fn rows(&self) -> usize {
        match self {
            Weight::Plain(matrix) => matrix.rows(),
            Weight::Packed(packed) => packed.rows(),
        }
    }

    /// Returns the number of inputs.
    pub fn cols(&self) -> usize {
        match self {
            Weight::Plain(matrix) => matrix.cols(),
            Weight::Packed(packed) => packed.cols(),
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
        }
    }

    /// Returns the matrix if it is as the file has it.
    pub(crate) fn plain(&self) -> Option<&Matrix> {
        match self {
            Weight::Plain(matrix) => Some(matrix),
            Weight::Packed(_) => None,
        }
    }
}

impl Weights {
    /// Packs every quantized matrix, in the order in which a step reads them. Matrices that share their input are packed
    /// all or not at all. Embeddings are then the output matrix where they are tied to it, else a copy, so that nothing of
    /// the file stays in memory.
    pub(crate) fn pack(&mut self, tie_embeddings: bool, pool: &Pool) {
        let mut groups: Vec<Vec<&mut Weight>> = self.layers.iter_mut().flat_map(LayerWeights::groups).collect();
        groups.push(vec![&mut self.output.weight]);
        let packs = |weight: &&mut Weight| PackedMatrix::supports(weight.dtype());
        let groups = groups.into_iter().filter(|group| group.iter().all(packs));
        let mut weights: Vec<&mut Weight> = groups.flatten().collect();
        let matrices: Vec<Matrix> = weights.iter().filter_map(|weight| weight.plain().cloned()).collect();
        let packed = PackedMatrix::pack_all(&matrices.iter().collect::<Vec<_>>(), pool);
        let mut any = false;
        for (weight, packed) in weights.iter_mut().zip(packed) {
            if let Some(packed) = packed {
                **weight = Weight::Packed(packed);
                any = true;
            }
        }
        if any {
            self.embeddings = match (tie_embeddings, &self.embeddings) {
                (false, Weight::Plain(matrix)) => Weight::Plain(detached(matrix)),
                _ => self.output.weight.clone(),
            };
        }
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
