//! What training needs beyond serving: products in every orientation, attention over whole ragged batches with its backward
//! pass, dropout, and the backward passes of norm, SwiGLU and cross-entropy.
//!
//! **Determinism.** As everywhere in this crate a number depends on its row alone. A sum over rows walks them in order, in bf16 task by task,
//! whose rows depend on how many there are, so that a result does not depend on the number of threads. Weights stay as they are stored: a panel of them is decoded when
//! it is multiplied, so `f32`, `bf16` and block formats take the same path.

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dropout;
mod entry;
mod gated;
mod left;
mod losses;
mod low_rank;
mod pack;
mod product;
mod product_losses;
mod scalar;
mod squares;
mod table;
#[cfg(test)]
mod tests;
mod view;

pub use attention::{Attended, CausalAttention, Segment, Tree};
pub use dropout::{MIX_STEP, Mask, mix};
pub use losses::RowLosses;
pub use low_rank::{LowRank, LowRankGradients, LowRankInputs};
pub use product::{Product, Right};
pub use product_losses::ProductLosses;
pub use view::View;
