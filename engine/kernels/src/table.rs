//! The functions of one instruction set. `Kernels` picks a table once and calls through it.

use half::f16;

use crate::matmul::Tile;
use crate::packed::{Sums, TILE, TileJob};
use crate::quantized::Sink;
use crate::shared::Place;
use crate::{DType, Isa, RopeStyle, attention, dequantize, elementwise, matmul, packed, quantized};

type Dot4 = unsafe fn(DType, [&[u8]; 4], usize, &[f32]) -> [f32; 4];
type Weigh = unsafe fn(&mut [f32], f32, &[f32], &[&[f32]]);

/// One function per kernel, all for the same instruction set.
///
/// Every function is unsafe to call for one reason: the processor must have the instruction set. Lengths are asserted
/// inside, or by the slices they arrive in. `packed_put` has a second one: its place has a row for each row of sums, and nobody else
/// uses them.
pub(crate) struct Table {
    /// Decodes `src`, whole blocks, into `out`.
    pub(crate) decode: unsafe fn(DType, &[u8], &mut [f32]),
    /// Dots four stored rows with one activation row whose length is a multiple of 32; what comes next in memory is
    /// that many bytes ahead.
    pub(crate) dot4: Dot4,
    /// Dots four decoded rows with up to `tile_rows` activation rows.
    pub(crate) tile: unsafe fn(&Tile<'_>, &mut matmul::TileSums),
    /// The most activation rows that `tile` takes at its best.
    pub(crate) tile_rows: usize,
    /// `out = x / sqrt(mean(x^2) + eps) * weight` of one row.
    pub(crate) rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    /// `gate = silu(gate) * up`.
    pub(crate) swiglu: unsafe fn(&mut [f32], &[f32]),
    /// `x += y`.
    pub(crate) add: unsafe fn(&mut [f32], &[f32]),
    /// `x = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias` of one row.
    pub(crate) layer_norm: unsafe fn(&mut [f32], &[f32], &[f32], f32),
    /// `x = x / 2 (1 + erf(x / sqrt(2)))`.
    pub(crate) gelu: unsafe fn(&mut [f32]),
    /// Rotates one head by `cos` and `sin`.
    pub(crate) rotate: unsafe fn(RopeStyle, &[f32], &[f32], &mut [f32]),
    /// Converts to half precision, ties to even.
    pub(crate) halves: unsafe fn(&[f32], &mut [f16]),
    /// One step of the online softmax.
    pub(crate) softmax: unsafe fn(&mut attention::Scores, f32, &mut attention::Softmax) -> f32,
    /// `acc = acc * correction + sum_j p_j v_j`.
    pub(crate) weigh: Weigh,
    /// One chunk of keys for a block of queries, and what heads must be a multiple of, where the instruction set has a
    /// function for that; otherwise rows are computed one by one with `tile`, `softmax` and `weigh`.
    pub(crate) attend: Option<(attention::blocked::Step, usize)>,
    /// `1 / sqrt(mean(x^2) + eps)` of one row, the factor of `rms_norm`.
    pub(crate) rms_factor: unsafe fn(&[f32], f32) -> f32,
    /// `out = x * factor * weight`.
    pub(crate) rms_scale: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    /// Quantizes whole blocks of a row from a given block on.
    pub(crate) quantize: unsafe fn(&[f32], usize, &mut Sink<'_>),
    /// Multiplies a packed tile with a group of activations.
    pub(crate) packed_tile: unsafe fn(&TileJob<'_>, &mut Sums),
    /// Puts whole rows of such sums into their place, or adds them.
    pub(crate) packed_put: unsafe fn(&[[f32; TILE]], Place),
    /// The most activation rows that `packed_tile` takes.
    pub(crate) packed_rows: usize,
}

impl Table {
    /// The table for kernels of `isa`: that of AMX only where its integer products are found clearly faster than those of AVX-512, at
    /// the first use in a process. Tests always take it.
    ///
    /// # Safety
    /// The processor has `isa`.
    pub(crate) unsafe fn to_run(isa: Isa) -> &'static Table {
        #[cfg(target_arch = "x86_64")]
        if isa == Isa::Amx && !cfg!(test) {
            static IS_FASTER: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
            // SAFETY: the caller's promise.
            if !*IS_FASTER.get_or_init(|| unsafe { packed::amx::is_faster() }) {
                return Table::of(Isa::Avx512);
            }
        }
        Table::of(isa)
    }

    /// The table of `isa`, which the caller has found available.
    pub(crate) fn of(isa: Isa) -> &'static Table {
        match isa {
            Isa::Scalar => &SCALAR,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &AVX2,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &AVX512,
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => &AMX,
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 | Isa::Amx => unreachable!("invariant: `{isa}` is never available here"),
        }
    }
}

static SCALAR: Table = Table {
    decode: dequantize::scalar::decode,
    dot4: matmul::scalar::dot4,
    tile: matmul::scalar::tile,
    tile_rows: matmul::scalar::TILE_ROWS,
    rms_norm: elementwise::scalar::rms_norm,
    swiglu: elementwise::scalar::swiglu,
    add: elementwise::scalar::add,
    layer_norm: elementwise::scalar::layer_norm,
    gelu: elementwise::scalar::gelu,
    rotate: elementwise::scalar::rotate,
    halves: elementwise::scalar::halves,
    softmax: attention::scalar::softmax,
    weigh: attention::scalar::weigh,
    attend: None,
    rms_factor: elementwise::scalar::rms_factor,
    rms_scale: elementwise::scalar::rms_scale,
    quantize: quantized::scalar::quantize,
    packed_tile: packed::scalar::tile,
    packed_put: packed::scalar::put,
    packed_rows: packed::scalar::GROUP_ROWS,
};

#[cfg(target_arch = "x86_64")]
static AVX2: Table = Table {
    decode: dequantize::avx2::decode,
    dot4: matmul::avx2::dot4,
    tile: matmul::avx2::tile,
    tile_rows: matmul::avx2::TILE_ROWS,
    rms_norm: elementwise::avx2::rms_norm,
    swiglu: elementwise::avx2::swiglu,
    add: elementwise::avx2::add,
    layer_norm: elementwise::avx2::layer_norm,
    gelu: elementwise::avx2::gelu,
    rotate: elementwise::avx2::rotate,
    halves: elementwise::avx2::halves,
    softmax: attention::avx2::softmax,
    weigh: attention::avx2::weigh,
    attend: Some((attention::avx2_block::step, attention::avx2_block::LANES)),
    rms_factor: elementwise::avx2::rms_factor,
    rms_scale: elementwise::avx2::rms_scale,
    quantize: quantized::avx2::quantize,
    packed_tile: packed::avx2::tile,
    packed_put: packed::avx2::put,
    packed_rows: packed::avx2::GROUP_ROWS,
};

#[cfg(target_arch = "x86_64")]
static AVX512: Table = Table {
    decode: dequantize::avx512::decode,
    dot4: matmul::avx512::dot4,
    tile: matmul::avx512::tile,
    tile_rows: matmul::avx512::TILE_ROWS,
    rms_norm: elementwise::avx512::rms_norm,
    swiglu: elementwise::avx512::swiglu,
    add: elementwise::avx512::add,
    layer_norm: elementwise::avx512::layer_norm,
    gelu: elementwise::avx512::gelu,
    rotate: elementwise::avx512::rotate,
    halves: elementwise::avx512::halves,
    softmax: attention::avx512::softmax,
    weigh: attention::avx512::weigh,
    attend: Some((attention::avx512_block::step, 1)),
    rms_factor: elementwise::avx512::rms_factor,
    rms_scale: elementwise::avx512::rms_scale,
    quantize: quantized::avx512::quantize,
    packed_tile: packed::avx512::tile,
    packed_put: packed::avx512::put,
    packed_rows: packed::avx512::GROUP_ROWS,
};

#[cfg(target_arch = "x86_64")]
static AMX: Table = Table { packed_tile: packed::amx::tile, packed_rows: packed::amx::GROUP_ROWS, ..AVX512 };
