//! The entry to every kernel: asserts lengths, splits the work over the pool, calls the chosen instruction set.

use std::ops::Range;
use std::sync::Arc;

use crate::attention::{Job, store};
use crate::bf16;
use crate::matmul::Product;
use crate::packed::{self, PackedMatrix, PackedProduct};
use crate::quantized;
use crate::shared::SharedMut;
use crate::source::Source;
use crate::table::Table;
use crate::{
    Attention, Bf16Matrix, Direction, Isa, KernelsError, KvBuffer, Matrix, NewRows, Pool, Quantized, Rope, Rounded,
};

/// Elements that are worth a task of an elementwise kernel: a few microseconds.
const TASK_ELEMENTS: usize = 1 << 13;

/// The kernels of one instruction set on one pool of threads; cheap to clone.
#[derive(Clone)]
pub struct Kernels {
    isa: Isa,
    table: &'static Table,
    pool: Arc<Pool>,
}

impl Kernels {
    /// Picks the instruction set with [`Isa::detect`] and starts the threads.
    ///
    /// **Errors**: those of [`Isa::detect`] and [`Pool::new`].
    pub fn new(num_threads: usize) -> Result<Kernels, KernelsError> {
        Kernels::with_isa(Isa::detect()?, num_threads)
    }

    /// Uses a given instruction set.
    ///
    /// **Errors**: this processor lacks it, or those of [`Pool::new`].
    pub fn with_isa(isa: Isa, num_threads: usize) -> Result<Kernels, KernelsError> {
        if !isa.is_available() {
            return Err(KernelsError::IsaUnavailable { isa });
        }
        // SAFETY: it was found available just now.
        let table = unsafe { Table::to_run(isa) };
        Ok(Kernels { isa, table, pool: Arc::new(Pool::new(num_threads)?) })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The threads in use.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// `out = x w^T`.
    ///
    /// **Shapes**: `x` `(n, w.cols)`, `out` `(n, w.rows)`. **Panics** if a length does not fit.
    pub fn matmul(&self, x: &[f32], n: usize, w: &Matrix, out: &mut [f32]) {
        assert_eq!(Some(x.len()), n.checked_mul(w.cols()), "activations of {n} rows for {w:?}");
        assert_eq!(Some(out.len()), n.checked_mul(w.rows()), "outputs of {n} rows for {w:?}");
        Product { table: self.table, x, num_rows: n, w, out: SharedMut::new(out) }.run(&self.pool);
    }

    /// Quantizes `n` rows of activations.
    ///
    /// **Shapes**: `x` `(n, cols)`. **Panics** if `x` is not `n` rows of whole blocks of 32.
    pub fn quantize(&self, x: &[f32], n: usize, out: &mut Quantized) {
        quantized::run(self.table, &self.pool, Source::Plain { x }, n, out);
    }

    /// [`Kernels::rms_norm`] and [`Kernels::quantize`] in one pass, with the same bits.
    ///
    /// **Shapes**: `x` `(rows, weight.len())`. **Panics** if a length does not fit.
    pub fn rms_norm_quantize(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut Quantized) {
        let rows = x.len() / weight.len().max(1);
        quantized::run(self.table, &self.pool, Source::RmsNorm { x, weight, eps }, rows, out);
    }

    /// [`Kernels::swiglu`] and [`Kernels::quantize`] in one pass, with the same bits; `gate` stays as it is.
    ///
    /// **Shapes**: `gate`, `up` `(n, cols)`. **Panics** if a length does not fit.
    pub fn swiglu_quantize(&self, gate: &[f32], up: &[f32], n: usize, out: &mut Quantized) {
        quantized::run(self.table, &self.pool, Source::SwiGlu { gate, up }, n, out);
    }

    /// Up to four products of the same activations, in one parallel region.
    ///
    /// An output has the same bits on every instruction set, alone and in any batch.
    ///
    /// **Panics** if a length does not fit.
    pub fn matmul_packed(&self, x: &Quantized, products: &mut [PackedProduct<'_>]) {
        packed::run(self.table, &self.pool, x, products);
    }

    /// Rounds `n` rows of activations to bf16.
    ///
    /// **Shapes**: `x` `(n, cols)`. **Panics** if a length does not fit.
    pub fn round(&self, x: &[f32], n: usize, out: &mut Rounded) {
        self.round_source(Source::Plain { x }, n, out);
    }

    /// [`Kernels::rms_norm`] and [`Kernels::round`] in one pass.
    ///
    /// **Shapes**: `x` `(rows, weight.len())`. **Panics** if a length does not fit.
    pub fn rms_norm_round(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut Rounded) {
        let rows = x.len() / weight.len().max(1);
        self.round_source(Source::RmsNorm { x, weight, eps }, rows, out);
    }

    fn round_source(&self, source: Source<'_>, rows: usize, out: &mut Rounded) {
        bf16::round::run((self.isa, self.table, &self.pool), source, rows, out);
    }

    /// [`Kernels::matmul_packed`] in bf16: the decoded weights and the activations rounded, sums in `f32`. The bits are those of
    /// [`Kernels::matmul_bf16`] with the same weights: a row's do not depend on the other rows, but on the instruction set.
    ///
    /// Weights are decoded anew at each call, which is worth it from some dozens of rows on where [`Kernels::has_tiles`].
    ///
    /// **Panics** if a length does not fit.
    pub fn matmul_packed_bf16(&self, x: &Rounded, products: &mut [PackedProduct<'_>]) {
        packed::run_rounded((self.isa, self.table, &self.pool), x, products);
    }

    /// Gate and up of a feed-forward block in bf16, `silu(x gate^T) * (x up^T)`, rounded: the bits of
    /// [`Kernels::matmul_packed_bf16`], [`Kernels::swiglu`] and [`Kernels::round`], without writing floats of the block's width.
    ///
    /// **Shapes**: `weights` `(cols, inputs)` each. **Panics** if a length does not fit.
    pub fn matmul_packed_gated_bf16(&self, x: &Rounded, weights: [&PackedMatrix; 2], out: &mut Rounded) {
        packed::run_gated((self.isa, self.table, &self.pool), x, weights, out);
    }

    /// Whether products in bf16 are several times faster than those in integers: there are tile registers.
    pub fn has_tiles(&self) -> bool {
        self.isa == Isa::Amx
    }

    /// `out = x w^T`, or backwards `x w`, or adds it: both factors rounded to bf16, sums in `f32`.
    ///
    /// **Shapes**: `x` `(n, cols)`, `out` `(n, rows)`, backwards the other way round. **Panics** if a length does not fit.
    pub fn matmul_bf16(&self, x: &[f32], w: (&Bf16Matrix, Direction), accumulate: bool, out: &mut [f32]) {
        bf16::run((self.isa, self.table, &self.pool), x, w, accumulate, out);
    }

    /// [`Kernels::matmul_bf16`] of rows that [`Kernels::round`] has rounded, for several products of the same rows.
    ///
    /// **Panics** if a length does not fit.
    pub fn matmul_rounded(&self, x: &Rounded, w: (&Bf16Matrix, Direction), accumulate: bool, out: &mut [f32]) {
        let factors = [bf16::product::Factors { isa: self.isa, x, w: w.0, direction: w.1 }];
        bf16::run_rounded(&self.pool, &factors, accumulate, out);
    }

    /// [`Kernels::matmul_rounded`], forward, with several matrices at once.
    ///
    /// **Shapes**: each output `(n, rows)` of its matrix. **Panics** if a length does not fit.
    pub fn matmul_rounded_each(&self, x: &Rounded, outputs: &mut [(&Bf16Matrix, &mut [f32])]) {
        bf16::run_each(self.isa, &self.pool, x, outputs);
    }

    /// Whether the instruction set has products in bf16, so that [`Kernels::matmul_bf16`] need not widen its factors to floats.
    pub fn has_bf16(&self) -> bool {
        bf16::is_native(self.isa)
    }

    /// Adds `bias` to every row of `out`.
    ///
    /// **Shapes**: `out` `(rows, bias.len())`. **Panics** if `out` is not whole rows.
    pub fn add_bias(&self, out: &mut [f32], bias: &[f32]) {
        self.for_rows(out, bias.len(), |_, out| {
            for row in out.chunks_exact_mut(bias.len()) {
                // SAFETY: the table is one that this processor can run (`with_isa`).
                unsafe { (self.table.add)(row, bias) };
            }
        });
    }

    /// `out = x / sqrt(mean(x^2) + eps) * weight`, row by row.
    ///
    /// **Shapes**: `x`, `out` `(rows, weight.len())`. **Panics** if a length does not fit.
    ///
    /// **Source**: Zhang and Sennrich, 2019, equation 4.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "input and output of a norm");
        let len = weight.len();
        self.for_rows(out, len, |range, out| {
            for (x, out) in x[range].chunks_exact(len).zip(out.chunks_exact_mut(len)) {
                // SAFETY: the table is one that this processor can run (`with_isa`).
                unsafe { (self.table.rms_norm)(x, weight, eps, out) };
            }
        });
    }

    /// Layer norm in place, row by row: `x = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias`.
    ///
    /// **Shapes**: `x` `(rows, weight.len())`, `bias` as `weight`. **Panics** if a length does not fit.
    ///
    /// **Source**: Ba, Kiros and Hinton, 2016, equation 4.
    pub fn layer_norm(&self, x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
        self.for_rows(x, weight.len(), |_, x| {
            for row in x.chunks_exact_mut(weight.len()) {
                // SAFETY: the table is one that this processor can run (`with_isa`).
                unsafe { (self.table.layer_norm)(row, weight, bias, eps) };
            }
        });
    }

    /// GELU in place, by the error function: `x = x / 2 (1 + erf(x / sqrt(2)))`, to within 5e-7 of `x`.
    ///
    /// **Source**: Hendrycks and Gimpel, 2016, section 2.
    pub fn gelu(&self, x: &mut [f32]) {
        // SAFETY: the table is one that this processor can run (`with_isa`).
        self.for_rows(x, 1, |_, x| unsafe { (self.table.gelu)(x) });
    }

    /// SwiGLU in place: `gate = silu(gate) * up`.
    ///
    /// **Panics** if the lengths differ.
    pub fn swiglu(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "gate and up");
        // SAFETY: the table is one that this processor can run (`with_isa`).
        self.for_rows(gate, 1, |range, gate| unsafe { (self.table.swiglu)(gate, &up[range]) });
    }

    /// `x += y`.
    ///
    /// **Panics** if the lengths differ.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "terms of a sum");
        // SAFETY: the table is one that this processor can run (`with_isa`).
        self.for_rows(x, 1, |range, x| unsafe { (self.table.add)(x, &y[range]) });
    }

