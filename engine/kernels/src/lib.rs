//! The arithmetic under the model: block formats, matrix products, attention, norms, and the threads that share them.
//!
//! Read `kernels.rs` first: [`Kernels`] is the one entry, it asserts lengths and then calls the functions of one
//! [`Isa`], chosen once at run time. Each noun (`dequantize`, `matmul`, `attention`, `elementwise`) has a `scalar.rs`,
//! which is its meaning, and one file per instruction set.
//!
//! **Batch invariance.** Every number here depends only on the row it belongs to: not on the other rows of the call,
//! its place among them, the number of threads, or how the rows are chunked into calls. Each dot product walks its
//! terms in one order per instruction set, whatever the tile around it. Different instruction sets may differ in the
//! last bits, except in decoding weights, which is bit-equal everywhere.

#![allow(
    unsafe_code,
    reason = "the only crate of the workspace that may be unsafe: intrinsics, and slices shared between threads"
)]

#[cfg(target_arch = "x86_64")]
mod across;
mod ahead;
mod attention;
mod bf16;
mod buffer;
mod dequantize;
mod dtype;
mod elementwise;
mod error;
mod huge_pages;
mod isa;
mod kernels;
mod matmul;
mod matrix;
mod packed;
mod pool;
mod prefetch;
mod quantized;
mod reduce;
mod roofline;
mod rope;
#[cfg(test)]
mod samples;
mod shared;
mod source;
mod table;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod tile_emulator;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod training;

pub use attention::{Attention, AttentionRow, KvBuffer, KvDType, KvShape, KvSlot, NewRows};
pub use bf16::{Bf16Matrix, Direction, Rounded};
pub use buffer::Buffer;
pub use dtype::DType;
pub use error::KernelsError;
pub use isa::Isa;
pub use kernels::Kernels;
pub use matrix::Matrix;
pub use packed::{PackedMatrix, PackedProduct};
pub use pool::Pool;
pub use quantized::Quantized;
pub use reduce::{argmax, log_sum_exp};
pub use roofline::Roofline;
pub use rope::{Rope, RopeStyle};
pub use training::{
    Attended, CausalAttention, LowRank, LowRankGradients, LowRankInputs, MIX_STEP, Mask, Product, ProductLosses, Right,
    RowLosses, Segment, Tree, View, mix,
};
