//! A frozen matrix in the form in which it is multiplied.

use bespoke_kernels::{Bf16Matrix, Direction, Kernels, Matrix, Product, Right, View};
use serde::{Deserialize, Serialize};

/// What products with frozen weights are computed in. All else is single precision: factors, attention, norms, losses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Compute {
    /// Single precision: exact.
    #[default]
    F32,
    /// Weights, activations and gradients rounded to bf16, sums in single precision; weights are kept in bf16, once for each direction.
    Bf16,
}

/// A frozen matrix `(outputs, inputs)`.
pub enum Frozen {
    /// As it is stored, for products in single precision.
    Exact(Matrix),
    /// Rounded and packed, for products in bf16.
    Rounded {
        /// For activations.
        forward: Bf16Matrix,
        /// For gradients.
        backward: Bf16Matrix,
    },
}

impl Frozen {
    /// Rounds and packs matrices, in the order in which a step reads them: forwards, and then backwards again.
    pub(crate) fn round_all(matrices: &[&Matrix], kernels: &Kernels) -> Vec<Frozen> {
        let forward = matrices.iter().map(|matrix| (*matrix, Direction::Forward));
        let backward = matrices.iter().rev().map(|matrix| (*matrix, Direction::Backward));
        let mut packed = Bf16Matrix::pack_all(&forward.chain(backward).collect::<Vec<_>>(), kernels.pool());
        let backward = packed.split_off(matrices.len()).into_iter().rev();
        packed.into_iter().zip(backward).map(|(forward, backward)| Frozen::Rounded { forward, backward }).collect()
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        match self {
            Frozen::Exact(matrix) => matrix.cols(),
            Frozen::Rounded { forward, .. } => forward.inputs(),
        }
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        match self {
            Frozen::Exact(matrix) => matrix.rows(),
            Frozen::Rounded { forward, .. } => forward.outputs(),
        }
    }

    /// `out = x w^T`.
    ///
    /// **Shapes**: `x` `(rows, inputs)`, `out` `(rows, outputs)`. **Panics** if a length does not fit.
    pub fn forward(&self, kernels: &Kernels, x: &[f32], out: &mut [f32]) {
        match self {
            Frozen::Exact(matrix) => {
                let left = View::new(x, x.len() / matrix.cols(), matrix.cols());
                kernels.product(&Product { left, right: Right::Transposed(matrix), accumulate: false }, out);
            }
            Frozen::Rounded { forward, .. } => kernels.matmul_bf16(x, forward, false, out),
        }
    }

    /// `d_x = d_out w`, or adds it.
    ///
    /// **Shapes**: `d_out` `(rows, outputs)`, `d_x` `(rows, inputs)`. **Panics** if a length does not fit.
    pub fn backward(&self, kernels: &Kernels, d_out: &[f32], accumulate: bool, d_x: &mut [f32]) {
        match self {
            Frozen::Exact(matrix) => {
                let left = View::new(d_out, d_out.len() / matrix.rows(), matrix.rows());
                kernels.product(&Product { left, right: Right::Weights(matrix), accumulate }, d_x);
            }
            Frozen::Rounded { backward, .. } => kernels.matmul_bf16(d_out, backward, accumulate, d_x),
        }
    }
}