    /// Rotates each head of each row, in place, to the row's position.
    ///
    /// **Shapes**: `x` `(positions.len(), heads, rope.head_dim())`. **Panics** if the length does not fit or a position
    /// is not in the tables.
    pub fn rope(&self, rope: &Rope, positions: &[u32], heads: usize, x: &mut [f32]) {
        let row_len = heads * rope.head_dim();
        assert_eq!(x.len(), positions.len() * row_len, "{} rows of {heads} heads", positions.len());
        self.for_rows(x, row_len, |range, x| {
            for (row, &position) in x.chunks_exact_mut(row_len).zip(&positions[range.start / row_len..]) {
                let (cos, sin) = rope.at(position);
                for head in row.chunks_exact_mut(rope.head_dim()) {
                    // SAFETY: the table is one that this processor can run (`with_isa`).
                    unsafe { (self.table.rotate)(rope.style(), cos, sin, head) };
                }
            }
        });
    }

    /// Rotates the queries and keys of new rows to their positions, and writes the keys and values to a layer's cache.
    ///
    /// **Panics** if a length does not fit, a position is not in the tables or a slot not in the cache.
    pub fn store(&self, rope: &Rope, rows: NewRows<'_>, keys: &mut KvBuffer, values: &mut KvBuffer) {
        store::run((self.table, &self.pool), rope, rows, keys, values);
    }

