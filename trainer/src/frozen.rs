//! A frozen matrix in the form in which it is multiplied.

use bespoke_kernels::{Bf16Matrix, Direction, Kernels, Matrix, Product, Right, Rounded, View};
use serde::{Deserialize, Serialize};

/// What products with frozen weights are computed in. All else is single precision: factors, attention, norms, losses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Compute {
    /// Single precision: exact.
    #[default]
    F32,
    /// Weights, activations and gradients rounded to bf16, sums in single precision; weights are kept in bf16.
    Bf16,
}

/// A frozen matrix `(outputs, inputs)`.
pub enum Frozen {
    /// As it is stored, for products in single precision.
    Exact(Matrix),
    /// Rounded and packed, for products in bf16.
    Packed(Bf16Matrix),
}

/// Rows that frozen matrices multiply: as they are, and rounded where the products are in bf16.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// **Shapes**: `(rows, cols)`.
    pub x: &'a [f32],
    rounded: Option<&'a Rounded>,
}

impl Frozen {
    /// Rounds and packs matrices, in the order in which a step reads them.
    pub(crate) fn round_all(matrices: &[&Matrix], kernels: &Kernels) -> Vec<Frozen> {
        Bf16Matrix::pack_all(matrices, kernels.pool()).into_iter().map(Frozen::Packed).collect()
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        match self {
            Frozen::Exact(matrix) => matrix.cols(),
            Frozen::Packed(matrix) => matrix.cols(),
        }
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        match self {
            Frozen::Exact(matrix) => matrix.rows(),
            Frozen::Packed(matrix) => matrix.rows(),
        }
    }

    /// Prepares rows of `cols` for this matrix and others of its kind.
    ///
    /// **Panics** if `x` is not whole rows.
    pub fn prepare<'a>(&self, kernels: &Kernels, x: &'a [f32], cols: usize, rounded: &'a mut Rounded) -> Rows<'a> {
        assert!(x.len().is_multiple_of(cols), "{} values in rows of {cols}", x.len());
        let rounded = match self {
            Frozen::Exact(_) => None,
            Frozen::Packed(_) => {
                kernels.round(x, x.len() / cols, rounded);
                Some(&*rounded)
            }
        };
        Rows { x, rounded }
    }

    /// `out = x w^T`.
    ///
    /// **Shapes**: `x` `(rows, inputs)`, `out` `(rows, outputs)`. **Panics** if a length does not fit.
    pub fn forward(&self, kernels: &Kernels, x: Rows<'_>, out: &mut [f32]) {
        match self {
            Frozen::Exact(matrix) => {
                let left = View::new(x.x, x.x.len() / matrix.cols(), matrix.cols());
                kernels.product(&Product { left, right: Right::Transposed(matrix), accumulate: false }, out);
            }
            Frozen::Packed(matrix) => {
                kernels.matmul_rounded(x.rounded(), (matrix, Direction::Forward), false, out);
            }
        }
    }

    /// `d_x = d_out w`, or adds it.
    ///
    /// **Shapes**: `d_out` `(rows, outputs)`, `d_x` `(rows, inputs)`. **Panics** if a length does not fit.
    pub fn backward(&self, kernels: &Kernels, d_out: Rows<'_>, accumulate: bool, d_x: &mut [f32]) {
        match self {
            Frozen::Exact(matrix) => {
                let left = View::new(d_out.x, d_out.x.len() / matrix.rows(), matrix.rows());
                kernels.product(&Product { left, right: Right::Weights(matrix), accumulate }, d_x);
            }
            Frozen::Packed(matrix) => {
                kernels.matmul_rounded(d_out.rounded(), (matrix, Direction::Backward), accumulate, d_x);
            }
        }
    }
}

impl Rows<'_> {
    fn rounded(&self) -> &Rounded {
        self.rounded.expect("invariant: rows are prepared by a matrix of the same kind")
    }
}
