//! A frozen matrix in the form in which it is multiplied.

use bespoke_kernels::{Bf16Matrix, Buffer, Direction, Kernels, Matrix, Product, Right, Rounded, View};
use serde::{Deserialize, Serialize};

/// What products with frozen weights and with factors, and those of attention, are computed in. All else is single precision: the
/// values of factors, norms, softmax, losses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Compute {
    /// Single precision: exact.
    #[default]
    F32,
    /// What is multiplied is rounded to bf16, sums are in single precision; weights, and gate and up, are kept in bf16.
    Bf16,
}

/// A frozen matrix `(outputs, inputs)`.
pub enum Frozen {
    /// As it is stored, for products in single precision.
    Exact(Matrix),
    /// Rounded and packed, for products in bf16.
    Packed(Bf16Matrix),
}

/// Rows that frozen matrices multiply: as they are, rounded where the products are in bf16, or both.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    floats: Option<&'a [f32]>,
    rounded: Option<&'a Rounded>,
}

/// Where rows are made.
pub struct RowBuffers<'a> {
    /// For rows as they are.
    pub floats: &'a mut Buffer,
    /// For rounded rows.
    pub rounded: &'a mut Rounded,
    /// Whether they are needed as they are even where the products are in bf16: factors multiply them too.
    pub keeps_floats: bool,
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
        match self {
            Frozen::Exact(_) => Rows { floats: Some(x), rounded: None },
            Frozen::Packed(_) => {
                kernels.round(x, x.len() / cols, rounded);
                Rows { floats: Some(x), rounded: Some(rounded) }
            }
        }
    }

    /// Prepares the norm of rows.
    ///
    /// **Shapes**: `x` `(rows, weight.len())`. **Panics** if `x` is not whole rows.
    pub fn prepare_norm<'a>(
        &self,
        kernels: &Kernels,
        (x, weight, eps): (&[f32], &[f32], f32),
        buffers: RowBuffers<'a>,
    ) -> Rows<'a> {
        let RowBuffers { floats, rounded, keeps_floats } = buffers;
        if matches!(self, Frozen::Packed(_)) && !keeps_floats {
            kernels.rms_norm_round(x, weight, eps, rounded);
            return Rows { floats: None, rounded: Some(rounded) };
        }
        kernels.rms_norm(x, weight, eps, floats.fit(x.len()));
        self.prepare(kernels, floats, weight.len(), rounded)
    }

    /// The weights, where they are packed for products in bf16.
    pub fn packed(&self) -> Option<&Bf16Matrix> {
        match self {
            Frozen::Exact(_) => None,
            Frozen::Packed(matrix) => Some(matrix),
        }
    }

    /// Adds to `d_x` the gradient that goes through a norm, and prepares the sum, which [`Frozen::rows`] then gives.
    ///
    /// **Shapes**: `x`, `d_out`, `d_x` `(rows, weight.len())`. **Panics** if a length does not fit.
    pub fn prepare_norm_backward(
        &self,
        kernels: &Kernels,
        norm: (&[f32], &[f32], f32),
        d_out: &[f32],
        (d_x, rounded): (&mut [f32], &mut Rounded),
    ) {
        let rounded = matches!(self, Frozen::Packed(_)).then_some(rounded);
        kernels.rms_norm_backward(norm, d_out, d_x, rounded);
    }

    /// Rows that are there in both forms, as far as this matrix needs them.
    pub fn rows<'a>(&self, x: &'a [f32], rounded: &'a Rounded) -> Rows<'a> {
        match self {
            Frozen::Exact(_) => Rows { floats: Some(x), rounded: None },
            Frozen::Packed(_) => Rows { floats: Some(x), rounded: Some(rounded) },
        }
    }

    /// `out = x w^T`.
    ///
    /// **Shapes**: `x` `(rows, inputs)`, `out` `(rows, outputs)`. **Panics** if a length does not fit.
    pub fn forward(&self, kernels: &Kernels, x: Rows<'_>, out: &mut [f32]) {
        match self {
            Frozen::Exact(matrix) => {
                let left = View::new(x.floats(), x.floats().len() / matrix.cols(), matrix.cols());
                kernels.product(&Product { left, right: Right::Transposed(matrix), accumulate: false }, out);
            }
            Frozen::Packed(matrix) => {
                kernels.matmul_rounded(x.rounded(), (matrix, Direction::Forward), false, out);
            }
        }
    }
}

/// `out = x w^T` for several matrices of one kind.
///
/// **Shapes**: as of [`Frozen::forward`]. **Panics** if a length does not fit.
pub(crate) fn forward_each<const N: usize>(kernels: &Kernels, x: Rows<'_>, outputs: [(&Frozen, &mut [f32]); N]) {
    let mut packed = Vec::with_capacity(N);
    for (w, out) in outputs {
        match w.packed() {
            Some(w) => packed.push((w, out)),
            None => w.forward(kernels, x, out),
        }
    }
    if !packed.is_empty() {
        kernels.matmul_rounded_each(x.rounded(), &mut packed);
    }
}

/// `d_x`: the sum of `d_out w` over several matrices of one kind.
///
/// **Shapes**: each `d_out` `(rows, outputs)` of its matrix, `d_x` `(rows, inputs)`. **Panics** if a length does not fit.
pub(crate) fn backward(kernels: &Kernels, terms: &[(&Frozen, Rows<'_>)], d_x: &mut [f32]) {
    let packed = terms.iter().map(|(w, d_out)| Some((d_out.rounded?, w.packed()?)));
    if let Some(packed) = packed.collect::<Option<Vec<_>>>() {
        return kernels.sum_backward(&packed, d_x);
    }
    for (index, (w, d_out)) in terms.iter().enumerate() {
        let Frozen::Exact(matrix) = w else { panic!("matrices of two kinds") };
        let left = View::new(d_out.floats(), d_out.floats().len() / matrix.rows(), matrix.rows());
        kernels.product(&Product { left, right: Right::Weights(matrix), accumulate: index > 0 }, d_x);
    }
}

impl<'a> Rows<'a> {
    /// Rows that are there in single precision alone, for matrices that are exact.
    pub fn exact(floats: &'a [f32]) -> Rows<'a> {
        Rows { floats: Some(floats), rounded: None }
    }

    /// Rows that are there rounded, for matrices that are packed, and maybe as they are.
    pub fn packed(rounded: &'a Rounded, floats: Option<&'a [f32]>) -> Rows<'a> {
        Rows { floats, rounded: Some(rounded) }
    }

    /// As they are.
    ///
    /// **Panics** if they were prepared rounded alone.
    pub fn floats(&self) -> &'a [f32] {
        self.floats.expect("invariant: rows are kept as they are where they are needed so")
    }

    /// Rounded.
    ///
    /// **Panics** if they were prepared for matrices that are exact.
    pub fn rounded(&self) -> &'a Rounded {
        self.rounded.expect("invariant: rows are prepared by a matrix of the same kind")
    }
}