    /// Softmax attention of ragged rows over a paged cache: `out (rows, heads, head_dim)`.
    ///
    /// **Panics** if a length, a block number or a range does not fit.
    ///
    /// **Source**: the online softmax of Milakov and Gimelshein, 2018, algorithm 3.
    pub fn attention(&self, args: Attention<'_>, out: &mut [f32]) {
        Job::new(self.table, args, out).run(&self.pool);
    }

    /// [`Kernels::attention`] in bf16 where [`Kernels::has_tiles`] and heads are a multiple of 32 long; else the same as that.
    ///
    /// **Panics** as [`Kernels::attention`].
    pub fn attention_bf16(&self, args: Attention<'_>, out: &mut [f32]) {
        let job = Job::new(self.table, args, out);
        #[cfg(target_arch = "x86_64")]
        if self.has_tiles() {
            // SAFETY: `Isa::is_available` asks for AMX and AVX512-BF16.
            return unsafe { job.run_bf16(&self.pool) };
        }
        job.run(&self.pool);
    }

    /// Calls `task` with ranges of whole rows of `out` and those parts of it.
    fn for_rows(&self, out: &mut [f32], row_len: usize, task: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        let len = out.len();
        if len == 0 {
            return;
        }
        assert!(row_len > 0 && len.is_multiple_of(row_len), "{len} elements in rows of {row_len}");
        let task_len = TASK_ELEMENTS.next_multiple_of(row_len);
        let out = SharedMut::new(out);
        self.pool.run(len.div_ceil(task_len), |index| {
            let range = index * task_len..len.min((index + 1) * task_len);
            // SAFETY: tasks have disjoint ranges.
            task(range.clone(), unsafe { out.part(range) });
        });
    }
}
